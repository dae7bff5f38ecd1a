//! The whole run, as the guide has it, and nothing goes wrong.

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::receiver::Received;

use super::papers::{expect_complete, expect_junit, expect_shown, strings};
use super::run::{ID, approve_all, attest_stage, close, hand_over, load, look, misses, plan, submit};
use super::{API, HOSTS, WEB, World, plain, with_tasks};
use crate::gating::{Story, is_kind, is_swap_order};
use crate::{Result, SOON, entries};

#[test]
fn from_the_plan_to_the_closed_rollout() -> Result {
    let world = World::new("")?;
    let fleet = &world.fleet;
    world.ship(&plain("1.0.0"))?;
    fleet.import(&with_tasks("2.0.0"))?;
    let traffic = load(&world)?;
    let told_before = world.receiver.received().len();

    // What would happen: hosts, waves, the checklist, and nothing is touched.
    let plan = plan(&world);
    let file = fleet.plan_file(&plan)?;
    let shown = look(fleet, &plan)?;
    ensure!(shown["hosts"].as_array().map(Vec::len) == Some(HOSTS), "{shown:#}");
    ensure!(shown["readiness"].as_array().is_some_and(|rows| rows.len() >= 10), "{:#}", shown["readiness"]);
    fleet.cli(&["rollout", "plan", "-f", &file])?.expect_code(0)?.expect_said("Backup database")?;

    submit(fleet, &plan)?;
    let waiting = fleet.wait_state(ID, "awaiting-approval", SOON)?;
    ensure!(waiting["waiting_for"] == "person" && misses(&waiting, "approval-security"), "{waiting:#}");
    // Whoever waits for it in a script is told that people are wanted.
    fleet.cli(&["rollout", "start", "-f", &file, "--wait", "--run-id", ID])?.expect_code(3)?;
    ensure!(fleet.tasks_run().is_empty(), "a task ran before it was approved: {:?}", fleet.tasks_run());
    let announced = world.receiver.at("/slack").iter().any(|r| r.text().contains("shop@2.0.0"));
    ensure!(!announced, "the start was announced before it began: {}", world.receiver.story());

    approve_all(fleet, &world.people, ID)?;
    attest_stage(fleet)?;
    let status = fleet.wait_state(ID, "completed", SOON).with_context(|| fleet.tails())?;
    ensure!(entries(&status).all(|entry| entry["state"] == "confirmed"), "{status:#}");
    world.expect_version("2.0.0")?;
    let tally = traffic.finish();
    ensure!(tally.asked > 200, "{tally:?}");

    // Tasks: once each, in order, before the first swap, with their notes.
    ensure!(fleet.tasks_run() == ["backup-database run h1", "deploy-database-migrations run h1"], "{:?}", fleet.tasks_run());
    let notes: Vec<&str> = status["tasks"].as_array().into_iter().flatten().filter_map(|task| task["note"].as_str()).collect();
    ensure!(notes == ["backup_20261124", "3 migrations"], "{:#}", status["tasks"]);
    let story = Story::of(fleet, ID)?;
    let last_task = story.all(is_kind("task-ended")).last().copied().context("no task ended")?;
    let swaps = story.all(is_swap_order);
    ensure!(swaps.len() == HOSTS && swaps.iter().all(|swap| swap["seq"].as_u64() > last_task["seq"].as_u64()), "{}", story.text());
    // In every stage the first component goes before the second.
    let order: Vec<&str> = swaps.iter().filter_map(|swap| swap["component"].as_str()).collect();
    ensure!(order.first() == Some(&"api") && order.last() == Some(&"web"), "{order:?}");

    // Told once each, by the guide's table.
    let started = world.receiver.wait("the start", "/slack", SOON, |r| r.taken() && r.text().contains("shop@2.0.0"))?;
    ensure!(started.json["text"].is_string(), "{started:?}");
    if let Some(mail) = &world.mail {
        let done = mail.wait("mail of the completion", SOON, |mail| mail.text.contains("shop@2.0.0"))?;
        done.expect_valid()?;
        ensure!(done.header("subject").contains("completed"), "{done:?}");
        ensure!(done.rcpt_tos == ["stakeholders@example.com"] && done.text.contains("shop@2.0.0"), "{done:?}");
        let about = mail.mails()?.iter().filter(|mail| mail.text.contains("shop@2.0.0")).count();
        ensure!(about == 1, "{about} mails: {:?}", mail.mails()?);
    }
    let done = |r: &Received| r.taken() && r.text().contains("completed") && r.text().contains("shop@2.0.0");
    world.receiver.wait("the completion", "/webhook", SOON, done)?;
    let pages = world.receiver.at("/v2/enqueue");
    ensure!(
        pages.iter().all(|page| page.json["event_action"] != "trigger" || page.json["payload"]["severity"] == "info"),
        "{}",
        world.receiver.story()
    );
    ensure!(world.receiver.received().len() > told_before);
    world.receiver.expect_valid()?;

    // Not before everything is signed.
    let refused = fleet.cli(&["rollout", "close", ID])?.expect_code(5)?;
    for open in ["on-call-briefed", "review", "lead"] {
        refused.expect_said(open)?;
    }
    hand_over(fleet, &world.people)?;
    close(fleet)?;
    ensure!(fleet.cli(&["rollout", "close", ID])?.code != 0 || fleet.status(ID)?["closed"] == true);

    documents(&world)?;
    fleet.gate_logs(&[])
}

