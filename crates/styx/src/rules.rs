//! What a contract means in nft's words: the text of a whole ruleset, and the batches that bring it about. Pure.
//!
//! Text is in nft's own canonical form (`nft -s -p list ruleset`), so that what was applied can be compared with what is
//! there. A [`Guard`] names one protective rule; the attack suite leaves out one at a time, and sees that its attempt then
//! succeeds.

mod contract;
mod guard;
mod node;
mod sets;
mod text;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tartarus_types::Contract;

use crate::Door;
pub(crate) use contract::FRAME_COUNTERS;
pub use guard::Guard;
pub(crate) use node::{Judged, connections_in, node, node_batch, node_more};
pub(crate) use sets::address;
pub(crate) use text::burst;

/// The mark of packets that came through a program at the TAP.
pub(crate) const MARK: u32 = 0x5454_0001;

/// The mark of connections that the contract of a generation let through. Never zero, which is that of what nobody did.
pub(crate) fn mark_of(generation: u32) -> u32 {
    generation | 1 << 31
}

/// The generation whose contract let a connection with this mark through, if one did.
pub(crate) fn generation_of(mark: u32) -> Option<u32> {
    (mark >> 31 == 1).then_some(mark & !(1 << 31))
}

/// What a ruleset depends on beside the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    /// The address of the namespace's `eth0`, which the guest has outside.
    pub(crate) outer: Ipv4Addr,
    /// Where sandboxes have theirs, which no other one reaches.
    pub(crate) range: Ipv4Net,
    /// The node's own addresses beside those in the range, which come and go with sandboxes.
    pub(crate) host_addresses: Vec<Ipv4Addr>,
    /// What sees to the guest's frames.
    pub(crate) door: Door,
    /// The one rule that is left out; only a test of the rules leaves one out.
    pub(crate) without: Option<Guard>,
}

/// The whole ruleset of a sandbox's namespace.
pub(crate) fn ruleset(contract: &Contract, generation: u32, site: &Site) -> String {
    contract::ruleset(contract, generation, site)
}

/// The ruleset of a namespace that waits: nothing passes.
pub(crate) fn dormant(door: Door) -> String {
    contract::dormant(door)
}

/// Replaces whatever is there by `ruleset`, in one transaction. Connections that were let through before are judged anew,
/// as their marks stay; packets that pass just now may be lost.
pub(crate) fn replace(ruleset: &str, pins: &str) -> String {
    format!("flush ruleset\n{ruleset}{pins}")
}

