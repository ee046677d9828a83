//! What is seen of a real QEMU in its cell, from outside.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::conformance::Subject;
use support::qemu;
use support::tiny::{machine, wait_for_letters};
use support::wire::wire;
use support::{namespaces, status};
use tartarus_runtime::cell::{Cell, FILTER, FIRST_UID, UIDS, check_without_cell};
use tartarus_runtime::qemu::{PROGRAM, Qemu};
use tartarus_runtime::{Cause, Deadlines, Driver, Machine, Vm};

const LIMIT: Duration = Duration::from_secs(30);

async fn boot(driver: &Qemu, dir: &Path) -> Box<dyn Vm> {
    let deadlines = Deadlines { wall_ms: Some(60_000), ..Deadlines::default() };
    let vm = driver.boot(&machine(dir), deadlines).await.unwrap();
    wait_for_letters(dir, 3).await;
    vm
}

async fn end(vm: Box<dyn Vm>) {
    vm.kill().await;
    assert_eq!(tokio::time::timeout(LIMIT, vm.wait()).await.unwrap().cause, Cause::Ordered);
}

#[tokio::test]
async fn a_hypervisor_is_alone_and_may_do_nothing() {
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), true) else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let vms = [boot(&driver, dirs[0].path()).await, boot(&driver, dirs[1].path()).await];
    let procs = vms.each_ref().map(|vm| PathBuf::from(format!("/proc/{}", vm.pid())));
    let mut uids = Vec::new();
    for proc in &procs {
        for thread in fs::read_dir(proc.join("task")).unwrap() {
            let status = status(&thread.unwrap().path());
            let ids: Vec<u32> = status["Uid"].split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert!(ids.iter().all(|id| *id == ids[0] && (FIRST_UID..FIRST_UID + UIDS).contains(id)), "{ids:?}");
            assert_eq!(status["Gid"], status["Uid"]);
            assert_eq!(status["Groups"], "");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status[set], "0000000000000000", "{set}");
            }
            assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));
            uids.push(ids[0]);
        }
        let (theirs, ours) = (namespaces(proc), namespaces(Path::new("/proc/self")));
        assert!(theirs.iter().all(|(name, place)| ours[name] != *place), "{theirs:?}");
    }
    assert_ne!(uids.first(), uids.last(), "neighbours");
    let (one, two) = (namespaces(&procs[0]), namespaces(&procs[1]));
    assert!(one.iter().all(|(name, place)| two[name] != *place), "{one:?}");
    for vm in vms {
        end(vm).await;
    }
}

#[tokio::test]
async fn doctor_tells_a_cell_that_works_from_one_that_does_not() {
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), true) else { return };
    let cell = driver.cell.clone().unwrap();
    cell.check(&driver.program).unwrap();
    let elsewhere = Cell { root: cells.path().join("nothing"), ..cell.clone() };
    let why = elsewhere.check(&driver.program).unwrap_err();
    assert!(why.starts_with("a cell of its own: its file system: No such file"), "{why}");
    fs::remove_file(cell.root.join(driver.program.strip_prefix("/").unwrap())).unwrap();
    let why = cell.check(&driver.program).unwrap_err();
    assert!(why.contains("No such file"), "{why}");
    // What cannot be locked up does not run, and says which step it was.
    let driver = Qemu { cell: Some(elsewhere), ..driver };
    let dir = tempfile::tempdir().unwrap();
    let why = driver.boot(&machine(dir.path()), Deadlines::default()).await.err().unwrap().to_string();
    assert!(why.contains("a cell of its own: its file system"), "{why}");
}

/// A node of it is made for each. Seen by the way in: a machine of KVM's may end before anybody looks.
#[tokio::test]
async fn a_cell_with_a_device_is_tried_with_it() {
    let device = Path::new("/dev/kvm");
    if !device.exists() {
        return eprintln!("skipped: there is no /dev/kvm");
    }
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), true) else { return };
    let before = fs::metadata(device).unwrap();
    let cell = Cell::open(cells.path(), &driver.program, Some(device.to_owned())).unwrap().unwrap();
    assert_eq!(cell.check(&driver.program), Ok(()));
    let after = fs::metadata(device).unwrap();
    assert_eq!((after.uid(), after.mode()), (before.uid(), before.mode()), "the host's stays as it was");
    let elsewhere = Cell { device: Some("/dev/tartarus-none".into()), ..cell };
    assert!(elsewhere.check(&driver.program).unwrap_err().contains("No such file"));
}

/// What is in a folder and below it, but for processes, by its path from `at`.
fn files_below(dir: &Path, at: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = at.join(entry.file_name());
        if !entry.file_type().unwrap().is_dir() {
            found.insert(path);
        } else if path != Path::new("/proc") {
            found.extend(files_below(&entry.path(), &path));
        }
    }
    found
}

