//! For tests only: a driver whose machines are a few lines of code, and which can fail at each step.
//!
//! Nothing in the product depends on this crate.

#![forbid(unsafe_code)]

mod guest;
pub mod ports;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use hecatoncheir::workshop::{CannotStart, Hold, Ready, Start, Workshop};
use tartarus_runtime::{
    Adopted, Cause, Channel, Deadlines, Driver, Fingerprint, Layer, Machine, Restore, RuntimeError, Vm, VmExit,
};
use tartarus_types::{SandboxSpec, SnapshotUse};
use tokio::sync::watch;

/// A step of a sandbox's course that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The driver is chosen.
    Driver,
    /// Files are made; something is left half-made.
    Machine,
    /// The hypervisor starts.
    Boot,
    /// The guest channel is connected.
    Channel,
    /// The guest never answers.
    Silence,
    /// The guest says that it cannot be set up.
    Fault,
    /// The guest answers nonsense.
    Nonsense,
    /// The hypervisor dies before the guest answers.
    DieEarly,
    /// The hypervisor dies while the command runs.
    DieLate,
    /// The guest breaks the protocol while the command runs.
    Lies,
    /// The hypervisor does not start from a snapshot.
    Restore,
    /// The runner does not come up.
    Runner,
    /// The guest cannot freeze its layer.
    Freeze,
    /// The hypervisor dies when the guest shall freeze.
    DieFreezing,
    /// The snapshot cannot be written.
    Keep,
    /// The machine does not stop.
    Pause,
    /// The machine does not go on.
    Resume,
    /// The guest agent is older than carried connections.
    OldAgent,
    /// The hypervisor is not gone when it is killed, but when this does not fail any more.
    SlowDeath,
}

impl Step {
    /// Every step of a cold start and of the life after it.
    pub const OF_A_COLD_START: [Step; 10] = [
        Step::Driver,
        Step::Machine,
        Step::Boot,
        Step::Channel,
        Step::Silence,
        Step::Fault,
        Step::Nonsense,
        Step::DieEarly,
        Step::DieLate,
        Step::Lies,
    ];

    /// Every step that makes a golden snapshot or starts from one.
    pub const OF_A_SNAPSHOT: [Step; 5] = [Step::Restore, Step::Runner, Step::Freeze, Step::DieFreezing, Step::Keep];
}

/// Makes machines that are not there, and counts those that run.
#[derive(Clone, Default)]
pub struct FakeWorkshop {
    fail: Arc<Mutex<Option<Step>>>,
    running: Arc<AtomicUsize>,
    booted: Arc<AtomicUsize>,
    kept: Arc<Mutex<BTreeSet<String>>>,
    distrusted: Arc<Mutex<BTreeSet<String>>>,
}

impl FakeWorkshop {
    /// Fails at `step` from now on, until told otherwise.
    pub fn fail_at(&self, step: Option<Step>) {
        *self.fail.lock().expect("no test panics while it holds this") = step;
    }

    fn fails(&self, step: Step) -> bool {
        *self.fail.lock().expect("no test panics while it holds this") == Some(step)
    }

    /// Machines that run now.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Golden snapshots that were made.
    pub fn kept(&self) -> BTreeSet<String> {
        self.kept.lock().expect("no test panics while it holds this").clone()
    }

    /// Golden snapshots that are not used any more.
    pub fn distrusted(&self) -> BTreeSet<String> {
        self.distrusted.lock().expect("no test panics while it holds this").clone()
    }

