//! The durable state of the cluster: sandboxes, queue, nodes and catalogue.
//!
//! For the control plane. [`store`] has the traits and their semantics, [`sqlite`] the engine for one machine. It knows
//! nothing of HTTP, hypervisors or placement: which queue entry a node takes is decided by a pure function that the
//! caller passes in.

#![forbid(unsafe_code)]

pub mod sqlite;
pub mod store;

pub use sqlite::Sqlite;
pub use store::*;
