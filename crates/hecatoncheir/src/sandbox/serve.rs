//! What is asked of a sandbox whose command may run: commands beside the main one, their input, signals and logs.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use tartarus_api::node::{ExecSpec, Target};
use tartarus_guest::{Header, Kind, Start};
use tartarus_types::net::NetStatus;
use tartarus_types::{ErrorCode, ExecId, Outcome, Reason, Refusal, SandboxSpec, SnapshotUse};
use tokio::sync::{mpsc, watch};

use super::ending::Asked;
use super::execs::{self, StoredExec};
use super::process::{Note, Process};
use super::steady::{MAIN, Steady};
use super::task::Task;
use super::warm::warm_start;
use super::{Reply, Request};
use crate::net::Network;
use crate::outbox::OUTBOX;
use crate::output::LiveLog;

/// Notes of recorders that wait for the loop.
const NOTES: usize = 64;

impl Steady {
    pub(super) fn number_of(&self, target: &Target) -> Option<u32> {
        self.processes.values().find(|p| p.target == *target).map(|p| p.number)
    }

    pub(super) async fn on_request(&mut self, task: &Task, request: Request) {
        match request {
            Request::Kill { signal, grace_ms, reason } => self.kill(signal, grace_ms, reason),
            Request::Exec { spec, reply } => {
                self.used();
                let _ = reply.send(self.exec(task, spec));
            }
            Request::ExecStatus { id, reply } => {
                let _ = reply.send(exec_status(task, &self.processes, &id));
            }
            Request::Signal { target, signal, reply } => {
                self.used();
                let number = self.number_of(&target);
                if let Some(number) = number {
                    self.signal(number, signal);
                }
                let gone = || Refusal::new(ErrorCode::WrongState, "the command has ended, or there is none");
                let _ = reply.send(number.map(|_| ()).ok_or_else(gone));
            }
            Request::Stdin { target, offset, bytes, eof, reply } => {
                self.used();
                let Some(p) = self.number_of(&target).and_then(|n| self.processes.get_mut(&n)) else {
                    let _ =
                        reply.send(Err(Refusal::new(ErrorCode::WrongState, "the command has ended, or there is none")));
                    return;
                };
                if !p.start.stdin {
                    let why = "the command was started without standard input: start it with -i";
                    let _ = reply.send(Err(Refusal::new(ErrorCode::WrongState, why)));
                    return;
                }
                p.stdin.give(offset, &bytes, eof, reply);
                if p.end.is_some() {
                    p.stdin.close();
                } else if !p.stdin.pump(p.number, &self.link) {
                    self.fail(Reason::GuestDied, "the guest does not listen");
                }
            }
            Request::Log { target, reply } => {
                let _ = reply.send(log_of(&self.processes, &target));
            }
            Request::Pause { reply } => {
                let _ = reply.send(self.pause(task).await);
            }
            Request::Resume { reply } => {
                let _ = reply.send(self.resume(task).await);
            }
            Request::Net { reply } => tell_net(task, self.network.as_ref(), reply).await,
            Request::SetNet { contract, reply } => {
                let _ = reply.send(self.set_net(task, *contract).await);
            }
            // The loop takes these itself.
            Request::Abandon | Request::Leave => {}
        }
    }

    fn exec(&mut self, task: &Task, spec: ExecSpec) -> Result<(), Refusal> {
        let sandbox = &task.assignment.sandbox;
        let io = |e: io::Error| Refusal::new(ErrorCode::Internal, format!("the exec could not be written down: {e}"));
        if let Some((stored, _)) = execs::stored_exec(&task.ctx.logs, sandbox, &spec.id).map_err(io)? {
            let mismatch = Refusal::new(ErrorCode::IdempotencyMismatch, "another exec was started under this id");
            return if stored == spec { Ok(()) } else { Err(mismatch) };
        }
        if self.asked != Asked::default() || self.gone.is_some() {
            return Err(Refusal::new(ErrorCode::WrongState, "the sandbox is being ended"));
        }
        if task.assignment.spec.snapshot == SnapshotUse::Make {
            return Err(Refusal::new(ErrorCode::WrongState, "it makes a golden snapshot: nothing else may run in it"));
        }
        if self.standstill.is_some() && self.link.waiting() + 2 * size_of_spec(&spec) > OUTBOX / 2 {
            let why = "the sandbox stands still and too much waits for it already: resume it first";
            return Err(Refusal::new(ErrorCode::Busy, why));
        }
        if self.processes.len() >= tartarus_guest::MAX_PROCESSES {
            return Err(Refusal::new(ErrorCode::Busy, "too many commands run in the sandbox"));
        }
        let number = self.highest + 1;
        let target = Target::Exec(spec.id.clone());
        let dir = execs::log_dir(&task.ctx.logs, sandbox, &target);
        let stored = StoredExec { number, spec };
        execs::put(&dir, &stored).map_err(io)?;
        self.highest = number;
        let process = open_exec(task, &stored, &self.notes_tx).map_err(io)?;
        let heard = self.link.start(number, &process.start) && process.attach(&self.link);
        self.processes.insert(number, process);
        if !heard {
            self.fail(Reason::GuestDied, "the guest does not listen");
        }
        Ok(())
    }

    /// Writes an exec's end, tells those who wait, and lets the guest forget it.
    pub(super) fn end_exec(&mut self, task: &Task, number: u32, id: &ExecId, outcome: Outcome) {
        let dir = execs::log_dir(&task.ctx.logs, &task.assignment.sandbox, &Target::Exec(id.clone()));
        match execs::put_outcome(&dir, &outcome) {
            Ok(()) => {
                self.link.frame(Header::new(Kind::Forget, number), &[]);
            }
            Err(e) => tracing::warn!(exec = %id, error = %e, "an exec's end could not be written"),
        }
        if let Some(p) = self.processes.remove(&number) {
            p.outcome.send_replace(Some(outcome));
        }
    }
}

