//! When a host's service was being changed, by that host's own journal.

use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use tidegate_integration_tests::client::Miss;
use tidegate_integration_tests::nspawn::Hosts;

/// A started nginx needs a moment until it listens; a request that was under way
/// when it stopped began a moment before.
const GRACE: Duration = Duration::from_millis(500);

/// From the first stop to the last start of `unit` since `since`, if it was
/// changed at all.
pub(crate) fn window(hosts: &Hosts, host: &str, unit: &str, since: SystemTime) -> anyhow::Result<Option<(SystemTime, SystemTime)>> {
    let seconds = since.duration_since(SystemTime::UNIX_EPOCH).context("the time")?.as_secs_f64();
    let since = format!("--since=@{seconds:.6}");
    let journal = hosts.ok(host, &["journalctl", "--quiet", "--no-pager", "--output=short-unix", &since, "-u", unit, "_PID=1"])?;
    let at = |line: &str| {
        let seconds = line.split(' ').next()?.parse().ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(seconds).ok()?)
    };
    // "Stopping" when it is told to; "Main process exited" when it went by itself.
    let stop = journal.lines().find(|line| ["Stopping ", "Main process exited"].iter().any(|word| line.contains(word))).and_then(at);
    let start = journal.lines().rfind(|line| line.contains("Started ")).and_then(at);
    Ok(stop.zip(start))
}

/// Checks that nobody missed anything outside the windows in which the unit was
/// changed on that host.
pub(crate) fn only_within_swaps(hosts: &Hosts, unit: &str, since: SystemTime, misses: &[Miss]) -> anyhow::Result<()> {
    for host in &hosts.names {
        let mine: Vec<&Miss> = misses.iter().filter(|miss| miss.name == *host).collect();
        let window = window(hosts, host, unit, since)?;
        let outside = mine.iter().filter(|miss| window.is_none_or(|(from, to)| miss.ended + GRACE < from || miss.began > to + GRACE));
        let outside: Vec<_> = outside.collect();
        ensure!(
            outside.is_empty(),
            "{} of {} requests to {host} failed outside of its own swap {window:?}: {:?}",
            outside.len(),
            mine.len(),
            outside.first()
        );
    }
    Ok(())
}
