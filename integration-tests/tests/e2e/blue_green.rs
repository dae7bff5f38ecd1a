//! Blue-green with a real nginx as every host's front: nobody who comes in
//! through it notices the switch, nor the way back.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use tidegate_integration_tests::load::{Connections, Load, Target};
use tidegate_integration_tests::process::below;
use tidegate_integration_tests::tools::{Front, find};
use tidegate_integration_tests::wait::{wait_for, wait_until};
use tidegate_integration_tests::{Component, Fleet, Plan, Release, client};

use crate::gating::{Story, is_kind};
use crate::{Result, SOON, expect_state};

const HOSTS: usize = 3;
/// To be asked over a switch and the way back.
const REQUESTS: u64 = 10_000;

/// Hosts with two sides each, behind an nginx each.
struct Sides {
    fleet: Fleet,
    fronts: Vec<Front>,
}

impl Sides {
    /// None where there is no nginx. 1.0.0 runs and serves on one side.
    fn start() -> Result<Option<Self>> {
        let Some(nginx) = find("nginx", "nginx-light")? else { return Ok(None) };
        let mut fleet = Fleet::builder(HOSTS).agents_stopped().start()?;
        let mut fronts = Vec::new();
        for index in 0..HOSTS {
            let front = Front::start(&fleet, index, &nginx)?;
            fleet.add_policy(index, &format!("[commands]\nlb-switch = [\"{}\"]\n", front.script.display()))?;
            fleet.start_agent(index)?;
            fronts.push(front);
        }
        fleet.wait_online(HOSTS)?;
        let sides = Self { fleet, fronts };
        sides.fleet.import(&release("1.0.0", &[]))?;
        // No side is old yet.
        sides.fleet.roll(&plan("1.0.0").line("keep_old = \"1s\""))?.expect_code(0)?;
        sides.expect_served("1.0.0")?;
        Ok(Some(sides))
    }

    /// What users see on every host.
    fn expect_served(&self, version: &str) -> Result {
        for front in &self.fronts {
            // A reload has a moment in which old workers still answer.
            wait_until(&format!("users see {version}"), SOON, || {
                let answer = client::get(front.address, "/", SOON)?;
                Ok(tidegate_integration_tests::wait::Look::from_option(
                    (answer.body == format!("Welcome to shop {version}\n")).then_some(()),
                    || format!("{answer:?}"),
                ))
            })?;
        }
        Ok(())
    }

    /// Users, each request over a connection of its own.
    fn users(&self) -> Result<Load> {
        let target = |(host, front): (&tidegate_integration_tests::fleet::Host, &Front)| Target {
            name: host.name.clone(),
            address: front.address,
            per_second: 200,
        };
        Load::start(self.fleet.hosts.iter().zip(&self.fronts).map(target).collect(), Connections::Fresh)
    }

    /// The services' processes by what they run: (executable, pid).
    fn processes(&self) -> Vec<(PathBuf, i32)> {
        let mut found: Vec<(PathBuf, i32)> = below(self.fleet.dir(), &[])
            .into_iter()
            .filter_map(|pid| Some((std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok()?, pid.as_raw_nonzero().get())))
            .filter(|(exe, _)| exe.to_string_lossy().contains("/bin/demo-service"))
            .collect();
        found.sort();
        found
    }
}

fn release(version: &str, conf: &[&str]) -> Release {
    Release::new(version).component(conf.iter().fold(Component::new("api").controlled(), |component, line| component.conf(line)))
}

fn plan(version: &str) -> Plan {
    Plan::new(&format!("shop@{version}"), "blue-green")
        .line("keep_old = \"1h\"")
        .line("bake = \"1s\"")
        .analysis("interval = \"500ms\"")
        .switch(
            "run = \"lb-switch ${side}\", verify = { http = { url = \"http://127.0.0.1:${var.front}/\", status = 200, body = \"Welcome to shop ${version}\" }, \
             timeout = \"1s\", retry_for = \"5s\" }",
        )
        .trigger("declared data-corruption", "emergency", &[])
}

