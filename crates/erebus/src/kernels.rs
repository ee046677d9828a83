//! Guest kernels: a package's file system becomes a kernel, the few modules a microVM needs, and an initramfs.
//!
//! Nothing is installed on the host and nothing of the tar is written under a name of its own. A kernel's folder is
//! named by the digest of what is in it:
//! `vmlinuz`, `modules/NAME.ko`, `manifest.json`, and, once they were asked for, `initramfs-AGENT.cpio` and `vmlinux`, the
//! kernel unpacked.

mod collect;
mod cpio;
mod elf;
mod image;
mod initramfs;
mod layout;
mod lz4;
mod modinfo;
mod resolve;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blobs::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncRead;

use crate::disk::{self, Staging};
use crate::error::shown;
use crate::unpack::Input;
use crate::{ErebusError, disk_usage};
use collect::Collected;
use resolve::{Module, Modules};

/// Longest manifest that is read back, bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// The kernels of a node. Cheap to clone; all clones are the same store. One process at a time uses a folder.
#[derive(Debug, Clone)]
pub struct KernelStore {
    root: Arc<Path>,
    staging: Arc<Path>,
}

/// A kernel that was taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelMade {
    /// `sha256:…` over kernel and modules.
    pub digest: String,
    /// `uname -r`.
    pub release: String,
    /// Bytes of kernel and modules.
    pub size: u64,
}

/// A kernel in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its folder.
    pub dir: PathBuf,
    /// The kernel itself: a bzImage, or an ELF file.
    pub vmlinuz: PathBuf,
    /// `uname -r`.
    pub release: String,
}

/// What `manifest.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    release: String,
    /// Files in `modules/`, in the order in which they must be loaded.
    modules: Vec<String>,
    /// More of them, loaded after those where the machine has a vsock. Kernels of earlier versions have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    vsock: Vec<String>,
}

impl KernelStore {
    /// Opens the store in `root`, makes its folder where missing (mode 0700), and removes what an earlier process left
    /// unfinished. Blocks.
    ///
    /// # Errors
    /// When a folder cannot be made or read.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, ErebusError> {
        let root = root.as_ref();
        let staging = disk::open_staging(root).map_err(ErebusError::io("open the folder of the kernels"))?;
        Ok(Self { root: root.into(), staging: staging.into() })
    }

    /// Takes a kernel over from a tar with `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE/` (as a Debian package's file
    /// system has them), or with `vmlinuz` and `modules/`; plain or packed with gzip, xz or zstd, as it comes. The same
    /// kernel and modules give the same digest, and are no error. Dropping the future ends it and leaves nothing.
    ///
    /// # Errors
    /// `BadFile` when the tar is none, damaged or cut off, has no kernel or several, or lacks a module that is needed;
    /// `Upload` when reading it fails; `DiskFull`; `MissingTool`.
    pub async fn import(&self, tar: impl AsyncRead + Unpin + Send) -> Result<KernelMade, ErebusError> {
        let input = Input::open(tar).await?;
        let staging = Staging::new(&self.staging).map_err(ErebusError::io("make a folder for the kernel"))?;
        let mut collected = Collected::read(input, staging.path()).await?;
        let modules = resolve::resolve(&mut collected).await?;
        let (store, kernel, release) = (self.clone(), collected.kernel(), collected.release);
        let made = tokio::task::spawn_blocking(move || store.keep(staging, &kernel, release, &modules))
            .await
            .map_err(|e| ErebusError::io("store the kernel")(e.into()))??;
        tracing::info!(digest = made.digest, release = made.release, size = made.size, "kernel added");
        Ok(made)
    }

    /// The kernel of this digest. Blocks, for a moment.
    pub fn get(&self, digest: &str) -> Option<Kernel> {
        let dir = self.dir(digest)?;
        let release = read_manifest(&dir)?.release;
        Some(Kernel { vmlinuz: dir.join("vmlinuz"), dir, release })
    }

    /// Deletes a kernel; who has its files open keeps reading them. False when there was none. Blocks.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, digest: &str) -> Result<bool, ErebusError> {
        let Some(dir) = self.dir(digest).filter(|dir| dir.is_dir()) else { return Ok(false) };
        let gone = || {
            // First out of sight in one step, so that a crash leaves a whole kernel or none.
            let staging = Staging::new(&self.staging)?;
            fs::rename(&dir, staging.path())?;
            disk::sync_dir(&self.root)
        };
        gone().map_err(ErebusError::io("remove the kernel"))?;
        Ok(true)
    }

    /// Bytes on disk of each kernel with its modules and initramfs, by digest. Blocks.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn usage(&self) -> Result<Vec<(String, u64)>, ErebusError> {
        let measure = || {
            let mut kernels = BTreeMap::new();
            for entry in fs::read_dir(&self.root)? {
                let entry = entry?;
                if let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) {
                    kernels.insert(digest.to_string(), disk_usage(&entry.path())?);
                }
            }
            Ok(kernels.into_iter().collect())
        };
        measure().map_err(ErebusError::io("measure the kernels"))
    }

    /// The initramfs of this kernel with `agent` as its `/init`: made once for each kernel and agent, then found again.
    /// The one of an earlier agent goes. Blocks.
    ///
    /// # Errors
    /// `NoKernel`; `DiskFull`; when a file cannot be read or written.
    pub fn initramfs(&self, digest: &str, agent: &[u8]) -> Result<PathBuf, ErebusError> {
        let no_kernel = || ErebusError::NoKernel(digest.chars().take(80).collect());
        let dir = self.dir(digest).ok_or_else(no_kernel)?;
        let manifest = read_manifest(&dir).ok_or_else(no_kernel)?;
        initramfs::find_or_make(&dir, &self.staging, &manifest, agent)
            .map_err(ErebusError::io(format!("make an initramfs for {digest}")))
    }

    /// This kernel as an uncompressed ELF file, for a hypervisor that does not unpack it: `vmlinuz` itself when it is one,
    /// otherwise made once and then found again. Dropping the future ends it and leaves nothing.
    ///
    /// # Errors
    /// `NoKernel`; `BadFile` when it is no ELF image and none is in it, or one packed in a way that is not read here, with
    /// the reason; `DiskFull`; `MissingTool`; when a file cannot be read or written.
    pub async fn elf(&self, digest: &str) -> Result<PathBuf, ErebusError> {
        let dir = self.dir(digest).filter(|dir| dir.is_dir());
        let dir = dir.ok_or_else(|| ErebusError::NoKernel(digest.chars().take(80).collect()))?;
        elf::find_or_make(dir, self.staging.clone()).await.map_err(|error| match error {
            ErebusError::BadFile(why) => ErebusError::bad(format!("the kernel {digest} is no ELF image: {why}")),
            other => other,
        })
    }

    fn dir(&self, digest: &str) -> Option<PathBuf> {
        Some(self.root.join(digest.parse::<Digest>().ok()?.hex()))
    }

    fn keep(
        &self,
        staging: Staging,
        kernel: &[u8],
        release: String,
        modules: &Modules,
    ) -> Result<KernelMade, ErebusError> {
        let digest = digest(kernel, &release, modules);
        let size = modules.all().fold(kernel.len() as u64, |sum, module| sum + module.content.len() as u64);
        let dir = self.root.join(digest.hex());
        let done = || {
            if dir.try_exists()? {
                return disk::sync_dir(&self.root);
            }
            collect::discard(staging.path())?;
            write(staging.path(), kernel, &release, modules)?;
            match fs::rename(staging.path(), &dir) {
                // Somebody else was faster with the same kernel.
                Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
                renamed => renamed?,
            }
            disk::sync_dir(&self.root)
        };
        done().map_err(ErebusError::io("store the kernel"))?;
        Ok(KernelMade { digest: digest.to_string(), release, size })
    }
}

