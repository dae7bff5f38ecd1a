//! The steps, each upon the last: what real hosts are for.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use tidegate_integration_tests::ask::{host_entry, text};
use tidegate_integration_tests::client::Miss;
use tidegate_integration_tests::wait::{Look, wait_for, wait_until};
use tidegate_integration_tests::{Component, Output, Plan, Release, release};

use crate::real::{Real, agent};
use crate::sides;
use crate::swaps::only_within_swaps;
use crate::web::{UNIT, Web};

pub(crate) const SOON: Duration = Duration::from_secs(60);
const CURRENT: &str = "/opt/tidegate/web/current";

pub(crate) type Step = fn(&mut Real) -> anyhow::Result<()>;

/// In order.
pub(crate) const ALL: &[(&str, Step)] = &[
    ("ship", ship),
    ("roll", roll),
    ("broken-configuration", broken_configuration),
    ("bad-answers", bad_answers),
    ("does-not-start", does_not_start),
    ("agents-come-and-go", agents_come_and_go),
    ("agent-dies-in-a-swap", agent_dies_in_a_swap),
    ("supervised", supervised),
    ("blue-green", sides::blue_green),
    ("critical-message", sides::critical_message),
    ("crash-loop", sides::crash_loop),
    ("supervised-sides", sides::supervised_sides),
    ("canary", sides::canary),
    ("power-cut-of-sides", sides::power_cut),
    ("cut-off", cut_off),
    ("power-cut", power_cut),
];

