//! The first root file system of a guest: the agent, and the modules that it loads to find its disks.

use std::fs;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use blobs::Digest;

use super::Manifest;
use super::cpio::{CHAR, Cpio, DIR, FILE};
use crate::disk::{self, Staging};

/// Folders that the agent mounts on.
const FOLDERS: [&str; 8] = ["proc", "sys", "dev", "base", "layer", "root", "modules", "tmp"];

/// The initramfs of the kernel in `dir` with this agent; blocks.
pub(super) fn find_or_make(dir: &Path, staging: &Path, manifest: &Manifest, agent: &[u8]) -> io::Result<PathBuf> {
    let name = format!("initramfs-{}.cpio", &Digest::of(agent).hex()[..16]);
    let path = dir.join(&name);
    // What an older version stored is its owner's alone.
    disk::share(&dir.join("vmlinuz"))?;
    if path.try_exists()? {
        disk::share(&path)?;
        return Ok(path);
    }
    let staging = Staging::new(staging)?;
    let made = staging.path().join(&name);
    let mut cpio = Cpio::new(BufWriter::new(disk::create(&made, 0o400)?));
    fill(&mut cpio, &dir.join("modules"), manifest, agent)?;
    let file = cpio.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    disk::share(&made)?;
    file.sync_all()?;
    fs::rename(&made, &path)?;
    for entry in fs::read_dir(dir)? {
        let old = entry?.file_name();
        if old.as_encoded_bytes().starts_with(b"initramfs-") && old != *name {
            fs::remove_file(dir.join(old))?;
        }
    }
    disk::sync_dir(dir)?;
    Ok(path)
}

fn fill(cpio: &mut Cpio<impl io::Write>, folder: &Path, manifest: &Manifest, agent: &[u8]) -> io::Result<()> {
    for dir in FOLDERS {
        cpio.add(dir, DIR | 0o755, (0, 0), b"")?;
    }
    // Before the agent can mount anything, the kernel opens this one for it.
    cpio.add("dev/console", CHAR | 0o600, (5, 1), b"")?;
    cpio.add("init", FILE | 0o755, (0, 0), agent)?;
    list(cpio, "modules/order", &manifest.modules)?;
    if !manifest.vsock.is_empty() {
        list(cpio, "modules/vsock", &manifest.vsock)?;
    }
    for module in manifest.modules.iter().chain(&manifest.vsock) {
        cpio.add(&format!("modules/{module}"), FILE | 0o644, (0, 0), &fs::read(folder.join(module))?)?;
    }
    Ok(())
}

/// Names of modules in the order in which the agent loads them.
fn list(cpio: &mut Cpio<impl io::Write>, path: &str, modules: &[String]) -> io::Result<()> {
    let lines: String = modules.iter().map(|module| format!("{module}\n")).collect();
    cpio.add(path, FILE | 0o644, (0, 0), lines.as_bytes())
}
