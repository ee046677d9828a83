//! Files that must survive a crash. All of it blocks.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder in the making, removed with all in it when this is dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    /// A new empty folder in `parent`.
    pub(crate) fn new(parent: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = parent.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a rename there is nothing; and what is left now goes at the next open.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Makes a folder for staging in `root`, and empties one that an earlier process left.
pub(crate) fn open_staging(root: &Path) -> io::Result<PathBuf> {
    let path = root.join("staging");
    DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
    for entry in fs::read_dir(&path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    sync_dir(root)?;
    Ok(path)
}

/// A new file that only its owner may write.
pub(crate) fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// A new file with this content, on disk when this returns.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = create(path, 0o400)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Lets whoever is handed the open file read it, whatever this process's umask: a hypervisor opens its kernel again, by
/// another name and as another user. Nobody else gets into the folder.
pub(crate) fn share(path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.permissions().mode() & 0o777 {
        0o444 => Ok(()),
        _ => fs::set_permissions(path, Permissions::from_mode(0o444)),
    }
}

/// What was made or renamed in a folder is on disk once the folder is.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
