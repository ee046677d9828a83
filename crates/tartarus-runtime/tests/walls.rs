//! What a program finds that is started as a hypervisor is: a list that is the same on every host, and what becomes of
//! it when one layer of its cell is missing.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "tests may")]

mod support;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use support::{JAILED_PROBE, PROBE, probe};
use tartarus_runtime::cell::{Cell, Groups, Jail, Layer, Limits, Shared};
use tartarus_runtime::firecracker;
use tartarus_runtime::supervisor::{Hypervisor, Launch};

const LIMITS: Limits =
    Limits { cpu_percent: 100, cpu_weight: 100, memory_bytes: 256 << 20, threads: 40, file_bytes: 1 << 20 };

/// All that a hypervisor can reach. Whoever adds a line says why it must be there.
const LIST: &str = "\
CapInh 0000000000000000
CapPrm 0000000000000000
CapEff 0000000000000000
CapBnd 0000000000000000
CapAmb 0000000000000000
NoNewPrivs 1
Seccomp 2
Groups 
uid a cell's gid a cell's pid 1
other processes none
mount / ro,nosuid,nodev
mount /proc rw,nosuid,nodev,noexec,subset=pid
descriptor 0 /dev/null
descriptor 1 pipe
descriptor 2 pipe
file /dev
file /etc
file /lib
file /lib64
file /usr
/proc/sys/kernel/hostname no
/proc/sys/vm/overcommit_memory no
/proc/kcore no
/sys/kernel no
network links 1
user namespace no
raw socket no
netlink socket no
bpf no
perf events no
io_uring no
a key of the server's no
another program no
a neighbour's message queue no
the host's name no
threads bounded
control groups its own
";

/// What this process has that a hypervisor must not see: a descriptor, a message queue, a host name, a key.
fn bait() -> std::io::PipeReader {
    let (reader, _) = std::io::pipe().unwrap();
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::empty()).unwrap();
    assert!(reader.as_raw_fd() < 200);
    // SAFETY: system calls on numbers; the namespaces are those of this test's process from here on.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWIPC | libc::CLONE_NEWUTS), 0);
        assert!(libc::msgget(0x7a72_7461, libc::IPC_CREAT | 0o666) >= 0);
        assert_eq!(libc::sethostname(c"the-host".as_ptr(), 8), 0);
        assert_eq!(libc::setgroups(1, [1234].as_ptr()), 0);
        // A keyring that the probe would have as well, if it were not given an empty one.
        assert!(libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0) >= 0);
        let key = libc::syscall(libc::SYS_add_key, c"user".as_ptr(), c"secret".as_ptr(), c"x".as_ptr(), 1, -3);
        assert!(key >= 0);
    }
    reader
}

async fn list(cell: &Cell, without: &[Layer]) -> String {
    let cell = Cell { without: without.to_vec(), ..cell.clone() };
    let launch = Launch { limits: Some(LIMITS), ..probe::of(Some(cell), "list") };
    let (list, exit) = probe::launch(launch).await;
    assert_eq!(exit.status, "exit code 0", "{list}");
    list
}

#[tokio::test]
async fn a_hypervisor_reaches_this_and_each_layer_is_why() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can make cells");
    }
    let _bait = bait();
    let cells = tempfile::tempdir().unwrap();
    let cell = Cell::open(cells.path(), &std::env::current_exe().unwrap(), None).unwrap().unwrap();
    let whole = list(&cell, &[]).await;
    println!("{whole}");
    let unfiltered = list(&cell, &[Layer::SystemCalls]).await;
    let mut idle = Vec::new();
    for layer in Layer::ALL {
        // Without a filter, so that each shows what it refuses itself and not what the filter refuses before.
        let (with, less) = match layer {
            Layer::SystemCalls => (&whole, unfiltered.clone()),
            _ => (&unfiltered, list(&cell, &[Layer::SystemCalls, layer]).await),
        };
        if *with == less {
            idle.push(layer);
            continue;
        }
        let gained = less.lines().filter(|line| !with.lines().any(|l| l == *line));
        println!("without {layer:?}: {:?}", gained.collect::<Vec<_>>());
    }
    assert_eq!(idle, [], "layers that change nothing");
    assert_eq!(whole, LIST);
}

