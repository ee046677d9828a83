//! Cocytus: failures of attempts, and dead letters (queue entries that were given up).

use rusqlite::{Connection, params};
use tartarus_types::{Event, SandboxId, State, Timestamp};

use super::row::{Row, all, clip, parse};
use crate::store::{DeadLetter, Record, StoreError};

/// Most of a cause that is kept, bytes: it comes from a node, which may have it from a guest.
const MAX_CAUSE: usize = 4096;

/// Most dead letters in one answer.
const MAX_LETTERS: i64 = 1000;

const DEAD_LETTERS: &str = "SELECT s.id, d.at, d.why FROM dead_letters d JOIN sandboxes s ON s.seq = d.sandbox \
                            ORDER BY d.at DESC, d.sandbox DESC LIMIT ?1";

/// The same event, what people wrote in it within bounds.
pub(super) fn bounded(event: Event) -> Event {
    match event {
        Event::GiveBack { tries_left, why } => Event::GiveBack { tries_left, why: clip(&why, MAX_CAUSE).to_owned() },
        Event::End(mut outcome) => {
            outcome.message = outcome.message.map(|message| clip(&message, MAX_CAUSE).to_owned());
            Event::End(outcome)
        }
        other => other,
    }
}

/// Why the attempt has failed, if `event` says that it has.
pub(super) fn failure(record: &Record, event: &Event) -> Option<String> {
    match event {
        Event::GiveBack { why, .. } => Some(why.clone()),
        Event::LeaseLost { .. } => Some("its node was not heard of any more".to_owned()),
        Event::End(outcome) if record.started_at.is_none() && outcome.state() == State::Failed => {
            let why = outcome.message.clone();
            Some(why.unwrap_or_else(|| "it ended before its command began".to_owned()))
        }
        Event::End(_)
        | Event::Lease
        | Event::Prepare
        | Event::Begin
        | Event::Pause
        | Event::Resume
        | Event::Kill
        | Event::StartTimeout => None,
    }
}

/// Writes down the failure of the newest attempt.
pub(super) fn record_failure(conn: &Connection, row: &Row, why: &str, now: Timestamp) -> Result<(), StoreError> {
    let node = row.record.node.as_ref().map(|node| node.as_str());
    conn.prepare_cached("INSERT INTO failures (sandbox, attempt, at, node, why) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![row.seq, row.record.attempts, now.0, node, why])?;
    Ok(())
}

/// Keeps what became of a queue entry that will not be tried again.
pub(super) fn bury(conn: &Connection, row: &Row, now: Timestamp) -> Result<(), StoreError> {
    let outcome = row.record.outcome.as_ref();
    let why = outcome.and_then(|outcome| outcome.message.as_deref()).unwrap_or("given up");
    conn.prepare_cached("INSERT INTO dead_letters (sandbox, at, why) VALUES (?1, ?2, ?3)")?
        .execute(params![row.seq, now.0, why])?;
    Ok(())
}

pub(super) fn failures(conn: &Connection, id: &SandboxId) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT f.why FROM failures f JOIN sandboxes s ON s.seq = f.sandbox WHERE s.id = ?1 ORDER BY f.attempt";
    all(conn, sql, [id.as_str()], |row| Ok(row.get(0)?))
}

pub(super) fn dead_letters(conn: &Connection) -> Result<Vec<DeadLetter>, StoreError> {
    all(conn, DEAD_LETTERS, [MAX_LETTERS], |row| {
        Ok(DeadLetter { id: parse(row.get(0)?)?, at: Timestamp(row.get(1)?), why: row.get(2)? })
    })
}
