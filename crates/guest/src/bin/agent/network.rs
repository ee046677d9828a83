//! The network card: address, route and state as the host's hello gives them.
//!
//! Used by `identity`, at every hello: also in a restored guest, where each instruction runs for the first time. So what
//! can be done before the snapshot is, and a guest without a network pays nothing. What may be reached is for the host to
//! say and to enforce.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tartarus_guest::Net;

use crate::identity::checked;

/// The kernel's names of network cards.
const CARDS: &str = "/sys/class/net";
/// What IPv6 is told, and the interfaces that it is told for beside the card: those that come later. Loopback stays as it is.
const IPV6: [(&str, &str); 2] = [("disable_ipv6", "1"), ("accept_ra", "0")];

/// The network is not as the host wants it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// No card.
    #[error("there is no network card; the machine must have exactly one")]
    NoCard,
    /// A network that is none.
    #[error("no network has a prefix of {0} bits")]
    Prefix(u8),
    /// A system call.
    #[error("could not {0}: {1}")]
    Step(&'static str, Errno),
}

/// The one card of the machine.
pub(crate) struct Card {
    socket: OwnedFd,
    name: Name,
    /// What it was given.
    has: Option<Net>,
}

type Name = [libc::c_char; libc::IFNAMSIZ];

impl Card {
    /// Finds it, switches IPv6 off, and makes its rings, so that they are there in every clone. It is left
    /// up, without an address: it leads nowhere before it has one, and then nothing is left to be opened.
    pub(crate) fn prepare() -> Result<Self, NetworkError> {
        let entries = fs::read_dir(CARDS).map_err(|_| NetworkError::NoCard)?;
        // By what it is, since a name is the kernel's choice: the others are of no device.
        let names = entries.flatten().filter(|entry| entry.path().join("device").exists());
        let names: Vec<_> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let [name] = names.as_slice() else { return Err(NetworkError::NoCard) };
        for of in ["default", name] {
            for (what, value) in IPV6 {
                // A kernel without IPv6 has none to switch off.
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{of}/{what}"), value);
            }
        }
        let card = Self::named(name)?;
        card.set_up(true)?;
        Ok(card)
    }

    fn named(name: &str) -> Result<Self, NetworkError> {
        let mut field = [0; libc::IFNAMSIZ];
        // The last byte stays zero.
        for (to, from) in field[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(|error| NetworkError::Step("open a socket for the network card", error))?;
        Ok(Self { socket, name: field, has: None })
    }

    /// What it was given.
    pub(crate) fn has(&self) -> Option<Net> {
        self.has
    }

    /// Makes it so: also what a command has changed meanwhile, and what is so already stays untouched.
    pub(crate) fn take(&mut self, net: Option<&Net>) -> Result<(), NetworkError> {
        if self.has.is_some() && self.has.as_ref() != net {
            self.clear()?;
        }
        let Some(net) = net else { return Ok(()) };
        // Before the first step: what fails half-way is cleared by the next hello.
        let mask = mask(net.prefix).ok_or(NetworkError::Prefix(net.prefix))?;
        self.has = Some(*net);
        self.address(libc::SIOCSIFADDR, "set the network address", net.address)?;
        self.address(libc::SIOCSIFNETMASK, "set the network mask", mask)?;
        self.set_up(true)?;
        self.route(net.gateway)
    }

    /// Takes address and routes away.
    fn clear(&mut self) -> Result<(), NetworkError> {
        self.set_up(false)?;
        self.address(libc::SIOCSIFADDR, "remove the network address", Ipv4Addr::UNSPECIFIED)?;
        self.has = None;
        Ok(())
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: all zero bytes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request
    }

    fn address(&self, which: libc::Ioctl, step: &'static str, address: Ipv4Addr) -> Result<(), NetworkError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = socket_address(address);
        // SAFETY: both requests read an `ifreq`, which outlives them.
        let done = checked(unsafe { libc::ioctl(self.socket.as_raw_fd(), which, &raw const request) });
        done.map_err(|error| NetworkError::Step(step, error))
    }

    fn set_up(&self, up: bool) -> Result<(), NetworkError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as libc::c_short } else { 0 };
        // SAFETY: the request reads an `ifreq`, which outlives it.
        let done = checked(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) });
        let step = if up { "bring the network card up" } else { "take the network card down" };
        done.map_err(|error| NetworkError::Step(step, error))
    }

    fn route(&self, gateway: Ipv4Addr) -> Result<(), NetworkError> {
        // SAFETY: all zero bytes are a valid `rtentry`: its pointer is none.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = route.rt_dst;
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: the request reads an `rtentry`, which outlives it.
        match checked(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) }) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(NetworkError::Step("set the default route", error)),
        }
    }
}

