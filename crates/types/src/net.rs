//! What a sandbox may reach: its network contract, and the pure judgement of one packet's destination.
//!
//! The order of judgement is the documented one, and decides between rules that contradict each other:
//!
//! 1. what no sandbox ever reaches ([`NEVER`]: metadata services, multicast, other sandboxes; and the node itself, whose
//!    addresses only its rules know);
//! 2. private destinations ([`PRIVATE`]) are reached only by a listed CIDR that lies within the private range, on listed
//!    ports (all, when none is listed), neither by a wider CIDR nor by a name;
//! 3. listed CIDRs, and addresses that the node's resolver returned for a listed domain, on listed ports (all, when none is
//!    listed);
//! 4. with neither CIDRs nor domains, every public destination on the listed ports (none, when none is listed);
//! 5. `open`: every public destination;
//! 6. nothing.
//!
//! It refuses to know how any of this is enforced.

mod contract;
mod judge;
mod request;
mod rules;
mod status;

pub use contract::{Contract, Forward, MAX_FORWARDS, MAX_RULES, NetCeiling, NetLimits, NetMode};
pub use judge::{Judgement, NEVER, PRIVATE, never, private};
pub use request::{ForwardRequest, LimitsRequest, NetRequest};
pub use rules::{DomainRule, PortRule, Protocol};
pub use status::{Blocked, NetCounter, NetStatus, NetTotals, RefusedName};

/// What is shown of a text that somebody sent: no control characters, a bounded number of others.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}
