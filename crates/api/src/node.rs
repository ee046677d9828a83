//! The two traits between control plane and node. Within `tartarus up` they are function calls, between machines they
//! will be requests; the semantics are the same, so both sides assume that any call may fail, and may have taken
//! effect although it failed.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use tartarus_types::net::{NetStatus, NetTotals};
use tartarus_types::{
    Contract, ExecId, LeaseToken, NodeId, Outcome, Overcommit, Refusal, SandboxId, SandboxSpec, Shape, Timestamp,
};

use crate::doctor::DoctorReport;

/// What a node says of itself when it starts and whenever it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its lasting id.
    pub id: NodeId,
    /// Memory that sandboxes may reserve together, MiB.
    pub memory_mib: u64,
    /// Memory that each hypervisor needs beside its guest's, MiB.
    pub overhead_mib: u64,
    /// How often guest memory may be sold.
    pub overcommit: Overcommit,
    /// Sandboxes that may be between lease and command start at once.
    pub start_slots: u32,
    /// Virtual processors of the largest sandbox.
    pub max_cpus: u32,
}

/// One attempt to run one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Fences off earlier attempts.
    pub token: LeaseToken,
    /// What to run.
    pub spec: SandboxSpec,
    /// The command must have started by then.
    pub start_deadline: Timestamp,
    /// When the lease was given.
    pub leased_at: Timestamp,
}

/// A moment of a sandbox's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// See [`crate::v1::Phase::name`].
    pub phase: String,
    /// When.
    pub at: Timestamp,
}

/// What a node reports about an attempt that it holds. Every report may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It prepares.
    Preparing,
    /// The command is about to be started: only after [`Verdict::Go`] may it be.
    Begin,
    /// The machine was stopped, or is found stopped.
    Paused,
    /// The machine goes on.
    Resumed,
    /// What was learnt since: moments, driver and guest kernel.
    Progress(Progress),
    /// The command never began and will not under this lease.
    GiveBack {
        /// What went wrong.
        why: String,
        /// Trying again may help.
        retry: bool,
    },
    /// It ended. Repeated until the control plane has confirmed it.
    Ended {
        /// How.
        outcome: Outcome,
        /// All that was learnt.
        progress: Progress,
    },
}

/// What a node learnt of a sandbox on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Moments reached, in order.
    pub moments: Vec<Moment>,
    /// `qemu-tcg`, `qemu-kvm`.
    pub driver: Option<String>,
    /// The guest's `uname -r`.
    pub guest_kernel: Option<String>,
    /// How its machine came up.
    #[serde(default)]
    pub start: Option<StartedFrom>,
}

/// How a machine came up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum StartedFrom {
    /// Restored from the template's golden snapshot.
    Snapshot {
        /// Its name on the node.
        golden: String,
    },
    /// Booted.
    ColdBoot {
        /// Why no snapshot was used.
        why: String,
    },
}

/// The control plane's answer to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Go on. After [`Report::Ended`] and [`Report::GiveBack`]: it is on record, forget it.
    Go,
    /// The attempt is not this node's any more: end what runs and forget it, nothing of it counts.
    Abandon,
}

/// What the control plane wants of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directive {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The attempt that is meant.
    pub token: LeaseToken,
    /// What to do; doing it twice is doing it once.
    pub action: Action,
}

/// See [`Directive`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Send the signal to the command, and end the VM after `grace_ms`.
    Kill {
        /// Signal number.
        signal: i32,
        /// Milliseconds.
        grace_ms: u64,
    },
    /// See [`Verdict::Abandon`].
    Abandon,
}

