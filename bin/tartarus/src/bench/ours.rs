//! Tartarus itself: by command line, and through the API with a kept connection.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::api::{Api, Detail, StartedFrom};
use super::process;
use super::row::{Kind, PROGRAM, Ran, Row, Run, Work};
use super::server::{PROCESS, Server, TEMPLATE};

/// Longer than anything here waits in the queue: many at once boot cold one after another.
const START: &str = "10m";
const START_MS: u64 = 600_000;

/// The rows, by the name that `--only` calls them.
pub(super) const RUNNER: &str = "restore-runner";
pub(super) const RUNNER_API: &str = "restore-runner-api";
pub(super) const PLAIN: &str = "restore-process";
pub(super) const PLAIN_API: &str = "restore-process-api";
pub(super) const COLD: &str = "cold-boot";

/// All of them.
pub(super) const ALL: [&str; 5] = [RUNNER, RUNNER_API, PLAIN, PLAIN_API, COLD];

/// How a row's machine must have come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Snapshot,
    Boot,
}

/// All of them.
pub(super) fn rows(server: &Arc<Server>) -> Vec<Row> {
    let row = |name, how: &str, work| Row::new(name, Kind::Ours, how).version(env!("CARGO_PKG_VERSION")).work(Ok(work));
    let cli = |start, flags: &[&str]| -> Box<dyn Work> {
        Box::new(Cli { server: server.clone(), flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), start })
    };
    let api = |wanted: Value| -> Box<dyn Work> {
        let mut whole = json!({"template": TEMPLATE, "attach": true, "start_timeout_ms": START_MS});
        if let (Some(whole), Value::Object(wanted)) = (whole.as_object_mut(), wanted) {
            whole.extend(wanted);
        }
        Box::new(ByApi { server: server.clone(), wanted: whole, idle: Mutex::new(Vec::new()) })
    };
    let by_process = api(json!({"command": ["python3", "-c", PROGRAM]}));
    let (runner, boot) = (["--code", PROGRAM], ["--no-snapshot", "--code", PROGRAM]);
    vec![
        row(RUNNER, "tartarus run py --code …", cli(Start::Snapshot, &runner)),
        row(RUNNER_API, "POST /v1/sandboxes {code}, GET …/output", api(json!({"code": PROGRAM}))),
        row(PLAIN, "tartarus run py -- python3 -c …", cli(Start::Snapshot, &PROCESS)),
        row(PLAIN_API, "POST /v1/sandboxes {command}, GET …/output", by_process),
        row(COLD, "tartarus run py --no-snapshot --code …", cli(Start::Boot, &boot)),
    ]
}

/// What leaks and idle clones are looked at with: the runner.
pub(super) fn restore(server: &Arc<Server>) -> Row {
    rows(server).swap_remove(0)
}

/// Looks whether a sandbox came up as it should have.
fn check(api: &mut Api, name: &str, start: Start) -> Result<Detail> {
    let detail = api.ended(name, std::time::Duration::from_secs(30))?;
    if detail.exit_status != Some(0) {
        bail!("it is {} with exit status {:?}", detail.state, detail.exit_status);
    }
    came_up(detail.start.as_ref(), start).map(|()| detail)
}

fn came_up(how: Option<&StartedFrom>, wanted: Start) -> Result<()> {
    match (how, wanted) {
        (Some(StartedFrom::Snapshot { .. }), Start::Snapshot) | (Some(StartedFrom::ColdBoot { .. }), Start::Boot) => {
            Ok(())
        }
        (Some(StartedFrom::ColdBoot { why }), Start::Snapshot) => bail!("it booted cold: {why}"),
        (Some(StartedFrom::Snapshot { golden }), Start::Boot) => bail!("it was restored from {golden}"),
        (None, _) => bail!("nothing says how it came up"),
    }
}

/// `tartarus run`.
struct Cli {
    server: Arc<Server>,
    /// After `run TEMPLATE`.
    flags: Vec<String>,
    start: Start,
}

impl Work for Cli {
    fn run(&self, run: Run<'_>) -> Result<Ran> {
        let args = ["run", TEMPLATE, "--name", run.name, "--start-timeout", START];
        let mut command = self.server.command(&args);
        command.args(&self.flags);
        Ok(Ran { output: process::run(&mut command, run.patience)?.text()?, ms: None })
    }

    fn check(&self, name: &str) -> Result<Option<Detail>> {
        check(&mut self.server.api(), name, self.start).map(Some)
    }
}

/// Two requests over a connection that is kept from run to run.
struct ByApi {
    server: Arc<Server>,
    wanted: Value,
    idle: Mutex<Vec<Api>>,
}

impl ByApi {
    /// A connection that was used before, where there is one.
    fn take(&self) -> Api {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| self.server.api())
    }

    fn give_back(&self, api: Api) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(api);
    }
}

impl Work for ByApi {
    /// A server closes connections that were idle for long; a program that speaks to it all day has open ones.
    fn prepare(&self, at_once: usize) -> Result<()> {
        let mut ready = Vec::with_capacity(at_once);
        for _ in 0..at_once {
            let mut api = self.take();
            if api.ping().is_err() {
                api = self.server.api();
                api.ping()?;
            }
            ready.push(api);
        }
        ready.into_iter().for_each(|api| self.give_back(api));
        Ok(())
    }

    fn run(&self, run: Run<'_>) -> Result<Ran> {
        let mut wanted = self.wanted.clone();
        wanted.as_object_mut().context("a request is an object")?.insert("name".to_owned(), json!(run.name));
        let mut api = self.take();
        let output = api.run(&wanted, run.name, run.patience)?;
        self.give_back(api);
        Ok(Ran { output, ms: None })
    }

    fn check(&self, name: &str) -> Result<Option<Detail>> {
        let mut api = self.take();
        let checked = check(&mut api, name, Start::Snapshot);
        self.give_back(api);
        checked.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_no_restore_and_silence_is_neither() {
        let snapshot = StartedFrom::Snapshot { golden: "g".to_owned() };
        let boot = StartedFrom::ColdBoot { why: "no room".to_owned() };
        assert!(came_up(Some(&snapshot), Start::Snapshot).is_ok() && came_up(Some(&boot), Start::Boot).is_ok());
        assert!(came_up(Some(&boot), Start::Snapshot).unwrap_err().to_string().contains("no room"));
        assert!(came_up(Some(&snapshot), Start::Boot).is_err());
        assert!(came_up(None, Start::Snapshot).is_err() && came_up(None, Start::Boot).is_err());
    }
}
