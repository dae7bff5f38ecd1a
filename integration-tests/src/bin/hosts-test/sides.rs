//! Two sides of a service under systemd, and what is watched of them: template
//! units behind Debian's nginx, which the agent moves by the shipped `lb-switch`
//! from within the shipped sandbox; transient units of supervised components.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::ask::{host_entry, text};
use tidegate_integration_tests::client::{Miss, Poller, get};
use tidegate_integration_tests::nspawn::Hosts;
use tidegate_integration_tests::release::http_smoke;
use tidegate_integration_tests::wait::{Look, hold, wait_for, wait_until};
use tidegate_integration_tests::{Component, Plan, Release};

use crate::real::Real;
use crate::steps::SOON;

const HOSTS: &str = r#"{ api = "role=web" }"#;
const CONTROL: &str = "/etc/shop/control";
/// Where users come in.
const FRONT: u16 = 80;
const POLL: Duration = Duration::from_millis(20);
const SIDES: [&str; 2] = ["blue", "green"];

fn unit(side: &str) -> String {
    format!("shop-api@{side}.service")
}

/// The template unit's component; what it does besides can be told.
fn release(version: &str) -> Release {
    Release::new(version).component(Component::new("api").service(r#"{ systemd = "shop-api@${side}.service" }"#))
}

fn plan(version: &str) -> Plan {
    Plan::to(&format!("shop@{version}"), "blue-green", HOSTS).analysis("interval = \"500ms\"").switch(
        "run = \"lb-switch\", verify = { http = { url = \"http://127.0.0.1/\", status = 200, body = \"Welcome to shop ${version}\" }, \
         timeout = \"1s\", retry_for = \"5s\" }",
    )
}

fn fronts(real: &Real) -> Vec<(String, SocketAddr)> {
    let at = |(index, name): (usize, &String)| (name.clone(), SocketAddr::from((Hosts::address(index), FRONT)));
    real.hosts.names.iter().enumerate().map(at).collect()
}

/// What users see on every host.
fn expect_served(real: &Real, version: &str) -> anyhow::Result<()> {
    for (host, address) in fronts(real) {
        // A reload has a moment in which old workers still answer.
        wait_until(&format!("users of {host} see {version}"), SOON, || {
            Ok(match get(address, "/", Duration::from_secs(2)) {
                Ok(answer) if answer.body == format!("Welcome to shop {version}\n") => Look::Done(()),
                other => Look::NotYet(format!("{other:?}")),
            })
        })?;
    }
    Ok(())
}

/// Main processes of a side on every host; 0 where it does not run.
fn pids(real: &Real, unit: &str) -> anyhow::Result<Vec<String>> {
    real.hosts.names.iter().map(|host| real.property(host, unit, "MainPID")).collect()
}

/// The side that runs alone, on every host the same.
fn only_side(real: &Real) -> anyhow::Result<&'static str> {
    let runs = |side: &&'static str| -> anyhow::Result<bool> { Ok(pids(real, &unit(side))?.iter().all(|pid| pid != "0")) };
    let mut running = Vec::new();
    for side in SIDES {
        if runs(&side)? {
            running.push(side);
        }
    }
    ensure!(running.len() == 1, "{running:?} run");
    Ok(running[0])
}

fn other(side: &str) -> &'static str {
    if side == "blue" { "green" } else { "blue" }
}

