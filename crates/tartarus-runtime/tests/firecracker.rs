//! What is seen of a real Firecracker in its jail, from outside; and its faults.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::conformance::{LIMIT, Subject, assert_in_order, deadlines, end};
use support::tiny::{elf_machine, letters, wait_for_letters};
use support::wire::wire;
use support::{firecracker, namespaces, status};
use tartarus_runtime::cell::{FIRST_UID, UIDS};
use tartarus_runtime::firecracker::Firecracker;
use tartarus_runtime::{Adopted, Cause, Driver, Machine, Network, Restore, Vm};

fn subject(driver: &Firecracker) -> Subject<'_> {
    Subject { driver, machine: elf_machine }
}

fn proc(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

fn parent(pid: u32) -> u32 {
    status(&proc(pid))["PPid"].parse().unwrap()
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a machine is on its host, while it runs.
struct Traces {
    pids: [u32; 3],
    network: PathBuf,
    lock: PathBuf,
    dir: PathBuf,
}

impl Traces {
    fn of(vm: &dyn Vm, locks: &Path, dir: &Path) -> Self {
        let init = parent(vm.pid());
        let uid = status(&proc(vm.pid()))["Uid"].split_whitespace().next().unwrap().to_owned();
        let network = namespaces(&proc(vm.pid()))["net"].clone();
        Self { pids: [vm.pid(), init, parent(init)], network, lock: locks.join(uid), dir: dir.to_owned() }
    }

    async fn are_gone(&self) {
        for pid in self.pids {
            until("a process is left", || {
                !proc(pid).exists() || fs::read_to_string(proc(pid).join("stat")).is_ok_and(|s| s.contains(") Z "))
            })
            .await;
        }
        for entry in fs::read_dir("/proc").unwrap() {
            let network = fs::read_link(entry.unwrap().path().join("ns/net"));
            assert!(network.is_err() || network.unwrap() != self.network, "its network is left, and its TAP with it");
        }
        // Another test may have it by now, and gives it back.
        until("its user id is locked", || File::open(&self.lock).unwrap().try_lock().is_ok()).await;
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.dir.to_str().unwrap()), "{mounts}");
    }
}

#[tokio::test]
async fn a_hypervisor_is_alone_and_may_do_nothing() {
    let Some(driver) = firecracker().await else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let vms = [subject(&driver).boot(dirs[0].path()).await, subject(&driver).boot(dirs[1].path()).await];
    let mut uids = Vec::new();
    for vm in &vms {
        let proc = proc(vm.pid());
        for thread in fs::read_dir(proc.join("task")).unwrap() {
            let status = status(&thread.unwrap().path());
            let ids: Vec<u32> = status["Uid"].split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert!(ids.iter().all(|id| *id == ids[0] && (FIRST_UID..FIRST_UID + UIDS).contains(id)), "{ids:?}");
            assert_eq!(status["Gid"], status["Uid"]);
            assert_eq!(status["Groups"], "");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(status[set], "0000000000000000", "{set}");
            }
            // What the jailer took: CHOWN, DAC_OVERRIDE, SETGID, SETUID, SYS_ADMIN, MKNOD. With no new privileges no
            // program can gain it.
            assert_eq!(status["CapBnd"], "00000000082000c3");
            assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));
            uids.push(ids[0]);
        }
        let (theirs, ours) = (namespaces(&proc), namespaces(Path::new("/proc/self")));
        assert!(theirs.iter().all(|(name, place)| ours[name] != *place), "{theirs:?}");
    }
    assert_ne!(uids.first(), uids.last(), "neighbours");
    let (one, two) = (namespaces(&proc(vms[0].pid())), namespaces(&proc(vms[1].pid())));
    assert!(one.iter().all(|(name, place)| two[name] != *place), "{one:?}");
    // Who stands between has no descriptor and no capability.
    let init = proc(parent(vms[0].pid()));
    assert_eq!(fs::read_dir(init.join("fd")).unwrap().count(), 0);
    let status = status(&init);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    for vm in vms {
        end(&*vm).await;
    }
}

