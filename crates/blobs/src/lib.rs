//! Content-addressed files in a local folder, for whoever keeps images and other large immutable things.
//!
//! A blob's name is the SHA-256 of its bytes, so a name never means two contents and a blob is never rewritten. The
//! store does not know what is in a blob, who uses it, or whether anybody still does. One process at a time uses a
//! folder (its owner locks it). All calls block on the disk: async callers use `spawn_blocking`.

#![forbid(unsafe_code)]

mod digest;
mod store;

pub use digest::Digest;
pub use store::{Blob, BlobStore, Staging};
