//! Images, guest kernels, golden snapshots and throw-away disks: the files that a microVM starts from, for the node.
//!
//! Images and kernels arrive as tars that nobody trusts; every limit on them is beside the code that enforces it. This
//! crate does not know sandboxes, templates or names: what it makes is found by digest, or belongs to the caller.

#![forbid(unsafe_code)]

mod disk;
mod error;
pub mod images;
pub mod kernels;
pub mod lethe;
pub mod nyx;
mod sparse;
mod tarball;
#[cfg(test)]
mod testing;
mod tool;
mod unpack;
mod usage;

pub use error::ErebusError;
pub use usage::disk_usage;
