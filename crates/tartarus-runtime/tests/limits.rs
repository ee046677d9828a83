//! What a hypervisor in its cell can use up, tried by a program in its place.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::probe;
use tartarus_runtime::cell::{Cell, FIRST_UID, Groups, Layer, Limits};
use tartarus_runtime::qemu::{self, Accel, Qemu};
use tartarus_runtime::supervisor::{Launch, SupervisedVm};
use tartarus_runtime::{Cause, Deadlines, Driver, Layer as Disk, Machine, Vm};

/// Set where these tests run inside of a guest.
const IN_GUEST: &str = "TARTARUS_TEST_IN_GUEST";

const LIMITS: Limits =
    Limits { cpu_percent: 50, cpu_weight: 100, memory_bytes: 64 << 20, threads: 40, file_bytes: 1 << 20 };

fn cell(dir: &Path) -> Option<Cell> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make cells");
        return None;
    }
    if std::env::var_os(IN_GUEST).is_some() {
        // Nothing of QEMU is there, and all that is there is this test.
        let without = vec![Layer::Files, Layer::ReadOnly, Layer::Processes];
        let (root, locks, groups) = ("/".into(), dir.join("locks"), Groups::find().unwrap());
        return Some(Cell { root, locks, device: None, groups, without });
    }
    Some(Cell::open(dir, &std::env::current_exe().unwrap(), None).unwrap().unwrap())
}

fn limited(cell: &Cell, what: &str) -> Launch {
    Launch { limits: Some(LIMITS), ..probe::of(Some(cell.clone()), what) }
}

/// The folders of groups below `parent`, in all hierarchies.
fn groups(parent: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts
        .lines()
        .filter(|l| l.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")))
        .filter_map(|l| l.split(' ').nth(1));
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
    let cells = tempfile::tempdir().unwrap();
    let Some(cell) = cell(cells.path()) else { return };
    let (free, _) = probe::launch(probe::of(Some(cell.clone()), "spin")).await;
    let (bound, _) = probe::launch(limited(&cell, "spin")).await;
    let (free, bound): (u64, u64) = (free.trim().parse().unwrap(), bound.trim().parse().unwrap());
    // Others may want the processors as well, so it may get less.
    assert!(bound < 700 && bound < free, "{bound} ms of processor time in a second, 500 are allowed; {free} without");
}

#[tokio::test]
async fn memory_is_bounded_and_who_uses_it_up_is_told() {
    let cells = tempfile::tempdir().unwrap();
    let Some(cell) = cell(cells.path()) else { return };
    let (said, exit) = probe::launch(limited(&cell, "memory")).await;
    let reached: u64 = said.lines().last().unwrap().parse().unwrap();
    assert!((32..64).contains(&reached), "{reached} MiB of 64");
    assert_eq!(exit.cause, Cause::Itself);
    assert_eq!(exit.status, "killed by SIGKILL: it used up the memory that its cell may use");
}

#[tokio::test]
async fn threads_are_bounded() {
    let cells = tempfile::tempdir().unwrap();
    let Some(cell) = cell(cells.path()) else { return };
    let (said, _) = probe::launch(limited(&cell, "threads")).await;
    assert_eq!(said.trim(), "39", "beside its first");
}

#[tokio::test]
async fn a_group_goes_with_its_hypervisor_also_when_the_supervisor_is_killed() {
    let [cells, dir, other, locks] = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let Some(mut cell) = cell(cells.path()) else { return };
    // Of its own, as its groups have no names but those of user ids.
    cell.locks = locks.path().to_owned();
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

    let vm = SupervisedVm::launch(&support::supervisor(), other.path(), &launch).await.unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", vm.pid())).unwrap();
    let parent: i32 = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    // SAFETY: a system call on numbers; it is the supervisor that was just started.
    unsafe { libc::kill(parent, libc::SIGKILL) };
    tokio::time::timeout(Duration::from_secs(10), vm.wait()).await.unwrap();
    assert!(own() > 0, "nobody is left to remove them");
    // Who owns it by the lock is asked, not who is in it.
    let owner = lock(&cell.locks, &FIRST_UID.to_string());
    cell.groups.remove_left_by(&cell.locks).unwrap();
    assert!(own() > 0);
    drop(owner);
    cell.groups.remove_left_by(&cell.locks).unwrap();
    assert_eq!(own(), 0);
    let left = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().any(|e| e.path().join(&cell.groups.parent).exists());
    assert!(!left, "the parent of all of them");
}

/// A host like this one may have no controller in version 2; the kernel of our guests has them all there. So these tests run
/// in a guest as well.
#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_holds_in_version_2() {
    if std::env::var_os(IN_GUEST).is_some() {
        return;
    }
    let (Some(tar), Some(program)) = (std::env::var_os("TARTARUS_TEST_KERNEL_TAR"), qemu::find()) else {
        return eprintln!("skipped: it takes QEMU and a kernel package (TARTARUS_TEST_KERNEL_TAR)");
    };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    guest(dir.path(), Path::new(&tar));
    for name in ["base", "layer"] {
        fs::write(file(name), [0; 65_536]).unwrap();
    }
    let (kernel, initramfs, base) = (file("vmlinuz"), file("initramfs"), file("base"));
    let layer = Disk::raw(file("layer"));
    let machine =
        Machine { dir: dir.path().to_owned(), cpus: 1, memory_mib: 512, kernel, initramfs, base, layer, network: None };
    let khz = tartarus_runtime::host::measure_tsc().khz;
    let (accel, build, supervisor) = (Accel::Tcg { tsc_khz: khz }, String::new(), support::supervisor());
    let driver = Qemu { program, accel, build, supervisor, cell: None };
    let deadlines = Deadlines { wall_ms: Some(120_000), ..Deadlines::default() };
    let vm = driver.boot(&machine, deadlines).await.unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(150), vm.wait()).await.unwrap();
    let console = fs::read_to_string(file("console.log")).unwrap();
    assert!(console.contains("cgroup2 only") && console.contains("test result: ok. 5 passed"), "{exit:?}\n{console}");
}

