//! The durable record of tasks: one JSON file per task of a rollout and per undo
//! of it, `r-7@0-run.json`, beside the ledger.
//!
//! Owns how a record gets to disk and back. Must not guess: what does not read is
//! told as such, under the name of its file. Everything here blocks.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tidegate_protocol::{BootId, ReleaseRef, RolloutId, TaskOrder, TaskReport, TaskRun, TaskState};

use crate::durable;

/// Far above what a bounded record takes.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// What has one record: a task of a rollout, forward or back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Of which rollout.
    pub rollout: RolloutId,
    /// Place in the release's list of tasks, from 0.
    pub index: u16,
    /// Which of its commands.
    pub what: TaskRun,
}

impl Key {
    /// Of that order.
    #[must_use]
    pub fn of(order: &TaskOrder) -> Self {
        Self { rollout: order.rollout.clone(), index: order.index, what: order.what }
    }

    fn file(&self) -> String {
        format!("{}@{}-{}.json", self.rollout, self.index, self.what.word())
    }

    fn parse(file: &str) -> Option<Self> {
        // No rollout's id has an `@`, and none begins with a dot, as temporary names do.
        let (rollout, rest) = file.strip_suffix(".json")?.split_once('@')?;
        let (index, word) = rest.split_once('-')?;
        let what = [TaskRun::Run, TaskRun::Undo].into_iter().find(|what| what.word() == word)?;
        Some(Self { rollout: rollout.parse().ok()?, index: index.parse().ok()?, what })
    }
}

/// What is known of the newest attempt that began, or could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of which rollout.
    pub rollout: RolloutId,
    /// Place in the release's list of tasks, from 0.
    pub index: u16,
    /// Which of its commands.
    pub what: TaskRun,
    /// Which attempt.
    pub attempt: u32,
    /// Whose task.
    pub release: ReleaseRef,
    /// How far it is; `staging` is never recorded.
    pub state: TaskState,
    /// As reported.
    pub note: String,
    /// Wall clock, Unix milliseconds; 0 if nothing began.
    pub started_at_unix_ms: u64,
    /// From begin to end.
    pub duration_ms: u64,
    /// Rises with each record that is made: the oldest is forgotten first.
    pub serial: u64,
    /// How its process is found again; none once it ended.
    pub spawn: Option<Spawn>,
}

/// A start, and what it can be known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// The boot it belongs to: with another, nothing of it is left.
    pub boot_id: BootId,
    /// In the environment of everything it starts.
    pub token: String,
    /// The leader of its process group, once it is known.
    pub pid: Option<u32>,
    /// That leader's start, clock ticks since boot.
    pub start_ticks: Option<u64>,
}

impl Record {
    /// Of an attempt of which nothing has begun.
    #[must_use]
    pub fn new(order: &TaskOrder, serial: u64, state: TaskState, note: String) -> Self {
        Self {
            rollout: order.rollout.clone(),
            index: order.index,
            what: order.what,
            attempt: order.attempt,
            release: order.release.clone(),
            state,
            note,
            started_at_unix_ms: 0,
            duration_ms: 0,
            serial,
            spawn: None,
        }
    }

    /// What it is the record of.
    #[must_use]
    pub fn key(&self) -> Key {
        Key { rollout: self.rollout.clone(), index: self.index, what: self.what }
    }

