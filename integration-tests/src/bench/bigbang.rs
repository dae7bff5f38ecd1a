//! A release of 20 MiB to 50 hosts at once: real agents, loopback.

use std::fs::{self, File};
use std::io::Write;
use std::time::Instant;

use anyhow::Context;

use super::rollout::{self, Shots};
use super::stats::{Sample, digits};
use super::{Settings, row};
use crate::Fleet;
use crate::release::noise;

const HOSTS: usize = 50;
const BYTES: usize = 20 * 1024 * 1024;

pub(super) fn run(settings: Settings) -> anyhow::Result<()> {
    let mut fleet = rollout::fleet(HOSTS)?;
    let (mut shots, mut floor) = (Shots::default(), Sample::default());
    let mut phases = Vec::new();
    for number in 1..=settings.runs {
        let version = format!("1.0.{number}");
        fleet.import(&rollout::release(&version, BYTES))?;
        shots.push(rollout::shoot(&mut fleet, &version)?);
        phases = rollout::phases(&fleet)?;
        floor.push(write_floor(&fleet)?);
    }
    row("wall time", &shots.wall.show("s"));
    row("controller", &shots.controller.show("CPU-s"));
    row("controller, agents, services, CLI", &shots.total.show("CPU-s"));
    row("the same bytes written and synced by one process", &floor.show("s"));
    row("Tidegate / that", &digits(shots.wall.median() / floor.median()));
    row("last run, s after its start", &rollout::show(&phases));
    Ok(())
}

/// What the disk alone takes: each host's two copies (store and tree), one file
/// after the other, each synced, by a process that does nothing else.
fn write_floor(fleet: &Fleet) -> anyhow::Result<f64> {
    let dir = fleet.dir().join("floor");
    fs::create_dir_all(&dir).context("a directory for the floor")?;
    let bytes = noise(BYTES, "floor");
    let began = Instant::now();
    for number in 0..HOSTS * 2 {
        let path = dir.join(number.to_string());
        let mut file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).with_context(|| format!("writing {}", path.display()))?;
    }
    let wall = began.elapsed().as_secs_f64();
    fs::remove_dir_all(&dir).context("removing the floor")?;
    Ok(wall)
}