/// Bytes of what a command is started with, about; as JSON it is at most twice as long in practice.
fn size_of_spec(spec: &ExecSpec) -> usize {
    let env = spec.env.iter().map(|(name, value)| name.len() + value.len());
    let all = spec.command.iter().map(String::len).chain(env).chain(spec.code.iter().map(String::len));
    all.sum::<usize>() + 4096
}

/// The sandbox's own command; where it makes a snapshot, the warm-up.
fn main_start(spec: &SandboxSpec, token: &str) -> Option<Start> {
    if spec.snapshot == SnapshotUse::Make {
        return spec.warm.command.as_deref().map(|command| warm_start(spec, command, token));
    }
    spec.has_command().then(|| Start {
        token: token.to_owned(),
        argv: spec.command.clone(),
        env: spec.env.clone(),
        cwd: spec.workdir.clone(),
        user: spec.user.clone(),
        stdin: spec.stdin,
        code: spec.code.clone(),
    })
}

/// A sandbox's processes as this node keeps them: there before their guest can be spoken to, and when it stands still.
pub(super) struct Opened {
    pub(super) processes: BTreeMap<u32, Process>,
    pub(super) notes: mpsc::Receiver<Note>,
    pub(super) notes_tx: mpsc::Sender<Note>,
    /// Why a log could not be opened.
    pub(super) failed: Option<io::Error>,
}

impl Opened {
    pub(super) fn new(task: &Task) -> Self {
        let (notes_tx, notes) = mpsc::channel(NOTES);
        let (processes, failed) = match open_processes(task, &notes_tx) {
            Ok(processes) => (processes, None),
            Err(e) => (BTreeMap::new(), Some(e)),
        };
        Self { processes, notes, notes_tx, failed }
    }

    /// Answers what needs no guest; gives any other request back.
    pub(super) async fn serve(&self, task: &Task, network: Option<&Network>, request: Request) -> Option<Request> {
        match request {
            Request::Net { reply } => tell_net(task, network, reply).await,
            Request::ExecStatus { id, reply } => drop(reply.send(exec_status(task, &self.processes, &id))),
            Request::Log { target, reply } => drop(reply.send(log_of(&self.processes, &target))),
            other => return Some(other),
        }
        None
    }
}

/// Whoever has gone away meanwhile costs nothing.
async fn tell_net(task: &Task, network: Option<&Network>, reply: Reply<NetStatus>) {
    if !reply.is_closed() {
        let _ = reply.send(task.net_status(network).await);
    }
}

fn log_of(processes: &BTreeMap<u32, Process>, target: &Target) -> Option<Arc<LiveLog>> {
    processes.values().find(|p| p.target == *target).map(|p| p.log.clone())
}

fn exec_status(
    task: &Task,
    processes: &BTreeMap<u32, Process>,
    id: &ExecId,
) -> Result<(ExecSpec, watch::Receiver<Option<Outcome>>), Refusal> {
    let found = processes.values().find(|p| matches!(&p.target, Target::Exec(of) if of == id));
    match (found, execs::stored_exec(&task.ctx.logs, &task.assignment.sandbox, id)) {
        (Some(p), Ok(Some((spec, None)))) => Ok((spec, p.outcome.subscribe())),
        _ => Err(Refusal::not_found("exec", id.as_str())),
    }
}

/// The main command and every exec that has not ended, their logs taken up where they end.
fn open_processes(task: &Task, notes: &mpsc::Sender<Note>) -> io::Result<BTreeMap<u32, Process>> {
    let spec = &task.assignment.spec;
    let mut processes = BTreeMap::new();
    if let Some(start) = main_start(spec, task.assignment.token.as_str()) {
        let dir = execs::log_dir(&task.ctx.logs, &task.assignment.sandbox, &Target::Main);
        let log = LiveLog::open(&dir, task.ctx.limits, spec.attach)?;
        processes.insert(MAIN, Process::new(MAIN, Target::Main, start, log, notes.clone()));
    }
    for (exec, outcome) in execs::all(&task.ctx.logs, &task.assignment.sandbox)? {
        if outcome.is_none() {
            processes.insert(exec.number, open_exec(task, &exec, notes)?);
        }
    }
    Ok(processes)
}

fn open_exec(task: &Task, exec: &StoredExec, notes: &mpsc::Sender<Note>) -> io::Result<Process> {
    let (sandbox, spec) = (&task.assignment.spec, &exec.spec);
    let mut env = sandbox.env.clone();
    env.extend(spec.env.clone());
    let start = Start {
        token: spec.id.as_str().to_owned(),
        argv: spec.command.clone(),
        env,
        cwd: spec.workdir.clone().or_else(|| sandbox.workdir.clone()),
        user: spec.user.clone().or_else(|| sandbox.user.clone()),
        stdin: spec.stdin,
        code: spec.code.clone(),
    };
    let target = Target::Exec(spec.id.clone());
    let dir = execs::log_dir(&task.ctx.logs, &task.assignment.sandbox, &target);
    let log = LiveLog::open(&dir, task.ctx.limits, spec.attach)?;
    Ok(Process::new(exec.number, target, start, log, notes.clone()))
}

/// The highest number of any process that the sandbox ever had.
pub(super) fn highest_number(task: &Task) -> u32 {
    let all = execs::all(&task.ctx.logs, &task.assignment.sandbox).unwrap_or_default();
    all.iter().map(|(exec, _)| exec.number).max().unwrap_or(MAIN)
}
