//! What is heard of a running sandbox: from its guest, and from those who write its output down.

use tartarus_api::node::{Moment, Report, Target};
use tartarus_guest::{Header, Kind};
use tartarus_types::Reason;
use tokio::time::Instant;

use super::process::{Note, outcome_of};
use super::steady::{DRAIN, MAIN, Steady, started_at};
use super::task::Task;
use crate::link::GuestEvent;

impl Steady {
    pub(super) async fn on_guest(&mut self, task: &Task, event: GuestEvent) {
        let fine = match event {
            // One that has ended here, while this was on its way.
            GuestEvent::Started { process }
            | GuestEvent::StdinTaken { process, .. }
            | GuestEvent::Ended { process, .. }
                if process <= self.highest && !self.processes.contains_key(&process) =>
            {
                true
            }
            GuestEvent::Started { process } => {
                if process == MAIN {
                    self.on_started(task).await;
                }
                self.processes.contains_key(&process)
            }
            GuestEvent::Output { process, stream, offset, bytes } => {
                self.used();
                self.processes.get(&process).is_some_and(|p| p.output(stream, offset, &bytes))
            }
            GuestEvent::StdinTaken { process, taken } => {
                let link = &self.link;
                self.processes.get_mut(&process).is_some_and(|p| p.stdin.taken(taken) && p.stdin.pump(process, link))
            }
            GuestEvent::Ended { process, end } => self.processes.get_mut(&process).is_some_and(|p| {
                p.stdin.close();
                p.end.get_or_insert(end);
                p.finish();
                true
            }),
            // Asked for by nobody in this state.
            GuestEvent::Runner(_) | GuestEvent::Frozen(_) => false,
            GuestEvent::Gone(why) => {
                self.gone = Some(why.clone());
                // A machine whose agent is gone is of no use; its own end may be on the way and says more.
                self.end_at = Some(Instant::now() + DRAIN);
                if why.contains("agent") {
                    self.fail(Reason::GuestDied, &why);
                }
                true
            }
        };
        if !fine {
            self.fail(Reason::GuestDied, "the guest agent broke the protocol");
        }
    }

    pub(super) async fn on_started(&mut self, task: &Task) {
        if started_at(task).is_some() {
            return;
        }
        let at = task.now();
        self.arm(task, Some(at)).await;
        task.live.send_modify(|live| live.progress.moments.push(Moment { phase: "command_started".into(), at }));
        let progress = task.live.borrow().progress.clone();
        if let Err(e) = task.home.put_progress(&progress) {
            tracing::warn!(sandbox = %task.assignment.sandbox, error = %e, "progress could not be written");
        }
        // Told once; it is told again with the end.
        let (sandbox, token) = (&task.assignment.sandbox, &task.assignment.token);
        if let Err(e) = task.ctx.control.report(sandbox, token, Report::Progress(progress)).await {
            tracing::debug!(sandbox = %sandbox, error = %e, "progress was not taken");
        }
    }

    pub(super) fn on_note(&mut self, task: &Task, note: Note) {
        match note {
            Note::Recorded { process, len } => {
                for (stream, offset) in len.into_iter().enumerate() {
                    let header = Header { kind: Kind::Ack, stream: stream as u8 + 1, process, offset };
                    if !self.link.frame(header, &[]) {
                        self.fail(Reason::GuestDied, "the guest does not listen");
                    }
                }
            }
            Note::Done { process, result } => {
                if let Err(e) = result {
                    self.fail(Reason::NodeFailed, &format!("its output could not be stored: {e}"));
                }
                let Some(p) = self.processes.get_mut(&process) else { return };
                p.recorded = true;
                if let (Target::Exec(id), Some(end)) = (p.target.clone(), &p.end) {
                    let outcome = outcome_of(end);
                    self.end_exec(task, process, &id, outcome);
                }
            }
        }
    }
}
