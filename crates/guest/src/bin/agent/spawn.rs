//! Starts a command: pipes, session, user, limits and directory, then the program itself.
//!
//! The image is the tenant's: its user database is read bounded, and only when it is a regular file.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open, openat};
use rustix::io::{Errno, ioctl_fionbio, write};
use rustix::process::{Resource, Rlimit, chdir, getrlimit, setrlimit, setsid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use tartarus_guest::{End, Start, Stream};

use crate::events::Role;
use crate::memory::OomKills;
use crate::session::shortened;
use crate::users::{self, User};

/// `PATH` where the host gives none.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most bytes of `/etc/passwd` and `/etc/group` that are read.
const MAX_USERS: u64 = 1024 * 1024;
/// Most bytes of the message of a start that failed.
const MAX_MESSAGE: usize = 1024;
/// Open files of a command; it may raise this to the agent's own limit.
const NOFILE: u64 = 1024;

/// What every start needs, held open because an earlier command may have unmounted or removed it.
#[derive(Debug)]
pub(crate) struct Held {
    /// The root of a procfs.
    pub(crate) proc: OwnedFd,
    /// `/dev/null`, for reading.
    pub(crate) null: OwnedFd,
    /// Read at every end.
    pub(crate) ooms: OomKills,
    /// The release of the kernel.
    pub(crate) kernel: String,
}

impl Held {
    /// Opens what is held.
    pub(crate) fn open() -> Result<Self, Errno> {
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self {
            proc: open("/proc", path, Mode::empty())?,
            null: open("/dev/null", read, Mode::empty())?,
            ooms: OomKills::open()?,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        })
    }
}

/// A running command, and our ends of its pipes; none of them blocks.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its pid, which is also its process group.
    pub(crate) pid: u32,
    /// Absent when the command has no standard input.
    pub(crate) stdin: Option<OwnedFd>,
    /// Standard output and standard error.
    pub(crate) outputs: [OwnedFd; 2],
}

/// What the child was at when it failed: it can tell the parent nothing but one number.
const STEPS: [&str; 4] =
    ["prepare the process", "become the user", "enter the working directory", "execute the program"];
const STEP: i32 = 4096;

fn failed_at(step: usize) -> impl Fn(Errno) -> io::Error {
    move |error| io::Error::from_raw_os_error(error.raw_os_error() + (step as i32 + 1) * STEP)
}

/// Starts a command. `watch` gets our end of each pipe, before the start, so that a failure there starts nothing.
pub(crate) fn spawn(
    start: &Start,
    held: &Held,
    watch: impl Fn(BorrowedFd<'_>, Role) -> Result<(), Errno>,
) -> Result<Spawned, End> {
    let Some((program, arguments)) = start.argv.split_first() else {
        return Err(not_executable("the command is empty".to_owned()));
    };
    let user = user_of(start.user.as_deref())?;
    let pipes = Pipes::new(start.stdin, &user, held, watch)
        .map_err(|error| not_executable(format!("could not make the pipes of {program:?}: {error}")))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).env("HOME", &user.home).envs(&start.env);
    let [stdin, stdout, stderr] = pipes.theirs.map(Stdio::from);
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    let cwd = start.cwd.clone().unwrap_or_else(|| "/".to_owned());
    let proc =
        held.proc.try_clone().map_err(|error| not_executable(format!("could not copy a descriptor: {error}")))?;
    let become_user = user.clone();
    // SAFETY: the agent has one thread, so no lock can be held by another one at the fork; the closure itself only makes
    // system calls.
    unsafe { command.pre_exec(move || prepare(&become_user, &cwd, &proc)) };
    match command.spawn() {
        Ok(child) => Ok(Spawned { pid: child.id(), stdin: pipes.stdin, outputs: pipes.outputs }),
        Err(error) => Err(explain(&error, program, start, &user)),
    }
}

/// Resolves the user of a command in the image.
pub(crate) fn user_of(spec: Option<&str>) -> Result<User, End> {
    users::resolve(spec, &read_users("/etc/passwd"), &read_users("/etc/group"))
        .map_err(|error| not_executable(error.to_string()))
}

