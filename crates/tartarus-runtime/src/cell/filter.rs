//! Which system calls a hypervisor may make, and why. It is Tartarus's own filter, beside QEMU's: that one refuses what is
//! known to be bad, this one whatever is not known to be needed.
//!
//! A call that is not listed fails as one does that the kernel does not know, so that libraries take their older way.
//! Written down after what Debian's QEMU 7.2 was seen to call (cold boot, restore, pause, save, disks of both kinds), with the
//! calls that other builds take in their place.

use std::collections::BTreeMap;
use std::io;

use libc as c;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is,
    SeccompCondition as Condition, SeccompFilter, SeccompRule as Rule, TargetArch,
};

/// Allowed with any arguments.
const ALLOWED: &[(&[c::c_long], &str)] = &[
    (&[c::SYS_execve], "the way in; from then on QEMU's own filter refuses it, and nothing else is there to run"),
    (&[c::SYS_arch_prctl, c::SYS_set_tid_address, c::SYS_set_robust_list, c::SYS_rseq], "how a thread begins"),
    (&[c::SYS_exit, c::SYS_exit_group], "how it ends"),
    (
        &[c::SYS_brk, c::SYS_mmap, c::SYS_munmap, c::SYS_mremap, c::SYS_mprotect, c::SYS_madvise],
        "its memory and the guest's",
    ),
    (&[c::SYS_mlock, c::SYS_msync, c::SYS_mincore], "the same, on some hosts and builds"),
    (&[c::SYS_memfd_create], "code that is translated is mapped twice, to write and to run"),
    (
        &[c::SYS_open, c::SYS_openat, c::SYS_close, c::SYS_close_range],
        "libraries, firmware, what it was handed by /proc/self/fd",
    ),
    (&[c::SYS_dup, c::SYS_dup2, c::SYS_dup3, c::SYS_fcntl], "descriptors of /dev/fdset; locks and flags of files"),
    (
        &[c::SYS_access, c::SYS_faccessat, c::SYS_faccessat2, c::SYS_readlink, c::SYS_readlinkat],
        "looking for those files",
    ),
    (&[c::SYS_stat, c::SYS_fstat, c::SYS_lstat, c::SYS_newfstatat, c::SYS_statx], "what and how large they are"),
    (
        &[c::SYS_statfs, c::SYS_fstatfs, c::SYS_getdents64, c::SYS_getcwd],
        "the page size of memory files; relative names",
    ),
    (
        &[c::SYS_read, c::SYS_readv, c::SYS_pread64, c::SYS_preadv, c::SYS_preadv2, c::SYS_lseek],
        "disks, firmware, state",
    ),
    (&[c::SYS_write, c::SYS_writev, c::SYS_pwrite64, c::SYS_pwritev, c::SYS_pwritev2], "disks, console, state"),
    (&[c::SYS_fsync, c::SYS_fdatasync, c::SYS_sync_file_range, c::SYS_fadvise64], "a guest that flushes its disk"),
    (&[c::SYS_ftruncate, c::SYS_fallocate], "a layer that grows, and blocks that a guest discards"),
    (
        &[c::SYS_recvmsg, c::SYS_recvfrom, c::SYS_sendmsg, c::SYS_sendto, c::SYS_shutdown],
        "its ports, handed over as sockets",
    ),
    (&[c::SYS_accept, c::SYS_accept4, c::SYS_listen, c::SYS_getsockname, c::SYS_getpeername], "whoever comes to them"),
    (&[c::SYS_getsockopt, c::SYS_setsockopt], "and who that is"),
    (&[c::SYS_poll, c::SYS_ppoll, c::SYS_select, c::SYS_pselect6], "waiting"),
    (&[c::SYS_epoll_create1, c::SYS_epoll_ctl, c::SYS_epoll_wait, c::SYS_epoll_pwait], "the same"),
    (&[c::SYS_eventfd2, c::SYS_pipe2, c::SYS_signalfd4], "threads that wake each other"),
    (&[c::SYS_timerfd_create, c::SYS_timerfd_settime, c::SYS_nanosleep, c::SYS_clock_nanosleep], "timers"),
    (&[c::SYS_timer_create, c::SYS_timer_settime, c::SYS_timer_delete], "the same, in builds with another clock"),
    (
        &[c::SYS_clock_gettime, c::SYS_clock_getres, c::SYS_gettimeofday, c::SYS_time],
        "the time, where the vDSO has none",
    ),
    (&[c::SYS_futex, c::SYS_membarrier, c::SYS_sched_yield], "threads that wait for each other"),
    (&[c::SYS_rt_sigaction, c::SYS_rt_sigprocmask, c::SYS_rt_sigreturn, c::SYS_sigaltstack], "signals to itself"),
    (&[c::SYS_rt_sigtimedwait, c::SYS_rt_sigpending, c::SYS_rt_sigsuspend, c::SYS_restart_syscall], "the same"),
    (
        &[c::SYS_tgkill, c::SYS_tkill],
        "a kick of a processor's thread; abort(). In its cell it sees no process but itself",
    ),
    (
        &[c::SYS_getpid, c::SYS_gettid, c::SYS_getppid, c::SYS_getpgrp, c::SYS_uname, c::SYS_sysinfo],
        "who and where it is",
    ),
    (&[c::SYS_getuid, c::SYS_geteuid, c::SYS_getgid, c::SYS_getegid, c::SYS_getrusage, c::SYS_times], "the same"),
    (
        &[c::SYS_sched_getaffinity, c::SYS_sched_getparam, c::SYS_sched_getscheduler, c::SYS_getcpu],
        "processors there are",
    ),
    (&[c::SYS_get_mempolicy], "memory there is"),
    (&[c::SYS_getrandom], "hash seeds, stack guards"),
    (&[c::SYS_getrlimit], "stack sizes"),
    (&[c::SYS_seccomp], "QEMU's own filter, which can only take more away"),
];

