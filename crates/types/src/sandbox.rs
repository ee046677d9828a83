//! The sandbox's state machine: one pure function, [`step`], matched exhaustively.
//!
//! ```text
//!            Lease        Prepare        Begin
//! Queued ──────────► Scheduled ──► Preparing ──► Running ──End──► Succeeded | Failed | Killed | TimedOut
//!   ▲ │                  │             │            │
//!   │ └─Kill─► Killed    │  GiveBack   │            ├─LeaseLost──► Lost
//!   └────────────────────┴─────────────┘            ├─Kill──► Terminating ──End──► …
//!                                                   └─Pause─► Paused ──Resume──► Running
//!                                                               └─Kill, End, LeaseLost: as Running
//! ```
//!
//! `Begin` is committed *before* the command may start. A sandbox that never reached `Running` therefore never ran its
//! command and may be tried again elsewhere; one that did is never started a second time.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted, durable, waiting for a node with room.
    Queued,
    /// A node holds its lease; nothing runs yet.
    Scheduled,
    /// The node makes its disk and boots its microVM.
    Preparing,
    /// The command may have started.
    Running,
    /// Its machine stands still until it is resumed; limits that count time wait as well.
    Paused,
    /// Its end was asked for.
    Terminating,
    /// The command ended with 0.
    Succeeded,
    /// The command ended otherwise, or Tartarus could not run it.
    Failed,
    /// Somebody ended it.
    Killed,
    /// A time limit ended it.
    TimedOut,
    /// Its node was lost while it ran; nobody can say how far it came.
    Lost,
}

impl State {
    /// Every state.
    pub const ALL: [State; 11] = [
        State::Queued,
        State::Scheduled,
        State::Preparing,
        State::Running,
        State::Paused,
        State::Terminating,
        State::Succeeded,
        State::Failed,
        State::Killed,
        State::TimedOut,
        State::Lost,
    ];

    /// No event leaves it.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::Scheduled | Self::Preparing | Self::Running | Self::Paused | Self::Terminating => {
                false
            }
            Self::Succeeded | Self::Failed | Self::Killed | Self::TimedOut | Self::Lost => true,
        }
    }

    /// The word on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Scheduled => "scheduled",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Terminating => "terminating",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Killed => "killed",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
        }
    }
}

/// Why a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The command exited by itself.
    Exited,
    /// A signal ended the command.
    Signalled,
    /// The guest's kernel killed the command for want of memory.
    OutOfMemory,
    /// The program was not found (127).
    CommandNotFound,
    /// The program could not be executed, or the user or directory does not exist (126).
    CommandNotExecutable,
    /// `timeout` passed.
    Timeout,
    /// The time to live of a sandbox without command passed.
    Ttl,
    /// `idle_timeout` passed.
    Idle,
    /// Somebody asked for its end.
    Killed,
    /// The server was told to stop.
    Shutdown,
    /// `start_timeout` passed before the command started.
    StartTimeout,
    /// It could not be started, as often as was tried.
    StartFailed,
    /// The hypervisor died.
    HypervisorDied,
    /// The guest's kernel panicked or powered off.
    GuestDied,
    /// The node could not go on, as when its disk is full.
    NodeFailed,
    /// The node was lost.
    NodeLost,
}

/// How a sandbox ended; written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// The command's exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended the command, when one did.
    pub signal: Option<i32>,
    /// What a person needs to know beyond the reason.
    pub message: Option<String>,
    /// Processes that the guest's kernel killed for want of memory.
    #[serde(default)]
    pub oom_kills: u32,
}

impl Outcome {
    /// An end without exit code.
    pub fn because(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, exit_code: None, signal: None, message: Some(message.into()), oom_kills: 0 }
    }

    /// The terminal state that goes with it.
    pub fn state(&self) -> State {
        match self.reason {
            Reason::Exited if self.exit_code == Some(0) => State::Succeeded,
            Reason::Exited
            | Reason::Signalled
            | Reason::OutOfMemory
            | Reason::CommandNotFound
            | Reason::CommandNotExecutable
            | Reason::StartTimeout
            | Reason::StartFailed
            | Reason::HypervisorDied
            | Reason::GuestDied
            | Reason::NodeFailed => State::Failed,
            Reason::Timeout | Reason::Ttl | Reason::Idle => State::TimedOut,
            Reason::Killed | Reason::Shutdown => State::Killed,
            Reason::NodeLost => State::Lost,
        }
    }

    /// What `tartarus run` exits with: the command's own code, 128+N for signal N, 124 for a time limit, 125 when
    /// Tartarus failed.
    pub fn exit_status(&self) -> i32 {
        let of_command = match (self.exit_code, self.signal) {
            (Some(code), _) => Some(code & 0xff),
            (None, Some(signal)) => Some(128 + signal),
            (None, None) => None,
        };
        match self.reason {
            Reason::Exited | Reason::Signalled | Reason::OutOfMemory => of_command.unwrap_or(125),
            Reason::Killed | Reason::Shutdown => of_command.unwrap_or(137),
            Reason::CommandNotFound => 127,
            Reason::CommandNotExecutable => 126,
            Reason::Timeout | Reason::Ttl | Reason::Idle => 124,
            Reason::StartTimeout
            | Reason::StartFailed
            | Reason::HypervisorDied
            | Reason::GuestDied
            | Reason::NodeFailed
            | Reason::NodeLost => 125,
        }
    }
}

