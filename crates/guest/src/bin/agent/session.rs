//! The protocol of one session, without any I/O: bytes of the host become checked [`Request`]s, answers become bytes.
//!
//! Used by `agent`. Knows no process. A host that breaks a rule gets one `Fault`; then nothing is heard or said until
//! it opens a new session.

use tartarus_guest::frame::{self, Assembler, Decoder, Found, MAGIC};
use tartarus_guest::{Frame, Freeze, Header, Hello, Kind, Start, StartRunner, Stream, message};

/// Most bytes of a fault's text.
const MAX_FAULT: usize = 4096;

/// Most bytes of a token.
const MAX_TOKEN: usize = 256;

/// What the host wants, checked as far as that goes without knowing the processes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A new session began; the last one is void. `Hello` follows.
    Began,
    /// Identity, time and randomness.
    Hello(Hello),
    /// Start a process, once.
    Start(u32, Start),
    /// Standard input at a position.
    Stdin(u32, u64, Vec<u8>),
    /// Standard input ends at a position.
    StdinEof(u32, u64),
    /// Output up to a position is safe.
    Ack(u32, Stream, u64),
    /// Send output from a position on.
    Attach(u32, Stream, u64),
    /// A signal number, 1 to 64, for the process group.
    Signal(u32, i32),
    /// The end is safe.
    Forget(u32),
    /// The time now, nanoseconds since the epoch.
    Clock(u64),
    /// Start the runner, once.
    StartRunner(StartRunner),
    /// Freeze the layer for a snapshot.
    Freeze(Freeze),
    /// Connect to a port, from 1 on.
    Dial(u32, u16),
    /// Bytes of a connection at a position.
    Carry(u32, u64, Vec<u8>),
    /// A connection's bytes end at a position.
    CarryEof(u32, u64),
    /// A connection's bytes up to a position were taken.
    Carried(u32, u64),
    /// Cut a connection off.
    Cut(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No host, or one that was cut off.
    Deaf,
    /// The host may say nothing but `Hello`.
    Opened(u32),
    /// All requests are allowed.
    Greeted(u32),
}

/// One session after another.
#[derive(Debug)]
pub(crate) struct Session {
    decoder: Decoder,
    stage: Stage,
    assembler: Assembler,
    /// The message that is being put together.
    partial: Option<(Kind, u32)>,
    out: Vec<u8>,
    /// First byte of `out` that is not written yet.
    written: usize,
}

impl Session {
    /// Before the first host.
    pub(crate) fn new() -> Self {
        Self {
            decoder: Decoder::guest(),
            stage: Stage::Deaf,
            assembler: Assembler::default(),
            partial: None,
            out: Vec::new(),
            written: 0,
        }
    }

    /// Adds bytes of the host.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next request. After one that cannot be met, call [`Session::fault`].
    pub(crate) fn next_request(&mut self) -> Option<Request> {
        // The guest's decoder never fails: it searches for the next session instead.
        while let Ok(Some(found)) = self.decoder.next_found() {
            match found {
                Found::Session(nonce) => {
                    self.stage = Stage::Opened(frame::tag(&nonce));
                    self.forget_partial();
                    self.written = 0;
                    self.out.clear();
                    self.out.extend_from_slice(&MAGIC);
                    self.out.extend_from_slice(&nonce);
                    return Some(Request::Began);
                }
                Found::Frame(frame) if self.stage != Stage::Deaf => match self.request(frame) {
                    Ok(Some(request)) => return Some(request),
                    Ok(None) => {}
                    Err(why) => self.fault(&why),
                },
                Found::Frame(_) => {}
            }
        }
        None
    }

