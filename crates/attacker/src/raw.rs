//! Attempts by frames of the attacker's own making. Whether they reached anything, whoever receives them says; where an
//! answer comes back, the attacker hears it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::frames::{
    ARP, ICMP, ICMPV6, IPV4, IPV6, Ip, TCP, UDP, arp, echo, frame, ipv6, link_local, multicast_mac, stray_tcp, summed6,
    udp,
};
use crate::report::Found;
use crate::wire::Wire;
use crate::{PATIENCE, Words};

/// The same in every sandbox: the guest's address, and its gateway's card.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x02, 0x54, 0x54, 0, 0, 0xfe];
/// A card that is nobody's.
const OTHER_MAC: [u8; 6] = [0x02, 0x54, 0x54, 0, 0, 0x77];
/// An address of a router that there is not.
const ROUTER_PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd54, 0x5454, 0, 0, 0, 0, 0, 0);
/// For experiments, IEEE says; nothing else uses it.
const EXPERIMENT: u16 = 0x88b5;

/// A number of an attempt's own, so that attempts at the same time share no connection and no fragments: the port that its
/// datagrams come from, and the name of its packets.
fn own(token: &str) -> u16 {
    let low = token.get(..4).and_then(|digits| u16::from_str_radix(digits, 16).ok()).unwrap_or_default();
    20_000 + low % 12_000
}

