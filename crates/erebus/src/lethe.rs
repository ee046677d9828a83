//! Throw-away disks: the writable layer of each sandbox, empty or as a golden snapshot has it.
//!
//! Making a file system takes longer than a sandbox may wait, so each size is made once and then cloned: by reflink
//! where the disk has it, else by copying the few pieces that hold data. The rest of a layer is a hole and takes no
//! space until the guest writes there. A golden layer that holds too much for that is not copied: the new layer is then a
//! qcow2 file over it. QEMU opens the golden one by its path when it starts, and keeps it open; that the path is gone
//! later is harmless. Who made a layer removes it.

mod qcow2;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{OFlags, ioctl_ficlone};

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

/// Most that is copied, bytes: what can be done in a few milliseconds. Beyond it an overlay costs the guest less.
const MAX_COPY: u64 = 4 << 20;

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerFormat {
    /// As it is.
    Raw,
    /// A qcow2 file over the golden layer.
    Qcow2,
}

/// How a layer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerMade {
    /// How it is stored. A hypervisor must be told, and never guess: a guest can write another format's first bytes.
    pub format: LayerFormat,
    /// Bytes that had to be copied.
    pub bytes_copied: u64,
    /// It shares its blocks with what it was made from until either is written.
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
    pub fn make(&self, size_mib: u32, target: &Path) -> Result<LayerMade, ErebusError> {
        let empty = self.empty(size_mib)?;
        let failed = || ErebusError::io(format!("make the layer {}", target.display()));
        let source = File::open(empty).map_err(failed())?;
        into_new(target, |layer| clone(&source, layer)).map_err(failed())
    }

    /// Makes a layer at `target` that begins as the raw file `golden` and shares no write with it: by reflink, by copying
    /// up to 4 MiB of data, or else as an overlay, for which the path of `golden` must be absolute and lead to the same
    /// file until the hypervisor has started. As [`Layers::make`] otherwise. Blocks, for a few milliseconds.
    ///
    /// # Errors
    /// `DiskFull`; when `golden` cannot be read or `target` cannot be made; nothing is left there then.
    pub fn from_golden(golden: &Path, target: &Path) -> Result<LayerMade, ErebusError> {
        let failed = || ErebusError::io(format!("make the layer {} from {}", target.display(), golden.display()));
        let source = File::open(golden).map_err(failed())?;
        into_new(target, |layer| match reflink(&source, layer) {
            Some(made) => Ok(made),
            None if sparse::data_bytes(&source, MAX_COPY)? <= MAX_COPY => copy(&source, layer),
            None => overlay(&source, golden, layer),
        })
        .map_err(failed())
    }

    /// As [`Layers::from_golden`], but never an overlay: for a hypervisor that reads raw disks only. What is copied takes a
    /// second and more for some hundred MiB without reflink. Blocks.
    ///
    /// # Errors
    /// As [`Layers::from_golden`].
    pub fn copy_of_golden(golden: &Path, target: &Path) -> Result<LayerMade, ErebusError> {
        let failed = || ErebusError::io(format!("make the layer {} from {}", target.display(), golden.display()));
        let source = File::open(golden).map_err(failed())?;
        into_new(target, |layer| clone(&source, layer)).map_err(failed())
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

/// A new file, gone again when it cannot be filled.
fn into_new(target: &Path, fill: impl FnOnce(&File) -> io::Result<LayerMade>) -> io::Result<LayerMade> {
    let layer = disk::create(target, 0o600)?;
    fill(&layer).inspect_err(|_| {
        // Only what this call made: creating it was exclusive.
        let _ = fs::remove_file(target);
    })
}

fn clone(source: &File, target: &File) -> io::Result<LayerMade> {
    reflink(source, target).map_or_else(|| copy(source, target), Ok)
}

fn reflink(source: &File, target: &File) -> Option<LayerMade> {
    // Every reason against it is a reason to copy.
    ioctl_ficlone(target, source).ok()?;
    Some(LayerMade { format: LayerFormat::Raw, bytes_copied: 0, reflinked: true })
}

fn copy(source: &File, target: &File) -> io::Result<LayerMade> {
    Ok(LayerMade { format: LayerFormat::Raw, bytes_copied: sparse::copy(source, target)?, reflinked: false })
}

fn overlay(source: &File, golden: &Path, target: &File) -> io::Result<LayerMade> {
    let bytes_copied = qcow2::write_overlay(target, golden, source.metadata()?.len())?;
    Ok(LayerMade { format: LayerFormat::Qcow2, bytes_copied, reflinked: false })
}

/// Copies a raw layer into a new, empty file, for a snapshot: by reflink where the disk has it, else its data, keeping the
/// holes. Nobody may write the source meanwhile. Not synced: whoever keeps the copy does that. Returns the bytes copied,
/// 0 after a reflink. Blocks.
///
/// # Errors
/// When a file cannot be read or written; the target has a part of it then.
pub fn copy_layer(source: &Path, target: &File) -> io::Result<u64> {
    Ok(clone(&File::open(source)?, target)?.bytes_copied)
}

/// Overwrites the data of a layer's file with zeros where it is, raw or qcow2, and waits until that is on the disk. Its
/// length and holes stay; to a guest it is broken afterwards. Returns the bytes overwritten. Blocks.
///
/// It reaches what the file has now, through the file system, and so cannot promise that nothing is left: a file system
/// that never writes in place (btrfs, ZFS, or a block that a reflink still shares) puts the zeros elsewhere; so may an
/// SSD, and a virtual or thin disk; what the guest had discarded is a hole by now and no longer this file's; and the
/// host's swap may hold pages of its memory. Encrypt the disk where that matters.
///
/// # Errors
/// When the file is none or cannot be written, as on a full disk that never writes in place.
pub fn shred(path: &Path) -> io::Result<u64> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a regular file can be overwritten"));
    }
    let (mut sum, zeros) = (0, vec![0; sparse::CHUNK]);
    for extent in sparse::extents(&file, meta.len()) {
        let extent = extent?;
        for at in extent.clone().step_by(sparse::CHUNK) {
            file.write_all_at(&zeros[..sparse::CHUNK.min((extent.end - at) as usize)], at)?;
        }
        sum += extent.end - extent.start;
    }
    file.sync_data()?;
    Ok(sum)
}

#[cfg(test)]
#[path = "lethe_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "lethe_golden_tests.rs"]
mod golden_tests;
