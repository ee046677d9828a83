//! Which driver runs a kernel on this host: by trying, not by believing.
//!
//! That `/dev/kvm` exists, and even that a virtual machine can be created, does not prove that a Linux guest can run
//! (under PVM it hangs). So the kernel that will be used is booted up to the agent's answer, once per kernel,
//! hypervisor build and host boot.

mod decide;
mod probe;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use erebus::kernels::KernelStore;
use serde::{Deserialize, Serialize};
use tartarus_runtime::Driver;
use tartarus_runtime::cell::{Cell, Groups};
use tartarus_runtime::firecracker::{self, Firecracker};
use tartarus_runtime::host::{self, Tsc};
use tartarus_runtime::qemu::{self, Accel, Qemu};
use tartarus_runtime::supervisor::Program;
use tokio::sync::Mutex;

pub use decide::Wanted;
pub(crate) use decide::{Chosen, Kind};
use decide::{considers, decide};
use probe::Found;

use crate::ledger::{make_dir, read_json, write_json};
use crate::workshop::CannotStart;

/// The device of hardware virtualisation.
const KVM: &str = "/dev/kvm";

/// How long a choice holds where a better driver could not be tried: each start would try it else.
const AGAIN: Duration = Duration::from_secs(60);

/// A probe on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Probe {
    boot: String,
    kernel: String,
    build: String,
    found: Found,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TscOfBoot {
    boot: String,
    tsc: Tsc,
}

/// A choice that was made.
struct Known {
    /// It holds as long as they are the same,
    programs: Programs,
    /// and where a better driver could not be tried then, until it may be tried again.
    until: Option<Instant>,
    driver: Arc<dyn Driver>,
    chosen: Chosen,
}

/// Tells a program's file from the one that an upgrade puts in its place.
type Stamp = (u64, u64, i64, i64);

/// QEMU, Firecracker and its jailer.
type Programs = [Option<Stamp>; 3];

fn stamp(program: PathBuf) -> Option<Stamp> {
    let meta = std::fs::metadata(program).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

/// Chooses drivers, and remembers.
pub(crate) struct Chooser {
    dir: PathBuf,
    /// File systems of cells.
    cells: PathBuf,
    wanted: Wanted,
    supervisor: Program,
    kernels: KernelStore,
    /// By kernel.
    known: Mutex<HashMap<String, Known>>,
}

/// A kernel to choose for.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) digest: &'a str,
    pub(crate) vmlinuz: &'a Path,
    pub(crate) initramfs: &'a Path,
}

impl Chooser {
    pub(crate) fn new(
        dir: PathBuf,
        cells: PathBuf,
        wanted: Wanted,
        supervisor: Program,
        kernels: KernelStore,
    ) -> std::io::Result<Self> {
        make_dir(&dir)?;
        Ok(Self { dir, cells, wanted, supervisor, kernels, known: Mutex::new(HashMap::new()) })
    }

    fn qemu(&self, program: &Path, build: &str, accel: Accel, cell: Option<Cell>) -> Arc<dyn Driver> {
        let (program, build, supervisor) = (program.to_owned(), build.to_owned(), self.supervisor.clone());
        Arc::new(Qemu { program, build, accel, supervisor, cell })
    }

    /// Where a hypervisor is locked up. With `first` no machine was started yet, and what other builds left goes: it takes
    /// room, and no more.
    async fn cell(&self, program: &Path, accel: Accel, first: bool) -> Result<Option<Cell>, CannotStart> {
        let (dir, program) = (self.cells.clone(), program.to_owned());
        let device = (accel == Accel::Kvm).then(|| PathBuf::from(KVM));
        let made = tokio::task::spawn_blocking(move || {
            let cell = Cell::open(&dir, &program, device)?;
            if let Some(Err(error)) = cell.as_ref().filter(|_| first).map(Cell::remove_others) {
                tracing::warn!(error = %error, "the files of other hypervisors stay in {}", dir.display());
            }
            Ok(cell)
        });
        let made = made.await;
        let failed = |e: std::io::Error| CannotStart::retry(format!("the hypervisor cannot be locked up: {e}"));
        made.map_err(CannotStart::retry)?.map_err(failed)
    }

