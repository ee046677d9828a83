use std::time::Duration;

use proptest::prelude::*;
use tartarus_guest::flow::Broken;
use tartarus_guest::frame::MAX_PAYLOAD;
use tartarus_guest::{CARRY_WINDOW, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn carriers(version: u32) -> Arc<Carriers> {
    Arc::new(Carriers::new(Arc::new(Outbox::new(1)), version))
}

async fn dialled(carriers: &Arc<Carriers>) -> Dialled {
    carriers.dial(carriers.slot().await.unwrap(), 80).await.unwrap()
}

fn frame(kind: Kind, number: u32, offset: u64, payload: &[u8]) -> Frame {
    Frame { header: Header { offset, ..Header::new(kind, number) }, payload: payload.to_vec() }
}

#[tokio::test]
async fn a_guest_that_breaks_a_rule_is_found_out() {
    let full = [0; MAX_PAYLOAD];
    for (frames, broken) in [
        (vec![frame(Kind::Dialed, 0, 0, b"")], Malformed::Carried(Kind::Dialed, 0)),
        (vec![frame(Kind::Dialed, 2, 0, b"")], Malformed::Carried(Kind::Dialed, 2)),
        (vec![frame(Kind::Cut, u32::MAX, 0, b"")], Malformed::Carried(Kind::Cut, u32::MAX)),
        (vec![frame(Kind::Carry, 1, 0, b"x")], Malformed::Carried(Kind::Carry, 1)),
        (vec![frame(Kind::Dialed, 1, 0, b""); 2], Malformed::Carried(Kind::Dialed, 1)),
        (vec![frame(Kind::Dialed, 1, 0, b""), frame(Kind::Refused, 1, 0, b"")], Malformed::Carried(Kind::Refused, 1)),
        (vec![frame(Kind::Dialed, 1, 0, b""), frame(Kind::Carry, 1, 0, b"")], Malformed::Carried(Kind::Carry, 1)),
        (vec![frame(Kind::Dialed, 1, 0, b""), frame(Kind::Carry, 1, 1, b"x")], Broken::Gap { got: 1, known: 0 }.into()),
        (
            vec![frame(Kind::Dialed, 1, 0, b""), frame(Kind::Carried, 1, 1, b"")],
            Broken::Ahead { got: 1, sent: 0 }.into(),
        ),
        (
            vec![frame(Kind::Dialed, 1, 0, b""), frame(Kind::CarryEof, 1, 0, b""), frame(Kind::Carry, 1, 0, b"x")],
            Broken::PastEnd.into(),
        ),
        (
            std::iter::once(frame(Kind::Dialed, 1, 0, b""))
                .chain((0..=4).map(|n| frame(Kind::Carry, 1, n * MAX_PAYLOAD as u64, &full)))
                .collect(),
            Broken::Overrun.into(),
        ),
    ] {
        let carriers = carriers(VERSION);
        let _dialled = dialled(&carriers).await;
        let (last, before) = frames.split_last().unwrap();
        for frame in before {
            assert_eq!(carriers.heard(frame.clone()), Ok(()), "before {broken:?}");
        }
        assert_eq!(carriers.heard(last.clone()), Err(broken));
    }
}

#[tokio::test]
async fn what_was_on_its_way_when_one_ended_means_nothing() {
    let carriers = carriers(VERSION);
    let dialled = dialled(&carriers).await;
    carriers.heard(frame(Kind::Dialed, 1, 0, b"")).unwrap();
    let before = carriers.outbox.waiting();
    drop(dialled);
    assert!(carriers.outbox.waiting() > before, "it is cut off");
    for kind in [Kind::Carry, Kind::CarryEof, Kind::Carried, Kind::Cut, Kind::Dialed, Kind::Refused] {
        assert_eq!(carriers.heard(frame(kind, 1, 7, b"late")), Ok(()), "{kind:?}");
    }
    assert!(carriers.lock().open.is_empty());
}

#[tokio::test]
async fn nothing_is_said_to_an_agent_that_does_not_know_of_it() {
    let carriers = carriers(CARRIES - 1);
    let slot = carriers.slot().await.unwrap();
    assert!(carriers.dial(slot, 80).await.is_none());
    assert_eq!(carriers.outbox.waiting(), 0);
}

/// A client and the node's end of its connection.
async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let (client, served) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), served.unwrap().0)
}

/// Nobody reads what is for the guest: it stands still. What is kept for it does not grow with what clients do.
#[tokio::test]
async fn a_guest_that_stands_still_holds_its_clients_back() {
    let carriers = carriers(VERSION);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..MAX_CARRIED {
        let (mut client, served) = pair(&listener).await;
        tasks.spawn(serve(served, carriers.clone(), carriers.slot().await.unwrap(), 80));
        tasks.spawn(async move {
            let _ = client.write_all(&[7; 4 << 20]).await;
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting = carriers.outbox.waiting();
    assert!((128 << 10..300 << 10).contains(&waiting), "{waiting}");
    assert!(tokio::time::timeout(Duration::from_millis(100), carriers.slot()).await.is_err(), "no more than these");
    carriers.close();
    while tasks.join_next().await.is_some() {}
    // Clients that come and go meanwhile.
    let carriers = self::carriers(VERSION);
    let come_and_go = async {
        for _ in 0..5_000 {
            let slot = carriers.slot().await.unwrap();
            drop(carriers.dial(slot, 80).await);
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(500), come_and_go).await.is_err(), "somebody waits at last");
    assert!(carriers.outbox.waiting() < 300 << 10, "{}", carriers.outbox.waiting());
}

#[tokio::test]
async fn a_session_that_ends_resets_its_clients() {
    let carriers = carriers(VERSION);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut client, served) = pair(&listener).await;
    let task = tokio::spawn(serve(served, carriers.clone(), carriers.slot().await.unwrap(), 80));
    while carriers.lock().highest == 0 {
        tokio::task::yield_now().await;
    }
    carriers.heard(frame(Kind::Dialed, 1, 0, b"")).unwrap();
    carriers.heard(frame(Kind::Carry, 1, 0, b"part")).unwrap();
    let mut part = [0; 4];
    client.read_exact(&mut part).await.unwrap();
    carriers.close();
    task.await.unwrap();
    assert_eq!(client.read(&mut part).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(carriers.slot().await.is_none());
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let kinds = prop::sample::select(vec![
        Kind::Dialed,
        Kind::Refused,
        Kind::Carry,
        Kind::CarryEof,
        Kind::Carried,
        Kind::Cut,
        Kind::Dial,
        Kind::Output,
    ]);
    // Mostly about what there is, and where it is.
    let offset = prop_oneof![4 => Just(0), 2 => 0..70_000_u64, 1 => any::<u64>()];
    (kinds, 0..5_u32, offset, prop::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(kind, number, offset, payload)| frame(kind, number, offset, &payload))
}

proptest! {
    #[test]
    fn whatever_a_guest_says_is_bounded_and_never_panics(frames in prop::collection::vec(any_frame(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let carriers = carriers(VERSION);
            let dialled = [dialled(&carriers).await, dialled(&carriers).await, dialled(&carriers).await];
            for frame in frames {
                let _ = carriers.heard(frame);
                assert!(dialled.iter().all(|d| d.carrier.lock().inbox.len() <= CARRY_WINDOW));
            }
        });
    }
}
