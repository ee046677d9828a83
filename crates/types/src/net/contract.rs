//! The contract itself, as it is stored and handed to a node, and what an operator lets it ask for at most.

use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::judge::is_private;
use super::{DomainRule, PortRule};
use crate::Refusal;

/// Most entries of each list of a contract.
pub const MAX_RULES: usize = 1024;
/// Most forwards of a contract.
pub const MAX_FORWARDS: usize = 64;

/// Whether a sandbox has a network, and how wide it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetMode {
    /// None: its card has no peer.
    #[default]
    None,
    /// What is listed.
    Allow,
    /// Every public destination.
    Open,
}

impl NetMode {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Allow => "allow",
            Self::Open => "open",
        }
    }
}

impl std::fmt::Display for NetMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a sandbox may reach, and who reaches it. Checked and in order: equal contracts are equal values. It is made by
/// [`super::NetRequest::check`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Contract {
    /// How wide.
    pub mode: NetMode,
    /// Networks that it may reach; sorted, none within another, but that private ones stay beside a wider one that does
    /// not reach them.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub cidrs: Vec<Ipv4Net>,
    /// Ports that it may reach; every port and ICMP echo of what is listed when empty. Sorted, none next to another.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub ports: Vec<PortRule>,
    /// Names whose addresses it may reach; sorted.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub domains: Vec<DomainRule>,
    /// How much.
    #[serde(default)]
    pub limits: NetLimits,
    /// Ports of the node that lead to ports of the guest; sorted.
    #[serde(default)]
    pub forwards: Vec<Forward>,
}

/// How much a sandbox may send and receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NetLimits {
    /// Megabits in a second, in each direction.
    pub mbit: u32,
    /// Packets in a second, in each direction.
    pub packets: u32,
    /// Connections at once. A tenth as many may begin in a second, but 10 always; as many as these in one go, but 100 always.
    pub connections: u32,
}

impl NetLimits {
    /// The most that a contract can say.
    pub const MOST: Self = Self { mbit: 100_000, packets: 10_000_000, connections: 65_536 };
    /// The least.
    pub const LEAST: Self = Self { mbit: 1, packets: 10, connections: 1 };

    /// Names, values and units, in the order of the fields.
    pub(super) fn each(self) -> [(&'static str, u32, &'static str); 3] {
        [
            ("mbit", self.mbit, " Mbit/s"),
            ("packets", self.packets, " packets/s"),
            ("connections", self.connections, " connections"),
        ]
    }
}

impl Default for NetLimits {
    fn default() -> Self {
        Self { mbit: 1000, packets: 100_000, connections: 1024 }
    }
}

/// A port of the node that leads to a TCP port of the guest's loopback, also for a sandbox without a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct Forward {
    /// Where the node listens; it chooses a port when this one is 0.
    #[schema(value_type = String)]
    pub listen: SocketAddr,
    /// The guest's port.
    pub port: u16,
}

impl Forward {
    /// Others than this machine reach it.
    pub(super) fn is_public(&self) -> bool {
        !match self.listen.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
        }
    }
}

/// The most that an operator lets a contract ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetCeiling {
    /// How wide.
    pub mode: NetMode,
    /// Forwards may listen beyond loopback.
    pub public_ports: bool,
    /// How much. The node's table of connections is one for all its sandboxes.
    pub limits: NetLimits,
}

impl Contract {
    /// There is anything to say of it: a network, or a way in.
    pub fn is_some(&self) -> bool {
        self.mode != NetMode::None || !self.forwards.is_empty()
    }

    /// Listed networks outside of the private ranges; none overlaps another.
    pub fn public_cidrs(&self) -> impl Iterator<Item = Ipv4Net> {
        self.cidrs.iter().copied().filter(|cidr| !is_private(*cidr))
    }

    /// Listed networks within the private ranges; none overlaps another.
    pub fn private_cidrs(&self) -> impl Iterator<Item = Ipv4Net> {
        self.cidrs.iter().copied().filter(|cidr| is_private(*cidr))
    }

    /// Whether the operator lets anybody have it.
    ///
    /// # Errors
    /// Names `mode`, the limit or the forward that is too much, and the option that would allow it.
    pub fn check_ceiling(&self, most: NetCeiling) -> Result<(), Refusal> {
        if self.mode > most.mode {
            let (mode, most) = (self.mode, most.mode);
            let detail =
                format!("{mode} is more than this server gives, which is {most}: start it with `up --net {mode}`");
            return Err(Refusal::field("mode", detail));
        }
        for ((name, asked, unit), (_, most, _)) in self.limits.each().into_iter().zip(most.limits.each()) {
            // Without a network they say nothing.
            if self.mode != NetMode::None && asked > most {
                let detail = format!(
                    "{asked}{unit} are more than this server gives, {most}: start it with `up --net-most-{name} {asked}`"
                );
                return Err(Refusal::field(&format!("limits.{name}"), detail));
            }
        }
        match self.forwards.iter().position(|forward| forward.is_public() && !most.public_ports) {
            None => Ok(()),
            Some(at) => Err(beyond(at, self.forwards[at].listen)),
        }
    }
}

pub(super) fn beyond(at: usize, listen: SocketAddr) -> Refusal {
    let detail = format!(
        "{listen} is beyond loopback, where others than this machine reach it: listen on 127.0.0.1, or start the server \
         with `up --public-ports`"
    );
    Refusal::field(&format!("forwards[{at}].listen"), detail)
}
