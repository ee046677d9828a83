//! One sandbox's namespace: made, put under a contract, watched and mended.

mod check;
mod make;
mod seen;
mod tally;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use tartarus_types::net::{Blocked, NetCounter};
use tartarus_types::{Contract, Timestamp};
use tokio::sync::Mutex;

use crate::card::Card;
use crate::cuts::{Cut, Cuts};
use crate::enter::{Namespace, enter, on_thread, within};
use crate::events::Events;
use crate::links::Links;
use crate::rules::{self, Guard, Site};
use crate::{DNS_PORT, Door, FIRST_GENERATION, GATEWAY, PINS, StyxError, nft};

pub(crate) use make::{capacity, pair};

/// For so long it is remembered that an address was pinned.
const PIN_GRACE: Duration = Duration::from_secs(2);

/// What all namespaces of a node have in common.
#[derive(Clone)]
pub(crate) struct Place {
    /// The node's namespace.
    pub(crate) node: Namespace,
    /// Where outer addresses are from.
    pub(crate) range: Ipv4Net,
    /// The most connections at once that a contract may say.
    pub(crate) connections: u32,
    /// What sees to the guest's frames.
    pub(crate) door: Door,
    /// The rule that a test leaves out.
    pub(crate) without: Option<Guard>,
    /// What the node is to forget.
    pub(crate) cuts: Arc<Cuts>,
}

impl Place {
    /// What rules depend on beside a contract, by the node as it is now. The calling thread is in its namespace then.
    fn site(&self, outer: Ipv4Addr) -> Result<Site, StyxError> {
        enter(&self.node)?;
        Ok(self.site_among(outer, &Links::here()?.addresses()?))
    }

    /// The same where the node's addresses are known.
    fn site_among(&self, outer: Ipv4Addr, addresses: &[(u32, Ipv4Net)]) -> Site {
        let addresses = addresses.iter().map(|(_, net)| net.addr());
        let host_addresses = addresses.filter(|address| !self.range.contains(address)).collect();
        Site { outer, range: self.range, host_addresses, door: self.door, without: self.without }
    }
}

/// A namespace, its TAP and its way out. Gone when nothing holds its descriptors any more: the kernel then removes links and
/// rules by itself, also after `kill -9`.
pub struct Space {
    /// The namespace.
    pub namespace: Arc<OwnedFd>,
    /// The guest's peer (one queue, plain frames); none after [`crate::Styx::adopt`], where the hypervisor has it.
    pub tap: Option<Arc<OwnedFd>>,
    /// Which one of the range.
    pub index: u32,
    /// The address that the guest has outside of the namespace.
    pub outer: Ipv4Addr,
    place: Place,
    events: Events,
    /// Held by the thread that changes what is in force, to its end: who stops waiting for it lets nothing past.
    state: Arc<Mutex<State>>,
}

/// What is in force.
struct State {
    /// As it must be listed.
    ruleset: String,
    door: Door,
    /// The program at the TAP; none where a chain does its work, and of a namespace that was taken over until a contract is put
    /// in force.
    card: Option<Card>,
    /// Whether a guest may run that would use a moment in which rules are there and their sets are not.
    used: bool,
    /// The contract in force, as far as it is known here.
    contract: Option<Contract>,
    /// Until when which addresses are pinned, so that they can be put back.
    pins: HashMap<Ipv4Addr, Instant>,
    /// For the first contract, which is in a hurry.
    applier: Option<nft::Applier>,
    /// The kernel's number of the rules when they were read back ahead of a guest, until there is one.
    edition: Option<u32>,
}

impl State {
    fn dormant(door: Door, used: bool) -> Self {
        let ruleset = rules::dormant(door);
        Self { ruleset, door, card: None, used, contract: None, pins: HashMap::new(), applier: None, edition: None }
    }

    /// Whether anything but the dormant rules is in force, so that there is something to keep.
    fn awake(&self) -> bool {
        nft::difference(&rules::dormant(self.door), &self.ruleset).is_some()
    }

    /// Puts `contract` in force by its `ruleset`, in the namespace of the calling thread.
    fn put(&mut self, contract: &Contract, ruleset: String, without: Option<Guard>) -> Result<(), StyxError> {
        let keeps_pins = match &self.contract {
            Some(before) => before.domains.iter().all(|rule| contract.domains.contains(rule)),
            // Of one that was taken over it is not known whose pins there are, unless it is this very one.
            None => nft::difference(&self.ruleset, &ruleset).is_none(),
        };
        if !keeps_pins {
            self.pins.clear();
        }
        let before = match (self.awake(), self.used) {
            // What went through by other rules would have their mark: there is nothing to mend.
            (true, false) => {
                self.ready_for(|own| own == ruleset)?;
                Before::These
            }
            (true, true) => Before::Rules(self.ruleset.clone()),
            (false, true) => Before::Whatever,
            (false, false) => Before::Nothing(self.applier.take()),
        };
        if !matches!(before, Before::These) {
            self.card = self.door.open(contract.limits, without)?;
        }
        put_here(&ruleset, &rules::pins(&self.held(), false), before, keeps_pins, self.door)?;
        (self.ruleset, self.used, self.contract, self.edition) = (ruleset, true, Some(contract.clone()), None);
        Ok(())
    }

