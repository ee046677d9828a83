//! The Debian packages that demo and test need, each with its reason. Never a kernel, Docker or a service.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::sh;

/// Name and reason.
type Package = (&'static str, &'static str);

const DEMO: &[Package] = &[
    ("qemu-system-x86", "the hypervisor: boots the microVMs, with KVM or without"),
    ("squashfs-tools", "sqfstar makes base images of root file systems, unpacking nothing"),
    ("e2fsprogs", "mke2fs makes the writable layer of a sandbox"),
    ("mmdebstrap", "makes the Debian root file system of the template `python`"),
    ("uidmap", "lets an ordinary user make it (newuidmap, newgidmap)"),
    ("apt", "fetches the guest's kernel package without installing it"),
    ("dpkg", "unpacks that package"),
    ("tar", "streams folders as images"),
    ("xz-utils", "reads compressed packages and images"),
    ("util-linux", "setpriv ends the demo's server should the demo itself be killed"),
    ("nftables", "puts the network contracts of sandboxes in force"),
    ("gcc", "links, and compiles the SQLite that is built in"),
    ("libc6-dev", "the static C library of the guest agent"),
];

const TEST: &[Package] = &[
    ("busybox-static", "the root file system of most test guests"),
    ("iproute2", "builds the networks that tests are run in"),
    ("strace", "shows that what is accepted is on disk before it is answered"),
    ("cpio", "reads back the initramfs that was made"),
    ("procps", "finds processes that were left behind"),
    ("passwd", "makes and removes the account of the test as an ordinary user"),
    ("python3", "drives tests from outside, as a client in another language"),
    ("qemu-utils", "checks the overlays that are made of layers (qemu-img, qemu-io)"),
    ("xfsprogs", "makes a file system with reflinks, which layers are then made by"),
];

/// A package that apt knows wherever it has lists at all; it is fetched, never installed.
const KERNEL: &str = "linux-image-cloud-amd64";

/// `cargo xtask packages`.
pub(crate) fn run(install: bool) -> Result<()> {
    ensure(&all(), install)
}

/// Lists what the demo needs; installs what is missing as root, otherwise fails with the line that does.
pub(crate) fn ensure_demo() -> Result<()> {
    ensure(DEMO, sh::is_root())
}

/// The same for demo and test.
pub(crate) fn ensure_test() -> Result<()> {
    ensure(&all(), sh::is_root())
}

fn all() -> Vec<Package> {
    DEMO.iter().chain(TEST).copied().collect()
}

fn ensure(wanted: &[Package], install: bool) -> Result<()> {
    let missing = list(wanted)?;
    // The guest's kernel comes from apt's lists, so they are needed even where every package is there.
    let listed = parse_candidate(&sh::output(&mut sh::command(&["apt-cache", "policy", KERNEL]))?).is_some();
    if missing.is_empty() && listed {
        return Ok(());
    }
    if !install {
        bail!("something is missing; this gets it\n  {}", sudo_line(&missing, listed));
    }
    if !sh::is_root() {
        bail!("only root may install packages; this does\n  {}", sudo_line(&missing, listed));
    }
    sh::run(&mut sh::command(&["apt-get", "update"]))?;
    if missing.is_empty() {
        return Ok(());
    }
    sh::run(sh::command(&install_line(&missing)).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Prints every package with its reason and whether it is there; gives the missing ones.
fn list(wanted: &[Package]) -> Result<Vec<&'static str>> {
    let installed = installed()?;
    println!("Debian packages:");
    for (name, why) in wanted {
        let mark = if installed.contains(*name) { "ok     " } else { "missing" };
        println!("  {mark}  {name:<16} {}", sh::dim(why));
    }
    Ok(wanted.iter().map(|(name, _)| *name).filter(|name| !installed.contains(*name)).collect())
}

fn installed() -> Result<BTreeSet<String>> {
    let text = sh::output(&mut sh::command(&["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"]))?;
    Ok(parse_installed(&text))
}

/// A package that was removed with its configuration kept is listed too, as `config-files`.
fn parse_installed(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect()
}

/// The version of a package that apt would install.
///
/// # Errors
/// When apt does not know the package.
pub(crate) fn candidate(package: &str) -> Result<String> {
    let text = sh::output(&mut sh::command(&["apt-cache", "policy", package]))?;
    let Some(version) = parse_candidate(&text) else {
        bail!("apt knows no package {package}; run `apt-get update` as root first");
    };
    Ok(version)
}

fn parse_candidate(text: &str) -> Option<String> {
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

fn install_line<'a>(missing: &[&'a str]) -> Vec<&'a str> {
    [&["apt-get", "install", "--yes", "--no-install-recommends"], missing].concat()
}

fn sudo_line(missing: &[&str], listed: bool) -> String {
    let update = if listed { "" } else { "sudo apt-get update" };
    let install = match missing {
        [] => String::new(),
        some => format!("sudo apt-get install --no-install-recommends {}", some.join(" ")),
    };
    let both = if update.is_empty() || install.is_empty() { "" } else { " && " };
    format!("{update}{both}{install}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_is_missing() {
        let found = parse_installed("installed tar\nconfig-files strace\nnot-installed cpio\n");
        assert!(found.contains("tar") && !found.contains("strace") && !found.contains("cpio"));
    }

    #[test]
    fn one_line_installs_all_that_is_missing() {
        assert_eq!(sudo_line(&["a", "b"], true), "sudo apt-get install --no-install-recommends a b");
        assert!(sudo_line(&["a"], false).starts_with("sudo apt-get update && sudo apt-get install"));
        assert_eq!(sudo_line(&[], false), "sudo apt-get update");
        assert_eq!(install_line(&["a"]).last(), Some(&"a"));
    }

    #[test]
    fn nothing_is_listed_twice_and_no_kernel_is_installed() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), all.len());
        assert!(!all.iter().any(|(name, _)| name.starts_with("linux-image")));
    }

    #[test]
    fn a_package_without_candidate_is_unknown() {
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: 6.1.192-2\n").as_deref(), Some("6.1.192-2"));
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }
}