    /// Machines that were ever started.
    pub fn booted(&self) -> usize {
        self.booted.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Workshop for FakeWorkshop {
    async fn machine(&self, spec: &SandboxSpec, dir: &Path) -> Result<Ready, CannotStart> {
        let layer = dir.join("layer");
        std::fs::write(&layer, b"half").map_err(CannotStart::retry)?;
        if self.fails(Step::Driver) {
            return Err(CannotStart::never("planned: no driver"));
        }
        if self.fails(Step::Machine) {
            return Err(CannotStart::retry("planned: no disk"));
        }
        let (cpus, memory_mib) = (spec.cpus, spec.memory_mib);
        let none = Path::new("/dev/null").to_owned();
        let (kernel, initramfs, base) = (none.clone(), none.clone(), none);
        let layer = Layer::raw(layer);
        let machine = Machine { dir: dir.to_owned(), cpus, memory_mib, kernel, initramfs, base, layer, network: None };
        let known = spec.golden.as_ref().filter(|g| self.kept().contains(*g) && !self.distrusted().contains(*g));
        let start = match (spec.snapshot, known) {
            (SnapshotUse::Prefer | SnapshotUse::Require, Some(golden)) => {
                let null = || std::fs::File::open("/dev/null").map_err(CannotStart::retry);
                let from = Restore { memory: Arc::new(null()?.into()), state: null()?.into() };
                Start::Snapshot {
                    golden: golden.clone(),
                    from,
                    memory: String::new(),
                    hold: Hold::default(),
                    files: Hold::default(),
                }
            }
            (SnapshotUse::Require, None) => return Err(CannotStart::never("planned: no snapshot")),
            _ => Start::Cold { why: "planned: no snapshot".to_owned(), files: Hold::default() },
        };
        Ok(Ready { machine, driver: Arc::new(self.clone()), start })
    }

    async fn keep(&self, spec: &SandboxSpec, vm: &dyn Vm, _dir: &Path) -> Result<(), CannotStart> {
        vm.pause().await.map_err(CannotStart::retry)?;
        if self.fails(Step::Keep) {
            return Err(CannotStart::retry("planned: the disk is full"));
        }
        self.kept.lock().expect("no test panics while it holds this").extend(spec.golden.clone());
        Ok(())
    }

    fn distrust(&self, golden: &str, _why: &str) {
        self.distrusted.lock().expect("no test panics while it holds this").insert(golden.to_owned());
    }

    fn hold(&self, _golden: &str, _memory: &str) -> Hold {
        Hold::default()
    }

    async fn shred(&self, dir: &Path) -> std::io::Result<()> {
        std::fs::write(dir.join("layer"), b"0000")
    }

    fn adopter(&self) -> Arc<dyn Driver> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl Driver for FakeWorkshop {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn boot(&self, _machine: &Machine, _deadlines: Deadlines) -> Result<Box<dyn Vm>, RuntimeError> {
        if self.fails(Step::Boot) {
            return Err(RuntimeError::Start("planned: no hypervisor".into()));
        }
        self.booted.fetch_add(1, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
        let vm = FakeVm { workshop: self.clone(), exit: watch::Sender::new(None), paused: AtomicBool::new(false) };
        if self.fails(Step::DieEarly) {
            vm.end(Cause::Itself, "killed by SIGKILL");
        }
        Ok(Box::new(vm))
    }

    fn fingerprint(&self) -> Fingerprint {
        let word = || "fake".to_owned();
        Fingerprint { driver: word(), build: word(), shape: word(), cpu: word(), tsc_khz: None }
    }

    async fn restore(
        &self,
        machine: &Machine,
        _from: Restore,
        deadlines: Deadlines,
    ) -> Result<Box<dyn Vm>, RuntimeError> {
        if self.fails(Step::Restore) {
            return Err(RuntimeError::Start("planned: the snapshot cannot be read".into()));
        }
        self.boot(machine, deadlines).await
    }

    /// Fake machines do not outlive their process.
    async fn adopt(&self, _dir: &Path) -> Result<Adopted, RuntimeError> {
        Ok(Adopted::Absent)
    }
}

struct FakeVm {
    workshop: FakeWorkshop,
    exit: watch::Sender<Option<VmExit>>,
    paused: AtomicBool,
}

impl FakeVm {
    fn end(&self, cause: Cause, status: &str) {
        let first = self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            let status = status.to_owned();
            exit.get_or_insert(VmExit { cause, status, panicked: false, console: String::new() });
            first
        });
        if first {
            self.workshop.running.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn network(&self) -> Option<std::os::fd::OwnedFd> {
        None
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    async fn channel(&self) -> Result<Box<dyn Channel>, RuntimeError> {
        if self.workshop.fails(Step::Channel) {
            return Err(RuntimeError::Ended);
        }
        let (host, guest) = tokio::io::duplex(256 * 1024);
        let mood = guest::Mood {
            silent: self.workshop.fails(Step::Silence) || self.workshop.fails(Step::DieEarly),
            fault: self.workshop.fails(Step::Fault),
            nonsense: self.workshop.fails(Step::Nonsense),
            lies: self.workshop.fails(Step::Lies),
            old: self.workshop.fails(Step::OldAgent),
            no_runner: self.workshop.fails(Step::Runner),
            no_freeze: self.workshop.fails(Step::Freeze),
            dies_freezing: self.workshop.fails(Step::DieFreezing),
        };
        let (mut exit, dies) = (self.exit.subscribe(), self.workshop.fails(Step::DieLate));
        let end = self.exit.clone();
        let running = self.workshop.running.clone();
        tokio::spawn(async move {
            tokio::select! {
                died = guest::run(guest, mood) => {
                    if died {
                        let status = "killed by SIGKILL".to_owned();
                        let died = VmExit { cause: Cause::Itself, status, panicked: false, console: String::new() };
                        if end.send_if_modified(|e| { let first = e.is_none(); e.get_or_insert(died); first }) {
                            running.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                }
                _ = exit.wait_for(Option::is_some) => {}
                () = tokio::time::sleep(std::time::Duration::from_millis(100)), if dies => {
                    let status = "killed by SIGKILL".to_owned();
                    let died = VmExit { cause: Cause::Itself, status, panicked: false, console: String::new() };
                    if end.send_if_modified(|e| { let first = e.is_none(); e.get_or_insert(died); first }) {
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            }
        });
        Ok(Box::new(host))
    }

    async fn channel_while_paused(&self) -> Option<Box<dyn Channel>> {
        self.channel().await.ok()
    }

    async fn set_deadlines(&self, _deadlines: Deadlines) -> Result<(), RuntimeError> {
        Ok(())
    }

    fn touch(&self) {}

    async fn pause(&self) -> Result<(), RuntimeError> {
        if self.workshop.fails(Step::Pause) {
            return Err(RuntimeError::Start("planned: it does not stop".into()));
        }
        self.paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn resume(&self) -> Result<(), RuntimeError> {
        if self.workshop.fails(Step::Resume) {
            return Err(RuntimeError::Start("planned: it does not go on".into()));
        }
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn is_paused(&self) -> Result<bool, RuntimeError> {
        Ok(self.paused.load(Ordering::SeqCst))
    }

    async fn save(&self, _state: std::fs::File, _memory: std::fs::File) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn kill(&self) {
        if !self.workshop.fails(Step::SlowDeath) {
            return self.end(Cause::Ordered, "killed by SIGKILL");
        }
        let (workshop, exit) = (self.workshop.clone(), self.exit.clone());
        tokio::spawn(async move {
            while workshop.fails(Step::SlowDeath) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let vm = FakeVm { workshop, exit, paused: AtomicBool::new(false) };
            vm.end(Cause::Ordered, "killed by SIGKILL");
        });
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.expect("the sender is in self");
        ended.clone().expect("just waited for")
    }
}
