//! Waiting for a sandbox: news from the bus say when to read its record again; the record is the truth.

use std::time::Duration;

use hades::store::{Record, StoreError};
use tartarus_types::{SandboxId, Timestamp};
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::Olympus;

/// How the waiting for a record ended.
pub(crate) enum Watched {
    /// It is as it was waited for.
    Reached(Box<Record>),
    /// The time is up; this is how it stands.
    Late(Box<Record>),
    /// It is gone.
    Gone,
}

/// Its command may have started, now or before: there may be output.
pub(crate) fn began(record: &Record) -> bool {
    record.started_at.is_some()
}

impl Olympus {
    /// Waits until the record is as `reached` wants it, it is gone, or `limit` has passed.
    pub(crate) async fn watch(
        &self,
        sandbox: &SandboxId,
        limit: Duration,
        reached: impl Fn(&Record) -> bool + Send,
    ) -> Result<Watched, StoreError> {
        let end = Instant::now() + limit;
        // Before the first look, so that what changes after it is heard of.
        let mut news = self.store.subscribe();
        loop {
            let Some(record) = self.store.get(sandbox).await? else { return Ok(Watched::Gone) };
            if reached(&record) {
                return Ok(Watched::Reached(Box::new(record)));
            }
            if !heard_of(&mut news, sandbox, end).await {
                return Ok(Watched::Late(Box::new(record)));
            }
        }
    }

    /// The moment on this process's own clock at which the store's time passes `at`.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        // 1 ms more, since the difference is rounded down.
        Instant::now() + Duration::from_millis(at.ms_since(self.now()) + 1)
    }
}

/// True when there may be news of the sandbox, false when `end` has come.
async fn heard_of(news: &mut broadcast::Receiver<SandboxId>, sandbox: &SandboxId, end: Instant) -> bool {
    loop {
        match timeout_at(end, news.recv()).await {
            Ok(Ok(other)) if other != *sandbox => {}
            Ok(Ok(_) | Err(RecvError::Lagged(_))) => return true,
            Ok(Err(RecvError::Closed)) => sleep_until(end).await,
            Err(_) => return false,
        }
    }
}

/// Waits for any news until `end`, and takes all there are: one look at the store answers them together.
pub(crate) async fn any_news(news: &mut broadcast::Receiver<SandboxId>, end: Instant) {
    match timeout_at(end, news.recv()).await {
        Ok(Ok(_) | Err(RecvError::Lagged(_))) => {}
        Ok(Err(RecvError::Closed)) => sleep_until(end).await,
        Err(_) => return,
    }
    while matches!(news.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
}
