//! Triggers: armed from the first swap to the end, in every state, whoever pauses,
//! resumes or kills the controller meanwhile.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidegate_integration_tests::client::get;
use tidegate_integration_tests::process::below;
use tidegate_integration_tests::wait::wait_for;
use tidegate_integration_tests::{Fleet, Plan, Release};

use crate::gating::{
    Story, between, expect_back, is_gate, is_kind, is_revert_order, is_state, is_swap_order, judged, over_one_percent, traffic,
    two_releases,
};
use crate::{Result, SOON, entry, expect_state, in_state};

/// One host of four, then all; the first stage is long enough to be disturbed.
fn canary(bake: &str) -> Plan {
    judged("canary").stage("Canary", 25, bake, &["critical_errors == 0"]).stage("Full", 100, "1s", &["critical_errors == 0"])
}

/// A rollout of `plan` whose first stage bakes.
fn baking(fleet: &Fleet, plan: &Plan) -> Result<String> {
    let id = fleet.start_rollout(plan)?;
    fleet.wait_status(&id, "the canary bakes", SOON, |status| {
        (status["state"] == "baking" && !in_state(status, "confirmed").is_empty()).then_some(())
    })?;
    Ok(id)
}

fn slow_p50(plan: Plan, after: &str) -> Plan {
    plan.trigger("latency_p50 > 200% of baseline", "investigate", &[&format!("after = \"{after}\""), "min_samples = 50"])
}

