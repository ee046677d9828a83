//! The guest kernel for a server that a command starts for itself: the one that was asked for, or the newest that is there.
//! For `torture` and `bench`. It refuses to know what the kernel is for.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cli::GuestKernelArgs;

/// Modules that a microVM needs: those that a stored kernel has no file of are part of it. `kernel add` names what is missing.
const NEEDED: [&str; 7] = ["virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "overlay", "squashfs", "ext4"];

/// Where a kernel is.
#[derive(Debug)]
pub(crate) enum Found {
    /// As flags of `kernel add`.
    Flags(Vec<String>),
    /// The data folder has none, in this place.
    None(PathBuf),
}

impl Found {
    /// The flags.
    ///
    /// # Errors
    /// When there is no kernel; the text says how to get one.
    pub(crate) fn flags(self) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Flags(flags) => Ok(flags),
            Self::None(kernels) => bail!(
                "{} holds no kernel: add one with `tartarus kernel add`, name another data folder with --data, or give a \
                 kernel with --kernel DEB, or --vmlinuz FILE --modules DIR",
                kernels.display()
            ),
        }
    }
}

/// The kernel that was asked for, or the newest of a data folder, packed into `folder`.
///
/// # Errors
/// When its place is not known, or it cannot be read or packed.
pub(crate) fn find(args: &GuestKernelArgs, folder: &Path) -> anyhow::Result<Found> {
    let text = |path: &Path| -> anyhow::Result<String> {
        let path = std::path::absolute(path)?;
        path.to_str().map(str::to_owned).with_context(|| format!("{} is no text", path.display()))
    };
    if let Some(deb) = &args.kernel {
        return Ok(Found::Flags(vec!["--deb".to_owned(), text(deb)?]));
    }
    if let (Some(vmlinuz), Some(modules)) = (&args.vmlinuz, &args.modules) {
        return Ok(Found::Flags(vec![text(vmlinuz)?, "--modules".to_owned(), text(modules)?]));
    }
    if let Some(tar) = &args.kernel_tar {
        return Ok(Found::Flags(vec!["--tar".to_owned(), text(tar)?]));
    }
    let kernels = crate::serve::data_path(args.data.clone())?.join("kernels");
    let Some(newest) = newest(&kernels) else { return Ok(Found::None(kernels)) };
    let packed = pack(&newest, folder).with_context(|| format!("the kernel {}", newest.display()))?;
    Ok(Found::Flags(vec!["--tar".to_owned(), text(&packed)?]))
}

/// The folder of the newest kernel.
fn newest(kernels: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(kernels).into_iter().flatten().flatten().map(|entry| entry.path());
    let dated = folders.filter(|path| path.join("manifest.json").is_file()).filter_map(|path| {
        let made = path.join("manifest.json").metadata().and_then(|meta| meta.modified()).ok()?;
        Some((made, path))
    });
    dated.max().map(|(_, path)| path)
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
        assert_eq!(newest(&kernels), None);
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
    fn what_is_asked_for_goes_before_the_data_folder_which_may_have_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = GuestKernelArgs {
            data: Some(dir.path().to_owned()),
            kernel: None,
            vmlinuz: None,
            modules: None,
            kernel_tar: None,
        };
        let none = find(&args, dir.path()).unwrap().flags().unwrap_err().to_string();
        assert!(none.contains("tartarus kernel add") && none.contains("kernels"), "{none}");
        args.kernel_tar = Some("/k.tar".into());
        assert_eq!(find(&args, dir.path()).unwrap().flags().unwrap(), ["--tar", "/k.tar"]);
        (args.vmlinuz, args.modules) = (Some("/v".into()), Some("/m".into()));
        assert_eq!(find(&args, dir.path()).unwrap().flags().unwrap(), ["/v", "--modules", "/m"]);
        args.kernel = Some("/k.deb".into());
        assert_eq!(find(&args, dir.path()).unwrap().flags().unwrap(), ["--deb", "/k.deb"]);
    }
}
