//! Freezes the layer for a snapshot, so that its copy is clean by itself, and thaws it in whoever is restored from it.
//!
//! A thaw writes to the disk, which takes a fresh clone as long as a small job, and most first jobs do not wait for it.
//! So a helper does it, a process of its own that only runs when the processor has nothing else to do: also as soon as
//! somebody waits for the layer. It is started before the freeze; where there is none the agent thaws by itself.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;

/// `FIFREEZE`, `_IOWR('X', 119, int)`.
const FREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
/// `FITHAW`, `_IOWR('X', 120, int)`.
const THAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// The layer's file system, and whether it is frozen.
#[derive(Debug)]
pub(crate) struct Freezer {
    /// A directory of it, opened before the change of root: the union above it cannot be frozen.
    layer: OwnedFd,
    state: State,
    /// The program that is also the helper; none where the agent does all by itself.
    program: Option<&'static str>,
    helper: Option<Child>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everybody can write.
    Thawed,
    /// For a snapshot.
    Frozen,
    /// It was restored and is to be thawed.
    Due,
    /// The helper was told to thaw.
    Told,
}

/// What the helper is called by on the command line.
pub(crate) const HELPER: &str = "thaw";

impl Freezer {
    /// For the file system that `layer` is a directory of.
    pub(crate) fn new(layer: OwnedFd, program: Option<&'static str>) -> Self {
        Self { layer, state: State::Thawed, program, helper: None }
    }

    /// For one that may be frozen.
    #[cfg(test)]
    pub(crate) fn frozen(layer: OwnedFd) -> Self {
        Self { layer, state: State::Due, program: None, helper: None }
    }

    /// Writes everything out and freezes; nothing when it is frozen already.
    pub(crate) fn freeze(&mut self) -> Result<(), Errno> {
        match self.state {
            State::Frozen => return Ok(()),
            State::Due | State::Told => {
                // A late helper must not thaw what is frozen now.
                self.dismiss();
                self.thaw()?;
            }
            State::Thawed => self.dismiss(),
        }
        self.helper = self.program.and_then(|program| self.start(program).ok());
        rustix::fs::sync();
        ask(self.layer.as_fd(), FREEZE)?;
        self.state = State::Frozen;
        Ok(())
    }

    /// A new session: what was frozen is to be thawed soon. Gives whether it was frozen.
    pub(crate) fn restored(&mut self) -> bool {
        let frozen = self.state == State::Frozen;
        if frozen {
            self.state = State::Due;
        }
        frozen
    }

    /// It is frozen for a snapshot.
    pub(crate) fn is_frozen(&self) -> bool {
        self.state == State::Frozen
    }

    /// Nobody told the helper yet.
    pub(crate) fn is_due(&self) -> bool {
        self.state == State::Due
    }

    /// Has the layer thawed when the processor is free, or at once where there is no helper; nothing when it is told.
    pub(crate) fn thaw_soon(&mut self) -> Result<(), Errno> {
        if self.state != State::Due {
            return Ok(());
        }
        let word = self.helper.as_mut().and_then(|helper| helper.stdin.as_mut()).map(|pipe| pipe.write(b"t"));
        if let Some(Ok(1)) = word {
            self.state = State::Told;
            return Ok(());
        }
        self.thaw()
    }

    /// Thaws at once what the helper was told to thaw and did not: somebody takes the whole processor, or stopped it.
    pub(crate) fn thaw_overdue(&mut self) -> Result<(), Errno> {
        if self.state == State::Told { self.thaw_now() } else { Ok(()) }
    }

    /// Thaws at once, if that is due.
    pub(crate) fn thaw_now(&mut self) -> Result<(), Errno> {
        if !matches!(self.state, State::Due | State::Told) {
            return Ok(());
        }
        self.dismiss();
        self.thaw()
    }

    /// The pid of the helper.
    pub(crate) fn helper(&self) -> Option<u32> {
        self.helper.as_ref().map(Child::id)
    }

    /// A child was reaped. When it is the helper, the layer is thawed or it will not do it any more.
    pub(crate) fn reaped(&mut self, pid: u32) -> Result<(), Errno> {
        if self.helper.as_ref().is_none_or(|helper| helper.id() != pid) {
            return Ok(());
        }
        self.helper = None;
        if self.state == State::Told { self.thaw() } else { Ok(()) }
    }

    /// Thaws what is or may be frozen.
    pub(crate) fn thaw(&mut self) -> Result<(), Errno> {
        match ask(self.layer.as_fd(), THAW) {
            // The helper has done it, or root in the guest.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => {
                // The next session tries again.
                self.state = State::Frozen;
                return Err(error);
            }
        }
        self.state = State::Thawed;
        Ok(())
    }

    fn start(&self, program: &str) -> std::io::Result<Child> {
        let layer = Stdio::from(self.layer.try_clone()?);
        Command::new(program).arg(HELPER).env_clear().stdin(Stdio::piped()).stdout(layer).stderr(Stdio::null()).spawn()
    }

    fn dismiss(&mut self) {
        if let Some(mut helper) = self.helper.take() {
            // It may be ready to run and never have its turn otherwise.
            schedule(helper.id() as libc::pid_t, libc::SCHED_OTHER);
            let _ = helper.kill();
            let _ = helper.wait();
        }
    }
}

/// The helper: waits for a byte on standard input and thaws the file system of standard output.
pub(crate) fn help() {
    schedule(0, libc::SCHED_IDLE);
    let told = std::io::stdin().read(&mut [0]);
    if matches!(told, Ok(1)) {
        let _ = ask(std::io::stdout().as_fd(), THAW);
    }
}

/// Changes when a process has its turn; it stays as it is where that is not allowed.
fn schedule(pid: libc::pid_t, policy: libc::c_int) {
    // SAFETY: all zero bytes are a valid parameter, which the call only reads.
    unsafe { libc::sched_setscheduler(pid, policy, &std::mem::zeroed()) };
}

fn ask(layer: BorrowedFd<'_>, request: libc::Ioctl) -> Result<(), Errno> {
    // SAFETY: both requests take no memory; the descriptor is open as long as it is borrowed.
    if unsafe { libc::ioctl(layer.as_raw_fd(), request, 0) } < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}
