//! The driver trait: what every hypervisor must be able to do. One conformance suite runs against each driver.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::cell::Limits;
use crate::supervisor::{Deadlines, VmExit};

/// What a hypervisor needs beside its guest's memory, in MiB: measured under TCG, which needs the most. With all of its
/// translated code in use QEMU had 106 MiB of its own. A node reserves it for each machine, and its cell's limit has it.
pub const OVERHEAD_MIB: u64 = 128;

/// And where its card leads somewhere: one that floods from its first second on took 5 MiB more than the rest allows.
const CARD_MIB: u64 = 32;

/// A hypervisor's work for its guest's devices and console, beside the processors', in hundredths of a processor.
const OWN_PERCENT: u32 = 50;
/// What a file may be longer than the longest disk: tables of a qcow2 layer, a state that is saved.
const FILE_SLACK: u64 = 256 << 20;

/// A rate that the hypervisor keeps its guest to.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// For good, in a second.
    pub per_second: u64,
    /// At once, so that no start waits for it.
    pub at_once: u64,
}

/// What the disks of a machine may move together, in bytes: the hypervisor's own limit, since no control group of version 1
/// holds back what is written to the host's cache. It is what clouds give their usual disks; with four times as much, one
/// that filled its disk took three tenths of a neighbour's processor on two cores.
pub const DISK_BYTES: Rate = Rate { per_second: 128 << 20, at_once: 512 << 20 };
/// And in requests.
pub const DISK_REQUESTS: Rate = Rate { per_second: 10_000, at_once: 50_000 };

/// The peer of a machine's card: descriptors, which it holds for as long as it lives. Only root can give a machine one.
#[derive(Debug, Clone)]
pub struct Network {
    /// A network namespace, which the supervisor enters: by its process whoever takes the machine over finds it. It goes with
    /// the last that holds it.
    pub namespace: Arc<OwnedFd>,
    /// The TAP in that namespace, opened with `IFF_NO_PI`. With `IFF_VNET_HDR` as well a snapshot of the machine could only be
    /// restored on another such TAP, and neither on another nor without a network. `None` for a driver that
    /// [opens it by name](Driver::opens_tap): then it is called `tap0`, was made with `IFF_NO_PI`, stays without being open, and
    /// is open nowhere, since a second descriptor is refused; the driver sets `IFF_VNET_HDR` and its owner.
    pub tap: Option<Arc<OwnedFd>>,
}

/// Machine shape v1, the same for every driver and for cold boots and snapshots: base disk (read-only), layer disk,
/// guest channel, one network card, in this order.
#[derive(Debug, Clone)]
pub struct Machine {
    /// A folder of its own, where sockets, console log and exit record live. The layer lies in it.
    pub dir: PathBuf,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory of the guest in MiB: plain anonymous memory at a cold boot.
    pub memory_mib: u32,
    /// The kernel, as the hypervisor takes it.
    pub kernel: PathBuf,
    /// The initramfs with the guest agent.
    pub initramfs: PathBuf,
    /// The base image, shared by all and never written.
    pub base: PathBuf,
    /// The writable layer.
    pub layer: Layer,
    /// What its card leads to; nowhere when absent.
    pub network: Option<Network>,
}

impl Machine {
    /// What its hypervisor may use of the host, with so many threads beside those of its processors. Blocks, for a moment.
    ///
    /// # Errors
    /// When a disk cannot be looked at.
    pub(crate) fn limits(&self, threads: u32) -> Result<Limits, RuntimeError> {
        let length = |disk: &Path| {
            let looked_at = std::fs::metadata(disk).map(|disk| disk.len());
            looked_at.map_err(|e| RuntimeError::io(format!("looking at the disk {}", disk.display()), e))
        };
        let mut longest = length(&self.layer.path)?;
        if let DiskFormat::Overlay { over } = &self.layer.format {
            longest = longest.max(length(over)?);
        }
        // The kernel's tables of the guest's memory are charged as well, twice with KVM: 8 bytes for each 4 KiB.
        let own = OVERHEAD_MIB + u64::from(self.memory_mib) / 128 + 8 * u64::from(self.cpus.saturating_sub(1));
        let own = own + self.network.as_ref().map_or(0, |_| CARD_MIB);
        Ok(Limits {
            cpu_percent: self.cpus.saturating_mul(100).saturating_add(OWN_PERCENT),
            cpu_weight: self.cpus.saturating_mul(100),
            memory_bytes: (u64::from(self.memory_mib) + own) << 20,
            threads: self.cpus.saturating_add(threads),
            file_bytes: longest.saturating_add(FILE_SLACK),
        })
    }
}

