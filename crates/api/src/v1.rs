//! Wire types of `/v1`. Fields are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tartarus_types::net::NetStatus;
use tartarus_types::{
    Contract, ErrorCode, ExecId, Language, NodeId, Outcome, Refusal, SandboxId, Shape, State, Timestamp,
};
use utoipa::ToSchema;

use crate::node::StartedFrom;

mod space;

pub use tartarus_types::net::{ForwardRequest, LimitsRequest, NetRequest};

pub use space::{DiskUsage, Logs, Prune, Pruned, PrunedFile, StoredFile};

fn is_false(flag: &bool) -> bool {
    !flag
}

/// An error, as RFC 9457 describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:tartarus:error:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened, the same for every error of this code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened here, and what to do.
    pub detail: String,
    /// The stable code.
    pub code: ErrorCode,
    /// The field of the request that is to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let Refusal { code, detail, field } = refusal;
        let kind = format!("urn:tartarus:error:{}", code.as_str());
        Self { kind, title: code.title().to_owned(), status: code.status(), detail, code, field }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { code: problem.code, detail: problem.detail, field: problem.field }
    }
}

/// Asks for a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSandbox {
    /// Name of the template.
    pub template: String,
    /// Program and arguments. Absent: a sandbox without command, for `exec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// A name of its own, unique among sandboxes that have not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For finding it again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Added to the template's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute path; the template's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `NAME`, `UID`, `NAME:GROUP` or `UID:GID`; the template's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Virtual processors; the template's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in MiB; the template's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Wall-clock limit in ms: of the command from its start, or the time to live of a sandbox without command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// From acceptance to the command's start, in ms; 60 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_timeout_ms: Option<u64>,
    /// Ends it after so many ms without request or output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Standard input stays open and is sent with `POST …/stdin`.
    #[serde(default)]
    pub stdin: bool,
    /// A client will read the output as it comes: the command waits for it rather than have output left out.
    #[serde(default)]
    pub attach: bool,
    /// Source for the template's runner instead of a program; `command` are then its arguments. At most 1 MiB with
    /// command and environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Start from the template's golden snapshot, or not at all.
    #[serde(default, skip_serializing_if = "is_false")]
    pub require_snapshot: bool,
    /// Boot, although there may be a golden snapshot.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_snapshot: bool,
    /// Overwrite what the sandbox wrote when it ends.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shred: bool,
    /// What it may reach, and who reaches it; the template's when absent. A whole one: nothing of the template's is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetRequest>,
}

/// A point of a sandbox's start, and when it was reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Phase {
    /// `accepted`, `leased`, `disk_ready`, `vm_started`, `guest_ready`, `command_started`, `ended`.
    pub name: String,
    /// When, microseconds since the epoch.
    pub at: Timestamp,
    /// Milliseconds since the phase before.
    pub took_ms: f64,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its name, when it was given one.
    pub name: Option<String>,
    /// Where it is in its life.
    pub state: State,
    /// The template it was made from.
    pub template: String,
    /// Digest of its base image.
    pub image: String,
    /// Digest of its guest kernel.
    pub kernel: String,
    /// The command; empty for a sandbox without one.
    pub command: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Largest size of what it may write, MiB.
    pub disk_mib: u32,
    /// Wall-clock limit in ms.
    pub timeout_ms: Option<u64>,
    /// When it was accepted, microseconds since the epoch.
    pub created_at: Timestamp,
    /// When its command started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How often a node tried to start it.
    pub attempts: u32,
    /// The node that runs or ran it.
    pub node: Option<NodeId>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What `tartarus run` exits with.
    pub exit_status: Option<i32>,
    /// Position in the queue, from 1, while it is queued.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queue_position: Option<u64>,
    /// It runs code in the template's runner, and `command` are the arguments.
    #[serde(skip_serializing_if = "is_false", default)]
    pub has_code: bool,
    /// What it may reach, and who reaches it: as it was accepted, and where one that runs is inspected, as it is now. Absent
    /// when it has no network and nothing leads to it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub net: Option<Contract>,
}

