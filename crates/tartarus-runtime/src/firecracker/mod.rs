//! The Firecracker driver: its jailer within our own walls, its API's socket, vsock. It takes KVM, and root.
//!
//! It runs with what it was configured with at its start, or becomes what a snapshot holds: see [`crate::cell::Jail`] for
//! how it is locked up.

mod api;
mod client;
mod config;
mod jail;
mod monitor;
mod program;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use api::{ActionType, Request, Version};
use client::Client;
pub(crate) use monitor::FirecrackerMonitor;
use monitor::UNOPENED;
pub use program::{find, jailer};

use crate::cell::{self, Groups, Jail, LOCKS, Limits, Shared};
use crate::driver::{Adopted, DiskFormat, Driver, Fingerprint, Machine, Restore, RuntimeError, Vm};
use crate::host;
use crate::supervisor::{Deadlines, Hypervisor, Launch, Program, SupervisedVm};

/// How long Firecracker may take until it has understood what it is to run.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that does not answer any more may take to end, so that its end tells why.
const ENDING: Duration = Duration::from_secs(2);
/// Between two tries to reach a socket that was made and is not listened to yet.
const SOON: Duration = Duration::from_millis(1);
/// Descriptor under which it finds a snapshot's memory: the jailer closes all but standard input and output.
const MEMORY_FD: i32 = 0;
/// What it may write to a file beyond the longest that it must: a year and more of metrics, since it ends when it cannot.
const SLACK: u64 = 4 << 30;

const TAKES_ROOT: &str = "Firecracker's jailer takes root: as an ordinary user take QEMU";

/// Runs machines with Firecracker.
#[derive(Debug, Clone)]
pub struct Firecracker {
    /// The program.
    pub program: PathBuf,
    /// Its jailer, of the same build.
    pub jailer: PathBuf,
    /// The build: looked up once, since every snapshot is held against it.
    pub build: String,
    /// The supervisor's program.
    pub supervisor: Program,
    /// A folder of files that are locked, one for each user id in use.
    pub locks: PathBuf,
    /// Where control groups are made.
    pub groups: Groups,
}

impl Firecracker {
    /// With this program, and the jailer beside it.
    ///
    /// # Errors
    /// When there is no such jailer, or one of them is too old, or they are of two builds; as an ordinary user; when no
    /// control group can be made, or the user ids of hypervisors are others'.
    pub async fn open(program: &Path, supervisor: Program) -> Result<Self, RuntimeError> {
        let jailer = program::jailer(program)?;
        // The jailer goes by what the program is really called.
        let program = program.canonicalize().map_err(|e| RuntimeError::io(format!("{}", program.display()), e))?;
        let build = program::version(&program, &jailer).await?;
        if !rustix::process::geteuid().is_root() {
            return Err(RuntimeError::Start(TAKES_ROOT.to_owned()));
        }
        let found = tokio::task::spawn_blocking(|| {
            let groups = Groups::find()?;
            cell::check_uids(Path::new(LOCKS), &groups).map(|()| groups)
        });
        let groups = found.await.map_err(|e| e.to_string()).flatten().map_err(RuntimeError::Start)?;
        Ok(Self { program, jailer, build, supervisor, locks: LOCKS.into(), groups })
    }
}

impl Firecracker {
    /// What the Firecracker in `dir` has counted since its start or since it last said so: the devices' reads, writes and
    /// errors, by name. It also writes that down each minute, some kilobytes. It may lie, as its guest may.
    ///
    /// # Errors
    /// When it does not answer, or with nonsense.
    pub async fn metrics(&self, dir: &Path) -> Result<serde_json::Value, RuntimeError> {
        let failed = |cause| RuntimeError::io(format!("the metrics of {}", dir.display()), cause);
        let root = Jail::root_of(&jail::base(dir).map_err(failed)?, &self.program);
        Client::new(&root).tell(&Request::Action { action_type: ActionType::FlushMetrics }).await?;
        let lines = jail::end_of(&root, jail::METRICS).map_err(failed)?;
        let last = lines.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        serde_json::from_slice(last).map_err(|e| failed(e.into()))
    }
}

/// How a machine starts.
enum Start {
    Boot,
    Restore(Restore),
}