/// The control plane, as a node sees it.
#[async_trait]
pub trait ControlPlane: Send + Sync + 'static {
    /// Makes the node known, or updates what is known of it. A node that starts says what it holds; every other lease
    /// on its name is void, since nobody will ever renew it: work that had not begun is queued again at once.
    async fn register(&self, node: NodeInfo, held: &[(SandboxId, LeaseToken)]) -> Result<(), Refusal>;

    /// Which of these sandboxes are on record. A node that was killed may still keep logs of some that are not.
    async fn on_record(&self, sandboxes: &[SandboxId]) -> Result<Vec<SandboxId>, Refusal>;

    /// The next attempt for this node, which it holds until it reports its end or stops renewing. Waits up to `wait`.
    async fn lease(&self, node: &NodeId, wait: Duration) -> Result<Option<Assignment>, Refusal>;

    /// Renews the leases of everything the node holds, and tells what it should do about each.
    async fn sync(&self, node: &NodeId, held: &[(SandboxId, LeaseToken)]) -> Result<Vec<Directive>, Refusal>;

    /// Reports about one attempt.
    async fn report(&self, sandbox: &SandboxId, token: &LeaseToken, report: Report) -> Result<Verdict, Refusal>;
}

/// A process in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The main command.
    Main,
    /// A command started by `exec`.
    Exec(ExecId),
}

/// A command to start beside the main one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Chosen by the control plane; the same id again starts nothing.
    pub id: ExecId,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// The sandbox's when absent.
    pub workdir: Option<String>,
    /// The sandbox's when absent.
    pub user: Option<String>,
    /// Standard input stays open.
    pub stdin: bool,
    /// A client reads along.
    pub attach: bool,
    /// Source for the template's runner; `command` are then the arguments that it sees.
    #[serde(default)]
    pub code: Option<String>,
}

/// What of a process's output to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputRequest {
    /// First byte wanted of standard output and standard error; `None` leaves the stream out.
    pub from: [Option<u64>; 2],
    /// Go on until the process ended; otherwise stop at what there is.
    pub follow: bool,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputEvent {
    /// Bytes of a stream.
    Data {
        /// 0 standard output, 1 standard error.
        stream: usize,
        /// Position of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// The stored log does not have these bytes any more.
    Gap {
        /// 0 standard output, 1 standard error.
        stream: usize,
        /// Position of the first byte left out.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Nothing follows.
    End,
}

/// Output as it comes. Dropping it ends the reading.
pub type OutputStream = Pin<Box<dyn Stream<Item = Result<OutputEvent, Refusal>> + Send>>;

/// Bytes of an upload.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// An image that a node made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMade {
    /// `sha256:…` of the squashfs file.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
}

/// A kernel that a node took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelMade {
    /// `sha256:…` over kernel and modules.
    pub digest: String,
    /// `uname -r`.
    pub release: String,
    /// Bytes of kernel and modules.
    pub size: u64,
}

/// What only the node knows of a sandbox that it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Process id of the hypervisor.
    pub hypervisor_pid: Option<u32>,
    /// All that was learnt so far.
    pub progress: Progress,
}

/// A golden snapshot on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// See [`tartarus_types::SandboxSpec::golden`].
    pub golden: String,
    /// The template's name when it was made.
    pub template: String,
    /// Its size.
    pub shape: Shape,
    /// When it was made.
    pub created_at: Timestamp,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes of the layer that each sandbox starts with.
    pub layer_bytes: u64,
    /// Why it cannot be used any more, such as another build of the hypervisor; both are named.
    pub unusable: Option<String>,
    /// Why it should be made again although it can be used, such as an older guest agent in it.
    pub outdated: Option<String>,
    /// Its memory is loaded, so that the next restore need not read it.
    pub loaded: bool,
}

/// Bytes that a node's files take, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUsage {
    /// Base images, by digest.
    pub images: Vec<(String, u64)>,
    /// Kernels, by digest.
    pub kernels: Vec<(String, u64)>,
    /// Golden snapshots, by name.
    pub snapshots: Vec<(String, u64)>,
    /// Empty layers, kept to be cloned.
    pub empty_layers: u64,
    /// What running sandboxes wrote.
    pub sandboxes: u64,
    /// Logs, by sandbox.
    pub logs: Vec<(SandboxId, u64)>,
    /// Memory of loaded snapshots, bytes.
    pub loaded: u64,
    /// Most memory that loaded snapshots may take, bytes.
    pub loaded_limit: u64,
    /// The disk's free space, bytes.
    pub disk_free: u64,
    /// The disk's size, bytes.
    pub disk_size: u64,
}

