//! Dropping the store ends its threads. Alone in its file: it counts the threads of the whole process.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use hades::{Catalogue, QueueRules, Sqlite};
use tartarus_types::Timestamp;

#[test]
fn dropping_it_ends_its_threads_and_leaves_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = Sqlite::open(&path, QueueRules::default()).unwrap();
    runtime.block_on(store.put_key("k", [7; 32], Timestamp(1))).unwrap();
    assert_eq!(threads(), ["store-read", "store-write"]);
    assert_eq!(files(dir.path()), ["store.db", "store.db-shm", "store.db-wal"]);
    drop(store);
    assert!(threads().is_empty(), "{:?}", threads());
    assert_eq!(files(dir.path()), ["store.db"]);
    let store = Sqlite::open(&path, QueueRules::default()).unwrap();
    assert_eq!(runtime.block_on(store.find_key([7; 32])).unwrap().as_deref(), Some("k"));
}

/// Names of this process's threads that are a store's.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    sorted(names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("store-")))
}

fn files(dir: &std::path::Path) -> Vec<String> {
    sorted(std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()))
}

fn sorted(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}
