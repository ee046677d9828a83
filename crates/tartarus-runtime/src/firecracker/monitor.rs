//! Firecracker as it runs: its API's socket for orders, its vsock device's for the agent.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::api::{InstanceInfo, InstanceState, MemorySize, Request, SnapshotType, VmState};
use super::client::Client;
use super::jail::{self, AGENT, SAVED_MEMORY, SAVED_STATE};
use crate::cell::Jail;
use crate::driver::{Channel, RuntimeError};
use crate::pages;
use crate::supervisor::Monitor;

/// A file in the machine's folder that says that it was restored, and that nobody was at its guest's port yet.
pub(super) const UNOPENED: &str = "unopened";
/// The first and the longest time between two tries to reach a guest that does not listen yet.
const SOON: Duration = Duration::from_millis(5);
const LATER: Duration = Duration::from_millis(100);
/// The longest memory, in bytes, that lies in one mapping: above it is a gap for devices.
const IN_ONE_PIECE: u64 = 3 << 30;
/// The longest answer to `CONNECT`: `OK` and a number of 32 bits.
const MAX_ANSWER: usize = 16;

/// Speaks to the Firecracker in one folder.
pub(crate) struct FirecrackerMonitor {
    dir: PathBuf,
    /// The root of its jail.
    root: PathBuf,
    api: Client,
    /// Whoever changes whether the guest runs has it: else a first channel could undo somebody's pause.
    state: Mutex<()>,
}

impl FirecrackerMonitor {
    pub(crate) fn new(dir: &Path, jail: &Jail) -> Self {
        Self { dir: dir.to_owned(), root: jail.root.clone(), api: Client::new(&jail.root), state: Mutex::new(()) }
    }

    fn failed(&self, what: &str) -> impl Fn(io::Error) -> RuntimeError {
        let what = format!("{what} {}", self.dir.display());
        move |cause| RuntimeError::io(what.clone(), cause)
    }

    /// Lets a restored guest go on, unless somebody did before. The file goes after it went on: an agent that comes
    /// between the two lets it go on again, which changes nothing.
    async fn open(&self) -> Result<(), RuntimeError> {
        let _one = self.state.lock().await;
        if self.dir.join(UNOPENED).exists() {
            self.api.tell(&Request::Vm { state: VmState::Resumed }).await?;
            self.opened()?;
        }
        Ok(())
    }

    fn opened(&self) -> Result<(), RuntimeError> {
        match std::fs::remove_file(self.dir.join(UNOPENED)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("opening the guest in")(e)),
            _ => Ok(()),
        }
    }

    async fn state(&self) -> Result<InstanceState, RuntimeError> {
        Ok(self.api.ask::<InstanceInfo>(&Request::Describe).await?.state)
    }

    /// Only if it is so before and after, state and memory are of one moment, and `pid` was Firecracker all the time.
    async fn must_be_paused(&self) -> Result<(), RuntimeError> {
        match self.state().await? {
            InstanceState::Paused => Ok(()),
            _ => Err(self.failed("saving")(io::Error::other("the machine is not paused"))),
        }
    }

    fn forget_snapshot(&self) -> Result<(), RuntimeError> {
        let forgotten = [SAVED_STATE, SAVED_MEMORY].map(|name| jail::remove(&self.root, name));
        forgotten.into_iter().collect::<io::Result<()>>().map_err(self.failed("removing what was saved in"))
    }
}

#[async_trait]
impl Monitor for FirecrackerMonitor {
    async fn channel(&self) -> Result<Box<dyn Channel>, RuntimeError> {
        self.open().await?;
        let mut wait = SOON;
        loop {
            match greet(&self.root).await {
                Ok(Some(stream)) => return Ok(Box::new(stream)),
                // Nobody listens in the guest yet, and Firecracker tells nobody when that changes. It ends when the
                // hypervisor does, or the caller loses patience.
                Ok(None) => tokio::time::sleep(wait).await,
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                    return Err(RuntimeError::Ended);
                }
                Err(e) => return Err(self.failed("reaching the guest in")(e)),
            }
            wait = LATER.min(wait * 2);
        }
    }

    async fn channel_while_paused(&self) -> Option<Box<dyn Channel>> {
        None
    }

    async fn pause(&self) -> Result<(), RuntimeError> {
        let _one = self.state.lock().await;
        // Before: whoever opens a channel to a machine that was paused must not let it go on.
        self.opened()?;
        self.api.tell(&Request::Vm { state: VmState::Paused }).await
    }

    async fn resume(&self) -> Result<(), RuntimeError> {
        let _one = self.state.lock().await;
        self.api.tell(&Request::Vm { state: VmState::Resumed }).await?;
        self.opened()
    }

    async fn is_paused(&self) -> Result<bool, RuntimeError> {
        Ok(self.state().await? != InstanceState::Running)
    }

    async fn save(&self, pid: u32, state: File, memory: File) -> Result<(), RuntimeError> {
        state.set_len(0).map_err(self.failed("opening the state file of"))?;
        self.must_be_paused().await?;
        let size: MemorySize = self.api.ask(&Request::MachineConfig).await?;
        let bytes = size.mem_size_mib.saturating_mul(1 << 20);
        if bytes > IN_ONE_PIECE {
            let why = "a memory of more than 3 GiB is in two pieces, which cannot be saved yet";
            return Err(self.failed("saving")(io::Error::other(why)));
        }
        self.forget_snapshot()?;
        // The memory file that comes with it is of no use: what changed is counted there from the last snapshot, not from
        // the base, and in a file its zeros cannot be told from what was not written. So it is only kept small.
        let request = Request::SnapshotCreate {
            snapshot_type: SnapshotType::Diff,
            snapshot_path: SAVED_STATE,
            mem_file_path: SAVED_MEMORY,
        };
        let saved = match self.api.tell(&request).await {
            Ok(()) => {
                let root = self.root.clone();
                let copied = tokio::task::spawn_blocking(move || {
                    jail::take(&root, SAVED_STATE, state)?;
                    pages::save(pid, bytes, memory).map(drop)
                });
                copied.await.map_err(io::Error::other).flatten().map_err(self.failed("saving"))
            }
            failed => failed,
        };
        saved.and(self.forget_snapshot())?;
        self.must_be_paused().await
    }
}

/// Asks for a connection to the guest's port; `None` when nobody listens there.
async fn greet(root: &Path) -> io::Result<Option<UnixStream>> {
    let mut stream = jail::connect(root, AGENT).await?;
    let asked = async {
        stream.write_all(format!("CONNECT {}\n", tartarus_guest::VSOCK_PORT).as_bytes()).await?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER {
            // One by one: what follows is the guest's.
            answer.push(stream.read_u8().await?);
        }
        Ok::<_, io::Error>(answer)
    };
    match asked.await {
        Ok(answer) if answer.starts_with(b"OK ") && answer.ends_with(b"\n") => Ok(Some(stream)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "Firecracker's answer is not understood: no OK")),
        Err(e) => match e.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(None),
            _ => Err(e),
        },
    }
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
