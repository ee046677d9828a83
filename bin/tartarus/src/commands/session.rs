//! A terminal's session with a process in a sandbox: its output here, our input there, and what our signals do.

mod pump;
mod signals;
mod spinner;

use std::cell::Cell;
use std::future::pending;
use std::time::Duration;

use tartarus_api::client::{Client, ClientError, Process};
use tartarus_api::v1::SandboxDetail;
use tartarus_types::State;
use tokio::time::timeout;

pub(super) use pump::{Style, pump};
pub(super) use signals::{Signal, Signals};
pub(super) use spinner::Spinner;

use crate::terminal::{note, stdin};

/// How long to try to end a process before leaving anyway.
const LEAVING: Duration = Duration::from_secs(5);
/// Pause between looks at how far a start is; only for a person who watches.
pub(super) const LOOK: Duration = Duration::from_millis(300);

/// How a session came to its end.
pub(super) enum Session<T> {
    /// The work was done.
    Done(T),
    /// A signal made us leave, with this exit code.
    Left(u8),
}

/// Does `work` while standard input goes to the process (with `interactive`) and signals are heeded.
pub(super) async fn attend<T>(
    client: &Client,
    process: &Process,
    interactive: bool,
    spinner: &Spinner,
    signals: &mut Signals,
    work: impl Future<Output = T>,
) -> Session<T> {
    // Set once we are to leave: the end that we asked for must not be taken for the command's own.
    let leaving = Cell::new(None);
    tokio::select! {
        result = work => match leaving.get() {
            None => Session::Done(result),
            Some(code) => Session::Left(code),
        },
        code = heed(client, process, spinner, signals, &leaving) => Session::Left(code),
        () = feed(client, process, interactive) => Session::Left(125),
        () = watch(client, process, spinner) => Session::Left(125),
    }
}

/// Never returns: the end of our input is not the end of the command.
async fn feed(client: &Client, process: &Process, interactive: bool) {
    if interactive {
        let fed = match stdin() {
            Ok(stdin) => client.feed(process, stdin).await.map_err(anyhow::Error::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = fed {
            note(&format!("standard input was not passed on: {error}"));
        }
    }
    pending().await
}

/// Never returns. Shows a person what a start waits for.
async fn watch(client: &Client, process: &Process, spinner: &Spinner) {
    while spinner.is_shown() {
        match client.inspect(&process.sandbox).await {
            Ok(detail) => match detail.sandbox.state {
                State::Queued => spinner.say(&place(&detail)),
                State::Scheduled | State::Preparing => spinner.say("starting a microVM"),
                State::Paused => spinner.say("paused"),
                _ => spinner.clear(),
            },
            Err(error) => spinner.say(&error.to_string()),
        }
        tokio::time::sleep(LOOK).await;
    }
    pending().await
}

/// What a queued sandbox waits for.
pub(super) fn place(detail: &SandboxDetail) -> String {
    let number = detail.sandbox.queue_position.map(|n| format!(", number {n}")).unwrap_or_default();
    let why = detail.waiting.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("waiting for a place{number}{why}")
}

/// Returns when a signal makes us leave, with the exit code.
async fn heed(
    client: &Client,
    process: &Process,
    spinner: &Spinner,
    signals: &mut Signals,
    leaving: &Cell<Option<u8>>,
) -> u8 {
    let mut signal = signals.next().await;
    if signal == Signal::Interrupt {
        tokio::select! {
            left = interrupt(client, process, leaving) => match left {
                Some(code) => return code,
                None => signal = signals.next().await,
            },
            second = signals.next() => signal = second,
        }
    }
    leaving.set(Some(signal.exit_code()));
    spinner.clear();
    let (name, grace) = match signal {
        Signal::Interrupt => ("KILL", Some(Duration::ZERO)),
        Signal::Terminate | Signal::Hangup => ("TERM", None),
    };
    tokio::select! {
        () = end(client, process, name, grace) => {}
        _ = signals.next() => {}
    }
    signal.exit_code()
}

/// Sends SIGINT to the command. One that has not started is ended instead: then there is an exit code.
async fn interrupt(client: &Client, process: &Process, leaving: &Cell<Option<u8>>) -> Option<u8> {
    if process.exec.is_none()
        && let Ok(detail) = client.inspect(&process.sandbox).await
        && matches!(detail.sandbox.state, State::Queued | State::Scheduled | State::Preparing)
    {
        leaving.set(Some(Signal::Interrupt.exit_code()));
        end(client, process, "KILL", Some(Duration::ZERO)).await;
        return leaving.get();
    }
    match client.signal(process, "INT").await {
        // What has ended meanwhile needs no signal: its end is about to be told.
        Err(error) if error.code().is_none() => note(&format!("SIGINT was not passed on: {error}")),
        _ => {}
    }
    None
}

/// Ends the process (the main command's with its sandbox), and says so when that did not work.
pub(super) async fn end(client: &Client, process: &Process, signal: &str, grace: Option<Duration>) {
    let asked = async {
        if process.exec.is_some() {
            return client.signal(process, signal).await;
        }
        match client.kill(&process.sandbox, signal, grace).await {
            // Its end was asked for before: what is left to do is to see it.
            Err(ClientError::Refused(_)) | Ok(_) if grace == Some(Duration::ZERO) => {
                client.wait(&process.sandbox).await.map(drop)
            }
            result => result.map(drop),
        }
    };
    let cause = match timeout(LEAVING, asked).await {
        // A refusal says that it has ended, or is gone.
        Ok(Ok(()) | Err(ClientError::Refused(_))) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "that takes long".to_owned(),
    };
    note(&format!("could not see {} end ({cause}); `tartarus kill {0}` ends it", process.sandbox));
}
