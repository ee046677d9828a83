//! Makes this guest itself: clock, randomness and host name, as the host's hello gives them.
//!
//! `/etc` belongs to the image. It is opened so that no link leads out of it into procfs, and files in it are replaced
//! rather than written through; an image that allows neither goes without them.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_settime};
use tartarus_guest::Hello;

use crate::console;

/// `RNDADDENTROPY`, `_IOW('R', 0x03, int[2])`.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
/// `RNDRESEEDCRNG`, `_IO('R', 0x07)`.
const RESEED: libc::Ioctl = 0x5207;
/// Bytes mixed in at once.
const SEED: usize = 256;

/// The identity could not be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// Not a name.
    #[error("the host name {0:?} is not 1 to 63 letters, digits, dots or hyphens")]
    Name(String),
    /// Beyond what a clock holds.
    #[error("the time {0} ns is out of range")]
    Time(u64),
    /// A system call.
    #[error("could not set the guest's {0}: {1}")]
    Step(&'static str, Errno),
}

/// Takes over identities, one per session.
pub(crate) struct Identity {
    /// Held open, because a command may have removed the device since.
    random: OwnedFd,
    hostname: String,
}

/// What the kernel's `rand_pool_info` looks like.
#[repr(C)]
struct Seed {
    bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; SEED],
}

/// Sets the clock to a time in nanoseconds since the Unix epoch.
pub(crate) fn set_clock(time_ns: u64) -> Result<(), IdentityError> {
    let seconds = i64::try_from(time_ns / 1_000_000_000).map_err(|_| IdentityError::Time(time_ns))?;
    let now = Timespec { tv_sec: seconds, tv_nsec: (time_ns % 1_000_000_000) as i64 };
    clock_settime(ClockId::Realtime, now).map_err(|error| IdentityError::Step("clock", error))
}

impl Identity {
    /// Opens the random device.
    pub(crate) fn new() -> Result<Self, Errno> {
        let random = open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { random, hostname: String::new() })
    }

    /// Takes over what `hello` gives. The files of a host name are written only when it changes.
    pub(crate) fn take(&mut self, hello: &Hello) -> Result<(), IdentityError> {
        if !is_hostname(&hello.hostname) {
            return Err(IdentityError::Name(hello.hostname.chars().take(64).collect()));
        }
        set_clock(hello.time_ns)?;
        self.mix(&hello.entropy).map_err(|error| IdentityError::Step("randomness", error))?;
        if self.hostname != hello.hostname {
            rustix::system::sethostname(hello.hostname.as_bytes())
                .map_err(|error| IdentityError::Step("host name", error))?;
            self.hostname.clone_from(&hello.hostname);
            name_files(&self.hostname);
        }
        Ok(())
    }

    fn mix(&self, entropy: &[u8]) -> Result<(), Errno> {
        if entropy.is_empty() {
            return Ok(());
        }
        for part in entropy.chunks(SEED) {
            let size = part.len() as libc::c_int;
            let mut seed = Seed { bits: size * 8, size, bytes: [0; SEED] };
            seed.bytes[..part.len()].copy_from_slice(part);
            // SAFETY: the descriptor is the random device; `seed` has the layout that this request reads and outlives it.
            checked(unsafe { libc::ioctl(self.random.as_raw_fd(), ADD_ENTROPY, &raw const seed) })?;
        }
        // SAFETY: the descriptor is the random device; the request takes no argument.
        checked(unsafe { libc::ioctl(self.random.as_raw_fd(), RESEED) })
    }
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request reads an `ifreq`, which outlives it.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

fn checked(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}

fn is_hostname(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(allowed)
}

fn name_files(hostname: &str) {
    let hosts = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n");
    for (file, content) in [("hosts", hosts), ("hostname", format!("{hostname}\n"))] {
        if let Err(error) = replace_in_etc(file, content.as_bytes()) {
            console(&format!("/etc/{file} is left as the image has it: {error}"));
        }
    }
}

fn replace_in_etc(file: &str, content: &[u8]) -> std::io::Result<()> {
    match mkdirat(CWD, "/etc", Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let etc = openat2(CWD, "/etc", flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?;
    match unlinkat(&etc, file, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let made = openat(&etc, file, flags, Mode::from_raw_mode(0o644))?;
    File::from(made).write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_cannot_break_out_of_a_line() {
        for good in ["a", "sb-1.example", &"x".repeat(63)] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "a b", "a\nb", "a_b", "ä", "a\0", &"x".repeat(64)] {
            assert!(!is_hostname(bad), "{bad:?}");
        }
    }
}
