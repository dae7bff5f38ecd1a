//! Sources of metrics that are other people's programs: a real Prometheus, its
//! node exporter, Alertmanager.

use anyhow::{Context, ensure};
use tidegate_integration_tests::tools::{Tool, find};
use tidegate_integration_tests::{Fleet, Plan};

use crate::gates::expect_refused;
use crate::gating::{Story, expect_back, is_gate, is_kind, is_revert_order, judged, over_one_percent, traffic, two_releases, verdicts};
use crate::{Result, SOON, expect_state, in_state};

/// `error_rate` by PromQL over the hosts judged.
fn by_prometheus(url: &str, min_samples: u32) -> Vec<String> {
    vec![
        "source = \"prometheus\"".to_owned(),
        format!("url = \"{url}\""),
        "query = 'sum(rate(http_requests_total{code=~\"5..\",host=~\"$hosts\"}[2s])) / sum(rate(http_requests_total{host=~\"$hosts\"}[2s]))'".to_owned(),
        "samples = 'sum(increase(http_requests_total{host=~\"$hosts\"}[3s]))'".to_owned(),
        "unit = \"ratio\"".to_owned(),
        format!("min_samples = {min_samples}"),
    ]
}

fn with(plan: Plan, lines: &[String]) -> Plan {
    plan.metric("error_rate", &lines.iter().map(String::as_str).collect::<Vec<_>>())
}

fn two_stages(bake: &str) -> Plan {
    judged("canary").stage("Canary", 25, bake, &["error_rate < 0.1%"]).stage("Full", 100, "3s", &["error_rate < 0.1%"])
}

#[test]
fn a_metrics_server_that_dies_in_the_bake_pauses_and_its_return_goes_on() -> Result {
    let Some(program) = find("prometheus", "prometheus")? else { return Ok(()) };
    let fleet = two_releases(4, &["latency_ms = 20"])?;
    let load = traffic(&fleet, 60, 20)?;
    let mut server = Tool::prometheus(&fleet, program)?;
    server.wait_series("sum by (host) (rate(http_requests_total[2s])) > 0", 4)?;
    let plan = over_one_percent(with(two_stages("6s"), &by_prometheus(&server.url(), 50)), 50);
    let id = fleet.start_rollout(&plan)?;
    fleet.wait_state(&id, "baking", SOON)?;
    server.kill()?;
    let paused = fleet.wait_state(&id, "paused", SOON)?;
    // It waits for the server, not for anybody.
    ensure!(paused["waiting_for"].is_null(), "{paused:#}");
    ensure!(verdicts(&paused).iter().any(|(_, verdict)| verdict == "error"), "{paused:#}");
    ensure!(
        paused["reason"].as_str().is_some_and(|why| why.contains("error_rate") || why.contains(&server.port.to_string())),
        "{paused:#}"
    );
    let confirmed = in_state(&paused, "confirmed").len();
    ensure!(confirmed == 1, "{paused:#}");
    fleet.wait_status(&id, "it stays so while the server is away", SOON, |status| (status["state"] == "paused").then_some(()))?;
    server.start()?;
    let output = fleet.wait(&id, "completed")?;
    let story = Story::of(&fleet, &id)?;
    ensure!(output.code == 0, "{output}\n{}", story.text());
    drop(load);
    let blind = story.first("that the source is away", is_gate("blind"))?;
    story.after(blind, "that it is back", is_gate("sighted"))?;
    ensure!(story.all(is_revert_order).is_empty() && story.all(|record| record["kind"] == "said").is_empty(), "{}", story.text());
    fleet.expect_version("2.0.0")
}

