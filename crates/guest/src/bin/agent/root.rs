//! The guest's root file system: the base joined with the layer, and the kernel's file systems in it.
//!
//! Both disks are the tenant's. So directories of the layer are taken only when they are directories, and everything in
//! the new root happens after the change of root: a symbolic link there leads nowhere else.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmod, fchmod, mkdirat, open, openat, symlink, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_move, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot};

use crate::disks::Disks;
use crate::errors::{BootError, During};

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const TMPFS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// What is mounted in the new root, in this order: path, type, flags, options.
const MOUNTS: [(&str, &str, MountFlags, &CStr); 6] = [
    ("/proc", "proc", SAFE, c""),
    ("/sys", "sysfs", SAFE.union(MountFlags::RDONLY), c""),
    ("/dev", "devtmpfs", MountFlags::NOSUID, c"mode=755"),
    ("/dev/pts", "devpts", MountFlags::NOSUID.union(MountFlags::NOEXEC), c"newinstance,ptmxmode=0666,mode=620,gid=5"),
    ("/dev/shm", "tmpfs", TMPFS, c"mode=1777,size=50%"),
    ("/run", "tmpfs", TMPFS, c"mode=755"),
];

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what the agent itself needs, in the initramfs.
pub(crate) fn mount_kernel_file_systems() -> Result<(), BootError> {
    for (path, kind, flags, options) in &MOUNTS[..3] {
        directory(path)?;
        mount(*kind, *path, *kind, *flags, *options).during(|| format!("mount {path}"))?;
    }
    Ok(())
}

/// Joins the disks, makes the result the root, and mounts the kernel's file systems in it. Gives a directory of the
/// layer's own file system, which has no path any more.
pub(crate) fn enter(disks: &Disks) -> Result<OwnedFd, BootError> {
    for path in ["/base", "/layer", "/root"] {
        directory(path)?;
    }
    let Disks { base, layer } = disks;
    // The type is named: the kernel must not try what a tenant may have put there.
    mount(base.as_str(), "/base", "squashfs", MountFlags::RDONLY | MountFlags::NODEV, c"")
        .during(|| format!("mount the base disk {base} as squashfs (is it an image?)"))?;
    // Inode tables stay as they are: zeroing them in the background would cost time and fill the sparse file.
    mount(layer.as_str(), "/layer", "ext4", MountFlags::NODEV | MountFlags::NOATIME, c"noinit_itable")
        .during(|| format!("mount the layer disk {layer} as ext4 (does it hold another file system?)"))?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let layer = open("/layer", flags, Mode::empty()).during(|| "open the layer".to_owned())?;
    let scratch = layer_directories()?;
    mount(
        "overlay",
        "/root",
        "overlay",
        MountFlags::empty(),
        c"lowerdir=/base,upperdir=/layer/upper,workdir=/layer/work",
    )
    .during(|| "join base and layer".to_owned())?;
    free_initramfs();
    for path in ["/dev", "/sys", "/proc"] {
        unmount(path, UnmountFlags::DETACH).during(|| format!("unmount {path} of the initramfs"))?;
    }
    chdir("/root")
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"))
        .during(|| "change to the new root".to_owned())?;
    for (path, kind, flags, options) in MOUNTS {
        directory(path)?;
        mount(kind, path, kind, flags, options).during(|| format!("mount {path}"))?;
    }
    directory("/tmp")?;
    move_mount(&scratch, "", CWD, "/tmp", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .during(|| "mount /tmp".to_owned())?;
    for (target, link) in LINKS {
        let made = symlink(target, link);
        if made != Err(Errno::EXIST) {
            made.during(|| format!("link {link}"))?;
        }
    }
    Ok(layer)
}

/// Makes the layer's directories and gives `tmp` as a mount of its own: on disk, so that large files cost no memory.
fn layer_directories() -> Result<OwnedFd, BootError> {
    for (name, mode) in [("upper", 0o755), ("work", 0o755), ("tmp", 0o1777)] {
        let path = ["/layer/", name].concat();
        let made = mkdirat(CWD, path.as_str(), Mode::from_raw_mode(mode));
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        match (made, open(path.as_str(), flags, Mode::empty())) {
            (Ok(()), Ok(fd)) => fchmod(fd, Mode::from_raw_mode(mode)).during(|| format!("make {name} on the layer"))?,
            (Err(Errno::EXIST), Ok(_)) => {}
            (Err(Errno::EXIST), Err(_)) => return Err(BootError::Layer(name)),
            (Err(error), _) | (_, Err(error)) => return Err(error).during(|| format!("make {name} on the layer")),
        }
    }
    open_tree(
        CWD,
        "/layer/tmp",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
    )
    .during(|| "take tmp of the layer".to_owned())
}

/// Makes sure that `path` is a directory. A link or a file of the image in its place is replaced, not followed.
fn directory(path: &str) -> Result<(), BootError> {
    let make = || mkdirat(CWD, path, Mode::from_raw_mode(0o755));
    let step = || format!("make the directory {path}");
    match make() {
        Ok(()) => return chmod(path, Mode::from_raw_mode(0o755)).during(step),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error).during(step),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::PATH | OFlags::CLOEXEC;
    if openat(CWD, path, flags, Mode::empty()).is_ok() {
        return Ok(());
    }
    unlinkat(CWD, path, AtFlags::empty()).and_then(|()| make()).during(step)
}

/// Gives back the memory of the files that the initramfs brought; they are out of reach soon.
fn free_initramfs() {
    // What cannot be removed only keeps some memory.
    let _ = std::fs::remove_dir_all("/modules");
    let _ = std::fs::remove_file("/init");
}