/// The writable layer of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its file, in the machine's folder.
    pub path: PathBuf,
    /// How it is stored.
    pub format: DiskFormat,
}

impl Layer {
    /// A layer whose file is all of it.
    pub fn raw(path: PathBuf) -> Self {
        Self { path, format: DiskFormat::Raw }
    }
}

/// How a disk's file is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskFormat {
    /// As it is.
    Raw,
    /// A qcow2 file over a raw one, which is never written. What the qcow2 file says of it does not count.
    Overlay {
        /// The raw file, which must stay where it is until the hypervisor has started.
        over: PathBuf,
    },
}

/// What a machine is restored from: descriptors, since a file that was checked must be the file that is used.
#[derive(Debug)]
pub struct Restore {
    /// The memory: a memfd as long as the guest's memory, sealed against every change. The machine maps it privately.
    pub memory: Arc<OwnedFd>,
    /// The state of the devices, positioned at its start.
    pub state: OwnedFd,
}

/// What a snapshot of a driver's machine is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The driver's name.
    pub driver: String,
    /// The hypervisor's build, as it names itself.
    pub build: String,
    /// The machine shape and everything else on its command line that a snapshot depends on.
    pub shape: String,
    /// What the guest sees of the processor: the host's model with KVM, QEMU's own under TCG.
    pub cpu: String,
    /// Under TCG the guest's clock runs by the host's time-stamp counter: its frequency in kHz.
    pub tsc_khz: Option<u64>,
}

impl Fingerprint {
    /// Why a snapshot that was made under `self` cannot be restored under `here`; both are named. `None` when it can.
    pub fn mismatch(&self, here: &Self) -> Option<String> {
        let differ = |what: &str, a: &str, b: &str| (a != b).then(|| format!("made with {what} {a:?}, here is {b:?}"));
        differ("the driver", &self.driver, &here.driver)
            .or_else(|| differ("the hypervisor", &self.build, &here.build))
            .or_else(|| differ("the machine shape", &self.shape, &here.shape))
            .or_else(|| differ("the processor", &self.cpu, &here.cpu))
            .or_else(|| match (self.tsc_khz, here.tsc_khz) {
                // 0.02 %: 12 ms per minute.
                (Some(a), Some(b)) if a.abs_diff(b).saturating_mul(5000) > a => {
                    Some(format!("made with a time-stamp counter of {a} kHz, here it has {b} kHz"))
                }
                (Some(_), Some(_)) | (None, None) => None,
                (a, b) => Some(format!("made with the time-stamp counter {a:?}, here is {b:?}")),
            })
    }
}

/// Why a hypervisor could not be started, or not be reached.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The hypervisor or its supervisor did not come up.
    #[error("the hypervisor did not start: {0}")]
    Start(String),
    /// The machine does not run any more.
    #[error("the hypervisor has ended")]
    Ended,
    /// An operation on a file or socket of it failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        cause: io::Error,
    },
}

impl RuntimeError {
    /// `Io` with its context.
    pub fn io(what: impl Into<String>, cause: io::Error) -> Self {
        Self::Io { what: what.into(), cause }
    }
}

/// A byte stream to the guest agent.
pub trait Channel: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Channel for T {}

/// What was found of a machine that an earlier process had started.
pub enum Adopted {
    /// It runs.
    Running(Box<dyn Vm>),
    /// It has ended, and this is how.
    Ended(VmExit),
    /// It never ran, or left nothing behind.
    Absent,
}

