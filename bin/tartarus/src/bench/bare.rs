//! The hypervisor alone: what a restore costs without Tartarus around it, with the same snapshot and the same runner. A
//! small program of the crate `tartarus-runtime` does it, `examples/bare_restore.rs`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::process::Daemon;
use super::row::{Kind, PROGRAM, Ran, Row, Run, Work};
use super::scratch::Scratch;
use super::server::{Server, TEMPLATE};

pub(super) const BARE: &str = "bare";
/// Until the program has opened what it needs.
const READY: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(60);

/// The row, and the programs behind it: one for each that may run at once.
pub(super) fn row(scratch: &Scratch, server: &Arc<Server>, program: &Path, slots: usize) -> (Row, Vec<Daemon>) {
    let row = Row::new(BARE, Kind::Bare, "copy layer, spawn QEMU, greet, run the code in the runner");
    match start(scratch, server, program, slots) {
        Ok((bare, daemons)) => (row.work(Ok(Box::new(bare))), daemons),
        Err(error) => (row.work(Err(error)), Vec::new()),
    }
}

/// A sandbox that was restored is held until each program has the snapshot's memory open.
fn start(scratch: &Scratch, server: &Arc<Server>, program: &Path, slots: usize) -> Result<(Bare, Vec<Daemon>)> {
    let held = "bench-held";
    server.read(&["create", TEMPLATE, "--name", held])?;
    let started = start_beside(scratch, server, program, slots, held);
    let removed = server.read(&["rm", held]);
    let started = started?;
    removed?;
    Ok(started)
}

fn start_beside(
    scratch: &Scratch,
    server: &Server,
    program: &Path,
    slots: usize,
    held: &str,
) -> Result<(Bare, Vec<Daemon>)> {
    let (detail, golden) = server.api().restored(held, START)?;
    let pid = detail.hypervisor_pid.context("a running sandbox has a hypervisor")?;
    let snapshot = find(server.data(), &golden).with_context(|| format!("no folder of the snapshot {golden}"))?;
    let code = scratch.dir().join("code.py");
    fs::write(&code, PROGRAM).with_context(|| format!("cannot write {}", code.display()))?;
    let (mut seats, mut daemons) = (Vec::new(), Vec::new());
    for slot in 0..slots {
        let dir = scratch.folder(&format!("bare-{slot}"))?;
        let mut words = Command::new(std::path::absolute(program)?);
        words.arg(pid.to_string()).arg(&snapshot).arg(&code).arg(&dir);
        let mut daemon = Daemon::spawn(&words, Duration::from_secs(5), |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        })?;
        let seat = Seat::new(&mut daemon)?;
        let hello = seat.line(READY).context("the bare sequence")?;
        if hello != "ready" {
            bail!("the bare sequence began with {hello:?}");
        }
        seats.push(Mutex::new(seat));
        daemons.push(daemon);
    }
    Ok((Bare { seats }, daemons))
}

/// The folder of a golden snapshot: `NAME.GENERATION`, somewhere below the data folder.
fn find(dir: &Path, golden: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?;
    let folders: Vec<_> = entries.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).collect();
    let is_it = |name: &str| name == golden || name.split_once('.').is_some_and(|(name, _)| name == golden);
    let found = folders.iter().find(|entry| entry.file_name().to_str().is_some_and(is_it));
    found.map(fs::DirEntry::path).or_else(|| folders.iter().find_map(|entry| find(&entry.path(), golden)))
}

struct Bare {
    seats: Vec<Mutex<Seat>>,
}

/// One program: a line in, a line out.
struct Seat {
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Seat {
    fn new(daemon: &mut Daemon) -> Result<Self> {
        let child = daemon.child();
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (tell, lines) = mpsc::sync_channel(4);
        let read = move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("bare".to_owned()).spawn(read).context("cannot start a thread")?;
        Ok(Self { stdin, lines })
    }

    fn line(&self, patience: Duration) -> Result<String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(line),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("no answer within {patience:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it ended; what it said is above"),
        }
    }
}

/// What the program answers.
#[derive(Debug, Deserialize)]
struct Answer {
    ms: f64,
    output: String,
    error: Option<String>,
}

impl Work for Bare {
    fn run(&self, run: Run<'_>) -> Result<Ran> {
        let seat = self.seats.get(run.slot).context("there are not enough programs")?;
        let mut seat = seat.lock().unwrap_or_else(PoisonError::into_inner);
        seat.stdin.write_all(b"run\n").context("cannot ask it")?;
        let answer: Answer = serde_json::from_str(&seat.line(run.patience)?).context("cannot read its answer")?;
        if let Some(error) = answer.error {
            bail!("{error}");
        }
        Ok(Ran { output: answer.output, ms: Some(answer.ms) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_snapshot_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = dir.path().join("store/golden/abc.0000000000000003");
        fs::create_dir_all(&wanted).unwrap();
        fs::create_dir_all(dir.path().join("store/abcd.0")).unwrap();
        assert_eq!(find(dir.path(), "abc"), Some(wanted));
        assert_eq!(find(dir.path(), "x"), None);
    }
}
