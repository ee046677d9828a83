//! Where machines come from: the seam between a sandbox's task and the files and drivers of this host.

use std::path::Path;

use async_trait::async_trait;
use std::sync::Arc;
use tartarus_runtime::{Driver, Machine};
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

/// Makes machines for sandboxes.
#[async_trait]
pub trait Workshop: Send + Sync + 'static {
    /// Kernel, base image and a fresh layer in `dir`, as machine shape v1.
    ///
    /// # Errors
    /// When something is missing or the disk is full; nothing but files in `dir` is left.
    async fn machine(&self, spec: &SandboxSpec, dir: &Path) -> Result<Machine, CannotStart>;

    /// The driver that runs sandboxes with this kernel.
    ///
    /// # Errors
    /// When no hypervisor of this host can.
    async fn driver(&self, kernel: &str) -> Result<Arc<dyn Driver>, CannotStart>;

    /// The driver that takes over what an earlier agent had started.
    fn adopter(&self) -> Arc<dyn Driver>;
}
