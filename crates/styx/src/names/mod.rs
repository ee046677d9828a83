//! The resolver of a sandbox: it answers names that the contract lists, and makes what it answers reachable before the
//! answer leaves.
//!
//! Bytes come from a hostile guest, and answers may come from somebody as hostile. So questions are read by a small strict
//! reader (`wire`) that keeps nothing but the question itself; what is asked of others is asked anew, by lower-case name and
//! only for IPv4 addresses; and of their answer nothing is passed on but addresses that the contract lets through
//! (`screen`), at the name that was asked for. What of this is decided is decided by pure functions (`policy`).
//!
//! It knows neither namespaces nor nftables: its sockets are handed to it, and [`Pins`] is how an answer becomes reachable.
//!
//! What it cannot tell apart: whoever may ask for any name below `*.example.org` can carry data out in the names themselves,
//! at 50 questions in a second.
#![forbid(unsafe_code)]

mod bucket;
mod pins;
mod policy;
mod refused;
mod resolve;
mod screen;
mod serve;
mod servers;
mod upstream;
mod wire;

#[cfg(test)]
mod tests;

pub use pins::Pins;
pub use refused::Refused;
pub use serve::{Rate, ServeError, serve};
use upstream::NoUpstream;
pub use upstream::Upstream;