#[tokio::test]
async fn it_sees_nothing_but_its_own_files() {
    // As a service has it; nothing may depend on another.
    let Some(driver) = firecracker().await else { return };
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let dir = tempfile::tempdir().unwrap();
    let vm = subject(&driver).boot(dir.path()).await;
    let proc = proc(vm.pid());
    let entries = |path: PathBuf| {
        let mut names: Vec<String> =
            fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    };
    let root = proc.join("root");
    let program = driver.program.file_name().unwrap().to_str().unwrap();
    let pid_file = format!("{program}.pid");
    let mut expected =
        ["base", "config.json", "dev", program, &pid_file, "initramfs", "kernel", "layer", "metrics", "proc", "run"];
    expected.sort_unstable();
    assert_eq!(entries(root.clone()), expected);
    let devices = entries(root.join("dev"));
    assert!(
        devices.iter().all(|name| ["kvm", "net", "urandom", "userfaultfd"].contains(&name.as_str())),
        "{devices:?}"
    );
    assert_eq!(entries(root.join("run")), ["agent.sock", "api.sock"]);
    let mounts = fs::read_to_string(proc.join("mounts")).unwrap();
    let mounts: BTreeMap<&str, &str> = mounts
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[1], fields[3])
        })
        .collect();
    let has = |place: &str, wanted: &[&str]| {
        wanted.iter().all(|wanted| mounts[place].split(',').any(|option| option == *wanted))
    };
    assert_eq!(
        mounts.keys().copied().collect::<Vec<_>>(),
        ["/", "/base", "/dev", "/initramfs", "/kernel", "/layer", "/proc"]
    );
    for place in ["/base", "/initramfs", "/kernel"] {
        assert!(has(place, &["ro", "nosuid", "nodev", "noexec"]), "{mounts:?}");
    }
    assert!(has("/layer", &["rw", "nosuid", "nodev", "noexec"]) && has("/dev", &["nosuid", "noexec"]), "{mounts:?}");
    assert!(has("/proc", &["nosuid", "nodev", "noexec", "subset=pid"]), "{mounts:?}");
    end(&*vm).await;
}

/// Whoever adds one to the list says why it is there.
#[tokio::test]
async fn its_descriptors_are_these() {
    let Some(driver) = firecracker().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let vm = subject(&driver).boot(dir.path()).await;
    let mut found = support::descriptors(vm.pid());
    // How many of these there are is Firecracker's own affair: they lead nowhere.
    for own in ["eventfd", "timerfd", "eventpoll"] {
        assert!(found.remove(own).is_some_and(|count| count < 64), "{own}");
    }
    let expected = [
        ("base", 1),
        ("layer", 1),
        ("tun", 1),    // its card's TAP
        ("socket", 2), // its listening ports
        ("null", 1),   // standard input
        ("metrics", 1),
        ("pipe", 2), // its output to the supervisor
        ("kvm", 1),
        ("anon_inode:kvm-vm", 1),
        ("anon_inode:kvm-vcpu:0", 2),
    ];
    assert_eq!(found, support::these(&[&expected]));
    end(&*vm).await;
}

#[tokio::test]
async fn its_card_leads_nowhere() {
    let Some(driver) = firecracker().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let vm = subject(&driver).boot(dir.path()).await;
    let net = proc(vm.pid()).join("net");
    let devices = fs::read_to_string(net.join("dev")).unwrap();
    let devices: Vec<&str> = devices.lines().skip(2).map(|line| line.split(':').next().unwrap().trim()).collect();
    assert_eq!(devices, ["lo", "tap0"]);
    for file in ["if_inet6", "fib_trie"] {
        assert_eq!(fs::read_to_string(net.join(file)).unwrap_or_default(), "", "{file}");
    }
    let namespace = File::open(proc(vm.pid()).join("ns/net")).unwrap();
    // In a thread that ends: it stays where it goes.
    let flags = std::thread::spawn(move || {
        // SAFETY: system calls on numbers and an `ifreq` that lives until they return.
        unsafe {
            assert_eq!(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET), 0);
            let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
                *to = *from as libc::c_char;
            }
            assert_eq!(libc::ioctl(socket, libc::SIOCGIFFLAGS, &raw mut request), 0);
            libc::close(socket);
            i32::from(request.ifr_ifru.ifru_flags)
        }
    });
    assert_eq!(flags.join().unwrap() & libc::IFF_UP, 0, "it is up");
    end(&*vm).await;
}

