//! The guide's run with a stage that fails: everything goes back, tasks in
//! reverse, people are told, and the documents say what happened.

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::Task;
use tidegate_integration_tests::mail::MailServer;
use tidegate_integration_tests::receiver::Received;

use super::papers::{expect_complete, expect_junit, expect_shown};
use super::run::{ATTEST, ID, approve_all, attest_stage, close, hand_over, load, plan_with, submit};
use super::{World, plain, with_tasks};
use crate::gating::{Story, is_kind, is_revert_order};
use crate::{Result, SOON, entries, expect_state};

#[test]
fn a_stage_that_fails_takes_all_of_it_back() -> Result {
    let world = World::new("")?;
    let fleet = &world.fleet;
    world.ship(&plain("1.0.0"))?;
    fleet.import(&with_tasks("2.0.0").task(Task::new("Warm caches", "db=yes", "echo 12 keys").undo("echo caches cleared")))?;
    let before = observed(&world)?;
    let traffic = load(&world)?;
    submit(fleet, &plan_with(&world, "1s", ATTEST, "watch = \"30s\""))?;
    fleet.wait_state(ID, "awaiting-approval", SOON)?;
    approve_all(fleet, &world.people, ID)?;
    attest_stage(fleet)?;
    fleet.wait_status(ID, "all hosts are new", SOON, |status| entries(status).all(|entry| entry["state"] == "confirmed").then_some(()))?;
    fleet.tell_all("[2.0.0]\nlatency_ms = 5\nerror_rate = 40\n")?;
    fleet.wait(ID, "completed")?.expect_code(4)?;
    drop(traffic);
    let status = fleet.status(ID)?;
    expect_state(&status, "rolled-back")?;
    ensure!(before == observed(&world)?, "what runs is not what ran before");
    world.expect_version("1.0.0")?;

    // Hosts first, then tasks in reverse; what has no undo stays.
    let due = [
        "backup-database run h1",
        "deploy-database-migrations run h1",
        "warm-caches run h1",
        "warm-caches undo h1",
        "deploy-database-migrations undo h1",
    ];
    ensure!(fleet.tasks_run() == due, "{:?}", fleet.tasks_run());
    let story = Story::of(fleet, ID)?;
    let last_back =
        story.all(|record| record["kind"] == "host" && record["to"] == "reverted").last().copied().context("no host went back")?;
    let undo = story.first("that undoes a task", |record| record["kind"] == "task-ordered" && record["what"] == "undo")?;
    ensure!(undo["seq"].as_u64() > last_back["seq"].as_u64(), "{}", story.text());
    story.first("that trips", is_kind("tripped"))?;
    story.first("that takes back", is_revert_order)?;

    // On call is paged, and told when it is over.
    let page = |action: &'static str| move |r: &Received| r.taken() && r.json["event_action"] == action;
    let wakes = |r: &Received| ["error", "critical"].iter().any(|severity| r.json["payload"]["severity"] == *severity);
    let trigger = world.receiver.wait("a page that wakes", "/v2/enqueue", SOON, |r| page("trigger")(r) && wakes(r))?;
    ensure!(trigger.json["payload"]["summary"].as_str().is_some_and(|summary| summary.contains("shop")), "{trigger:?}");
    let key = trigger.json["dedup_key"].clone();
    ensure!(key.as_str().is_some_and(|key| key.starts_with(&format!("tidegate/{ID}"))), "{key}");
    world.receiver.wait("its end", "/v2/enqueue", SOON, |r| page("resolve")(r) && r.json["dedup_key"] == key)?;
    for mail in world.mail.iter().map(MailServer::mails).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
        ensure!(!mail.text.contains("shop@2.0.0"), "stakeholders were told that it completed: {mail:?}");
    }
    world.receiver.expect_valid()?;

    // Not closed while an issue is unresolved.
    hand_over(fleet, &world.people)?;
    let open = fleet.open_items(ID)?;
    ensure!(open.iter().any(|item| item.contains("issue")), "no issue is open: {open:?}");
    fleet.cli(&["rollout", "close", ID])?.expect_code(5)?.expect_said("issue")?;
    let issues = issues(&fleet.papers(ID)?.json(2)?)?;
    ensure!(!issues.is_empty(), "no issue in the execution log");
    for issue in issues {
        fleet.cli(&["rollout", "note", ID, "bad query plan; fixed in 2.0.1", "--resolves", &issue.to_string()])?.expect_code(0)?;
    }
    // The resolutions are part of what is handed over: it is signed again.
    hand_over(fleet, &world.people)?;
    close(fleet)?;
    truth(&world)
}

fn observed(world: &World) -> Result<Vec<Value>> {
    let facts = |host: Value| {
        let of = |component: &str| ["release", "running_sha256", "tree_sha256"].map(|key| host["components"][component][key].clone());
        serde_json::json!([host["name"], of("api"), of("web")])
    };
    Ok(world.fleet.host_list()?.into_iter().map(facts).collect())
}

/// Numbers of the issues in the execution log.
fn issues(log: &Value) -> Result<Vec<u64>> {
    let list = log.pointer("/issues").or_else(|| log.pointer("/data/issues")).and_then(Value::as_array);
    let list = list.with_context(|| format!("no list of issues in {log:#}"))?;
    list.iter()
        .map(|issue| issue["number"].as_u64().or_else(|| issue["issue"].as_u64()).with_context(|| format!("no number in {issue:#}")))
        .collect()
}

fn truth(world: &World) -> Result {
    let papers = world.fleet.papers(ID)?;
    expect_complete(&papers)?;
    papers.expect(2, &["Trigger error_rate", "bad query plan; fixed in 2.0.1", "3 migrations undone", "caches cleared"])?;
    let log = papers.markdown(2)?.to_lowercase();
    ensure!(log.contains("rolled back") || log.contains("rolled-back"), "{log}");
    ensure!(!log.contains("deployment complete"), "it says that it was completed: {log}");
    papers.expect(6, &["**Rollbacks:** 1", "**Issues encountered:** ✓ 1"])?;
    // The five hosts passed their smoke tests going forward.
    expect_junit(&papers, &["h1", "h5"], true)?;
    expect_shown(&papers)
}
