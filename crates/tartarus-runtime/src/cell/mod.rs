//! The cell of a hypervisor: what a guest that broke out of its machine finds itself in.
//!
//! A user id of its own, without any capability; a file system of nothing but the
//! hypervisor's own files, read-only; process, network, IPC, host-name and cgroup namespaces of its own. Everything else
//! that it works with it is handed as an open descriptor before. Only root can make cells.
//!
//! Firecracker brings a jailer that does part of this, and takes no descriptors: see [`Jail`].

mod enter;
mod filter;
mod groups;
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

pub use enter::FILTER;
pub(crate) use enter::LastSteps;
pub(crate) use groups::Group;
pub use groups::{Groups, Limits};
pub(crate) use init::SIGNALLED;
pub use jail::{Jail, Shared};
pub(crate) use uids::{Uid, check as check_uids, take};

/// Where user ids are locked, by all nodes of a host.
pub(crate) const LOCKS: &str = "/run/tartarus/uids";
/// The first user id of cells: above what systemd, containers, `/etc/subuid` and directories of users are given by default.
pub const FIRST_UID: u32 = 2_100_000_000;
/// How many there are: hypervisors at once, of all nodes of a host.
pub const UIDS: u32 = 65_536;

/// What a try of a cell may use.
const TRIED: Limits =
    Limits { cpu_percent: 150, cpu_weight: 100, memory_bytes: 256 << 20, threads: 64, file_bytes: 1 << 20 };

/// The way to where a hypervisor is locked up, prepared before the fork.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A cell of ours.
    Cell(enter::Way, LastSteps),
    /// Our walls, and within them Firecracker's jailer.
    Jail(jail::Way),
    /// Nowhere: only root can make walls.
    Nowhere(LastSteps),
}

impl Entry {
    /// For the hypervisor with that user id.
    pub(crate) fn into_cell(cell: &Cell, uid: u32, group: Option<&mut Group>, last: LastSteps) -> io::Result<Self> {
        Ok(Self::Cell(enter::Way::new(cell, uid, group)?, last))
    }

    /// Makes what the jail's files are laid over, and gives those that it may write to that user id. With a network it stays
    /// in this process's, where it finds its TAP.
    pub(crate) fn into_jail(jail: &Jail, uid: u32, group: Option<&mut Group>, networked: bool) -> io::Result<Self> {
        jail::Way::new(jail, uid, group, networked).map(Self::Jail)
    }

    /// Goes there. Only for a child between fork and exec: nothing that its parent opened or mapped is changed.
    ///
    /// # Errors
    /// The step that failed is written to standard error.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let last = match self {
            Self::Jail(way) => return way.enter(),
            Self::Nowhere(last) => last,
            Self::Cell(way, last) => {
                way.enter()?;
                last
            }
        };
        LastSteps::end_with_supervisor()?;
        last.confine()
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
    /// Where its control group is made.
    #[serde(default)]
    pub groups: Groups,
    /// What it lacks: nothing, but in the test that shows what each layer is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Layer>,
}

/// A part of a cell. Each takes something away from a hypervisor that nothing else takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// What the server was started with stays closed.
    Descriptors,
    /// A control group.
    Limits,
    /// A file system of its own files, and none of the host's.
    Files,
    /// That file system cannot be written.
    ReadOnly,
    /// Of `/proc`, processes only.
    Processes,
    /// A process namespace.
    ProcessNamespace,
    /// A network namespace, without a link that is up.
    Network,
    /// System V and POSIX queues of its own.
    Ipc,
    /// A host name of its own.
    HostName,
    /// The group it is in is all it sees of them.
    ControlGroups,
    /// A user id of its own.
    User,
    /// No other groups.
    Groups,
    /// No capability, and no way to one.
    Capabilities,
    /// An empty session keyring.
    Keyring,
    /// No program gives it privileges. System calls cannot be filtered without it.
    NoNewPrivileges,
    /// The filter of system calls.
    SystemCalls,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Descriptors,
        Self::Limits,
        Self::Files,
        Self::ReadOnly,
        Self::Processes,
        Self::ProcessNamespace,
        Self::Network,
        Self::Ipc,
        Self::HostName,
        Self::ControlGroups,
        Self::User,
        Self::Groups,
        Self::Capabilities,
        Self::Keyring,
        Self::NoNewPrivileges,
        Self::SystemCalls,
    ];
}

impl Cell {
    /// Gathers the files of `program` below `dir`, unless that was done before; `None` for anybody but root, who cannot make
    /// cells. Blocks, for some tenths of a second the first time.
    ///
    /// # Errors
    /// When a file of the program cannot be found or copied, a control group cannot be made, or its user ids are others'.
    pub fn open(dir: &Path, program: &Path, device: Option<PathBuf>) -> io::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let groups = Groups::find().map_err(io::Error::other)?;
        uids::check(Path::new(LOCKS), &groups).map_err(io::Error::other)?;
        let _one = one_at_a_time();
        let root = root::gather(dir, program)?;
        Ok(Some(Self { root, locks: LOCKS.into(), device, groups, without: Vec::new() }))
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
        let mut group = self.groups.make(uid.number, &TRIED).map_err(|e| format!("its control group: {e}"))?;
        let way = enter::Way::new(self, uid.number, Some(&mut group)).map_err(|e| e.to_string())?;
        tried(program, Some(self), move || way.enter())
    }
}

/// Whether `program` can be run as an ordinary user's hypervisor is, who has no cells. Blocks.
///
/// # Errors
/// The step that failed, and why.
pub fn check_without_cell(program: &Path) -> Result<(), String> {
    tried(program, None, || Ok(()))
}

/// Runs `program` for its version, after `enter` and what holds for every hypervisor.
fn tried(
    program: &Path,
    cell: Option<&Cell>,
    mut enter: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> Result<(), String> {
    let (mut said, stderr) = io::pipe().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    let last = LastSteps::new(cell, true).map_err(|e| e.to_string())?;
    // SAFETY: the closure only makes system calls; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(move || enter().and_then(|()| last.confine())) };
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

impl Groups {
    /// Removes the groups of machines whose supervisors were killed: those of user ids that nobody has locked. Blocks.
    ///
    /// # Errors
    /// When there are no groups, or one stays.
    pub fn remove_left() -> io::Result<()> {
        Self::find().map_err(io::Error::other)?.remove_left_by(Path::new(LOCKS))
    }

    /// The same for these groups and these locks.
    ///
    /// # Errors
    /// When one stays.
    pub fn remove_left_by(&self, locks: &Path) -> io::Result<()> {
        self.remove_unowned(|uid| uids::hold(locks, uid))
    }
}

/// Files are gathered, and removed, in one place before they count.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
