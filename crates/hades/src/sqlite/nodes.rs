//! Nodes, and what is reserved on each: always computed from the leases, so that it cannot drift.

use async_trait::async_trait;
use rusqlite::{Connection, params};
use tartarus_types::{NodeId, Overcommit, Timestamp};

use super::Sqlite;
use super::row::{all, one, parse, signed, unsigned};
use crate::store::{Candidate, NodeRecord, NodeRegistry, StoreError};

/// A sandbox holds a lease while it has a token and has not ended.
macro_rules! select_nodes {
    ($rest:literal) => {
        concat!(
            "SELECT id, memory_mib, overhead_mib, overcommit, start_slots, max_cpus, seen_at, \
             (SELECT coalesce(sum((s.memory_mib * 100 + n.overcommit - 1) / n.overcommit + n.overhead_mib), 0) FROM sandboxes s \
              WHERE s.node = n.id AND s.token IS NOT NULL AND s.ended_at IS NULL), \
             (SELECT count(*) FROM sandboxes s WHERE s.node = n.id AND s.state IN ('scheduled', 'preparing') \
              AND s.token IS NOT NULL AND s.ended_at IS NULL) FROM nodes n ",
            $rest
        )
    };
}

pub(super) const ONE: &str = select_nodes!("WHERE n.id = ?1");
const ALL: &str = select_nodes!("ORDER BY n.id");

fn read(row: &rusqlite::Row<'_>) -> Result<NodeRecord, StoreError> {
    Ok(NodeRecord {
        id: parse(row.get(0)?)?,
        memory_mib: unsigned(row.get(1)?),
        overhead_mib: unsigned(row.get(2)?),
        overcommit: Overcommit::from_hundredths(row.get(3)?)
            .ok_or_else(|| StoreError::Engine("a node's overcommit is out of bounds".into()))?,
        start_slots: row.get(4)?,
        max_cpus: row.get(5)?,
        seen_at: Timestamp(row.get(6)?),
        reserved_mib: unsigned(row.get(7)?),
        starting: row.get(8)?,
    })
}

pub(super) fn one_node(conn: &Connection, id: &NodeId) -> Result<Option<NodeRecord>, StoreError> {
    one(conn, ONE, [id.as_str()], read)
}

/// The node was heard of.
pub(super) fn seen(conn: &Connection, id: &NodeId, now: Timestamp) -> Result<(), StoreError> {
    conn.prepare_cached("UPDATE nodes SET seen_at = ?2 WHERE id = ?1")?.execute(params![id.as_str(), now.0])?;
    Ok(())
}

/// One more sandbox oversells neither the node's memory nor its start slots.
pub(super) fn has_room(node: &NodeRecord, candidate: &Candidate) -> bool {
    let wanted = node.overcommit.reserved_mib(candidate.memory_mib).saturating_add(node.overhead_mib);
    node.reserved_mib.saturating_add(wanted) <= node.memory_mib && node.starting < node.start_slots
}

#[async_trait]
impl NodeRegistry for Sqlite {
    async fn upsert_node(&self, node: NodeRecord) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.conn
                .prepare_cached(
                    "INSERT INTO nodes (id, memory_mib, overhead_mib, start_slots, max_cpus, seen_at, overcommit) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id) DO UPDATE SET memory_mib = ?2, \
                     overhead_mib = ?3, start_slots = ?4, max_cpus = ?5, seen_at = ?6, overcommit = ?7",
                )?
                .execute(params![
                    node.id.as_str(),
                    signed(node.memory_mib),
                    signed(node.overhead_mib),
                    node.start_slots,
                    node.max_cpus,
                    node.seen_at.0,
                    node.overcommit.hundredths()
                ])?;
            Ok(())
        })
        .await
    }

    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        self.read(|conn| all(conn, ALL, [], read)).await
    }
}
