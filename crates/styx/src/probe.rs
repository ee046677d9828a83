//! Whether a packet gets through the node and back: two scratch namespaces, one behind a sandbox's kind of link and one that
//! stands for the world. No packet leaves the machine.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use crate::StyxError;
use crate::enter::{Namespace, enter, unshare};
use crate::links::Links;
use crate::space::{capacity, pair};

/// The node's ends: of the sandbox's side, to which the node's rules apply, and of the world's side.
pub(crate) const NEAR: &str = "ttprobe";
const FAR: &str = "tp0";
/// The world's port; nothing else is there.
const PORT: u16 = 7;
const PATIENCE: Duration = Duration::from_millis(50);
/// Links may take a second until they carry packets, and more on a machine that has much to do.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(4);

/// The address that stands for the world, at the end of the range: the one address of it that a sandbox's packet may go to.
pub(crate) fn address(range: Ipv4Net) -> Ipv4Addr {
    pair(range, capacity(range) + 1).1
}

/// Whether a packet got there and its answer back. On a thread of its own, whose namespace it changes.
pub(crate) fn probe(node: &Namespace, range: Ipv4Net) -> Result<bool, StyxError> {
    let world = address(range);
    let done = through(node, range, world);
    // Both would go by themselves, a little later.
    enter(node)?;
    let links = Links::here()?;
    links.remove(NEAR)?;
    links.remove(FAR)?;
    done
}

fn through(node: &Namespace, range: Ipv4Net, world: Ipv4Addr) -> Result<bool, StyxError> {
    let (near, own) = pair(range, capacity(range));
    // Sockets hold their namespaces.
    let inside = end(node, NEAR, near, own, 0)?;
    let outside = end(node, FAR, pair(range, capacity(range) + 1).0, world, PORT)?;
    let heard = |socket: &UdpSocket| {
        let mut buffer = [0; 16];
        socket.recv_from(&mut buffer).ok().filter(|(length, _)| buffer[..*length] == *b"styx").map(|(_, from)| from)
    };
    let end = Instant::now() + PATIENCE_IN_ALL;
    while Instant::now() < end {
        // A refusal to send is a way that does not work.
        drop(inside.send_to(b"styx", SocketAddr::from((world, PORT))));
        let Some(from) = heard(&outside) else { continue };
        drop(outside.send_to(b"styx", from));
        if heard(&inside).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A namespace with one link to the node, and a socket in it.
fn end(node: &Namespace, name: &str, near: Ipv4Addr, own: Ipv4Addr, port: u16) -> Result<UdpSocket, StyxError> {
    let namespace = unshare()?;
    let links = Links::here()?;
    let mut tries = 0;
    while !links.pair("eth0", name, node.as_fd())? {
        tries += 1;
        if tries > 100 {
            return Err(StyxError::NotReady(format!("somebody else has a link {name}")));
        }
        // Another process is trying its path, which takes milliseconds.
        std::thread::sleep(Duration::from_millis(20));
    }
    enter(node)?;
    Links::here()?.set_up(name, Some((near, 31)))?;
    enter(&namespace)?;
    links.set_up("eth0", Some((own, 31)))?;
    links.default_route(near)?;
    let open = || {
        let socket = UdpSocket::bind((own, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok::<_, std::io::Error>(socket)
    };
    open().map_err(StyxError::system("open a socket in a scratch namespace"))
}
