//! What tests may leave on the machine: looked for before and after, so that a test that leaks is a failure.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What is on its way out when the last test ends: the kernel takes namespaces apart by itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// Groups of the product lie at most so deep.
const DEPTH: usize = 4;

/// What was there before.
pub(crate) struct Before(BTreeSet<String>);

impl Before {
    pub(crate) fn look() -> Self {
        Self(all())
    }

    /// Whether all is as it was, but for what somebody else began meanwhile that looks like none of the product's.
    ///
    /// # Errors
    /// What is left, each on a line.
    pub(crate) fn compare(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left: Vec<_> = all().difference(&self.0).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("the tests left on this machine (or somebody else began it meanwhile):\n  {}", left.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn all() -> BTreeSet<String> {
    let temp = std::env::temp_dir();
    let mut found = mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default(), &temp);
    let named = |kind: &str, folder: &str, is: &dyn Fn(&str) -> bool| -> Vec<String> {
        names(Path::new(folder)).into_iter().filter(|name| is(name)).map(|name| format!("{kind} {name}")).collect()
    };
    found.extend(named("network namespace", "/run/netns", &|_| true));
    found.extend(named("link", "/sys/class/net", &is_link));
    groups(Path::new("/sys/fs/cgroup"), DEPTH, false, &mut found);
    // This program's own folder of a profile.
    let own = std::env::current_exe().ok();
    let built = own.as_deref().and_then(Path::parent);
    let pids = names(Path::new("/proc")).into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    found.extend(pids.filter_map(|pid| process(&pid, built)));
    found
}

/// One that the product makes on a node.
fn is_link(name: &str) -> bool {
    let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
    name == "tp0" || name == "ttprobe" || name.strip_prefix("tt").is_some_and(number)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Mounts of the product's name, and those within the folder of what is temporary.
fn mounts(table: &str, temp: &Path) -> BTreeSet<String> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    let ours = points.filter(|point| point.contains("tartarus") || Path::new(point).starts_with(temp));
    ours.map(|point| format!("mount {point}")).collect()
}

/// Control groups below those of the product's name, which stay until a node ends that has nothing left.
fn groups(folder: &Path, depth: usize, ours: bool, found: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for name in names(folder) {
        let path = folder.join(&name);
        // The hierarchies have links to each other.
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        if ours {
            found.insert(format!("control group {}", path.display()));
        }
        groups(&path, depth - 1, ours || name.contains("tartarus"), found);
    }
}

/// A process of the product or of a test, or a hypervisor; one that has ended and was not waited for has no program any more.
fn process(pid: &str, built: Option<&Path>) -> Option<String> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // The program may have been built anew since, or lie in memory only.
    let name = program.to_str()?.trim_end_matches(" (deleted)");
    let last = name.rsplit('/').next()?;
    let ours = ["tartarus", "qemu-system", "firecracker"].iter().any(|program| last.starts_with(program));
    (ours || built.is_some_and(|built| Path::new(name).starts_with(built))).then(|| format!("process {pid} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ours_and_what_is_temporary_counts() {
        let table = "proc /proc proc rw 0 0\noverlay /var/lib/tartarus/x overlay rw 0 0\ntmpfs /tmp/.tmpAb/m tmpfs rw 0 0\n\
                     tmpfs /tmpx tmpfs rw 0 0\n";
        let found = mounts(table, Path::new("/tmp"));
        assert_eq!(Vec::from_iter(found), ["mount /tmp/.tmpAb/m", "mount /var/lib/tartarus/x"]);
    }

    #[test]
    fn links_of_a_node_are_told_from_others() {
        assert!(["tp0", "ttprobe", "tt17"].into_iter().all(is_link));
        assert!(!["tpm0", "tt", "tty1", "eth0"].into_iter().any(is_link));
    }

    #[test]
    fn groups_below_ours_are_ours() {
        let root = std::env::temp_dir().join(format!("leftovers-{}", std::process::id()));
        fs::create_dir_all(root.join("cpu/tartarus/2100000000/deeper")).unwrap();
        fs::create_dir_all(root.join("cpu/other/2100000000")).unwrap();
        let mut found = BTreeSet::new();
        groups(&root, DEPTH, false, &mut found);
        fs::remove_dir_all(&root).unwrap();
        let names: Vec<_> = found.iter().filter_map(|text| text.rsplit('/').next()).collect();
        assert_eq!(names, ["2100000000", "deeper"]);
    }

    #[test]
    fn this_process_is_none_of_the_product() {
        let (own, here) = (std::process::id().to_string(), std::env::current_exe().unwrap());
        assert_eq!(process(&own, None), None);
        assert!(process(&own, here.parent()).is_some(), "but it was built here");
        assert_eq!(process("0", Some(&here)), None);
    }
}
