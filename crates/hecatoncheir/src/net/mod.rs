//! Networks of sandboxes on this node: each has its namespace, contract, resolver and watch for as long as it lives.

mod running;
mod totals;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use styx::names::{Rate, Upstream};
use styx::{Door, Space, Styx, StyxError};
use tartarus_api::doctor::{Check, Status};
use tartarus_types::net::NetTotals;
use tartarus_types::{Contract, NetMode, Timestamp};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use running::Network;
pub use styx::Guard;
use totals::Totals;

use crate::workshop::CannotStart;

/// How a node's networks are made.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Addresses between sandboxes and this node.
    pub range: ipnet::Ipv4Net,
    /// Namespaces that wait for sandboxes, once there was a first.
    pub pool: usize,
    /// The most connections at once that a contract may say.
    pub connections: u32,
    /// Name servers; the host's when empty.
    pub dns: Vec<SocketAddr>,
    /// The one protective rule that is left out; only the attack suite leaves one out.
    pub without: Option<Guard>,
    /// No sandbox may have one.
    pub off: bool,
}

impl Default for NetOptions {
    fn default() -> Self {
        let styx::Options { range, pool, connections, .. } = styx::Options::default();
        Self { range, pool, connections, dns: Vec::new(), without: None, off: false }
    }
}

/// The networks of a node. Nothing of the host is touched before the first sandbox that has one.
pub struct Networks {
    styx: Styx,
    upstream: Arc<Upstream>,
    rate: Rate,
    totals: Arc<Totals>,
    clock: fn() -> Timestamp,
    /// Nothing of the host's networks is this node's: no sandbox may have one, and none has had one.
    untouched: AtomicBool,
}

impl Networks {
    /// Opens nothing yet.
    pub fn new(options: NetOptions, clock: fn() -> Timestamp) -> Self {
        let NetOptions { range, pool, connections, dns, without, off } = options;
        let styx = Styx::new(styx::Options { range, pool, connections, door: None, without });
        let upstream = if dns.is_empty() { Upstream::of_host() } else { Upstream::of(&dns) };
        // The rule and the resolver's own are one limit, in two places.
        let rate = if without == Some(Guard::Queries) { Rate::ANY } else { Rate::default() };
        let untouched = AtomicBool::new(off);
        Self { styx, upstream: Arc::new(upstream), rate, totals: Arc::default(), clock, untouched }
    }

    /// Begins a sandbox's network; `None` for a contract without one.
    pub(crate) async fn begin(self: &Arc<Self>, contract: &Contract) -> Result<Option<Coming>, CannotStart> {
        if contract.mode == NetMode::None {
            return Ok(None);
        }
        // One that was accepted before may still get its network.
        self.untouched.store(false, Ordering::Relaxed);
        let mut space = self.styx.take(contract).await.map_err(|e| {
            let why = format!("it has no network: {e}");
            match e {
                // Until somebody does something about it.
                StyxError::NotRoot | StyxError::NoNft | StyxError::NotReady(_) => CannotStart::never(why),
                _ => CannotStart::retry(why),
            }
        })?;
        let (namespace, tap) = (space.namespace.clone(), space.tap.take());
        let (networks, kept) = (self.clone(), Kept::first(contract));
        let started = tokio::spawn(async move { networks.start(space, &kept).await });
        Ok(Some(Coming { namespace, tap, started: AbortOnDropHandle::new(started) }))
    }

    /// Puts a contract in force in a namespace, and keeps it so.
    async fn start(&self, space: Space, kept: &Kept) -> Result<Network, String> {
        if let Some(why) = self.upstream.problem() {
            // It may need no name, and there may be a name server by then.
            tracing::warn!(%why, "a sandbox has a network without names for now");
        }
        Network::start(space, kept, self).await
    }

