//! One sandbox's namespace: made, put under a contract, watched and mended.

mod check;
mod make;
mod seen;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use tartarus_types::net::{Blocked, NetCounter};
use tartarus_types::{Contract, Timestamp};
use tokio::sync::Mutex;

use crate::enter::{Namespace, enter, on_thread, within};
use crate::events::Events;
use crate::links::Links;
use crate::rules::{self, Guard, Site};
use crate::{DNS_PORT, GATEWAY, PINS, StyxError, nft, tap};

pub(crate) use make::{capacity, pair};

/// What all namespaces of a node have in common.
#[derive(Clone)]
pub(crate) struct Place {
    /// The node's namespace.
    pub(crate) node: Namespace,
    /// Where outer addresses are from.
    pub(crate) range: Ipv4Net,
    /// The rule that a test leaves out.
    pub(crate) without: Option<Guard>,
}

/// A namespace, its TAP and its way out. Gone when nothing holds its descriptors any more: the kernel then removes links and
/// rules by itself, also after `kill -9`.
pub struct Space {
    /// The namespace.
    pub namespace: Arc<OwnedFd>,
    /// The guest's peer (one queue, no packet information, virtio-net headers); none after [`crate::Styx::adopt`], where the
    /// hypervisor has it.
    pub tap: Option<Arc<OwnedFd>>,
    /// Which one of the range.
    pub index: u32,
    /// The address that the guest has outside of the namespace.
    pub outer: Ipv4Addr,
    place: Place,
    events: Events,
    state: Mutex<State>,
}

/// What is in force.
struct State {
    /// As it must be listed.
    ruleset: String,
    /// Whether anything but the dormant rules is in force, so that there is something to keep.
    awake: bool,
    /// Whether a guest may run that would use a moment in which rules are there and their sets are not.
    used: bool,
    /// The contract in force, as far as it is known here.
    contract: Option<Contract>,
    /// Until when which addresses are pinned, so that they can be put back.
    pins: HashMap<Ipv4Addr, Instant>,
}

impl State {
    fn dormant(used: bool) -> Self {
        Self { ruleset: rules::dormant(), awake: false, used, contract: None, pins: HashMap::new() }
    }

    /// Pins that still hold, with the seconds they have.
    fn held(&self) -> Vec<(Ipv4Addr, u64)> {
        let now = Instant::now();
        let left = |until: &Instant| until.saturating_duration_since(now).as_secs_f64().ceil() as u64;
        self.pins.iter().map(|(address, until)| (*address, left(until))).filter(|(_, left)| *left > 0).collect()
    }
}

impl Space {
    /// Puts `contract` in force, and sees that it is. `generation` is higher than that of the contract before: connections
    /// that the new one does not allow are cut, others go on, pins stay. Where a domain is not listed any more all pins go;
    /// [`Self::apply_keeping`] keeps those that the caller names. With an error nothing passes any more.
    pub async fn apply(&self, contract: &Contract, generation: u32) -> Result<(), StyxError> {
        let mut state = self.state.lock().await;
        let listed = |rule| contract.domains.contains(rule);
        // Of one that was taken over it is not known whose pins there are: names are asked for again.
        let keeps = match &state.contract {
            Some(before) => before.domains.iter().all(listed),
            None => !state.awake,
        };
        if !keeps {
            state.pins.clear();
        }
        self.put(&mut state, contract, generation, keeps).await
    }

