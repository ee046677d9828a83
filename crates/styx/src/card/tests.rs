use std::cell::Cell;
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::{GUEST, GUEST_MAC};

const PASSED: i32 = -1;
const DROPPED: i32 = 2;
const MUCH: NetLimits = NetLimits { mbit: 100_000, packets: 100_000_000, connections: 1 };

/// A program that the kernel took, attached to nothing.
struct Loaded {
    program: OwnedFd,
    memory: OwnedFd,
}

/// Nothing where the kernel takes none, which is said.
fn load(limits: NetLimits, without: Option<Guard>) -> Option<Loaded> {
    let loaded = || {
        let memory = kernel::memory(program::WORDS)?;
        let program = kernel::load(&program::program(limits, without, memory.as_raw_fd()))?;
        Ok::<_, io::Error>(Loaded { program, memory })
    };
    match loaded() {
        Ok(loaded) => Some(loaded),
        Err(error) if !rustix::process::geteuid().is_root() => {
            println!("skipped: a program takes root: {error}");
            None
        }
        Err(error) => panic!("the kernel takes no program: {error}"),
    }
}

impl Loaded {
    fn says(&self, frame: &[u8]) -> i32 {
        self.tries(frame).unwrap()
    }

    /// A kernel tries no frame that is shorter than the header that it announces.
    fn tries(&self, frame: &[u8]) -> Option<i32> {
        match kernel::run(&self.program, frame) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && frame.len() < 54 => None,
            says => Some(says.unwrap()),
        }
    }

    fn counted(&self) -> Vec<u64> {
        let words: [u64; program::WORDS] = kernel::read(&self.memory).unwrap();
        words[3..].iter().step_by(2).copied().collect()
    }
}

fn frame(mac: [u8; 6], kind: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = [&[2, 0, 0, 0, 0, 9][..], &mac, &kind.to_be_bytes(), rest].concat();
    frame.resize(frame.len().max(64), 0);
    frame
}

fn ip(from: [u8; 4], ttl: u8) -> Vec<u8> {
    [&[0x45, 0, 0, 50, 0, 0, 0, 0, ttl, 17, 0, 0][..], &from, &[192, 0, 2, 1]].concat()
}

fn arp(mac: [u8; 6], from: [u8; 4]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &from, &[0; 10]].concat()
}

const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 7];

#[test]
fn the_guests_own_frames_pass_and_no_others() {
    let guest = GUEST.octets();
    let own = frame(GUEST_MAC, 0x0800, &ip(guest, 64));
    let cases = [
        (own.clone(), PASSED, None, None),
        (frame(GUEST_MAC, 0x0806, &arp(GUEST_MAC, guest)), PASSED, None, None),
        (frame(OTHER, 0x0800, &ip(guest, 64)), DROPPED, Some(0), Some(Guard::SourceMac)),
        (frame(GUEST_MAC, 0x0800, &ip([198, 19, 255, 252], 64)), DROPPED, Some(0), Some(Guard::SourceIp)),
        (frame(GUEST_MAC, 0x0806, &arp(OTHER, guest)), DROPPED, Some(0), Some(Guard::Arp)),
        (frame(GUEST_MAC, 0x0806, &arp(GUEST_MAC, [1, 2, 3, 4])), DROPPED, Some(0), Some(Guard::Arp)),
        (frame(GUEST_MAC, 0x86dd, &[0x60; 40]), DROPPED, Some(1), Some(Guard::EtherType)),
        (frame(GUEST_MAC, 0x88b5, &ip(guest, 64)), DROPPED, Some(1), Some(Guard::EtherType)),
        (frame(GUEST_MAC, 0x0800, &ip(guest, 1)), DROPPED, None, None),
        (frame(GUEST_MAC, 0x0800, &ip(guest, 0)), DROPPED, None, None),
        (frame(GUEST_MAC, 0x0806, &arp(GUEST_MAC, guest))[..33].to_vec(), DROPPED, None, None),
        (own[..34].to_vec(), PASSED, None, None),
        (frame(GUEST_MAC, 0x88b5, &[])[..15].to_vec(), DROPPED, Some(1), Some(Guard::EtherType)),
    ];
    for (at, (frame, says, counter, guard)) in cases.iter().enumerate() {
        let Some(whole) = load(MUCH, None) else { return };
        assert_eq!(whole.says(frame), *says, "{at}");
        let mut expected = vec![0; program::COUNTERS.len()];
        if let Some(which) = counter {
            expected[*which] = 1;
        }
        assert_eq!(whole.counted(), expected, "{at}");
        if let Some(without) = guard {
            assert_eq!(load(MUCH, Some(*without)).unwrap().says(frame), PASSED, "{at} without {without}");
        }
    }
}

