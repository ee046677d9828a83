//! The shared vocabulary: ids, units, the sandbox specification, its state machine and the error codes.
//!
//! This crate knows no I/O, no clock and no async runtime: time and randomness arrive as arguments, so that every
//! decision in it can be tested a million times.

#![forbid(unsafe_code)]

pub mod error;
pub mod id;
pub mod net;
pub mod overcommit;
pub mod sandbox;
pub mod signal;
pub mod spec;
pub mod units;

pub use error::{ErrorCode, Refusal};
pub use id::{ExecId, LeaseToken, NodeId, SandboxId};
pub use net::{Contract, NetCeiling, NetMode, NetRequest};
pub use overcommit::Overcommit;
pub use sandbox::{Event, Outcome, Reason, State, step};
pub use spec::{Ground, Language, Limits, RunnerSpec, SandboxSpec, Shape, SnapshotUse, TemplateSpec, Warm};
pub use units::{MIB, Timestamp};
