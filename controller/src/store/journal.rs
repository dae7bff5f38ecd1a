//! The journal: appended to, verified, read; never changed.
//!
//! Each record's hash covers the one before it: sha256 over the previous hash,
//! the sequence number, the time (both little-endian `u64`), the rollout's id, a
//! zero byte, and the JSON body. Records of the fleet have `~fleet` in place of the
//! rollout's id.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, Transaction, params};
use tidegate_protocol::digest::Hasher;
use tidegate_protocol::{ComponentName, Digest, Generation, HostName, JournalHead, RolloutId, Timestamp};
use tidegate_rollout::Record;

use super::audit::ExportRow;
use super::fleet::{FLEET, FleetRecord, NewFleet};
use super::{HostChange, Loaded, LoadedRollout, Store, StoreError, at, hosts, json, ms, parsed, releases, to_json, unreadable};

/// Rows read at once for an event stream.
const EVENTS_PAGE: u32 = 500;

/// The newest record.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) seq: u64,
    hash: Digest,
}

/// A record to be appended.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// Of which rollout.
    pub rollout: RolloutId,
    /// When it was decided.
    pub at: Timestamp,
    /// What.
    pub record: Record,
}

/// A record as an event stream shows it.
#[derive(Clone, Debug)]
pub struct EventRow {
    /// Place in the journal.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub record: Record,
    /// What, as it was written.
    pub body: String,
    /// Its hash, which covers all before it.
    pub hash: Digest,
}

/// What one commit brings.
#[derive(Clone, Debug, Default)]
pub struct Append {
    /// First.
    pub fleet: Vec<NewFleet>,
    /// After them.
    pub records: Vec<NewRecord>,
    /// In the same transaction.
    pub changes: Vec<HostChange>,
}

/// What a commit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Number of the first of [`Append::records`]; the others follow it.
    pub first: u64,
    /// The newest record now; none in an empty journal.
    pub head: Option<JournalHead>,
}

impl Head {
    const fn said(&self) -> Option<JournalHead> {
        if self.seq == 0 { None } else { Some(JournalHead { seq: self.seq, hash: self.hash }) }
    }
}

pub(super) fn chained(previous: Digest, seq: u64, rollout: &str, at_ms: u64, body: &str) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(&previous.0);
    hasher.update(&seq.to_le_bytes());
    hasher.update(&at_ms.to_le_bytes());
    hasher.update(rollout.as_bytes());
    hasher.update(&[0]);
    hasher.update(body.as_bytes());
    hasher.finish()
}

impl Store {
    /// Appends records and saves changes of hosts, all in one commit.
    ///
    /// # Errors
    /// Nothing was appended.
    pub async fn append(&self, batch: Append) -> Result<Appended, StoreError> {
        self.run("appending to the journal", move |transaction, head| {
            for new in &batch.fleet {
                write(transaction, head, FLEET, new.at, &to_json(&new.record)?)?;
            }
            let first = head.seq + 1;
            for new in &batch.records {
                append(transaction, head, new)?;
            }
            for change in &batch.changes {
                hosts::change(transaction, change)?;
            }
            Ok(Appended { first, head: head.said() })
        })
        .await
    }

