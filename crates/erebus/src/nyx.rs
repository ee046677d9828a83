//! Nyx: the golden snapshots of a node. Each is four files that belong together: what a guest had written to its memory,
//! the state of its devices, its writable layer, and the manifest that makes them count.
//!
//! A snapshot lives in `NAME.GENERATION/`, where the name is 64 hexadecimal digits that its owner chose. A generation is
//! never used again: whoever restores from one that is replaced meanwhile still finds its files under their paths, and
//! never finds those of another. The manifest holds the lengths and digests of the files, and is the last thing that is
//! written; a folder counts only once it was renamed into place with its manifest in it. Removing starts with the
//! manifest. So a crash at any moment leaves a whole snapshot or none, and the next open removes the rest.
//!
//! What is in the memory and in the state is not known here, nor what the snapshot fits: that is its owner's business,
//! and in the manifest's `meta`. One process at a time uses a folder. All calls block on the disk.

mod content;
mod draft;
mod folder;
mod manifest;
mod snapshot;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blobs::Digest;
use tartarus_types::Timestamp;

use crate::disk::{self, Staging};
use crate::error::shown;
use crate::{ErebusError, disk_usage};
use folder::{Folder, FolderName};
use manifest::Unreadable;

pub use draft::{Draft, MAX_STATE};
pub use folder::Lease;
pub use snapshot::Snapshot;

/// The store. Cheap to clone; all clones are the same store.
#[derive(Debug, Clone)]
pub struct Snapshots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    staging: PathBuf,
    /// What counts, by name.
    known: Mutex<BTreeMap<String, Arc<Folder>>>,
    /// The next generation. Held while a snapshot is put in place, so that the later generation is the one that stays.
    next: Mutex<u64>,
}

/// A line in the list of snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub golden: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was made, and bytes of its layer that are not zero; absent when it cannot be used.
    pub made: Option<(Timestamp, u64)>,
    /// Why it cannot be used.
    pub unusable: Option<String>,
}

