//! The keeper's process: one thread, one `poll`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt::socket_peercred};

use super::{Answer, Ask, LAUNCH, Launch, MAX_HELD, MAX_NAME, SOCKET, receive, send};
use crate::sealed;

/// Connections at once: an agent, one that just died, and whoever looks.
const MAX_CLIENTS: usize = 8;
/// Longest question.
const MAX_QUESTION: usize = 2048;

/// Runs the keeper in `dir`; returns the process's exit code.
pub fn main(dir: &Path) -> i32 {
    match start(dir) {
        Ok(mut keeper) => {
            tell_parent(&Answer::Done);
            while keeper.turn() {}
            let _ = std::fs::remove_file(SOCKET);
            0
        }
        Err(why) => {
            tell_parent(&Answer::Refused(why.to_string()));
            1
        }
    }
}

/// The parent reads one line; afterwards nobody may read, so standard output must not be used again.
fn tell_parent(answer: &Answer) {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    let _ = io::stdout().write_all(&line);
    let _ = io::stdout().flush();
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

struct Keeper {
    listener: OwnedFd,
    clients: Vec<OwnedFd>,
    held: BTreeMap<String, OwnedFd>,
    alone: Duration,
    /// When the last client left.
    alone_since: Instant,
}

fn start(dir: &Path) -> io::Result<Keeper> {
    // Whatever the agent had open must not live on here. Nothing but the standard streams is this process's own yet.
    // SAFETY: a system call on numbers; no descriptor from 3 on has an owner in this process.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
    }
    std::env::set_current_dir(dir)?;
    let launch: Launch = serde_json::from_slice(&std::fs::read(LAUNCH)?)?;
    // The lock says that no other keeper listens there.
    let _ = std::fs::remove_file(SOCKET);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(SOCKET)?)?;
    rustix::net::listen(&listener, MAX_CLIENTS as i32)?;
    let alone = Duration::from_millis(launch.alone_ms);
    Ok(Keeper { listener, clients: Vec::new(), held: BTreeMap::new(), alone, alone_since: Instant::now() })
}

/// What comes of a question.
enum Next {
    /// The client may ask again.
    Stay,
    /// It is gone, or talks nonsense.
    Gone,
    /// End.
    Quit,
}

impl Keeper {
    /// Waits for the next thing to happen; false when it is time to end.
    fn turn(&mut self) -> bool {
        let mut timeout = None;
        if self.clients.is_empty() {
            let left = self.alone.saturating_sub(self.alone_since.elapsed());
            if left.is_zero() {
                return false;
            }
            timeout = rustix::time::Timespec::try_from(left).ok();
        }
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.clients.iter().map(|client| PollFd::new(client, PollFlags::IN)));
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return true; // interrupted
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for index in (0..self.clients.len()).rev().filter(|index| ready[1 + index]) {
            match self.serve(index) {
                Next::Stay => {}
                Next::Gone => {
                    self.clients.swap_remove(index);
                    self.alone_since = Instant::now();
                }
                Next::Quit => return false,
            }
        }
        if ready[0] {
            self.accept();
        }
        true
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(client) = rustix::net::accept_with(&self.listener, flags) else { return };
        let same = socket_peercred(&client).is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        // One too many, or a stranger, finds the connection closed.
        if same && self.clients.len() < MAX_CLIENTS {
            self.clients.push(client);
        }
    }

    fn serve(&mut self, index: usize) -> Next {
        let (ask, fd) = match receive(self.clients[index].as_fd(), MAX_QUESTION) {
            Ok(question) => question,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Next::Stay,
            Err(_) => return Next::Gone,
        };
        let quit = matches!(ask, Ask::Quit);
        let (answer, found) = answer(&mut self.held, ask, fd);
        let sent = send(self.clients[index].as_fd(), &answer, found.as_ref().map(AsFd::as_fd));
        match (quit, sent) {
            (true, _) => Next::Quit,
            (false, Ok(())) => Next::Stay,
            // It does not read its answers.
            (false, Err(_)) => Next::Gone,
        }
    }
}

fn answer(held: &mut BTreeMap<String, OwnedFd>, ask: Ask, fd: Option<OwnedFd>) -> (Answer, Option<OwnedFd>) {
    let refused = |why: &str| (Answer::Refused(why.to_owned()), None);
    match ask {
        Ask::Put { name } => {
            let Some(fd) = fd else { return refused("no descriptor came along") };
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                return refused("the name is empty, too long or has control characters");
            }
            if !sealed::is_sealed(fd.as_fd()) {
                return refused("it is not sealed memory");
            }
            if held.len() >= MAX_HELD && !held.contains_key(&name) {
                return refused("no more can be held");
            }
            held.insert(name, fd);
            (Answer::Done, None)
        }
        Ask::Get { name } => match held.get(&name).map(OwnedFd::try_clone) {
            None => (Answer::Absent, None),
            Some(Ok(fd)) => (Answer::Done, Some(fd)),
            Some(Err(e)) => (Answer::Refused(e.to_string()), None),
        },
        Ask::Drop { name } => (if held.remove(&name).is_some() { Answer::Done } else { Answer::Absent }, None),
        Ask::List => (Answer::Names(held.keys().cloned().collect()), None),
        Ask::Quit => (Answer::Done, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Option<OwnedFd> {
        Some(sealed::seal(sealed::unsealed(&[3; 32], 4096).unwrap()).unwrap())
    }

    #[test]
    fn what_it_holds_is_bounded_and_sealed() {
        let mut held = BTreeMap::new();
        let mut put = |name: String, fd| answer(&mut held, Ask::Put { name }, fd).0;
        for name in [String::new(), "a\n".to_owned(), "a".repeat(MAX_NAME + 1)] {
            assert!(matches!(put(name, memory()), Answer::Refused(_)));
        }
        assert!(matches!(put("a".to_owned(), None), Answer::Refused(_)));
        assert!(matches!(put("a".to_owned(), Some(tempfile::tempfile().unwrap().into())), Answer::Refused(_)));
        let open = sealed::unsealed(&[3; 32], 4096).unwrap();
        assert!(matches!(put("a".to_owned(), Some(open.into())), Answer::Refused(_)));
        for n in 0..MAX_HELD {
            assert!(matches!(put(format!("\"{n:254}"), memory()), Answer::Done));
        }
        assert!(matches!(put("one more".to_owned(), memory()), Answer::Refused(_)));
        assert!(matches!(put(format!("\"{:254}", 7), memory()), Answer::Done));
        let (names, _) = answer(&mut held, Ask::List, None);
        assert!(serde_json::to_vec(&names).unwrap().len() <= super::super::MAX_MESSAGE);
        assert!(matches!(answer(&mut held, Ask::Get { name: "no".into() }, None), (Answer::Absent, None)));
        let name = format!("\"{:254}", 7);
        assert!(matches!(answer(&mut held, Ask::Get { name: name.clone() }, None), (Answer::Done, Some(_))));
        assert!(matches!(answer(&mut held, Ask::Drop { name: name.clone() }, None), (Answer::Done, None)));
        assert!(matches!(answer(&mut held, Ask::Drop { name }, None), (Answer::Absent, None)));
    }
}
