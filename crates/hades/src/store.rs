//! The store's traits. Their semantics are written here, and one conformance suite runs against every engine.
//!
//! Common to all: a call that returns `Ok` is durable; a call that fails may have taken effect, and may be repeated.
//! `now` always arrives as an argument. Everything that changes together changes in one transaction.

mod catalogue;
mod queue;
mod runs;

pub use catalogue::*;
pub use queue::*;
pub use runs::*;

use tartarus_types::SandboxId;
use tartarus_types::sandbox::Denied;
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

/// News of sandboxes: whoever waits for one subscribes, reads its record, and reads it again at each piece of news. A
/// subscriber that lags reads the record as well; the truth is always the store.
pub trait Bus: Send + Sync + 'static {
    /// Ids of sandboxes whose records changed, after the change is durable.
    fn subscribe(&self) -> broadcast::Receiver<SandboxId>;
}

/// All of it: what the control plane needs of one engine.
pub trait Store: RunStore + JobQueue + NodeRegistry + Catalogue + Bus {}
impl<T: RunStore + JobQueue + NodeRegistry + Catalogue + Bus> Store for T {}
