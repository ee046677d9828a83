//! A program that is started as a hypervisor is, and tells what it can reach or tries to use the host up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tartarus_runtime::cell::Cell;
use tartarus_runtime::supervisor::{Hypervisor, Launch, SupervisedVm};
use tartarus_runtime::{Deadlines, Vm, VmExit};

/// Most threads that are tried.
const THREADS: usize = 300;
/// Most memory that is tried, MiB.
const MEMORY: usize = 1024;

/// Starts this executable as a hypervisor would be, and gives what it put out and how it ended.
pub(crate) async fn launch(launch: Launch) -> (String, VmExit) {
    // Of its own: a supervisor tells of the end before it is gone.
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let vm = SupervisedVm::launch(&super::supervisor(), dir, &launch).await.unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(40), vm.wait()).await.unwrap();
    (fs::read_to_string(dir.join("console.log")).unwrap(), exit)
}

/// The launch of a probe that does `what`.
pub(crate) fn of(cell: Option<Cell>, what: &str) -> Launch {
    let program = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    let deadlines = Deadlines { wall_ms: Some(30_000), ..Deadlines::default() };
    let argv = vec![program, super::PROBE.to_owned(), what.to_owned()];
    let (env, sockets, fds, files) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (hypervisor, limits) = (Hypervisor::Qemu, None);
    Launch { argv, env, sockets, fds, files, network: None, cell, hypervisor, filtered: true, limits, deadlines }
}

pub(crate) fn main(what: &Path) -> i32 {
    match what.to_str().unwrap() {
        "spin" => spin(),
        "threads" => println!("{}", threads()),
        "memory" => memory(),
        "list" => list(),
        "wait" => std::thread::sleep(Duration::from_secs(30)),
        _ => return 2,
    }
    0
}

/// Two threads that want a processor each, for a second of the clock; prints what they got, in ms.
fn spin() {
    let end = Instant::now() + Duration::from_secs(1);
    let turn = move || while Instant::now() < end {};
    let other = std::thread::spawn(turn);
    turn();
    other.join().unwrap();
    // SAFETY: it is plain numbers, which the kernel fills in.
    let used = unsafe {
        let mut used = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut used);
        used
    };
    let ms = |time: libc::timeval| time.tv_sec * 1000 + time.tv_usec / 1000;
    println!("{}", ms(used.ru_utime) + ms(used.ru_stime));
}

/// How many threads it can have beside its first.
fn threads() -> usize {
    let gate = std::sync::Arc::new(std::sync::Barrier::new(THREADS + 1));
    for number in 0..THREADS {
        let gate = gate.clone();
        let made = std::thread::Builder::new().stack_size(65_536).spawn(move || gate.wait());
        if made.is_err() {
            return number;
        }
    }
    THREADS
}

/// Writes to more and more memory; prints each MiB.
fn memory() {
    let mut all = Vec::new();
    for mib in 1..=MEMORY {
        all.push(vec![1_u8; 1 << 20]);
        println!("{mib}");
        let _ = io::stdout().flush();
    }
}

/// Prints what it is and what it can reach, in lines that are the same on every host and for every user id.
fn list() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let status: BTreeMap<&str, &str> =
        status.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k, v.trim())).collect();
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups"] {
        println!("{name} {}", status.get(name).unwrap_or(&"?"));
    }
    // SAFETY: they have no preconditions.
    let (uid, gid, pid) = unsafe { (libc::getuid(), libc::getgid(), libc::getpid()) };
    let of_cells =
        |id: u32| if id >= tartarus_runtime::cell::FIRST_UID { "a cell's".to_owned() } else { id.to_string() };
    println!(
        "uid {} gid {} pid {}",
        of_cells(uid),
        of_cells(gid),
        if pid < 10 { pid.to_string() } else { "many".into() }
    );
    let others = fs::read_dir("/proc").map_or(0, |all| {
        let numbers = all.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        numbers.filter(|number| *number != pid).count()
    });
    println!("other processes {}", if others > 0 { "seen" } else { "none" });
    for line in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().take(8) {
        let fields: Vec<&str> = line.split(' ').collect();
        let kept = fields[3].split(',').filter(|o| ["ro", "rw", "nosuid", "nodev", "noexec", "subset=pid"].contains(o));
        println!("mount {} {}", fields[1], kept.collect::<Vec<_>>().join(","));
    }
    for fd in 0..256 {
        if let Ok(target) = fs::read_link(format!("/proc/self/fd/{fd}")) {
            let target = target.to_string_lossy().into_owned();
            println!("descriptor {fd} {}", target.split(":[").next().unwrap_or(&target));
        }
    }
    let own = PathBuf::from(std::env::args().next().unwrap());
    let mut found = BTreeSet::new();
    walk(Path::new("/"), 0, &own, &mut found);
    for line in found.iter().take(60) {
        println!("{line}");
    }
    for (name, value) in ["/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/kcore", "/sys/kernel"]
        .map(|path| (path, access(path)))
    {
        println!("{name} {value}");
    }
    reach();
}