/// The TAP of somebody else's namespace, left to whoever opens it by its name: booted, restored from a machine that had none,
/// and after each it is free again.
#[tokio::test]
async fn its_card_is_the_taps_of_the_network_it_is_given() {
    let (Some(driver), Some(mut wire)) = (firecracker().await, wire(0)) else { return };
    let subject = subject(&driver);
    let dirs: [tempfile::TempDir; 4] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let held = Machine { network: Some(wire.network.clone()), ..elf_machine(dirs[0].path()) };
    let refused = driver.boot(&held, deadlines()).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("opens the TAP of a network itself"), "{refused}");
    drop(held);
    let network = wire.left();
    let before = network_of(&network, &["addr", "show", "tap0"]);
    assert!(before.contains("NO-CARRIER") && before.contains("198.19.255.253/30"), "{before}");

    let seen = async |vm: &dyn Vm, dir: &Path| {
        wait_for_letters(dir, 3).await;
        assert_eq!(fs::metadata(proc(vm.pid()).join("ns/net")).unwrap().ino(), wire.inode);
        assert_eq!(support::descriptors(vm.pid()).get("tun"), Some(&1));
        let now = network_of(&network, &["addr", "show", "tap0"]);
        assert!(!now.contains("NO-CARRIER") && now.contains("198.19.255.253/30"), "{now}");
        let owner = network_of(&network, &["-d", "link", "show", "tap0"]);
        let uid = status(&proc(vm.pid()))["Uid"].split_whitespace().next().unwrap().to_owned();
        assert!(owner.contains(&format!("user {uid}")), "{owner}");
        assert_eq!(status(&proc(vm.pid()))["CapEff"], "0000000000000000");
    };
    let with = |dir: &Path| Machine { network: Some(network.clone()), ..elf_machine(dir) };
    let vm = driver.boot(&with(dirs[1].path()), deadlines()).await.unwrap();
    seen(&*vm, dirs[1].path()).await;
    end(&*vm).await;

    let (memory, _) = subject.snapshot(dirs[2].path()).await;
    let state = File::open(dirs[2].path().join("state")).unwrap().into();
    let from = Restore { memory, state };
    let vm = driver.restore(&with(dirs[3].path()), from, deadlines()).await.unwrap();
    // This guest listens nowhere; that a channel was asked for lets it go on.
    let _channel = tokio::time::timeout(Duration::from_millis(200), vm.channel()).await;
    seen(&*vm, dirs[3].path()).await;
    end(&*vm).await;
    until("its TAP is held", || network_of(&network, &["addr", "show", "tap0"]).contains("NO-CARRIER")).await;
}

/// What `ip` says in a network.
fn network_of(network: &Network, args: &[&str]) -> String {
    let namespace = format!("--net=/proc/{}/fd/{}", std::process::id(), network.namespace.as_raw_fd());
    let said = std::process::Command::new("nsenter").arg(namespace).arg("ip").args(args).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    String::from_utf8(said.stdout).unwrap()
}

#[tokio::test]
async fn it_tells_what_it_counted() {
    let Some(driver) = firecracker().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let vm = subject(&driver).boot(dir.path()).await;
    for _ in 0..2 {
        let metrics = driver.metrics(dir.path()).await.unwrap();
        assert!(metrics["uart"]["write_count"].as_u64().is_some_and(|count| count > 0), "{metrics}");
        wait_for_letters(dir.path(), letters(dir.path()).len() + 1).await;
    }
    end(&*vm).await;
}

#[tokio::test]
async fn what_was_killed_leaves_nothing() {
    let Some(driver) = firecracker().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let vm = subject(&driver).boot(dir.path()).await;
    let traces = Traces::of(&*vm, &driver.locks, dir.path());
    end(&*vm).await;
    traces.are_gone().await;

    // By somebody else.
    let vm = subject(&driver).boot(dir.path()).await;
    let traces = Traces::of(&*vm, &driver.locks, dir.path());
    kill(vm.pid());
    let exit = tokio::time::timeout(LIMIT, vm.wait()).await.unwrap();
    assert_eq!((exit.cause, exit.status.as_str()), (Cause::Itself, "killed by SIGKILL"));
    traces.are_gone().await;
}

