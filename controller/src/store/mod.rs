//! The controller's durable state: one SQLite file, one thread that owns it.
//!
//! Owns: the journal (hash-chained), hosts, tokens, the list of releases, the
//! highest generation of each (host, component). Must not: decide anything.
//!
//! Work arrives on a bounded channel; what is queued together is committed
//! together (one fsync for all), and answered only when it is durable.

mod audit;
mod fleet;
mod hosts;
mod journal;
mod releases;
mod schema;
#[cfg(test)]
mod tests;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, Transaction};
use tidegate_protocol::{ComponentName, Generation, HostName, JournalHead, RolloutId, Timestamp};
use tidegate_rollout::Record;
use tokio::sync::{mpsc, oneshot};

pub use audit::{BadRecord, ExportRow, Verified, verify_and_pick, verify_file};
pub use fleet::{FleetRecord, NewFleet};
pub use hosts::{HostChange, HostRow};
pub use journal::{Append, Appended, EventRow, NewRecord};
pub use releases::ReleaseRow;
pub use tokens::{Grant, NewToken, Redeem, TokenRefused};

/// Jobs that may wait; callers wait beyond it.
const QUEUE: usize = 256;
/// Most jobs in one commit.
const GROUP_MAX: usize = 64;

/// A state file that cannot be used. `Clone`, for one failed commit fails many.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("{path}: {what} failed")]
    Sqlite {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why.
        source: Arc<rusqlite::Error>,
    },
    /// Written by a newer Tidegate.
    #[error("{path}: has schema {found}, this version reads {known}: upgrade tidegate-controller")]
    Schema {
        /// Which file.
        path: PathBuf,
        /// In the file.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A record is not what was written: the journal was changed.
    #[error(
        "{path}: the journal's chain is broken at record {seq}: it was changed or damaged after it was written. The controller does not start on it; restore a backup"
    )]
    Chain {
        /// Which file.
        path: PathBuf,
        /// The first record that does not fit.
        seq: u64,
    },
    /// A record or row that this version cannot read.
    #[error("{path}: {what} cannot be read: {why}; was it written by a newer version?")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Record or row.
        what: String,
        /// Why.
        why: String,
    },
    /// The store's thread ended.
    #[error("the store is closed")]
    Closed,
}

/// What a start finds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Rises when state is restored from a backup.
    pub epoch: u32,
    /// Rollouts in order of their start, each with its records.
    pub rollouts: Vec<LoadedRollout>,
    /// What happened to the fleet, in order.
    pub fleet: Vec<(Timestamp, FleetRecord)>,
    /// All hosts.
    pub hosts: Vec<HostRow>,
    /// Highest generation of each (host, component), and whose it is.
    pub generations: Vec<(HostName, ComponentName, Generation, RolloutId)>,
    /// All releases.
    pub releases: Vec<ReleaseRow>,
    /// Of the newest record.
    pub last_at: Timestamp,
    /// Of the newest record, 0 = none.
    pub last_seq: u64,
    /// The newest record.
    pub head: Option<JournalHead>,
}

/// A rollout as the journal holds it.
#[derive(Debug)]
pub struct LoadedRollout {
    /// Its id.
    pub id: RolloutId,
    /// Of its `started` record.
    pub first_seq: u64,
    /// Of its newest record.
    pub last_seq: u64,
    /// In order.
    pub records: Vec<(Timestamp, Record)>,
}

type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Runs inside the group's transaction. `Err` rolls the whole group back.
type Work = Box<dyn FnOnce(&Transaction<'_>, &mut journal::Head) -> Result<Done, Arc<rusqlite::Error>> + Send>;

/// A handle on the store's thread; cheap to clone. The thread ends with the last one.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Work>,
    path: Arc<Path>,
    ended: Arc<Mutex<Option<Ended>>>,
}

/// Closes when the store's thread has closed its file.
pub type Ended = std::sync::mpsc::Receiver<std::convert::Infallible>;

impl Store {
    /// Opens or makes the file, verifies the journal's chain and reads what a
    /// start needs. Blocks.
    ///
    /// # Errors
    /// [`StoreError`]: not ours, newer than us, or changed by someone.
    pub fn open(path: &Path) -> Result<(Self, Loaded), StoreError> {
        let wrap = |what| move |source| StoreError::Sqlite { path: path.into(), what, source: Arc::new(source) };
        let mut connection = Connection::open(path).map_err(wrap("opening the journal"))?;
        schema::prepare(&mut connection, path)?;
        let (head, loaded) = journal::load(&connection, path)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let path: Arc<Path> = path.into();
        let owner = Owner { connection, head, path: path.clone() };
        let (alive, ended) = std::sync::mpsc::channel();
        let thread = move || {
            owner.run(queue);
            drop(alive);
        };
        std::thread::Builder::new().name("store".into()).spawn(thread).map_err(|e| StoreError::Sqlite {
            path: path.to_path_buf(),
            what: "starting the store's thread",
            source: Arc::new(rusqlite::Error::ToSqlConversionFailure(Box::new(e))),
        })?;
        Ok((Self { jobs, path, ended: Arc::new(Mutex::new(Some(ended))) }, loaded))
    }

    /// The file, for those who read it without owning it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For whoever stops the process: once every handle is dropped, this closes
    /// when the file is closed. There is one.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Queues work and waits until it is durable.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Transaction<'_>, &mut journal::Head) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let path = self.path.clone();
        let job: Work = Box::new(move |transaction, head| match work(transaction, head) {
            Ok(value) => Ok(Box::new(move |committed: Result<(), StoreError>| {
                // Nobody may wait any more; the work is done all the same.
                let _ = answer.send(committed.map(|()| value));
            })),
            Err(source) => {
                let source = Arc::new(source);
                let _ = answer.send(Err(StoreError::Sqlite { path: path.to_path_buf(), what, source: source.clone() }));
                Err(source)
            }
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

struct Owner {
    connection: Connection,
    head: journal::Head,
    path: Arc<Path>,
}

impl Owner {
    fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP_MAX {
                match queue.try_recv() {
                    Ok(job) => group.push(job),
                    Err(_) => break,
                }
            }
            self.commit(group);
        }
        // Folds the write-ahead log into the file: a clean stop leaves one file.
        let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
    }

    fn commit(&mut self, group: Vec<Work>) {
        let before = self.head.clone();
        let mut waiting: Vec<Done> = Vec::with_capacity(group.len());
        let head = &mut self.head;
        let result = (|| {
            let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(Arc::new)?;
            for job in group {
                waiting.push(job(&transaction, head)?);
            }
            transaction.commit().map_err(Arc::new)
        })();
        let result = result.map_err(|source| {
            // Nothing of the group is in the file.
            self.head = before;
            StoreError::Sqlite { path: self.path.to_path_buf(), what: "committing", source }
        });
        for done in waiting {
            done(result.clone());
        }
    }
}

/// A row that holds what we did not write.
fn unreadable(path: &Path, what: impl Into<String>, why: impl std::fmt::Display) -> StoreError {
    StoreError::Unreadable { path: path.into(), what: what.into(), why: why.to_string() }
}

/// Unix milliseconds as SQLite keeps them.
fn ms(at: Timestamp) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

fn at(ms: i64) -> Timestamp {
    Timestamp(u64::try_from(ms).unwrap_or(0))
}

fn parsed<T: std::str::FromStr>(column: usize, text: &str) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e)))
}

fn json<T: serde::de::DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e)))
}

fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}