/// What a host's people set up once: the front, the unit, the ports, and what the
/// agent may do there, all of it as shipped.
fn prepare(real: &mut Real) -> anyhow::Result<()> {
    if real.front {
        return Ok(());
    }
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let example = fs::read_to_string(deploy.join("shop-api@.service")).context("the example")?;
    let service = example.replace("bin/api --port ${PORT}", &format!("bin/demo-service --port ${{PORT}} --control {CONTROL}"));
    let service = service.replace("bin/api", "bin/demo-service");
    ensure!(service.contains(CONTROL), "the example starts its service in another way");
    let nginx = "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /var/log/nginx/error.log;\nevents { worker_connections 256; }\n\
        http {\n  access_log off;\n  include /etc/nginx/shop-upstream.conf;\n  server {\n    listen 80;\n    location / {\n      proxy_pass http://shop;\n      \
        proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_next_upstream off;\n    }\n  }\n}\n";
    let file = |text: &str| real.operator.text_file("of-a-host", text);
    let files = [
        (file(&service)?, "/etc/systemd/system/shop-api@.service", "644"),
        (file(nginx)?, "/etc/nginx/nginx.conf", "644"),
        (file("upstream shop { server 127.0.0.1:8081; }\n")?, "/etc/nginx/shop-upstream.conf", "644"),
        (file("PORT=8081\n")?, "/etc/shop/api-blue.env", "644"),
        (file("PORT=8082\n")?, "/etc/shop/api-green.env", "644"),
        (file(&fs::read_to_string(deploy.join("lb-switch")).context("the example")?)?, "/usr/local/sbin/lb-switch", "755"),
        // deploy/README.md
        (file("[Service]\nReadWritePaths=/etc/nginx\n")?, "/etc/systemd/system/tidegate-agent.service.d/switch.conf", "644"),
    ];
    for host in &real.hosts.names {
        for (from, to, mode) in &files {
            real.hosts.push(host, Path::new(from), to, mode)?;
        }
        real.hosts.ok(host, &["systemctl", "daemon-reload"])?;
        real.hosts.ok(host, &["systemctl", "enable", "--now", "--quiet", "nginx", "shop-api@blue", "shop-api@green"])?;
    }
    real.operator.import(&release("1.0.0"))?;
    real.operator.import(&release("2.0.0"))?;

    // Local policy comes first: a unit that it does not name is nobody's to start.
    let vars = |text: String| text.replace("port = \"8080\"", "port_blue = \"8081\"\nport_green = \"8082\"");
    let commands = |text: String| text.replace("# lb-switch", "lb-switch");
    real.configure(|text| commands(vars(text)))?;
    real.operator.roll(&plan("1.0.0"))?.expect_code(5)?.expect_said("[policy] units")?;
    ensure!(pids(real, &unit("blue"))?.iter().all(|pid| pid == "0"), "a unit was started");
    real.configure(|text| {
        commands(vars(text)).replace("\"shop-api.service\"", "\"shop-api@blue.service\", \"shop-api@green.service\"")
            + "mail = \"9090\"\ncart_blue = \"9191\"\ncart_green = \"9192\"\n"
    })?;

    // The first one: no side is old yet.
    real.operator.roll(&plan("1.0.0").line("keep_old = \"1s\""))?.expect_code(0)?;
    expect_served(real, "1.0.0")?;
    real.front = true;
    Ok(())
}

/// Requests through every front while something happens; none may fail.
fn unnoticed<T>(real: &Real, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let users = Poller::start(&fronts(real), POLL);
    let more = |count: u64| {
        let from = users.asked();
        wait_for("users come in", SOON, || Ok(users.asked() >= from + count))
    };
    more(60)?;
    let done = work()?;
    more(60)?;
    let asked = users.asked();
    let misses: Vec<Miss> = users.finish();
    eprintln!("      {asked} requests through the fronts, {} missed", misses.len());
    ensure!(misses.is_empty(), "{} requests failed, the first: {:?}", misses.len(), misses.first());
    Ok(done)
}

fn wait_states(real: &Real, id: &str, states: &[&str]) -> anyhow::Result<()> {
    real.operator.wait_status(id, &format!("it is {}", states.join(" or ")), SOON, |status| {
        states.iter().any(|state| status["state"] == *state).then_some(())
    })
}

/// All that was ever fetched and laid out on a host, with its times.
fn stored(real: &Real) -> anyhow::Result<Vec<String>> {
    let list = ["find", "/var/lib/tidegate/store", "/opt/tidegate/api/releases", "-printf", "%p %s %T@\n"];
    real.hosts.names.iter().map(|host| real.hosts.ok(host, &list)).collect()
}

fn records(real: &Real, id: &str, kind: &str) -> anyhow::Result<Vec<Value>> {
    Ok(real.operator.events(id)?.into_iter().map(|mut event| event["record"].take()).filter(|record| record["kind"] == kind).collect())
}

