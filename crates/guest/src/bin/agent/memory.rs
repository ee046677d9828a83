//! Out of memory: counts what the kernel killed, and makes sure that it does kill.
//!
//! A kernel that must read program text back from a squashfs while nothing is free may spin for minutes: those reads
//! allocate in a way that never wakes the out-of-memory killer. An ordinary allocation does.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SeekFrom, fallocate, memfd_create, open, seek};
use rustix::io::{Errno, pread, read, write};

/// Some process waited for memory half a second out of one: what the kernel is to report, in microseconds.
const TRIGGER: &[u8] = b"some 500000 1000000\0";
/// What is allocated then, bytes: more than the kernel keeps back.
const PROBE: u64 = 4 * 1024 * 1024;

/// Asks the kernel to report when memory is short; an error where it cannot.
pub(crate) fn pressure() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let trigger = open("/proc/pressure/memory", flags, Mode::empty())?;
    write(&trigger, TRIGGER)?;
    Ok(trigger)
}

/// Allocates memory and gives it back. Where there is none, the kernel kills the largest process for it; the agent itself
/// is exempt. Where there is some, nothing happens.
pub(crate) fn relieve() {
    let probe = memfd_create("probe", MemfdFlags::CLOEXEC);
    // A failure is a shortage that the kernel has dealt with.
    let _ = probe.and_then(|probe| fallocate(probe, FallocateFlags::empty(), 0, PROBE));
}

/// The kernel's count of processes that it killed for want of memory.
#[derive(Debug)]
pub(crate) struct OomKills {
    vmstat: OwnedFd,
    /// The kernel's log, at its end when the count was read last. It has a line of each kill, and to look whether there is
    /// any line costs a fresh clone a fraction of what the counters do.
    log: Option<OwnedFd>,
}

impl OomKills {
    /// Opens what it is read from.
    pub(crate) fn open() -> Result<Self, Errno> {
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let log = open("/dev/kmsg", read | OFlags::NONBLOCK, Mode::empty());
        Ok(Self { vmstat: open("/proc/vmstat", read, Mode::empty())?, log: log.ok() })
    }

    /// Out of `/proc/vmstat`; 0 where it cannot be read.
    pub(crate) fn count(&self) -> u64 {
        // First: the line of a kill comes after its count.
        if let Some(log) = &self.log {
            let _ = seek(log, SeekFrom::End(0));
        }
        let mut text = [0; 16 * 1024];
        let mut length = 0;
        while let Ok(count @ 1..) = pread(&self.vmstat, &mut text[length..], length as u64) {
            length += count;
        }
        parse(&String::from_utf8_lossy(&text[..length]))
    }

    /// The same, where it was `before`. A kill of this very moment may be missed, whose line is still to come: for an end
    /// that others than the kernel tell of.
    pub(crate) fn since(&self, before: u64) -> u64 {
        match self.log.as_ref().map(|log| read(log, &mut [0; 1])) {
            Some(Err(Errno::AGAIN)) => before,
            _ => self.count(),
        }
    }
}

fn parse(vmstat: &str) -> u64 {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_whether_there_is_anything_to_count() {
        let count = || OomKills { vmstat: open("/dev/null", OFlags::RDONLY, Mode::empty()).unwrap(), log: None };
        let (quiet, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut kills = OomKills { log: Some(quiet), ..count() };
        assert_eq!(kills.since(7), 7, "nothing was written");
        write(&writer, b"6,1,1,-;a line").unwrap();
        assert_eq!(kills.since(7), 0, "what vmstat says here");
        kills.log = None;
        assert_eq!(kills.since(7), 0);
    }

    #[test]
    fn the_count_is_found() {
        assert_eq!(parse("pgfault 3\noom_kill 17\noom_kill_x 4\n"), 17);
        assert_eq!(parse("pgfault 3\n"), 0);
        assert_eq!(parse("oom_kill x\n"), 0);
    }
}