#[test]
fn a_slow_release_is_investigated_and_goes_back_when_nobody_looks() -> Result {
    let fleet = two_releases(4, &["latency_ms = 50"])?;
    let before = fleet.observed("api")?;
    let load = traffic(&fleet, 60, 20)?;
    let id = fleet.start_rollout(&slow_p50(canary("60s"), "4s"))?;
    let paused = fleet.wait_state(&id, "paused", SOON)?;
    ensure!(paused["waiting_for"] == "person", "{paused:#}");
    let reason = paused["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("latency_p50"), "{paused:#}");
    fleet.wait(&id, "completed")?.expect_code(4)?;
    drop(load);
    let story = Story::of(&fleet, &id)?;
    let tripped = story.first("that trips", |record| record["kind"] == "tripped" && record["action"] == "investigate")?;
    let back = story.after(tripped, "that goes back", is_state("rolling-back"))?;
    let looked = between(tripped, back)?;
    eprintln!("investigated for {looked} ms");
    ensure!(looked >= 3_900, "it was given 4 s:\n{}", story.text());
    expect_back(&fleet, &before)
}

#[test]
fn a_slow_release_is_saved_by_ack_and_a_mend() -> Result {
    let fleet = two_releases(4, &["latency_ms = 50"])?;
    let load = traffic(&fleet, 60, 20)?;
    let id = fleet.start_rollout(&slow_p50(canary("3s"), "10s"))?;
    fleet.wait_state(&id, "paused", SOON)?;
    fleet.ack(&id)?;
    fleet.tell_all("latency_ms = 20\n")?;
    let output = fleet.wait(&id, "completed")?;
    let story = Story::of(&fleet, &id)?;
    ensure!(output.code == 0, "{output}\n{}", story.text());
    drop(load);
    let ack = story.first("of the ack", |record| record["kind"] == "investigation" && record["step"] == "acknowledged")?;
    ensure!(ack["record"]["by"].as_str().is_some_and(|by| !by.is_empty()), "{ack:#}");
    story.after(ack, "that clears it", |record| record["kind"] == "investigation" && record["step"] == "cleared")?;
    ensure!(story.all(is_revert_order).is_empty(), "{}", story.text());
    fleet.expect_version("2.0.0")
}

#[test]
fn one_panic_line_is_enough() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    let plan = canary("60s").trigger("critical_errors > 0", "rollback", &[]);
    let id = baking(&fleet, &plan)?;
    // Not on hosts that were not changed: that is no word about the release.
    fleet.tell_all("[1.0.0]\npanic = 1\n")?;
    wait_for("the control group panics", SOON, || Ok(fleet.hosts[3].service_log().contains("lost its nerve")))?;
    fleet.host_list()?;
    ensure!(fleet.status(&id)?["state"] == "baking", "{:#}", fleet.status(&id)?);
    fleet.tell_all("[2.0.0]\npanic = 1\n")?;
    fleet.wait(&id, "completed")?.expect_code(4)?;
    let story = Story::of(&fleet, &id)?;
    let tripped = story.first("that trips", is_kind("tripped"))?;
    ensure!(tripped["record"]["after_ms"].as_u64() <= Some(1_000), "{tripped:#}");
    let text = tripped.to_string();
    ensure!(text.contains("h1") && text.contains("lost its nerve"), "neither host nor line is named: {tripped:#}");
    ensure!(story.all(is_swap_order).len() == 1, "{}", story.text());
    expect_back(&fleet, &before)
}

#[test]
fn data_corruption_takes_all_hosts_back_at_once() -> Result {
    let fleet = two_releases(6, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    for paused in [false, true] {
        let plan = Plan::new("shop@2.0.0", "canary")
            .analysis("interval = \"500ms\"")
            .limit("max_parallel = 1")
            .limit("rollback_parallel = 1")
            .stage("Full", 100, "60s", &["critical_errors == 0"])
            .trigger("declared data-corruption", "emergency", &[]);
        let id = fleet.start_rollout(&plan)?;
        fleet.wait_status(&id, "all are new", SOON, |status| {
            (status["state"] == "baking" && in_state(status, "confirmed").len() == 6).then_some(())
        })?;
        if paused {
            fleet.say("pause", &id, &["--reason", "let me look"])?;
            fleet.wait_state(&id, "paused", SOON)?;
        }
        fleet.declare(&id, "data-corruption", "orders lost their prices")?;
        fleet.wait(&id, "completed")?.expect_code(4)?;
        let story = Story::of(&fleet, &id)?;
        let tripped = story.first("that trips", |record| record["kind"] == "tripped" && record["action"] == "emergency")?;
        ensure!(tripped.to_string().contains("orders lost their prices"), "{tripped:#}");
        // All were ordered back before the first was: not one after the other.
        let orders = story.all(is_revert_order);
        let first_back = story.after(tripped, "that is back", |record| record["kind"] == "host" && record["to"] == "reverted")?;
        ensure!(orders.len() == 6, "{}", story.text());
        ensure!(orders.iter().all(|order| order["seq"].as_u64() < first_back["seq"].as_u64()), "{}", story.text());
        expect_back(&fleet, &before)?;
    }
    Ok(())
}

#[test]
fn triggers_survive_pause_resume_and_a_killed_controller() -> Result {
    let mut fleet = two_releases(4, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    let load = traffic(&fleet, 60, 20)?;
    let plan = over_one_percent(judged("canary"), 60).stage("Canary", 25, "120s", &["error_rate < 0.1%"]).stage(
        "Full",
        100,
        "1s",
        &["error_rate < 0.1%"],
    );
    let id = baking(&fleet, &plan)?;
    fleet.say("pause", &id, &[])?;
    fleet.say("resume", &id, &[])?;
    fleet.say("pause", &id, &[])?;
    fleet.kill_controller()?;
    fleet.start_controller()?;
    fleet.wait_online(4)?;
    ensure!(fleet.status(&id)?["state"] == "paused", "{:#}", fleet.status(&id)?);
    fleet.tell_all("[2.0.0]\nlatency_ms = 20\nerror_rate = 2\n")?;
    // Still paused, and still armed.
    fleet.wait(&id, "completed")?.expect_code(4)?;
    drop(load);
    let story = Story::of(&fleet, &id)?;
    story.first("that trips", is_kind("tripped"))?;
    ensure!(story.all(is_swap_order).len() == 1 && story.all(is_gate("passed")).is_empty(), "{}", story.text());
    expect_back(&fleet, &before)
}

#[test]
fn a_gate_goes_on_after_the_controller_was_killed_and_judges_what_it_saw() -> Result {
    let mut fleet = two_releases(4, &["latency_ms = 20"])?;
    let load = traffic(&fleet, 60, 60)?;
    let plan = over_one_percent(judged("canary"), 60)
        .stage("Canary", 25, "5s", &["error_rate < 0.1%", "latency_p50 within 100% of baseline"])
        .stage("Full", 100, "2s", &["error_rate < 0.1%"]);
    let id = baking(&fleet, &plan)?;
    fleet.kill_controller()?;
    fleet.start_controller()?;
    fleet.wait_online(4)?;
    let output = fleet.wait(&id, "completed")?;
    let story = Story::of(&fleet, &id)?;
    ensure!(output.code == 0, "{output}\n{}", story.text());
    drop(load);
    ensure!(story.all(is_kind("baseline")).len() == 1 && story.all(is_swap_order).len() == 4, "{}", story.text());
    fleet.expect_version("2.0.0")
}

/// The process of 2.0.0 on a host.
fn service_of(dir: &Path) -> Option<Pid> {
    let runs = |pid: &Pid| {
        let exe = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).unwrap_or_default();
        let exe = exe.to_string_lossy();
        exe.contains("/releases/2.0.0-") && exe.contains("/bin/demo-service")
    };
    below(dir, &[]).into_iter().find(runs)
}

/// Never that of the release that it goes back to meanwhile.
fn kill_service(dir: &Path) -> Result {
    if let Some(pid) = service_of(dir) {
        // It may have ended in between.
        let _ = kill_process(pid, Signal::KILL);
    }
    Ok(())
}

#[test]
fn a_crash_loop_in_the_bake_fails_the_host() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    let id = baking(&fleet, &canary("120s"))?;
    let changed = fleet.hosts[0].dir.clone();
    let address = fleet.hosts[0].address();
    fleet.wait_status(&id, "the crash loop is seen", SOON, |status| {
        // Each time it is up again: one that is never up would be a relapse.
        if get(address, "/", SOON).is_ok() {
            kill_service(&changed).ok()?;
        }
        (status["state"] == "rolling-back" || status["state"] == "rolled-back").then_some(())
    })?;
    fleet.wait(&id, "completed")?.expect_code(4)?;
    let status = fleet.status(&id)?;
    expect_state(&status, "rolled-back")?;
    let host = entry(&status, "h1");
    ensure!(host["cause"] == "crash-loop" && host["state"] == "reverted", "{host:#}");
    expect_back(&fleet, &before)
}

/// Puts another program where the release's is: what somebody at the host may do.
fn replace(program: &Path) -> Result {
    let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let dir = program.parent().context("no directory")?;
    // Release trees are read-only.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let other = dir.join("other");
    fs::write(&other, [bytes.as_slice(), b"\nnot what was signed\n"].concat())?;
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755))?;
    fs::rename(&other, program).with_context(|| format!("replacing {}", program.display()))
}

