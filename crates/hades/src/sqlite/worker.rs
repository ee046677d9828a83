//! The two threads: one that writes, one that reads. They know nothing of sandboxes but their ids.
//!
//! The writer commits in groups. It takes what waits, runs each piece of work in a savepoint of one transaction, and
//! answers every caller only after the commit, refusals included: they were judged by what had not been committed yet.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tartarus_types::SandboxId;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::store::{QueueRules, StoreError};

/// Callers wait beyond so many.
const WAITING: usize = 1024;
/// Most pieces of work in one commit: bounds how long the first of them waits.
const GROUP: usize = 128;

/// What a piece of work that writes is given.
pub(super) struct Tx<'c> {
    /// Inside a transaction.
    pub(super) conn: &'c Connection,
    /// The queue's rules.
    pub(super) rules: QueueRules,
    /// Sandboxes to tell about once it is durable.
    pub(super) changed: Vec<SandboxId>,
}

/// Why a whole group was lost.
#[derive(Debug, Clone)]
pub(super) enum Lost {
    DiskFull,
    Failed(String),
}

impl From<StoreError> for Lost {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DiskFull => Self::DiskFull,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<Lost> for StoreError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::DiskFull => Self::DiskFull,
            Lost::Failed(why) => Self::Engine(why),
        }
    }
}

/// A piece of work that ran and waits for the commit.
pub(super) struct Ran {
    keep: bool,
    disk_full: bool,
    answer: Box<dyn FnOnce(Result<(), Lost>) + Send>,
}

/// Work for the writer: is given a transaction, or the reason why there is none. `None`: nobody waits for an answer.
pub(super) type WriteJob = Box<dyn FnOnce(Result<&mut Tx<'_>, Lost>) -> Option<Ran> + Send>;
/// Work for the reader.
pub(super) type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

/// A thread and the way to it. Dropping it lets the thread finish what waits, and joins it.
pub(super) struct Worker<J> {
    jobs: Option<mpsc::Sender<J>>,
    thread: Option<JoinHandle<()>>,
}

impl<J: Send + 'static> Worker<J> {
    fn spawn(name: &str, run: impl FnOnce(mpsc::Receiver<J>) + Send + 'static) -> Result<Self, StoreError> {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(waiting))
            .map_err(|e| StoreError::Engine(format!("the thread {name} did not start: {e}")))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(super) async fn send(&self, job: J) -> Result<(), StoreError> {
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).await.map_err(|_| gone())
    }
}

impl<J> Drop for Worker<J> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread of the store panicked");
        }
    }
}

/// The thread that should have answered has ended.
pub(super) fn gone() -> StoreError {
    StoreError::Engine("its thread has ended: restart tartarus".to_owned())
}

/// A panic in one piece of work fails that one; the store goes on for the others.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(StoreError::Engine("a piece of work panicked, nothing of it was kept".to_owned())))
}

pub(super) fn write_job<T, F>(work: F, sender: oneshot::Sender<Result<T, StoreError>>) -> WriteJob
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
{
    Box::new(move |tx| {
        if sender.is_closed() {
            return None;
        }
        // A receiver that has gone away since needs no answer, here and below.
        let tx = match tx {
            Ok(tx) => tx,
            Err(lost) => {
                let _ = sender.send(Err(lost.into()));
                return None;
            }
        };
        let result = guarded(|| work(tx));
        Some(Ran {
            keep: result.is_ok(),
            disk_full: matches!(result, Err(StoreError::DiskFull)),
            answer: Box::new(move |fate| {
                let _ = sender.send(fate.map_err(StoreError::from).and(result));
            }),
        })
    })
}

pub(super) fn read_job<T, F>(work: F, sender: oneshot::Sender<Result<T, StoreError>>) -> ReadJob
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    Box::new(move |conn| {
        if sender.is_closed() {
            return;
        }
        let result = guarded(|| {
            let state = conn.unchecked_transaction()?; // several statements see one state; rolled back when dropped
            work(&state)
        });
        let _ = sender.send(result);
    })
}

/// Starts the reading thread.
pub(super) fn reader(conn: Connection) -> Result<Worker<ReadJob>, StoreError> {
    Worker::spawn("store-read", move |mut jobs: mpsc::Receiver<ReadJob>| {
        while let Some(job) = jobs.blocking_recv() {
            job(&conn);
        }
    })
}

/// Starts the writing thread.
pub(super) fn writer(
    conn: Connection,
    rules: QueueRules,
    news: broadcast::Sender<SandboxId>,
) -> Result<Worker<WriteJob>, StoreError> {
    Worker::spawn("store-write", move |mut jobs: mpsc::Receiver<WriteJob>| {
        let mut group = VecDeque::with_capacity(GROUP);
        while let Some(first) = jobs.blocking_recv() {
            group.push_back(first);
            while group.len() < GROUP
                && let Ok(job) = jobs.try_recv()
            {
                group.push_back(job);
            }
            while !group.is_empty() {
                commit_group(&conn, rules, &mut group, &news);
            }
        }
        if let Err((_, error)) = conn.close() {
            tracing::warn!(%error, "the store was not closed cleanly; its log is read again at the next start");
        }
    })
}

/// Runs and commits what it can of `group` and answers it. What SQLite's own rollback kept from running stays in it.
fn commit_group(
    conn: &Connection,
    rules: QueueRules,
    group: &mut VecDeque<WriteJob>,
    news: &broadcast::Sender<SandboxId>,
) {
    if let Err(error) = conn.execute_batch("BEGIN IMMEDIATE") {
        let lost = Lost::from(StoreError::from(error));
        for job in group.drain(..) {
            job(Err(lost.clone()));
        }
        return;
    }
    let mut ran = Vec::with_capacity(group.len());
    let mut changed = Vec::new();
    let fate = run_group(conn, rules, group, &mut ran, &mut changed);
    if fate.is_err()
        && !conn.is_autocommit()
        && let Err(error) = conn.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "a transaction could not be rolled back");
    }
    if fate.is_ok() {
        for id in changed {
            let _ = news.send(id); // nobody subscribes: nobody needs to know
        }
    }
    for job in ran {
        (job.answer)(fate.clone());
    }
}

fn run_group(
    conn: &Connection,
    rules: QueueRules,
    group: &mut VecDeque<WriteJob>,
    ran: &mut Vec<Ran>,
    changed: &mut Vec<SandboxId>,
) -> Result<(), Lost> {
    let exec =
        |sql| conn.prepare_cached(sql).and_then(|mut s| s.execute([])).map_err(|e| Lost::from(StoreError::from(e)));
    while let Some(job) = group.pop_front() {
        if let Err(lost) = exec("SAVEPOINT job") {
            job(Err(lost.clone()));
            return Err(lost);
        }
        let mut tx = Tx { conn, rules, changed: Vec::new() };
        let outcome = job(Ok(&mut tx));
        let keep = outcome.as_ref().is_some_and(|o| o.keep);
        let disk_full = outcome.as_ref().is_some_and(|o| o.disk_full);
        ran.extend(outcome);
        if conn.is_autocommit() {
            // A full disk or an I/O error made SQLite roll back all of it, the work of the others too.
            let why = "the transaction was rolled back".to_owned();
            return Err(if disk_full { Lost::DiskFull } else { Lost::Failed(why) });
        }
        if keep {
            changed.append(&mut tx.changed);
        } else {
            exec("ROLLBACK TO job")?;
        }
        exec("RELEASE job")?;
    }
    exec("COMMIT").map(drop)
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
