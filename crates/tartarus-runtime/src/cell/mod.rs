//! The cell of a hypervisor: what a guest that broke out of its machine finds itself in.
//!
//! A user id of its own, without any capability; a file system of nothing but the
//! hypervisor's own files, read-only; process, network, IPC, host-name and cgroup namespaces of its own. Everything else
//! that it works with it is handed as an open descriptor before. Only root can make cells.
//!
//! Firecracker brings a jailer that does part of this, and takes no descriptors: see [`Jail`].

mod enter;
mod init;
mod jail;
mod root;
mod tap;
mod uids;

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub(crate) use enter::last_steps;
pub(crate) use init::SIGNALLED;
pub use jail::{Jail, Shared};
pub(crate) use uids::{Uid, take};

/// Where user ids are locked, by all nodes of a host.
pub(crate) const LOCKS: &str = "/run/tartarus/uids";
/// The first user id of cells: above what systemd, containers, `/etc/subuid` and directories of users are given by default.
pub const FIRST_UID: u32 = 2_100_000_000;
/// How many there are: hypervisors at once, of all nodes of a host.
pub const UIDS: u32 = 65_536;

/// The way to where a hypervisor is locked up, prepared before the fork.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A cell of ours.
    Cell(enter::Way),
    /// Our walls, and within them Firecracker's jailer.
    Jail(jail::Way),
}

impl Entry {
    /// For the hypervisor with that user id.
    pub(crate) fn into_cell(cell: &Cell, uid: u32) -> io::Result<Self> {
        enter::Way::new(cell, uid).map(Self::Cell)
    }

    /// Makes what the jail's files are laid over, and gives those that it may write to that user id.
    pub(crate) fn into_jail(jail: &Jail, uid: u32) -> io::Result<Self> {
        jail::Way::new(jail, uid).map(Self::Jail)
    }

    /// Goes there. Only for a child between fork and exec: nothing that its parent opened or mapped is changed.
    ///
    /// # Errors
    /// The step that failed is written to standard error.
    pub(crate) fn enter(&self) -> io::Result<()> {
        match self {
            Self::Cell(way) => way.enter().and_then(|()| last_steps()),
            Self::Jail(way) => way.enter(),
        }
    }
}

/// How cells of one hypervisor are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Its file system.
    pub root: PathBuf,
    /// A folder of files that are locked, one for each user id in use.
    pub locks: PathBuf,
    /// A character device that it is given a node of, which is its own.
    #[serde(default)]
    pub device: Option<PathBuf>,
}

impl Cell {
    /// Gathers the files of `program` below `dir`, unless that was done before; `None` for anybody but root, who cannot make
    /// cells. Blocks, for some tenths of a second the first time.
    ///
    /// # Errors
    /// When a file of the program cannot be found or copied.
    pub fn open(dir: &Path, program: &Path, device: Option<PathBuf>) -> io::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let _one = one_at_a_time();
        let root = root::gather(dir, program)?;
        Ok(Some(Self { root, locks: LOCKS.into(), device }))
    }

    /// Removes the files of other builds: before any machine is started that could have been told of them.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_others(&self) -> io::Result<()> {
        let _one = one_at_a_time();
        self.root.parent().map_or(Ok(()), |dir| root::remove_others(dir, &self.root))
    }

    /// Whether `program` can be run in one, but for the process namespace, which takes a supervisor. Blocks.
    ///
    /// # Errors
    /// The step that failed, and why.
    pub fn check(&self, program: &Path) -> Result<(), String> {
        let locks = |e: io::Error| format!("{}: {e}", self.locks.display());
        let uid = take(&self.locks).map_err(locks)?;
        let way = enter::Way::new(self, uid.number).map_err(|e| e.to_string())?;
        let (mut said, stderr) = io::pipe().map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        command.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        // SAFETY: the closure only makes system calls; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || way.enter()) };
        let ended = command.status();
        drop(command);
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{}: {status}", program.display())),
            Err(error) => {
                let mut step = String::new();
                let _ = said.read_to_string(&mut step);
                Err(format!("{}: {error}", step.trim()))
            }
        }
    }
}

/// Files are gathered, and removed, in one place before they count.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
