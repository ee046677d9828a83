//! Tartarus: the hypervisor drivers, the supervisor that stands beside each microVM, and the keeper of the memory that
//! they share.
//!
//! It knows machines, not sandboxes: no tenant, no queue, no image format. What runs in a guest is the business of
//! whoever speaks the guest protocol over [`Vm::channel`].

pub mod bases;
pub mod cell;
pub mod driver;
pub mod firecracker;
pub mod host;
pub mod keeper;
pub mod pages;
pub mod qemu;
mod sealed;
pub mod supervisor;

pub use driver::{
    Adopted, Channel, DiskFormat, Driver, Fingerprint, Layer, Machine, Network, OVERHEAD_MIB, Restore, RuntimeError, Vm,
};
pub use supervisor::{Cause, Deadlines, VmExit};
