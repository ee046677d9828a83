//! The zygote as a process: how it is started, what it says on its socket, and its last words.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio, read};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tartarus_guest::StartRunner;

use super::Watch;
use crate::events::{RunnerPart, Source};
use crate::session::shortened;
use crate::spawn::{Held, PATH, failed_step, prepare, signal_group};
use crate::users::User;

/// The program for Python.
const PYTHON: &str = include_str!("python.py");
/// What it is started by. The interpreter keeps the syntax tree of its main program until that ends, and takes it to
/// pieces before the exit handlers: so the main program is no more than this, far below any line of a job, since both are
/// lines of `<string>`.
const LOADER: &str = "exec(compile(__import__('sys').argv.pop(1), '<string>', 'exec'))
with _tartarus:
    exec(*_tartarus.job())
";
/// A job that uses what most jobs use, the report of an error too.
pub(crate) const PYTHON_WARM: &str = include_str!("warm.py");
/// Names the socket's descriptor in the zygote's environment.
const SOCKET: &str = "TARTARUS_RUNNER_FD";
/// Bytes of its output that are kept.
const TAIL: usize = 2048;
/// Reads of its output at once; more follows with the next round.
const READS: usize = 64;

/// A zygote that runs. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Zygote {
    /// Its pid, which is also its process group.
    pub(crate) pid: u32,
    /// It has sent a spare.
    pub(crate) ready: bool,
    /// A child of it has run a job.
    pub(crate) warmed: bool,
    /// It is gone, and its number may be another's.
    pub(crate) reaped: bool,
    control: OwnedFd,
    output: OwnedFd,
    tail: Vec<u8>,
}

/// What came from a zygote.
pub(crate) enum Heard {
    /// The socket of a child that waits for a job.
    Spare(OwnedFd),
    /// Nothing now.
    Nothing,
    /// It closed its socket.
    End,
}

impl Zygote {
    /// Starts the interpreter, or says why not.
    pub(crate) fn launch(start: &StartRunner, user: &User, held: &Held, watch: Watch<'_>) -> Result<Self, String> {
        if start.language != "python" {
            return Err(format!("no runner for {:?}; there is one for python", shortened(&start.language, 64)));
        }
        Self::spawn(start, user, held, watch).map_err(|error| match failed_step(&error) {
            (3, Some(Errno::NOENT)) => "the image has no python3 in its PATH".to_owned(),
            _ => format!("python3 could not be started: {error}"),
        })
    }

    fn spawn(start: &StartRunner, user: &User, held: &Held, watch: Watch<'_>) -> std::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        ioctl_fionbio(&control, true)?;
        let (output, their_output) = std::io::pipe()?;
        ioctl_fionbio(&output, true)?;
        watch(control.as_fd(), Source::Runner(RunnerPart::Control))?;
        watch(output.as_fd(), Source::Runner(RunnerPart::Output))?;
        let mut command = Command::new("python3");
        command.args(["-c", &("\n".repeat(1000) + LOADER), PYTHON]).args(&start.preload);
        command.env_clear().env("PATH", PATH).env("HOME", &user.home).envs(&start.env);
        command.env(SOCKET, theirs.as_raw_fd().to_string());
        command.stdin(Stdio::from(held.null.try_clone()?)).stdout(their_output.try_clone()?).stderr(their_output);
        let (user, proc) = (user.clone(), held.proc.try_clone()?);
        // SAFETY: the agent has one thread, so no lock can be held by another one at the fork; the closure itself only
        // makes system calls.
        unsafe {
            command.pre_exec(move || {
                fcntl_setfd(&theirs, FdFlags::empty())?;
                prepare(&user, "/", &proc)
            });
        }
        let child = command.spawn()?;
        Ok(Self {
            pid: child.id(),
            ready: false,
            warmed: false,
            reaped: false,
            control,
            output: output.into(),
            tail: Vec::new(),
        })
    }

    /// Asks for a spare that writes to these pipes. An error is the zygote's end, of which more is heard.
    pub(crate) fn ask(&self, outputs: &[OwnedFd; 2]) {
        let files = outputs.each_ref().map(AsFd::as_fd);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&files));
        let _ = sendmsg(&self.control, &[IoSlice::new(b"fork")], &mut rights, SendFlags::NOSIGNAL);
    }

    /// The next of what it sent.
    pub(crate) fn hear(&self) -> Heard {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut word = [0; 16];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        loop {
            match recvmsg(&self.control, &mut [IoSliceMut::new(&mut word)], &mut rights, flags) {
                Ok(message) if message.bytes > 0 => {}
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Heard::Nothing,
                Ok(_) | Err(_) => return Heard::End,
            }
            let socket = rights.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            // What is no spare means nothing.
            if let Some(socket) = socket {
                return Heard::Spare(socket);
            }
        }
    }

    /// Reads its output, of which the end is kept.
    pub(crate) fn drain(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..READS {
            match read(&self.output, &mut buffer) {
                Ok(count @ 1..) => self.tail.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
            let excess = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..excess);
        }
    }

    /// The last line of its output, once it was reaped.
    pub(crate) fn last_words(&mut self) -> String {
        self.drain();
        let text = String::from_utf8_lossy(&self.tail);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        line.map_or_else(|| "the runner ended before it was ready, and said nothing".to_owned(), str::to_owned)
    }

    /// Ends it; its spares live on.
    pub(crate) fn kill(&self) {
        signal_group(self.pid, libc::SIGKILL);
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}
