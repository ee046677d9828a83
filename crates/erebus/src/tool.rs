//! Programs of the system that do the heavy work: where they are, with which limits they run, what they said.
//!
//! They read what nobody trusts, so each runs in an empty environment, with bounds on memory, time and file size.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setpriority_pgrp};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::ErebusError;

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

pub(crate) const SQFSTAR: Tool = Tool { program: "sqfstar", package: "squashfs-tools" };
pub(crate) const MKE2FS: Tool = Tool { program: "mke2fs", package: "e2fsprogs" };
pub(crate) const GZIP: Tool = Tool { program: "gzip", package: "gzip" };
pub(crate) const XZ: Tool = Tool { program: "xz", package: "xz-utils" };
pub(crate) const ZSTD: Tool = Tool { program: "zstd", package: "zstd" };

/// What a child may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Address space, bytes.
    pub(crate) memory: u64,
    /// Largest file it may write, bytes.
    pub(crate) file: u64,
    /// Processor time, seconds.
    pub(crate) cpu: u64,
}

/// Uploads wait for sandboxes, not the other way round.
const NICENESS: i32 = 10;

/// Bytes kept of what a program said on standard error.
const SAID: usize = 4096;

impl Tool {
    /// Looks for the program in `PATH`, then where Debian keeps it: an ordinary user's `PATH` lacks the sbin folders.
    pub(crate) fn find(self) -> Result<PathBuf, ErebusError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        self.find_in(&path)
    }

    fn find_in(self, path: &OsStr) -> Result<PathBuf, ErebusError> {
        std::env::split_paths(path)
            .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(self.program))
            .find(|file| is_program(file))
            .ok_or(ErebusError::MissingTool { program: self.program, package: self.package })
    }

    /// Starts it with standard input piped in, killed when the child is dropped. What it is to read must not be sent
    /// before this returns: the bounds are set from outside, once it runs.
    pub(crate) fn spawn(
        self,
        args: &[&OsStr],
        stdout: Stdio,
        stderr: Stdio,
        bounds: Bounds,
    ) -> Result<Child, ErebusError> {
        let child = Command::new(self.find()?)
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(ErebusError::io(format!("start {}", self.program)))?;
        self.bound(&child, bounds).map_err(ErebusError::io(format!("limit {}", self.program)))?;
        Ok(child)
    }

    fn bound(self, child: &Child, bounds: Bounds) -> std::io::Result<()> {
        // Not yet waited for, so the id is this child's and nobody else's.
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        for (resource, most) in [
            (Resource::As, bounds.memory),
            (Resource::Fsize, bounds.file),
            (Resource::Cpu, bounds.cpu),
            (Resource::Core, 0),
        ] {
            // An ordinary user may not raise a hard limit that it was given.
            let most = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
            prlimit(pid, resource, Rlimit { current: Some(most), maximum: Some(most) })?;
        }
        // Its group, so that threads it already made are meant as well. Slower imports are better than none.
        if let Err(error) = setpriority_pgrp(pid, NICENESS) {
            tracing::debug!(program = self.program, %error, "not made nice");
        }
        Ok(())
    }
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Reads a program's messages to their end and keeps the last [`SAID`] bytes: what went wrong comes last.
pub(crate) async fn listen(mut stderr: impl AsyncRead + Unpin) -> String {
    let (mut kept, mut chunk) = (Vec::new(), [0; SAID]);
    while let Ok(n @ 1..) = stderr.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..n]);
        kept.drain(..kept.len().saturating_sub(SAID));
    }
    speech(&kept)
}

/// Messages as one line that is safe to show.
pub(crate) fn speech(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last: Vec<&str> = lines.iter().rev().take(3).rev().map(|line| line.trim()).collect();
    last.join("; ")
}

/// Programs report a full disk in words only.
pub(crate) fn says_full(said: &str) -> bool {
    said.contains("No space left on device") || said.contains("Disk quota exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sbin_is_searched_without_being_in_path() {
        assert!(MKE2FS.find_in(OsStr::new("/nowhere")).is_ok());
        let missing = Tool { program: "no-such-program", package: "nothing" };
        assert!(matches!(missing.find_in(OsStr::new("/usr/bin")), Err(ErebusError::MissingTool { .. })));
    }

    #[test]
    fn speech_is_short_and_printable() {
        assert_eq!(speech(b"\n\none\n\x1b[1mtwo\r\n"), "one; [1mtwo");
        assert_eq!(speech(b"1\n2\n3\n4\n"), "2; 3; 4");
        assert_eq!(speech(&[b'x'; 100_000]).len(), 200);
    }

    #[tokio::test]
    async fn the_end_of_what_was_said_is_kept() {
        let mut long = vec![b'x'; 100_000];
        long.extend_from_slice(b"\nthe reason\n");
        assert!(listen(&long[..]).await.ends_with("the reason"));
    }

    #[tokio::test]
    async fn bounds_hold() {
        let bounds = Bounds { memory: 1 << 30, file: 4096, cpu: 7 };
        let mut child = Tool { program: "sh", package: "dash" }
            .spawn(
                &["-c", "read x; ulimit -t; ulimit -v; ulimit -c; nice"].map(OsStr::new),
                Stdio::piped(),
                Stdio::null(),
                bounds,
            )
            .unwrap();
        drop(child.stdin.take());
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).await.unwrap();
        child.wait().await.unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..3], ["7", "1048576", "0"]);
        assert!(lines[3].parse::<i32>().unwrap() >= NICENESS, "{said}");
    }
}
