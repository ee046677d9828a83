//! Where machines come from: the seam between a sandbox's task and the files and drivers of this host.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tartarus_runtime::{Driver, Machine, Restore, Vm};
use tartarus_types::SandboxSpec;

/// Why a machine cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct CannotStart {
    /// What went wrong, with what.
    pub why: String,
    /// Trying again may help.
    pub retry: bool,
}

impl CannotStart {
    /// A failure that another attempt may not meet.
    pub fn retry(why: impl std::fmt::Display) -> Self {
        Self { why: why.to_string(), retry: true }
    }

    /// A failure that will meet every attempt.
    pub fn never(why: impl std::fmt::Display) -> Self {
        Self { why: why.to_string(), retry: false }
    }
}

/// Keeps what a machine shares with others for as long as it is held.
#[derive(Clone, Default)]
pub struct Hold(#[expect(dead_code, reason = "held, never looked at")] Option<Arc<dyn Any + Send + Sync>>);

impl Hold {
    /// Holds `what` until the last copy is dropped.
    pub fn on(what: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(what)))
    }
}

/// A machine that is ready to be started.
pub struct Ready {
    /// Its files.
    pub machine: Machine,
    /// Who runs it.
    pub driver: Arc<dyn Driver>,
    /// How it comes up.
    pub start: Start,
}

/// How a machine comes up.
pub enum Start {
    /// It boots.
    Cold {
        /// Why there was no snapshot to use.
        why: String,
        /// Keeps the golden layer where it is until the guest has answered.
        files: Hold,
    },
    /// From its template's golden snapshot.
    Snapshot {
        /// Its name.
        golden: String,
        /// What [`Workshop::hold`] finds the memory by, also when the snapshot is another by then.
        memory: String,
        /// Memory and devices.
        from: Restore,
        /// What it shares with others of the same snapshot, for as long as it lives.
        hold: Hold,
        /// Keeps the snapshot's files where they are until the guest has answered.
        files: Hold,
    },
}

/// Makes machines for sandboxes.
#[async_trait]
pub trait Workshop: Send + Sync + 'static {
    /// A machine in `dir`: the template's golden snapshot where there is one that fits and may be used, else kernel and
    /// layer for a cold boot, and why.
    ///
    /// # Errors
    /// When something is missing, a required snapshot does not fit, or the disk is full; nothing but files in `dir` is
    /// left.
    async fn machine(&self, spec: &SandboxSpec, dir: &Path) -> Result<Ready, CannotStart>;

    /// Makes a golden snapshot of a machine whose guest has frozen its layer. Stops the machine, and leaves it so. It
    /// counts when this returns, and there is nothing of it when this fails or this process dies.
    ///
    /// # Errors
    /// When the machine cannot be saved, or the disk is full.
    async fn keep(&self, spec: &SandboxSpec, vm: &dyn Vm, dir: &Path) -> Result<(), CannotStart>;

    /// A machine from this snapshot ended while it was restored: the next one shall not be tried with it.
    fn distrust(&self, golden: &str, why: &str);

    /// Holds again what a machine shares that an earlier agent restored, by `memory` of its [`Start::Snapshot`]. Memory that
    /// is not loaded any more is nothing to hold.
    fn hold(&self, golden: &str, memory: &str) -> Hold;

    /// Overwrites what a sandbox wrote.
    ///
    /// # Errors
    /// When it cannot be written to.
    async fn shred(&self, dir: &Path) -> std::io::Result<()>;

    /// The driver that takes over what an earlier agent had started.
    fn adopter(&self) -> Arc<dyn Driver>;
}
