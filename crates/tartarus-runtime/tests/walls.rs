//! What a program finds that is started as a hypervisor is: a list that is the same on every host, and what becomes of
//! it when one layer of its cell is missing.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "tests may")]

mod support;

use std::os::fd::AsRawFd;

use support::probe;
use tartarus_runtime::cell::{Cell, Layer, Limits};
use tartarus_runtime::supervisor::Launch;

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
