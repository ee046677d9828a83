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

use tartarus_types::Contract;

pub use guard::Guard;
pub use node::{node, node_anew, node_batch};
pub(crate) use sets::address;

/// What a ruleset depends on beside the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The address of the namespace's `eth0`, which the guest has outside.
    pub outer: Ipv4Addr,
    /// The node's own addresses.
    pub host_addresses: Vec<Ipv4Addr>,
    /// The one rule that is left out; only a test of the rules leaves one out.
    pub without: Option<Guard>,
}

/// The whole ruleset of a sandbox's namespace.
pub fn ruleset(contract: &Contract, generation: u32, site: &Site) -> String {
    contract::ruleset(contract, generation, site)
}

/// The ruleset of a namespace that waits: nothing passes.
pub fn dormant() -> String {
    contract::dormant()
}

/// Replaces whatever is there by `ruleset`, in one transaction. Connections that were let through before are judged anew,
/// as their marks stay; packets that pass just now may be lost.
pub fn replace(ruleset: &str, pins: &str) -> String {
    format!("flush ruleset\n{ruleset}{pins}")
}

/// Puts the sets of `ruleset` beside those of the one `before`, which nothing asks yet: [`update`] follows. None where there
/// are none to put. Rules and what they ask change in one step only where the sets are there by then.
pub fn prepare(before: &str, ruleset: &str) -> Option<String> {
    let sets = sets::ahead(before, ruleset);
    (!sets.is_empty()).then(|| format!("table ip tartarus {{\n{sets}}}\n"))
}

/// Removes the sets of `before` that `ruleset` does not ask any more, at the end of an [`update`].
pub fn leave(before: &str, ruleset: &str) -> String {
    sets::left(before, ruleset)
}

/// Puts `ruleset` in the place of another one of [`ruleset`], in one transaction and without a moment in which neither
/// holds: chains stay hooked, and only what is in them changes. Counters begin anew, addresses that are pinned stay where
/// `keep_pins`.
pub fn update(ruleset: &str, pins: &str, keep_pins: bool) -> String {
    let mut batch = String::from("flush table netdev tartarus\nflush table ip tartarus\n");
    for name in contract::NETDEV_COUNTERS {
        batch += &format!("delete counter netdev tartarus {name}\n");
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
pub fn pins(addresses: &[(Ipv4Addr, u64)], renewed: bool) -> String {
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
        let text = update("RULES", "", true);
        assert!(
            !text.contains("delete table")
                && !text.contains("flush ruleset")
                && !text.contains("set ip tartarus pinned")
        );
        assert!(text.ends_with("RULES"));
        assert!(update("RULES", "", false).contains("flush set ip tartarus pinned\n"));
    }
}
