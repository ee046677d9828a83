//! How a namespace comes to be, and how one that is there is found again.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::Mutex;

use super::{Place, Space, State, seen};
use crate::card::Card;
use crate::enter::{Namespace, enter, on_thread, unshare};
use crate::events::{Events, Sockets};
use crate::links::Links;
use crate::{GATEWAY, GUEST, GUEST_MAC, PREFIX, StyxError, nft, rules, tap};

/// Settings of a namespace, in order: the first one resets some of the others. What a kernel has no file for it does not do.
const SETTINGS: [(&str, &str); 15] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    // Rules say what comes from where; a new namespace may have the node's settings.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    // The guest learns of no address but the gateway's.
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/default/arp_ignore", "1"),
    // What the node forgets, so does the namespace; what is over at once does not begin again without being judged.
    ("netfilter/nf_conntrack_tcp_timeout_established", "7440"),
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "10"),
    ("netfilter/nf_conntrack_tcp_timeout_close", "0"),
];

/// Pairs of addresses at the end of the range that no sandbox gets; the check of the path uses them.
pub(crate) const RESERVED: u32 = 2;

/// How many sandboxes a range has addresses for.
pub(crate) fn capacity(range: Ipv4Net) -> u32 {
    let pairs = 1u32 << (32 - u32::from(range.prefix_len())).saturating_sub(1).min(30);
    pairs.saturating_sub(RESERVED)
}

/// Both addresses of a pair: the node's and the namespace's.
pub(crate) fn pair(range: Ipv4Net, index: u32) -> (Ipv4Addr, Ipv4Addr) {
    let near = u32::from(range.network()) + 2 * index;
    (near.into(), (near + 1).into())
}

/// The index of a namespace's address; none of another range.
pub(crate) fn index_of(range: Ipv4Net, outer: Ipv4Addr) -> Option<u32> {
    let index = range.contains(&outer).then(|| (u32::from(outer) - u32::from(range.network())) / 2)?;
    (index < capacity(range) && pair(range, index).1 == outer).then_some(index)
}

/// The node's end of a pair.
pub(crate) fn near_name(index: u32) -> String {
    format!("tt{index}")
}

/// Writes the settings of the namespace of the calling thread.
pub(super) fn settings() -> Result<(), StyxError> {
    for (name, value) in SETTINGS {
        match fs::write(format!("/proc/sys/net/{name}"), value) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(StyxError::system(format!("set net/{name} of a namespace")))?,
        }
    }
    Ok(())
}

/// The first setting that is not as it was written.
pub(super) fn changed_setting() -> Option<String> {
    let changed = |(name, value): &&(&str, &str)| {
        fs::read_to_string(format!("/proc/sys/net/{name}")).is_ok_and(|now| now.trim() != *value)
    };
    SETTINGS.iter().find(changed).map(|(name, _)| format!("net/{name} is not what it was set to"))
}

/// Takes both sides of the namespace of the calling thread up, with their addresses and routes.
pub(super) fn inside(links: &Links, near: Ipv4Addr, outer: Ipv4Addr) -> Result<(), StyxError> {
    let tap = links.set_up("tap0", Some((GATEWAY, PREFIX)))?;
    links.neighbour(tap, GUEST, GUEST_MAC)?;
    links.set_up("eth0", Some((outer, 31)))?;
    links.default_route(near)
}

struct Made {
    namespace: Namespace,
    tap: OwnedFd,
    sockets: Sockets,
    index: u32,
    outer: Ipv4Addr,
    applier: nft::Applier,
    edition: u32,
    card: Option<Card>,
}

/// On a thread of its own, whose namespace it changes.
fn make(place: &Place, next: &AtomicU32) -> Result<Made, StyxError> {
    let namespace = unshare()?;
    let sockets = Sockets::here()?;
    settings()?;
    let tap = tap::make()?;
    // Before any link is up.
    let card = place.door.closed()?;
    let dormant = rules::dormant(place.door);
    nft::run("apply rules", &["-f", "-"], &rules::replace(&dormant, ""))?;
    let edition = nft::edition()?;
    nft::verify_here(&dormant)?;
    let links = Links::here()?;
    let all = capacity(place.range);
    let index = (0..all).find_map(|_| {
        // The kernel's word on whether the name is taken is the lock of the index, also between processes.
        let index = next.fetch_add(1, Ordering::Relaxed) % all;
        match links.pair("eth0", &near_name(index), place.node.as_fd()) {
            Ok(false) => None,
            other => Some(other.map(|_| index)),
        }
    });
    let index = index.ok_or_else(|| StyxError::Full(place.range.to_string()))??;
    let (near, outer) = pair(place.range, index);
    enter(&place.node)?;
    Links::here()?.set_up(&near_name(index), Some((near, 31)))?;
    enter(&namespace)?;
    inside(&links, near, outer)?;
    let applier = nft::Applier::here()?;
    Ok(Made { namespace, tap, sockets, index, outer, applier, edition, card })
}

