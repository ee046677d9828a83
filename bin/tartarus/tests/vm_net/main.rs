//! Networks of sandboxes with real guests: what a contract allows works on every path, what it does not is out of reach, and
//! nothing of it is left. Each test runs in a network namespace of its own, whose links lead to namespaces of the test alone.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

#[path = "../harness/mod.rs"]
mod harness;

mod contract;
mod names;
mod ports;
mod survive;
mod world;
