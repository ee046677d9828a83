//! One task per sandbox: it owns the sandbox's machine and its state on this node, and drains one queue of requests.
//!
//! ```text
//! Fresh ─► Prepared ─► Launched ─► Greeted ─► (leave to begin) ─► Steady ─► settled
//!                         ▲                                          ▲
//! Adopted ────────────────┴──────────────────────────────────────────┘
//! ```

mod bringup;
mod dying;
mod ending;
mod execs;
mod forwards;
mod heard;
mod make;
mod net;
mod pause;
mod process;
mod requests;
mod serve;
mod settle;
mod steady;
mod takeover;
mod task;
mod warm;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tartarus_api::node::{ControlPlane, ExecSpec, Live, Target};
use tartarus_types::net::NetStatus;
use tartarus_types::{Contract, ExecId, LeaseToken, Outcome, Refusal, SandboxId, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ledger::Ledger;
use crate::net::Networks;
use crate::output::{LiveLog, LogLimits};
use crate::workshop::Workshop;

pub(crate) use dying::Dying;
pub(crate) use execs::{log_dir, stored_exec};
pub(crate) use task::{adopt, fresh};

/// What every sandbox's task needs of its node.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) control: Arc<dyn ControlPlane>,
    pub(crate) workshop: Arc<dyn Workshop>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) ledger: Ledger,
    /// Logs by sandbox; they outlive the sandboxes.
    pub(crate) logs: PathBuf,
    pub(crate) limits: LogLimits,
    pub(crate) dying: Dying,
    pub(crate) clock: fn() -> Timestamp,
}

/// Why an end is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// Somebody asked.
    Asked,
    /// The server stops.
    Shutdown,
}

type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What may be asked of a sandbox's task.
pub(crate) enum Request {
    /// Signal the command, end the machine after the grace.
    Kill {
        signal: i32,
        grace_ms: u64,
        reason: KillReason,
    },
    /// The lease is not ours any more: end it, nothing of it counts.
    Abandon,
    /// Leave the machine running and end only this task.
    Leave,
    Exec {
        spec: ExecSpec,
        reply: Reply<()>,
    },
    ExecStatus {
        id: ExecId,
        reply: Reply<(ExecSpec, watch::Receiver<Option<Outcome>>)>,
    },
    Signal {
        target: Target,
        signal: i32,
        reply: Reply<()>,
    },
    Stdin {
        target: Target,
        offset: u64,
        bytes: Bytes,
        eof: bool,
        reply: Reply<u64>,
    },
    /// Stop the machine.
    Pause {
        reply: Reply<()>,
    },
    /// Let it go on.
    Resume {
        reply: Reply<()>,
    },
    /// Its network: contract, counters, what was refused.
    Net {
        reply: Reply<NetStatus>,
    },
    /// Another contract for it.
    SetNet {
        contract: Box<Contract>,
        reply: Reply<NetStatus>,
    },
    /// The log of a process, while it is written.
    Log {
        target: Target,
        reply: oneshot::Sender<Option<Arc<LiveLog>>>,
    },
}

/// The way to a sandbox's task.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) id: SandboxId,
    pub(crate) token: LeaseToken,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) live: watch::Receiver<Live>,
}
