//! The files in `/etc` that say who a guest is: mounts of small files in memory, as containers have them, because writing
//! them through the layers of the root would be most of a restored guest's way to its first job.
//!
//! `/etc` belongs to the image. It is opened so that no link leads out of it into procfs, and what stands in a file's
//! place is replaced rather than followed; an image that does not allow it goes without.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, ftruncate, mkdirat, open, openat, openat2, statat,
    unlinkat,
};
use rustix::io::{Errno, pread, pwrite};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount};

use crate::console;

/// The files.
const NAMES: [&str; 4] = ["hosts", "hostname", "machine-id", "resolv.conf"];
/// Most bytes of a file of the image that are taken over.
const MAX_CONTENT: u64 = 64 * 1024;

/// Files that are mounted, held open for writing: each of [`NAMES`], or `None` where the image did not allow it.
#[derive(Debug, Default)]
pub(crate) struct EtcFiles {
    mounted: [Option<OwnedFd>; 4],
    /// What `resolv.conf` says without a network, where it says something else now.
    resolvers: Option<Vec<u8>>,
}

impl EtcFiles {
    /// Mounts the files over those in `etc`, with the same content. `scratch` is a path for a folder that is gone
    /// afterwards.
    pub(crate) fn mount(etc: &str, scratch: &str) -> Self {
        let made = Scratch::new(scratch).and_then(|scratch| Ok((folder(etc)?, scratch)));
        let (etc, scratch) = match made {
            Ok(made) => made,
            Err(error) => {
                console(&format!("the files in /etc stay as the image has them: {error}"));
                return Self::default();
            }
        };
        let mounted = NAMES.map(|name| {
            let mounted = cover(&etc, &scratch.folder, name);
            mounted.map_err(|error| console(&format!("/etc/{name} stays as the image has it: {error}"))).ok()
        });
        Self { mounted, resolvers: None }
    }

    /// Writes the host name's files; `old` is the name that they have, empty at first. Of the hosts only the line of the
    /// name changes then: the others may be the template's.
    pub(crate) fn name(&self, old: &str, hostname: &str) {
        const LOCAL: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
        self.write(1, 0, [hostname, "\n"].concat().as_bytes());
        let Some(file) = &self.mounted[0] else { return };
        if old.is_empty() {
            return self.write(0, 0, [LOCAL, OWN, hostname, "\n"].concat().as_bytes());
        }
        match whole(file) {
            Ok(content) => {
                let (offset, rest) = renamed(&content, old, hostname);
                self.write(0, offset, &rest);
            }
            Err(Errno::FBIG) => console("/etc/hosts is too long to be given the host name"),
            Err(error) => console(&format!("/etc/hosts could not be read: {error}")),
        }
    }

    /// Writes the machine id.
    pub(crate) fn machine_id(&self, id: &str) {
        self.write(2, 0, [id, "\n"].concat().as_bytes());
    }

    /// Writes who knows names, in place of what the file says without a network; that again for nobody.
    ///
    /// # Errors
    /// When the file could not be mounted (`ENOENT`), or not be written.
    pub(crate) fn resolver(&mut self, nameserver: Option<Ipv4Addr>) -> Result<(), Errno> {
        let Some(nameserver) = nameserver else {
            let (Some(own), Some(file)) = (&self.resolvers, &self.mounted[3]) else { return Ok(()) };
            overwrite(file, 0, own)?;
            self.resolvers = None;
            return Ok(());
        };
        let file = self.mounted[3].as_ref().ok_or(Errno::NOENT)?;
        if self.resolvers.is_none() {
            self.resolvers = Some(whole(file)?);
        }
        overwrite(file, 0, format!("nameserver {nameserver}\n").as_bytes())
    }

    fn write(&self, which: usize, offset: usize, content: &[u8]) {
        let Some(file) = &self.mounted[which] else { return };
        if let Err(error) = overwrite(file, offset, content) {
            console(&format!("/etc/{} could not be written: {error}", NAMES[which]));
        }
    }
}

