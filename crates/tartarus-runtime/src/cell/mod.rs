//! The cell of a hypervisor: what a guest that broke out of its machine finds itself in.
//!
//! A user id of its own, without any capability; a file system of nothing but the
//! hypervisor's own files, read-only; process, network, IPC, host-name and cgroup namespaces of its own. Everything else
//! that it works with it is handed as an open descriptor before. Only root can make cells.

mod enter;
mod root;
mod uids;

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub(crate) use enter::{Entry, last_steps};
pub(crate) use uids::{Uid, take};

/// Where user ids are locked, by all nodes of a host.
const LOCKS: &str = "/run/tartarus/uids";
/// The first user id of cells: above what systemd, containers, `/etc/subuid` and directories of users are given by default.
pub const FIRST_UID: u32 = 2_100_000_000;
/// How many there are: hypervisors at once, of all nodes of a host.
pub const UIDS: u32 = 65_536;

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
        let entry = Entry::new(self, uid.number).map_err(|e| e.to_string())?;
        let (mut said, stderr) = io::pipe().map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        command.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        // SAFETY: the closure only makes system calls; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || entry.enter()) };
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
