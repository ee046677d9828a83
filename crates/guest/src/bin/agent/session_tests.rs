use super::*;
use proptest::prelude::*;
use tartarus_guest::frame::{MAX_PAYLOAD, NONCE, encode, encode_message, preamble, tag};

const NONCE_A: [u8; NONCE] = [5; NONCE];
const NONCE_B: [u8; NONCE] = [6; NONCE];

fn hello() -> Hello {
    Hello { version: 1, time_ns: 1, entropy: vec![1], hostname: "h".into(), machine_id: None, net: None }
}

fn start(token: &str) -> Start {
    Start {
        token: token.into(),
        argv: vec!["a".into()],
        env: [].into(),
        cwd: None,
        user: None,
        stdin: false,
        code: None,
    }
}

/// A session in which the host said hello; its answer is taken away.
fn greeted(nonce: [u8; NONCE]) -> Session {
    let mut session = Session::new();
    session.push(&preamble(&nonce));
    assert_eq!(session.next_request(), Some(Request::Began));
    session.push(&bytes(nonce, Kind::Hello, 0, &message::encode(&hello())));
    assert_eq!(session.next_request(), Some(Request::Hello(hello())));
    let count = session.unwritten().len();
    session.wrote(count);
    session
}

fn bytes(nonce: [u8; NONCE], kind: Kind, process: u32, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_message(tag(&nonce), kind, process, message, &mut out);
    out
}

fn frame(kind: Kind, stream: u8, offset: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode(tag(&NONCE_A), Header { kind, stream, process: 3, offset }, b"", &mut out);
    out
}

/// The text of the fault in what the session would write, when there is one.
fn fault(session: &Session) -> Option<String> {
    let mut host = Decoder::host(NONCE_A);
    host.push(&[MAGIC.as_slice(), &NONCE_A].concat());
    host.push(session.unwritten());
    while let Ok(Some(found)) = host.next_found() {
        if let Found::Frame(frame) = found
            && frame.header.kind == Kind::Fault
        {
            return String::from_utf8(frame.payload).ok();
        }
    }
    None
}

#[test]
fn the_nonce_is_echoed_before_anything_else() {
    let mut session = Session::new();
    session.send(Header::new(Kind::Started, 0), b"");
    assert_eq!(session.unwritten(), b"", "nobody listens");
    session.push(&preamble(&NONCE_A));
    session.next_request();
    assert_eq!(session.unwritten(), [MAGIC.as_slice(), &NONCE_A].concat());
}

#[test]
fn requests_are_read() {
    let mut session = greeted(NONCE_A);
    session.push(&bytes(NONCE_A, Kind::Start, 3, &message::encode(&start("t"))));
    session.push(&frame(Kind::Attach, 1, 9));
    session.push(&frame(Kind::Ack, 2, 8));
    session.push(&frame(Kind::Signal, 0, 64));
    session.push(&frame(Kind::StdinEof, 0, 7));
    session.push(&frame(Kind::Stdin, 0, 7));
    session.push(&frame(Kind::Forget, 0, 0));
    let runner = StartRunner { language: "python".into(), preload: vec!["m".into()], env: [].into() };
    session.push(&bytes(NONCE_A, Kind::StartRunner, 0, &message::encode(&runner)));
    session.push(&frame(Kind::Freeze, 0, 0));
    for kind in [Kind::Dial, Kind::Carry, Kind::CarryEof, Kind::Carried, Kind::Cut] {
        session.push(&frame(kind, 0, 65535));
    }
    let all: Vec<Request> = std::iter::from_fn(|| session.next_request()).collect();
    let expected = [
        Request::Start(3, start("t")),
        Request::Attach(3, Stream::Stdout, 9),
        Request::Ack(3, Stream::Stderr, 8),
        Request::Signal(3, 64),
        Request::StdinEof(3, 7),
        Request::Stdin(3, 7, vec![]),
        Request::Forget(3),
        Request::StartRunner(runner),
        Request::Freeze(Freeze::default()),
        Request::Dial(3, 65535),
        Request::Carry(3, 65535, vec![]),
        Request::CarryEof(3, 65535),
        Request::Carried(3, 65535),
        Request::Cut(3),
    ];
    assert_eq!(all, expected);
}

