//! Cerberus: authentication. Makes and reads API keys, for the control plane and for whoever sets one up; it refuses to
//! know where their hashes are kept and what a caller may do.

#![forbid(unsafe_code)]

pub mod key;

pub use key::{ApiKey, KeyError, bearer};

/// Who sent a request, once its key was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name of the API key.
    pub name: String,
}
