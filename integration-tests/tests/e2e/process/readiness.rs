//! The whole checklist of the guide, row by row: each that does not hold keeps the
//! rollout from beginning, by name, until it is mended.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::receiver::Say;
use tidegate_integration_tests::{Component, Plan, Release};

use super::run::{look, misses, row};
use super::{CHANGE, CONTACTS, World, open_window};
use crate::gating::{SCRAPED, traffic};
use crate::{Result, SOON};

const PRODUCTION: &str = "[environments.staging]\n[environments.production]\nreadiness = \"guide\"\n\
    config_differs = [\"port\", \"port2\", \"port_blue\", \"port_green\", \"front\", \"control\"]\n";

fn release(version: &str) -> Release {
    let api = Component::new("api").controlled().conf("latency_ms = 5").line("check = [\"bin/demo-service\", \"--check-config\"]");
    Release::new(version).component(api)
}

/// The sources that triggers of the guide need.
fn measured(plan: Plan) -> Plan {
    plan.analysis("baseline = \"1s\"")
        .analysis("interval = \"300ms\"")
        .metric("error_rate", &[&SCRAPED[..4], &["min_samples = 20"]].concat())
        .metric(
            "latency",
            &[
                "source = \"scrape\"",
                "url = \"http://127.0.0.1:${var.port}/metrics\"",
                "histogram = \"http_request_duration_seconds\"",
                "min_samples = 20",
            ],
        )
        .trigger("error_rate > 1%", "rollback", &["min_samples = 20"])
        .trigger("latency_p50 > 2000% of baseline", "investigate", &["after = \"5s\""])
        .trigger("critical_errors > 0", "rollback", &[])
        .trigger("declared data-corruption", "emergency", &[])
        .trigger("declared security-incident", "emergency", &[])
}

fn bare(environment: &str) -> Plan {
    Plan::new("shop@2.0.0", "rolling").line(&format!("environment = \"{environment}\""))
}

