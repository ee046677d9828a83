//! Which driver runs a kernel on this host: by trying, not by believing.
//!
//! That `/dev/kvm` exists, and even that a virtual machine can be created, does not prove that a Linux guest can run
//! (under PVM it hangs). So the kernel that will be used is booted up to the agent's answer, once per kernel,
//! hypervisor build and host boot.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tartarus_runtime::cell::Cell;
use tartarus_runtime::host::{self, Tsc};
use tartarus_runtime::qemu::{self, Accel, Qemu};
use tartarus_runtime::supervisor::Program;
use tartarus_runtime::{Deadlines, Driver, Layer, Machine};
use tokio::sync::Mutex;

use crate::ledger::{make_dir, read_json, write_json};
use crate::link::{self, Identity, LinkError};
use crate::workshop::CannotStart;

/// How long a guest may take to answer in a probe.
const PROBE: Duration = Duration::from_secs(10);
/// How a probe that failed is told.
const DID_NOT_BOOT: &str = "Linux guest did not boot within 10 s";

/// Which driver the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// The best one that works.
    #[default]
    Auto,
    /// QEMU with KVM, or nothing.
    QemuKvm,
    /// QEMU with TCG.
    QemuTcg,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KvmFound {
    /// There is no `/dev/kvm`, or it cannot be opened: why.
    Absent(String),
    /// A Linux guest booted in so many ms.
    Works(u64),
    /// It did not within the time it has: what happened instead.
    Fails(String),
}