/// A release for the idle side, users on it, and back: the old processes never ended.
pub(crate) fn blue_green(real: &mut Real) -> anyhow::Result<()> {
    prepare(real)?;
    let old = only_side(real)?;
    let new = other(old);
    let before = pids(real, &unit(old))?;
    let watched = plan("2.0.0")
        .line("bake = \"4s\"")
        .line("keep_old = \"1h\"")
        .line("success = [\"error_rate < 1%\", \"critical_errors == 0\"]")
        .metric(
            "error_rate",
            &[
                "source = \"scrape\"",
                "url = \"http://127.0.0.1:${var.port}/metrics\"",
                "bad = 'http_requests_total{code=~\"5..\"}'",
                "total = \"http_requests_total\"",
                "min_samples = 100",
            ],
        );
    let id = unnoticed(real, || {
        let id = real.operator.start_rollout(&watched)?;
        wait_states(real, &id, &["watching"])?;
        expect_served(real, "2.0.0")?;
        ensure!(pids(real, &unit(old))? == before, "the old side was touched");
        let stored_before = stored(real)?;
        for host in &real.hosts.names {
            let pid = real.property(host, &unit(new), "MainPID")?;
            let executable = real.hosts.ok(host, &["readlink", &format!("/proc/{pid}/exe")])?;
            ensure!(executable.starts_with("/opt/tidegate/api/releases/2.0.0-"), "{host} runs {executable}");
        }

        real.operator.say("rollback", &id, &["--reason", "second thoughts"])?;
        real.operator.wait_state(&id, "rolled-back", SOON)?;
        expect_served(real, "1.0.0")?;
        ensure!(stored(real)? == stored_before, "something was fetched or laid out for the way back");
        Ok(id)
    })?;
    ensure!(pids(real, &unit(old))? == before, "the old side was restarted");
    ensure!(only_side(real)? == old);
    let switches = records(real, &id, "switch")?.len();
    ensure!(switches == 2 * real.hosts.names.len(), "{switches} switches");
    let status = real.operator.status(&id)?;
    ensure!(status["hosts"].as_array().into_iter().flatten().all(|host| host["state"] == "reverted"), "{status:#}");
    Ok(())
}

/// All sides are switched and the rollout bakes.
fn baking(real: &Real) -> anyhow::Result<String> {
    let plan =
        plan("2.0.0").line("bake = \"120s\"").line("success = [\"critical_errors == 0\"]").trigger("critical_errors > 0", "rollback", &[]);
    let id = real.operator.start_rollout(&plan)?;
    wait_states(real, &id, &["baking"])?;
    expect_served(real, "2.0.0")?;
    Ok(id)
}

fn tell(real: &Real, host: &str, control: &str, text: &str) -> anyhow::Result<()> {
    real.hosts.push(host, Path::new(&real.operator.text_file("control", text)?), control, "644")
}

/// The journal of a host has this text of that unit.
fn wait_said(real: &Real, host: &str, unit: &str, words: &str) -> anyhow::Result<()> {
    wait_for(&format!("{unit} of {host} has said {words:?}"), SOON, || {
        Ok(real.hosts.ok(host, &["journalctl", "--quiet", "--no-pager", "-p", "crit", &format!("_SYSTEMD_UNIT={unit}")])?.contains(words))
    })
}

/// One critical message of the new side's own unit is enough; those of others,
/// the old side included, are nobody's business.
pub(crate) fn critical_message(real: &mut Real) -> anyhow::Result<()> {
    prepare(real)?;
    let old = only_side(real)?;
    let before = pids(real, &unit(old))?;
    let id = baking(real)?;
    let cry = "echo '<2>panic: FATAL, says another unit' >&2";
    real.hosts.ok("h2", &["systemd-run", "--quiet", "--wait", "--unit=another", "sh", "-c", cry])?;
    wait_said(real, "h2", "another.service", "says another unit")?;
    tell(real, "h2", CONTROL, "[1.0.0]\nlog = <2>panic: says the old side\n")?;
    wait_said(real, "h2", &unit(old), "says the old side")?;
    hold(Duration::from_secs(2), || {
        let status = real.operator.status(&id)?;
        ensure!(status["state"] == "baking", "{status:#}");
        Ok(())
    })?;
    tell(real, "h2", CONTROL, "[2.0.0]\nlog = <2>out of paper\n")?;
    real.operator.wait(&id, "completed")?.expect_code(4)?;
    let tripped = records(real, &id, "tripped")?;
    let said = tripped.first().context("no trigger tripped")?.to_string();
    ensure!(said.contains("h2") && said.contains("out of paper") && !said.contains("says"), "{tripped:#?}");
    eprintln!("      tripped {} ms after the reading", tripped[0]["after_ms"]);
    expect_served(real, "1.0.0")?;
    ensure!(pids(real, &unit(old))? == before && only_side(real)? == old, "the old side was touched");
    tell(real, "h2", CONTROL, "\n")
}

