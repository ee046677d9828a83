//! Standing still: the machine is stopped, and so are the clocks of its limits.
//!
//! What shall be is on disk before it is done, so that an agent that takes over from anywhere in between does the same.

use std::time::Duration;

use tartarus_api::node::{Report, Verdict};
use tartarus_runtime::{Channel, Deadlines, Vm};
use tartarus_types::{ErrorCode, Refusal, SnapshotUse};
use tokio::time::Instant;

use super::Request;
use super::ending::{self, Asked};
use super::serve::Opened;
use super::steady::{SUPERVISOR_SLACK_MS, Steady};
use super::task::{End, Task, stops};
use crate::ledger::Pauses;
use crate::net::Network;

/// Clocks that stand still with the machine: what was left of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standstill {
    pub(super) since: Instant,
}

impl Steady {
    /// Stops the machine. Its record says so when this returns.
    pub(super) async fn pause(&mut self, task: &Task) -> Result<(), Refusal> {
        if self.standstill.is_some() {
            // The report may not have been heard.
            return report(task, Report::Paused).await;
        }
        if self.asked != Asked::default() || self.gone.is_some() {
            return Err(Refusal::new(ErrorCode::WrongState, "the sandbox is being ended"));
        }
        if task.assignment.spec.snapshot == SnapshotUse::Make {
            return Err(Refusal::new(ErrorCode::WrongState, "it makes a golden snapshot, which must not stand still"));
        }
        let pauses = Pauses { since: Some(task.now()), ..task.home.pauses() };
        task.home.put_pauses(pauses).map_err(Refusal::internal)?;
        if let Err(e) = self.vm.pause().await {
            // It may obey later: whatever it does, it shall go on.
            let _ = self.vm.resume().await;
            let _ = task.home.put_pauses(Pauses { since: None, ..pauses });
            return Err(Refusal::internal(e));
        }
        self.standstill = Some(Standstill { since: Instant::now() });
        // A supervisor that is gone shows as the machine's end.
        let _ = self.vm.set_deadlines(Deadlines::default()).await;
        report(task, Report::Paused).await
    }

    /// Lets the machine go on. Its record says so when this returns.
    pub(super) async fn resume(&mut self, task: &Task) -> Result<(), Refusal> {
        let Some(Standstill { since }) = self.standstill else { return report(task, Report::Resumed).await };
        let pauses = task.home.pauses();
        let total_ms = pauses.total_ms + pauses.since.map_or(0, |since| task.now().ms_since(since));
        let stood: Duration = since.elapsed();
        for at in [&mut self.limit_at, &mut self.start_at, &mut self.wall_at].into_iter().flatten() {
            *at += stood;
        }
        // Limits before it goes on: when this agent dies in between, the supervisor has them.
        self.arm_supervisor(task).await;
        let gone_on = async {
            task.home.put_pauses(Pauses { since: None, total_ms }).map_err(Refusal::internal)?;
            self.vm.resume().await.map_err(Refusal::internal)
        };
        if let Err(e) = gone_on.await {
            let _ = task.home.put_pauses(Pauses { since: Some(task.now()), total_ms });
            let _ = self.vm.set_deadlines(Deadlines::default()).await;
            self.standstill = Some(Standstill { since: Instant::now() });
            return Err(e);
        }
        self.standstill = None;
        self.used();
        // The guest's clock stood still as well.
        self.link.clock();
        report(task, Report::Resumed).await
    }
}