    /// The newest record that is durable.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn head(&self) -> Result<Option<JournalHead>, StoreError> {
        self.run("reading the journal", |_, head| Ok(head.said())).await
    }

    /// The hash of one record, if it is there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn hash_of(&self, seq: u64) -> Result<Option<Digest>, StoreError> {
        self.run("reading the journal", move |transaction, _| {
            let mut query = transaction.prepare_cached("SELECT hash FROM journal WHERE seq = ?1")?;
            let mut rows = query.query_map([i64::try_from(seq).unwrap_or(i64::MAX)], |row| row.get(0).map(Digest))?;
            rows.next().transpose()
        })
        .await
    }

    /// All records after `after`, or those of one rollout, oldest first, at most a
    /// page of them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn export(&self, after: u64, of: Option<RolloutId>) -> Result<Vec<ExportRow>, StoreError> {
        self.run("reading the journal", move |transaction, _| {
            let columns = "SELECT seq, at_unix_ms, rollout, hash, body FROM journal";
            let mut query = transaction.prepare_cached(&match of {
                Some(_) => format!("{columns} WHERE rollout = ?3 AND seq > ?1 ORDER BY seq LIMIT ?2"),
                None => format!("{columns} WHERE ?3 IS NULL AND seq > ?1 ORDER BY seq LIMIT ?2"),
            })?;
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let rows = query.query_map(params![after, EVENTS_PAGE, of.as_ref().map(RolloutId::as_str)], |row| {
                let rollout: String = row.get(2)?;
                Ok(ExportRow {
                    seq: u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
                    at: at(row.get(1)?),
                    rollout: (rollout != FLEET).then_some(rollout),
                    hash: Digest(row.get(3)?),
                    body: row.get(4)?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Records of a rollout after `after`, oldest first, at most a page of them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn events(&self, rollout: RolloutId, after: u64) -> Result<Vec<EventRow>, StoreError> {
        self.run("reading the journal", move |transaction, _| {
            let mut query = transaction
                .prepare_cached("SELECT seq, at_unix_ms, body, hash FROM journal WHERE rollout = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3")?;
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let rows = query.query_map(params![rollout.as_str(), after, EVENTS_PAGE], |row| {
                let body: String = row.get(2)?;
                Ok(EventRow {
                    seq: u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
                    at: at(row.get(1)?),
                    record: json(2, &body)?,
                    body,
                    hash: Digest(row.get(3)?),
                })
            })?;
            rows.collect()
        })
        .await
    }
}

fn write(transaction: &Transaction<'_>, head: &mut Head, whose: &str, when: Timestamp, body: &str) -> rusqlite::Result<()> {
    let seq = head.seq + 1;
    let hash = chained(head.hash, seq, whose, when.0, body);
    transaction
        .prepare_cached("INSERT INTO journal (seq, rollout, at_unix_ms, body, hash) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![i64::try_from(seq).unwrap_or(i64::MAX), whose, ms(when), body, hash.0])?;
    *head = Head { seq, hash };
    Ok(())
}

fn append(transaction: &Transaction<'_>, head: &mut Head, new: &NewRecord) -> rusqlite::Result<()> {
    write(transaction, head, new.rollout.as_str(), new.at, &to_json(&new.record)?)?;
    // The fence: never minted twice, whatever becomes of the rollout.
    match &new.record {
        Record::Started { from, .. } => {
            from.iter().try_for_each(|origin| fence(transaction, &origin.host, &origin.component, origin.generation, &new.rollout))
        }
        Record::Ordered { host, component, generation, .. }
        | Record::Switch { host, component, generation, .. }
        | Record::Retired { host, component, generation, .. } => fence(transaction, host, component, *generation, &new.rollout),
        _ => Ok(()),
    }
}

fn fence(
    transaction: &Transaction<'_>,
    host: &HostName,
    component: &ComponentName,
    generation: Generation,
    rollout: &RolloutId,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO generations (host, component, epoch, n, rollout) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (host, component) DO UPDATE SET epoch = excluded.epoch, n = excluded.n, rollout = excluded.rollout
             WHERE (excluded.epoch, excluded.n) > (epoch, n)",
        )?
        .execute(params![
            host.as_str(),
            component.as_str(),
            generation.epoch,
            i64::try_from(generation.n).unwrap_or(i64::MAX),
            rollout.as_str()
        ])?;
    Ok(())
}

/// Reads everything a start needs, verifying the chain on the way.
pub(super) fn load(connection: &Connection, path: &Path) -> Result<(Head, Loaded), StoreError> {
    let wrap = |source| StoreError::Sqlite { path: path.into(), what: "reading the journal", source: Arc::new(source) };
    let mut head = Head { seq: 0, hash: Digest([0; 32]) };
    let mut loaded = Loaded::default();
    let mut index: BTreeMap<RolloutId, usize> = BTreeMap::new();

    let mut query = connection.prepare("SELECT seq, rollout, at_unix_ms, body, hash FROM journal ORDER BY seq").map_err(wrap)?;
    let mut rows = query.query([]).map_err(wrap)?;
    while let Some(row) = rows.next().map_err(wrap)? {
        let next = head.seq + 1;
        let chain = |_| StoreError::Chain { path: path.into(), seq: next };
        let seq = u64::try_from(row.get::<_, i64>(0).map_err(chain)?).unwrap_or(0);
        let rollout: String = row.get(1).map_err(chain)?;
        let at = at(row.get(2).map_err(chain)?);
        let body: String = row.get(3).map_err(chain)?;
        let hash = Digest(row.get(4).map_err(chain)?);
        if seq != next || hash != chained(head.hash, seq, &rollout, at.0, &body) {
            return Err(StoreError::Chain { path: path.into(), seq: next });
        }
        head = Head { seq, hash };
        loaded.last_at = loaded.last_at.max(at);
        let what = || format!("record {seq}");
        if rollout == FLEET {
            let record: FleetRecord = serde_json::from_str(&body).map_err(|e| unreadable(path, what(), e))?;
            loaded.fleet.push((at, record));
            continue;
        }
        let id: RolloutId = rollout.parse().map_err(|e| unreadable(path, what(), e))?;
        let record: Record = serde_json::from_str(&body).map_err(|e| unreadable(path, what(), e))?;
        let started = matches!(record, Record::Started { .. });
        match index.get(&id).and_then(|at| loaded.rollouts.get_mut(*at)) {
            Some(known) => {
                if started {
                    // A refused id was used again: the newer attempt counts.
                    known.records.clear();
                    known.first_seq = seq;
                }
                known.last_seq = seq;
                known.records.push((at, record));
            }
            None => {
                index.insert(id.clone(), loaded.rollouts.len());
                loaded.rollouts.push(LoadedRollout { id, first_seq: seq, last_seq: seq, records: vec![(at, record)] });
            }
        }
    }
    drop(rows);
    drop(query);
    loaded.rollouts.sort_by_key(|r| r.first_seq);
    loaded.head = head.said();
    loaded.last_seq = head.seq;
    loaded.epoch = epoch(connection, path)?;
    loaded.generations = generations(connection).map_err(wrap)?;
    loaded.hosts = hosts::all(connection).map_err(wrap)?;
    loaded.releases = releases::all(connection).map_err(wrap)?;
    Ok((head, loaded))
}

fn epoch(connection: &Connection, path: &Path) -> Result<u32, StoreError> {
    let text: String = connection
        .query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0))
        .map_err(|source| StoreError::Sqlite { path: path.into(), what: "reading the epoch", source: Arc::new(source) })?;
    text.parse().map_err(|e| unreadable(path, "the epoch", e))
}

fn generations(connection: &Connection) -> rusqlite::Result<Vec<(HostName, ComponentName, Generation, RolloutId)>> {
    let mut query = connection.prepare("SELECT host, component, epoch, n, rollout FROM generations")?;
    let rows = query.query_map([], |row| {
        let n: i64 = row.get(3)?;
        let generation = Generation::new(row.get(2)?, u64::try_from(n).unwrap_or(0));
        Ok((
            parsed(0, &row.get::<_, String>(0)?)?,
            parsed(1, &row.get::<_, String>(1)?)?,
            generation,
            parsed(4, &row.get::<_, String>(4)?)?,
        ))
    })?;
    rows.collect()
}
