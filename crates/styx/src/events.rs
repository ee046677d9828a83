//! Notices of the kernel that links, addresses, routes or rules of a namespace changed.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use crate::StyxError;
use crate::netlink::{Malformed, Message, attribute, messages, socket};
use crate::nft::LIVE;

/// Changes come in bunches; this long after the first one they are looked at together.
const SETTLE: Duration = Duration::from_millis(50);
/// Groups of links, IPv4 addresses and IPv4 routes (`RTMGRP_…`).
const ROUTE_GROUPS: u32 = 0x1 | 0x10 | 0x40;
/// The group of nftables, the seventh.
const NFT_GROUPS: u32 = 1 << 6;
/// Kinds of messages: the subsystem of nftables, and which of its own.
const NEW_GENERATION: u16 = 10 << 8 | 15;
const NEW_ELEMENTS: u16 = 10 << 8 | 12;
const OLD_ELEMENTS: u16 = 10 << 8 | 14;
/// A link went: `RTM_DELLINK`.
const OLD_LINK: u16 = 17;

/// What is known of changes that were heard together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Changed {
    /// Some were of rules.
    pub(crate) rules: bool,
    /// A link is gone, or may be: there was more than could be heard. Who only looks afterwards never sees one that came and went.
    pub(crate) link_gone: bool,
}

/// Both sockets, of one namespace.
pub(crate) struct Sockets {
    route: OwnedFd,
    nft: OwnedFd,
}

impl Sockets {
    /// Of the namespace of the calling thread.
    pub(crate) fn here() -> Result<Self, StyxError> {
        let opened = || -> io::Result<Self> {
            let route = socket(libc::NETLINK_ROUTE, ROUTE_GROUPS)?;
            Ok(Self { route, nft: socket(libc::NETLINK_NETFILTER, NFT_GROUPS)? })
        };
        opened().map_err(StyxError::system("watch a network namespace"))
    }
}

/// The same, known to the runtime.
pub(crate) struct Events {
    route: AsyncFd<OwnedFd>,
    nft: AsyncFd<OwnedFd>,
}

impl Events {
    pub(crate) fn new(sockets: Sockets) -> Result<Self, StyxError> {
        // SAFETY: what is registered owns its descriptor, which stays the same and open until it is dropped with the registration.
        let register = |fd| unsafe { AsyncFd::<OwnedFd>::register(fd) };
        let watch = |fd| register(fd).map_err(StyxError::system("watch a network namespace"));
        Ok(Self { route: watch(sockets.route)?, nft: watch(sockets.nft)? })
    }

    /// Waits for the next change, and a little longer for what comes with it. One call at a time hears each.
    pub(crate) async fn changed(&self) -> Result<Changed, StyxError> {
        loop {
            let (heard, rules) = tokio::select! {
                heard = hear(&self.route) => (heard, false),
                heard = hear(&self.nft) => (heard, true),
            };
            let (matters, link_gone) = heard.map_err(StyxError::system("hear of changes of a network namespace"))?;
            if matters {
                tokio::time::sleep(SETTLE).await;
                let more = self.forget();
                return Ok(Changed { rules: rules || more.rules, link_gone: link_gone || more.link_gone });
            }
        }
    }

    /// Drops what was heard so far, but for what it was about.
    pub(crate) fn forget(&self) -> Changed {
        let mut buffer = vec![0; DATAGRAM];
        let mut drained = |socket: &AsyncFd<OwnedFd>| {
            let (mut heard, mut link_gone) = (false, false);
            loop {
                link_gone |= match rustix::io::read(socket.get_ref(), &mut buffer[..]) {
                    Ok(length @ 1..) => tells_of_an_end(&buffer[..length]),
                    // More than it holds was said: there may be more to read.
                    Err(rustix::io::Errno::NOBUFS) => true,
                    _ => return (heard, link_gone),
                };
                heard = true;
            }
        };
        let (_, link_gone) = drained(&self.route);
        Changed { rules: drained(&self.nft).0, link_gone }
    }
}

/// As much as is read at once; the kernel says less.
const DATAGRAM: usize = 32 << 10;

/// Reads one message when there is one, and says whether it matters, and whether it is of the end of a link.
async fn hear(socket: &AsyncFd<OwnedFd>) -> io::Result<(bool, bool)> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
            Err(_) => {}
            // More happened than fits: it is looked at in any case.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok((true, true)),
            Ok(read) => {
                let datagram = &buffer[..read?];
                return Ok((matters(datagram), tells_of_an_end(datagram)));
            }
        }
    }
}

/// Whether a link went. What cannot be read may say so.
fn tells_of_an_end(datagram: &[u8]) -> bool {
    messages(datagram).any(|message| message.map_or(true, |message| message.kind == OLD_LINK))
}

/// Whether a datagram tells of more than elements of a live set. What cannot be read matters.
fn matters(datagram: &[u8]) -> bool {
    messages(datagram).any(|message| match message {
        // NFT_MSG_NEWGEN comes with every transaction.
        Ok(Message { kind: NEW_GENERATION, .. }) => false,
        // NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM.
        Ok(Message { kind: NEW_ELEMENTS | OLD_ELEMENTS, body, .. }) => {
            !set(body).is_some_and(|name| LIVE.iter().any(|live| live.as_bytes() == name))
        }
        Ok(_) | Err(Malformed) => true,
    })
}

/// The name of the set that a message about elements is of (attribute 2, after four bytes of family and version).
fn set(message: &[u8]) -> Option<&[u8]> {
    attribute(message.get(4..)?, 2)?.strip_suffix(b"\0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::message;

    #[test]
    fn only_elements_of_live_sets_do_not_matter() {
        let elements = |set: &[u8]| message(10 << 8 | 12, &[(1, b"tartarus\0"), (2, set), (3, b"more")]);
        assert!(!matters(&[elements(b"pinned\0"), message(10 << 8 | 15, &[])].concat()));
        assert!(matters(&elements(b"never\0")));
        assert!(matters(&elements(b"pinnedx\0")));
        assert!(matters(&[elements(b"pinned\0"), message(10 << 8 | 8, &[])].concat()));
        assert!(matters(&message(16, &[])), "a link");
    }

    #[test]
    fn the_end_of_a_link_is_one() {
        let (begins, ends) = (message(16, &[]), message(17, &[]));
        assert!(tells_of_an_end(&ends) && tells_of_an_end(&[begins.clone(), ends].concat()));
        assert!(!tells_of_an_end(&begins) && !tells_of_an_end(&message(10 << 8 | 12, &[])));
    }

    #[test]
    fn what_is_cut_short_matters() {
        let whole = message(10 << 8 | 12, &[(1, b"tartarus\0"), (2, b"pinned\0")]);
        for length in 16..whole.len() {
            assert!(matters(&whole[..length]) && tells_of_an_end(&whole[..length]), "{length}");
        }
    }
}
