//! The contract at its edges, with a real server: bad input, idempotency, doctor, an ordinary user.
//!
//! Nothing is faked. Each test has a server of its own, and checks at its end that nothing of it is left.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it is skipped")]

#[path = "../harness/mod.rs"]
mod harness;

mod bad_input;
mod doctor;
mod idempotency;
mod images;
mod ordinary_user;
mod server;
