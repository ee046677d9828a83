//! The course of a sandbox on this node, from assignment to forgetting.

use std::collections::VecDeque;
use std::time::Duration;

use blobs::Digest;
use tartarus_api::node::{Assignment, Live, Moment, Progress, Report, StartedFrom, Verdict};
use tartarus_types::{NetMode, Outcome, Reason, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::bringup::{self, Greeted, Identified, Launched, Origin, Prepared};
use super::dying::Departing;
use super::serve::Opened;
use super::steady::Steady;
use super::{Context, Handle, KillReason, Request, ending};
use crate::ledger::Home;
use crate::link::Identity;
use crate::net::guest_side;
use crate::workshop::CannotStart;

/// Requests waiting for a sandbox's task; callers wait beyond it.
pub(super) const REQUESTS: usize = 64;

/// Preparations that are of no use any more may take so long to come to their end.
const PREPARING: Duration = Duration::from_secs(10);

/// A restored guest answers within this, also on a busy host.
const RESTORE: Duration = Duration::from_secs(15);

/// How a sandbox's stay on this node ends.
pub(super) enum End {
    /// It ended, and the control plane must hear how.
    Outcome(Outcome),
    /// Its command never began.
    GiveBack(CannotStart),
    /// It belongs to another attempt.
    Abandoned,
    /// The machine goes on without us.
    Left,
}

/// What a sandbox's task carries through all its steps.
pub(super) struct Task {
    pub(super) ctx: Context,
    pub(super) assignment: Assignment,
    pub(super) home: Home,
    pub(super) requests: mpsc::Receiver<Request>,
    /// Requests that came before there was a guest to serve them; the steady state takes them first.
    pub(super) early: VecDeque<Request>,
    pub(super) live: watch::Sender<Live>,
    /// The ledger's record of the assignment is on its way to the disk; not of one that was taken over.
    created: Option<JoinHandle<std::io::Result<()>>>,
    /// The machine, once its end was ordered.
    pub(super) departing: Option<Departing>,
}

/// Runs a new assignment.
pub(crate) fn fresh(ctx: &Context, assignment: Assignment) -> (Handle, impl Future<Output = ()> + Send + use<>) {
    let (handle, task) = Task::new(ctx, assignment, Progress::default());
    (handle, task.run(false))
}

/// Takes over what an earlier agent was running.
pub(crate) fn adopt(ctx: &Context, assignment: Assignment) -> (Handle, impl Future<Output = ()> + Send + use<>) {
    let progress = ctx.ledger.home(&assignment.sandbox).progress();
    let (handle, task) = Task::new(ctx, assignment, progress);
    (handle, task.run(true))
}

impl Task {
    fn new(ctx: &Context, assignment: Assignment, progress: Progress) -> (Handle, Self) {
        let (tell, requests) = mpsc::channel(REQUESTS);
        let (live, watch) = watch::channel(Live { hypervisor_pid: None, progress });
        let id = assignment.sandbox.clone();
        let handle = Handle { id, token: assignment.token.clone(), requests: tell, live: watch };
        let home = ctx.ledger.home(&assignment.sandbox);
        (
            handle,
            Self {
                ctx: ctx.clone(),
                assignment,
                home,
                requests,
                early: VecDeque::new(),
                live,
                created: None,
                departing: None,
            },
        )
    }

    async fn run(mut self, adopted: bool) {
        let id = self.assignment.sandbox.clone();
        let end = if adopted { self.take_over().await } else { self.start().await };
        match end {
            End::Left => tracing::info!(sandbox = %id, "left running"),
            End::Abandoned => {
                tracing::warn!(sandbox = %id, "the attempt belongs to another; ended");
                self.forget().await;
            }
            End::GiveBack(why) => {
                tracing::warn!(sandbox = %id, why = %why, "given back");
                // Nothing runs. The folder goes first: the next attempt may come to this node at once.
                self.forget().await;
                self.report(Report::GiveBack { why: why.why, retry: why.retry }).await;
            }
            End::Outcome(outcome) => {
                tracing::info!(sandbox = %id, state = outcome.state().as_str(), reason = ?outcome.reason, "ended");
                self.settle(outcome).await;
            }
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        (self.ctx.clock)()
    }

    /// Notes that a phase is reached.
    pub(super) fn reached(&self, phase: &str) {
        self.reached_at(phase, self.now());
    }

    /// Notes that a phase was reached.
    pub(super) fn reached_at(&self, phase: &str, at: Timestamp) {
        let moment = Moment { phase: phase.to_owned(), at };
        self.live.send_modify(|live| live.progress.moments.push(moment));
    }

    pub(super) fn start_ms_left(&self) -> u64 {
        self.assignment.start_deadline.ms_since(self.now())
    }

    async fn start(&mut self) -> End {
        self.live.send_modify(|live| {
            live.progress.moments.push(Moment { phase: "leased".to_owned(), at: self.assignment.leased_at });
        });
        let patience = Duration::from_millis(self.start_ms_left());
        let stopped = {
            let (ctx, assignment) = (&self.ctx, &self.assignment);
            let mut preparing = std::pin::pin!(async {
                let prepared = async {
                    // Their memory, and that of the snapshots they map, is this one's to use.
                    ctx.dying.gone().await;
                    Prepared::new(ctx, assignment).await
                };
                // Side by side: nothing runs before leave is given.
                let told = ctx.control.report(&assignment.sandbox, &assignment.token, Report::Preparing);
                tokio::join!(told, prepared)
            });
            let end = tokio::select! {
                both = &mut preparing => Ok(both),
                end = stop_asked(&mut self.requests, &mut self.early) => Err(end),
                () = tokio::time::sleep(patience) => {
                    Err(End::Outcome(Outcome::because(Reason::StartTimeout, "its machine was not made ready in time")))
                }
            };
            if end.is_err() {
                // What writes into its folder comes to its end, so that nothing is left when the folder goes.
                let _ = tokio::time::timeout(PREPARING, preparing).await;
            }
            end
        };
        let (told, prepared) = match stopped {
            Ok(both) => both,
            Err(end) => return end,
        };
        let verdict = match told {
            Ok(verdict) => Some(verdict),
            Err(e) => {
                tracing::warn!(sandbox = %self.assignment.sandbox, error = %e, "a report was not taken; it is repeated");
                self.report(Report::Preparing).await
            }
        };
        match verdict {
            Some(Verdict::Go) => {}
            Some(Verdict::Abandon) => return End::Abandoned,
            None => return End::Left,
        }
        let mut prepared = match prepared {
            Ok(prepared) => prepared,
            Err(e) => return End::GiveBack(e),
        };
        self.created = prepared.created.take();
        self.reached("disk_ready");
        if let Some(end) = self.asked_to_stop() {
            return end;
        }
        let (driver, from) = prepared.describe();
        if let StartedFrom::ColdBoot { why } = &from {
            tracing::info!(sandbox = %self.assignment.sandbox, why, "boots cold");
        }
        self.live.send_modify(|live| {
            live.progress.driver = Some(driver);
            live.progress.start = Some(from);
        });
        let launched = match prepared.launch(self.start_ms_left()).await {
            Ok(launched) => launched,
            Err(e) => {
                self.distrust(&e);
                return End::GiveBack(e);
            }
        };
        self.reached("vm_started");
        self.boot(launched, Duration::from_millis(self.start_ms_left())).await
    }

    /// A snapshot that this sandbox could not be started from is not tried again at once: the next attempt boots cold.
    fn distrust(&self, e: &CannotStart) {
        if let Some(from) = self.home.restored() {
            self.ctx.workshop.distrust(&from.golden, &e.why);
        }
    }

    /// From a running machine to the end.
    pub(super) async fn boot(&mut self, mut launched: Launched, patience: Duration) -> End {
        self.live.send_modify(|live| live.hypervisor_pid = Some(launched.vm.pid()));
        let restored = launched.origin == Origin::Restored;
        // A restored guest needs no boot: one that does not answer never will, and another attempt boots cold.
        let patience = if restored { patience.min(RESTORE) } else { patience };
        let (line, identified) = (launched.line.take(), identified(&self.assignment, false));
        let greeting = tokio::select! {
            greeting = bringup::greet(&*launched.vm, launched.origin, line, identified) => greeting,
            exit = launched.vm.wait() => Err(bringup::ended(&exit)),
            end = stop_asked(&mut self.requests, &mut self.early) => {
                if !matches!(end, End::Left) {
                    launched.unwind().await;
                }
                return end;
            }
            () = tokio::time::sleep(patience) => {
                if restored && self.start_ms_left() > 0 {
                    Err(CannotStart::retry("its guest did not answer after it was restored"))
                } else {
                    launched.unwind().await;
                    return End::Outcome(Outcome::because(Reason::StartTimeout, "its guest did not boot in time"));
                }
            }
        };
        match greeting {
            Ok((link, events, ack)) => self.begin(launched.greeted(link, events, ack), None).await,
            Err(e) => {
                if restored {
                    self.distrust(&e);
                }
                launched.unwind().await;
                End::GiveBack(CannotStart { retry: e.retry || restored, ..e })
            }
        }
    }

    /// Asks for leave to begin, and goes on to the steady state.
    pub(super) async fn begin(&mut self, greeted: Greeted, opened: Option<Opened>) -> End {
        let kernel: String = greeted.ack.kernel.chars().filter(|c| !c.is_control()).take(100).collect();
        let shown = kernel.clone();
        self.live.send_modify(|live| live.progress.guest_kernel = Some(kernel));
        if !self.home.begun() {
            tracing::info!(sandbox = %self.assignment.sandbox, kernel = shown, "guest ready");
            self.reached("guest_ready");
        }
        // A guest that knows the attempt has started it, so leave was given before this agent's time.
        let token = self.assignment.token.as_str();
        let granted = greeted.ack.processes.iter().any(|p| p.token == token);
        if !granted {
            // Side by side: either of them alone is made up for by an agent that takes over from here.
            let home = self.home.clone();
            let created = self.created.take();
            let taken_over = created.is_none();
            let marked = tokio::task::spawn_blocking(move || {
                if taken_over {
                    // An earlier agent may have died before it was.
                    home.sync_created()?;
                }
                if home.begun() { Ok(()) } else { home.mark_begun() }
            });
            let verdict = self.report(Report::Begin).await;
            let done = |kept: Result<std::io::Result<()>, _>| kept.map_err(std::io::Error::other).flatten();
            let kept = match (done(marked.await), created) {
                (Ok(()), Some(created)) => done(created.await),
                (marked, _) => marked,
            };
            if let Err(e) = kept {
                greeted.unwind().await;
                return End::GiveBack(CannotStart::retry(format!("writing the node's ledger: {e}")));
            }
            match verdict {
                Some(Verdict::Go) => {}
                Some(Verdict::Abandon) => {
                    greeted.unwind().await;
                    return End::Abandoned;
                }
                None => return End::Left,
            }
        }
        let opened = opened.filter(|opened| opened.failed.is_none()).unwrap_or_else(|| Opened::new(self));
        Steady::new(self, greeted, opened).await.run(self).await
    }

    /// A request that ends the bring-up, if one is there.
    fn asked_to_stop(&mut self) -> Option<End> {
        while let Ok(request) = self.requests.try_recv() {
            if let Some(end) = stops(request, &mut self.early) {
                return Some(end);
            }
        }
        None
    }

    /// Reports until the control plane has heard it; `None` when this agent stops first. Nothing is lost then: the
    /// ledger has it, and the next agent reports it.
    pub(super) async fn report(&mut self, report: Report) -> Option<Verdict> {
        let mut pause = Duration::from_millis(100);
        loop {
            let (sandbox, token) = (&self.assignment.sandbox, &self.assignment.token);
            match self.ctx.control.report(sandbox, token, report.clone()).await {
                Ok(verdict) => return Some(verdict),
                Err(e) => tracing::warn!(sandbox = %sandbox, error = %e, "a report was not taken; it is repeated"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                request = self.requests.recv() => match request {
                    Some(Request::Leave | Request::Kill { reason: KillReason::Shutdown, .. }) | None => return None,
                    Some(request) => super::requests::refuse(request, "its node cannot reach the control plane"),
                },
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}

/// Whom the guest becomes: always the same for one sandbox.
pub(super) fn identified(assignment: &Assignment, begun: bool) -> Identified<'_> {
    let hostname = assignment.sandbox.as_str().replace('_', "-");
    let mut machine_id = Digest::of(format!("tartarus machine-id {}", assignment.sandbox).as_bytes()).hex();
    machine_id.truncate(32);
    let net = (assignment.spec.net.mode != NetMode::None).then(guest_side);
    Identified { identity: Identity { hostname, machine_id, restored: false, net }, assignment, begun }
}

/// What a request means before there is a command; `None` when it does not end the bring-up and is kept for later.
pub(super) fn stops(request: Request, early: &mut VecDeque<Request>) -> Option<End> {
    match request {
        Request::Kill { reason, .. } => {
            let asked = ending::Asked { kill: Some(reason), limit: None };
            let killed = Outcome::because(Reason::Killed, "ended before its command began");
            match reason {
                KillReason::Asked => Some(End::Outcome(killed)),
                KillReason::Shutdown => Some(End::Outcome(ending::outcome(None, asked))),
            }
        }
        Request::Abandon => Some(End::Abandoned),
        Request::Leave => Some(End::Left),
        other if early.len() < REQUESTS => {
            early.push_back(other);
            None
        }
        other => {
            super::requests::refuse(other, "it is still being started");
            None
        }
    }
}

async fn stop_asked(requests: &mut mpsc::Receiver<Request>, early: &mut VecDeque<Request>) -> End {
    loop {
        match requests.recv().await {
            Some(request) => {
                if let Some(end) = stops(request, early) {
                    return end;
                }
            }
            None => return End::Left,
        }
    }
}
