//! The proof of what runs: bytes, as the kernel shows them, against the digests
//! of the release.
//!
//! The executable, if it is a file of the release; else (a script under its
//! interpreter) the first argument that is one; else the component must have
//! declared that nothing of it is executed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_protocol::Digest;
use tidegate_protocol::digest::Hasher;
use tidegate_protocol::release::Proof;
use tidegate_protocol::report::{Cause, Failure, Running};
use tokio::time::Instant;

use super::{Process, Services};
use crate::context::Installed;
use crate::error::failure;

/// A wrapper may take so long to execute the program itself.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// Digests remembered; a host has few executables.
const REMEMBERED_MAX: usize = 128;
/// Arguments looked at for a script.
const ARGUMENTS_MAX: usize = 256;

/// Digests of files that have not changed since they were read.
#[derive(Default)]
pub(super) struct Digests(Mutex<BTreeMap<Stamp, Digest>>);

/// Changes with every write: ctime cannot be set back from user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Digests {
    /// The digest of a file, read only if it is not remembered. Blocks.
    fn of(&self, path: &Path) -> io::Result<Digest> {
        let mut file = File::open(path)?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let stamp = Stamp {
            dev: about.dev(),
            ino: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        };
        if let Some(digest) = self.lock().get(&stamp) {
            return Ok(*digest);
        }
        let digest = read_digest(&mut file)?;
        let mut remembered = self.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(stamp, digest);
        Ok(digest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Stamp, Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The digest of what is left of a file. Blocks.
pub(crate) fn read_digest(file: &mut File) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.update(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a look at a process showed.
enum Seen {
    /// This file of the release.
    File(Digest),
    /// Something else, in words.
    Other(String),
    /// The agent's own program, on its way to become the service.
    Launching,
}

/// Looks until the main process runs a file of the release, or patience is over.
pub(super) async fn prove(services: &Services, installed: &Installed) -> Result<Running, Failure> {
    let title = installed.title();
    let deadline = Instant::now() + PATIENCE;
    let about = Arc::new(installed.clone());
    let seen = loop {
        let seen = match services.try_status(installed).await?.main {
            None => "it has no main process".to_owned(),
            Some(main) => {
                let (digests, about, launcher) = (Arc::clone(&services.digests), Arc::clone(&about), Arc::clone(&services.launcher));
                let look = tokio::task::spawn_blocking(move || look(&digests, &about, &launcher, main)).await;
                let look = look.map_err(|e| failure(Cause::StartFailed, &format!("{title}: the look at its process failed: {e}")))?;
                let running =
                    |sha256| Running { pid: main.pid, started_at_unix_ms: main.started_at_unix_ms, start_ticks: main.start_ticks, sha256 };
                match look {
                    Seen::File(digest) => return Ok(running(Some(digest))),
                    Seen::Other(_) if installed.component.proof == Proof::None => return Ok(running(None)),
                    Seen::Other(words) => format!("process {} executes {words}", main.pid),
                    Seen::Launching => format!("process {} has not executed the service yet", main.pid),
                }
            }
        };
        if Instant::now() >= deadline {
            break seen;
        }
        tokio::time::sleep(LOOK).await;
    };
    Err(failure(
        Cause::StartFailed,
        &format!(
            "{title}: what runs is not the release: {seen}{}; run a file of the release, or declare `proof = \"none\"` if none is executed",
            services.last_words(installed).await
        ),
    ))
}

/// One look at a process. Blocks.
fn look(digests: &Digests, installed: &Installed, launcher: &Path, main: Process) -> Seen {
    let proc = PathBuf::from(format!("/proc/{}", main.pid));
    let exe = proc.join("exe");
    let named = std::fs::read_link(&exe).map_or_else(|e| format!("something that cannot be read ({e})"), |path| path.display().to_string());
    let found = match digests.of(&exe) {
        Ok(digest) if installed.component.files.iter().any(|f| f.digest == digest) => Seen::File(digest),
        Ok(_) if same_file(&exe, launcher) => Seen::Launching,
        Ok(digest) => match script(digests, installed, &proc) {
            Some(digest) => Seen::File(digest),
            None => {
                Seen::Other(format!("{named} (sha256 {}), which is no file of the release, nor is any of its arguments", digest.short()))
            }
        },
        Err(error) => Seen::Other(format!("{named}, which cannot be read: {error}")),
    };
    // The pid may have become another's while its files were read.
    if main.alive() { found } else { Seen::Other("nothing any more: it has just ended".to_owned()) }
}

/// The first argument that is a file of the release, with its own bytes.
fn script(digests: &Digests, installed: &Installed, proc: &Path) -> Option<Digest> {
    use std::os::unix::ffi::OsStrExt;
    let mut cmdline = Vec::new();
    File::open(proc.join("cmdline")).ok()?.take(256 * 1024).read_to_end(&mut cmdline).ok()?;
    let cwd = std::fs::read_link(proc.join("cwd")).ok()?;
    let tree = installed.dir.canonicalize().ok()?;
    let arguments = cmdline.split(|byte| *byte == 0).skip(1).filter(|arg| !arg.is_empty()).take(ARGUMENTS_MAX);
    arguments.map(|arg| cwd.join(std::ffi::OsStr::from_bytes(arg))).find_map(|path| {
        let path = path.canonicalize().ok()?;
        let inside = path.strip_prefix(&tree).ok()?.to_str()?;
        let entry = installed.component.files.iter().find(|f| f.path.as_str() == inside)?;
        (digests.of(&path).ok()? == entry.digest).then_some(entry.digest)
    })
}

fn same_file(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()));
    id(a).is_some() && id(a) == id(b)
}
