//! Waiting for the sandboxes that make a template's golden snapshots.

use std::future::pending;

use tartarus_api::client::{Client, Process};
use tartarus_api::v1::{SandboxDetail, SnapshotState, Template, TemplateSnapshot};
use tartarus_types::{Outcome, Reason, State};

use super::super::outcome::explain;
use super::super::session::{LOOK, Spinner, Style, place, pump};
use super::show::shape;
use crate::terminal::note;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    /// None failed.
    Made,
    /// One could not be made, which was told with the output of its warm-up.
    Failed,
}

/// Waits for each that is being made. The first that fails is told, and the last that is waited for.
pub(super) async fn follow(client: &Client, template: &Template, spinner: &Spinner) -> anyhow::Result<Followed> {
    let building = template.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Building);
    for snapshot in building {
        let Some(maker) = &snapshot.sandbox else { continue };
        let ended = tokio::select! {
            ended = client.wait(maker.as_str()) => ended?,
            () = watch(client, snapshot, maker.as_str(), spinner) => continue,
        };
        let outcome = ended.outcome.filter(|outcome| outcome.state() != State::Succeeded);
        let Some(outcome) = outcome else { continue };
        spinner.clear();
        // One stream after the other: both go to the same place here, and pieces of lines would be mixed.
        for from in [[Some(0), None], [None, Some(0)]] {
            // What it said is the better half of the cause, and not worth losing the other half for.
            if let Err(error) = pump(client, &Process::main(maker.as_str()), from, false, Style::Told, spinner).await {
                note(&format!("its output could not be read: {error:#}"));
                break;
            }
        }
        note(&format!(
            "the snapshot of {} for {} was not made: {}",
            template.name,
            shape(snapshot.shape),
            why(&outcome)
        ));
        return Ok(Followed::Failed);
    }
    Ok(Followed::Made)
}

fn why(outcome: &Outcome) -> String {
    match (outcome.reason, outcome.exit_code, outcome.message.as_deref().filter(|text| !text.is_empty())) {
        (Reason::Exited, Some(code), None) => format!("--warm exited with {code}"),
        (Reason::Exited, Some(code), Some(message)) => format!("{message} (exit code {code})"),
        _ => explain(outcome).unwrap_or_else(|| "it is not known why".to_owned()),
    }
}

/// Never returns. Shows a person how far it is.
async fn watch(client: &Client, snapshot: &TemplateSnapshot, maker: &str, spinner: &Spinner) {
    while spinner.is_shown() {
        let text = match client.inspect(maker).await {
            Ok(detail) => format!("the snapshot for {}: {}", shape(snapshot.shape), step(&detail)),
            Err(error) => error.to_string(),
        };
        spinner.say(&text);
        tokio::time::sleep(LOOK).await;
    }
    pending().await
}

fn step(detail: &SandboxDetail) -> String {
    match detail.sandbox.state {
        State::Queued => place(detail),
        State::Scheduled | State::Preparing => "starting a microVM".to_owned(),
        _ => "making it ready".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_warm_up_is_told() {
        let exited = Outcome { reason: Reason::Exited, exit_code: Some(3), signal: None, message: None, oom_kills: 0 };
        assert_eq!(why(&exited), "--warm exited with 3");
        let runner = Outcome { message: Some("the runner did not start".to_owned()), ..exited };
        assert_eq!(why(&runner), "the runner did not start (exit code 3)");
        let late = Outcome::because(Reason::Timeout, "");
        assert_eq!(why(&late), "the command was ended because its timeout passed");
    }
}
