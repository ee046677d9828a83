//! The name servers that the host's file names, also when it changes: a machine may get its network after this program.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::Instant;

use super::NoUpstream;

/// How long what was read is taken for what is there: a look costs a system call.
const FRESH: Duration = Duration::from_secs(1);

/// A file such as `/etc/resolv.conf`. It is looked at when somebody asks for a name.
pub(super) struct Watched {
    path: PathBuf,
    looked: Option<Instant>,
    seen: Option<Mark>,
}

/// Device, number, size and time of the last change: another one where a file was written, replaced or opened to this program.
type Mark = (u64, u64, i64, i64, i64);

/// Most of a file that is read.
const MAX_FILE: u64 = 64 << 10;

impl Watched {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), looked: None, seen: None }
    }

    /// What the file names, where it may have changed since the last call.
    pub(super) fn look(&mut self, now: Instant) -> Option<Result<Vec<SocketAddr>, NoUpstream>> {
        if self.looked.is_some_and(|at| now.duration_since(at) < FRESH) {
            return None;
        }
        let first = self.looked.replace(now).is_none();
        // Before it is read: what is written meanwhile is seen next time.
        let mark = rustix::fs::stat(&self.path).ok();
        let mark = mark.map(|stat| (stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime, stat.st_ctime_nsec as i64));
        let changed = mark != self.seen;
        self.seen = mark;
        (first || changed).then(|| servers_in(&self.path))
    }
}

pub(super) fn servers_in(path: &Path) -> Result<Vec<SocketAddr>, NoUpstream> {
    let shown = path.display().to_string();
    let text = read(path).map_err(|e| NoUpstream::Unreadable(shown.clone(), e.to_string()))?;
    // A file without a server is what the library calls an error as well, by its text alone.
    let Ok((config, _)) = parse_resolv_conf(text) else { return Err(NoUpstream::None(shown)) };
    let servers: Vec<_> = config.name_servers().iter().map(|server| SocketAddr::new(server.ip, 53)).collect();
    if servers.is_empty() { Err(NoUpstream::None(shown)) } else { Ok(servers) }
}

/// A plain file's text: anything else could take for ever.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no plain file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_name_servers_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let says = |text: &str| {
            std::fs::write(&path, text).unwrap();
            servers_in(&path).map(|servers| servers.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(says("search a.org\nnameserver 192.0.2.1\nnameserver ::1\n").unwrap(), ["192.0.2.1:53", "[::1]:53"]);
        for none in ["", "# nameserver 192.0.2.1\n", "search a.org\n", "nameserver example.org\n"] {
            let error = says(none).unwrap_err();
            assert!(matches!(error, NoUpstream::None(_)), "{none:?}: {error}");
            assert!(error.to_string().starts_with("no nameserver in /"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(servers_in(&path), Err(NoUpstream::Unreadable(..))));
    }

    #[test]
    fn what_is_written_is_read_once_and_not_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let (mut watched, start) = (Watched::new(&path), Instant::now());
        let mut at = |ms| watched.look(start + Duration::from_millis(ms)).map(|servers| servers.ok());
        let server = |text: &str| Some(Some(vec![SocketAddr::new(text.parse().unwrap(), 53)]));
        assert_eq!(at(0), Some(None), "there is no file");
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(at(999), None, "looked at just now");
        assert_eq!(at(1000), server("192.0.2.1"));
        assert_eq!(at(3000), None, "as it was");
        // Replaced by one of the same length.
        let other = dir.path().join("other");
        std::fs::write(&other, "nameserver 192.0.2.2\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(at(4000), server("192.0.2.2"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!((at(5000), at(6000)), (Some(None), None), "gone, and still gone");
    }
}
