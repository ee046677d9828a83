//! The folder of a machine's jail: what is put into it before, and how it is reached from outside.
//!
//! The root of a jail belongs to the hypervisor's user, who may be a guest that broke out: names in it are looked up
//! without following any link, and what is found is held against what it must be.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, unlinkat};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// What Firecracker finds in its jail.
pub(super) const KERNEL: &str = "/kernel";
pub(super) const INITRAMFS: &str = "/initramfs";
pub(super) const BASE: &str = "/base";
pub(super) const LAYER: &str = "/layer";
pub(super) const CONFIGURATION: &str = "/config.json";
/// The devices of a snapshot that it is to load.
pub(super) const STATE: &str = "/state";
/// What it makes there: its control socket, and the guest channel's.
pub(super) const API: &str = "/run/api.sock";
pub(super) const AGENT: &str = "/run/agent.sock";
/// What it counts, a line of JSON each time.
pub(super) const METRICS: &str = "/metrics";
/// And a snapshot of itself.
pub(super) const SAVED_STATE: &str = "/saved-state";
pub(super) const SAVED_MEMORY: &str = "/saved-memory";

/// Bytes that hold a line of metrics.
const METRICS_LINE: u64 = 64 << 10;

/// Where a machine's jail is, in its folder.
const JAILS: &str = "jail";
/// The longest device state, which is some tens of kilobytes.
const STATE_LIMIT: u64 = 16 << 20;

/// The folder that jails are made in for the machine in `dir`.
pub(super) fn base(dir: &Path) -> io::Result<PathBuf> {
    Ok(dir.canonicalize()?.join(JAILS))
}

/// Makes an empty root at `root` below `base`, without what an earlier machine left there.
pub(super) fn make(base: &Path, root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(base) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    for folder in ["run", "dev", "proc"] {
        // The jailer opens the way for its user, but not the folders above: nobody else gets there.
        DirBuilder::new().recursive(true).mode(0o700).create(root.join(folder))?;
    }
    Ok(())
}

/// Puts a file there that Firecracker can read: what `from` holds, if that is not too much.
pub(super) fn put(root: &Path, name: &str, from: impl Read) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o444).open(inside(root, name))?;
    // Whatever this process's umask.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
    copy(from, &mut file)
}

/// Takes a file out that Firecracker made, and removes it.
pub(super) fn take(root: &Path, name: &str, mut to: File) -> io::Result<()> {
    copy(open_file(root, name)?, &mut to)?;
    remove(root, name)
}

/// The last bytes of a file that Firecracker writes.
pub(super) fn end_of(root: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut file = open_file(root, name)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(METRICS_LINE)))?;
    let mut end = Vec::new();
    file.take(METRICS_LINE).read_to_end(&mut end)?;
    Ok(end)
}

fn open_file(root: &Path, name: &str) -> io::Result<File> {
    // It may be a pipe by now, and nobody waits for who would write to it.
    let file = look_up(root, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} in the jail is no file")));
    }
    Ok(file.into())
}

/// Removes a file, or whatever is called so; there may be none.
pub(super) fn remove(root: &Path, name: &str) -> io::Result<()> {
    match unlinkat(open(root)?, relative(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Connects to a socket in the jail.
pub(super) async fn connect(root: &Path, name: &str) -> io::Result<UnixStream> {
    let socket = look_up(root, name, OFlags::PATH)?;
    if FileType::from_raw_mode(fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} in the jail is no socket")));
    }
    // What was looked at is what is connected to.
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

/// Hears of what is made in `run`, from before anybody is there who could make it.
pub(super) struct Watch {
    inotify: AsyncFd<OwnedFd>,
}

impl Watch {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, root.join("run"), WatchFlags::CREATE | WatchFlags::ONLYDIR)?;
        // SAFETY: an `OwnedFd` is one descriptor from here to its end, which closes it.
        Ok(Self { inotify: unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }? })
    }

    /// Waits until something is made. What it was does not matter: whoever asks looks for himself.
    pub(super) async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut [0; 4096])?));
            match read {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

fn copy(from: impl Read, to: &mut File) -> io::Result<()> {
    let copied = io::copy(&mut from.take(STATE_LIMIT + 1), to)?;
    if copied > STATE_LIMIT {
        let why = format!("the device state is longer than {} MiB", STATE_LIMIT >> 20);
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(())
}

/// A name in the jail, from outside.
fn inside(root: &Path, name: &str) -> PathBuf {
    root.join(relative(name))
}

fn relative(name: &str) -> &str {
    name.trim_start_matches('/')
}

/// The folder above is root's alone, so the root itself is what was made there.
fn open(root: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::empty())?)
}

fn look_up(root: &Path, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(open(root)?, relative(name), flags, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn jail() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path()).unwrap();
        let root = base.join("firecracker/vm/root");
        make(&base, &root).unwrap();
        (dir, root)
    }

    #[tokio::test]
    async fn no_link_leads_out_of_a_jail() {
        let (dir, root) = jail();
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let _listener = UnixListener::bind(dir.path().join("s")).unwrap();
        symlink(&secret, root.join("saved-state")).unwrap();
        symlink(dir.path().join("s"), root.join("run/api.sock")).unwrap();
        let out = || tempfile::tempfile().unwrap();
        assert_eq!(take(&root, SAVED_STATE, out()).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert!(connect(&root, API).await.unwrap_err().to_string().contains("no socket"));
        remove(&root, SAVED_STATE).unwrap();
        remove(&root, SAVED_STATE).unwrap();
        assert!(secret.exists());
        // A pipe is not waited for, a folder is not read, a file is not connected to.
        rustix::fs::mknodat(rustix::fs::CWD, root.join("saved-state"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(take(&root, SAVED_STATE, out()).unwrap_err().to_string().contains("no file"));
        fs::write(root.join("run/agent.sock"), "").unwrap();
        assert!(connect(&root, AGENT).await.unwrap_err().to_string().contains("no socket"));
        fs::rename(root.join("run"), root.join("gone")).unwrap();
        symlink(dir.path(), root.join("run")).unwrap();
        assert_eq!(connect(&root, "/run/s").await.unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }

    #[tokio::test]
    async fn what_is_put_in_is_bounded_and_what_is_made_is_heard_of() {
        let (_dir, root) = jail();
        put(&root, STATE, &b"devices"[..]).unwrap();
        assert!(put(&root, STATE, &b"again"[..]).is_err());
        let long = put(&root, CONFIGURATION, io::repeat(0)).unwrap_err().to_string();
        assert!(long.contains("longer than 16 MiB"), "{long}");
        let watch = Watch::new(&root).unwrap();
        let made = async {
            tokio::task::yield_now().await;
            UnixListener::bind(root.join("run/api.sock")).unwrap()
        };
        let (heard, _listener) = tokio::join!(watch.next(), made);
        heard.unwrap();
        connect(&root, API).await.unwrap();
    }
}