/// A way to run machines.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// `qemu-tcg`, `qemu-kvm`, `firecracker`.
    fn name(&self) -> &'static str;

    /// Whether a layer may be a [`DiskFormat::Overlay`].
    fn overlays(&self) -> bool {
        true
    }

    /// Whether its kernel must be an uncompressed ELF file.
    fn takes_elf(&self) -> bool {
        false
    }

    /// Whether it opens a [`Network`]'s TAP by its name, and takes no descriptor of it.
    fn opens_tap(&self) -> bool {
        false
    }

    /// Boots a machine. When this returns its sockets can be connected to; the guest is still booting. It ends itself
    /// at the deadlines even when this process is gone.
    ///
    /// # Errors
    /// When nothing runs and nothing is left of the attempt but files in the machine's folder.
    async fn boot(&self, machine: &Machine, deadlines: Deadlines) -> Result<Box<dyn Vm>, RuntimeError>;

    /// What snapshots of its machines are bound to.
    fn fingerprint(&self) -> Fingerprint;

    /// Like [`Driver::boot`], from a snapshot of a machine of the same shape, taken under the same
    /// [`Driver::fingerprint`]. The guest goes on where it was frozen as soon as somebody opens its [`Vm::channel`], and may
    /// not before; nor can it be paused or saved. That the snapshot cannot be read shows as the hypervisor's end, then as
    /// well.
    ///
    /// # Errors
    /// As [`Driver::boot`].
    async fn restore(
        &self,
        machine: &Machine,
        from: Restore,
        deadlines: Deadlines,
    ) -> Result<Box<dyn Vm>, RuntimeError>;

    /// Takes over the machine of this folder that an earlier process had booted.
    ///
    /// # Errors
    /// When it cannot be told what became of it.
    async fn adopt(&self, dir: &Path) -> Result<Adopted, RuntimeError>;
}

/// A machine that runs, or ran.
#[async_trait]
pub trait Vm: Send + Sync + 'static {
    /// The hypervisor's process id.
    fn pid(&self) -> u32;

    /// The network namespace that its card leads to; `None` when it has no [`Network`], or the machine is gone.
    fn network(&self) -> Option<OwnedFd>;

    /// A fresh connection to the guest agent. One at a time: a second waits for the end of the first.
    ///
    /// # Errors
    /// When the hypervisor is gone.
    async fn channel(&self) -> Result<Box<dyn Channel>, RuntimeError>;

    /// A connection to the guest of a machine that stands still, for a hypervisor that must see its client before the machine
    /// goes on. `None` where there can be none: where the guest itself would have to answer, or the hypervisor is gone.
    async fn channel_while_paused(&self) -> Option<Box<dyn Channel>>;

    /// Replaces the deadlines. They hold when this returns, also when this process dies then.
    ///
    /// # Errors
    /// When the supervisor is gone; then the hypervisor is as well.
    async fn set_deadlines(&self, deadlines: Deadlines) -> Result<(), RuntimeError>;

    /// Something happened: the idle clock starts anew. Never waits.
    fn touch(&self);

    /// Stops the virtual processors; stopped ones stay so. Nothing runs when this returns.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    async fn pause(&self) -> Result<(), RuntimeError>;

    /// Lets the virtual processors go on; running ones go on running.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    async fn resume(&self) -> Result<(), RuntimeError>;

    /// Whether the virtual processors are stopped.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    async fn is_paused(&self) -> Result<bool, RuntimeError>;

    /// Writes a paused machine's device state to `state` and every page of its memory that it wrote to `memory`, as
    /// [`crate::pages`] describes. It stays paused. Neither is synced.
    ///
    /// # Errors
    /// When the hypervisor does not answer, or a file cannot be written.
    async fn save(&self, state: File, memory: File) -> Result<(), RuntimeError>;

    /// Ends the hypervisor now. Returns when the order was given, and will be read whatever becomes of this process;
    /// [`Vm::wait`] tells when it was.
    async fn kill(&self);

    /// Waits for the hypervisor's end. May be called any number of times.
    async fn wait(&self) -> VmExit;
}
