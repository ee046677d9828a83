//! A snapshot in the making.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use blobs::Digest;
use serde::Serialize;
use tartarus_types::Timestamp;

use super::content::{LayerHash, hash, hash_layer};
use super::folder::{self, LAYER, MEMORY, STATE, Stamp};
use super::manifest::{self, Files, LayerPart, Manifest, Part};
use super::{Inner, Snapshot};
use crate::ErebusError;
use crate::disk::{self, Staging};

/// Longest state of the devices, bytes.
pub const MAX_STATE: u64 = 16 << 20;

/// A snapshot in the making, in a folder of its own. Dropping it removes all of it.
#[derive(Debug)]
pub struct Draft {
    store: Arc<Inner>,
    golden: String,
    pub(super) staging: Staging,
}

impl Draft {
    pub(super) fn new(store: Arc<Inner>, golden: String, staging: Staging) -> Self {
        Self { store, golden, staging }
    }

    /// Where the memory goes.
    pub fn memory_path(&self) -> PathBuf {
        self.staging.path().join(MEMORY)
    }

    /// Where the state of the devices goes, 16 MiB at most.
    pub fn state_path(&self) -> PathBuf {
        self.staging.path().join(STATE)
    }

    /// Where the layer goes, a raw file; [`crate::lethe::copy_layer`] fills it.
    pub fn layer_path(&self) -> PathBuf {
        self.staging.path().join(LAYER)
    }

    /// Makes the file of the memory (mode 0600), once.
    ///
    /// # Errors
    /// `DiskFull`; when it is there.
    pub fn create_memory(&self) -> Result<File, ErebusError> {
        disk::create(&self.memory_path(), 0o600).map_err(ErebusError::io("make a file for the snapshot's memory"))
    }

    /// Makes the file of the state (mode 0600), once.
    ///
    /// # Errors
    /// `DiskFull`; when it is there.
    pub fn create_state(&self) -> Result<File, ErebusError> {
        disk::create(&self.state_path(), 0o600).map_err(ErebusError::io("make a file for the snapshot's state"))
    }

    /// Makes the file of the layer (mode 0600), once.
    ///
    /// # Errors
    /// `DiskFull`; when it is there.
    pub fn create_layer(&self) -> Result<File, ErebusError> {
        disk::create(&self.layer_path(), 0o600).map_err(ErebusError::io("make a file for the snapshot's layer"))
    }

    /// Makes it the snapshot of its name, in place of one that there is. All of it is on disk when this returns, and the
    /// files are read-only. Nobody may write them any more. Reads and syncs all files: seconds for a large memory.
    ///
    /// `meta` is for whoever asks later what this snapshot fits; the manifest with it has 64 KiB at most.
    ///
    /// # Errors
    /// `BadFile` when a file is missing or one is too long; `DiskFull`; nothing of it is left then, and an older
    /// snapshot of the same name stays.
    pub fn commit(self, meta: &impl Serialize, now: Timestamp) -> Result<Snapshot, ErebusError> {
        let meta = serde_json::to_value(meta).map_err(|e| ErebusError::io("describe the snapshot")(e.into()))?;
        self.commit_at(meta, now, &mut |_| ())
    }

    /// `at` is called at each moment after which a crash leaves something else.
    pub(super) fn commit_at(
        self,
        meta: serde_json::Value,
        now: Timestamp,
        at: &mut dyn FnMut(&'static str),
    ) -> Result<Snapshot, ErebusError> {
        at("written");
        let failed = || ErebusError::io(format!("store the golden snapshot {}", self.golden));
        let state = self.open(STATE)?;
        if state.metadata().map_err(failed())?.len() > MAX_STATE {
            return Err(ErebusError::bad(format!("the snapshot's state is larger than {} MiB", MAX_STATE >> 20)));
        }
        let state = keep(&state, hash).map_err(failed())?;
        let memory = keep(&self.open(MEMORY)?, hash).map_err(failed())?;
        let layer_file = self.open(LAYER)?;
        let layer = keep(&layer_file, hash_layer).map_err(failed())?;
        let stamp = Stamp::of(&layer_file.metadata().map_err(failed())?);
        at("synced");
        let manifest = Manifest {
            version: manifest::VERSION,
            golden: self.golden.clone(),
            created_at_us: now,
            files: Files { memory: part(memory), state: part(state), layer: layer_part(layer) },
            meta,
        };
        let json = serde_json::to_vec_pretty(&manifest).map_err(|e| failed()(e.into()))?;
        if json.len() as u64 > manifest::MAX {
            let (most, got) = (manifest::MAX, json.len());
            return Err(ErebusError::bad(format!("the snapshot's description has {got} bytes, {most} at most")));
        }
        let dir = self.staging.path();
        disk::write(&dir.join(manifest::NAME), &json).map_err(failed())?;
        at("manifest written");
        disk::sync_dir(dir).map_err(failed())?;
        at("folder synced");
        let folder = self.store.put(&self.golden, dir, at).map_err(failed())?;
        // Its digest was made of this very file.
        *folder.layer_verified.lock().unwrap_or_else(PoisonError::into_inner) = Some(stamp);
        tracing::info!(golden = self.golden, memory = memory.1, layer = layer.data_bytes, "golden snapshot made");
        Ok(Snapshot::new(folder, manifest))
    }

    fn open(&self, name: &str) -> Result<File, ErebusError> {
        folder::open(&self.staging.path().join(name)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => ErebusError::bad(format!("the snapshot has no {name}")),
            _ => ErebusError::io(format!("read the snapshot's {name}"))(error),
        })
    }
}

/// A file that is not written any more: its digest. It is on disk when this returns.
fn keep<T>(file: &File, hash: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
    file.set_permissions(Permissions::from_mode(0o400))?;
    let hashed = hash(file)?;
    file.sync_all()?;
    Ok(hashed)
}

fn part((sha256, bytes): (Digest, u64)) -> Part {
    Part { bytes, sha256 }
}

fn layer_part(layer: LayerHash) -> LayerPart {
    LayerPart { bytes: layer.bytes, data_bytes: layer.data_bytes, sha256: layer.digest }
}
