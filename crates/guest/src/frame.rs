//! Frames: a fixed header, a payload of bounded length, and the session's tag once more.
//!
//! ```text
//! tag u32 | kind u8 | stream u8 | 0 u16 | process u32 | length u32 | offset u64 | payload … | tag u32
//! ```
//! All numbers are little-endian. The tag at the end tells a frame that the old host connection left half-written from
//! a whole one: what follows it belongs to another session, so the tags differ.

/// Bytes of a header.
pub const HEADER: usize = 24;
/// Largest payload: small, so that streams share the line fairly and the preamble's padding costs little.
pub const MAX_PAYLOAD: usize = 32 * 1024;
/// Largest message, over all its frames. A command with its environment may have 1 MiB, JSON makes it longer.
pub const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// The padding of a preamble: longer than any frame that the last session could have left half-written.
const FLUSH: usize = HEADER + MAX_PAYLOAD + 4;
/// What a preamble is found by. Random, so that no data holds it by accident.
pub const MAGIC: [u8; 16] = *b"\xd7\x1fTTRS\x9e\x02\x8b\xe4\x53\x0c\xaa\x71\xf6\x3d";
/// Bytes of a nonce.
pub const NONCE: usize = 16;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host: [`crate::Hello`], the first frame of a session.
    Hello = 1,
    /// Host: [`crate::Start`], see [`encode_message`].
    Start = 2,
    /// Host: bytes for the process's standard input at `offset`.
    Stdin = 3,
    /// Host: no more standard input follows; `offset` is its length.
    StdinEof = 4,
    /// Host: it has the output of `stream` up to `offset` on disk.
    Ack = 5,
    /// Host: send signal number `offset` to the process group.
    Signal = 6,
    /// Host: send output from `offset` on; nothing is sent for a stream before this.
    Attach = 7,
    /// Host: it has the end on disk; the guest may forget the process.
    Forget = 8,
    /// Host: the time now is `offset` nanoseconds since the Unix epoch. A hello may have waited for the guest to boot;
    /// this comes when the guest is known to listen.
    Clock = 9,
    /// Host: [`crate::StartRunner`], see [`encode_message`]. Since version 2.
    StartRunner = 10,
    /// Host: write everything to the layer and freeze it, for a snapshot; the next session's hello thaws it. Since
    /// version 2.
    Freeze = 11,
    /// Host: connect to TCP port `offset` of the guest's loopback; `process` is the connection's number, as in all frames
    /// about it: higher than any before in the session. Since version 3, as all of them.
    Dial = 16,
    /// Both: bytes of a connection at `offset`, see [`crate::flow`].
    Carry = 32,
    /// Both: a connection's bytes in this direction end at `offset`.
    CarryEof = 33,
    /// Both: a connection's bytes before `offset` were taken.
    Carried = 34,
    /// Both: a connection is cut off, in both directions. It comes last.
    Cut = 35,
    /// Guest: [`crate::HelloAck`], see [`encode_message`].
    HelloAck = 65,
    /// Guest: the process runs; `offset` is its pid.
    Started = 66,
    /// Guest: bytes of output of `stream` at `offset`.
    Output = 67,
    /// Guest: standard input up to `offset` was taken over.
    StdinAck = 68,
    /// Guest: [`crate::End`]; all output was sent before.
    Ended = 69,
    /// Guest: it cannot go on; the payload says why, in UTF-8.
    Fault = 70,
    /// Guest: [`crate::RunnerState`]. Since version 2.
    Runner = 71,
    /// Guest: the layer is frozen; an empty payload, or why it could not be, in UTF-8. Since version 2.
    Frozen = 72,
    /// Guest: connected. Since version 3.
    Dialed = 80,
    /// Guest: not connected; the payload says why, in UTF-8. Since version 3.
    Refused = 81,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Start,
            3 => Self::Stdin,
            4 => Self::StdinEof,
            5 => Self::Ack,
            6 => Self::Signal,
            7 => Self::Attach,
            8 => Self::Forget,
            9 => Self::Clock,
            10 => Self::StartRunner,
            11 => Self::Freeze,
            16 => Self::Dial,
            32 => Self::Carry,
            33 => Self::CarryEof,
            34 => Self::Carried,
            35 => Self::Cut,
            65 => Self::HelloAck,
            66 => Self::Started,
            67 => Self::Output,
            68 => Self::StdinAck,
            69 => Self::Ended,
            70 => Self::Fault,
            71 => Self::Runner,
            72 => Self::Frozen,
            80 => Self::Dialed,
            81 => Self::Refused,
            _ => return None,
        })
    }
}

