//! Tasks: once per rollout, whatever happens to controller and agent; a person is
//! asked when nobody knows; past a point of no return nothing goes back by itself.

use std::fs;

use anyhow::{Context, ensure};
use tidegate_integration_tests::wait::wait_for;
use tidegate_integration_tests::{Component, Fleet, Plan, Release, Task};

use crate::gating::Story;
use crate::{Result, SOON, entries, expect_state, slow};

/// Runs until somebody makes the file `go`.
const UNTIL_GO: &str = "while [ ! -e \"$scratch/go\" ]; do sleep 0.05; done\necho 3 migrations";

fn two_hosts(release: &Release) -> Result<Fleet> {
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(release)?;
    Ok(fleet)
}

fn go(fleet: &Fleet) -> Result {
    fs::write(fleet.scratch().join("go"), "").context("the file `go`")
}

fn begin(fleet: &Fleet) -> Result<String> {
    fleet.start_rollout(&Plan::new("shop@2.0.0", "rolling").batch("1"))
}

fn began(fleet: &Fleet, lines: usize) -> Result {
    wait_for("the task began", SOON, || Ok(fleet.tasks_run().len() >= lines))
}

#[test]
fn a_task_runs_once_though_controller_and_agent_are_restarted() -> Result {
    let release = slow("2.0.0", "3").task(Task::new("Migrate", "role=api", UNTIL_GO)).task(Task::new("Warm", "role=api", "echo warm"));
    let mut fleet = two_hosts(&release)?;
    let id = begin(&fleet)?;
    began(&fleet, 1)?;
    // The controller dies while it runs, and comes back while it still does.
    fleet.kill_controller()?;
    fleet.start_controller()?;
    go(&fleet)?;
    fleet.wait_status(&id, "hosts change", SOON, |status| entries(status).any(|entry| entry["state"] == "probation").then_some(()))?;
    // The agent dies when they have ended: its record says so.
    fleet.kill_agent(0)?;
    fleet.kill_controller()?;
    fleet.start_controller()?;
    fleet.start_agent(0)?;
    fleet.wait_state(&id, "completed", SOON)?;
    ensure!(fleet.tasks_run() == ["migrate run h1", "warm run h1"], "{:?}", fleet.tasks_run());
    fleet.expect_version("2.0.0")
}

#[test]
fn a_task_whose_end_nobody_saw_asks_a_person() -> Result {
    let release = Release::good("2.0.0").task(Task::new("Migrate", "role=api", UNTIL_GO).undo("echo undone"));
    let mut fleet = two_hosts(&release)?;
    let plan = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling"))?;
    let start = ["rollout", "start", "-f", &plan, "--run-id", "run"];
    fleet.cli(&[&start[..], &["--detach"]].concat())?.expect_code(0)?;
    began(&fleet, 1)?;
    fleet.kill_agent(0)?;
    fleet.start_agent(0)?;
    let paused = fleet.wait_state("run", "paused", SOON)?;
    ensure!(paused["waiting_for"] == "person", "{paused:#}");
    ensure!(paused["tasks"][0]["state"] == "lost", "{:#}", paused["tasks"]);
    let said = fleet.cli(&[&start[..], &["--wait"]].concat())?.expect_code(3)?;
    said.expect_said("Migrate")?;
    ensure!(fleet.tasks_run() == ["migrate run h1"], "it ran again: {:?}", fleet.tasks_run());
    fleet.expect_version("1.0.0")?;

    // A person looked: it shall run again.
    go(&fleet)?;
    fleet.say("resume", "run", &["--reason", "looked: nothing was migrated"])?;
    fleet.wait_state("run", "completed", SOON)?;
    ensure!(fleet.tasks_run() == ["migrate run h1", "migrate run h1"], "{:?}", fleet.tasks_run());
    fleet.expect_version("2.0.0")
}

#[test]
fn an_idempotent_task_runs_again_by_itself() -> Result {
    let release = Release::good("2.0.0").task(Task::new("Migrate", "role=api", UNTIL_GO).line("idempotent = true"));
    let mut fleet = two_hosts(&release)?;
    let id = begin(&fleet)?;
    began(&fleet, 1)?;
    fleet.kill_agent(0)?;
    go(&fleet)?;
    fleet.start_agent(0)?;
    let status = fleet.wait_state(&id, "completed", SOON)?;
    ensure!(fleet.tasks_run() == ["migrate run h1", "migrate run h1"], "{:?}", fleet.tasks_run());
    ensure!(status["tasks"][0]["note"] == "3 migrations", "{status:#}");
    ensure!(!Story::of(&fleet, &id)?.states().contains(&"paused"));
    Ok(())
}

#[test]
fn a_failed_task_takes_back_those_before_it_in_reverse() -> Result {
    let release = Release::good("2.0.0")
        .task(Task::new("First", "role=api", "echo one").undo("echo not one"))
        .task(Task::new("Backup", "role=api", "echo backup_1"))
        .task(Task::new("Second", "role=api", "echo two").undo("echo not two"))
        .task(Task::new("Third", "role=api", "echo it broke; echo disk full >&2; exit 3").undo("echo never"));
    let fleet = two_hosts(&release)?;
    let before = fleet.observed("api")?;
    let output = fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?;
    output.expect_said("Third")?;
    let status = fleet.newest_status()?;
    // No service was touched, yet tasks were undone: it went back.
    let output = output.expect_code(4)?;
    expect_state(&status, "rolled-back")?;
    let due = ["first run h1", "backup run h1", "second run h1", "third run h1", "second undo h1", "first undo h1"];
    ensure!(fleet.tasks_run() == due, "{:?}\n{output}", fleet.tasks_run());
    let states: Vec<&str> = status["tasks"].as_array().into_iter().flatten().filter_map(|task| task["state"].as_str()).collect();
    ensure!(states == ["undone", "done", "undone", "failed"], "{:#}", status["tasks"]);
    ensure!(status["tasks"][3]["note"].as_str().is_some_and(|note| note.contains("broke") || note.contains("disk full")), "{status:#}");
    ensure!(before == fleet.observed("api")?);
    fleet.expect_version("1.0.0")
}

#[test]
fn past_a_point_of_no_return_it_halts_and_names_the_hosts() -> Result {
    let release = Release::new("2.0.0")
        .component(Component::new("api").conf("behaviour = bad").line("keep = 3"))
        .task(Task::new("Drop the old table", "role=api", "echo dropped").line("reversible = false"));
    let fleet = two_hosts(&release)?;
    let output = fleet.roll(&Plan::new("shop@2.0.0", "rolling").batch("1").limit("healthy_deadline = \"15s\""))?.expect_code(8)?;
    let status = fleet.newest_status()?;
    expect_state(&status, "halted")?;
    ensure!(fleet.tasks_run() == ["drop-the-old-table run h1"], "{:?}", fleet.tasks_run());
    // Whoever reads the reason knows where to look, and why nothing went back.
    let reason = status["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("Drop the old table"), "{status:#}");
    let changed: Vec<&str> =
        entries(&status).filter(|e| e["state"] != "pending" && e["state"] != "staged").filter_map(|e| e["host"].as_str()).collect();
    ensure!(!changed.is_empty() && changed.iter().any(|host| output.said().contains(host)), "{changed:?} in {output}");
    ensure!(fleet.cli(&["rollout", "plan", "-f", &fleet.plan_file(&Plan::new("shop@1.0.0", "rolling"))?])?.code == 0);
    Ok(())
}
