//! Commands about guest kernels. Debian's own comes out of its package: nothing is installed on this machine.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, bail};
use tartarus_api::client::Client;
use tartarus_api::node::ByteStream;
use tartarus_types::Refusal;
use tokio::process::Command;

use super::each;
use super::session::{Signals, Spinner};
use super::upload::{counted, of_child, of_reader, of_writer};
use crate::cli::KernelCommand;
use crate::failure::Failed;
use crate::terminal::{date, print, print_json, table};

const WAY_OUT: &str = "give a kernel with --deb FILE, or VMLINUZ --modules DIR";

/// `tartarus kernel …`.
pub(super) async fn run(client: &Client, command: KernelCommand, progress: bool) -> Result<ExitCode, Failed> {
    match command {
        KernelCommand::Add { deb, vmlinuz, modules, tar, json } => {
            let mut signals = Signals::listen()?;
            let spinner = Spinner::upload(progress, None);
            let work = async {
                // Lives until the upload is over, and is removed whatever comes of it.
                let dir = tempfile::tempdir().context("a temporary folder could not be made")?;
                let tar = match (tar, deb, vmlinuz, modules) {
                    (Some(tar), ..) => of_reader(tokio::fs::File::open(&tar).await.with_context(|| shown(&tar))?),
                    (None, Some(deb), ..) => of_deb(&deb)?,
                    (None, None, Some(vmlinuz), Some(modules)) => of_files(vmlinuz, &modules)?,
                    _ => of_deb(&download(dir.path(), &spinner).await?)?,
                };
                spinner.say("sending the kernel");
                Ok::<_, anyhow::Error>(client.add_kernel(counted(tar, &spinner, "taking the kernel over")).await?)
            };
            let kernel = signals.or(work).await;
            spinner.clear();
            let kernel = kernel.map_err(|signal| Failed::Told(signal.exit_code()))??;
            match json {
                true => print_json(&kernel)?,
                false => print(&format!("{} {}\n", kernel.release, kernel.digest))?,
            }
        }
        KernelCommand::Ls { json } => {
            let kernels = client.kernels().await?;
            let row = |kernel: &tartarus_api::v1::Kernel| {
                let size = indicatif::BinaryBytes(kernel.size).to_string();
                vec![kernel.release.clone(), size, date(kernel.created_at), kernel.digest.clone()]
            };
            match json {
                true => print_json(&kernels)?,
                false => {
                    let rows: Vec<_> = kernels.iter().map(row).collect();
                    print(&table(&["RELEASE", "SIZE", "ADDED", "DIGEST"], &rows))?;
                }
            }
        }
        KernelCommand::Rm { kernels } => {
            return each(&kernels, async |kernel| client.remove_kernel(kernel).await).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The file system inside a package.
fn of_deb(deb: &Path) -> anyhow::Result<ByteStream> {
    std::fs::File::open(deb).with_context(|| format!("deb: {}", deb.display()))?;
    let mut command = Command::new("dpkg-deb");
    command.arg("--fsys-tarfile").arg(std::path::absolute(deb)?);
    Ok(of_child(command)?)
}

/// A tar with the places that a package has: `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE`.
fn of_files(vmlinuz: PathBuf, modules: &Path) -> anyhow::Result<ByteStream> {
    let modules = modules.canonicalize().with_context(|| format!("modules: {}", modules.display()))?;
    std::fs::File::open(&vmlinuz).with_context(|| format!("vmlinuz: {}", vmlinuz.display()))?;
    let release = modules.file_name().and_then(OsStr::to_str).map(str::to_owned);
    let release = release.filter(|_| modules.join("kernel").is_dir()).ok_or_else(|| {
        Refusal::field("modules", format!("{} is not a folder such as lib/modules/RELEASE", modules.display()))
    })?;
    Ok(of_writer(move |out: &mut dyn Write| write_tar(out, &vmlinuz, &modules, &release)))
}

fn write_tar(out: &mut dyn Write, vmlinuz: &Path, modules: &Path, release: &str) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    // On a machine that builds modules, `build` and `source` lead out of the folder.
    tar.follow_symlinks(false);
    // The kernel itself may well be a link: the file is wanted.
    tar.append_file(format!("boot/vmlinuz-{release}"), &mut std::fs::File::open(vmlinuz)?)?;
    tar.append_dir_all(format!("lib/modules/{release}"), modules)?;
    tar.finish()
}

/// Downloads Debian's cloud kernel to `dir`, as the machine's own package sources have it.
async fn download(dir: &Path, spinner: &Spinner) -> anyhow::Result<PathBuf> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("Debian has no cloud kernel for {other}: {WAY_OUT}"),
    };
    let meta = format!("linux-image-cloud-{architecture}");
    spinner.say("looking for Debian's cloud kernel");
    let depends = ask(dir, "apt-cache", &["depends", &meta]).await?;
    let package = image_package(&depends)
        .with_context(|| format!("{meta} is not in the package lists (`apt-get update` fetches them), or {WAY_OUT}"))?;
    spinner.say(&format!("downloading {package}"));
    ask(dir, "apt-get", &["download", package]).await?;
    let is_deb = |path: &PathBuf| path.extension() == Some(OsStr::new("deb"));
    let deb = std::fs::read_dir(dir)?.filter_map(Result::ok).map(|entry| entry.path()).find(is_deb);
    deb.with_context(|| format!("apt-get downloaded no {package}: {WAY_OUT}"))
}

/// The kernel's own package, among what its meta package depends on.
fn image_package(depends: &str) -> Option<&str> {
    let packages = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages.map(str::trim).find(|package| package.starts_with("linux-image-"))
}

/// Runs a program and gives its output; its last words are the error.
async fn ask(dir: &Path, program: &str, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("{program} could not be started: {WAY_OUT}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
        bail!("{program} {} failed: {last}; {WAY_OUT}", args.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_behind_the_meta_package() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-42-cloud-amd64\n";
        assert_eq!(image_package(depends), Some("linux-image-6.1.0-42-cloud-amd64"));
        assert_eq!(image_package("<linux-image-cloud-amd64>\n"), None);
    }

    #[test]
    fn files_get_the_places_of_a_package() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("6.1.0-x");
        std::fs::create_dir_all(modules.join("kernel")).unwrap();
        std::fs::write(modules.join("kernel/a.ko"), "module").unwrap();
        std::os::unix::fs::symlink("/usr/src/absent", modules.join("build")).unwrap();
        let real = dir.path().join("real");
        std::fs::write(&real, "kernel").unwrap();
        let vmlinuz = dir.path().join("vmlinuz");
        std::os::unix::fs::symlink(&real, &vmlinuz).unwrap();

        let mut bytes = Vec::new();
        write_tar(&mut bytes, &vmlinuz, &modules, "6.1.0-x").unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut found = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            found.insert(path, io::read_to_string(&mut entry).unwrap());
        }
        assert_eq!(found.get("boot/vmlinuz-6.1.0-x").map(String::as_str), Some("kernel"));
        assert_eq!(found.get("lib/modules/6.1.0-x/kernel/a.ko").map(String::as_str), Some("module"));
    }
}