    /// Nothing runs any more: what no other node of the host needs goes.
    pub(crate) fn close(&self) {
        if let (true, Ok(groups)) = (rustix::process::geteuid().is_root(), Groups::find()) {
            groups.remove_parent();
        }
    }

    /// Takes over machines of any driver: by then they only have a supervisor.
    pub(crate) fn adopter(&self) -> Arc<dyn Driver> {
        self.qemu(Path::new(qemu::PROGRAM), "", Accel::Kvm, None)
    }

    /// The driver for a kernel, and why. Probes if it must; concurrent callers wait for the same probe.
    pub(crate) async fn choose(
        &self,
        kernel: Candidate<'_>,
        reprobe: bool,
    ) -> Result<(Arc<dyn Driver>, Chosen), CannotStart> {
        let mut known = self.known.lock().await;
        let lighter = firecracker::find();
        let jailer = lighter.as_deref().and_then(|program| firecracker::jailer(program).ok());
        let now = [qemu::find(), lighter, jailer].map(|program| program.and_then(stamp));
        if !reprobe
            && let Some(known) = known.get(kernel.digest)
            && known.programs == now
            && known.until.is_none_or(|until| Instant::now() < until)
        {
            return Ok((known.driver.clone(), known.chosen.clone()));
        }
        let first = known.is_empty();
        if first {
            remove_left().await;
        }
        let (lighter, with_it) = self.try_firecracker(kernel, reprobe).await;
        let (kvm, program) = match lighter {
            // Nothing better can come.
            Found::Works(_) => (Found::Absent("not looked for".to_owned()), None),
            _ => self.try_kvm(kernel, reprobe).await?,
        };
        // What could not be tried now may be the better one the next time.
        let for_now = [&lighter, &kvm].into_iter().any(|found| matches!(found, Found::Untried(_)));
        let refused = |why| CannotStart { why, retry: for_now };
        let chosen = decide(self.wanted, &lighter, &kvm).map_err(refused)?;
        tracing::info!(driver = chosen.kind.name(), why = %chosen.why, passed_over = chosen.detail, "driver chosen");
        let driver = match (chosen.kind, with_it) {
            (Kind::Firecracker, Some(driver)) => driver,
            (kind, _) => {
                let (program, build) = program.ok_or_else(no_qemu)?;
                let accel =
                    if kind == Kind::QemuKvm { Accel::Kvm } else { Accel::Tcg { tsc_khz: self.tsc().await.khz } };
                let cell = self.cell(&program, accel, first).await?;
                self.qemu(&program, &build, accel, cell)
            }
        };
        let until = for_now.then(|| Instant::now() + AGAIN);
        let choice = Known { programs: now, until, driver: driver.clone(), chosen: chosen.clone() };
        known.insert(kernel.digest.to_owned(), choice);
        Ok((driver, chosen))
    }

    /// The time-stamp counter, measured once per boot of the host.
    pub(crate) async fn tsc(&self) -> Tsc {
        let path = self.dir.join("tsc.json");
        let boot = host::boot_id();
        if let Ok(Some(known)) = read_json::<TscOfBoot>(&path)
            && known.boot == boot
            && !boot.is_empty()
        {
            return known.tsc;
        }
        let tsc = tokio::task::spawn_blocking(host::measure_tsc).await.unwrap_or(Tsc { khz: 0, steady: false });
        if tsc.khz == 0 {
            return tsc;
        }
        // Only a cache: without it the next start measures again.
        let _ = write_json(&path, &TscOfBoot { boot, tsc });
        tsc
    }

    /// Whether Firecracker runs this kernel, and the driver where it can be had.
    async fn try_firecracker(&self, kernel: Candidate<'_>, reprobe: bool) -> (Found, Option<Arc<dyn Driver>>) {
        let absent = |why: String| (Found::Absent(why), None);
        let untried = |why: String| (Found::Untried(why), None);
        if !considers(self.wanted, Kind::Firecracker) {
            return absent("not looked for".to_owned());
        }
        if firecracker::find().is_none() {
            return absent("there is no Firecracker on the PATH, nor in TARTARUS_FIRECRACKER".to_owned());
        }
        if !rustix::process::geteuid().is_root() {
            return absent("Firecracker's jailer takes root".to_owned());
        }
        if let Err(why) = kvm_opens() {
            return absent(why);
        }
        let driver = match open_firecracker(self.supervisor.clone()).await {
            Ok(driver) => driver,
            Err(why) => return untried(why),
        };
        let driver: Arc<dyn Driver> = Arc::new(driver);
        let elf = match self.kernels.elf(kernel.digest).await {
            Ok(elf) => elf,
            Err(e) => return untried(e.to_string()),
        };
        let build = driver.fingerprint().build;
        match self.probe(kernel, Kind::Firecracker, &build, &*driver, elf, reprobe).await {
            Ok(found) => (found, Some(driver)),
            // Another driver may start.
            Err(e) => untried(e.why),
        }
    }

