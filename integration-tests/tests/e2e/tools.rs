//! The tools that other tests stand on, without Tidegate deciding anything: a
//! load that counted nothing would make every test of gates pass.

use std::time::Duration;

use anyhow::ensure;
use tidegate_integration_tests::client::get;
use tidegate_integration_tests::tools::{Front, Tool, find};
use tidegate_integration_tests::wait::wait_for;
use tidegate_integration_tests::{Fleet, Release};

use crate::gating::traffic;
use crate::{Result, SOON};

#[test]
fn a_service_fails_and_is_slow_as_told_and_the_load_counts_it() -> Result {
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::told("1.0.0", &["latency_ms = 20"]))?;
    fleet.hosts[1].tell("latency_ms = 50\n[2.0.0]\nerror_rate = 100\n[1.0.0]\nerror_rate = 10\nlog = hello there\n")?;
    wait_for("it was told", SOON, || Ok(fleet.hosts[1].service_log().contains("hello there")))?;
    let load = traffic(&fleet, 60, 60)?;
    let began = std::time::Instant::now();
    wait_for("300 requests", SOON, || Ok(load.asked() >= 300))?;
    let rate = f64::from(u32::try_from(load.asked())?) / began.elapsed().as_secs_f64();
    let tally = load.finish();
    eprintln!("{rate:.0} requests a second where 120 were due, {} of {} missed", tally.missed, tally.asked);
    // Faster than told would be a defect of the load; slower is a busy machine.
    ensure!(rate < 150.0, "{rate} requests a second");
    ensure!(tally.misses.iter().all(|miss| miss.name == "h2" && miss.error == "status 500"), "{:?}", tally.misses.first());
    ensure!((10..=25).contains(&tally.missed), "10 % of half of {} are not {}", tally.asked, tally.missed);

    let count = |host: usize, line: &str| -> Result<u64> {
        let page = get(fleet.hosts[host].address(), "/metrics", SOON)?.body;
        Ok(page.lines().find_map(|have| have.strip_prefix(line)?.trim().parse().ok()).unwrap_or_default())
    };
    ensure!(count(1, "http_requests_total{code=\"500\"}")? == tally.missed && count(0, "http_requests_total{code=\"500\"}")? == 0);
    ensure!(count(0, "http_request_duration_seconds_bucket{le=\"0.015\"}")? == 0, "the first is slower than 15 ms");
    ensure!(count(1, "http_request_duration_seconds_bucket{le=\"0.040\"}")? <= 1, "the second is slower than 40 ms");
    ensure!(count(0, "http_request_duration_seconds_count")? >= 140);
    Ok(())
}

#[test]
fn other_peoples_programs_run_beside_the_fleet() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::told("1.0.0", &[]))?;
    if let Some(program) = find("prometheus", "prometheus")? {
        let mut server = Tool::prometheus(&fleet, program)?;
        server.wait_series("http_requests_total{host=\"h1\",code=\"200\"} > 0", 1)?;
        server.kill()?;
        server.start()?;
        server.wait_series("process_start_time_seconds{host=~\"h1|h2\"}", 1)?;
    }
    if let Some(program) = find("prometheus-alertmanager", "prometheus-alertmanager")? {
        Tool::alertmanager(&fleet, program)?.alert("Test", "shop")?;
    }
    if let Some(program) = find("prometheus-node-exporter", "prometheus-node-exporter")? {
        let exporter = Tool::node_exporter(&fleet, program)?;
        let page = get(([127, 0, 0, 1], exporter.port).into(), "/metrics", SOON)?;
        ensure!(page.body.contains("\nnode_load1 "), "{}", page.body);
    }
    if let Some(nginx) = find("nginx", "nginx-light")? {
        let front = Front::start(&fleet, 0, &nginx)?;
        let answer = get(front.address, "/", SOON)?;
        ensure!(answer.body == "Welcome to shop 1.0.0\n", "{answer:?}");
        // Nobody is on the other side.
        front.switch("green")?;
        wait_for("traffic goes to the other side", SOON, || Ok(get(front.address, "/", Duration::from_secs(2))?.status == 502))?;
        front.switch("blue")?;
        wait_for("traffic is back", SOON, || Ok(get(front.address, "/", Duration::from_secs(2))?.status == 200))?;
    }
    Ok(())
}
