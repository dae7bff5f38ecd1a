//! What a person does to a rollout that runs.

use std::time::Duration;

use anyhow::ensure;
use tidegate_integration_tests::wait::hold;
use tidegate_integration_tests::{Fleet, Plan, Release};

use crate::{Result, SOON, expect_state, in_state, slow};

/// Four hosts on 1.0.0, and a rollout of 2.0.0 that takes a second per host.
fn under_way() -> Result<(Fleet, String)> {
    let fleet = Fleet::start(4)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&slow("2.0.0", "1"))?;
    let id = fleet.start_rollout(&Plan::new("shop@2.0.0", "rolling").batch("1"))?;
    fleet.wait_status(&id, "a host is confirmed", SOON, |status| (!in_state(status, "confirmed").is_empty()).then_some(()))?;
    Ok((fleet, id))
}

#[test]
fn pause_admits_no_more_and_resume_goes_on() -> Result {
    let (fleet, id) = under_way()?;
    fleet.cli(&["rollout", "pause", &id, "--reason", "lunch"])?.expect_code(0)?;
    // Hosts that were ordered run on to their end.
    let status = fleet.wait_status(&id, "nobody is under way", SOON, |status| {
        let busy = ["swapping", "probation", "healthy"].iter().any(|state| !in_state(status, state).is_empty());
        (status["state"] == "paused" && !busy).then(|| status.clone())
    })?;
    ensure!(status["waiting_for"] == "person", "{status:#}");
    let done = in_state(&status, "confirmed").len();
    assert!(done < 4, "there was nothing left to pause: {status:#}");
    hold(Duration::from_secs(3), || {
        let now = in_state(&fleet.status(&id)?, "confirmed").len();
        ensure!(now == done, "{now} hosts are confirmed, {done} were when it was paused");
        Ok(())
    })?;
    fleet.cli(&["rollout", "resume", &id])?.expect_code(0)?;
    fleet.cli(&["rollout", "wait", &id, "--for", "completed", "--timeout", "60s"])?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn halt_ends_it_where_it_stands() -> Result {
    let (fleet, id) = under_way()?;
    let waiting = fleet.cli_spawn(&["rollout", "wait", &id, "--for", "completed"])?;
    fleet.cli(&["rollout", "halt", &id, "--reason", "wrong day"])?;
    let waited = waiting.finish(SOON)?.expect_code(8)?;
    let status = fleet.wait_state(&id, "halted", SOON)?;
    let done = in_state(&status, "confirmed");
    assert!(!done.is_empty() && done.len() < 4, "{status:#}\n{waited}");
    for (host, answer) in fleet.hosts.iter().zip(fleet.greetings()?) {
        let version = if done.contains(&host.name.as_str()) { "2.0.0" } else { "1.0.0" };
        assert_eq!(answer.body, format!("Welcome to shop {version}\n"), "{}", host.name);
    }
    // Its locks are free.
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn rollback_takes_a_running_rollout_back() -> Result {
    let (fleet, id) = under_way()?;
    fleet.cli(&["rollout", "rollback", &id, "--reason", "complaints"])?;
    fleet.cli(&["rollout", "wait", &id, "--for", "completed"])?.expect_code(4)?;
    expect_state(&fleet.status(&id)?, "rolled-back")?;
    fleet.expect_version("1.0.0")
}

#[test]
fn rollback_works_from_completed_too() -> Result {
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    let before = fleet.observed("api")?;
    fleet.import(&Release::good("2.0.0"))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    let id = fleet.newest()?;
    fleet.cli(&["rollout", "rollback", &id, "--reason", "second thoughts"])?;
    fleet.wait_state(&id, "rolled-back", SOON)?;
    assert_eq!(before, fleet.observed("api")?);
    fleet.expect_version("1.0.0")
}

#[test]
fn wait_ends_with_the_state_with_the_terminal_code_or_with_the_timeout() -> Result {
    let (fleet, id) = under_way()?;
    let late = fleet.cli(&["rollout", "wait", &id, "--for", "rolled-back", "--timeout", "100ms"])?;
    assert_eq!(late.code, 7, "{late}");
    fleet.cli(&["rollout", "wait", &id, "--for", "wave:2", "--timeout", "60s"])?.expect_code(0)?;
    fleet.cli(&["rollout", "pause", &id])?.expect_code(0)?;
    fleet.cli(&["rollout", "wait", &id, "--for", "paused,completed", "--timeout", "60s"])?.expect_code(0)?;
    fleet.cli(&["rollout", "resume", &id])?.expect_code(0)?;
    fleet.cli(&["rollout", "wait", &id, "--for", "completed"])?.expect_code(0)?;
    // What can't come any more: the code of the state it ended in.
    fleet.cli(&["rollout", "wait", &id, "--for", "rolled-back"])?.expect_code(0)?;
    fleet.cli(&["rollout", "wait", "no-such-rollout", "--for", "completed"])?.expect_code(1)?;
    Ok(())
}

#[test]
fn a_wait_for_something_that_rolled_back_says_so() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::that("2.0.0", &["behaviour = bad"]))?;
    let id = fleet.start_rollout(&Plan::new("shop@2.0.0", "rolling"))?;
    fleet.cli(&["rollout", "wait", &id, "--for", "completed"])?.expect_code(4)?;
    fleet.cli(&["rollout", "watch", &id])?.expect_code(4)?;
    Ok(())
}

#[test]
fn a_drained_host_is_left_out() -> Result {
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.cli(&["host", "drain", "h2"])?.expect_code(0)?;
    fleet.import(&Release::good("2.0.0"))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    let answers = fleet.greetings()?;
    assert_eq!((answers[0].body.as_str(), answers[1].body.as_str()), ("Welcome to shop 2.0.0\n", "Welcome to shop 1.0.0\n"));
    fleet.cli(&["host", "undrain", "h2"])?.expect_code(0)?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn labels_decide_who_is_meant() -> Result {
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.cli(&["host", "label", "h2", "zone=b"])?.expect_code(0)?;
    fleet.import(&Release::good("2.0.0"))?;
    fleet.roll(&Plan::to("shop@2.0.0", "rolling", r#"{ api = "role=api,zone=b" }"#))?.expect_code(0)?;
    let answers = fleet.greetings()?;
    assert_eq!((answers[0].body.as_str(), answers[1].body.as_str()), ("Welcome to shop 1.0.0\n", "Welcome to shop 2.0.0\n"));
    assert_eq!(fleet.json(&["host", "list", "-l", "zone in (b)"])?.as_array().map(Vec::len), Some(1));
    Ok(())
}
