//! The folder that everything of a run is in, and what is removed with it: processes, mounts, control groups.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::mount::{UnmountFlags, unmount};

use super::tree;
use crate::terminal::note;

/// Everything that a run makes. Dropping it removes all of it.
pub(super) struct Scratch {
    dir: PathBuf,
    name: String,
    root: bool,
    /// Folders elsewhere that were not there.
    borrowed: RefCell<Vec<PathBuf>>,
}

/// Where the folder is made unless somebody says where: on a disk, where there is such a place. What is in memory would
/// flatter everybody.
pub(super) fn parent() -> PathBuf {
    let disk = Path::new("/var/tmp");
    if disk.is_dir() { disk.to_owned() } else { std::env::temp_dir() }
}

impl Scratch {
    /// Makes the folder below `parent`.
    pub(super) fn new(parent: &Path) -> Result<Self> {
        let parent = std::path::absolute(parent)?;
        let cannot = || format!("cannot make a folder in {}", parent.display());
        fs::create_dir_all(&parent).with_context(cannot)?;
        let root = rustix::process::geteuid().is_root();
        // A user's is gone through by the other ids that mmdebstrap has then; what is secret is closed by itself. Root has
        // files of whole systems in it, with programs that run as their owner.
        let mode = fs::Permissions::from_mode(if root { 0o700 } else { 0o711 });
        let mut builder = tempfile::Builder::new();
        builder.prefix("tartarus-bench-").permissions(fs::Permissions::from_mode(0o700));
        let made = builder.tempdir_in(&parent).with_context(cannot)?;
        fs::set_permissions(made.path(), mode).with_context(cannot)?;
        let name = made.path().file_name().and_then(OsStr::to_str).context("the folder's name is text")?.to_owned();
        let dir = made.keep();
        Ok(Self { dir, name, root, borrowed: RefCell::default() })
    }

    /// Whether the run is root's, who may have everything in it.
    pub(super) fn is_roots(&self) -> bool {
        self.root
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A folder in it.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Makes a folder elsewhere, unless it is there. It is removed at the end, unless something is in it by then.
    pub(super) fn borrow(&self, dir: &Path) -> Result<()> {
        match fs::create_dir(dir) {
            Ok(()) => self.borrowed.borrow_mut().push(dir.to_owned()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", dir.display())),
        }
        Ok(())
    }

    /// The control group that containers are put below.
    pub(super) fn cgroup(&self) -> String {
        format!("/{}", self.name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        tree::end_all();
        let mounts = mounts();
        for mount in mounts.iter().rev().filter(|mount| mount.at.starts_with(&self.dir)) {
            // Nobody who could use it is left; what cannot be unmounted shows when the folder cannot be removed.
            let _ = unmount(&mount.at, UnmountFlags::DETACH);
        }
        for mount in mounts.iter().filter(|mount| mount.kind.starts_with("cgroup")) {
            remove_group(&mount.at.join(&self.name));
        }
        for dir in self.borrowed.take() {
            // Somebody else may use it by now.
            let _ = fs::remove_dir(dir);
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            note(&format!("cannot remove {}: {error}", self.dir.display()));
        }
    }
}

/// A control group is removed with `rmdir`, after those below it.
fn remove_group(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_group(&entry.path());
    }
    let _ = fs::remove_dir(dir);
}

/// A mount of this process's namespace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) at: PathBuf,
    pub(super) kind: String,
}

/// All mounts.
pub(super) fn mounts() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse_mount).collect()
}

/// `ID PARENT DEVICE ROOT POINT OPTIONS … - KIND SOURCE …`
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let at = PathBuf::from(unescape(left.split(' ').nth(4)?));
    Some(Mount { at, kind: right.split(' ').next()?.to_owned() })
}

/// Blanks and the like are written as three octal digits.
fn unescape(text: &str) -> String {
    let text = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
    text.replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_and_without_tags() {
        let line = "29 1 254:0 / /a\\040b/c rw,relatime shared:1 - overlay overlay rw,lowerdir=/x";
        assert_eq!(parse_mount(line), Some(Mount { at: "/a b/c".into(), kind: "overlay".to_owned() }));
        let line = "30 29 0:5 / /sys/fs/cgroup/cpu rw - cgroup none rw";
        assert_eq!(parse_mount(line), Some(Mount { at: "/sys/fs/cgroup/cpu".into(), kind: "cgroup".to_owned() }));
        assert_eq!(parse_mount("nonsense"), None);
    }

    #[test]
    fn nothing_is_left_of_a_scratch_folder() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        fs::create_dir_all(dir.join("data/deep")).unwrap();
        // Not `Scratch::new`: dropping one ends every process of this test program's.
        fs::write(dir.join("data/file"), "x").unwrap();
        remove_group(&dir.join("data/deep"));
        assert!(!dir.join("data/deep").exists() && dir.join("data/file").exists());
    }
}
