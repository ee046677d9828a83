//! Waits for devices: the kernel's uevents wake it, so that nothing is polled.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::time::Timespec;

/// The kernel's own group of uevents.
const KERNEL: u32 = 1;
/// How long a device may take to appear.
const PATIENCE: Duration = Duration::from_secs(2);

/// A subscription to uevents. Made before the drivers are loaded, so that none is missed.
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    /// Subscribes.
    pub(crate) fn subscribe() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(socket))
    }

    /// Looks with `look` now and after every event, until it finds something or two seconds have passed.
    pub(crate) fn wait_for<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.clear();
            if let Some(found) = look() {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            // An error is an interruption at worst; the deadline holds.
            let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout));
        }
    }

    fn clear(&self) {
        let mut event = [0; 4096];
        // An overrun is reported once as an error and means nothing here: everything is looked at again anyway.
        while !matches!(read(&self.0, &mut event), Err(Errno::AGAIN) | Ok(0)) {}
    }
}
