//! The SQLite engine: one file, one machine, nothing to install.
//!
//! One thread owns the connection that writes and commits what waits together; another one reads, so that readers do
//! not wait for commits. What a call returns as `Ok` is on the disk (WAL, `synchronous=FULL`).
//!
//! A call whose future is dropped may still take effect. That matters most for a lease: it would be held by nobody
//! until it runs out. So let calls end.

mod acheron;
mod catalogue;
mod cocytus;
mod nodes;
mod row;
mod runs;
mod schema;
mod transition;
mod worker;

use std::fmt;
use std::path::Path;

use rusqlite::Connection;
use tartarus_types::SandboxId;
use tokio::sync::{broadcast, oneshot};

use crate::store::{Bus, QueueRules, StoreError};
use worker::{ReadJob, Tx, Worker, WriteJob};

/// News that a subscriber may lag behind before it must read the records instead.
const NEWS: usize = 1024;

/// The SQLite engine. Dropping it finishes what was asked, moves the write-ahead log into the file and joins its threads.
pub struct Sqlite {
    // Dropped in this order: the connection that is closed last takes the write-ahead log away, and must be the writer's.
    reader: Worker<ReadJob>,
    writer: Worker<WriteJob>,
    news: broadcast::Sender<SandboxId>,
}

impl Sqlite {
    /// Opens the store at `path`, or makes it (mode 0600); blocks. An older schema is migrated.
    ///
    /// # Errors
    /// `Newer` when a newer program wrote it, `DiskFull`, and `Engine` when the file is no store or cannot be opened.
    pub fn open(path: &Path, rules: QueueRules) -> Result<Self, StoreError> {
        let write = schema::open(path)?;
        let read = schema::open_reader(path)?;
        let (news, _) = broadcast::channel(NEWS);
        let writer = worker::writer(write, rules, news.clone())?;
        let reader = worker::reader(read)?;
        Ok(Self { reader, writer, news })
    }

    /// Runs `work` on the writing thread and answers when it is durable. What it changed is undone when it fails.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (sender, answer) = oneshot::channel();
        self.writer.send(worker::write_job(work, sender)).await?;
        answer.await.map_err(|_| worker::gone())?
    }

    /// Runs `work` on the reading thread, against one consistent state.
    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (sender, answer) = oneshot::channel();
        self.reader.send(worker::read_job(work, sender)).await?;
        answer.await.map_err(|_| worker::gone())?
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

impl Bus for Sqlite {
    fn subscribe(&self) -> broadcast::Receiver<SandboxId> {
        self.news.subscribe()
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let code = error.sqlite_error().map(|e| (e.code, e.extended_code));
        match code {
            Some((rusqlite::ErrorCode::DiskFull, _)) => Self::DiskFull,
            // The shared index beside the log could not grow, which nothing but a full disk prevents.
            Some((_, rusqlite::ffi::SQLITE_IOERR_SHMSIZE)) => Self::DiskFull,
            _ => Self::Engine(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::Engine(format!("a record is not readable: {error}"))
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod plan_tests;
