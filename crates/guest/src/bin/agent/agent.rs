//! The agent itself: one thread, one loop. It moves bytes between the guest channel and the processes, starts them, and
//! reaps every zombie of the guest.
//!
//! Used by `main`, after the root file system stands or failed to. Knows nothing of disks and mounts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, read};
use rustix::process::{WaitOptions, wait};
use tartarus_guest::frame::MAX_PAYLOAD;
use tartarus_guest::{Freeze, Header, Hello, Kind, Stream};

use crate::alert::Alert;
use crate::carry::Carriers;
use crate::console;
use crate::events::{Events, Role, RunnerPart, Source};
use crate::freeze::Freezer;
use crate::hook::Hooks;
use crate::memory::relieve;
use crate::port::{Heard, Port};
use crate::process::Process;
use crate::runner::Runner;
use crate::session::Session;
use crate::spawn::Held;
use crate::still::Still;

/// Output is queued for the port up to here, bytes: little, so that an end or a new session does not wait behind much.
const QUEUE: usize = 128 * 1024;
/// Requests are not read while more answers than this wait, bytes.
const ANSWERS: usize = 1024 * 1024;
/// Bytes of one read of the port.
const CHUNK: usize = 64 * 1024;
/// Reads of one source before the others have their turn.
const READS: usize = 8;
/// How long the layer stays frozen after a hello when no process is started, milliseconds: the host's way from the answer
/// to its first start. It counts from when the agent need not stay awake any more.
const START: u16 = 50;
/// Zombies reaped before other things have their turn.
const REAPS: usize = 256;

/// What is needed to run commands.
pub(crate) struct Ground {
    /// For every start.
    pub(crate) held: Held,
    /// Reports that memory is short, where the kernel can.
    pub(crate) pressure: Option<OwnedFd>,
    /// Who this guest is.
    pub(crate) identity: Box<dyn Identify>,
    /// Freezes the layer; none on anything but a guest.
    pub(crate) freezer: Option<Freezer>,
    /// Processes that want to hear of a restore, where the guest can listen to them.
    pub(crate) hooks: Option<Hooks>,
    /// Processes that wait for the restore, because the layer is frozen.
    pub(crate) still: Still,
}

/// Who a guest is; says why it cannot be.
pub(crate) trait Identify {
    /// Takes over what a hello gives.
    fn take(&mut self, hello: &Hello) -> Result<(), String>;

    /// Takes over what most clones of this guest are to have: their first hello finds it as it is.
    fn settle(&mut self, freeze: &Freeze) -> Result<(), String>;
}

/// Whose turn it is to send a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Process(u32),
    Carrier(u32),
}

/// The agent.
pub(crate) struct Agent {
    port: Port,
    pub(crate) events: Events,
    pub(crate) session: Session,
    pub(crate) ground: Result<Ground, String>,
    pub(crate) processes: BTreeMap<u32, Process>,
    pub(crate) runner: Runner,
    pub(crate) carriers: Carriers,
    /// The guest was restored, and its processes do not know it yet.
    pub(crate) restored: bool,
    /// It waits without sleeping.
    pub(crate) alert: Alert,
    /// The last reading of how many processes were killed for want of memory.
    pub(crate) ooms: u64,
    /// Pipes of ended processes that their children may still write to, and whether there is something to read.
    drains: BTreeMap<RawFd, (OwnedFd, bool)>,
    children_ended: bool,
    /// Whose output is sent first next time.
    turn: Turn,
    buffer: Vec<u8>,
}

impl Agent {
    /// Serves `port`. When `ground` is an error, every host is told so.
    pub(crate) fn new(port: Port, ground: Result<Ground, String>) -> Result<Self, Errno> {
        let events = Events::new(port.descriptor())?;
        if let Ok(Ground { pressure: Some(pressure), .. }) = &ground {
            events.watch_pressure(pressure.as_fd())?;
        }
        if let Ok(Ground { hooks: Some(hooks), .. }) = &ground {
            events.watch(hooks.socket(), Source::Hook)?;
        }
        Ok(Self {
            runner: Runner::default(),
            carriers: Carriers::default(),
            restored: false,
            alert: Alert::default(),
            ooms: ground.as_ref().map_or(0, |ground| ground.held.ooms.count()),
            events,
            port,
            session: Session::new(),
            ground,
            processes: BTreeMap::new(),
            drains: BTreeMap::new(),
            children_ended: false,
            turn: Turn::Process(0),
            buffer: vec![0; CHUNK],
        })
    }

    /// Serves for ever.
    pub(crate) fn serve(&mut self) -> Result<Infallible, Errno> {
        let mut busy = true;
        loop {
            busy = busy || self.alert.pause();
            let due = self.thaw_is_due();
            let sources = self.events.wait(if busy { Some(0) } else { due.then_some(START) })?;
            if due && !busy && sources.is_empty() {
                self.thaw_soon();
            }
            for source in sources {
                self.wake(source);
            }
            busy = self.receive();
            busy |= self.reap();
            busy |= self.pump();
            busy |= self.emit();
            busy |= self.transmit();
            busy |= self.drain();
        }
    }

    fn wake(&mut self, source: Source) {
        match source {
            Source::Port => {
                self.port.wake();
                self.answer();
            }
            Source::Children => self.children_ended = true,
            Source::Pressure => relieve(),
            Source::Pipe(process, role) => match (self.processes.get_mut(&process), role) {
                (Some(process), Role::Stdin) => process.input.wake(),
                (Some(process), Role::Output(stream)) => process.output(stream).wake(),
                (None, _) => {}
            },
            Source::Spare(spare, part) => self.job_news(spare, part),
            Source::Drain(fd) => {
                if let Some((_, ready)) = self.drains.get_mut(&fd) {
                    *ready = true;
                }
            }
            Source::Runner(RunnerPart::Control) => self.runner_news(),
            Source::Runner(RunnerPart::Output) => self.runner.drain(),
            Source::Hook => self.hook_news(),
            Source::Carrier(number) => self.carriers.wake(number),
        }
    }

