//! The pure parts of the resolver, among them with what nobody meant to send.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::collection::vec;
use proptest::prelude::*;
use tartarus_types::Timestamp;
use tartarus_types::net::{Contract, NEVER, NetMode, PRIVATE};
use tokio::time::Instant;

use super::bucket::Bucket;
use super::pins::Memory;
use super::policy::*;
use super::screen::*;
use super::upstream::{Found, flatten};
use super::wire::*;
use super::*;

fn contract(mode: NetMode, cidrs: &[&str], domains: &[&str]) -> Contract {
    Contract {
        mode,
        cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
        domains: domains.iter().map(|text| text.parse().unwrap()).collect(),
        ..Contract::default()
    }
}

/// A question as a guest's library writes it.
fn asked(name: &Name, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    if let Some(size) = edns {
        let mut record = Edns::new();
        record.set_max_payload(size);
        message.set_edns(record);
    }
    message.to_vec().unwrap()
}

fn question(name: &str, kind: RecordType) -> Question {
    parse(&asked(&Name::from_ascii(name).unwrap(), kind, None)).unwrap()
}

fn code_of(malformed: Malformed) -> ResponseCode {
    let Malformed::Answer(answer) = malformed else { panic!("it is not answered") };
    Message::from_vec(&answer).unwrap().response_code
}

/// A message with this header's flags, counts and all that follows.
fn raw(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let words = [7, flags].into_iter().chain(counts);
    words.flat_map(u16::to_be_bytes).chain(rest.iter().copied()).collect()
}

#[test]
fn what_is_no_question_is_named() {
    let good = b"\x01a\x02bc\0\0\x01\0\x01";
    assert_eq!(parse(&raw(0, [1, 0, 0, 0], good)).unwrap().name.as_deref(), Some("a.bc"));
    assert_eq!(parse(&raw(0x8000, [1, 0, 0, 0], good)), Err(Malformed::Silent));
    assert_eq!(parse(&[0; 11]), Err(Malformed::Silent));
    for opcode in 1..16 {
        assert_eq!(code_of(parse(&raw(opcode << 11, [1, 0, 0, 0], good)).unwrap_err()), ResponseCode::NotImp);
    }
    let mut many = b"\x01a".repeat(300);
    many.extend(b"\0\0\x01\0\x01");
    let mut longest = b"\x01a".repeat(127);
    longest.extend(b"\0\0\x01\0\x01");
    assert_eq!(parse(&raw(0, [1, 0, 0, 0], &longest)).unwrap().name.unwrap().len(), 253);
    longest.insert(0, 1);
    longest.insert(1, b'a');
    let wide = [&[64][..], &[b'a'; 64], b"\0\0\x01\0\x01"].concat();
    for (counts, rest) in [
        ([0, 0, 0, 0], &b""[..]),
        ([2, 0, 0, 0], good),
        ([1, 1, 0, 0], good),
        ([1, 0, 1, 0], good),
        ([1, 0, 0, 2], good),
        ([1, 0, 0, 1], good),
        ([65535, 0, 0, 0], good),
        ([1, 0, 0, 0], b"\x01a"),
        ([1, 0, 0, 0], b"\x01a\0\0\x01\0"),
        ([1, 0, 0, 0], b"\x01a\0\0\x01\0\x01and more"),
        // A pointer to itself, to the one before it, and out of the message.
        ([1, 0, 0, 0], b"\xC0\x0C\0\x01\0\x01"),
        ([1, 0, 0, 0], b"\x01a\xC0\x0C\0\x01\0\x01"),
        ([1, 0, 0, 0], b"\xFF\xFF\0\x01\0\x01"),
        ([1, 0, 0, 0], &many),
        ([1, 0, 0, 0], &longest),
        ([1, 0, 0, 0], &wide),
        // EDNS that is cut off, at a name, or another record.
        ([1, 0, 0, 1], b"\x01a\0\0\x01\0\x01\0\0\x29\x10\0\0\0\0\0\0\x04ab"),
        ([1, 0, 0, 1], b"\x01a\0\0\x01\0\x01\x01a\0\0\x29\x10\0\0\0\0\0\0\0"),
        ([1, 0, 0, 1], b"\x01a\0\0\x01\0\x01\0\0\x01\0\x01\0\0\0\0\0\x04abcd"),
    ] {
        let refused = parse(&raw(0, counts, rest)).unwrap_err();
        assert_eq!(code_of(refused), ResponseCode::FormErr, "{counts:?} {rest:?}");
    }
    let newer = parse(&raw(0, [1, 0, 0, 1], b"\x01a\0\0\x01\0\x01\0\0\x29\x10\0\0\x01\0\0\0\0")).unwrap_err();
    // 16 has another name in signatures, which is what it is read as.
    assert_eq!(u16::from(code_of(newer)), 16);
}

