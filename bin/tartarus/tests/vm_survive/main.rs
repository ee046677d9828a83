//! What must survive on real microVMs: kill -9 of every process, hostile guests, restarts, full disks.
//!
//! Nothing is faked. Each test has a server of its own, and checks at its end that nothing of it is left.

#[path = "../harness/mod.rs"]
mod harness;
