//! Throw-away disks: an empty ext4 for each sandbox, its writable layer.
//!
//! Making a file system takes longer than a sandbox may wait, so each size is made once and then cloned: by reflink
//! where the disk has it, else by copying the few pieces that hold data. The rest of a layer is a hole and takes no
//! space until the guest writes there. Who made a layer removes it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::ioctl_ficlone;

use crate::ErebusError;
use crate::disk::{self, Staging};
use crate::sparse;
use crate::tool::{MKE2FS, says_full, speech};

/// The same in every layer: a guest must learn nothing from it.
const ID: &str = "7a727461-7475-4300-8000-6c6179657201";

/// Everything that must not depend on the host's `mke2fs.conf`. No journal, no checksums: a layer does not outlive its
/// guest, and both cost time under emulation. `discard` finds that a new file is all zeros, and so marks the inode tables
/// as done; otherwise a thread in each guest would write them all.
const OPTIONS: &str = "-q -F -t ext4 -b 4096 -I 256 -i 16384 -m 0 -L tartarus \
                       -O none,extent,flex_bg,filetype,dir_index,dir_nlink,sparse_super,large_file,huge_file,64bit,\
                       ext_attr,extra_isize,uninit_bg,resize_inode";

/// The folder of empty layers. One process at a time uses it.
#[derive(Debug, Clone)]
pub struct Layers {
    root: PathBuf,
    staging: PathBuf,
}

/// How a layer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Bytes that had to be copied.
    pub bytes_copied: u64,
    /// It shares its blocks with the empty one until either is written.
    pub reflinked: bool,
}

impl Layers {
    /// Opens the folder, makes it where missing (mode 0700), and removes what an earlier process left unfinished. Blocks.
    ///
    /// # Errors
    /// When a folder cannot be made or read.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, ErebusError> {
        let root = root.as_ref().to_owned();
        let staging = disk::open_staging(&root).map_err(ErebusError::io("open the folder of the layers"))?;
        Ok(Self { root, staging })
    }

    /// Makes an empty layer of `size_mib` MiB at `target`, which must not exist. Only its owner may read it (mode 0600).
    /// It is not synced: a layer is worth nothing after a crash. Blocks; the first of each size takes longer.
    ///
    /// # Errors
    /// `MissingTool`, `DiskFull`, or when `target` cannot be made; nothing is left there then.
    pub fn make(&self, size_mib: u32, target: &Path) -> Result<Made, ErebusError> {
        let empty = self.empty(size_mib)?;
        let failed = || ErebusError::io(format!("make the layer {}", target.display()));
        let source = File::open(empty).map_err(failed())?;
        let layer = disk::create(target, 0o600).map_err(failed())?;
        clone(&source, &layer).map_err(|error| {
            // Only what this call made: creating it was exclusive.
            let _ = fs::remove_file(target);
            failed()(error)
        })
    }

    /// The empty file system of this size, made where it is missing.
    fn empty(&self, size_mib: u32) -> Result<PathBuf, ErebusError> {
        let path = self.root.join(format!("{size_mib}.ext4"));
        let failed = || ErebusError::io(format!("make an empty file system of {size_mib} MiB"));
        if path.try_exists().map_err(failed())? {
            return Ok(path);
        }
        let staging = Staging::new(&self.staging).map_err(failed())?;
        let made = staging.path().join("layer");
        let file = disk::create(&made, 0o600).map_err(failed())?;
        file.set_len(u64::from(size_mib) << 20).map_err(failed())?;
        format(&made)?;
        file.sync_all().map_err(failed())?;
        // Two at the same time make the same thing; the later rename wins.
        fs::rename(&made, &path).and_then(|()| disk::sync_dir(&self.root)).map_err(failed())?;
        Ok(path)
    }
}

fn format(file: &Path) -> Result<(), ErebusError> {
    let output = Command::new(MKE2FS.find()?)
        .args(OPTIONS.split_whitespace())
        .args(["-U", ID, "-E", &format!("discard,lazy_itable_init=1,hash_seed={ID},root_owner=0:0")])
        .arg(file)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(ErebusError::io("start mke2fs"))?;
    let said = speech(&output.stderr);
    match output.status {
        status if status.success() => Ok(()),
        _ if says_full(&said) => Err(ErebusError::DiskFull),
        status => Err(ErebusError::Tool { program: "mke2fs", said: format!("{said} ({status})") }),
    }
}

fn clone(source: &File, target: &File) -> io::Result<Made> {
    if ioctl_ficlone(target, source).is_ok() {
        return Ok(Made { bytes_copied: 0, reflinked: true });
    }
    Ok(Made { bytes_copied: sparse::copy(source, target)?, reflinked: false })
}

#[cfg(test)]
#[path = "lethe_tests.rs"]
mod tests;
