//! Connections whose end the sandbox's namespace sees and nobody behind it: it takes them for over, and does not count them.

use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::frames::{IPV4, Ip, TCP, frame, reset};
use crate::many::PER_CONNECTION;
use crate::raw::{GATEWAY_MAC, GUEST};
use crate::report::Found;
use crate::wire::Wire;

/// The longest that it goes on.
const TIME: Duration = Duration::from_secs(8);
/// A source route that is cut short: connections are tracked before a kernel looks at it, and then it passes the packet on to
/// nobody.
const CUT_SHORT: [u8; 4] = [0x83, 2, 0, 0];
/// `TCP_SEND_QUEUE` (`linux/tcp.h`).
const SEND_QUEUE: libc::c_int = 2;

/// Opens connections, each of which the namespace shall forget at once. Reached: nine of ten, for one may be late.
pub(crate) fn strand(to: SocketAddrV4, number: usize) -> Result<Found, String> {
    let (wire, end) = (Wire::open()?, Instant::now() + TIME);
    let mut held = Vec::new();
    while held.len() < number && Instant::now() < end {
        let Ok(stream) = TcpStream::connect_timeout(&to.into(), PER_CONNECTION) else { continue };
        let sequence = sequence(&stream).map_err(|e| format!("asking where a connection is: {e}"))?;
        let own = stream.local_addr().map_err(|e| e.to_string())?.port();
        let ip = Ip { options: &CUT_SHORT, ..Ip::plain(GUEST, *to.ip(), TCP) };
        let packet = ip.packet(&reset((GUEST, own), (*to.ip(), to.port()), sequence));
        wire.send(&frame(wire.mac, GATEWAY_MAC, IPV4, &packet))?;
        held.push(stream);
    }
    let found = Found::not(format!("{} of {number} at once", held.len()));
    Ok(Found { reached: held.len() * 10 >= number * 9, ..found })
}

/// The number of the next byte that a connection sends. From here on it says nothing by itself, as one that is about to be moved to
/// another machine.
fn sequence(stream: &TcpStream) -> std::io::Result<u32> {
    set(stream, libc::TCP_REPAIR, 1)?;
    set(stream, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    let (mut sequence, mut length) = (0_u32, size_of::<u32>() as libc::socklen_t);
    let (value, room) = ((&raw mut sequence).cast(), &raw mut length);
    // SAFETY: both pointers are to live numbers, and the length is that of the first.
    let got = unsafe { libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, value, room) };
    if got < 0 { Err(std::io::Error::last_os_error()) } else { Ok(sequence) }
}

fn set(stream: &TcpStream, option: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let value = (&raw const value).cast();
    // SAFETY: the pointer is to a live number of this length, which the kernel only reads.
    let done = unsafe { libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, option, value, length) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
