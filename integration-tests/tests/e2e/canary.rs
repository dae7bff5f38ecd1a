//! The guide's canary on twenty hosts, with its times scaled down: what goes
//! through, what is looked at again, and what is taken back at once.

use std::time::Duration;

use anyhow::ensure;
use tidegate_integration_tests::Plan;

use crate::gating::{
    SCRAPED, Story, between, expect_back, is_gate, is_kind, is_revert_order, is_state, is_swap_order, judged, over_one_percent, traffic,
    two_releases, verdicts,
};
use crate::{Result, SOON, expect_state, in_state};

const MANY: usize = 20;

/// The guide's four stages.
fn four_stages(plan: Plan) -> Plan {
    plan.limit("max_parallel = \"100%\"")
        .stage("Canary", 5, "3s", &["error_rate < 0.1%", "latency_p50 within 50% of baseline", "critical_errors == 0"])
        .stage("Early Adopters", 25, "2s", &["error_rate < 0.1%", "stable"])
        .stage("Majority", 75, "2s", &["stable", "no_degradation"])
        .stage_with("Full", 100, &["watch = \"2s\"", "success = [\"stable\"]"])
        .trigger("critical_errors > 0", "rollback", &[])
        .trigger("latency_p50 > 200% of baseline", "investigate", &["after = \"4s\""])
}

#[test]
fn a_healthy_release_goes_through_all_four_stages() -> Result {
    let fleet = two_releases(MANY, &["latency_ms = 20"])?;
    // Everywhere the same: `stable` judges the request rate too.
    let load = traffic(&fleet, 30, 30)?;
    let plan = over_one_percent(four_stages(judged("canary")), 300).metric("error_rate", &[&SCRAPED[..4], &["min_samples = 60"]].concat());
    let output = fleet.roll(&plan)?;
    let id = fleet.newest()?;
    let story = Story::of(&fleet, &id)?;
    ensure!(output.code == 0, "{output}\n{}", story.text());
    let tally = load.finish();
    eprintln!("{} requests, {} missed while services restarted", tally.asked, tally.missed);
    fleet.expect_version("2.0.0")?;

    let status = fleet.status(&id)?;
    expect_state(&status, "completed")?;
    ensure!(in_state(&status, "confirmed").len() == MANY, "{status:#}");
    let waves: Vec<usize> =
        status["waves"].as_array().into_iter().flatten().filter_map(|wave| wave["hosts"].as_array()).map(Vec::len).collect();
    ensure!(waves == [1, 4, 10, 5], "5, 25, 75 and 100 percent of 20 hosts are not {waves:?}");
    ensure!(status["waves"].as_array().into_iter().flatten().all(|wave| wave["state"] == "passed"), "{status:#}");
    let verdicts = verdicts(&status);
    ensure!(!verdicts.is_empty() && verdicts.iter().all(|(_, verdict)| verdict == "pass"), "{verdicts:?}");
    for name in ["error_rate < 0.1%", "critical_errors == 0", "latency_p50 within 50% of baseline"] {
        ensure!(verdicts.iter().any(|(have, _)| have.contains(name)), "{name} is not among {verdicts:?}");
    }

    // The baseline was sealed before any host was touched, from real samples.
    let baseline = story.first("that seals the baseline", is_kind("baseline"))?;
    story.after(baseline, "that swaps", is_swap_order)?;
    let swaps = story.all(is_swap_order);
    ensure!(swaps.iter().all(|swap| swap["seq"].as_u64() > baseline["seq"].as_u64()), "{}", story.text());
    let sealed = baseline["record"]["values"].as_array().into_iter().flatten().find(|value| value["metric"] == "error_rate");
    ensure!(sealed.is_some_and(|value| value["samples"].as_u64() > Some(100) && value["value"] == 0.0), "{baseline:#}");
    // Nobody was admitted to a wave before the gate of the wave before had passed.
    let passed = story.all(is_gate("passed"));
    ensure!(passed.len() >= 3 && swaps.len() == MANY, "{}", story.text());
    for (gate, first) in passed.iter().zip([1, 5, 15]) {
        ensure!(swaps[first]["seq"].as_u64() > gate["seq"].as_u64(), "host {first} was swapped before its gate passed:\n{}", story.text());
    }
    ensure!(story.states().contains(&"watching"), "{:?}", story.states());
    fleet.gate_logs(&[])
}