#[test]
fn errors_that_prometheus_saw_take_it_back_and_bad_queries_are_refused() -> Result {
    let Some(program) = find("prometheus", "prometheus")? else { return Ok(()) };
    let fleet = two_releases(4, &["latency_ms = 20", "error_rate = 10"])?;
    let before = fleet.observed("api")?;
    let load = traffic(&fleet, 60, 20)?;
    let server = Tool::prometheus(&fleet, program)?;
    server.wait_series("sum by (host) (rate(http_requests_total[2s])) > 0", 4)?;

    let query = |query: &str| {
        vec![
            "source = \"prometheus\"".to_owned(),
            format!("url = \"{}\"", server.url()),
            format!("query = '{query}'"),
            "unit = \"ratio\"".to_owned(),
        ]
    };
    for (what, promql, says) in [
        ("an empty answer", "rate(no_such_series{host=~\"$hosts\"}[2s])", "no_such_series"),
        ("not a number", "sum(http_requests_total{host=~\"$hosts\"} * 0) / 0", "NaN"),
        ("several answers", "rate(http_requests_total{host=~\"$hosts\"}[2s])", "error_rate"),
        ("no PromQL", "sum(rate(", "parse"),
    ] {
        expect_refused(&fleet, &with(two_stages("2s"), &query(promql)), &["error_rate", says]).context(what)?;
    }

    let plan = over_one_percent(with(two_stages("60s"), &by_prometheus(&server.url(), 50)), 50);
    fleet.roll(&plan)?.expect_code(4)?;
    drop(load);
    let story = Story::of(&fleet, &fleet.newest()?)?;
    let tripped = story.first("that trips", is_kind("tripped"))?;
    ensure!(tripped["record"]["observed"].as_f64().is_some_and(|seen| seen > 1.0 && seen < 40.0), "{tripped:#}");
    expect_back(&fleet, &before)
}

#[test]
fn alerts_that_fired_before_the_start_do_not_count_and_new_ones_do() -> Result {
    let Some(program) = find("prometheus-alertmanager", "prometheus-alertmanager")? else { return Ok(()) };
    let fleet = two_releases(2, &["latency_ms = 20"])?;
    let server = Tool::alertmanager(&fleet, program)?;
    server.alert("DiskFull", "shop")?;
    let plan = |bake: &str| {
        let source = ["source = \"alertmanager\"", &format!("url = \"{}\"", server.url()), "matchers = ['job=\"shop\"']"];
        Plan::new("shop@2.0.0", "canary")
            .analysis("interval = \"500ms\"")
            .metric("alerts", &source)
            .stage("Half", 50, bake, &["alerts == 0"])
            .stage("Full", 100, "1s", &["alerts == 0"])
            .trigger("alerts > 0", "rollback", &[])
    };
    let id = fleet.start_rollout(&plan("60s"))?;
    fleet.wait_state(&id, "baking", SOON)?;
    // Of other people's service.
    server.alert("DiskFull", "warehouse")?;
    server.alert("ShopIsDown", "shop")?;
    let output = fleet.wait(&id, "completed")?.expect_code(4)?;
    let story = Story::of(&fleet, &id)?;
    let tripped = story.first("that trips", is_kind("tripped"))?;
    ensure!(tripped["record"]["observed"] == 1.0, "{tripped:#}\n{output}");
    // Named, those that fired before apart from those that did not.
    let alerts = story.all(is_kind("alert"));
    let named =
        |name: &str, before: bool| alerts.iter().any(|alert| alert["record"]["before"] == before && alert.to_string().contains(name));
    ensure!(alerts.len() == 2 && named("DiskFull", true) && named("ShopIsDown", false), "{alerts:#?}");
    fleet.expect_version("1.0.0")?;
    // Both fire now, so neither counts.
    fleet.roll(&plan("1s"))?.expect_code(0)?;
    let status = fleet.newest_status()?;
    ensure!(verdicts(&status).iter().all(|(_, verdict)| verdict == "pass"), "{status:#}");
    fleet.expect_version("2.0.0")
}

