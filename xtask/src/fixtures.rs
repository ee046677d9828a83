//! What test guests are made of: a kernel and two root file systems as tars, made once and kept under
//! `target/fixtures`; the costly ones beside a file that says which package versions they were made from.
//!
//! Nothing here is installed on the host, and nothing is unpacked on it.

mod busybox;
mod python;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};

use crate::packages::candidate;
use crate::sh;

pub(crate) use python::{Age, ensure as ensure_python};

/// Where the fixtures are; tests get it as `TARTARUS_FIXTURES`.
pub(crate) const FOLDER: &str = "target/fixtures";

/// Makes whatever is missing or made from other versions: `kernel.tar`, `busybox.tar`, `python.tar`.
pub(crate) fn ensure() -> Result<()> {
    std::fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
    ensure_kernel(Age::Current)?;
    busybox::make()?;
    python::ensure(Age::Current)?;
    Ok(())
}

/// A fixture and the versions that it is made from.
struct Fixture {
    path: PathBuf,
    key: String,
}

impl Fixture {
    fn new(name: &str, key: impl Into<String>) -> Self {
        Self { path: Path::new(FOLDER).join(name), key: key.into() }
    }

    fn key_file(&self) -> PathBuf {
        self.path.with_extension("key")
    }

    fn is_current(&self) -> bool {
        self.path.exists() && std::fs::read_to_string(self.key_file()).is_ok_and(|key| key == self.key)
    }

    /// Makes the fixture with `make`, which is given the path to write to, unless it is current.
    fn ensure(&self, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if self.is_current() {
            println!("{} is current ({})", self.path.display(), self.key);
            return Ok(());
        }
        std::fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
        let partial = self.path.with_extension("partial");
        if let Err(error) = make(&partial) {
            // Best effort: the next run writes over it anyway.
            let _ = std::fs::remove_file(&partial);
            return Err(error.context(format!("cannot make {}", self.path.display())));
        }
        std::fs::rename(&partial, &self.path).with_context(|| format!("cannot write {}", self.path.display()))?;
        sh::write_whole(&self.key_file(), self.key.as_bytes())?;
        println!("{} made ({})", self.path.display(), self.key);
        Ok(())
    }
}

/// Debian's cloud kernel: the file system of its package as a tar, unless one of that age is there. Gives its path.
pub(crate) fn ensure_kernel(age: Age) -> Result<PathBuf> {
    let fixture = Fixture::new("kernel.tar", "");
    if age == Age::Any && fixture.path.exists() {
        return Ok(fixture.path);
    }
    let package = kernel_package()?;
    let version = candidate(&package)?;
    let fixture = Fixture { key: format!("{package} {version}"), ..fixture };
    fixture.ensure(|path| {
        let scratch = Path::new(FOLDER).join("kernel-package");
        std::fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        let made = download(&package, &scratch).and_then(|deb| unpack(&deb, path));
        let _ = std::fs::remove_dir_all(&scratch);
        made
    })?;
    Ok(fixture.path)
}

/// `linux-image-cloud-amd64` is empty; the kernel is in the package that it depends on.
fn kernel_package() -> Result<String> {
    let text = sh::output(&mut sh::command(&["apt-cache", "depends", "linux-image-cloud-amd64"]))
        .context("apt knows no cloud kernel; run `apt-get update` as root first")?;
    parse_depends(&text).context("linux-image-cloud-amd64 depends on no kernel package")
}

fn parse_depends(text: &str) -> Option<String> {
    let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends:"));
    depends.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn download(package: &str, scratch: &Path) -> Result<PathBuf> {
    let mut get = sh::command(&["apt-get", "download", "--quiet", package]);
    if sh::is_root() {
        // apt's own unprivileged user may not be able to write here.
        get.args(["-o", "APT::Sandbox::User=root"]);
    }
    sh::run(get.current_dir(scratch))?;
    let files = std::fs::read_dir(scratch)?.filter_map(Result::ok).map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|e| e == "deb")).max().context("apt-get download left no package")
}

fn unpack(deb: &Path, tar: &Path) -> Result<()> {
    let out = File::create(tar).with_context(|| format!("cannot write {}", tar.display()))?;
    sh::run(sh::command(&["dpkg-deb", "--fsys-tarfile"]).arg(deb).stdout(Stdio::from(out)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_in_the_package_that_the_empty_one_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(parse_depends(text).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(parse_depends("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn another_version_or_a_missing_file_is_not_current() {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture { path: dir.path().join("a.tar"), key: "a 1".to_owned() };
        std::fs::write(fixture.key_file(), "a 1").unwrap();
        assert!(!fixture.is_current());
        std::fs::write(&fixture.path, "").unwrap();
        assert!(fixture.is_current());
        std::fs::write(fixture.key_file(), "a 2").unwrap();
        assert!(!fixture.is_current());
    }
}
