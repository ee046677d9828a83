//! The resolver of a sandbox over real sockets, beneath real name servers, in a network namespace without a way out.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops where it fails and prints what it saw"
)]

#[path = "names/rig.rs"]
mod rig;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::RecordType;
use rig::{Resolver, Say, Server, addresses, alias, alone, ask_over, listing, question, told};
use styx::names::Upstream;
use tartarus_types::net::{Contract, NetMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

const PUBLIC: &str = "93.184.216.34";

fn known() -> (&'static str, Say) {
    ("example.org.", Say::Records(addresses("example.org.", 60, &[PUBLIC, "1.1.1.1"])))
}

fn found(answer: &Message, expected: &[&str], ttl: u32) {
    assert_eq!(answer.response_code, ResponseCode::NoError);
    assert_eq!(told(answer), (expected.iter().map(ToString::to_string).collect(), Some(ttl)));
}

fn nothing(answer: &Message, code: ResponseCode) {
    assert_eq!(answer.response_code, code, "{answer:?}");
    assert!(answer.all_sections().next().is_none() && !answer.truncation, "{answer:?}");
}

#[test]
fn a_listed_name_is_pinned_before_its_answer() {
    alone(|| async {
        let server = Server::start([known()]).await;
        let resolver = Resolver::start(listing(&["example.org"]), server.at);
        let answer = resolver.ask("eXaMple.ORG.", RecordType::A).await;
        // Noted when done, and it is at the moment that the answer is there.
        assert_eq!(resolver.pins.texts(), [format!("{PUBLIC} 62, 1.1.1.1 62")]);
        found(&answer, &[PUBLIC, "1.1.1.1"], 60);
        assert_eq!(answer.queries[0].name().to_ascii(), "eXaMple.ORG.");
        assert_eq!(server.seen(), ["example.org."]);
        // Known, and pinned for as long as it is valid.
        found(&resolver.ask("example.org.", RecordType::A).await, &[PUBLIC, "1.1.1.1"], 60);
        assert_eq!((server.seen().len(), resolver.pins.texts().len()), (1, 1));
    });
}

#[test]
fn what_is_not_listed_is_refused_and_nobody_is_asked() {
    alone(|| async {
        let server = Server::start([("*", Say::Records(addresses("x.", 60, &[PUBLIC])))]).await;
        let resolver = Resolver::start(listing(&["example.org", "*.example.net"]), server.at);
        for name in ["evil.org.", "example.net.", "example.org.evil.org.", "localhost."] {
            nothing(&resolver.ask(name, RecordType::A).await, ResponseCode::Refused);
        }
        nothing(&resolver.ask("example.org.", RecordType::TXT).await, ResponseCode::Refused);
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
            nothing(&resolver.ask("example.org.", kind).await, ResponseCode::NoError);
        }
        assert_eq!(
            ask_over(&mut resolver.connect().await, "evil.org.").await.unwrap().response_code,
            ResponseCode::Refused
        );
        assert_eq!(server.seen(), [""; 0]);
        assert_eq!(resolver.pins.texts(), [""; 0]);
        let refused = resolver.refused.list();
        let seen: Vec<_> = refused.iter().map(|refused| (&*refused.name, &*refused.why, refused.times)).collect();
        assert_eq!(
            seen[..3],
            [
                ("evil.org", "not listed", 2),
                ("example.org", "only addresses are answered", 1),
                ("localhost", "not listed", 1),
            ]
        );
    });
}