#[test]
fn whatever_a_frame_is_made_of_the_program_says_what_its_words_say() {
    let Some(whole) = load(MUCH, None) else { return };
    let guest = GUEST.octets();
    let bases = [frame(GUEST_MAC, 0x0800, &ip(guest, 64)), frame(GUEST_MAC, 0x0806, &arp(GUEST_MAC, guest))];
    let change = prop::collection::vec((0_usize..48, any::<u8>()), 0..4);
    let frames = (0_usize..2, change, 20_usize..80).prop_map(move |(base, changes, length)| {
        let mut frame = bases[base].clone();
        for (at, byte) in changes {
            frame[at] = byte;
        }
        frame.resize(length, 0);
        frame
    });
    let (passed, dropped) = (Cell::new(0), Cell::new(0));
    // More ARP than is let through in a second would be another question.
    let left = Cell::new(40);
    TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() })
        .run(&frames, |frame| {
            let own = frame.len() >= 34 && frame[6..12] == GUEST_MAC;
            let is_arp = own && frame[12..14] == [8, 6] && frame[22..28] == GUEST_MAC && frame[28..32] == guest;
            let is_ip = own && frame[12..14] == [8, 0] && frame[26..30] == guest && frame[22] > 1;
            if is_arp {
                left.set(left.get() - 1);
            }
            if left.get() < 0 && is_arp {
                return Ok(());
            }
            let says = if is_ip || is_arp { PASSED } else { DROPPED };
            // A tag is taken out of a frame before a program sees it, and not when it is tried.
            if let Some(said) = whole.tries(&frame) {
                let count = if says == PASSED { &passed } else { &dropped };
                count.set(count.get() + 1);
                prop_assert_eq!(said, says, "{:02x?}", frame);
            }
            Ok(())
        })
        .unwrap();
    assert!(passed.get() > 100 && dropped.get() > 100, "{passed:?} {dropped:?}");
}

/// How many of so many frames pass, and within which time.
fn passing(limits: NetLimits, size: usize, times: usize) -> Option<(usize, f64, Loaded)> {
    let loaded = load(limits, None)?;
    let mut own = frame(GUEST_MAC, 0x0800, &ip(GUEST.octets(), 64));
    own.resize(size + 14, 0);
    let start = Instant::now();
    let passed = (0..times).filter(|_| loaded.says(&own) == PASSED).count();
    Some((passed, start.elapsed().as_secs_f64(), loaded))
}

#[test]
fn so_many_packets_pass() {
    let limits = NetLimits { packets: 1000, ..MUCH };
    let Some((passed, took, loaded)) = passing(limits, 50, 5000) else { return };
    let most = 50. + 1000. * took;
    assert!((50. ..=most + 1.).contains(&(passed as f64)), "{passed} of {most}");
    assert_eq!(loaded.counted(), [0, 0, 5000 - passed as u64]);
}

#[test]
fn so_many_bytes_pass() {
    let limits = NetLimits { mbit: 8, ..MUCH };
    let Some((passed, took, loaded)) = passing(limits, 1400, 3000) else { return };
    let most = (131_072. + 1_000_000. * took) / 1400.;
    assert!((93. ..=most + 1.).contains(&(passed as f64)), "{passed} of {most}");
    let words: [u64; program::WORDS] = kernel::read(&loaded.memory).unwrap();
    assert_eq!(words[program::WORDS - 1], (3000 - passed as u64) * 1400);
}

#[test]
fn what_is_saved_up_is_used_once() {
    let limits = NetLimits { packets: 1000, ..MUCH };
    let Some((_, _, loaded)) = passing(limits, 50, 1000) else { return };
    let start = Instant::now();
    let own = frame(GUEST_MAC, 0x0800, &ip(GUEST.octets(), 64));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let passed = (0..1000).filter(|_| loaded.says(&own) == PASSED).count() as f64;
    let most = 1000. * start.elapsed().as_secs_f64();
    assert!((20. ..=most + 1.).contains(&passed), "{passed} of {most}");
}

#[test]
fn nothing_passes_a_card_that_is_closed() {
    if load(MUCH, None).is_none() {
        return;
    }
    let program = kernel::load(&program::closed()).unwrap();
    let own = frame(GUEST_MAC, 0x0800, &ip(GUEST.octets(), 64));
    assert_eq!(kernel::run(&program, &own).unwrap(), DROPPED);
}

#[test]
fn one_program_is_attached_and_a_strangers_is_noticed() {
    let alone = || {
        if let Err(error) = unshare() {
            return println!("skipped: a namespace takes root: {error}");
        }
        match attach(LOOPBACK, |_| program::closed()) {
            Err(error) if Door::of_kernel().is_ok_and(|door| door == Door::Chain) => {
                return println!("skipped: the kernel attaches no program: {error}");
            }
            closed => remove(LOOPBACK, closed.unwrap().number).unwrap(),
        }
        let attach = || attach(LOOPBACK, |map| program::program(MUCH, None, map)).unwrap();
        let numbers = || kernel::attached(LOOPBACK).unwrap();
        assert!(numbers().is_empty());
        let first = attach();
        assert_eq!(numbers(), [first.number]);
        let second = attach();
        assert_ne!(first.number, second.number);
        assert_eq!(numbers(), [second.number], "it is in the place of the first");
        assert_eq!(second.counters().unwrap().len(), program::COUNTERS.len());
        drop((first, second));
        assert_eq!(numbers().len(), 1, "it stays when nobody has a descriptor of it");
        let stranger = load(MUCH, None).unwrap();
        kernel::attach(LOOPBACK, &stranger.program, None).unwrap();
        assert_eq!(numbers().len(), 2);
        let own = Card { number: numbers()[0], memory: kernel::memory(program::WORDS).unwrap() };
        own.check_at(LOOPBACK).expect_err("a stranger's is beside it");
        let third = attach();
        assert_eq!(numbers(), [third.number], "nobody else has a say");
        third.check_at(LOOPBACK).unwrap();
        remove(LOOPBACK, third.number).unwrap();
        third.check_at(LOOPBACK).expect_err("it is gone");
        for program in [&stranger.program, &load(MUCH, None).unwrap().program] {
            kernel::attach(LOOPBACK, program, None).unwrap();
        }
        attach().check_at(LOOPBACK).expect("whoever was first");
    };
    std::thread::spawn(alone).join().unwrap();
}