fn documents(world: &World) -> Result {
    let fleet = &world.fleet;
    let papers = fleet.papers(ID)?;
    // A pure function of the journal.
    let again = fleet.papers(ID)?;
    ensure!(papers.each().eq(again.each()), "the same journal gave other documents");
    expect_complete(&papers)?;

    papers.expect(
        1,
        &[
            "2.0.0",
            "lead@example.com",
            "Technical lead approval",
            "tina@example.com",
            "sam@example.com",
            "olga@example.com",
            "pia@example.com",
        ],
    )?;
    papers.expect(
        1,
        &["Lea Lead", "+49 30 1002", "Europe/Berlin", "CR-1042", "Checkout is too slow", "Migration locks a table", "It runs in batches"],
    )?;
    papers.expect(1, &["Deployment artifacts built and verified", "SHA256:"])?;
    papers.expect(2, &["Backup database", "backup_20261124", "Deploy database migrations", "3 migrations"])?;
    papers.expect(2, &[&format!("{API}/{API} nodes"), &format!("{WEB}/{WEB} nodes"), "Deployment complete"])?;
    papers.expect(3, &["SMK-001", "Homepage loads", "INT-001", "Payment gateway", "Automated", "latency_p99"])?;
    papers.expect(4, &["Error rate", "Latency p50", "Latency p99", "CPU", "Memory"])?;
    papers.expect(
        5,
        &[
            "The search box is slow on Mondays",
            "Remove the old index",
            "Otto Oncall",
            "opslead@example.com",
            "lead@example.com",
            "+49 30 1003",
        ],
    )?;
    papers.expect(5, &[&world.dashboard()])?;
    papers.expect(6, &["Everybody was told", "Announce earlier", "Write to support a day before", "2026-12-01", "Downtime"])?;

    // Checksums are those of the files that run, as the hosts hashed them.
    let mut said = std::collections::BTreeSet::new();
    strings(&papers.json(2)?, &mut said);
    for (host, component) in [("h1", "api"), ("h4", "web")] {
        let list = fleet.host_list()?;
        let entry = list.iter().find(|entry| entry["name"] == host).context("the host")?;
        let tree = entry.pointer(&format!("/components/{component}/tree_sha256")).and_then(Value::as_str).context("its tree")?;
        let bare = tree.trim_start_matches("sha256:");
        ensure!(said.iter().any(|text| text.contains(bare)), "{component}: {tree} is not in the execution log: {said:?}");
    }
    // The approvals' signatures hold by stock ssh-keygen, over the payload that was signed.
    let story = Story::of(fleet, ID)?;
    let approvals = story.all(is_kind("approved"));
    ensure!(approvals.len() == 4, "{}", story.text());
    for approval in approvals {
        let (role, signed) = (&approval["record"]["role"], &approval["record"]["signed"]);
        let word = role.as_str().context("a role")?;
        let payload = fleet.cli(&["rollout", "approve", ID, "--role", word, "--print-payload"])?.expect_code(0)?.stdout;
        let (who, signature) = (signed["principal"].as_str().context("who")?, signed["signature"].as_str().context("the signature")?);
        world.people.verify(who, &payload, signature)?;
        ensure!(signed["key"] == world.people.named(who)?.fingerprint.as_str(), "{signed:#}");
    }
    let hosts = ["h1", "h2", "h3", "h4", "h5"];
    let suites = expect_junit(&papers, &hosts, true)?;
    ensure!(suites.is_empty() || suites.len() >= hosts.len(), "{suites:#?}");
    expect_shown(&papers)
}
