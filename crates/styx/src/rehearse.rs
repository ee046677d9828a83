//! Whether this nft and this kernel do what the rules of sandboxes say, tried where nobody is.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use tartarus_types::{Contract, NetMode};

use crate::enter::{Namespace, unshare};
use crate::links::Links;
use crate::rules::{self, Site};
use crate::space::Place;
use crate::{FIRST_GENERATION, StyxError, nft, tap};

/// Puts a contract of all kinds in force, in a namespace that goes with the calling thread, and reads it back.
///
/// # Errors
/// [`StyxError::Nft`] and [`StyxError::Differs`] where it cannot be done.
pub(crate) fn rehearse(place: &Place) -> Result<(), StyxError> {
    let scratch: Namespace = unshare()?;
    let _tap = tap::make()?;
    // Rules know links by their number.
    Links::here()?.pair("eth0", "nowhere", scratch.as_fd())?;
    let contract = Contract {
        mode: NetMode::Allow,
        cidrs: ["192.0.2.0/24", "10.1.0.0/16"].iter().filter_map(|cidr| cidr.parse().ok()).collect(),
        // Ranges of them take more of a kernel, and are few contracts' business.
        ports: ["443", "53/udp"].iter().filter_map(|ports| ports.parse().ok()).collect(),
        domains: "*.example.org".parse().into_iter().collect(),
        ..Contract::default()
    };
    let site = Site {
        outer: Ipv4Addr::new(192, 0, 2, 1),
        range: place.range,
        host_addresses: vec![Ipv4Addr::new(192, 0, 2, 2)],
        door: place.door,
        without: place.without,
    };
    drop(place.door.open(contract.limits, place.without)?);
    let ruleset = rules::ruleset(&contract, FIRST_GENERATION, &site);
    let pins = rules::pins(&[(Ipv4Addr::new(192, 0, 2, 3), 60)], false);
    nft::apply_here(&format!("{ruleset}{pins}"), &ruleset)
}

/// Why a rehearsal failed, for an operator.
pub(crate) fn failed(error: &StyxError) -> String {
    let version = nft::run("say its version", &["--version"], "").unwrap_or_default();
    let version = version.split_whitespace().nth(1).unwrap_or("of an unknown version");
    format!(
        "nft {version} or this kernel does not do what the rules of sandboxes say: {error}; they are for nftables 1.0.6 or later"
    )
}
