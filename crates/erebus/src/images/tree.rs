//! What of a tar belongs into an image. Pure.
//!
//! A tar may say things twice, name a directory after what is in it, or not at all; `sqfstar` then takes the first,
//! silently leaves out a link to what is not there, and gives directories to whoever runs it. So it never gets to see
//! such things: they are put in order here, or refused.

use std::collections::{BTreeSet, HashMap};

use sha2::{Digest, Sha256};

use crate::ErebusError;
use crate::error::shown;
use crate::tarball::path::parent;
use crate::tarball::{Entry, Kind};

/// Most entries directly in a directory: `sqfstar` searches a list for each (a minute for these, four for twice as many).
const MAX_CHILDREN: u32 = 65_536;
/// Most bytes of paths of directories that the tar did not describe (yet).
const MAX_IMPLIED: usize = 64 << 20;

/// A path, as a hash: a million of them must fit in memory, and nobody can make two that collide.
type Key = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Something lies in it, but the tar has not described it.
    Implied {
        children: u32,
    },
    Dir {
        children: u32,
    },
    Other,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Tree {
    known: HashMap<Key, Known>,
    implied: BTreeSet<Vec<u8>>,
    implied_bytes: usize,
    root_children: u32,
    files: u64,
}

impl Tree {
    /// Directories that every image has, empty and root's: the guest mounts there. That also means that every image has
    /// something of root's, see [`super::root`].
    pub(super) const MOUNT_POINTS: [&[u8]; 3] = [b"dev", b"proc", b"sys"];

    /// Whether the entry goes into the image.
    ///
    /// # Errors
    /// When an image cannot hold it beside what it holds already.
    pub(super) fn admit(&mut self, entry: &Entry) -> Result<bool, ErebusError> {
        let path = &entry.path[..];
        let top = path.split(|b| *b == b'/').next().unwrap_or_default();
        if path.is_empty() || Self::MOUNT_POINTS.contains(&top) {
            return Ok(false);
        }
        let is_dir = entry.kind == Kind::Dir;
        match self.known.get_mut(&key(path)) {
            Some(known @ Known::Implied { .. }) if is_dir => {
                let Known::Implied { children } = *known else { return Ok(false) };
                *known = Known::Dir { children };
                self.implied.remove(path);
                self.implied_bytes -= path.len();
                return Ok(true);
            }
            Some(Known::Dir { .. }) if is_dir => return Ok(false),
            Some(_) => {
                let what = format!("the tar has {} twice: repack it from a folder", shown(path));
                return Err(ErebusError::bad(what));
            }
            None => {}
        }
        if let Kind::Hardlink(target) = &entry.kind
            && self.known.get(&key(target)) != Some(&Known::Other)
        {
            let (link, target) = (shown(path), shown(target));
            return Err(ErebusError::bad(format!(
                "{link} is a hard link to {target}, which is no file before it in the tar"
            )));
        }
        self.place(path)?;
        self.known.insert(key(path), if is_dir { Known::Dir { children: 0 } } else { Known::Other });
        self.files += u64::from(matches!(entry.kind, Kind::File(_)));
        Ok(true)
    }

    /// Directories that the tar never described, to be added: in any order, since `sqfstar` sorts.
    ///
    /// # Errors
    /// When the image would hold no file.
    pub(super) fn finish(self) -> Result<impl Iterator<Item = Vec<u8>>, ErebusError> {
        if self.files == 0 {
            return Err(ErebusError::bad("the tar holds no files"));
        }
        Ok(self.implied.into_iter())
    }

    /// Counts `path` in the directory that holds it, and all directories above that were not known.
    fn place(&mut self, mut path: &[u8]) -> Result<(), ErebusError> {
        while let Some(dir) = parent(path) {
            let known = self.known.get_mut(&key(dir));
            let is_known = known.is_some();
            match known {
                Some(Known::Dir { children } | Known::Implied { children }) => count(children, dir)?,
                Some(Known::Other) => {
                    let (path, dir) = (shown(path), shown(dir));
                    return Err(ErebusError::bad(format!("{path} lies in {dir}, which the tar says is no directory")));
                }
                None => {
                    self.implied_bytes += dir.len();
                    if self.implied_bytes > MAX_IMPLIED {
                        return Err(ErebusError::bad(
                            "the tar leaves out too many directories: repack it from a folder",
                        ));
                    }
                    self.known.insert(key(dir), Known::Implied { children: 1 });
                    self.implied.insert(dir.to_vec());
                }
            }
            if is_known {
                return Ok(());
            }
            path = dir;
        }
        count(&mut self.root_children, b"/")
    }
}