/// What of the file system it sees, to a depth; what it may write is marked.
fn walk(dir: &Path, depth: usize, own: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // Of its own libraries each host has others.
        if path.starts_with("/proc") || own.starts_with(&path) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < 1 {
            walk(&path, depth + 1, own, found);
        }
        let writable = rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).is_ok();
        if depth == 0 || writable {
            let name = if depth == 0 { path.display().to_string() } else { format!("{}/…", dir.display()) };
            found.insert(format!("file {name}{}", if writable { " writable" } else { "" }));
        }
    }
}

fn access(path: &str) -> &'static str {
    use rustix::fs::{Access, access};
    match (access(path, Access::WRITE_OK), access(path, Access::READ_OK)) {
        (Ok(()), _) => "writable",
        (_, Ok(())) => "readable",
        _ => "no",
    }
}

/// What it can do to others and to the host, by trying.
fn reach() {
    let tells = |what: &str, did: bool| println!("{what} {}", if did { "yes" } else { "no" });
    let links = fs::read_to_string("/proc/self/net/dev").unwrap_or_default().lines().count().saturating_sub(2);
    println!("network links {links}");
    // SAFETY: system calls on numbers and on constant strings; what they make ends with this process.
    unsafe {
        tells("user namespace", libc::unshare(libc::CLONE_NEWUSER) == 0);
        tells("raw socket", libc::socket(libc::AF_INET, libc::SOCK_RAW, 1) >= 0);
        tells("netlink socket", libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0) >= 0);
        tells("bpf", libc::syscall(libc::SYS_bpf, 0, 0, 0) >= 0 || *libc::__errno_location() == libc::EINVAL);
        tells(
            "perf events",
            libc::syscall(libc::SYS_perf_event_open, 0, 0, -1, -1, 0) >= 0 || *libc::__errno_location() == libc::EFAULT,
        );
        tells(
            "io_uring",
            libc::syscall(libc::SYS_io_uring_setup, 0, 0) >= 0 || *libc::__errno_location() == libc::EFAULT,
        );
        let found = libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SEARCH, -3, c"user".as_ptr(), c"secret".as_ptr(), 0);
        tells("a key of the server's", found >= 0);
        tells("another program", exec());
        let message = libc::msgget(0x7a72_7461, 0);
        tells("a neighbour's message queue", message >= 0);
        let mut name = std::mem::zeroed::<libc::utsname>();
        libc::uname(&raw mut name);
        let ours = std::ffi::CStr::from_ptr(name.nodename.as_ptr()).to_bytes() == b"the-host";
        tells("the host's name", ours);
    }
    println!("threads {}", if threads() < THREADS { "bounded" } else { "unbounded" });
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let roots = groups.lines().all(|line| line.ends_with(":/"));
    println!("control groups {}", if roots { "its own" } else { "among others" });
}

/// Whether it can start a program: itself, which then does nothing.
fn exec() -> bool {
    let own = std::env::args().next().unwrap();
    std::process::Command::new(own).args([super::PROBE, "nothing"]).status().is_ok()
}
