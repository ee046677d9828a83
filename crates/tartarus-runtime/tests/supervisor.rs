//! Descriptors through the supervisor, and a real QEMU that is given nonsense.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may")]

mod support;

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tartarus_runtime::cell::Cell;
use tartarus_runtime::qemu::{self, Accel, Qemu};
use tartarus_runtime::supervisor::{Hypervisor, Launch, SupervisedVm};
use tartarus_runtime::{Cause, Deadlines, Driver, Restore, Vm};

use support::tiny::{MIB, machine};

const LIMIT: Duration = Duration::from_secs(30);

fn deadlines() -> Deadlines {
    // Should a test die, its machines do not outlive it for long.
    Deadlines { wall_ms: Some(60_000), ..Deadlines::default() }
}

fn memfd_with(text: &str) -> OwnedFd {
    let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file.into()
}

/// A descriptor under a number of our choice, with close-on-exec.
fn at(number: RawFd, fd: &OwnedFd) -> OwnedFd {
    // SAFETY: nothing in this test uses that number.
    let made = unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) };
    assert_eq!(made, number);
    // SAFETY: it was just made.
    unsafe { OwnedFd::from_raw_fd(made) }
}

fn launch(script: &str, fds: Vec<(i32, i32)>) -> Launch {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Launch {
        env: Vec::new(),
        argv,
        sockets: vec![("agent.sock".to_owned(), 100), ("qmp.sock".to_owned(), 101)],
        fds,
        files: Vec::new(),
        network: None,
        cell: None,
        hypervisor: Hypervisor::Qemu,
        filtered: false,
        limits: None,
        deadlines: deadlines(),
    }
}

#[tokio::test]
async fn descriptors_reach_the_hypervisor_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (memfd_with("the memory"), memfd_with("the state"));
    // The very numbers that the hypervisor is to find others under, crosswise; and one that must not be inherited.
    let (one, two, foreign) = (at(103, &one), at(100, &two), at(150, &one));
    let list = r#"for f in /proc/self/fd/*; do echo "${f##*/}=$(readlink $f)"; done; cat /proc/self/fd/102; echo; cat /proc/self/fd/103; echo; exec sleep 0.2"#;
    let fds = vec![(one.as_raw_fd(), 102), (two.as_raw_fd(), 103)];
    let vm = SupervisedVm::launch(&support::supervisor(), dir.path(), &launch(list, fds)).await.unwrap();
    let exit = tokio::time::timeout(LIMIT, vm.wait()).await.unwrap();
    assert_eq!(exit.cause, Cause::Itself);
    let console = std::fs::read_to_string(dir.path().join("console.log")).unwrap();
    let is = |fd: &str, what: &str| console.lines().any(|l| l.starts_with(&format!("{fd}={what}")));
    assert!(is("100", "socket:") && is("101", "socket:"), "{console}");
    assert!(is("102", "/memfd:test") && is("103", "/memfd:test"), "{console}");
    assert!(console.contains("\nthe memory\nthe state\n"), "{console}");
    let numbers: Vec<i32> = console.lines().filter_map(|l| l.split_once('=')?.0.parse().ok()).collect();
    let others: Vec<&i32> = numbers.iter().filter(|n| **n > 2 && !(100..=103).contains(*n)).collect();
    // The shell itself has its script's directory listing open, perhaps, but below ten.
    assert!(others.iter().all(|n| **n < 12), "{console}");
    // In this process they are what they were: not inherited by any other program.
    for fd in [&one, &two, &foreign] {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[tokio::test]
async fn a_supervisor_does_not_keep_what_it_passes_on() {
    let dir = tempfile::tempdir().unwrap();
    let memory = memfd_with("the memory");
    let fds = vec![(memory.as_raw_fd(), 102)];
    let script = "exec sleep 60";
    let vm = SupervisedVm::launch(&support::supervisor(), dir.path(), &launch(script, fds)).await.unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", vm.pid())).unwrap();
    let supervisor = stat.rsplit(' ').nth(48).unwrap().to_owned();
    let open = std::fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap();
    let open: Vec<_> = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    assert!(!open.is_empty() && !open.iter().any(|l| l.to_string_lossy().contains("memfd:")), "{open:?}");
    vm.kill().await;
    assert_eq!(tokio::time::timeout(LIMIT, vm.wait()).await.unwrap().cause, Cause::Ordered);
}

#[tokio::test]
async fn a_hypervisor_that_ends_at_once_has_ended_and_says_how() {
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        // Of an earlier machine in this folder.
        std::fs::write(dir.path().join("exit.json"), "{}").unwrap();
        let launch = launch("echo no; exit 3", Vec::new());
        let vm = SupervisedVm::launch(&support::supervisor(), dir.path(), &launch).await.unwrap();
        let exit = tokio::time::timeout(LIMIT, vm.wait()).await.unwrap();
        assert_eq!((exit.cause, exit.status.as_str(), exit.console.as_str()), (Cause::Itself, "exit code 3", "no"));
        vm.kill().await;
    }
}

#[tokio::test]
async fn a_descriptor_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for fds in [vec![(900, 102)], vec![(1, 102)]] {
        let launched = SupervisedVm::launch(&support::supervisor(), dir.path(), &launch("true", fds)).await;
        assert!(launched.is_err());
    }
}

#[tokio::test]
async fn a_state_that_is_none_ends_the_hypervisor() {
    let Some(program) = qemu::find() else {
        eprintln!("skipped: {} is not installed", qemu::PROGRAM);
        return;
    };
    let accel = Accel::Tcg { tsc_khz: 2_000_000 };
    let cells = tempfile::tempdir().unwrap();
    let cell = Cell::open(cells.path(), &program, None).unwrap();
    let driver = Qemu { program, accel, build: String::new(), supervisor: support::supervisor(), cell };
    let dir = tempfile::tempdir().unwrap();
    let memory = File::from(memfd_create("base", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    memory.set_len(u64::from(MIB) << 20).unwrap();
    let from = Restore { memory: Arc::new(memory.into()), state: memfd_with("no state of devices") };
    let vm = driver.restore(&machine(dir.path()), from, deadlines()).await.unwrap();
    let _channel = vm.channel().await.unwrap();
    let exit = tokio::time::timeout(LIMIT, vm.wait()).await.unwrap();
    assert_eq!(exit.cause, Cause::Itself);
    assert!(exit.status != "exit code 0" && !exit.console.is_empty(), "{exit:?}");
}
