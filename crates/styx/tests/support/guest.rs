//! A Linux stack in the guest's place: a namespace with a TAP of the guest's card and address, and a thread that carries frames
//! between it and the sandbox's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketType, ipproto};
use styx::{GATEWAY, GUEST, GUEST_MAC, Space};

use super::Ns;

pub const PATIENCE: Duration = Duration::from_millis(400);
static TEXT: AtomicU32 = AtomicU32::new(0);

pub struct Guest {
    pub ns: Ns,
    tap: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn tap() -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tun = rustix::fs::open(c"/dev/net/tun", flags, Mode::empty()).unwrap();
    // SAFETY: zero is valid for an `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the call reads and writes an `ifreq` that lives until it returns.
    assert!(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } >= 0);
    tun
}

impl Guest {
    pub fn join(space: &Space) -> Self {
        let ns = Ns::fresh();
        let own = ns.run(tap);
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        ns.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        ns.sh(&format!("ip link set lo up; ip link set eth0 address {mac} up; ip addr add {GUEST}/30 dev eth0"));
        ns.sh(&format!("ip route add default via {GATEWAY}"));
        let (theirs, stop) = (space.tap.clone().unwrap(), Arc::<AtomicBool>::default());
        let (tap, stopped) = (theirs.clone(), stop.clone());
        let thread = Some(std::thread::spawn(move || relay(&own, &theirs, &stopped)));
        Self { ns, tap, stop, thread }
    }

    /// Puts one frame on the wire.
    pub fn inject(&self, frame: &[u8]) {
        // Where the TAP is down there is no wire.
        rustix::io::write(&self.tap, frame).ok();
    }

    /// Whether a connection is made and what is sent comes back.
    pub fn tcp(&self, to: Ipv4Addr, port: u16) -> bool {
        self.connect(to, port).is_some_and(|mut stream| talks(&mut stream))
    }

    pub fn connect(&self, to: Ipv4Addr, port: u16) -> Option<TcpStream> {
        let stream = self.ns.run(|| TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Some(stream)
    }

    /// A connection that the sandbox's namespace takes for one that is over, and nobody else does.
    pub fn connect_and_strand(&self, to: Ipv4Addr, port: u16) -> Option<TcpStream> {
        let stream = self.connect(to, port)?;
        let option = |option: i32, value: i32| {
            let length = size_of::<i32>() as libc::socklen_t;
            // SAFETY: the number lives until the call returns, and its length is its own.
            let set = unsafe {
                libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), length)
            };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        };
        // To be moved elsewhere: it says where it is, and nothing any more when it is closed.
        option(libc::TCP_REPAIR, 1);
        // `TCP_SEND_QUEUE`.
        option(libc::TCP_REPAIR_QUEUE, 2);
        let (mut sequence, mut length) = (0_u32, size_of::<u32>() as libc::socklen_t);
        // SAFETY: both numbers live until the call returns, and the length is that of the first.
        let got = unsafe {
            let (value, length) = ((&raw mut sequence).cast(), &raw mut length);
            libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, value, length)
        };
        assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
        // The last word of its beginning takes the long way: one that came after its end would be a beginning again.
        std::thread::sleep(Duration::from_millis(150));
        let own = stream.local_addr().unwrap().port();
        let reset = super::frames::stranded_reset((GUEST, own), (to, port), sequence);
        self.inject(&super::frames::ethernet(GUEST_MAC, 0x0800, &reset));
        Some(stream)
    }

    pub fn socket(&self, to: Ipv4Addr, port: u16) -> UdpSocket {
        self.ns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((to, port)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }

    /// Whether a datagram of this many bytes comes back.
    pub fn udp(&self, to: Ipv4Addr, port: u16) -> bool {
        echoes(&self.socket(to, port), 20)
    }

    /// Whether an echo is answered.
    pub fn ping(&self, to: Ipv4Addr) -> bool {
        let text = unique();
        let socket = self.ns.run(|| rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)));
        let socket = UdpSocket::from(socket.unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        echo.extend(text.as_bytes());
        let sum = checksum(&echo);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        drop(socket.send_to(&echo, (to, 0)));
        let mut buffer = [0; 2048];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            if buffer[20] == 0 && buffer[..length].ends_with(text.as_bytes()) {
                return true;
            }
        }
        false
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A text that no other datagram has.
pub fn unique() -> String {
    format!("{:08}", TEXT.fetch_add(1, Ordering::Relaxed))
}

/// Whether what is sent comes back.
pub fn talks(stream: &mut TcpStream) -> bool {
    let text = unique();
    let mut buffer = vec![0; text.len()];
    stream.write_all(text.as_bytes()).is_ok() && stream.read_exact(&mut buffer).is_ok() && buffer == text.as_bytes()
}

pub fn echoes(socket: &UdpSocket, length: usize) -> bool {
    let mut text = unique();
    text.push_str(&"x".repeat(length.saturating_sub(text.len())));
    drop(socket.send(text.as_bytes()));
    let mut buffer = [0; 2048];
    while let Ok(length) = socket.recv(&mut buffer) {
        if text.as_bytes().starts_with(&buffer[..length]) && length > 0 {
            return true;
        }
    }
    false
}

pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn relay(one: &OwnedFd, other: &OwnedFd, stop: &AtomicBool) {
    let mut buffer = vec![0; 70_000];
    let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(one, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
        if poll(&mut fds, Some(&pause)).unwrap_or(0) == 0 {
            continue;
        }
        for (from, to) in [(one, other), (other, one)] {
            for _ in 0..64 {
                let Ok(length) = rustix::io::read(from, &mut buffer) else { break };
                // A full queue or a link that is down loses frames, as a wire does.
                rustix::io::write(to, &buffer[..length]).ok();
            }
        }
    }
}
