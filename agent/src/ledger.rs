//! The agent's durable record: one JSON file per slot, `api.json` or
//! `api@green.json`, and one per switch, `api@switch.json`.
//!
//! Owns how a record gets to disk and back. Must not guess: a record that does
//! not read is an error for that component, and the others go on.
//! Everything here blocks; call it off the async runtime.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_protocol::ComponentName;
use tidegate_swap::{Record, SwitchRecord};

use crate::durable;
use crate::slot::Slot;

/// Far above what a bounded record takes.
const RECORD_BYTES_MAX: u64 = 1024 * 1024;

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The directory.
    #[error("the ledger {path} cannot be opened")]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One record could not be read.
    #[error("the ledger record {path} cannot be read")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One record is not a record: torn, or changed by hand.
    #[error("the ledger record {path} is damaged; the component is left as it is until the file is restored, or moved away to start anew")]
    Malformed {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A record under another component's name.
    #[error("the ledger record {path} is about the component {component}; the component is left as it is until the file is put right")]
    OtherComponent {
        /// Where.
        path: PathBuf,
        /// What it says.
        component: ComponentName,
    },
    /// A record does not fit JSON.
    #[error("the ledger record {path} cannot be encoded")]
    Encode {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It could not be made durable.
    #[error("the ledger record {path} cannot be written{}", crate::error::disk_hint(source))]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A slot, and its record or why it does not read.
pub type Entry = (Slot, Result<Record, LedgerError>);
/// A component with sides, and its switch's record or why it does not read.
pub type SwitchEntry = (ComponentName, Result<SwitchRecord, LedgerError>);

/// What stands behind a component's name where a side's name would: a switch.
const SWITCH: &str = "@switch";

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Ledger {
    dir: PathBuf,
}

impl Ledger {
    /// Opens the ledger, makes its directory if need be.
    ///
    /// # Errors
    /// [`LedgerError::Open`].
    pub fn open(dir: PathBuf) -> Result<Self, LedgerError> {
        durable::make_dir(&dir, 0o700).map_err(|source| LedgerError::Open { path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// One that is only read (the directory may be missing).
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the record durable: when this returns, a power cut leaves it.
    ///
    /// # Errors
    /// [`LedgerError::Encode`], [`LedgerError::Write`]: the record counts as not written.
    pub fn write(&self, slot: &Slot, record: &Record) -> Result<(), LedgerError> {
        write(self.path(slot), record)
    }

    /// As [`Ledger::write`], for a switch.
    ///
    /// # Errors
    /// [`LedgerError::Encode`], [`LedgerError::Write`]: the record counts as not written.
    pub fn write_switch(&self, record: &SwitchRecord) -> Result<(), LedgerError> {
        write(self.switch_path(&record.component), record)
    }

    /// The record of one slot, if it has one.
    ///
    /// # Errors
    /// [`LedgerError::Read`], [`LedgerError::Malformed`], [`LedgerError::OtherComponent`].
    pub fn read(&self, slot: &Slot) -> Result<Option<Record>, LedgerError> {
        let path = self.path(slot);
        if path.exists() { read(&path, &slot.component, |record: &Record| &record.component).map(Some) } else { Ok(None) }
    }

    /// The record of one component's switch, if it has one.
    ///
    /// # Errors
    /// As [`Ledger::read`].
    pub fn read_switch(&self, component: &ComponentName) -> Result<Option<SwitchRecord>, LedgerError> {
        let path = self.switch_path(component);
        if path.exists() { read(&path, component, |record: &SwitchRecord| &record.component).map(Some) } else { Ok(None) }
    }

    /// Every slot that has a record, each with its own result.
    ///
    /// # Errors
    /// [`LedgerError::Open`]: the directory itself cannot be read.
    pub fn read_all(&self) -> Result<Vec<Entry>, LedgerError> {
        let mut all = Vec::new();
        for (path, name) in self.names()? {
            let Ok(slot) = name.parse::<Slot>() else { continue };
            let record = read(&path, &slot.component, |record: &Record| &record.component);
            all.push((slot, record));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// Every switch that has a record, each with its own result.
    ///
    /// # Errors
    /// [`LedgerError::Open`]: the directory itself cannot be read.
    pub fn read_switches(&self) -> Result<Vec<SwitchEntry>, LedgerError> {
        let mut all = Vec::new();
        for (path, name) in self.names()? {
            let Some(component) = name.strip_suffix(SWITCH).and_then(|name| name.parse::<ComponentName>().ok()) else { continue };
            let record = read(&path, &component, |record: &SwitchRecord| &record.component);
            all.push((component, record));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    fn names(&self) -> Result<Vec<(PathBuf, String)>, LedgerError> {
        let open = |source| LedgerError::Open { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(open)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(open)?.path();
            // Temporary names start with a dot, which no component name does.
            let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json")).map(str::to_owned);
            all.extend(name.map(|name| (path, name)));
        }
        Ok(all)
    }

    fn path(&self, slot: &Slot) -> PathBuf {
        self.dir.join(format!("{slot}.json"))
    }

    fn switch_path(&self, component: &ComponentName) -> PathBuf {
        self.dir.join(format!("{component}{SWITCH}.json"))
    }
}

fn write(path: PathBuf, record: &impl Serialize) -> Result<(), LedgerError> {
    let bytes = serde_json::to_vec_pretty(record).map_err(|source| LedgerError::Encode { path: path.clone(), source })?;
    durable::replace(&path, &bytes, 0o600).map_err(|source| LedgerError::Write { path, source })
}

fn read<R: DeserializeOwned>(path: &Path, component: &ComponentName, of: impl Fn(&R) -> &ComponentName) -> Result<R, LedgerError> {
    let bytes = durable::read_bounded(path, RECORD_BYTES_MAX)
        .and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|source| LedgerError::Read { path: path.to_owned(), source })?;
    let record: R = serde_json::from_slice(&bytes).map_err(|source| LedgerError::Malformed { path: path.to_owned(), source })?;
    if of(&record) == component {
        Ok(record)
    } else {
        Err(LedgerError::OtherComponent { path: path.to_owned(), component: of(&record).clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_swap::State;

    fn record(name: &str) -> Record {
        Record {
            component: name.parse().unwrap(),
            assignment: None,
            state: State::Swapping(tidegate_swap::Step::Flip),
            standing: None,
            previous: None,
            swap: None,
            pending: None,
            history: Vec::new(),
        }
    }

    fn slot(name: &str) -> Slot {
        name.parse().unwrap()
    }

    #[test]
    fn a_side_has_its_own_record_and_a_plain_one_its_old_name() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path().to_owned()).unwrap();
        ledger.write(&slot("api@green"), &record("api")).unwrap();
        ledger.write(&slot("web"), &record("web")).unwrap();
        ledger.write_switch(&SwitchRecord::new("api".parse().unwrap())).unwrap();
        for name in ["api@green.json", "web.json", "api@switch.json"] {
            assert!(dir.path().join(name).is_file(), "{name}");
        }
        let slots: Vec<Slot> = ledger.read_all().unwrap().into_iter().map(|(slot, record)| record.map(|_| slot).unwrap()).collect();
        assert_eq!(slots, [slot("api@green"), slot("web")]);
        let switches = ledger.read_switches().unwrap();
        assert_eq!(switches.iter().map(|(component, _)| component.as_str()).collect::<Vec<_>>(), ["api"]);
        assert!(switches[0].1.is_ok());
        assert!(ledger.read(&slot("api")).unwrap().is_none());
        assert!(ledger.read(&slot("api@green")).unwrap().is_some());
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path().join("ledger")).unwrap();
        ledger.write(&slot("api"), &record("api")).unwrap();
        ledger.write(&slot("web"), &record("web")).unwrap();
        let all = ledger.read_all().unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].1.as_ref().unwrap(), &record("api"));
    }

    #[test]
    fn a_torn_record_is_an_error_of_its_component_only() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path().to_owned()).unwrap();
        ledger.write(&slot("api"), &record("api")).unwrap();
        ledger.write(&slot("web"), &record("web")).unwrap();
        let path = dir.path().join("api.json");
        let whole = fs::read(&path).unwrap();
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            let all = ledger.read_all().unwrap();
            assert!(matches!(all[0].1, Err(LedgerError::Malformed { .. })), "{len} bytes");
            assert!(all[1].1.is_ok());
        }
    }

    #[test]
    fn a_leftover_of_a_write_cut_short_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path().to_owned()).unwrap();
        ledger.write(&slot("api"), &record("api")).unwrap();
        fs::write(dir.path().join(".tmp-api.json"), "{").unwrap();
        assert_eq!(ledger.read_all().unwrap().len(), 1);
        ledger.write(&slot("api"), &record("api")).unwrap();
    }

    #[test]
    fn a_record_under_a_wrong_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path().to_owned()).unwrap();
        ledger.write(&slot("api"), &record("api")).unwrap();
        fs::rename(dir.path().join("api.json"), dir.path().join("web.json")).unwrap();
        assert!(matches!(ledger.read_all().unwrap()[0].1, Err(LedgerError::OtherComponent { .. })));
    }
}
