//! None of the denied texts is in the service's own messages since the swap,
//! watched for a while.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_protocol::BootId;
use tokio::time::Instant;

use super::{Attempt, Beside};
use crate::error::chain;
use crate::exec::{self, ExecError, Mode, Program};
use crate::service::Messages;

/// The journal needs a moment to print what is there, even if nothing more is to
/// be watched.
pub(super) const WATCH_MIN: Duration = Duration::from_millis(500);
/// Between two looks at a log file.
const LOOK: Duration = Duration::from_millis(100);
/// Kept of a line; a denied text must stand within so many bytes of it.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Read of a log file at once.
const CHUNK_BYTES: u64 = 256 * 1024;

pub(super) async fn attempt(beside: &Beside<'_>, deny: &[String], watch: Duration) -> Result<String, Attempt> {
    let deny = deny.iter().map(|text| beside.expand(text)).collect::<Result<Vec<_>, _>>()?;
    let mut scanner = Scanner::new(deny);
    let messages = beside.services.messages(beside.installed).await.map_err(|e| Attempt::Never(e.message))?;
    match messages {
        Messages::Unit(unit) => in_journal(beside, &unit, watch, &mut scanner).await?,
        Messages::File { path, from } => in_file(path, from, watch, &mut scanner).await?,
    }
    match scanner.found {
        // A message does not go away again.
        Some(line) => Err(Attempt::Never(format!("the service said {line:?}"))),
        None => Ok(format!("none of {} texts within {} s", scanner.deny.len(), watch.as_secs_f32())),
    }
}

/// The host's journal follows the unit for as long as is watched.
async fn in_journal(beside: &Beside<'_>, unit: &str, watch: Duration, scanner: &mut Scanner) -> Result<(), Attempt> {
    let since = beside.since.map_or_else(crate::service::unix_ms, |mark| mark.unix_ms);
    let form = [since_arg(since), "--output=cat".to_owned()];
    let program = journalctl(unit, &[form.as_slice(), &follow(&beside.ctx.boot_id)].concat());
    let watch = watch.max(WATCH_MIN);
    let ran = exec::run_program(&program, Path::new("/"), Mode::Manager, None, watch, &mut |bytes| scanner.take(bytes)).await;
    scanner.end();
    match ran {
        // Followed to the end of its time, or ended here for what it found.
        Err(ExecError::Timeout { .. }) => Ok(()),
        Ok(_) if scanner.found.is_some() => Ok(()),
        Ok(ran) => Err(Attempt::Fail(format!("journalctl → {}; it said: {}", ran.end, ran.output))),
        Err(error) => Err(Attempt::Fail(format!("cannot read the journal: {}", chain(&error)))),
    }
}

/// A look into the host's journal.
pub(crate) fn journalctl(unit: &str, args: &[String]) -> Program {
    // The unit's own messages, not systemd's about it.
    let own = [format!("_SYSTEMD_UNIT={unit}"), "--no-pager".to_owned(), "--quiet".to_owned()];
    Program { path: "journalctl".into(), args: own.into_iter().chain(args.iter().cloned()).collect() }
}

/// What is there, and what comes. Following shows one boot only, by default the one
/// that `journalctl` itself sees: within the agent's sandbox that may be another
/// than the journal's, and nothing would ever come.
pub(crate) fn follow(boot: &BootId) -> [String; 3] {
    [format!("--boot={}", boot.as_str().replace('-', "")), "--follow".to_owned(), "--no-tail".to_owned()]
}

/// Messages from then on.
pub(crate) fn since_arg(unix_ms: u64) -> String {
    format!("--since=@{}.{:03}", unix_ms / 1_000, unix_ms % 1_000)
}

/// The log of a supervised service, from where it was when it was started.
async fn in_file(path: PathBuf, from: u64, watch: Duration, scanner: &mut Scanner) -> Result<(), Attempt> {
    let deadline = Instant::now() + watch;
    let mut at = from;
    loop {
        let last = Instant::now() >= deadline;
        loop {
            let (file, position) = (path.clone(), at);
            let chunk =
                tokio::task::spawn_blocking(move || read_from(&file, position)).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
            let (bytes, length) = chunk.map_err(|e| Attempt::Fail(format!("cannot read {}: {e}", path.display())))?;
            if length < at {
                // It was put aside and begun anew.
                at = 0;
                continue;
            }
            at = at.saturating_add(bytes.len() as u64);
            if bytes.is_empty() {
                break;
            }
            if !scanner.take(&bytes) {
                return Ok(());
            }
        }
        if last {
            scanner.end();
            return Ok(());
        }
        tokio::time::sleep(LOOK.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}

/// A piece of a file from an offset on, and the file's length.
fn read_from(path: &Path, at: u64) -> std::io::Result<(Vec<u8>, u64)> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
    Ok((bytes, length))
}

/// Looks for the first line with a denied text in bytes that come in pieces.
struct Scanner {
    deny: Vec<String>,
    lines: Lines,
    found: Option<String>,
}

impl Scanner {
    fn new(deny: Vec<String>) -> Self {
        Self { deny, lines: Lines::default(), found: None }
    }

    /// Returns false once something was found.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let Self { deny, lines, found } = self;
        lines.take(bytes, &mut |line| look(deny, found, line));
        self.found.is_none()
    }

    /// The line ends here.
    fn end(&mut self) {
        let Self { deny, lines, found } = self;
        lines.end(&mut |line| look(deny, found, line));
    }
}

fn look(deny: &[String], found: &mut Option<String>, line: &str) {
    if found.is_none() && deny.iter().any(|deny| line.contains(deny.as_str())) {
        *found = Some(line.trim().chars().take(300).collect());
    }
}

/// Makes lines of bytes that come in pieces; what is too long of a line is left out.
#[derive(Debug)]
pub(crate) struct Lines {
    line: Vec<u8>,
    max: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self::of(LINE_BYTES_MAX)
    }
}

impl Lines {
    /// So many bytes are kept of each line.
    pub(crate) fn of(max: usize) -> Self {
        Self { line: Vec::new(), max }
    }

    /// Tells of each line that ends in these bytes, its line break included.
    pub(crate) fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = self.max.saturating_sub(self.line.len());
            self.line.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
            if piece.ends_with(b"\n") {
                self.end(each);
            }
        }
    }

    /// The line ends here.
    pub(crate) fn end(&mut self, each: &mut dyn FnMut(&str)) {
        let line = std::mem::take(&mut self.line);
        each(&String::from_utf8_lossy(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_text_is_found_across_pieces_and_in_an_unfinished_line() {
        let mut scanner = Scanner::new(vec!["FATAL".into()]);
        assert!(scanner.take(b"all well\nFA"));
        assert!(!scanner.take(b"TAL: no disk\nmore\n"));
        assert_eq!(scanner.found.as_deref(), Some("FATAL: no disk"));

        let mut scanner = Scanner::new(vec!["FATAL".into()]);
        assert!(scanner.take(b"FA\nTAL\n"), "a line break stands between");
        assert!(scanner.take(b"FATAL"));
        scanner.end();
        assert_eq!(scanner.found.as_deref(), Some("FATAL"));
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut scanner = Scanner::new(vec!["FATAL".into()]);
        for _ in 0..1_000 {
            assert!(scanner.take(&[b'x'; 4096]));
        }
        assert_eq!(scanner.lines.line.len(), LINE_BYTES_MAX);
    }
}
