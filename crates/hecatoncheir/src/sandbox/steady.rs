//! The steady state: a greeted guest, its processes, and everything that may happen to them. One loop owns it all.

use std::collections::BTreeMap;
use std::time::Duration;

use tartarus_api::node::Target;
use tartarus_guest::{Header, Kind};
use tartarus_runtime::{Deadlines, Vm, VmExit};
use tartarus_types::{Outcome, Reason, SnapshotUse, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::bringup::Greeted;
use super::ending::{self, Asked};
use super::execs;
use super::forwards::Forwards;
use super::pause::Standstill;
use super::process::{Note, Process, outcome_of};
use super::serve::{Opened, highest_number};
use super::task::{End, Task};
use super::{KillReason, Request};
use crate::link::{GuestEvent, GuestLink};
use crate::net::Network;
use crate::workshop::Hold;

/// The main command's number in the guest.
pub(super) const MAIN: u32 = 0;
/// After a time limit: for the killed command's last output to arrive.
pub(super) const DRAIN: Duration = Duration::from_secs(1);
/// The supervisor's limits lie beyond the agent's own, which end things with more care.
pub(super) const SUPERVISOR_SLACK_MS: u64 = 3_000;
/// A command that was let begin is given at least so long to start, ms: the guest answered just now.
const MIN_START_MS: u64 = 20_000;
/// After the command began, and after that.
const CLOCKS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(9)];
/// The supervisor hears of use at most this often.
const TOUCH: Duration = Duration::from_millis(500);

/// Everything the loop owns.
pub(super) struct Steady {
    pub(super) vm: Box<dyn Vm>,
    /// What the machine shares with others.
    hold: Hold,
    pub(super) link: GuestLink,
    /// Ports of the node that lead to it.
    pub(super) forwards: Forwards,
    pub(super) events: mpsc::Receiver<GuestEvent>,
    notes: mpsc::Receiver<Note>,
    pub(super) notes_tx: mpsc::Sender<Note>,
    pub(super) processes: BTreeMap<u32, Process>,
    /// The highest number that a process ever had.
    pub(super) highest: u32,
    pub(super) asked: Asked,
    /// Signal and grace of the kill that was last obeyed.
    killed: Option<(i32, u64)>,
    /// The machine is ended then, whatever its command does.
    pub(super) end_at: Option<Instant>,
    pub(super) limit_at: Option<Instant>,
    /// The command must have started by then.
    pub(super) start_at: Option<Instant>,
    /// The supervisor's limit, which is there before the command has started.
    pub(super) wall_at: Option<Instant>,
    /// The guest is told the time again then: the first word may have been slow, and the fastest counts.
    clock_at: Option<Instant>,
    clocks: std::slice::Iter<'static, Duration>,
    /// It stands still.
    pub(super) standstill: Option<Standstill>,
    idle: Option<Duration>,
    used_at: Instant,
    touched_at: Instant,
    /// The guest broke a rule, or the node cannot go on.
    failed: Option<Outcome>,
    /// The guest's session is over.
    pub(super) gone: Option<String>,
    pub(super) network: Option<Network>,
}

impl Steady {
    /// Takes over a greeted guest: attaches to what runs there, starts what does not yet.
    pub(super) async fn new(task: &Task, greeted: Greeted, opened: Opened) -> Self {
        let Opened { processes, notes, notes_tx, failed } = opened;
        let Greeted { vm, hold, link, events, ack, network } = greeted;
        let now = Instant::now();
        let (forwards, unopened) = task.forwards(link.carriers().clone()).await;
        let mut steady = Self {
            vm,
            hold,
            forwards,
            link,
            events,
            notes,
            notes_tx,
            processes,
            highest: highest_number(task),
            asked: Asked::default(),
            killed: None,
            end_at: None,
            limit_at: None,
            start_at: None,
            wall_at: None,
            clock_at: None,
            clocks: CLOCKS.iter(),
            standstill: None,
            idle: task.assignment.spec.idle_timeout_ms.map(Duration::from_millis),
            used_at: now,
            touched_at: now,
            failed: None,
            gone: None,
            network,
        };
        if let Some(why) = unopened {
            steady.fail(Reason::NodeFailed, &why);
        }
        if let Some(e) = failed {
            steady.fail(Reason::NodeFailed, &format!("its log could not be opened: {e}"));
        }
        steady.arm(task, started_at(task)).await;
        let mut heard = true;
        let mut started = !steady.processes.contains_key(&MAIN);
        for process in steady.processes.values_mut() {
            let known = ack.processes.iter().find(|p| p.token == process.start.token);
            match known {
                Some(status) => {
                    started |= process.number == MAIN;
                    process.stdin.resume(status.stdin_taken);
                }
                // It lives, and does not know the token: the process was never started.
                None => heard &= steady.link.start(process.number, &process.start),
            }
            heard &= process.attach(&steady.link);
        }
        if !heard {
            steady.fail(Reason::GuestDied, "the guest does not listen");
        }
        if started {
            steady.on_started(task).await;
        }
        steady.clock_at = steady.clocks.next().and_then(|after| Instant::now().checked_add(*after));
        steady
    }