fn mask(prefix: u8) -> Option<Ipv4Addr> {
    let host = 32_u32.checked_sub(prefix.into())?;
    Some(Ipv4Addr::from_bits(u32::MAX.checked_shl(host).unwrap_or(0)))
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let sin_addr = libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
    let address = libc::sockaddr_in { sin_family: libc::AF_INET as u16, sin_port: 0, sin_addr, sin_zero: [0; 8] };
    // SAFETY: an address of IPv4 is one of the things that a `sockaddr` of the same size holds.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_as_many_bits() {
        assert_eq!(mask(30), Some(Ipv4Addr::new(255, 255, 255, 252)));
        assert_eq!((mask(0), mask(32)), (Some(Ipv4Addr::UNSPECIFIED), Some(Ipv4Addr::BROADCAST)));
        assert_eq!((mask(33), mask(255)), (None, None));
    }

    /// Runs `test` with a card, in a network namespace of the thread's own.
    fn alone(test: fn(&mut Card)) {
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: a network takes root");
        }
        let Ok(tun) = fs::File::options().read(true).write(true).open("/dev/net/tun") else {
            return println!("skipped: there is no /dev/net/tun");
        };
        let alone = move || {
            // SAFETY: a system call on numbers; it concerns this thread alone.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            let tun_here = fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
            drop(tun);
            let mut card = Card::named("tap7").unwrap();
            let mut request = card.request();
            request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
            // SAFETY: it reads and writes an `ifreq` that lives until it returns.
            checked(unsafe { libc::ioctl(tun_here.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).unwrap();
            test(&mut card);
        };
        std::thread::spawn(alone).join().unwrap();
    }

    /// Interface, destination, gateway and mask, as the kernel writes them.
    fn routes() -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/net/route").unwrap();
        let fields = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            [fields[0], fields[1], fields[2], fields[7]].join(" ")
        };
        table.lines().skip(1).map(fields).collect()
    }

    #[test]
    fn a_card_is_made_so_again_and_again_and_is_cleared() {
        alone(|card| {
            card.take(None).unwrap();
            let [address, gateway] = [254, 253].map(|last| Ipv4Addr::new(198, 19, 255, last));
            let net = Net { address, prefix: 30, gateway, nameserver: gateway };
            let expected = ["tap7 00000000 FDFF13C6 00000000", "tap7 FCFF13C6 00000000 FCFFFFFF"];
            card.take(Some(&net)).unwrap();
            card.take(Some(&net)).unwrap();
            assert_eq!(routes(), expected);
            // What a command did is undone.
            card.set_up(false).unwrap();
            assert_eq!(routes(), [""; 0]);
            card.take(Some(&net)).unwrap();
            assert_eq!(routes(), expected);
            let [address, gateway] = [2, 1].map(|last| Ipv4Addr::new(10, 0, 0, last));
            card.take(Some(&Net { address, gateway, prefix: 24, ..net })).unwrap();
            assert_eq!(routes(), ["tap7 00000000 0100000A 00000000", "tap7 0000000A 00000000 00FFFFFF"]);
            card.take(None).unwrap();
            assert_eq!(routes(), [""; 0]);
            // Up again it has no address left.
            card.set_up(true).unwrap();
            assert_eq!(routes(), [""; 0]);
            let wrong = card.take(Some(&Net { prefix: 33, ..net })).unwrap_err().to_string();
            assert_eq!(wrong, "no network has a prefix of 33 bits");
            let wrong = card.take(Some(&Net { gateway: Ipv4Addr::new(1, 1, 1, 1), ..net })).unwrap_err().to_string();
            assert!(wrong.starts_with("could not set the default route: "), "{wrong}");
            card.take(Some(&net)).unwrap();
            assert_eq!(routes(), expected);
        });
    }
}
