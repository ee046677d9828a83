//! The keeper: a small process that holds sealed memory by name and outlives the agent.
//!
//! A memfd dies with its last holder. So the agent gives a duplicate of each to this process, and the next agent gets
//! the same memory back, with which both adopted and new clones share one copy. It knows names and descriptors, not
//! what they are of. It ends when it is told to, or when nobody has been connected for a while.
//!
//! Both sides speak JSON in the messages of a `SOCK_SEQPACKET` socket, a descriptor beside it where there is one.

mod client;
mod process;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use client::{Connection, Connector};
pub use process::main;

/// How long a keeper lives without a client, also when machines still map what it holds: they go on, and share it among
/// themselves, but an agent that comes later does not get that memory back and loads it once more.
pub const ALONE: Duration = Duration::from_secs(600);
/// Longest name, in bytes.
pub const MAX_NAME: usize = 255;
/// Memories that it holds at most.
pub const MAX_HELD: usize = 128;

const SOCKET: &str = "keeper.sock";
/// Its standard input, so that the lock passes to it before its first line of code.
const LOCK: &str = "keeper.lock";
const LAUNCH: &str = "keeper.json";
const LOG: &str = "keeper.log";
/// Longest message: a list of the longest names, each of which JSON may double.
const MAX_MESSAGE: usize = 2 * MAX_NAME * MAX_HELD + 4096;

/// How it is started; written before it is.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    /// It ends after so many ms without a client.
    alone_ms: u64,
}

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Ask {
    /// Hold the memory that comes along; it replaces what had this name.
    Put { name: String },
    /// Give it back.
    Get { name: String },
    /// Hold it no longer.
    Drop { name: String },
    /// Which do you hold?
    List,
    /// End.
    Quit,
}

/// What it answers, once for each question. Its first line on standard output is one as well.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// It is done; the memory comes along, if one was asked for.
    Done,
    /// There is none of that name.
    Absent,
    /// All names.
    Names(Vec<String>),
    /// It cannot be done: why.
    Refused(String),
}

/// Sends a message whole, or fails. Does not wait.
fn send(socket: BorrowedFd<'_>, message: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Receives a message of at most `limit` bytes with at most one descriptor. Does not wait.
fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>, limit: usize) -> io::Result<(T, Option<OwnedFd>)> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut bytes = vec![0; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    // Taken first, so that whatever came is closed.
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || fds.len() > 1 || got.bytes > limit {
        return Err(invalid("a message is too long"));
    }
    let message = serde_json::from_slice(&bytes[..got.bytes]).map_err(|_| invalid("a message is not understood"))?;
    Ok((message, fds.pop()))
}
