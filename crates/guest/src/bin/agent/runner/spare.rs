//! The spare: a forked interpreter that waits for its job, and the packet that makes it one.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::{Errno, write};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::Timespec;
use tartarus_guest::Stream;

use super::Watch;
use super::zygote::PYTHON_WARM;
use crate::events::{Source, SparePart};
use crate::spawn::{hand_over, output_pipes};
use crate::users::User;

/// Random bytes that a job is seeded with: three keys of 32, and twice 624 words, which are whole states of the generator
/// that most libraries use.
pub(super) const RANDOM: usize = 3 * 32 + 2 * 624 * 4;
/// Bytes of a packet before the source.
const HEAD: usize = 1 + RANDOM;
/// Why a body is refused that its fields would be shifted in.
const ZERO: &str = "a zero byte in the code, an argument, the directory or the environment";
/// Most bytes of a packet; a longer body goes into a file of its own.
const PACKET: usize = 16 * 1024;
/// Most bytes of a body: what `execve` would take of arguments and environment, and the source.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// First byte of the packet of a job that is the source alone.
const PLAIN: u8 = b'p';
/// First byte of the packet that another one follows.
const FULL: u8 = b'f';

/// Our ends of the pipes that a spare writes to, made and watched before it is: after a restore that would cost more
/// than all else that a job needs of the agent.
#[derive(Debug)]
pub(crate) struct Lines {
    number: u32,
    outputs: [OwnedFd; 2],
}

impl Lines {
    /// Makes pipes of `user`'s for the spare of this number; also gives its own ends, standard output and error.
    pub(super) fn new(number: u32, user: &User, watch: Watch<'_>) -> io::Result<(Self, [OwnedFd; 2])> {
        let (outputs, theirs) = output_pipes(user)?;
        for (pipe, stream) in outputs.iter().zip(Stream::ALL) {
            watch(pipe.as_fd(), Source::Spare(number, SparePart::Output(stream)))?;
        }
        Ok((Self { number, outputs }, theirs))
    }

    /// Those of this spare.
    pub(super) fn is(&self, spare: u32) -> bool {
        self.number == spare
    }

    /// Nobody can write to them any more.
    pub(super) fn are_over(&self) -> bool {
        let mut polled = self.outputs.each_ref().map(|pipe| PollFd::new(pipe, PollFlags::empty()));
        poll(&mut polled, Some(&Timespec::default())).is_ok()
            && polled.iter().all(|pipe| pipe.revents().contains(PollFlags::HUP))
    }
}

/// A child of the zygote that waits for a job.
#[derive(Debug)]
pub(crate) struct Spare {
    /// Its pid, which is also its process group.
    pub(crate) pid: u32,
    socket: OwnedFd,
    lines: Lines,
}

/// A spare that got a job.
#[derive(Debug)]
pub(crate) struct Given {
    /// Its pid, which is also its process group.
    pub(crate) pid: u32,
    /// The number of the spare, by which news of its descriptors come.
    pub(crate) spare: u32,
    /// The agent's end of its socket.
    pub(crate) socket: OwnedFd,
    /// Its standard output and error, which do not block.
    pub(crate) outputs: [OwnedFd; 2],
}

/// A job that is ready to be handed over.
#[derive(Debug)]
pub(crate) struct Job {
    /// The source alone, or all fields.
    body: Vec<u8>,
    plain: bool,
    /// Its standard input, when that is a pipe.
    stdin: Option<OwnedFd>,
    /// User and group that its pipes are to belong to, when not the runner's.
    owner: Option<(u32, u32)>,
}

/// Who a job runs as: user, group, supplementary groups.
pub(crate) type Ids<'a> = (u32, u32, &'a [u32]);

/// What a job is made of.
pub(crate) struct Plan<'a> {
    /// `None` when it stays who the runner is.
    pub(crate) ids: Option<Ids<'a>>,
    /// Its working directory.
    pub(crate) cwd: &'a str,
    /// `sys.argv[1:]`.
    pub(crate) arguments: &'a [String],
    /// The whole environment; `None` when it is the runner's.
    pub(crate) env: Option<Vec<(&'a str, &'a str)>>,
    /// The source.
    pub(crate) code: &'a str,
}

