//! What a cell may use up: a control group of its own for each hypervisor, in version 1 or 2, or in both where a host has
//! some controllers in one and some in the other.
//!
//! A group has the name of its user id, so whoever locks the id owns the group, and whatever an earlier owner left in it.

mod find;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

pub use find::Groups;
use find::{Controller, Place, Version};

/// How long what an earlier owner left may take to die.
const PATIENCE: Duration = Duration::from_secs(2);
/// The period of processor time, in microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;

/// What the hypervisor of one machine may use, with all that it does for its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time, in hundredths of one processor.
    pub cpu_percent: u32,
    /// Its part of the processors where all want more than there is; 100 is usual.
    pub cpu_weight: u32,
    /// Memory in bytes: its own, its guest's, and its files' in the host's cache.
    pub memory_bytes: u64,
    /// Threads.
    pub threads: u32,
    /// The longest file that it may make or make longer: else one that broke out would fill the disk of its layer.
    pub file_bytes: u64,
}

/// The group of a hypervisor; removed when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    folders: Vec<(Version, PathBuf)>,
    /// Open for a process that joins, which may not see these files any more.
    doors: Vec<OwnedFd>,
    memory: (Version, PathBuf),
    file_bytes: u64,
}

impl Groups {
    /// Makes the group of a user id; only for who has locked it. Ends what an earlier owner left in it.
    ///
    /// # Errors
    /// The file that could not be written, and why. `ResourceBusy`: what an earlier owner left does not die.
    pub(crate) fn make(&self, uid: u32, limits: &Limits) -> io::Result<Group> {
        let mut group =
            Group { folders: Vec::new(), doors: Vec::new(), memory: Default::default(), file_bytes: limits.file_bytes };
        for place in &self.places {
            let folder = place.mount.join(&self.parent).join(uid.to_string());
            remove(place.version, &folder)?;
            let mut tries = 3;
            while let Err(e) = self.make_folder(place, &folder) {
                tries -= 1;
                // A node that ended with nothing left took the parent away.
                let gone = e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV);
                if !gone || tries == 0 {
                    return Err(e);
                }
            }
            group.folders.push((place.version, folder.clone()));
            for controller in &place.controllers {
                for setting in settings(place.version, *controller, limits) {
                    setting.write(&folder)?;
                }
                if *controller == Controller::Memory {
                    group.memory = (place.version, folder.clone());
                }
            }
            let door = folder.join(door(place.version));
            group.doors.push(File::options().write(true).open(&door).map_err(at(&door))?.into());
        }
        Ok(group)
    }

    /// Below the parent of all groups. That one weighs as much as all processors, so that what is beside it, such as the
    /// server, has a part of its own however many machines want it all.
    fn make_folder(&self, place: &Place, folder: &Path) -> io::Result<()> {
        let parent = place.mount.join(&self.parent);
        let all: Vec<String> = place.controllers.iter().map(|c| format!("+{}", c.name())).collect();
        let pass_on = |group: &Path| match place.version {
            Version::V1 => Ok(()),
            Version::V2 => Setting::new("cgroup.subtree_control", all.join(" ")).write(group),
        };
        pass_on(&place.mount).map_err(|e| match e.kind() {
            ErrorKind::ResourceBusy => io::Error::other(format!(
                "{e}: processes are in this group itself; move them to a child of it (mkdir, and their ids into its cgroup.procs)"
            )),
            _ => e,
        })?;
        match fs::create_dir(&parent) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(at(&parent)(e)),
            _ => {}
        }
        pass_on(&parent)?;
        if place.controllers.contains(&Controller::Cpu) {
            let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
            weight(place.version, processors.saturating_mul(100)).write(&parent)?;
        }
        fs::create_dir(folder).map_err(at(folder))
    }

    /// Removes the groups of user ids that nobody has, and ends what is in them. `hold` gives what keeps others from taking
    /// an id until it is dropped; nothing where somebody has it.
    ///
    /// # Errors
    /// When one stays.
    pub(crate) fn remove_unowned<T>(&self, hold: impl Fn(u32) -> Option<T>) -> io::Result<()> {
        for place in &self.places {
            let Ok(entries) = fs::read_dir(place.mount.join(&self.parent)) else { continue };
            for entry in entries.flatten() {
                let uid = entry.file_name().to_str().and_then(|name| name.parse().ok());
                if let Some(_held) = uid.and_then(&hold) {
                    remove(place.version, &entry.path())?;
                }
            }
        }
        self.remove_parent();
        Ok(())
    }

    /// Removes the parent of all groups where it is the parent of none.
    pub fn remove_parent(&self) {
        for place in &self.places {
            let _ = fs::remove_dir(place.mount.join(&self.parent));
        }
    }
}

