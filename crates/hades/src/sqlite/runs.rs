//! Sandboxes: accepting, finding, ending, and what their nodes report.

use std::collections::BTreeSet;

use async_trait::async_trait;
use rusqlite::{Connection, params};
use tartarus_types::sandbox::Denied;
use tartarus_types::{Event, LeaseToken, SandboxId, SandboxSpec, SnapshotUse, State, Timestamp};

use super::row::{Row, all, clip, json, one, parse, select, state, text, unsigned};
use super::transition::{transition, transition_by_holder};
use super::worker::Tx;
use super::{Sqlite, acheron, cocytus};
use crate::store::{Accepted, Idempotency, KillAsked, ListFilter, NewSandbox, Record, Retention, RunStore, StoreError};

/// An idempotency key lives so long, ms.
const KEY_MS: i64 = 24 * 3600 * 1000;
/// Expired keys that one accept takes away. More than it adds, so that they do not pile up.
const KEYS_SWEPT: i64 = 16;
/// Largest progress report, bytes: a peer sends it.
const MAX_PROGRESS: usize = 64 << 10;
/// What nothing survives.
const SIGKILL: i32 = 9;

pub(super) const SWEEP: &str = "DELETE FROM idempotency WHERE rowid IN \
                                (SELECT rowid FROM idempotency WHERE at <= ?1 ORDER BY at LIMIT ?2)";
pub(super) const BY_NAME: &str = select!("WHERE name = ?1 ORDER BY seq DESC LIMIT 1");
pub(super) const BY_PREFIX: &str = select!("WHERE id >= ?1 AND id < ?1 || '~' LIMIT 2");
pub(super) const LIST_ALL: &str = select!("ORDER BY seq DESC LIMIT ?1");
pub(super) const MAKER: &str = select!("WHERE makes = ?1 ORDER BY seq DESC LIMIT 1");
const MAKING: &str = select!("WHERE makes = ?1 AND ended_at IS NULL");
pub(super) const ENDED: &str = "SELECT id, ended_at FROM sandboxes WHERE ended_at IS NOT NULL AND ended_at <= ?1 \
                                ORDER BY ended_at, seq LIMIT ?2";
/// The end of the newest that is one too many.
pub(super) const SURPLUS: &str = "SELECT ended_at FROM sandboxes WHERE ended_at IS NOT NULL \
                                  ORDER BY ended_at DESC, seq DESC LIMIT 1 OFFSET ?1";
pub(super) const COUNT_ENDED: &str = "SELECT count(*) FROM sandboxes WHERE ended_at IS NOT NULL";
pub(super) const FORGET: &str = "DELETE FROM sandboxes WHERE id = ?1 AND ended_at IS NOT NULL";
pub(super) const IN_USE: &str = "SELECT image, kernel FROM sandboxes WHERE ended_at IS NULL";
pub(super) const POPULATION: &str =
    "SELECT state, count(*) FROM sandboxes WHERE ended_at IS NULL GROUP BY state ORDER BY state";
pub(super) const LIST_LIVE: &str = select!("WHERE ended_at IS NULL ORDER BY seq DESC LIMIT ?1");

fn accept(tx: &mut Tx<'_>, new: NewSandbox, now: Timestamp) -> Result<Accepted, StoreError> {
    let expired = now.0.saturating_sub(KEY_MS * 1000);
    tx.conn.prepare_cached(SWEEP)?.execute([expired, KEYS_SWEPT])?;
    if let Some(key) = &new.idempotency
        && let Some(record) = replay(tx.conn, key, expired)?
    {
        return Ok(Accepted::Replay(Box::new(record)));
    }
    if let Some(name) = &new.name {
        let taken = "SELECT id FROM sandboxes WHERE name = ?1 AND ended_at IS NULL";
        if text(tx.conn, taken, [name])?.is_some() {
            return Err(StoreError::NameTaken(name.clone()));
        }
    }

    if let Some(golden) = makes(&new.spec)
        && let Some(row) = one(tx.conn, MAKING, [golden], Row::read)?
    {
        return Ok(Accepted::Replay(Box::new(row.record)));
    }

    let record = Record {
        id: new.id,
        name: new.name,
        labels: new.labels,
        state: State::Queued,
        created_at: now,
        started_at: None,
        ended_at: None,
        attempts: 0,
        node: None,
        outcome: None,
        kill: None,
        remove: false,
        progress: None,
        spec: new.spec,
    };
    insert(tx.conn, &record)?;
    acheron::append(tx.conn, tx.conn.last_insert_rowid(), now.plus_ms(record.spec.start_timeout_ms))?;
    if let Some(key) = new.idempotency {
        remember(tx.conn, &key, &record, now)?;
    }
    tx.changed.push(record.id.clone());
    Ok(Accepted::New(Box::new(record)))
}

/// The golden snapshot that the sandbox becomes.
fn makes(spec: &SandboxSpec) -> Option<&str> {
    spec.golden.as_deref().filter(|_| spec.snapshot == SnapshotUse::Make)
}

