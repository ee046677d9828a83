//! Tells processes that were restored: those that went on in many clones at once and must become different before
//! anything else happens. They wait on connections to a socket in `/run`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, chmod, mkdir};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv,
    send, socket_with,
};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::Timespec;

/// The folder of the socket.
pub(crate) const FOLDER: &str = "/run/tartarus";
/// Where processes connect, in [`FOLDER`].
pub(crate) const NAME: &str = "restored";
/// Most connections; the next ones wait until one of them ends.
const CONNECTIONS: usize = 64;
/// Random bytes for each connection.
const RANDOM: usize = 64;
/// Packets that are thrown away at once: more than fit into a connection.
const PACKETS: usize = 512;
/// How long all of them together may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The socket and its connections.
#[derive(Debug)]
pub(crate) struct Hooks {
    socket: OwnedFd,
    connections: Vec<OwnedFd>,
}

impl Hooks {
    /// Makes folder and socket; everybody in the guest may connect.
    pub(crate) fn listen(folder: &str) -> Result<Self, Errno> {
        match mkdir(folder, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let path = [folder, "/", NAME].concat();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
        chmod(path.as_str(), Mode::from_raw_mode(0o666))?;
        listen(&socket, CONNECTIONS as i32)?;
        Ok(Self { socket, connections: Vec::new() })
    }

    /// The socket, to be watched.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Something connected, ended or spoke: takes new connections, which `watch` gets, and drops those that ended. What
    /// comes without being asked for means nothing.
    pub(crate) fn news(&mut self, watch: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) {
        self.connections.retain(lives);
        while self.connections.len() < CONNECTIONS {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                // One that cannot be watched is only noticed to be gone at the next restore.
                Ok(connection) => {
                    let _ = watch(connection.as_fd());
                    self.connections.push(connection);
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    /// Nobody is connected, as far as was seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Gives each connection fresh random bytes and waits for an answer of each, a second at most for all. What was said
    /// before is no answer.
    pub(crate) fn restored(&mut self, watch: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) {
        self.news(watch);
        self.connections.retain(|connection| {
            let mut random = [0; RANDOM];
            getrandom(&mut random, GetRandomFlags::empty()) == Ok(RANDOM)
                && send(connection, &random, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
        });
        let deadline = Instant::now() + PATIENCE;
        let mut waiting: Vec<&OwnedFd> = self.connections.iter().collect();
        while !waiting.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut polled: Vec<PollFd<'_>> = waiting.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
            match poll(&mut polled, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            // One packet of each is its answer, and so is its end, which is seen again by `news`.
            let mut word = [0; RANDOM];
            let silent: Vec<bool> = polled
                .iter()
                .map(|fd| fd.revents().is_empty() || recv(fd, &mut word, RecvFlags::DONTWAIT) == Err(Errno::AGAIN))
                .collect();
            let mut silent = silent.into_iter();
            waiting.retain(|_| silent.next().unwrap_or(false));
        }
    }
}

/// Throws away what it said without being asked; gives whether it is still connected, as far as was read.
fn lives(connection: &OwnedFd) -> bool {
    let mut word = [0; RANDOM];
    for _ in 0..PACKETS {
        match recv(connection, &mut word, RecvFlags::DONTWAIT) {
            Ok((1.., _)) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return true,
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{connect, socket};

    fn hooks() -> (Hooks, impl Fn() -> OwnedFd, impl Drop) {
        struct Folder(String);
        impl Drop for Folder {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("hooks-{}-{count}", std::process::id()));
        let folder = Folder(folder.to_str().unwrap().to_owned());
        let path = format!("{}/{NAME}", folder.0);
        let client = move || {
            let client = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
            connect(&client, &SocketAddrUnix::new(path.as_str()).unwrap()).unwrap();
            client
        };
        (Hooks::listen(&folder.0).unwrap(), client, folder)
    }

    fn process(client: OwnedFd) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut random = vec![0; 100];
            let count = recv(&client, random.as_mut_slice(), RecvFlags::empty()).unwrap().0;
            random.truncate(count);
            send(&client, b"done", SendFlags::empty()).unwrap();
            random
        })
    }

    #[test]
    fn each_gets_bytes_of_its_own_and_is_waited_for() {
        let (mut hooks, client, _folder) = hooks();
        let processes = [process(client()), process(client())];
        hooks.news(|_| Ok(()));
        let began = Instant::now();
        hooks.restored(|_| Ok(()));
        assert!(began.elapsed() < PATIENCE, "nobody was silent");
        let [first, second] = processes.map(|process| process.join().unwrap());
        assert_eq!((first.len(), second.len()), (RANDOM, RANDOM));
        assert_ne!(first, second);
    }

    #[test]
    fn a_silent_one_costs_a_second_and_one_that_ended_nothing() {
        let (mut hooks, client, _folder) = hooks();
        drop(client());
        hooks.news(|_| Ok(()));
        let began = Instant::now();
        hooks.restored(|_| Ok(()));
        assert!(began.elapsed() < PATIENCE / 2);
        let _silent = client();
        hooks.news(|_| Ok(()));
        assert_eq!(hooks.connections.len(), 1);
        hooks.restored(|_| Ok(()));
        assert!(began.elapsed() >= PATIENCE && began.elapsed() < PATIENCE * 3);
    }

    #[test]
    fn an_old_packet_is_no_answer_and_who_waits_in_line_is_asked() {
        let (mut hooks, client, _folder) = hooks();
        let early = client();
        hooks.news(|_| Ok(()));
        send(&early, b"old", SendFlags::empty()).unwrap();
        let late = process(client());
        let began = Instant::now();
        hooks.restored(|_| Ok(()));
        assert!(began.elapsed() >= PATIENCE, "the silent one was waited for");
        assert_eq!(late.join().unwrap().len(), RANDOM);
    }

    /// Whoever sends faster than the agent reads does not keep it.
    #[test]
    fn a_flood_is_read_in_pieces() {
        let (mut hooks, client, _folder) = hooks();
        let flood = client();
        hooks.news(|_| Ok(()));
        let sender = std::thread::spawn(move || while send(&flood, &[1], SendFlags::NOSIGNAL).is_ok() {});
        for _ in 0..3 {
            hooks.news(|_| Ok(()));
        }
        drop(hooks);
        sender.join().unwrap();
    }

    #[test]
    fn connections_are_bounded_and_a_place_is_given_again() {
        let (mut hooks, client, _folder) = hooks();
        let mut clients: Vec<OwnedFd> = (0..=CONNECTIONS).map(|_| client()).collect();
        hooks.news(|_| Ok(()));
        assert_eq!(hooks.connections.len(), CONNECTIONS);
        clients.remove(0);
        hooks.news(|_| Ok(()));
        assert_eq!(hooks.connections.len(), CONNECTIONS);
        clients.clear();
        hooks.news(|_| Ok(()));
        assert!(hooks.connections.is_empty());
    }
}
