//! What the kernel does with each frame from a guest, as a program. Pure.
//!
//! The same as the chain `guest` of `rules`, which is in its place where a kernel takes no such program: frames are the
//! guest's own, and only so many.

use tartarus_types::net::NetLimits;

use super::code::{Code, Do, If, Instruction, Width};
pub(super) use crate::rules::FRAME_COUNTERS as COUNTERS;
use crate::rules::{MARK, burst};
use crate::{GUEST, GUEST_MAC, Guard};

/// What a program remembers: numbers of 8 bytes. First when each limit is used up to, then packets and bytes of each counter.
pub(super) const WORDS: usize = 3 + 2 * COUNTERS.len();
const PACKETS_UNTIL: i16 = 0;
const BYTES_UNTIL: i16 = 8;
const ARP_UNTIL: i16 = 16;
const fn counter(which: i16) -> i32 {
    (24 + 16 * which) as i32
}

/// Fields of `struct __sk_buff`.
const LENGTH: i16 = 0;
const SKB_MARK: i16 = 8;
const HAS_VLAN: i16 = 20;
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// Of a frame: a header of 14 bytes, and what follows.
const HEADER: i32 = 14;
const SOURCE: i16 = 6;
const TYPE: i16 = 12;
const TTL: i16 = 22;
const IP_SOURCE: i16 = 26;
const ARP_MAC: i16 = 22;
const ARP_IP: i16 = 28;
/// As far as it is looked at: the smallest frame with ARP has 42 bytes, the smallest with IP these.
const LEAST: i32 = 34;
/// `bpf_ktime_get_ns`.
const NOW: i32 = 5;
/// `TCX_NEXT` and `TCX_DROP`.
const NEXT: i32 = -1;
const DROP: i32 = 2;

/// Registers: the frame's record, what is remembered, the frame's length without its header, and the time.
const FRAME: u8 = 6;
const MEMORY: u8 = 7;
const SIZE: u8 = 8;
const TIME: u8 = 9;
/// Fractions of a nanosecond that a byte takes.
const FRACTION: u32 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Arp,
    NotIpv4,
    Own,
    Spoofed,
    Rate,
    Count,
    Next,
    Drop,
    /// Past the correction of a limit, and within it.
    Fresh,
    Fine,
}

/// A limit: a thing costs this many nanoseconds, and so many may be saved up.
struct Limit {
    until: i16,
    burst: u64,
}

/// The program for these limits, that remembers in the map with this descriptor.
pub(super) fn program(limits: NetLimits, without: Option<Guard>, map: i32) -> Vec<Instruction> {
    let has = |guard| without != Some(guard);
    let mut code = Code::new();
    let kind = |ethertype: u16| u32::from(u16::from_ne_bytes(ethertype.to_be_bytes()));
    code.with(Do::Set, FRAME, 1);
    code.map_value(MEMORY, map);
    code.load(Width::Word, SIZE, FRAME, LENGTH);
    code.by(Do::Subtract, SIZE, HEADER);
    code.load(Width::Word, 2, FRAME, DATA);
    code.load(Width::Word, 3, FRAME, DATA_END);
    long(&mut code, HEADER);
    if has(Guard::SourceMac) {
        guests_card(&mut code, SOURCE);
    }
    let other = if has(Guard::EtherType) { To::NotIpv4 } else { To::Own };
    // A kernel has taken a tag out of the frame already.
    code.load(Width::Word, 4, FRAME, HAS_VLAN);
    code.jump_if(4, If::NotEqual, 0, other);
    code.load(Width::Half, 4, 2, TYPE);
    code.jump_if(4, If::Equal, kind(0x0806), To::Arp);
    code.jump_if(4, If::NotEqual, kind(0x0800), other);
    long(&mut code, LEAST);
    if has(Guard::SourceIp) {
        guests_address(&mut code, IP_SOURCE);
    }
    // What would end on its way here would end a connection for this namespace that goes on for the node.
    code.load(Width::Byte, 4, 2, TTL);
    code.jump_if(4, If::AtMost, 1, To::Drop);
    code.place(&To::Own);
    code.call(NOW);
    code.with(Do::Set, TIME, 0);
    if has(Guard::Packets) {
        let each = 1_000_000_000 / u64::from(limits.packets.max(1));
        code.number(5, each);
        within(&mut code, &Limit { until: PACKETS_UNTIL, burst: each * u64::from(burst(limits.packets)) }, To::Rate);
    }
    if has(Guard::Bandwidth) {
        let bytes = u64::from(limits.mbit.max(1)) * 125_000;
        let each = (1_000_000_000 << FRACTION) / bytes;
        code.number(5, each);
        code.with(Do::Multiply, 5, SIZE);
        code.by(Do::ShiftRight, 5, FRACTION.cast_signed());
        within(
            &mut code,
            &Limit { until: BYTES_UNTIL, burst: (each * (bytes / 20).max(LEAST_BURST)) >> FRACTION },
            To::Rate,
        );
    }
    code.number(1, u64::from(MARK));
    code.store(Width::Word, FRAME, SKB_MARK, 1);
    code.jump(To::Next);

    code.place(&To::Arp);
    long(&mut code, LEAST);
    if has(Guard::Arp) {
        guests_card(&mut code, ARP_MAC);
        guests_address(&mut code, ARP_IP);
    }
    code.call(NOW);
    code.with(Do::Set, TIME, 0);
    code.number(5, ARP_EACH);
    within(&mut code, &Limit { until: ARP_UNTIL, burst: 1_000_000_000 }, To::Spoofed);
    code.place(&To::Next);
    code.by(Do::Set, 0, NEXT);
    code.exit();

    for (label, which) in [(To::Spoofed, 0), (To::NotIpv4, 1), (To::Rate, 2)] {
        if !code.wants(&label) {
            continue;
        }
        code.place(&label);
        code.by(Do::Set, 1, counter(which));
        code.jump(To::Count);
    }
    code.place(&To::Count);
    code.with(Do::Add, 1, MEMORY);
    code.by(Do::Set, 2, 1);
    code.add_to(1, 0, 2);
    code.add_to(1, 8, SIZE);
    code.place(&To::Drop);
    code.by(Do::Set, 0, DROP);
    code.exit();
    code.end()
}