#[test]
fn half_a_percent_is_looked_at_twice_then_a_person_is_asked_then_it_goes_back() -> Result {
    let fleet = two_releases(MANY, &["latency_ms = 20", "error_rate = 0.5"])?;
    let before = fleet.observed("api")?;
    let load = traffic(&fleet, 100, 5)?;
    let plan = over_one_percent(judged("canary"), 300)
        .metric("error_rate", &[&SCRAPED[..4], &["min_samples = 250"]].concat())
        .stage("Canary", 5, "5s", &["error_rate < 0.1%"])
        .stage("Full", 100, "2s", &["error_rate < 0.1%"]);
    let id = fleet.start_rollout(&plan)?;
    let paused = fleet.wait_state(&id, "paused", SOON)?;
    ensure!(paused["waiting_for"] == "person", "{paused:#}");
    ensure!(verdicts(&paused).iter().any(|(_, verdict)| verdict == "inconclusive"), "{paused:#}");
    let gate = &paused["gates"][0];
    ensure!(gate["samples"].as_u64() >= Some(250) && gate["limit"] == 0.1, "{gate:#}");
    ensure!(gate["observed"].as_f64().is_some_and(|seen| seen > 0.1 && seen < 1.0), "{gate:#}");
    // A script is told that a person is wanted.
    fleet.cli(&["rollout", "explain", &id])?.expect_code(0)?.expect_said("error_rate")?;

    fleet.wait(&id, "rolled-back")?.expect_code(0)?;
    fleet.wait(&id, "completed")?.expect_code(4)?;
    drop(load);
    let story = Story::of(&fleet, &id)?;
    ensure!(story.all(is_gate("extended")).len() == 1, "extended once, and only once:\n{}", story.text());
    let extended = story.first("that extends the gate", is_gate("extended"))?;
    let asked = story.after(extended, "that asks a person", is_gate("asked"))?;
    let back = story.after(asked, "that goes back", is_state("rolling-back"))?;
    let (extension, deadline) = (between(extended, asked)?, between(asked, back)?);
    eprintln!("extended for {extension} ms, asked for {deadline} ms");
    ensure!(extension >= 4_500 && deadline >= 4_500, "the extension is the stage's 5 s, the deadline 5 s:\n{}", story.text());
    ensure!(story.all(is_kind("tripped")).is_empty(), "no trigger's limit was reached:\n{}", story.text());
    ensure!(story.all(is_swap_order).len() == 1, "only the canary was touched:\n{}", story.text());
    expect_back(&fleet, &before)
}

#[test]
fn two_percent_on_all_hosts_is_taken_back_at_once() -> Result {
    let fleet = two_releases(MANY, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    let load = traffic(&fleet, 60, 20)?;
    let plan = over_one_percent(judged("canary"), 100)
        .limit("max_parallel = \"100%\"")
        .stage("Canary", 5, "2s", &["error_rate < 0.1%"])
        .stage("Full", 100, "60s", &["error_rate < 0.1%"]);
    let id = fleet.start_rollout(&plan)?;
    fleet.wait_status(&id, "all hosts are new", SOON, |status| {
        (in_state(status, "confirmed").len() == MANY && status["state"] == "baking").then_some(())
    })?;
    fleet.tell_all("[2.0.0]\nlatency_ms = 20\nerror_rate = 2\n")?;
    let output = fleet.wait(&id, "completed")?;
    let story = Story::of(&fleet, &id)?;
    ensure!(output.code == 4, "{output}\n{}", story.text());
    drop(load);
    expect_state(&fleet.status(&id)?, "rolled-back")?;

    let tripped = story.first("that trips", is_kind("tripped"))?;
    let record = &tripped["record"];
    let decided = record["after_ms"].as_i64().unwrap_or(i64::MAX);
    let ordered = between(tripped, story.after(tripped, "that orders a host back", is_revert_order)?)?;
    let reverted = story.all(|record| record["kind"] == "host" && record["to"] == "reverted");
    ensure!(reverted.len() == MANY, "{}", story.text());
    let mut all_back = 0;
    for host in &reverted {
        all_back = all_back.max(between(tripped, host)?);
    }
    eprintln!("sample to decision {decided} ms, decision to first order {ordered} ms, all {MANY} hosts back after {all_back} ms");
    ensure!(decided + ordered <= 1_000, "from the bad sample to the first order: {decided} + {ordered} ms");
    ensure!(Duration::from_millis(u64::try_from(all_back)?) <= Duration::from_secs(10), "{MANY} hosts were back after {all_back} ms");
    ensure!(record["observed"].as_f64() > Some(1.0) && record["samples"].as_u64() >= Some(100), "{record:#}");
    expect_back(&fleet, &before)
}

#[test]
fn two_percent_on_the_canary_never_reaches_a_second_host() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20", "error_rate = 2"])?;
    let before = fleet.observed("api")?;
    let load = traffic(&fleet, 100, 20)?;
    let plan = over_one_percent(judged("canary"), 100).stage("Canary", 25, "30s", &["error_rate < 0.1%"]).stage(
        "Full",
        100,
        "2s",
        &["error_rate < 0.1%"],
    );
    fleet.roll(&plan)?.expect_code(4)?;
    drop(load);
    let story = Story::of(&fleet, &fleet.newest()?)?;
    ensure!(story.all(is_swap_order).len() == 1, "{}", story.text());
    story.first("that trips", |record| {
        record["kind"] == "tripped" && record["when"].as_str().is_some_and(|when| when.contains("error_rate"))
    })?;
    expect_back(&fleet, &before)
}
