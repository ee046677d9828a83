//! User ids, each for one cell at a time. A locked file says that one is in use: the kernel unlocks it when the supervisor
//! that holds it is gone. A hypervisor that outlives a killed supervisor does so for the moment that the kernel takes to end
//! it; it cannot see a neighbour of that moment, who has another process namespace.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{FIRST_UID, Groups, UIDS};

/// How long a hypervisor may take to die whose supervisor was killed.
const DYING: Duration = Duration::from_secs(2);

/// A user id that is nobody else's until this is dropped.
#[derive(Debug)]
pub(crate) struct Uid {
    pub(crate) number: u32,
    _lock: File,
}

/// The lowest one that nobody has.
///
/// # Errors
/// When the folder cannot be written, or all are in use.
pub(crate) fn take(locks: &Path) -> io::Result<Uid> {
    make(locks)?;
    for number in FIRST_UID..FIRST_UID + UIDS {
        if let Some(lock) = lock(locks, number)? {
            return Ok(Uid { number, _lock: lock });
        }
    }
    Err(io::Error::other(format!("all {UIDS} user ids for hypervisors, from {FIRST_UID} on, are in use")))
}

fn make(locks: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(locks)
}

/// The lock of a number; nothing where somebody has it.
fn lock(locks: &Path, number: u32) -> io::Result<Option<File>> {
    let lock = File::options().create(true).truncate(false).write(true).open(locks.join(number.to_string()))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Somebody else who has some of the user ids of cells.
///
/// # Errors
/// Who, and what to do.
pub(crate) fn check(locks: &Path, groups: &Groups) -> Result<(), String> {
    for (file, start) in [("/etc/subuid", 1), ("/etc/subgid", 1), ("/etc/passwd", 2), ("/etc/group", 2)] {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some(name) = overlapping(&text, start) {
            return Err(format!(
                "{file} gives {name} user ids that hypervisors have, {FIRST_UID} to {}: give it others",
                FIRST_UID + UIDS - 1
            ));
        }
    }
    // What a killed supervisor leaves is gone in a moment.
    let begin = Instant::now();
    while let Some((pid, uid)) = foreign(locks, groups, FIRST_UID..FIRST_UID + UIDS) {
        if begin.elapsed() > DYING {
            return Err(format!(
                "process {pid} has the user id {uid}, which is a hypervisor's, and is none of ours: end it"
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The name in a line of `name:…:start[:count]` whose ids are also those of cells.
fn overlapping(text: &str, start: usize) -> Option<String> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let first: u32 = fields.get(start)?.trim().parse().ok()?;
        // Accounts have one.
        let count = if start == 1 { fields.get(2)?.trim().parse().ok()? } else { 1 };
        let overlaps = count > 0 && first < FIRST_UID + UIDS && first.saturating_add(count) > FIRST_UID;
        overlaps.then(|| fields[0].to_owned())
    })
}

/// A process with one of the user ids `of` cells that nobody has locked.
fn foreign(locks: &Path, groups: &Groups, of: Range<u32>) -> Option<(u32, u32)> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let uid = entry.metadata().ok()?.uid();
        // One that a killed supervisor left and that cannot die, with a disk that hangs, is ours still.
        let ours = || {
            let inside = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            inside.lines().any(|line| line.ends_with(&format!("/{}/{uid}", groups.parent)))
        };
        (of.contains(&uid) && !locked(locks, uid) && !ours()).then_some((pid, uid))
    })
}

/// Keeps others from taking it, until what is given is dropped; nothing where somebody has it, or who cannot be told.
pub(super) fn hold(locks: &Path, number: u32) -> Option<File> {
    make(locks).and_then(|()| lock(locks, number)).ok()?
}

/// Whether somebody has it.
fn locked(locks: &Path, number: u32) -> bool {
    locks.join(number.to_string()).exists() && hold(locks, number).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_what_another_has_and_the_lowest_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let locks = dir.path().join("a/b");
        let (one, two) = (take(&locks).unwrap(), take(&locks).unwrap());
        assert_eq!((one.number, two.number), (FIRST_UID, FIRST_UID + 1));
        drop(one);
        assert_eq!(take(&locks).unwrap().number, FIRST_UID);
    }

    #[test]
    fn a_process_with_a_user_id_that_nobody_locked_is_foreign() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give a process another user id");
            return;
        }
        // Beside those of cells, which other tests look through meanwhile.
        let (uid, dir) = (FIRST_UID + UIDS + 7, tempfile::tempdir().unwrap());
        let found = || foreign(dir.path(), &Groups::default(), uid..uid + 1);
        let mut command = std::process::Command::new("sleep");
        let mut sleeper = std::os::unix::process::CommandExt::uid(command.arg("60"), uid).spawn().unwrap();
        let unlocked = found();
        let lock = hold(dir.path(), uid).unwrap();
        let locked = found();
        drop(lock);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!((unlocked, locked, found()), (Some((sleeper.id(), uid)), None, None));
    }

    #[test]
    fn who_was_given_the_same_ids_is_found() {
        let fine =
            format!("root:0:65536\nme:100000:65536\nbelow:{}:1\nabove:{}:9\nbad:x\n", FIRST_UID - 1, FIRST_UID + UIDS);
        assert_eq!(overlapping(&fine, 1), None);
        assert_eq!(overlapping(&format!("{fine}me:{}:2\n", FIRST_UID - 1), 1).as_deref(), Some("me"));
        assert_eq!(overlapping("all:1:4294967295\n", 1).as_deref(), Some("all"));
        let passwd = format!("root:x:0:0:root:/root:/bin/sh\nguest:x:{}:1::/:/bin/sh\n", FIRST_UID + 7);
        assert_eq!(overlapping(&passwd, 2).as_deref(), Some("guest"));
        assert_eq!(overlapping("root:x:0:0:root:/root:/bin/sh\n", 2), None);
    }
}
