use super::*;
use proptest::prelude::*;

const OLD: [u8; NONCE] = [3; NONCE];
const NEW: [u8; NONCE] = [9; NONCE];

fn frame(nonce: &[u8; NONCE], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(tag(nonce), Header { kind: Kind::Stdin, stream: 0, process: 7, offset: 1 << 40 }, payload, &mut out);
    out
}

fn drain(decoder: &mut Decoder) -> Vec<Found> {
    std::iter::from_fn(|| decoder.next_found().unwrap()).collect()
}

#[test]
fn a_frame_is_read_back() {
    let mut decoder = Decoder::guest();
    decoder.push(&preamble(&OLD));
    decoder.push(&frame(&OLD, b"hello"));
    let found = drain(&mut decoder);
    let header = Header { kind: Kind::Stdin, stream: 0, process: 7, offset: 1 << 40 };
    assert_eq!(found, [Found::Session(OLD), Found::Frame(Frame { header, payload: b"hello".to_vec() })]);
}

/// Frozen: agents inside older snapshots speak exactly this. A line here changes only with [`crate::VERSION`].
#[test]
fn samples_of_carried_connections() {
    for (kind, offset, payload, byte) in [
        (Kind::Dial, 8080, b"".as_slice(), 16),
        (Kind::Carry, 1 << 33, b"ab", 32),
        (Kind::CarryEof, 7, b"", 33),
        (Kind::Carried, 7, b"", 34),
        (Kind::Cut, 0, b"", 35),
        (Kind::Dialed, 0, b"", 80),
        (Kind::Refused, 0, b"no", 81),
    ] {
        let header = Header { kind, stream: 0, process: 0x0102_0304, offset };
        let mut bytes = Vec::new();
        encode(tag(&NEW), header, payload, &mut bytes);
        let mut sample = vec![9, 9, 9, 9, byte, 0, 0, 0, 4, 3, 2, 1, payload.len() as u8, 0, 0, 0];
        sample.extend(offset.to_le_bytes());
        sample.extend(payload);
        sample.extend([9, 9, 9, 9]);
        assert_eq!(bytes, sample, "{kind:?}");
        let mut decoder = Decoder::host(NEW);
        decoder.push(&[MAGIC.as_slice(), &NEW, &bytes].concat());
        assert_eq!(drain(&mut decoder)[1..], [Found::Frame(Frame { header, payload: payload.to_vec() })]);
    }
}

/// The heart of the matter: wherever the old connection was cut, the new session is found and nothing of the old one
/// is taken for a frame of the new.
#[test]
fn a_half_written_frame_never_goes_on_in_the_next_session() {
    let old = frame(&OLD, &[0xd7; 300]);
    for cut in 0..old.len() {
        let mut decoder = Decoder::guest();
        decoder.push(&preamble(&OLD));
        assert_eq!(drain(&mut decoder), [Found::Session(OLD)]);
        decoder.push(&old[..cut]);
        decoder.push(&preamble(&NEW));
        decoder.push(&frame(&NEW, b"new"));
        let found = drain(&mut decoder);
        assert_eq!(found[0], Found::Session(NEW), "cut at {cut}");
        assert!(matches!(&found[1..], [Found::Frame(f)] if f.payload == b"new"), "cut at {cut}: {found:?}");
    }
}

#[test]
fn the_host_takes_nothing_before_its_own_nonce() {
    let mut stale = [MAGIC.as_slice(), &OLD].concat();
    stale.extend(frame(&OLD, b"stale"));
    let mut decoder = Decoder::host(NEW);
    decoder.push(&stale);
    assert_eq!(drain(&mut decoder), []);
    decoder.push(&[MAGIC.as_slice(), &NEW].concat());
    decoder.push(&frame(&NEW, b"fresh"));
    assert_eq!(drain(&mut decoder).len(), 2);
    decoder.push(&frame(&OLD, b"stale"));
    assert_eq!(decoder.next_found(), Err(Malformed::Tag));
}