/// What Firecracker could reach if it put no filter on itself: system calls are refused by that alone, and which of them this
/// kernel has for everybody is not told here. Whoever adds a line says why it must be there.
const JAILED: &str = "\
CapInh 0000000000000000
CapPrm 0000000000000000
CapEff 0000000000000000
CapBnd 00000000082000c3
CapAmb 0000000000000000
NoNewPrivs 1
Seccomp 0
Groups 
uid a cell's gid a cell's pid 2
other processes none
mount / rw
mount /base ro,nosuid,nodev,noexec
mount /dev rw,nosuid,noexec
mount /proc rw,nosuid,nodev,noexec,subset=pid
descriptor 0 /dev/null
descriptor 1 pipe
descriptor 2 pipe
file /base
file /dev writable
file /dev/… writable
file /firecracker-probe.pid
file /lib
file /lib64
file /run writable
file /usr
/proc/sys/kernel/hostname no
/proc/sys/vm/overcommit_memory no
/proc/kcore no
/sys/kernel no
network links 2
raw socket no
a key of the server's no
a neighbour's message queue no
the host's name no
threads bounded
control groups its own
";
/// What a filter of system calls is for.
const FILTERED: [&str; 6] = ["user namespace", "netlink socket", "bpf", "perf events", "io_uring", "another program"];

/// In the jailer's place: it runs the program and does nothing else.
const NO_JAILER: &str = "#!/bin/sh
while [ \"$1\" != -- ]; do [ \"$1\" = --exec-file ] && program=$2; shift; done
shift
exec \"$program\" \"$@\"
";

/// A jail for this executable, of which all is made as the driver makes it.
struct Jailed {
    cell: Cell,
    dir: tempfile::TempDir,
}

impl Jailed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(JAILED_PROBE);
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::write(dir.path().join("base"), "a disk").unwrap();
        let cell = Cell::open(&dir.path().join("cells"), &program, None).unwrap().unwrap();
        Self { cell, dir }
    }

    async fn list(&self, jailer: &Path, without: &[Layer]) -> String {
        let (program, base) = (self.dir.path().join(JAILED_PROBE), self.dir.path().join("jail"));
        let root = Jail::root_of(&base, &program);
        let _ = fs::remove_dir_all(&base);
        for folder in ["run", "dev", "proc"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        // What it is linked to, which Firecracker is not.
        for folder in ["lib", "lib64", "usr"].map(|name| self.cell.root.join(name)).iter().filter(|f| f.exists()) {
            let copied = std::process::Command::new("cp").arg("-a").arg(folder).arg(&root).status().unwrap();
            assert!(copied.success());
        }
        let disk = Shared { path: self.dir.path().join("base"), name: "base".to_owned(), write: false };
        let jail = Jail {
            jailer: jailer.to_owned(),
            base,
            root,
            locks: self.cell.locks.clone(),
            groups: Groups::find().unwrap(),
            shared: vec![disk],
            without: without.to_vec(),
        };
        let argv = [program.to_str().unwrap(), PROBE, "list"].map(str::to_owned).to_vec();
        let hypervisor = Hypervisor::Firecracker(jail);
        let of = probe::of(None, "list");
        let (list, exit) =
            probe::launch(Launch { argv, hypervisor, filtered: false, limits: Some(LIMITS), ..of }).await;
        assert_eq!(exit.status, "exit code 0", "{list}");
        let kept = |line: &&str| !FILTERED.iter().any(|of| line.starts_with(of));
        list.lines().filter(kept).map(|line| format!("{line}\n")).collect()
    }
}

#[tokio::test]
async fn firecrackers_place_is_this_and_each_layer_around_its_jailer_is_why() {
    let Some(jailer) = firecracker::find().and_then(|program| firecracker::jailer(&program).ok()) else {
        return eprintln!("skipped: there is no Firecracker with a jailer, on the path or in TARTARUS_FIRECRACKER");
    };
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: Firecracker's jailer takes root");
    }
    if !Path::new("/dev/net/tun").exists() {
        return eprintln!("skipped: there is no /dev/net/tun");
    }
    let _bait = bait();
    let own = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let hosts = own();
    // Nothing of the host's network is changed by one that lacks its own.
    // SAFETY: a system call on a number; the namespace is that of this test's process from here on.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    let links = std::process::Command::new("ip")
        .args(["link", "add", "bait", "type", "veth", "peer", "name", "bait1"])
        .status()
        .unwrap();
    assert!(links.success());
    let jailed = Jailed::new();
    let whole = jailed.list(&jailer, &[]).await;
    println!("{whole}");
    let mut idle = Vec::new();
    for layer in Jail::LAYERS {
        // What is started from this thread is there too: one without a network of its own leaves a TAP where it is.
        assert_ne!(own(), hosts);
        let less = jailed.list(&jailer, &[layer]).await;
        let gained: Vec<&str> = less.lines().filter(|line| !whole.lines().any(|l| l == *line)).collect();
        println!("without {layer:?}: {gained:?}");
        if gained.is_empty() {
            idle.push(layer);
        }
    }
    assert_eq!(idle, [], "layers that change nothing");
    assert_eq!(whole, JAILED);
    let script: PathBuf = jailed.dir.path().join("no-jailer");
    fs::write(&script, NO_JAILER).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let bare = jailed.list(&script, &[]).await;
    assert!(bare.contains("uid 0 gid 0") && bare.contains("file /bin"), "without the jailer: {bare}");
}
