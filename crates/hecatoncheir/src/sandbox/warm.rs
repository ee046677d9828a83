//! Makes a guest ready that booted cold: its runner, and the template's warm-up command.

use tartarus_guest::{End, Header, Kind, RunnerState, Start, StartRunner};
use tartarus_types::{Language, SandboxSpec, SnapshotUse, Warm};
use tokio::sync::mpsc;

use crate::link::{GuestEvent, GuestLink};
use crate::workshop::CannotStart;

/// The warm-up's number in the guest: out of the way of the sandbox's own processes.
const WARM: u32 = u32::MAX;
/// Bytes of the warm-up's last words that are kept.
const LAST_WORDS: usize = 1000;

/// The template's warm-up command as a process.
pub(super) fn warm_start(spec: &SandboxSpec, command: &str, token: &str) -> Start {
    Start {
        token: token.to_owned(),
        argv: ["/bin/sh", "-c", command].map(str::to_owned).to_vec(),
        env: spec.ground.env.clone(),
        cwd: spec.ground.workdir.clone(),
        user: spec.ground.user.clone(),
        stdin: false,
        code: None,
    }
}

/// Starts the runner, and runs the warm-up to its end. In a guest that is to become a snapshot the warm-up is the main
/// command instead, so that its output is kept. May be repeated in the same guest.
pub(super) async fn warm_up(
    link: &GuestLink,
    events: &mut mpsc::Receiver<GuestEvent>,
    spec: &SandboxSpec,
    token: &str,
) -> Result<(), CannotStart> {
    let Warm { command, runner } = &spec.warm;
    if let Some(runner) = runner {
        let Language::Python = runner.language;
        let preload = runner.preload.clone();
        let start = StartRunner { language: "python".to_owned(), preload, env: spec.ground.env.clone() };
        link.start_runner(&start);
        match next(events, |event| matches!(event, GuestEvent::Runner(_))).await? {
            GuestEvent::Runner(RunnerState::Failed { message }) => {
                return Err(CannotStart::never(format!("the template's runner could not be started: {message}")));
            }
            _ready => {}
        }
    }
    match command {
        Some(command) if spec.snapshot != SnapshotUse::Make => run(link, events, spec, command, token).await,
        _ => Ok(()),
    }
}

async fn run(
    link: &GuestLink,
    events: &mut mpsc::Receiver<GuestEvent>,
    spec: &SandboxSpec,
    command: &str,
    token: &str,
) -> Result<(), CannotStart> {
    link.start(WARM, &warm_start(spec, command, &format!("{token}-warm")));
    link.attach(WARM, 0, 0);
    link.attach(WARM, 1, 0);
    let (mut words, mut arrived): (Vec<u8>, [u64; 2]) = (Vec::new(), [0; 2]);
    loop {
        match next(events, |event| matches!(event, GuestEvent::Output { .. } | GuestEvent::Ended { .. })).await? {
            GuestEvent::Output { process: WARM, stream, offset, bytes } => {
                let next = offset.saturating_add(bytes.len() as u64);
                let expected = std::mem::replace(&mut arrived[stream], next);
                let header = Header { kind: Kind::Ack, stream: stream as u8 + 1, process: WARM, offset: next };
                if offset != expected || bytes.is_empty() || !link.frame(header, &[]) {
                    return Err(CannotStart::never("the guest agent broke the protocol while it was warmed up"));
                }
                words.extend(bytes);
                words.drain(..words.len().saturating_sub(LAST_WORDS));
            }
            GuestEvent::Ended { process: WARM, end } => {
                link.frame(Header::new(Kind::Forget, WARM), &[]);
                return match end {
                    End::Exited { code: 0, .. } => Ok(()),
                    end => Err(CannotStart::never(failure(&end, &words))),
                };
            }
            _ => {}
        }
    }
}

/// The next event of a kind; others are of no interest before the command.
async fn next(
    events: &mut mpsc::Receiver<GuestEvent>,
    wanted: impl Fn(&GuestEvent) -> bool,
) -> Result<GuestEvent, CannotStart> {
    loop {
        match events.recv().await {
            Some(GuestEvent::Gone(why)) => return Err(CannotStart::retry(format!("the guest was lost: {why}"))),
            None => return Err(CannotStart::retry("the guest was lost")),
            Some(event) if wanted(&event) => return Ok(event),
            Some(_) => {}
        }
    }
}

fn failure(end: &End, words: &[u8]) -> String {
    let how = match end {
        End::Exited { code, .. } => format!("exited with {code}"),
        End::Signalled { signal, .. } => format!("was ended by {}", tartarus_types::signal::name(*signal)),
        End::NotFound { message } | End::NotExecutable { message } => format!("did not start: {message}"),
    };
    let words = String::from_utf8_lossy(words);
    let words: String = words.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    format!("the template's warm-up {how}: {}", words.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_how_and_what_was_said() {
        let end = End::Exited { code: 3, oom_kills: 0 };
        assert_eq!(failure(&end, b"no such\x07 file\n"), "the template's warm-up exited with 3: no such file");
        let end = End::Signalled { signal: 9, oom_kills: 0 };
        assert!(failure(&end, b"\xff").contains("SIGKILL"));
    }
}