#[test]
fn an_answer_does_not_lead_inside() {
    alone(|| async {
        let inside = ["10.0.0.1", "127.0.0.1", "169.254.169.254", "198.19.255.253", "192.168.1.1"];
        let mixed = [&inside[..], &[PUBLIC]].concat();
        let server = Server::start([
            ("a.example.org.", Say::Records(addresses("a.example.org.", 60, &mixed))),
            ("b.example.org.", Say::Records(addresses("b.example.org.", 60, &inside))),
            ("c.example.org.", Say::Records(vec![alias("c.example.org.", 60, "localhost.")])),
        ])
        .await;
        let mut contract = listing(&["*.example.org"]);
        let resolver = Resolver::start(contract.clone(), server.at);
        found(&resolver.ask("a.example.org.", RecordType::A).await, &[PUBLIC], 60);
        nothing(&resolver.ask("b.example.org.", RecordType::A).await, ResponseCode::Refused);
        nothing(&resolver.ask("c.example.org.", RecordType::A).await, ResponseCode::NoError);
        assert_eq!(resolver.pins.texts(), [format!("{PUBLIC} 62")]);
        let why = "its answer is private".to_owned();
        assert_eq!(resolver.refused(), [("b.example.org".to_owned(), why)]);
        // Where the contract lists a private network, and only for that.
        contract.cidrs = vec!["10.0.0.0/24".parse().unwrap()];
        resolver.contract.send(contract.into()).unwrap();
        found(&resolver.ask("b.example.org.", RecordType::A).await, &["10.0.0.1"], 60);
    });
}

#[test]
fn answers_are_valid_for_seconds_to_an_hour() {
    alone(|| async {
        let server = Server::start([
            ("a.example.org.", Say::Records(addresses("a.example.org.", 0, &["1.1.1.1"]))),
            ("b.example.org.", Say::Records(addresses("b.example.org.", 1_000_000, &["2.2.2.2"]))),
        ])
        .await;
        let resolver = Resolver::start(listing(&["*.example.org"]), server.at);
        found(&resolver.ask("a.example.org.", RecordType::A).await, &["1.1.1.1"], 5);
        found(&resolver.ask("b.example.org.", RecordType::A).await, &["2.2.2.2"], 3600);
        assert_eq!(resolver.pins.texts(), ["1.1.1.1 7", "2.2.2.2 3602"]);
    });
}

#[test]
fn aliases_become_addresses_of_the_name_that_was_asked_for() {
    alone(|| async {
        let whole = [
            vec![alias("a.example.org.", 50, "b.cdn.net.")],
            addresses("b.cdn.net.", 40, &["1.1.1.1"]),
            addresses("bank.example.", 40, &["6.6.6.6"]),
        ];
        let ring = |name, of| Say::Records(vec![alias(name, 50, of)]);
        let server = Server::start([
            ("a.example.org.", Say::Records(whole.concat())),
            ("c.example.org.", ring("c.example.org.", "d.cdn.net.")),
            ("d.cdn.net.", ring("d.cdn.net.", "e.cdn.net.")),
            ("e.cdn.net.", Say::Records(addresses("e.cdn.net.", 30, &["2.2.2.2"]))),
            ("f.example.org.", ring("f.example.org.", "g.cdn.net.")),
            ("g.cdn.net.", ring("g.cdn.net.", "f.example.org.")),
        ])
        .await;
        let resolver = Resolver::start(listing(&["*.example.org"]), server.at);
        found(&resolver.ask("a.example.org.", RecordType::A).await, &["1.1.1.1"], 40);
        found(&resolver.ask("c.example.org.", RecordType::A).await, &["2.2.2.2"], 30);
        assert_eq!(resolver.pins.texts(), ["1.1.1.1 42", "2.2.2.2 32"]);
        let circle = resolver.ask("f.example.org.", RecordType::A).await;
        assert!(circle.answers.is_empty());
        assert!(server.seen().len() < 30, "{:?}", server.seen());
        // What a listed name is an alias of is not listed by it.
        nothing(&resolver.ask("e.cdn.net.", RecordType::A).await, ResponseCode::Refused);
    });
}

