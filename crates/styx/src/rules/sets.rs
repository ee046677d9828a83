//! What is in the sets: merged and in order, since the kernel refuses what overlaps.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tartarus_types::net::{NEVER, PRIVATE, PortRule, Protocol};
use tartarus_types::{Contract, NetMode};

use super::Guard;

/// Networks between sandboxes and their node; one of [`NEVER`], with a rule of its own in the attack suite.
const BETWEEN: &str = "198.18.0.0/15";

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

/// Constants that are networks.
fn constant<'a>(texts: impl Iterator<Item = &'a str>) -> impl Iterator<Item = Ipv4Net> {
    texts.filter_map(|text| text.parse().ok())
}

/// What no sandbox reaches: constants, the node's addresses, and where sandboxes have theirs.
pub(super) fn never(hosts: &[Ipv4Addr], range: Option<Ipv4Net>, without: Option<Guard>) -> Vec<String> {
    let mut nets: Vec<Ipv4Net> = constant(NEVER.iter().map(|(net, _)| *net).filter(|net| match without {
        Some(Guard::Never) => *net == BETWEEN,
        Some(Guard::Neighbours) => *net != BETWEEN,
        _ => true,
    }))
    .collect();
    if without != Some(Guard::HostLocal) {
        nets.extend(hosts.iter().map(|host| Ipv4Net::from(*host)));
    }
    nets.extend(range.filter(|_| without != Some(Guard::Neighbours)));
    networks(nets)
}

/// What is private.
pub(super) fn private() -> Vec<String> {
    networks(constant(PRIVATE.iter().copied()).collect())
}

/// Listed networks: those within a private one, and the others.
pub(super) fn listed(contract: &Contract) -> (Vec<String>, Vec<String>) {
    let private: Vec<Ipv4Net> = constant(PRIVATE.iter().copied()).collect();
    let (within, others) = contract.cidrs.iter().partition(|net| private.iter().any(|outer| outer.contains(*net)));
    (networks(within), networks(others))
}

/// Listed ports, of each protocol merged and in order. By number: names depend on files of the host.
pub(super) fn ports(rules: &[PortRule]) -> Vec<String> {
    let mut elements = Vec::new();
    for (protocol, number) in [(Protocol::Tcp, 6), (Protocol::Udp, 17)] {
        let mut ranges: Vec<(u16, u16)> =
            rules.iter().filter(|rule| rule.protocol == protocol).map(|rule| (rule.first, rule.last)).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        elements.extend(merged.iter().map(|(first, last)| match first == last {
            true => format!("{number} . {first}"),
            false => format!("{number} . {first}-{last}"),
        }));
    }
    elements
}

/// Whether every public destination is reached on the listed ports.
pub(super) fn everywhere_on_ports(contract: &Contract) -> bool {
    let lists_none = contract.cidrs.is_empty() && contract.domains.is_empty();
    contract.mode == NetMode::Allow && lists_none && !contract.ports.is_empty()
}

#[cfg(test)]
mod tests {
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
    }

    #[test]
    fn ports_are_merged_within_their_protocol() {
        assert_eq!(ports_of(&["443", "80-90", "85-100", "101", "53/udp"]), ["6 . 80-101", "6 . 443", "17 . 53"]);
        assert_eq!(ports_of(&["1-65535", "65535"]), ["6 . 1-65535"]);
    }

    #[test]
    fn every_constant_is_a_network() {
        assert_eq!(constant(NEVER.iter().map(|(net, _)| *net)).count(), NEVER.len());
        assert_eq!(constant(PRIVATE.iter().copied()).count(), PRIVATE.len());
        assert!(NEVER.iter().any(|(net, _)| *net == BETWEEN));
    }

    #[test]
    fn a_listed_network_is_private_only_when_it_lies_within_one() {
        let cidrs = ["9.0.0.0/7", "10.1.0.0/16", "192.0.2.7/32"].map(|text| text.parse().unwrap()).to_vec();
        let (within, others) = listed(&Contract { cidrs, ..Contract::default() });
        assert_eq!(within, ["10.1.0.0/16"]);
        assert_eq!(others, ["8.0.0.0/7", "192.0.2.7"]);
    }

    #[test]
    fn the_nodes_addresses_are_never_reached() {
        let hosts = ["10.0.0.5".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        assert!(never(&hosts, None, None).contains(&"10.0.0.5".to_owned()));
        assert!(!never(&hosts, None, Some(Guard::HostLocal)).contains(&"10.0.0.5".to_owned()));
        assert_eq!(never(&[], None, Some(Guard::Never)), [BETWEEN]);
    }
}
