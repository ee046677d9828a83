//! What was answered is on the disk: the process is killed at random moments, and a new one finds it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test stops where it fails and prints what it saw")]

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hades::{Candidate, JobQueue, ListFilter, NewSandbox, NodeRecord, NodeRegistry, QueueRules, RunStore, Sqlite};
use tartarus_types::{Event, NodeId, Outcome, Overcommit, Reason, SandboxId, SandboxSpec, State, Timestamp};

const FOLDER: &str = "HADES_CRASH_FOLDER";
const ROUNDS: u32 = 20;
const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

#[test]
fn whatever_was_answered_survives_sigkill() {
    if let Some(dir) = std::env::var_os(FOLDER) {
        child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let (mut accepted, mut ended) = (HashSet::new(), HashSet::new());
    for _ in 0..ROUNDS {
        let before = accepted.len();
        for line in kill_one(dir.path()) {
            match line.split_once(' ') {
                Some(("accepted", id)) => accepted.insert(id.to_owned()),
                Some(("ended", id)) => ended.insert(id.to_owned()),
                _ => continue, // the test harness's own, or a line cut off by the end
            };
        }
        check(&path, &accepted, &ended);
        println!("killed: {} more accepted, {} ended in all", accepted.len() - before, ended.len());
    }
    assert!(accepted.len() > 50 && ended.len() > 5, "too little happened: {} {}", accepted.len(), ended.len());
}

/// Starts a child, kills it at a random moment, and gives the whole lines that it printed.
fn kill_one(dir: &Path) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "whatever_was_answered_survives_sigkill", "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut lines = Vec::new();
    let mut line = String::new();
    while out.read_line(&mut line).unwrap() > 0 && !line.ends_with("ready\n") {
        line.clear();
    }
    let random = SandboxId::random().as_str().bytes().fold(0u64, |n, b| n.wrapping_mul(31).wrapping_add(b.into()));
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        while out.read_line(&mut line).unwrap() > 0 {
            if line.ends_with('\n') {
                lines.push(line.trim().to_owned());
            }
            line.clear();
        }
        lines
    });
    std::thread::sleep(Duration::from_millis(random % 120));
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

/// Everything printed is there, sound, and in agreement with itself.
fn check(path: &Path, accepted: &HashSet<String>, ended: &HashSet<String>) {
    let store = Sqlite::open(path, QueueRules::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let all = runtime.block_on(store.list(ListFilter { ended: true, limit: 1 << 20 })).unwrap();
    let ids: HashSet<_> = all.iter().map(|r| r.id.to_string()).collect();
    let lost: Vec<_> = accepted.difference(&ids).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    let over: HashSet<_> = all.iter().filter(|r| r.state == State::Succeeded).map(|r| r.id.to_string()).collect();
    let lost: Vec<_> = ended.difference(&over).collect();
    assert!(lost.is_empty(), "ended and forgotten: {lost:?}");
    drop(store);

    let conn = rusqlite::Connection::open(path).unwrap();
    let sound: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let torn =
        "SELECT count(*) FROM sandboxes LEFT JOIN queue q USING (seq) WHERE (q.seq IS NULL) <> (ended_at IS NOT NULL)";
    assert_eq!(conn.query_row(torn, [], |r| r.get::<_, i64>(0)).unwrap(), 0, "record and queue entry change together");
}

/// Accepts, and runs some to their end, until it is killed; prints what it was answered.
fn child(dir: &Path) -> ! {
    let store = Arc::new(Sqlite::open(&dir.join("store.db"), QueueRules::default()).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let node = NodeRecord {
            id: NodeId::random(),
            memory_mib: 1 << 30,
            overhead_mib: 0,
            overcommit: Overcommit::NEVER,
            start_slots: 1 << 20,
            max_cpus: 1,
            seen_at: NOW,
            reserved_mib: 0,
            starting: 0,
        };
        store.upsert_node(node.clone()).await.unwrap();
        say("ready");
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                loop {
                    let new = sandbox();
                    let id = new.id.clone();
                    store.accept(new, NOW).await.unwrap();
                    say(&format!("accepted {id}"));
                }
            });
        }
        loop {
            let Some(leased) = store.lease(&node.id, oldest, NOW).await.unwrap() else { continue };
            let id = &leased.record.id;
            let end = Outcome { exit_code: Some(0), message: None, ..Outcome::because(Reason::Exited, "") };
            for event in [Event::Prepare, Event::Begin, Event::End(end)] {
                store.apply(id, &leased.token, event, None, NOW).await.unwrap();
            }
            say(&format!("ended {id}"));
        }
    })
}

/// In one write, so that lines of different threads do not mix.
fn say(line: &str) {
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn oldest(_: &NodeRecord, candidates: &[Candidate]) -> Option<usize> {
    (!candidates.is_empty()).then_some(0)
}

fn sandbox() -> NewSandbox {
    let spec = SandboxSpec {
        template: "python".into(),
        image: "sha256:image".into(),
        kernel: "sha256:kernel".into(),
        command: vec!["true".into()],
        cpus: 1,
        memory_mib: 1,
        disk_mib: 1,
        start_timeout_ms: 60_000,
        warm: tartarus_types::Warm::default(),
        ground: tartarus_types::Ground::default(),
        snapshot: tartarus_types::SnapshotUse::Prefer,
        ..SandboxSpec::default()
    };
    NewSandbox { id: SandboxId::random(), name: None, labels: BTreeMap::new(), spec, idempotency: None }
}
