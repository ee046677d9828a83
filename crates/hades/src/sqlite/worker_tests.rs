use rusqlite::Connection;
use tartarus_types::SandboxId;

use super::*;

type Answer = oneshot::Receiver<Result<i64, StoreError>>;

fn database() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(
        "PRAGMA foreign_keys = on; CREATE TABLE t (n INTEGER PRIMARY KEY);
         CREATE TABLE u (n INTEGER REFERENCES t (n) DEFERRABLE INITIALLY DEFERRED);",
    )
    .unwrap();
    conn
}

/// Work that inserts `n`, gives news, and then does what `after` says.
fn inserts(n: i64, after: fn(&Connection) -> Result<(), StoreError>) -> (WriteJob, Answer) {
    let (sender, answer) = oneshot::channel();
    let work = move |tx: &mut Tx<'_>| {
        tx.conn.execute("INSERT INTO t VALUES (?1)", [n])?;
        tx.changed.push(SandboxId::random());
        after(tx.conn)?;
        Ok(n)
    };
    (write_job(work, sender), answer)
}

/// Commits them together; gives the answers and how many pieces of news there were.
fn run(conn: &Connection, jobs: Vec<(WriteJob, Answer)>) -> (Vec<Result<i64, StoreError>>, usize) {
    let (news, mut heard) = broadcast::channel(16);
    let (mut group, answers): (VecDeque<_>, Vec<_>) = jobs.into_iter().unzip();
    commit_group(conn, QueueRules::default(), &mut group, &news);
    assert!(group.is_empty() && conn.is_autocommit());
    let count = std::iter::from_fn(|| heard.try_recv().ok()).count();
    (answers.into_iter().map(|mut answer| answer.try_recv().unwrap()).collect(), count)
}

fn rows(conn: &Connection) -> Vec<i64> {
    let mut statement = conn.prepare("SELECT n FROM t ORDER BY n").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// What failed or panicked is undone, alone; its neighbours in the same commit stay.
#[test]
fn a_failure_undoes_its_own_work_only() {
    let conn = database();
    let jobs = vec![
        inserts(1, |_| Ok(())),
        inserts(2, |_| Err(StoreError::Fenced)),
        inserts(3, |_| panic!("on purpose")),
        inserts(4, |_| Ok(())),
    ];
    let (answers, news) = run(&conn, jobs);
    assert!(matches!(answers[0], Ok(1)));
    assert!(matches!(answers[1], Err(StoreError::Fenced)));
    assert!(matches!(&answers[2], Err(StoreError::Engine(why)) if why.contains("panicked")));
    assert!(matches!(answers[3], Ok(4)));
    assert_eq!(rows(&conn), [1, 4]);
    assert_eq!(news, 2);
}

/// Who was told nothing yet is told of the failed commit, and nobody hears news of what did not happen.
#[test]
fn a_failed_commit_fails_all_of_its_group() {
    let conn = database();
    let breaks_the_commit = |conn: &Connection| Ok(conn.execute_batch("INSERT INTO u VALUES (99)")?);
    let (answers, news) =
        run(&conn, vec![inserts(1, |_| Ok(())), inserts(2, breaks_the_commit), inserts(3, |_| Ok(()))]);
    for answer in answers {
        assert!(matches!(answer, Err(StoreError::Engine(_))), "{answer:?}");
    }
    assert!(rows(&conn).is_empty());
    assert_eq!(news, 0);
    let (answers, _) = run(&conn, vec![inserts(5, |_| Ok(()))]);
    assert!(matches!(answers[0], Ok(5)), "the next group is not touched by it");
}

/// A transaction that cannot begin is an answer too; work that nobody waits for is not done.
#[test]
fn answers_when_it_cannot_begin_and_skips_what_nobody_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("CREATE TABLE t (n INTEGER)").unwrap();
    conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (answers, _) = run(&conn, vec![inserts(1, |_| Ok(())), inserts(2, |_| Ok(()))]);
    for answer in answers {
        assert!(matches!(answer, Err(StoreError::Engine(_))), "{answer:?}");
    }
    other.execute_batch("ROLLBACK").unwrap();
    let (job, answer) = inserts(3, |_| Ok(()));
    drop(answer);
    let (news, _) = broadcast::channel(1);
    commit_group(&conn, QueueRules::default(), &mut VecDeque::from([job]), &news);
    assert!(rows(&conn).is_empty());
}