#[tokio::test]
async fn a_supervisor_that_is_killed_takes_its_hypervisor_along() {
    let Some(mut driver) = firecracker().await else { return };
    // Of its own, as its groups have no names but those of user ids.
    let locks = tempfile::tempdir().unwrap();
    driver.locks = locks.path().to_owned();
    driver.groups.parent = format!("tartarus-test-firecracker-{}", std::process::id());
    let dir = tempfile::tempdir().unwrap();
    let vm = subject(&driver).boot(dir.path()).await;
    let traces = Traces::of(&*vm, &driver.locks, dir.path());
    kill(traces.pids[2]);
    assert_eq!(tokio::time::timeout(LIMIT, vm.wait()).await.unwrap().cause, Cause::SupervisorDied);
    traces.are_gone().await;
    // All but its control group, which nobody was there to remove.
    let left = || {
        fs::read_to_string("/proc/self/mounts").unwrap().lines().any(|mount| {
            let point = mount.split(' ').nth(1).unwrap();
            Path::new(point).join(&driver.groups.parent).exists()
        })
    };
    assert!(left());
    driver.groups.remove_left_by(&driver.locks).unwrap();
    assert!(!left());
}

#[tokio::test]
async fn a_machine_outlives_the_agent_that_booted_it() {
    let Some(driver) = firecracker().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let agent = std::env::current_exe().unwrap();
    let status = tokio::process::Command::new(agent).arg(support::BOOTER).arg(dir.path()).status().await.unwrap();
    assert!(status.code().is_none(), "{status}");
    let Adopted::Running(vm) = driver.adopt(dir.path()).await.unwrap() else { panic!("not adopted") };
    let traces = Traces::of(&*vm, &driver.locks, dir.path());
    vm.pause().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let frozen = letters(dir.path());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(letters(dir.path()), frozen);
    vm.resume().await.unwrap();
    assert_in_order(&wait_for_letters(dir.path(), frozen.len() + 2).await);
    end(&*vm).await;
    traces.are_gone().await;
}

/// Who takes over a restored machine opens it, if it was not; one that was paused stays so.
#[tokio::test]
async fn a_restored_machine_is_opened_once() {
    let Some(driver) = firecracker().await else { return };
    let (first, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (memory, next) = subject(&driver).snapshot(first.path()).await;
    drop(subject(&driver).restore(&memory, first.path(), dir.path()).await);
    let Adopted::Running(vm) = driver.adopt(dir.path()).await.unwrap() else { panic!("not adopted") };
    assert!(vm.is_paused().await.unwrap());
    let open = || tokio::time::timeout(Duration::from_millis(200), vm.channel());
    assert!(open().await.is_err(), "this guest listens nowhere");
    assert_eq!(wait_for_letters(dir.path(), 2).await.chars().next(), Some(next));
    vm.pause().await.unwrap();
    let Adopted::Running(vm) = driver.adopt(dir.path()).await.unwrap() else { panic!("not adopted") };
    assert!(tokio::time::timeout(Duration::from_millis(200), vm.channel()).await.is_err());
    assert!(vm.is_paused().await.unwrap());
    end(&*vm).await;
}

#[tokio::test]
async fn one_that_dies_before_it_goes_on_has_ended() {
    let Some(driver) = firecracker().await else { return };
    let (first, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (memory, _) = subject(&driver).snapshot(first.path()).await;
    let vm = subject(&driver).restore(&memory, first.path(), dir.path()).await;
    let traces = Traces::of(&*vm, &driver.locks, dir.path());
    kill(vm.pid());
    let channel = tokio::time::timeout(LIMIT, vm.channel()).await.unwrap();
    assert_eq!(channel.err().unwrap().to_string(), "the hypervisor has ended");
    assert_eq!(tokio::time::timeout(LIMIT, vm.wait()).await.unwrap().cause, Cause::Itself);
    traces.are_gone().await;
}