#[async_trait]
impl Driver for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn overlays(&self) -> bool {
        false
    }

    fn takes_elf(&self) -> bool {
        true
    }

    fn opens_tap(&self) -> bool {
        true
    }

    async fn boot(&self, machine: &Machine, deadlines: Deadlines) -> Result<Box<dyn Vm>, RuntimeError> {
        self.start(machine, Start::Boot, deadlines).await
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            driver: self.name().to_owned(),
            build: self.build.clone(),
            shape: config::shape(),
            cpu: host::processor(),
            tsc_khz: None,
        }
    }

    async fn restore(
        &self,
        machine: &Machine,
        from: Restore,
        deadlines: Deadlines,
    ) -> Result<Box<dyn Vm>, RuntimeError> {
        self.start(machine, Start::Restore(from), deadlines).await
    }

    async fn adopt(&self, dir: &Path) -> Result<Adopted, RuntimeError> {
        SupervisedVm::adopt(dir).await
    }
}

impl Firecracker {
    async fn start(&self, machine: &Machine, start: Start, deadlines: Deadlines) -> Result<Box<dyn Vm>, RuntimeError> {
        possible(machine, &start)?;
        let failed = |cause| RuntimeError::io(format!("making the jail in {}", machine.dir.display()), cause);
        let jail = self.jail(machine, &start).map_err(failed)?;
        // From before there is anybody to make a socket.
        let watch = jail::Watch::new(&jail.root).map_err(failed)?;
        let root = jail.root.clone();
        let launch = self.launch(machine, jail, &start, deadlines)?;
        let vm = SupervisedVm::launch(&self.supervisor, &machine.dir, &launch).await?;
        // What it was handed is held until it has it.
        let started = timeout(PATIENCE, self.begin(&root, &watch, &vm, &start)).await;
        drop(start);
        let silent = || RuntimeError::Start(format!("Firecracker is not there after {} s", PATIENCE.as_secs()));
        let Err(error) = started.unwrap_or_else(|_| Err(silent())) else { return Ok(Box::new(vm)) };
        // Its own word is better than that it is gone.
        let ended = timeout(ENDING, vm.wait()).await;
        vm.kill().await;
        vm.wait().await;
        Err(match (error, ended) {
            (RuntimeError::Ended, Ok(exit)) => RuntimeError::Start(format!("{}: {}", exit.status, exit.console)),
            (error, _) => error,
        })
    }

