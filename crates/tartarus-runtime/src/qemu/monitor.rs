//! QEMU as it runs: its monitor's socket for orders, its guest port's for the agent.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::AGENT;
use super::qmp::{Qmp, RunState};
use crate::driver::{Channel, RuntimeError};
use crate::pages;
use crate::supervisor::{Monitor, connect_in, for_writing_only};

/// Speaks to the QEMU in one folder.
pub(crate) struct QemuMonitor {
    dir: PathBuf,
}

impl QemuMonitor {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
}

#[async_trait]
impl Monitor for QemuMonitor {
    async fn channel(&self) -> Result<Box<dyn Channel>, RuntimeError> {
        let stream = connect_in(&self.dir, AGENT)
            .await
            .map_err(|e| RuntimeError::io(format!("reaching the guest in {}", self.dir.display()), e))?;
        Ok(Box::new(stream))
    }

    async fn pause(&self) -> Result<(), RuntimeError> {
        Qmp::connect(&self.dir).await?.stop().await
    }

    async fn resume(&self) -> Result<(), RuntimeError> {
        Qmp::connect(&self.dir).await?.cont().await
    }

    async fn is_paused(&self) -> Result<bool, RuntimeError> {
        Ok(Qmp::connect(&self.dir).await?.state().await? != RunState::Running)
    }

    async fn save(&self, pid: u32, state: File, memory: File) -> Result<(), RuntimeError> {
        let fail =
            |what: &'static str| move |cause| RuntimeError::io(format!("{} {}", what, self.dir.display()), cause);
        let paused = |state| match state {
            RunState::Paused => Ok(()),
            _ => Err(fail("saving")(io::Error::other("the machine is not paused"))),
        };
        let state = for_writing_only(state).map_err(fail("opening the state file of"))?;
        let mut qmp = Qmp::connect(&self.dir).await?;
        paused(qmp.state().await?)?;
        let bytes = qmp.memory_bytes().await?;
        qmp.save_devices(state.as_fd()).await?;
        // Others may speak to QEMU while the memory is copied.
        drop(qmp);
        let copied = tokio::task::spawn_blocking(move || pages::save(pid, bytes, memory)).await;
        copied.map_err(|e| fail("saving the memory of")(e.into()))?.map_err(fail("saving the memory of"))?;
        // Only if it stayed so, state and memory are of one moment, and `pid` was QEMU all the time.
        paused(Qmp::connect(&self.dir).await?.state().await?)
    }
}
