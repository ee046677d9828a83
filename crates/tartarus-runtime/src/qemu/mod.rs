//! The QEMU driver: the `microvm` machine, with KVM where it truly runs a Linux guest, with TCG anywhere.

mod args;
mod monitor;
mod qmp;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

pub(crate) use args::MAC;
use args::Start;
pub(crate) use monitor::QemuMonitor;

use crate::cell::Cell;
use crate::driver::{Adopted, DiskFormat, Driver, Fingerprint, Machine, Restore, RuntimeError, Vm};
use crate::host;
use crate::supervisor::{Deadlines, Given, Hypervisor, Launch, Program, SupervisedVm};

/// QEMU's program on x86-64.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The guest channel's socket in the machine's folder.
const AGENT: &str = "agent.sock";
/// QEMU's control socket in the machine's folder.
const QMP: &str = "qmp.sock";
/// Descriptors under which QEMU finds its sockets, memory and state. Far above what a supervisor has open, so that giving one does not
/// overwrite another.
const AGENT_FD: i32 = 100;
const QMP_FD: i32 = 101;
const MEMORY_FD: i32 = 102;
const STATE_FD: i32 = 103;
/// And its files. A disk that is written is opened twice, since QEMU reads it first by a descriptor that cannot write.
const BASE_FD: i32 = 104;
const LAYER_FD: i32 = 105;
const LAYER_READ_FD: i32 = 106;
const OVER_FD: i32 = 107;
const KERNEL_FD: i32 = 108;
const INITRAMFS_FD: i32 = 109;
/// What its card leads to.
const TAP_FD: i32 = 110;

/// One heap for all of its threads, which grows in larger steps: the thread that translates guest code asks for memory
/// all the time, and glibc gives any thread but the first 4 KiB at once. (It also fixes the size from which a block is
/// mapped by itself.)
const ENV: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TOP_PAD_", "1048576")];

const TAKES_ROOT: &str = "a network takes a cell, and so root: as an ordinary user start it without one";
const TAKES_TAP: &str = "QEMU takes the TAP of a network as a descriptor, and there is none";

/// How guest instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By translation. The guest is told the host's time-stamp counter frequency, since it cannot measure it reliably.
    Tcg {
        /// In kHz.
        tsc_khz: u64,
    },
}

/// Runs machines with QEMU.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// How.
    pub accel: Accel,
    /// The program's build, as [`version`] says: looked up once, since every snapshot is held against it.
    pub build: String,
    /// The supervisor's program.
    pub supervisor: Program,
    /// Where it is locked up; `None` where nobody can.
    pub cell: Option<Cell>,
}

#[async_trait]
impl Driver for Qemu {
    fn name(&self) -> &'static str {
        match self.accel {
            Accel::Kvm => "qemu-kvm",
            Accel::Tcg { .. } => "qemu-tcg",
        }
    }

    async fn boot(&self, machine: &Machine, deadlines: Deadlines) -> Result<Box<dyn Vm>, RuntimeError> {
        self.start(machine, Start::Boot, Vec::new(), deadlines).await
    }

    fn fingerprint(&self) -> Fingerprint {
        let (cpu, tsc_khz) = match self.accel {
            Accel::Kvm => (host::processor(), None),
            Accel::Tcg { tsc_khz } => (args::cpu(self.accel).to_owned(), Some(tsc_khz)),
        };
        let shape = args::shape(self.accel);
        Fingerprint { driver: self.name().to_owned(), build: self.build.clone(), shape, cpu, tsc_khz }
    }

    async fn restore(
        &self,
        machine: &Machine,
        from: Restore,
        deadlines: Deadlines,
    ) -> Result<Box<dyn Vm>, RuntimeError> {
        // `from` lives until the supervisor has taken both.
        let fds = vec![(from.memory.as_raw_fd(), MEMORY_FD), (from.state.as_raw_fd(), STATE_FD)];
        let vm = self.start(machine, Start::Restore, fds, deadlines).await;
        drop(from);
        vm
    }

    async fn adopt(&self, dir: &Path) -> Result<Adopted, RuntimeError> {
        SupervisedVm::adopt(dir).await
    }
}

impl Qemu {
    async fn start(
        &self,
        machine: &Machine,
        start: Start,
        mut fds: Vec<(i32, i32)>,
        deadlines: Deadlines,
    ) -> Result<Box<dyn Vm>, RuntimeError> {
        let network = self.network(machine)?;
        fds.extend(network.map(|(_, tap)| (tap, TAP_FD)));
        let network = network.map(|(namespace, _)| namespace);
        let argv = args::argv(&self.program, self.accel, machine, start)?;
        let sockets = vec![(AGENT.to_owned(), AGENT_FD), (QMP.to_owned(), QMP_FD)];
        let env = ENV.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (files, cell) = (files(machine, start), self.cell.clone());
        let (hypervisor, limits) = (Hypervisor::Qemu, Some(machine.limits(THREADS)?));
        let filtered = true;
        let launch = Launch { argv, env, sockets, fds, files, network, cell, hypervisor, filtered, limits, deadlines };
        Ok(Box::new(SupervisedVm::launch(&self.supervisor, &machine.dir, &launch).await?))
    }

    /// The descriptors of a machine's network: namespace and TAP. They are the machine's, which outlives the start.
    fn network(&self, machine: &Machine) -> Result<Option<(i32, i32)>, RuntimeError> {
        let Some(network) = &machine.network else { return Ok(None) };
        if self.cell.is_none() {
            return Err(RuntimeError::Start(TAKES_ROOT.to_owned()));
        }
        let tap = network.tap.as_ref().ok_or_else(|| RuntimeError::Start(TAKES_TAP.to_owned()))?;
        Ok(Some((network.namespace.as_raw_fd(), tap.as_raw_fd())))
    }
}

/// Threads beside those of its processors: QEMU has up to 64 for its disks, and a few of its own.
const THREADS: u32 = 80;
/// What a machine is given open.
fn files(machine: &Machine, start: Start) -> Vec<Given> {
    let file = |path: &Path, at| Given { path: path.to_owned(), write: false, at };
    let layer = &machine.layer.path;
    let mut files = vec![file(&machine.base, BASE_FD), file(layer, LAYER_READ_FD)];
    files.push(Given { write: true, ..file(layer, LAYER_FD) });
    if let DiskFormat::Overlay { over } = &machine.layer.format {
        files.push(file(over, OVER_FD));
    }
    if start == Start::Boot {
        files.extend([file(&machine.kernel, KERNEL_FD), file(&machine.initramfs, INITRAMFS_FD)]);
    }
    files
}

/// Where the program is: on the path, or where administrators' programs are. Everything that runs it uses this answer,
/// so that the build that was probed is the build that runs.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/bin", "/usr/local/bin"].map(PathBuf::from));
    let found = folders.map(|dir| dir.join(PROGRAM)).find(|program| program.is_absolute() && program.is_file())?;
    // QEMU looks for its firmware beside where it really is.
    Some(found.canonicalize().unwrap_or(found))
}

/// The first line of `qemu --version`: what identifies a build.
///
/// # Errors
/// When there is no such program, or it does not answer within 10 s.
pub async fn version(program: &Path) -> Result<String, RuntimeError> {
    let run = tokio::process::Command::new(program).arg("--version").kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(10), run)
        .await
        .map_err(|_| RuntimeError::Start(format!("{} --version does not answer", program.display())))?
        .map_err(|e| RuntimeError::io(format!("running {}", program.display()), e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}
