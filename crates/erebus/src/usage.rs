//! How much of a disk something takes.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Folders within folders that are looked into. What this node makes has far fewer.
const DEPTH: usize = 16;

/// Bytes on disk of a file, or of a folder with all in it: holes do not count, a file with several names counts once,
/// links are not followed, and what is mounted below is left out. 0 when there is nothing. Blocks that several files
/// share by reflink count for each. Blocks.
///
/// # Errors
/// When a folder cannot be read, or is too deep to be one of this node's.
pub fn disk_usage(path: &Path) -> io::Result<u64> {
    let Some(root) = there(fs::symlink_metadata(path))? else { return Ok(0) };
    let (device, mut several_names, mut sum) = (root.dev(), HashSet::new(), root.blocks() * 512);
    let mut folders = if root.is_dir() { vec![(path.to_owned(), 1)] } else { Vec::new() };
    while let Some((folder, depth)) = folders.pop() {
        if depth > DEPTH {
            let what = format!("{} is more than {DEPTH} folders deep", folder.display());
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        let Some(entries) = there(fs::read_dir(&folder))? else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(meta) = there(entry.metadata())? else { continue };
            if meta.dev() != device || (meta.nlink() > 1 && meta.is_file() && !several_names.insert(meta.ino())) {
                continue;
            }
            sum += on_disk(&meta);
            if meta.is_dir() {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(sum)
}

pub(crate) fn on_disk(meta: &Metadata) -> u64 {
    // Always in units of 512, whatever the file system's blocks are.
    meta.blocks() * 512
}

/// Something that others remove meanwhile is no error.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_disk_counts_once() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("large"), vec![1; 4 << 20]).unwrap();
        let empty = disk_usage(root.path()).unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(root.path().join("a/b/file"), root.path().join("again")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("folder")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("large"), root.path().join("link")).unwrap();
        fs::File::create(root.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        let used = disk_usage(root.path()).unwrap() - empty;
        assert!((1 << 20..(1 << 20) + 64 * 1024).contains(&used), "{used}");
        assert_eq!(disk_usage(&root.path().join("hole")).unwrap(), 0);
        assert!(disk_usage(&root.path().join("a/b/file")).unwrap() >= 1 << 20);
        assert!(disk_usage(&root.path().join("link")).unwrap() <= 4096, "a link is not followed at the top either");
        assert_eq!(disk_usage(&root.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn depth_is_bounded() {
        let root = tempfile::tempdir().unwrap();
        let deep = |n: usize| (0..n).fold(root.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(deep(DEPTH - 1)).unwrap();
        disk_usage(root.path()).unwrap();
        fs::create_dir_all(deep(DEPTH)).unwrap();
        assert!(disk_usage(root.path()).unwrap_err().to_string().contains("deep"));
    }
}
