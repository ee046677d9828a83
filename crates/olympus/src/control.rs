//! The control plane as a node sees it: leases out, reports in. Every call may be repeated, by the node or after a
//! restart of either side; the store's tokens and state machine make a repetition harmless.

use std::time::Duration;

use async_trait::async_trait;
use hades::store::{Candidate, NodeRecord, Record, StoreError};
use tartarus_api::node::{Action, Assignment, ControlPlane, Directive, NodeInfo, Progress, Report, Verdict};
use tartarus_types::sandbox::Denied;
use tartarus_types::{Event, LeaseToken, NodeId, Outcome, Reason, Refusal, SandboxId, SnapshotUse, State};
use tokio::time::Instant;

use crate::Olympus;
use crate::refusal::refuse;
use crate::waiting::room;
use crate::watch::any_news;

/// Asks the scheduler on behalf of the store's transaction. What this node could not run even if it were empty is left
/// to others, and does not hold up what is behind it.
fn choose(node: &NodeRecord, candidates: &[Candidate]) -> Option<usize> {
    let asks = candidates.iter().map(|c| moirai::Ask { memory_mib: c.memory_mib, cpus: c.cpus }).enumerate();
    let fitting = asks.filter(|(_, ask)| moirai::ever_fits(&[room(node, 0, 0)], *ask));
    let (places, asks): (Vec<usize>, Vec<moirai::Ask>) = fitting.unzip();
    moirai::choose(room(node, node.reserved_mib, node.starting), &asks).map(|index| places[index])
}

#[async_trait]
impl ControlPlane for Olympus {
    async fn register(&self, node: NodeInfo, held: &[(SandboxId, LeaseToken)]) -> Result<(), Refusal> {
        let id = node.id.clone();
        let record = NodeRecord {
            id: node.id,
            memory_mib: node.memory_mib,
            overhead_mib: node.overhead_mib,
            overcommit: node.overcommit,
            start_slots: node.start_slots,
            max_cpus: node.max_cpus,
            seen_at: self.now(),
            reserved_mib: 0,
            starting: 0,
        };
        self.store.upsert_node(record).await.map_err(refuse)?;
        for record in self.store.reclaim(&id, held, self.now()).await.map_err(refuse)? {
            tracing::warn!(sandbox = %record.id, state = record.state.as_str(), "its node does not hold it any more");
            self.after_end(&record);
        }
        self.builders.kick();
        Ok(())
    }

    async fn on_record(&self, sandboxes: &[SandboxId]) -> Result<Vec<SandboxId>, Refusal> {
        let mut known = Vec::new();
        for id in sandboxes {
            if self.store.get(id).await.map_err(refuse)?.is_some() {
                known.push(id.clone());
            }
        }
        Ok(known)
    }

    async fn lease(&self, node: &NodeId, wait: Duration) -> Result<Option<Assignment>, Refusal> {
        let end = Instant::now() + wait;
        // Before the first look, so that what is queued after it is heard of.
        let mut news = self.store.subscribe();
        loop {
            let now = self.now();
            if let Some(leased) = self.store.lease(node, choose, now).await.map_err(refuse)? {
                let Record { id, spec, created_at, .. } = leased.record;
                let start_deadline = created_at.plus_ms(spec.start_timeout_ms);
                return Ok(Some(Assignment { sandbox: id, token: leased.token, spec, start_deadline, leased_at: now }));
            }
            // One that had passed already changes nothing by being waited for: the reconciler sees to it.
            let due = self.store.next_deadline().await.map_err(refuse)?.filter(|due| *due > now);
            any_news(&mut news, due.map_or(end, |due| end.min(self.instant(due)))).await;
            if Instant::now() >= end {
                return Ok(None);
            }
        }
    }

    async fn sync(&self, node: &NodeId, held: &[(SandboxId, LeaseToken)]) -> Result<Vec<Directive>, Refusal> {
        let lost = self.store.renew(node, held, self.now()).await.map_err(refuse)?;
        let kills = self.store.kills(node).await.map_err(refuse)?;
        let kills = kills.into_iter().map(|(sandbox, token, kill)| ((sandbox, token), kill));
        let kills = kills.filter(|(attempt, _)| held.contains(attempt)).map(|((sandbox, token), kill)| {
            let action = Action::Kill { signal: kill.signal, grace_ms: kill.grace_ms };
            Directive { sandbox, token, action }
        });
        let lost = lost.into_iter().map(|(sandbox, token)| Directive { sandbox, token, action: Action::Abandon });
        Ok(kills.chain(lost).collect())
    }

    async fn report(&self, sandbox: &SandboxId, token: &LeaseToken, report: Report) -> Result<Verdict, Refusal> {
        let verdict = match report {
            Report::Preparing => self.advance(sandbox, token, Event::Prepare).await,
            Report::Begin => self.advance(sandbox, token, Event::Begin).await,
            Report::Paused => self.stood(sandbox, token, Event::Pause).await,
            Report::Resumed => self.stood(sandbox, token, Event::Resume).await,
            Report::Progress(progress) => self.progressed(sandbox, token, &progress).await,
            Report::GiveBack { why, retry } => self.given_back(sandbox, token, why, retry).await,
            Report::Ended { outcome, progress } => self.ended(sandbox, token, outcome, &progress).await,
        };
        verdict.map_err(refuse)
    }
}

