//! The folder of a snapshot, and who still needs it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use blobs::Digest;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::manifest::{self, Manifest, Unreadable};
use crate::disk;

/// What its owner kept of the memory.
pub(super) const MEMORY: &str = "memory";
/// The state of the devices.
pub(super) const STATE: &str = "state";
/// The writable layer.
pub(super) const LAYER: &str = "layer";

/// `NAME.GENERATION`: 64 and 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FolderName {
    pub(super) golden: String,
    pub(super) generation: u64,
}

impl FolderName {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (golden, digits) = name.split_once('.')?;
        let generation = u64::from_str_radix(digits, 16).ok()?;
        Digest::from_hex(golden)?;
        let name = Self { golden: golden.to_owned(), generation };
        // One way to write a number.
        (name.number() == digits).then_some(name)
    }

    fn number(&self) -> String {
        format!("{:016x}", self.generation)
    }
}

/// A snapshot's folder. Doomed, it is deleted when the last one who holds it lets go.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) golden: String,
    pub(super) dir: PathBuf,
    doomed: AtomicBool,
    /// The layer as it was when its digest was right. Held while that is found out, so that it is done once.
    pub(super) layer_verified: Mutex<Option<Stamp>>,
}

impl Folder {
    pub(super) fn new(root: &Path, name: FolderName) -> Self {
        let dir = root.join(format!("{}.{}", name.golden, name.number()));
        Self { golden: name.golden, dir, doomed: AtomicBool::new(false), layer_verified: Mutex::new(None) }
    }

    /// Nobody who does not have it already finds it now; also after a crash.
    pub(super) fn doom(&self) -> io::Result<()> {
        match fs::remove_file(self.dir.join(manifest::NAME)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => self.doomed.store(true, Ordering::Release),
        }
        match disk::sync_dir(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    }

    /// The manifest, when the files are there and as long as it says. Cheap: no file is read but the manifest.
    pub(super) fn check(&self) -> Result<Manifest, Unreadable> {
        let manifest = manifest::read(&self.dir, &self.golden)?;
        let files = &manifest.files;
        for (name, bytes) in [(MEMORY, files.memory.bytes), (STATE, files.state.bytes), (LAYER, files.layer.bytes)] {
            let meta = match fs::symlink_metadata(self.dir.join(name)) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Err(self.missing(name)),
                meta => meta.map_err(Unreadable::Io)?,
            };
            if !meta.is_file() {
                return Err(Unreadable::Damaged(format!("its {name} is no regular file")));
            }
            if meta.len() != bytes {
                let len = meta.len();
                return Err(Unreadable::Damaged(format!("its {name} has {len} bytes, the manifest says {bytes}")));
            }
        }
        Ok(manifest)
    }

    /// A file that is missing where the manifest is gone by now was removed, not damaged.
    fn missing(&self, name: &str) -> Unreadable {
        if self.doomed.load(Ordering::Acquire) {
            return Unreadable::Missing;
        }
        Unreadable::Damaged(format!("its {name} is missing"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if *self.doomed.get_mut()
            && let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != ErrorKind::NotFound
        {
            // Without a manifest it does not count, and goes at the next open.
            tracing::warn!(golden = self.golden, %error, "a removed golden snapshot could not be deleted yet");
        }
    }
}

/// Whoever holds it finds the files of a snapshot where they were, even when it was removed or replaced meanwhile.
/// Dropping the last one of a removed snapshot deletes its files, which blocks.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Folder>);

impl Lease {
    pub(super) fn new(folder: Arc<Folder>) -> Self {
        Self(folder)
    }

    /// The snapshot's name.
    pub fn golden(&self) -> &str {
        &self.0.golden
    }
}

/// Changes whenever a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            file: (meta.dev(), meta.ino()),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Opens a regular file for reading: no link is followed, and nothing waits for the other end of a pipe. `InvalidData`
/// when it is something else.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let none = || io::Error::new(ErrorKind::InvalidData, "it is no regular file");
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
        Err(e) if [Errno::LOOP, Errno::NXIO].contains(&Errno::from_io_error(&e).unwrap_or(Errno::IO)) => {
            return Err(none());
        }
        file => file?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(none()) }
}
