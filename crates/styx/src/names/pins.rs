//! How an address becomes reachable because a name was answered with it, and which are already.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use async_trait::async_trait;
use tartarus_types::net::Contract;
use tokio::time::Instant;

/// How much longer an address is pinned than the guest is told: the answer is on its way, and its connection opens.
pub(super) const LONGER: Duration = Duration::from_secs(2);
/// How many pinned addresses are remembered.
const REMEMBERED: usize = 1024;

/// Makes addresses reachable.
#[async_trait]
pub trait Pins: Send + Sync {
    /// Makes each address reachable from now on for at least the time beside it, also when it was pinned for less before.
    ///
    /// `under` is the contract that allows it. An update may overtake this call, and a pin that comes after the update would
    /// reach what is not allowed any more; so this must be done in turn with updates, and fail when another contract is in
    /// force by then.
    ///
    /// # Errors
    /// When any of them could not be pinned, in words; the guest gets no answer then.
    async fn pin(&self, addresses: &[(Ipv4Addr, Duration)], under: &Contract) -> Result<(), String>;
}

/// Until when addresses are pinned, as far as it is remembered: to forget one costs a process, never reach.
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<Ipv4Addr, Instant>);

impl Memory {
    /// Those of `addresses` that are not pinned for `ttl` from `now` on.
    pub(super) fn lacks(&self, addresses: &[Ipv4Addr], ttl: Duration, now: Instant) -> Vec<Ipv4Addr> {
        let pinned = |address: &Ipv4Addr| self.0.get(address).is_some_and(|until| *until >= now + ttl);
        addresses.iter().copied().filter(|address| !pinned(address)).collect()
    }

    /// Remembers that `addresses` are pinned until `until`.
    pub(super) fn add(&mut self, addresses: &[Ipv4Addr], until: Instant, now: Instant) {
        if self.0.len() + addresses.len() > REMEMBERED {
            self.0.retain(|_, until| *until > now);
        }
        for address in addresses {
            if self.0.len() < REMEMBERED || self.0.contains_key(address) {
                self.0.insert(*address, until);
            }
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