    /// The same for a namespace that an earlier agent made.
    pub(crate) async fn adopt(&self, namespace: OwnedFd, kept: &Kept) -> Result<Network, String> {
        self.untouched.store(false, Ordering::Relaxed);
        let space = self.styx.adopt(namespace).await.map_err(|e| e.to_string())?;
        self.start(space, kept).await
    }

    /// What became of all sandboxes' packets since this agent started.
    pub(crate) async fn totals(&self) -> NetTotals {
        self.totals.read().await
    }

    /// Lets go of namespaces that wait, and of what the host has for sandboxes when there is none left.
    pub async fn close(&self) {
        if self.untouched.load(Ordering::Relaxed) {
            // Whatever there is may be another server's.
            return;
        }
        if let Err(e) = self.styx.close().await {
            tracing::warn!(error = %e, "something of the sandboxes' network is left on this host");
        }
    }

    /// What stands in the way of a network.
    pub(crate) async fn checks(&self) -> Vec<Check> {
        let name = || "network".to_owned();
        if self.untouched.load(Ordering::Relaxed) {
            // Looking puts the node's table in force, in place of one that another server may have.
            let found = "off: sandboxes have none (up --net none)".to_owned();
            return vec![Check { name: name(), status: Status::Ok, found, advice: None }];
        }
        let mut checks: Vec<Check> = self
            .styx
            .findings()
            .await
            .into_iter()
            .map(|f| Check { name: name(), status: Status::Warn, found: f.problem, advice: f.command })
            .collect();
        if let Some(why) = self.upstream.problem() {
            let advice = "name them with `tartarus up --dns ADDRESS`, or in /etc/resolv.conf".to_owned();
            checks.push(Check { name: name(), status: Status::Warn, found: why, advice: Some(advice) });
        }
        if checks.is_empty() {
            let judge = match self.styx.door() {
                Some(Door::Chain) => "rules (a program would cost less, with a kernel from 6.6 on)",
                Some(Door::Program) | None => "a program in the kernel",
            };
            let found = format!("sandboxes can be given one; frames from their cards are judged by {judge}");
            checks.push(Check { name: name(), status: Status::Ok, found, advice: None });
        }
        checks
    }
}

/// A network whose contract is put in force beside all else that a start takes. Nothing passes before, or that contract was in
/// force already: a guest that boots meets a card that leads nowhere yet or where it shall, and one that is restored goes on
/// only when it is spoken to, which is after this.
pub(crate) struct Coming {
    pub(crate) namespace: Arc<OwnedFd>,
    /// The guest's peer.
    pub(crate) tap: Option<Arc<OwnedFd>>,
    started: AbortOnDropHandle<Result<Network, String>>,
}

impl Coming {
    /// Waits until the contract is in force, and was seen to be.
    pub(crate) async fn started(self) -> Result<Network, String> {
        self.started.await.map_err(|e| e.to_string())?
    }
}

/// A sandbox's contract as its node keeps it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Kept {
    pub(crate) contract: Contract,
    /// Grows with every change: what was allowed under an older one is judged anew.
    pub(crate) generation: u32,
}

impl Kept {
    /// As the sandbox was accepted.
    pub(crate) fn first(contract: &Contract) -> Self {
        Self { contract: contract.clone(), generation: styx::FIRST_GENERATION }
    }
}

/// What the guest is told of its card: the same everywhere.
pub(crate) fn guest_side() -> tartarus_guest::Net {
    tartarus_guest::Net {
        address: styx::GUEST,
        prefix: styx::PREFIX,
        gateway: styx::GATEWAY,
        nameserver: styx::GATEWAY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_without_networks_is_well() {
        let networks = Networks::new(NetOptions { off: true, ..NetOptions::default() }, || Timestamp(0));
        let checks = networks.checks().await;
        assert_eq!(checks.iter().map(|check| check.status).collect::<Vec<_>>(), [Status::Ok]);
        assert!(checks[0].found.starts_with("off:"), "{checks:?}");
    }
}
