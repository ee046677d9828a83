//! What is in the sets: merged and in order, since the kernel refuses what overlaps.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tartarus_types::Contract;
use tartarus_types::net::{self, PortRule, Protocol};

use super::Guard;

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
    networks(nets)
}

/// What is private.
pub(super) fn private() -> Vec<String> {
    networks(net::private().to_vec())
}

/// Listed networks: those within a private one, and the others.
pub(super) fn listed(contract: &Contract) -> (Vec<String>, Vec<String>) {
    (networks(contract.private_cidrs().collect()), networks(contract.public_cidrs().collect()))
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
    fn ports_are_numbers() {
        assert_eq!(ports_of(&["80-101", "443", "53/udp"]), ["6 . 80-101", "6 . 443", "17 . 53"]);
    }

    #[test]
    fn what_is_between_is_never_reached() {
        assert!(net::never().iter().any(|(net, _)| *net == BETWEEN));
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
        assert!(never(&hosts, BETWEEN, None).contains(&"10.0.0.5".to_owned()));
        assert!(!never(&hosts, BETWEEN, Some(Guard::HostLocal)).contains(&"10.0.0.5".to_owned()));
        assert_eq!(never(&[], BETWEEN, Some(Guard::Never)), ["198.18.0.0/15"]);
    }
}
