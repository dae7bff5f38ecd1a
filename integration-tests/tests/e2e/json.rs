//! What scripts read: keys and types of the documents in the contract.

use std::collections::BTreeSet;

use anyhow::ensure;
use serde_json::Value;
use tidegate_integration_tests::shape::shape;
use tidegate_integration_tests::{Fleet, Plan, Release};

use crate::Result;

/// Checks that every line of `due` is in the shape of `value`. What else is there
/// was added to the contract, which is allowed.
fn expect_shape(what: &str, value: &Value, maps: &[&str], due: &str) -> Result {
    let shown = shape(value, maps);
    let have: BTreeSet<&str> = shown.lines().collect();
    let missing: Vec<&str> = due.lines().map(str::trim).filter(|line| !line.is_empty() && !have.contains(line)).collect();
    ensure!(missing.is_empty(), "{what} lacks, or has with another type:\n{}\n--- it is:\n{shown}", missing.join("\n"));
    Ok(())
}

#[test]
fn documents_have_the_keys_and_types_of_the_contract() -> Result {
    let fleet = Fleet::start(2)?;
    let token = fleet.json(&["token", "create", "--host", "h9", "--label", "role=api"])?;
    expect_shape("token create", &token, &[], "expires_at: string\ntoken: string")?;

    let imported = fleet.import(&Release::good("1.0.0"))?;
    expect_shape("release import", &imported, &[], "bytes: number\ndigest: string\nfiles: number\nnew_bytes: number\nrelease: string")?;
    fleet.roll(&Plan::new("shop@1.0.0", "big-bang"))?.expect_code(0)?;

    // One host fails, the other was changed before: both kinds of entries.
    fleet.import(&Release::that("2.0.0", &["behaviour = bad", &format!("only_port = {}", fleet.hosts[1].port)]))?;
    let file = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling").batch("1"))?;
    let plan = fleet.json(&["rollout", "plan", "-f", &file])?;
    expect_shape(
        "rollout plan",
        &plan,
        &[],
        "hosts[].component: string
         hosts[].host: string
         plan_digest: string
         refused_because: array
         waves[].hosts[]: string
         waves[].index: number",
    )?;
    let started = fleet.json(&["rollout", "start", "-f", &file, "--detach"])?;
    expect_shape("rollout start --detach", &started, &[], "id: string\nplan_digest: string")?;
    assert_eq!(started["plan_digest"], plan["plan_digest"]);
    let id = started["id"].as_str().unwrap_or_default();
    fleet.cli(&["rollout", "wait", id, "--for", "completed"])?.expect_code(4)?;

    let status = fleet.status(id)?;
    expect_shape(
        "rollout status",
        &status,
        &[],
        "closed: boolean
         ended_at: string
         gates: array
         hosts[].cause: null|string
         hosts[].component: string
         hosts[].cpu_percent: number
         hosts[].generation: string
         hosts[].host: string
         hosts[].main_pid_started_at: string
         hosts[].memory_bytes: number
         hosts[].previous: string
         hosts[].release: string
         hosts[].running_sha256: string
         hosts[].smoke[].duration_ms: number
         hosts[].smoke[].id: string
         hosts[].smoke[].message: string
         hosts[].smoke[].status: string
         hosts[].state: string
         hosts[].tree_sha256: string
         hosts[].wave: number
         id: string
         plan_digest: string
         reason: string
         release: string
         schema: number
         started_at: string
         state: string
         strategy: string
         waiting_for: null
         waves[].hosts[]: string
         waves[].index: number
         waves[].name: string
         waves[].state: string",
    )?;

    let hosts = fleet.json(&["host", "list"])?;
    expect_shape(
        "host list",
        &hosts,
        &["[].components", "[].labels"],
        "[].agent_version: string
         [].components.*.previous: null|string
         [].components.*.release: string
         [].components.*.running_sha256: string
         [].components.*.state: string
         [].cpu_percent: number
         [].labels.*: string
         [].last_seen: string
         [].memory_bytes: number
         [].memory_total_bytes: number
         [].name: string
         [].state: string",
    )?;

    for event in fleet.cli(&["rollout", "events", id, "--output", "ndjson"])?.expect_code(0)?.ndjson()? {
        assert_eq!(event["schema"], 1, "{event}");
    }
    Ok(())
}

#[test]
fn errors_are_documents_too() -> Result {
    let fleet = Fleet::start(0)?;
    let missing = fleet.cli(&["rollout", "status", "nothing", "--output", "json"])?.expect_code(1)?.json()?;
    expect_shape("an error", &missing, &[], "error.code: string\nerror.message: string\nschema: number")?;
    assert!(missing["error"].get("cause").is_some() && missing["error"].get("fix").is_some(), "{missing:#}");

    let plan = fleet.text_file("plan.toml", "release = \"shop@1.0.0\"\ncolour = 1\n")?;
    let bad = fleet.cli(&["rollout", "plan", "-f", &plan, "--output", "json"])?.expect_code(2)?.json()?;
    expect_shape("an error", &bad, &[], "error.code: string\nerror.message: string\nschema: number")?;
    assert!(bad.to_string().contains("colour"), "{bad:#}");
    Ok(())
}

#[test]
fn a_controller_that_is_not_there_is_error_1_and_usage_is_2() -> Result {
    let mut fleet = Fleet::start(0)?;
    fleet.cli(&["host", "lits"])?.expect_code(2)?;
    fleet.cli(&["host", "list", "--output", "yaml"])?.expect_code(2)?;
    fleet.cli(&["host", "list", "-l", "a in (b"])?.expect_code(2)?;
    fleet.kill_controller()?;
    fleet.cli(&["host", "list"])?.expect_code(1)?;
    Ok(())
}
