//! What the suite's guests are made of: a root file system with nothing but the attacker.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::ATTACKER;

/// A tar with the attacker.
///
/// # Errors
/// When it cannot be written.
pub(super) fn make(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("image.tar");
    let mut tar = tar::Builder::new(File::create(&path).context("the image of the attacker")?);
    for name in ["dev/", "etc/", "proc/", "root/", "run/", "sys/", "tmp/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, name, std::io::empty())?;
    }
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(ATTACKER.len() as u64);
    tar.append_data(&mut header, "attack", ATTACKER)?;
    tar.finish()?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_holds_the_attacker() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = tar::Archive::new(File::open(make(dir.path()).unwrap()).unwrap());
        let entries: Vec<_> = archive.entries().unwrap().map(Result::unwrap).collect();
        let attacker = entries.iter().find(|e| e.path().unwrap().ends_with("attack")).unwrap();
        assert_eq!((attacker.header().mode().unwrap(), attacker.size()), (0o755, ATTACKER.len() as u64));
    }
}
