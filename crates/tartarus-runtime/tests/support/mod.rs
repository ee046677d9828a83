//! The test executable is also the programs that the tests start: before its own `main` it looks whether it was started
//! as one of them. So no second binary has to be built and found.

#![allow(
    dead_code,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "each test crate uses some of it; roles print what they find"
)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};

use tartarus_runtime::cell::Cell;
use tartarus_runtime::firecracker::{self, Firecracker};
use tartarus_runtime::keeper;
use tartarus_runtime::qemu::{self, Accel, Qemu};
use tartarus_runtime::supervisor::{self, Program};

pub(crate) mod conformance;
pub(crate) mod probe;
pub(crate) mod roles;
pub(crate) mod tiny;
pub(crate) mod wire;

/// The first argument that makes this executable a supervisor, or something else.
const SUPERVISOR: &str = "be-a-supervisor";
const KEEPER: &str = "be-a-keeper";
/// An agent that loads bases and is killed. Its folder is the argument.
pub(crate) const AGENT: &str = "be-an-agent";
/// An agent that boots a machine and is killed. Its folder is the argument.
pub(crate) const BOOTER: &str = "be-a-booter";
/// Another user who was given sealed memory. Its descriptor is the argument.
pub(crate) const INTRUDER: &str = "be-an-intruder";
/// Another user who speaks to a keeper. Its folder is the argument.
pub(crate) const STRANGER: &str = "be-a-stranger";
/// A supervisor on a machine whose kernel filters no system calls.
const UNFILTERED: &str = "be-a-supervisor-without-seccomp";
const UNFILTERED_TRY: &str = "try-without-seccomp";
/// A program in a hypervisor's place. The argument is what it does.
pub(crate) const PROBE: &str = "be-a-probe";
/// The same in Firecracker's, by its name: the jailer runs no other, and has arguments of its own before ours.
pub(crate) const JAILED_PROBE: &str = "firecracker-probe";

#[used]
// SAFETY: the loader calls what is listed there with these arguments, once, before `main`.
#[unsafe(link_section = ".init_array")]
static ROLE: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = role;

extern "C" fn role(argc: c_int, argv: *const *const c_char, _: *const *const c_char) {
    let argument = |index: usize| {
        // SAFETY: the arguments of this process, `argc` of them, valid for ever.
        (index < argc as usize).then(|| unsafe { CStr::from_ptr(*argv.add(index)) }.to_str().ok()).flatten()
    };
    let jailed = argument(0).is_some_and(|name| name.ends_with(JAILED_PROBE));
    let first = if jailed { argc as usize - 2 } else { 1 };
    let (Some(role), Some(dir)) = (argument(first), argument(first + 1)) else { return };
    let main = match role {
        SUPERVISOR => supervisor::main,
        KEEPER => keeper::main,
        AGENT => roles::agent,
        BOOTER => roles::booter,
        INTRUDER => roles::intruder,
        STRANGER => roles::stranger,
        PROBE => probe::main,
        UNFILTERED => roles::without_seccomp,
        UNFILTERED_TRY => roles::tries_without_seccomp,
        _ => return,
    };
    // SAFETY: as Rust's own start does: a client that has gone is an error, not the end.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    std::process::exit(main(Path::new(dir)));
}

fn program(role: &str) -> Program {
    Program(vec![std::env::current_exe().unwrap(), PathBuf::from(role)])
}

/// This executable as a supervisor.
pub(crate) fn supervisor() -> Program {
    program(SUPERVISOR)
}

/// The same where the kernel filters no system calls.
pub(crate) fn supervisor_without_seccomp() -> Program {
    program(UNFILTERED)
}

/// What a try of `hypervisor` says there to an ordinary user.
pub(crate) fn tried_without_seccomp(hypervisor: &Path) -> String {
    let Program(words) = program(UNFILTERED_TRY);
    let said = std::process::Command::new(&words[0]).arg(&words[1]).arg(hypervisor).output().unwrap();
    String::from_utf8(said.stdout).unwrap()
}

/// What kinds of descriptors a process has, and how many of each: by the last part of a file's name.
pub(crate) fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap().to_string_lossy().into_owned();
        let target = target.trim_end_matches(" (deleted)");
        let anonymous = target.strip_prefix("anon_inode:[").map(|name| name.trim_end_matches(']'));
        let other = target.split_once(":[").map_or(target.rsplit('/').next(), |(kind, _)| Some(kind));
        *found.entry(anonymous.or(other).unwrap().to_owned()).or_default() += 1;
    }
    found
}

/// The fields of a process's or thread's `status`.
pub(crate) fn status(of: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(of.join("status")).unwrap();
    text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect()
}

/// The namespaces that a process is in.
pub(crate) fn namespaces(of: &Path) -> BTreeMap<&'static str, PathBuf> {
    ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
        .map(|name| (name, std::fs::read_link(of.join("ns").join(name)).unwrap()))
        .into()
}

/// A list of descriptors as a test writes it.
pub(crate) fn these(parts: &[&[(&str, usize)]]) -> BTreeMap<String, usize> {
    parts.concat().into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect()
}

/// This executable as a keeper.
pub(crate) fn keeper() -> Program {
    program(KEEPER)
}

/// QEMU in a cell, if it is there and this user can make one; with `root`, only then.
pub(crate) fn qemu(cells: &Path, root: bool) -> Option<Qemu> {
    let Some(program) = qemu::find() else {
        eprintln!("skipped: {} is not installed", qemu::PROGRAM);
        return None;
    };
    if root && !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make cells");
        return None;
    }
    let cell = Cell::open(cells, &program, None).unwrap();
    let (accel, build) = (Accel::Tcg { tsc_khz: 2_000_000 }, String::new());
    Some(Qemu { program, accel, build, supervisor: supervisor(), cell })
}

/// Firecracker, where it is and can run anything.
pub(crate) async fn firecracker() -> Option<Firecracker> {
    let Some(program) = firecracker::find() else {
        eprintln!("skipped: there is no Firecracker, on the path or in TARTARUS_FIRECRACKER");
        return None;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: Firecracker's jailer takes root");
        return None;
    }
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("skipped: /dev/kvm: {error}");
        return None;
    }
    Some(Firecracker::open(&program, supervisor()).await.unwrap())
}
