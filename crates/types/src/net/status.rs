//! The network of a sandbox that runs, as its node tells it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Contract, Judgement};
use crate::Timestamp;

/// The network of a sandbox that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetStatus {
    /// The contract in force.
    pub contract: Contract,
    /// Packets and bytes, by what became of them; since the contract was last changed.
    pub counters: Vec<NetCounter>,
    /// Destinations that were refused, the newest first; a bounded number of them.
    pub blocked: Vec<Blocked>,
    /// Names that were refused, the newest first; a bounded number of them.
    pub refused_names: Vec<RefusedName>,
    /// How often rules or links were found changed by somebody else, and put back.
    pub mended: u64,
}

/// What became of packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetCounter {
    /// Such as `allowed`, `never`, `private`, `spoofed`.
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A destination that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Blocked {
    /// Its address.
    #[schema(value_type = String)]
    pub to: Ipv4Addr,
    /// `tcp`, `udp`, `icmp`, or the protocol's number.
    pub protocol: String,
    /// Its port, where the protocol has ports.
    pub port: Option<u16>,
    /// Packets.
    pub packets: u64,
    /// When the last one was.
    pub last_at: Timestamp,
    /// Why, by the contract in force.
    pub why: Judgement,
}

/// A name that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedName {
    /// The name.
    pub name: String,
    /// How often.
    pub times: u64,
    /// When it was asked for last.
    pub last_at: Timestamp,
    /// Such as "not listed", "its answer is private".
    pub why: String,
}

/// What became of the packets of all sandboxes of a node since its agent started, also of those that are gone. What passes
/// in the moment in which a contract is exchanged may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetTotals {
    /// Sandboxes that have a network now.
    pub networks: u64,
    /// Packets and bytes, by what became of them; each name once.
    pub counters: Vec<NetCounter>,
    /// How often a name was refused.
    pub refused_names: u64,
    /// How often rules or links were found changed by somebody else, and put back.
    pub mended: u64,
}