/// Puts `ruleset` in force where the [`dormant`] one is, which a chain at a hook stays as: to name it anew would be to change
/// it, and the kernel then waits some 10 ms until no packet can be in what it was.
pub(crate) fn awaken(ruleset: &str, door: Door) -> String {
    let dormant = dormant(door);
    let (mut kept, mut added, mut table) = (String::new(), String::new(), "");
    for block in ruleset.split_inclusive("\n\t}\n") {
        // Before the first block of a table are the end of the one before and its own name.
        let (before, chain) = block.split_at(block.find("\tchain ").unwrap_or(0));
        if let Some(named) = block.lines().find_map(|line| line.strip_prefix("table ")) {
            table = named.trim_end_matches(" {");
        }
        let mut lines = chain.lines();
        let name = lines.next().and_then(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"));
        let hook = lines.next().filter(|hook| dormant.contains(&format!("{hook}\n")));
        let (Some(name), Some(_)) = (name, hook) else {
            kept += block;
            continue;
        };
        kept += before;
        for rule in lines.filter(|line| line.starts_with("\t\t")) {
            added += &format!("add rule {table} {name} {}\n", rule.trim());
        }
    }
    kept + &added
}

/// Puts the sets of `ruleset` beside those of the one `before`, which nothing asks yet: [`update`] follows. None where there
/// are none to put. Rules and what they ask change in one step only where the sets are there by then.
pub(crate) fn prepare(before: &str, ruleset: &str) -> Option<String> {
    let sets = sets::ahead(before, ruleset);
    (!sets.is_empty()).then(|| format!("table ip tartarus {{\n{sets}}}\n"))
}

/// Whether [`update`] would have to change a set of the one `before`, which it cannot in one step with the rules that ask it.
pub(crate) fn sets_differ(before: &str, ruleset: &str) -> bool {
    sets::differ(before, ruleset)
}

/// Removes the sets of `before` that `ruleset` does not ask any more, at the end of an [`update`].
pub(crate) fn leave(before: &str, ruleset: &str) -> String {
    sets::left(before, ruleset)
}

/// Puts `ruleset` in the place of another one of [`ruleset`], in one transaction and without a moment in which neither
/// holds: chains stay hooked, and only what is in them changes. Counters begin anew, addresses that are pinned stay where
/// `keep_pins`.
pub(crate) fn update(ruleset: &str, pins: &str, keep_pins: bool, door: Door) -> String {
    let mut batch = String::from("flush table ip tartarus\n");
    if door == Door::Chain {
        batch += "flush table netdev tartarus\n";
        for name in FRAME_COUNTERS {
            batch += &format!("delete counter netdev tartarus {name}\n");
        }
    }
    for name in contract::COUNTERS {
        batch += &format!("delete counter ip tartarus {name}\n");
    }
    for name in sets::EMPTIED {
        batch += &format!("flush set ip tartarus {name}\n");
    }
    if !keep_pins {
        batch += "flush set ip tartarus pinned\n";
    }
    batch + ruleset + pins
}

/// Pins addresses for so many seconds each. One that is pinned already gets the new time: it is added, so that it is there,
/// removed and added.
pub(crate) fn pins(addresses: &[(Ipv4Addr, u64)], renewed: bool) -> String {
    if addresses.is_empty() {
        return String::new();
    }
    let plain: Vec<String> = addresses.iter().map(|(address, _)| address.to_string()).collect();
    let timed: Vec<String> =
        addresses.iter().map(|(address, seconds)| format!("{address} timeout {}s", (*seconds).max(1))).collect();
    let (plain, timed) = (plain.join(", "), timed.join(", "));
    let add = format!("add element ip tartarus pinned {{ {timed} }}\n");
    if renewed {
        format!("add element ip tartarus pinned {{ {plain} }}\ndelete element ip tartarus pinned {{ {plain} }}\n{add}")
    } else {
        add
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wakes_up_names_no_chain_at_a_hook_anew() {
        let range = "198.18.0.0/16".parse().unwrap();
        let site = Site {
            outer: Ipv4Addr::new(198, 18, 0, 1),
            range,
            host_addresses: vec![],
            door: Door::Chain,
            without: None,
        };
        let whole = ruleset(&Contract::default(), 1, &site);
        let text = awaken(&whole, Door::Chain);
        let hooks = |text: &str| text.matches("policy drop").count();
        assert_eq!((hooks(&whole), hooks(&text)), (4, 0));
        assert!(
            text.contains("add rule ip tartarus forward iif \"tap0\" meta mark 0x54540001 goto outbound\n"),
            "{text}"
        );
        assert_eq!(text.matches("\ntable ").count(), whole.matches("\ntable ").count());
        let rules = |text: &str| text.lines().filter(|line| line.contains("drop") || line.contains("accept")).count();
        assert_eq!(rules(&text) + 4, rules(&whole), "all but the hooks themselves");
    }

    #[test]
    fn a_pin_is_renewed_by_its_removal() {
        let text = pins(&[(Ipv4Addr::new(192, 0, 2, 1), 60), (Ipv4Addr::new(192, 0, 2, 2), 0)], true);
        assert_eq!(
            text,
            "add element ip tartarus pinned { 192.0.2.1, 192.0.2.2 }\n\
             delete element ip tartarus pinned { 192.0.2.1, 192.0.2.2 }\n\
             add element ip tartarus pinned { 192.0.2.1 timeout 60s, 192.0.2.2 timeout 1s }\n"
        );
        assert_eq!(pins(&[], true), "");
    }

    #[test]
    fn an_update_keeps_chains_and_may_keep_pins() {
        let text = update("RULES", "", true, Door::Chain);
        assert!(
            !text.contains("delete table")
                && !text.contains("flush ruleset")
                && !text.contains("set ip tartarus pinned")
        );
        assert!(text.ends_with("RULES"));
        assert!(text.contains("flush table netdev tartarus\n"));
        let text = update("RULES", "", false, Door::Program);
        assert!(text.contains("flush set ip tartarus pinned\n") && !text.contains("netdev"));
    }
}
