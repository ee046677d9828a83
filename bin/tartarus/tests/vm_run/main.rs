//! The main job on real microVMs: commands, their streams, exit codes and signals, and what they find in the guest.
//!
//! Nothing is faked. Each test has a server of its own, and checks at its end that nothing of it is left.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

#[path = "../harness/mod.rs"]
mod harness;

mod backpressure;
mod codes;
mod disks;
mod execs;
mod guest;
mod kill;
mod lives;
mod memory;
mod records;
mod shell;
mod signals;
mod streams;
