//! What must survive: servers, hypervisors and guests that die at any moment, floods, full disks, old and new stores.
//!
//! Guests write their own records (a nonce at the start, numbered lines), and the tests sum them up. Nothing is faked.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

#[path = "../harness/mod.rs"]
mod harness;

mod accept;
mod adopt;
mod deadline;
mod flood;
mod full_disk;
mod harm;
mod ledger;
mod queue;
mod scene;
mod stop;
