//! Golden snapshots, runners and throw-away disks with real guests: that a restore is what a boot is, that clones are
//! different, that nothing of one sandbox is seen in another, that nothing half-made is ever used, and that each driver does it.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

#[path = "../harness/mod.rs"]
mod harness;

mod clones;
mod damage;
mod drivers;
mod isolation;
mod pause;
mod runner;
mod snapshots;
mod survive;
mod world;
