//! Standing still: the machine is stopped, and so are the clocks of its limits.
//!
//! What shall be is on disk before it is done, so that an agent that takes over from anywhere in between does the same.

use std::time::Duration;

use tartarus_api::node::Report;
use tartarus_runtime::Deadlines;
use tartarus_types::{ErrorCode, Refusal, SnapshotUse};
use tokio::time::Instant;

use super::ending::Asked;
use super::steady::Steady;
use super::task::Task;
use crate::ledger::Pauses;

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

/// Told until it is heard; when this agent ends first, the next one tells.
async fn report(task: &Task, report: Report) -> Result<(), Refusal> {
    let (sandbox, token) = (&task.assignment.sandbox, &task.assignment.token);
    task.ctx.control.report(sandbox, token, report).await.map(drop)
}
