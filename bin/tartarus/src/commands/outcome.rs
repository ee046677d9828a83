//! The one line that says why a command ended, where that is not the command's own doing.

use tartarus_types::{Outcome, Reason, signal};

/// The exit code of `run`, `exec` and `wait`.
pub(super) fn exit_code(outcome: Option<&Outcome>) -> u8 {
    // 128 + 64 is the largest; anything else is a server's mistake, which is ours.
    outcome.and_then(|outcome| u8::try_from(outcome.exit_status()).ok()).unwrap_or(125)
}

/// What to tell; nothing about a command that ended by itself.
pub(super) fn explain(outcome: &Outcome) -> Option<String> {
    let what = match outcome.reason {
        Reason::Exited if outcome.oom_kills == 0 => return None,
        Reason::Exited => {
            return Some(format!("the sandbox ran out of memory: {} of its processes were killed", outcome.oom_kills));
        }
        Reason::Signalled => {
            // Ctrl-C and a closed pipe are no news to who caused them.
            let number = outcome.signal.filter(|number| ![2, 13].contains(number))?;
            return Some(format!("the command was ended by {}", signal::name(number)));
        }
        Reason::OutOfMemory => "the command was killed for want of memory; --memory gives it more",
        Reason::CommandNotFound => "the program was not found in the sandbox",
        Reason::CommandNotExecutable => "the command could not be executed",
        Reason::Timeout => "the command was ended because its timeout passed",
        Reason::Ttl => "the sandbox was ended because its time to live passed",
        Reason::Idle => "the sandbox was ended because nothing happened in it for too long",
        Reason::Killed => "the sandbox was killed",
        Reason::Shutdown => "the sandbox was ended because the server was stopped",
        Reason::StartTimeout => "the command did not start before the start timeout passed",
        Reason::StartFailed => "the sandbox could not be started",
        Reason::HypervisorDied => "the sandbox's hypervisor died",
        Reason::GuestDied => "the sandbox's kernel died",
        Reason::NodeFailed => "the node that ran the sandbox failed",
        Reason::NodeLost => "the node that ran the sandbox was lost",
    };
    Some(match outcome.message.as_deref().filter(|message| !message.is_empty()) {
        Some(message) => format!("{what}: {message}"),
        None => what.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> Outcome {
        Outcome { reason: Reason::Exited, exit_code: Some(code), signal: None, message: None, oom_kills: 0 }
    }

    #[test]
    fn an_ordinary_end_needs_no_words() {
        assert_eq!(explain(&exited(0)), None);
        assert_eq!(explain(&exited(3)), None);
        assert!(explain(&Outcome { oom_kills: 1, ..exited(3) }).is_some());
        let signalled = |n| Outcome { reason: Reason::Signalled, exit_code: None, signal: Some(n), ..exited(0) };
        assert_eq!(explain(&signalled(2)), None);
        assert_eq!(explain(&signalled(11)).as_deref(), Some("the command was ended by SIGSEGV"));
        let died = Outcome::because(Reason::HypervisorDied, "signal 9");
        assert_eq!(explain(&died).as_deref(), Some("the sandbox's hypervisor died: signal 9"));
    }

    #[test]
    fn codes() {
        assert_eq!(exit_code(Some(&exited(7))), 7);
        assert_eq!(exit_code(Some(&Outcome::because(Reason::Timeout, ""))), 124);
        assert_eq!(exit_code(None), 125);
    }
}
