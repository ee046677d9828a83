//! What is in the sets: merged and in order, since the kernel refuses what overlaps.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::{Ipv4Net, Ipv4Subnets};
use rangemap::RangeInclusiveSet;
use tartarus_types::Contract;
use tartarus_types::net::{self, NetMode, PortRule, Protocol};

use super::{Guard, Site};
use crate::nft::difference;

/// Networks between sandboxes and their node; one of [`net::NEVER`], with a rule of its own in the attack suite.
const BETWEEN: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);

/// Sets that an update empties.
pub(super) const EMPTIED: [&str; 2] = ["blocked", "blocked_other"];

/// The set of a contract's generation. Each has sets of its own: the kernel shows what changed in a set a moment after the
/// rules of the same transaction, so that rules of one contract would meet what another one lists.
pub(super) fn name(name: &str, generation: u32) -> String {
    format!("{name}_{generation}")
}

/// The sets in a ruleset's text, from their first line to their last, by name.
fn blocks(ruleset: &str) -> impl Iterator<Item = (&str, &str)> {
    ruleset.split_inclusive("\t}\n").filter_map(|block| {
        let at = block.find("\tset ")?;
        let name = block[at..].strip_prefix("\tset ")?.split_whitespace().next()?;
        Some((name, &block[at..]))
    })
}

/// Sets of `ruleset` that are not in the one `before`: filled, and of no effect until a rule names them.
pub(super) fn ahead(before: &str, ruleset: &str) -> String {
    let new = |name: &str| blocks(before).all(|(other, _)| other != name);
    blocks(ruleset).filter(|(name, _)| new(name)).map(|(_, block)| block).collect()
}

/// Whether a set of one name is another one in `ruleset` than in the one `before`.
pub(super) fn differ(before: &str, ruleset: &str) -> bool {
    blocks(ruleset)
        .any(|(name, set)| blocks(before).any(|(other, old)| other == name && difference(old, set).is_some()))
}

/// Removes the sets of the ruleset `before` that are not in `ruleset`.
pub(super) fn left(before: &str, ruleset: &str) -> String {
    let old = |name: &str| blocks(ruleset).all(|(other, _)| other != name);
    let old = blocks(before).filter(|(name, _)| old(name));
    old.map(|(name, _)| format!("delete set ip tartarus {name}\n")).collect()
}

/// One network as nft lists it.
pub(crate) fn address(net: &Ipv4Net) -> String {
    if net.prefix_len() == 32 { net.addr().to_string() } else { net.to_string() }
}

/// Networks merged and in order.
fn networks(mut nets: Vec<Ipv4Net>) -> Vec<String> {
    nets = Ipv4Net::aggregate(&nets);
    nets.sort();
    nets.iter().map(address).collect()
}

/// What no sandbox reaches: constants, the node's addresses, and where sandboxes have theirs.
pub(super) fn never(hosts: &[Ipv4Addr], range: Ipv4Net, without: Option<Guard>) -> Vec<String> {
    networks(never_nets(hosts, range, without))
}

fn never_nets(hosts: &[Ipv4Addr], range: Ipv4Net, without: Option<Guard>) -> Vec<Ipv4Net> {
    let stays = |net: &Ipv4Net| match without {
        Some(Guard::Never) => *net == BETWEEN,
        Some(Guard::Neighbours) => *net != BETWEEN,
        _ => true,
    };
    let mut nets: Vec<Ipv4Net> = net::never().iter().map(|(net, _)| *net).filter(stays).collect();
    if without != Some(Guard::HostLocal) {
        nets.extend(hosts.iter().map(|host| Ipv4Net::from(*host)));
    }
    nets.extend(Some(range).filter(|_| without != Some(Guard::Neighbours)));
    nets
}

/// What is private.
pub(super) fn private() -> Vec<String> {
    networks(net::private().to_vec())
}

