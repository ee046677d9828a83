//! The store's traits. Their semantics are written here, and one conformance suite runs against every engine.
//!
//! Common to all: a call that returns `Ok` is durable; a call that fails may have taken effect, and may be repeated.
//! `now` always arrives as an argument. Everything that changes together changes in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tartarus_types::sandbox::Denied;
use tartarus_types::{
    Event, LeaseToken, NodeId, Outcome, Overcommit, SandboxId, SandboxSpec, State, TemplateSpec, Timestamp,
};
use tokio::sync::broadcast;

/// Why a store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is taken.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// There is no such thing.
    #[error("there is no {0} {1:?}")]
    NotFound(&'static str, String),
    /// More than one sandbox or kernel matches.
    #[error("more than one matches {0:?}")]
    Ambiguous(String),
    /// It is used by something else, which is named.
    #[error("it is in use by {0}")]
    InUse(String),
    /// The state machine refuses.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The token is not the newest: the attempt belongs to somebody else.
    #[error("the lease is not held any more")]
    Fenced,
    /// The key was used with another request.
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// The file is of a newer version.
    #[error("the store has schema version {found}, this program knows up to {known}: use a newer tartarus")]
    Newer {
        /// What the store has.
        found: u32,
        /// What this program knows.
        known: u32,
    },
    /// Anything else.
    #[error("the store failed: {0}")]
    Engine(String),
}

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

/// An image, kernel or template as the catalogue keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its name.
    pub name: String,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// When.
    pub created_at: Timestamp,
}

/// A guest kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// `sha256:…`.
    pub digest: String,
    /// `uname -r`.
    pub release: String,
    /// Bytes.
    pub size: u64,
    /// When; the newest is used.
    pub created_at: Timestamp,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// Its name.
    pub name: String,
    /// Its defaults.
    pub spec: TemplateSpec,
    /// When.
    pub created_at: Timestamp,
}

/// Images, kernels, templates and API keys.
#[async_trait]
pub trait Catalogue: Send + Sync + 'static {
    /// Adds an image, or moves the name to another digest. Returns the digest that no image, template or unfinished
    /// sandbox uses any more because of that.
    async fn put_image(&self, image: ImageRecord) -> Result<Option<String>, StoreError>;
    /// All images by name.
    async fn images(&self) -> Result<Vec<ImageRecord>, StoreError>;
    /// Removes a name; refused with `InUse` while a template or an unfinished sandbox needs the digest and no other
    /// name holds it. Returns the digest when nothing uses it any more.
    async fn remove_image(&self, name: &str) -> Result<Option<String>, StoreError>;

    /// Adds a kernel; adding one again makes it the newest.
    async fn put_kernel(&self, kernel: KernelRecord) -> Result<(), StoreError>;
    /// All kernels, newest first.
    async fn kernels(&self) -> Result<Vec<KernelRecord>, StoreError>;
    /// Removes one by digest, unique prefix of it, or release; `InUse` while an unfinished sandbox needs it. Returns it.
    async fn remove_kernel(&self, reference: &str) -> Result<KernelRecord, StoreError>;

    /// Adds a template. The same name with the same spec is no error; with another it is `NameTaken`. An image that is
    /// gone by now is `NotFound`.
    async fn put_template(&self, template: TemplateRecord) -> Result<TemplateRecord, StoreError>;
    /// All templates by name.
    async fn templates(&self) -> Result<Vec<TemplateRecord>, StoreError>;
    /// One template.
    async fn template(&self, name: &str) -> Result<Option<TemplateRecord>, StoreError>;
    /// Removes a template. Sandboxes made from it go on.
    async fn remove_template(&self, name: &str) -> Result<(), StoreError>;

    /// Stores the hash of an API key under a name; the same name is replaced.
    async fn put_key(&self, name: &str, hash: [u8; 32], now: Timestamp) -> Result<(), StoreError>;
    /// Name of the key with this hash.
    async fn find_key(&self, hash: [u8; 32]) -> Result<Option<String>, StoreError>;
}

/// News of sandboxes: whoever waits for one subscribes, reads its record, and reads it again at each piece of news. A
/// subscriber that lags reads the record as well; the truth is always the store.
pub trait Bus: Send + Sync + 'static {
    /// Ids of sandboxes whose records changed, after the change is durable.
    fn subscribe(&self) -> broadcast::Receiver<SandboxId>;
}

/// All of it: what the control plane needs of one engine.
pub trait Store: RunStore + JobQueue + NodeRegistry + Catalogue + Bus {}
impl<T: RunStore + JobQueue + NodeRegistry + Catalogue + Bus> Store for T {}
