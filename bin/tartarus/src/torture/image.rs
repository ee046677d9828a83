//! What the suite's guests are made of: a root file system with nothing but the attacker, and a kernel that is there already.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::ATTACKER;
use crate::cli::TortureNetArgs;

/// Modules that a microVM needs: those that a stored kernel has no file of are part of it. `kernel add` names what is missing.
const NEEDED: [&str; 7] = ["virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "overlay", "squashfs", "ext4"];

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

/// The kernel that was asked for, or the newest of a data folder; as flags of `kernel add`.
///
/// # Errors
/// When there is none.
pub(super) fn kernel(args: &TortureNetArgs, folder: &Path) -> anyhow::Result<Vec<String>> {
    let text = |path: &Path| -> anyhow::Result<String> {
        let path = std::path::absolute(path)?;
        path.to_str().map(str::to_owned).with_context(|| format!("{} is no text", path.display()))
    };
    if let Some(deb) = &args.kernel {
        return Ok(vec!["--deb".to_owned(), text(deb)?]);
    }
    if let (Some(vmlinuz), Some(modules)) = (&args.vmlinuz, &args.modules) {
        return Ok(vec![text(vmlinuz)?, "--modules".to_owned(), text(modules)?]);
    }
    if let Some(tar) = &args.kernel_tar {
        return Ok(vec!["--tar".to_owned(), text(tar)?]);
    }
    let data = crate::serve::data_path(args.data.clone())?;
    let newest = newest(&data.join("kernels"))?;
    Ok(vec!["--tar".to_owned(), text(&pack(&newest, folder)?)?])
}

/// The folder of the newest kernel.
fn newest(kernels: &Path) -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir(kernels).into_iter().flatten().flatten().map(|entry| entry.path());
    let dated = folders.filter(|path| path.join("manifest.json").is_file()).filter_map(|path| {
        let made = path.join("manifest.json").metadata().and_then(|meta| meta.modified()).ok()?;
        Some((made, path))
    });
    match dated.max() {
        Some((_, path)) => Ok(path),
        None => bail!(
            "{} holds no kernel: add one with `tartarus kernel add`, name another data folder with --data, or give a \
             kernel with --kernel DEB, or --vmlinuz FILE --modules DIR",
            kernels.display()
        ),
    }
}

/// What `kernel add` reads: the kernel and its modules, without what was made of them.
fn pack(kernel: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("kernel.tar");
    let mut tar = tar::Builder::new(File::create(&path)?);
    tar.append_path_with_name(kernel.join("vmlinuz"), "vmlinuz")?;
    tar.append_dir_all("modules", kernel.join("modules"))?;
    let own = |name: &&&str| !kernel.join(format!("modules/{name}.ko")).exists();
    let builtin: String = NEEDED.iter().filter(own).map(|name| format!("{name}.ko\n")).collect();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(builtin.len() as u64);
    tar.append_data(&mut header, "modules/modules.builtin", builtin.as_bytes())?;
    tar.finish()?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_packed_with_its_modules_alone() {
        let dir = tempfile::tempdir().unwrap();
        let kernels = dir.path().join("kernels");
        assert!(newest(&kernels).unwrap_err().to_string().contains("tartarus kernel add"));
        for (name, age) in [("old", 100), ("new", 0)] {
            let kernel = kernels.join(name);
            std::fs::create_dir_all(kernel.join("modules")).unwrap();
            for file in ["vmlinuz", "initramfs-x.cpio", "modules/virtio_net.ko", "manifest.json"] {
                std::fs::write(kernel.join(file), name).unwrap();
            }
            let made = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            File::options().write(true).open(kernel.join("manifest.json")).unwrap().set_modified(made).unwrap();
        }
        let newest = newest(&kernels).unwrap();
        assert!(newest.ends_with("new"));
        let tar = pack(&newest, dir.path()).unwrap();
        let mut archive = tar::Archive::new(File::open(tar).unwrap());
        let read = |entry: std::io::Result<tar::Entry<'_, File>>| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path, std::io::read_to_string(&mut entry).unwrap())
        };
        let found: std::collections::BTreeMap<_, _> = archive.entries().unwrap().map(read).collect();
        let names: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["modules/", "modules/modules.builtin", "modules/virtio_net.ko", "vmlinuz"]);
        let builtin = &found["modules/modules.builtin"];
        assert!(builtin.contains("ext4.ko\n") && !builtin.contains("virtio_net"), "{builtin}");
    }

    #[test]
    fn the_image_holds_the_attacker() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = tar::Archive::new(File::open(make(dir.path()).unwrap()).unwrap());
        let entries: Vec<_> = archive.entries().unwrap().map(Result::unwrap).collect();
        let attacker = entries.iter().find(|e| e.path().unwrap().ends_with("attack")).unwrap();
        assert_eq!((attacker.header().mode().unwrap(), attacker.size()), (0o755, ATTACKER.len() as u64));
    }
}
