//! The control plane over real HTTP and the real SQLite engine; only the node is a fake.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod catalogue;
mod client;
mod control;
mod create;
mod errors;
mod fake;
mod life;
mod net;
mod openapi;
mod pause;
mod snapshots;
mod space;
mod support;
