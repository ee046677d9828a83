//! The driver trait: what every hypervisor must be able to do. One conformance suite runs against each driver.

use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::supervisor::{Deadlines, VmExit};

/// Machine shape v1, the same for every driver and for cold boots and snapshots: base disk (read-only), layer disk,
/// guest channel, one network card without a peer, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub layer: PathBuf,
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
    /// `qemu-tcg`, `qemu-kvm`.
    fn name(&self) -> &'static str;

    /// Boots a machine. When this returns its sockets can be connected to; the guest is still booting. It ends itself
    /// at the deadlines even when this process is gone.
    ///
    /// # Errors
    /// When nothing runs and nothing is left of the attempt but files in the machine's folder.
    async fn boot(&self, machine: &Machine, deadlines: Deadlines) -> Result<Box<dyn Vm>, RuntimeError>;

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

    /// A fresh connection to the guest agent. One at a time: a second waits for the end of the first.
    ///
    /// # Errors
    /// When the hypervisor is gone.
    async fn channel(&self) -> Result<Box<dyn Channel>, RuntimeError>;

    /// Replaces the deadlines. They hold when this returns, also when this process dies then.
    ///
    /// # Errors
    /// When the supervisor is gone; then the hypervisor is as well.
    async fn set_deadlines(&self, deadlines: Deadlines) -> Result<(), RuntimeError>;

    /// Something happened: the idle clock starts anew. Never waits.
    fn touch(&self);

    /// Ends the hypervisor now. Returns when the order is given; [`Vm::wait`] tells when it is carried out.
    async fn kill(&self);

    /// Waits for the hypervisor's end. May be called any number of times.
    async fn wait(&self) -> VmExit;
}
