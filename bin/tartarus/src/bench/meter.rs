//! What the machine has in use: for leaks, and for the cost of what is idle.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::tree;

/// Bytes of a line of `/proc/meminfo`.
pub(super) fn memory(name: &str) -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

/// Memory that is not a file's, out of a process's `status`, bytes.
pub(super) fn anonymous(status: &str) -> u64 {
    kib(status, "RssAnon").unwrap_or(0)
}

/// `NAME:   N kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A moment of the server and everything that it started.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Moment {
    /// Resident memory of all of it that is not a file's, bytes.
    pub(super) resident: i64,
    /// Memory in memfds that any of it holds, bytes, each once.
    pub(super) shared: i64,
    /// Free memory of the whole machine, bytes. Other programs move it as well.
    pub(super) available: i64,
    /// Open descriptors of all of it.
    pub(super) descriptors: i64,
    /// Processes.
    pub(super) processes: i64,
    /// Mounts that the server sees.
    pub(super) mounts: i64,
    /// Disk space of the data folder, records and logs aside, bytes.
    pub(super) disk: i64,
}

impl Moment {
    /// Looks at the server with this process id and data folder.
    pub(super) fn look(server: u32, data: &Path) -> Self {
        let family = tree::family(server);
        let sum = |of: &dyn Fn(u32) -> u64| signed(family.iter().map(|pid| of(*pid)).sum());
        let resident = |pid: u32| anonymous(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
        let entries = |path: String| fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
        let mounts = fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap_or_default();
        Self {
            resident: sum(&resident),
            shared: signed(memfds(&family)),
            available: signed(memory("MemAvailable").unwrap_or(0)),
            descriptors: sum(&|pid| entries(format!("/proc/{pid}/fd"))),
            processes: signed(family.len() as u64),
            mounts: signed(mounts.lines().count() as u64),
            disk: signed(disk(data)),
        }
    }
}

/// Bytes of the memfds that these processes have open, each counted once.
fn memfds(family: &[u32]) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let open = |pid: &u32| fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let memfd = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        let meta = target.to_string_lossy().starts_with("/memfd:").then(|| fs::metadata(entry.path()))?.ok()?;
        Some(((meta.dev(), meta.ino()), meta.blocks() * 512))
    };
    let found: BTreeMap<_, u64> = family.iter().flat_map(open).filter_map(memfd).collect();
    found.values().sum()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Bytes that the files of the data folder take; neither logs nor the database.
fn disk(data: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(data) else { return 0 };
    let counted = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        name != "logs" && !name.to_string_lossy().starts_with("tartarus.db")
    });
    counted.map(|entry| space(&entry.path())).sum()
}

fn space(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let below = if meta.is_dir() {
        fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|entry| space(&entry.path())).sum())
    } else {
        0
    };
    // A folder grows with the names that it has held and never shrinks: only files are space that leaks.
    if meta.is_dir() { below } else { meta.blocks() * 512 }
}

/// What an idle clone costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Cost {
    /// Its share of everything that is mapped, bytes.
    pub(super) proportional: u64,
    /// What only it has, bytes.
    pub(super) private: u64,
    /// Of that, guest memory that it wrote and so no longer shares, bytes.
    pub(super) guest: u64,
}

/// Of a hypervisor whose guest has `memory` bytes.
pub(super) fn cost(pid: u32, guest_bytes: u64) -> Option<Cost> {
    parse_smaps(&fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?, guest_bytes)
}

/// Guest memory is the mapping that is as large as it.
fn parse_smaps(text: &str, guest_bytes: u64) -> Option<Cost> {
    let mut cost = Cost::default();
    let (mut in_guest, mut found) = (false, false);
    for line in text.lines() {
        if let Some(size) = mapping(line) {
            in_guest = size == guest_bytes;
            found |= in_guest;
            continue;
        }
        let value = |name| kib(line, name).unwrap_or(0);
        cost.proportional += value("Pss");
        cost.private += value("Private_Clean") + value("Private_Dirty");
        if in_guest {
            cost.guest += value("Anonymous");
        }
    }
    found.then_some(cost)
}

/// The size of the mapping that a line of `smaps` begins.
fn mapping(line: &str) -> Option<u64> {
    let (from, to) = line.split(' ').next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    number(to)?.checked_sub(number(from)?)
}

/// Processor time of a process, clock ticks of 10 ms.
pub(super) fn ticks(pid: u32) -> u64 {
    parse_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()).unwrap_or(0)
}

fn parse_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    Some(user + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kibibytes_are_read_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:     2 kB\nPss_Dirty: 9 kB\n";
        assert_eq!(kib(text, "MemTotal"), Some(2048));
        assert_eq!(kib(text, "Pss"), None);
        assert!(memory("MemTotal") > Some(1 << 20));
    }

    #[test]
    fn written_guest_memory_is_told_from_the_hypervisors_own() {
        let text = "7f0000000000-7f0008000000 rw-p 00000000 00:01 5 /memfd:golden (deleted)\n\
                    Pss: 100 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 20 kB\nAnonymous: 20 kB\nVmFlags: rd wr\n\
                    7f1000000000-7f1000001000 rw-p 00000000 00:00 0 [heap]\n\
                    Pss: 8 kB\nPrivate_Dirty: 8 kB\nAnonymous: 8 kB\n";
        let cost = parse_smaps(text, 128 << 20).unwrap();
        assert_eq!(cost, Cost { proportional: 108 << 10, private: 32 << 10, guest: 20 << 10 });
        assert_eq!(parse_smaps(text, 1 << 20), None);
    }

    #[test]
    fn processor_time_is_user_and_system() {
        let stat = "7 (a b) S 1 7 7 0 -1 4194560 100 0 0 0 31 12 0 0 20 0 1 0 5";
        assert_eq!(parse_ticks(stat), Some(43));
        assert_eq!(parse_ticks(""), None);
    }

    #[test]
    fn a_memfd_counts_once_however_often_it_is_open() {
        use std::io::Write as _;
        let me = [std::process::id()];
        let before = memfds(&me);
        let fd = rustix::fs::memfd_create("bench-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = fs::File::from(fd);
        file.write_all(&[1; 8192]).unwrap();
        let _again = file.try_clone().unwrap();
        assert_eq!(memfds(&me) - before, 8192);
    }

    #[test]
    fn records_and_logs_are_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tartarus.db", "tartarus.db-wal"] {
            fs::write(dir.path().join(name), [1; 9000]).unwrap();
        }
        fs::create_dir_all(dir.path().join("logs/a")).unwrap();
        fs::write(dir.path().join("logs/a/out"), [1; 9000]).unwrap();
        fs::create_dir_all(dir.path().join("sandboxes")).unwrap();
        assert_eq!(disk(dir.path()), 0);
        fs::write(dir.path().join("sandboxes/layer"), [1; 9000]).unwrap();
        assert!(disk(dir.path()) >= 9000);
    }
}