/// All that a file has; `EFBIG` when that is too much.
fn whole(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    // Not filled first: each page that is touched costs a fresh clone a fault.
    let mut content = Vec::with_capacity(MAX_CONTENT as usize);
    pread(file, rustix::buffer::spare_capacity(&mut content), 0)?;
    if content.len() < MAX_CONTENT as usize { Ok(content) } else { Err(Errno::FBIG) }
}

/// Writes all that a file has from `offset` on.
fn overwrite(file: &OwnedFd, offset: usize, content: &[u8]) -> Result<(), Errno> {
    let length = (offset + content.len()) as u64;
    let written = match pwrite(file, content, offset as u64) {
        Ok(count) if count < content.len() => Err(Errno::NOSPC),
        other => other,
    };
    // Cut off only what is longer: names of clones are alike in length, and to ask costs a fresh clone less.
    let longer = |file| Ok(fstat(file)?.st_size as u64 > length);
    let cut = |longer| if longer { ftruncate(file, length) } else { Ok(()) };
    written.and_then(|_| longer(file)).and_then(cut)
}

/// What the line of the host name begins with.
const OWN: &str = "127.0.1.1 ";

/// Where the hosts change and what stands from there on, when the name changes; a line that is gone is added.
fn renamed(hosts: &[u8], old: &str, new: &str) -> (usize, Vec<u8>) {
    let line = [OWN, old, "\n"].concat();
    let starts = |at: usize| (at == 0 || hosts[at - 1] == b'\n') && hosts[at..].starts_with(line.as_bytes());
    if let Some(at) = (0..hosts.len()).find(|at| starts(*at)) {
        let name = at + OWN.len();
        return (name, [new.as_bytes(), &hosts[name + old.len()..]].concat());
    }
    let end: &str = if hosts.last().is_none_or(|byte| *byte == b'\n') { "" } else { "\n" };
    (hosts.len(), [end, OWN, new, "\n"].concat().into_bytes())
}

/// A file system in memory, mounted as long as its files are made.
struct Scratch<'a> {
    path: &'a str,
    folder: OwnedFd,
}

impl<'a> Scratch<'a> {
    fn new(path: &'a str) -> Result<Self, Errno> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mkdirat(CWD, path, Mode::from_raw_mode(0o700))?;
        mount("tmpfs", path, "tmpfs", flags, c"mode=755,size=1m")?;
        let folder = open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path, folder })
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // The mounted files keep their file system; an empty folder more would be nothing worse.
        let _ = unmount(self.path, UnmountFlags::DETACH);
        let _ = unlinkat(CWD, self.path, AtFlags::REMOVEDIR);
    }
}