/// Verdicts by row, of what `rollout plan` shows.
fn verdicts(shown: &Value) -> Result<BTreeMap<String, String>> {
    let rows = shown["readiness"].as_array().with_context(|| format!("no readiness in {shown:#}"))?;
    let word = |row: &Value, key: &str| row[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {row:#}"));
    rows.iter().map(|row| Ok((word(row, "item")?, word(row, "verdict")?))).collect()
}

/// Every line of the guide's 1.1 to 1.3.
const ROWS: &[&str] = &[
    "security-exit",
    "tested-in-staging",
    "staging-mirrors-production",
    "rollback-tested",
    "artifacts-verified",
    "checksums-recorded",
    "images-signed",
    "configuration-prepared",
    "release-notes",
    "deployment-runbook",
    "rollback-runbook",
    "communication-plan",
    "approval-tech-lead",
    "approval-security",
    "approval-operations",
    "approval-product-owner",
    "capacity",
    "dashboards",
    "alert-thresholds",
    "on-call-identified",
    "window",
    "low-traffic",
    "support-available",
    "no-conflicts",
    "rollback-time",
    "change-request",
    "risk-assessment",
    "downtime-declared",
];

#[test]
fn row_by_row_until_it_starts() -> Result {
    let world = World::with(3, |_| pairs(&[("role", "api")]), PRODUCTION)?;
    let (fleet, people) = (&world.fleet, &world.people);
    // What runs now: in both environments, without any of it.
    fleet.ship(&release("1.0.0"))?;
    // `h1` is staging, the others are production.
    for (host, env) in [("h1", "env=staging"), ("h2", "env=production"), ("h3", "env=production")] {
        fleet.cli(&["host", "label", host, env])?.expect_code(0)?;
    }
    let _load = traffic(fleet, 40, 40)?;
    fleet.import(&release("2.0.0"))?;

    // Nothing is prepared: every row is there, and the failing ones are named.
    let file = fleet.plan_file(&bare("production"))?;
    let shown = look(fleet, &bare("production"))?;
    let first = verdicts(&shown)?;
    for item in ROWS {
        ensure!(first.contains_key(*item), "no row {item} in {first:#?}");
    }
    let failing: Vec<&str> = first.iter().filter(|(_, verdict)| *verdict == "fail").map(|(item, _)| item.as_str()).collect();
    for item in [
        "tested-in-staging",
        "rollback-tested",
        "release-notes",
        "communication-plan",
        "dashboards",
        "on-call-identified",
        "window",
        "change-request",
        "trigger-sources",
    ] {
        ensure!(failing.contains(&item), "{item} does not fail: {:#}", row(&shown, item)?);
    }
    let refused = fleet.cli(&["rollout", "start", "-f", &file, "--wait"])?.expect_code(5)?;
    for item in &failing {
        refused.expect_said(item)?;
    }
    fleet.cli(&["rollout", "plan", "-f", &file])?.expect_said("Rollback procedure tested")?;

    mend(&world)?;

    // Only people are missing now.
    let plan = whole(&world);
    let file = fleet.plan_file(&plan)?;
    let shown = look(fleet, &plan)?;
    let left = verdicts(&shown)?;
    let failing: Vec<&String> = left.iter().filter(|(_, verdict)| *verdict == "fail").map(|(item, _)| item).collect();
    ensure!(failing.is_empty(), "still failing: {failing:?} in {:#}", shown["readiness"]);
    let start = ["rollout", "start", "-f", &file, "--run-id", "run"];
    fleet.cli(&[&start[..], &["--detach"]].concat())?.expect_code(0)?;
    let waiting = fleet.cli(&[&start[..], &["--wait"]].concat())?.expect_code(3)?;
    waiting.expect_said("security-exit")?;
    let status = fleet.wait_state("run", "awaiting-approval", SOON)?;
    for item in ["security-exit", "images-signed", "alert-thresholds", "low-traffic", "approval-tech-lead", "approval-cab"] {
        ensure!(misses(&status, item), "{item} is not missed: {:#}", status["missing"]);
    }
    // One by one, and each is off the list then.
    for item in ["security-exit", "images-signed", "alert-thresholds", "low-traffic"] {
        fleet.attest("run", item, "ticket OPS-7")?;
        ensure!(!misses(&fleet.status("run")?, item), "{item} is still missed");
    }
    ensure!(fleet.cli(&["rollout", "attest", "run", "--item", "no-such-item", "--note", "x"])?.code != 0);
    for role in ["tech-lead", "security", "operations", "cab"] {
        fleet.wait_state("run", "awaiting-approval", SOON)?;
        fleet.approve("run", role, people.with(role)?)?.expect_code(0)?;
    }
    // The product owner's is optional: a reason in place of it.
    fleet.attest("run", "approval-product-owner", "n/a: no visible change")?;
    fleet.wait_state("run", "completed", SOON)?;
    let papers = fleet.papers("run")?;
    papers.expect(1, &["ticket OPS-7", "n/a: no visible change", "CR-1042", "carl@example.com"])?;
    Ok(())
}

/// Mends row after row: each passes then, and did not before.
fn mend(world: &World) -> Result {
    let fleet = &world.fleet;
    // Documents are part of the release: it is another one, so drill and staging are of this one.
    fleet.import(&release("2.0.1").documented())?;
    let passes = |plan: &Plan, item: &str| -> Result<bool> { Ok(row(&look(fleet, plan)?, item)?["verdict"] == "pass") };
    let plan = whole(world);
    for item in [
        "release-notes",
        "deployment-runbook",
        "window",
        "change-request",
        "risk-assessment",
        "downtime-declared",
        "on-call-identified",
        "support-available",
        "trigger-sources",
        "configuration-prepared",
    ] {
        ensure!(passes(&plan, item)?, "{:#}", row(&look(fleet, &plan)?, item)?);
    }
    for item in ["tested-in-staging", "rollback-tested", "communication-plan"] {
        ensure!(!passes(&plan, item)?, "{item} holds already");
    }
    let staging = |strategy: &str| Plan::to("shop@2.0.1", strategy, "{ api = \"role=api\" }").line("environment = \"staging\"");
    let drill = fleet.plan_file(&staging("rolling"))?;
    fleet.cli(&["rollout", "drill", "-f", &drill, "--wait"])?.expect_code(0)?;
    ensure!(passes(&plan, "rollback-tested")? && passes(&plan, "rollback-runbook")?, "a drill passed, the row does not");
    ensure!(!passes(&plan, "tested-in-staging")?, "a drill is no rollout");
    fleet.roll(&staging("rolling"))?.expect_code(0)?;
    ensure!(passes(&plan, "tested-in-staging")?, "staging has it, the row does not hold");
    ensure!(passes(&plan, "staging-mirrors-production")?);

    world.receiver.next("/slack", &[Say::Status(403)]);
    fleet.cli(&["notify", "test"])?.expect_code(1)?;
    ensure!(!passes(&plan, "communication-plan")?, "a refused test counts");
    fleet.cli(&["notify", "test"])?.expect_code(0)?;
    ensure!(passes(&plan, "communication-plan")?, "all routes answered, the row does not hold");

    world.receiver.always("/dashboard", Say::Status(503));
    ensure!(!passes(&plan, "dashboards")?, "a dashboard that answers 503 is ready");
    world.receiver.always("/dashboard", Say::Fine);
    ensure!(passes(&plan, "dashboards")?);
    Ok(())
}

/// A plan that brings all of it.
fn whole(world: &World) -> Plan {
    let plan = Plan::new("shop@2.0.1", "rolling")
        .line("environment = \"production\"")
        .line("success = [\"error_rate < 1%\"]")
        .line(&format!("dashboards = [\"{}\"]", world.dashboard()));
    // All at once: what is left in service is not judged by the load of the machine that tests run on.
    let plan = plan.batch("2").limit("max_parallel = \"100%\"");
    measured(plan).tables(&open_window()).tables(CONTACTS).tables(CHANGE).tables(&world.notify())
}