/// Of `ioctl`: those of terminals fail on what it has; those of a TAP only concern one that it was handed; what remains is
/// KVM's own type, which needs the device.
const IOCTLS: &[(u64, &str)] = &[
    (c::TCGETS, "whether its console is a terminal"),
    (c::TCSETS, "the same"),
    (c::TIOCGWINSZ, "the same"),
    (c::FIONREAD, "how much a socket has"),
    (c::FIONBIO, "a socket that does not block"),
    (0x1277, "the sector size of a disk (BLKSSZGET)"),
    (0x8008_1272_u32 as u64, "the size of one (BLKGETSIZE64)"),
    (0x8004_1270_u32 as u64, "its block size (BLKBSZGET)"),
    (c::TUNGETIFF, "whether its TAP's packets have a header of offloads"),
    (c::TUNGETVNETHDRSZ, "how long that header is"),
    (c::TUNSETVNETHDRSZ, "the same as the guest's driver has it"),
    (c::TUNSETOFFLOAD, "which packets the guest's driver takes unfinished"),
    (c::TUNSETSNDBUF, "how much of it may wait in the host"),
];
/// The type of KVM's requests, in bits 8 to 15.
const KVM: (u64, u64) = (0xff00, 0xae00);

/// Of `prctl`.
const PRCTLS: &[(c::c_int, &str)] = &[
    (c::PR_SET_NAME, "names of threads"),
    (c::PR_SET_TIMERSLACK, "timers that are on time"),
    (c::PR_MCE_KILL, "broken memory of the host is told to the guest that has it"),
    (c::PR_SET_NO_NEW_PRIVS, "before QEMU's own filter"),
    (c::PR_SET_SECCOMP, "the same, in older builds"),
    (c::PR_GET_SECCOMP, "the same"),
    (c::PR_GET_DUMPABLE, "what libraries ask"),
];

/// The filter, ready to be put on.
pub(crate) fn program() -> io::Result<BpfProgram> {
    build().map_err(io::Error::other)
}

