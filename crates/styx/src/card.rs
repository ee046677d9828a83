//! The guest's card as the kernel sees it: a program at the TAP through which every frame from the guest passes.
//!
//! It does what the chain `guest` of [`crate::rules`] does, for half of the cost, and marks what it let through: packets without
//! that mark are no guest's. It is attached anew with each contract, so its limits are never changed; it stays with the TAP,
//! whoever ends. A kernel before 6.6 takes none: there the chain is in its place.

mod code;
mod kernel;
mod program;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use code::Instruction;
use tartarus_types::net::{NetCounter, NetLimits};

use crate::enter::unshare;
use crate::tap::TAP;
use crate::{Guard, StyxError};

/// The number of the loopback in every new namespace.
const LOOPBACK: u32 = 1;

/// What a kernel says that will never take such a program; the last is its own `ENOTSUPP`, where it may not translate programs.
const NEVER: [i32; 5] = [libc::EINVAL, libc::EPERM, libc::EACCES, libc::ENOSYS, 524];

/// What sees to it that frames are the guest's own, and only so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A program at the TAP.
    Program,
    /// A chain of rules.
    Chain,
}

impl Door {
    /// What the kernel has; it is tried until it is known, on a link of a namespace of its own. On a thread of its own, whose
    /// namespace it changes.
    ///
    /// # Errors
    /// When it cannot be told now.
    pub(crate) fn of_kernel() -> Result<Self, StyxError> {
        static DOOR: OnceLock<Door> = OnceLock::new();
        if let Some(known) = DOOR.get() {
            return Ok(*known);
        }
        unshare()?;
        let door = match attach(LOOPBACK, |map| program::program(NetLimits::default(), None, map)) {
            Ok(_) => Self::Program,
            Err(error) if error.raw_os_error().is_some_and(|number| NEVER.contains(&number)) => {
                tracing::info!(%error, "the kernel takes no program at a TAP: rules are in its place");
                Self::Chain
            }
            Err(error) => return Err(refused(error)),
        };
        Ok(*DOOR.get_or_init(|| door))
    }

    /// A card that nothing passes, where it is a program's, at the TAP of the calling thread's namespace.
    pub(crate) fn closed(self) -> Result<Option<Card>, StyxError> {
        self.put(|_| program::closed())
    }

    /// The guest's own frames pass, and only so many. What was there before goes.
    pub(crate) fn open(self, limits: NetLimits, without: Option<Guard>) -> Result<Option<Card>, StyxError> {
        self.put(|map| program::program(limits, without, map))
    }

    fn put(self, program: impl FnOnce(RawFd) -> Vec<Instruction>) -> Result<Option<Card>, StyxError> {
        let link = tap()?;
        match self {
            Self::Program => attach(link, program).map(Some).map_err(refused),
            // One of a server that had programs would go on with the limits of then. A kernel without any has none to tell of.
            Self::Chain => kernel::attached(link)
                .map_or(Ok(()), |all| all.into_iter().try_for_each(|number| remove(link, number)))
                .map(|()| None)
                .map_err(refused),
        }
    }
}

/// A program that is attached.
#[derive(Debug)]
pub(crate) struct Card {
    number: u32,
    memory: OwnedFd,
}

/// Attaches a program that remembers in the map it is given, in place of whatever is there: nobody else has a say here.
fn attach(link: u32, program: impl FnOnce(RawFd) -> Vec<Instruction>) -> io::Result<Card> {
    let memory = kernel::memory(program::WORDS)?;
    let program = kernel::load(&program(memory.as_raw_fd()))?;
    let number = kernel::number(&program)?;
    // In one step with the first one, which is its own before.
    let before = kernel::attached(link)?.first().map(|number| kernel::program(*number)).transpose()?;
    kernel::attach(link, &program, before.as_ref())?;
    for other in kernel::attached(link)?.into_iter().filter(|other| *other != number) {
        remove(link, other)?;
    }
    Ok(Card { number, memory })
}

fn remove(link: u32, number: u32) -> io::Result<()> {
    kernel::detach(link, &kernel::program(number)?)
}

fn refused(error: io::Error) -> StyxError {
    StyxError::system("attach a program to a TAP")(error)
}

impl Card {
    /// Whether frames pass this program and no other, at the TAP of the calling thread's namespace.
    pub(crate) fn check(&self) -> Result<(), StyxError> {
        self.check_at(tap()?)
    }

    fn check_at(&self, link: u32) -> Result<(), StyxError> {
        let attached = kernel::attached(link).map_err(StyxError::system("ask for the program of a TAP"))?;
        if attached == [self.number] {
            return Ok(());
        }
        Err(StyxError::Changed("its TAP has another program than its own".to_owned()))
    }

    /// What it dropped, since it was attached.
    pub(crate) fn counters(&self) -> Result<Vec<NetCounter>, StyxError> {
        let words: [u64; program::WORDS] =
            kernel::read(&self.memory).map_err(StyxError::system("read the counters of a TAP's program"))?;
        let counters = words[program::WORDS - 2 * program::COUNTERS.len()..].as_chunks().0;
        let named = program::COUNTERS.iter().zip(counters);
        let named = named.map(|(name, [packets, bytes])| NetCounter {
            name: (*name).to_owned(),
            packets: *packets,
            bytes: *bytes,
        });
        Ok(named.collect())
    }
}

/// The number of the TAP in the calling thread's namespace.
fn tap() -> Result<u32, StyxError> {
    // SAFETY: the call reads a text that ends.
    match unsafe { libc::if_nametoindex(TAP.as_ptr()) } {
        0 => Err(StyxError::Lost("there is no link tap0".to_owned())),
        link => Ok(link),
    }
}

#[cfg(test)]
mod tests;
