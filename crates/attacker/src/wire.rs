//! Frames as they are, past the guest's own network stack.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket, sockopt};

/// The guest's card.
const CARD: &str = "eth0";

/// A card that sends and hears frames.
pub(crate) struct Wire {
    socket: OwnedFd,
    index: i32,
    /// The card's own address.
    pub(crate) mac: [u8; 6],
}

impl Wire {
    /// Opens the guest's card.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub(crate) fn open() -> Result<Self, String> {
        let read = |file: &str| {
            let path = format!("/sys/class/net/{CARD}/{file}");
            std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))
        };
        let index = read("ifindex")?.trim().parse().map_err(|_| "the card has no index")?;
        let mac = mac(read("address")?.trim()).ok_or("the card has no address")?;
        // All frames, and in network order: ETH_P_ALL.
        let all = std::num::NonZeroU32::new(u32::from(3_u16.to_be())).ok_or("no protocol")?;
        let socket = socket(AddressFamily::PACKET, SocketType::RAW, Some(Protocol::from_raw(all)))
            .map_err(|e| format!("opening a packet socket: {e}"))?;
        Ok(Self { socket, index, mac })
    }

    /// Puts one frame on the wire.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), String> {
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = self.index;
        to.sll_halen = 6;
        let address = (&raw const to).cast::<libc::sockaddr>();
        let (data, length) = (frame.as_ptr().cast::<libc::c_void>(), frame.len());
        // SAFETY: both pointers are to live values of the lengths that are given, which the kernel only reads.
        let sent = unsafe {
            libc::sendto(self.socket.as_raw_fd(), data, length, 0, address, size_of::<libc::sockaddr_ll>() as u32)
        };
        if sent < 0 { Err(format!("sending a frame: {}", std::io::Error::last_os_error())) } else { Ok(()) }
    }

    /// The first frame that others sent within `time` and of which `what` says something.
    pub(crate) fn hear(&self, time: Duration, what: impl Fn(&[u8]) -> Option<String>) -> Option<String> {
        let end = Instant::now() + time;
        let mut buffer = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(left.max(Duration::from_millis(1))))
                .ok()?;
            let Ok((n, _)) = recv(&self.socket, &mut buffer[..], RecvFlags::empty()) else { continue };
            let frame = &buffer[..n];
            // Its own come back to it as well.
            let foreign = frame.get(6..12).is_some_and(|from| from != self.mac);
            if let Some(found) = foreign.then(|| what(frame)).flatten() {
                return Some(found);
            }
        }
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_address_of_a_card() {
        assert_eq!(super::mac("02:54:54:00:00:fe"), Some([2, 0x54, 0x54, 0, 0, 0xfe]));
        assert_eq!(super::mac("02:54:54:00:00"), None);
    }
}
