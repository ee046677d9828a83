//! The one table in the node's own namespace; it needs no entry for a sandbox.

use ipnet::Ipv4Net;

use super::text::{CLOSED, chain, set, table};
use super::{Guard, address, sets};
use crate::probe::NEAR as PROBE;

/// Where the first packet of a connection is judged, and where every packet is. Before anybody's DNAT, so that ports that the host
/// publishes are covered too.
const FIRST: &str = "type nat hook prerouting priority -199; policy accept;";
const EVERY: &str = "type filter hook prerouting priority -199; policy accept;";

/// How long a connection of a sandbox may be silent until the node forgets it, in seconds: 2 hours and 4 minutes, the least that
/// RFC 5382 (REQ-5) asks of a translator. The kernel's own is five days.
const SILENT: u32 = 7440;

/// The node's table. `range` is where sandboxes have their outer addresses, and each may have `connections` at once. A connection
/// is judged when it begins: this table must be there before any sandbox is, and [`node_anew`] is in its place where it was not.
pub(crate) fn node(range: Ipv4Net, connections: u32, without: Option<Guard>) -> String {
    whole(range, connections, without, FIRST)
}

/// The node's table after a time in which it was missing: every packet is judged, also of connections that began then.
pub(crate) fn node_anew(range: Ipv4Net, connections: u32, without: Option<Guard>) -> String {
    whole(range, connections, without, EVERY)
}

fn whole(range: Ipv4Net, connections: u32, without: Option<Guard>, judged: &str) -> String {
    let unless = |guard: Guard, rule: &str| (without != Some(guard)).then(|| rule.to_owned());
    let (never, range) = (sets::never(&[], range, without), address(&range));
    let rules = |hook: &str, rules: Vec<Option<String>>| -> Vec<String> {
        std::iter::once(hook.to_owned()).chain(rules.into_iter().flatten()).collect()
    };
    let prerouting = rules(judged, vec![Some("iifname \"tt*\" goto sandboxes".to_owned())]);
    let sandboxes: Vec<String> = [
        // Only what is somewhere else: nothing local, no broadcast.
        unless(Guard::HostLocal, "fib daddr type != unicast counter drop"),
        unless(Guard::ReversePath, "fib saddr . iif oif missing counter drop"),
        // The check of the path stands in for a sandbox, and its world is in the range.
        Some(format!("ip daddr @never iifname != \"{PROBE}\" counter drop")),
        // A guest may bring its own namespace to forget what the node still has, and an update cuts what stays here for a while.
        unless(
            Guard::Held,
            &format!("ct state new add @held {{ iif ct count over {} }} counter drop", 2 * connections),
        ),
        Some("meta l4proto 6 ct timeout set \"brief\"".to_owned()),
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
    table(
        "ip",
        &[
            format!(
                "\tct timeout brief {{\n\t\tprotocol tcp\n\t\tl3proto ip\n\t\tpolicy = {{ established : {SILENT}, time_wait : {CLOSED} }}\n\t}}\n"
            ),
            set("never", &["type ipv4_addr", "flags interval"], &never),
            // By a number that no other link gets.
            set("held", &["type iface_index", "size 65535", "flags dynamic"], &[]),
            chain("prerouting", &prerouting),
            chain("sandboxes", &sandboxes),
            chain("input", &input),
            chain("postrouting", &postrouting),
        ],
    )
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
        let (trusts, judges) = (node(range, 9, None), node_anew(range, 9, None));
        assert_eq!(trusts.matches(FIRST).count(), 1);
        assert_eq!(trusts.replace(FIRST, EVERY), judges);
    }

    #[test]
    fn a_rule_is_left_out_alone() {
        let range = "198.18.0.0/16".parse().unwrap();
        let whole = node(range, 9, None);
        for guard in [Guard::ReversePath, Guard::Neighbours, Guard::HostLocal, Guard::Held] {
            let less = node(range, 9, Some(guard));
            assert!(less.len() < whole.len(), "{guard}");
            assert!(less.lines().count() >= whole.lines().count() - 2, "{guard}");
        }
    }
}
