//! One host, one component: forward, and back by itself.

use anyhow::ensure;
use tidegate_integration_tests::client::get;
use tidegate_integration_tests::{Component, Fleet, Plan, Release};

use crate::{Result, SOON, entry, expect_state};

#[test]
fn a_release_is_shipped_and_then_the_next() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.expect_version("1.0.0")?;
    let before = fleet.observed("api")?;

    fleet.import(&Release::good("2.0.0"))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")?;
    ensure!(before[0].1["running_sha256"] != fleet.observed("api")?[0].1["running_sha256"], "the executable did not change");

    let status = fleet.newest_status()?;
    expect_state(&status, "completed")?;
    let host = entry(&status, "h1");
    assert_eq!(host["state"], "confirmed", "{status:#}");
    assert_eq!((&host["release"], &host["previous"]), (&"shop@2.0.0".into(), &"shop@1.0.0".into()), "{status:#}");
    assert_eq!((&host["smoke"][0]["id"], &host["smoke"][0]["status"]), (&"SMK-001".into(), &"pass".into()), "{status:#}");
    assert!(host["cause"].is_null(), "{status:#}");
    assert!(host["memory_bytes"].as_u64() > Some(0), "{status:#}");

    let host = &fleet.host_list()?[0];
    assert_eq!(
        (&host["components"]["api"]["release"], &host["components"]["api"]["previous"]),
        (&"shop@2.0.0".into(), &"shop@1.0.0".into())
    );
    assert!(host["memory_total_bytes"].as_u64() > host["memory_bytes"].as_u64(), "{host:#}");
    fleet.gate_logs(&[])
}

#[test]
fn a_release_whose_smoke_test_fails_is_rolled_back() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    let before = fleet.observed("api")?;
    fleet.import(&Release::that("2.0.0", &["behaviour = bad"]))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(4)?;
    fleet.expect_version("1.0.0")?;
    assert_eq!(before, fleet.observed("api")?);
    let status = fleet.newest_status()?;
    expect_state(&status, "rolled-back")?;
    let host = entry(&status, "h1");
    assert_eq!((&host["state"], &host["cause"]), (&"reverted".into(), &"smoke".into()), "{status:#}");
    // What failed; the smoke tests listed are those that proved the way back.
    let message = host["message"].as_str().unwrap_or_default();
    assert!(message.contains("SMK-001") && message.contains("500"), "{status:#}");
    assert_eq!(host["smoke"][0]["status"], "pass", "{status:#}");
    Ok(())
}

#[test]
fn a_service_that_refuses_to_start_is_rolled_back() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::that("2.0.0", &["behaviour = refuse"]))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(4)?;
    fleet.expect_version("1.0.0")?;
    let status = fleet.newest_status()?;
    let cause = &entry(&status, "h1")["cause"];
    // It may have been seen running for an instant.
    assert!(["start-failed", "crash-loop", "smoke"].iter().any(|known| cause == known), "{status:#}");
    Ok(())
}

#[test]
fn a_service_that_hangs_is_rolled_back() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::that("2.0.0", &["behaviour = hang"]))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(4)?;
    fleet.expect_version("1.0.0")
}

#[test]
fn a_slow_start_within_the_retries_is_no_failure() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&crate::slow("2.0.0", "2"))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn a_bad_first_release_leaves_nothing() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.import(&Release::that("1.0.0", &["behaviour = bad"]))?;
    fleet.roll(&Plan::new("shop@1.0.0", "rolling"))?.expect_code(4)?;
    let host = &fleet.hosts[0];
    assert!(get(host.address(), "/", SOON).is_err(), "the service of a release that was taken back still answers");
    assert!(!host.dir.join("opt/api/current").exists());
    let listed = &fleet.host_list()?[0];
    let state = &listed["components"]["api"]["state"];
    assert!(state.is_null() || state == "absent", "{listed:#}");
    Ok(())
}

#[test]
fn a_check_that_fails_stops_the_rollout_before_any_swap() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    let poller = fleet.poll(std::time::Duration::from_millis(20));
    let component = Component::new("api").conf("no such key = 1").line(r#"check = ["bin/demo-service", "--check-config"]"#);
    fleet.import(&Release::new("2.0.0").component(component))?;
    let output = fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(5)?;
    output.expect_said("h1")?;
    assert!(poller.asked() > 0);
    let misses = poller.finish();
    assert!(misses.is_empty(), "{misses:?}");
    fleet.expect_version("1.0.0")
}
