//! Ports of the node that lead to a guest, with real clients and `testkit`'s guest, whose ports each behave in a way of
//! their own. The real agent's side is tested beside it, with real servers.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says how fast it was")]

mod support;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::{Node, assignment, final_report, node, node_with, reason};
use tartarus_api::node::{Assignment, Report};
use tartarus_types::net::Forward;
use tartarus_types::{Contract, Reason, Refusal, SandboxId};
use testkit::ports::{COUNT, DEAF, ECHO, LIAR, LOUD, RUDE};
use testkit::{FakeWorkshop, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Served {
    node: Node,
    id: SandboxId,
}

/// A sandbox whose command runs.
async fn served(work: Assignment) -> Served {
    let id = work.sandbox.clone();
    let node = node(work, None, false);
    node.control.until(|r| matches!(r, Report::Progress(_))).await;
    Served { node, id }
}

async fn sleeper() -> Served {
    served(assignment(&["sleep"], 10_000)).await
}

fn any(port: u16) -> Forward {
    Forward { listen: "127.0.0.1:0".parse().unwrap(), port }
}

impl Served {
    async fn set(&self, forwards: &[Forward]) -> Result<Vec<Forward>, Refusal> {
        let contract = Contract { forwards: forwards.to_vec(), ..Contract::default() };
        Ok(self.node.agent.set_net(&self.id, contract).await?.contract.forwards)
    }

    async fn listen(&self, port: u16) -> SocketAddr {
        self.set(&[any(port)]).await.unwrap()[0].listen
    }
}

async fn connect(to: SocketAddr) -> TcpStream {
    TcpStream::connect(to).await.unwrap()
}

/// Sends and says that it is all, while it reads until the end.
async fn exchange(to: SocketAddr, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let (mut read, mut write) = connect(to).await.into_split();
    let send = tokio::spawn(async move {
        write.write_all(&bytes).await?;
        write.shutdown().await
    });
    let mut all = Vec::new();
    read.read_to_end(&mut all).await?;
    send.await.unwrap()?;
    Ok(all)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("within 10 s")
}

async fn is_reset(client: &mut TcpStream) -> bool {
    let mut all = Vec::new();
    matches!(soon(client.read_to_end(&mut all)).await, Err(e) if e.kind() == ErrorKind::ConnectionReset)
}

fn noise(count: usize) -> Vec<u8> {
    let mut state = 7_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(count)
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_goes_there_and_back() {
    let sandbox = sleeper().await;
    let forwards = sandbox.set(&[any(ECHO), any(COUNT)]).await.unwrap();
    let bytes = noise(10 << 20);
    let began = Instant::now();
    let back = soon(exchange(forwards[0].listen, bytes.clone())).await.unwrap();
    println!("10 MiB there and back in {:?}", began.elapsed());
    assert!(back == bytes, "{} bytes came back", back.len());
    // The answer comes after the end of the question.
    assert_eq!(soon(exchange(forwards[1].listen, bytes)).await.unwrap(), (10 << 20).to_string().into_bytes());
    sandbox.node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_at_once_and_the_next_one_waits() {
    let sandbox = sleeper().await;
    let to = sandbox.listen(ECHO).await;
    let ask = async |client: &mut TcpStream| {
        client.write_all(b"?").await.unwrap();
        client.read_u8().await.unwrap()
    };
    let mut clients = Vec::new();
    for _ in 0..tartarus_guest::MAX_CARRIED {
        clients.push(connect(to).await);
    }
    for client in &mut clients {
        assert_eq!(soon(ask(client)).await, b'?');
    }
    let mut next = connect(to).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), ask(&mut next)).await.is_err(), "it waits");
    clients.pop();
    assert_eq!(soon(next.read_u8()).await.unwrap(), b'?', "one ended");
    drop(clients);
    // Many more, far more side by side than there may be: each slot is given back.
    for round in 0..5 {
        let mut more = tokio::task::JoinSet::new();
        for n in 0..400_usize {
            more.spawn(exchange(to, vec![1; n * 100]));
        }
        let mut total = 0;
        while let Some(back) = soon(more.join_next()).await {
            total += back.unwrap().unwrap_or_else(|e| panic!("round {round}: {e}")).len();
        }
        assert_eq!(total, (0..400).sum::<usize>() * 100);
    }
    sandbox.node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_read_holds_up_nobody_else() {
    let sandbox = sleeper().await;
    let forwards = sandbox.set(&[any(LOUD), any(DEAF), any(ECHO)]).await.unwrap();
    let _silent = connect(forwards[0].listen).await;
    let mut stuck = connect(forwards[1].listen).await;
    let sent = async {
        loop {
            stuck.write_all(&[1; 65536]).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(500), sent).await.is_err(), "its guest takes nothing");
    let bytes = noise(2 << 20);
    assert!(soon(exchange(forwards[2].listen, bytes.clone())).await.unwrap() == bytes);
    sandbox.node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guest_ends_or_refuses_is_a_reset() {
    let sandbox = sleeper().await;
    let forwards = sandbox.set(&[any(RUDE), any(81)]).await.unwrap();
    let mut client = connect(forwards[0].listen).await;
    client.write_all(b"x").await.unwrap();
    assert!(is_reset(&mut client).await);
    // Nothing listens: that may be known before the client is.
    match TcpStream::connect(forwards[1].listen).await {
        Ok(mut client) => assert!(is_reset(&mut client).await),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
    sandbox.node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_opens_keeps_turns_and_closes_or_does_nothing() {
    let sandbox = sleeper().await;
    let first = sandbox.set(&[any(ECHO), any(COUNT)]).await.unwrap();
    assert!(first.iter().all(|f| f.listen.port() != 0));
    let (mut kept, mut gone) = (connect(first[0].listen).await, connect(first[1].listen).await);
    kept.write_all(b"a").await.unwrap();
    assert_eq!(soon(kept.read_u8()).await.unwrap(), b'a');
    // Somebody else has it: nothing changes, also not what would have gone.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let used = Forward { listen: taken.local_addr().unwrap(), port: ECHO };
    let refused = sandbox.set(&[any(ECHO), used]).await.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("forwards"));
    assert!(refused.detail.contains("in use"), "{}", refused.detail);
    assert_eq!(soon(exchange(first[1].listen, vec![0; 5])).await.unwrap(), b"5");
    drop(taken);
    let strange = Forward { listen: "192.0.2.1:0".parse().unwrap(), port: ECHO };
    assert_eq!(sandbox.set(&[strange]).await.unwrap_err().field.as_deref(), Some("forwards"));
    let second = sandbox.set(&[used, any(ECHO)]).await.unwrap();
    assert_eq!(second, [used, first[0]], "any port is the one that it has");
    assert!(is_reset(&mut gone).await);
    assert_eq!(TcpStream::connect(first[1].listen).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    kept.write_all(b"b").await.unwrap();
    assert_eq!(soon(kept.read_u8()).await.unwrap(), b'b', "it stayed");
    let turned = Forward { port: COUNT, ..first[0] };
    assert_eq!(sandbox.set(&[turned]).await.unwrap(), [turned]);
    assert!(is_reset(&mut kept).await, "it led elsewhere");
    assert_eq!(soon(exchange(turned.listen, vec![0; 6])).await.unwrap(), b"6");
    // At once and again and again: who is gone does not keep its port.
    for _ in 0..50 {
        assert_eq!(sandbox.set(&[]).await.unwrap(), []);
        assert_eq!(sandbox.set(&[turned]).await.unwrap(), [turned]);
    }
    let mut last = connect(turned.listen).await;
    // It is taken before the end comes: what still waits in the kernel's queue ends in its own way.
    tokio::time::sleep(Duration::from_millis(200)).await;
    sandbox.node.stopped_clean().await;
    assert!(is_reset(&mut last).await, "it ends with its sandbox");
    assert_eq!(TcpStream::connect(turned.listen).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_breaks_a_rule_ends_its_sandbox() {
    let sandbox = sleeper().await;
    let client = TcpStream::connect(sandbox.listen(LIAR).await).await;
    let report = sandbox.node.control.until(final_report).await;
    assert_eq!(reason(&report), Some(Reason::GuestDied), "{report:?}");
    // On a busy machine it was found out before the connection was seen to be there.
    match client {
        Ok(mut client) => assert!(is_reset(&mut client).await),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    sandbox.node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_agent_is_told_of_and_spoken_to_as_before() {
    let work = assignment(&["sleep"], 10_000);
    let id = work.sandbox.clone();
    let workshop = FakeWorkshop::default();
    workshop.fail_at(Some(Step::OldAgent));
    let sandbox = Served { node: node_with(workshop, work, false), id };
    sandbox.node.control.until(|r| matches!(r, Report::Progress(_))).await;
    let refused = sandbox.set(&[any(ECHO)]).await.unwrap_err();
    assert!(refused.detail.contains("template rebuild"), "{}", refused.detail);
    assert_eq!(sandbox.set(&[]).await.unwrap(), []);
    sandbox.node.stopped_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_used_is_use() {
    let mut work = assignment(&[], 10_000);
    work.spec.idle_timeout_ms = Some(1_000);
    let sandbox = served_idle(work).await;
    let mut client = connect(sandbox.listen(ECHO).await).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(soon(client.read_u8()).await.unwrap(), b'x');
    }
    let used = Instant::now();
    let report = sandbox.node.control.until(final_report).await;
    assert_eq!(reason(&report), Some(Reason::Idle), "{report:?}");
    assert!((800..4_000).contains(&used.elapsed().as_millis()), "{:?}", used.elapsed());
    sandbox.node.stopped_clean().await;
}

/// One without a command: nothing tells of its start but that it may begin.
async fn served_idle(work: Assignment) -> Served {
    let id = work.sandbox.clone();
    let node = node(work, None, false);
    node.control.until(|r| *r == Report::Begin).await;
    Served { node, id }
}