#[test]
fn long_answers_come_over_tcp_or_edns() {
    alone(|| async {
        let many: Vec<_> = (0..100).map(|last| format!("1.2.3.{last}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let server = Server::start([("example.org.", Say::Long(addresses("example.org.", 60, &many)))]).await;
        let resolver = Resolver::start(listing(&["example.org"]), server.at);
        let cut = resolver.ask("example.org.", RecordType::A).await;
        assert!(cut.truncation && cut.answers.is_empty() && cut.response_code == ResponseCode::NoError);
        let mut stream = resolver.connect().await;
        for _ in 0..2 {
            found(&ask_over(&mut stream, "example.org.").await.unwrap(), &many[..32], 60);
        }
        let wide = resolver.send(&question("example.org.", RecordType::A, Some(1232))).await.unwrap();
        found(&wide, &many[..32], 60);
        assert_eq!(resolver.pins.done.lock().unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [32]);
    });
}

#[test]
fn without_a_name_server_there_is_an_answer_within_5_s() {
    alone(|| async {
        let server = Server::start([
            ("dead.example.org.", Say::Nothing),
            ("broken.example.org.", Say::Code(ResponseCode::ServFail)),
        ])
        .await;
        let resolver = Resolver::start(listing(&["*.example.org"]), server.at);
        // Nobody at all: the port of a socket that is gone.
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let lonely = Resolver::start(listing(&["*.example.org"]), nobody);
        for (resolver, name) in
            [(&resolver, "dead.example.org."), (&resolver, "broken.example.org."), (&lonely, "a.example.org.")]
        {
            let started = Instant::now();
            nothing(&resolver.ask(name, RecordType::A).await, ResponseCode::ServFail);
            println!("{name} after {:?}", started.elapsed());
            assert!(started.elapsed() < Duration::from_secs(5), "{name} {:?}", started.elapsed());
        }
        nothing(&resolver.ask("absent.example.org.", RecordType::A).await, ResponseCode::NXDomain);
    });
}

#[test]
fn a_pin_that_fails_is_no_answer() {
    alone(|| async {
        let server = Server::start([known()]).await;
        let resolver = Resolver::start(listing(&["example.org"]), server.at);
        resolver.pins.fails.store(true, Ordering::SeqCst);
        nothing(&resolver.ask("example.org.", RecordType::A).await, ResponseCode::ServFail);
        resolver.pins.fails.store(false, Ordering::SeqCst);
        found(&resolver.ask("example.org.", RecordType::A).await, &[PUBLIC, "1.1.1.1"], 60);
        *resolver.pins.takes.lock().unwrap() = Duration::from_secs(30);
        resolver.contract.send(listing(&["example.org"]).into()).unwrap();
        nothing(&resolver.ask("example.org.", RecordType::A).await, ResponseCode::ServFail);
    });
}

#[test]
fn questions_for_one_name_share_the_way() {
    alone(|| async {
        let late = Say::Late(Duration::from_millis(200), addresses("example.org.", 60, &[PUBLIC]));
        let server = Server::start([("example.org.", late)]).await;
        let resolver = Resolver::start(listing(&["example.org"]), server.at);
        let all = (0..30).map(|_| resolver.ask("example.org.", RecordType::A));
        for answer in join_all(all).await {
            found(&answer, &[PUBLIC], 60);
        }
        assert_eq!((server.seen().len(), resolver.pins.texts().len()), (1, 1));
        // With a contract, be it the same, pins are made anew.
        resolver.contract.send(listing(&["example.org"]).into()).unwrap();
        found(&resolver.ask("example.org.", RecordType::A).await, &[PUBLIC], 60);
        assert_eq!((server.seen().len(), resolver.pins.texts().len()), (1, 2));
        // What needs no pin has none.
        resolver.contract.send(Contract { mode: NetMode::Open, ..Contract::default() }.into()).unwrap();
        found(&resolver.ask("example.org.", RecordType::A).await, &[PUBLIC], 60);
        assert_eq!(resolver.pins.texts().len(), 2);
    });
}

#[test]
fn a_contract_that_changes_meanwhile_is_the_one_that_counts() {
    alone(|| async {
        let late = |name| Say::Late(Duration::from_millis(300), addresses(name, 60, &[PUBLIC]));
        let server = Server::start([("a.org.", late("a.org.")), ("b.org.", late("b.org."))]).await;
        let resolver = Resolver::start(listing(&["a.org", "b.org"]), server.at);
        let change = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            resolver.contract.send(listing(&["b.org"]).into()).unwrap();
        };
        let (a, b, ()) =
            tokio::join!(resolver.ask("a.org.", RecordType::A), resolver.ask("b.org.", RecordType::A), change);
        nothing(&a, ResponseCode::Refused);
        found(&b, &[PUBLIC], 60);
        // One of the two names, by the contract that lists only it.
        assert_eq!(resolver.pins.texts(), [format!("{PUBLIC} 62")]);
    });
}

#[test]
fn a_flood_is_bounded_and_passes() {
    alone(|| async {
        let late = Say::Late(Duration::from_secs(1), Vec::new());
        let server = Server::start([("*", late), known()]).await;
        let resolver = Resolver::start(listing(&["*.flood.org", "example.org"]), server.at);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(resolver.at).await.unwrap();
        let started = Instant::now();
        let mut sent = 0;
        while started.elapsed() < Duration::from_secs(2) {
            for _ in 0..50 {
                let _ = socket.try_send(&question(&format!("{sent}.flood.org."), RecordType::A, None));
                sent += 1;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Each several times: a server that takes a second is asked again, as one whose answer was lost.
        let (asked, most) = (server.seen().into_iter().collect::<HashSet<_>>().len(), server.most());
        println!("{sent} sent, {asked} asked for, {most} at once");
        assert!(sent > 2000 && asked > 64, "{sent} sent, {asked} asked for");
        assert!(asked <= 200 + 50 * 3 && most <= 64, "{asked} asked for, {most} at once");
        // What waited in the socket is at an end after a while.
        let mut answered = None;
        while answered.is_none() && started.elapsed() < Duration::from_secs(20) {
            answered = resolver.send(&question("example.org.", RecordType::A, None)).await;
        }
        println!("answered {:?} after its start", started.elapsed());
        found(&answered.unwrap(), &[PUBLIC, "1.1.1.1"], 60);
    });
}

#[test]
fn connections_are_few_and_short() {
    alone(|| async {
        let server = Server::start([known()]).await;
        let resolver = Resolver::start(listing(&["example.org"]), server.at);
        let mut idle = Vec::new();
        for _ in 0..7 {
            let mut stream = resolver.connect().await;
            // A byte now and then does not keep it.
            stream.write_all(&[0]).await.unwrap();
            idle.push(stream);
        }
        let mut used = resolver.connect().await;
        found(&ask_over(&mut used, "example.org.").await.unwrap(), &[PUBLIC, "1.1.1.1"], 60);
        let mut ninth = resolver.connect().await;
        let waits = tokio::time::timeout(Duration::from_secs(1), ask_over(&mut ninth, "example.org.")).await;
        assert!(waits.is_err(), "it has no place");
        // Longer than any question: it is closed, and its place is free.
        used.write_all(&[0x40, 0x01]).await.unwrap();
        assert!(!matches!(used.read(&mut [0]).await, Ok(1..)));
        let started = Instant::now();
        assert!(tokio::time::timeout(Duration::from_secs(1), ninth.read_u16()).await.is_ok());
        for mut stream in idle {
            assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
        }
        assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
    });
}

#[test]
fn what_is_no_question_does_no_harm() {
    alone(|| async {
        let server = Server::start([known()]).await;
        let resolver = Resolver::start(Contract { mode: NetMode::Open, ..Contract::default() }, server.at);
        let raw = |counts: [u16; 4], rest: &[u8]| {
            [9, 0x100]
                .into_iter()
                .chain(counts)
                .flat_map(u16::to_be_bytes)
                .chain(rest.iter().copied())
                .collect::<Vec<_>>()
        };
        let labels = [&b"\x01a".repeat(300)[..], b"\0\0\x01\0\x01"].concat();
        for (counts, rest, code) in [
            ([1, 0, 0, 0], &labels[..], ResponseCode::FormErr),
            ([1, 0, 0, 0], b"\xC0\x0C\0\x01\0\x01", ResponseCode::FormErr),
            ([1, 0, 0, 0], b"\x01a\xC0\x0C\0\x01\0\x01", ResponseCode::FormErr),
            ([1, 0, 0, 0], b"\x03a\0b\x03org\0\0\x01\0\x01", ResponseCode::Refused),
            ([1, 0, 0, 0], b"\0\0\x01\0\x01", ResponseCode::Refused),
            ([2, 0, 0, 0], b"\x01a\0\0\x01\0\x01\x01b\0\0\x01\0\x01", ResponseCode::FormErr),
            ([u16::MAX; 4], b"", ResponseCode::FormErr),
        ] {
            nothing(&resolver.send(&raw(counts, rest)).await.unwrap(), code);
        }
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(resolver.at).await.unwrap();
        let good = question("example.org.", RecordType::A, None);
        let longer = [&good[..], &vec![0; 5000]].concat();
        let mut answer = good.clone();
        answer[2] |= 0x80;
        for silent in [&b""[..], b"x", &good[..11], &answer, &longer] {
            socket.send(silent).await.unwrap();
        }
        let nobody = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut [0; 512])).await;
        assert!(nobody.is_err(), "{nobody:?}");
        assert_eq!(server.seen(), [""; 0]);
        assert!(resolver.refused().contains(&(r"a\x00b.org".to_owned(), "no host name".to_owned())));
        found(&resolver.ask("example.org.", RecordType::A).await, &[PUBLIC, "1.1.1.1"], 60);
    });
}

#[test]
fn when_it_is_dropped_nothing_of_it_stays() {
    alone(|| async {
        let late = Say::Late(Duration::from_secs(30), Vec::new());
        let server = Server::start([("late.example.org.", late), known()]).await;
        let resolver = Resolver::start(listing(&["*.example.org", "example.org"]), server.at);
        let at = resolver.at;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question("late.example.org.", RecordType::A, None), at).await.unwrap();
        let mut stream = resolver.connect().await;
        found(&ask_over(&mut stream, "example.org.").await.unwrap(), &[PUBLIC, "1.1.1.1"], 60);
        assert_eq!(server.most(), 1);
        assert!(std::net::UdpSocket::bind(at).is_err());
        drop(resolver);
        // A socket keeps its namespace, so all must be closed: also those of questions and connections on their way.
        assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::net::UdpSocket::bind(at).unwrap();
    });
}

#[test]
fn name_servers_may_come_later_and_change() {
    alone(|| async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let resolver = Resolver::beneath(listing(&["example.org", "example.net"]), Upstream::of_file(&path));
        let ask = async |name| told(&resolver.ask(name, RecordType::A).await).0;
        nothing(&resolver.ask("example.org.", RecordType::A).await, ResponseCode::ServFail);
        // Longer than a file is taken for what it was.
        let later = || tokio::time::sleep(Duration::from_millis(1100));
        for (address, server) in [(PUBLIC, "127.0.0.1"), ("1.1.1.1", "127.0.0.2")] {
            let zone =
                ["example.org.", "example.net."].map(|name| (name, Say::Records(addresses(name, 60, &[address]))));
            Server::start_at(&format!("{server}:53"), zone).await;
            std::fs::write(&path, format!("nameserver {server}\n")).unwrap();
            later().await;
            assert_eq!(ask("example.org.").await, [address], "from {server}");
        }
        // One that is being written does not end what works.
        std::fs::write(&path, "").unwrap();
        later().await;
        assert_eq!(ask("example.net.").await, ["1.1.1.1"]);
    });
}
