//! DNS messages, as far as the resolver of a sandbox needs them: one question in, addresses out.
//!
//! Not the parser of a library: that one reads every record type there is, and this needs none. A name is never followed
//! anywhere, since the name in a question has nothing before it that a pointer could point to.

use std::net::Ipv4Addr;

/// The longest message over UDP, in bytes; also the most that a guest may say it takes.
pub(super) const MAX_UDP: usize = 4096;
/// What every resolver takes over UDP, in bytes.
const PLAIN_UDP: usize = 512;
const HEADER: usize = 12;
/// Name, type and class; then type, class, time to live, length and address of a record whose name is a pointer.
const RECORD: usize = 16;
const OPT: u16 = 41;
/// "The name at offset 12": that of the question.
const POINTER: [u8; 2] = [0xC0, HEADER as u8];

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// Answered, perhaps with nothing.
    NoError = 0,
    /// It cannot be read.
    FormErr = 1,
    /// Nobody could be asked, or the answer could not be made reachable.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// It is no question but something else.
    NotImp = 4,
    /// The contract is against it.
    Refused = 5,
    /// It is written in a newer EDNS.
    BadVers = 16,
}

/// A question that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// By which the guest finds the answer.
    pub(super) id: u16,
    /// The name in lower case, without a final dot; `None` when it is no host name (letters, digits, `-` and `_`).
    pub(super) name: Option<String>,
    /// The record type.
    pub(super) kind: u16,
    /// The class; 1 is the internet.
    pub(super) class: u16,
    /// How many bytes the guest takes over UDP; `None` without EDNS.
    pub(super) takes: Option<u16>,
    /// Whether recursion was asked for; copied into the answer.
    recursion: bool,
    /// Name, type and class as they were asked: letters keep their case, by which guests tell answers from forgeries.
    asked: Vec<u8>,
}

/// A message that is no question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It is not answered: too short to be answered, or itself an answer (two servers could keep each other busy).
    Silent,
    /// This is the answer.
    Answer(Vec<u8>),
}

/// The question in a message.
///
/// # Errors
/// When there is not exactly one, with nothing behind it but at most one EDNS record: what to say to the guest.
pub(super) fn parse(message: &[u8]) -> Result<Question, Malformed> {
    let Some((header, rest)) = message.split_at_checked(HEADER) else { return Err(Malformed::Silent) };
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (id, flags) = (word(0), word(2));
    if flags & 0x8000 != 0 {
        return Err(Malformed::Silent);
    }
    let say = |code: Code| Malformed::Answer(header_of(id, flags, code, [0; 4]).to_vec());
    if flags & 0x7800 != 0 {
        return Err(say(Code::NotImp));
    }
    let counts = [word(4), word(6), word(8), word(10)];
    if counts[..3] != [1, 0, 0] || counts[3] > 1 {
        return Err(say(Code::FormErr));
    }
    let (name, length) = name(rest).ok_or_else(|| say(Code::FormErr))?;
    let (asked, rest) = rest.split_at_checked(length + 4).ok_or_else(|| say(Code::FormErr))?;
    let [kind, class] = [length, length + 2].map(|at| u16::from_be_bytes([asked[at], asked[at + 1]]));
    let takes = match counts[3] {
        0 if rest.is_empty() => None,
        0 => return Err(say(Code::FormErr)),
        _ => Some(edns(rest).ok_or_else(|| say(Code::FormErr))?),
    };
    let recursion = flags & 0x0100 != 0;
    let mut question = Question { id, name, kind, class, takes: None, recursion, asked: asked.to_vec() };
    if let Some((size, version)) = takes {
        question.takes = Some(size);
        if version != 0 {
            return Err(Malformed::Answer(reply(&question, Code::BadVers, &[], 0, PLAIN_UDP)));
        }
    }
    Ok(question)
}

/// The name at the start of `bytes`, if it is a host name, and how many bytes it takes; `None` when it is no name.
fn name(bytes: &[u8]) -> Option<(Option<String>, usize)> {
    let (mut at, mut text, mut plain) = (0, String::new(), true);
    loop {
        let length = usize::from(*bytes.get(at)?);
        // 255 bytes are the most that a name may take, its last zero among them. More than 63 would be a pointer.
        if length > 63 || at + length + 1 > 255 - usize::from(length > 0) {
            return None;
        }
        let label = bytes.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            break;
        }
        plain &= label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    Some(((plain && !text.is_empty()).then_some(text), at))
}

/// Size and version of the EDNS record that `bytes` are.
fn edns(bytes: &[u8]) -> Option<(u16, u8)> {
    let [0, kind @ .., size0, size1, _, version, _, _, length0, length1] = *bytes.first_chunk::<11>()? else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([length0, length1]));
    (u16::from_be_bytes(kind) == OPT && bytes.len() == 11 + length)
        .then_some((u16::from_be_bytes([size0, size1]), version))
}

fn header_of(id: u16, flags: u16, code: Code, counts: [u16; 4]) -> [u8; HEADER] {
    // An answer; the guest's operation and its wish for recursion; recursion is available.
    let flags = 0x8000 | (flags & 0x7900) | 0x0080 | (code as u16 & 0xF);
    let mut header = [0; HEADER];
    for (place, word) in header.chunks_exact_mut(2).zip([id, flags].iter().chain(&counts)) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    header
}

/// The answer to `question`: `addresses`, each valid for `ttl` seconds, at the name that was asked for. Over `limit` bytes it
/// has none, and says that it is cut off.
pub(super) fn reply(question: &Question, code: Code, addresses: &[Ipv4Addr], ttl: u32, limit: usize) -> Vec<u8> {
    let edns = if question.takes.is_some() { 11 } else { 0 };
    let fits = HEADER + question.asked.len() + addresses.len() * RECORD + edns <= limit;
    let addresses = if fits { addresses } else { &[] };
    let flags = u16::from(question.recursion) << 8;
    let counts = [1, addresses.len() as u16, 0, u16::from(edns > 0)];
    let mut out = header_of(question.id, flags, code, counts).to_vec();
    if !fits {
        out[2] |= 0x02;
    }
    out.extend(&question.asked);
    for address in addresses {
        out.extend(POINTER);
        out.extend([0, 1, 0, 1]);
        out.extend(ttl.to_be_bytes());
        out.extend([0, 4]);
        out.extend(address.octets());
    }
    if edns > 0 {
        let [size0, size1] = (MAX_UDP as u16).to_be_bytes();
        out.extend([0, 0, OPT as u8, size0, size1, (code as u16 >> 4) as u8, 0, 0, 0, 0, 0]);
    }
    out
}

impl Question {
    /// How long an answer over UDP may be, in bytes.
    pub(super) fn udp_limit(&self) -> usize {
        self.takes.map_or(PLAIN_UDP, |size| usize::from(size).clamp(PLAIN_UDP, MAX_UDP))
    }

    /// The name for people: what is not printable is escaped, and it is never longer than 255 characters.
    pub(super) fn shown(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let (mut shown, mut rest) = (String::new(), &self.asked[..]);
        while let Some((length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let (label, tail) = tail.split_at_checked(usize::from(*length)).unwrap_or((tail, &[]));
            if !shown.is_empty() {
                shown.push('.');
            }
            shown.extend(label.escape_ascii().map(char::from));
            rest = tail;
        }
        shown.truncate(255);
        if shown.is_empty() { ".".to_owned() } else { shown }
    }
}
