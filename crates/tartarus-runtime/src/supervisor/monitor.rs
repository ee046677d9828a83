//! What an agent wants of a hypervisor that runs, whichever it is. That it runs, and ends, is the supervisor's.

use std::fs::File;
use std::path::Path;

use async_trait::async_trait;

use super::Hypervisor;
use crate::driver::{Channel, RuntimeError};
use crate::firecracker::FirecrackerMonitor;
use crate::qemu::QemuMonitor;

/// How a hypervisor is spoken to. Each method means what the one of that name of [`crate::Vm`] does.
#[async_trait]
pub(crate) trait Monitor: Send + Sync {
    async fn channel(&self) -> Result<Box<dyn Channel>, RuntimeError>;

    async fn channel_while_paused(&self) -> Option<Box<dyn Channel>> {
        self.channel().await.ok()
    }

    async fn pause(&self) -> Result<(), RuntimeError>;

    async fn resume(&self) -> Result<(), RuntimeError>;

    async fn is_paused(&self) -> Result<bool, RuntimeError>;

    /// `pid` is the hypervisor's process.
    async fn save(&self, pid: u32, state: File, memory: File) -> Result<(), RuntimeError>;
}

impl Hypervisor {
    /// For the machine in `dir`.
    pub(crate) fn monitor(&self, dir: &Path) -> Box<dyn Monitor> {
        match self {
            Self::Qemu => Box::new(QemuMonitor::new(dir)),
            Self::Firecracker(jail) => Box::new(FirecrackerMonitor::new(dir, jail)),
        }
    }
}
