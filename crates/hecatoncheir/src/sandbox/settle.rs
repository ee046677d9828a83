//! The end of a sandbox on its node: written down, reported until it is confirmed, and put away.

use std::time::Duration;

use tartarus_api::node::Report;
use tartarus_types::Outcome;

use super::task::Task;
use super::{bringup, execs};

impl Task {
    /// Writes the end down, reports it until it is confirmed, and forgets the sandbox.
    pub(super) async fn settle(&mut self, outcome: Outcome) {
        self.reached("ended");
        let progress = self.live.borrow().progress.clone();
        if let Err(e) = self.home.put_outcome(&outcome) {
            // Reported all the same: what a crash before the confirmation would lose is the reason, not the end.
            tracing::error!(sandbox = %self.assignment.sandbox, error = %e, "the end could not be written to the ledger");
        }
        if let Err(e) = execs::cut_all(&self.ctx.logs, &self.assignment.sandbox) {
            tracing::warn!(sandbox = %self.assignment.sandbox, error = %e, "ends of execs could not be written");
        }
        // Side by side: until the report is confirmed the end is on nobody's record, and a power cut then is one before it.
        let (home, last) = (self.home.clone(), progress.clone());
        let kept = tokio::task::spawn_blocking(move || {
            let progress = home.put_progress(&last);
            home.sync_outcome().and(progress)
        });
        let heard = self.report(Report::Ended { outcome, progress }).await;
        if let Err(e) = kept.await.map_err(std::io::Error::other).and_then(|kept| kept) {
            tracing::warn!(sandbox = %self.assignment.sandbox, error = %e, "its end is not safe on the node's disk");
        }
        if heard.is_some() {
            // Whoever asks from now on is served from what is stored.
            self.requests.close();
            while self.requests.try_recv().is_ok() {}
            if let Some(departing) = self.departing.take() {
                departing.gone().await;
            }
            self.forget().await;
        }
    }

    /// Ends what may still run and removes the folder.
    pub(super) async fn forget(&self) {
        // What cannot be told yet (its supervisor is only starting) can be in a moment.
        let mut gone = bringup::put_down(&self.ctx, &self.home).await;
        for _ in 0..20 {
            if gone.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            gone = bringup::put_down(&self.ctx, &self.home).await;
        }
        if self.assignment.spec.shred
            && gone.is_ok()
            && let Err(e) = self.ctx.workshop.shred(self.home.dir()).await
        {
            tracing::warn!(sandbox = %self.assignment.sandbox, error = %e, "what it wrote could not be overwritten");
        }
        // A hypervisor that may write in its folder can have filled it with files: that takes long, and is not for this thread.
        let home = self.home.clone();
        let removed = match gone {
            Ok(()) => tokio::task::spawn_blocking(move || home.remove()).await.unwrap_or_else(|e| Err(e.into())),
            Err(e) => Err(std::io::Error::other(e.to_string())),
        };
        if let Err(e) = removed {
            tracing::warn!(sandbox = %self.assignment.sandbox, error = %e, "could not be cleaned up; the next start of the node tries again");
        }
    }
}
