//! Connections that are carried for the host to TCP ports of the guest's loopback.
//!
//! What comes from the host waits here until the socket takes it, at most a window of it; what comes from the socket is only
//! read when it can be sent on. They belong to one session: the next one begins without any.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, read};
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay, socket_error};
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, connect, getpeername, send, shutdown, socket_with,
};
use tartarus_guest::flow::{Incoming, Outgoing};
use tartarus_guest::frame::MAX_PAYLOAD;
use tartarus_guest::{Header, Kind, MAX_CARRIED};

/// All connections of the session.
#[derive(Debug, Default)]
pub(crate) struct Carriers {
    open: BTreeMap<u32, Carrier>,
    /// The highest number that one ever had: those up to it that are not there are over.
    highest: u32,
}

/// One connection.
#[derive(Debug)]
struct Carrier {
    socket: OwnedFd,
    port: u16,
    connected: bool,
    /// It may be connected by now, or never will be.
    woken: bool,
    readable: bool,
    writable: bool,
    /// Bytes of the host that the socket did not take yet.
    buffer: VecDeque<u8>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// The socket was told that nothing more comes.
    shut: bool,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Moved,
    Over,
}

impl Carriers {
    /// Connects to `port`; `watch` gets the socket, and `say` why it cannot be.
    ///
    /// # Errors
    /// The rule that the host broke.
    pub(crate) fn dial(
        &mut self,
        number: u32,
        port: u16,
        watch: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
        mut say: impl FnMut(Header, &[u8]),
    ) -> Result<(), String> {
        if number <= self.highest {
            return Err(format!("connection {number} is not a new one"));
        }
        if self.open.len() >= MAX_CARRIED {
            return Err(format!("more than {MAX_CARRIED} connections at once"));
        }
        self.highest = number;
        match Carrier::connect(port, watch) {
            Ok(carrier) => drop(self.open.insert(number, carrier)),
            Err(error) => say(Header::new(Kind::Refused, number), refusal(port, error).as_bytes()),
        }
        Ok(())
    }

    /// Bytes of the host.
    pub(crate) fn receive(&mut self, number: u32, offset: u64, bytes: &[u8]) -> Result<(), String> {
        self.on(number, |carrier| {
            carrier.incoming.receive(offset, bytes.len())?;
            carrier.buffer.extend(bytes);
            Ok(())
        })
    }

    /// The host's end.
    pub(crate) fn end(&mut self, number: u32, offset: u64) -> Result<(), String> {
        self.on(number, |carrier| carrier.incoming.end(offset))
    }

    /// The host took bytes.
    pub(crate) fn taken(&mut self, number: u32, offset: u64) -> Result<(), String> {
        self.on(number, |carrier| carrier.outgoing.taken(offset))
    }

    /// The host cuts one off.
    pub(crate) fn cut(&mut self, number: u32) -> Result<(), String> {
        self.on(number, |_| Ok(()))?;
        if let Some(carrier) = self.open.remove(&number) {
            carrier.reset();
        }
        Ok(())
    }

    /// The session is over, and with it all of them.
    pub(crate) fn cut_all(&mut self) {
        std::mem::take(self).open.into_values().for_each(Carrier::reset);
    }

    /// One that is over may still be spoken of by what was on its way.
    fn on(
        &mut self,
        number: u32,
        act: impl FnOnce(&mut Carrier) -> Result<(), tartarus_guest::flow::Broken>,
    ) -> Result<(), String> {
        if number > self.highest {
            return Err(format!("no connection {number}"));
        }
        let Some(carrier) = self.open.get_mut(&number) else { return Ok(()) };
        act(carrier).map_err(|broken| format!("connection {number}: {broken}"))
    }

    /// A socket has news.
    pub(crate) fn wake(&mut self, number: u32) {
        if let Some(carrier) = self.open.get_mut(&number) {
            (carrier.woken, carrier.readable, carrier.writable) = (true, true, true);
        }
    }