/// The program of a card that nothing passes.
pub(super) fn closed() -> Vec<Instruction> {
    let mut code = Code::<To>::new();
    code.by(Do::Set, 0, DROP);
    code.exit();
    code.end()
}

/// A fiftieth of a second.
const ARP_EACH: u64 = 20_000_000;
/// Bytes that may come at once are a twentieth of a second's worth, as with packets, and these at least.
const LEAST_BURST: u64 = 128 << 10;

/// Goes on where the frame, from register 2 to 3, has so many bytes.
fn long(code: &mut Code<To>, bytes: i32) {
    code.with(Do::Set, 4, 2);
    code.by(Do::Add, 4, bytes);
    code.jump_with(4, If::Greater, 3, To::Drop);
}

/// Goes on where the guest's card is so many bytes into the frame.
fn guests_card(code: &mut Code<To>, at: i16) {
    let [a, b, c, d, e, f] = GUEST_MAC;
    code.load(Width::Word, 4, 2, at);
    code.jump_if(4, If::NotEqual, u32::from_ne_bytes([a, b, c, d]), To::Spoofed);
    code.load(Width::Half, 4, 2, at + 4);
    code.jump_if(4, If::NotEqual, u16::from_ne_bytes([e, f]).into(), To::Spoofed);
}

/// Goes on where the guest's address is so many bytes into the frame.
fn guests_address(code: &mut Code<To>, at: i16) {
    code.load(Width::Word, 4, 2, at);
    code.jump_if(4, If::NotEqual, u32::from_ne_bytes(GUEST.octets()), To::Spoofed);
}

/// Goes on where there is room for what costs the nanoseconds in register 5, and to `over` where there is none. The time up to
/// which a limit is used up lies between the burst ago and now. Several processors may ask at the same time: none is let
/// through by what another one has used.
fn within(code: &mut Code<To>, limit: &Limit, over: To) {
    code.load(Width::Double, 0, MEMORY, limit.until);
    code.number(2, limit.burst);
    code.with(Do::Set, 4, 0);
    code.with(Do::Add, 4, 2);
    code.jump_with(4, If::Greater, TIME, To::Fresh);
    code.with(Do::Set, 4, TIME);
    code.with(Do::Subtract, 4, 2);
    // Where it is not what it was, another one has done the same.
    code.exchange(MEMORY, limit.until, 4);
    code.place(&To::Fresh);
    code.with(Do::Set, 3, 5);
    code.fetch_and_add(MEMORY, limit.until, 3);
    code.with(Do::Add, 3, 5);
    code.jump_with(3, If::AtMost, TIME, To::Fine);
    code.by(Do::Set, 4, 0);
    code.with(Do::Subtract, 4, 5);
    code.add_to(MEMORY, limit.until, 4);
    code.jump(over);
    code.place(&To::Fine);
}
