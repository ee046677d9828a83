//! Durable accepts per second against bare SQLite: `cargo run --release -p hades --example accepts [FOLDER]`.
//!
//! Bare SQLite inserts a row of the same size and commits each with the same settings. Rounds alternate, so that a slow
//! moment of the disk hits all of them; the median of each is compared. FOLDER must be on the disk that is meant.

#![allow(clippy::print_stdout, reason = "it is a program that prints")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hades::{NewSandbox, QueueRules, RunStore, Sqlite, StoreError};
use tartarus_types::{SandboxId, SandboxSpec, Timestamp};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let store = Arc::new(Sqlite::open(&dir.path().join("store.db"), QueueRules::default())?);
    let bare = bare_open(&dir.path().join("bare.db"))?;

    let (mut single, mut many, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(bare_round(&bare)?);
        single.push(runtime.block_on(round(&store, 1))?);
        many.push(runtime.block_on(round(&store, 32))?);
    }
    let (raw, single, many) = (median(raw), median(single), median(many));
    println!("bare SQLite, one commit each: {raw:.0}/s");
    println!("accept, 1 caller:             {single:.0}/s = {:.2} of bare", single / raw);
    println!("accept, 32 callers:           {many:.0}/s = {:.2} of bare", many / raw);
    Ok(())
}

async fn round(store: &Arc<Sqlite>, callers: usize) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let mut done = 0u32;
            while start.elapsed() < ROUND {
                store.accept(sandbox(), Timestamp(1)).await?;
                done += 1;
            }
            Ok::<_, StoreError>(done)
        });
    }
    let mut done = 0;
    while let Some(task) = tasks.join_next().await {
        done += task??;
    }
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

fn bare_open(path: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let conn = rusqlite::Connection::open(path)?;
    conn.query_row("PRAGMA journal_mode = wal", [], |_| Ok(()))?;
    conn.execute_batch(
        "PRAGMA synchronous = full; CREATE TABLE rows (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, body TEXT)",
    )?;
    Ok(conn)
}

fn bare_round(conn: &rusqlite::Connection) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    let mut insert = conn.prepare("INSERT INTO rows (id, body) VALUES (?1, ?2)")?;
    let mut done = 0u32;
    while start.elapsed() < ROUND {
        let new = sandbox();
        insert.execute((new.id.as_str(), serde_json::to_string(&new.spec)?))?;
        done += 1;
    }
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn sandbox() -> NewSandbox {
    let spec = SandboxSpec {
        template: "python".into(),
        image: format!("sha256:{}", "0".repeat(64)),
        kernel: format!("sha256:{}", "0".repeat(64)),
        command: vec!["python3".into(), "script.py".into()],
        env: BTreeMap::from([("PYTHONUNBUFFERED".into(), "1".into())]),
        workdir: Some("/srv".into()),
        cpus: 1,
        memory_mib: 512,
        disk_mib: 1024,
        timeout_ms: Some(30_000),
        start_timeout_ms: 60_000,
        warm: tartarus_types::Warm::default(),
        ground: tartarus_types::Ground::default(),
        snapshot: tartarus_types::SnapshotUse::Prefer,
        ..SandboxSpec::default()
    };
    NewSandbox { id: SandboxId::random(), name: None, labels: BTreeMap::new(), spec, idempotency: None }
}
