//! Sandboxes, from their acceptance to the end of their record.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tartarus_types::{Event, LeaseToken, NodeId, Outcome, SandboxId, SandboxSpec, State, Timestamp};

use super::StoreError;

/// The record of a sandbox: the truth about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: SandboxId,
    /// Its name, unique among those that have not ended.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it is.
    pub state: State,
    /// What it was asked to be.
    pub spec: SandboxSpec,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When `Begin` was committed.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Leases given so far.
    pub attempts: u32,
    /// The node of the newest lease.
    pub node: Option<NodeId>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// The end that was asked for.
    pub kill: Option<KillAsked>,
    /// Delete the record once it has ended.
    pub remove: bool,
    /// What its node reported beside states: the JSON of `api::node::Progress`.
    pub progress: Option<String>,
}

/// The end that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillAsked {
    /// Signal number for the command.
    pub signal: i32,
    /// From the signal to the end of the VM, ms.
    pub grace_ms: u64,
}

/// A new sandbox, as it is accepted.
#[derive(Debug, Clone)]
pub struct NewSandbox {
    /// Its id, chosen by the caller.
    pub id: SandboxId,
    /// Its name.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What to run.
    pub spec: SandboxSpec,
    /// The caller's key, when there is one.
    pub idempotency: Option<Idempotency>,
}

/// An `Idempotency-Key` and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Whose key it is: keys of different callers never meet.
    pub caller: String,
    /// The key.
    pub key: String,
    /// SHA-256 of the request.
    pub request: [u8; 32],
}

/// The answer to [`RunStore::accept`].
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// It is on record and queued.
    New(Box<Record>),
    /// The same request was accepted before, as this sandbox. The record is as it was when it was accepted.
    Replay(Box<Record>),
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListFilter {
    /// Also those that have ended.
    pub ended: bool,
    /// At most so many, newest first.
    pub limit: u32,
}

/// Sandboxes.
#[async_trait]
pub trait RunStore: Send + Sync + 'static {
    /// Record, queue entry and idempotency key, in one transaction. One that would make a golden snapshot which another
    /// is making already is that other one: the answer is its record, as a replay.
    ///
    /// # Errors
    /// `NameTaken`, `IdempotencyMismatch` (keys live 24 h), `DiskFull`.
    async fn accept(&self, new: NewSandbox, now: Timestamp) -> Result<Accepted, StoreError>;

    /// What an idempotency key stands for, as it was answered; `None` when it is not known or has expired.
    ///
    /// # Errors
    /// `IdempotencyMismatch`.
    async fn replay(&self, key: &Idempotency, now: Timestamp) -> Result<Option<Record>, StoreError>;

    /// The sandbox with this id.
    async fn get(&self, id: &SandboxId) -> Result<Option<Record>, StoreError>;

    /// The sandbox of an id, a unique prefix of one (with or without `sbx_`), or a name. A name means the one that has
    /// not ended, else the newest that had it. An exact name wins over a prefix.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`.
    async fn resolve(&self, reference: &str) -> Result<Record, StoreError>;

    /// Sandboxes, newest first.
    async fn list(&self, filter: ListFilter) -> Result<Vec<Record>, StoreError>;

    /// Its place in the queue from 1, while it is queued and visible.
    async fn queue_position(&self, id: &SandboxId) -> Result<Option<u64>, StoreError>;

    /// Asks for its end: `Event::Kill`, and what to do on record. A second, sooner or harder one replaces the first.
    /// Asking for the end of one that has ended is `Denied(Ended)`. With `remove` the record goes when it has ended
    /// (at once when it has), and `Ok(None)` says it is gone.
    async fn kill(
        &self,
        id: &SandboxId,
        kill: KillAsked,
        remove: bool,
        now: Timestamp,
    ) -> Result<Option<Record>, StoreError>;

    /// The event of a token's holder, with what it learnt. Returns the record after it; with `Denied(Already)` nothing
    /// was wrong and nothing was done. A record marked `remove` is deleted in the same transaction when it ends; what
    /// is returned is its last state.
    ///
    /// # Errors
    /// `Fenced` when the token is not the newest; `Denied`.
    async fn apply(
        &self,
        id: &SandboxId,
        token: &LeaseToken,
        event: Event,
        progress: Option<String>,
        now: Timestamp,
    ) -> Result<Record, StoreError>;

    /// Writes what was learnt, without an event.
    ///
    /// # Errors
    /// `Fenced`.
    async fn progress(&self, id: &SandboxId, token: &LeaseToken, progress: String) -> Result<(), StoreError>;

    /// Failures of the sandbox's attempts, oldest first.
    async fn failures(&self, id: &SandboxId) -> Result<Vec<String>, StoreError>;

    /// The newest sandbox that makes, or made, this golden snapshot.
    async fn maker(&self, golden: &str) -> Result<Option<Record>, StoreError>;

    /// Sandboxes that `rule` keeps no longer, oldest end first.
    async fn expired(&self, rule: Retention, limit: u32) -> Result<Vec<SandboxId>, StoreError>;

    /// Deletes the records of those that have ended. Returns those that were deleted; the others are left alone.
    async fn forget(&self, ids: &[SandboxId]) -> Result<Vec<SandboxId>, StoreError>;

    /// How many sandboxes that have not ended there are in each state; none of a state that is not in the list.
    async fn population(&self) -> Result<Vec<(State, u64)>, StoreError>;

    /// Digests of the images and kernels of sandboxes that have not ended.
    async fn digests_in_use(&self) -> Result<BTreeSet<String>, StoreError>;
}

/// Which sandboxes that have ended are kept on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Those that ended after this.
    pub after: Timestamp,
    /// And of them the newest; no more than so many.
    pub newest: u32,
}