#[test]
fn another_executable_in_the_bake_is_noticed() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    let id = baking(&fleet, &canary("120s"))?;
    let dir = fleet.hosts[0].dir.clone();
    let program: PathBuf = fs::canonicalize(dir.join("opt/api/current/bin/demo-service"))?;
    replace(&program)?;
    kill_service(&dir)?;
    fleet.wait_status(&id, "it goes back", SOON, |status| {
        (status["state"] == "rolling-back" || status["state"] == "rolled-back").then_some(())
    })?;
    fleet.wait(&id, "completed")?.expect_code(4)?;
    let status = fleet.status(&id)?;
    let host = entry(&status, "h1");
    let blamed = |cause: &Value| ["drifted", "verify", "policy"].iter().any(|known| cause == known);
    ensure!(blamed(&host["cause"]), "{host:#}");
    expect_back(&fleet, &before)
}

#[test]
fn a_relapse_after_the_first_pass_is_noticed() -> Result {
    let fleet = two_releases(4, &["latency_ms = 20"])?;
    let before = fleet.observed("api")?;
    let id = baking(&fleet, &canary("120s"))?;
    // Nothing but its critical smoke test says so: no metric, no traffic.
    fleet.tell_all("[2.0.0]\nerror_rate = 100\n")?;
    fleet.wait_status(&id, "it goes back", SOON, |status| {
        (status["state"] == "rolling-back" || status["state"] == "rolled-back").then_some(())
    })?;
    fleet.wait(&id, "completed")?.expect_code(4)?;
    expect_back(&fleet, &before)
}

#[test]
fn a_watch_keeps_triggers_armed_and_a_newer_rollout_ends_it() -> Result {
    let fleet = two_releases(2, &["latency_ms = 20"])?;
    let plan = Plan::new("shop@2.0.0", "canary")
        .analysis("interval = \"500ms\"")
        .stage_with("Full", 100, &["bake = \"1s\"", "watch = \"1h\"", "success = [\"critical_errors == 0\"]"])
        .trigger("critical_errors > 0", "rollback", &[]);
    let file = fleet.plan_file(&plan)?;
    // A script that does not want to stay for the watch.
    fleet.cli(&["rollout", "start", "-f", &file, "--wait", "--until", "watching"])?.expect_code(0)?;
    let first = fleet.newest()?;
    expect_state(&fleet.status(&first)?, "watching")?;
    fleet.import(&Release::told("3.0.0", &[]))?;
    let next = plan.line("release = \"shop@3.0.0\"");
    let file = fleet.plan_file(&next)?;
    fleet.cli(&["rollout", "start", "-f", &file, "--wait", "--until", "watching"])?.expect_code(0)?;
    let ended = fleet.status(&first)?;
    ensure!(ended["state"] == "completed" && ended["reason"].as_str().is_some_and(|why| why.contains("superseded")), "{ended:#}");
    fleet.expect_version("3.0.0")?;

    fleet.tell_all("[3.0.0]\npanic = 1\n")?;
    let second = fleet.newest()?;
    fleet.wait(&second, "completed")?.expect_code(4)?;
    fleet.expect_version("2.0.0")
}