#[test]
fn a_broken_rule_is_answered_once_and_ends_the_session() {
    let long = message::encode(&start(&"t".repeat(MAX_TOKEN + 1)));
    let half = frame(Kind::Start, 0, 5);
    for (bad, why) in [
        (frame(Kind::Attach, 0, 0), "stream"),
        (frame(Kind::Ack, 3, 0), "stream"),
        (frame(Kind::Signal, 0, 0), "signal"),
        (frame(Kind::Signal, 0, 65), "signal"),
        (frame(Kind::Signal, 0, u64::MAX), "signal"),
        (frame(Kind::Ended, 0, 0), "guest only"),
        (frame(Kind::Frozen, 0, 0), "guest only"),
        (frame(Kind::Runner, 0, 0), "guest only"),
        (frame(Kind::StartRunner, 0, 0), "runner"),
        (frame(Kind::Dialed, 0, 0), "guest only"),
        (frame(Kind::Refused, 0, 0), "guest only"),
        (frame(Kind::Dial, 0, 0), "port"),
        (frame(Kind::Dial, 0, 65536), "port"),
        (frame(Kind::Hello, 0, 0), "one hello"),
        (frame(Kind::Start, 0, 0), "start"),
        (frame(Kind::Start, 0, u64::MAX), "bytes"),
        (bytes(NONCE_A, Kind::Start, 1, &long), "token"),
        ([half, frame(Kind::Forget, 0, 0)].concat(), "within a message"),
    ] {
        let mut session = greeted(NONCE_A);
        session.push(&bad);
        session.push(&frame(Kind::Forget, 0, 0));
        assert_eq!(session.next_request(), None, "{why}");
        let text = fault(&session).unwrap_or_default();
        assert!(text.contains(why), "{text} should say {why}");
        assert!(!session.is_open());
        let before = session.unwritten().len();
        session.send(Header::new(Kind::Started, 0), b"");
        assert_eq!(session.unwritten().len(), before, "a closed session says nothing more");
        session.push(&preamble(&NONCE_B));
        assert_eq!(session.next_request(), Some(Request::Began), "the next session is heard");
    }
}

#[test]
fn nothing_comes_before_hello() {
    let mut session = Session::new();
    session.push(&preamble(&NONCE_A));
    session.next_request();
    session.push(&frame(Kind::Forget, 0, 0));
    assert_eq!(session.next_request(), None);
    assert!(!session.is_open());
}

#[test]
fn a_new_session_drops_answers_and_half_messages_of_the_old() {
    let mut session = greeted(NONCE_A);
    let whole = bytes(NONCE_A, Kind::Start, 3, &vec![b' '; MAX_PAYLOAD * 2]);
    session.push(&whole[..MAX_PAYLOAD + 500]);
    assert_eq!(session.next_request(), None);
    session.send(Header::new(Kind::Started, 0), b"stale");
    session.push(&preamble(&NONCE_B));
    session.push(&bytes(NONCE_B, Kind::Hello, 0, &message::encode(&hello())));
    session.push(&bytes(NONCE_B, Kind::Start, 4, &message::encode(&start("new"))));
    let all: Vec<Request> = std::iter::from_fn(|| session.next_request()).collect();
    assert_eq!(all, [Request::Began, Request::Hello(hello()), Request::Start(4, start("new"))]);
    assert_eq!(session.unwritten(), [MAGIC.as_slice(), &NONCE_B].concat());
}

#[test]
fn text_is_cut_between_characters() {
    assert_eq!((shortened("aé", 2), shortened("aé", 3), shortened("", 5)), ("a", "aé", ""));
}

proptest! {
    #[test]
    fn noise_within_a_session_never_panics(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let mut session = greeted(NONCE_A);
        for chunk in chunks {
            session.push(&chunk);
            while session.next_request().is_some() {}
        }
    }

    #[test]
    fn any_header_is_answered_or_read(kind in 1u8..84, stream: u8, process: u32, offset: u64, payload in proptest::collection::vec(any::<u8>(), 0..50)) {
        let mut session = greeted(NONCE_A);
        let mut raw = Vec::new();
        encode(tag(&NONCE_A), Header { kind: Kind::Stdin, stream, process, offset }, &payload, &mut raw);
        raw[4] = kind;
        session.push(&raw);
        while session.next_request().is_some() {}
    }
}