    /// Whether a guest may have what waits here: no contract or, as `is` tells of its ruleset, its own; and there was no
    /// transaction in the namespace since that was read back.
    fn ready_for(&self, is: impl FnOnce(&str) -> bool) -> Result<(), StyxError> {
        let same = !self.awake() || is(&self.ruleset);
        self.check_card()?;
        if same && self.edition == Some(nft::edition()?) {
            return Ok(());
        }
        Err(StyxError::Changed("the rules that waited in it are not those of now".to_owned()))
    }

    /// Reads back what was put, in the namespace of the calling thread, and has no guest yet.
    fn rest(&mut self) -> Result<(), StyxError> {
        // In this order: a change between the two is seen by the second, and any later one by the number.
        let edition = nft::edition()?;
        nft::verify_here(&self.ruleset)?;
        (self.edition, self.used) = (Some(edition), false);
        Ok(())
    }

    /// Puts the program of the contract at the TAP anew; its counters begin anew with those of the rules.
    fn put_back(&mut self, without: Option<Guard>) -> Result<(), StyxError> {
        self.card = match (&self.contract, &self.card) {
            (Some(contract), _) => self.door.open(contract.limits, without)?,
            (None, Some(_)) => self.door.closed()?,
            // Whose it is, and what for, is known with the first contract that is put in force here.
            (None, None) => None,
        };
        Ok(())
    }

    /// Whether the TAP has its own program, in the namespace of the calling thread.
    fn check_card(&self) -> Result<(), StyxError> {
        self.card.as_ref().map_or(Ok(()), Card::check)
    }

    /// What was dropped at the TAP.
    fn dropped(&self) -> Result<Vec<NetCounter>, StyxError> {
        self.card.as_ref().map_or(Ok(Vec::new()), Card::counters)
    }

