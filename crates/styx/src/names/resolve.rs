//! One sandbox's questions, from bytes to bytes.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tartarus_types::Timestamp;
use tartarus_types::net::Contract;
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;

use super::pins::{LONGER, Memory};
use super::policy::{Verdict, Why, judge};
use super::screen::{clamp_ttl, screen};
use super::upstream::Found;
use super::wire::{Code, Question, reply};
use super::{Pins, Refused, Upstream};

/// How long a pin may take: nobody waits longer for an answer.
const PIN_TIME: Duration = Duration::from_secs(2);

/// What one name is answered with.
#[derive(Debug, Clone)]
struct Outcome {
    code: Code,
    addresses: Vec<Ipv4Addr>,
    ttl: u32,
    why: Option<Why>,
}

impl From<Code> for Outcome {
    fn from(code: Code) -> Self {
        Self { code, addresses: Vec::new(), ttl: 0, why: None }
    }
}

/// All that questions of one sandbox share.
pub(super) struct Desk {
    upstream: Arc<Upstream>,
    pins: Arc<dyn Pins>,
    refused: Arc<Refused>,
    clock: fn() -> Timestamp,
    state: Mutex<State>,
}

struct State {
    contract: watch::Receiver<Arc<Contract>>,
    /// How many contracts there have been.
    epoch: u64,
    memory: Memory,
    /// What is being asked for now, under the contract of this epoch. As many as questions in flight.
    flights: HashMap<String, Arc<OnceCell<Outcome>>>,
}

impl Desk {
    pub(super) fn new(
        contract: watch::Receiver<Arc<Contract>>,
        upstream: Arc<Upstream>,
        pins: Arc<dyn Pins>,
        refused: Arc<Refused>,
        clock: fn() -> Timestamp,
    ) -> Self {
        let state = State { contract, epoch: 0, memory: Memory::default(), flights: HashMap::new() };
        Self { upstream, pins, refused, clock, state: Mutex::new(state) }
    }

    /// Looks at what is shared, and at the contract in force. With each contract that is sent, be it equal, all pins are
    /// taken for gone: that is how whoever mends a ruleset says so.
    fn with<T>(&self, look: impl FnOnce(&mut State, &Arc<Contract>) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = state.contract.borrow_and_update();
        let (changed, contract) = (latest.has_changed(), latest.clone());
        drop(latest);
        if changed {
            state.epoch += 1;
            state.memory.clear();
            state.flights.clear();
        }
        look(&mut state, &contract)
    }

    /// The answer, where nobody has to be asked for it.
    pub(super) fn at_once(&self, question: &Question, limit: usize) -> Option<Vec<u8>> {
        match judge(&self.with(|_, contract| contract.clone()), question) {
            Verdict::Forward { .. } => None,
            Verdict::Empty => Some(reply(question, Code::NoError, &[], 0, limit)),
            Verdict::Refuse(why) => Some(self.refuse(question, why, limit)),
        }
    }

    /// The answer; within 7 s, whoever is asked for it.
    pub(super) async fn answer(&self, question: &Question, limit: usize) -> Vec<u8> {
        // Once more when the contract changed meanwhile; a guest does not change it, so not for ever.
        for _ in 0..3 {
            let (epoch, contract) = self.with(|state, contract| (state.epoch, contract.clone()));
            let (name, pin) = match judge(&contract, question) {
                Verdict::Forward { name, pin } => (name, pin),
                Verdict::Empty => return reply(question, Code::NoError, &[], 0, limit),
                Verdict::Refuse(why) => return self.refuse(question, why, limit),
            };
            let outcome = self.shared(name, pin, &contract, epoch).await;
            if self.with(|state, _| state.epoch) != epoch {
                continue;
            }
            return match outcome.why {
                Some(why) => self.refuse(question, why, limit),
                None => reply(question, outcome.code, &outcome.addresses, outcome.ttl, limit),
            };
        }
        reply(question, Code::ServFail, &[], 0, limit)
    }

    fn refuse(&self, question: &Question, why: Why, limit: usize) -> Vec<u8> {
        self.refused.add(&question.shown(), &why.to_string(), (self.clock)());
        reply(question, Code::Refused, &[], 0, limit)
    }

    /// What `name` is answered with; whoever asks for it meanwhile gets the same.
    async fn shared(&self, name: &str, pin: bool, contract: &Contract, epoch: u64) -> Outcome {
        let flight = self
            .with(|state, _| (state.epoch == epoch).then(|| state.flights.entry(name.to_owned()).or_default().clone()));
        // The caller asks again, under the contract that came meanwhile.
        let Some(flight) = flight else { return Code::ServFail.into() };
        // When the task that asks is ended, another that waits goes on in its place.
        let outcome = flight.get_or_init(|| self.look_up(name, pin, contract, epoch)).await.clone();
        self.with(|state, _| {
            if state.flights.get(name).is_some_and(|current| Arc::ptr_eq(current, &flight)) {
                state.flights.remove(name);
            }
        });
        outcome
    }

    async fn look_up(&self, name: &str, pin: bool, contract: &Contract, epoch: u64) -> Outcome {
        let (found, ttl) = match self.upstream.addresses(name).await {
            Ok(Found::Addresses(found, ttl)) => (found, clamp_ttl(ttl)),
            Ok(Found::Absent) => return Code::NxDomain.into(),
            Err(error) => {
                tracing::debug!(%error, "a sandbox's question is not answered");
                return Code::ServFail.into();
            }
        };
        let addresses = screen(contract, &found);
        if addresses.is_empty() && !found.is_empty() {
            return Outcome { why: Some(Why::PrivateAnswer), ..Code::Refused.into() };
        }
        if pin && let Err(error) = self.pin(&addresses, Duration::from_secs(ttl.into()), contract, epoch).await {
            tracing::warn!(%name, %error, "the answer to a sandbox's question cannot be made reachable");
            return Code::ServFail.into();
        }
        Outcome { code: Code::NoError, addresses, ttl, why: None }
    }

    /// Makes `addresses` reachable for `ttl`, those that are not.
    async fn pin(&self, addresses: &[Ipv4Addr], ttl: Duration, contract: &Contract, epoch: u64) -> Result<(), String> {
        let before = Instant::now();
        let lacks = self.with(|state, _| (state.epoch == epoch).then(|| state.memory.lacks(addresses, ttl, before)));
        let lacks = lacks.ok_or_else(|| "the contract has changed".to_owned())?;
        if lacks.is_empty() {
            return Ok(());
        }
        let timed: Vec<_> = lacks.iter().map(|address| (*address, ttl + LONGER)).collect();
        let pinned = tokio::time::timeout(PIN_TIME, self.pins.pin(&timed, contract)).await;
        pinned.unwrap_or_else(|_| Err("it took more than 2 s".to_owned()))?;
        self.with(|state, _| {
            if state.epoch == epoch {
                state.memory.add(&lacks, before + ttl + LONGER, Instant::now());
            }
        });
        Ok(())
    }
}
