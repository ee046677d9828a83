//! Images, guest kernels and throw-away disks: the files that a microVM starts from, for the node.
//!
//! Images and kernels arrive as tars that nobody trusts; every limit on them is beside the code that enforces it. This
//! crate does not know sandboxes, templates or names: what it makes is found by digest, or belongs to the caller.

#![forbid(unsafe_code)]

mod disk;
mod error;
pub mod images;
pub mod kernels;
pub mod lethe;
mod tarball;
#[cfg(test)]
mod testing;
mod tool;
mod unpack;

pub use error::ErebusError;
