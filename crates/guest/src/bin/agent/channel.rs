//! Finds the guest channel that this hypervisor gave: a virtio-serial port with the agreed name, or else a vsock device.
//!
//! Neither is waited for where the other one is: what devices there are is known before a port has its name.

use std::fs;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open as open_file};
use tartarus_guest::{PORT_NAME, VSOCK_PORT};

use crate::errors::{BootError, During};
use crate::modules;
use crate::port::Port;
use crate::uevents::Uevents;
use crate::vsock;

/// Numbers of virtio devices: what may have ports with names, and a vsock.
const CONSOLE: &str = "0x0003";
const VSOCK: &str = "0x0013";

/// What there is.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A port with the agreed name, by its device.
    Serial(String),
    /// A vsock device.
    Vsock,
}

/// Opens the channel; it does not block, and programs that are started do not get it.
pub(crate) fn open(uevents: &Uevents) -> Result<Port, BootError> {
    let sys = Path::new("/sys");
    // Last, a machine whose ports are for something else.
    let found = uevents.wait_for(|| find(sys)).or_else(|| has(sys, VSOCK).then_some(Found::Vsock));
    match found.ok_or(BootError::NoPort(PORT_NAME))? {
        Found::Serial(device) => {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            let port = open_file(device.as_str(), flags, Mode::empty());
            Ok(Port::serial(port.during(|| format!("open the guest channel {device}"))?))
        }
        Found::Vsock => {
            modules::load(modules::VSOCK)?;
            let listener = vsock::listen(VSOCK_PORT);
            let listener =
                listener.during(|| format!("listen on the vsock port {VSOCK_PORT} (has the kernel vsock?)"))?;
            Ok(Port::listening(listener, vsock::is_host))
        }
    }
}

/// What is to be used, as far as it can be known by now.
fn find(sys: &Path) -> Option<Found> {
    if let Some(device) = named_port(sys) {
        return Some(Found::Serial(device));
    }
    (!has(sys, CONSOLE) && has(sys, VSOCK)).then_some(Found::Vsock)
}

fn named_port(sys: &Path) -> Option<String> {
    for entry in fs::read_dir(sys.join("class/virtio-ports")).ok()?.flatten() {
        // The name comes a moment after the port, with an event of its own.
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Some(format!("/dev/{}", entry.file_name().to_str()?));
        }
    }
    None
}

/// Whether there is a virtio device of this number, also one without a driver.
fn has(sys: &Path, number: &str) -> bool {
    let devices = fs::read_dir(sys.join("bus/virtio/devices")).into_iter().flatten().flatten();
    devices
        .map(|entry| fs::read_to_string(entry.path().join("device")))
        .any(|read| read.is_ok_and(|found| found.trim_end() == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/sys` with these devices and these names of ports.
    struct Sys(std::path::PathBuf);

    impl Sys {
        fn new(test: &str, devices: &[&str], ports: &[&str]) -> Self {
            let sys = Self(std::env::temp_dir().join(format!("sys-{test}-{}", std::process::id())));
            for (number, kind) in devices.iter().enumerate() {
                sys.file(&format!("bus/virtio/devices/virtio{number}/device"), kind);
            }
            for (number, name) in ports.iter().enumerate() {
                sys.file(&format!("class/virtio-ports/vport0p{number}/name"), name);
            }
            sys
        }

        fn file(&self, path: &str, content: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        }
    }

    impl Drop for Sys {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_port_is_taken_where_there_is_one_and_waited_for_where_there_may_be() {
        let port = Some(Found::Serial("/dev/vport0p1".to_owned()));
        let (disk, other) = ("0x0002", "org.other");
        for (test, devices, ports, expected) in [
            ("qemu", [disk, CONSOLE].as_slice(), [other, PORT_NAME].as_slice(), port),
            ("early", &[disk, CONSOLE], &[""], None),
            ("firecracker", &[disk, VSOCK], &[], Some(Found::Vsock)),
            ("both", &[VSOCK, CONSOLE], &[], None),
            ("none", &[disk], &[], None),
            ("nothing", &[], &[], None),
        ] {
            let sys = Sys::new(test, devices, ports);
            assert_eq!(find(&sys.0), expected, "{test}");
        }
    }
}