impl Job {
    /// One whose output nobody needs.
    pub(super) fn warm() -> Result<Self, Errno> {
        let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let plan = Plan { ids: None, cwd: "/", arguments: &[], env: None, code: PYTHON_WARM };
        Self::new(&plan, Some(null)).map_err(|_| Errno::INVAL)
    }

    /// Puts a job together, or says why it cannot be one. Standard input is `/dev/null` unless it is given.
    pub(crate) fn new(plan: &Plan<'_>, stdin: Option<OwnedFd>) -> Result<Self, String> {
        let plain = stdin.is_none()
            && plan.ids.is_none()
            && plan.cwd == "/"
            && plan.arguments.is_empty()
            && plan.env.is_none()
            && plan.code.len() <= PACKET - HEAD;
        if plain {
            if plan.code.as_bytes().contains(&0) {
                return Err(ZERO.to_owned());
            }
            return Ok(Self { body: plan.code.as_bytes().to_vec(), plain, stdin, owner: None });
        }
        let mut body = Vec::with_capacity(plan.code.len() + 256);
        let mut fields = 0;
        let mut field = |parts: &[&str]| {
            if fields > 0 {
                body.push(0);
            }
            fields += 1;
            parts.iter().for_each(|part| body.extend_from_slice(part.as_bytes()));
        };
        field(&[if stdin.is_some() { "1" } else { "0" }]);
        match plan.ids {
            None => field(&[""]),
            Some((uid, gid, groups)) => {
                let all = [uid, gid].into_iter().chain(groups.iter().copied());
                field(&[&all.map(|id| id.to_string()).collect::<Vec<_>>().join(" ")]);
            }
        }
        field(&[plan.cwd]);
        field(&[&plan.arguments.len().to_string()]);
        plan.arguments.iter().for_each(|argument| field(&[argument]));
        field(&[if plan.env.is_some() { "env" } else { "" }]);
        let env = plan.env.as_deref().unwrap_or_default();
        env.iter().for_each(|(name, value)| field(&[name, "=", value]));
        field(&[plan.code]);
        if env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
            return Err("a variable of the environment has an empty name or one with an equals sign".to_owned());
        }
        if body.len() > MAX_BODY {
            return Err(format!("code, arguments and environment are longer than {MAX_BODY} bytes"));
        }
        if body.iter().filter(|byte| **byte == 0).count() != fields - 1 {
            return Err(ZERO.to_owned());
        }
        Ok(Self { body, plain, stdin, owner: plan.ids.map(|(uid, gid, _)| (uid, gid)) })
    }
}

impl Spare {
    /// A spare by its end of the socket; who made the socket is who it is.
    pub(super) fn new(socket: OwnedFd, lines: Lines) -> Option<Self> {
        Some(Self { pid: maker(&socket)?, socket, lines })
    }

    /// Has its socket watched, for what it will say as a job.
    pub(super) fn watch(&self, watch: Watch<'_>) -> Result<(), Errno> {
        watch(self.socket.as_fd(), Source::Spare(self.lines.number, SparePart::Socket))
    }

    /// Hands the job over and gives what is now its process. An error when it ended before.
    pub(crate) fn give(self, job: &Job) -> Result<Given, Errno> {
        let mut packet = Vec::with_capacity(PACKET);
        packet.resize(HEAD, 0);
        let count = getrandom(&mut packet[1..], GetRandomFlags::empty())?;
        if count < RANDOM {
            return Err(Errno::AGAIN);
        }
        self.hand(job, packet)
    }

    /// The same with these random bytes.
    #[cfg(test)]
    pub(super) fn seeded(self, job: &Job, random: &[u8; RANDOM]) -> Result<Given, Errno> {
        self.hand(job, [&[0], random.as_slice()].concat())
    }

