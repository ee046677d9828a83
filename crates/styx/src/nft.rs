//! The nft program: runs it in a namespace, with its text on standard input, a bound on what it says and on how long it takes.

mod edition;
mod normal;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::StyxError;
pub(crate) use edition::edition;
pub(crate) use normal::{LIVE, difference};

/// How long one call may take; it takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);
/// What is read of its output: a full namespace lists 4096 pins and less than 200 rules.
const OUTPUT: u64 = 1 << 20;
/// Where it is, beside the path.
const PLACES: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// Puts rules in force and reads them back: two programs, started where the rules are for and waiting for their orders. A start
/// takes longer than what is done then, so it is made before there is a hurry.
pub(crate) struct Applier {
    change: Waiting,
    list: Waiting,
}

impl Applier {
    /// For the namespace of the calling thread.
    pub(crate) fn here() -> Result<Self, StyxError> {
        Ok(Self { change: Waiting::start(&["-f", "-"])?, list: Waiting::start(&["-s", "-p", "-f", "-"])? })
    }

    /// This one, if both still wait.
    pub(crate) fn waiting(mut self) -> Option<Self> {
        (self.change.waits() && self.list.waits()).then_some(self)
    }

    /// Applies a batch, and compares what is there then with `expected`.
    pub(crate) fn apply(self, batch: &str, expected: &str) -> Result<(), StyxError> {
        // All of it or nothing, whenever this process is killed: by the name that it has here, which ends with it.
        let mut text = memory()?;
        text.write_all(batch.as_bytes()).map_err(io)?;
        // As the file system there numbers it, which may be that of others.
        let own = std::fs::read_link("/proc/self").map_err(StyxError::system("find this process in /proc"))?;
        let order = format!("include \"/proc/{}/fd/{}\"\n", own.display(), text.as_raw_fd());
        self.change.order("apply rules", &order)?;
        let listed = self.list.order("list rules", "list ruleset\n")?;
        difference(expected, &listed).map_or(Ok(()), |line| Err(StyxError::Differs(line)))
    }
}

/// Applies a batch in the namespace of the calling thread, and compares what is there then with `expected`. It is applied also
/// where it cannot be read back.
pub(crate) fn apply_here(batch: &str, expected: &str) -> Result<(), StyxError> {
    run("apply rules", &["-f", "-"], batch)?;
    verify_here(expected)
}

/// Compares the rules in the namespace of the calling thread with `expected`.
pub(crate) fn verify_here(expected: &str) -> Result<(), StyxError> {
    difference(expected, &list_here()?).map_or(Ok(()), |line| Err(StyxError::Differs(line)))
}

/// The rules in the namespace of the calling thread, without what changes by itself.
pub(crate) fn list_here() -> Result<String, StyxError> {
    run("list rules", &["-s", "-p", "list", "ruleset"], "")
}

/// What `nft` prints with these arguments, in the namespace of the calling thread.
pub(crate) fn run(what: &'static str, arguments: &[&str], input: &str) -> Result<String, StyxError> {
    let mut stdin = memory()?;
    stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind()).map_err(io)?;
    Waiting::spawn(arguments, stdin.into())?.end(what)
}

fn io(error: std::io::Error) -> StyxError {
    StyxError::System { what: "run nft".to_owned(), source: error }
}

/// An `nft` that reads its standard input. It is ended with this.
struct Waiting {
    child: Child,
    stdout: File,
    stderr: File,
}

impl Waiting {
    fn start(arguments: &[&str]) -> Result<Self, StyxError> {
        Self::spawn(arguments, Stdio::piped())
    }

    /// What it prints goes to files rather than pipes: neither side waits for the other, whatever the sizes.
    fn spawn(arguments: &[&str], stdin: Stdio) -> Result<Self, StyxError> {
        let (stdout, stderr) = (memory()?, memory()?);
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
        Ok(Self { child, stdout, stderr })
    }

    fn waits(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Gives it one line, short enough to be there whole or not at all.
    fn order(mut self, what: &'static str, line: &str) -> Result<String, StyxError> {
        if let Some(mut stdin) = self.child.stdin.take() {
            match stdin.write_all(line.as_bytes()) {
                // It ended, and may have said why.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(io(error)),
                _ => {}
            }
        }
        self.end(what)
    }

    /// What it printed, once it has ended well.
    fn end(mut self, what: &'static str) -> Result<String, StyxError> {
        let well = wait(&mut self.child)?;
        let text = |file: &mut File| -> Result<String, StyxError> {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.take(OUTPUT).read_to_end(&mut bytes)).map_err(io)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        if well {
            return text(&mut self.stdout);
        }
        let said = text(&mut self.stderr)?.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
        Err(StyxError::Nft { what, said })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // One that has ended was waited for, and both calls do nothing. Any other ends at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it ended well; it is killed when it does not end.
fn wait(child: &mut Child) -> Result<bool, StyxError> {
    let result = deadline(child, Instant::now() + DEADLINE);
    if !matches!(result, Ok(true)) {
        // It may just have ended; it is reaped in any case.
        drop(child.kill());
    }
    let status = child.wait().map_err(StyxError::system("wait for nft"))?;
    match result {
        Ok(true) => Ok(status.success()),
        Ok(false) => {
            let late = format!("killed after {} s: the machine may have too much to do", DEADLINE.as_secs());
            Err(StyxError::system("wait for nft")(std::io::Error::new(std::io::ErrorKind::TimedOut, late)))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_and_is_killed_does_not_wait() {
        for which in 0..2 {
            let applier = match Applier::here() {
                Err(StyxError::NoNft) => return println!("skipped: there is no nft"),
                applier => applier.unwrap(),
            };
            let mut applier = applier.waiting().unwrap();
            let killed = [&mut applier.change, &mut applier.list].into_iter().nth(which).unwrap();
            killed.child.kill().unwrap();
            killed.child.wait().unwrap();
            assert!(applier.waiting().is_none());
        }
    }
}
