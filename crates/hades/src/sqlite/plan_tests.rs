use super::{acheron, nodes, runs, schema};

/// Every query that runs while others wait is served by an index: no scan of a table, no sort.
#[test]
fn hot_queries_use_their_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let conn = schema::open(&dir.path().join("store.db")).unwrap();
    let hot = [
        acheron::HEAD,
        acheron::PROMOTE,
        acheron::LOST,
        acheron::LATE,
        acheron::POSITION,
        acheron::RENEW,
        acheron::KILLS,
        nodes::ONE,
        runs::SWEEP,
        runs::BY_NAME,
        runs::BY_PREFIX,
        runs::MAKER,
        runs::ENDED,
        runs::FORGET,
    ];
    for sql in hot.into_iter().chain(acheron::NEXT) {
        for step in plan(&conn, sql) {
            assert!(!step.contains("SCAN") && !step.contains("TEMP B-TREE"), "{sql}\n{step}");
        }
    }
    // A list is a walk along an index that its limit ends.
    for sql in [runs::LIST_ALL, runs::LIST_LIVE, runs::SURPLUS, runs::IN_USE] {
        for step in plan(&conn, sql) {
            assert!(!step.contains("TEMP B-TREE"), "{sql}\n{step}");
        }
    }
    assert!(plan(&conn, acheron::HEAD)[0].contains("queue_order (visible_at=?"), "{:?}", plan(&conn, acheron::HEAD));
    assert!(plan(&conn, runs::LIST_LIVE)[0].contains("sandboxes_live"), "{:?}", plan(&conn, runs::LIST_LIVE));
    for sql in [runs::SURPLUS, runs::COUNT_ENDED] {
        assert!(plan(&conn, sql)[0].contains("COVERING INDEX sandboxes_ended"), "{:?}", plan(&conn, sql));
    }
    assert!(plan(&conn, runs::IN_USE)[0].contains("INDEX sandboxes_live"), "{:?}", plan(&conn, runs::IN_USE));
    assert!(plan(&conn, runs::POPULATION)[0].contains("INDEX sandboxes_live"), "{:?}", plan(&conn, runs::POPULATION));
    // The check can fail.
    assert!(plan(&conn, "SELECT * FROM queue ORDER BY start_deadline + 1").iter().any(|s| s.contains("TEMP B-TREE")));
}

fn plan(conn: &rusqlite::Connection, sql: &str) -> Vec<String> {
    let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
    let rows = statement.query_map(rusqlite::params_from_iter(nulls), |row| row.get("detail")).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}
