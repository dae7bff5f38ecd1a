//! Gates: what is refused before any host is touched, what is never taken for
//! success, a person's word against a verdict, and judging again what was.

use anyhow::{Context, ensure};
use tidegate_integration_tests::ports::free_port;
use tidegate_integration_tests::{Fleet, Plan};

use crate::gating::{
    SCRAPED, Story, expect_back, is_gate, is_kind, is_state, is_swap_order, judged, over_one_percent, traffic, two_releases,
};
use crate::{Result, SOON, expect_state, in_state};

/// Two stages of four hosts: one, then all.
fn two_stages(bake: &str) -> Plan {
    judged("canary").stage("Canary", 25, bake, &["error_rate < 0.1%"]).stage("Full", 100, "2s", &["error_rate < 0.1%"])
}

#[test]
fn no_traffic_is_never_success() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    let id = fleet.start_rollout(&over_one_percent(two_stages("2s"), 100))?;
    let paused = fleet.wait_state(&id, "paused", SOON)?;
    ensure!(paused["waiting_for"] == "person", "{paused:#}");
    let gate = &paused["gates"][0];
    ensure!(gate["verdict"] == "inconclusive" && gate["samples"].as_u64() < Some(100), "{gate:#}");
    fleet.wait(&id, "completed")?.expect_code(4)?;
    let story = Story::of(&fleet, &id)?;
    ensure!(!story.states().contains(&"completed") && story.all(is_gate("passed")).is_empty(), "{}", story.text());
    ensure!(story.all(is_gate("extended")).len() == 1, "{}", story.text());
    expect_back(&fleet, &before)
}

/// Tries a plan for each (what, lines of `[metrics.error_rate]`, what is said).
fn each_is_refused(fleet: &Fleet, cases: &[(&str, &[&str], &[&str])]) -> Result {
    let before = fleet.observed("api")?;
    let load = traffic(fleet, 20, 20)?;
    for (what, lines, says) in cases {
        let lines: Vec<&str> = lines.iter().copied().chain(["min_samples = 10"]).collect();
        let says: Vec<&str> = says.iter().copied().chain(["error_rate"]).collect();
        expect_refused(fleet, &two_stages("2s").metric("error_rate", &lines), &says).with_context(|| (*what).to_owned())?;
    }
    drop(load);
    expect_back(fleet, &before)
}

#[test]
fn a_page_that_does_not_say_it_is_refused_before_any_host_is_touched() -> Result {
    let fleet = two_releases(2, &["latency_ms = 20"])?;
    let url = "url = \"http://127.0.0.1:${var.port}/metrics\"";
    let (scrape, bad, total) = (SCRAPED[0], SCRAPED[2], SCRAPED[3]);
    each_is_refused(
        &fleet,
        &[
            // What there is instead is said too.
            ("no such series", &[scrape, url, bad, "total = \"http_request_total\""], &["http_request_total", "http_requests_total"]),
            ("no such page", &[scrape, "url = \"http://127.0.0.1:${var.port}/metrix\"", bad, total], &["404"]),
            ("no such variable", &[scrape, "url = \"http://127.0.0.1:${var.prot}/metrics\"", bad, total], &["prot"]),
            ("not this machine", &[scrape, "url = \"http://192.0.2.1/metrics\"", bad, total], &["192.0.2.1"]),
        ],
    )?;
    // A criterion without a source is not one that holds.
    let nameless = judged("canary").stage("Full", 100, "1s", &["error_rate < 0.1%", "queue_length < 5"]);
    expect_refused(&fleet, &nameless, &["queue_length"]).context("a criterion without a source")
}

#[test]
fn a_source_that_does_not_answer_is_refused_before_any_host_is_touched() -> Result {
    let fleet = two_releases(2, &["latency_ms = 20"])?;
    let nobody = free_port()?.to_string();
    let dead = format!("url = \"http://127.0.0.1:{nobody}/metrics\"");
    let dead_server = format!("url = \"http://127.0.0.1:{nobody}\"");
    let query = "query = 'sum(rate(http_requests_total{host=~\"$hosts\"}[5s]))'";
    each_is_refused(
        &fleet,
        &[
            ("nobody listens", &[SCRAPED[0], &dead, SCRAPED[2], SCRAPED[3]], &[&nobody]),
            ("no such server", &["source = \"prometheus\"", &dead_server, query], &[&nobody]),
            ("no such command", &["source = \"exec\"", "run = [\"count-errors\"]"], &["count-errors"]),
        ],
    )
}

