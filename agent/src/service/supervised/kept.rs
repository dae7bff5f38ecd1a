//! What is known of a supervised service on disk, and how its processes are
//! found again. Everything here blocks.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tidegate_protocol::{BootId, ReleaseRef};

use crate::context::Context;
use crate::durable;
use crate::service::process::{Process, Stat, carries, pids};
use crate::slot::Slot;

/// Set in the environment of a service, and inherited by what it starts.
pub(super) const SPAWN_VARIABLE: &str = "TIDEGATE_SPAWN";
/// The state file is small.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// The log is put aside at a start when it is larger.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// The log of a service that runs on and on is cut when it is larger.
const RUNNING_LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Processes that outlive the service's main process get so long to end.
const LINGER: Duration = Duration::from_secs(1);
/// Killed processes are gone after so long, or stuck in the kernel.
const KILLED: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// The state file: first the intent to start (without a pid), then what started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Pids mean nothing on another boot.
    pub(super) boot_id: BootId,
    /// Unique to this start, and in the environment of what it started.
    pub(super) spawn: String,
    /// None between the intent and the start.
    pub(super) pid: Option<u32>,
    /// With the pid.
    pub(super) start_ticks: Option<u64>,
    /// Since the last start by order.
    pub(super) restarts: u32,
    /// What was started.
    pub(super) release: ReleaseRef,
    /// Of the log, at the last start by order.
    pub(super) log_offset: u64,
}

/// Where a slot's state is.
pub(super) fn state_file(ctx: &Context, slot: &Slot) -> PathBuf {
    ctx.state_dir.join("supervised").join(format!("{slot}.json"))
}

impl Kept {
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let Some(bytes) = durable::read_bounded(path, FILE_BYTES_MAX)? else { return Ok(None) };
        // Behind the first value may stand the rest of a longer one: see `overwrite`.
        let mut values = serde_json::Deserializer::from_slice(&bytes).into_iter();
        match values.next() {
            Some(value) => value.map(Some).map_err(io::Error::other),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            durable::make_dir(dir, 0o700)?;
        }
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        match durable::replace(path, &bytes, 0o600) {
            // The release that filled the disk must not keep the old one from starting.
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                overwrite(path, &bytes).map_err(|_| error)
            }
            written => written,
        }
    }

    /// Finds the main process of this start, on this boot.
    pub(super) fn find(&self) -> Option<Process> {
        if let (Some(pid), Some(start_ticks)) = (self.pid, self.start_ticks) {
            return Process::find(pid).filter(|process| process.start_ticks == start_ticks);
        }
        // The agent died between the start and its record. The main process is
        // the session's leader; before it is one, it is the only process.
        let mut found: Vec<(bool, Process)> = Vec::new();
        for pid in pids().ok()? {
            if has_token(pid, &self.spawn)
                && let (Some(stat), Some(process)) = (Stat::read(pid), Process::find(pid))
            {
                found.push((stat.session != pid, process));
            }
        }
        found.into_iter().min_by_key(|(follower, process)| (*follower, process.start_ticks)).map(|(_, process)| process)
    }

    /// Everything that this start has left running.
    fn members(&self) -> Vec<Process> {
        // A session's number is nobody's pid while anyone is in the session: if
        // another process has that pid now, the session is empty.
        let session = self.pid.filter(|pid| Stat::read(*pid).is_none_or(|stat| Some(stat.start_ticks) == self.start_ticks));
        let all = pids().into_iter().flatten();
        let ours = all.filter(|pid| has_token(*pid, &self.spawn) || (session.is_some() && Stat::read(*pid).map(|s| s.session) == session));
        ours.filter_map(Process::find).collect()
    }

    /// Ends what is left when the main process is gone: a moment to end by
    /// itself, then force. Returns those that cannot be killed.
    pub(super) fn clear(&self) -> Vec<Process> {
        let began = Instant::now();
        loop {
            let left = self.members();
            if left.is_empty() || began.elapsed() > LINGER + KILLED {
                return left;
            }
            if began.elapsed() > LINGER {
                left.iter().for_each(|process| process.signal(Signal::KILL));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Writes over what is there, in one go: on a full disk the block that the file
/// has is all there is. Only what this boot leaves behind matters, so it need not
/// survive a power cut whole.
fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

fn has_token(pid: u32, token: &str) -> bool {
    carries(pid, SPAWN_VARIABLE, token)
}

/// Makes the log's directory, puts a large log aside, and says from which offset
/// the next start writes.
pub(super) fn prepare_log(path: &Path) -> io::Result<u64> {
    if let Some(dir) = path.parent() {
        durable::make_dir(dir, 0o750)?;
    }
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    if length <= LOG_BYTES_MAX {
        return Ok(length);
    }
    std::fs::rename(path, aside(path))?;
    Ok(0)
}

/// Cuts the log of a running service if it is far too large: the service holds
/// the file open, so it is copied and emptied; what it says in between is lost.
/// True if it was cut.
pub(super) fn cut_log(path: &Path) -> io::Result<bool> {
    if std::fs::metadata(path)?.len() <= RUNNING_LOG_BYTES_MAX {
        return Ok(false);
    }
    std::fs::copy(path, aside(path))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    Ok(true)
}

fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".1");
    PathBuf::from(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shorter_record_left_behind_it_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.json");
        let release = serde_json::json!({ "id": "shop@1", "manifest": "0".repeat(64) });
        let record = serde_json::json!({ "boot_id": "0b7e4c5e-0000-4000-8000-000000000000", "spawn": "a", "pid": null, "start_ticks": null,
            "restarts": 0, "release": release, "log_offset": 7 });
        std::fs::write(&path, format!("{record}\"old\": 1}}")).unwrap();
        let kept = Kept::read(&path).unwrap().unwrap();
        assert_eq!((kept.spawn.as_str(), kept.log_offset), ("a", 7));
        overwrite(&path, &serde_json::to_vec(&kept).unwrap()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), serde_json::to_vec(&kept).unwrap());
        std::fs::write(&path, "{").unwrap();
        assert!(Kept::read(&path).is_err());
    }
}
