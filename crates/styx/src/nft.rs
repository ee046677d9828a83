//! The nft program: runs it in a namespace, with its text on standard input, a bound on what it says and on how long it takes.

mod normal;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::StyxError;
use crate::enter::{Namespace, within};
pub(crate) use normal::difference;

/// How long one call may take; it takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);
/// What is read of its output: a full namespace lists 4096 pins and less than 200 rules.
const OUTPUT: u64 = 1 << 20;
/// Where it is, beside the path.
const PLACES: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// Applies one batch, as one transaction.
pub(crate) async fn batch(namespace: Namespace, text: String) -> Result<(), StyxError> {
    within(namespace, move || run("apply rules", &["-f", "-"], &text)).await.map(drop)
}

/// Applies a batch and compares what is there then with `expected`.
pub(crate) async fn apply(namespace: Namespace, batch: String, expected: String) -> Result<(), StyxError> {
    within(namespace, move || apply_here(&batch, &expected)).await
}

/// [`apply`] on a thread that is in the namespace already.
pub(crate) fn apply_here(batch: &str, expected: &str) -> Result<(), StyxError> {
    run("apply rules", &["-f", "-"], batch)?;
    let listed = run("list rules", &["-s", "-p", "list", "ruleset"], "")?;
    difference(expected, &listed).map_or(Ok(()), |line| Err(StyxError::Differs(line)))
}

/// What `nft` prints with these arguments, in the namespace of the calling thread.
pub(crate) fn run(what: &'static str, arguments: &[&str], input: &str) -> Result<String, StyxError> {
    let io = |error| StyxError::System { what: "run nft".to_owned(), source: error };
    // Files rather than pipes: neither side waits for the other, whatever the sizes.
    let (mut stdin, mut stdout, mut stderr) = (memory()?, memory()?, memory()?);
    stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind()).map_err(io)?;
    let program = PLACES.iter().find(|place| std::path::Path::new(place).exists()).copied().unwrap_or("nft");
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(stdin)
        .stdout(stdout.try_clone().map_err(io)?)
        .stderr(stderr.try_clone().map_err(io)?)
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StyxError::NoNft,
            _ => io(error),
        })?;
    let well = wait(child)?;
    let text = |file: &mut File| -> Result<String, StyxError> {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.take(OUTPUT).read_to_end(&mut bytes)).map_err(io)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    if well {
        return text(&mut stdout);
    }
    let said: String = text(&mut stderr)?.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
    Err(StyxError::Nft { what, said })
}

/// Whether it ended well; it is killed when it does not end.
fn wait(mut child: Child) -> Result<bool, StyxError> {
    let result = deadline(&child, Instant::now() + DEADLINE);
    if !matches!(result, Ok(true)) {
        // It may just have ended; it is reaped in any case.
        drop(child.kill());
    }
    let status = child.wait().map_err(StyxError::system("wait for nft"))?;
    match result {
        Ok(true) => Ok(status.success()),
        Ok(false) => Err(StyxError::Nft { what: "end", said: format!("killed after {} s", DEADLINE.as_secs()) }),
        Err(error) => Err(StyxError::system("wait for nft")(error)),
    }
}

/// Whether it ends before `end`.
fn deadline(child: &Child, end: Instant) -> rustix::io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    let process: OwnedFd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap_or_default();
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|ready| ready > 0),
        }
    }
}

fn memory() -> Result<File, StyxError> {
    let made = rustix::fs::memfd_create(c"nft", MemfdFlags::CLOEXEC);
    made.map(File::from).map_err(StyxError::system("make a file in memory"))
}
