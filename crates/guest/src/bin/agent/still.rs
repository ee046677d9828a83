//! Stops the processes of the guest before a snapshot, so that none goes on in a clone before it has randomness and time
//! of its own: until the hello, the kernel's random pool is the same in all clones.
//!
//! Used by `requests`. Knows nothing of layer and runner; who is spared is said by the caller.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::{Errno, read};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

/// Looks at all processes before it is said that they become more all the time.
const ROUNDS: usize = 64;
/// Most processes that are stopped.
const MOST: usize = 16 * 1024;
/// Bytes of a `stat` file that are read: the parent's pid comes before them.
const STAT: usize = 256;

/// Not all processes could be stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StillError {
    /// A system call.
    #[error("could not stop the processes: {0}")]
    Step(#[from] Errno),
    /// They fork faster than they are stopped.
    #[error("could not stop the processes: there are more of them after {ROUNDS} looks, or more than {MOST}")]
    More,
}

/// Processes that were stopped, each by its pid, which is held so that it is no other's.
#[derive(Debug, Default)]
pub(crate) struct Still(BTreeMap<i32, OwnedFd>);

/// What is known of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: i32,
    parent: i32,
    /// Somebody stopped it.
    stopped: bool,
}

impl Still {
    /// Nobody was stopped.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Stops all descendants of the agent but `spared`, which are left alone, and those that are stopped already. In a
    /// guest that is every process that is not the kernel's own. `proc` is the root of a procfs.
    ///
    /// # Errors
    /// When somebody may still run; who was stopped is known, and [`Still::go_on`] lets them go on.
    pub(crate) fn stop(&mut self, proc: &OwnedFd, spared: &[i32]) -> Result<(), StillError> {
        // From a freeze before: some may have ended, and others been woken.
        self.0.retain(|_, process| pidfd_send_signal(process, Signal::STOP).is_ok());
        for _ in 0..ROUNDS {
            let stats = all(proc)?;
            let (found, orphans) = chosen(&stats, getpid().as_raw_nonzero().get(), spared);
            let before = self.0.len();
            for pid in found {
                if self.0.contains_key(&pid) {
                    continue;
                }
                if self.0.len() >= MOST {
                    return Err(StillError::More);
                }
                let Some(raw) = Pid::from_raw(pid) else { continue };
                match pidfd_open(raw, PidfdFlags::empty())
                    .and_then(|fd| pidfd_send_signal(&fd, Signal::STOP).map(|()| fd))
                {
                    Ok(process) => drop(self.0.insert(pid, process)),
                    Err(Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if self.0.len() == before && !orphans {
                return Ok(());
            }
        }
        Err(StillError::More)
    }

    /// Lets exactly those go on that were stopped.
    pub(crate) fn go_on(&mut self) {
        for process in std::mem::take(&mut self.0).into_values() {
            // One that ended meanwhile needs nothing.
            let _ = pidfd_send_signal(process, Signal::CONT);
        }
    }
}

/// Those that are to be stopped, and whether the parent of some process ended while they were read, so that it is not
/// known whose it is.
fn chosen(stats: &[Stat], agent: i32, spared: &[i32]) -> (Vec<i32>, bool) {
    let parents: BTreeMap<i32, i32> = stats.iter().map(|stat| (stat.pid, stat.parent)).collect();
    let mut orphans = false;
    let mut is_ours = |mut pid: i32| {
        // A number that was given again meanwhile could make a ring.
        for _ in 0..stats.len() {
            match parents.get(&pid) {
                Some(parent) if *parent == agent => return true,
                Some(0) => return false,
                Some(parent) => pid = *parent,
                None => break,
            }
        }
        orphans = true;
        false
    };
    let running = stats.iter().filter(|stat| !stat.stopped && !spared.contains(&stat.pid));
    let found = running.filter(|stat| is_ours(stat.pid)).map(|stat| stat.pid).collect();
    (found, orphans)
}

/// All processes that there are.
fn all(proc: &OwnedFd) -> Result<Vec<Stat>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut stats = Vec::new();
    for entry in Dir::new(openat(proc, ".", flags, Mode::empty())?)? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) else { continue };
        let path = format!("{pid}/stat");
        let mut text = [0; STAT];
        let read = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| read(&file, &mut text));
        match read {
            Ok(count) => stats.extend(parse(pid, &text[..count])),
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(stats)
}

/// `pid (name) state parent …`; the name is whatever the process likes, at most 64 bytes.
fn parse(pid: i32, stat: &[u8]) -> Option<Stat> {
    let name = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(name + 1..)?).ok()?.split_ascii_whitespace();
    let stopped = fields.next()? == "T";
    Some(Stat { pid, parent: fields.next()?.parse().ok()?, stopped })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, parent: i32) -> Stat {
        Stat { pid, parent, stopped: false }
    }

    #[test]
    fn descendants_are_chosen_and_nobody_else() {
        let kernel = [stat(2, 0), stat(9, 2)];
        let stopped = Stat { stopped: true, ..stat(13, 1) };
        let ours = [stat(1, 0), stat(10, 1), stat(11, 10), stat(12, 1), stopped, stat(14, 12), stat(15, 13)];
        let all = [kernel.as_slice(), &ours].concat();
        assert_eq!(chosen(&all, 1, &[12]), (vec![10, 11, 14, 15], false));
        assert_eq!(chosen(&[stat(1, 0), stat(20, 19)], 1, &[]), (vec![], true), "its parent ended meanwhile");
        assert_eq!(chosen(&[stat(1, 0), stat(20, 21), stat(21, 20)], 1, &[]), (vec![], true), "a ring");
        assert_eq!(chosen(&[stat(5, 0), stat(6, 5), stat(7, 6)], 6, &[]), (vec![7], false), "not its parents");
    }

    #[test]
    fn a_name_cannot_deceive() {
        assert_eq!(parse(7, b"7 (a) T 1 (b) S 3 7 7 0 -1"), Some(stat(7, 3)));
        assert_eq!(parse(7, b"7 (a\n\xff) T 1 7"), Some(Stat { stopped: true, ..stat(7, 1) }));
        for bad in [b"".as_slice(), b"7", b"7 (a", b"7 (a)", b"7 (a) S", b"7 (a) S x", b"7 (a) S 99999999999 1"] {
            assert_eq!(parse(7, bad), None);
        }
    }
}
