//! One timed rollout of a fleet of real agents.

use std::time::Instant;

use anyhow::{Context, ensure};

use super::cost;
use super::stats::{Sample, digits};
use crate::ask::text;
use crate::{Component, Fleet, Plan, Release};

/// What one rollout took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shot {
    /// From starting `tidegate rollout start --wait` to its end, seconds.
    pub(super) wall: f64,
    /// CPU seconds of the controller.
    pub(super) controller: f64,
    /// CPU seconds of the controller, all agents, their services and the CLI.
    pub(super) total: f64,
}

/// A release whose one component is the demo service and a file of `bytes` that
/// every version has anew; the executable stays the same.
pub(super) fn release(version: &str, bytes: usize) -> Release {
    Release::new(version).component(Component::new("api").shared_executable().padding(bytes))
}

/// A fleet for timed rollouts, with a small first release on it.
pub(super) fn fleet(hosts: usize) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::start(hosts)?;
    fleet.import(&release("0.1.0", 1024))?;
    shoot(&mut fleet, "0.1.0").context("the first release")?;
    Ok(fleet)
}

/// Rolls an imported version out to all hosts at once, and waits for its end.
pub(super) fn shoot(fleet: &mut Fleet, version: &str) -> anyhow::Result<Shot> {
    let plan = fleet.plan_file(&Plan::new(&format!("shop@{version}"), "big-bang").line("max_hosts = 1000"))?;
    let controller = fleet.controller()?.pid();
    let (controller_before, total_before) = (cost::cpu_of(controller)?, cost::cpu_below()?);
    let began = Instant::now();
    let output = fleet.cli_command(&["rollout", "start", "-f", &plan, "--wait"]).output().context("starting tidegate")?;
    let wall = began.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "the rollout of {version} ended with {}:\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        fleet.tails()
    );
    let shot = Shot { wall, controller: cost::cpu_of(controller)? - controller_before, total: cost::cpu_below()? - total_before };
    fleet.expect_version(version)?;
    Ok(shot)
}

/// When, after the start of the newest rollout, its first and last host came to
/// each state, by the journal's times.
pub(super) fn phases(fleet: &Fleet) -> anyhow::Result<Vec<(String, f64, f64)>> {
    let id = fleet.newest()?;
    let output = fleet.cli(&["rollout", "events", &id, "--output", "ndjson"])?.expect_code(0)?;
    let mut began = None;
    let mut phases: Vec<(String, f64, f64)> = Vec::new();
    for line in output.stdout.lines() {
        let event: serde_json::Value = serde_json::from_str(line).with_context(|| format!("an event: {line}"))?;
        let at: jiff::Timestamp = text(&event, "/at")?.parse().with_context(|| format!("the time of {line}"))?;
        let began = *began.get_or_insert(at);
        let name = match text(&event, "/kind")? {
            "ordered" => format!("{} ordered", text(&event, "/record/phase")?),
            "host" => text(&event, "/record/to")?.to_owned(),
            _ => continue,
        };
        let after = at.duration_since(began).as_secs_f64();
        match phases.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, _, last)) => *last = after,
            None => phases.push((name, after, after)),
        }
    }
    Ok(phases)
}

/// `phases` in one line.
pub(super) fn show(phases: &[(String, f64, f64)]) -> String {
    phases.iter().map(|(name, first, last)| format!("{name} {}\u{2013}{}", digits(*first), digits(*last))).collect::<Vec<_>>().join(", ")
}

/// Figures of several rollouts.
#[derive(Debug, Default)]
pub(super) struct Shots {
    pub(super) wall: Sample,
    pub(super) controller: Sample,
    pub(super) total: Sample,
}

impl Shots {
    pub(super) fn push(&mut self, shot: Shot) {
        self.wall.push(shot.wall);
        self.controller.push(shot.controller);
        self.total.push(shot.total);
    }
}
