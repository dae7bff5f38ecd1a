//! The crash-point table: a daemon dies at a named point of a rollout, comes
//! back, and the rollout ends as an undisturbed one does.
//!
//! Expected for every point of every table below: exit code 0, every host on
//! 2.0.0 and `confirmed`, and the same set of (host, generation) as undisturbed:
//! one generation per host beyond the first release's. The way back: exit code 4,
//! every host exactly as before.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::wait::{Look, wait_until};
use tidegate_integration_tests::{Fleet, Plan, Release};

use crate::{Result, SOON, entries, expect_state};

/// The variable that both daemons read.
const CRASH_AT: &str = "TIDEGATE_CRASH_AT";

/// Fleets at the same time.
const AT_ONCE: usize = 4;

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

/// What an undisturbed rollout shows: the generation after the first release's,
/// on every host. `an_undisturbed_rollout` holds that.
fn once_each(status: &Value) -> BTreeSet<(String, String)> {
    entries(status).map(|entry| (entry["host"].to_string(), "\"1.2\"".to_owned())).collect()
}

#[test]
fn an_undisturbed_rollout() -> Result {
    let fleet = two_hosts()?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    let status = fleet.newest_status()?;
    expect_state(&status, "completed")?;
    assert_eq!(swaps(&status), once_each(&status));
    Ok(())
}

/// Starts the rollout with an id, so that starting it again attaches.
fn begin(fleet: &Fleet, plan: &str) -> Result {
    // At the first points the controller dies before it can answer.
    fleet.cli(&["rollout", "start", "-f", plan, "--detach", "--run-id", "run"])?;
    Ok(())
}

/// The controller again, armed to die at `point`. The graceful end lets the
/// agents come back at once.
fn arm_controller(fleet: &mut Fleet, point: &str) -> Result {
    fleet.stop_controller()?;
    fleet.start_controller_with(&pairs(&[(CRASH_AT, point)]))?;
    fleet.wait_online(2)
}

/// Tries every point on a fleet of its own, some at a time: most of each is
/// waiting until the agents notice that the controller is another one. Names all
/// points that failed, and ends with the logs of one.
fn at_each(points: &'static [&'static str], try_one: fn(&mut Fleet, &str) -> Result) -> Result {
    let left = Mutex::new(points.iter());
    let failed = Mutex::new(Vec::new());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(point) = next() {
                    let tried = two_hosts().and_then(|mut fleet| try_one(&mut fleet, point).with_context(|| fleet.tails()));
                    if let Err(error) = tried {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push((*point, error));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let names: Vec<&str> = failed.iter().map(|(point, _)| *point).collect();
    let names = names.join(", ");
    failed.pop().map_or(Ok(()), |(point, error)| Err(error.context(format!("failed: {names}; this is {point}"))))
}

#[test]
fn the_controller_dies_at_each_point_going_forward() -> Result {
    at_each(CONTROLLER, |fleet, point| {
        arm_controller(fleet, point)?;
        let plan = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling"))?;
        begin(fleet, &plan)?;
        fleet.wait_controller_dead(SOON).context("it was never passed")?;
        fleet.start_controller()?;
        fleet.wait_online(2)?;
        // Of one that was not journaled nobody was told: it is started again.
        begin(fleet, &plan)?;
        let status = fleet.wait_state("run", "completed", SOON)?;
        ensure!(swaps(&status) == once_each(&status), "a host was swapped twice: {status:#}");
        fleet.expect_version("2.0.0")
    })
}

#[test]
fn the_controller_dies_at_each_point_going_back() -> Result {
    at_each(CONTROLLER_BACK, |fleet, point| {
        let before = fleet.observed("api")?;
        fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
        let id = fleet.newest()?;
        arm_controller(fleet, point)?;
        fleet.cli(&["rollout", "rollback", &id, "--reason", "test"])?;
        fleet.wait_controller_dead(SOON).context("it was never passed")?;
        fleet.start_controller()?;
        fleet.wait_online(2)?;
        if fleet.status(&id)?["state"] == "completed" {
            // It was not journaled, and nobody was told that it was: said again.
            fleet.cli(&["rollout", "rollback", &id, "--reason", "test"])?;
        }
        fleet.wait_state(&id, "rolled-back", SOON)?;
        // What the list says of a host is as old as its last word before the controller died.
        wait_until("what runs is what ran before", SOON, || {
            let after = fleet.observed("api")?;
            Ok(if before == after { Look::Done(()) } else { Look::NotYet(format!("{before:#?}\n{after:#?}")) })
        })?;
        fleet.expect_version("1.0.0")
    })
}

#[test]
fn an_agent_dies_at_each_point() -> Result {
    at_each(AGENT, |fleet, point| {
        fleet.stop_agent(0)?;
        fleet.start_agent_with(0, &pairs(&[(CRASH_AT, point)]))?;
        fleet.wait_online(2)?;
        let plan = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling"))?;
        begin(fleet, &plan)?;
        fleet.wait_agent_dead(0, SOON).context("it was never passed")?;
        fleet.start_agent(0)?;
        let status = fleet.wait_state("run", "completed", SOON)?;
        ensure!(swaps(&status) == once_each(&status), "a host was swapped twice: {status:#}");
        fleet.expect_version("2.0.0")
    })
}
