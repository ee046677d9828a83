//! The folder: `staging/` for files in the making, `sha256/` for finished ones.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use crate::Digest;

/// A store. Cheap to clone; all clones are the same store.
#[derive(Debug, Clone)]
pub struct BlobStore {
    finished: Arc<Path>,
    staging: Arc<Path>,
    next: Arc<AtomicU64>,
}

/// A blob in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…` of its bytes.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// A file in the making, removed when this is dropped without [`BlobStore::commit`].
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Where to write. The file is there, empty, and only its owner may read it. A program may also replace it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Whoever wrote may have removed it after an error; and what is left now goes at the next open.
        let _ = fs::remove_file(&self.path);
    }
}

impl BlobStore {
    /// Opens the store in `root`, makes its folders where missing (mode 0700), and removes what an earlier process left
    /// unfinished.
    ///
    /// # Errors
    /// When a folder cannot be made or read.
    pub fn open(root: impl AsRef<Path>) -> io::Result<Self> {
        let root = root.as_ref();
        let (finished, staging) = (root.join("sha256"), root.join("staging"));
        for dir in [&finished, &staging] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        for entry in fs::read_dir(&staging)? {
            fs::remove_file(entry?.path())?;
        }
        sync_dir(root)?;
        Ok(Self { finished: finished.into(), staging: staging.into(), next: Arc::default() })
    }

    /// A new empty file to write a blob into.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stage(&self) -> io::Result<Staging> {
        let path = self.staging.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Staging { path })
    }

    /// Makes a written file a blob. It is on disk, read-only and under its name when this returns. A blob that was there
    /// already stays, since it may be in use.
    ///
    /// # Errors
    /// When reading, syncing or renaming fails; the staged file is gone then.
    pub fn commit(&self, staging: Staging) -> io::Result<Blob> {
        let file = File::open(&staging.path)?;
        let (digest, size) = hash(&file)?;
        let path = self.finished.join(digest.hex());
        let blob = Blob { digest: digest.to_string(), size };
        if !path.try_exists()? {
            file.set_permissions(Permissions::from_mode(0o400))?;
            file.sync_all()?;
            fs::rename(&staging.path, &path)?;
        }
        // Also for one that was there: who renamed it may have been killed before this.
        sync_dir(&self.finished)?;
        Ok(blob)
    }

    /// The file of a blob; `None` when it is not there or `digest` is not the name of one.
    pub fn path(&self, digest: &str) -> Option<PathBuf> {
        let path = self.finished.join(digest.parse::<Digest>().ok()?.hex());
        path.is_file().then_some(path)
    }

    /// Deletes a blob; whoever has it open keeps reading it. False when there was none.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, digest: &str) -> io::Result<bool> {
        let Some(path) = self.path(digest) else { return Ok(false) };
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            done => done?,
        }
        sync_dir(&self.finished)?;
        Ok(true)
    }

    /// All blobs, by digest.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<Blob>> {
        self.each(|digest, meta| Blob { digest, size: meta.len() })
    }

    /// Bytes on disk of each blob, by digest.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn usage(&self) -> io::Result<Vec<(String, u64)>> {
        self.each(|digest, meta| (digest, meta.blocks() * 512))
    }

    fn each<T>(&self, what: impl Fn(String, &Metadata) -> T) -> io::Result<Vec<T>> {
        let mut blobs = BTreeMap::new();
        for entry in fs::read_dir(&self.finished)? {
            let entry = entry?;
            let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) else { continue };
            match entry.metadata() {
                Ok(meta) => drop(blobs.insert(digest, what(digest.to_string(), &meta))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(blobs.into_values().collect())
    }
}

fn hash(mut file: &File) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 256 * 1024]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((Digest::from_hasher(hasher), size)),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// A rename is on disk once its folder is.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &BlobStore, bytes: &[u8]) -> Blob {
        let staging = store.stage().unwrap();
        fs::write(staging.path(), bytes).unwrap();
        store.commit(staging).unwrap()
    }

    fn staged(root: &Path) -> usize {
        fs::read_dir(root.join("staging")).unwrap().count()
    }

    #[test]
    fn a_blob_is_found_by_its_content() {
        let root = tempfile::tempdir().unwrap();
        let store = BlobStore::open(root.path()).unwrap();
        let blob = put(&store, b"hello");
        assert_eq!(blob, Blob { digest: Digest::of(b"hello").to_string(), size: 5 });
        let path = store.path(&blob.digest).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(staged(root.path()), 0);
    }

    #[test]
    fn the_same_content_keeps_the_old_file() {
        let root = tempfile::tempdir().unwrap();
        let store = BlobStore::open(root.path()).unwrap();
        let blob = put(&store, b"hello");
        let inode = fs::metadata(store.path(&blob.digest).unwrap()).unwrap().ino();
        assert_eq!(put(&store, b"hello"), blob);
        assert_eq!(fs::metadata(store.path(&blob.digest).unwrap()).unwrap().ino(), inode);
        assert_eq!(store.list().unwrap(), [blob]);
        assert_eq!(staged(root.path()), 0);
    }

    #[test]
    fn dropped_and_stale_staging_goes() {
        let root = tempfile::tempdir().unwrap();
        let store = BlobStore::open(root.path()).unwrap();
        let staging = store.stage().unwrap();
        assert_eq!(fs::metadata(staging.path()).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(staged(root.path()), 1);
        drop(staging);
        assert_eq!(staged(root.path()), 0);
        // As after kill -9.
        fs::write(root.path().join("staging/17"), "half").unwrap();
        let blob = put(&store, b"kept");
        let store = BlobStore::open(root.path()).unwrap();
        assert_eq!(staged(root.path()), 0);
        assert_eq!(store.list().unwrap(), [blob]);
    }

    #[test]
    fn a_digest_is_never_a_path() {
        let root = tempfile::tempdir().unwrap();
        let store = BlobStore::open(root.path().join("store")).unwrap();
        fs::write(root.path().join("outside"), b"x").unwrap();
        for bad in ["", "sha256:", "../outside", "sha256:../../outside", "/etc/passwd", "sha256:/etc/passwd"] {
            assert_eq!(store.path(bad), None);
            assert!(!store.remove(bad).unwrap());
        }
        assert!(root.path().join("outside").exists());
    }

    #[test]
    fn remove_says_whether_it_was_there() {
        let root = tempfile::tempdir().unwrap();
        let store = BlobStore::open(root.path()).unwrap();
        let blob = put(&store, b"hello");
        assert!(store.remove(&blob.digest).unwrap());
        assert!(!store.remove(&blob.digest).unwrap());
        assert_eq!(store.path(&blob.digest), None);
        assert!(store.list().unwrap().is_empty());
    }

    #[test]
    fn usage_is_what_the_disk_gives() {
        let root = tempfile::tempdir().unwrap();
        let store = BlobStore::open(root.path()).unwrap();
        let (small, large) = (put(&store, b"hello"), put(&store, &[7; 1 << 20]));
        let mut expected = [(small.digest, 1..=64 * 1024), (large.digest, 1 << 20..=(1 << 20) + 64 * 1024)];
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        let usage = store.usage().unwrap();
        assert_eq!(usage.len(), 2);
        for ((digest, bytes), (wanted, range)) in usage.iter().zip(&expected) {
            assert!(digest == wanted && range.contains(bytes), "{usage:?}");
        }
    }
}
