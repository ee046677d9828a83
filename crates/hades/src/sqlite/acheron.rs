//! Acheron: the job queue. An entry waits or is leased for as long as its sandbox has not ended.
//!
//! Waiting entries that are visible have `visible_at` 0 and are served by `seq`, the order of acceptance; delayed ones
//! have their time there until [`promote`] makes them visible, in their old place.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rusqlite::{Connection, params};
use tartarus_types::sandbox::Event;
use tartarus_types::{LeaseToken, NodeId, SandboxId, Timestamp};

use super::row::{Row, all, one, parse, unsigned};
use super::transition::transition;
use super::worker::Tx;
use super::{Sqlite, cocytus, nodes};
use crate::store::{Candidate, Choose, DeadLetter, JobQueue, KillAsked, Leased, QueueRules, Record, StoreError};

/// Entries offered to a node at once.
const OFFERED: i64 = 64;
/// Entries that one transaction of [`JobQueue::expire`] moves, so that others get their turn.
const EXPIRED: i64 = 128;

pub(super) const HEAD: &str = "SELECT q.seq, s.id, s.memory_mib, s.cpus FROM queue q JOIN sandboxes s ON s.seq = q.seq \
                               WHERE q.visible_at = 0 AND q.start_deadline > ?1 ORDER BY q.seq LIMIT ?2";
pub(super) const PROMOTE: &str = "UPDATE queue SET visible_at = 0 WHERE visible_at > 0 AND visible_at <= ?1 \
                                  RETURNING (SELECT id FROM sandboxes s WHERE s.seq = queue.seq)";
pub(super) const LOST: &str = "SELECT seq FROM queue WHERE lease_until <= ?1 ORDER BY lease_until LIMIT ?2";
pub(super) const LATE: &str = "SELECT seq FROM queue WHERE visible_at IS NOT NULL AND start_deadline <= ?1 \
                               ORDER BY start_deadline LIMIT ?2";
pub(super) const POSITION: &str = "SELECT count(*) FROM queue WHERE visible_at = 0 AND seq <= ?1";
pub(super) const RENEW: &str = "UPDATE queue SET lease_until = ?4 WHERE seq = (SELECT seq FROM sandboxes \
                                WHERE id = ?2 AND node = ?1 AND token = ?3 AND ended_at IS NULL)";
pub(super) const HELD: &str = "SELECT q.seq, s.id, s.token FROM queue q JOIN sandboxes s ON s.seq = q.seq \
                               WHERE s.node = ?1 AND s.ended_at IS NULL AND q.lease_until IS NOT NULL";
pub(super) const KILLS: &str = "SELECT id, token, kill_signal, kill_grace_ms FROM sandboxes WHERE node = ?1 \
                                AND token IS NOT NULL AND ended_at IS NULL AND kill_signal IS NOT NULL";
/// Each of the three is the head of an index.
pub(super) const NEXT: [&str; 3] = [
    "SELECT min(lease_until) FROM queue WHERE lease_until IS NOT NULL",
    "SELECT min(start_deadline) FROM queue WHERE visible_at IS NOT NULL",
    "SELECT min(visible_at) FROM queue WHERE visible_at > 0",
];

/// Appends an entry, visible at once.
pub(super) fn append(conn: &Connection, seq: i64, start_deadline: Timestamp) -> Result<(), StoreError> {
    conn.prepare_cached("INSERT INTO queue (seq, visible_at, start_deadline) VALUES (?1, 0, ?2)")?
        .execute([seq, start_deadline.0])?;
    Ok(())
}

pub(super) fn remove(conn: &Connection, seq: i64) -> Result<(), StoreError> {
    conn.prepare_cached("DELETE FROM queue WHERE seq = ?1")?.execute([seq])?;
    Ok(())
}

/// Ends the lease of an entry; it is visible again after the delay.
pub(super) fn requeue(conn: &Connection, seq: i64, rules: QueueRules, now: Timestamp) -> Result<(), StoreError> {
    let visible_at = if rules.retry_delay_ms == 0 { 0 } else { now.plus_ms(rules.retry_delay_ms).0 };
    conn.prepare_cached("UPDATE queue SET visible_at = ?2, lease_until = NULL WHERE seq = ?1")?
        .execute([seq, visible_at])?;
    Ok(())
}

/// Makes the delayed entries visible whose time has come. That is news to who waits for work.
fn promote(tx: &mut Tx<'_>, now: Timestamp) -> Result<(), StoreError> {
    let promoted = all(tx.conn, PROMOTE, [now.0], |row| parse(row.get(0)?))?;
    tx.changed.extend(promoted);
    Ok(())
}

/// Place among the visible entries, from 1.
pub(super) fn position(conn: &Connection, id: &SandboxId) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT q.seq FROM queue q JOIN sandboxes s ON s.seq = q.seq WHERE s.id = ?1 AND q.visible_at = 0";
    let Some(seq) = one(conn, sql, [id.as_str()], |row| Ok(row.get::<_, i64>(0)?))? else {
        return Ok(None);
    };
    one(conn, POSITION, [seq], |row| Ok(unsigned(row.get(0)?)))
}