/// A node, as the control plane sees it.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// There is news for this node: it should `sync` now. Only makes things faster; never waits.
    fn kick(&self);

    /// Starts a command; it is durable on the node when this returns.
    async fn exec(&self, sandbox: &SandboxId, spec: ExecSpec) -> Result<(), Refusal>;

    /// What became of a command; waits up to `wait` for its end.
    async fn exec_status(
        &self,
        sandbox: &SandboxId,
        exec: &ExecId,
        wait: Duration,
    ) -> Result<(ExecSpec, Option<Outcome>), Refusal>;

    /// Sends a signal to a process group.
    async fn signal(&self, sandbox: &SandboxId, target: &Target, signal: i32) -> Result<(), Refusal>;

    /// Gives bytes to a process's standard input. Bytes before what was already taken are skipped, so a chunk may be
    /// repeated; a gap is refused. Returns what was taken in all once the guest has room for all of it.
    async fn stdin(
        &self,
        sandbox: &SandboxId,
        target: &Target,
        offset: u64,
        bytes: Bytes,
        eof: bool,
    ) -> Result<u64, Refusal>;

    /// Output of a process, stored or as it comes.
    async fn output(
        &self,
        sandbox: &SandboxId,
        target: &Target,
        request: OutputRequest,
    ) -> Result<OutputStream, Refusal>;

    /// What only the node knows; `None` when it does not run the sandbox.
    async fn live(&self, sandbox: &SandboxId) -> Option<Live>;

    /// Stops a running sandbox's machine; one that is stopped stays so. Its record says so when this returns.
    async fn pause(&self, sandbox: &SandboxId) -> Result<(), Refusal>;

    /// Lets a stopped machine go on; one that runs goes on running. Its record says so when this returns.
    async fn resume(&self, sandbox: &SandboxId) -> Result<(), Refusal>;

    /// The network of a running sandbox: contract, counters, what was refused.
    async fn net(&self, sandbox: &SandboxId) -> Result<NetStatus, Refusal>;

    /// Puts another contract in force for a running sandbox, whole or not at all; it is durable on the node when this
    /// returns. A sandbox that was started without a network can be given forwards, and nothing else.
    async fn set_net(&self, sandbox: &SandboxId, contract: Contract) -> Result<NetStatus, Refusal>;

    /// What became of the packets of all its sandboxes.
    async fn net_totals(&self) -> Result<NetTotals, Refusal>;

    /// The golden snapshots that are whole.
    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, Refusal>;

    /// Deletes a golden snapshot. Restores that are under way from it come to their end first.
    async fn remove_snapshot(&self, golden: &str) -> Result<(), Refusal>;

    /// What takes how much space.
    async fn usage(&self) -> Result<NodeUsage, Refusal>;

    /// Deletes the logs of a sandbox that has ended.
    async fn forget(&self, sandbox: &SandboxId) -> Result<(), Refusal>;

    /// Makes a base image of a root file system's tar, as it comes.
    async fn import_image(&self, tar: ByteStream) -> Result<ImageMade, Refusal>;

    /// Deletes an image's file.
    async fn remove_image(&self, digest: &str) -> Result<(), Refusal>;

    /// Takes a kernel over from a tar with `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE`.
    async fn import_kernel(&self, tar: ByteStream) -> Result<KernelMade, Refusal>;

    /// Deletes a kernel's files.
    async fn remove_kernel(&self, digest: &str) -> Result<(), Refusal>;

    /// What this machine can do. `kernel` is the one that would be used; `reprobe` forgets earlier probes.
    async fn doctor(&self, kernel: Option<&str>, reprobe: bool) -> Result<DoctorReport, Refusal>;
}
