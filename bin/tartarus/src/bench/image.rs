//! The root file system that every row runs its program in, where nobody gave one: Debian with Python and numpy.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::process::{Daemon, tail, until};
use super::programs;
use super::scratch::Scratch;

/// With a slow mirror.
const MAKING: Duration = Duration::from_secs(1800);
/// From a signal to the end: it removes what it has unpacked, which is not always ours to remove.
const STOP: Duration = Duration::from_secs(60);
const PACKAGES: &str = "--include=python3-minimal,python3-numpy";
const SUITE: &str = "bookworm";
const WAY_OUT: &str = "or give a root file system with python3 and numpy: --image TAR";

/// A tar that is there.
///
/// # Errors
/// When it cannot be read.
pub(super) fn given(tar: &Path) -> Result<PathBuf> {
    let shown = || format!("--image: {}", tar.display());
    let is_file = File::open(tar).and_then(|file| file.metadata()).with_context(shown)?.is_file();
    if !is_file {
        bail!("{} is no file: it takes a tar", shown());
    }
    Ok(std::path::absolute(tar)?)
}

/// What it is made with.
///
/// # Errors
/// When it is not there.
pub(super) fn maker() -> Result<PathBuf> {
    let missing = || {
        format!("there is no mmdebstrap: install it (Debian: the package mmdebstrap, as user also uidmap), {WAY_OUT}")
    };
    programs::find("mmdebstrap").with_context(missing)
}

/// Makes the tar in the folder of the run.
///
/// # Errors
/// When it could not be made, with the last words of mmdebstrap.
pub(super) fn make(scratch: &Scratch, maker: &Path) -> Result<PathBuf> {
    let dir = scratch.folder("image")?;
    let (tar, log) = (dir.join("python.tar"), dir.join("log"));
    let said = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut words = Command::new(maker);
    // Syncing each unpacked file to disk doubles the time and protects nothing.
    words.args(["--variant=minbase", PACKAGES, "--format=tar", "--dpkgopt=force-unsafe-io"]);
    if !scratch.is_roots() {
        words.arg("--mode=unshare");
    }
    words.arg(SUITE).arg(&tar);
    let mut daemon = Daemon::spawn(&words, STOP, |command| {
        command.env("TMPDIR", &dir).stdout(Stdio::null()).stderr(said);
    })?;
    let ended = until("making a root file system", MAKING, || daemon.ended());
    if ended.is_err() {
        daemon.interrupt();
    }
    if !ended?.success() || !tar.is_file() {
        bail!("mmdebstrap made no root file system: {}; help it, {WAY_OUT}", tail(&log));
    }
    Ok(tar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_must_be_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("x.tar");
        assert!(format!("{:#}", given(&tar).unwrap_err()).starts_with("--image: "));
        std::fs::write(&tar, "").unwrap();
        assert_eq!(given(&tar).unwrap(), tar);
        assert!(given(dir.path()).unwrap_err().to_string().contains("no file"));
    }
}
