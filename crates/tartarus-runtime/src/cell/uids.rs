//! User ids, each for one cell at a time. A locked file says that one is in use: the kernel unlocks it when the supervisor
//! that holds it is gone. A hypervisor that outlives a killed supervisor does so for the moment that the kernel takes to end
//! it; it cannot see a neighbour of that moment, who has another process namespace.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::{FIRST_UID, UIDS};

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
    DirBuilder::new().recursive(true).mode(0o700).create(locks)?;
    for number in FIRST_UID..FIRST_UID + UIDS {
        let lock = File::options().create(true).truncate(false).write(true).open(locks.join(number.to_string()))?;
        match lock.try_lock() {
            Ok(()) => return Ok(Uid { number, _lock: lock }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(e),
        }
    }
    Err(io::Error::other(format!("all {UIDS} user ids for hypervisors, from {FIRST_UID} on, are in use")))
}

/// Whether somebody has it. Who cannot be asked is taken to be there.
pub(super) fn locked(locks: &Path, number: u32) -> bool {
    match File::open(locks.join(number.to_string())) {
        Ok(lock) => lock.try_lock().is_err(),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
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
}