impl Task {
    /// A machine that was taken over stands still exactly when it shall: until somebody lets it go on, or ends it. Gives a
    /// connection to its guest that was made before it went on: a QEMU that stands still does not see its last client
    /// go, and once it went on without one it would take the guest's port for full for ever.
    pub(super) async fn stand_still(
        &mut self,
        vm: &dyn Vm,
        opened: Option<&Opened>,
        network: Option<&Network>,
    ) -> Result<Option<Box<dyn Channel>>, End> {
        let pauses = self.home.pauses();
        let Some(since) = pauses.since else {
            // An agent died while it made a snapshot, or between the order to go on and its report.
            let line = vm.channel_while_paused().await;
            if let Err(e) = vm.resume().await {
                tracing::warn!(sandbox = %self.assignment.sandbox, error = %e, "cannot be told to go on");
            }
            return match self.home.begun() {
                true if self.report(Report::Resumed).await.is_none() => Err(End::Left),
                _ => Ok(line),
            };
        };
        if let Err(e) = vm.pause().await {
            tracing::warn!(sandbox = %self.assignment.sandbox, error = %e, "cannot be kept still");
        }
        // Its limits wait as well; an agent that died before it said so is made up for here.
        let _ = vm.set_deadlines(Deadlines::default()).await;
        match self.report(Report::Paused).await {
            Some(Verdict::Go) => {}
            Some(Verdict::Abandon) => return Err(End::Abandoned),
            None => return Err(End::Left),
        }
        let mut before = std::mem::take(&mut self.early);
        let mut line = None;
        loop {
            let request = tokio::select! {
                biased;
                request = async { before.pop_front() }, if !before.is_empty() => request,
                request = self.requests.recv() => request,
                exit = vm.wait() => {
                    return Err(End::Outcome(ending::of_machine(&exit, self.assignment.spec.has_command())));
                }
            };
            match request {
                Some(Request::Resume { reply }) => {
                    let total_ms = pauses.total_ms + self.now().ms_since(since);
                    // Limits before it goes on, wider than they will be: this agent may die before it knows better.
                    let wall_ms = self.assignment.spec.timeout_ms.map(|ms| ms.saturating_add(SUPERVISOR_SLACK_MS));
                    let idle_ms = self.assignment.spec.idle_timeout_ms.map(|ms| ms.saturating_add(SUPERVISOR_SLACK_MS));
                    let _ = vm.set_deadlines(Deadlines { wall_ms, idle_ms, lease_ms: None }).await;
                    if line.is_none() {
                        line = vm.channel_while_paused().await;
                    }
                    let gone_on = async {
                        self.home.put_pauses(Pauses { since: None, total_ms }).map_err(Refusal::internal)?;
                        vm.resume().await.map_err(Refusal::internal)
                    };
                    let gone_on = gone_on.await;
                    let fine = gone_on.is_ok();
                    if !fine {
                        let _ = self.home.put_pauses(pauses);
                        let _ = vm.set_deadlines(Deadlines::default()).await;
                    }
                    let heard = if fine { self.report(Report::Resumed).await } else { Some(Verdict::Go) };
                    let _ = reply.send(gone_on);
                    match heard {
                        None => return Err(End::Left),
                        Some(Verdict::Abandon) => return Err(End::Abandoned),
                        Some(Verdict::Go) if fine => {
                            self.early.append(&mut before);
                            return Ok(line);
                        }
                        Some(Verdict::Go) => {}
                    }
                }
                Some(Request::Pause { reply }) => drop(reply.send(Ok(()))),
                // Nobody in there can hear a signal.
                Some(Request::Kill { reason, .. }) => {
                    vm.kill().await;
                    vm.wait().await;
                    return Err(End::Outcome(ending::outcome(None, Asked { kill: Some(reason), limit: None })));
                }
                // Its forwards are opened when its guest answers.
                Some(request @ Request::SetNet { .. }) => {
                    super::requests::refuse(
                        request,
                        "it stands still since before its node was restarted: resume it first",
                    );
                }
                Some(request) => {
                    let Some(request) = (match opened {
                        Some(opened) => opened.serve(self, network, request).await,
                        None => Some(request),
                    }) else {
                        continue;
                    };
                    if let Some(end) = stops(request, &mut self.early) {
                        if !matches!(end, End::Left) {
                            vm.kill().await;
                            vm.wait().await;
                        }
                        return Err(end);
                    }
                }
                None => return Err(End::Left),
            }
        }
    }
}

/// Told once: whoever asked hears of a failure, and asks again.
async fn report(task: &Task, report: Report) -> Result<(), Refusal> {
    let (sandbox, token) = (&task.assignment.sandbox, &task.assignment.token);
    task.ctx.control.report(sandbox, token, report).await.map(drop)
}
