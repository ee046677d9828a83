//! Connections carried by the whole agent, to servers on this machine's loopback.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tartarus_guest::flow::{Incoming, Outgoing};
use tartarus_guest::frame::MAX_PAYLOAD;
use tartarus_guest::{CARRY_WINDOW, Frame, Kind, MAX_CARRIED};

use crate::agent::tests::{Host, agent};

/// A greeted agent.
fn greeted() -> Option<Host> {
    let mut host = agent(None)?;
    assert_eq!(host.hello(1).header.kind, Kind::HelloAck);
    Some(host)
}

/// A server on a port of its own, which does this with each connection.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(connection));
        }
    });
    port
}

fn echo(mut connection: TcpStream) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = connection.read(&mut bytes) {
        connection.write_all(&bytes[..count]).unwrap();
    }
}

/// The host's side of some connections: what it sends to each, and what came back.
#[derive(Default)]
struct Client {
    out: Outgoing,
    into: Incoming,
    to_send: VecDeque<u8>,
    received: Vec<u8>,
    cut: bool,
    refused: Option<String>,
}

impl Client {
    fn sending(bytes: &[u8]) -> Self {
        Self { to_send: bytes.iter().copied().collect(), ..Self::default() }
    }

    fn is_over(&self) -> bool {
        self.cut || self.refused.is_some() || (self.into.is_over() && self.out.is_over())
    }
}

/// Sends what each has room for, and the end after it.
fn send(host: &mut Host, clients: &mut BTreeMap<u32, Client>) {
    for (number, client) in clients.iter_mut().filter(|(_, client)| !client.is_over()) {
        while !client.to_send.is_empty() && client.out.room() > 0 {
            let count = client.to_send.len().min(client.out.room()).min(MAX_PAYLOAD);
            let bytes: Vec<u8> = client.to_send.drain(..count).collect();
            host.send(Kind::Carry, *number, 0, client.out.send(count), &bytes);
        }
        if client.to_send.is_empty() && !client.out.is_ended() {
            host.send(Kind::CarryEof, *number, 0, client.out.end(), b"");
        }
    }
}

fn hear(host: &mut Host, clients: &mut BTreeMap<u32, Client>) {
    let Frame { header, payload } = host.next();
    assert_ne!(header.kind, Kind::Fault, "{}", String::from_utf8_lossy(&payload));
    let client = clients.get_mut(&header.process).unwrap();
    match header.kind {
        Kind::Dialed => {}
        Kind::Refused => client.refused = Some(String::from_utf8(payload).unwrap()),
        Kind::Carry => {
            client.into.receive(header.offset, payload.len()).unwrap();
            client.into.take(payload.len());
            client.received.extend(payload);
        }
        Kind::CarryEof => client.into.end(header.offset).unwrap(),
        Kind::Carried => client.out.taken(header.offset).unwrap(),
        Kind::Cut => client.cut = true,
        other => panic!("{other:?}"),
    }
    if let Some(offset) = client.into.due() {
        host.send(Kind::Carried, header.process, 0, offset, b"");
    }
}

/// Until all are over.
fn run(host: &mut Host, clients: &mut BTreeMap<u32, Client>) {
    while clients.values().any(|client| !client.is_over()) {
        send(host, clients);
        hear(host, clients);
    }
}

fn noise(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(count)
    .collect()
}

/// The text of the fault that follows.
fn fault(host: &mut Host) -> String {
    loop {
        let Frame { header, payload } = host.next();
        if header.kind == Kind::Fault {
            return String::from_utf8(payload).unwrap();
        }
    }
}

#[test]
fn ten_mebibytes_come_back_as_they_were_sent() {
    let Some(mut host) = greeted() else { return };
    let bytes = noise(10 << 20, 1);
    let mut clients = BTreeMap::from([(1, Client::sending(&bytes))]);
    host.send(Kind::Dial, 1, 0, server(echo).into(), b"");
    let began = Instant::now();
    run(&mut host, &mut clients);
    println!("10 MiB there and back in {:?}", began.elapsed());
    assert!(clients[&1].received == bytes);
}

