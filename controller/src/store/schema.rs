//! Tables, and how SQLite is told to keep its word.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::StoreError;

/// Of the tables below; rises with each migration.
const SCHEMA: i64 = 1;

const TABLES: &str = "
CREATE TABLE journal (
    seq        INTEGER PRIMARY KEY,
    rollout    TEXT NOT NULL,
    at_unix_ms INTEGER NOT NULL,
    body       TEXT NOT NULL,
    hash       BLOB NOT NULL
) STRICT;
CREATE INDEX journal_of_rollout ON journal (rollout, seq);
CREATE TABLE hosts (
    name         TEXT PRIMARY KEY,
    labels       TEXT NOT NULL,
    drained      TEXT,
    spki         BLOB NOT NULL,
    serial       TEXT NOT NULL,
    token_hash   BLOB NOT NULL,
    enrolled_at  INTEGER NOT NULL,
    revoked_at   INTEGER,
    agent        TEXT,
    last_report  TEXT,
    last_seen_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
    hash       BLOB PRIMARY KEY,
    host       TEXT,
    labels     TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    uses_left  INTEGER NOT NULL,
    made_by    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE releases (
    id          TEXT PRIMARY KEY,
    manifest    BLOB NOT NULL,
    imported_at INTEGER NOT NULL,
    imported_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE generations (
    host      TEXT NOT NULL,
    component TEXT NOT NULL,
    epoch     INTEGER NOT NULL,
    n         INTEGER NOT NULL,
    rollout   TEXT NOT NULL,
    PRIMARY KEY (host, component)
) STRICT, WITHOUT ROWID;
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta (key, value) VALUES ('epoch', '1');
";

/// Sets durability, makes the tables in a new file, refuses a newer one.
pub(super) fn prepare(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let wrap = |what| move |source| StoreError::Sqlite { path: path.into(), what, source: Arc::new(source) };
    // Somebody may look at the file with the sqlite3 shell.
    connection.busy_timeout(Duration::from_secs(10)).map_err(wrap("setting the busy timeout"))?;
    // FULL: in WAL mode every commit is synced, not only checkpoints.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cell_size_check = ON;")
        .map_err(wrap("opening the journal (is it a SQLite file?)"))?;
    let transaction = connection.transaction().map_err(wrap("reading the schema"))?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(wrap("reading the schema"))?;
    match found {
        SCHEMA => {}
        0 => {
            transaction.execute_batch(TABLES).map_err(wrap("making the tables"))?;
            transaction.pragma_update(None, "user_version", SCHEMA).map_err(wrap("making the tables"))?;
        }
        found => return Err(StoreError::Schema { path: path.into(), found, known: SCHEMA }),
    }
    transaction.commit().map_err(wrap("making the tables"))
}