impl Snapshots {
    /// Opens the store in `root`, makes its folder where missing (mode 0700), and removes what was not finished, what was
    /// replaced or removed, and what has no manifest that can be read. A snapshot that a newer Tartarus made is kept and
    /// listed. Entries that are not named like a snapshot are left alone. Blocks.
    ///
    /// # Errors
    /// When a folder cannot be made or read.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, ErebusError> {
        let root = root.as_ref().to_owned();
        let failed = || ErebusError::io("open the folder of the golden snapshots");
        let staging = disk::open_staging(&root).map_err(failed())?;
        let (known, next) = collect(&root).map_err(failed())?;
        Ok(Self(Arc::new(Inner { root, staging, known: Mutex::new(known), next: Mutex::new(next) })))
    }

    /// Begins a snapshot of this name, 64 lower-case hexadecimal digits. One that there is stays until this is committed.
    ///
    /// # Errors
    /// `BadFile` when it is no name; `DiskFull`; when no folder can be made.
    pub fn draft(&self, golden: &str) -> Result<Draft, ErebusError> {
        if Digest::from_hex(golden).is_none() {
            let given = shown(golden.as_bytes());
            return Err(ErebusError::bad(format!("{given} names no golden snapshot: 64 hexadecimal digits do")));
        }
        let staging = Staging::new(&self.0.staging).map_err(ErebusError::io("make a folder for the snapshot"))?;
        Ok(Draft::new(Arc::clone(&self.0), golden.to_owned(), staging))
    }

    /// The snapshot of this name; its files stay while this or a [`Lease`] of it lives. Reads the manifest and looks at
    /// the lengths of the files, so it may be called at each start. Blocks, for a moment.
    ///
    /// # Errors
    /// `Unusable` when it is damaged or made by a newer Tartarus.
    pub fn get(&self, golden: &str) -> Result<Option<Snapshot>, ErebusError> {
        loop {
            let Some(folder) = self.0.find(golden) else { return Ok(None) };
            match folder.check() {
                Ok(manifest) => return Ok(Some(Snapshot::new(folder, manifest))),
                // Removed or replaced in between: look again, unless there is nothing newer.
                Err(Unreadable::Missing) => {
                    if self.0.find(golden).is_none_or(|now| Arc::ptr_eq(&now, &folder)) {
                        return Ok(None);
                    }
                }
                Err(why) => return Err(ErebusError::Unusable { golden: golden.to_owned(), why: why.to_string() }),
            }
        }
    }

    /// Removes a snapshot: nobody finds it any more when this returns, also after a crash. Its files go with the last
    /// lease, now if there is none. False when there was none.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, golden: &str) -> Result<bool, ErebusError> {
        let Some(folder) = self.0.find(golden) else { return Ok(false) };
        folder.doom().map_err(ErebusError::io(format!("remove the golden snapshot {golden}")))?;
        let mut known = self.0.known();
        // Unless it was replaced in between.
        let same = known.get(golden).is_some_and(|now| Arc::ptr_eq(now, &folder));
        let last = same.then(|| known.remove(golden));
        drop(known);
        // Deleting files takes time; not under the lock.
        drop((last, folder));
        Ok(true)
    }

    /// All snapshots by name, also those that cannot be used. Removed ones that are still leased are not among them.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, ErebusError> {
        let folders: Vec<Arc<Folder>> = self.0.known().values().cloned().collect();
        let mut list = Vec::with_capacity(folders.len());
        for folder in folders {
            let (made, unusable) = match folder.check() {
                Ok(manifest) => (Some((manifest.created_at_us, manifest.files.layer.data_bytes)), None),
                Err(why) => (None, Some(why.to_string())),
            };
            let bytes = disk_usage(&folder.dir).map_err(ErebusError::io("measure the golden snapshots"))?;
            list.push(Listed { golden: folder.golden.clone(), bytes, made, unusable });
        }
        Ok(list)
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Folder>>> {
        // Nothing panics while it is held, and a map is whole at each moment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, golden: &str) -> Option<Arc<Folder>> {
        self.known().get(golden).cloned()
    }

    /// Puts a finished folder in place of the one that there is. `at` sees each moment after which a crash matters.
    fn put(&self, golden: &str, staged: &Path, at: &mut dyn FnMut(&'static str)) -> io::Result<Arc<Folder>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let name = FolderName { golden: golden.to_owned(), generation: *next };
        *next = next.checked_add(1).ok_or_else(|| io::Error::other("there are no generations left"))?;
        let folder = Arc::new(Folder::new(&self.root, name));
        fs::rename(staged, &folder.dir)?;
        at("renamed");
        if let Err(error) = disk::sync_dir(&self.root) {
            // It may be there after a crash or not; for now it never was.
            let _ = folder.doom();
            return Err(error);
        }
        at("root synced");
        let old = self.known().insert(golden.to_owned(), Arc::clone(&folder));
        if let Some(old) = old {
            // What fails here goes at the next open: the later generation counts.
            let _ = old.doom();
            at("old one out of sight");
        }
        Ok(folder)
    }
}

/// What counts in `root`, and the next generation. Removes the rest.
fn collect(root: &Path) -> io::Result<(BTreeMap<String, Arc<Folder>>, u64)> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        names.extend(entry?.file_name().to_str().and_then(FolderName::parse));
    }
    // The latest first.
    names.sort_by_key(|name| Reverse(name.generation));
    let next = names.first().map_or(0, |name| name.generation.saturating_add(1));
    let mut known = BTreeMap::new();
    for name in names {
        let (golden, folder) = (name.golden.clone(), Folder::new(root, name));
        let why = match manifest::read(&folder.dir, &golden) {
            _ if known.contains_key(&golden) => "it was replaced".to_owned(),
            Err(why @ (Unreadable::Missing | Unreadable::Damaged(_))) => why.to_string(),
            Ok(_) | Err(Unreadable::Newer(_) | Unreadable::Io(_)) => {
                known.insert(golden, Arc::new(folder));
                continue;
            }
        };
        tracing::info!(golden, why, "what was left of a golden snapshot is removed");
        if folder.dir.symlink_metadata()?.is_dir() {
            fs::remove_dir_all(&folder.dir)?;
        } else {
            fs::remove_file(&folder.dir)?;
        }
    }
    disk::sync_dir(root)?;
    Ok((known, next))
}

#[cfg(test)]
#[path = "nyx_tests.rs"]
mod tests;