#[test]
fn so_many_connections_at_once_and_no_more() {
    let Some(mut host) = greeted() else { return };
    let port = server(echo);
    let all = 1..=u32::try_from(MAX_CARRIED).unwrap();
    let mut clients: BTreeMap<u32, Client> =
        all.clone().map(|number| (number, Client::sending(&noise(300_000, number)))).collect();
    for number in all {
        host.send(Kind::Dial, number, 0, port.into(), b"");
    }
    run(&mut host, &mut clients);
    for (number, client) in &clients {
        assert!(client.received == noise(300_000, *number), "{number}");
    }
    // Those are over: as many again have room, and one more has not.
    for number in 100..=100 + u32::try_from(MAX_CARRIED).unwrap() {
        host.send(Kind::Dial, number, 0, port.into(), b"");
    }
    assert!(fault(&mut host).contains("connections at once"));
}

#[test]
fn one_that_does_not_read_holds_up_nobody_else() {
    let Some(mut host) = greeted() else { return };
    let (hold, held) = mpsc::sync_channel::<TcpStream>(16);
    let deaf = server(move |connection| drop(hold.send(connection)));
    let loud = server(|mut connection| while connection.write_all(&[7; 4096]).is_ok() {});
    host.send(Kind::Dial, 1, 0, deaf.into(), b"");
    host.send(Kind::Dial, 2, 0, loud.into(), b"");
    let kept = held.recv_timeout(Duration::from_secs(10)).unwrap();
    // The first is sent all that it may; nothing is said to be taken of the second.
    let mut clients: BTreeMap<u32, Client> = BTreeMap::from([(1, Client::sending(&vec![1; 64 << 20]))]);
    let mut loud = 0;
    host.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let quiet = |host: &mut Host, clients: &mut BTreeMap<u32, Client>, loud: &mut usize| {
        loop {
            send(host, clients);
            let Some(Frame { header, payload }) = host.try_next() else { return };
            match (header.kind, header.process) {
                (Kind::Dialed, _) => {}
                (Kind::Carried, 1) => clients.get_mut(&1).unwrap().out.taken(header.offset).unwrap(),
                (Kind::Carry, 2) => *loud += payload.len(),
                other => panic!("{other:?}"),
            }
        }
    };
    quiet(&mut host, &mut clients, &mut loud);
    assert_eq!((clients[&1].out.room(), loud), (0, CARRY_WINDOW), "both stand still at their windows");
    host.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let bytes = noise(1 << 20, 3);
    let mut other = BTreeMap::from([(3, Client::sending(&bytes))]);
    host.send(Kind::Dial, 3, 0, server(echo).into(), b"");
    run(&mut host, &mut other);
    assert!(other[&3].received == bytes);
    let mut outputs = Default::default();
    host.start(0, "t", "echo so do commands", false);
    host.attach(0, 0, 0);
    host.end(0, &mut outputs).unwrap();
    assert_eq!(outputs[0], b"so do commands\n");
    // It goes on where it stood.
    let reads = thread::spawn(move || {
        let (mut kept, mut all) = (kept, Vec::new());
        kept.read_to_end(&mut all).unwrap();
        all.len()
    });
    host.send(Kind::Cut, 2, 0, 0, b"");
    while !clients[&1].out.is_over() {
        send(&mut host, &mut clients);
        let Frame { header, .. } = host.next();
        match (header.kind, header.process) {
            (Kind::Carried, 1) => clients.get_mut(&1).unwrap().out.taken(header.offset).unwrap(),
            (Kind::Carry, 2) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(reads.join().unwrap(), 64 << 20);
}

#[test]
fn one_direction_may_end_before_the_other() {
    let Some(mut host) = greeted() else { return };
    let port = server(|mut connection| {
        let mut all = Vec::new();
        connection.read_to_end(&mut all).unwrap();
        connection.write_all(&[&all[..], b", heard"].concat()).unwrap();
    });
    let mut clients = BTreeMap::from([(1, Client::sending(b"asked"))]);
    host.send(Kind::Dial, 1, 0, port.into(), b"");
    run(&mut host, &mut clients);
    assert_eq!(clients[&1].received, b"asked, heard");
    // The other way round: the server is at its end, and goes on to read.
    let (tell, told) = mpsc::sync_channel(16);
    let port = server(move |mut connection| {
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        let mut all = Vec::new();
        connection.read_to_end(&mut all).unwrap();
        tell.send(all).unwrap();
    });
    host.send(Kind::Dial, 2, 0, port.into(), b"");
    assert_eq!(host.next().header.kind, Kind::Dialed);
    assert_eq!(host.next().header.kind, Kind::CarryEof);
    host.send(Kind::Carry, 2, 0, 0, b"late");
    host.send(Kind::CarryEof, 2, 0, 4, b"");
    assert_eq!(told.recv_timeout(Duration::from_secs(10)).unwrap(), b"late");
    let last = host.next().header;
    assert_eq!((last.kind, last.offset), (Kind::Carried, 4));
}

#[test]
fn a_port_where_nobody_listens_is_refused_in_words() {
    let Some(mut host) = greeted() else { return };
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    host.send(Kind::Dial, 1, 0, free.into(), b"");
    // Sent before it was known, which breaks no rule.
    host.send(Kind::Carry, 1, 0, 0, b"early");
    let refused = host.next();
    let words = String::from_utf8(refused.payload).unwrap();
    assert_eq!(refused.header.kind, Kind::Refused);
    assert!(words.contains(&format!("nothing listens on TCP port {free}")), "{words}");
    host.send(Kind::Cut, 1, 0, 0, b"");
    host.send(Kind::Freeze, 0, 0, 0, b"");
    assert_eq!(host.next().header.kind, Kind::Frozen, "the session goes on");
}

#[test]
fn a_reset_is_one_on_the_other_side_too() {
    let Some(mut host) = greeted() else { return };
    let (tell, told) = mpsc::sync_channel(16);
    let port = server(move |mut connection| {
        let mut bytes = [0; 9];
        connection.read_exact(&mut bytes[..1]).unwrap();
        connection.write_all(b"x").unwrap();
        tell.send(connection.read(&mut bytes).map_err(|error| error.kind())).unwrap();
    });
    let reset = || told.recv_timeout(Duration::from_secs(10)).unwrap();
    let dial = |host: &mut Host, number| {
        host.send(Kind::Dial, number, 0, port.into(), b"");
        host.send(Kind::Carry, number, 0, 0, b"a");
        assert_eq!(host.next().header.kind, Kind::Dialed);
        assert_eq!(host.next().header.kind, Kind::Carry);
    };
    dial(&mut host, 1);
    host.send(Kind::Cut, 1, 0, 0, b"");
    assert_eq!(reset(), Err(ErrorKind::ConnectionReset), "the host cut it off");
    dial(&mut host, 2);
    assert_eq!(host.hello(2).header.kind, Kind::HelloAck);
    assert_eq!(reset(), Err(ErrorKind::ConnectionReset), "it belonged to another session");
    // Numbers begin anew. What the server does not read is lost: that is a reset for the host.
    let rude = server(|mut connection| drop(connection.read(&mut [0])));
    host.send(Kind::Dial, 1, 0, rude.into(), b"");
    host.send(Kind::Carry, 1, 0, 0, b"more than it reads");
    assert_eq!(host.next().header.kind, Kind::Dialed);
    let end = host.next().header;
    assert_eq!((end.kind, end.process), (Kind::Cut, 1));
}

#[test]
fn a_host_that_breaks_a_rule_is_cut_off() {
    let Some(mut host) = greeted() else { return };
    let (hold, _held) = mpsc::sync_channel::<TcpStream>(16);
    let port = server(move |connection| drop(hold.send(connection)));
    let mut session = 1;
    let mut breaks = |rule: &dyn Fn(&mut Host), why: &str| {
        session += 1;
        assert_eq!(host.hello(session).header.kind, Kind::HelloAck);
        host.send(Kind::Dial, 5, 0, port.into(), b"");
        rule(&mut host);
        let text = fault(&mut host);
        assert!(text.contains(why), "{text} should say {why}");
    };
    breaks(&|host| host.send(Kind::Carry, 6, 0, 0, b"x"), "no connection 6");
    breaks(&|host| host.send(Kind::Cut, 6, 0, 0, b""), "no connection 6");
    breaks(&|host| host.send(Kind::Dial, 5, 0, 1, b""), "not a new one");
    breaks(&|host| host.send(Kind::Dial, 4, 0, 1, b""), "not a new one");
    breaks(&|host| host.send(Kind::Carry, 5, 0, 1, b"x"), "goes on at 1");
    breaks(&|host| host.send(Kind::Carried, 5, 0, 1, b""), "1 bytes of a connection");
    let after_end = |host: &mut Host| {
        host.send(Kind::CarryEof, 5, 0, 0, b"");
        host.send(Kind::Carry, 5, 0, 0, b"x");
    };
    breaks(&after_end, "after its end");
    // More than the server's socket and the window hold.
    let overrun = |host: &mut Host| {
        for frame in 0..1024 {
            host.send(Kind::Carry, 5, 0, frame * MAX_PAYLOAD as u64, &[0; MAX_PAYLOAD]);
        }
    };
    breaks(&overrun, "overruns its window");
}
