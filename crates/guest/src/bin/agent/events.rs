//! What the agent waits for: one epoll, always edge-triggered, and the signal descriptor that tells of ended children.
//!
//! Edge-triggered because a port without a host is readable for ever: a level-triggered wait would spin.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, read};
use rustix::time::Timespec;
use tartarus_guest::Stream;

/// Most events taken at once.
const BATCH: usize = 64;

/// What a pipe is to its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Standard input.
    Stdin,
    /// An output stream.
    Output(Stream),
}

/// Something that has news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The guest channel.
    Port,
    /// A child ended.
    Children,
    /// Memory is short.
    Pressure,
    /// A pipe of a process.
    Pipe(u32, Role),
    /// A pipe that is only emptied, by its descriptor.
    Drain(RawFd),
    /// The runner's zygote.
    Runner(RunnerPart),
    /// A descriptor of a spare, also of the job that it became; by the spare's number.
    Spare(u32, SparePart),
    /// The socket for processes that want to hear of a restore, or one of its connections.
    Hook,
    /// The socket of a carried connection.
    Carrier(u32),
}

/// What of a zygote has news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunnerPart {
    /// Its socket.
    Control,
    /// The pipe that is its standard output and standard error.
    Output,
}

/// What of a spare has news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SparePart {
    /// The pipe that is an output stream.
    Output(Stream),
    /// Its socket.
    Socket,
}

impl Source {
    fn encode(self) -> u64 {
        match self {
            Self::Port => 0,
            Self::Children => 1,
            Self::Pipe(process, Role::Stdin) => 2 | u64::from(process) << 3,
            Self::Pipe(process, Role::Output(Stream::Stdout)) => 3 | u64::from(process) << 3,
            Self::Pipe(process, Role::Output(Stream::Stderr)) => 4 | u64::from(process) << 3,
            Self::Pressure => 6,
            Self::Drain(fd) => 5 | (fd as u64) << 3,
            Self::Hook => 7,
            Self::Runner(RunnerPart::Control) => 7 | 1 << 3,
            Self::Runner(RunnerPart::Output) => 7 | 2 << 3,
            Self::Spare(spare, SparePart::Output(Stream::Stdout)) => 7 | 3 << 3 | u64::from(spare) << 6,
            Self::Spare(spare, SparePart::Output(Stream::Stderr)) => 7 | 4 << 3 | u64::from(spare) << 6,
            Self::Spare(spare, SparePart::Socket) => 7 | 5 << 3 | u64::from(spare) << 6,
            Self::Carrier(number) => 7 | 6 << 3 | u64::from(number) << 6,
        }
    }

    fn decode(number: u64) -> Option<Self> {
        let (process, spare) = ((number >> 3) as u32, (number >> 6) as u32);
        Some(match number & 7 {
            0 => Self::Port,
            1 => Self::Children,
            2 => Self::Pipe(process, Role::Stdin),
            3 => Self::Pipe(process, Role::Output(Stream::Stdout)),
            4 => Self::Pipe(process, Role::Output(Stream::Stderr)),
            5 => Self::Drain((number >> 3) as RawFd),
            6 => Self::Pressure,
            _ => match number >> 3 & 7 {
                0 => Self::Hook,
                1 => Self::Runner(RunnerPart::Control),
                2 => Self::Runner(RunnerPart::Output),
                3 => Self::Spare(spare, SparePart::Output(Stream::Stdout)),
                4 => Self::Spare(spare, SparePart::Output(Stream::Stderr)),
                5 => Self::Spare(spare, SparePart::Socket),
                6 => Self::Carrier(spare),
                _ => return None,
            },
        })
    }
}

/// The epoll and the signal descriptor.
#[derive(Debug)]
pub(crate) struct Events {
    epoll: OwnedFd,
    signals: OwnedFd,
}

impl Events {
    /// Blocks SIGCHLD for the calling thread and watches for it and for the port.
    pub(crate) fn new(port: BorrowedFd<'_>) -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let signals = child_signals()?;
        let events = Self { epoll, signals };
        events.watch(events.signals.as_fd(), Source::Children)?;
        events.watch(port, Source::Port)?;
        Ok(events)
    }

    /// Watches `fd` in both directions until it is closed.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(source.encode()), flags())
    }

    /// Watches `fd` for what it receives, and not for room to send.
    pub(crate) fn listen(&self, fd: BorrowedFd<'_>, source: Source) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(source.encode()), EventFlags::IN | EventFlags::ET)
    }

    /// Watches the trigger `fd` of a pressure file.
    pub(crate) fn watch_pressure(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(Source::Pressure.encode()), EventFlags::PRI | EventFlags::ET)
    }

    /// The watched pipe is only emptied from now on.
    pub(crate) fn only_drain(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let source = Source::Drain(fd.as_raw_fd());
        epoll::modify(&self.epoll, fd, EventData::new_u64(source.encode()), flags())
    }

    /// Waits for news, not longer than `most` milliseconds.
    pub(crate) fn wait(&self, most: Option<u16>) -> Result<Vec<Source>, Errno> {
        let mut events = Vec::with_capacity(BATCH);
        let timeout = most.map(|most| Timespec { tv_sec: 0, tv_nsec: i64::from(most) * 1_000_000 });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(events.iter().filter_map(|event: &Event| Source::decode(event.data.u64())).collect())
    }

    /// Takes the signals that told of ended children, so that the next one is an edge again.
    pub(crate) fn clear_children(&self) {
        let mut infos = [0; 16 * size_of::<libc::signalfd_siginfo>()];
        while read(&self.signals, &mut infos).is_ok_and(|count| count > 0) {}
    }
}

fn flags() -> EventFlags {
    EventFlags::IN | EventFlags::OUT | EventFlags::ET
}

fn child_signals() -> Result<OwnedFd, Errno> {
    let failed = || Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set that the other calls then read; all pointers are to this local.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(failed());
        }
        libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(failed());
    }
    // SAFETY: `fd` was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let pipes = [Role::Stdin, Role::Output(Stream::Stdout), Role::Output(Stream::Stderr)];
        let pipes = pipes.into_iter().flat_map(|role| [0, 1, u32::MAX].map(|process| Source::Pipe(process, role)));
        let others = [Source::Port, Source::Children, Source::Pressure, Source::Drain(0), Source::Drain(RawFd::MAX)];
        let more = [Source::Hook, Source::Runner(RunnerPart::Control), Source::Runner(RunnerPart::Output)];
        let parts = [SparePart::Output(Stream::Stdout), SparePart::Output(Stream::Stderr), SparePart::Socket];
        let spares = parts.into_iter().flat_map(|part| [0, 1, u32::MAX].map(|spare| Source::Spare(spare, part)));
        let carriers = [0, 1, u32::MAX].map(Source::Carrier);
        for source in pipes.chain(others).chain(more).chain(spares).chain(carriers) {
            assert_eq!(Source::decode(source.encode()), Some(source));
        }
        assert_eq!(Source::decode(7 | 7 << 3), None);
    }
}