#[test]
fn a_real_exporter_is_read_by_the_agents() -> Result {
    let Some(program) = find("prometheus-node-exporter", "prometheus-node-exporter")? else { return Ok(()) };
    let fleet = two_releases(2, &["latency_ms = 20"])?;
    let exporter = Tool::node_exporter(&fleet, program)?;
    let url = format!("url = \"{}/metrics\"", exporter.url());
    let plan = |load: &str, trigger: &str| {
        Plan::new("shop@2.0.0", "canary")
            .analysis("interval = \"500ms\"")
            .metric("load", &["source = \"scrape\"", &url, "gauge = \"node_load1\""])
            .metric("switches", &["source = \"scrape\"", &url, "counter = \"node_context_switches_total\""])
            .metric("reads", &["source = \"scrape\"", &url, "counter = 'node_cpu_seconds_total{mode=~\"user|system\"}'"])
            .stage("Full", 100, "3s", &[load, "switches > 0", "reads < 1000"])
            .trigger(trigger, "rollback", &[])
    };
    // What the exporter counted before the observation is no word about the release.
    let output = fleet.roll(&plan("load < 10000", "load > 100000"))?;
    let id = fleet.newest()?;
    ensure!(output.code == 0, "{output}\n{}", Story::of(&fleet, &id)?.text());
    let status = fleet.status(&id)?;
    for name in ["load", "switches", "reads"] {
        let gate =
            status["gates"].as_array().into_iter().flatten().find(|gate| gate["name"].as_str().is_some_and(|have| have.starts_with(name)));
        let gate = gate.with_context(|| format!("no gate {name} in {status:#}"))?;
        ensure!(gate["verdict"] == "pass" && gate["observed"].as_f64().is_some_and(f64::is_finite), "{gate:#}");
        ensure!(name == "load" || gate["observed"].as_f64() > Some(0.0), "{gate:#}");
    }
    fleet.say("rollback", &id, &[])?;
    fleet.wait_state(&id, "rolled-back", SOON)?;
    // The same numbers, and limits that they miss.
    fleet.roll(&plan("load < 10000", "switches > 1"))?.expect_code(4)?;
    fleet.expect_version("1.0.0")
}

#[test]
fn probes_commands_and_the_hosts_own_numbers_are_judged() -> Result {
    let mut fleet = Fleet::builder(2).agents_stopped().start()?;
    for index in 0..2 {
        let file = fleet.scratch().join(format!("queue-{index}"));
        std::fs::write(&file, "3\n")?;
        fleet.add_policy(index, &format!("[commands]\nqueue-length = [\"/bin/cat\", \"{}\"]\n", file.display()))?;
        fleet.start_agent(index)?;
    }
    fleet.wait_online(2)?;
    fleet.ship(&tidegate_integration_tests::Release::told("1.0.0", &["latency_ms = 20"]))?;
    fleet.import(&tidegate_integration_tests::Release::told("2.0.0", &["latency_ms = 20"]))?;
    let before = fleet.observed("api")?;
    let probe =
        ["source = \"probe\"", "url = \"http://127.0.0.1:${var.port}/\"", "rate = \"20/s\"", "timeout = \"1s\"", "min_samples = 30"];
    let plan = Plan::new("shop@2.0.0", "canary")
        .analysis("baseline = \"3s\"")
        .analysis("interval = \"500ms\"")
        .metric("error_rate", &probe)
        .metric("latency", &probe)
        .metric("queue", &["source = \"exec\"", "run = \"queue-length\""])
        .stage("Half", 50, "3s", &["error_rate < 0.1%", "latency_p50 < 500ms", "queue < 10", "cpu < 10000%"])
        .stage("Full", 100, "60s", &["error_rate < 0.1%", "queue < 10"])
        .perf("latency_p99", "2s")
        .trigger("queue > 50", "rollback", &[]);
    let id = fleet.start_rollout(&plan)?;
    let status = fleet.wait_status(&id, "the second stage bakes", SOON, |status| {
        (status["state"] == "baking" && in_state(status, "confirmed").len() == 2).then(|| status.clone())
    })?;
    for gate in status["gates"].as_array().into_iter().flatten().filter(|gate| gate["wave"] == 1) {
        ensure!(gate["verdict"] == "pass" && gate["observed"].is_number(), "{gate:#}");
    }
    ensure!(
        status["gates"].as_array().into_iter().flatten().any(|gate| gate["name"].as_str().is_some_and(|name| name.contains("latency_p99"))),
        "{status:#}"
    );
    std::fs::write(fleet.scratch().join("queue-1"), "500\n")?;
    fleet.wait(&id, "completed")?.expect_code(4)?;
    expect_state(&fleet.status(&id)?, "rolled-back")?;
    expect_back(&fleet, &before)
}
