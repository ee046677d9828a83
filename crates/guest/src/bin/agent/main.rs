//! `tartarus-guest`, the agent in every microVM: PID 1 of the guest. It prepares the machine, waits for the host on the
//! guest channel, runs what it is told to and keeps output and exit status until the host has them on disk.
//!
//! A static binary without threads, started by the kernel out of the initramfs as `/init`. `docs/guest-protocol.md` says
//! how it is built and what it speaks.
//!
//! When it cannot go on it says so on the console and restarts the machine, which ends the VM. It knows nothing of
//! sandboxes, policies or the network outside.

mod agent;
mod alert;
mod boot;
mod carry;
mod channel;
mod disks;
mod errors;
mod etc;
mod events;
mod freeze;
mod hook;
mod identity;
mod input;
mod memory;
mod modules;
mod network;
mod output;
mod port;
mod process;
mod requests;
mod root;
mod runner;
mod session;
mod spawn;
mod still;
mod uevents;
mod users;
mod vsock;
mod window;

use std::io::Write;

use rustix::process::getpid;
use rustix::system::{RebootCommand, reboot};

fn main() {
    if !getpid().is_init() && std::env::args_os().nth(1).is_some_and(|name| name == freeze::HELPER) {
        return freeze::help();
    }
    // It mounts over what it finds and restarts the machine: nothing for anywhere but a guest.
    if !getpid().is_init() {
        console("this is the init of a Tartarus guest; it does nothing outside of one");
        std::process::exit(1);
    }
    let Err(why) = boot::boot().and_then(|(port, ground)| {
        agent::Agent::new(port, ground)
            .and_then(|mut agent| agent.serve())
            .map_err(|error| format!("could not wait for events: {error}"))
    });
    console(&format!("the guest cannot go on: {why}"));
    let error = reboot(RebootCommand::Restart);
    // The kernel panics when PID 1 ends, and `panic=-1` on its command line restarts it.
    console(&format!("the machine does not restart: {error:?}"));
}

/// One line on the console, which the host keeps bounded.
fn console(line: &str) {
    // Nobody can be told that the console failed.
    let _ = writeln!(std::io::stderr(), "tartarus-guest: {line}");
}