fn plan(version: &str, strategy: &str) -> Plan {
    Plan::to(&format!("front@{version}"), strategy, r#"{ web = "role=web" }"#)
}

fn import(real: &Real, web: &Web<'_>) -> anyhow::Result<()> {
    let nginx = real.hosts.pull("h1", "/usr/sbin/nginx").context("Debian's nginx")?;
    let toml = web.write(&real.operator.fresh("web"), &nginx)?;
    real.operator.import_file(&toml)?;
    Ok(())
}

/// Does something while every host is asked for its page; the command's output,
/// and what a user missed.
fn under_load<T>(real: &Real, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Vec<Miss>, SystemTime)> {
    let since = SystemTime::now();
    let poller = real.poll();
    // Before and after, too: a window that ends with the work would hide its end.
    let calm = |asked: u64| wait_for("every host was asked in peace", SOON, || Ok(poller.asked() >= asked + 30));
    calm(0)?;
    let done = work()?;
    calm(poller.asked())?;
    Ok((done, poller.finish(), since))
}

/// A rollout under load in which users miss nothing but each host's own swap.
fn roll_under_load(real: &Real, plan: &Plan, code: i32) -> anyhow::Result<(Output, Vec<Miss>)> {
    let (output, misses, since) = under_load(real, || real.operator.roll(plan))?;
    let output = output.expect_code(code)?;
    only_within_swaps(&real.hosts, UNIT, since, &misses)?;
    Ok((output, misses))
}

fn nothing_missed(misses: &[Miss]) -> anyhow::Result<()> {
    ensure!(misses.is_empty(), "{} requests failed, the first: {:?}", misses.len(), misses.first());
    Ok(())
}

/// What a rollback must leave exactly as it was.
fn observed(real: &Real) -> anyhow::Result<Vec<(String, serde_json::Value)>> {
    real.operator.observed("web")
}

fn ship(real: &mut Real) -> anyhow::Result<()> {
    import(real, &Web::good("1.0.0"))?;
    real.operator.roll(&plan("1.0.0", "big-bang"))?.expect_code(0)?;
    real.expect_version("1.0.0")?;
    for host in &real.hosts.names {
        let pid = real.property(host, UNIT, "MainPID")?;
        let executable = real.hosts.ok(host, &["readlink", &format!("/proc/{pid}/exe")])?;
        ensure!(executable.starts_with("/opt/tidegate/web/releases/1.0.0-"), "{host} runs {executable}");
    }
    Ok(())
}

/// From one configuration and binary path to another.
fn roll(real: &mut Real) -> anyhow::Result<()> {
    import(real, &Web { location: "root share/html; add_header X-Release two;", ..Web::good("2.0.0") })?;
    roll_under_load(real, &plan("2.0.0", "rolling").batch("1"), 0)?;
    real.expect_version("2.0.0")?;
    for host in &real.hosts.names {
        let pid = real.property(host, UNIT, "MainPID")?;
        let executable = real.hosts.ok(host, &["readlink", &format!("/proc/{pid}/exe")])?;
        ensure!(executable.starts_with("/opt/tidegate/web/releases/2.0.0-"), "{host} runs {executable}");
        let owner = real.hosts.ok(host, &["stat", "-L", "-c", "%U %a", &executable])?;
        ensure!(owner == "root 555", "{executable} on {host} is {owner}");
    }
    Ok(())
}

/// `check` catches it: no service is touched, no request fails.
fn broken_configuration(real: &mut Real) -> anyhow::Result<()> {
    let before = observed(real)?;
    import(real, &Web { location: "root share/html; no_such_directive on;", ..Web::good("3.0.0") })?;
    let (output, misses) = roll_under_load(real, &plan("3.0.0", "rolling"), 5)?;
    nothing_missed(&misses)?;
    output.expect_said("no_such_directive")?;
    ensure!(before == observed(real)?, "what runs has changed");
    real.expect_version("2.0.0")
}

/// A configuration that nginx likes and users do not: the smoke test catches it.
fn bad_answers(real: &mut Real) -> anyhow::Result<()> {
    let before = observed(real)?;
    import(real, &Web { location: "return 500;", ..Web::good("3.1.0") })?;
    let (_, misses) = roll_under_load(real, &plan("3.1.0", "rolling").batch("1"), 4)?;
    let hit = real.hosts.names.iter().filter(|host| misses.iter().any(|miss| miss.name == **host)).count();
    ensure!(hit <= 1, "{hit} hosts answered badly, the first one should have been the last");
    ensure!(before == observed(real)?, "what runs has changed");
    let status = real.operator.newest_status()?;
    let failed = status["hosts"].as_array().into_iter().flatten().filter(|entry| entry["cause"] == "smoke").count();
    ensure!(failed == 1, "{failed} hosts failed with cause smoke: {status:#}");
    real.expect_version("2.0.0")
}

/// Without a `check`, the unit's failure is what stops it.
fn does_not_start(real: &mut Real) -> anyhow::Result<()> {
    let before = observed(real)?;
    import(real, &Web { location: "no_such_directive on;", check: false, ..Web::good("3.2.0") })?;
    roll_under_load(real, &plan("3.2.0", "rolling").batch("1"), 4)?;
    ensure!(before == observed(real)?, "what runs has changed");
    real.expect_version("2.0.0")
}

/// Restart, upgrade and SIGKILL of every agent: no service notices.
fn agents_come_and_go(real: &mut Real) -> anyhow::Result<()> {
    let pids = |real: &Real| real.hosts.names.iter().map(|host| real.property(host, UNIT, "MainPID")).collect::<anyhow::Result<Vec<_>>>();
    let before = pids(real)?;
    let upgraded = real.dir.path().join("tidegate-agent");
    let mut bytes = fs::read(agent()?).context("the agent")?;
    bytes.extend_from_slice(b"\nanother build\n");
    release::write(&upgraded, &bytes, 0o755)?;

    let ((), misses, _) = under_load(real, || {
        for host in &real.hosts.names {
            real.hosts.ok(host, &["systemctl", "restart", "tidegate-agent"])?;
            real.hosts.push(host, &upgraded, "/usr/bin/tidegate-agent", "755")?;
            real.hosts.ok(host, &["systemctl", "restart", "tidegate-agent"])?;
            let pid = real.property(host, "tidegate-agent", "MainPID")?;
            let digest = real.hosts.ok(host, &["sha256sum", &format!("/proc/{pid}/exe"), "/usr/bin/tidegate-agent"])?;
            let digests: Vec<_> = digest.lines().filter_map(|line| line.split(' ').next()).collect();
            ensure!(digests.len() == 2 && digests[0] == digests[1], "the agent of {host} was not upgraded: {digest}");
            real.hosts.ok(host, &["sh", "-c", &format!("kill -KILL {pid}")])?;
            wait_for("systemd has started the agent again", SOON, || {
                let now = real.property(host, "tidegate-agent", "MainPID")?;
                Ok(now != "0" && now != pid && real.property(host, "tidegate-agent", "ActiveState")? == "active")
            })?;
        }
        real.operator.wait_online(real.hosts.names.len())
    })?;
    nothing_missed(&misses)?;
    ensure!(before == pids(real)?, "a service was restarted");
    Ok(())
}

/// The agent is SIGKILLed while it swaps, on every host in turn.
fn agent_dies_in_a_swap(real: &mut Real) -> anyhow::Result<()> {
    import(real, &Web { settle: 2, ..Web::good("4.0.0") })?;
    let (id, misses, since) = under_load(real, || {
        let id = real.operator.start_rollout(&plan("4.0.0", "rolling").batch("1"))?;
        for host in &real.hosts.names {
            real.operator.wait_host(&id, host, &["probation"], SOON)?;
            let pid = real.property(host, "tidegate-agent", "MainPID")?;
            real.hosts.ok(host, &["sh", "-c", &format!("kill -KILL {pid}")])?;
        }
        real.operator.wait_state(&id, "completed", SOON)?;
        Ok(id)
    })?;
    only_within_swaps(&real.hosts, UNIT, since, &misses)?;
    let status = real.operator.status(&id)?;
    ensure!(status["hosts"].as_array().into_iter().flatten().all(|entry| entry["state"] == "confirmed"), "{status:#}");
    real.expect_version("4.0.0")
}

/// A supervised service is a transient unit with a user of its own, and lives
/// through its agent's end.
fn supervised(real: &mut Real) -> anyhow::Result<()> {
    let smoke = "id = \"SMK-001\"\nname = \"Homepage loads\"\nhttp = { url = \"http://127.0.0.1:9090/\", status = 200, body = \"Welcome to shop ${version}\" }\ntimeout = \"1s\"\nretry_for = \"10s\"";
    let mail = |version: &str| {
        let component =
            Component::new("mail").service(r#"{ supervised = { run = ["bin/demo-service", "--port", "9090"] } }"#).smoke(&[smoke]);
        Release::new(version).named("post").component(component)
    };
    let hosts = r#"{ mail = "role=web" }"#;
    real.operator.import(&mail("1.0.0"))?;
    real.operator.roll(&Plan::to("post@1.0.0", "big-bang", hosts))?.expect_code(0)?;
    real.operator.import(&mail("2.0.0"))?;
    real.operator.roll(&Plan::to("post@2.0.0", "rolling", hosts))?.expect_code(0)?;
    for host in &real.hosts.names {
        let page = real.hosts.ok(host, &["curl", "-sS", "-m", "2", "http://127.0.0.1:9090/"])?;
        ensure!(page == "Welcome to shop 2.0.0", "{host} answers {page:?}");
        let pid = real.hosts.ok(host, &["sh", "-c", "grep -lx demo-service /proc/[0-9]*/comm | head -1 | cut -d/ -f3"])?;
        let user = real.hosts.ok(host, &["stat", "-c", "%U", &format!("/proc/{pid}")])?;
        ensure!(user != "root", "the service on {host} runs as root");
        let group = real.hosts.ok(host, &["cat", &format!("/proc/{pid}/cgroup")])?;
        ensure!(!group.contains("tidegate-agent.service"), "the service on {host} is in the agent's control group: {group}");
        real.hosts.ok(host, &["systemctl", "restart", "tidegate-agent"])?;
        real.hosts.ok(host, &["test", "-d", &format!("/proc/{pid}")])?;
    }
    real.operator.wait_online(real.hosts.names.len())?;
    // It is still looked after.
    real.operator.roll(&Plan::to("post@1.0.0", "rolling", hosts))?.expect_code(0)?;
    Ok(())
}

/// A host that is cut off after its swap goes back by itself, in time.
fn cut_off(real: &mut Real) -> anyhow::Result<()> {
    const CONFIRM_WITHIN: Duration = Duration::from_secs(15);
    let before = observed(real)?;
    let link = |real: &Real| real.hosts.ok("h1", &["readlink", CURRENT]);
    let old = link(real)?;
    import(real, &Web { settle: 3, ..Web::good("5.0.0") })?;
    let id = real.operator.start_rollout(&plan("5.0.0", "rolling").batch("1").limit("confirm_within = \"15s\""))?;
    wait_for("h1 has swapped", SOON, || Ok(link(real)? != old))?;
    let swapped = Instant::now();
    real.hosts.partition("h1")?;
    let new = link(real)?;
    let back = wait_until("h1 is back on the old release", CONFIRM_WITHIN + Duration::from_secs(30), || {
        let serves = real.hosts.run("h1", &["curl", "-sS", "-m", "2", "http://127.0.0.1:8080/"])?.stdout;
        let now = link(real)?;
        Ok(if now == old && serves.trim() == "Welcome to web 4.0.0" {
            Look::Done(swapped.elapsed())
        } else {
            Look::NotYet(format!("{now} serves {serves:?}"))
        })
    })?;
    eprintln!("      h1 went from {new} back to {old} {:.1} s after its swap", back.as_secs_f64());
    ensure!(back <= CONFIRM_WITHIN + Duration::from_secs(10), "it took {back:?}");
    ensure!(back >= CONFIRM_WITHIN, "after {back:?} the lease had not run out: something else took it back");
    real.hosts.heal("h1")?;
    let status = real.operator.wait_state(&id, "rolled-back", Duration::from_secs(120))?;
    let cause = host_entry(&status, "h1").map(|entry| entry["cause"].clone()).unwrap_or_default();
    ensure!(["unreachable", "lease-expired"].iter().any(|known| cause == *known), "{status:#}");
    wait_until("the whole fleet is as before", SOON, || {
        Ok(if observed(real)? == before { Look::Done(()) } else { Look::NotYet("not yet".to_owned()) })
    })?;
    real.expect_version("4.0.0")
}

/// Power loss in the middle of a swap leaves the old or the new release, whole,
/// and the rollout ends definitely.
fn power_cut(real: &mut Real) -> anyhow::Result<()> {
    import(real, &Web { settle: 3, ..Web::good("6.0.0") })?;
    let id = real.operator.start_rollout(&plan("6.0.0", "rolling").batch("1").line("on_unreachable = \"wait\""))?;
    real.operator.wait_host(&id, "h2", &["probation"], SOON)?;
    real.hosts.kill("h2")?;
    real.hosts.boot("h2")?;
    let state = real.operator.wait_status(&id, "it has ended", Duration::from_secs(180), |status| {
        status["ended_at"].as_str().and(text(status, "/state").ok()).map(str::to_owned)
    })?;
    let version = if state == "completed" { "6.0.0" } else { "4.0.0" };
    ensure!(state == "completed" || state == "rolled-back", "the rollout is {state}");
    wait_until("every host is online", SOON, || {
        Ok(Look::from_option(real.operator.wait_online(real.hosts.names.len()).ok(), String::new))
    })?;
    real.expect_version(version)
}
