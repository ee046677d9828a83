//! Connections that the node still has in its table for sandboxes that are gone, or whose contract was changed.
//!
//! By itself the kernel forgets them hours later, and the table is one for all: sandboxes that come and go would fill it.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tartarus_types::net::Protocol;

use crate::StyxError;
use crate::cuts::{Cuts, Far};
use crate::links::Links;
use crate::netlink::{ACK, DUMP, REQUEST, ask, attribute, attributes, socket};

/// Messages of the subsystem of connection tracking, and attributes of a connection, of the tuple of its first packet, and of the
/// addresses and the protocol in that (`linux/netfilter/nfnetlink_conntrack.h`).
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const ORIGINAL: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const ADDRESSES: u16 = 1;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const PORT: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
const INET: u8 = libc::AF_INET as u8;

/// Has the calling thread's namespace forget what began at an address of `range` that no link of it leads to any more, and what
/// `cuts` say that a sandbox may not have any more; says how many there were.
pub(crate) fn forget(range: Ipv4Net, cuts: &Cuts) -> Result<usize, StyxError> {
    // All that these cut off is there to be listed.
    let due = cuts.due();
    let asked = || -> io::Result<Vec<Tracked>> {
        let socket = socket(libc::NETLINK_NETFILTER, 0)?;
        let mut all = Vec::new();
        ask(&socket, GET, REQUEST | DUMP, (INET, &[]), |kind, body| {
            let found = (kind == NEW).then(|| body.get(4..).and_then(Tracked::read)).flatten();
            all.extend(found.filter(|tracked| range.contains(&tracked.source)));
        })?;
        Ok(all)
    };
    let mut all = asked().map_err(StyxError::system("list the node's connections"))?;
    // After those were listed: a sandbox that begins meanwhile has none among them.
    let living: HashSet<Ipv4Net> = Links::here()?.addresses()?.into_iter().map(|(_, net)| net.trunc()).collect();
    // And once more: a contract that was put in force meanwhile may allow it again.
    let now = cuts.due();
    let cut = |tracked: &Tracked| now.get(&tracked.source).is_some_and(|allowed| !allowed.lets(tracked.far));
    all.retain(|tracked| !living.contains(&pair_of(tracked.source)) || cut(tracked));
    let socket = socket(libc::NETLINK_NETFILTER, 0).map_err(StyxError::system("ask for the node's connections"))?;
    let mut failed = None;
    for tracked in &all {
        match ask(&socket, DELETE, REQUEST | ACK, (INET, &tracked.name), |_, _| ()) {
            // It went by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            // Such as one that a card forwards by itself. The others go all the same.
            Err(error) => failed = Some(error),
            Ok(()) => {}
        }
    }
    if let Some(error) = failed {
        return Err(StyxError::system("remove connections that sandboxes left")(error));
    }
    cuts.done(&due);
    Ok(all.len())
}

/// The two addresses of a link between the node and a sandbox.
fn pair_of(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new_assert(address, 31).trunc()
}

/// A connection: who began it and to where, and the attributes that name it and no later one.
#[derive(Debug, PartialEq, Eq)]
struct Tracked {
    source: Ipv4Addr,
    far: Far,
    name: Vec<u8>,
}

impl Tracked {
    fn read(body: &[u8]) -> Option<Self> {
        let original = attribute(body, ORIGINAL)?;
        let address = |kind| -> Option<Ipv4Addr> {
            let address: [u8; 4] = attribute(attribute(original, ADDRESSES)?, kind)?.try_into().ok()?;
            Some(address.into())
        };
        let far = (address(DESTINATION)?, port(attribute(original, PROTOCOL)?)?);
        let mut name = vec![(ORIGINAL | NESTED, original), (ID, attribute(body, ID)?)];
        name.extend(attribute(body, ZONE).map(|zone| (ZONE, zone)));
        Some(Self { source: address(SOURCE)?, far, name: attributes(&name) })
    }
}

/// The port that a connection is to, where its protocol has some of which a contract speaks.
fn port(protocol: &[u8]) -> Option<Option<(Protocol, u16)>> {
    let with_ports = match i32::from(*attribute(protocol, NUMBER)?.first()?) {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        _ => return Some(None),
    };
    let port: [u8; 2] = attribute(protocol, PORT)?.try_into().ok()?;
    Some(Some((with_ports, u16::from_be_bytes(port))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_named_by_its_first_packet_and_its_number() {
        let addresses = attributes(&[(SOURCE, &[198, 18, 0, 1]), (2, &[192, 0, 2, 1])]);
        let protocol = attributes(&[(NUMBER, &[6]), (2, &[0x80, 0]), (PORT, &[1, 0xbb])]);
        let original = attributes(&[(ADDRESSES | NESTED, &addresses), (PROTOCOL | NESTED, &protocol)]);
        let name = [(ORIGINAL | NESTED, &original[..]), (ID, &[0, 0, 0, 7]), (ZONE, &[0, 3])];
        let whole = attributes(&[name[0], (2 | NESTED, &original), (3, &[0; 4]), name[1], name[2]]);
        let read = Tracked::read(&whole).unwrap();
        assert_eq!((read.source, read.name), (Ipv4Addr::new(198, 18, 0, 1), attributes(&name)));
        assert_eq!(read.far, (Ipv4Addr::new(192, 0, 2, 1), Some((Protocol::Tcp, 443))));
        let to_the_number = whole.len() - 8;
        for length in 0..to_the_number {
            assert_eq!(Tracked::read(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_port_is_of_a_protocol_that_has_some() {
        assert_eq!(port(&attributes(&[(NUMBER, &[17]), (PORT, &[0, 53])])), Some(Some((Protocol::Udp, 53))));
        assert_eq!(port(&attributes(&[(NUMBER, &[1]), (4, &[0, 7])])), Some(None), "ICMP");
        assert_eq!(port(&attributes(&[(NUMBER, &[6]), (PORT, &[0])])), None, "cut short");
        assert_eq!(port(&[]), None);
    }

    #[test]
    fn both_addresses_of_a_link_are_one_pair() {
        let pair = |last| pair_of(Ipv4Addr::new(198, 18, 0, last));
        assert_eq!((pair(4), pair(5)), (pair(5), "198.18.0.4/31".parse().unwrap()));
        assert_ne!(pair(5), pair(6));
    }
}
