//! One command that the host asked for: from its start until the host has its end on disk.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::WaitStatus;
use tartarus_guest::{End, ProcessState, ProcessStatus, Stream};

use crate::input::Input;
use crate::output::Output;
use crate::runner::Given;
use crate::spawn::Spawned;
use crate::window::Outside;

/// A process and what the host does not have of it yet.
#[derive(Debug)]
pub(crate) struct Process {
    token: String,
    /// `None` when it could not be started, or waits for the runner.
    pid: Option<u32>,
    /// Set when it ended.
    end: Option<End>,
    /// The kernel's count of out-of-memory kills when it started.
    ooms: u64,
    /// Its standard input.
    pub(crate) input: Input,
    outputs: [Output; 2],
    end_sent: bool,
    /// The spare that it was, and its end of which it may say that it is about to come.
    spare: Option<(u32, OwnedFd)>,
}

impl Process {
    /// A process that runs, or the reason why it does not.
    pub(crate) fn new(token: String, spawned: Result<Spawned, End>, ooms: u64) -> Self {
        let (mut input, mut outputs, mut pid, mut end) = (Input::default(), <[Output; 2]>::default(), None, None);
        match spawned {
            Ok(spawned) => {
                input = spawned.stdin.map_or_else(Input::default, Input::new);
                outputs = spawned.outputs.map(Output::new);
                pid = Some(spawned.pid);
            }
            Err(why) => end = Some(why),
        }
        Self { token, pid, end, ooms, input, outputs, end_sent: false, spare: None }
    }

    /// A job that waits for the runner, which has no output pipes yet.
    pub(crate) fn queued(token: String, stdin: Option<OwnedFd>, ooms: u64) -> Self {
        let input = stdin.map_or_else(Input::default, Input::new);
        Self { token, pid: None, end: None, ooms, input, outputs: Default::default(), end_sent: false, spare: None }
    }

    /// The attempt that it belongs to.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Its pid, as long as it runs.
    pub(crate) fn running(&self) -> Option<u32> {
        self.pid.filter(|_| self.end.is_none())
    }

    /// It neither runs nor ended: it waits for the runner.
    pub(crate) fn is_queued(&self) -> bool {
        self.pid.is_none() && self.end.is_none()
    }

    /// The runner started it.
    pub(crate) fn began(&mut self, given: Given) {
        self.pid = Some(given.pid);
        self.outputs.iter_mut().zip(given.outputs).for_each(|(output, pipe)| output.open(pipe));
        self.spare = Some((given.spare, given.socket));
    }

    /// The number of the spare that it was.
    pub(crate) fn spare(&self) -> Option<u32> {
        self.spare.as_ref().map(|(number, _)| *number)
    }

    /// The code with which a job says that it ends, once, after the last of its output. The kernel takes its memory to
    /// pieces before it reports the same, and nobody needs to wait for that.
    pub(crate) fn last_word(&mut self) -> Option<i32> {
        let (number, socket) = self.spare.take()?;
        let mut word = [0; 2];
        match recv(&socket, &mut word, RecvFlags::DONTWAIT) {
            // Closed later: the host is told first.
            Ok((1, _)) if self.end.is_none() => {
                self.spare = Some((number, socket));
                return Some(i32::from(word[0]));
            }
            Err(Errno::AGAIN | Errno::INTR) => self.spare = Some((number, socket)),
            // It is gone, became another program, or said what means nothing: its end is what is reaped.
            _ => {}
        }
        None
    }

    /// It will never be started.
    pub(crate) fn failed(&mut self, end: End) {
        self.outputs = <[Output; 2]>::default();
        self.input.close();
        self.end = Some(end);
    }

    /// What a start is answered with, each time alike: its pid, or why it could not be started. Nothing yet as long as
    /// it waits for the runner.
    pub(crate) fn started(&self) -> Option<Result<u32, End>> {
        match (self.pid, &self.end) {
            (Some(pid), _) => Some(Ok(pid)),
            (None, Some(end)) => Some(Err(end.clone())),
            (None, None) => None,
        }
    }

    /// Its status for the hello.
    pub(crate) fn status(&self, process: u32) -> ProcessStatus {
        let seen = self.is_whole() && self.outputs.iter().all(|output| output.window.is_seen());
        let state = match (&self.end, self.pid) {
            (Some(end), _) if seen => ProcessState::Ended(end.clone()),
            (_, pid) => ProcessState::Running { pid: pid.unwrap_or(0) },
        };
        ProcessStatus { process, token: self.token.clone(), state, stdin_taken: self.input.taken() }
    }

    /// One of its output streams.
    pub(crate) fn output(&mut self, stream: Stream) -> &mut Output {
        &mut self.outputs[usize::from(stream.number()) - 1]
    }

    /// The host wants `stream` from `offset` on; when it says so a second time, also the end again.
    pub(crate) fn attach(&mut self, stream: Stream, offset: u64) -> Result<(), Outside> {
        let again = self.output(stream).window.attach(offset)?;
        self.end_sent &= !again;
        Ok(())
    }

    /// A new session: nothing is sent until the host attaches.
    pub(crate) fn detach(&mut self) {
        self.outputs.iter_mut().for_each(|output| output.window.detach());
        self.end_sent = false;
        // The hello tells the host how much was taken.
        self.input.ack();
    }

    /// It was reaped; `ooms` is the kernel's count now.
    pub(crate) fn exited(&mut self, status: WaitStatus, ooms: u64) {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => self.ends(Ok(code), ooms),
            (None, signal) => self.ends(Err(signal.unwrap_or(0)), ooms),
        }
    }

    /// It ends with a code or by a signal.
    pub(crate) fn ends(&mut self, how: Result<i32, i32>, ooms: u64) {
        let oom_kills = u32::try_from(ooms.saturating_sub(self.ooms)).unwrap_or(u32::MAX);
        self.end = Some(match how {
            Ok(code) => End::Exited { code, oom_kills },
            Err(signal) => End::Signalled { signal, oom_kills },
        });
        self.outputs.iter_mut().for_each(Output::seal);
        self.input.close();
    }

    /// Moves bytes between the pipes and memory. Gives whether anything changed.
    pub(crate) fn pump(&mut self) -> bool {
        let moved = self.input.flush();
        self.outputs.iter_mut().fold(moved, |moved, output| output.fill() || moved)
    }

    /// Pipes of the ended process that must still be emptied, each once.
    pub(crate) fn leftovers(&mut self) -> Vec<OwnedFd> {
        self.outputs.iter_mut().filter_map(Output::leftover).collect()
    }

    /// The end, when it is to be sent now: once per session, after all output.
    pub(crate) fn due_end(&mut self) -> Option<End> {
        if self.end_sent || !self.is_whole() || !self.outputs.iter().all(|output| output.window.is_sent()) {
            return None;
        }
        let end = self.end.clone()?;
        self.end_sent = true;
        Some(end)
    }

    /// The start was answered with the end.
    pub(crate) fn told_end(&mut self) {
        self.end_sent = true;
    }

    fn is_whole(&self) -> bool {
        self.end.is_some() && self.outputs.iter().all(Output::is_whole)
    }
}