    /// Whether QEMU with KVM does; and QEMU with its build, which a choice of TCG needs as well.
    async fn try_kvm(
        &self,
        kernel: Candidate<'_>,
        reprobe: bool,
    ) -> Result<(Found, Option<(PathBuf, String)>), CannotStart> {
        if self.wanted == Wanted::Firecracker {
            return Ok((Found::Absent("not looked for".to_owned()), None));
        }
        let program = qemu::find().ok_or_else(no_qemu)?;
        let build = qemu::version(&program).await.map_err(CannotStart::retry)?;
        let found = if !considers(self.wanted, Kind::QemuKvm) {
            Found::Absent("not looked for".to_owned())
        } else if let Err(why) = kvm_opens() {
            Found::Absent(why)
        } else {
            let cell = self.cell(&program, Accel::Kvm, false).await?;
            let driver = self.qemu(&program, &build, Accel::Kvm, cell);
            // Who is locked up may meet with something else.
            let locked_up = if rustix::process::geteuid().is_root() { " in a cell" } else { "" };
            let key = format!("{build}{locked_up}");
            self.probe(kernel, Kind::QemuKvm, &key, &*driver, kernel.vmlinuz.to_owned(), reprobe).await?
        };
        Ok((found, Some((program, build))))
    }

    /// Probes, unless that was done for the same kernel and build since the host came up.
    async fn probe(
        &self,
        kernel: Candidate<'_>,
        kind: Kind,
        build: &str,
        driver: &dyn Driver,
        image: PathBuf,
        reprobe: bool,
    ) -> Result<Found, CannotStart> {
        let path = self.dir.join(format!("probe-{}.json", kind.name()));
        let boot = host::boot_id();
        // The initramfs is named by the agent in it.
        let agent = kernel.initramfs.file_name().unwrap_or_default().display();
        let guest = format!("{} {agent}", kernel.digest);
        if let Ok(Some(known)) = read_json::<Probe>(&path)
            && (known.boot == boot && known.kernel == guest && known.build == build)
            && !reprobe
        {
            return Ok(known.found);
        }
        tracing::info!(driver = kind.name(), "probing whether it boots a Linux guest (10 s at most)");
        // A guest that was not even started proves nothing, so nothing is remembered of it.
        let dir = self.dir.join("probe");
        let found = probe::probe(&dir, driver, image, kernel.initramfs.to_owned()).await.map_err(CannotStart::retry)?;
        let _ = write_json(&path, &Probe { boot, kernel: guest, build: build.to_owned(), found: found.clone() });
        Ok(found)
    }
}

/// Removes control groups of machines that a killed supervisor left; before this node has started any.
async fn remove_left() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let removed = tokio::task::spawn_blocking(Groups::remove_left).await;
    if let Err(error) = removed.unwrap_or_else(|e| Err(e.into())) {
        tracing::warn!(error = %error, "control groups of machines that have ended stay");
    }
}

/// Firecracker with its jailer, or why not.
pub(crate) async fn open_firecracker(supervisor: Program) -> Result<Firecracker, String> {
    let program = firecracker::find().ok_or("there is no Firecracker")?;
    Firecracker::open(&program, supervisor).await.map_err(|e| e.to_string())
}

/// Whether the device is there for this user.
pub(crate) fn kvm_opens() -> Result<(), String> {
    let opened = std::fs::File::options().read(true).write(true).open(KVM);
    opened.map(drop).map_err(|e| format!("{KVM}: {e}"))
}

fn no_qemu() -> CannotStart {
    let name = qemu::PROGRAM;
    CannotStart::never(format!("{name} is not there: install QEMU (Debian: apt-get install qemu-system-x86)"))
}
