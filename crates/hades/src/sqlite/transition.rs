//! The one way a sandbox's state changes: `step`, and its effects in the same transaction.

use tartarus_types::sandbox::{Denied, Effect};
use tartarus_types::{Event, Timestamp, step};

use super::row::Row;
use super::worker::Tx;
use super::{acheron, cocytus};
use crate::store::{QueueRules, StoreError};

/// Applies `event` to `row` and writes it, the queue entry, the failure and the dead letter. A record marked `remove`
/// is deleted when it ends; `row` then holds its last state.
pub(super) fn transition(tx: &mut Tx<'_>, row: &mut Row, event: Event, now: Timestamp) -> Result<(), StoreError> {
    let event = cocytus::bounded(limit_tries(event, row.record.attempts, tx.rules));
    let failure = cocytus::failure(&row.record, &event);
    let begins = event == Event::Begin;
    let next = step(row.record.state, event)?;

    row.record.state = next.state;
    if begins {
        row.record.started_at = Some(now);
    }
    if let Some(outcome) = next.outcome {
        row.record.outcome = Some(outcome);
        row.record.ended_at = Some(now);
    }
    if let Some(why) = failure {
        cocytus::record_failure(tx.conn, row, &why, now)?;
    }
    for effect in next.effects {
        match effect {
            Effect::Ack => acheron::remove(tx.conn, row.seq)?,
            Effect::Requeue => {
                acheron::requeue(tx.conn, row.seq, tx.rules, now)?;
                row.token = None;
            }
            Effect::DeadLetter => {
                acheron::remove(tx.conn, row.seq)?;
                cocytus::bury(tx.conn, row, now)?;
            }
            // What is reserved is computed from the sandboxes that hold a lease, and what the node must hear from the
            // kills on record: both follow from the row.
            Effect::Release | Effect::TellNode => {}
        }
    }
    if row.record.remove && next.state.is_terminal() {
        row.delete(tx.conn)?;
    } else {
        row.save(tx.conn)?;
    }
    tx.changed.push(row.record.id.clone());
    Ok(())
}

/// The event of a token's holder, which may not lease, kill or time out in the store's name.
pub(super) fn transition_by_holder(
    tx: &mut Tx<'_>,
    row: &mut Row,
    event: Event,
    now: Timestamp,
) -> Result<(), StoreError> {
    match event {
        Event::Prepare
        | Event::Begin
        | Event::Pause
        | Event::Resume
        | Event::GiveBack { .. }
        | Event::LeaseLost { .. }
        | Event::End(_) => transition(tx, row, event, now),
        Event::Lease | Event::Kill | Event::StartTimeout if row.record.state.is_terminal() => Err(Denied::Ended.into()),
        Event::Lease | Event::Kill | Event::StartTimeout => Err(Denied::WrongState(row.record.state).into()),
    }
}

/// Whoever sends the event may know that another try is useless; only the store knows how many were made.
fn limit_tries(event: Event, attempts: u32, rules: QueueRules) -> Event {
    let left = attempts < rules.max_attempts;
    match event {
        Event::GiveBack { tries_left, why } => Event::GiveBack { tries_left: tries_left && left, why },
        Event::LeaseLost { tries_left } => Event::LeaseLost { tries_left: tries_left && left },
        other => other,
    }
}
