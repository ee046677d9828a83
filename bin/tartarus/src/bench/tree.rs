//! The processes of this machine as a tree: what descends from us is counted, and ended at the end.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// What the kernel calls the product's processes.
const SERVER_NAME: &str = "tartarus";

/// A process, though its number be given to another one later: with the time of its start.
type Identity = (u32, u64);

/// What descended from us before we started anything: a script may have, and then became us by `exec`. Not ours to end.
static BEFORE: OnceLock<BTreeSet<Identity>> = OnceLock::new();

/// A process that descends from us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) name: String,
    zombie: bool,
    /// In clock ticks since the machine's.
    started: u64,
}

impl Process {
    fn identity(&self) -> Identity {
        (self.pid, self.started)
    }
}

/// `PID (NAME) STATE PPID …`, the start being the 22nd; the name may hold anything.
fn parse_stat(text: &str) -> Option<Process> {
    let (pid, rest) = text.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Process { pid: pid.parse().ok()?, parent, name: name.to_owned(), zombie, started })
}

/// Every process of the machine.
fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter_map(|pid| parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// Those of `all` that descend from `root`, without it, and without the trees of `others`.
fn below(root: u32, all: Vec<Process>, others: &BTreeSet<Identity>) -> Vec<Process> {
    let mut family = BTreeSet::from([root]);
    let ours = |process: &&Process| !others.contains(&process.identity());
    loop {
        let before = family.len();
        let children: Vec<u32> =
            all.iter().filter(ours).filter(|p| family.contains(&p.parent)).map(|p| p.pid).collect();
        family.extend(children);
        if family.len() == before {
            break;
        }
    }
    family.remove(&root);
    all.into_iter().filter(|process| family.contains(&process.pid)).collect()
}

fn before() -> &'static BTreeSet<Identity> {
    static NONE: BTreeSet<Identity> = BTreeSet::new();
    BEFORE.get().unwrap_or(&NONE)
}

/// Whatever descends from us by now is none of ours.
pub(super) fn begin() {
    let there = below(std::process::id(), all(), &BTreeSet::new());
    BEFORE.get_or_init(|| there.iter().map(Process::identity).collect());
}

/// Whether a process of this name is a hypervisor, or stands for one.
pub(super) fn is_hypervisor(name: &str) -> bool {
    ["qemu-system", "firecracker", "jail-init"].iter().any(|known| name.contains(known))
}

/// Everything alive that we started, directly or not.
pub(super) fn descendants() -> Vec<Process> {
    let mut found = below(std::process::id(), all(), before());
    found.retain(|process| !process.zombie);
    found
}

/// A process and everything alive that descends from it, also what was handed over to us when its parent ended: a
/// supervisor that went into the background is the server's all the same.
pub(super) fn family(pid: u32) -> Vec<u32> {
    let all = all();
    let me = std::process::id();
    let handed_over = |p: &&Process| p.parent == me && p.name == SERVER_NAME && !before().contains(&p.identity());
    let orphans: Vec<u32> = all.iter().filter(handed_over).map(|p| p.pid).collect();
    let mut family = BTreeSet::from([pid]);
    for root in orphans.into_iter().chain([pid]) {
        family.insert(root);
        family.extend(below(root, all.clone(), before()).iter().map(|process| process.pid));
    }
    let alive: BTreeSet<u32> = all.iter().filter(|process| !process.zombie).map(|process| process.pid).collect();
    family.into_iter().filter(|pid| alive.contains(pid)).collect()
}

/// Takes the last breath of orphans that ended. Only while no measured program runs: those are waited for elsewhere.
pub(super) fn reap(keep: &[u32]) {
    let me = std::process::id();
    for process in all() {
        if process.zombie && process.parent == me && !keep.contains(&process.pid) {
            let _ = waitpid(Pid::from_raw(process.pid.cast_signed()), WaitOptions::NOHANG);
        }
    }
}

/// Ends everything that we started.
pub(super) fn end_all() {
    for _ in 0..250 {
        reap(&[]);
        let left = descendants();
        if left.is_empty() {
            return;
        }
        for process in left {
            if let Some(pid) = Pid::from_raw(process.pid.cast_signed()) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_may_hold_anything() {
        let rest = "12 12 0 -1 4194560 100 0 0 0 31 12 0 0 20 0 1 0 5000 9";
        let process = parse_stat(&format!("12 (a) b (c) S 7 {rest}")).unwrap();
        assert_eq!((process.pid, process.parent, process.name.as_str()), (12, 7, "a) b (c"));
        assert_eq!(process.identity(), (12, 5000));
        assert!(parse_stat(&format!("12 (a) Z 7 {rest}")).unwrap().zombie);
        assert_eq!(parse_stat("12"), None);
    }

    fn process(pid: u32, parent: u32) -> Process {
        Process { pid, parent, name: String::new(), zombie: false, started: 100 }
    }

    fn found(others: &[Identity]) -> Vec<u32> {
        let all = vec![process(4, 3), process(3, 2), process(2, 1), process(5, 1), process(9, 8), process(1, 0)];
        below(1, all, &others.iter().copied().collect()).iter().map(|p| p.pid).collect()
    }

    #[test]
    fn grandchildren_are_found_in_whatever_order_they_are_listed() {
        assert_eq!(found(&[]), [4, 3, 2, 5]);
    }

    #[test]
    fn what_was_there_before_is_left_alone_with_its_children_but_not_for_its_number() {
        assert_eq!(found(&[(2, 100)]), [5]);
        assert_eq!(found(&[(2, 99)]), [4, 3, 2, 5], "another process has its number");
    }
}
