//! Makes this guest itself: clock, randomness, host name and machine id, as the host's hello gives them.
//!
//! Part of every restore, where each instruction runs for the first time: as little as possible happens here.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_settime};
use tartarus_guest::{Freeze, Hello, Net};

use crate::agent::Identify;
use crate::etc::EtcFiles;
use crate::network::{Card, NetworkError};

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
    /// Not an id.
    #[error("the machine id {0:?} is not 32 small hex digits")]
    MachineId(String),
    /// Beyond what a clock holds.
    #[error("the time {0} ns is out of range")]
    Time(u64),
    /// A system call.
    #[error("could not set the guest's {0}: {1}")]
    Step(&'static str, Errno),
    /// A step of its network.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Takes over identities, one per session.
pub(crate) struct Identity {
    /// Held open, because a command may have removed the device since.
    random: OwnedFd,
    hostname: String,
    files: EtcFiles,
    card: Option<Card>,
    /// Network and resolver are as the freeze made them, since when no process of the sandbox's has run.
    settled: bool,
}

/// What the kernel's `rand_pool_info` looks like.
#[repr(C)]
struct Seed {
    bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; SEED],
}

/// It is at least so late, in nanoseconds since the Unix epoch: the word may have been on its way for a while. So of
/// several the one that came fastest counts, and a clock that is less than two milliseconds behind is left alone.
pub(crate) fn advance_clock(time_ns: u64) -> Result<(), IdentityError> {
    const NEAR: u64 = 2_000_000;
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    let now_ns = u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000) + now.tv_nsec as u64;
    if time_ns > now_ns.saturating_add(NEAR) { set_clock(time_ns) } else { Ok(()) }
}

/// Sets the clock to a time in nanoseconds since the Unix epoch.
fn set_clock(time_ns: u64) -> Result<(), IdentityError> {
    let seconds = i64::try_from(time_ns / 1_000_000_000).map_err(|_| IdentityError::Time(time_ns))?;
    let now = Timespec { tv_sec: seconds, tv_nsec: (time_ns % 1_000_000_000) as i64 };
    clock_settime(ClockId::Realtime, now).map_err(|error| IdentityError::Step("clock", error))
}

impl Identity {
    /// Opens the random device; `files` are written when what they say changes, `card` is there where a network is wanted.
    pub(crate) fn new(files: EtcFiles, card: Option<Card>) -> Result<Self, Errno> {
        let random = open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { random, hostname: String::new(), files, card, settled: false })
    }

    /// Takes over what `hello` gives. The files of a host name are written only when it changes.
    fn become_it(&mut self, hello: &Hello) -> Result<(), IdentityError> {
        if !is_hostname(&hello.hostname) {
            return Err(IdentityError::Name(hello.hostname.chars().take(64).collect()));
        }
        if let Some(id) = hello.machine_id.as_ref().filter(|id| !is_machine_id(id)) {
            return Err(IdentityError::MachineId(id.chars().take(64).collect()));
        }
        // First: until then clones of one snapshot draw the same numbers.
        self.mix(&hello.entropy).map_err(|error| IdentityError::Step("randomness", error))?;
        set_clock(hello.time_ns)?;
        if self.hostname != hello.hostname {
            rustix::system::sethostname(hello.hostname.as_bytes())
                .map_err(|error| IdentityError::Step("host name", error))?;
            self.files.name(&self.hostname, &hello.hostname);
            self.hostname.clone_from(&hello.hostname);
        }
        if let Some(id) = &hello.machine_id {
            self.files.machine_id(id);
        }
        let has = self.card.as_ref().and_then(Card::has);
        if std::mem::take(&mut self.settled) && has == hello.net {
            return Ok(());
        }
        self.network(hello.net)
    }

    /// Gives the guest `net`, or none.
    fn network(&mut self, net: Option<Net>) -> Result<(), IdentityError> {
        match (&mut self.card, net) {
            (Some(card), net) => card.take(net.as_ref())?,
            (None, Some(_)) => return Err(NetworkError::NoCard.into()),
            (None, None) => {}
        }
        let written = self.files.resolver(net.map(|net| net.nameserver));
        Ok(written.map_err(|error| NetworkError::Step("write /etc/resolv.conf", error))?)
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

impl Identify for Identity {
    fn take(&mut self, hello: &Hello) -> Result<(), String> {
        self.become_it(hello).map_err(|error| error.to_string())
    }

    fn settle(&mut self, freeze: &Freeze) -> Result<(), String> {
        self.network(freeze.net).map_err(|error| error.to_string())?;
        self.settled = true;
        Ok(())
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

pub(crate) fn checked(result: libc::c_int) -> Result<(), Errno> {
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

fn is_machine_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
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

    #[test]
    fn a_machine_id_is_32_small_hex_digits() {
        assert!(is_machine_id("0123456789abcdef0123456789abcdef"));
        for bad in ["", "0123456789abcdef0123456789abcde", "0123456789ABCDEF0123456789abcdef", &"\n".repeat(32)] {
            assert!(!is_machine_id(bad), "{bad:?}");
        }
    }
}