/// What may happen to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node was chosen and holds the lease.
    Lease,
    /// The node began to prepare.
    Prepare,
    /// The node is about to start the command.
    Begin,
    /// The machine was stopped.
    Pause,
    /// The machine goes on.
    Resume,
    /// The lease ended before the command began: the node gave it back, or was lost. `tries_left` says if it may be
    /// tried again.
    GiveBack {
        /// Another attempt is allowed.
        tries_left: bool,
        /// What went wrong.
        why: String,
    },
    /// The lease ran out; its node is not heard of any more.
    LeaseLost {
        /// Another attempt is allowed, should the command not have begun.
        tries_left: bool,
    },
    /// Its end was asked for.
    Kill,
    /// It waited too long for its start.
    StartTimeout,
    /// The node reports the end.
    End(Outcome),
}

/// What must happen in the same transaction as the change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The queue entry is done.
    Ack,
    /// The queue entry becomes visible again.
    Requeue,
    /// The queue entry moves to the dead letters.
    DeadLetter,
    /// What was reserved on the node is free again.
    Release,
    /// The node must hear of it.
    TellNode,
}

/// A state after an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The state to write.
    pub state: State,
    /// Written exactly when `state` is terminal.
    pub outcome: Option<Outcome>,
    /// To be applied in the same transaction.
    pub effects: &'static [Effect],
}

/// The event does not fit the state; nothing changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It has ended; whatever comes late is told so.
    #[error("the sandbox has ended")]
    Ended,
    /// It is already so: the sender repeats itself, which is no error.
    #[error("already so")]
    Already,
    /// The event makes no sense in this state.
    #[error("not possible in the state {}", .0.as_str())]
    WrongState(State),
}

/// The one transition function.
///
/// # Errors
/// [`Denied`] when the event does not fit; the caller writes nothing.
pub fn step(state: State, event: Event) -> Result<Next, Denied> {
    use Effect::{Ack, DeadLetter, Release, Requeue, TellNode};
    use State::{
        Failed, Killed, Lost, Paused, Preparing, Queued, Running, Scheduled, Succeeded, Terminating, TimedOut,
    };

    let to = |state, effects| Ok(Next { state, outcome: None, effects });
    let end = |outcome: Outcome, effects| Ok(Next { state: outcome.state(), outcome: Some(outcome), effects });
    match (state, event) {
        (Succeeded | Failed | Killed | TimedOut | Lost, _) => Err(Denied::Ended),

        (Queued, Event::Lease) => to(Scheduled, &[]),
        (Scheduled | Preparing | Running | Paused | Terminating, Event::Lease) => Err(Denied::WrongState(state)),

        (Scheduled, Event::Prepare) => to(Preparing, &[]),
        (Preparing, Event::Prepare) => Err(Denied::Already),
        (Queued | Running | Paused | Terminating, Event::Prepare) => Err(Denied::WrongState(state)),

        (Preparing, Event::Begin) => to(Running, &[]),
        (Running | Paused, Event::Begin) => Err(Denied::Already),
        (Queued | Scheduled | Terminating, Event::Begin) => Err(Denied::WrongState(state)),

        (Running, Event::Pause) => to(Paused, &[]),
        (Paused, Event::Pause) => Err(Denied::Already),
        (Queued | Scheduled | Preparing | Terminating, Event::Pause) => Err(Denied::WrongState(state)),

        (Paused, Event::Resume) => to(Running, &[]),
        (Running, Event::Resume) => Err(Denied::Already),
        (Queued | Scheduled | Preparing | Terminating, Event::Resume) => Err(Denied::WrongState(state)),

        (Scheduled | Preparing, Event::GiveBack { tries_left: true, .. }) => to(Queued, &[Requeue, Release]),
        (Scheduled | Preparing, Event::GiveBack { tries_left: false, why }) => {
            end(Outcome::because(Reason::StartFailed, why), &[DeadLetter, Release])
        }
        (Terminating, Event::GiveBack { .. }) => {
            end(Outcome::because(Reason::Killed, "ended before its command began"), &[Ack, Release])
        }
        (Queued | Running | Paused, Event::GiveBack { .. }) => Err(Denied::WrongState(state)),

        (Scheduled | Preparing, Event::LeaseLost { tries_left: true }) => to(Queued, &[Requeue, Release]),
        (Scheduled | Preparing, Event::LeaseLost { tries_left: false }) => end(
            Outcome::because(Reason::StartFailed, "its node was lost while it was prepared"),
            &[DeadLetter, Release],
        ),
        (Running | Paused, Event::LeaseLost { .. }) => end(
            Outcome::because(Reason::NodeLost, "its node was lost; the command may have run, it is not run again"),
            &[DeadLetter, Release],
        ),
        (Terminating, Event::LeaseLost { .. }) => {
            end(Outcome::because(Reason::Killed, "its node was lost while it was being ended"), &[Ack, Release])
        }
        (Queued, Event::LeaseLost { .. }) => Err(Denied::WrongState(state)),

        (Queued, Event::Kill) => end(Outcome::because(Reason::Killed, "ended while it was queued"), &[Ack]),
        (Scheduled | Preparing | Running | Paused, Event::Kill) => to(Terminating, &[TellNode]),
        (Terminating, Event::Kill) => Err(Denied::Already),

        (Queued, Event::StartTimeout) => {
            end(Outcome::because(Reason::StartTimeout, "no node had room before start_timeout passed"), &[Ack])
        }
        (Scheduled | Preparing | Running | Paused | Terminating, Event::StartTimeout) => Err(Denied::WrongState(state)),

        (Scheduled | Preparing | Running | Paused | Terminating, Event::End(outcome)) => end(outcome, &[Ack, Release]),
        (Queued, Event::End(_)) => Err(Denied::WrongState(state)),
    }
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