/// What the dynamic linker would load for a program.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let said = std::process::Command::new("ldd").arg(program).output().unwrap().stdout;
    String::from_utf8(said)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[tokio::test]
async fn it_sees_nothing_but_its_own_files() {
    // As a service has it; nothing may depend on another.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), true) else { return };
    let dir = tempfile::tempdir().unwrap();
    let vm = boot(&driver, dir.path()).await;
    let proc = PathBuf::from(format!("/proc/{}", vm.pid()));
    let entries = |path: PathBuf| {
        let mut names: Vec<String> =
            fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    };
    let top = entries(proc.join("root"));
    assert!(top.iter().all(|name| ["dev", "etc", "lib", "lib64", "proc", "usr"].contains(&name.as_str())), "{top:?}");
    assert_eq!(entries(proc.join("root/dev")), ["null"]);
    // Of files its libraries, and these.
    let files: BTreeSet<PathBuf> = files_below(&proc.join("root"), Path::new("/"));
    let modules = files.iter().filter(|file| file.to_str().unwrap().contains("/qemu/accel-"));
    let libraries: BTreeSet<PathBuf> = modules.chain([&driver.program]).flat_map(|file| libraries(file)).collect();
    let others: Vec<&str> =
        files.difference(&libraries).map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    let mut others: Vec<&str> = others.into_iter().filter(|name| !name.starts_with("accel-")).collect();
    others.sort_unstable();
    assert_eq!(others, ["bios-microvm.bin", "ld.so.cache", "linuxboot_dma.bin", "null", PROGRAM]);
    let mounts = fs::read_to_string(proc.join("mounts")).unwrap();
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
    let [root, processes] = &mounts[..] else { panic!("{mounts:?}") };
    let has = |mount: &[&str], option: &str| mount[3].split(',').any(|o| o == option);
    assert!(root[1] == "/" && ["ro", "nosuid", "nodev"].iter().all(|option| has(root, option)), "{root:?}");
    assert!(processes[1] == "/proc" && has(processes, "subset=pid") && has(processes, "nosuid"), "{processes:?}");
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    end(vm).await;
}

/// Whoever adds one to the list says why it is there.
#[tokio::test]
async fn its_descriptors_are_these() {
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), false) else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some(wire) = wire(libc::IFF_VNET_HDR) else { return };
    let networked = tempfile::tempdir().unwrap();
    let machine = Machine { network: Some(wire.network), ..machine(networked.path()) };
    let with = driver.boot(&machine, Deadlines::default()).await.unwrap();
    wait_for_letters(networked.path(), 3).await;
    let vm = boot(&driver, dir.path()).await;
    // Each disk as it keeps and as it uses it, the layer's for reading too; kernel and initramfs as they were handed over.
    let disks = [("base", 2), ("layer", 3), ("kernel", 1), ("initramfs", 1)];
    // Its listening ports; standard input, and its output to the supervisor.
    let links = [("socket", 2), ("null", 1), ("pipe", 2)];
    // By which its three loops wait: io_uring is refused to it.
    let own = [("eventfd", 5), ("eventpoll", 3), ("signalfd", 1)];
    assert_eq!(support::descriptors(vm.pid()), support::these(&[&disks, &links, &own]));
    // With a network its TAP, and no way to what that is in.
    assert_eq!(support::descriptors(with.pid()), support::these(&[&disks, &links, &own, &[("tun", 1)]]));
    end(vm).await;
    end(with).await;
}

#[tokio::test]
async fn a_kernel_that_filters_no_system_calls_starts_nothing() {
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), false) else { return };
    let driver = Qemu { supervisor: support::supervisor_without_seccomp(), ..driver };
    let dir = tempfile::tempdir().unwrap();
    let why = driver.boot(&machine(dir.path()), Deadlines::default()).await.err().unwrap().to_string();
    assert!(why.contains("its filter of system calls") && why.contains("not implemented"), "{why}");
    // Nor does `doctor` say otherwise to whoever makes no cells.
    assert_eq!(check_without_cell(&driver.program), Ok(()));
    let said = support::tried_without_seccomp(&driver.program);
    assert!(said.starts_with("Err") && said.contains(FILTER) && said.contains("not implemented"), "{said}");
}

