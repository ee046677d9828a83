//! A sandbox's record as a row, and small conversions between Rust's and SQLite's types.

use std::str::FromStr;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, named_params};
use serde::de::DeserializeOwned;
use tartarus_types::{LeaseToken, SandboxId, State, Timestamp};

use crate::store::{KillAsked, Record, StoreError};

/// Columns that [`Row::read`] expects.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT seq, id, name, labels, state, spec, created_at, started_at, ended_at, attempts, node, token, \
             outcome, kill_signal, kill_grace_ms, remove, progress FROM sandboxes ",
            $rest
        )
    };
}
pub(super) use select;

/// A record with what only the store knows of it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) seq: i64,
    /// Of the newest lease; stays when the sandbox ends, goes when it is queued again.
    pub(super) token: Option<LeaseToken>,
    pub(super) record: Record,
}

/// The state of this name.
pub(super) fn state(name: &str) -> Result<State, StoreError> {
    State::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(|| unreadable(name))
}

impl Row {
    pub(super) fn read(row: &rusqlite::Row<'_>) -> Result<Self, StoreError> {
        let kill = match (row.get("kill_signal")?, row.get("kill_grace_ms")?) {
            (Some(signal), Some(grace_ms)) => Some(KillAsked { signal, grace_ms: unsigned(grace_ms) }),
            _ => None,
        };
        let named: String = row.get("state")?;
        Ok(Self {
            seq: row.get("seq")?,
            token: row.get::<_, Option<String>>("token")?.map(parse).transpose()?,
            record: Record {
                id: parse(row.get("id")?)?,
                name: row.get("name")?,
                labels: json(row.get("labels")?)?,
                state: state(&named)?,
                spec: json(row.get("spec")?)?,
                created_at: Timestamp(row.get("created_at")?),
                started_at: row.get::<_, Option<i64>>("started_at")?.map(Timestamp),
                ended_at: row.get::<_, Option<i64>>("ended_at")?.map(Timestamp),
                attempts: row.get("attempts")?,
                node: row.get::<_, Option<String>>("node")?.map(parse).transpose()?,
                outcome: row.get::<_, Option<String>>("outcome")?.map(json).transpose()?,
                kill,
                remove: row.get("remove")?,
                progress: row.get("progress")?,
            },
        })
    }

    pub(super) fn by_id(conn: &Connection, id: &SandboxId) -> Result<Option<Self>, StoreError> {
        one(conn, select!("WHERE id = ?1"), [id.as_str()], Self::read)
    }

    pub(super) fn by_seq(conn: &Connection, seq: i64) -> Result<Self, StoreError> {
        one(conn, select!("WHERE seq = ?1"), [seq], Self::read)?.ok_or_else(|| unreadable("a queue entry's sandbox"))
    }

    /// The row of `id`, which `token` must be the newest lease of.
    pub(super) fn held(conn: &Connection, id: &SandboxId, token: &LeaseToken) -> Result<Self, StoreError> {
        let row = Self::by_id(conn, id)?.ok_or_else(|| StoreError::NotFound("sandbox", id.to_string()))?;
        if row.token.as_ref() != Some(token) {
            return Err(StoreError::Fenced);
        }
        Ok(row)
    }

    /// Writes everything that may have changed since it was accepted.
    pub(super) fn save(&self, conn: &Connection) -> Result<(), StoreError> {
        let record = &self.record;
        conn.prepare_cached(
            "UPDATE sandboxes SET state = :state, started_at = :started_at, ended_at = :ended_at, \
             attempts = :attempts, node = :node, token = :token, outcome = :outcome, kill_signal = :kill_signal, \
             kill_grace_ms = :kill_grace_ms, remove = :remove, progress = :progress WHERE seq = :seq",
        )?
        .execute(named_params! {
            ":seq": self.seq,
            ":state": record.state.as_str(),
            ":started_at": record.started_at.map(|t| t.0),
            ":ended_at": record.ended_at.map(|t| t.0),
            ":attempts": record.attempts,
            ":node": record.node.as_ref().map(|n| n.as_str()),
            ":token": self.token.as_ref().map(|t| t.as_str()),
            ":outcome": record.outcome.as_ref().map(serde_json::to_string).transpose()?,
            ":kill_signal": record.kill.as_ref().map(|k| k.signal),
            ":kill_grace_ms": record.kill.as_ref().map(|k| signed(k.grace_ms)),
            ":remove": record.remove,
            ":progress": record.progress,
        })?;
        Ok(())
    }

    /// Forgets it, with its failures and its dead letter.
    pub(super) fn delete(&self, conn: &Connection) -> Result<(), StoreError> {
        conn.prepare_cached("DELETE FROM sandboxes WHERE seq = ?1")?.execute([self.seq])?;
        Ok(())
    }
}

/// The first row, if there is one.
pub(super) fn one<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&rusqlite::Row<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    rows.next()?.map(read).transpose()
}

/// All rows.
pub(super) fn all<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&rusqlite::Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement: CachedStatement<'_> = conn.prepare_cached(sql)?;
    statement.query_and_then(params, read)?.collect()
}

/// The first column of the first row, if there is one.
pub(super) fn text(conn: &Connection, sql: &str, params: impl Params) -> Result<Option<String>, StoreError> {
    Ok(conn.prepare_cached(sql)?.query_row(params, |row| row.get(0)).optional()?)
}

/// SQLite's integers are signed: what is larger is written as the largest, and never meant so.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The other way; nothing negative is ever written.
pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

pub(super) fn json<T: DeserializeOwned>(text: String) -> Result<T, StoreError> {
    Ok(serde_json::from_str(&text)?)
}

pub(super) fn parse<T: FromStr>(text: String) -> Result<T, StoreError> {
    text.parse().map_err(|_| unreadable(&text))
}

fn unreadable(what: &str) -> StoreError {
    StoreError::Engine(format!("a record is not readable: {what}"))
}

/// At most `max` bytes of `text`, cut between characters.
pub(super) fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