impl Olympus {
    async fn advance(&self, sandbox: &SandboxId, token: &LeaseToken, event: Event) -> Result<Verdict, StoreError> {
        let preparing = event == Event::Prepare;
        match self.store.apply(sandbox, token, event, None, self.now()).await {
            Ok(_) | Err(StoreError::Denied(Denied::Already)) => Ok(Verdict::Go),
            // A report that was overtaken by a later one of the same attempt.
            Err(StoreError::Denied(Denied::WrongState(State::Running | State::Paused))) if preparing => Ok(Verdict::Go),
            // Its end was asked for before the command began, and now it never will: that is the end, on record here
            // and now, since the node forgets what it is told to abandon.
            Err(StoreError::Denied(Denied::WrongState(State::Terminating))) => {
                let why = "its end was asked for".to_owned();
                self.given_back(sandbox, token, why, false).await?;
                Ok(Verdict::Abandon)
            }
            Err(error) => abandoned(error),
        }
    }

    /// The machine was stopped, or goes on.
    async fn stood(&self, sandbox: &SandboxId, token: &LeaseToken, event: Event) -> Result<Verdict, StoreError> {
        match self.store.apply(sandbox, token, event, None, self.now()).await {
            Ok(_) | Err(StoreError::Denied(Denied::Already)) => Ok(Verdict::Go),
            // Its end was asked for meanwhile, which the node is told as a directive.
            Err(StoreError::Denied(Denied::WrongState(State::Terminating))) => Ok(Verdict::Go),
            Err(error) => abandoned(error),
        }
    }

    async fn progressed(
        &self,
        sandbox: &SandboxId,
        token: &LeaseToken,
        progress: &Progress,
    ) -> Result<Verdict, StoreError> {
        match self.store.progress(sandbox, token, json(progress)).await {
            Ok(()) => Ok(Verdict::Go),
            Err(error) => abandoned(error),
        }
    }

    async fn given_back(
        &self,
        sandbox: &SandboxId,
        token: &LeaseToken,
        why: String,
        retry: bool,
    ) -> Result<Verdict, StoreError> {
        let event = Event::GiveBack { tries_left: retry, why: why.clone() };
        match self.store.apply(sandbox, token, event, None, self.now()).await {
            Ok(record) => {
                self.after_end(&record);
                Ok(Verdict::Go)
            }
            // `Begin` was committed, its answer was lost, and the node did not start the command. It may not be tried
            // again, since from here nobody could tell; the node can, so it did not get lost either.
            Err(StoreError::Denied(Denied::WrongState(State::Running | State::Paused))) => {
                let outcome = Outcome::because(Reason::StartFailed, why);
                self.ended(sandbox, token, outcome, &Progress::default()).await
            }
            // A repetition: it waits for its next attempt.
            Err(StoreError::Denied(Denied::WrongState(State::Queued))) => Ok(Verdict::Go),
            Err(error) => self.confirmed(sandbox, error).await,
        }
    }

    async fn ended(
        &self,
        sandbox: &SandboxId,
        token: &LeaseToken,
        outcome: Outcome,
        progress: &Progress,
    ) -> Result<Verdict, StoreError> {
        let progress = (*progress != Progress::default()).then(|| json(progress));
        match self.store.apply(sandbox, token, Event::End(outcome), progress, self.now()).await {
            Ok(record) => {
                self.after_end(&record);
                Ok(Verdict::Go)
            }
            Err(error) => self.confirmed(sandbox, error).await,
        }
    }

    /// The verdict on an end that the store did not take: when an end is on record the node may forget its own.
    async fn confirmed(&self, sandbox: &SandboxId, error: StoreError) -> Result<Verdict, StoreError> {
        let verdict = abandoned(error)?;
        match self.store.get(sandbox).await? {
            Some(record) if !record.state.is_terminal() => Ok(verdict),
            Some(_) | None => Ok(Verdict::Go),
        }
    }

    /// A record that was to be removed went with its end; its logs go as well. A golden snapshot was made, or was not.
    pub(crate) fn after_end(&self, record: &Record) {
        if record.state.is_terminal() {
            self.metrics.ended(record.state);
        }
        if record.spec.snapshot == SnapshotUse::Make && record.state.is_terminal() {
            self.builders.kick();
        }
        if record.remove && record.state.is_terminal() {
            drop(self.forget(record.id.clone()));
        }
    }
}

/// `Abandon` when the attempt is not the node's any more; otherwise the store failed and the node shall try again.
fn abandoned(error: StoreError) -> Result<Verdict, StoreError> {
    match error {
        StoreError::Fenced | StoreError::Denied(_) | StoreError::NotFound(..) => Ok(Verdict::Abandon),
        other => Err(other),
    }
}

fn json(progress: &Progress) -> String {
    serde_json::to_string(progress).expect("a struct of texts and numbers can always be written as JSON")
}