#[test]
fn names_that_hosts_do_not_have_are_refused_and_shown_escaped() {
    let everything = contract(NetMode::Open, &[], &[]);
    for (rest, shown) in [
        (&b"\x03a\0b\x02bc\0\0\x01\0\x01"[..], r"a\x00b.bc"),
        (b"\x03a.b\x02bc\0\0\x01\0\x01", "a.b.bc"),
        (b"\x02\x1b[\0\0\x01\0\x01", r"\x1b["),
        (b"\0\0\x01\0\x01", "."),
    ] {
        let question = parse(&raw(0, [1, 0, 0, 0], rest)).unwrap();
        assert_eq!(judge(&everything, &question), Verdict::Refuse(Why::NoHostName), "{rest:?}");
        assert_eq!(question.shown(), shown);
    }
    let widest = [&[63][..], &[0; 63]].concat().repeat(3);
    let question = parse(&raw(0, [1, 0, 0, 0], &[&widest[..], b"\0\0\x01\0\x01"].concat())).unwrap();
    assert_eq!(question.shown().len(), 255);
}

#[test]
fn names_are_allowed_by_the_contract() {
    let listing = contract(NetMode::Allow, &[], &["example.org", "*.example.net"]);
    let ports_alone = Contract { ports: vec!["443".parse().unwrap()], ..contract(NetMode::Allow, &[], &[]) };
    let forward = |name, pin| Verdict::Forward { name, pin };
    let unlisted = Verdict::Refuse(Why::Unlisted);
    for (contract, name, kind, verdict) in [
        (&listing, "EXAMPLE.org.", RecordType::A, forward("example.org", true)),
        (&listing, "a.example.org.", RecordType::A, unlisted),
        (&listing, "a.b.example.net.", RecordType::A, forward("a.b.example.net", true)),
        (&listing, "example.net.", RecordType::A, unlisted),
        (&listing, "notexample.org.", RecordType::A, unlisted),
        (&listing, "example.org.evil.", RecordType::A, unlisted),
        (&listing, "example.org.", RecordType::AAAA, Verdict::Empty),
        (&listing, "example.org.", RecordType::HTTPS, Verdict::Empty),
        (&listing, "example.org.", RecordType::SVCB, Verdict::Empty),
        (&listing, "example.org.", RecordType::TXT, Verdict::Refuse(Why::Kind)),
        (&listing, "example.org.", RecordType::ANY, Verdict::Refuse(Why::Kind)),
        (&listing, "other.org.", RecordType::AAAA, unlisted),
        (&contract(NetMode::None, &[], &["example.org"]), "example.org.", RecordType::A, unlisted),
        (&contract(NetMode::Allow, &[], &[]), "example.org.", RecordType::A, unlisted),
        (&ports_alone, "example.org.", RecordType::A, forward("example.org", false)),
        (&contract(NetMode::Allow, &["1.0.0.0/8"], &[]), "example.org.", RecordType::A, unlisted),
        (&contract(NetMode::Open, &["1.0.0.0/8"], &[]), "example.org.", RecordType::A, forward("example.org", false)),
        (&contract(NetMode::Open, &[], &["a.org"]), "example.org.", RecordType::A, forward("example.org", false)),
    ] {
        assert_eq!(judge(contract, &question(name, kind)), verdict, "{contract:?} {name} {kind}");
    }
    let mut chaos = question("example.org.", RecordType::A);
    chaos.class = 3;
    assert_eq!(judge(&listing, &chaos), Verdict::Refuse(Why::Class));
}

