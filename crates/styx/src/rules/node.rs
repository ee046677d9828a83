//! The one table in the node's own namespace; it needs no entry for a sandbox.

use ipnet::Ipv4Net;

use super::text::{chain, set, table};
use super::{Guard, address, sets};
use crate::probe::NEAR as PROBE;

/// Where the first packet of a connection is judged, and where every packet is. Before anybody's DNAT, so that ports that the host
/// publishes are covered too.
const FIRST: &str = "type nat hook prerouting priority -199; policy accept;";
const EVERY: &str = "type filter hook prerouting priority -199; policy accept;";

/// The node's table. `range` is where sandboxes have their outer addresses. A connection is judged when it begins: this table must be there before any sandbox is, and
/// [`node_anew`] is in its place where it was not.
pub(crate) fn node(range: Ipv4Net, without: Option<Guard>) -> String {
    whole(range, without, FIRST)
}

/// The node's table after a time in which it was missing: every packet is judged, also of connections that began then.
pub(crate) fn node_anew(range: Ipv4Net, without: Option<Guard>) -> String {
    whole(range, without, EVERY)
}

fn whole(range: Ipv4Net, without: Option<Guard>, judged: &str) -> String {
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
            set("never", &["type ipv4_addr", "flags interval"], &never),
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
        let (trusts, judges) = (node(range, None), node_anew(range, None));
        assert_eq!(trusts.matches(FIRST).count(), 1);
        assert_eq!(trusts.replace(FIRST, EVERY), judges);
    }

    #[test]
    fn a_rule_is_left_out_alone() {
        let range = "198.18.0.0/16".parse().unwrap();
        let whole = node(range, None);
        for guard in [Guard::ReversePath, Guard::Neighbours, Guard::HostLocal] {
            let less = node(range, Some(guard));
            assert!(less.len() < whole.len(), "{guard}");
            assert!(less.lines().count() >= whole.lines().count() - 2, "{guard}");
        }
    }
}