fn lease(tx: &mut Tx<'_>, node: &NodeId, choose: Choose, now: Timestamp) -> Result<Option<Leased>, StoreError> {
    let node = nodes::one_node(tx.conn, node)?.ok_or_else(|| StoreError::NotFound("node", node.to_string()))?;
    promote(tx, now)?;
    let (seqs, candidates): (Vec<i64>, Vec<Candidate>) = all(tx.conn, HEAD, [now.0, OFFERED], |row| {
        Ok((row.get::<_, i64>(0)?, Candidate { id: parse(row.get(1)?)?, memory_mib: row.get(2)?, cpus: row.get(3)? }))
    })?
    .into_iter()
    .unzip();
    let Some(index) = choose(&node, &candidates) else {
        return Ok(None);
    };
    let (Some(seq), Some(chosen)) = (seqs.get(index), candidates.get(index)) else {
        return Err(StoreError::Engine(format!("entry {index} was chosen of {} offered", seqs.len())));
    };
    // The proposal is checked where it is committed: a wrong one must not oversell the node.
    if !nodes::has_room(&node, chosen) {
        tracing::error!(node = %node.id, sandbox = %chosen.id, "placement chose what the node has no room for");
        return Ok(None);
    }

    let mut row = Row::by_seq(tx.conn, *seq)?;
    let token = LeaseToken::random();
    row.token = Some(token.clone());
    row.record.node = Some(node.id);
    row.record.attempts += 1;
    row.record.progress = None; // it was the last attempt's
    tx.conn
        .prepare_cached("UPDATE queue SET visible_at = NULL, lease_until = ?2 WHERE seq = ?1")?
        .execute([*seq, now.plus_ms(tx.rules.visibility_ms).0])?;
    transition(tx, &mut row, Event::Lease, now)?;
    Ok(Some(Leased { record: row.record, token }))
}

/// Moves up to [`EXPIRED`] entries of each kind into `changed`. True when there may be more.
fn expire(tx: &mut Tx<'_>, changed: &mut BTreeMap<SandboxId, Record>, now: Timestamp) -> Result<bool, StoreError> {
    promote(tx, now)?;
    let mut more = false;
    // In this order: what comes back from a lost lease may be too late to be started.
    for (sql, event) in [(LOST, Event::LeaseLost { tries_left: true }), (LATE, Event::StartTimeout)] {
        let due = all(tx.conn, sql, [now.0, EXPIRED], |row| Ok(row.get::<_, i64>(0)?))?;
        more |= !due.is_empty();
        for seq in due {
            let mut row = Row::by_seq(tx.conn, seq)?;
            transition(tx, &mut row, event.clone(), now)?;
            changed.insert(row.record.id.clone(), row.record);
        }
    }
    Ok(more)
}

#[async_trait]
impl JobQueue for Sqlite {
    async fn lease(&self, node: &NodeId, choose: Choose, now: Timestamp) -> Result<Option<Leased>, StoreError> {
        let node = node.clone();
        self.write(move |tx| lease(tx, &node, choose, now)).await
    }

    async fn renew(
        &self,
        node: &NodeId,
        held: &[(SandboxId, LeaseToken)],
        now: Timestamp,
    ) -> Result<Vec<(SandboxId, LeaseToken)>, StoreError> {
        let (node, held) = (node.clone(), held.to_vec());
        self.write(move |tx| {
            nodes::seen(tx.conn, &node, now)?;
            let until = now.plus_ms(tx.rules.visibility_ms).0;
            let mut renew = tx.conn.prepare_cached(RENEW)?;
            let mut lost = Vec::new();
            for (id, token) in held {
                if renew.execute(params![node.as_str(), id.as_str(), token.as_str(), until])? == 0 {
                    lost.push((id, token));
                }
            }
            Ok(lost)
        })
        .await
    }

    async fn reclaim(
        &self,
        node: &NodeId,
        held: &[(SandboxId, LeaseToken)],
        now: Timestamp,
    ) -> Result<Vec<Record>, StoreError> {
        let (node, held) = (node.clone(), held.to_vec());
        self.write(move |tx| {
            let leases = all(tx.conn, HELD, [node.as_str()], |row| {
                Ok((row.get::<_, i64>(0)?, (parse(row.get(1)?)?, parse(row.get(2)?)?)))
            })?;
            let mut changed = Vec::new();
            for (seq, _) in leases.into_iter().filter(|(_, lease)| !held.contains(lease)) {
                let mut row = Row::by_seq(tx.conn, seq)?;
                transition(tx, &mut row, Event::LeaseLost { tries_left: true }, now)?;
                changed.push(row.record);
            }
            Ok(changed)
        })
        .await
    }

    async fn kills(&self, node: &NodeId) -> Result<Vec<(SandboxId, LeaseToken, KillAsked)>, StoreError> {
        let node = node.clone();
        self.read(move |conn| {
            all(conn, KILLS, [node.as_str()], |row| {
                let kill = KillAsked { signal: row.get(2)?, grace_ms: unsigned(row.get(3)?) };
                Ok((parse(row.get(0)?)?, parse(row.get(1)?)?, kill))
            })
        })
        .await
    }

    async fn expire(&self, now: Timestamp) -> Result<Vec<Record>, StoreError> {
        let mut changed = BTreeMap::new();
        loop {
            let more;
            (changed, more) = self
                .write(move |tx| {
                    let more = expire(tx, &mut changed, now)?;
                    Ok((changed, more))
                })
                .await?;
            if !more {
                return Ok(changed.into_values().collect());
            }
        }
    }

    async fn grace(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |tx| {
            let until = now.plus_ms(tx.rules.visibility_ms).0;
            tx.conn.execute("UPDATE queue SET lease_until = ?1 WHERE lease_until IS NOT NULL", [until])?;
            Ok(())
        })
        .await
    }

    async fn next_deadline(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(|conn| {
            let mut next = None;
            for sql in NEXT {
                let at = one(conn, sql, [], |row| Ok(row.get::<_, Option<i64>>(0)?))?.flatten();
                next = next.into_iter().chain(at).min();
            }
            Ok(next.map(Timestamp))
        })
        .await
    }

    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, StoreError> {
        self.read(cocytus::dead_letters).await
    }
}