#[test]
fn an_answer_that_leads_inside_is_screened() {
    let texts = |contract: &Contract, addresses: &[&str]| {
        let addresses: Vec<Ipv4Addr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        screen(contract, &addresses).iter().map(Ipv4Addr::to_string).collect::<Vec<_>>()
    };
    let listing = contract(NetMode::Allow, &[], &["example.org"]);
    let mixed =
        ["127.0.0.1", "93.184.216.34", "10.0.0.1", "169.254.169.254", "1.1.1.1", "93.184.216.34", "198.19.255.253"];
    assert_eq!(texts(&listing, &mixed), ["93.184.216.34", "1.1.1.1"]);
    let inside = contract(NetMode::Allow, &["10.1.0.0/16"], &["example.org"]);
    assert_eq!(texts(&inside, &["10.1.2.3", "10.2.2.3", "192.168.0.1"]), ["10.1.2.3"]);
    // Wider than the private range: it lists public destinations, and none within.
    let everything = contract(NetMode::Allow, &["0.0.0.0/0"], &["example.org"]);
    assert_eq!(texts(&everything, &["10.1.2.3", "127.0.0.1", "9.9.9.9"]), ["9.9.9.9"]);
    assert_eq!([0, 5, 60, 3600, 3601, u32::MAX].map(clamp_ttl), [5, 5, 60, 3600, 3600, 3600]);
}

fn alias(name: &str, ttl: u32, of: &str) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::CNAME(CNAME(Name::from_ascii(of).unwrap())))
}

fn address(name: &str, ttl: u32, last: u8) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))
}

#[test]
fn aliases_are_followed_and_other_names_are_not_believed() {
    let asked = Name::from_ascii("Www.example.org.").unwrap();
    let found = |records: &[Record], last: &[u8], ttl| {
        let addresses = last.iter().map(|last| Ipv4Addr::new(192, 0, 2, *last)).collect();
        assert_eq!(flatten(&asked, records), Found::Addresses(addresses, ttl));
    };
    found(&[address("wwW.example.org.", 60, 1), address("bank.example.", 9, 66)], &[1], 60);
    found(&[address("c.", 60, 1), alias("b.", 30, "c."), alias("www.example.org.", 50, "b.")], &[1], 30);
    found(&[alias("www.example.org.", 50, "b."), address("www.example.org.", 9, 1)], &[], 50);
    found(&[alias("www.example.org.", 50, "b."), alias("b.", 50, "www.example.org."), address("c.", 1, 1)], &[], 50);
    found(&[], &[], u32::MAX);
}

#[test]
fn refused_names_are_few_and_counted() {
    let refused = Refused::default();
    for at in 0..1000 {
        refused.add(&format!("{}.org", at % 100), "not listed", Timestamp(at));
    }
    refused.add("99.org", "its answer is private", Timestamp(1000));
    refused.add("99.org", "not listed", Timestamp(1001));
    let list = refused.list();
    assert_eq!(list.len(), 64);
    assert!(list.windows(2).all(|pair| pair[0].last_at > pair[1].last_at));
    let seen = |at: usize| (list[at].name.as_str(), list[at].why.as_str(), list[at].times);
    assert_eq!(seen(0), ("99.org", "not listed", 2));
    assert_eq!(seen(1), ("99.org", "its answer is private", 1));
}

