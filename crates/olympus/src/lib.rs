//! Olympus: the control plane. It takes requests over HTTP, writes them to the store, hands sandboxes out to nodes and
//! keeps what nodes report. It keeps no truth of its own: any instance may be killed at any moment and started again.
//! It refuses to know which engine the store is and how a node runs a sandbox.

#![forbid(unsafe_code)]

mod accept;
mod boot;
mod builders;
mod control;
mod disk;
mod golden;
pub mod http;
mod metrics;
mod net;
mod prune;
mod reconcile;
mod refusal;
mod snapshots;
mod view;
mod waiting;
mod watch;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hades::store::Store;
use tartarus_api::node::Node;
use tartarus_types::net::NetLimits;
use tartarus_types::{ErrorCode, Limits, MIB, NetMode, Refusal, SandboxId, Timestamp};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

pub use http::openapi::openapi_json;

use builders::Builders;
use disk::Disk;
use metrics::Metrics;

/// Name of the database in the data folder.
pub const DATABASE: &str = "tartarus.db";

/// What an operator may choose.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Bounds on what may be asked for.
    pub limits: Limits,
    /// A sandbox that has ended is forgotten, with its logs, after so long.
    pub retain: Duration,
    /// No more sandboxes that have ended are kept than so many, the newest.
    pub retain_count: u32,
    /// New work is refused while the data folder's disk has less free, bytes; 0 refuses nothing.
    pub min_free: u64,
    /// The widest network that anybody may ask for.
    pub net: NetMode,
    /// Anybody may have ports of the node beyond loopback lead to a sandbox.
    pub public_ports: bool,
    /// The most that the limits of anybody's network may be.
    pub net_limits: NetLimits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            retain: Duration::from_secs(7 * 24 * 3600),
            retain_count: 10_000,
            min_free: 512 * MIB,
            net: NetMode::Allow,
            public_ports: false,
            net_limits: NetLimits::default(),
        }
    }
}

/// The control plane of one node.
pub struct Olympus {
    store: Arc<dyn Store>,
    node: OnceLock<Arc<dyn Node>>,
    settings: Settings,
    clock: fn() -> Timestamp,
    disk: Disk,
    builders: Builders,
    metrics: Metrics,
    /// Imports read-lock it from the first byte until the file is on record; whoever deletes a file that nothing on
    /// record uses write-locks it, so that a file is not deleted between its making and its record.
    files: RwLock<()>,
}

/// A control plane has one node; it cannot be exchanged.
#[derive(Debug, thiserror::Error)]
#[error("a node is attached already")]
pub struct AlreadyAttached;

impl Olympus {
    /// A control plane on a store, still without node. `clock` tells the time, UTC. It looks after the disk of `folder`,
    /// where the store and the node keep their files; without one it refuses nothing for want of space.
    pub fn new(store: Arc<dyn Store>, folder: Option<&Path>, settings: Settings, clock: fn() -> Timestamp) -> Self {
        let disk = Disk::new(folder, settings.min_free);
        let builders = Builders::default();
        Self {
            store,
            node: OnceLock::new(),
            settings,
            clock,
            disk,
            builders,
            metrics: Metrics::default(),
            files: RwLock::new(()),
        }
    }

    /// Sets the node that runs the sandboxes. Requests that need it before are answered `node_unreachable`.
    ///
    /// # Errors
    /// When there is one already.
    pub fn attach_node(&self, node: Arc<dyn Node>) -> Result<(), AlreadyAttached> {
        self.node.set(node).map_err(|_| AlreadyAttached)
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn node(&self) -> Result<&Arc<dyn Node>, Refusal> {
        self.node.get().ok_or_else(|| {
            Refusal::new(ErrorCode::NodeUnreachable, "the node has not reported yet, try again in a moment")
        })
    }

    fn kick(&self) {
        if let Some(node) = self.node.get() {
            node.kick();
        }
    }

    /// Deletes what the node keeps of a sandbox whose record is gone; in a task of its own, so that a client that goes
    /// away stops nothing. The node refuses while it still has hands on the sandbox, which is for moments only: it hears
    /// of the end on record from the answer to its report.
    ///
    /// The error says why it stays. Without a node nothing is lost: that deletes what is not on record when it starts.
    fn forget(&self, sandbox: SandboxId) -> JoinHandle<Result<(), Refusal>> {
        let node = self.node.get().cloned();
        tokio::spawn(async move {
            let Some(node) = node else { return Ok(()) };
            for pause_ms in [50, 200, 1000, 5000] {
                match node.forget(&sandbox).await {
                    Ok(()) => return Ok(()),
                    Err(refusal) if refusal.code == ErrorCode::NotFound => return Ok(()),
                    Err(refusal) => tracing::debug!(%sandbox, "its logs are not deleted yet: {refusal}"),
                }
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            }
            let last = node.forget(&sandbox).await;
            last.inspect_err(|refusal| tracing::warn!(%sandbox, "its logs stay on the node: {refusal}"))
        })
    }
}