/// What is reached because a listed network has it. A private address takes a listed network that is private as a whole; none that
/// is never reached is among them.
pub(super) fn reachable(contract: &Contract, site: &Site) -> Vec<String> {
    let mut reached = RangeInclusiveSet::new();
    if contract.mode == NetMode::Allow {
        reached.extend(contract.public_cidrs().map(whole));
    }
    if site.without != Some(Guard::Private) {
        net::private().iter().for_each(|net| reached.remove(whole(*net)));
    }
    if contract.mode != NetMode::None {
        reached.extend(contract.private_cidrs().map(whole));
    }
    let never = never_nets(&site.host_addresses, site.range, site.without);
    never.into_iter().for_each(|net| reached.remove(whole(net)));
    reached.iter().map(range).collect()
}

/// Addresses from the first to the last.
fn whole(net: Ipv4Net) -> RangeInclusive<u32> {
    net.network().into()..=net.broadcast().into()
}

/// One range as nft lists it.
fn range(range: &RangeInclusive<u32>) -> String {
    let (first, last) = (Ipv4Addr::from(*range.start()), Ipv4Addr::from(*range.end()));
    let mut nets = Ipv4Subnets::new(first, last, 0);
    match (nets.next(), nets.next()) {
        (Some(net), None) => address(&net),
        _ => format!("{first}-{last}"),
    }
}

/// The type of a set of these ports. Without ranges it is a hash; one of intervals is slower to ask.
pub(super) fn ports_type(rules: &[PortRule]) -> &'static [&'static str] {
    let all = &["type inet_proto . inet_service", "flags interval"];
    if rules.iter().all(|rule| rule.first == rule.last) { &all[..1] } else { all }
}

