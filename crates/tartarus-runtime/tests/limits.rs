//! What a hypervisor in its cell can use up, tried by a program in its place.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::probe;
use tartarus_runtime::cell::{Cell, FIRST_UID, Limits};
use tartarus_runtime::supervisor::{Launch, SupervisedVm};
use tartarus_runtime::{Cause, Vm};

const LIMITS: Limits = Limits { cpu_percent: 50, cpu_weight: 100, memory_bytes: 64 << 20, threads: 40 };

fn cell(dir: &Path) -> Option<Cell> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make cells");
        return None;
    }
    Some(Cell::open(dir, &std::env::current_exe().unwrap(), None).unwrap().unwrap())
}

fn limited(cell: &Cell, what: &str) -> Launch {
    Launch { limits: Some(LIMITS), ..probe::of(Some(cell.clone()), what) }
}

/// The folders of groups below `parent`, in all hierarchies.
fn groups(parent: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts.lines().filter(|l| l.starts_with("cgroup")).filter_map(|l| l.split(' ').nth(1));
    let parents = points.map(|point| Path::new(point).join(parent));
    parents
        .filter_map(|parent| fs::read_dir(parent).ok())
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|path| path.is_dir())
        .collect()
}

#[tokio::test]
async fn processor_time_is_bounded() {
    let (cells, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(cell) = cell(cells.path()) else { return };
    let (free, _) = probe::launch(dir.path(), probe::of(Some(cell.clone()), "spin")).await;
    let (bound, _) = probe::launch(dir.path(), limited(&cell, "spin")).await;
    let (free, bound): (u64, u64) = (free.trim().parse().unwrap(), bound.trim().parse().unwrap());
    assert!((300..700).contains(&bound), "{bound} ms of processor time in a second, 500 are allowed");
    eprintln!("{free} ms without a limit, {bound} with 500");
}

#[tokio::test]
async fn memory_is_bounded_and_who_uses_it_up_is_told() {
    let (cells, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(cell) = cell(cells.path()) else { return };
    let (said, exit) = probe::launch(dir.path(), limited(&cell, "memory")).await;
    let reached: u64 = said.lines().last().unwrap().parse().unwrap();
    assert!((32..64).contains(&reached), "{reached} MiB of 64");
    assert_eq!(exit.cause, Cause::Itself);
    assert_eq!(exit.status, "killed by SIGKILL: it used up the memory that its cell may use");
}

#[tokio::test]
async fn threads_are_bounded() {
    let (cells, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(cell) = cell(cells.path()) else { return };
    let (said, _) = probe::launch(dir.path(), limited(&cell, "threads")).await;
    assert_eq!(said.trim(), "39", "beside its first");
}

#[tokio::test]
async fn a_group_goes_with_its_hypervisor_also_when_the_supervisor_is_killed() {
    let (cells, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(mut cell) = cell(cells.path()) else { return };
    // Of its own, as its groups have no names but those of user ids.
    cell.locks = cells.path().join("locks");
    cell.groups.parent = format!("tartarus-test-{}", std::process::id());
    let own = || groups(&cell.groups.parent).len();
    let mut launch = limited(&cell, "spin");
    launch.argv[2] = "wait".to_owned();
    let vm = SupervisedVm::launch(&support::supervisor(), dir.path(), &launch).await.unwrap();
    let inside = fs::read_to_string(format!("/proc/{}/cgroup", vm.pid())).unwrap();
    let named = inside.lines().filter(|line| line.ends_with(&format!("/{}/{FIRST_UID}", cell.groups.parent))).count();
    assert!(named > 0 && named == own(), "{inside}");
    vm.kill().await;
    tokio::time::timeout(Duration::from_secs(10), vm.wait()).await.unwrap();
    assert_eq!(own(), 0);

    let vm = SupervisedVm::launch(&support::supervisor(), dir.path(), &launch).await.unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", vm.pid())).unwrap();
    let parent: i32 = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    // SAFETY: a system call on numbers; it is the supervisor that was just started.
    unsafe { libc::kill(parent, libc::SIGKILL) };
    tokio::time::timeout(Duration::from_secs(10), vm.wait()).await.unwrap();
    assert!(own() > 0, "nobody is left to remove them");
    // Who owns it by the lock is asked, not who is in it.
    let owner = lock(&cell.locks, &FIRST_UID.to_string());
    cell.remove_others().unwrap();
    assert!(own() > 0);
    drop(owner);
    cell.remove_others().unwrap();
    assert_eq!(own(), 0);
}

fn lock(locks: &Path, name: &str) -> fs::File {
    fs::create_dir_all(locks).unwrap();
    let file = fs::File::create(locks.join(name)).unwrap();
    file.lock().unwrap();
    file
}