    /// As [`Self::apply`], with exactly these pins, for as long as each says.
    pub async fn apply_keeping(
        &self,
        contract: &Contract,
        generation: u32,
        pins: &[(Ipv4Addr, Duration)],
    ) -> Result<(), StyxError> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        state.pins = pins.iter().take(PINS).map(|(address, lifetime)| (*address, now + *lifetime)).collect();
        self.put(&mut state, contract, generation, false).await
    }

    async fn put(
        &self,
        state: &mut State,
        contract: &Contract,
        generation: u32,
        keep_pins: bool,
    ) -> Result<(), StyxError> {
        let (place, namespace, outer) = (self.place.clone(), self.namespace.clone(), self.outer);
        let wanted = contract.clone();
        let before = match (state.awake, state.used) {
            (true, _) => Before::Rules(state.ruleset.clone()),
            (false, used) => {
                if used {
                    Before::Guest
                } else {
                    Before::Nothing
                }
            }
        };
        let held = state.held();
        let done = on_thread(move || {
            let put = || {
                enter(&place.node)?;
                let host_addresses = Links::here()?.addresses()?.iter().map(|(_, net)| net.addr()).collect();
                enter(&namespace)?;
                let site = Site { outer, host_addresses, without: place.without };
                let ruleset = rules::ruleset(&wanted, generation, &site);
                put_here(&ruleset, &rules::pins(&held, false), &before, keep_pins)?;
                Ok(ruleset)
            };
            put().inspect_err(|_| close_here(&namespace))
        })
        .await;
        match done {
            Ok(ruleset) => {
                (state.ruleset, state.awake, state.used) = (ruleset, true, true);
                state.contract = Some(contract.clone());
                Ok(())
            }
            Err(error) => {
                *state = State::dormant(true);
                Err(error)
            }
        }
    }

    /// Leaves the TAP to a hypervisor that opens it by its name, `tap0`: it stays, and is open nowhere. The namespace is held by
    /// [`Self::namespace`] alone then.
    ///
    /// # Errors
    /// When the kernel does not let it stay.
    pub fn leave_tap(&mut self) -> Result<(), StyxError> {
        self.tap.take().map_or(Ok(()), |open| tap::persist(&open))
    }

    /// Lets nothing pass any more.
    pub async fn close(&self) -> Result<(), StyxError> {
        let mut state = self.state.lock().await;
        *state = State::dormant(true);
        let dormant = state.ruleset.clone();
        nft::apply(self.namespace.clone(), rules::replace(&dormant, ""), dormant).await
    }

    /// Lets the guest reach addresses for so long each, on the contract's ports, in one step. One that is pinned already gets
    /// the new time. More than [`PINS`] at once are refused, the last ones first.
    /// `under` must be the contract in force: an update may have overtaken whoever asks.
    pub async fn pin(&self, addresses: &[(Ipv4Addr, Duration)], under: &Contract) -> Result<(), StyxError> {
        let mut state = self.state.lock().await;
        if !state.awake || state.contract.as_ref() != Some(under) {
            return Err(StyxError::Changed("the contract that allowed it is not in force".to_owned()));
        }
        let now = Instant::now();
        state.pins.retain(|_, until| *until > now);
        let mut chosen: Vec<(Ipv4Addr, u64)> = Vec::new();
        for (address, lifetime) in addresses {
            let known = state.pins.contains_key(address);
            if chosen.iter().any(|(other, _)| other == address) || (!known && state.pins.len() >= PINS) {
                continue;
            }
            state.pins.insert(*address, now + *lifetime);
            chosen.push((*address, lifetime.as_secs_f64().ceil() as u64));
        }
        match rules::pins(&chosen, true) {
            text if text.is_empty() => Ok(()),
            text => nft::batch(self.namespace.clone(), text).await,
        }
    }

    /// What became of packets since the contract was put in force, and destinations that were refused, the newest first.
    pub async fn counters(&self) -> Result<(Vec<NetCounter>, Vec<Blocked>), StyxError> {
        let state = self.state.lock().await;
        let json = within(self.namespace.clone(), || nft::run("list rules", &["-j", "list", "ruleset"], "")).await?;
        let contract = state.contract.clone().unwrap_or_default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        Ok(seen::read(&json, &contract, |address| state.pins.contains_key(&address), now))
    }

    /// Sockets at the gateway's port for names, for UDP and TCP; they do not block.
    pub async fn resolver_sockets(&self) -> Result<(UdpSocket, TcpListener), StyxError> {
        let task = || {
            let at = SocketAddr::from((GATEWAY, DNS_PORT));
            let open = || -> std::io::Result<_> {
                let (udp, tcp) = (UdpSocket::bind(at)?, TcpListener::bind(at)?);
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                Ok((udp, tcp))
            };
            open().map_err(StyxError::system(format!("listen at {at} in a sandbox's namespace")))
        };
        within(self.namespace.clone(), task).await
    }

    /// Waits until links, addresses, routes or rules of the namespace change, for whatever reason; [`Self::check`] says
    /// whether they are as they must be. One caller at a time hears of each change.
    pub async fn changed(&self) -> Result<(), StyxError> {
        self.events.changed().await.map(drop)
    }

    /// Pins that still hold.
    pub async fn pins(&self) -> Vec<(Ipv4Addr, Duration)> {
        self.state.lock().await.held().into_iter().map(|(at, left)| (at, Duration::from_secs(left))).collect()
    }
}

/// What a ruleset is put in the place of.
enum Before {
    /// The dormant rules, and no guest runs.
    Nothing,
    /// Whatever there is, while a guest runs.
    Guest,
    /// These rules, of which there is something to keep.
    Rules(String),
}

/// Puts `ruleset` in force in the namespace of the calling thread.
fn put_here(ruleset: &str, pins: &str, before: &Before, keep_pins: bool) -> Result<(), StyxError> {
    if let Before::Rules(before) = before {
        match change_here(before, ruleset, if keep_pins { "" } else { pins }, keep_pins) {
            Ok(()) => return Ok(()),
            // Somebody else changed what the update was made for: all of it is replaced.
            Err(error) => tracing::warn!(%error, "rules could not be changed in place and are replaced"),
        }
    }
    if matches!(before, Before::Nothing) {
        return nft::apply_here(&rules::replace(ruleset, pins), ruleset);
    }
    let sets = rules::prepare("", ruleset).unwrap_or_default();
    nft::run("apply rules", &["-f", "-"], &rules::replace(&rules::dormant(), &sets))?;
    nft::apply_here(&format!("{ruleset}{pins}"), ruleset)
}

/// Puts `ruleset` in the place of the one `before`, sets first.
fn change_here(before: &str, ruleset: &str, pins: &str, keep_pins: bool) -> Result<(), StyxError> {
    match rules::prepare(before, ruleset) {
        Some(sets) => drop(nft::run("apply rules", &["-f", "-"], &sets)?),
        // Of the same generation: sets cannot be changed in one step with what asks them.
        None if nft::difference(before, ruleset).is_some() => {
            return Err(StyxError::Differs("its generation".to_owned()));
        }
        None => {}
    }
    let batch = rules::update(ruleset, pins, keep_pins) + &rules::leave(before, ruleset);
    nft::apply_here(&batch, ruleset)
}

/// Lets nothing pass any more. Where even that fails there is nothing left to try but to say so.
fn close_here(namespace: &Namespace) {
    let dormant = rules::dormant();
    let closed = enter(namespace).and_then(|()| nft::apply_here(&rules::replace(&dormant, ""), &dormant));
    if let Err(error) = closed {
        tracing::error!(%error, "the network of a sandbox could not be closed");
    }
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("index", &self.index).field("outer", &self.outer).finish_non_exhaustive()
    }
}
