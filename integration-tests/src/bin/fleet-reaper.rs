//! Cleans up after a fleet whose test was killed: waits until its stdin ends,
//! then kills what lives below the directory it was given, and removes it.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use tidegate_integration_tests::process::reap;

fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).context("usage: fleet-reaper DIR")?);
    // It removes what it is given: only ever a fleet's own directory.
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ensure!(dir.is_absolute() && name.starts_with("tidegate-fleet-"), "{} is not a fleet's directory", dir.display());
    reap(&dir)
}