impl Group {
    /// What a single-threaded process writes "0" to, to be in the group. Given away once.
    pub(crate) fn doors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.doors)
    }

    /// The longest file, which is each process's own limit.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Whether the kernel ended a process of it because the group's own memory was used up, not the host's.
    pub(crate) fn used_up(&self) -> bool {
        let (version, folder) = &self.memory;
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let count = |text: &str, name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        match version {
            Version::V1 => {
                // How often the limit was met is not counted by newer kernels.
                let number = |file: &str| count(&read(file), "");
                let met = number("memory.max_usage_in_bytes") >= number("memory.limit_in_bytes");
                met && count(&read("memory.oom_control"), "oom_kill ") > 0
            }
            Version::V2 => {
                let events = read("memory.events");
                count(&events, "oom ") > 0 && count(&events, "oom_kill ") > 0
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for (version, folder) in &self.folders {
            let _ = remove(*version, folder);
        }
    }
}

fn door(version: Version) -> &'static str {
    match version {
        Version::V1 => "tasks",
        Version::V2 => "cgroup.procs",
    }
}

/// A file of a group, and what is written to it.
struct Setting {
    file: &'static str,
    value: String,
    /// Errors that are no reason to give up, since nothing is lost by them.
    fine: &'static [i32],
}

impl Setting {
    fn new(file: &'static str, value: impl ToString) -> Self {
        Self { file, value: value.to_string(), fine: &[] }
    }

    fn write(&self, group: &Path) -> io::Result<()> {
        let path = group.join(self.file);
        // Not made where it is missing: that is another error here than elsewhere.
        let written =
            File::options().write(true).open(&path).and_then(|mut file| file.write_all(self.value.as_bytes()));
        match written {
            Err(e) if e.raw_os_error().is_some_and(|number| self.fine.contains(&number)) => Ok(()),
            done => done.map_err(at(&path)),
        }
    }
}

/// What is written into a group, in this order.
fn settings(version: Version, controller: Controller, limits: &Limits) -> Vec<Setting> {
    let quota = u64::from(limits.cpu_percent) * PERIOD / 100;
    let (memory, weight) = (limits.memory_bytes, weight(version, limits.cpu_weight.into()));
    // On kernels that do not count what is swapped out.
    let not_there: &[i32] = &[libc::ENOENT];
    match (version, controller) {
        (Version::V1, Controller::Cpu) => vec![
            Setting::new("cpu.cfs_period_us", PERIOD),
            // Version 1 takes none that is more than a group above has, which holds then.
            Setting { fine: &[libc::EINVAL], ..Setting::new("cpu.cfs_quota_us", quota) },
            weight,
        ],
        (Version::V2, Controller::Cpu) => vec![Setting::new("cpu.max", format!("{quota} {PERIOD}")), weight],
        (Version::V1, Controller::Memory) => vec![
            Setting::new("memory.limit_in_bytes", memory),
            Setting { fine: not_there, ..Setting::new("memory.memsw.limit_in_bytes", memory) },
        ],
        (Version::V2, Controller::Memory) => vec![
            Setting::new("memory.max", memory),
            Setting { fine: not_there, ..Setting::new("memory.swap.max", 0) },
            Setting::new("memory.oom.group", 1),
        ],
        (_, Controller::Pids) => vec![Setting::new("pids.max", limits.threads)],
    }
}

fn weight(version: Version, weight: u64) -> Setting {
    match version {
        // 1024 is what version 2 calls 100.
        Version::V1 => Setting::new("cpu.shares", (weight * 1024 / 100).clamp(2, 262_144)),
        Version::V2 => Setting::new("cpu.weight", weight.clamp(1, 10_000)),
    }
}

/// Removes a group with whatever is in it; fine where there is none.
fn remove(version: Version, folder: &Path) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match fs::remove_dir(folder) {
            Err(e) if e.kind() == ErrorKind::ResourceBusy && begin.elapsed() < PATIENCE => end_all(version, folder),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            done => return done.map_err(at(folder)),
        }
        // Nothing tells that a group of version 1 is empty.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn end_all(version: Version, folder: &Path) {
    if version == Version::V2 && fs::write(folder.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in inside.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_has_not_is_left_out_and_what_it_must_have_is_named() {
        let limits = Limits { cpu_percent: 150, cpu_weight: 100, memory_bytes: 1 << 20, threads: 9, file_bytes: 1 };
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("memory.max"), "").unwrap();
        let all = settings(Version::V2, Controller::Memory, &limits);
        let written: Vec<_> =
            all.iter().map(|setting| setting.write(group.path()).map_err(|e| e.to_string())).collect();
        assert_eq!((&written[0], &written[1]), (&Ok(()), &Ok(())), "the second is not there");
        assert!(written[2].as_ref().is_err_and(|why| why.contains("memory.oom.group: No such file")), "{written:?}");
        assert_eq!(fs::read_to_string(group.path().join("memory.max")).unwrap(), "1048576");
        assert!(!group.path().join("memory.swap.max").exists());
        assert_eq!(settings(Version::V1, Controller::Cpu, &limits)[1].value, "150000");
    }
}
