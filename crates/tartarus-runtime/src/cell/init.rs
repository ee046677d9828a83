//! The first process of a jail's process namespace, between the supervisor and the jailer.
//!
//! A change of user takes away the signal that ends a process with its parent, and the jailer changes its user after all
//! that can be arranged here. So the supervisor's child is a process that never does: when it ends, the kernel ends
//! everything in its namespace.

use std::io;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, set_no_new_privs};

use super::LastSteps;
use super::enter::{bound, keep, step};

/// Exit codes above this one name the signal that ended the hypervisor: the first process of a namespace cannot end by
/// a signal of its own. Firecracker's own codes go up to some 160.
pub(crate) const SIGNALLED: i32 = 192;

/// Goes on in a second process of the namespace. The first stays behind, holding nothing, and ends when that one does,
/// with its exit code. Only for a child between fork and exec, whose program has one thread.
pub(super) fn stay_behind() -> io::Result<()> {
    // SAFETY: this process has one thread, so that no lock that the other inherits is held.
    match unsafe { libc::fork() } {
        0 => Ok(()),
        other if other > 0 => stand_for(other),
        _ => step("its first process", Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))),
    }
}

/// Waits for process `child`, and for all that its namespace leaves to this one.
fn stand_for(child: libc::pid_t) -> ! {
    // It needs no privilege for what it does; it keeps its user, so that the hypervisor, which has another, can neither
    // look into it nor signal it.
    let alone = rustix::thread::set_name(c"jail-init").map_err(io::Error::from);
    let alone = alone.and_then(|()| bound(CapabilitySet::empty())).and_then(|()| keep(CapabilitySet::empty()));
    let alone = alone.and_then(|()| step("no new privileges", set_no_new_privs(true)));
    if alone.and_then(|()| LastSteps::end_with_supervisor()).is_err() {
        exit(1);
    }
    // What the hypervisor works with must not outlive it, nor the pipe by which the supervisor waits for the exec. And
    // no folder is kept busy.
    // SAFETY: system calls on numbers; nothing in this process uses a descriptor from here on.
    unsafe {
        libc::close_range(0, libc::c_uint::MAX, 0);
        libc::chdir(c"/".as_ptr());
    }
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for one.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
        if ended == child {
            exit(if libc::WIFSIGNALED(status) {
                SIGNALLED + libc::WTERMSIG(status)
            } else {
                libc::WEXITSTATUS(status)
            });
        }
        if ended < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            exit(1);
        }
    }
}

/// At once: nothing that its program would do at its end is this process's.
fn exit(code: i32) -> ! {
    // SAFETY: it has no preconditions.
    unsafe { libc::_exit(code) }
}