#[tokio::test]
async fn the_limits_of_a_machine_are_those_of_its_group() {
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), true) else { return };
    let dir = tempfile::tempdir().unwrap();
    let vm = boot(&driver, dir.path()).await;
    let uid = status(Path::new(&format!("/proc/{}", vm.pid())))["Uid"].split_whitespace().next().unwrap().to_owned();
    let parent = driver.cell.as_ref().unwrap().groups.parent.clone();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts.lines().filter(|line| line.contains(" cgroup")).filter_map(|line| line.split(' ').nth(1));
    let groups: Vec<PathBuf> = points.map(|point| Path::new(point).join(&parent).join(&uid)).collect();
    let read = |file: &str| groups.iter().find_map(|group| fs::read_to_string(group.join(file)).ok());
    let numbers = |one: &str, two: &str| -> Vec<u64> {
        let text = read(one).or_else(|| read(two)).unwrap_or_else(|| panic!("no {one} in {groups:?}"));
        text.split_whitespace().map(|number| number.parse().unwrap()).collect()
    };
    let memory = machine(dir.path()).memory_mib;
    let bytes = numbers("memory.limit_in_bytes", "memory.max")[0];
    assert!((u64::from(memory) << 20..u64::from(memory + 160) << 20).contains(&bytes), "{bytes}");
    // One processor, and some of another for the hypervisor's own work.
    let quota = match read("cpu.cfs_period_us") {
        Some(period) => vec![numbers("cpu.cfs_quota_us", "")[0], period.trim().parse().unwrap()],
        None => numbers("", "cpu.max"),
    };
    assert!((quota[1]..=2 * quota[1]).contains(&quota[0]), "{quota:?}");
    assert!(numbers("pids.max", "")[0] < 128);
    end(vm).await;
}

/// Of a start, in pairs: medians, since a host that others use moves single ones by more.
#[tokio::test]
async fn a_cell_costs_at_most_ten_milliseconds() {
    let cells = tempfile::tempdir().unwrap();
    let Some(with) = qemu(cells.path(), true) else { return };
    let without = Qemu { cell: None, supervisor: support::supervisor(), ..with.clone() };
    let mut more = Vec::new();
    for round in 0..30 {
        let mut took = [0.0, 0.0];
        for one in [round % 2, 1 - round % 2] {
            let dir = tempfile::tempdir().unwrap();
            let begin = Instant::now();
            let vm = boot([&without, &with][one], dir.path()).await;
            took[one] = begin.elapsed().as_secs_f64() * 1000.0;
            end(vm).await;
        }
        more.push(took[1] - took[0]);
    }
    more.sort_by(f64::total_cmp);
    eprintln!("a cell costs {:.1} ms; middle half {:.1} .. {:.1}", more[15], more[7], more[22]);
    assert!(more[15] <= 10.0, "{more:.1?}");
}

/// In a mount namespace of this test's own thread, where one hierarchy cannot be written.
#[test]
fn control_groups_that_are_read_only_are_named() {
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), true) else { return };
    let cell = driver.cell.clone().unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    // Where the controller of memory is: by itself, or in the one hierarchy there is.
    let by_itself = mounts.lines().find(|line| line.contains(" cgroup rw") && line.contains("memory"));
    let line = by_itself.or_else(|| mounts.lines().find(|line| line.contains(" cgroup2 "))).unwrap();
    let point = line.split(' ').nth(1).unwrap().to_owned();
    // SAFETY: a system call on numbers; only this thread's view of mounts changes.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    rustix::mount::mount_bind(&point, &point).unwrap();
    let closed = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(&point, closed, "").unwrap();
    // Asked anew, nothing is even tried. Known before it was closed, what cannot be written is named.
    let why = tartarus_runtime::cell::Groups::find().unwrap_err();
    assert!(why.contains(&point) && why.contains("mounted read-only"), "{why}");
    let why = cell.check(&driver.program).unwrap_err();
    assert!(why.contains("its control group: ") && why.contains("Read-only file system"), "{why}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let why = runtime.block_on(driver.boot(&machine(dir.path()), Deadlines::default())).err().unwrap().to_string();
    assert!(why.contains("Read-only file system"), "{why}");
}

#[tokio::test]
async fn the_descriptors_of_a_restored_one_are_these() {
    let cells = tempfile::tempdir().unwrap();
    let Some(driver) = qemu(cells.path(), false) else { return };
    let subject = Subject { driver: &driver, machine };
    let (first, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (memory, _) = subject.snapshot(first.path()).await;
    let vm = subject.restore(&memory, first.path(), dir.path()).await;
    let _channel = vm.channel().await.unwrap();
    wait_for_letters(dir.path(), 1).await;
    // The memory as it was handed over and as it is mapped, the state no more; somebody is at its port.
    let restored = [("base", 2), ("layer", 3), ("memfd:base", 2), ("socket", 3), ("null", 1), ("pipe", 2)];
    let own = [("eventfd", 5), ("eventpoll", 3), ("signalfd", 1)];
    assert_eq!(support::descriptors(vm.pid()), support::these(&[&restored, &own]));
    end(vm).await;
}
