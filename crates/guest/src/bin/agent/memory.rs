//! Out of memory: counts what the kernel killed, and makes sure that it does kill.
//!
//! A kernel that must read program text back from a squashfs while nothing is free may spin for minutes: those reads
//! allocate in a way that never wakes the out-of-memory killer. An ordinary allocation does.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, fallocate, memfd_create, open};
use rustix::io::{Errno, pread, write};

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

/// The kernel's count of processes killed for want of memory, out of `/proc/vmstat`; 0 where it cannot be read.
pub(crate) fn oom_kills(vmstat: &OwnedFd) -> u64 {
    let mut text = [0; 16 * 1024];
    let mut length = 0;
    while let Ok(count @ 1..) = pread(vmstat, &mut text[length..], length as u64) {
        length += count;
    }
    parse(&String::from_utf8_lossy(&text[..length]))
}

fn parse(vmstat: &str) -> u64 {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found() {
        assert_eq!(parse("pgfault 3\noom_kill 17\noom_kill_x 4\n"), 17);
        assert_eq!(parse("pgfault 3\n"), 0);
        assert_eq!(parse("oom_kill x\n"), 0);
    }
}
