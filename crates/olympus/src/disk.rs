//! The data folder's disk: how much is free, and whether that is enough to take new work on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tartarus_types::{ErrorCode, MIB, Refusal};

/// For so long what was seen is taken for what is.
const FRESH: Duration = Duration::from_secs(1);

/// A folder's disk, looked at once per second at most.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: Option<PathBuf>,
    min_free: u64,
    seen: Mutex<Option<(Instant, u64)>>,
}

impl Disk {
    /// Without folder there is nothing to look at, and nothing is refused; with `min_free` 0 as well.
    pub(crate) fn new(folder: Option<&Path>, min_free: u64) -> Self {
        Self { folder: folder.map(Path::to_owned), min_free, seen: Mutex::new(None) }
    }

    /// Bytes below which new work is refused.
    pub(crate) fn min_free(&self) -> u64 {
        self.min_free
    }

    /// The folder.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Refuses new work while less is free than must be. A disk that cannot be looked at refuses nothing: whoever
    /// writes there will hear of it.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        match self.free() {
            Some(free) if free < self.min_free => Err(Refusal::new(
                ErrorCode::DiskFull,
                format!(
                    "the server's disk has {} MiB free, and new work is refused below {} MiB (--min-free): `tartarus df` \
                     shows what takes room, `tartarus prune` frees some",
                    free / MIB,
                    self.min_free / MIB
                ),
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn free(&self) -> Option<u64> {
        let folder = self.folder.as_ref().filter(|_| self.min_free > 0)?;
        // Whoever panicked here left a whole value or none.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, free)) = *seen
            && at.elapsed() < FRESH
        {
            return Some(free);
        }
        match rustix::fs::statvfs(folder) {
            Ok(stat) => {
                let free = stat.f_bavail.saturating_mul(stat.f_frsize);
                *seen = Some((Instant::now(), free));
                Some(free)
            }
            Err(error) => {
                tracing::warn!("the free space of {} cannot be read: {error}", folder.display());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_the_mark_new_work_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = Disk::new(Some(dir.path()), u64::MAX).check().unwrap_err();
        assert_eq!(refusal.code, ErrorCode::DiskFull);
        for word in ["MiB free", "--min-free", "tartarus df", "tartarus prune"] {
            assert!(refusal.detail.contains(word), "{refusal}");
        }
        Disk::new(Some(dir.path()), 1).check().unwrap();
        Disk::new(Some(dir.path()), 0).check().unwrap();
        Disk::new(None, u64::MAX).check().unwrap();
        Disk::new(Some(Path::new("/absent")), u64::MAX).check().unwrap();
    }
}
