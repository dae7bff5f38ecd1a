//! The crash-point table: a daemon dies at a named point of a rollout, comes
//! back, and the rollout ends as an undisturbed one does.
//!
//! Expected for every point of every table below: exit code 0, every host on
//! 2.0.0 and `confirmed`, and the same set of (host, generation) as undisturbed:
//! one generation per host beyond the first release's. The way back: exit code 4,
//! every host exactly as before.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::{Fleet, Plan, Release};

use crate::{Result, SOON, entries, expect_state};

/// The variable that both daemons read.
const CRASH_AT: &str = "TIDEGATE_CRASH_AT";

/// Before the append, after it, and after the order was sent, for each kind of
/// action of the way forward.
const CONTROLLER: &[&str] = &[
    "controller.append.before.started",
    "controller.append.after.started",
    "controller.append.before.ordered-stage",
    "controller.append.after.ordered-stage",
    "controller.sent.after.ordered-stage",
    "controller.append.before.ordered-swap",
    "controller.append.after.ordered-swap",
    "controller.sent.after.ordered-swap",
    "controller.append.before.host",
    "controller.append.after.host",
    "controller.append.before.ordered-confirm",
    "controller.append.after.ordered-confirm",
    "controller.sent.after.ordered-confirm",
    "controller.append.before.state",
    "controller.append.after.state",
];

/// The same for the way back.
const CONTROLLER_BACK: &[&str] =
    &["controller.append.before.ordered-back-swap", "controller.append.after.ordered-back-swap", "controller.sent.after.ordered-back-swap"];

/// Around each write of the ledger and each operation of the way forward.
const AGENT: &[&str] = &[
    "agent.persist.before.staging",
    "agent.persist.after.staging",
    "agent.op.before.stage",
    "agent.op.after.stage",
    "agent.persist.before.swapping-flip",
    "agent.persist.after.swapping-flip",
    "agent.op.before.flip",
    "agent.op.after.flip",
    "agent.persist.before.probation",
    "agent.persist.after.probation",
    "agent.op.before.smoke",
    "agent.op.after.smoke",
    "agent.persist.before.healthy",
    "agent.persist.after.healthy",
    "agent.persist.before.confirmed",
    "agent.persist.after.confirmed",
];

fn two_hosts() -> Result<Fleet> {
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::good("2.0.0"))?;
    Ok(fleet)
}

/// (host, generation) of a rollout.
fn swaps(status: &Value) -> BTreeSet<(String, String)> {
    entries(status).map(|entry| (entry["host"].to_string(), entry["generation"].to_string())).collect()
}

fn undisturbed() -> Result<BTreeSet<(String, String)>> {
    let fleet = two_hosts()?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    let status = fleet.newest_status()?;
    expect_state(&status, "completed")?;
    Ok(swaps(&status))
}

/// Starts the rollout with an id, so that starting it again attaches.
fn begin(fleet: &Fleet, plan: &str) -> Result {
    // At the first points the controller dies before it can answer.
    fleet.cli(&["rollout", "start", "-f", plan, "--detach", "--run-id", "run"])?;
    Ok(())
}

#[test]
fn the_controller_dies_at_each_point_going_forward() -> Result {
    let due = undisturbed()?;
    for point in CONTROLLER {
        let mut fleet = two_hosts()?;
        fleet.kill_controller()?;
        fleet.start_controller_with(&pairs(&[(CRASH_AT, point)]))?;
        fleet.wait_online(2)?;
        let plan = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling"))?;
        begin(&fleet, &plan)?;
        fleet.wait_controller_dead(SOON).with_context(|| format!("{point} was never passed"))?;
        fleet.start_controller()?;
        begin(&fleet, &plan)?;
        let status = fleet.wait_state("run", "completed", SOON).with_context(|| format!("{point}\n{}", fleet.tails()))?;
        assert_eq!(swaps(&status), due, "{point}");
        fleet.expect_version("2.0.0").context(*point)?;
    }
    Ok(())
}

#[test]
fn the_controller_dies_at_each_point_going_back() -> Result {
    for point in CONTROLLER_BACK {
        let mut fleet = two_hosts()?;
        let before = fleet.observed("api")?;
        fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
        let id = fleet.newest()?;
        fleet.kill_controller()?;
        fleet.start_controller_with(&pairs(&[(CRASH_AT, point)]))?;
        fleet.wait_online(2)?;
        fleet.cli(&["rollout", "rollback", &id, "--reason", "test"])?;
        fleet.wait_controller_dead(SOON).with_context(|| format!("{point} was never passed"))?;
        fleet.start_controller()?;
        fleet.wait_state(&id, "rolled-back", SOON).with_context(|| format!("{point}\n{}", fleet.tails()))?;
        ensure!(before == fleet.observed("api")?, "{point}");
        fleet.expect_version("1.0.0").context(*point)?;
    }
    Ok(())
}

#[test]
fn an_agent_dies_at_each_point() -> Result {
    let due = undisturbed()?;
    for point in AGENT {
        let mut fleet = two_hosts()?;
        fleet.stop_agent(0)?;
        fleet.start_agent_with(0, &pairs(&[(CRASH_AT, point)]))?;
        fleet.wait_online(2)?;
        let plan = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling"))?;
        begin(&fleet, &plan)?;
        fleet.wait_agent_dead(0, SOON).with_context(|| format!("{point} was never passed"))?;
        fleet.start_agent(0)?;
        let status = fleet.wait_state("run", "completed", SOON).with_context(|| format!("{point}\n{}", fleet.tails()))?;
        assert_eq!(swaps(&status), due, "{point}");
        fleet.expect_version("2.0.0").context(*point)?;
    }
    Ok(())
}
