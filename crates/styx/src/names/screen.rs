//! What of an upstream's answer a guest is told: pure.

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use ipnet::Ipv4Net;
use tartarus_types::net::{Contract, NEVER, PRIVATE};

/// The most addresses that are told, and pinned, at once.
pub const MAX_ADDRESSES: usize = 32;
/// The least that an answer is valid, in seconds: what is pinned costs a process, so not more often than this.
pub const MIN_TTL: u32 = 5;
/// The most that an answer is valid, in seconds.
pub const MAX_TTL: u32 = 3600;

static NEVER_NETS: LazyLock<Vec<Ipv4Net>> = LazyLock::new(|| nets(NEVER.iter().map(|(net, _)| *net)));
static PRIVATE_NETS: LazyLock<Vec<Ipv4Net>> = LazyLock::new(|| nets(PRIVATE.iter().copied()));

fn nets<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Ipv4Net> {
    texts.map(|text| text.parse().expect("constants, which a test reads")).collect()
}

/// Those of `addresses` that may be told: each once, in their order, at most [`MAX_ADDRESSES`]. What no sandbox reaches is
/// dropped, and what is private unless a CIDR that lies within the private range lists it: a name cannot be made to lead
/// inside.
pub fn screen(contract: &Contract, addresses: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
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
    if NEVER_NETS.iter().any(|net| net.contains(&address)) {
        return false;
    }
    let Some(private) = PRIVATE_NETS.iter().find(|net| net.contains(&address)) else { return true };
    contract.cidrs.iter().any(|listed| private.contains(listed) && listed.contains(&address))
}

/// How long an answer is valid, in seconds, that upstream gave for `ttl`.
pub fn clamp_ttl(ttl: u32) -> u32 {
    ttl.clamp(MIN_TTL, MAX_TTL)
}