#[test]
fn pinned_addresses_are_remembered_while_they_last_and_only_some() {
    let (mut memory, now) = (Memory::default(), Instant::now());
    let all: Vec<_> = (0..2000u32).map(Ipv4Addr::from_bits).collect();
    let ten = Duration::from_secs(10);
    memory.add(&all[..2], now + ten, now);
    assert_eq!(memory.lacks(&all[..3], ten, now), all[2..3]);
    assert_eq!(memory.lacks(&all[..3], ten, now + Duration::from_millis(1)), all[..3]);
    memory.add(&all, now + ten, now);
    assert_eq!(memory.lacks(&all, ten, now).len(), 2000 - 1024);
    memory.add(&all[1024..], now + 3 * ten, now + 2 * ten);
    assert!(memory.lacks(&all[1024..], ten, now + 2 * ten).is_empty());
    memory.clear();
    assert_eq!(memory.lacks(&all, ten, now).len(), 2000);
}

#[test]
fn nobody_is_no_name_server() {
    let problem = Upstream::of(&[]).problem().unwrap();
    assert!(problem.starts_with("no nameserver in the configuration"), "{problem}");
}

/// What a guest could send, from a real question that was changed here and there.
fn bent() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("example.org."), Just("a.example.net."), Just("other.org."), Just("org.")];
    let whole = (name, any::<u16>(), proptest::option::of(any::<u16>()))
        .prop_map(|(name, kind, edns)| asked(&Name::from_ascii(name).unwrap(), RecordType::from(kind % 70), edns));
    (whole, vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), proptest::option::of(any::<prop::sample::Index>()))
        .prop_map(|(mut bytes, changes, cut)| {
            changes.iter().for_each(|(at, to)| *at.get_mut(&mut bytes) = *to);
            bytes.truncate(cut.map_or(usize::MAX, |cut| cut.index(80)));
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_only_listed_names_are_forwarded(bytes in prop_oneof![vec(any::<u8>(), 0..600), bent()]) {
        let listing = contract(NetMode::Allow, &[], &["example.org", "*.example.net"]);
        match parse(&bytes) {
            Err(Malformed::Silent) => (),
            Err(Malformed::Answer(answer)) => {
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert!(answer.len() <= 512 && answer[2] & 0x80 != 0 && answer[6..8] == [0, 0]);
            }
            Ok(question) => {
                let answer = reply(&question, Code::Refused, &[], 0, 512);
                prop_assert!(answer.len() <= 300);
                // Another's reading of the same bytes, where it reads them at all.
                if let Ok(theirs) = Message::from_vec(&bytes) {
                    let query = &theirs.queries[0];
                    prop_assert_eq!(theirs.queries.len(), 1);
                    prop_assert_eq!(u16::from(query.query_type()), question.kind);
                    prop_assert_eq!(u16::from(query.query_class()), question.class);
                    if let Some(name) = &question.name {
                        // By labels: their text has a backslash before a hyphen that begins one.
                        let theirs = query.name().iter().map(|label| label.to_ascii_lowercase());
                        let own = name.split('.').filter(|label| !label.is_empty()).map(|label| label.as_bytes().to_vec());
                        prop_assert!(theirs.eq(own), "{} is {name}", query.name());
                    }
                }
                if let Verdict::Forward { name, .. } = judge(&listing, &question) {
                    prop_assert!(name == "example.org" || name.ends_with(".example.net"), "{}", name);
                    prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)));
                    prop_assert_eq!((question.kind, question.class), (1, 1));
                }
            }
        }
    }

    #[test]
    fn answers_are_what_another_reads(
        labels in vec("[a-zA-Z0-9_-]{1,20}", 1..8),
        addresses in vec(any::<u32>().prop_map(Ipv4Addr::from_bits), 0..=MAX_ADDRESSES),
        ttl in any::<u32>(),
        edns in proptest::option::of(any::<u16>()),
    ) {
        let name = Name::from_labels(labels.iter().map(String::as_bytes)).unwrap();
        let bytes = asked(&name, RecordType::A, edns);
        let question = parse(&bytes).unwrap();
        let answer = reply(&question, Code::NoError, &addresses, ttl, question.udp_limit());
        prop_assert!(answer.len() <= usize::from(edns.unwrap_or(512).clamp(512, 4096)));
        let (before, after) = (Message::from_vec(&bytes).unwrap(), Message::from_vec(&answer).unwrap());
        prop_assert_eq!(before.id, after.id);
        prop_assert!(after.recursion_desired && after.recursion_available && !after.authoritative);
        prop_assert!(after.queries[0].name().eq_case(&name), "the case of letters is kept");
        prop_assert_eq!(after.queries[0].query_class(), DNSClass::IN);
        prop_assert_eq!(after.edns.is_some(), edns.is_some());
        let whole = reply(&question, Code::NoError, &addresses, ttl, 65535);
        prop_assert_eq!(after.truncation, whole.len() > question.udp_limit());
        let told: Vec<_> = Message::from_vec(&whole).unwrap().answers.iter().map(|record| {
            assert!(record.name.eq_case(&name) && record.ttl == ttl);
            let RData::A(address) = &record.data else { panic!("{record:?}") };
            address.0
        }).collect();
        prop_assert_eq!(told, addresses);
    }

    #[test]
    fn nothing_inside_is_told(
        addresses in vec(prop_oneof![
            any::<u32>(),
            (0..13usize, any::<u32>()).prop_map(|(at, low)| {
                let nets = NEVER.iter().map(|(net, _)| *net).chain(PRIVATE.iter().copied());
                let net: ipnet::Ipv4Net = nets.collect::<Vec<_>>()[at.min(11)].parse().unwrap();
                u32::from(net.network()) | (low & u32::from(net.hostmask()))
            }),
        ].prop_map(Ipv4Addr::from_bits), 0..80),
        cidrs in vec((any::<u32>(), 0..=32u8), 0..4),
    ) {
        let mut contract = contract(NetMode::Allow, &[], &["example.org"]);
        contract.cidrs = cidrs.iter()
            .map(|(at, length)| ipnet::Ipv4Net::new(Ipv4Addr::from_bits(*at), *length).unwrap().trunc())
            .collect();
        let told = screen(&contract, &addresses);
        prop_assert!(told.len() <= MAX_ADDRESSES);
        for address in &told {
            let [a, b, c, _] = address.octets();
            let never = a == 0 || a == 127 || a >= 224 || (a, b) == (169, 254) || (a, b, c) == (192, 0, 0)
                || (a == 198 && (b & 0xFE) == 18) || ["100.100.100.200", "168.63.129.16"].contains(&&*address.to_string());
            prop_assert!(!never, "{}", address);
            // By the standard library's opinion, and the range of carriers that it does not know.
            let shared = a == 100 && (64..128).contains(&b);
            let listed = contract.cidrs.iter().any(|cidr| cidr.contains(address) && cidr.prefix_len() >= 8);
            prop_assert!(listed || !(address.is_private() || shared), "{}", address);
            prop_assert!(addresses.contains(address));
        }
        prop_assert_eq!(screen(&contract, &told), told);
    }

    #[test]
    fn nobody_takes_more_than_the_bucket_has(steps in vec(0..2000u64, 1..400)) {
        let start = Instant::now() + Duration::from_secs(100);
        let (mut bucket, mut now, mut taken) = (Bucket::full(10, 50, start), start, 0u64);
        for step in steps {
            now += Duration::from_micros(step * step % 300_000);
            for _ in 0..3 {
                match bucket.take(now) {
                    Ok(()) => taken += 1,
                    Err(wait) => {
                        prop_assert!(wait <= Duration::from_millis(20));
                        // One is there when it was said to be.
                        now += wait;
                        prop_assert_eq!(bucket.take(now), Ok(()));
                        taken += 1;
                    }
                }
            }
            let came = u64::try_from((now - start).as_millis()).unwrap() / 20;
            prop_assert!(taken <= 10 + came, "{} of {}", taken, 10 + came);
        }
    }
}