    /// For the controller.
    #[must_use]
    pub fn report(&self) -> TaskReport {
        TaskReport {
            rollout: self.rollout.clone(),
            index: self.index,
            what: self.what,
            attempt: self.attempt,
            state: self.state,
            note: self.note.clone(),
            started_at_unix_ms: self.started_at_unix_ms,
            duration_ms: self.duration_ms,
        }
    }
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The directory.
    #[error("the task records in {path} cannot be opened")]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One record could not be read.
    #[error("the task record {path} cannot be read")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One record is not a record: torn, or changed by hand.
    #[error("the task record {path} is damaged")]
    Malformed {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A record under another's name.
    #[error("the task record {path} is about another task")]
    Other {
        /// Where.
        path: PathBuf,
    },
    /// A record does not fit JSON.
    #[error("the task record {path} cannot be encoded")]
    Encode {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It could not be made durable, or forgotten.
    #[error("the task record {path} cannot be written{}", crate::error::disk_hint(source))]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a file's name says, and its record or why it does not read.
pub type Entry = (Key, Result<Record, BookError>);

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Book {
    dir: PathBuf,
}

impl Book {
    /// In this directory, which is made with the first record.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the record durable: when this returns, a power cut leaves it.
    ///
    /// # Errors
    /// [`BookError::Encode`], [`BookError::Write`]: it counts as not written.
    pub fn write(&self, record: &Record) -> Result<(), BookError> {
        let path = self.dir.join(record.key().file());
        let bytes = serde_json::to_vec_pretty(record).map_err(|source| BookError::Encode { path: path.clone(), source })?;
        let written = durable::make_dir(&self.dir, 0o700).and_then(|()| durable::replace(&path, &bytes, 0o600));
        written.map_err(|source| BookError::Write { path, source })
    }

    /// Removes a record; not there is fine.
    ///
    /// # Errors
    /// [`BookError::Write`].
    pub fn forget(&self, key: &Key) -> Result<(), BookError> {
        let path = self.dir.join(key.file());
        durable::remove(&path).map_err(|source| BookError::Write { path, source })
    }

    /// Every record, or why it does not read.
    ///
    /// # Errors
    /// [`BookError::Open`]: the directory itself cannot be read.
    pub fn read_all(&self) -> Result<Vec<Entry>, BookError> {
        let open = |source| BookError::Open { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(open)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.map_err(open)?.file_name();
            let Some(key) = name.to_str().and_then(Key::parse) else { continue };
            let record = self.read(&key);
            all.push((key, record));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    fn read(&self, key: &Key) -> Result<Record, BookError> {
        let path = self.dir.join(key.file());
        let bytes = durable::read_bounded(&path, RECORD_BYTES_MAX)
            .and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(|source| BookError::Read { path: path.clone(), source })?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|source| BookError::Malformed { path: path.clone(), source })?;
        if record.key() == *key { Ok(record) } else { Err(BookError::Other { path }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::{Digest, Millis};

    fn order(rollout: &str, what: TaskRun) -> TaskOrder {
        TaskOrder {
            rollout: rollout.parse().unwrap(),
            index: 300,
            release: ReleaseRef { id: "shop@2.1.0".parse().unwrap(), manifest: Digest::of(b"m") },
            what,
            attempt: 2,
            deadline: Millis::from_secs(60),
        }
    }

    #[test]
    fn records_come_back_and_a_torn_one_is_told_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::new(dir.path().join("tasks"));
        assert!(book.read_all().unwrap().is_empty());
        let mut run = Record::new(&order("r-1.b_C", TaskRun::Run), 7, TaskState::Done, "ok".into());
        let spawn = Spawn { boot_id: "b0".parse().unwrap(), token: "t".into(), pid: Some(7), start_ticks: Some(8) };
        run.spawn = Some(spawn);
        let undo = Record::new(&order("r-1.b_C", TaskRun::Undo), 8, TaskState::Running, String::new());
        book.write(&run).unwrap();
        book.write(&undo).unwrap();
        assert!(dir.path().join("tasks/r-1.b_C@300-run.json").is_file());
        let read: Vec<Record> = book.read_all().unwrap().into_iter().map(|(_, record)| record.unwrap()).collect();
        assert_eq!(read, [run.clone(), undo.clone()]);

        let path = dir.path().join("tasks/r-1.b_C@300-undo.json");
        fs::write(&path, "{").unwrap();
        fs::write(dir.path().join("tasks/.tmp-r-1@0-run.json"), "{").unwrap();
        let all = book.read_all().unwrap();
        assert_eq!(all.len(), 2);
        assert!(matches!(&all[1], (key, Err(BookError::Malformed { .. })) if *key == undo.key()));
        fs::copy(dir.path().join("tasks/r-1.b_C@300-run.json"), &path).unwrap();
        assert!(matches!(book.read_all().unwrap()[1].1, Err(BookError::Other { .. })));
        book.forget(&undo.key()).unwrap();
        book.forget(&undo.key()).unwrap();
        assert_eq!(book.read_all().unwrap().len(), 1);
    }
}
