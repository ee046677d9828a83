//! The guest channel: the virtio-serial port with the agreed name.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};
use tartarus_guest::PORT_NAME;

use crate::errors::{BootError, During};
use crate::uevents::Uevents;

/// Opens the port; it does not block, and programs that are started do not get it.
pub(crate) fn open_port(uevents: &Uevents) -> Result<OwnedFd, BootError> {
    let device = uevents.wait_for(find).ok_or(BootError::NoPort(PORT_NAME))?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    open(device.as_str(), flags, Mode::empty()).during(|| format!("open the guest channel {device}"))
}

fn find() -> Option<String> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        // The name comes a moment after the port, with an event of its own.
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Some(format!("/dev/{}", entry.file_name().to_str()?));
        }
    }
    None
}