    /// Addresses that are pinned. The kernel rounds their times up, and so may let one through for a moment longer.
    fn pinned(&self) -> HashSet<Ipv4Addr> {
        let now = Instant::now();
        self.pins.iter().filter(|(_, until)| **until + PIN_GRACE > now).map(|(address, _)| *address).collect()
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
    /// that the new one does not allow are cut, others go on. Pins stay, unless a domain is not listed any more: then all go.
    /// What waited in the namespace for this contract is asked for by its number only. With an error nothing passes any more.
    pub async fn apply(&self, contract: &Contract, generation: u32) -> Result<(), StyxError> {
        self.put(contract, generation, |_| Ok(())).await
    }

    /// Does beforehand, while there is no guest, what [`Self::apply`] of the same contract as the first one would do: that sees then
    /// that nothing was changed since, which takes no program. Of another contract it is an error.
    pub(crate) async fn prepare(&self, contract: &Contract) -> Result<(), StyxError> {
        self.put(contract, FIRST_GENERATION, State::rest).await
    }

    async fn put(
        &self,
        contract: &Contract,
        generation: u32,
        then: fn(&mut State) -> Result<(), StyxError>,
    ) -> Result<(), StyxError> {
        let (place, namespace, outer) = (self.place.clone(), self.namespace.clone(), self.outer);
        let (contract, mut state) = (contract.clone(), self.state.clone().lock_owned().await);
        on_thread(move || {
            let mut put = || {
                let site = place.site(outer)?;
                enter(&namespace)?;
                // What passes where a rule is left out is for the rules alone to say.
                let update = state.used && place.without.is_none();
                state.put(&contract, rules::ruleset(&contract, generation, &site), place.without)?;
                if update {
                    let (pins, namespace) = (state.pinned().into(), Arc::downgrade(&namespace));
                    place.cuts.set(outer, Cut { namespace, generation, contract: contract.clone(), pins });
                }
                then(&mut state)
            };
            let done = put();
            if done.is_err() {
                *state = State { card: close_here(&namespace, place.door), ..State::dormant(place.door, true) };
            }
            done
        })
        .await
    }

    /// Lets the guest reach addresses for so long each, on the contract's ports, in one step. One that is pinned already gets
    /// the new time. `under` must be the contract in force: an update may have overtaken whoever asks.
    ///
    /// # Errors
    /// When another contract is in force, more addresses than a namespace remembers would be pinned, or the kernel refuses:
    /// none is pinned then.
    pub async fn pin(&self, addresses: &[(Ipv4Addr, Duration)], under: &Contract) -> Result<(), StyxError> {
        let mut state = self.state.clone().lock_owned().await;
        if state.contract.as_ref() != Some(under) {
            return Err(StyxError::Changed("the contract that allowed it is not in force".to_owned()));
        }
        let now = Instant::now();
        let pinned = state.pinned();
        state.pins.retain(|address, _| pinned.contains(address));
        let chosen: HashMap<Ipv4Addr, Duration> = addresses.iter().copied().collect();
        let more = chosen.keys().filter(|address| !state.pins.contains_key(address)).count();
        if state.pins.len() + more > PINS {
            return Err(StyxError::Pinned);
        }
        self.place.cuts.pin(self.outer, chosen.keys().copied());
        within(self.namespace.clone(), move || {
            let seconds: Vec<_> =
                chosen.iter().map(|(at, lifetime)| (*at, lifetime.as_secs_f64().ceil() as u64)).collect();
            nft::run("apply rules", &["-f", "-"], &rules::pins(&seconds, true))?;
            state.pins.extend(chosen.into_iter().map(|(at, lifetime)| (at, now + lifetime)));
            Ok(())
        })
        .await
    }

    /// What became of packets since the contract was put in force, which may have been before there was a guest, and destinations that were refused, the newest first.
    pub async fn counters(&self) -> Result<(Vec<NetCounter>, Vec<Blocked>), StyxError> {
        let state = self.state.lock().await;
        let json = within(self.namespace.clone(), || nft::run("list rules", &["-j", "list", "ruleset"], "")).await?;
        let contract = state.contract.clone().unwrap_or_default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        let pinned = |address| state.pins.get(&address).is_some_and(|until| *until > Instant::now());
        let (counters, blocked) = seen::read(&json, &contract, pinned, now);
        Ok((seen::merged([counters, state.dropped()?].concat()), blocked))
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

    /// Drops what was heard of changes so far, such as those by [`Self::apply`].
    pub fn forget_changes(&self) {
        self.events.forget();
    }

    /// Waits until links, addresses, routes or rules of the namespace change, for whatever reason; [`Self::check`] says
    /// whether they are as they must be. One caller at a time hears of each change.
    pub async fn changed(&self) -> Result<(), StyxError> {
        self.events.changed().await.map(drop)
    }
}

/// What a ruleset is put in the place of.
enum Before {
    /// Itself.
    These,
    /// The dormant rules, and no guest runs; with what may wait for this.
    Nothing(Option<nft::Applier>),
    /// Whatever there is, of which nothing is kept.
    Whatever,
    /// These rules, of which there is something to keep.
    Rules(String),
}

/// Puts `ruleset` in force in the namespace of the calling thread.
fn put_here(ruleset: &str, pins: &str, before: Before, keep_pins: bool, door: Door) -> Result<(), StyxError> {
    match before {
        Before::These => return Ok(()),
        Before::Nothing(applier) => {
            let applier = match applier.and_then(nft::Applier::waiting) {
                Some(applier) => applier,
                None => nft::Applier::here()?,
            };
            match applier.apply(&(rules::awaken(ruleset, door) + pins), ruleset) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error, "rules could not be added to those that let nothing pass"),
            }
        }
        Before::Rules(before) => {
            match change_here(&before, ruleset, if keep_pins { "" } else { pins }, keep_pins, door) {
                Ok(()) => return Ok(()),
                // Somebody else changed what the update was made for: all of it is replaced.
                Err(error) => tracing::warn!(%error, "rules could not be changed in place and are replaced"),
            }
        }
        Before::Whatever => {}
    }
    let sets = rules::prepare("", ruleset).unwrap_or_default();
    nft::run("apply rules", &["-f", "-"], &rules::replace(&rules::dormant(door), &sets))?;
    nft::apply_here(&format!("{ruleset}{pins}"), ruleset)
}

/// Puts `ruleset` in the place of the one `before`, sets first.
fn change_here(before: &str, ruleset: &str, pins: &str, keep_pins: bool, door: Door) -> Result<(), StyxError> {
    if rules::sets_differ(before, ruleset) {
        return Err(StyxError::Differs("a set of its own generation".to_owned()));
    }
    if let Some(sets) = rules::prepare(before, ruleset) {
        nft::run("apply rules", &["-f", "-"], &sets)?;
    }
    let batch = rules::update(ruleset, pins, keep_pins, door) + &rules::leave(before, ruleset);
    nft::apply_here(&batch, ruleset)
}

/// Lets nothing pass any more. Where even that fails there is nothing left to try but to say so.
fn close_here(namespace: &Namespace, door: Door) -> Option<Card> {
    if let Err(error) = enter(namespace) {
        tracing::error!(%error, "the network of a sandbox could not be closed");
        return None;
    }
    // The card first: rules may take seconds.
    let card = door.closed();
    let dormant = rules::dormant(door);
    let rules = nft::apply_here(&rules::replace(&dormant, ""), &dormant);
    for error in [card.as_ref().err(), rules.as_ref().err()].into_iter().flatten() {
        tracing::error!(%error, "the network of a sandbox could not be closed");
    }
    card.ok().flatten()
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("index", &self.index).field("outer", &self.outer).finish_non_exhaustive()
    }
}