/// Writes a kernel's folder; all of it is on disk when this returns.
fn write(dir: &Path, kernel: &[u8], release: &str, modules: &Modules) -> std::io::Result<()> {
    disk::write(&dir.join("vmlinuz"), kernel)?;
    let folder = dir.join("modules");
    fs::create_dir(&folder)?;
    for module in modules.all() {
        disk::write(&folder.join(module.file_name()), &module.content)?;
    }
    disk::sync_dir(&folder)?;
    let names = |modules: &[Module]| modules.iter().map(Module::file_name).collect();
    let (always, vsock) = (names(&modules.always), names(&modules.vsock));
    let manifest = Manifest { release: release.to_owned(), modules: always, vsock };
    let manifest = serde_json::to_vec_pretty(&manifest)?;
    disk::write(&dir.join("manifest.json"), &manifest)?;
    disk::sync_dir(dir)
}

/// Over everything that a boot depends on, each part with its length before it.
fn digest(kernel: &[u8], release: &str, modules: &Modules) -> Digest {
    let mut hasher = Sha256::new_with_prefix("tartarus kernel 1\n");
    let mut part = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(release.as_bytes());
    part(kernel);
    for module in modules.all() {
        part(module.name.as_bytes());
        part(&module.content);
    }
    Digest::from_hasher(hasher)
}

fn read_manifest(dir: &Path) -> Option<Manifest> {
    let path = dir.join("manifest.json");
    if fs::metadata(&path).ok()?.len() > MAX_MANIFEST {
        return None;
    }
    let manifest = fs::read(&path).ok().and_then(|json| serde_json::from_slice(&json).ok());
    if manifest.is_none() {
        tracing::warn!(path = shown(path.as_os_str().as_encoded_bytes()), "a kernel's manifest cannot be read");
    }
    manifest
}

#[cfg(test)]
#[path = "kernels_tests.rs"]
mod tests;