fn folder(etc: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(CWD, etc, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open("/", flags, Mode::empty())?;
    openat2(root, etc, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Makes the file in memory and mounts it over the one in `etc`.
fn cover(etc: &OwnedFd, scratch: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(0o644);
    let file = openat(scratch, name, create, mode)?;
    match statat(etc, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {
            pwrite(&file, &content(etc, name), 0)?;
        }
        found => {
            match found {
                Ok(_) => unlinkat(etc, name, AtFlags::empty())?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            openat(etc, name, create, mode)?;
        }
    }
    let tree = open_tree(scratch, name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    // Without a flag to follow it, a link at the target is none.
    move_mount(&tree, "", etc, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(file)
}

fn content(etc: &OwnedFd, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(file) = openat(etc, name, flags, Mode::empty()) {
        // What cannot be read is left out.
        let _ = File::from(file).take(MAX_CONTENT).read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountPropagationFlags, mount_change};
    use std::fs;

    /// Runs `test` with a folder, in a mount namespace of the thread's own; `false`, said in one line, where it cannot.
    fn alone(name: &str, test: fn(&str)) {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting takes root");
            return;
        }
        let folder = std::env::temp_dir().join(format!("etc-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.to_str().unwrap().to_owned();
        let tested = std::thread::spawn(move || {
            // SAFETY: plain system call; it concerns this thread alone.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            test(&path);
        })
        .join();
        fs::remove_dir_all(&folder).unwrap();
        tested.unwrap();
    }

    #[test]
    fn files_are_covered_and_rewritten_in_place() {
        alone("cover", |folder| {
            let (etc, scratch) = (format!("{folder}/etc"), format!("{folder}/scratch"));
            fs::create_dir(&etc).unwrap();
            fs::write(format!("{etc}/hosts"), "the image's\n").unwrap();
            fs::write(format!("{folder}/outside"), "outside").unwrap();
            let resolvers = "# the image's, and longer than one line\nnameserver 9.9.9.9\n";
            fs::write(format!("{etc}/resolv.conf"), resolvers).unwrap();
            std::os::unix::fs::symlink("../outside", format!("{etc}/hostname")).unwrap();
            let mut files = EtcFiles::mount(&etc, &scratch);
            assert!(!fs::exists(&scratch).unwrap());
            let read = |name: &str| fs::read_to_string(format!("{etc}/{name}")).unwrap();
            assert_eq!((read("hosts").as_str(), read("machine-id").as_str()), ("the image's\n", ""));
            let mut old = "";
            for name in ["a-longer-name", "short"] {
                files.name(old, name);
                old = name;
                assert_eq!(read("hostname"), format!("{name}\n"));
                assert!(read("hosts").ends_with(&format!("\n127.0.1.1 {name}\n")), "{}", read("hosts"));
            }
            files.machine_id("0123456789abcdef0123456789abcdef");
            assert_eq!(read("machine-id"), "0123456789abcdef0123456789abcdef\n");
            assert_eq!(read("resolv.conf"), "# the image's, and longer than one line\nnameserver 9.9.9.9\n");
            files.resolver(None).unwrap();
            for _ in 0..2 {
                files.resolver(Some(Ipv4Addr::new(198, 19, 255, 253))).unwrap();
                assert_eq!(read("resolv.conf"), "nameserver 198.19.255.253\n");
            }
            files.resolver(None).unwrap();
            assert_eq!(read("resolv.conf"), resolvers);
            assert_eq!(fs::read_to_string(format!("{folder}/outside")).unwrap(), "outside", "no link is followed");
            assert!(fs::remove_file(format!("{etc}/hosts")).is_err(), "a mount cannot be removed");
            for name in NAMES {
                unmount(format!("{etc}/{name}"), UnmountFlags::DETACH).unwrap();
            }
            assert_eq!((read("hosts").as_str(), read("hostname").as_str()), ("the image's\n", ""));
        });
    }

    #[test]
    fn only_the_line_of_the_name_changes() {
        let change = |hosts: &str, new| {
            let (offset, rest) = renamed(hosts.as_bytes(), "old", new);
            hosts[..offset].to_owned() + std::str::from_utf8(&rest).unwrap()
        };
        assert_eq!(change("a\n127.0.1.1 old\n10.0.0.1 db\n", "newer"), "a\n127.0.1.1 newer\n10.0.0.1 db\n");
        assert_eq!(change("127.0.1.1 old\n", "n"), "127.0.1.1 n\n");
        assert_eq!(change("10.0.0.1 db", "n"), "10.0.0.1 db\n127.0.1.1 n\n");
        assert_eq!(change("9127.0.1.1 old\n", "n"), "9127.0.1.1 old\n127.0.1.1 n\n");
        assert_eq!(change("", "n"), "127.0.1.1 n\n");
    }

    #[test]
    fn an_image_that_does_not_allow_a_file_goes_without_it() {
        alone("without", |folder| {
            let (etc, scratch) = (format!("{folder}/etc"), format!("{folder}/scratch"));
            fs::create_dir_all(format!("{etc}/hosts")).unwrap();
            let files = EtcFiles::mount(&etc, &scratch);
            files.name("", "n");
            assert!(fs::metadata(format!("{etc}/hosts")).unwrap().is_dir());
            assert_eq!(fs::read_to_string(format!("{etc}/hostname")).unwrap(), "n\n");
            let mut files = EtcFiles::mount(&format!("{folder}/no/such"), &scratch);
            files.name("", "n");
            assert_eq!(files.resolver(Some(Ipv4Addr::LOCALHOST)), Err(Errno::NOENT));
            assert!(files.mounted.iter().all(Option::is_none) && !fs::exists(&scratch).unwrap());
        });
    }
}