    /// The numbers of those that there are.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.open.keys().copied()
    }

    /// Moves what the host sent to the sockets, and says what is to be said of it. Gives whether anything changed.
    pub(crate) fn pump(&mut self, mut say: impl FnMut(Header, &[u8])) -> bool {
        let mut moved = false;
        self.open.retain(|number, carrier| {
            let step = carrier.pump(*number, &mut say);
            moved |= step != Step::Nothing;
            step != Step::Over
        });
        moved
    }

    /// Sends one frame of what a socket has, when it has anything and the host has room. Gives whether it did.
    pub(crate) fn emit(&mut self, number: u32, buffer: &mut [u8], mut say: impl FnMut(Header, &[u8])) -> bool {
        let Some(carrier) = self.open.get_mut(&number) else { return false };
        let step = carrier.emit(number, buffer, &mut say);
        if step == Step::Over {
            self.open.remove(&number);
        }
        step != Step::Nothing
    }
}

impl Carrier {
    fn connect(port: u16, watch: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        // Not before: a socket that connects to nothing yet has news that mean nothing.
        watch(socket.as_fd())?;
        Ok(Self {
            socket,
            port,
            connected: false,
            woken: true,
            readable: true,
            writable: true,
            buffer: VecDeque::new(),
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            shut: false,
        })
    }

    /// Closes it so that the other side does not take it for a whole transfer.
    fn reset(self) {
        let _ = set_socket_linger(&self.socket, Some(Duration::ZERO));
    }

    fn pump(&mut self, number: u32, say: &mut impl FnMut(Header, &[u8])) -> Step {
        let mut step = Step::Nothing;
        if !self.connected {
            if !std::mem::take(&mut self.woken) {
                return Step::Nothing;
            }
            match socket_error(&self.socket).flatten() {
                Err(error) => {
                    say(Header::new(Kind::Refused, number), refusal(self.port, error).as_bytes());
                    return Step::Over;
                }
                Ok(()) if getpeername(&self.socket).is_err() => return Step::Nothing,
                Ok(()) => {
                    self.connected = true;
                    say(Header::new(Kind::Dialed, number), b"");
                    step = Step::Moved;
                }
            }
        }
        while self.writable && !self.buffer.is_empty() {
            match send(&self.socket, self.buffer.as_slices().0, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.incoming.take(count);
                    step = Step::Moved;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => return self.fails(number, say),
            }
        }
        if self.incoming.is_over() && !self.shut {
            // One that is closed already needs not be told.
            let _ = shutdown(&self.socket, Shutdown::Write);
            self.shut = true;
            step = Step::Moved;
        }
        if let Some(offset) = self.incoming.due() {
            say(Header { offset, ..Header::new(Kind::Carried, number) }, b"");
            step = Step::Moved;
        }
        if self.is_over() { Step::Over } else { step }
    }

    fn emit(&mut self, number: u32, buffer: &mut [u8], say: &mut impl FnMut(Header, &[u8])) -> Step {
        let room = self.outgoing.room().min(MAX_PAYLOAD).min(buffer.len());
        if !self.connected || !self.readable || room == 0 {
            return Step::Nothing;
        }
        match read(&self.socket, &mut buffer[..room]) {
            Ok(0) => {
                say(Header { offset: self.outgoing.end(), ..Header::new(Kind::CarryEof, number) }, b"");
                if self.is_over() { Step::Over } else { Step::Moved }
            }
            Ok(count) => {
                let offset = self.outgoing.send(count);
                say(Header { offset, ..Header::new(Kind::Carry, number) }, &buffer[..count]);
                Step::Moved
            }
            Err(Errno::INTR) => Step::Moved,
            Err(Errno::AGAIN) => {
                self.readable = false;
                Step::Nothing
            }
            Err(_) => self.fails(number, say),
        }
    }

    fn fails(&mut self, number: u32, say: &mut impl FnMut(Header, &[u8])) -> Step {
        say(Header::new(Kind::Cut, number), b"");
        Step::Over
    }

    /// Both directions ended, and the socket has all of it.
    fn is_over(&self) -> bool {
        self.shut && self.outgoing.is_ended()
    }
}

/// In words for whoever connected to the node.
fn refusal(port: u16, error: Errno) -> String {
    match error {
        Errno::CONNREFUSED => format!("nothing listens on TCP port {port} of the guest's loopback"),
        other => format!("could not connect to TCP port {port} of the guest's loopback: {other}"),
    }
}

#[cfg(test)]
#[path = "carry_tests.rs"]
mod tests;
