//! The queue and who takes from it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tartarus_types::{LeaseToken, NodeId, Overcommit, SandboxId, Timestamp};

use super::{KillAsked, Record, StoreError};

/// What a node says of itself, and what is reserved on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// Memory that sandboxes may reserve together, MiB.
    pub memory_mib: u64,
    /// Memory of each hypervisor itself, MiB.
    pub overhead_mib: u64,
    /// How often guest memory may be sold.
    pub overcommit: Overcommit,
    /// Sandboxes that may be between lease and command start.
    pub start_slots: u32,
    /// Virtual processors of the largest sandbox.
    pub max_cpus: u32,
    /// When it was last heard of.
    pub seen_at: Timestamp,
    /// Memory reserved now, MiB: the sum over its leases of [`Overcommit::reserved_mib`] and overhead.
    pub reserved_mib: u64,
    /// Leases in `Scheduled` or `Preparing`.
    pub starting: u32,
}

/// Nodes.
#[async_trait]
pub trait NodeRegistry: Send + Sync + 'static {
    /// Makes it known, or updates it. `reserved_mib` and `starting` are the store's and are ignored.
    async fn upsert_node(&self, node: NodeRecord) -> Result<(), StoreError>;

    /// All nodes.
    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError>;
}

/// A queue entry as the head of the queue offers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The sandbox.
    pub id: SandboxId,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// Its virtual processors.
    pub cpus: u32,
}

/// Chooses which of `candidates` (oldest first) the node takes now; pure. `moirai` provides it.
pub type Choose = fn(node: &NodeRecord, candidates: &[Candidate]) -> Option<usize>;

/// A lease.
#[derive(Debug, Clone, PartialEq)]
pub struct Leased {
    /// The record after `Event::Lease`.
    pub record: Record,
    /// The token of this attempt.
    pub token: LeaseToken,
}

/// A queue entry that will not be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The sandbox.
    pub id: SandboxId,
    /// When it was given up.
    pub at: Timestamp,
    /// The last failure.
    pub why: String,
}

/// Rules of the queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueRules {
    /// A lease that is not renewed for so long, ms, is lost.
    pub visibility_ms: u64,
    /// Leases that a sandbox may have in all.
    pub max_attempts: u32,
    /// Before the next attempt, ms.
    pub retry_delay_ms: u64,
}

impl Default for QueueRules {
    fn default() -> Self {
        Self { visibility_ms: 30_000, max_attempts: 3, retry_delay_ms: 1_000 }
    }
}

/// The queue, in front of the sandboxes' records: every move of an entry is a move of its sandbox's state.
#[async_trait]
pub trait JobQueue: Send + Sync + 'static {
    /// Offers the oldest visible entries (up to 64) to `choose` with the node's reservation as of this transaction; what
    /// it picks is leased with a fresh token and reserved on the node, in the same transaction. Entries whose start
    /// deadline has passed are not offered.
    async fn lease(&self, node: &NodeId, choose: Choose, now: Timestamp) -> Result<Option<Leased>, StoreError>;

    /// Extends every lease of the node that is named and still held. Returns those that are not held any more.
    async fn renew(
        &self,
        node: &NodeId,
        held: &[(SandboxId, LeaseToken)],
        now: Timestamp,
    ) -> Result<Vec<(SandboxId, LeaseToken)>, StoreError>;

    /// The node holds nothing but this: every other lease of its is lost, with all effects, as if it had run out.
    /// Returns the records that changed.
    async fn reclaim(
        &self,
        node: &NodeId,
        held: &[(SandboxId, LeaseToken)],
        now: Timestamp,
    ) -> Result<Vec<Record>, StoreError>;

    /// The ends asked for of what the node holds.
    async fn kills(&self, node: &NodeId) -> Result<Vec<(SandboxId, LeaseToken, KillAsked)>, StoreError>;

    /// Leases that ran out: `Event::LeaseLost`; queue entries whose start deadline passed: `Event::StartTimeout`; both
    /// with all effects. Returns the records that changed.
    async fn expire(&self, now: Timestamp) -> Result<Vec<Record>, StoreError>;

    /// The control plane was away: nobody could renew, so every lease gets a full visibility timeout from `now`.
    async fn grace(&self, now: Timestamp) -> Result<(), StoreError>;

    /// When the next lease runs out, start deadline passes, or delayed entry becomes visible.
    async fn next_deadline(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Queue entries that were given up, newest first.
    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, StoreError>;
}
