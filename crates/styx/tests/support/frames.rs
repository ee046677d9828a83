//! Frames made by hand, and who sees them.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use styx::GATEWAY_MAC;

use super::{Ns, checksum};

pub fn ethernet(from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &from, &kind.to_be_bytes(), payload].concat()
}

pub fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

/// Without a checksum, which UDP allows.
pub fn udp(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let header = [&4321u16.to_be_bytes()[..], &port.to_be_bytes(), &length.to_be_bytes(), &[0, 0]].concat();
    ip(from, to, 17, &[header, payload.to_vec()].concat())
}

/// The end of a connection, in a packet that nobody passes on: its source route is cut short.
pub fn stranded_reset(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), sequence: u32) -> Vec<u8> {
    let mut tcp = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    // Nothing is acknowledged; five words of header, RST, no window.
    tcp.extend([0, 0, 0, 0, 5 << 4, 4, 0, 0, 0, 0, 0, 0]);
    let around = [&from.0.octets()[..], &to.0.octets(), &[0, 6, 0, 20], &tcp].concat();
    let sum = checksum(&around);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut packet = ip(from.0, to.0, 6, &[&[131, 2, 0, 0][..], &tcp].concat());
    packet[0] = 0x46;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..24]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// An announcement that `address` is at `mac`.
pub fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let own = [&mac[..], &address.octets()].concat();
    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &own, &[0; 6], &address.octets()].concat()
}

/// What a namespace's kernel gets of one kind of frame, after what its ingress chain drops.
pub struct Watch(OwnedFd);

impl Watch {
    pub fn new(ns: &Ns, kind: u16) -> Self {
        ns.run(|| {
            // SAFETY: the call takes numbers, and its result has no other owner.
            let fd = unsafe {
                let protocol = i32::from(kind.to_be());
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol)
            };
            assert!(fd >= 0);
            // SAFETY: as above.
            Self(unsafe { OwnedFd::from_raw_fd(fd) })
        })
    }

    /// Whether a frame with these bytes comes within half a second.
    pub fn sees(&self, bytes: &[u8]) -> bool {
        let end = Instant::now() + Duration::from_millis(500);
        let mut buffer = [0; 2048];
        assert!(self.0.as_raw_fd() >= 0);
        while Instant::now() < end {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(length) if buffer[..length].windows(bytes.len()).any(|window| window == bytes) => return true,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        false
    }
}
