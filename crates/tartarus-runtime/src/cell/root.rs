//! The file system of a cell: copies of the hypervisor's program, its libraries and its firmware, in a folder by itself.
//!
//! Copies, not a view of the host's folders: what is upgraded there while a machine starts is not half of its
//! hypervisor, and nothing else of the host can be seen. One folder serves all cells of a build.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// Firmware of the machine type: what the processor starts with, and what puts the kernel into its memory.
const FIRMWARE: [&str; 2] = ["bios-microvm.bin", "linuxboot_dma.bin"];
/// Where distributions keep firmware.
const SHARED: [&str; 3] = ["/usr/share/qemu", "/usr/local/share/qemu", "/usr/share/seabios"];
/// What Debian's program loads when it is to translate.
const MODULE: &str = "qemu/accel-tcg-x86_64.so";
/// Where a folder is made, and unmade.
const STAGING: &str = "staging";
/// By which the dynamic linker finds libraries in folders of the host's own.
const CACHE: &str = "/etc/ld.so.cache";
/// Changes when a root is made otherwise of the same files.
const VERSION: &str = "1";

/// Copies that were overtaken by an upgrade, before it is given up.
const TRIES: usize = 3;

/// The folder for `program` as it is now, made where it is missing.
pub(super) fn gather(dir: &Path, program: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for _ in 0..TRIES {
        let files = files(program)?;
        let name = name(&files)?;
        let root = dir.join(&name);
        if root.exists() {
            return Ok(root);
        }
        let staging = dir.join(STAGING);
        remove(&staging)?;
        for file in &files {
            copy(file, &staging)?;
        }
        make(&staging.join("proc"))?;
        // QEMU asks it whether files can be locked, which any file can tell.
        make(&staging.join("dev"))?;
        empty(&staging.join("dev/null"))?;
        if self::name(&files)? != name {
            continue;
        }
        // After a power cut the name must not be there without the files.
        rustix::fs::syncfs(File::open(&staging)?)?;
        fs::rename(&staging, &root)?;
        return Ok(root);
    }
    Err(io::Error::other(format!("{} or a library of it is being changed", program.display())))
}

/// Removes all folders but `root`. Hypervisors that were started from another have read what they need; none may be about
/// to be.
pub(super) fn remove_others(dir: &Path, root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path != root {
            // Under its own name it is whole or not there.
            let staging = dir.join(STAGING);
            if path != staging {
                remove(&staging)?;
                fs::rename(&path, &staging)?;
            }
            remove(&staging)?;
        }
    }
    Ok(())
}

/// All files of a program, by the paths under which it looks for them.
fn files(program: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::from([program.to_owned()]);
    let libraries = libraries(program)?;
    let folders: BTreeSet<&Path> = libraries.iter().filter_map(|library| library.parent()).collect();
    for folder in folders {
        let module = Path::new("/usr").join(folder.strip_prefix("/").unwrap_or(folder)).join(MODULE);
        for module in [folder.join(MODULE), module] {
            if module.exists() {
                files.extend(self::libraries(&module)?);
                files.insert(module);
            }
        }
    }
    files.extend(libraries);
    files.extend(Path::new(CACHE).exists().then(|| CACHE.into()));
    for name in FIRMWARE {
        let found = SHARED.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name} is in none of {}", SHARED.join(", ")));
        files.insert(found.ok_or_else(missing)?);
    }
    Ok(files)
}

/// What the dynamic linker would load, itself included; nothing for a program that is complete by itself.
fn libraries(program: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).env_clear().env("PATH", "/usr/bin:/bin").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && ![&text, &said].iter().any(|text| text.contains("not a dynamic executable")) {
        return Err(io::Error::other(format!("ldd {}: {}", program.display(), said.trim())));
    }
    parse(&text).map_err(|library| {
        io::Error::new(io::ErrorKind::NotFound, format!("{} needs {library}, which is not there", program.display()))
    })
}

/// The paths in what `ldd` says; an error is a library that is missing.
fn parse(ldd: &str) -> Result<BTreeSet<PathBuf>, String> {
    let mut found = BTreeSet::new();
    for line in ldd.lines() {
        let (name, place) = line.trim().split_once(" => ").unwrap_or(("", line.trim()));
        if place.starts_with("not found") {
            return Err(name.to_owned());
        }
        found.extend(place.split(" (").next().filter(|path| path.starts_with('/')).map(PathBuf::from));
    }
    Ok(found)
}

/// Names what the files are now.
fn name(files: &BTreeSet<PathBuf>) -> io::Result<String> {
    let mut hash = Sha256::new_with_prefix(VERSION);
    for file in files {
        let meta = fs::metadata(file)?;
        let (seconds, nanos, inode) = (meta.mtime(), meta.mtime_nsec(), meta.ino());
        hash.update(format!("{}\0{} {seconds} {nanos} {inode}\0", file.display(), meta.len()));
    }
    Ok(hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn copy(file: &Path, root: &Path) -> io::Result<()> {
    let target = root.join(file.strip_prefix("/").map_err(io::Error::other)?);
    target.parent().map_or(Ok(()), make)?;
    fs::copy(file, &target)?;
    fs::set_permissions(&target, Permissions::from_mode(0o555))
}

fn empty(path: &Path) -> io::Result<()> {
    File::create(path)?.set_permissions(Permissions::from_mode(0o444))
}

/// With its parents, whatever this process's umask: the hypervisor must get there.
fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            dir.parent().map_or(Ok(()), make)?;
            fs::create_dir(dir)?;
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    fs::set_permissions(dir, Permissions::from_mode(0o755))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_and_a_missing_one_is_named() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x00007f00)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        let found: Vec<_> = parse(ldd).unwrap().into_iter().collect();
        assert_eq!(found, [Path::new("/lib/x/libz.so.1"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
        assert_eq!(parse("\tlibzz.so => not found\n").unwrap_err(), "libzz.so");
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn what_is_gathered_is_all_that_there_is_and_is_gathered_once() {
        let Some(program) = crate::qemu::find() else { return println!("skipped: there is no QEMU") };
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("of-an-older-build")).unwrap();
        let root = gather(dir.path(), &program).unwrap();
        let made = fs::metadata(&root).unwrap().ino();
        let copy = root.join(program.strip_prefix("/").unwrap());
        assert_eq!(fs::metadata(copy).unwrap().mode() & 0o7777, 0o555);
        assert_eq!(gather(dir.path(), &program).unwrap(), root);
        assert_eq!(fs::metadata(&root).unwrap().ino(), made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        remove_others(dir.path(), &root).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
