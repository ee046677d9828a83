//! The peer of a jailed machine's card: Firecracker has no card without one, and opens it by its name.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags};

/// Its name, in the network namespace of each machine.
pub(crate) const TAP: &CStr = c"tap0";

/// Makes a TAP for one user in this process's network namespace. It stays when this process ends, and goes with the
/// namespace. It is left down and without an address: nothing passes.
pub(super) fn make(uid: u32) -> io::Result<()> {
    let tun = rustix::fs::open(c"/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: an `ifreq` is numbers and a union of numbers and pointers that nobody follows, for all of which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.to_bytes()) {
        *to = *from as libc::c_char;
    }
    // As Firecracker opens it.
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the first call reads and writes an `ifreq` that lives until it returns; the others take numbers.
    let failed = unsafe {
        libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) < 0
            || libc::ioctl(tun.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(uid)) < 0
            || libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the TAP that is there to one user. It must be there: one that was made now would have neither address nor rules.
pub(super) fn give(uid: u32) -> io::Result<()> {
    // SAFETY: a name that ends, which is only read.
    if unsafe { libc::if_nametoindex(TAP.as_ptr()) } == 0 {
        return Err(io::Error::last_os_error());
    }
    make(uid)
}
