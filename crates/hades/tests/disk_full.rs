//! A disk that is really full: refused as such, nothing answered is lost, and the store goes on when there is room.
//!
//! On a small tmpfs in a mount namespace of its own, which goes with the child that runs in it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test stops where it fails and prints what it saw")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use hades::{ListFilter, NewSandbox, QueueRules, RunStore, Sqlite, StoreError};
use tartarus_types::{SandboxId, SandboxSpec, Timestamp};

const FOLDER: &str = "HADES_FULL_FOLDER";
const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

#[test]
fn a_full_disk_is_an_answer() {
    if let Some(dir) = std::env::var_os(FOLDER) {
        return child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    // As root directly, else in a user namespace, where the kernel allows one.
    let unshare = |flags: &str| {
        let mut command = Command::new("unshare");
        command.arg(flags);
        command
    };
    let possible = |flags: &str| unshare(flags).args(["mount", "-t", "tmpfs", "none"]).arg(dir.path()).output();
    let Some(flags) = ["-m", "-rm"].into_iter().find(|f| possible(f).is_ok_and(|out| out.status.success())) else {
        println!("skipped: this account may not mount a tmpfs, not even in a user namespace");
        return;
    };
    let out = unshare(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_is_an_answer", "--nocapture"])
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("refused "), "{text}");
}

fn child(dir: &Path) {
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(dir).status().unwrap();
    assert!(mounted.success());
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![0; 300_000]).unwrap();
    let path = dir.join("store.db");
    let store = Arc::new(Sqlite::open(&path, QueueRules::default()).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let mut ids = runtime.block_on(fill(&store));
    println!("refused after {}", ids.len());
    assert!(!ids.is_empty());

    std::fs::remove_file(&ballast).unwrap();
    runtime.block_on(async {
        let new = sandbox();
        ids.push(new.id.clone());
        store.accept(new, NOW).await.unwrap();
    });
    drop(store);
    let store = Sqlite::open(&path, QueueRules::default()).unwrap();
    let all = runtime.block_on(store.list(ListFilter { ended: true, limit: 1 << 20 })).unwrap();
    let mut found: Vec<_> = all.into_iter().map(|r| r.id).collect();
    found.sort();
    ids.sort();
    assert_eq!(found, ids, "what was accepted, and nothing that was refused");
}

/// Accepts from 8 callers until each was refused for want of room. Returns what was accepted.
async fn fill(store: &Arc<Sqlite>) -> Vec<SandboxId> {
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(store);
        callers.spawn(async move {
            let mut accepted = Vec::new();
            for _ in 0..1_000 {
                let new = sandbox();
                let id = new.id.clone();
                match store.accept(new, NOW).await {
                    Ok(_) => accepted.push(id),
                    Err(StoreError::DiskFull) => return accepted,
                    Err(other) => panic!("{other:?}"),
                }
            }
            panic!("more was accepted than the disk can hold");
        });
    }
    callers.join_all().await.concat()
}

fn sandbox() -> NewSandbox {
    let spec = SandboxSpec {
        template: "python".into(),
        image: "sha256:image".into(),
        kernel: "sha256:kernel".into(),
        command: vec!["true".into(), "x".repeat(2_000)],
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