/// `start --wait` says no, names what it is about, and orders nothing.
pub(crate) fn expect_refused(fleet: &Fleet, plan: &Plan, says: &[&str]) -> Result {
    let output = fleet.roll(plan)?;
    // What can be seen without a host is refused before there is a rollout.
    let newest = fleet.newest()?;
    let story = Story::of(fleet, &newest)?;
    ensure!(output.code == 5, "{output}\n{}", story.text());
    for word in says {
        output.expect_said(word)?;
    }
    let status = fleet.status(&newest)?;
    if status["release"] == "shop@2.0.0" {
        expect_state(&status, "refused")?;
        ensure!(story.all(is_swap_order).is_empty(), "a host was told to swap:\n{}", story.text());
    }
    Ok(())
}

#[test]
fn promote_overrides_a_bake_by_name_and_promote_all_the_rest() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20"])?;
    let load = traffic(&fleet, 60, 20)?;
    let plan = over_one_percent(judged("canary"), 100)
        .stage("Canary", 25, "120s", &["error_rate < 0.1%"])
        .stage("Half", 50, "120s", &["error_rate < 0.1%"])
        .stage("Most", 75, "120s", &["error_rate < 0.1%"])
        .stage("Full", 100, "1s", &["error_rate < 0.1%"]);
    let id = fleet.start_rollout(&plan)?;
    fleet.wait_state(&id, "baking", SOON)?;
    fleet.promote(&id, "looks good")?;
    let status = fleet.wait_status(&id, "the second stage bakes", SOON, |status| {
        (status["state"] == "baking" && in_state(status, "confirmed").len() == 2).then(|| status.clone())
    })?;
    ensure!(status["waves"][0]["state"] == "overridden", "{status:#}");
    fleet.promote_all(&id, "in a hurry")?;
    fleet.wait(&id, "completed")?.expect_code(0)?;
    drop(load);
    fleet.expect_version("2.0.0")?;
    let status = fleet.status(&id)?;
    ensure!(status["waves"][1]["state"] == "overridden" && status["waves"][2]["state"] == "overridden", "{status:#}");
    let story = Story::of(&fleet, &id)?;
    let said = story.first("that promotes", |record| record["kind"] == "said" && record["verb"] == "promote")?;
    let word = |key: &str| said["record"][key].as_str().unwrap_or_default();
    ensure!(word("reason").contains("looks good") && !word("by").is_empty(), "{said:#}");
    ensure!(story.all(is_gate("overridden")).len() >= 3, "{}", story.text());
    Ok(())
}

#[test]
fn an_inconclusive_gate_can_be_promoted_and_a_fail_cannot() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    // Without traffic the verdict is inconclusive: a person may know better.
    let plan = two_stages("2s").analysis("inconclusive = \"pause\"").analysis("deadline = \"60s\"").trigger(
        "declared data-corruption",
        "emergency",
        &[],
    );
    let id = fleet.start_rollout(&plan)?;
    fleet.wait_status(&id, "a person is asked", SOON, |status| {
        (status["state"] == "paused" && status["waiting_for"] == "person").then_some(())
    })?;
    fleet.promote(&id, "nobody shops at night")?;
    fleet.wait_status(&id, "everybody is new", SOON, |status| (in_state(status, "confirmed").len() == 4).then_some(()))?;
    ensure!(fleet.status(&id)?["waves"][0]["state"] == "overridden");
    fleet.cli(&["rollout", "rollback", &id, "--reason", "once more"])?.expect_code(0)?;
    fleet.wait_state(&id, "rolled-back", SOON)?;

    // 5 % where more than 1 % goes back: no word of a person holds that up.
    fleet.tell_all("[2.0.0]\nlatency_ms = 20\nerror_rate = 5\n")?;
    let load = traffic(&fleet, 60, 20)?;
    let id = fleet.start_rollout(&over_one_percent(two_stages("120s"), 60))?;
    let failed = fleet.wait_status(&id, "it goes back", SOON, |status| {
        (status["state"] == "rolling-back" || status["state"] == "rolled-back").then(|| status.clone())
    })?;
    ensure!(failed["reason"].as_str().is_some_and(|why| why.contains("error_rate > 1%")), "{failed:#}");
    let promoted = fleet.cli(&["rollout", "promote", &id, "--reason", "I do not care"])?;
    ensure!(promoted.code != 0, "a failed gate was promoted: {promoted}");
    fleet.wait(&id, "completed")?.expect_code(4)?;
    drop(load);
    let story = Story::of(&fleet, &id)?;
    ensure!(story.all(is_gate("overridden")).is_empty(), "{}", story.text());
    expect_back(&fleet, &before)
}

