//! The test executable is also the programs that the tests start: before its own `main` it looks whether it was started
//! as one of them. So no second binary has to be built and found.

#![allow(dead_code, clippy::print_stdout, reason = "each test crate uses some of it; roles print what they find")]

use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};

use tartarus_runtime::keeper;
use tartarus_runtime::supervisor::{self, Program};

pub(crate) mod probe;
pub(crate) mod roles;
pub(crate) mod tiny;

/// The first argument that makes this executable a supervisor, or something else.
const SUPERVISOR: &str = "be-a-supervisor";
const KEEPER: &str = "be-a-keeper";
/// An agent that loads bases and is killed. Its folder is the argument.
pub(crate) const AGENT: &str = "be-an-agent";
/// Another user who was given sealed memory. Its descriptor is the argument.
pub(crate) const INTRUDER: &str = "be-an-intruder";
/// Another user who speaks to a keeper. Its folder is the argument.
pub(crate) const STRANGER: &str = "be-a-stranger";
/// A program in a hypervisor's place. The argument is what it does.
pub(crate) const PROBE: &str = "be-a-probe";

#[used]
// SAFETY: the loader calls what is listed there with these arguments, once, before `main`.
#[unsafe(link_section = ".init_array")]
static ROLE: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = role;

extern "C" fn role(argc: c_int, argv: *const *const c_char, _: *const *const c_char) {
    let argument = |index: usize| {
        // SAFETY: the arguments of this process, `argc` of them, valid for ever.
        (index < argc as usize).then(|| unsafe { CStr::from_ptr(*argv.add(index)) }.to_str().ok()).flatten()
    };
    let (Some(role), Some(dir)) = (argument(1), argument(2)) else { return };
    let main = match role {
        SUPERVISOR => supervisor::main,
        KEEPER => keeper::main,
        AGENT => roles::agent,
        INTRUDER => roles::intruder,
        STRANGER => roles::stranger,
        PROBE => probe::main,
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

/// This executable as a keeper.
pub(crate) fn keeper() -> Program {
    program(KEEPER)
}
