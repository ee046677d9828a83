//! The one table in the node's own namespace; it needs no entry for a sandbox.

use ipnet::Ipv4Net;

use super::text::{CLOSED, chain, set, table};
use super::{Guard, address, sets};
use crate::probe::NEAR as PROBE;

/// What a node's table judges, before anybody's DNAT, so that ports that the host publishes are covered too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    /// The first packet of a connection: such a table must be there before any sandbox is.
    Connections,
    /// Every packet, also of connections that began while the table was missing.
    Packets,
}

impl Judged {
    fn hook(self) -> &'static str {
        match self {
            Self::Connections => "type nat hook prerouting priority -199; policy accept;",
            Self::Packets => "type filter hook prerouting priority -199; policy accept;",
        }
    }
}

/// Where connections are counted when every packet is judged: a flow that nobody answers would be counted by the packet there.
const COUNTED: &str = "type nat hook prerouting priority -198; policy accept;";
/// What is around the number in the rule that counts.
const HELD: (&str, &str) = ("add @held { iif ct count over ", " } counter drop");

/// How long a connection of a sandbox may be silent until the node forgets it, in seconds: 2 hours and 4 minutes, the least that
/// RFC 5382 (REQ-5) asks of a translator. The kernel's own is five days.
const SILENT: u32 = 7440;

/// The node's table. `range` is where sandboxes have their outer addresses, and each may have `connections` at once.
pub(crate) fn node(judged: Judged, range: Ipv4Net, connections: u32, without: Option<Guard>) -> String {
    let unless = |guard: Guard, rule: &str| (without != Some(guard)).then(|| rule.to_owned());
    let (never, range) = (sets::never(&[], range, without), address(&range));
    let rules = |hook: &str, rules: Vec<Option<String>>| -> Vec<String> {
        std::iter::once(hook.to_owned()).chain(rules.into_iter().flatten()).collect()
    };
    let prerouting = rules(judged.hook(), vec![Some("iifname \"tt*\" goto sandboxes".to_owned())]);
    let sandboxes: Vec<String> = [
        // Only what is somewhere else: nothing local, no broadcast.
        unless(Guard::HostLocal, "fib daddr type != unicast counter drop"),
        unless(Guard::ReversePath, "fib saddr . iif oif missing counter drop"),
        // The check of the path stands in for a sandbox, and its world is in the range.
        Some(format!("ip daddr @never iifname != \"{PROBE}\" counter drop")),
        (judged == Judged::Connections).then(|| "goto begun".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let input = rules(
        "type filter hook input priority filter; policy accept;",
        vec![unless(Guard::HostLocal, "iifname \"tt*\" counter drop")],
    );
    let postrouting = rules(
        // Where a connection begins, so that known packets do not pay for it, and after whatever took it to that link.
        "type nat hook postrouting priority srcnat; policy accept;",
        vec![
            unless(Guard::Neighbours, "iifname \"tt*\" oifname \"tt*\" counter drop"),
            Some(format!("ip saddr {range} oifname != \"tt*\" masquerade")),
        ],
    );
    let counted = match judged {
        Judged::Connections => Vec::new(),
        Judged::Packets => vec![chain("counted", &[COUNTED.to_owned(), "iifname \"tt*\" goto begun".to_owned()])],
    };
    let sets = [
        brief(),
        set("never", &["type ipv4_addr", "flags interval"], &never),
        // By a number that no other link gets.
        set("held", &["type iface_index", "size 65535", "flags dynamic"], &[]),
    ];
    let chains = [
        chain("prerouting", &prerouting),
        chain("sandboxes", &sandboxes),
        chain("begun", &begun(connections, without)),
        chain("input", &input),
        chain("postrouting", &postrouting),
    ];
    table("ip", &[&sets[..], &chains, &counted].concat())
}

/// How long the node remembers connections of sandboxes. One that was reset is over at once: its end is not counted any more, and a
/// server's answer to another beginning could bring it to life again.
fn brief() -> String {
    let policy = format!("policy = {{ established : {SILENT}, time_wait : {CLOSED}, close : 0 }}");
    format!("\tct timeout brief {{\n\t\tprotocol tcp\n\t\tl3proto ip\n\t\t{policy}\n\t}}\n")
}

/// What is asked of the first packet of a connection, once it is known to be let through.
fn begun(connections: u32, without: Option<Guard>) -> Vec<String> {
    // A guest may bring its own namespace to forget what the node still has, and an update cuts what stays here for a while.
    let count = format!("{}{}{}", HELD.0, connections.saturating_mul(2), HELD.1);
    let mut rules = if without == Some(Guard::Held) { Vec::new() } else { vec![count] };
    rules.push("meta l4proto 6 ct timeout set \"brief\"".to_owned());
    rules
}

/// The most connections at once that a table, as it is listed, was made for.
pub(crate) fn connections_in(listed: &str) -> Option<u32> {
    // Before 1.0 nft put two spaces after the number.
    let count = listed.lines().find_map(|line| line.trim().strip_prefix(HELD.0)?.strip_suffix(HELD.1));
    Some(count?.trim().parse::<u32>().ok()? / 2)
}

/// Lets more connections be at once than the table in force does, and forgets none of those that it counted.
pub(crate) fn node_more(connections: u32, without: Option<Guard>) -> String {
    let begun = table("ip", &[chain("begun", &begun(connections, without))]);
    format!("flush chain ip tartarus begun\n{begun}")
}

/// Puts `table` of [`node`] in the place of one that is there, in one transaction.
pub(crate) fn node_batch(table: &str) -> String {
    format!("add table ip tartarus\ndelete table ip tartarus\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_there_from_the_beginning_trusts_connections() {
        let range = "198.18.0.0/16".parse().unwrap();
        let [trusts, judges] = [Judged::Connections, Judged::Packets].map(|judged| node(judged, range, 9, None));
        let hooks = [Judged::Connections, Judged::Packets].map(Judged::hook);
        let counts = |table: &str| table.matches("goto begun").count();
        assert_eq!(hooks.map(|hook| (trusts.matches(hook).count(), judges.matches(hook).count())), [(1, 0), (0, 1)]);
        assert_eq!(
            (counts(&trusts), counts(&judges), judges.matches(COUNTED).count()),
            (1, 1, 1),
            "each is counted once"
        );
        let rules =
            |table: &str| table.lines().filter(|line| line.contains(" drop")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rules(&trusts), rules(&judges));
    }

    #[test]
    fn what_it_was_made_for_is_read_back() {
        let range = "198.18.0.0/16".parse().unwrap();
        let made_for = |connections| connections_in(&node(Judged::Connections, range, connections, None));
        assert_eq!([1, 1024, 65_536].map(made_for), [1, 1024, 65_536].map(Some));
        assert_eq!(connections_in(&node(Judged::Connections, range, 9, Some(Guard::Held))), None);
        assert_eq!(
            connections_in("  add @held { iif ct count over 18  } counter drop"),
            Some(9),
            "as nft lists it before 1.0"
        );
    }

    #[test]
    fn a_rule_is_left_out_alone() {
        let range = "198.18.0.0/16".parse().unwrap();
        let whole = node(Judged::Connections, range, 9, None);
        for guard in [Guard::ReversePath, Guard::Neighbours, Guard::HostLocal, Guard::Held] {
            let less = node(Judged::Connections, range, 9, Some(guard));
            assert!(less.len() < whole.len(), "{guard}");
            assert!(less.lines().count() >= whole.lines().count() - 2, "{guard}");
        }
    }
}
