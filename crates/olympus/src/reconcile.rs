//! The reconciler: leases that ran out, start deadlines that passed, golden snapshots that are missing and records that
//! are kept no longer, without being asked. It takes no input and may run any number of times.

use std::sync::Arc;
use std::time::Duration;

use hades::store::StoreError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Olympus;
use crate::watch::any_news;

/// Before another try when the store failed.
const RETRY: Duration = Duration::from_secs(1);
/// Sleeping without any deadline.
const LONG: Duration = Duration::from_secs(3600);

impl Olympus {
    /// Runs until `shutdown`. To be started before the node may lease: first every lease is given a full visibility
    /// timeout, since while there was no control plane nobody could renew.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.reconcile() => {}
            () = self.keep_snapshots() => {}
            () = self.retain() => {}
        }
    }

    async fn reconcile(&self) {
        let mut news = self.store.subscribe();
        while let Err(error) = self.store.grace(self.now()).await {
            tracing::error!("leases could not be extended, trying again: {error}");
            tokio::time::sleep(RETRY).await;
        }
        loop {
            let wake = self.expire().await.unwrap_or_else(|error| {
                tracing::error!("deadlines could not be checked, trying again: {error}");
                Instant::now() + RETRY
            });
            any_news(&mut news, wake).await;
        }
    }

    /// Applies what is due, and tells when to look again should there be no news before.
    async fn expire(&self) -> Result<Instant, StoreError> {
        let now = self.now();
        match self.store.next_deadline().await? {
            Some(due) if due <= now => {}
            Some(due) => return Ok(self.instant(due)),
            None => return Ok(Instant::now() + LONG),
        }
        let changed = self.store.expire(now).await?;
        for record in &changed {
            tracing::warn!(sandbox = %record.id, state = record.state.as_str(), "a deadline passed");
            self.after_end(record);
        }
        if !changed.is_empty() {
            self.kick();
        }
        Ok(match self.store.next_deadline().await? {
            Some(due) if due > now => self.instant(due),
            // What is due and did not change is waiting for room, which comes with news.
            Some(_) => Instant::now() + RETRY,
            None => Instant::now() + LONG,
        })
    }
}
