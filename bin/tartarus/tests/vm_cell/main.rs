//! What sandboxes do to each other, and to the machine they are on.
//!
//! Measured, so each of these tests has the machine for itself.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

#[path = "../harness/mod.rs"]
mod harness;

mod disks;
mod neighbours;
mod seen;
