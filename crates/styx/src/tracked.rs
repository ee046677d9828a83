//! Connections that the node still has in its table for sandboxes that are gone, or that an update of a contract cut off.
//!
//! By itself the kernel forgets them hours later, and the table is one for all: sandboxes that come and go would fill it.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tartarus_types::net::Protocol;

use crate::StyxError;
use crate::cuts::{Cut, Cuts, Far};
use crate::enter::{Namespace, enter};
use crate::links::Links;
use crate::netlink::{ACK, DUMP, REQUEST, ask, attribute, attributes, socket};

/// Messages of the subsystem of connection tracking, and attributes of a connection, of the tuple of its first packet or of an
/// answer, and of the addresses and the protocol in that (`linux/netfilter/nfnetlink_conntrack.h`).
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
const ADDRESSES: u16 = 1;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const ECHO: u16 = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
const INET: u8 = libc::AF_INET as u8;

/// Has the namespace `node`, which is the calling thread's, forget what began at an address of `range` and was cut off by an update
/// or, where the whole range is sandboxes', has no link any more that leads to it; says how many there were.
pub(crate) fn forget(node: &Namespace, range: Ipv4Net, whole: bool, cuts: &Cuts) -> Result<usize, StyxError> {
    // All that these cut off is there to be listed.
    let due = cuts.due();
    let mut all = list(|tracked| range.contains(&tracked.original.from.0))?;
    // After those were listed: a sandbox that begins meanwhile has none among them.
    let living: HashSet<Ipv4Net> = Links::here()?.addresses()?.into_iter().map(|(_, net)| net.trunc()).collect();
    let (mut cut, mut failed) = (HashSet::new(), None);
    for (outer, one) in &due {
        match cut_off(*outer, one, &all) {
            Ok(known) if cuts.is_newest(*outer, one) => cut.extend(known),
            // Another update has come meanwhile, which may allow it again.
            Ok(_) => {}
            Err(error) => failed = Some(error),
        }
    }
    enter(node)?;
    all.retain(|Tracked { original, .. }| {
        let source = original.from.0;
        whole && !living.contains(&pair_of(source)) || cut.contains(original)
    });
    let socket = socket(libc::NETLINK_NETFILTER, 0).map_err(StyxError::system("ask for the node's connections"))?;
    for tracked in &all {
        match ask(&socket, DELETE, REQUEST | ACK, (INET, &tracked.name), |_, _| ()) {
            // It went by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            // Such as one that a card forwards by itself. The others go all the same.
            Err(error) => failed = Some(StyxError::system("remove connections that sandboxes left")(error)),
            Ok(()) => {}
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    cuts.done(&due);
    Ok(all.len())
}

/// What a sandbox's own namespace knows as cut off, as the node has it. Leaves the calling thread in that namespace.
fn cut_off(outer: Ipv4Addr, cut: &Cut, all: &[Tracked]) -> Result<Vec<Tuple>, StyxError> {
    // Each list takes a walk through the kernel's whole table.
    let forbidden = |tracked: &Tracked| tracked.original.from.0 == outer && cut.forbids(tracked.original.far());
    let Some(namespace) = cut.namespace.upgrade().filter(|_| all.iter().any(forbidden)) else { return Ok(Vec::new()) };
    enter(&namespace)?;
    // What it has forgotten itself is not known to be cut off.
    let inside = list(|tracked| cut.cuts(tracked.mark, tracked.original.far()))?;
    // Behind the namespace's own translation.
    Ok(inside.iter().map(|tracked| tracked.reply.turned()).filter(|tuple| tuple.from.0 == outer).collect())
}

/// Some connections of the calling thread's namespace.
fn list(wanted: impl Fn(&Tracked) -> bool) -> Result<Vec<Tracked>, StyxError> {
    let asked = || -> io::Result<Vec<Tracked>> {
        let socket = socket(libc::NETLINK_NETFILTER, 0)?;
        let mut all = Vec::new();
        ask(&socket, GET, REQUEST | DUMP, (INET, &[]), |kind, body| {
            let found = (kind == NEW).then(|| body.get(4..).and_then(Tracked::read)).flatten();
            all.extend(found.filter(&wanted));
        })?;
        Ok(all)
    };
    asked().map_err(StyxError::system("list connections"))
}

/// The two addresses of a link between the node and a sandbox.
fn pair_of(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new_assert(address, 31).trunc()
}

/// A connection: its first packet, an answer to it, the mark of whoever let it through, and the attributes that name it and no later one.
#[derive(Debug, PartialEq, Eq)]
struct Tracked {
    original: Tuple,
    reply: Tuple,
    mark: u32,
    name: Vec<u8>,
}

impl Tracked {
    fn read(body: &[u8]) -> Option<Self> {
        let first = attribute(body, ORIGINAL)?;
        let mut name = vec![(ORIGINAL | NESTED, first), (ID, attribute(body, ID)?)];
        name.extend(attribute(body, ZONE).map(|zone| (ZONE, zone)));
        let (original, reply) = (Tuple::read(first)?, Tuple::read(attribute(body, REPLY)?)?);
        // A kernel may have been built without marks; then no contract lets anything through.
        let mark = attribute(body, MARK).and_then(|mark| mark.try_into().ok()).map_or(0, u32::from_be_bytes);
        Some(Self { original, reply, mark, name: attributes(&name) })
    }
}

/// Who sends to whom: addresses with ports, or with the number of an echo, or with nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tuple {
    protocol: u8,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
}

impl Tuple {
    fn read(tuple: &[u8]) -> Option<Self> {
        let (addresses, protocol) = (attribute(tuple, ADDRESSES)?, attribute(tuple, PROTOCOL)?);
        let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute(addresses, kind)?).ok()?));
        let number = |kind| Some(u16::from_be_bytes(attribute(protocol, kind)?.try_into().ok()?));
        let or_echo = |kind| number(kind).or_else(|| number(ECHO)).unwrap_or(0);
        Some(Self {
            protocol: *attribute(protocol, NUMBER)?.first()?,
            from: (address(SOURCE)?, or_echo(SOURCE_PORT)),
            to: (address(DESTINATION)?, or_echo(DESTINATION_PORT)),
        })
    }

    /// The other direction.
    fn turned(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }

    /// Where to, as a contract speaks of it.
    fn far(&self) -> Far {
        let with_ports = match i32::from(self.protocol) {
            libc::IPPROTO_TCP => Some(Protocol::Tcp),
            libc::IPPROTO_UDP => Some(Protocol::Udp),
            _ => None,
        };
        (self.to.0, with_ports.map(|protocol| (protocol, self.to.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: ([u8; 4], [u8; 2]) = ([198, 18, 0, 1], [0x80, 0]);
    const WEB: ([u8; 4], [u8; 2]) = ([192, 0, 2, 1], [1, 0xbb]);

    fn tuple(protocol: u8, from: ([u8; 4], [u8; 2]), to: ([u8; 4], [u8; 2])) -> Vec<u8> {
        let addresses = attributes(&[(SOURCE, &from.0), (DESTINATION, &to.0)]);
        let ports = [(NUMBER, &[protocol][..]), (SOURCE_PORT, &from.1), (DESTINATION_PORT, &to.1)];
        attributes(&[(ADDRESSES | NESTED, &addresses), (PROTOCOL | NESTED, &attributes(&ports))])
    }

    #[test]
    fn a_connection_is_named_by_its_first_packet_and_its_number() {
        let (original, reply) = (tuple(6, GUEST, WEB), tuple(6, WEB, GUEST));
        let name = [(ORIGINAL | NESTED, &original[..]), (ID, &[0, 0, 0, 7]), (ZONE, &[0, 3])];
        let whole = attributes(&[name[0], (REPLY | NESTED, &reply), (MARK, &[0x80, 0, 0, 2]), name[1], name[2]]);
        let read = Tracked::read(&whole).unwrap();
        assert_eq!((read.mark, &read.name), (0x8000_0002, &attributes(&name)));
        assert_eq!(read.original.from, (Ipv4Addr::new(198, 18, 0, 1), 0x8000));
        assert_eq!(read.original.far(), (Ipv4Addr::new(192, 0, 2, 1), Some((Protocol::Tcp, 443))));
        assert_eq!(read.reply.turned(), read.original);
        let to_the_number = whole.len() - 8;
        for length in 0..to_the_number {
            assert_eq!(Tracked::read(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn an_echo_has_a_number_in_both_directions_and_no_port() {
        let addresses = attributes(&[(SOURCE, &GUEST.0), (DESTINATION, &WEB.0)]);
        let echo = attributes(&[(NUMBER, &[1]), (ECHO, &[0, 9]), (5, &[8]), (6, &[0])]);
        let read = Tuple::read(&attributes(&[(ADDRESSES | NESTED, &addresses), (PROTOCOL | NESTED, &echo)])).unwrap();
        assert_eq!((read.from.1, read.to.1, read.far()), (9, 9, (WEB.0.into(), None)));
    }

    #[test]
    fn both_addresses_of_a_link_are_one_pair() {
        let pair = |last| pair_of(Ipv4Addr::new(198, 18, 0, last));
        assert_eq!((pair(4), pair(5)), (pair(5), "198.18.0.4/31".parse().unwrap()));
        assert_ne!(pair(5), pair(6));
    }
}
