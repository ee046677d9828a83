//! Opening the file: its mode, its settings, its schema version and the migrations to the newest.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::store::StoreError;

/// Migration `n` (from 0) leads from schema version `n` to `n + 1`. What was released is never edited.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001.sql"), include_str!("migrations/0002.sql")];

/// Marks the file as a store of ours; set by the first migration.
const APPLICATION_ID: i32 = 0x5441_5254;

/// Pages of log after which a commit also moves them into the file: 16 MiB, as each accept touches some ten pages.
const CHECKPOINT: i64 = 4096;

/// For another process that holds a lock, such as a backup.
const BUSY: Duration = Duration::from_secs(5);

/// The writing connection, on the newest schema.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    create(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::DiskFull,
        _ => StoreError::Engine(format!("{} cannot be opened: {e}", path.display())),
    })?;
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let found = version(&conn, path)?;
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    if found > known {
        // Before anything is written, settings included.
        return Err(StoreError::Newer { found, known });
    }
    let mode: String = conn.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        let path = path.display();
        return Err(StoreError::Engine(format!("{path} cannot have a write-ahead log here: use a local file system")));
    }
    conn.pragma_update(None, "synchronous", "full")?;
    conn.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT, |row| row.get::<_, i64>(0))?;
    conn.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |row| row.get::<_, i64>(0))?;
    // A migration that makes a table anew must not take what refers to it along.
    conn.pragma_update(None, "foreign_keys", false)?;
    for (from, sql) in (0..).zip(MIGRATIONS) {
        migrate(&conn, from, sql)?;
    }
    conn.pragma_update(None, "foreign_keys", true)?;
    Ok(conn)
}

/// The reading connection; the writing one must have been opened.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let conn = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// SQLite gives the files beside it the mode of this one, so it must be right before SQLite sees it.
fn create(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn version(conn: &Connection, path: &Path) -> Result<u32, StoreError> {
    let foreign = || StoreError::Engine(format!("{} is not a store of tartarus: move it away", path.display()));
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let found = pragma("user_version").map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => foreign(),
        _ => e.into(),
    })?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let fresh = found == 0 && tables == 0;
    if !fresh && pragma("application_id")? != APPLICATION_ID {
        return Err(foreign());
    }
    u32::try_from(found).map_err(|_| foreign())
}

/// In one transaction with the version, so that a killed process leaves the old schema or the new one.
fn migrate(conn: &Connection, from: u32, sql: &str) -> Result<(), StoreError> {
    let tx = rusqlite::Transaction::new_unchecked(conn, rusqlite::TransactionBehavior::Immediate)?;
    let at: u32 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if at != from {
        return Ok(());
    }
    tx.execute_batch(sql)?;
    if tx.prepare("PRAGMA foreign_key_check")?.exists([])? {
        return Err(StoreError::Engine(format!("migration {} leaves references to nothing", from + 1)));
    }
    tx.pragma_update(None, "user_version", from + 1)?;
    tx.commit()?;
    tracing::info!(version = from + 1, "the store's schema was migrated");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(error: StoreError) -> String {
        match error {
            StoreError::Engine(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn settings_mode_and_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a?b.db");
        for _ in 0..2 {
            let conn = open(&path).unwrap();
            let text = |name| conn.pragma_query_value(None, name, |r| r.get::<_, String>(0)).unwrap();
            let int = |name| conn.pragma_query_value(None, name, |r| r.get::<_, i64>(0)).unwrap();
            assert_eq!(text("journal_mode"), "wal");
            assert_eq!(int("synchronous"), 2);
            assert_eq!(int("foreign_keys"), 1);
            assert_eq!(int("user_version"), MIGRATIONS.len() as i64);
            assert_eq!(text("integrity_check"), "ok");
            conn.execute("INSERT OR REPLACE INTO keys VALUES ('a', x'00', 1)", []).unwrap();
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                let entry = entry.unwrap();
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            }
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        drop(open(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_newer_store_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(open(&path), Err(StoreError::Newer { found: 99, known: 2 })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn what_is_no_store_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let text = "something that is no database\n".repeat(200);
        std::fs::write(&path, &text).unwrap();
        assert!(engine(open(&path).unwrap_err()).contains("not a store of tartarus"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

        let other = dir.path().join("other.db");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE mine (a)").unwrap();
        assert!(engine(open(&other).unwrap_err()).contains("not a store of tartarus"));

        assert!(engine(open(dir.path()).unwrap_err()).contains("cannot be opened"));
        assert!(engine(open(&dir.path().join("no/such/dir.db")).unwrap_err()).contains("cannot be opened"));
    }

    /// What a store of the first version holds is there after the migration, references included.
    #[test]
    fn an_older_store_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let old = Connection::open(&path).unwrap();
        migrate(&old, 0, MIGRATIONS[0]).unwrap();
        old.execute_batch(
            "INSERT INTO sandboxes (seq, id, state, created_at, attempts, node, token, memory_mib, cpus, image, kernel,
                                    remove, labels, spec)
             VALUES (7, 'sbx_a', 'running', 1, 1, 'n', 't', 64, 1, 'i', 'k', 0, '{}', '{}');
             INSERT INTO queue VALUES (7, NULL, 5, 9);
             INSERT INTO failures VALUES (7, 1, 2, 'n', 'why');",
        )
        .unwrap();
        drop(old);
        let conn = open(&path).unwrap();
        let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(
            count("SELECT count(*) FROM sandboxes s JOIN queue q USING (seq) JOIN failures f ON f.sandbox = seq"),
            1
        );
        conn.execute("UPDATE sandboxes SET state = 'paused' WHERE seq = 7", []).unwrap();
        conn.execute("DELETE FROM queue", []).unwrap();
        conn.execute("DELETE FROM sandboxes", []).unwrap();
        assert_eq!(count("SELECT count(*) FROM failures"), 0, "references still cascade");
    }

    /// A migration that fails half-way leaves nothing of itself.
    #[test]
    fn a_migration_is_all_or_nothing() {
        let conn = Connection::open_in_memory().unwrap();
        migrate(&conn, 0, "CREATE TABLE a (x); CREATE TABLE a (x);").unwrap_err();
        let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).unwrap();
        assert_eq!(tables, 0);
        migrate(&conn, 0, "CREATE TABLE a (x)").unwrap();
        migrate(&conn, 0, "CREATE TABLE a (x)").unwrap(); // done before: skipped
    }
}