pub(crate) fn attempt(name: &str, token: &str, words: &mut Words<'_>) -> Result<Found, String> {
    let (wire, port) = (Wire::open()?, own(token));
    let v4 = |packet: &[u8]| frame(wire.mac, GATEWAY_MAC, IPV4, packet);
    let frames = match name {
        "spoof-ip" => {
            let (source, to) = (words.address()?, (words.address()?, words.port()?));
            let datagram = udp((source, port), to, token.as_bytes());
            vec![v4(&Ip::plain(source, to.0, UDP).packet(&datagram))]
        }
        "spoof-mac" => {
            let to = (words.address()?, words.port()?);
            let packet = Ip::plain(GUEST, to.0, UDP).packet(&udp((GUEST, port), to, token.as_bytes()));
            vec![frame(OTHER_MAC, GATEWAY_MAC, IPV4, &packet)]
        }
        "fragments" => fragments((words.address()?, words.port()?), token).iter().map(|p| v4(p)).collect(),
        "overlap" => {
            let (to, listed, other) = (words.address()?, words.port()?, words.port()?);
            overlap(to, listed, other, token).iter().map(|p| v4(p)).collect()
        }
        "options" => {
            let to = (words.address()?, words.port()?);
            // Where a rule counts on 20 bytes of header, it reads these as the ports: 0x0101.
            let ip = Ip { options: &[1, 1, 1, 1, 1, 1, 1, 0], ..Ip::plain(GUEST, to.0, UDP) };
            vec![v4(&ip.packet(&udp((GUEST, port), to, token.as_bytes())))]
        }
        "source-route" => {
            let (listed, to) = (words.address()?, (words.address()?, words.port()?));
            let [a, b, c, d] = to.0.octets();
            let options = [0x83, 7, 4, a, b, c, d, 0];
            let ip = Ip { options: &options, ..Ip::plain(GUEST, listed, UDP) };
            vec![v4(&ip.packet(&udp((GUEST, port), to, token.as_bytes())))]
        }
        "stray-tcp" => {
            let (source, to) = (words.port()?, (words.address()?, words.port()?));
            vec![v4(&Ip::plain(GUEST, to.0, TCP).packet(&stray_tcp((GUEST, source), to, token.as_bytes())))]
        }
        "protocol" => {
            let (protocol, to) = (words.read("protocol")?, words.address()?);
            vec![v4(&Ip::plain(GUEST, to, protocol).packet(token.as_bytes()))]
        }
        "icmp-type" => {
            let (kind, to) = (words.read("type")?, words.address()?);
            vec![v4(&Ip::plain(GUEST, to, ICMP).packet(&echo(kind, token)))]
        }
        "vlan" => {
            let to = (words.address()?, words.port()?);
            let packet = Ip::plain(GUEST, to.0, UDP).packet(&udp((GUEST, port), to, token.as_bytes()));
            // Number 0: a priority and no network, so whoever does not look at it takes the packet as if it were plain.
            vec![frame(wire.mac, GATEWAY_MAC, 0x8100, &[&[0x20, 0][..], &IPV4.to_be_bytes(), &packet].concat())]
        }
        "ethertype" => vec![frame(wire.mac, GATEWAY_MAC, EXPERIMENT, token.as_bytes())],
        "arp-claim" => {
            let claimed = words.address()?;
            let message = arp(2, (OTHER_MAC, claimed), (GATEWAY_MAC, claimed), token.as_bytes());
            // The card is its own and the message is not: a rule about frames alone lets it pass.
            vec![frame(wire.mac, GATEWAY_MAC, ARP, &message)]
        }
        "arp-ask" => return arp_ask(&wire, words.address()?),
        "ipv6-ask" => return ipv6_ask(&wire, token),
        "ipv6-udp" => {
            let (to, at): (Ipv6Addr, u16) = (words.read("address")?, words.port()?);
            let from = link_local(wire.mac);
            let mut datagram = [port.to_be_bytes(), at.to_be_bytes()].concat();
            datagram.extend([0, 40, 0, 0]);
            datagram.extend(token.as_bytes());
            let packet = ipv6(from, to, UDP, &summed6(from, to, UDP, datagram, 6));
            let to = if to.is_multicast() { multicast_mac(to) } else { GATEWAY_MAC };
            vec![frame(wire.mac, to, IPV6, &packet)]
        }
        "ipv6-router" => vec![frame(wire.mac, multicast_mac(ALL_NODES), IPV6, &router_advertisement(wire.mac, token))],
        other => return Err(format!("there is no attempt {other:?}")),
    };
    for _ in 0..3 {
        frames.iter().try_for_each(|frame| wire.send(frame))?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Found::not(format!("{} frames sent three times; who receives them knows more", frames.len())))
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// A datagram whose first fragment is only its header: 8 bytes, the least there can be.
fn fragments(to: (Ipv4Addr, u16), token: &str) -> Vec<Vec<u8>> {
    let datagram = udp((GUEST, own(token)), to, token.as_bytes());
    let (first, rest) = datagram.split_at(8);
    let ip = Ip { id: own(token), ..Ip::plain(GUEST, to.0, UDP) };
    vec![Ip { more: true, ..ip }.packet(first), Ip { offset: 8, ..ip }.packet(rest)]
}

/// A datagram to the port that is listed, and a later fragment that writes the other port, and the beginning of the token,
/// over it: only what is put together with that carries the token.
fn overlap(to: Ipv4Addr, listed: u16, other: u16, token: &str) -> Vec<Vec<u8>> {
    let (mut harmless, from) = (token.as_bytes().to_vec(), (GUEST, own(token)));
    harmless[..8].fill(b'.');
    let (fair, foul) = (udp(from, (to, listed), &harmless), udp(from, (to, other), token.as_bytes()));
    let ip = Ip { id: own(token), ..Ip::plain(GUEST, to, UDP) };
    vec![
        Ip { more: true, ..ip }.packet(&fair[..16]),
        Ip { more: true, ..ip }.packet(&foul[..16]),
        Ip { offset: 16, ..ip }.packet(&foul[16..]),
    ]
}

/// Asks who has an address, which a guest may: without a token, since its own link hears it. Reached: somebody says that it has.
fn arp_ask(wire: &Wire, address: Ipv4Addr) -> Result<Found, String> {
    let broadcast = [0xff; 6];
    wire.send(&frame(wire.mac, broadcast, ARP, &arp(1, (wire.mac, GUEST), ([0; 6], address), &[0; 18])))?;
    let answer = wire.hear(PATIENCE, |heard| {
        let tells = heard.get(12..14) == Some(&ARP.to_be_bytes()) && heard.get(20..22) == Some(&[0, 2]);
        (tells && heard.get(28..32) == Some(&address.octets()))
            .then(|| format!("{address} is at {:02x?}", &heard[22..28]))
    });
    Ok(answer.map_or_else(|| Found::not("no answer"), Found::reached))
}

/// Looks for anybody who speaks IPv6: asks all nodes for an echo, all routers for their advertisement, and the gateway for
/// its address. Reached: an answer of whatever kind.
fn ipv6_ask(wire: &Wire, token: &str) -> Result<Found, String> {
    let from = link_local(wire.mac);
    let mut asks = vec![128, 0, 0, 0, 0x54, 0x54, 0, 1];
    asks.extend(token.as_bytes());
    let mut solicits = vec![133, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    solicits.extend(wire.mac);
    let gateway = link_local(GATEWAY_MAC);
    let octets = gateway.octets();
    let group: Ipv6Addr = Ipv6Addr::from({
        let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
        group[13..].copy_from_slice(&octets[13..]);
        group
    });
    let mut neighbour = vec![135, 0, 0, 0, 0, 0, 0, 0];
    neighbour.extend(octets);
    neighbour.extend([1, 1]);
    neighbour.extend(wire.mac);
    for (to, message) in [(ALL_NODES, asks), (ALL_ROUTERS, solicits), (group, neighbour)] {
        let packet = ipv6(from, to, ICMPV6, &summed6(from, to, ICMPV6, message, 2));
        wire.send(&frame(wire.mac, multicast_mac(to), IPV6, &packet))?;
    }
    // What a card says by itself when it comes up (reports of groups, of duplicates) is no answer.
    let answer = wire.hear(PATIENCE, |heard| {
        let is_six = heard.get(12..14) == Some(&IPV6.to_be_bytes());
        let kind = heard.get(54).copied().filter(|_| is_six && heard.get(20) == Some(&ICMPV6))?;
        [129, 134, 136].contains(&kind).then(|| format!("answered with ICMPv6 type {kind}"))
    });
    Ok(answer.map_or_else(|| Found::not("no answer"), Found::reached))
}

/// Says that this guest is the router to everywhere, and that addresses of its network are free to take.
fn router_advertisement(mac: [u8; 6], token: &str) -> Vec<u8> {
    let from = link_local(mac);
    // Hop limit 64, lifetime 1800 s; an option with the prefix, on link and for addresses.
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    message.extend(ROUTER_PREFIX.octets());
    message.extend([1, 1]);
    message.extend(mac);
    // An option for experiments, which carries the token: 5 times 8 bytes.
    message.extend([253, 5, 0, 0, 0, 0, 0, 0]);
    message.extend(token.as_bytes());
    ipv6(from, ALL_NODES, ICMPV6, &summed6(from, ALL_NODES, ICMPV6, message, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    const TO: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    #[test]
    fn fragments_are_one_datagram_with_a_tiny_beginning() {
        let parts = fragments((TO, 9001), TOKEN);
        assert_eq!(parts[0].len(), 28);
        let whole = [&parts[0][20..], &parts[1][20..]].concat();
        assert_eq!(whole, udp((GUEST, own(TOKEN)), (TO, 9001), TOKEN.as_bytes()));
    }

    #[test]
    fn an_overlap_writes_over_the_port() {
        let parts = overlap(TO, 9000, 9001, TOKEN);
        assert_eq!(parts[0][22..24], 9000_u16.to_be_bytes());
        assert_eq!(parts[1][22..24], 9001_u16.to_be_bytes());
        assert_eq!(parts[0][6..8], parts[1][6..8], "both begin at the same place");
        assert_eq!([&parts[1][20..], &parts[2][20..]].concat(), udp((GUEST, own(TOKEN)), (TO, 9001), TOKEN.as_bytes()));
    }

    #[test]
    fn an_advertisement_is_whole() {
        let packet = router_advertisement([2, 0, 0, 0, 0, 1], TOKEN);
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
        assert_eq!(packet[40], 134);
    }
}
