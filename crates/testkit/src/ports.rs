//! What "listens" in the pretended guest, by port: see the constants.

use std::collections::{BTreeMap, VecDeque};

use tartarus_guest::flow::{Incoming, Outgoing};
use tartarus_guest::frame::{self, MAX_PAYLOAD};
use tartarus_guest::{Frame, Header, Kind};

/// Sends back what it gets.
pub const ECHO: u16 = 7;
/// Takes nothing.
pub const DEAF: u16 = 9;
/// Sends for ever.
pub const LOUD: u16 = 19;
/// Counts what it gets until the end, then answers with the number and ends.
pub const COUNT: u16 = 13;
/// Cuts a connection off at its first byte.
pub const RUDE: u16 = 14;
/// Sends more than it may.
pub const LIAR: u16 = 15;

/// All connections. Any other port is refused.
#[derive(Default)]
pub(crate) struct Ports(BTreeMap<u32, Connection>);

#[derive(Default)]
struct Connection {
    port: u16,
    into: Incoming,
    out: Outgoing,
    held: VecDeque<u8>,
    counted: usize,
}

impl Ports {
    /// Takes a frame about a connection; answers go into `out`.
    pub(crate) fn heard(&mut self, tag: u32, frame: Frame, out: &mut Vec<u8>) {
        let Frame { header: Header { kind, process: number, offset, .. }, payload } = frame;
        let mut say = |kind, offset, payload: &[u8]| {
            frame::encode(tag, Header { offset, ..Header::new(kind, number) }, payload, &mut *out);
        };
        if kind == Kind::Dial {
            let port = u16::try_from(offset).expect("a port");
            match port {
                ECHO | DEAF | LOUD | COUNT | RUDE | LIAR => {
                    say(Kind::Dialed, 0, b"");
                    assert!(self.0.len() < tartarus_guest::MAX_CARRIED, "more connections than there may be");
                    self.0.insert(number, Connection { port, ..Connection::default() });
                }
                _ => say(Kind::Refused, 0, b"planned: nothing listens"),
            }
        }
        if kind == Kind::Cut {
            self.0.remove(&number);
        }
        let Some(connection) = self.0.get_mut(&number) else { return };
        match kind {
            Kind::Carry if connection.port == RUDE => {
                say(Kind::Cut, 0, b"");
                self.0.remove(&number);
                return;
            }
            Kind::Carry => {
                connection.into.receive(offset, payload.len()).expect("the host keeps the rules");
                connection.held.extend(payload);
            }
            Kind::CarryEof => connection.into.end(offset).expect("the host keeps the rules"),
            Kind::Carried => connection.out.taken(offset).expect("the host keeps the rules"),
            _ => {}
        }
        connection.act(&mut say);
        if connection.out.is_ended() && connection.into.is_over() {
            self.0.remove(&number);
        }
    }
}

impl Connection {
    fn act(&mut self, say: &mut impl FnMut(Kind, u64, &[u8])) {
        match self.port {
            COUNT => {
                self.into.take(self.held.len());
                self.counted += self.held.len();
                self.held.clear();
                if self.into.is_over() && !self.out.is_ended() {
                    let text = self.counted.to_string();
                    say(Kind::Carry, self.out.send(text.len()), text.as_bytes());
                    say(Kind::CarryEof, self.out.end(), b"");
                }
            }
            ECHO => {
                while !self.held.is_empty() && self.out.room() > 0 {
                    let count = self.held.len().min(self.out.room()).min(MAX_PAYLOAD);
                    let bytes: Vec<u8> = self.held.drain(..count).collect();
                    self.into.take(count);
                    say(Kind::Carry, self.out.send(count), &bytes);
                }
                if self.into.is_over() && !self.out.is_ended() {
                    say(Kind::CarryEof, self.out.end(), b"");
                }
            }
            LOUD => {
                while self.out.room() > 0 {
                    let count = self.out.room().min(MAX_PAYLOAD);
                    say(Kind::Carry, self.out.send(count), &vec![b'!'; count]);
                }
            }
            LIAR => {
                for part in 0..1024 {
                    say(Kind::Carry, part * MAX_PAYLOAD as u64, &[b'?'; MAX_PAYLOAD]);
                }
            }
            _ => {}
        }
        if let Some(offset) = self.into.due() {
            say(Kind::Carried, offset, b"");
        }
    }
}