    /// Reads and answers requests.
    fn receive(&mut self) -> bool {
        for _ in 0..READS {
            if self.session.unwritten().len() > ANSWERS {
                return false;
            }
            match self.port.read(&mut self.buffer) {
                Heard::Bytes(count) => {
                    self.session.push(&self.buffer[..count]);
                    while let Some(request) = self.session.next_request() {
                        if let Err(why) = self.handle(request) {
                            self.session.fault(&why);
                        }
                    }
                }
                Heard::Nothing => return false,
                // What was half read or not yet sent was for that host alone.
                Heard::HungUp => {
                    self.session = Session::new();
                    self.carriers.cut_all();
                    self.answer();
                }
            }
        }
        true
    }

    /// Takes the next host, where the port waits for one.
    fn answer(&mut self) {
        self.port.accept(|line| self.events.watch(line, Source::Port));
    }

    /// A new session: nothing is sent until the host attaches, and what it connected is cut off.
    pub(crate) fn detach(&mut self) {
        self.processes.values_mut().for_each(Process::detach);
        self.runner.detach();
        self.carriers.cut_all();
    }

    /// Reaps zombies, also those that were orphaned to PID 1.
    fn reap(&mut self) -> bool {
        if !self.children_ended {
            return false;
        }
        self.events.clear_children();
        for _ in 0..REAPS {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Err(Errno::INTR) => continue,
                Ok(None) | Err(_) => {
                    self.children_ended = false;
                    return true;
                }
            };
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            if let Some(process) = self.processes.values_mut().find(|process| process.running() == Some(pid)) {
                self.ooms = self.ground.as_ref().map_or(0, |ground| ground.held.ooms.count());
                process.exited(status, self.ooms);
            } else {
                self.reaped_other(pid);
            }
        }
        true
    }

    fn reaped_other(&mut self, pid: u32) {
        if let Ok(Ground { freezer: Some(freezer), .. }) = &mut self.ground
            && let Err(error) = freezer.reaped(pid)
        {
            console(&format!("could not thaw the layer: {error}"));
        }
        self.runner_reaped(pid);
    }

    /// Moves bytes between pipes, sockets and memory.
    fn pump(&mut self) -> bool {
        let mut moved = false;
        for (number, process) in &mut self.processes {
            while process.pump() {
                moved = true;
            }
            if self.session.is_open()
                && let Some(offset) = process.input.ack()
            {
                self.session.send(Header { offset, ..Header::new(Kind::StdinAck, *number) }, b"");
            }
        }
        moved | self.carriers.pump(|header, payload| self.session.send(header, payload))
    }

    /// Queues output, ends and what came from sockets, a frame of each stream in turn.
    fn emit(&mut self) -> bool {
        if !self.session.is_open() {
            return false;
        }
        let mut emitted = false;
        loop {
            let processes = self.processes.keys().copied().map(Turn::Process);
            let mut order: Vec<Turn> = processes.chain(self.carriers.numbers().map(Turn::Carrier)).collect();
            let first = order.partition_point(|turn| *turn < self.turn);
            order.rotate_left(first);
            let mut any = false;
            for turn in order {
                if self.session.unwritten().len() >= QUEUE {
                    self.turn = turn;
                    return emitted;
                }
                any |= match turn {
                    Turn::Process(number) => self.emit_of(number),
                    Turn::Carrier(number) => {
                        let say = |header, bytes: &[u8]| self.session.send(header, bytes);
                        self.carriers.emit(number, &mut self.buffer, say)
                    }
                };
            }
            if !any {
                return emitted;
            }
            emitted = true;
        }
    }

    fn emit_of(&mut self, number: u32) -> bool {
        let Some(process) = self.processes.get_mut(&number) else { return false };
        let mut any = false;
        for stream in Stream::ALL {
            let window = &mut process.output(stream).window;
            let Some((offset, bytes)) = window.unsent(MAX_PAYLOAD) else { continue };
            let header = Header { kind: Kind::Output, stream: stream.number(), process: number, offset };
            self.session.send(header, bytes);
            let count = bytes.len();
            window.sent(count);
            any = true;
        }
        let Some(end) = process.due_end() else { return any };
        self.send_end(number, &end);
        true
    }

    /// Writes to the port what it takes.
    fn transmit(&mut self) -> bool {
        let mut moved = false;
        while !self.session.unwritten().is_empty() {
            let count = self.port.write(self.session.unwritten());
            if count == 0 {
                break;
            }
            self.session.wrote(count);
            moved = true;
        }
        moved
    }

    /// Empties the pipes that children of ended processes still write to. Comes last, when the host was told of the end.
    fn drain(&mut self) -> bool {
        for pipe in self.processes.values_mut().flat_map(Process::leftovers) {
            // When it cannot be watched it is closed, and a child that writes to it gets a SIGPIPE.
            if self.events.only_drain(pipe.as_fd()).is_ok() {
                self.drains.insert(pipe.as_raw_fd(), (pipe, true));
            }
        }
        let buffer = self.buffer.as_mut_slice();
        self.drains.retain(|_, (pipe, ready)| {
            for _ in 0..READS {
                if !*ready {
                    break;
                }
                match read(&*pipe, &mut *buffer) {
                    Ok(0) => return false,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(_) => *ready = false,
                }
            }
            true
        });
        self.drains.values().any(|(_, ready)| *ready)
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
pub(crate) mod tests;