    /// Sends the packet, which has its random bytes, and the one that follows if there is one.
    fn hand(self, job: &Job, mut packet: Vec<u8>) -> Result<Given, Errno> {
        let Self { pid, socket, lines: Lines { number, outputs } } = self;
        if let Some((uid, gid)) = job.owner {
            outputs.iter().try_for_each(|pipe| hand_over(pipe.as_fd(), uid, gid))?;
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if job.plain {
            packet[0] = PLAIN;
            packet.extend_from_slice(&job.body);
            send(&socket, &packet, flags)?;
            return Ok(Given { pid, spare: number, socket, outputs });
        }
        packet[0] = FULL;
        send(&socket, &packet, flags)?;
        let file = if job.body.len() <= PACKET { None } else { Some(filled(&job.body)?) };
        let body = if file.is_none() { job.body.as_slice() } else { b"-" };
        let files: Vec<BorrowedFd<'_>> = job.stdin.iter().chain(&file).map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            rights.push(SendAncillaryMessage::ScmRights(&files));
        }
        sendmsg(&socket, &[IoSlice::new(body)], &mut rights, flags)?;
        Ok(Given { pid, spare: number, socket, outputs })
    }
}

/// The pid of who made a socket pair. The kernel says 0 for one of another namespace of pids, which is no spare.
fn maker(socket: &OwnedFd) -> Option<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `credentials` has the size that is given, and any bytes are valid in it; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    u32::try_from(credentials.pid).ok().filter(|pid| result == 0 && *pid > 1)
}

fn filled(bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let file = memfd_create("job", MemfdFlags::CLOEXEC)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match write(&file, rest) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn plan() -> Plan<'static> {
        Plan { ids: None, cwd: "/", arguments: &[], env: None, code: "c" }
    }

    fn lines() -> Lines {
        let user = User { uid: 0, gid: 0, groups: Vec::new(), home: String::new() };
        Lines::new(7, &user, &|_, _| Ok(())).unwrap().0
    }

    #[test]
    fn a_body_is_as_documented() {
        let body = |plan: &Plan<'_>, stdin| String::from_utf8(Job::new(plan, stdin).unwrap().body).unwrap();
        assert_eq!(body(&plan(), None), "c");
        assert_eq!(body(&plan(), Some(null())), "1\0\0/\x000\0\0c");
        assert_eq!(body(&Plan { cwd: "/a", ..plan() }, None), "0\0\0/a\x000\0\0c");
        let arguments = ["a".to_owned(), String::new()];
        let env = Some(vec![("K", "v=1"), ("L", "")]);
        let full = Plan { ids: Some((7, 8, &[9, 10])), cwd: "/tmp", arguments: &arguments, env, code: "x\ny" };
        assert_eq!(body(&full, Some(null())), "1\x007 8 9 10\0/tmp\x002\0a\0\0env\0K=v=1\0L=\0x\ny");
    }

    #[test]
    fn what_would_shift_the_fields_is_refused() {
        let bad = ["a\0b".to_owned()];
        for (plan, why) in [
            (Plan { code: "a\0", ..plan() }, "zero byte"),
            (Plan { cwd: "/\0", ..plan() }, "zero byte"),
            (Plan { arguments: &bad, ..plan() }, "zero byte"),
            (Plan { env: Some(vec![("A", "\0")]), ..plan() }, "zero byte"),
            (Plan { env: Some(vec![("A=", "")]), ..plan() }, "equals"),
            (Plan { env: Some(vec![("", "")]), ..plan() }, "empty name"),
        ] {
            assert!(Job::new(&plan, None).unwrap_err().contains(why), "{why}");
        }
        let long = "#".repeat(MAX_BODY);
        assert!(Job::new(&Plan { code: &long, ..plan() }, None).unwrap_err().contains("longer"));
    }

    /// As of a child that a preloaded module put into a namespace of its own.
    #[test]
    fn what_nobody_made_is_no_spare() {
        let stray = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None);
        assert!(Spare::new(stray.unwrap(), lines()).is_none());
    }

    #[test]
    fn a_spare_that_ended_takes_nothing() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let spare = Spare::new(ours.into(), lines()).unwrap();
        assert_eq!(spare.pid, std::process::id());
        drop(theirs);
        assert!(spare.give(&Job::new(&plan(), None).unwrap()).is_err());
    }
}