fn build() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<Rule>> = BTreeMap::new();
    for call in ALLOWED.iter().flat_map(|(calls, _)| *calls) {
        rules.insert(*call, Vec::new());
    }
    let is = |argument, width, how, value| Rule::new(vec![Condition::new(argument, width, how, value)?]);
    // Threads, and no process: clone3 hides its flags from a filter, and is unknown to it.
    let thread = c::CLONE_THREAD as u64;
    rules.insert(c::SYS_clone, vec![is(0, Width::Qword, Is::MaskedEq(thread), thread)?]);
    // The same by its newer name, which could set one as well, of other processes too.
    rules.insert(c::SYS_prlimit64, vec![is(2, Width::Qword, Is::Eq, 0)?]);
    let mut ioctls = vec![is(1, Width::Dword, Is::MaskedEq(KVM.0), KVM.1)?];
    for (request, _) in IOCTLS {
        ioctls.push(is(1, Width::Dword, Is::Eq, *request)?);
    }
    rules.insert(c::SYS_ioctl, ioctls);
    let of = |(option, _): &(c::c_int, &str)| is(0, Width::Dword, Is::Eq, *option as u64);
    rules.insert(c::SYS_prctl, PRCTLS.iter().map(of).collect::<Result<_, _>>()?);
    let unknown = SeccompAction::Errno(c::ENOSYS as u32);
    SeccompFilter::new(rules, unknown, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// Puts it on, for the calling thread and whatever it becomes. Only with no new privileges. Allocates nothing.
pub(crate) fn put_on(program: &BpfProgram) -> rustix::io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| rustix::io::Errno::INVAL)?;
    let program = c::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program is `length` instructions long and lives until the call is over; the kernel copies it.
    let done = unsafe { c::syscall(c::SYS_seccomp, c::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if done < 0 {
        Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_listed_twice_and_each_has_a_reason() {
        let calls: Vec<_> = ALLOWED.iter().flat_map(|(calls, _)| *calls).collect();
        let unique: std::collections::BTreeSet<_> = calls.iter().collect();
        assert_eq!(unique.len(), calls.len());
        let ioctls = IOCTLS.iter().map(|(_, why)| why);
        let mut reasons = ALLOWED.iter().map(|(_, why)| why).chain(ioctls).chain(PRCTLS.iter().map(|(_, why)| why));
        assert!(reasons.all(|why| !why.is_empty()));
        assert!(build().unwrap().len() > calls.len());
    }

    /// Names, owners and filters of a TAP are its namespace's; a queue more would be a TAP more.
    #[test]
    fn of_a_tap_only_its_packets_are_its_own() {
        // By type 'T' (0x54) and number: those of terminals have numbers below 200.
        let of_taps = IOCTLS.iter().filter(|(request, _)| request & 0xff00 == 0x5400 && request & 0xff >= 200);
        let mut numbers: Vec<u64> = of_taps.map(|(request, _)| request & 0xff).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [208, 210, 212, 215, 216]);
        for request in [
            c::TUNSETIFF,
            c::TUNSETOWNER,
            c::TUNSETGROUP,
            c::TUNSETPERSIST,
            c::TUNSETLINK,
            c::TUNATTACHFILTER,
            c::TUNDETACHFILTER,
            c::TUNSETQUEUE,
            c::TUNSETIFINDEX,
            c::TUNSETTXFILTER,
            // Of the other byte order's hosts and guests.
            c::TUNSETVNETLE,
            c::TUNSETVNETBE,
        ] {
            assert!(IOCTLS.iter().all(|(allowed, _)| *allowed != request), "{request:#x}");
        }
    }

    #[test]
    fn what_would_reach_out_of_a_cell_is_not_listed() {
        let calls: Vec<_> = ALLOWED.iter().flat_map(|(calls, _)| *calls).collect();
        for call in [
            c::SYS_socket,
            c::SYS_connect,
            c::SYS_ptrace,
            c::SYS_process_vm_readv,
            c::SYS_unshare,
            c::SYS_setns,
            c::SYS_mount,
            c::SYS_bpf,
            c::SYS_perf_event_open,
            c::SYS_io_uring_setup,
            c::SYS_userfaultfd,
            c::SYS_keyctl,
            c::SYS_fork,
            c::SYS_vfork,
            c::SYS_clone3,
            c::SYS_kill,
            c::SYS_chmod,
            c::SYS_chroot,
            c::SYS_shmat,
            c::SYS_msgget,
        ] {
            assert!(!calls.contains(&&call), "{call}");
        }
    }
}