#[test]
fn users_notice_neither_the_switch_nor_the_way_back() -> Result {
    let Some(sides) = Sides::start()? else { return Ok(()) };
    let fleet = &sides.fleet;
    fleet.import(&release("2.0.0", &[]))?;
    let before = sides.processes();
    ensure!(before.len() == HOSTS, "{before:?}");

    let users = sides.users()?;
    wait_for("users come in", SOON, || Ok(users.asked() >= 1_000))?;
    let id = fleet.start_rollout(&plan("2.0.0"))?;
    fleet.wait_status(&id, "it is switched", SOON, |status| {
        ["baking", "watching", "completed"].iter().any(|state| status["state"] == *state).then_some(())
    })?;
    sides.expect_served("2.0.0")?;
    let both = sides.processes();
    ensure!(both.len() == 2 * HOSTS && before.iter().all(|old| both.contains(old)), "both sides run: {before:?}\n{both:?}");
    let switched = users.asked();
    wait_for("users see the new release for a while", SOON, || Ok(users.asked() >= switched + 2_000))?;

    fleet.say("rollback", &id, &["--reason", "second thoughts"])?;
    fleet.wait_state(&id, "rolled-back", SOON)?;
    sides.expect_served("1.0.0")?;
    wait_for("enough requests", SOON, || Ok(users.asked() >= REQUESTS))?;
    let tally = users.finish();
    eprintln!("{} requests through nginx over switch and switch-back, {} missed", tally.asked, tally.missed);
    ensure!(tally.asked >= REQUESTS && tally.missed == 0, "{} of {}: {:?}", tally.missed, tally.asked, tally.misses.first());

    // The way back was the switch alone: the same processes, nothing fetched.
    let after = sides.processes();
    ensure!(before.iter().all(|old| after.contains(old)), "the old side was restarted: {before:?}\n{after:?}");
    let story = Story::of(fleet, &id)?;
    let back = story.first("that goes back", crate::gating::is_state("rolling-back"))?;
    let orders = story.all(|record| record["kind"] == "ordered" && record["phase"] == "stage");
    ensure!(orders.iter().all(|order| order["seq"].as_u64() < back["seq"].as_u64()), "{}", story.text());
    let switches = story.all(is_kind("switch"));
    ensure!(switches.len() == 2 * HOSTS, "one switch there and one back per host:\n{}", story.text());
    Ok(())
}

#[test]
fn all_hosts_are_prepared_before_the_first_is_switched() -> Result {
    let Some(sides) = Sides::start()? else { return Ok(()) };
    let fleet = &sides.fleet;
    // Bad on the last host only: no front may ever have pointed at it.
    let port = format!("only_port = {}", fleet.hosts[HOSTS - 1].port2);
    fleet.import(&release("2.0.0", &["behaviour = bad", &port]))?;
    let users = sides.users()?;
    fleet.roll(&plan("2.0.0"))?.expect_code(4)?;
    sides.expect_served("1.0.0")?;
    let tally = users.finish();
    ensure!(tally.missed == 0 && tally.asked > 0, "{tally:?}");
    let story = Story::of(fleet, &fleet.newest()?)?;
    ensure!(story.all(is_kind("switch")).is_empty(), "{}", story.text());
    Ok(())
}

#[test]
fn one_failed_verify_switches_all_hosts_back() -> Result {
    let Some(sides) = Sides::start()? else { return Ok(()) };
    let fleet = &sides.fleet;
    fleet.import(&release("2.0.0", &[]))?;
    let before = sides.processes();
    // On one host the switch moves nothing: users still see the old release there.
    let broken = &sides.fronts[1].script;
    replace(broken, "#!/bin/sh\nexit 0\n")?;
    fleet.roll(&plan("2.0.0"))?.expect_code(4)?;
    sides.expect_served("1.0.0")?;
    let status = fleet.newest_status()?;
    expect_state(&status, "rolled-back")?;
    let story = Story::of(fleet, &fleet.newest()?)?;
    let failed = story.first("of the failed switch", |record| record["kind"] == "switched" && !record["failure"].is_null())?;
    ensure!(failed["host"] == "h2", "{failed:#}");
    let after = sides.processes();
    ensure!(before.iter().all(|old| after.contains(old)), "the old side was restarted: {before:?}\n{after:?}");
    Ok(())
}

fn replace(file: &std::path::Path, text: &str) -> Result {
    tidegate_integration_tests::release::write(&file.with_extension("new"), text.as_bytes(), 0o755)?;
    std::fs::rename(file.with_extension("new"), file).context("replacing the script")
}

#[test]
fn a_manual_switch_waits_for_promote() -> Result {
    let Some(sides) = Sides::start()? else { return Ok(()) };
    let fleet = &sides.fleet;
    fleet.import(&release("2.0.0", &[]))?;
    let users = sides.users()?;
    let id = fleet.start_rollout(&plan("2.0.0").line("switch_mode = \"manual\"").line("keep_old = \"2s\""))?;
    let status = fleet.wait_status(&id, "both sides run and a person is asked", SOON, |status| {
        (status["waiting_for"] == "person").then(|| status.clone())
    })?;
    ensure!(status["reason"].as_str().is_some_and(|why| why.contains("promote") || why.contains("switch")), "{status:#}");
    sides.expect_served("1.0.0")?;
    ensure!(sides.processes().len() == 2 * HOSTS, "{:?}", sides.processes());
    ensure!(Story::of(fleet, &id)?.all(is_kind("switch")).is_empty());
    fleet.promote(&id, "the team is ready")?;
    fleet.wait(&id, "completed")?.expect_code(0)?;
    sides.expect_served("2.0.0")?;
    let tally = users.finish();
    ensure!(tally.missed == 0, "{} of {}: {:?}", tally.missed, tally.asked, tally.misses.first());
    // Kept for two seconds, then stopped.
    wait_for("the old sides are stopped", SOON, || Ok(sides.processes().len() == HOSTS))?;
    ensure!(Story::of(fleet, &id)?.all(is_kind("retired")).len() == HOSTS);
    Ok(())
}
