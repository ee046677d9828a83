//! What is kept of an `exec`: beside its log, so that it outlives the sandbox.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tartarus_api::node::{ExecSpec, Target};
use tartarus_types::{ExecId, Outcome, Reason, SandboxId};

use crate::ledger::{make_dir, read_json, write_json};

const EXEC: &str = "exec.json";
const OUTCOME: &str = "outcome.json";

/// An accepted exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredExec {
    /// Its number in the guest.
    pub(super) number: u32,
    pub(super) spec: ExecSpec,
}

/// The folder of a process's log.
pub(crate) fn log_dir(logs: &Path, sandbox: &SandboxId, target: &Target) -> PathBuf {
    let dir = logs.join(sandbox.as_str());
    match target {
        Target::Main => dir.join("main"),
        Target::Exec(id) => dir.join(id.as_str()),
    }
}

/// Makes an exec durable.
pub(super) fn put(dir: &Path, exec: &StoredExec) -> io::Result<()> {
    make_dir(dir)?;
    write_json(&dir.join(EXEC), exec)
}

/// Writes its end.
pub(super) fn put_outcome(dir: &Path, outcome: &Outcome) -> io::Result<()> {
    write_json(&dir.join(OUTCOME), outcome)
}

/// An exec and its end, from disk.
pub(crate) fn stored_exec(
    logs: &Path,
    sandbox: &SandboxId,
    id: &ExecId,
) -> io::Result<Option<(ExecSpec, Option<Outcome>)>> {
    let dir = log_dir(logs, sandbox, &Target::Exec(id.clone()));
    let Some(exec) = read_json::<StoredExec>(&dir.join(EXEC))? else { return Ok(None) };
    Ok(Some((exec.spec, read_json(&dir.join(OUTCOME))?)))
}

/// Writes the end of all that have none: their sandbox ended.
pub(super) fn cut_all(logs: &Path, sandbox: &SandboxId) -> io::Result<()> {
    for (exec, _) in all(logs, sandbox)?.into_iter().filter(|(_, outcome)| outcome.is_none()) {
        put_outcome(&log_dir(logs, sandbox, &Target::Exec(exec.spec.id)), &cut())?;
    }
    Ok(())
}

/// How an exec ends that its sandbox did not wait for.
pub(super) fn cut() -> Outcome {
    Outcome::because(Reason::Killed, "its sandbox ended")
}

/// Every exec of a sandbox, and its end where it has one.
pub(super) fn all(logs: &Path, sandbox: &SandboxId) -> io::Result<Vec<(StoredExec, Option<Outcome>)>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(logs.join(sandbox.as_str())) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let dir = entry?.path();
        if let Some(exec) = read_json::<StoredExec>(&dir.join(EXEC))? {
            found.push((exec, read_json(&dir.join(OUTCOME))?));
        }
    }
    Ok(found)
}