    fn request(&mut self, frame: Frame) -> Result<Option<Request>, String> {
        let Header { kind, stream, process, offset } = frame.header;
        if matches!(self.stage, Stage::Opened(_)) != (kind == Kind::Hello) {
            return Err("a session begins with one hello".to_owned());
        }
        if self.partial.is_some_and(|partial| partial != (kind, process)) {
            return Err("another frame within a message".to_owned());
        }
        let of_stream = || Stream::from_number(stream).ok_or_else(|| format!("no stream has number {stream}"));
        Ok(Some(match kind {
            Kind::Hello | Kind::Start | Kind::StartRunner => match self.message(frame)? {
                Some(message) => message,
                None => return Ok(None),
            },
            Kind::Stdin => Request::Stdin(process, offset, frame.payload),
            Kind::StdinEof => Request::StdinEof(process, offset),
            Kind::Ack => Request::Ack(process, of_stream()?, offset),
            Kind::Attach => Request::Attach(process, of_stream()?, offset),
            Kind::Signal => match i32::try_from(offset) {
                Ok(signal @ 1..=64) => Request::Signal(process, signal),
                _ => return Err(format!("no signal has number {offset}")),
            },
            Kind::Forget => Request::Forget(process),
            Kind::Clock => Request::Clock(offset),
            Kind::Freeze if frame.payload.is_empty() => Request::Freeze(Freeze::default()),
            Kind::Freeze => {
                Request::Freeze(message::decode("freeze", &frame.payload).map_err(|error| error.to_string())?)
            }
            Kind::Dial => match u16::try_from(offset) {
                Ok(port @ 1..) => Request::Dial(process, port),
                _ => return Err(format!("no port has number {offset}")),
            },
            Kind::Carry => Request::Carry(process, offset, frame.payload),
            Kind::CarryEof => Request::CarryEof(process, offset),
            Kind::Carried => Request::Carried(process, offset),
            Kind::Cut => Request::Cut(process),
            Kind::HelloAck
            | Kind::Started
            | Kind::Output
            | Kind::StdinAck
            | Kind::Ended
            | Kind::Fault
            | Kind::Runner
            | Kind::Frozen
            | Kind::Dialed
            | Kind::Refused => {
                return Err(format!("a frame of kind {kind:?} comes from the guest only"));
            }
        }))
    }

    fn message(&mut self, frame: Frame) -> Result<Option<Request>, String> {
        let Header { kind, process, .. } = frame.header;
        self.partial = Some((kind, process));
        let Some(whole) = self.assembler.push(frame).map_err(|error| error.to_string())? else { return Ok(None) };
        self.partial = None;
        if kind == Kind::Hello {
            let hello = message::decode("hello", &whole).map_err(|error| error.to_string())?;
            if let Stage::Opened(tag) = self.stage {
                self.stage = Stage::Greeted(tag);
            }
            return Ok(Some(Request::Hello(hello)));
        }
        if kind == Kind::StartRunner {
            let start = message::decode("start of a runner", &whole).map_err(|error| error.to_string())?;
            return Ok(Some(Request::StartRunner(start)));
        }
        let start: Start = message::decode("start", &whole).map_err(|error| error.to_string())?;
        if start.token.is_empty() || start.token.len() > MAX_TOKEN {
            return Err(format!("a token has 1 to {MAX_TOKEN} bytes"));
        }
        Ok(Some(Request::Start(process, start)))
    }

    /// Queues a frame; nothing when no host listens.
    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) {
        if let Stage::Opened(tag) | Stage::Greeted(tag) = self.stage {
            frame::encode(tag, header, payload, &mut self.out);
        }
    }

    /// Queues a message; nothing when no host listens.
    pub(crate) fn send_message(&mut self, kind: Kind, process: u32, message: &[u8]) {
        if let Stage::Opened(tag) | Stage::Greeted(tag) = self.stage {
            frame::encode_message(tag, kind, process, message, &mut self.out);
        }
    }

    /// Says why the session cannot go on, and ends it.
    pub(crate) fn fault(&mut self, why: &str) {
        self.send(Header::new(Kind::Fault, 0), shortened(why, MAX_FAULT).as_bytes());
        self.stage = Stage::Deaf;
        self.forget_partial();
    }

    /// The host was greeted and broke no rule.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Greeted(_))
    }

    /// What is to be written to the port.
    pub(crate) fn unwritten(&self) -> &[u8] {
        &self.out[self.written..]
    }

    /// Notes that `count` bytes of [`Session::unwritten`] were written.
    pub(crate) fn wrote(&mut self, count: usize) {
        self.written += count;
        // Not at every write, so that each byte is moved once at most.
        if self.written * 2 >= self.out.len() {
            self.out.drain(..self.written);
            self.written = 0;
        }
    }

    fn forget_partial(&mut self) {
        self.assembler = Assembler::default();
        self.partial = None;
    }
}

/// At most `most` bytes of `text`, cut between characters.
pub(crate) fn shortened(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