impl Space {
    /// A fresh one, dormant and verified.
    pub(crate) async fn make(place: Place, next: Arc<AtomicU32>) -> Result<Self, StyxError> {
        let theirs = place.clone();
        let made = on_thread(move || make(&theirs, &next)).await?;
        let Made { namespace, tap, sockets, index, outer, applier, edition, card } = made;
        let events = Events::new(sockets)?;
        events.forget();
        let tap = Some(Arc::new(tap));
        let state = State { applier: Some(applier), edition: Some(edition), card, ..State::dormant(place.door, false) };
        Ok(Self { namespace, tap, index, outer, place, events, state: Arc::new(Mutex::new(state)) })
    }

    /// One that is there. Its rules are taken as they are, until [`Space::apply`] says what they must be.
    pub(crate) async fn adopt(namespace: Namespace, place: Place) -> Result<Self, StyxError> {
        let (theirs, range) = (namespace.clone(), place.range);
        let (sockets, index, outer, ruleset, pins) = on_thread(move || {
            enter(&theirs)?;
            // One of the version before has fewer.
            settings()?;
            let sockets = Sockets::here()?;
            let addresses = Links::here()?.addresses()?;
            let found = addresses.iter().find_map(|(_, net)| Some((index_of(range, net.addr())?, net.addr())));
            let (index, outer) = found.ok_or_else(|| StyxError::Lost("it has no address of the range".to_owned()))?;
            let ruleset = nft::list_here()?;
            let pins = seen::pins(&nft::run("list rules", &["-j", "list", "ruleset"], "")?);
            Ok((sockets, index, outer, ruleset, pins))
        })
        .await?;
        let now = Instant::now();
        let pins: HashMap<_, _> = pins.into_iter().map(|(at, left)| (at, now + Duration::from_secs(left))).collect();
        let state = Arc::new(Mutex::new(State { ruleset, pins, ..State::dormant(place.door, true) }));
        Ok(Self { namespace, tap: None, index, outer, place, events: Events::new(sockets)?, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Door;

    #[test]
    fn an_index_is_found_by_its_address() {
        let range = "198.18.0.0/16".parse().unwrap();
        assert_eq!(capacity(range), 32768 - RESERVED);
        for index in [0, 1, 300, 32765] {
            let (near, outer) = pair(range, index);
            assert_eq!((index_of(range, outer), index_of(range, near)), (Some(index), None));
        }
        assert_eq!(pair(range, 0), (Ipv4Addr::new(198, 18, 0, 0), Ipv4Addr::new(198, 18, 0, 1)));
        assert_eq!(index_of(range, Ipv4Addr::new(198, 18, 255, 255)), None, "reserved");
        assert_eq!(index_of(range, Ipv4Addr::new(10, 0, 0, 1)), None);
    }

    /// Else the slower way is gone, and nobody sees.
    #[test]
    fn a_contract_is_added_to_what_lets_nothing_pass() {
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: a network takes root");
        }
        let alone = || {
            let (node, range) = (unshare().unwrap(), "198.18.0.0/16".parse().unwrap());
            use tartarus_types::NetMode::{Allow, Open};
            for (door, mode) in [(Door::Program, Allow), (Door::Chain, Allow), (Door::Chain, Open)] {
                let place =
                    Place { node: node.clone(), range, connections: 9, door, without: None, cuts: Arc::default() };
                let Made { namespace, tap: _tap, applier, outer, .. } = make(&place, &AtomicU32::new(0)).unwrap();
                let contract = tartarus_types::Contract { mode, ..Default::default() };
                let site = place.site(outer).unwrap();
                let ruleset = rules::ruleset(&contract, 1, &site);
                enter(&namespace).unwrap();
                applier.apply(&rules::awaken(&ruleset, place.door), &ruleset).unwrap();
                enter(&place.node).unwrap();
            }
        };
        std::thread::spawn(alone).join().unwrap();
    }
}