/// A header without tag and length, which belong to the session and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// 1 standard output, 2 standard error, 0 where it does not apply.
    pub stream: u8,
    /// The process, as numbered by the host; 0 is the main command. The carried connection, where a frame is about one.
    pub process: u32,
    /// A position in a stream, or the number the kind says.
    pub offset: u64,
}

impl Header {
    /// A header with stream and offset 0.
    pub fn new(kind: Kind, process: u32) -> Self {
        Self { kind, stream: 0, process, offset: 0 }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its payload, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// The peer broke the protocol; the connection is of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The tag is not this session's.
    #[error("a frame of another session")]
    Tag,
    /// The kind is unknown.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// The payload would be longer than allowed.
    #[error("a frame of {0} bytes")]
    Length(u32),
    /// A field that must be 0 is not.
    #[error("a reserved field is not zero")]
    Reserved,
    /// The payload is no such message.
    #[error("the message {0} could not be read")]
    Message(&'static str),
    /// A rule of carried connections.
    #[error(transparent)]
    Flow(#[from] crate::flow::Broken),
    /// A word about a carried connection that was not its turn.
    #[error("a frame {0:?} of connection {1} has no place there")]
    Carried(Kind, u32),
}

/// The tag of a session: the first bytes of its nonce, never 0 (the padding of a preamble).
pub fn tag(nonce: &[u8; NONCE]) -> u32 {
    u32::from_le_bytes([nonce[0] | 1, nonce[1], nonce[2], nonce[3]])
}

/// Appends one frame to `out`.
///
/// # Panics
/// When the payload is longer than [`MAX_PAYLOAD`]; callers bound what they send.
pub fn encode(tag: u32, header: Header, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= MAX_PAYLOAD, "a payload of {} bytes", payload.len());
    out.reserve(HEADER + payload.len() + 4);
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&[header.kind as u8, header.stream, 0, 0]);
    out.extend_from_slice(&header.process.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&header.offset.to_le_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(&tag.to_le_bytes());
}

/// Appends a message to `out`, split over as many frames as it needs: the `offset` of each is the number of bytes of
/// the message that follow in later frames.
///
/// # Panics
/// When the message is longer than [`MAX_MESSAGE`]; callers bound what they send.
pub fn encode_message(tag: u32, kind: Kind, process: u32, message: &[u8], out: &mut Vec<u8>) {
    assert!(message.len() <= MAX_MESSAGE, "a message of {} bytes", message.len());
    let mut rest = message;
    loop {
        let (part, after) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let header = Header { kind, stream: 0, process, offset: after.len() as u64 };
        encode(tag, header, part, out);
        if after.is_empty() {
            return;
        }
        rest = after;
    }
}

/// Puts a message's frames together again. One message at a time: the sender does not interleave two.
#[derive(Debug, Default)]
pub struct Assembler {
    parts: Vec<u8>,
}

impl Assembler {
    /// Takes a frame of a message; gives the whole message with its last frame.
    ///
    /// # Errors
    /// When the message grows beyond [`MAX_MESSAGE`].
    pub fn push(&mut self, frame: Frame) -> Result<Option<Vec<u8>>, Malformed> {
        let follows = usize::try_from(frame.header.offset).unwrap_or(usize::MAX);
        if self.parts.len().saturating_add(frame.payload.len()).saturating_add(follows) > MAX_MESSAGE {
            self.parts = Vec::new();
            return Err(Malformed::Length(u32::MAX));
        }
        self.parts.extend_from_slice(&frame.payload);
        Ok((follows == 0).then(|| std::mem::take(&mut self.parts)))
    }
}

/// What opens a connection: zeros that end any half-written frame, the magic and the nonce. The first frame follows.
pub fn preamble(nonce: &[u8; NONCE]) -> Vec<u8> {
    let mut out = vec![0; FLUSH];
    out.extend_from_slice(&short_preamble(nonce));
    out
}

/// A preamble without padding, for a peer that is known to be between two frames: a restored clone whose last session
/// ended with [`Kind::Frozen`]. A half-written frame would swallow it.
pub fn short_preamble(nonce: &[u8; NONCE]) -> [u8; MAGIC.len() + NONCE] {
    let mut out = [0; MAGIC.len() + NONCE];
    out[..MAGIC.len()].copy_from_slice(&MAGIC);
    out[MAGIC.len()..].copy_from_slice(nonce);
    out
}

/// Finds frames in a byte stream. Starts out searching: the guest for a preamble, the host for its own nonce.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// First byte of `buffer` not yet consumed.
    start: usize,
    sync: Sync,
    side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    Searching,
    Session(u32),
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Guest,
    /// The guest echoes magic and nonce before its first frame.
    Host([u8; NONCE]),
}

/// What a decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A session began; whatever the last one left is void. The nonce must be echoed.
    Session([u8; NONCE]),
    /// A frame of the session.
    Frame(Frame),
}

