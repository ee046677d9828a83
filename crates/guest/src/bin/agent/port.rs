//! The guest channel: one stream of bytes to one host after another, whatever the hypervisor makes it of.
//!
//! A virtio-serial port is always there, with or without a host, and never says surely when one went. On a socket each
//! host has a connection of its own, and its end is the end of its session: a restore cuts it as well. Who connects
//! meanwhile waits in the listener's queue. Knows nothing of what is said.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read, write};
use rustix::net::{Shutdown, SocketAddrAny, SocketFlags, acceptfrom_with, shutdown};

/// The channel. It is waited for at its edges: what could be read or written is tried until it cannot.
#[derive(Debug)]
pub(crate) struct Port {
    line: Line,
    readable: bool,
    writable: bool,
}

#[derive(Debug)]
enum Line {
    /// A virtio-serial port.
    Serial(OwnedFd),
    /// Where hosts connect, how they are known, and the connection of the one that has the word.
    Socket { listener: OwnedFd, is_host: fn(&SocketAddrAny) -> bool, host: Option<OwnedFd> },
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// So many bytes.
    Bytes(usize),
    /// Nothing, until the port has news.
    Nothing,
    /// The host is gone, after all that it said was read.
    HungUp,
}

impl Port {
    /// A virtio-serial port, which must not block.
    pub(crate) fn serial(port: OwnedFd) -> Self {
        Self { line: Line::Serial(port), readable: true, writable: true }
    }

    /// Whoever connects to `listener`, which must not block, and is the host.
    pub(crate) fn listening(listener: OwnedFd, is_host: fn(&SocketAddrAny) -> bool) -> Self {
        Self { line: Line::Socket { listener, is_host, host: None }, readable: false, writable: false }
    }

    /// What is to be watched from the start; connections are given to be watched when they come.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.line {
            Line::Serial(fd) | Line::Socket { listener: fd, .. } => fd.as_fd(),
        }
    }

    /// It has news.
    pub(crate) fn wake(&mut self) {
        (self.readable, self.writable) = (true, true);
    }

    /// Takes the next host that waits, when nobody has the word; `watch` gets its connection.
    pub(crate) fn accept(&mut self, watch: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) {
        let Line::Socket { listener, is_host, host } = &mut self.line else { return };
        while host.is_none() {
            match acceptfrom_with(&*listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                // One that cannot be watched would never be heard.
                Ok((line, Some(peer))) if is_host(&peer) && watch(line.as_fd()).is_ok() => {
                    *host = Some(line);
                    (self.readable, self.writable) = (true, true);
                }
                Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    /// Reads.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Heard {
        if !self.readable {
            return Heard::Nothing;
        }
        let (Line::Serial(line) | Line::Socket { host: Some(line), .. }) = &self.line else { return Heard::Nothing };
        let result = interrupted(|| read(line, &mut *buffer));
        if let Ok(count @ 1..) = result {
            return Heard::Bytes(count);
        }
        self.readable = false;
        match &mut self.line {
            // A connection ends in its order: with no bytes, or with an error when a restore reset it.
            Line::Socket { host, .. } if result != Err(Errno::AGAIN) => {
                *host = None;
                Heard::HungUp
            }
            // No bytes from a virtio-serial port: no host is connected. That says nothing about the session: the port's
            // news and its bytes come by different queues, so the next host's preamble may have been read already. It
            // alone ends a session there.
            Line::Socket { .. } | Line::Serial(_) => Heard::Nothing,
        }
    }

    /// Writes, and says how many bytes it took; 0 until the port has news.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        if !self.writable {
            return 0;
        }
        let (Line::Serial(line) | Line::Socket { host: Some(line), .. }) = &self.line else { return 0 };
        match interrupted(|| write(line, bytes)) {
            Ok(count) => count,
            // Nobody will read it, or it would go on with a gap. The host's end is heard after what it said last.
            Err(error) if matches!(self.line, Line::Socket { .. }) && error != Errno::AGAIN => {
                let _ = shutdown(line, Shutdown::Write);
                bytes.len()
            }
            // Full, or no host at the virtio-serial port: an edge follows.
            Err(_) => {
                self.writable = false;
                0
            }
        }
    }
}

/// Again as long as a signal interrupts it.
fn interrupted(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
#[path = "port_tests.rs"]
pub(crate) mod tests;