#[test]
fn rules_are_kept_on_the_host() {
    let session = |bytes: &[u8]| {
        let mut decoder = Decoder::host(NEW);
        decoder.push(&[MAGIC.as_slice(), &NEW].concat());
        decoder.push(bytes);
        assert_eq!(decoder.next_found(), Ok(Some(Found::Session(NEW))));
        decoder.next_found()
    };
    let good = frame(&NEW, b"x");
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    assert_eq!(session(&with(4, 200)), Err(Malformed::Kind(200)));
    assert_eq!(session(&with(6, 1)), Err(Malformed::Reserved));
    assert!(matches!(session(&with(15, 0xff)), Err(Malformed::Length(_))));
    assert_eq!(session(&with(good.len() - 1, 0xff)), Err(Malformed::Tag));
}

#[test]
fn a_long_message_is_split_and_put_together_within_bounds() {
    let message: Vec<u8> = (0..MAX_PAYLOAD * 3 + 5).map(|i| i as u8).collect();
    let mut bytes = preamble(&NEW);
    encode_message(tag(&NEW), Kind::Start, 4, &message, &mut bytes);
    encode_message(tag(&NEW), Kind::Start, 5, b"", &mut bytes);
    let mut decoder = Decoder::guest();
    decoder.push(&bytes);
    let mut assembler = Assembler::default();
    let mut whole = Vec::new();
    for found in drain(&mut decoder) {
        if let Found::Frame(frame) = found {
            whole.extend(assembler.push(frame).unwrap());
        }
    }
    assert_eq!(whole, [message, Vec::new()]);
    let endless = Header { kind: Kind::Start, stream: 0, process: 0, offset: u64::MAX };
    assert!(assembler.push(Frame { header: endless, payload: vec![0; 9] }).is_err());
}

#[test]
fn a_short_preamble_opens_a_session_between_two_frames() {
    let mut decoder = Decoder::guest();
    decoder.push(&preamble(&OLD));
    decoder.push(&frame(&OLD, b"whole"));
    assert_eq!(drain(&mut decoder).len(), 2);
    decoder.push(&short_preamble(&NEW));
    decoder.push(&frame(&NEW, b"new"));
    let found = drain(&mut decoder);
    assert_eq!(found[0], Found::Session(NEW));
    assert!(matches!(&found[1..], [Found::Frame(f)] if f.payload == b"new"), "{found:?}");
}

#[test]
fn the_magic_is_found_wherever_it_stands_and_nothing_else_is() {
    for before in 0..70 {
        // What comes before are beginnings of the magic itself.
        let mut bytes: Vec<u8> = MAGIC.iter().cycle().take(before % 16).copied().collect();
        bytes.resize(before, MAGIC[14]);
        assert_eq!(find_magic(&bytes), None);
        bytes.extend(MAGIC);
        bytes.push(0);
        assert_eq!(find_magic(&bytes), Some(before));
        bytes[before + 7] ^= 1;
        assert_eq!(find_magic(&bytes), None);
    }
}

proptest! {
    #[test]
    fn noise_never_panics_and_is_bounded(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 0..20)) {
        for mut decoder in [Decoder::guest(), Decoder::host(NEW)] {
            for chunk in &chunks {
                decoder.push(chunk);
                while let Ok(Some(_)) = decoder.next_found() {}
                prop_assert!(decoder.buffer.len() - decoder.start < MAGIC.len() + NONCE);
            }
        }
    }

    #[test]
    fn any_split_gives_the_same_frames(sizes in proptest::collection::vec(1..500usize, 1..60), payload in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let mut bytes = [MAGIC.as_slice(), &NEW].concat();
        for _ in 0..3 {
            bytes.extend(frame(&NEW, &payload));
        }
        let mut decoder = Decoder::guest();
        let (mut found, mut at) = (Vec::new(), 0_usize);
        for size in sizes.into_iter().chain(std::iter::once(usize::MAX)) {
            let end = at.saturating_add(size).min(bytes.len());
            decoder.push(&bytes[at..end]);
            at = end;
            found.extend(drain(&mut decoder));
        }
        prop_assert_eq!(found.len(), 4);
    }
}
