//! How a sandbox ended, decided from what is known: pure.

use tartarus_runtime::{Cause, VmExit};
use tartarus_types::{Outcome, Reason};

use super::KillReason;

/// What the node had asked for before the end came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Its end.
    pub(super) kill: Option<KillReason>,
    /// The end of a limit: its reason.
    pub(super) limit: Option<Reason>,
}

/// The outcome of a sandbox whose command ended as `own`, or whose machine was ended without a word from it.
pub(super) fn outcome(own: Option<Outcome>, asked: Asked) -> Outcome {
    let silent = Outcome { reason: Reason::Killed, exit_code: None, signal: None, message: None, oom_kills: 0 };
    let own = own.unwrap_or(silent);
    match asked {
        Asked { limit: Some(reason), .. } => {
            let message = match reason {
                Reason::Ttl => "its time to live passed",
                Reason::Idle => "it was idle for too long",
                _ => "it ran longer than its timeout",
            };
            Outcome { reason, message: Some(message.to_owned()), ..own }
        }
        Asked { kill: Some(KillReason::Asked), .. } => Outcome { reason: Reason::Killed, ..own },
        Asked { kill: Some(KillReason::Shutdown), .. } => {
            Outcome { reason: Reason::Shutdown, message: Some("the server was stopped".to_owned()), ..own }
        }
        Asked { kill: None, limit: None } => own,
    }
}

/// The outcome when the machine ended by itself.
pub(super) fn of_machine(exit: &VmExit, has_command: bool) -> Outcome {
    let limit = if has_command { Reason::Timeout } else { Reason::Ttl };
    let (reason, message) = match exit.cause {
        Cause::Wall => (limit, "its supervisor ended it at its time limit".to_owned()),
        Cause::Idle => (Reason::Idle, "its supervisor ended it after it was idle for too long".to_owned()),
        Cause::Lease => (Reason::NodeLost, "its supervisor ended it when the node's lease ran out".to_owned()),
        Cause::SupervisorDied => (Reason::HypervisorDied, format!("the hypervisor ended: {}", exit.status)),
        Cause::Halted => (Reason::GuestDied, "the guest powered off or halted".to_owned()),
        Cause::Ordered => (Reason::Killed, "ended".to_owned()),
        Cause::Itself if exit.panicked => {
            (Reason::GuestDied, format!("the guest's kernel panicked:\n{}", exit.console))
        }
        Cause::Itself if exit.status == "exit code 0" => {
            (Reason::GuestDied, "the guest rebooted or powered off".to_owned())
        }
        Cause::Itself if exit.console.is_empty() => {
            (Reason::HypervisorDied, format!("the hypervisor ended: {}", exit.status))
        }
        Cause::Itself => (
            Reason::HypervisorDied,
            format!("the hypervisor ended: {}; its last words:\n{}", exit.status, exit.console),
        ),
    };
    Outcome::because(reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> Option<Outcome> {
        Some(Outcome { reason: Reason::Exited, exit_code: Some(code), signal: None, message: None, oom_kills: 0 })
    }

    #[test]
    fn what_was_asked_for_wins_over_how_it_happened() {
        let kill = Asked { kill: Some(KillReason::Asked), limit: None };
        assert_eq!(outcome(exited(3), kill).exit_status(), 3);
        assert_eq!(outcome(exited(3), kill).reason, Reason::Killed);
        assert_eq!(outcome(None, kill).exit_status(), 137);
        let limit = Asked { kill: None, limit: Some(Reason::Timeout) };
        assert_eq!(outcome(exited(0), limit).exit_status(), 124);
        assert_eq!(outcome(exited(0), Asked::default()), exited(0).unwrap());
    }

    #[test]
    fn a_machine_that_ends_by_itself_is_tartarus_failure() {
        let exit = |cause, status: &str, panicked| VmExit {
            cause,
            status: status.to_owned(),
            panicked,
            console: "words".to_owned(),
        };
        for (exit, reason, status) in [
            (exit(Cause::Itself, "killed by SIGKILL", false), Reason::HypervisorDied, 125),
            (exit(Cause::Itself, "exit code 0", true), Reason::GuestDied, 125),
            (exit(Cause::Itself, "exit code 0", false), Reason::GuestDied, 125),
            (exit(Cause::SupervisorDied, "", false), Reason::HypervisorDied, 125),
            (exit(Cause::Halted, "killed by SIGKILL", false), Reason::GuestDied, 125),
            (exit(Cause::Wall, "", false), Reason::Timeout, 124),
            (exit(Cause::Idle, "", false), Reason::Idle, 124),
        ] {
            let outcome = of_machine(&exit, true);
            assert_eq!((outcome.reason, outcome.exit_status()), (reason, status), "{exit:?}");
        }
    }
}