fn count(children: &mut u32, dir: &[u8]) -> Result<(), ErebusError> {
    *children += 1;
    if *children > MAX_CHILDREN {
        return Err(ErebusError::bad(format!("{} holds more than {MAX_CHILDREN} entries", shown(dir))));
    }
    Ok(())
}

fn key(path: &[u8]) -> Key {
    let hash: [u8; 32] = Sha256::digest(path).into();
    let mut key = Key::default();
    key.copy_from_slice(&hash[..16]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, path: &str) -> Entry {
        Entry { kind, path: path.into(), mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }
    }

    fn file(path: &str) -> Entry {
        entry(Kind::File(0), path)
    }

    fn dir(path: &str) -> Entry {
        entry(Kind::Dir, path)
    }

    fn link(path: &str, target: &str) -> Entry {
        entry(Kind::Hardlink(target.into()), path)
    }

    fn refused(tree: &mut Tree, entry: &Entry) -> String {
        tree.admit(entry).unwrap_err().to_string()
    }

    #[test]
    fn mount_points_stay_empty() {
        let mut tree = Tree::default();
        for path in ["dev", "proc", "sys"] {
            assert!(!tree.admit(&dir(path)).unwrap());
            assert!(!tree.admit(&entry(Kind::Char(5, 1), &format!("{path}/x/y"))).unwrap());
        }
        assert!(!tree.admit(&dir("")).unwrap());
        assert!(tree.admit(&file("devices/x")).unwrap());
        assert!(tree.admit(&entry(Kind::Char(5, 1), "opt/console")).unwrap());
    }

    #[test]
    fn directories_that_nobody_describes_are_added() {
        let mut tree = Tree::default();
        assert!(tree.admit(&file("a/b/c/file")).unwrap());
        assert!(tree.admit(&file("a/other")).unwrap());
        assert!(tree.admit(&dir("a/b")).unwrap());
        assert!(!tree.admit(&dir("a/b")).unwrap(), "the second time it is left out");
        assert_eq!(tree.finish().unwrap().collect::<Vec<_>>(), [b"a".to_vec(), b"a/b/c".to_vec()]);
    }

    #[test]
    fn contradictions_are_refused() {
        let mut tree = Tree::default();
        for path in ["etc/passwd", "bin"] {
            assert!(tree.admit(&file(path)).unwrap());
        }
        assert!(refused(&mut tree, &file("etc/passwd")).contains("twice"));
        assert!(refused(&mut tree, &dir("etc/passwd")).contains("twice"));
        assert!(refused(&mut tree, &file("etc")).contains("twice"));
        assert!(refused(&mut tree, &file("bin/sh")).contains("no directory"));
        assert!(refused(&mut tree, &file("bin/deep/sh")).contains("no directory"));
        assert!(refused(&mut tree, &link("x", "etc")).contains("hard link"));
        assert!(refused(&mut tree, &link("x", "etc/shadow")).contains("hard link"));
        assert!(refused(&mut tree, &link("x", "dev/null")).contains("hard link"));
        assert!(tree.admit(&link("x", "etc/passwd")).unwrap());
        assert!(tree.admit(&link("y", "x")).unwrap());
    }

    #[test]
    fn an_image_without_a_file_is_none() {
        let mut tree = Tree::default();
        assert!(tree.admit(&dir("etc")).unwrap());
        assert!(!tree.admit(&file("dev/x")).unwrap());
        assert!(tree.finish().err().unwrap().to_string().contains("no files"));
    }

    #[test]
    fn a_directory_has_only_so_many_children() {
        let mut tree = Tree::default();
        for n in 0..MAX_CHILDREN {
            assert!(tree.admit(&file(&format!("d/{n}"))).unwrap());
        }
        assert!(refused(&mut tree, &file("d/one-more")).contains("65536"));
        assert!(tree.admit(&file("e/one-more")).unwrap());
    }

    #[test]
    fn implied_paths_are_bounded() {
        let mut tree = Tree::default();
        let long = format!("{0}/{0}/{0}/{0}/{0}/{0}/{0}/{0}", "x".repeat(250));
        let error = (0..1_000_000).find_map(|n| tree.admit(&file(&format!("{n}/{long}"))).err()).unwrap();
        assert!(error.to_string().contains("too many directories"), "{error}");
    }
}
