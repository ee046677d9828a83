//! The spare: a forked interpreter that waits for its job, and the packet that makes it one.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::{Errno, write};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::rand::{GetRandomFlags, getrandom};

use super::zygote::PYTHON_WARM;

/// Random bytes that a job is seeded with: three keys of 32, and 624 words, which are a whole state of the generator that
/// most libraries use.
pub(super) const RANDOM: usize = 3 * 32 + 624 * 4;
/// Bytes of the whole packet; a longer body goes into a file of its own.
const PACKET: usize = 16 * 1024;
/// Most bytes of a body: what `execve` would take of arguments and environment, and the source.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// A child of the zygote that waits for a job.
#[derive(Debug)]
pub(crate) struct Spare {
    /// Its pid, which is also its process group.
    pub(crate) pid: u32,
    socket: OwnedFd,
}

/// A job that is ready to be handed over.
#[derive(Debug)]
pub(crate) struct Job {
    body: Vec<u8>,
    /// Its standard input, output and error.
    files: [OwnedFd; 3],
}

/// Who a job runs as: user, group, supplementary groups.
pub(crate) type Ids<'a> = (u32, u32, &'a [u32]);

/// What a job is made of.
pub(crate) struct Plan<'a> {
    /// Standard input is a pipe, not `/dev/null`.
    pub(crate) piped: bool,
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
        let null = |flags| open("/dev/null", flags | OFlags::CLOEXEC, Mode::empty());
        let files = [null(OFlags::RDONLY)?, null(OFlags::WRONLY)?, null(OFlags::WRONLY)?];
        let plan = Plan { piped: true, ids: None, cwd: "/", arguments: &[], env: None, code: PYTHON_WARM };
        Self::new(&plan, files).map_err(|_| Errno::INVAL)
    }

    /// Puts a job together, or says why it cannot be one.
    pub(crate) fn new(plan: &Plan<'_>, files: [OwnedFd; 3]) -> Result<Self, String> {
        let mut body = Vec::with_capacity(plan.code.len() + 256);
        let mut fields = 0;
        let mut field = |parts: &[&str]| {
            if fields > 0 {
                body.push(0);
            }
            fields += 1;
            parts.iter().for_each(|part| body.extend_from_slice(part.as_bytes()));
        };
        field(&[if plan.piped { "1" } else { "0" }]);
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
            return Err("a zero byte in the code, an argument, the directory or the environment".to_owned());
        }
        Ok(Self { body, files })
    }
}

impl Spare {
    /// A spare by its end of the socket; who made the socket is who it is.
    pub(crate) fn new(socket: OwnedFd) -> Option<Self> {
        let pid = socket_peercred(&socket).ok()?.pid.as_raw_nonzero().get();
        Some(Self { pid: u32::try_from(pid).ok()?, socket })
    }

    /// Hands the job over and gives the pid of what is now its process. An error when it ended before.
    pub(crate) fn give(self, job: &Job) -> Result<u32, Errno> {
        let mut random = [0; RANDOM];
        let count = getrandom(&mut random, GetRandomFlags::empty())?;
        if count < RANDOM {
            return Err(Errno::AGAIN);
        }
        self.seeded(job, &random)
    }

    /// The same with these random bytes.
    pub(super) fn seeded(self, job: &Job, random: &[u8; RANDOM]) -> Result<u32, Errno> {
        let inline = RANDOM + job.body.len() <= PACKET;
        let file = if inline { None } else { Some(filled(&job.body)?) };
        let body = if inline { job.body.as_slice() } else { &[] };
        let files: Vec<BorrowedFd<'_>> = job.files.iter().chain(&file).map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&files));
        let parts = [IoSlice::new(random), IoSlice::new(body)];
        sendmsg(&self.socket, &parts, &mut rights, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(self.pid)
    }
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

    fn files() -> [OwnedFd; 3] {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        [null(), null(), null()]
    }

    fn plan() -> Plan<'static> {
        Plan { piped: false, ids: None, cwd: "/", arguments: &[], env: None, code: "c" }
    }

    #[test]
    fn a_body_is_as_documented() {
        let body = |plan: &Plan<'_>| String::from_utf8(Job::new(plan, files()).unwrap().body).unwrap();
        assert_eq!(body(&plan()), "0\0\0/\x000\0\0c");
        let arguments = ["a".to_owned(), String::new()];
        let env = Some(vec![("K", "v=1"), ("L", "")]);
        let full =
            Plan { piped: true, ids: Some((7, 8, &[9, 10])), cwd: "/tmp", arguments: &arguments, env, code: "x\ny" };
        assert_eq!(body(&full), "1\x007 8 9 10\0/tmp\x002\0a\0\0env\0K=v=1\0L=\0x\ny");
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
            assert!(Job::new(&plan, files()).unwrap_err().contains(why), "{why}");
        }
        let long = "#".repeat(MAX_BODY);
        assert!(Job::new(&Plan { code: &long, ..plan() }, files()).unwrap_err().contains("longer"));
    }

    #[test]
    fn a_spare_that_ended_takes_nothing() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let spare = Spare::new(ours.into()).unwrap();
        assert_eq!(spare.pid, std::process::id());
        drop(theirs);
        assert!(spare.give(&Job::new(&plan(), files()).unwrap()).is_err());
    }
}
