//! The guest's peer: a TAP in the namespace of the calling thread.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::{GATEWAY_MAC, StyxError};

/// Its name in every namespace.
pub(crate) const TAP: &CStr = c"tap0";

/// Makes it, down and without an address. It lives as long as the descriptor, and holds the namespace.
pub(crate) fn make() -> Result<OwnedFd, StyxError> {
    let tun = rustix::fs::open(c"/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(StyxError::system("open /dev/net/tun (load the module tun)"))?;
    // SAFETY: an `ifreq` is numbers and a union of numbers and pointers that nobody follows, for all of which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.to_bytes()) {
        *to = *from as libc::c_char;
    }
    // Without `IFF_VNET_HDR`: what is saved of a machine on such a TAP could be restored on nothing else.
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the call reads and writes an `ifreq` that lives until it returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(StyxError::system("make a TAP")(io::Error::last_os_error()));
    }
    request.ifr_ifru.ifru_hwaddr.sa_family = libc::ARPHRD_ETHER;
    // SAFETY: whatever is in the union is numbers, for which every bit pattern is valid.
    let address = unsafe { &mut request.ifr_ifru.ifru_hwaddr.sa_data };
    for (to, from) in address.iter_mut().zip(GATEWAY_MAC) {
        *to = from as libc::c_char;
    }
    // SAFETY: the call reads an `ifreq` that lives until it returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::SIOCSIFHWADDR, &raw mut request) } < 0 {
        return Err(StyxError::system("give a TAP its address")(io::Error::last_os_error()));
    }
    Ok(tun)
}

/// Leaves it to a hypervisor that opens it by its name, `tap0`: it stays, and is open nowhere. Its namespace is held by
/// [`crate::Space::namespace`] alone then.
///
/// # Errors
/// When the kernel does not let it stay.
pub fn leave_tap(tap: Arc<OwnedFd>) -> Result<(), StyxError> {
    // SAFETY: the call takes a number.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) } < 0 {
        return Err(StyxError::system("keep a TAP")(io::Error::last_os_error()));
    }
    Ok(())
}