/// What `rule` keeps no longer. Of several that ended in the same microsecond as the first that is one too many, only
/// so many are given as are too many.
fn expired(conn: &Connection, rule: Retention, limit: u32) -> Result<Vec<SandboxId>, StoreError> {
    let surplus = one(conn, SURPLUS, [rule.newest], |row| Ok(row.get::<_, i64>(0)?))?;
    let until = surplus.map_or(rule.after.0, |at| at.max(rule.after.0));
    let total: i64 = one(conn, COUNT_ENDED, [], |row| Ok(row.get(0)?))?.unwrap_or(0);
    let too_many = usize::try_from(total - i64::from(rule.newest)).unwrap_or(0);
    let found = all(conn, ENDED, [until, i64::from(limit)], |row| {
        Ok((parse::<SandboxId>(row.get(0)?)?, row.get::<_, i64>(1)?))
    })?;
    let expired = found.into_iter().enumerate().filter(|(index, (_, at))| *at <= rule.after.0 || *index < too_many);
    Ok(expired.map(|(_, (id, _))| id).collect())
}

fn insert(conn: &Connection, record: &Record) -> Result<(), StoreError> {
    let spec = &record.spec;
    conn.prepare_cached(
        "INSERT INTO sandboxes (id, name, state, created_at, attempts, memory_mib, cpus, image, kernel, remove, \
         labels, spec, makes) VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8, 0, ?9, ?10, ?11)",
    )?
    .execute(params![
        record.id.as_str(),
        record.name,
        record.state.as_str(),
        record.created_at.0,
        spec.memory_mib,
        spec.cpus,
        spec.image,
        spec.kernel,
        serde_json::to_string(&record.labels)?,
        serde_json::to_string(spec)?,
        makes(spec),
    ])?;
    Ok(())
}

/// The record that `key` stands for, as it was accepted.
fn replay(conn: &Connection, key: &Idempotency, expired: i64) -> Result<Option<Record>, StoreError> {
    let sql = "SELECT request, answer FROM idempotency WHERE caller = ?1 AND key = ?2 AND at > ?3";
    let found = one(conn, sql, params![key.caller, key.key, expired], |row| {
        Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, String>(1)?))
    })?;
    match found {
        None => Ok(None),
        Some((request, _)) if request != key.request => Err(StoreError::IdempotencyMismatch),
        Some((_, answer)) => json(answer).map(Some),
    }
}

/// Replaces an expired key of the same name that was not swept yet.
fn remember(conn: &Connection, key: &Idempotency, record: &Record, now: Timestamp) -> Result<(), StoreError> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO idempotency (caller, key, request, at, answer) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![key.caller, key.key, key.request, now.0, serde_json::to_string(record)?])?;
    Ok(())
}

/// See [`RunStore::resolve`]. A whole id wins over a name, so that nobody can name a sandbox like another's id.
fn resolve(conn: &Connection, reference: &str) -> Result<Record, StoreError> {
    if let Ok(id) = reference.parse()
        && let Some(row) = Row::by_id(conn, &id)?
    {
        return Ok(row.record);
    }
    // A name is free only once its bearer has ended, so the newest bearer is the one that has not.
    if let Some(row) = one(conn, BY_NAME, [reference], Row::read)? {
        return Ok(row.record);
    }
    let shown = || clip(reference, 80).to_owned();
    let prefix = reference.strip_prefix(SandboxId::PREFIX).unwrap_or(reference);
    if prefix.is_empty() || prefix.len() > 16 || !prefix.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(StoreError::NotFound("sandbox", shown()));
    }
    let mut rows = all(conn, BY_PREFIX, [format!("{}{prefix}", SandboxId::PREFIX)], Row::read)?;
    match (rows.pop(), rows.pop()) {
        (None, _) => Err(StoreError::NotFound("sandbox", shown())),
        (Some(row), None) => Ok(row.record),
        (Some(_), Some(_)) => Err(StoreError::Ambiguous(shown())),
    }
}

fn kill(
    tx: &mut Tx<'_>,
    id: &SandboxId,
    kill: KillAsked,
    remove: bool,
    now: Timestamp,
) -> Result<Option<Record>, StoreError> {
    let mut row = Row::by_id(tx.conn, id)?.ok_or_else(|| StoreError::NotFound("sandbox", id.to_string()))?;
    if row.record.state.is_terminal() {
        if !remove {
            return Err(Denied::Ended.into());
        }
        row.delete(tx.conn)?;
        tx.changed.push(id.clone());
        return Ok(None);
    }
    row.record.remove |= remove;
    row.record.kill = Some(match row.record.kill.take() {
        Some(first) => stronger(first, kill),
        None => kill,
    });
    if row.record.state == State::Terminating {
        row.save(tx.conn)?;
        tx.changed.push(id.clone());
    } else {
        transition(tx, &mut row, Event::Kill, now)?;
    }
    let gone = row.record.remove && row.record.state.is_terminal();
    Ok((!gone).then_some(row.record))
}

