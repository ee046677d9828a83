//! What the host may ask of the agent, request by request.
//!
//! Part of [`Agent`], apart from its loop. An error is a rule that the host broke; it ends the session.

use std::os::fd::BorrowedFd;

use rustix::time::{ClockId, clock_gettime};
use tartarus_guest::{End, Header, Hello, HelloAck, Kind, MAX_PROCESSES, Start, VERSION, message};

use crate::agent::Agent;
use crate::events::Source;
use crate::identity::set_clock;
use crate::memory::oom_kills;
use crate::process::Process;
use crate::session::Request;
use crate::spawn::spawn;

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
            Request::Signal(number, signal) => {
                if let Some(pid) = self.processes.get(&number).and_then(Process::running) {
                    signal_group(pid, signal);
                }
            }
            Request::Clock(time_ns) => {
                // The hello set it already, a little late; a kernel that refuses now leaves it so.
                if self.ground.is_ok() {
                    let _ = set_clock(time_ns);
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
            let watch = |fd: BorrowedFd<'_>, role| self.events.watch(fd, Source::Pipe(number, role));
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

    /// Queues an end.
    pub(crate) fn send_end(&mut self, number: u32, end: &End) {
        self.session.send(Header::new(Kind::Ended, number), &message::encode(end));
    }
}

fn signal_group(pid: u32, signal: i32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    if pid > 1 {
        // SAFETY: plain system call without memory; the group is that of a child not reaped yet, so it is no other's.
        unsafe { libc::kill(-pid, signal) };
    }
}
