//! What of an upstream's answer a guest is told: pure.

use std::net::Ipv4Addr;

use tartarus_types::net::{Contract, never, private};

/// The most addresses that are told, and pinned, at once.
pub(super) const MAX_ADDRESSES: usize = 32;
/// The least that an answer is valid, in seconds: what is pinned costs a process, so not more often than this.
pub(super) const MIN_TTL: u32 = 5;
/// The most that an answer is valid, in seconds.
pub(super) const MAX_TTL: u32 = 3600;

/// Those of `addresses` that may be told: each once, in their order, at most [`MAX_ADDRESSES`]. What no sandbox reaches is
/// dropped, and what is private unless a CIDR that lies within the private range lists it: a name cannot be made to lead
/// inside.
pub(super) fn screen(contract: &Contract, addresses: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let mut told = Vec::new();
    for address in addresses {
        if told.len() == MAX_ADDRESSES {
            break;
        }
        if tellable(contract, *address) && !told.contains(address) {
            told.push(*address);
        }
    }
    told
}

fn tellable(contract: &Contract, address: Ipv4Addr) -> bool {
    if never().iter().any(|(net, _)| net.contains(&address)) {
        return false;
    }
    private().iter().all(|net| !net.contains(&address)) || contract.private_cidrs().any(|net| net.contains(&address))
}

/// How long an answer is valid, in seconds, that upstream gave for `ttl`.
pub(super) fn clamp_ttl(ttl: u32) -> u32 {
    ttl.clamp(MIN_TTL, MAX_TTL)
}