#[test]
fn a_rolling_plan_admits_nobody_without_a_standing_pass() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20", "error_rate = 5"])?;
    let before = fleet.observed("api")?;
    let load = traffic(&fleet, 60, 60)?;
    let plan = over_one_percent(judged("rolling"), 60)
        .batch("1")
        .line("success = [\"error_rate < 0.1%\"]")
        .metric("error_rate", &[&SCRAPED[..4], &["min_samples = 60"]].concat());
    fleet.roll(&plan)?.expect_code(4)?;
    drop(load);
    let story = Story::of(&fleet, &fleet.newest()?)?;
    ensure!(story.all(is_swap_order).len() == 1, "{}", story.text());
    expect_back(&fleet, &before)
}

#[test]
fn a_finished_rollout_judged_by_a_stricter_plan() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20", "error_rate = 0.5"])?;
    let load = traffic(&fleet, 60, 40)?;
    let loose = |limit: &str| {
        judged("canary")
            .stage("Canary", 25, "4s", &[&format!("error_rate < {limit}")])
            .stage("Full", 100, "4s", &[&format!("error_rate < {limit}")])
            .trigger("error_rate > 50%", "rollback", &["min_samples = 100"])
    };
    fleet.roll(&loose("20%"))?.expect_code(0)?;
    drop(load);
    let id = fleet.newest()?;
    let before = (fleet.observed("api")?, Story::of(&fleet, &id)?.all(|_| true).len());

    let replay = |plan: &Plan| fleet.cli(&["rollout", "replay", &id, "-f", &fleet.plan_file(plan)?]);
    let kind = replay(&loose("20%"))?;
    ensure!(kind.code == 0 && !kind.said().contains("rolled back"), "{kind}");
    // A gate that would have held it up, and a trigger that would have taken it back.
    replay(&loose("0.01%"))?.expect_said("Canary")?.expect_said("error_rate < 0.01%")?.expect_said("inconclusive")?;
    let strict = judged("canary").stage("Canary", 25, "4s", &["error_rate < 20%"]).stage("Full", 100, "4s", &["error_rate < 20%"]);
    let strict = replay(&strict.trigger("error_rate > 0.02%", "rollback", &["min_samples = 100"]))?;
    strict.expect_said("rolled back")?.expect_said("error_rate > 0.02%")?;
    // Nothing was touched, and nothing was written.
    ensure!(before == (fleet.observed("api")?, Story::of(&fleet, &id)?.all(|_| true).len()));
    ensure!(fleet.newest()? == id);
    Ok(())
}

#[test]
fn a_drill_goes_there_and_back_and_says_how_long_it_took() -> Result {
    let fleet = two_releases(3, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    let plan = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling").batch("3"))?;
    let output = fleet.cli(&["rollout", "drill", "-f", &plan, "--output", "json"])?;
    let id = fleet.newest()?;
    let story = Story::of(&fleet, &id)?;
    ensure!(output.code == 0, "{output}\n{}", story.text());
    let drilled = story.first("of the drill's end", is_kind("drilled"))?;
    ensure!(drilled["record"]["passed"] == true, "{drilled:#}");
    ensure!(drilled["record"]["forward_ms"].as_u64() > Some(0) && drilled["record"]["back_ms"].as_u64() > Some(0), "{drilled:#}");
    let swap = story.first("that swaps", is_swap_order)?;
    story.after(swap, "that goes back", is_state("rolling-back"))?;
    expect_state(&fleet.status(&id)?, "rolled-back")?;
    expect_back(&fleet, &before)
}
