//! Twenty hosts: the strategies, the failure budget and the way back.

use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::{Component, Fleet, Plan, Release};

use crate::{Result, entry, expect_state, in_state};

const MANY: usize = 20;

/// Bad on one host only.
fn bad_on(version: &str, port: u16) -> Release {
    Release::that(version, &["behaviour = bad", &format!("only_port = {port}")])
}

#[test]
fn one_failing_host_of_twenty_rolls_all_of_them_back() -> Result {
    let fleet = Fleet::start(MANY)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.expect_version("1.0.0")?;
    let before = fleet.observed("api")?;
    assert_eq!(before.len(), MANY);

    let failing = &fleet.hosts[12];
    fleet.import(&bad_on("2.0.0", failing.port))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling").batch("4"))?.expect_code(4)?;

    fleet.expect_version("1.0.0")?;
    assert_eq!(before, fleet.observed("api")?);
    let status = fleet.newest_status()?;
    expect_state(&status, "rolled-back")?;
    let host = entry(&status, &failing.name);
    assert_eq!((&host["state"], &host["cause"]), (&"reverted".into(), &"smoke".into()), "{status:#}");
    // Nobody else is blamed, and whoever was changed is back.
    for other in crate::entries(&status).filter(|other| other["host"] != failing.name.as_str()) {
        assert!(other["cause"].is_null() || other["cause"] == "trigger", "{other:#}");
        assert!(["reverted", "pending", "staged", "skipped"].iter().any(|state| other["state"] == *state), "{other:#}");
    }
    Ok(())
}

#[test]
fn a_failing_host_within_the_budget_is_named_and_the_rest_completes() -> Result {
    let fleet = Fleet::start(MANY)?;
    fleet.ship(&Release::good("1.0.0"))?;
    let failing = &fleet.hosts[6];
    fleet.import(&bad_on("2.0.0", failing.port))?;
    let output = fleet
        .roll(&Plan::new("shop@2.0.0", "rolling").batch("25%").limit("max_parallel = \"25%\"").limit("max_failed_hosts = 1"))?
        .expect_code(0)?;
    output.expect_said(&failing.name)?;

    let status = fleet.newest_status()?;
    expect_state(&status, "completed")?;
    let host = entry(&status, &failing.name);
    assert_eq!(host["cause"], "smoke", "{status:#}");
    assert!(host["state"] == "reverted" || host["state"] == "failed", "{status:#}");
    assert_eq!(in_state(&status, "confirmed").len(), MANY - 1, "{status:#}");
    for (host, answer) in fleet.hosts.iter().zip(fleet.greetings()?) {
        let version = if host.name == failing.name { "1.0.0" } else { "2.0.0" };
        assert_eq!(answer.body, format!("Welcome to shop {version}\n"), "{}", host.name);
    }
    Ok(())
}

#[test]
fn big_bang_changes_all_and_takes_all_back() -> Result {
    let fleet = Fleet::start(MANY)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::good("2.0.0"))?;
    fleet.roll(&Plan::new("shop@2.0.0", "big-bang").batch("20"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")?;
    let before = fleet.observed("api")?;

    fleet.import(&bad_on("3.0.0", fleet.hosts[0].port))?;
    fleet.roll(&Plan::new("shop@3.0.0", "big-bang").batch("20"))?.expect_code(4)?;
    fleet.expect_version("2.0.0")?;
    assert_eq!(before, fleet.observed("api")?);
    Ok(())
}

#[test]
fn no_more_hosts_are_out_of_service_than_the_window_allows() -> Result {
    let fleet = Fleet::start(6)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&crate::slow("2.0.0", "1"))?;
    let poller = fleet.poll(std::time::Duration::from_millis(25));
    fleet.roll(&Plan::new("shop@2.0.0", "rolling").batch("2").limit("max_parallel = 2").limit("min_healthy = 1"))?.expect_code(0)?;
    let misses = poller.finish();
    // The slow start makes every host miss; the instants of all misses of a
    // host span its time out of service.
    let spans: Vec<_> = fleet
        .hosts
        .iter()
        .filter_map(|host| {
            let mine = || misses.iter().filter(|miss| miss.name == host.name);
            Some((mine().map(|miss| miss.ended).min()?, mine().map(|miss| miss.began).max()?))
        })
        .collect();
    assert_eq!(spans.len(), fleet.hosts.len(), "every host was out of service for a second, so it must have missed: {misses:?}");
    for (start, _) in &spans {
        let out = spans.iter().filter(|(from, to)| from <= start && start <= to).count();
        assert!(out <= 2, "{out} hosts were out of service at once: {spans:?}");
    }
    Ok(())
}

#[test]
fn components_go_one_after_the_other_and_come_back_in_reverse() -> Result {
    let fleet = Fleet::builder(2).labels(|_| pairs(&[("role", "all")])).start()?;
    let hosts = r#"{ api = "role=all", web = "role=all" }"#;
    let both = |version: &str, web: &[&str]| {
        let web = web.iter().fold(Component::new("web").port_var("port2"), |web, line| web.conf(line));
        Release::new(version).component(Component::new("api")).component(web)
    };
    fleet.import(&both("1.0.0", &[]))?;
    fleet.roll(&Plan::to("shop@1.0.0", "big-bang", hosts))?.expect_code(0)?;
    let before = (fleet.observed("api")?, fleet.observed("web")?);

    fleet.import(&both("2.0.0", &["behaviour = bad"]))?;
    fleet.roll(&Plan::to("shop@2.0.0", "rolling", hosts))?.expect_code(4)?;
    assert_eq!(before, (fleet.observed("api")?, fleet.observed("web")?));
    fleet.expect_version("1.0.0")?;
    // `api` was new everywhere before `web` was touched, and came back after it.
    let status = fleet.newest_status()?;
    let api: Vec<_> = crate::entries(&status).filter(|entry| entry["component"] == "api").collect();
    assert_eq!(api.len(), 2, "{status:#}");
    assert!(api.iter().all(|entry| entry["state"] == "reverted"), "{status:#}");
    Ok(())
}
