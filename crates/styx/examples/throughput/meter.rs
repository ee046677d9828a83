//! How much gets through in a while: packets of 64 bytes, and connections.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use styx::{GUEST, GUEST_MAC};

use super::support::{Ns, frames};

/// A frame of 64 bytes, of which the card's own checksum are the last four: what is left for a datagram's text.
const TEXT: usize = 64 - 4 - 14 - 20 - 8;
/// Ports that the contract lists and that the world's other servers do not take from an address of their own.
const PORT: u16 = 443;
const DATAGRAMS: u16 = 80;
/// Datagrams handed to the kernel at once.
const BATCH: usize = 32;
/// Senders, and servers that answer them.
const AT_ONCE: usize = 2;
/// Connections whose end nobody sees take this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that gets through, counted at the far end.
pub(super) trait Counted {
    fn name(&self) -> &'static str;

    /// So many a second, over about this long.
    fn rate(&self, slice: Duration) -> f64;
}

enum Sender {
    Stack(UdpSocket),
    Tap(Arc<OwnedFd>, Vec<u8>),
}

/// Packets of one flow.
pub(super) struct Packets {
    sender: Sender,
    internet: Ns,
    /// It is read once: what does not fit is thrown away at the very end of the path.
    sink: UdpSocket,
}

/// An address of the internet's that nobody else serves, in a network that the contract lists.
fn server(internet: &Ns, beside: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = beside.octets();
    let address = Ipv4Addr::new(a, b, c, 200);
    internet.sh(&format!("ip addr replace {address}/32 dev lo"));
    address
}

impl Packets {
    /// Sent by the guest's network stack.
    pub(super) fn from_stack(guest: &Ns, internet: &Ns, to: Ipv4Addr) -> Self {
        let to = server(internet, to);
        let socket = guest.run(|| {
            let socket = UdpSocket::bind((GUEST, 0)).unwrap();
            socket.connect((to, DATAGRAMS)).unwrap();
            socket
        });
        Self::new(Sender::Stack(socket), internet, to)
    }

    /// Written as frames into the TAP.
    pub(super) fn into_tap(tap: Arc<OwnedFd>, internet: &Ns, to: Ipv4Addr) -> Self {
        let to = server(internet, to);
        let frame = frames::ethernet(GUEST_MAC, 0x0800, &frames::udp(GUEST, to, DATAGRAMS, &[b'x'; TEXT]));
        Self::new(Sender::Tap(tap, frame), internet, to)
    }

    fn new(sender: Sender, internet: &Ns, to: Ipv4Addr) -> Self {
        let sink = internet.run(|| UdpSocket::bind((to, DATAGRAMS)).unwrap());
        Self { sender, internet: internet.clone(), sink }
    }

    /// Datagrams that got to the internet's stack, whether or not there was place for them.
    fn arrived(&self) -> u64 {
        let text = self.internet.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let mut udp = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (udp.next().unwrap(), udp.next().unwrap());
        let wanted = |name: &&str| matches!(*name, "InDatagrams" | "RcvbufErrors");
        let both = names.split(' ').zip(values.split(' ')).filter(|(name, _)| wanted(name));
        // One is counted when it is read, the other when it cannot be kept; the few that are kept count for nothing.
        both.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
    }
}

impl Counted for Packets {
    fn name(&self) -> &'static str {
        "64-byte packets/s"
    }

    fn rate(&self, slice: Duration) -> f64 {
        let send = || match &self.sender {
            Sender::Stack(socket) => send_many(socket),
            Sender::Tap(tap, frame) => {
                for _ in 0..BATCH {
                    // A wire that is full loses a frame, and it is not counted.
                    rustix::io::write(tap, frame).ok();
                }
            }
        };
        // The flow begins, is answered once, and fills what is kept at the end.
        send();
        let mut text = [0; TEXT];
        let (_, from) = self.sink.recv_from(&mut text).unwrap();
        self.sink.send_to(&text, from).unwrap();
        let warm = Instant::now() + Duration::from_millis(50);
        while Instant::now() < warm {
            send();
        }
        std::thread::sleep(Duration::from_millis(20));
        let (before, start) = (self.arrived(), Instant::now());
        while start.elapsed() < slice {
            send();
        }
        let took = start.elapsed();
        std::thread::sleep(Duration::from_millis(20));
        (self.arrived() - before) as f64 / took.as_secs_f64()
    }
}

fn send_many(socket: &UdpSocket) {
    let text = [b'x'; TEXT];
    let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: TEXT };
    // SAFETY: zero is valid for a message: no address, no parts, no control data.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the messages, their one part and its text live until the call returns, which only reads the text.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as libc::c_uint, 0) };
    assert!(sent > 0, "{}", std::io::Error::last_os_error());
}

/// Connections: made, one byte there and one back, ended.
pub(super) struct Connections {
    guest: Ns,
    to: SocketAddr,
    _held: Vec<TcpStream>,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl Connections {
    /// `held` of them stay open all the while.
    pub(super) fn new(guest: &Ns, internet: &Ns, to: Ipv4Addr, held: usize) -> Self {
        let to = SocketAddr::from((server(internet, to), PORT));
        let listener = internet.run(|| TcpListener::bind(to).unwrap());
        let stop = Arc::<AtomicBool>::default();
        let servers = (0..AT_ONCE).map(|_| {
            let (listener, stop) = (listener.try_clone().unwrap(), stop.clone());
            std::thread::spawn(move || serve(&listener, &stop))
        });
        let servers = servers.collect();
        let hold = || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            stream.write_all(b"h").unwrap();
            stream
        };
        let held = guest.run(|| (0..held).map(|_| hold()).collect());
        Self { guest: guest.clone(), to, _held: held, stop, servers }
    }
}

impl Counted for Connections {
    fn name(&self) -> &'static str {
        "TCP connections/s"
    }

    fn rate(&self, slice: Duration) -> f64 {
        let start = Instant::now();
        let done: usize = self.guest.run(|| {
            // Threads begin in the namespace of the one that starts them.
            std::thread::scope(|scope| {
                let sender = || {
                    let end = Instant::now() + slice;
                    std::iter::repeat_with(|| once(self.to)).take_while(|_| Instant::now() < end).count()
                };
                let senders: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(sender)).collect();
                senders.into_iter().map(|sender| sender.join().unwrap()).sum()
            })
        });
        done as f64 / start.elapsed().as_secs_f64()
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for _ in &self.servers {
            drop(self.guest.run(|| TcpStream::connect_timeout(&self.to, PATIENCE)));
        }
        for server in self.servers.drain(..) {
            drop(server.join());
        }
    }
}

/// A connection that fails ends the measure: with a path that loses some there is nothing to compare.
fn once(to: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// Answers one connection after another, and keeps those that are to be held.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        let mut byte = [0];
        match stream.read_exact(&mut byte) {
            Ok(()) if byte == *b"h" => held.push(stream),
            Ok(()) => drop(stream.write_all(b"x")),
            // The last one, which only wakes this up.
            Err(_) => {}
        }
    }
}
