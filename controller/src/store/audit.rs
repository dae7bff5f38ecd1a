//! The journal read again, from the file, by somebody who does not own it.
//!
//! Owns: whether every record is what was written, and its hash. Reads in pages on
//! a connection of its own that cannot write; the controller goes on meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};
use tidegate_protocol::{Digest, JournalHead, Timestamp};

use super::journal::chained;
use super::{StoreError, at};

/// Rows read at once.
const PAGE: u32 = 1_000;
/// Longest wait for another process that has the file.
const BUSY: Duration = Duration::from_secs(10);

/// What a journal file came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records that are what was written.
    pub records: u64,
    /// The newest of them.
    pub head: Option<JournalHead>,
    /// The first record that is not.
    pub bad: Option<BadRecord>,
    /// Hashes of those records that were asked for and are good.
    pub hashes: BTreeMap<u64, Digest>,
}

/// A record that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its place.
    pub seq: u64,
    /// One sentence.
    pub why: String,
}

/// Reads and verifies a journal file, whole. Blocks for as long as that takes.
///
/// # Errors
/// The file is not there, or is no journal. A broken chain is no error: see
/// [`Verified::bad`].
pub fn verify_file(path: &Path) -> Result<Verified, StoreError> {
    verify_and_pick(path, &BTreeSet::new())
}

/// As [`verify_file`], and keeps the hashes of these records.
///
/// # Errors
/// As [`verify_file`].
pub fn verify_and_pick(path: &Path, wanted: &BTreeSet<u64>) -> Result<Verified, StoreError> {
    let wrap = |what| move |source| StoreError::Sqlite { path: path.into(), what, source: Arc::new(source) };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(wrap("opening the journal"))?;
    connection.busy_timeout(BUSY).map_err(wrap("opening the journal"))?;
    let read = wrap("reading the journal (is it a journal.sqlite?)");
    let mut query = connection
        .prepare("SELECT seq, rollout, at_unix_ms, body, hash FROM journal WHERE seq > ?1 ORDER BY seq LIMIT ?2")
        .map_err(&read)?;
    let mut done = Verified::default();
    let (mut seq, mut hash) = (0_u64, Digest([0; 32]));
    loop {
        let before = seq;
        let mut rows = query.query(params![i64::try_from(seq).unwrap_or(i64::MAX), PAGE]).map_err(&read)?;
        while let Some(row) = rows.next().map_err(&read)? {
            let next = seq + 1;
            let found = row.get::<_, i64>(0).ok().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            let fields = (row.get::<_, String>(1), row.get::<_, i64>(2), row.get::<_, String>(3), row.get::<_, [u8; 32]>(4));
            let why = match fields {
                _ if found != next => format!("record {next} is missing: {found} follows {seq}"),
                (Ok(rollout), Ok(at_ms), Ok(body), Ok(written)) => {
                    let made = chained(hash, next, &rollout, at(at_ms).0, &body);
                    if made.0 == written {
                        (seq, hash) = (next, made);
                        if wanted.contains(&seq) {
                            done.hashes.insert(seq, hash);
                        }
                        continue;
                    }
                    format!("record {next} was changed, or stands in another place, after it was written")
                }
                _ => format!("record {next} has fields of another kind than what was written"),
            };
            done.bad = Some(BadRecord { seq: next, why });
            break;
        }
        if done.bad.is_some() || seq == before {
            break;
        }
    }
    done.records = seq;
    done.head = (seq > 0).then_some(JournalHead { seq, hash });
    Ok(done)
}

/// A record as it is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRow {
    /// Place in the journal.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Of which rollout; none for one of the fleet.
    pub rollout: Option<String>,
    /// Its hash, which covers all before it.
    pub hash: Digest,
    /// What, as it was written.
    pub body: String,
}