/// A sandbox with what only its node knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxDetail {
    /// The sandbox.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// Phases reached, in order.
    pub phases: Vec<Phase>,
    /// The hypervisor's process id on the node, while it runs.
    pub hypervisor_pid: Option<u32>,
    /// `qemu-tcg`, `qemu-kvm`.
    pub driver: Option<String>,
    /// The guest's `uname -r`.
    pub guest_kernel: Option<String>,
    /// Failed attempts and their causes, oldest first.
    pub failures: Vec<String>,
    /// How its machine came up: from a golden snapshot, or by a cold boot, and then why.
    #[serde(default)]
    pub start: Option<StartedFrom>,
    /// Why it is still queued.
    #[serde(default)]
    pub waiting: Option<String>,
    /// Its network while it runs: the contract in force, counters, what was refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub net_status: Option<NetStatus>,
}

/// A command to start in a running sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateExec {
    /// Program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Added to the sandbox's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute path; the sandbox's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The sandbox's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Standard input stays open and is sent with `POST …/stdin`.
    #[serde(default)]
    pub stdin: bool,
    /// A client will read the output as it comes.
    #[serde(default)]
    pub attach: bool,
    /// Source for the template's runner instead of a program; `command` are then its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// A command in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exec {
    /// Its id.
    pub id: ExecId,
    /// The sandbox it runs in.
    pub sandbox: SandboxId,
    /// Program and arguments.
    pub command: Vec<String>,
    /// How it ended; absent while it runs.
    pub outcome: Option<Outcome>,
    /// What `tartarus exec` exits with.
    pub exit_status: Option<i32>,
    /// It runs code in the template's runner, and `command` are the arguments.
    #[serde(skip_serializing_if = "is_false", default)]
    pub has_code: bool,
}

/// Sends a signal to the command, and to what it started in its process group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// `TERM`, `SIGTERM` or `15`.
    pub signal: String,
}

/// What was taken of standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StdinTaken {
    /// Bytes in all; send the next chunk from here.
    pub taken: u64,
}

/// A base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// `sha256:…` of the squashfs file.
    pub digest: String,
    /// Bytes of the squashfs file.
    pub size: u64,
    /// When it was imported.
    pub created_at: Timestamp,
}

/// A guest kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Kernel {
    /// `sha256:…` over kernel and modules.
    pub digest: String,
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// Bytes of kernel and modules.
    pub size: u64,
    /// When it was added; the newest is used for new sandboxes.
    pub created_at: Timestamp,
}

/// Makes a template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTemplate {
    /// Its name.
    pub name: String,
    /// Name of the image.
    pub image: String,
    /// Virtual processors; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in MiB; 512 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Largest size of what a sandbox may write, MiB; 1024 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
    /// Environment of every command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Makes a guest ready before its golden snapshot is taken, and after a cold boot: a command for `/bin/sh -c` that
    /// must exit with 0. Processes that it leaves in the background stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<String>,
    /// A warmed process that takes `code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<Language>,
    /// Modules that the runner has imported already, such as `numpy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preload: Vec<String>,
    /// Further sizes to keep golden snapshots for; the template's own is always one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shapes: Vec<Shape>,
    /// Keep no golden snapshots: every sandbox boots.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cold: bool,
    /// What a sandbox may reach, and who reaches it, when its request does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetRequest>,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// Image and defaults.
    #[serde(flatten)]
    pub spec: tartarus_types::TemplateSpec,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its golden snapshots, one for each size, its own first; none when it is `cold`.
    #[serde(default)]
    pub snapshots: Vec<TemplateSnapshot>,
}

/// Where a golden snapshot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Sandboxes of its size start from it.
    Ready,
    /// It is being made, or waits for its turn.
    Building,
    /// There is none, and none is being made.
    Missing,
    /// It could not be made.
    Failed,
    /// It is used, and should be made again.
    Outdated,
    /// It is there and cannot be used any more.
    Unusable,
}

impl SnapshotState {
    /// The word on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Building => "building",
            Self::Missing => "missing",
            Self::Failed => "failed",
            Self::Outdated => "outdated",
            Self::Unusable => "unusable",
        }
    }
}

/// A golden snapshot of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateSnapshot {
    /// The size that it fits.
    pub shape: Shape,
    /// Its name; absent while there is no guest kernel.
    pub golden: Option<String>,
    /// Where it stands.
    pub state: SnapshotState,
    /// The sandbox that makes it, or made it; its log has the output of the warm-up.
    pub sandbox: Option<SandboxId>,
    /// Why it is not ready.
    pub why: Option<String>,
    /// Bytes on disk.
    pub bytes: Option<u64>,
    /// Bytes of the layer that each sandbox starts with.
    pub layer_bytes: Option<u64>,
    /// When it was made.
    pub created_at: Option<Timestamp>,
}