    /// Makes the jail's folder with all that is not a view of the host's.
    fn jail(&self, machine: &Machine, start: &Start) -> io::Result<Jail> {
        let base = jail::base(&machine.dir)?;
        let root = Jail::root_of(&base, &self.program);
        jail::make(&base, &root)?;
        let shared = |path: &Path, name: &str, write| Shared {
            path: path.to_owned(),
            name: name.trim_start_matches('/').to_owned(),
            write,
        };
        let mut files = vec![shared(&machine.base, jail::BASE, false), shared(&machine.layer.path, jail::LAYER, true)];
        let unopened = machine.dir.join(UNOPENED);
        match start {
            Start::Boot => {
                jail::put(&root, jail::CONFIGURATION, &*serde_json::to_vec(&config::configuration(machine))?)?;
                files.push(shared(&machine.kernel, jail::KERNEL, false));
                files.push(shared(&machine.initramfs, jail::INITRAMFS, false));
                match std::fs::remove_file(unopened) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            Start::Restore(from) => {
                jail::put(&root, jail::STATE, File::from(from.state.try_clone()?))?;
                File::create(unopened)?;
            }
        }
        let (jailer, locks, groups) = (self.jailer.clone(), self.locks.clone(), self.groups.clone());
        Ok(Jail { jailer, base, root, locks, groups, shared: files, without: Vec::new() })
    }

    fn launch(
        &self,
        machine: &Machine,
        jail: Jail,
        start: &Start,
        deadlines: Deadlines,
    ) -> Result<Launch, RuntimeError> {
        let program = self.program.to_str();
        let program = program.ok_or_else(|| RuntimeError::Start(format!("{} is not UTF-8", self.program.display())))?;
        // What it says of itself goes to the console, among what the guest says.
        let mut argv = vec![program, "--api-sock", jail::API, "--level", "Error", "--metrics-path", jail::METRICS];
        let fds = match start {
            Start::Boot => {
                argv.extend(["--config-file", jail::CONFIGURATION]);
                Vec::new()
            }
            Start::Restore(from) => vec![(from.memory.as_raw_fd(), MEMORY_FD)],
        };
        let argv = argv.into_iter().map(str::to_owned).collect();
        let (env, sockets, files, cell) = (Vec::new(), Vec::new(), Vec::new(), None);
        // It has a filter of its own for each thread.
        let (hypervisor, filtered) = (Hypervisor::Firecracker(jail), false);
        let limits = machine.limits(THREADS)?;
        // A snapshot's memory is a file there, for a moment.
        let file_bytes = limits.file_bytes.max(u64::from(machine.memory_mib) << 20) + SLACK;
        let limits = Some(Limits { file_bytes, ..limits });
        let network = machine.network.as_ref().map(|network| network.namespace.as_raw_fd());
        Ok(Launch { argv, env, sockets, fds, files, network, cell, hypervisor, filtered, limits, deadlines })
    }

    /// Waits until the machine boots, or is restored and waits.
    async fn begin(
        &self,
        root: &Path,
        watch: &jail::Watch,
        vm: &SupervisedVm,
        start: &Start,
    ) -> Result<(), RuntimeError> {
        if let Start::Boot = start {
            // It is made when the configuration was understood. To ask the API would be surer, and must not be: what boots
            // answers later, and one that fails with a question open does not say why.
            return reached(root, jail::AGENT, watch, vm).await;
        }
        reached(root, jail::API, watch, vm).await?;
        let api = Client::new(root);
        let Version { firecracker_version: runs } = api.ask(&Request::Version).await?;
        if !self.build.starts_with(&format!("Firecracker v{runs},")) {
            let why = format!("{} was looked up, and {runs} is there now: start the node anew", self.build);
            return Err(RuntimeError::Start(why));
        }
        api.tell(&config::load()).await
    }
}

/// Waits until somebody listens to a socket in the jail.
async fn reached(root: &Path, name: &str, watch: &jail::Watch, vm: &SupervisedVm) -> Result<(), RuntimeError> {
    loop {
        let made = match jail::connect(root, name).await {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(RuntimeError::io(format!("reaching {name} in {}", root.display()), e)),
        };
        tokio::select! {
            heard = watch.next() => heard.map_err(|e| RuntimeError::io(format!("watching {}", root.display()), e))?,
            _ = vm.wait() => return Err(RuntimeError::Ended),
            // Between the making of a socket and somebody's listening to it there is no event.
            () = tokio::time::sleep(SOON), if made => {}
        }
    }
}

/// Threads beside those of its processors: its own two, one of the kernel's, the jailer's, and the one that stands for it.
const THREADS: u32 = 16;

/// What Firecracker cannot do, before anything is started.
fn possible(machine: &Machine, start: &Start) -> Result<(), RuntimeError> {
    let no = |why: String| Err(RuntimeError::Start(why));
    if !rustix::process::geteuid().is_root() {
        return no(TAKES_ROOT.to_owned());
    }
    if machine.layer.format != DiskFormat::Raw {
        return no("Firecracker reads raw disks only, and the layer is a qcow2 overlay: make a copy instead".to_owned());
    }
    if machine.network.as_ref().is_some_and(|network| network.tap.is_some()) {
        return no(
            "Firecracker opens the TAP of a network itself, which is refused while somebody else has it".to_owned()
        );
    }
    if matches!(start, Start::Boot) && !is_elf(&machine.kernel)? {
        let kernel = machine.kernel.display();
        return no(format!(
            "the kernel {kernel} is no ELF, which is all that Firecracker boots: take an uncompressed vmlinux"
        ));
    }
    Ok(())
}

fn is_elf(kernel: &Path) -> Result<bool, RuntimeError> {
    let failed = |cause| RuntimeError::io(format!("reading the kernel {}", kernel.display()), cause);
    let mut magic = Vec::new();
    File::open(kernel).map_err(failed)?.take(4).read_to_end(&mut magic).map_err(failed)?;
    Ok(magic == *b"\x7fELF")
}
