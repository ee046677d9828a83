//! The supervisor at the other end of a connection, as a process: by it the agent finds the network namespace of a machine,
//! also of one that another agent started.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::UnixStream;

/// The process that listens.
#[derive(Debug)]
pub(super) struct Peer {
    pid: u32,
    /// The connection to it, which ends before its process id can be another's.
    connection: OwnedFd,
}

impl Peer {
    /// Of a connection to its socket: who listens there, by the kernel's word.
    pub(super) fn of(socket: &UnixStream) -> io::Result<Self> {
        let pid = socket.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| io::Error::other("the kernel does not say which process its supervisor is"))?;
        Ok(Self { pid, connection: socket.as_fd().try_clone_to_owned()? })
    }

    /// The network namespace that it is in; `None` when it is gone.
    pub(super) fn network(&self) -> Option<OwnedFd> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid)).ok()?;
        // In this order: it lived when this was opened.
        self.lives().then(|| namespace.into())
    }

    fn lives(&self) -> bool {
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let mut connection = [PollFd::new(&self.connection, PollFlags::RDHUP)];
        poll(&mut connection, Some(&Timespec::default())).is_ok() && !connection[0].revents().intersects(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_whoever_listens_and_only_while_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let socket = UnixStream::connect(dir.path().join("s")).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        let peer = Peer::of(&socket).unwrap();
        let own = |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let ours = File::open("/proc/self/ns/net").unwrap().into();
        assert_eq!((peer.pid, own(peer.network().unwrap())), (std::process::id(), own(ours)));
        drop(socket);
        assert!(peer.network().is_some(), "of which it has an end by itself");
        drop(served);
        assert!(peer.network().is_none());
    }
}
