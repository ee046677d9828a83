//! The agent itself: one thread, one loop. It moves bytes between the guest channel and the processes, starts them, and
//! reaps every zombie of the guest.
//!
//! Used by `main`, after the root file system stands or failed to. Knows nothing of disks and mounts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, read, write};
use rustix::process::{WaitOptions, wait};
use rustix::time::{ClockId, clock_gettime};
use tartarus_guest::frame::MAX_PAYLOAD;
use tartarus_guest::{End, Header, Hello, HelloAck, Kind, MAX_PROCESSES, Start, Stream, VERSION, message};

use crate::events::{Events, Role, Source};
use crate::process::Process;
use crate::session::{Request, Session};
use crate::spawn::{Held, spawn};

/// Output is queued for the port up to here, bytes: little, so that an end or a new session does not wait behind much.
const QUEUE: usize = 128 * 1024;
/// Requests are not read while more answers than this wait, bytes.
const ANSWERS: usize = 1024 * 1024;
/// Bytes of one read of the port.
const CHUNK: usize = 64 * 1024;
/// Reads of one source before the others have their turn.
const READS: usize = 8;
/// Zombies reaped before other things have their turn.
const REAPS: usize = 256;

/// What is needed to run commands.
pub(crate) struct Ground {
    /// For every start.
    pub(crate) held: Held,
    /// Takes over the identity that a hello gives.
    pub(crate) become_it: BecomeIt,
}

/// Takes over an identity, or says why not.
pub(crate) type BecomeIt = Box<dyn FnMut(&Hello) -> Result<(), String>>;

/// The agent.
pub(crate) struct Agent {
    port: OwnedFd,
    readable: bool,
    writable: bool,
    events: Events,
    session: Session,
    ground: Result<Ground, String>,
    processes: BTreeMap<u32, Process>,
    /// Pipes of ended processes that their children may still write to, and whether there is something to read.
    drains: BTreeMap<RawFd, (OwnedFd, bool)>,
    children_ended: bool,
    /// Whose output is sent first next time.
    turn: u32,
    buffer: Vec<u8>,
}

impl Agent {
    /// Serves `port`, which must not block. When `ground` is an error, every host is told so.
    pub(crate) fn new(port: OwnedFd, ground: Result<Ground, String>) -> Result<Self, Errno> {
        Ok(Self {
            events: Events::new(port.as_fd())?,
            port,
            readable: true,
            writable: true,
            session: Session::new(),
            ground,
            processes: BTreeMap::new(),
            drains: BTreeMap::new(),
            children_ended: false,
            turn: 0,
            buffer: vec![0; CHUNK],
        })
    }

