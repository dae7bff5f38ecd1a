//! A freeze stops what goes forward, and never what goes back.

use anyhow::ensure;
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::{Plan, Release};

use super::World;
use crate::gating::{Story, is_swap_order};
use crate::{Result, SOON, entries, expect_state, in_state, slow};

fn world(release: &Release) -> Result<World> {
    let world = World::with(3, |_| pairs(&[("role", "api")]), "")?;
    world.ship(&Release::good("1.0.0"))?;
    world.fleet.import(release)?;
    Ok(world)
}

fn one_by_one() -> Plan {
    Plan::new("shop@2.0.0", "rolling").batch("1")
}

/// Waits until the first host is in flight.
fn in_flight(world: &World, id: &str) -> Result {
    world.fleet.wait_status(id, "a host is in flight", SOON, |status| {
        entries(status).any(|entry| ["swapping", "probation"].iter().any(|state| entry["state"] == *state)).then_some(())
    })
}

#[test]
fn a_freeze_refuses_a_start_and_says_which_one_it_is() -> Result {
    let world = world(&Release::good("2.0.0"))?;
    let fleet = &world.fleet;
    let other = fleet.freeze("another environment", &["--environment", "production"])?;
    let number = fleet.freeze("year end", &["--for", "2h"])?;
    let shown = fleet.json(&["freeze", "list"])?;
    ensure!(shown.as_array().map(Vec::len) == Some(2), "{shown:#}");
    let file = fleet.plan_file(&one_by_one())?;
    fleet.cli(&["rollout", "plan", "-f", &file])?.expect_said("year end")?;
    let refused = fleet.roll(&one_by_one())?.expect_code(5)?;
    refused.expect_said("year end")?;
    fleet.expect_version("1.0.0")?;
    fleet.cli(&["freeze", "remove", &number, "--reason", "over"])?.expect_code(0)?;
    // The other one is about another environment.
    fleet.roll(&one_by_one())?.expect_code(0)?;
    fleet.cli(&["freeze", "remove", &other, "--reason", "over"])?.expect_code(0)?;
    ensure!(fleet.json(&["freeze", "list"])? == serde_json::json!([]));
    fleet.expect_version("2.0.0")
}

#[test]
fn a_freeze_lets_the_host_in_flight_finish_and_going_back_is_free() -> Result {
    let world = world(&slow("2.0.0", "3"))?;
    let fleet = &world.fleet;
    let before = fleet.observed("api")?;
    let id = fleet.start_rollout(&one_by_one())?;
    in_flight(&world, &id)?;
    fleet.freeze("network work", &["-l", "role=api"])?;
    let paused = fleet.wait_state(&id, "paused", SOON)?;
    ensure!(paused["reason"].as_str().is_some_and(|reason| reason.contains("network work")), "{paused:#}");
    let settled = fleet.wait_status(&id, "the host in flight is finished", SOON, |status| {
        (in_state(status, "confirmed").len() == 1).then(|| status.clone())
    })?;
    expect_state(&settled, "paused")?;
    ensure!(Story::of(fleet, &id)?.all(is_swap_order).len() == 1);
    ensure!(fleet.cli(&["rollout", "resume", &id])?.code != 0, "it resumed under a freeze");

    fleet.say("rollback", &id, &["--reason", "not today"])?;
    fleet.wait(&id, "completed")?.expect_code(4)?;
    ensure!(before == fleet.observed("api")?, "what runs is not what ran before");
    fleet.expect_version("1.0.0")
}

#[test]
fn what_a_freeze_held_can_go_on_when_it_is_removed_or_when_a_named_person_says_so() -> Result {
    let world = world(&slow("2.0.0", "2"))?;
    let (fleet, people) = (&world.fleet, &world.people);
    let id = fleet.start_rollout(&one_by_one())?;
    in_flight(&world, &id)?;
    let number = fleet.freeze("network work", &[])?;
    fleet.wait_state(&id, "paused", SOON)?;
    fleet.cli(&["freeze", "remove", &number, "--reason", "done"])?.expect_code(0)?;
    // It was paused, so a person says go: nobody is surprised by a freeze that ends at night.
    fleet.say("resume", &id, &["--reason", "the network is up"])?;
    fleet.wait_status(&id, "it goes on", SOON, |status| (status["state"] == "running").then_some(()))?;
    fleet.freeze("again", &[])?;
    fleet.wait_state(&id, "paused", SOON)?;
    let security = people.with("security")?;
    // Not as security, and not by somebody who is not operations.
    fleet.go_past(&id, "freeze", "security", security, "I want to")?.expect_code(2)?;
    fleet.go_past(&id, "freeze", "operations", security, "I want to")?.expect_code(5)?;
    expect_state(&fleet.status(&id)?, "paused")?;
    fleet.go_past(&id, "freeze", "operations", people.with("operations")?, "agreed in CAB of 12-23")?.expect_code(0)?;
    // Someone may still have to say go.
    if fleet.status(&id)?["state"] == "paused" {
        fleet.cli(&["rollout", "resume", &id])?;
    }
    fleet.wait_state(&id, "completed", SOON)?;
    let papers = fleet.papers(&id)?;
    papers.expect(2, &["agreed in CAB of 12-23", "olga@example.com"])?;
    fleet.expect_version("2.0.0")
}