/// A kernel, and an initramfs of busybox, this executable, what it is linked with, and a script that runs it.
fn guest(dir: &Path, tar: &Path) {
    let script = r#"
set -e
mkdir -p "$D/root/bin" "$D/root/proc" "$D/root/sys" "$D/root/tmp" "$D/root/dev" "$D/root/run" "$D/root/etc"
tar -xOf "$TAR" --wildcards './boot/vmlinuz-*' > "$D/vmlinuz"
chmod 0444 "$D/vmlinuz"
cp /bin/busybox "$D/root/bin/busybox"
for library in $(ldd "$EXE" | grep -o '/[^ ]*'); do
    mkdir -p "$D/root$(dirname "$library")"
    cp -L "$library" "$D/root$library"
done
strip -o "$D/root/limits" "$EXE"
cat > "$D/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin TARTARUS_TEST_IN_GUEST=1
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mount -t cgroup2 none /sys/fs/cgroup
[ -d /sys/fs/cgroup/memory ] || echo cgroup2 only: $(cat /sys/fs/cgroup/cgroup.controllers)
/limits --test-threads 1
poweroff -f
INIT
chmod 0755 "$D/root/init"
cd "$D/root" && find . | cpio --quiet -o -H newc > "$D/initramfs"
chmod 0444 "$D/initramfs"
"#;
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).env("D", dir).env("TAR", tar).env("EXE", std::env::current_exe().unwrap());
    let made = command.output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

fn lock(locks: &Path, name: &str) -> fs::File {
    fs::create_dir_all(locks).unwrap();
    let file = fs::File::create(locks.join(name)).unwrap();
    file.lock().unwrap();
    file
}