/// Kills the unit's process, which systemd starts again, three times.
fn crash_thrice(real: &Real, host: &str, unit: &str) -> anyhow::Result<()> {
    for _ in 0..3 {
        let pid = real.property(host, unit, "MainPID")?;
        real.hosts.ok(host, &["systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit])?;
        wait_for(&format!("{unit} of {host} runs again"), SOON, || {
            let now = real.property(host, unit, "MainPID")?;
            Ok(now != "0" && now != pid)
        })?;
    }
    Ok(())
}

/// A side that systemd starts again and again after it was confirmed.
pub(crate) fn crash_loop(real: &mut Real) -> anyhow::Result<()> {
    prepare(real)?;
    let old = only_side(real)?;
    let before = pids(real, &unit(old))?;
    let id = baking(real)?;
    // One restart is none.
    crash_thrice(real, "h3", &unit(other(old)))?;
    real.operator.wait(&id, "completed")?.expect_code(4)?;
    let status = real.operator.status(&id)?;
    ensure!(host_entry(&status, "h3").is_some_and(|entry| entry["cause"] == "crash-loop"), "{status:#}");
    expect_served(real, "1.0.0")?;
    ensure!(pids(real, &unit(old))? == before && only_side(real)? == old, "the old side was touched");
    Ok(())
}

/// A supervised component has a transient unit per side.
pub(crate) fn supervised_sides(real: &mut Real) -> anyhow::Result<()> {
    prepare(real)?;
    let cart = |version: &str| {
        let service = r#"{ supervised = { run = ["bin/demo-service", "--port", "${var.cart}"] } }"#;
        Release::new(version).named("basket").component(Component::new("cart").service(service).smoke(&[&http_smoke("cart", "10s")]))
    };
    // No front of its own: what would move traffic writes down the side.
    let plan = |version: &str| {
        Plan::to(&format!("basket@{version}"), "blue-green", r#"{ cart = "role=web" }"#)
            .analysis("interval = \"500ms\"")
            .switch("run = \"note-side\"")
            .line("bake = \"1s\"")
    };
    let units = ["tidegate-cart@blue.service", "tidegate-cart@green.service"];
    real.operator.import(&cart("1.0.0"))?;
    real.operator.import(&cart("2.0.0"))?;
    real.operator.roll(&plan("1.0.0"))?.expect_code(4)?.expect_said("note-side")?;
    real.configure_again(|text| {
        text.replace("[commands]\n", "[commands]\nnote-side = ['/bin/sh', '-c', 'echo $1 >/etc/nginx/side-of-cart', 'sh']\n")
    })?;
    real.operator.roll(&plan("1.0.0"))?.expect_code(0)?;
    let first = pids(real, units[0])?;
    ensure!(first.iter().all(|pid| pid != "0") && pids(real, units[1])?.iter().all(|pid| pid == "0"), "{first:?}");
    let id = real.operator.start_rollout(&plan("2.0.0").line("keep_old = \"1h\""))?;
    wait_states(real, &id, &["watching"])?;
    ensure!(pids(real, units[0])? == first, "the old side was touched");
    for (host, pid) in real.hosts.names.iter().zip(pids(real, units[1])?) {
        let group = real.hosts.ok(host, &["cat", &format!("/proc/{pid}/cgroup")])?;
        ensure!(group.contains("tidegate-cart@green.service"), "the service on {host} is in {group}");
        let user = real.hosts.ok(host, &["stat", "-c", "%U", &format!("/proc/{pid}")])?;
        ensure!(user == "tidegate-run", "the service on {host} runs as {user}");
        for (port, version) in [(9191, "1.0.0"), (9192, "2.0.0")] {
            let page = real.hosts.ok(host, &["curl", "-sS", "-m", "2", &format!("http://127.0.0.1:{port}/")])?;
            ensure!(page == format!("Welcome to shop {version}"), "{host}:{port} answers {page:?}");
        }
        real.hosts.ok(host, &["systemctl", "restart", "tidegate-agent"])?;
    }
    real.operator.wait_online(real.hosts.names.len())?;
    real.operator.say("rollback", &id, &["--reason", "second thoughts"])?;
    real.operator.wait_state(&id, "rolled-back", SOON)?;
    ensure!(pids(real, units[0])? == first, "the old side was restarted");
    wait_for("the new sides are gone", SOON, || Ok(pids(real, units[1])?.iter().all(|pid| pid == "0")))
}

/// A canary of a supervised component: a panic on the changed host, then a crash
/// loop there, each takes it back.
pub(crate) fn canary(real: &mut Real) -> anyhow::Result<()> {
    const MAIL: &str = "/etc/shop/mail";
    const UNIT: &str = "tidegate-mail.service";
    prepare(real)?;
    let mail = |version: &str, more: &[&str]| {
        let service = format!(r#"{{ supervised = {{ run = ["bin/demo-service", "--port", "${{var.mail}}", "--control", "{MAIL}"] }} }}"#);
        Release::new(version)
            .named("post")
            .component(Component::new("mail").service(&service).smoke(&[&[http_smoke("mail", "10s").as_str()], more].concat()))
    };
    let hosts = r#"{ mail = "role=web" }"#;
    real.operator.import(&mail("3.0.0", &[]))?;
    real.operator.import(&mail("4.0.0", &[]))?;
    real.operator.roll(&Plan::to("post@3.0.0", "big-bang", hosts))?.expect_code(0)?;
    let before = real.operator.observed("mail")?;
    let plan = Plan::to("post@4.0.0", "canary", hosts)
        .analysis("interval = \"500ms\"")
        .stage("Canary", 34, "120s", &["critical_errors == 0"])
        .stage("Full", 100, "1s", &["critical_errors == 0"])
        .trigger("critical_errors > 0", "rollback", &[]);
    for crash in [false, true] {
        let id = real.operator.start_rollout(&plan)?;
        let changed = real.operator.wait_status(&id, "the canary bakes", SOON, |status| {
            let confirmed = status["hosts"].as_array()?.iter().find(|entry| entry["state"] == "confirmed")?;
            (status["state"] == "baking").then(|| text(confirmed, "/host").map(str::to_owned))
        })??;
        if crash {
            crash_thrice(real, &changed, UNIT)?;
        } else {
            // The same word on a host that was not changed is no word about the release.
            let same = real.hosts.names.iter().find(|host| **host != changed).context("another host")?;
            tell(real, same, MAIL, "panic = 1\n")?;
            wait_for("it panicked", SOON, || {
                Ok(real.hosts.ok(same, &["journalctl", "--quiet", "--no-pager", "-u", UNIT])?.contains("lost its nerve"))
            })?;
            hold(Duration::from_secs(1), || {
                let status = real.operator.status(&id)?;
                ensure!(status["state"] == "baking", "{status:#}");
                Ok(())
            })?;
            tell(real, &changed, MAIL, "panic = 1\n")?;
        }
        real.operator.wait(&id, "completed")?.expect_code(4)?;
        let status = real.operator.status(&id)?;
        if crash {
            ensure!(host_entry(&status, &changed).is_some_and(|entry| entry["cause"] == "crash-loop"), "{status:#}");
        } else {
            let said = records(real, &id, "tripped")?.first().context("no trigger tripped")?.to_string();
            ensure!(said.contains(&changed) && said.contains("lost its nerve"), "{said}");
            for host in &real.hosts.names {
                tell(real, host, MAIL, "\n")?;
            }
        }
        ensure!(real.operator.observed("mail")? == before, "what runs has changed");
    }
    // What a smoke test denies is found in the journal too.
    let denied = "id = \"SMK-002\"\nname = \"Says nothing bad\"\njournal = { deny = [\"listens on\"], for = \"1s\" }\ntimeout = \"5s\"\nretry_for = \"0s\"";
    real.operator.import(&mail("5.0.0", &[denied]))?;
    real.operator.roll(&Plan::to("post@5.0.0", "rolling", hosts).batch("1"))?.expect_code(4)?;
    let status = real.operator.newest_status()?;
    let failed = status["hosts"].as_array().into_iter().flatten().find(|entry| entry["cause"] == "smoke");
    ensure!(failed.is_some_and(|entry| entry.to_string().contains("listens on")), "{status:#}");
    ensure!(real.operator.observed("mail")? == before, "what runs has changed");
    Ok(())
}

/// Power loss while both sides run: the front comes back with the side that served.
pub(crate) fn power_cut(real: &mut Real) -> anyhow::Result<()> {
    prepare(real)?;
    let old = only_side(real)?;
    let id = real.operator.start_rollout(&plan("2.0.0").line("bake = \"1s\"").line("keep_old = \"1h\""))?;
    wait_states(real, &id, &["watching"])?;
    real.hosts.kill("h2")?;
    real.hosts.boot("h2")?;
    wait_until("every host is online", SOON, || {
        Ok(Look::from_option(real.operator.wait_online(real.hosts.names.len()).ok(), String::new))
    })?;
    expect_served(real, "2.0.0")?;
    wait_for("the old side of h2 runs", SOON, || Ok(real.property("h2", &unit(old), "MainPID")? != "0"))?;
    real.operator.say("rollback", &id, &["--reason", "second thoughts"])?;
    real.operator.wait_state(&id, "rolled-back", SOON)?;
    expect_served(real, "1.0.0")
}