    pub(super) async fn run(mut self, task: &mut Task) -> End {
        while let Some(request) = task.early.pop_front() {
            self.on_request(task, request).await;
        }
        let mut exit: Option<VmExit> = None;
        loop {
            if let Some(mut outcome) = self.over(task, exit.as_ref()) {
                let warmed = outcome.reason == Reason::Exited && outcome.exit_code == Some(0);
                if warmed && task.assignment.spec.snapshot == SnapshotUse::Make {
                    match self.make_snapshot(task, outcome).await {
                        Ok(made) => outcome = made,
                        Err(end) => return end,
                    }
                }
                return self.wind_up(task, outcome).await;
            }
            let deadline = self.next_deadline();
            tokio::select! {
                event = self.events.recv(), if self.gone.is_none() => match event {
                    Some(event) => self.on_guest(task, event).await,
                    None => self.gone = Some("its connection ended".to_owned()),
                },
                note = self.notes.recv() => if let Some(note) = note { self.on_note(task, note) },
                request = task.requests.recv() => match request {
                    Some(Request::Leave) | None => return End::Left,
                    Some(Request::Abandon) => return End::Abandoned,
                    Some(request) => self.on_request(task, request).await,
                },
                ended = self.vm.wait(), if exit.is_none() => {
                    exit = Some(ended);
                    // What the guest said before its end may still be on the way.
                    self.end_at = Some(Instant::now() + DRAIN);
                }
                why = lost(self.network.as_ref()), if self.failed.is_none() => {
                    // What its contract says cannot be told from what passes any more.
                    self.fail(Reason::NodeFailed, &format!("its network was lost: {why}"));
                }
                () = at(deadline) => self.on_deadline(exit.is_some()).await,
            }
        }
    }

    /// Sets the limits, here and beyond them at the supervisor: those of the command once it has started, until then
    /// those of its start, with room for all of the command.
    pub(super) async fn arm(&mut self, task: &Task, started: Option<Timestamp>) {
        let spec = &task.assignment.spec;
        let now = task.now();
        let start_ms = task.assignment.start_deadline.ms_since(now).max(MIN_START_MS);
        let stood_ms = task.home.pauses().total_ms;
        let left = spec.timeout_ms.map(|ms| match started {
            Some(at) => ms.saturating_sub(now.ms_since(at).saturating_sub(stood_ms)),
            None => ms.saturating_add(start_ms),
        });
        let after = |ms: u64| Instant::now().checked_add(Duration::from_millis(ms));
        self.limit_at = left.filter(|_| started.is_some()).and_then(after);
        self.start_at = started.is_none().then(|| after(start_ms)).flatten();
        self.wall_at = left.and_then(after);
        self.arm_supervisor(task).await;
    }