/// In the child: everything that makes it a command rather than a copy of PID 1.
pub(crate) fn prepare(user: &User, cwd: &str, proc: &OwnedFd) -> io::Result<()> {
    setsid().map_err(failed_at(0))?;
    // The agent blocks SIGCHLD, which it reads from a descriptor; programs inherit that, and some wait for it.
    // SAFETY: plain system call without memory but an empty set, which all zero bytes are.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &std::mem::zeroed(), std::ptr::null_mut()) };
    // The agent itself must outlive a guest that is out of memory; its children must not.
    let score = openat(proc, "self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    score.and_then(|score| write(score, b"0")).map_err(failed_at(0))?;
    let files = Rlimit { current: Some(NOFILE), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, files).map_err(failed_at(0))?;
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    set_thread_groups(&groups).map_err(failed_at(1))?;
    set_thread_gid(Gid::from_raw(user.gid)).map_err(failed_at(1))?;
    set_thread_uid(Uid::from_raw(user.uid)).map_err(failed_at(1))?;
    chdir(cwd).map_err(failed_at(2))
}

/// Which of [`STEPS`] a spawn failed at, and the system's error where there is one.
pub(crate) fn failed_step(error: &io::Error) -> (i32, Option<Errno>) {
    let code = error.raw_os_error().unwrap_or(0);
    let (step, errno) = if code >= STEP { (code / STEP - 1, code % STEP) } else { (3, code) };
    (step, (errno != 0).then(|| Errno::from_raw_os_error(errno)))
}

fn explain(error: &io::Error, program: &str, start: &Start, user: &User) -> End {
    let (step, errno) = failed_step(error);
    let errno = errno.map_or(0, Errno::raw_os_error);
    // Without a number it is an argument that the kernel cannot even be asked about, such as one with a NUL.
    let why = if errno == 0 { error.to_string() } else { io::Error::from_raw_os_error(errno).to_string() };
    let what = STEPS.get(step as usize).unwrap_or(&STEPS[0]);
    let subject = match step {
        2 => start.cwd.as_deref().unwrap_or("/"),
        1 => start.user.as_deref().unwrap_or("root"),
        _ => program,
    };
    let subject = shortened(subject, MAX_MESSAGE / 2);
    if step != 3 || errno != Errno::NOENT.raw_os_error() {
        return not_executable(format!("could not {what} {subject:?} as uid {}: {why}", user.uid));
    }
    let hint = if program.contains('/') && Path::new(program).exists() {
        "it exists, but the interpreter or loader it names does not"
    } else {
        "no such program in the image"
    };
    End::NotFound { message: shortened(&format!("{subject:?}: {hint}"), MAX_MESSAGE).to_owned() }
}

/// The end of what could not be started.
pub(crate) fn not_executable(message: String) -> End {
    End::NotExecutable { message: shortened(&message, MAX_MESSAGE).to_owned() }
}

/// Bytes of a file of the image; none when it is absent or no regular file, cut off at the bound.
fn read_users(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()).map(File::from) else { return bytes };
    if file.metadata().is_ok_and(|data| data.is_file()) {
        let _ = file.take(MAX_USERS).read_to_end(&mut bytes);
    }
    bytes
}

/// The pipes of a process: our ends, none of which blocks, and its own standard input, output and error.
pub(crate) struct Pipes {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) outputs: [OwnedFd; 2],
    pub(crate) theirs: [OwnedFd; 3],
}

impl Pipes {
    /// Makes pipes for `user`; `watch` gets our end of each.
    pub(crate) fn new(
        stdin: bool,
        user: &User,
        held: &Held,
        watch: impl Fn(BorrowedFd<'_>, Role) -> Result<(), Errno>,
    ) -> io::Result<Self> {
        let (ours, theirs) = if stdin {
            let (writer, reader) = stdin_pipe(user)?;
            watch(writer.as_fd(), Role::Stdin)?;
            (Some(writer), reader)
        } else {
            (None, held.null.try_clone()?)
        };
        let (outputs, [out, err]) = output_pipes(user)?;
        for (reader, stream) in outputs.iter().zip(Stream::ALL) {
            watch(reader.as_fd(), Role::Output(stream))?;
        }
        Ok(Self { stdin: ours, outputs, theirs: [theirs, out, err] })
    }
}

/// A pipe for standard input: our end, which does not block, and the end of `user`'s process.
pub(crate) fn stdin_pipe(user: &User) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = owned_pipe(user)?;
    ioctl_fionbio(&writer, true)?;
    Ok((writer.into(), reader.into()))
}

/// Pipes for standard output and error: our ends, which do not block, and those of `user`'s process.
pub(crate) fn output_pipes(user: &User) -> io::Result<([OwnedFd; 2], [OwnedFd; 2])> {
    let (out, their_out) = owned_pipe(user)?;
    let (err, their_err) = owned_pipe(user)?;
    ioctl_fionbio(&out, true)?;
    ioctl_fionbio(&err, true)?;
    Ok(([out.into(), err.into()], [their_out.into(), their_err.into()]))
}

/// A pipe that the user may open again, as `/dev/stdout` does.
fn owned_pipe(user: &User) -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    // It is root's as it is made.
    if (user.uid, user.gid) != (0, 0) {
        hand_over(reader.as_fd(), user.uid, user.gid)?;
    }
    Ok((reader, writer))
}

/// Makes a pipe another user's.
pub(crate) fn hand_over(pipe: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// Sends a signal to the group of a child that was not reaped yet, so that the group is no other's.
pub(crate) fn signal_group(pid: u32, signal: i32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    if pid > 1 {
        // SAFETY: plain system call without memory.
        unsafe { libc::kill(-pid, signal) };
    }
}