/// How the accelerator was chosen, for `doctor` and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The driver's name.
    pub driver: &'static str,
    /// Why, in a sentence.
    pub why: String,
    /// What happened in a probe that failed.
    pub detail: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Probe {
    boot: String,
    kernel: String,
    build: String,
    kvm: KvmFound,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TscOfBoot {
    boot: String,
    tsc: Tsc,
}

type Known = (Arc<dyn Driver>, Chosen);

/// Tells a program's file from the one that an upgrade puts in its place.
type Stamp = (u64, u64, i64, i64);

fn stamp(program: &Path) -> Option<Stamp> {
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
    /// By kernel.
    known: Mutex<HashMap<String, (Option<Stamp>, Known)>>,
}

/// Decides from what was wanted and found; pure.
fn decide(wanted: Wanted, kvm: &KvmFound) -> Result<Chosen, String> {
    let chosen = |driver, why: String| Ok(Chosen { driver, why, detail: None });
    match (wanted, kvm) {
        (Wanted::QemuTcg, _) => chosen("qemu-tcg", "TCG was asked for".to_owned()),
        (Wanted::QemuKvm | Wanted::Auto, KvmFound::Works(ms)) => {
            chosen("qemu-kvm", format!("KVM booted the Linux guest in {ms} ms"))
        }
        (Wanted::Auto, KvmFound::Fails(how)) => {
            let why = format!("KVM present, {DID_NOT_BOOT}, TCG chosen");
            Ok(Chosen { driver: "qemu-tcg", why, detail: Some(how.clone()) })
        }
        (Wanted::Auto, KvmFound::Absent(why)) => chosen("qemu-tcg", format!("no KVM ({why}), TCG chosen")),
        (Wanted::QemuKvm, KvmFound::Fails(how)) => Err(format!("qemu-kvm was asked for, but {DID_NOT_BOOT}: {how}")),
        (Wanted::QemuKvm, KvmFound::Absent(why)) => Err(format!("qemu-kvm was asked for, but there is no KVM: {why}")),
    }
}

impl Chooser {
    pub(crate) fn new(dir: PathBuf, cells: PathBuf, wanted: Wanted, supervisor: Program) -> std::io::Result<Self> {
        make_dir(&dir)?;
        Ok(Self { dir, cells, wanted, supervisor, known: Mutex::new(HashMap::new()) })
    }

    fn qemu(&self, program: &Path, build: &str, accel: Accel, cell: Option<Cell>) -> Arc<dyn Driver> {
        let (program, build, supervisor) = (program.to_owned(), build.to_owned(), self.supervisor.clone());
        Arc::new(Qemu { program, build, accel, supervisor, cell })
    }

    /// Where a hypervisor is locked up. With `first` no machine was started yet, and what other builds left goes: it takes
    /// room, and no more.
    async fn cell(&self, program: &Path, accel: Accel, first: bool) -> Result<Option<Cell>, CannotStart> {
        let (dir, program) = (self.cells.clone(), program.to_owned());
        let device = (accel == Accel::Kvm).then(|| PathBuf::from("/dev/kvm"));
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

    /// Takes over machines of any accelerator: by then they only have a supervisor.
    pub(crate) fn adopter(&self) -> Arc<dyn Driver> {
        self.qemu(Path::new(qemu::PROGRAM), "", Accel::Kvm, None)
    }

    /// The driver for a kernel, and why. Probes if it must; concurrent callers wait for the same probe.
    pub(crate) async fn choose(
        &self,
        kernel: &str,
        vmlinuz: &Path,
        initramfs: &Path,
        reprobe: bool,
    ) -> Result<Known, CannotStart> {
        let mut known = self.known.lock().await;
        let found = qemu::find();
        let now = found.as_deref().and_then(stamp);
        if !reprobe
            && let Some((then, (driver, chosen))) = known.get(kernel)
            && *then == now
        {
            return Ok((driver.clone(), chosen.clone()));
        }
        let missing = || {
            let name = qemu::PROGRAM;
            CannotStart::never(format!("{name} is not there: install QEMU (Debian: apt-get install qemu-system-x86)"))
        };
        let program = found.ok_or_else(missing)?;
        let build = qemu::version(&program).await.map_err(CannotStart::retry)?;
        let kvm = if self.wanted == Wanted::QemuTcg {
            KvmFound::Absent("not looked for".to_owned())
        } else {
            self.kvm(kernel, &program, &build, vmlinuz, initramfs, reprobe).await?
        };
        let chosen = decide(self.wanted, &kvm).map_err(CannotStart::never)?;
        let accel = if chosen.driver == "qemu-kvm" { Accel::Kvm } else { Accel::Tcg { tsc_khz: self.tsc().await.khz } };
        tracing::info!(driver = chosen.driver, why = %chosen.why, "driver chosen");
        let cell = self.cell(&program, accel, known.is_empty()).await?;
        let found = (self.qemu(&program, &build, accel, cell), chosen);
        known.insert(kernel.to_owned(), (now, found.clone()));
        Ok(found)
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

    async fn kvm(
        &self,
        kernel: &str,
        program: &Path,
        build: &str,
        vmlinuz: &Path,
        initramfs: &Path,
        reprobe: bool,
    ) -> Result<KvmFound, CannotStart> {
        if let Err(e) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            return Ok(KvmFound::Absent(format!("/dev/kvm: {e}")));
        }
        let path = self.dir.join("probe.json");
        // Who is locked up may meet with something else.
        let locked_up = if rustix::process::geteuid().is_root() { " in a cell" } else { "" };
        let build = format!("{build}{locked_up}");
        let boot = host::boot_id();
        let key = |p: &Probe| p.boot == boot && p.kernel == kernel && p.build == build;
        if let Ok(Some(known)) = read_json::<Probe>(&path)
            && key(&known)
            && !reprobe
        {
            return Ok(known.kvm);
        }
        tracing::info!("probing whether KVM boots a Linux guest (10 s at most)");
        // A guest that was not even started proves nothing, so nothing is remembered of it.
        let kvm = self.probe(program, vmlinuz, initramfs).await.map_err(CannotStart::retry)?;
        let probe = Probe { boot: boot.clone(), kernel: kernel.to_owned(), build, kvm: kvm.clone() };
        let _ = write_json(&path, &probe);
        Ok(kvm)
    }

    async fn probe(&self, program: &Path, vmlinuz: &Path, initramfs: &Path) -> Result<KvmFound, String> {
        let dir = self.dir.join("probe");
        let _ = std::fs::remove_dir_all(&dir);
        let found = self.probe_in(&dir, program, vmlinuz, initramfs).await;
        let _ = std::fs::remove_dir_all(&dir);
        found
    }

    async fn probe_in(&self, dir: &Path, program: &Path, vmlinuz: &Path, initramfs: &Path) -> Result<KvmFound, String> {
        make_dir(dir).map_err(|e| e.to_string())?;
        // Disks without content: the agent answers that it cannot be set up, which is answer enough.
        let (base, layer) = (dir.join("base"), dir.join("layer"));
        for disk in [&base, &layer] {
            std::fs::write(disk, [0; 65_536]).map_err(|e| e.to_string())?;
        }
        let (kernel, initramfs) = (vmlinuz.to_owned(), initramfs.to_owned());
        let layer = Layer::raw(layer);
        let machine = Machine { dir: dir.to_owned(), cpus: 1, memory_mib: 256, kernel, initramfs, base, layer };
        let begin = std::time::Instant::now();
        let deadlines = Deadlines { wall_ms: Some(PROBE.as_millis() as u64 + 2_000), ..Deadlines::default() };
        let cell = self.cell(program, Accel::Kvm, false).await.map_err(|e| e.to_string())?;
        let vm = self.qemu(program, "", Accel::Kvm, cell).boot(&machine, deadlines).await.map_err(|e| e.to_string())?;
        let answer = async {
            let channel = vm.channel().await.map_err(|e| e.to_string())?;
            let (tell, _events) = tokio::sync::mpsc::channel(1);
            let hostname = "probe".to_owned();
            let identity = Identity { hostname, machine_id: "0".repeat(32), restored: false };
            match link::open(channel, identity, tell).await {
                Ok(_) | Err(LinkError::Fault(_)) => Ok(()),
                Err(e) => Err(e.to_string()),
            }
        };
        let answer = tokio::time::timeout(PROBE, answer).await;
        let took = begin.elapsed().as_millis() as u64;
        let exit = match &answer {
            Ok(Err(_)) => tokio::time::timeout(Duration::from_secs(1), vm.wait()).await.ok(),
            _ => None,
        };
        vm.kill().await;
        vm.wait().await;
        Ok(match answer {
            Ok(Ok(())) => KvmFound::Works(took),
            Ok(Err(e)) => {
                let how = exit.map_or(e, |exit| format!("{} {}", exit.status, exit.console.replace('\n', "; ")));
                KvmFound::Fails(how)
            }
            Err(_) => KvmFound::Fails("it hung".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decision() {
        let works = KvmFound::Works(900);
        let fails = KvmFound::Fails("it hung".into());
        let absent = KvmFound::Absent("no such file".into());
        let driver = |wanted, kvm: &KvmFound| decide(wanted, kvm).map(|c| c.driver).ok();
        for (wanted, kvm, expected) in [
            (Wanted::Auto, &works, Some("qemu-kvm")),
            (Wanted::Auto, &fails, Some("qemu-tcg")),
            (Wanted::Auto, &absent, Some("qemu-tcg")),
            (Wanted::QemuKvm, &works, Some("qemu-kvm")),
            (Wanted::QemuKvm, &fails, None),
            (Wanted::QemuKvm, &absent, None),
            (Wanted::QemuTcg, &works, Some("qemu-tcg")),
        ] {
            assert_eq!(driver(wanted, kvm), expected, "{wanted:?} {kvm:?}");
        }
        let why = decide(Wanted::Auto, &fails).unwrap().why;
        assert_eq!(why, "KVM present, Linux guest did not boot within 10 s, TCG chosen");
    }
}
