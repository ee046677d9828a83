//! Connections of clients that are carried to ports of one guest's loopback, by the guest protocol's session.
//!
//! Nothing here waits for a client: what comes from the guest is put into its connection's inbox, which the protocol's window
//! bounds, and a client that does not take it holds back its own connection alone. Everything from the guest is hostile: what
//! breaks a rule ends the session, as any other frame does that breaks one.

mod client;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tartarus_guest::flow::{Incoming, Outgoing};
use tartarus_guest::{CARRIES, Frame, Header, Kind, MAX_CARRIED, Malformed};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::link::words;
use crate::outbox::{DIAL, Outbox};

pub(crate) use client::serve;

/// All connections of a session.
pub(crate) struct Carriers {
    outbox: Arc<Outbox>,
    /// The agent's version of the protocol.
    version: u32,
    table: Mutex<Table>,
    slots: Arc<Semaphore>,
    /// Bytes went through one of them then.
    used_at: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Table {
    /// The session is over.
    over: bool,
    /// The highest number that one ever had: those up to it that are not there are over.
    highest: u32,
    open: BTreeMap<u32, Arc<Carrier>>,
}

/// One connection.
struct Carrier {
    state: Mutex<State>,
    stage: watch::Sender<Stage>,
    /// There is something in the inbox, or it ended.
    arrived: Notify,
    /// The guest took something.
    taken: Notify,
}

#[derive(Default)]
struct State {
    outgoing: Outgoing,
    incoming: Incoming,
    /// What came and was not taken out yet; bounded by the window.
    inbox: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Dialling,
    Open,
    /// Refused or cut off by the guest, or the session is over.
    Over,
}

/// A connection that was asked for. Dropping it cuts it off, unless it is over.
struct Dialled {
    carriers: Arc<Carriers>,
    carrier: Arc<Carrier>,
    number: u32,
    _slot: OwnedSemaphorePermit,
}

impl Carrier {
    fn new() -> Self {
        let stage = watch::Sender::new(Stage::Dialling);
        Self { state: Mutex::default(), stage, arrived: Notify::new(), taken: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carriers {
    /// For a session with an agent of this version.
    pub(crate) fn new(outbox: Arc<Outbox>, version: u32) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_CARRIED));
        Self { outbox, version, table: Mutex::default(), slots, used_at: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the agent knows of such connections: one of an older snapshot takes the frames for noise.
    pub(crate) fn are_known(&self) -> bool {
        self.version >= CARRIES
    }

    /// When one of them was used last.
    pub(crate) fn used_at(&self) -> Option<Instant> {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Waits until there are fewer connections than there may be; `None` when the session is over.
    pub(crate) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().acquire_owned().await.ok()
    }

    /// Asks for a connection; `None` when the session is over.
    async fn dial(self: &Arc<Self>, slot: OwnedSemaphorePermit, port: u16) -> Option<Dialled> {
        let room = self.outbox.room(DIAL).await?;
        let carrier = Arc::new(Carrier::new());
        // Under one lock, so that the guest sees the numbers in their order.
        let mut table = self.lock();
        let number = table.highest.checked_add(1).filter(|_| !table.over && self.are_known())?;
        table.highest = number;
        table.open.insert(number, carrier.clone());
        self.outbox.carried(room, Header { offset: port.into(), ..Header::new(Kind::Dial, number) }, &[]);
        drop(table);
        self.used();
        Some(Dialled { carriers: self.clone(), carrier, number, _slot: slot })
    }

    /// The session is over, and all of them with it.
    pub(crate) fn close(&self) {
        let mut table = self.lock();
        table.over = true;
        let open = std::mem::take(&mut table.open);
        drop(table);
        self.slots.close();
        self.outbox.close();
        for carrier in open.into_values() {
            carrier.stage.send_replace(Stage::Over);
        }
    }

    /// Takes a frame about a connection. One about a connection that is over was on its way, and means nothing.
    ///
    /// # Errors
    /// When the guest breaks a rule.
    pub(crate) fn heard(&self, frame: Frame) -> Result<(), Malformed> {
        let Frame { header: Header { kind, process: number, offset, .. }, payload } = frame;
        let astray = || Malformed::Carried(kind, number);
        let carrier = {
            let table = self.lock();
            if number == 0 || number > table.highest {
                return Err(astray());
            }
            let Some(carrier) = table.open.get(&number) else { return Ok(()) };
            carrier.clone()
        };
        let answers = matches!(kind, Kind::Dialed | Kind::Refused);
        if answers != (*carrier.stage.borrow() == Stage::Dialling) {
            return Err(astray());
        }
        match kind {
            Kind::Dialed => drop(carrier.stage.send_replace(Stage::Open)),
            Kind::Refused | Kind::Cut => {
                tracing::debug!(connection = number, why = words(&payload), "a connection ended in the guest");
                self.lock().open.remove(&number);
                carrier.stage.send_replace(Stage::Over);
            }
            Kind::Carry if payload.is_empty() => return Err(astray()),
            Kind::Carry => {
                let mut state = carrier.lock();
                state.incoming.receive(offset, payload.len())?;
                state.inbox.extend_from_slice(&payload);
                drop(state);
                carrier.arrived.notify_one();
            }
            Kind::CarryEof => {
                carrier.lock().incoming.end(offset)?;
                carrier.arrived.notify_one();
            }
            Kind::Carried => {
                carrier.lock().outgoing.taken(offset)?;
                carrier.taken.notify_one();
            }
            _ => return Err(astray()),
        }
        Ok(())
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        let state = self.carrier.lock();
        let over = state.outgoing.is_over() && state.incoming.is_over();
        drop(state);
        let known = self.carriers.lock().open.remove(&self.number).is_some();
        if known && !over {
            self.carriers.outbox.frame(Header::new(Kind::Cut, self.number), &[]);
        }
    }
}

#[cfg(test)]
mod tests;