/// A second wish replaces the first when it is sooner, or is SIGKILL where the first was not; it never makes the end
/// later or softer.
fn stronger(first: KillAsked, second: KillAsked) -> KillAsked {
    let harder = second.signal == SIGKILL && first.signal != SIGKILL;
    if !harder && second.grace_ms >= first.grace_ms {
        return first;
    }
    let signal = if first.signal == SIGKILL { SIGKILL } else { second.signal };
    KillAsked { signal, grace_ms: first.grace_ms.min(second.grace_ms) }
}

fn check_progress(progress: Option<&str>) -> Result<(), StoreError> {
    match progress {
        Some(text) if text.len() > MAX_PROGRESS => {
            let size = text.len();
            Err(StoreError::Engine(format!("a progress report has {size} bytes of {MAX_PROGRESS} at most")))
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl RunStore for Sqlite {
    async fn accept(&self, new: NewSandbox, now: Timestamp) -> Result<Accepted, StoreError> {
        self.write(move |tx| accept(tx, new, now)).await
    }

    async fn replay(&self, key: &Idempotency, now: Timestamp) -> Result<Option<Record>, StoreError> {
        let key = key.clone();
        self.read(move |conn| replay(conn, &key, now.0.saturating_sub(KEY_MS * 1000))).await
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<Record>, StoreError> {
        let id = id.clone();
        self.read(move |conn| Ok(Row::by_id(conn, &id)?.map(|row| row.record))).await
    }

    async fn resolve(&self, reference: &str) -> Result<Record, StoreError> {
        let reference = reference.to_owned();
        self.read(move |conn| resolve(conn, &reference)).await
    }

    async fn list(&self, filter: ListFilter) -> Result<Vec<Record>, StoreError> {
        let sql = if filter.ended { LIST_ALL } else { LIST_LIVE };
        self.read(move |conn| all(conn, sql, [filter.limit], |row| Ok(Row::read(row)?.record))).await
    }

    async fn queue_position(&self, id: &SandboxId) -> Result<Option<u64>, StoreError> {
        let id = id.clone();
        self.read(move |conn| acheron::position(conn, &id)).await
    }

    async fn kill(
        &self,
        id: &SandboxId,
        asked: KillAsked,
        remove: bool,
        now: Timestamp,
    ) -> Result<Option<Record>, StoreError> {
        let id = id.clone();
        self.write(move |tx| kill(tx, &id, asked, remove, now)).await
    }

    async fn apply(
        &self,
        id: &SandboxId,
        token: &LeaseToken,
        event: Event,
        progress: Option<String>,
        now: Timestamp,
    ) -> Result<Record, StoreError> {
        check_progress(progress.as_deref())?;
        let (id, token) = (id.clone(), token.clone());
        self.write(move |tx| {
            let mut row = Row::held(tx.conn, &id, &token)?;
            if progress.is_some() {
                row.record.progress = progress;
            }
            transition_by_holder(tx, &mut row, event, now)?;
            Ok(row.record)
        })
        .await
    }

    async fn progress(&self, id: &SandboxId, token: &LeaseToken, progress: String) -> Result<(), StoreError> {
        check_progress(Some(&progress))?;
        let (id, token) = (id.clone(), token.clone());
        self.write(move |tx| {
            let mut row = Row::held(tx.conn, &id, &token)?;
            if row.record.state.is_terminal() {
                return Err(Denied::Ended.into());
            }
            row.record.progress = Some(progress);
            row.save(tx.conn)?;
            tx.changed.push(id);
            Ok(())
        })
        .await
    }

    async fn failures(&self, id: &SandboxId) -> Result<Vec<String>, StoreError> {
        let id = id.clone();
        self.read(move |conn| cocytus::failures(conn, &id)).await
    }

    async fn maker(&self, golden: &str) -> Result<Option<Record>, StoreError> {
        let golden = golden.to_owned();
        self.read(move |conn| Ok(one(conn, MAKER, [golden], Row::read)?.map(|row| row.record))).await
    }

    async fn expired(&self, rule: Retention, limit: u32) -> Result<Vec<SandboxId>, StoreError> {
        self.read(move |conn| expired(conn, rule, limit)).await
    }

    async fn forget(&self, ids: &[SandboxId]) -> Result<Vec<SandboxId>, StoreError> {
        let ids = ids.to_vec();
        self.write(move |tx| {
            let mut forget = tx.conn.prepare_cached(FORGET)?;
            let mut gone = Vec::with_capacity(ids.len());
            for id in ids {
                if forget.execute([id.as_str()])? == 1 {
                    gone.push(id);
                }
            }
            tx.changed.extend(gone.iter().cloned());
            Ok(gone)
        })
        .await
    }

    async fn population(&self) -> Result<Vec<(State, u64)>, StoreError> {
        let one = |row: &rusqlite::Row<'_>| Ok((state(&row.get::<_, String>(0)?)?, unsigned(row.get(1)?)));
        self.read(move |conn| all(conn, POPULATION, [], one)).await
    }

    async fn digests_in_use(&self) -> Result<BTreeSet<String>, StoreError> {
        let both = |row: &rusqlite::Row<'_>| Ok([row.get::<_, String>(0)?, row.get(1)?]);
        self.read(move |conn| Ok(all(conn, IN_USE, [], both)?.into_iter().flatten().collect())).await
    }
}
