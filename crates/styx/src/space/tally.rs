//! Counters of a namespace, straight from the kernel: some hundred microseconds, where a program that lists rules takes
//! milliseconds and a processor. For whoever adds up all sandboxes of a node.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tartarus_types::net::NetCounter;

use super::Space;
use super::seen::merged;
use crate::StyxError;
use crate::enter::within;
use crate::netlink::{HEADER, Message, attribute, messages, socket};

/// The kernel answers at once, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(2);
/// As much as the kernel gives at once (`NLMSG_GOODSIZE`), and more.
const BUFFER: usize = 64 << 10;
/// `NFT_MSG_NEWOBJ` and `NFT_MSG_GETOBJ` of the subsystem of nftables.
const OBJECT: u16 = 10 << 8 | 18;
const GET_OBJECTS: u16 = 10 << 8 | 19;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `NLM_F_DUMP_INTR`.
const TORN: u16 = 0x10;
/// `NFTA_OBJ_NAME`, `NFTA_OBJ_TYPE` and `NFTA_OBJ_DATA`, and what a counter has (`linux/netfilter/nf_tables.h`).
const NAME: u16 = 2;
const TYPE: u16 = 3;
const DATA: u16 = 4;
const BYTES: u16 = 1;
const PACKETS: u16 = 2;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;

impl Space {
    /// What became of packets since the contract was last changed, as [`Self::counters`] has it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn tally(&self) -> Result<Vec<NetCounter>, StyxError> {
        within(self.namespace.clone(), || here().map_err(StyxError::system("read a sandbox's counters"))).await
    }
}

/// Those of the calling thread's namespace.
fn here() -> io::Result<Vec<NetCounter>> {
    let socket = socket(libc::NETLINK_NETFILTER, 0)?;
    rustix::io::write(&socket, &request())?;
    let (mut counters, mut buffer) = (Vec::new(), vec![0; BUFFER]);
    loop {
        let length = receive(&socket, &mut buffer)?;
        for message in messages(&buffer[..length]) {
            let Ok(Message { kind, flags, body }) = message else { return Err(io::ErrorKind::InvalidData.into()) };
            if flags & TORN != 0 {
                // Rules changed meanwhile: some counters may be there twice, others not at all.
                return Err(io::ErrorKind::Interrupted.into());
            }
            match i32::from(kind) {
                libc::NLMSG_DONE if body.first_chunk().is_none_or(|number| *number == [0; 4]) => {
                    return Ok(merged(counters));
                }
                libc::NLMSG_DONE | libc::NLMSG_ERROR => return Err(refusal(body)),
                kind if kind == i32::from(OBJECT) => counters.extend(counter(body)),
                _ => {}
            }
        }
    }
}

/// For all objects of all tables.
fn request() -> Vec<u8> {
    let mut request = vec![0; HEADER + 4];
    let length = request.len() as u32;
    request[..4].copy_from_slice(&length.to_ne_bytes());
    request[4..6].copy_from_slice(&GET_OBJECTS.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    request
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

/// What the kernel says instead of an answer: a negative number.
fn refusal(body: &[u8]) -> io::Error {
    let number = body.first_chunk().map_or(libc::EIO, |number| i32::from_ne_bytes(*number).saturating_neg());
    io::Error::from_raw_os_error(number)
}

/// A counter, after four bytes of family and version; nothing for another object.
fn counter(object: &[u8]) -> Option<NetCounter> {
    let body = object.get(4..)?;
    let kind = u32::from_be_bytes(*attribute(body, TYPE)?.first_chunk()?);
    let name = attribute(body, NAME)?.strip_suffix(b"\0")?;
    let data = attribute(body, DATA).filter(|_| kind == COUNTER)?;
    let number = |which| Some(u64::from_be_bytes(*attribute(data, which)?.first_chunk()?));
    let name = String::from_utf8(name.to_vec()).ok()?;
    Some(NetCounter { name, packets: number(PACKETS)?, bytes: number(BYTES)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::{message, nested};

    #[test]
    fn counters_are_read_and_nothing_else() {
        let data = nested(&[(BYTES, &700_u64.to_be_bytes()), (PACKETS, &7_u64.to_be_bytes())]);
        let object = |kind: u32, name: &[u8], data: &[u8]| {
            message(OBJECT, &[(1, b"tartarus\0"), (NAME, name), (TYPE, &kind.to_be_bytes()), (DATA | 0x8000, data)])
        };
        let read = |message: &[u8]| counter(&message[HEADER..]);
        let counter = NetCounter { name: "never".to_owned(), packets: 7, bytes: 700 };
        assert_eq!(read(&object(COUNTER, b"never\0", &data)), Some(counter));
        for other in [object(2, b"never\0", &data), object(COUNTER, b"never", &data), object(COUNTER, b"a\0", &[])] {
            assert_eq!(read(&other), None);
        }
        let whole = object(COUNTER, b"never\0", &data);
        for length in HEADER..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
        assert_eq!(refusal(&(-libc::EPERM).to_ne_bytes()).kind(), io::ErrorKind::PermissionDenied);
    }
}
