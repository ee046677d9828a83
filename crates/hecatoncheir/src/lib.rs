//! Hecatoncheir: the node agent. It leases sandboxes from the control plane, prepares, boots and watches their
//! machines, keeps their output, and reports their ends.
//!
//! It knows no tenants, quotas or placement, and holds no database credentials: a guest that breaks out finds none.

#![deny(unsafe_code)]

mod agent;
mod carry;
mod choice;
mod doctor;
mod golden;
mod ledger;
mod link;
mod net;
mod node_api;
mod outbox;
pub mod output;
mod sandbox;
mod store;
mod workbench;
pub mod workshop;

pub use agent::{Agent, Parts, Stop};
pub use choice::Wanted;
pub use net::{Guard, NetOptions, Networks};
pub use node_api::LocalNode;
pub use output::LogLimits;
pub use store::{HostOptions, HostStore};
pub use tartarus_runtime::OVERHEAD_MIB;
pub use tartarus_runtime::keeper::main as keep;
pub use tartarus_runtime::supervisor::{Program, main as supervise};
