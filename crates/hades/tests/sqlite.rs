//! The SQLite engine against the conformance suite, and what only it promises.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test stops where it fails and prints what it saw")]

mod conformance;

use std::path::Path;
use std::sync::Arc;

use conformance::{T0, accept, history, new};
use hades::{Bus, Candidate, JobQueue, ListFilter, NodeRecord, QueueRules, RunStore, Sqlite, StoreError};
use proptest::prelude::*;

/// The store and the folder that goes with it.
fn open(path: &Path, rules: QueueRules) -> Sqlite {
    Sqlite::open(path, rules).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let made = std::cell::Cell::new(0);
    runtime().block_on(conformance::suite(async |rules| {
        made.set(made.get() + 1);
        open(&dir.path().join(format!("{}.db", made.get())), rules)
    }));
    assert!(made.get() >= 30, "the suite ran");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any history: the store agrees with a model after every step, its tables with each other, and nothing is lost.
    #[test]
    fn any_history(ops in history::operations(60)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        runtime().block_on(async {
            let store = open(&path, history::RULES);
            let reader = rusqlite::Connection::open(&path).unwrap();
            history::run(&store, &ops, || tables_agree(&reader)).await;
        });
    }
}

/// What the traits do not show: an entry exists exactly while its sandbox has not ended, waits exactly while that is
/// queued, and the database is sound.
fn tables_agree(conn: &rusqlite::Connection) {
    let wrong = "SELECT count(*) FROM sandboxes s LEFT JOIN queue q USING (seq) WHERE (q.seq IS NULL) <> (s.ended_at IS NOT NULL) \
                 OR (s.state = 'queued') <> (q.visible_at IS NOT NULL)";
    assert_eq!(conn.query_row(wrong, [], |r| r.get::<_, i64>(0)).unwrap(), 0);
    let orphans = "SELECT count(*) FROM queue WHERE seq NOT IN (SELECT seq FROM sandboxes)";
    assert_eq!(conn.query_row(orphans, [], |r| r.get::<_, i64>(0)).unwrap(), 0);
    assert_eq!(conn.query_row("PRAGMA foreign_key_check", [], |_| Ok(())), Err(rusqlite::Error::QueryReturnedNoRows));
}

/// One caller's panic is that caller's error; what it had done is undone and the store goes on.
#[test]
fn a_panic_in_placement_harms_nobody_else() {
    fn panics(_: &NodeRecord, _: &[Candidate]) -> Option<usize> {
        panic!("on purpose")
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db"), QueueRules::default());
    runtime().block_on(async {
        let node = conformance::join(&store).await;
        let id = accept(&store, new(), T0).await.id;
        let refusal = store.lease(&node, panics, T0).await.unwrap_err();
        assert!(matches!(&refusal, StoreError::Engine(why) if why.contains("panicked")), "{refusal:?}");
        assert_eq!(conformance::lease(&store, &node, T0).await.record.id, id);
    });
}

/// Many callers at once: every one gets its own answer, refusals undo only their own work, and news come for each.
#[test]
fn concurrent_callers_are_committed_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir.path().join("store.db"), QueueRules::default()));
    runtime().block_on(async {
        let mut news = store.subscribe();
        let mut callers = tokio::task::JoinSet::new();
        for i in 0..300 {
            let store = Arc::clone(&store);
            callers.spawn(async move {
                let name = Some(format!("n{}", i / 3));
                store.accept(hades::NewSandbox { name, ..new() }, T0).await.is_ok()
            });
        }
        let accepted = callers.join_all().await.into_iter().filter(|ok| *ok).count();
        assert_eq!(accepted, 100, "one of three that want the same name");
        let all = store.list(ListFilter { ended: true, limit: 1_000 }).await.unwrap();
        assert_eq!(all.len(), 100);
        for _ in 0..100 {
            conformance::heard(&mut news).await;
        }
        assert!(news.try_recv().is_err());
    });
}

/// A reader is answered while another process holds the lock that a commit needs.
#[test]
fn readers_do_not_wait_for_commits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Arc::new(open(&path, QueueRules::default()));
    runtime().block_on(async {
        let id = accept(&*store, new(), T0).await.id;
        let other = rusqlite::Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let writing = tokio::spawn({
            let store = Arc::clone(&store);
            async move { accept(&*store, new(), T0).await }
        });
        assert!(store.get(&id).await.unwrap().is_some());
        assert!(!writing.is_finished());
        other.execute_batch("ROLLBACK").unwrap();
        writing.await.unwrap();
    });
}