/// Listed ports, which a contract has merged and in order. By number: names depend on files of the host.
pub(super) fn ports(rules: &[PortRule]) -> Vec<String> {
    let element = |PortRule { protocol, first, last }: &PortRule| {
        let number = match protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        if first == last { format!("{number} . {first}") } else { format!("{number} . {first}-{last}") }
    };
    rules.iter().map(element).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::subsequence;
    use tartarus_types::net::Judgement;

    use super::*;

    fn ports_of(texts: &[&str]) -> Vec<String> {
        ports(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn sets_of_one_ruleset_alone_are_found() {
        let of = |names: &[&str]| {
            let sets: Vec<String> =
                names.iter().map(|name| super::super::text::set(name, &["type ipv4_addr"], &[])).collect();
            super::super::text::table("ip", &sets)
        };
        let (before, after) = (of(&["never_1", "pinned"]), of(&["never_2", "pinned"]));
        assert_eq!(ahead(&before, &after), "\tset never_2 {\n\t\ttype ipv4_addr\n\t}\n");
        assert_eq!(left(&before, &after), "delete set ip tartarus never_1\n");
        assert_eq!((ahead(&after, &after), left(&after, &after)), (String::new(), String::new()));
        let other = after.replace("never_2 {\n\t\ttype ipv4_addr", "never_2 {\n\t\ttype ipv4_addr\n\t\tflags interval");
        assert_ne!(after, other);
        assert_eq!([differ(&before, &other), differ(&after, &other), differ(&after, &after)], [false, true, false]);
    }

    #[test]
    fn ports_are_numbers() {
        assert_eq!(ports_of(&["80-101", "443", "53/udp"]), ["6 . 80-101", "6 . 443", "17 . 53"]);
    }

    #[test]
    fn ports_are_intervals_where_one_is() {
        let lines =
            |texts: &[&str]| ports_type(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>()).len();
        assert_eq!([lines(&[]), lines(&["443", "53/udp"]), lines(&["443", "80-101"])], [1, 1, 2]);
    }

    #[test]
    fn what_is_between_is_never_reached() {
        assert!(net::never().iter().any(|(net, _)| *net == BETWEEN));
    }

    fn site(without: Option<Guard>) -> Site {
        let host = "8.8.8.8".parse().unwrap();
        let (outer, range) = (Ipv4Addr::new(198, 18, 0, 1), "198.18.0.0/16".parse().unwrap());
        Site { outer, range, host_addresses: vec![host], door: crate::Door::Program, without }
    }

    fn reached(mode: NetMode, cidrs: &[&str], without: Option<Guard>) -> Vec<String> {
        let cidrs = cidrs.iter().map(|text| text.parse().unwrap()).collect();
        reachable(&Contract { mode, cidrs, ..Contract::default() }, &site(without))
    }

    #[test]
    fn a_listed_network_is_private_only_when_it_lies_within_one() {
        let reached = |mode| reached(mode, &["9.0.0.0/7", "10.1.0.0/16", "192.0.2.7/32", "169.254.0.0/16"], None);
        assert_eq!(reached(NetMode::Allow), ["8.0.0.0-8.8.8.7", "8.8.8.9-9.255.255.255", "10.1.0.0/16", "192.0.2.7"]);
        assert_eq!(reached(NetMode::Open), ["10.1.0.0/16"]);
        assert!(reached(NetMode::None).is_empty());
    }

    #[test]
    fn a_guard_that_is_left_out_takes_nothing_away() {
        let reached = |without| reached(NetMode::Allow, &["0.0.0.0/0"], without);
        let has = |all: &[String], end: &str| all.iter().any(|range| range.ends_with(end));
        assert!(has(&reached(None), "-9.255.255.255") && !has(&reached(Some(Guard::Private)), "-9.255.255.255"));
        assert!(has(&reached(None), "-8.8.8.7") && !has(&reached(Some(Guard::HostLocal)), "-8.8.8.7"));
    }

    fn constants() -> Vec<Ipv4Net> {
        net::private().iter().copied().chain(net::never().iter().map(|(net, _)| *net)).collect()
    }

    proptest! {
        #[test]
        fn what_is_reached_is_what_is_judged_so(
            anywhere in vec((any::<u32>(), 0..=32_u8), 0..6), known in subsequence(constants(), 0..4),
            near in any::<Option<u32>>(), open in any::<bool>(),
        ) {
            let mode = if open { NetMode::Open } else { NetMode::Allow };
            let anywhere = anywhere.into_iter().map(|(at, length)| Ipv4Net::new(at.into(), length).unwrap().trunc());
            let cidrs: Vec<Ipv4Net> = anywhere.chain(known).collect();
            let contract = Contract { mode, cidrs: cidrs.clone(), ..Contract::default() };
            let site = site(None);
            let host = Ipv4Net::from(site.host_addresses[0]);
            let said = reachable(&contract, &site);
            let within = |at: Ipv4Addr| said.iter().any(|text| match text.split_once('-') {
                Some((first, last)) => (first.parse::<Ipv4Addr>().unwrap()..=last.parse().unwrap()).contains(&at),
                None => text.parse::<Ipv4Net>().map_or_else(|_| *text == at.to_string(), |net| net.contains(&at)),
            });
            let ends = |net: Ipv4Net| [net.network(), net.broadcast()].map(u32::from);
            let all = cidrs.into_iter().chain(constants()).chain([host]).flat_map(ends);
            for at in all.flat_map(|end| [end.wrapping_sub(1), end, end.wrapping_add(1)]).chain(near) {
                let at = Ipv4Addr::from(at);
                let private = net::private().iter().any(|net| net.contains(&at));
                let listed = contract.judge(at, None, false) == Judgement::Allowed && (private || !open);
                // The range of this site lies within what is never reached, as the contract has it.
                prop_assert_eq!(within(at), listed && !host.contains(&at), "{} of {:?}", at, said);
            }
        }
    }

    #[test]
    fn the_nodes_addresses_are_never_reached() {
        let hosts = ["10.0.0.5".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        assert!(never(&hosts, BETWEEN, None).contains(&"10.0.0.5".to_owned()));
        assert!(!never(&hosts, BETWEEN, Some(Guard::HostLocal)).contains(&"10.0.0.5".to_owned()));
        assert_eq!(never(&[], BETWEEN, Some(Guard::Never)), ["198.18.0.0/15"]);
    }
}