impl Decoder {
    /// The guest's: a preamble starts a session at any time, also within another.
    pub fn guest() -> Self {
        Self { buffer: Vec::new(), start: 0, sync: Sync::Searching, side: Side::Guest }
    }

    /// The host's, for the connection that it opened with `nonce`.
    pub fn host(nonce: [u8; NONCE]) -> Self {
        Self { buffer: Vec::new(), start: 0, sync: Sync::Searching, side: Side::Host(nonce) }
    }

    /// Forgets the session and all bytes: the connection ended.
    pub fn reset(&mut self) {
        self.buffer.clear();
        self.start = 0;
        self.sync = Sync::Searching;
    }

    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next thing in the bytes pushed so far; `None` when more bytes are needed.
    ///
    /// # Errors
    /// On the host a malformed frame is final. On the guest it never is: the decoder goes back to searching.
    pub fn next_found(&mut self) -> Result<Option<Found>, Malformed> {
        loop {
            match self.sync {
                Sync::Searching => {
                    let Some(nonce) = self.search() else { return Ok(None) };
                    self.sync = Sync::Session(tag(&nonce));
                    return Ok(Some(Found::Session(nonce)));
                }
                Sync::Session(tag) => match (parse(&self.buffer[self.start..], tag), self.side) {
                    (Ok(None), _) => return Ok(None),
                    (Ok(Some((frame, length))), _) => {
                        self.start += length;
                        return Ok(Some(Found::Frame(frame)));
                    }
                    (Err(error), Side::Host(_)) => return Err(error),
                    (Err(_), Side::Guest) => self.sync = Sync::Searching,
                },
            }
        }
    }

    /// Drops bytes up to the end of a preamble and gives its nonce, or drops all that cannot begin one.
    fn search(&mut self) -> Option<[u8; NONCE]> {
        loop {
            let bytes = &self.buffer[self.start..];
            let Some(at) = find_magic(bytes) else {
                self.start += bytes.len().saturating_sub(MAGIC.len() - 1);
                return None;
            };
            self.start += at;
            let nonce = bytes.get(at + MAGIC.len()..at + MAGIC.len() + NONCE)?.try_into().ok()?;
            self.start += MAGIC.len();
            match self.side {
                Side::Host(own) if own != nonce => {}
                _ => {
                    self.start += NONCE;
                    return Some(nonce);
                }
            }
        }
    }
}

/// How far a search for [`MAGIC`] may move when this byte stands where its last one should: padding is passed over in
/// steps of its whole length.
const STEPS: [u8; 256] = {
    let mut steps = [MAGIC.len() as u8; 256];
    let mut at = 0;
    while at + 1 < MAGIC.len() {
        steps[MAGIC[at] as usize] = (MAGIC.len() - 1 - at) as u8;
        at += 1;
    }
    steps
};

fn find_magic(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let last = *bytes.get(at + MAGIC.len() - 1)?;
        if last == MAGIC[MAGIC.len() - 1] && bytes[at..].starts_with(&MAGIC) {
            return Some(at);
        }
        at += usize::from(STEPS[usize::from(last)]);
    }
}

/// One frame at the start of `bytes` and its whole length.
fn parse(bytes: &[u8], tag: u32) -> Result<Option<(Frame, usize)>, Malformed> {
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if bytes.len() < HEADER {
        return Ok(None);
    }
    if u32_at(0) != tag {
        return Err(Malformed::Tag);
    }
    let kind = Kind::from_byte(bytes[4]).ok_or(Malformed::Kind(bytes[4]))?;
    if bytes[6] != 0 || bytes[7] != 0 {
        return Err(Malformed::Reserved);
    }
    let length = u32_at(12);
    if length as usize > MAX_PAYLOAD {
        return Err(Malformed::Length(length));
    }
    let end = HEADER + length as usize;
    if bytes.len() < end + 4 {
        return Ok(None);
    }
    if u32_at(end) != tag {
        return Err(Malformed::Tag);
    }
    let offset = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    let header = Header { kind, stream: bytes[5], process: u32_at(8), offset };
    Ok(Some((Frame { header, payload: bytes[HEADER..end].to_vec() }, end + 4)))
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