    /// Serves for ever.
    pub(crate) fn serve(&mut self) -> Result<Infallible, Errno> {
        let mut busy = true;
        loop {
            for source in self.events.wait(busy)? {
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
            Source::Port => (self.readable, self.writable) = (true, true),
            Source::Children => self.children_ended = true,
            Source::Pipe(process, role) => match (self.processes.get_mut(&process), role) {
                (Some(process), Role::Stdin) => process.input.wake(),
                (Some(process), Role::Output(stream)) => process.output(stream).wake(),
                (None, _) => {}
            },
            Source::Drain(fd) => {
                if let Some((_, ready)) = self.drains.get_mut(&fd) {
                    *ready = true;
                }
            }
        }
    }

    /// Reads and answers requests.
    fn receive(&mut self) -> bool {
        for _ in 0..READS {
            if !self.readable || self.session.unwritten().len() > ANSWERS {
                return false;
            }
            match read(&self.port, self.buffer.as_mut_slice()) {
                // No host is connected. That says nothing about the session: the port's news and its bytes come by
                // different queues, so the next host's preamble may have been read already. It alone ends a session.
                Ok(0) => self.readable = false,
                Ok(count) => {
                    self.session.push(&self.buffer[..count]);
                    while let Some(request) = self.session.next_request() {
                        if let Err(why) = self.handle(request) {
                            self.session.fault(&why);
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => self.readable = false,
            }
        }
        true
    }

    fn detach(&mut self) {
        self.processes.values_mut().for_each(Process::detach);
    }

    /// Does what the host asks; an error is a rule that it broke.
    fn handle(&mut self, request: Request) -> Result<(), String> {
        match request {
            Request::Began => self.detach(),
            Request::Hello(hello) => return self.hello(&hello),
            Request::Start(number, start) => return self.start(number, &start),
            Request::Stdin(number, offset, bytes) => {
                let Some(process) = self.processes.get_mut(&number) else {
                    let offset = offset.saturating_add(bytes.len() as u64);
                    self.session.send(Header { offset, ..Header::new(Kind::StdinAck, number) }, b"");
                    return Ok(());
                };
                process.input.push(offset, &bytes).map_err(|error| format!("process {number}: {error}"))?;
            }
            Request::StdinEof(number, offset) => {
                if let Some(process) = self.processes.get_mut(&number) {
                    process.input.end(offset).map_err(|error| format!("process {number}: {error}"))?;
                }
            }
            Request::Ack(number, stream, offset) => {
                if let Some(process) = self.processes.get_mut(&number) {
                    let acked = process.output(stream).window.ack(offset);
                    acked.map_err(|error| format!("process {number}, {}: {error}", stream.as_str()))?;
                }
            }
            Request::Attach(number, stream, offset) => {
                let process = self.processes.get_mut(&number).ok_or_else(|| format!("no process {number}"))?;
                let attached = process.attach(stream, offset);
                attached.map_err(|error| format!("process {number}, {}: {error}", stream.as_str()))?;
            }
            Request::Signal(number, signal) => {
                if let Some(pid) = self.processes.get(&number).and_then(Process::running) {
                    signal_group(pid, signal);
                }
            }
            Request::Forget(number) => {
                if self.processes.get(&number).is_some_and(|process| process.running().is_some()) {
                    return Err(format!("process {number} still runs and cannot be forgotten"));
                }
                self.processes.remove(&number);
            }
        }
        Ok(())
    }

    fn hello(&mut self, hello: &Hello) -> Result<(), String> {
        let ground = self.ground.as_mut().map_err(|why| why.clone())?;
        (ground.become_it)(hello)?;
        let uptime = clock_gettime(ClockId::Boottime);
        let ack = HelloAck {
            version: VERSION,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            uptime_ns: uptime.tv_sec as u64 * 1_000_000_000 + uptime.tv_nsec as u64,
            processes: self.processes.iter().map(|(number, process)| process.status(*number)).collect(),
        };
        self.session.send_message(Kind::HelloAck, 0, &message::encode(&ack));
        Ok(())
    }

    fn start(&mut self, number: u32, start: &Start) -> Result<(), String> {
        let ground = self.ground.as_ref().map_err(|why| why.clone())?;
        if let Some(known) = self.processes.get(&number) {
            if known.token() != start.token {
                return Err(format!("process {number} was started with another token"));
            }
        } else if self.processes.len() >= MAX_PROCESSES {
            let message = format!("the guest already remembers {MAX_PROCESSES} processes; confirm those that ended");
            self.send_end(number, &End::NotExecutable { message });
            return Ok(());
        } else {
            let ooms = oom_kills(&ground.held.proc);
            let watch = |fd: std::os::fd::BorrowedFd<'_>, role| self.events.watch(fd, Source::Pipe(number, role));
            let spawned = spawn(start, &ground.held, watch);
            self.processes.insert(number, Process::new(start.token.clone(), spawned, ooms));
        }
        match self.processes.get(&number).map(Process::started) {
            Some(Ok(pid)) => {
                let header = Header { offset: u64::from(pid), ..Header::new(Kind::Started, number) };
                self.session.send(header, b"");
            }
            Some(Err(end)) => {
                self.send_end(number, &end);
                self.processes.get_mut(&number).into_iter().for_each(Process::told_end);
            }
            None => {}
        }
        Ok(())
    }

    fn send_end(&mut self, number: u32, end: &End) {
        self.session.send(Header::new(Kind::Ended, number), &message::encode(end));
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
                process.exited(status, self.ground.as_ref().map_or(0, |ground| oom_kills(&ground.held.proc)));
            }
        }
        true
    }

    /// Moves bytes between pipes and memory.
    fn pump(&mut self) -> bool {
        let mut moved = false;
        for (number, process) in &mut self.processes {
            while process.pump() {
                moved = true;
            }
            for pipe in process.leftovers() {
                // When it cannot be watched it is closed, and a child that writes to it gets a SIGPIPE.
                if self.events.only_drain(pipe.as_fd()).is_ok() {
                    self.drains.insert(pipe.as_raw_fd(), (pipe, true));
                }
            }
            if self.session.is_open()
                && let Some(offset) = process.input.ack()
            {
                self.session.send(Header { offset, ..Header::new(Kind::StdinAck, *number) }, b"");
            }
        }
        moved
    }

    /// Queues output and ends, a frame of each stream in turn.
    fn emit(&mut self) -> bool {
        if !self.session.is_open() {
            return false;
        }
        let mut emitted = false;
        loop {
            let later = self.processes.range(self.turn..);
            let order: Vec<u32> = later.chain(self.processes.range(..self.turn)).map(|(number, _)| *number).collect();
            let mut any = false;
            for number in order {
                if self.session.unwritten().len() >= QUEUE {
                    self.turn = number;
                    return emitted;
                }
                any |= self.emit_of(number);
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
        while self.writable && !self.session.unwritten().is_empty() {
            match write(&self.port, self.session.unwritten()) {
                Ok(count) => {
                    self.session.wrote(count);
                    moved = true;
                }
                Err(Errno::INTR) => {}
                // Full, or no host: an edge follows.
                Err(_) => self.writable = false,
            }
        }
        moved
    }

    /// Empties the pipes that children of ended processes still write to.
    fn drain(&mut self) -> bool {
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

fn signal_group(pid: u32, signal: i32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    if pid > 1 {
        // SAFETY: plain system call without memory; the group is that of a child not reaped yet, so it is no other's.
        unsafe { libc::kill(-pid, signal) };
    }
}

/// The kernel's count of processes killed for want of memory; 0 where it cannot be read.
fn oom_kills(proc: &OwnedFd) -> u64 {
    let mut text = [0; 16 * 1024];
    let Ok(file) = openat(proc, "vmstat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { return 0 };
    let mut length = 0;
    while let Ok(count @ 1..) = read(&file, &mut text[length..]) {
        length += count;
    }
    let lines = String::from_utf8_lossy(&text[..length]);
    lines.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}
