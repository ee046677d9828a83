//! What a cell may use up: a control group of its own for each hypervisor, in version 1 or 2, or in both where a host has
//! some controllers in one and some in the other.
//!
//! A group has the name of its user id, so whoever locks the id owns the group, and whatever an earlier owner left in it.

mod find;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

pub use find::Groups;
use find::{Controller, Place, Version};

/// How long what an earlier owner left may take to die.
const PATIENCE: Duration = Duration::from_secs(5);
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
}

/// The group of a hypervisor; removed when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    folders: Vec<(Version, PathBuf)>,
    /// Open for a process that joins, which may not see these files any more.
    doors: Vec<OwnedFd>,
    memory: (Version, PathBuf),
}

impl Groups {
    /// Makes the group of a user id; only for who has locked it. Ends what an earlier owner left in it.
    ///
    /// # Errors
    /// The file that could not be written, and why.
    pub(crate) fn make(&self, uid: u32, limits: &Limits) -> io::Result<Group> {
        let mut group = Group { folders: Vec::new(), doors: Vec::new(), memory: Default::default() };
        for place in &self.places {
            let folder = place.mount.join(&self.parent).join(uid.to_string());
            remove(place.version, &folder)?;
            self.make_folder(place, &folder)?;
            group.folders.push((place.version, folder.clone()));
            for controller in &place.controllers {
                for (file, value) in settings(place.version, *controller, limits) {
                    match write(&folder.join(file), &value) {
                        Err(e) if e.kind() == ErrorKind::NotFound && file.contains("sw") => {}
                        done => done?,
                    }
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

    fn make_folder(&self, place: &Place, folder: &Path) -> io::Result<()> {
        let mut tries = 3;
        loop {
            tries -= 1;
            self.open_parent(place)?;
            match fs::create_dir(folder) {
                // A group that was the last one took the parent away.
                Err(e) if e.kind() == ErrorKind::NotFound && tries > 0 => {}
                done => return done.map_err(at(folder)),
            }
        }
    }

    /// The parent of all groups: with one more part of the processors than the host has, so that what is beside it, such as
    /// the server, gets one processor's time however many machines want it all.
    fn open_parent(&self, place: &Place) -> io::Result<()> {
        let parent = place.mount.join(&self.parent);
        let made = match fs::create_dir(&parent) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
            done => done.map(|()| true).map_err(at(&parent))?,
        };
        if place.version == Version::V2 {
            let all: Vec<String> = place.controllers.iter().map(|c| format!("+{}", c.name())).collect();
            for folder in [&place.mount, &parent] {
                let file = folder.join("cgroup.subtree_control");
                fs::write(&file, all.join(" ")).map_err(|e| match e.kind() {
                    ErrorKind::ResourceBusy => io::Error::new(
                        e.kind(),
                        format!("{}: processes are in this group itself; move them to a child of it", file.display()),
                    ),
                    _ => at(&file)(e),
                })?;
            }
        }
        if made && place.controllers.contains(&Controller::Cpu) {
            let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
            let (file, value) = weight(place.version, processors.saturating_mul(100));
            write(&parent.join(file), &value)?;
        }
        Ok(())
    }

    /// Removes the groups of user ids that `owned` does not answer for, and ends what is in them.
    ///
    /// # Errors
    /// When one stays.
    pub(crate) fn remove_unowned(&self, owned: impl Fn(u32) -> bool) -> io::Result<()> {
        for place in &self.places {
            let parent = place.mount.join(&self.parent);
            let Ok(entries) = fs::read_dir(&parent) else { continue };
            for entry in entries.flatten() {
                let uid = entry.file_name().to_str().and_then(|name| name.parse().ok());
                if uid.is_some_and(|uid| !owned(uid)) {
                    remove(place.version, &entry.path())?;
                }
            }
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

impl Group {
    /// What a single-threaded process writes "0" to, to be in the group. Given away once.
    pub(crate) fn doors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.doors)
    }

    /// How often the kernel ended a process of it because its memory was used up.
    pub(crate) fn memory_kills(&self) -> u64 {
        let (version, folder) = &self.memory;
        let file = match version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for (version, folder) in &self.folders {
            let _ = remove(*version, folder);
            // The last one; others are in the way else.
            let _ = folder.parent().map(fs::remove_dir);
        }
    }
}

fn door(version: Version) -> &'static str {
    match version {
        Version::V1 => "tasks",
        Version::V2 => "cgroup.procs",
    }
}

/// What is written into a group, in this order.
fn settings(version: Version, controller: Controller, limits: &Limits) -> Vec<(&'static str, String)> {
    let quota = u64::from(limits.cpu_percent) * PERIOD / 100;
    let memory = limits.memory_bytes.to_string();
    match (version, controller) {
        (Version::V1, Controller::Cpu) => vec![
            ("cpu.cfs_period_us", PERIOD.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
            weight(version, limits.cpu_weight.into()),
        ],
        (Version::V2, Controller::Cpu) => {
            vec![("cpu.max", format!("{quota} {PERIOD}")), weight(version, limits.cpu_weight.into())]
        }
        // With what is swapped out; that file is only there on kernels that count it.
        (Version::V1, Controller::Memory) => {
            vec![("memory.limit_in_bytes", memory.clone()), ("memory.memsw.limit_in_bytes", memory)]
        }
        (Version::V2, Controller::Memory) => {
            vec![("memory.max", memory), ("memory.swap.max", "0".to_owned()), ("memory.oom.group", "1".to_owned())]
        }
        (_, Controller::Pids) => vec![("pids.max", limits.threads.to_string())],
    }
}

fn weight(version: Version, weight: u64) -> (&'static str, String) {
    match version {
        // 1024 is what version 2 calls 100.
        Version::V1 => ("cpu.shares", (weight * 1024 / 100).clamp(2, 262_144).to_string()),
        Version::V2 => ("cpu.weight", weight.clamp(1, 10_000).to_string()),
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

fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::write(path, value).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}
