//! The judgement of one destination, in the order of the parent's documentation. Pure.

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Contract, NetMode, Protocol};

/// What no sandbox ever reaches, whatever its contract says.
pub const NEVER: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),
    ("100.100.100.200/32", "metadata (Alibaba Cloud)"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "metadata (Azure)"),
    ("169.254.0.0/16", "link-local, and metadata of most clouds"),
    ("192.0.0.0/24", "protocol assignments, and metadata (Oracle Cloud)"),
    ("198.18.0.0/15", "networks between sandboxes and their node"),
    ("224.0.0.0/3", "multicast, reserved, broadcast"),
];

/// What is reached only where a CIDR within it is listed.
pub const PRIVATE: &[&str] = &["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"];

/// [`NEVER`] as networks, with what each is.
pub fn never() -> &'static [(Ipv4Net, &'static str)] {
    static NETS: LazyLock<Vec<(Ipv4Net, &'static str)>> =
        LazyLock::new(|| NEVER.iter().map(|(net, what)| (constant(net), *what)).collect());
    &NETS
}

/// [`PRIVATE`] as networks.
pub fn private() -> &'static [Ipv4Net] {
    static NETS: LazyLock<Vec<Ipv4Net>> = LazyLock::new(|| PRIVATE.iter().map(|net| constant(net)).collect());
    &NETS
}

fn constant(net: &str) -> Ipv4Net {
    net.parse().expect("the networks above are constants, which the tests read")
}

/// The whole network lies within a private range.
pub(super) fn is_private(net: Ipv4Net) -> bool {
    private().iter().any(|range| range.contains(&net))
}

/// What is said of one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// It may be reached.
    Allowed,
    /// No sandbox reaches it.
    Never,
    /// It is private and not listed.
    Private,
    /// Its port is not listed.
    Port,
    /// Neither it nor a name of it is listed.
    Unlisted,
}

impl Contract {
    /// What is said of a packet to `to`; `port` is `None` for a protocol without ports, of which there is ICMP echo.
    /// `pinned`: the node's resolver returned it for a listed domain.
    pub fn judge(&self, to: Ipv4Addr, port: Option<(Protocol, u16)>, pinned: bool) -> Judgement {
        if never().iter().any(|(net, _)| net.contains(&to)) {
            return Judgement::Never;
        }
        let no_net = self.mode == NetMode::None;
        if private().iter().any(|net| net.contains(&to)) {
            let listed = self.private_cidrs().any(|cidr| cidr.contains(&to));
            return match listed && !no_net {
                true => self.judge_port(port),
                false => Judgement::Private,
            };
        }
        match self.mode {
            NetMode::None => Judgement::Unlisted,
            NetMode::Open => Judgement::Allowed,
            NetMode::Allow if pinned || self.public_cidrs().any(|cidr| cidr.contains(&to)) => self.judge_port(port),
            NetMode::Allow if self.reaches_public_ports() => self.judge_port(port),
            NetMode::Allow => Judgement::Unlisted,
        }
    }

    /// Ports alone are listed, so that every public destination is reached on them.
    pub fn reaches_public_ports(&self) -> bool {
        self.mode == NetMode::Allow && self.cidrs.is_empty() && self.domains.is_empty() && !self.ports.is_empty()
    }

    fn judge_port(&self, port: Option<(Protocol, u16)>) -> Judgement {
        let listed = match port {
            _ if self.ports.is_empty() => true,
            None => false,
            Some((protocol, port)) => {
                self.ports.iter().any(|rule| rule.protocol == protocol && (rule.first..=rule.last).contains(&port))
            }
        };
        if listed { Judgement::Allowed } else { Judgement::Port }
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
