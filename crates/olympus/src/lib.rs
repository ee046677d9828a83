//! Olympus: the control plane. It takes requests over HTTP, writes them to the store, hands sandboxes out to nodes and
//! keeps what nodes report. It keeps no truth of its own: any instance may be killed at any moment and started again.
//! It refuses to know which engine the store is and how a node runs a sandbox.

#![forbid(unsafe_code)]

mod accept;
mod boot;
mod control;
pub mod http;
mod reconcile;
mod refusal;
mod view;
mod watch;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hades::store::Store;
use tartarus_api::node::Node;
use tartarus_types::{ErrorCode, Limits, Refusal, SandboxId, Timestamp};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

pub use http::openapi::openapi_json;

/// The control plane of one node.
pub struct Olympus {
    store: Arc<dyn Store>,
    node: OnceLock<Arc<dyn Node>>,
    limits: Limits,
    clock: fn() -> Timestamp,
    /// Imports read-lock it from the first byte until the file is on record; whoever deletes a file that nothing on
    /// record uses write-locks it, so that a file is not deleted between its making and its record.
    files: RwLock<()>,
}

/// A control plane has one node; it cannot be exchanged.
#[derive(Debug, thiserror::Error)]
#[error("a node is attached already")]
pub struct AlreadyAttached;

impl Olympus {
    /// A control plane on a store, still without node. `clock` tells the time, UTC.
    pub fn new(store: Arc<dyn Store>, limits: Limits, clock: fn() -> Timestamp) -> Self {
        Self { store, node: OnceLock::new(), limits, clock, files: RwLock::new(()) }
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
    fn forget(&self, sandbox: SandboxId) -> JoinHandle<()> {
        let node = self.node.get().cloned();
        tokio::spawn(async move {
            let Some(node) = node else { return };
            for pause_ms in [50, 200, 1000, 5000] {
                match node.forget(&sandbox).await {
                    Ok(()) => return,
                    Err(refusal) if refusal.code == ErrorCode::NotFound => return,
                    Err(refusal) => tracing::debug!(%sandbox, "its logs are not deleted yet: {refusal}"),
                }
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            }
            if let Err(refusal) = node.forget(&sandbox).await {
                tracing::warn!(%sandbox, "its logs stay on the node: {refusal}");
            }
        })
    }
}
