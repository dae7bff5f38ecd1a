//! Windows: nothing begins before one opens, and at its end the host in flight is
//! finished and then nothing more, unless a named person says so.

use std::time::Duration;

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp, Unit, Zoned};
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::wait::wait_for;
use tidegate_integration_tests::{Plan, Release};

use super::{World, ZONE, closed_window, local};
use crate::gating::{Story, is_swap_order};
use crate::{Result, SOON, expect_state, in_state, slow};

/// A window opens at a full minute, and what is waited for comes after it.
const MINUTES: Duration = Duration::from_secs(150);

fn world(hosts: usize, release: &Release) -> Result<World> {
    let world = World::with(hosts, |_| pairs(&[("role", "api")]), "")?;
    world.fleet.ship(&Release::good("1.0.0"))?;
    world.fleet.import(release)?;
    Ok(world)
}

fn submit(world: &World, plan: &Plan) -> Result<String> {
    let id = world.fleet.start_rollout(plan)?;
    world.fleet.wait_state(&id, "scheduled", SOON)?;
    Ok(id)
}

#[test]
fn a_rollout_waits_for_its_window_and_stops_at_its_end() -> Result {
    // So slow that the fourth host is in flight at the end, and the fifth would begin after it.
    let world = world(5, &slow("2.0.0", "16"))?;
    let (fleet, people) = (&world.fleet, &world.people);
    let opens: Zoned = (local(SignedDuration::from_secs(63))).round(Unit::Minute).context("a minute")?;
    let opens =
        if opens.timestamp() < Timestamp::now() + SignedDuration::from_secs(3) { opens + SignedDuration::from_mins(1) } else { opens };
    let window = format!(
        "[[window]]\ndays = [\"{}\"]\nstart_time = \"{}\"\nlength_minutes = 1\ntime_zone = \"{ZONE}\"\nfit = \"stage\"\n",
        opens.strftime("%a"),
        opens.strftime("%H:%M")
    );
    let plan = Plan::new("shop@2.0.0", "rolling").batch("1").limit("rollback_parallel = \"100%\"").tables(&window);
    let file = fleet.plan_file(&plan)?;
    // Both clocks are shown.
    fleet.cli(&["rollout", "plan", "-f", &file])?.expect_said(ZONE)?.expect_said("UTC")?;
    let id = submit(&world, &plan)?;
    let scheduled = fleet.status(&id)?;
    ensure!(scheduled["window"]["opens"].as_str().is_some_and(|at| at.starts_with(&opens.timestamp().to_string()[..16])), "{scheduled:#}");
    ensure!(Story::of(fleet, &id)?.all(is_swap_order).is_empty());

    fleet.wait_status(&id, "it begins", MINUTES, |status| (status["state"] == "running").then_some(()))?;
    ensure!(Timestamp::now() >= opens.timestamp(), "it began before {opens}");
    let paused = fleet.wait_state(&id, "paused", MINUTES)?;
    ensure!(paused["reason"].as_str().is_some_and(|reason| reason.contains("window")), "{paused:#}");
    let settled = fleet.wait_status(&id, "hosts in flight are finished", SOON, |status| {
        let flying = ["swapping", "probation", "healthy"].iter().any(|state| !in_state(status, state).is_empty());
        (!flying).then(|| status.clone())
    })?;
    expect_state(&settled, "paused")?;
    let confirmed = in_state(&settled, "confirmed").len();
    ensure!((2..5).contains(&confirmed), "{confirmed} hosts were finished: {settled:#}");

    let refused = fleet.cli(&["rollout", "resume", &id])?;
    ensure!(refused.code != 0 && refused.said().contains("window"), "{refused}");
    fleet.go_past(&id, "window", "tech-lead", people.with("tech-lead")?, "in a hurry")?.expect_code(2)?;
    fleet.go_past(&id, "window", "operations", people.with("operations")?, "INC-77 needs it tonight")?.expect_code(0)?;
    if fleet.status(&id)?["state"] == "paused" {
        fleet.cli(&["rollout", "resume", &id])?;
    }
    wait_for("the next host is swapped", SOON, || Ok(Story::of(fleet, &id)?.all(is_swap_order).len() > confirmed))?;
    // Going back asks no window.
    fleet.say("rollback", &id, &["--reason", "seen enough"])?;
    fleet.wait(&id, "completed")?.expect_code(4)?;
    fleet.expect_version("1.0.0")
}

#[test]
fn what_does_not_begin_in_time_is_refused_and_an_override_begins_at_once() -> Result {
    let world = world(2, &Release::good("2.0.0"))?;
    let (fleet, people) = (&world.fleet, &world.people);
    let by = Timestamp::now() + SignedDuration::from_secs(3);
    let late = Plan::new("shop@2.0.0", "rolling").line(&format!("start_by = \"{by}\"")).tables(&closed_window());
    let id = submit(&world, &late)?;
    fleet.wait(&id, "completed")?.expect_code(5)?;
    let refused = fleet.status(&id)?;
    expect_state(&refused, "refused")?;
    ensure!(refused["reason"].as_str().is_some_and(|reason| reason.contains("start_by")), "{refused:#}");
    fleet.expect_version("1.0.0")?;

    let plan = Plan::new("shop@2.0.0", "rolling").tables(&closed_window());
    let id = submit(&world, &plan)?;
    fleet.go_past(&id, "window", "operations", people.with("security")?, "why not")?.expect_code(5)?;
    // A signature for a freeze is none for a window.
    fleet.go_past(&id, "freeze", "operations", people.with("operations")?, "INC-78")?;
    expect_state(&fleet.status(&id)?, "scheduled")?;
    fleet.go_past(&id, "window", "cab", people.with("cab")?, "INC-78")?.expect_code(0)?;
    fleet.wait_state(&id, "completed", SOON)?;
    let papers = fleet.papers(&id)?;
    papers.expect(2, &["INC-78", "carl@example.com"])?;
    fleet.expect_version("2.0.0")
}

#[test]
fn a_window_that_cannot_be_meant_is_a_usage_error() -> Result {
    let world = world(2, &Release::good("2.0.0"))?;
    for (window, says) in [
        ("[[window]]\nstart_time = \"22:00\"\nlength_minutes = 60\ntime_zone = \"Europe/Berlim\"\n", "Europe/Berlin"),
        ("[[window]]\nstart_time = \"25:00\"\nlength_minutes = 60\n", "25:00"),
        ("[[window]]\nstart_time = \"22:00\"\n", "length_minutes"),
        ("[[window]]\ndays = [\"Tuesday\"]\n", "Tue"),
    ] {
        let file = world.fleet.plan_file(&Plan::new("shop@2.0.0", "rolling").tables(window))?;
        let output = world.fleet.cli(&["rollout", "start", "-f", &file, "--wait"])?;
        ensure!(output.code == 2, "{window}: {output}");
        output.expect_said(says)?;
    }
    world.fleet.expect_version("1.0.0")
}
