//! How fast one host stages one large file, against the wire alone.

use anyhow::{Context, bail};

use super::stats::{Sample, digits};
use super::wire::{self, Sink};
use super::{Settings, rollout, row};
use crate::Fleet;

const MIB: usize = 256;
const BYTES: usize = MIB * 1024 * 1024;

pub(super) fn run(settings: Settings) -> anyhow::Result<()> {
    let mut fleet = Fleet::builder(1).agent_env("TIDEGATE_LOG", "info,tidegate_agent=debug").start()?;
    let file = fleet.scratch().join("bare");
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let rate = |seconds: f64| MIB as f64 / seconds;
    let (mut bare, mut written, mut fetched, mut staged) = (Sample::default(), Sample::default(), Sample::default(), Sample::default());
    for number in 1..=settings.runs {
        let version = format!("1.0.{number}");
        fleet.import(&rollout::release(&version, BYTES))?;
        bare.push(rate(wire::transfer(BYTES as u64, Sink::Discard)?));
        written.push(rate(wire::transfer(BYTES as u64, Sink::HashAndWrite(&file))?));
        rollout::shoot(&mut fleet, &version)?;
        let log = std::fs::read_to_string(fleet.hosts.first().context("no host")?.log()).context("the agent's log")?;
        fetched.push(rate(between(&log, "fetch begins", "fetch done")?));
        staged.push(rate(between(&log, "begins op=\"stage\"", "done op=\"stage\"")?));
    }
    row("bare quinn, discarded", &bare.show("MiB/s"));
    row("bare quinn, hashed, written, synced", &written.show("MiB/s"));
    row("Tidegate: hashed, written, synced, in the store", &fetched.show("MiB/s"));
    row("Tidegate: and laid out, read back, synced", &staged.show("MiB/s"));
    let ratio = |a: &Sample, b: &Sample| digits(a.median() / b.median());
    row("in the store / bare discarded", &ratio(&fetched, &bare));
    row("in the store / bare hashed, written, synced", &ratio(&fetched, &written));
    row("laid out / bare hashed, written, synced", &ratio(&staged, &written));
    Ok(())
}

/// Seconds between the last lines that hold these texts.
fn between(log: &str, first: &str, last: &str) -> anyhow::Result<f64> {
    let time = |what: &str| -> anyhow::Result<jiff::Timestamp> {
        let line = log.lines().rev().find(|line| what.split(' ').all(|word| line.contains(word)));
        let Some(line) = line else { bail!("no line with {what:?} in the agent's log") };
        line.split_ascii_whitespace().next().unwrap_or_default().parse().with_context(|| format!("the time of {line:?}"))
    };
    let (first, last) = (time(first)?, time(last)?);
    Ok(last.duration_since(first).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_the_last_lines() {
        let log = "2026-01-02T03:04:05.000000Z DEBUG begins component=a op=\"stage\"\n\
                   2026-01-02T03:04:06.000000Z DEBUG begins component=a op=\"stage\"\n\
                   2026-01-02T03:04:08.500000Z DEBUG done component=a op=\"stage\"\n";
        assert!((between(log, "begins op=\"stage\"", "done op=\"stage\"").unwrap() - 2.5).abs() < 1e-9);
        assert!(between(log, "begins op=\"flip\"", "done op=\"stage\"").is_err());
    }
}
