//! What crosses a boundary: the wire types of API version 1, the traits between control plane and node, the framing of
//! output streams, and the typed client.

#![forbid(unsafe_code)]

pub mod client;
pub mod doctor;
pub mod node;
pub mod output;
pub mod v1;

pub use client::{Client, ClientError};
