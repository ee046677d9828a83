//! A snapshot that counts. What is handed out was checked, or says by what it can be.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use blobs::Digest;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::de::DeserializeOwned;
use tartarus_types::Timestamp;

use super::content::hash_layer;
use super::folder::{self, Folder, LAYER, Lease, MEMORY, STATE, Stamp};
use super::manifest::Manifest;
use crate::ErebusError;

/// A snapshot. Its files stay where they are while this lives, also when it is removed or replaced.
#[derive(Debug, Clone)]
pub struct Snapshot {
    folder: Arc<Folder>,
    manifest: Manifest,
}

impl Snapshot {
    pub(super) fn new(folder: Arc<Folder>, manifest: Manifest) -> Self {
        Self { folder, manifest }
    }

    /// Its name.
    pub fn golden(&self) -> &str {
        &self.folder.golden
    }

    /// When it was made.
    pub fn created_at(&self) -> Timestamp {
        self.manifest.created_at_us
    }

    /// What its maker said about it.
    ///
    /// # Errors
    /// `Unusable` when it was said in another form.
    pub fn meta<M: DeserializeOwned>(&self) -> Result<M, ErebusError> {
        M::deserialize(&self.manifest.meta).map_err(|e| self.unusable(format!("its description cannot be read: {e}")))
    }

    /// Keeps the files without the rest of this.
    pub fn lease(&self) -> Lease {
        Lease::new(Arc::clone(&self.folder))
    }

    /// SHA-256 of the file of the memory: for whoever loads it to compare, of the very bytes that he read.
    pub fn memory_digest(&self) -> Digest {
        self.manifest.files.memory.sha256
    }

    /// The file of the memory, for reading. **Not checked**: see [`Snapshot::memory_digest`].
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_memory(&self) -> Result<File, ErebusError> {
        self.open(MEMORY)
    }

    /// The state of the devices: checked, and sealed against every change since. A memfd at its start.
    ///
    /// # Errors
    /// `Unusable` when it is not what was stored.
    pub fn state(&self) -> Result<OwnedFd, ErebusError> {
        let failed = || ErebusError::io(format!("read the state of the golden snapshot {}", self.golden()));
        let expected = self.manifest.files.state;
        let mut bytes = Vec::with_capacity(expected.bytes as usize);
        // One more would show that it grew.
        self.open(STATE)?.take(expected.bytes + 1).read_to_end(&mut bytes).map_err(failed())?;
        if bytes.len() as u64 != expected.bytes || Digest::of(&bytes) != expected.sha256 {
            return Err(self.unusable("its state was altered"));
        }
        sealed(&bytes).map_err(failed())
    }

    /// Bytes of the layer that are not zero, in blocks of 4096: what a copy costs.
    pub fn layer_data_bytes(&self) -> u64 {
        self.manifest.files.layer.data_bytes
    }

    /// The file of the layer, checked. All of its data is read the first time in each process; afterwards it is only
    /// made sure that the file is the same and was not touched.
    ///
    /// # Errors
    /// `Unusable` when it is not what was stored.
    pub fn layer_checked(&self) -> Result<PathBuf, ErebusError> {
        let failed = || ErebusError::io(format!("read the layer of the golden snapshot {}", self.golden()));
        let path = self.folder.dir.join(LAYER);
        let file = self.open(LAYER)?;
        let stamp = || file.metadata().map(|meta| Stamp::of(&meta)).map_err(failed());
        let before = stamp()?;
        let mut verified = self.folder.layer_verified.lock().unwrap_or_else(PoisonError::into_inner);
        if *verified == Some(before) {
            return Ok(path);
        }
        *verified = None;
        let (found, expected) = (hash_layer(&file).map_err(failed())?, self.manifest.files.layer);
        if found.digest != expected.sha256 || found.bytes != expected.bytes || stamp()? != before {
            return Err(self.unusable("its layer was altered"));
        }
        *verified = Some(before);
        Ok(path)
    }

    #[cfg(test)]
    pub(super) fn folder(&self) -> &std::path::Path {
        &self.folder.dir
    }

    fn open(&self, name: &str) -> Result<File, ErebusError> {
        folder::open(&self.folder.dir.join(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData => {
                self.unusable(format!("its {name} cannot be opened: {error}"))
            }
            _ => ErebusError::io(format!("open the {name} of the golden snapshot {}", self.golden()))(error),
        })
    }

    fn unusable(&self, why: impl Into<String>) -> ErebusError {
        ErebusError::Unusable { golden: self.golden().to_owned(), why: why.into() }
    }
}

fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create("tartarus-state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    file.rewind()?;
    Ok(file.into())
}
