//! Packets and frames, byte by byte. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The payload of Ethernet frames with IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// With ARP.
pub(crate) const ARP: u16 = 0x0806;
/// With IPv6.
pub(crate) const IPV6: u16 = 0x86dd;

/// ICMP, TCP, UDP and ICMPv6 in the header of an IP packet.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

/// A frame.
pub(crate) fn frame(from: [u8; 6], to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The internet checksum over parts, each but the last of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// What of an IPv4 header differs between attempts.
#[derive(Clone, Copy)]
pub(crate) struct Ip<'a> {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: u8,
    /// The same in all fragments of a packet, and in no other one.
    pub(crate) id: u16,
    /// Offset in bytes, a multiple of 8.
    pub(crate) offset: usize,
    pub(crate) more: bool,
    /// Of a length that is a multiple of 4.
    pub(crate) options: &'a [u8],
}

impl Ip<'_> {
    pub(crate) fn plain(from: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Self {
        Self { from, to, protocol, id: 0x5454, offset: 0, more: false, options: &[] }
    }

    /// The packet.
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = (header + payload.len()) as u16;
        let flags = (self.offset / 8) as u16 | if self.more { 0x2000 } else { 0 };
        let mut out = vec![0x40 | (header / 4) as u8, 0];
        out.extend(total.to_be_bytes());
        out.extend(self.id.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend([64, self.protocol, 0, 0]);
        out.extend(self.from.octets());
        out.extend(self.to.octets());
        out.extend(self.options);
        let sum = checksum(&[&out]);
        out[10..12].copy_from_slice(&sum);
        out.extend(payload);
        out
    }
}

/// A UDP datagram in IPv4, without its IP header.
pub(crate) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut out = [from.1.to_be_bytes(), to.1.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    out.extend(payload);
    let pseudo = pseudo(from.0, to.0, UDP, length);
    let sum = checksum(&[&pseudo, &out]);
    out[6..8].copy_from_slice(&sum);
    out
}

/// A TCP segment that belongs to no connection: an acknowledgement with data.
pub(crate) fn stray_tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut out = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    // Numbers, 5 words of header, ACK and PSH, a window.
    out.extend([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x50, 0x18, 0x20, 0x00, 0, 0, 0, 0]);
    out.extend(payload);
    let sum = checksum(&[&pseudo(from.0, to.0, TCP, out.len() as u16), &out]);
    out[16..18].copy_from_slice(&sum);
    out
}

/// A TCP segment that ends a connection: a reset of this number.
pub(crate) fn reset(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), sequence: u32) -> Vec<u8> {
    let mut out = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    out.extend(sequence.to_be_bytes());
    // Nothing is acknowledged; 5 words of header, RST, no window.
    out.extend([0, 0, 0, 0, 0x50, 0x04, 0, 0, 0, 0, 0, 0]);
    let sum = checksum(&[&pseudo(from.0, to.0, TCP, out.len() as u16), &out]);
    out[16..18].copy_from_slice(&sum);
    out
}

fn pseudo(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, length: u16) -> Vec<u8> {
    [&from.octets()[..], &to.octets(), &[0, protocol], &length.to_be_bytes()].concat()
}

/// An ICMP echo of this type (8 asks, 0 answers) that carries the token.
pub(crate) fn echo(kind: u8, token: &str) -> Vec<u8> {
    let mut out = vec![kind, 0, 0, 0, 0x54, 0x54, 0, 1];
    out.extend(token.as_bytes());
    let sum = checksum(&[&out]);
    out[2..4].copy_from_slice(&sum);
    out
}

/// An ARP message: `operation` 1 asks and 2 tells; `padding` fills the frame up.
pub(crate) fn arp(operation: u16, from: ([u8; 6], Ipv4Addr), to: ([u8; 6], Ipv4Addr), padding: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 1, 8, 0, 6, 4];
    out.extend(operation.to_be_bytes());
    for (mac, ip) in [from, to] {
        out.extend(mac);
        out.extend(ip.octets());
    }
    out.extend(padding);
    out
}

/// An IPv6 packet; with a hop limit of 255, as neighbour discovery wants it.
pub(crate) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend([next, 255]);
    out.extend(from.octets());
    out.extend(to.octets());
    out.extend(payload);
    out
}

/// What IPv6 carries, with its checksum at `at`.
pub(crate) fn summed6(from: Ipv6Addr, to: Ipv6Addr, next: u8, mut payload: Vec<u8>, at: usize) -> Vec<u8> {
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend((payload.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, next]);
    let sum = checksum(&[&pseudo, &payload]);
    payload[at..at + 2].copy_from_slice(&sum);
    payload
}

/// A card's link-local address.
pub(crate) fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// The Ethernet address of an IPv6 multicast group.
pub(crate) fn multicast_mac(group: Ipv6Addr) -> [u8; 6] {
    let octets = group.octets();
    [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);
    const B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    /// A sum over what already holds its checksum is zero.
    fn sound(parts: &[&[u8]]) -> bool {
        checksum(parts) == [0, 0]
    }

    #[test]
    fn checksums_are_right() {
        // The example of RFC 1071.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), [0x22, 0x0d]);
        let datagram = udp((A, 1000), (B, 9000), b"odd");
        assert!(sound(&[&pseudo(A, B, UDP, datagram.len() as u16), &datagram]));
        let segment = stray_tcp((A, 1000), (B, 9000), b"even");
        assert!(sound(&[&pseudo(A, B, TCP, segment.len() as u16), &segment]));
        let segment = reset((A, 1000), (B, 9000), 0x1234_5678);
        assert!(sound(&[&pseudo(A, B, TCP, segment.len() as u16), &segment]));
        assert_eq!((&segment[4..8], segment[13]), (&[0x12, 0x34, 0x56, 0x78][..], 4));
        let packet = Ip { options: &[1, 1, 1, 0], ..Ip::plain(A, B, UDP) }.packet(&datagram);
        assert!(sound(&[&packet[..24]]));
        assert_eq!((packet[0], packet.len()), (0x46, 24 + datagram.len()));
        assert!(sound(&[&echo(8, "0123456789abcdef")]));
    }

    #[test]
    fn a_fragment_says_where_it_belongs() {
        let packet = Ip { offset: 8, more: true, ..Ip::plain(A, B, UDP) }.packet(b"abcdefgh");
        assert_eq!(packet[6..8], [0x20, 0x01]);
        let last = Ip { offset: 16, more: false, ..Ip::plain(A, B, UDP) }.packet(b"x");
        assert_eq!(last[6..8], [0x00, 0x02]);
    }

    #[test]
    fn addresses_of_version_six() {
        let local = link_local([2, 0x54, 0x54, 0, 0, 1]);
        assert_eq!(local.to_string(), "fe80::54:54ff:fe00:1");
        assert_eq!(multicast_mac("ff02::2".parse().unwrap()), [0x33, 0x33, 0, 0, 0, 2]);
        let asks = summed6(local, local, ICMPV6, vec![128, 0, 0, 0, 1, 2, 3, 4], 2);
        assert_ne!(asks[2..4], [0, 0]);
    }

    #[test]
    fn an_arp_message_with_a_token_fills_a_frame() {
        let message = arp(2, ([2; 6], A), ([0xff; 6], B), b"0123456789abcdef0123456789abcdef");
        assert_eq!(message.len(), 28 + 32);
        assert_eq!(message[6..8], [0, 2]);
        assert_eq!(frame([2; 6], [3; 6], ARP, &message)[..14], [3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 8, 6]);
    }
}
