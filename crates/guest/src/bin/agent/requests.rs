//! What the host may ask of the agent, request by request.
//!
//! Part of [`Agent`], apart from its loop. An error is a rule that the host broke; it ends the session.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tartarus_guest::{End, Freeze, Header, Hello, HelloAck, Kind, MAX_PROCESSES, Start, VERSION, message};

use crate::agent::{Agent, Ground};
use crate::console;
use crate::events::Source;
use crate::freeze::Freezer;
use crate::identity::advance_clock;
use crate::process::Process;
use crate::runner::Runner;
use crate::session::Request;
use crate::spawn::{signal_group, spawn};

/// From the answer that the layer is frozen until the machine stands still, at most.
const SNAPSHOT: Duration = Duration::from_secs(3);
/// From a restored guest's answer until its first start, at most: the host writes down that it may begin meanwhile.
const FIRST_START: Duration = Duration::from_millis(25);
/// Free memory of the agent's in a snapshot, bytes: less than what the allocator gives back.
const SPARE_HEAP: usize = 96 * 1024;

impl Agent {
    /// Does what the host asks; an error is a rule that it broke.
    pub(crate) fn handle(&mut self, request: Request) -> Result<(), String> {
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
            Request::Signal(number, signal) => match self.processes.get(&number).and_then(Process::running) {
                Some(pid) => signal_group(pid, signal),
                None => self.signal_queued(number, signal),
            },
            Request::Clock(time_ns) => {
                // The hello set it already, a little late; a kernel that refuses now leaves it so. To read it costs a
                // fresh clone nothing, to set it a millisecond or more.
                if self.ground.is_ok() {
                    let _ = advance_clock(time_ns);
                }
                // The host says the time again a second after the start: by then the helper has had its turn.
                self.thaw_overdue();
            }
            Request::Forget(number) => {
                let alive = |process: &Process| process.running().is_some() || process.is_queued();
                if self.processes.get(&number).is_some_and(alive) {
                    return Err(format!("process {number} still runs and cannot be forgotten"));
                }
                self.processes.remove(&number);
            }
            Request::StartRunner(start) => return self.start_runner(start),
            Request::Freeze(freeze) => return self.freeze(&freeze),
            Request::Dial(number, port) => {
                self.ground.as_ref().map_err(|why| why.clone())?;
                let watch = |socket: BorrowedFd<'_>| self.events.watch(socket, Source::Carrier(number));
                return self.carriers.dial(number, port, watch, |header, why| self.session.send(header, why));
            }
            Request::Carry(number, offset, bytes) => return self.carriers.receive(number, offset, &bytes),
            Request::CarryEof(number, offset) => return self.carriers.end(number, offset),
            Request::Carried(number, offset) => return self.carriers.taken(number, offset),
            Request::Cut(number) => return self.carriers.cut(number),
        }
        Ok(())
    }

    fn hello(&mut self, hello: &Hello) -> Result<(), String> {
        self.thaw_overdue();
        let ground = self.ground.as_mut().map_err(|why| why.clone())?;
        self.restored |= ground.freezer.as_mut().is_some_and(Freezer::restored);
        self.alert.rest();
        ground.identity.take(hello)?;
        if std::mem::take(&mut self.restored) {
            self.tell_of_restore();
            self.alert.stay(FIRST_START);
        }
        let ground = self.ground.as_ref().map_err(|why| why.clone())?;
        let uptime = clock_gettime(ClockId::Boottime);
        let ack = HelloAck {
            version: VERSION,
            kernel: ground.held.kernel.clone(),
            uptime_ns: uptime.tv_sec as u64 * 1_000_000_000 + uptime.tv_nsec as u64,
            processes: self.processes.iter().map(|(number, process)| process.status(*number)).collect(),
        };
        self.session.send_message(Kind::HelloAck, 0, &message::encode(&ack));
        Ok(())
    }

    /// Lets the processes go on and tells those that want to know; nothing in a guest that has only a runner.
    fn tell_of_restore(&mut self) {
        let Ok(Ground { still, hooks, freezer, .. }) = &mut self.ground else { return };
        let nobody = still.is_empty();
        still.go_on();
        let Some(hooks) = hooks.as_mut().filter(|hooks| !nobody || !hooks.is_empty()) else { return };
        // Who writes to the layer before it answers would wait for the thaw, and the agent for the answer.
        if let Some(Err(error)) = freezer.as_mut().map(Freezer::thaw_now) {
            console(&format!("could not thaw the layer: {error}"));
        }
        hooks.restored(|connection| self.events.watch(connection, Source::Hook));
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
        } else if let Some(code) = &start.code {
            self.start_job(number, start, code)?;
        } else {
            self.ooms = ground.held.ooms.count();
            let watch = |fd: BorrowedFd<'_>, role| self.events.watch(fd, Source::Pipe(number, role));
            let spawned = spawn(start, &ground.held, watch);
            self.processes.insert(number, Process::new(start.token.clone(), spawned, self.ooms));
        }
        self.alert.rest();
        self.answer_start(number);
        // Not before the process: it has the processor first.
        self.thaw_soon();
        Ok(())
    }

    /// The layer is to be thawed and nobody is at it yet.
    pub(crate) fn thaw_is_due(&self) -> bool {
        self.ground.as_ref().is_ok_and(|ground| ground.freezer.as_ref().is_some_and(Freezer::is_due))
    }

    /// Thaws what the helper should have thawed by now.
    fn thaw_overdue(&mut self) {
        if let Ok(Ground { freezer: Some(freezer), .. }) = &mut self.ground
            && let Err(error) = freezer.thaw_overdue()
        {
            console(&format!("could not thaw the layer: {error}"));
        }
    }

    /// Has the layer thawed if that is due. A failure leaves it due.
    pub(crate) fn thaw_soon(&mut self) {
        if let Ok(Ground { freezer: Some(freezer), .. }) = &mut self.ground
            && let Err(error) = freezer.thaw_soon()
        {
            console(&format!("could not thaw the layer: {error}"));
        }
    }

    /// Freezes the layer and says so, or why not.
    fn freeze(&mut self, wanted: &Freeze) -> Result<(), String> {
        // So that the heap need not grow first thing in a clone.
        drop(std::hint::black_box(vec![1_u8; SPARE_HEAP]));
        let ground = self.ground.as_mut().map_err(|why| why.clone())?;
        self.ooms = ground.held.ooms.count();
        let frozen = freeze(ground, &self.runner, wanted);
        if frozen.is_err() && !ground.freezer.as_ref().is_some_and(Freezer::is_frozen) {
            ground.still.go_on();
        }
        // Who connected before is told of the restore.
        self.hook_news();
        if frozen.is_ok() {
            self.alert.stay(SNAPSHOT);
        }
        self.session.send(Header::new(Kind::Frozen, 0), frozen.err().unwrap_or_default().as_bytes());
        Ok(())
    }

    /// Processes that want to hear of a restore came or went.
    pub(crate) fn hook_news(&mut self) {
        if let Ok(Ground { hooks: Some(hooks), .. }) = &mut self.ground {
            hooks.news(|connection| self.events.watch(connection, Source::Hook));
        }
    }

    /// Queues an end.
    pub(crate) fn send_end(&mut self, number: u32, end: &End) {
        self.session.send(Header::new(Kind::Ended, number), &message::encode(end));
    }
}

/// Stops all processes but those that wait for work, then freezes the layer; or says why that is not done.
fn freeze(ground: &mut Ground, runner: &Runner, wanted: &Freeze) -> Result<(), String> {
    let freezer = ground.freezer.as_mut().ok_or("there is no layer to freeze")?;
    let spared = runner.waiting().chain(freezer.helper()).filter_map(|pid| i32::try_from(pid).ok());
    let spared: Vec<i32> = spared.collect();
    ground.still.stop(&ground.held.proc, &spared).map_err(|error| error.to_string())?;
    ground.identity.settle(wanted)?;
    freezer.freeze().map_err(|error| format!("could not freeze the layer: {error}"))
}
