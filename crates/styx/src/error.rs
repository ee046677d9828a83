//! Everything that can go wrong with a network, in one enum.

use std::io;

/// Why a network could not be made, changed or seen.
#[derive(Debug, thiserror::Error)]
pub enum StyxError {
    /// Namespaces take privileges.
    #[error("networks of sandboxes take root: start the node as root, or run without --net")]
    NotRoot,
    /// A file, link, address, route or socket.
    #[error("could not {what}: {source}")]
    System {
        /// What was tried, as the end of "could not …".
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The nft program is missing.
    #[error("there is no nft program: install the package nftables")]
    NoNft,
    /// The nft program failed or did not end.
    #[error("nft refused to {what}: {said}")]
    Nft {
        /// What it was to do.
        what: &'static str,
        /// What it printed, shortened.
        said: String,
    },
    /// What the kernel has is not what was applied.
    #[error("the rules in force are not what was applied: {0}")]
    Differs(String),
    /// A link, address, route or setting is not as it was made.
    #[error("the network of the sandbox was changed by somebody else: {0}")]
    Changed(String),
    /// Something is gone that cannot be put back.
    #[error("the network of the sandbox is lost: {0}; stop the sandbox")]
    Lost(String),
    /// Every index is taken.
    #[error("no address is left in {0} for another sandbox; configure a wider range")]
    Full(String),
    /// Its contract has let it reach too many addresses by name.
    #[error("a sandbox has {} addresses by name already; they expire", crate::PINS)]
    Pinned,
    /// The node's path to the outside does not work.
    #[error("the node's network is not ready: {0}")]
    NotReady(String),
    /// A helper thread ended without an answer.
    #[error("a thread that changes networks panicked")]
    Thread,
}

impl StyxError {
    /// For `map_err`: what was tried, as the end of "could not …".
    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::System { what, source: source.into() }
    }
}
