//! The log gate: what a daemon complains of must be expected by name.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

/// Complaints that every development fleet makes.
const ALWAYS: &[&str] = &[
    // The contract: a fleet that verifies no signatures says so at every start.
    "threshold = 0",
    "threshold is 0",
];

/// The WARN and ERROR lines of a log, without colours.
///
/// # Errors
/// The log is not readable.
pub fn complaints(log: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    Ok(text.lines().map(plain).filter(|line| complains(line)).collect())
}

/// The daemons log `TIME LEVEL target: message`, or `LEVEL target: message`
/// under journald.
fn complains(line: &str) -> bool {
    line.split_whitespace().take(2).any(|word| word == "WARN" || word == "ERROR") || line.contains("panicked at")
}

/// `line` without its ANSI sequences.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        rest = after.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    text
}

/// Fails on every complaint in `logs` that contains none of `expected`.
///
/// # Errors
/// The unexpected lines, each with its log.
pub fn gate<'a>(logs: impl IntoIterator<Item = &'a Path>, expected: &[&str]) -> anyhow::Result<()> {
    let mut unexpected = Vec::new();
    for log in logs {
        for line in complaints(log)? {
            if !ALWAYS.iter().chain(expected).any(|known| line.contains(known)) {
                unexpected.push(format!("{}: {line}", log.display()));
            }
        }
    }
    ensure!(unexpected.is_empty(), "unexpected complaints in the logs:\n{}", unexpected.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unlisted_complaint_fails_and_a_listed_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "2026-01-01T00:00:00Z  INFO a: WARN is only a word here\n\u{1b}[2m2026-01-01T00:00:00Z\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m a: no key\n").unwrap();
        assert_eq!(complaints(&log).unwrap(), ["2026-01-01T00:00:00Z  WARN a: no key"]);
        assert!(gate([log.as_path()], &[]).is_err());
        gate([log.as_path()], &["no key"]).unwrap();
        fs::write(&log, "thread 'main' panicked at src/main.rs\n").unwrap();
        assert!(gate([log.as_path()], &[]).is_err());
    }
}
