//! Styx: the network of sandboxes. A namespace for each, a contract that is in force before its guest runs, and a
//! resolver that pins what it answers.
//!
//! Start at [`Styx`] (the node's side and the pool) and [`Space`] (one sandbox's namespace). What a contract means in the
//! kernel's words is decided in `rules`, which is pure.

mod card;
mod cuts;
mod enter;
mod error;
mod events;
mod host;
mod links;
pub mod names;
mod netlink;
mod nft;
mod pool;
mod probe;
mod rehearse;
mod rules;
mod space;
mod tap;
mod tracked;

use std::net::Ipv4Addr;

pub use card::Door;
pub use error::StyxError;
pub use host::Finding;
pub use pool::{Options, Styx};
pub use rules::Guard;
pub use space::Space;
pub use tap::leave_tap;

/// The guest's address, the same in every sandbox.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);
/// The guest's gateway and resolver, the same in every sandbox.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 253);
/// The length of the prefix that both are in.
pub const PREFIX: u8 = 30;
/// The address of the guest's card.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x54, 0x54, 0x00, 0x00, 0x01];
/// The address of the TAP, the gateway's card.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x54, 0x54, 0x00, 0x00, 0xfe];
/// The generation of a sandbox's first contract; namespaces that wait are made ready for it.
pub const FIRST_GENERATION: u32 = 1;
/// The port of the resolver at the gateway.
pub(crate) const DNS_PORT: u16 = 53;
/// Addresses that a namespace pins at most.
pub(crate) const PINS: usize = 4096;
/// Destinations that a namespace remembers as refused, at most, of those with ports and of those without.
pub(crate) const REMEMBERED: usize = 64;