    /// Tells the supervisor the limits, beyond the agent's own.
    pub(super) async fn arm_supervisor(&mut self, task: &Task) {
        let slack = |ms: u64| ms.saturating_add(SUPERVISOR_SLACK_MS);
        let left =
            |at: Instant| u64::try_from(at.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
        let idle_ms = task.assignment.spec.idle_timeout_ms.map(slack);
        let deadlines = Deadlines { wall_ms: self.wall_at.map(left).map(slack), idle_ms, lease_ms: None };
        // A supervisor that is gone shows as the machine's end.
        let _ = self.vm.set_deadlines(deadlines).await;
    }

    /// When the idle limit passes; an end that was asked for, or has come, is not overtaken by it.
    fn idle_at(&self) -> Option<Instant> {
        let waiting = self.end_at.is_none() && self.asked == Asked::default() && self.gone.is_none();
        self.idle.filter(|_| waiting).and_then(|d| self.used_at.checked_add(d))
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.standstill.is_some() {
            return self.end_at;
        }
        let limit = self.limit_at.filter(|_| self.asked.limit.is_none());
        [self.end_at, limit, self.idle_at(), self.start_at, self.clock_at].into_iter().flatten().min()
    }

    async fn on_deadline(&mut self, exited: bool) {
        // Looked at when it matters: connections do not go through this loop.
        if self.link.carriers().used_at().is_some_and(|at| at > self.used_at) {
            self.used();
        }
        let now = Instant::now();
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if passed(self.clock_at) {
            self.clock_at = self.clocks.next().and_then(|after| now.checked_add(*after));
            self.link.clock();
        }
        if passed(self.end_at) {
            self.end_at = None;
            if exited {
                self.gone.get_or_insert_with(|| "its machine ended".to_owned());
            } else if self.asked == Asked::default()
                && let Some(why) = self.gone.clone()
            {
                // It lives, and nobody can speak to it any more.
                self.fail(Reason::GuestDied, &format!("the guest agent was lost: {why}"));
            }
            self.vm.kill().await;
        } else if passed(self.limit_at) && self.asked.limit.is_none() {
            let has_command = self.processes.contains_key(&MAIN);
            self.asked.limit = Some(if has_command { Reason::Timeout } else { Reason::Ttl });
            self.signal(MAIN, 9);
            self.end_at = Some(now + if has_command { DRAIN } else { Duration::ZERO });
        } else if passed(self.start_at) {
            self.start_at = None;
            self.fail(Reason::StartTimeout, "its guest did not start the command in time");
        } else if passed(self.idle_at()) {
            self.asked.limit = Some(Reason::Idle);
            self.end_at = Some(now);
        }
    }

    /// The sandbox's outcome once there is nothing left to wait for.
    fn over(&self, task: &Task, exit: Option<&VmExit>) -> Option<Outcome> {
        let main = self.processes.get(&MAIN);
        let makes = task.assignment.spec.snapshot == SnapshotUse::Make;
        if makes && main.is_none() && exit.is_none() && self.asked == Asked::default() && self.failed.is_none() {
            // Nothing to warm up: it was ready when it had booted.
            let done = Outcome { message: None, exit_code: Some(0), ..Outcome::because(Reason::Exited, "") };
            return Some(done);
        }
        if let Some(main) = main
            && main.recorded
            && let Some(end) = &main.end
        {
            return Some(ending::outcome(Some(outcome_of(end)), self.asked));
        }
        if let Some(failed) = &self.failed {
            return Some(failed.clone());
        }
        let exit = exit.filter(|_| self.gone.is_some())?;
        // Its end arrived, and so did all its output, which is only not all on disk yet.
        if let Some(end) = main.and_then(|m| m.end.as_ref()) {
            return Some(ending::outcome(Some(outcome_of(end)), self.asked));
        }
        Some(if self.asked == Asked::default() {
            ending::of_machine(exit, task.assignment.spec.has_command())
        } else {
            ending::outcome(None, self.asked)
        })
    }

    pub(super) fn fail(&mut self, reason: Reason, why: &str) {
        self.failed.get_or_insert_with(|| Outcome::because(reason, why));
    }

    pub(super) fn used(&mut self) {
        self.used_at = Instant::now();
        if self.idle.is_some() && self.touched_at.elapsed() >= TOUCH {
            self.touched_at = self.used_at;
            self.vm.touch();
        }
    }

    pub(super) fn signal(&mut self, number: u32, signal: i32) {
        if self.processes.get(&number).is_some_and(|p| p.end.is_none()) {
            let offset = u64::from(signal.unsigned_abs());
            self.link.frame(Header { kind: Kind::Signal, stream: 0, process: number, offset }, &[]);
        }
    }

    pub(super) fn kill(&mut self, signal: i32, grace_ms: u64, reason: KillReason) {
        let has_command = self.processes.get(&MAIN).is_some_and(|p| p.end.is_none());
        // One that stands still hears no signal.
        let hears = has_command && self.standstill.is_none();
        let grace = if hears { Duration::from_millis(grace_ms) } else { Duration::ZERO };
        // The directive comes again with every sync; only another one is news.
        if self.killed == Some((signal, grace_ms)) {
            return;
        }
        self.killed = Some((signal, grace_ms));
        self.asked.kill.get_or_insert(reason);
        self.signal(MAIN, signal);
        let end_at = Instant::now() + grace;
        self.end_at = Some(self.end_at.map_or(end_at, |at| at.min(end_at)));
    }

    /// Orders the machine's end, stores the last output, and settles what still ran beside the command.
    async fn wind_up(mut self, task: &mut Task, outcome: Outcome) -> End {
        // Before the machine is ended, so that an agent that takes over from here knows how it had ended.
        if let Err(e) = task.home.put_outcome(&outcome) {
            tracing::error!(sandbox = %task.assignment.sandbox, error = %e, "the end could not be written to the ledger");
        }
        self.forwards.close().await;
        self.vm.kill().await;
        for process in self.processes.values_mut() {
            process.stdin.close();
            process.finish();
        }
        while self.processes.values().any(|p| !p.recorded) {
            match self.notes.recv().await {
                Some(Note::Done { process, .. }) => {
                    if let Some(p) = self.processes.get_mut(&process) {
                        p.recorded = true;
                    }
                }
                Some(Note::Recorded { .. }) => {}
                None => break,
            }
        }
        for (number, target) in self.processes.iter().map(|(n, p)| (*n, p.target.clone())).collect::<Vec<_>>() {
            if let Target::Exec(id) = target {
                let own = self.processes.get(&number).and_then(|p| p.end.as_ref()).map(outcome_of);
                self.end_exec(task, number, &id, own.unwrap_or_else(execs::cut));
            }
        }
        task.departing = Some(task.ctx.dying.add(task.assignment.sandbox.clone(), self.vm, self.hold));
        End::Outcome(outcome)
    }
}

/// When the command started, as far as that was heard of.
pub(super) fn started_at(task: &Task) -> Option<Timestamp> {
    task.live.borrow().progress.moments.iter().find(|m| m.phase == "command_started").map(|m| m.at)
}

/// Waits until a network cannot be kept.
async fn lost(network: Option<&Network>) -> String {
    match network {
        Some(network) => network.lost().await,
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
