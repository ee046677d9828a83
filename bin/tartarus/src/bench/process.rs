//! Programs that the benchmark starts: each has a deadline, and none is left behind. Orphans come to us (we are their
//! subreaper), so that whatever a daemon or a container started is found and ended.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tokio::signal::unix::{SignalKind, signal};

use super::tree;
use crate::terminal;

/// Most that is kept of an output stream.
const MAX_OUTPUT: usize = 1 << 20;
/// How often a wait looks whether somebody wants the benchmark to end.
const LOOK: Duration = Duration::from_millis(200);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on what we start is told from what was there, its orphans come to us, and Ctrl-C and SIGTERM make every wait fail
/// instead of ending us.
pub(super) fn prepare() -> Result<()> {
    tree::begin();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("cannot become a subreaper")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    let listen = move || {
        runtime.block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let [Ok(mut int), Ok(mut term), Ok(mut hangup)] = kinds.map(signal) else { return };
            tokio::select! { _ = int.recv() => {} _ = term.recv() => {} _ = hangup.recv() => {} }
            INTERRUPTED.store(true, Ordering::Relaxed);
            // Until the end, so that a second Ctrl-C does not stop the cleaning up.
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).context("cannot start a thread")?;
    Ok(())
}

/// # Errors
/// When somebody wants the benchmark to end.
pub(super) fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits until `done` gives something.
///
/// # Errors
/// When it does not within `patience`, or `done` fails.
pub(super) fn until<T>(what: &str, patience: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        go_on()?;
        if let Some(value) = done()? {
            return Ok(value);
        }
        if start.elapsed() > patience {
            bail!("{what}: not within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How a program ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Finished {
    /// What it printed.
    ///
    /// # Errors
    /// When it did not exit with 0; the text ends with its last words.
    pub(super) fn text(self) -> Result<String> {
        if !self.status.success() {
            bail!("{}: {}", self.status, last_words(&self.stderr));
        }
        String::from_utf8(self.stdout).context("it printed something else than UTF-8")
    }
}

/// A command as it would be typed.
pub(super) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    terminal::shell(&words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>())
}

/// The end of a log, on one line.
pub(super) fn tail(log: &Path) -> String {
    last_words(&std::fs::read(log).unwrap_or_default())
}

/// The end of what a program said, on one line.
fn last_words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(3)..].join("; ");
    tail.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// Runs a program to its end. What its children go on to print is not waited for.
///
/// # Errors
/// When it cannot be started, or did not end in time and was killed.
pub(super) fn run(command: &mut Command, deadline: Duration) -> Result<Finished> {
    let ends_at = Instant::now() + deadline;
    // A group of its own: Ctrl-C is ours to handle.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot run `{}`", line(command)))?;
    let ended = watch(&mut child, ends_at);
    if ended.is_err() {
        // It may have ended meanwhile.
        let _ = child.kill();
        let _ = child.wait();
    }
    ended.with_context(|| format!("`{}`", line(command)))
}

fn watch(child: &mut Child, ends_at: Instant) -> Result<Finished> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("pidfd_open")?;
    let mut out = Capture::new(child.stdout.take())?;
    let mut err = Capture::new(child.stderr.take())?;
    loop {
        go_on()?;
        let left = ends_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("did not end in time");
        }
        let tick = rustix::time::Timespec::try_from(left.min(LOOK)).context("too long a wait")?;
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        let open = [out.from.as_ref().map(AsFd::as_fd), err.from.as_ref().map(AsFd::as_fd)];
        fds.extend(open.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&tick)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("poll"),
            Ok(_) => {}
        }
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        out.read()?;
        err.read()?;
        if ended {
            let status = child.wait().context("cannot wait for it")?;
            return Ok(Finished { status, stdout: out.bytes, stderr: err.bytes });
        }
    }
}

/// One output stream, read without waiting.
struct Capture<R> {
    from: Option<R>,
    bytes: Vec<u8>,
}

impl<R: Read + AsFd> Capture<R> {
    fn new(from: Option<R>) -> Result<Self> {
        if let Some(from) = &from {
            rustix::io::ioctl_fionbio(from, true).context("cannot read without waiting")?;
        }
        Ok(Self { from, bytes: Vec::new() })
    }

    fn read(&mut self) -> Result<()> {
        let Some(from) = &mut self.from else { return Ok(()) };
        let mut chunk = [0; 16 * 1024];
        loop {
            match from.read(&mut chunk) {
                Ok(0) => {
                    self.from = None;
                    return Ok(());
                }
                Ok(n) => {
                    let room = MAX_OUTPUT.saturating_sub(self.bytes.len());
                    self.bytes.extend_from_slice(&chunk[..n.min(room)]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read what it prints"),
            }
        }
    }
}

/// A program that runs beside the benchmark; dropping it ends it.
pub(super) struct Daemon {
    child: Child,
    patience: Duration,
}

impl Daemon {
    /// Starts it. Through setpriv, which becomes it: should we be killed outright, the kernel tells it to end. Only from
    /// the thread that lives longest, since the kernel goes by that.
    pub(super) fn spawn(words: &Command, patience: Duration, shape: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(words.get_program()).args(words.get_args());
        command.stdin(Stdio::null()).process_group(0);
        shape(&mut command);
        let child =
            command.spawn().with_context(|| format!("cannot run `{}` (setpriv: util-linux)", line(&command)))?;
        Ok(Self { child, patience })
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// When it has ended.
    pub(super) fn runs(&mut self) -> Result<()> {
        match self.ended()? {
            Some(status) => bail!("it ended with {status}"),
            None => Ok(()),
        }
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot look after it")
    }

    /// SIGTERM to all of its group, as from a terminal; it gets its time to clean up.
    pub(super) fn interrupt(&mut self) {
        // It may have ended by itself.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < self.patience {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it: SIGTERM, and SIGKILL when that does not help in time. True when SIGTERM was enough.
    pub(super) fn stop(&mut self) -> bool {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < self.patience {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        false
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    }

    #[test]
    fn a_program_is_run_with_its_streams_apart_and_has_a_deadline() {
        let long = Duration::from_secs(20);
        let done = run(&mut command(&["sh", "-c", "echo out; echo err >&2; exit 3"]), long).unwrap();
        assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert!(done.text().unwrap_err().to_string().contains("err"));
        assert_eq!(run(&mut command(&["echo", "x"]), long).unwrap().text().unwrap(), "x\n");
        let start = Instant::now();
        let late = run(&mut command(&["sleep", "60"]), Duration::from_millis(50)).unwrap_err();
        assert!(format!("{late:#}").contains("in time") && start.elapsed() < long, "{late:#}");
        // A child that keeps the pipe open does not hold us up.
        run(&mut command(&["sh", "-c", "sleep 2 & exit 0"]), long).unwrap();
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_large_output_is_bounded_and_does_not_block() {
        let done = run(&mut command(&["head", "-c", "3000000", "/dev/zero"]), Duration::from_secs(20)).unwrap();
        assert_eq!(done.stdout.len(), MAX_OUTPUT);
    }
}
