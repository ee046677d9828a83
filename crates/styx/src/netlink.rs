//! Netlink below what the libraries know: a socket, and the messages of a datagram.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rtnetlink::packet_core::NlasIterator;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Length, kind, flags, number and sender.
pub(crate) const HEADER: usize = 16;

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: without it the kernel says nothing at the end of what is no list.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`.
const TORN: u16 = 0x10;
/// The kernel answers at once, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(2);
/// As much as the kernel gives at once (`NLMSG_GOODSIZE`), and more.
const BUFFER: usize = 64 << 10;

/// A datagram that is none of netlink's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A socket of the calling thread's namespace that hears of `groups`; it does not block.
pub(crate) fn socket(protocol: libc::c_int, groups: u32) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes numbers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, flags, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an address is numbers, for which zero is valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    let length = std::mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address lives until the call returns, and its length is its own.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Asks netfilter by `socket` for what `kind` asks for, of a family and with attributes, and hands over the kind and the body of each
/// answer, to the last one.
///
/// # Errors
/// When the kernel refuses or says nothing, and when what is listed changed meanwhile, where that can be told.
pub(crate) fn ask(
    socket: &OwnedFd,
    kind: u16,
    flags: u16,
    (family, attributes): (u8, &[u8]),
    mut each: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    let length = (HEADER + 4 + attributes.len()) as u32;
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Number, sender; then netfilter's own: family, version, and a number that nothing here has.
    request.extend([0, 0, 0, 0, 0, 0, 0, 0, family, 0, 0, 0]);
    request.extend(attributes);
    rustix::io::write(socket, &request)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = receive(socket, &mut buffer)?;
        for message in messages(&buffer[..length]) {
            let Ok(Message { kind, flags, body }) = message else { return Err(io::ErrorKind::InvalidData.into()) };
            if flags & TORN != 0 {
                // Some may be there twice, others not at all.
                return Err(io::ErrorKind::Interrupted.into());
            }
            match i32::from(kind) {
                // Both begin with a number, which is zero where all is well.
                libc::NLMSG_DONE | libc::NLMSG_ERROR => return refusal(body).map_or(Ok(()), Err),
                _ => each(kind, body),
            }
        }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    let heard = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&patience)))?;
    if heard == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    // SAFETY: the buffer lives until the call returns, which is told its length. One that is too small is told.
    let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC) };
    match usize::try_from(length) {
        Ok(length) if length <= buffer.len() => Ok(length),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// What the kernel says at the end: a negative number, or nothing is wrong.
fn refusal(body: &[u8]) -> Option<io::Error> {
    let number = body.first_chunk().map_or(-libc::EIO, |number| i32::from_ne_bytes(*number));
    (number != 0).then(|| io::Error::from_raw_os_error(number.saturating_neg()))
}

/// One message: kind, flags, and what follows the header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: &'a [u8],
}

/// The messages of a datagram. It ends with the first one that is malformed.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Some(message) = first(datagram) else {
            datagram = &[];
            return Some(Err(Malformed));
        };
        let next = message.len().next_multiple_of(4);
        datagram = datagram.get(next..).unwrap_or_default();
        let half = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        Some(Ok(Message { kind: half(4), flags: half(6), body: &message[HEADER..] }))
    })
}

fn first(datagram: &[u8]) -> Option<&[u8]> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    datagram.get(..length).filter(|message| message.len() >= HEADER)
}

/// The value of the first attribute of this kind.
pub(crate) fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(found.length());
    // What is left of the message from this one on.
    found.into_inner().get(4..length)
}

/// Attributes of these kinds and values, as the kernel reads them.
pub(crate) fn attributes(all: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in all {
        // What is written here is short: a value is cut before its length could say less than it has.
        let value = &value[..value.len().min(usize::from(u16::MAX) - 4)];
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A message as the kernel of nftables writes it, with attributes.
    pub(crate) fn message(kind: u16, all: &[(u16, &[u8])]) -> Vec<u8> {
        let body = [vec![2, 0, 0, 0], attributes(all)].concat();
        let mut message = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        [message, body].concat()
    }

    #[test]
    fn an_attribute_is_no_more_than_itself() {
        let all = attributes(&[(1, b"abc"), (2 | 0x8000, b"defgh"), (3, b""), (1, b"x")]);
        assert_eq!(
            [1, 2, 3, 4].map(|kind| attribute(&all, kind)),
            [Some(&b"abc"[..]), Some(b"defgh"), Some(b""), None]
        );
        assert_eq!(attribute(&all[..6], 1), None, "cut short");
    }

    #[test]
    fn a_refusal_is_a_number() {
        let kind = |number: i32| refusal(&number.to_ne_bytes()).map(|error| error.kind());
        assert_eq!((kind(0), kind(-libc::EPERM)), (None, Some(io::ErrorKind::PermissionDenied)));
        assert_eq!(refusal(&[0, 0]).unwrap().raw_os_error(), Some(libc::EIO), "cut short");
    }

    #[test]
    fn messages_end_with_what_is_none() {
        let whole = [message(7, &[]), message(8, &[(1, b"abc")])].concat();
        let kinds: Vec<_> = messages(&whole).map(|one| one.map(|one| (one.kind, one.body.len()))).collect();
        assert_eq!(kinds, [Ok((7, 4)), Ok((8, 12))]);
        for length in 1..whole.len() {
            let last = messages(&whole[..length]).last().unwrap();
            assert_eq!(last.is_err(), length != message(7, &[]).len(), "{length}");
        }
        assert_eq!(messages(&[0; 32]).collect::<Vec<_>>(), [Err(Malformed)], "a message without a length");
        assert_eq!(messages(&[]).count(), 0);
    }
}
