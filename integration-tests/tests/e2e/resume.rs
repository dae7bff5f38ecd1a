//! Daemons that die and come back, at any time, by SIGKILL.

use std::time::Duration;

use tidegate_integration_tests::wait::wait_for;
use tidegate_integration_tests::{Fleet, Plan, Release};

use crate::{Result, SOON, entry, expect_state, in_state, slow};

/// `started_at` of the service's main process, per host.
fn processes(fleet: &Fleet, id: &str) -> Result<Vec<String>> {
    let status = fleet.status(id)?;
    Ok(fleet.hosts.iter().map(|host| entry(&status, &host.name)["main_pid_started_at"].to_string()).collect())
}

#[test]
fn the_controller_is_killed_in_the_middle_and_goes_on() -> Result {
    let mut fleet = Fleet::start(4)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&slow("2.0.0", "1"))?;
    let id = fleet.start_rollout(&Plan::new("shop@2.0.0", "rolling").batch("1"))?;
    for confirmed in 1..=3 {
        fleet.wait_status(&id, &format!("{confirmed} are confirmed"), SOON, |status| {
            (in_state(status, "confirmed").len() >= confirmed).then_some(())
        })?;
        fleet.kill_controller()?;
        fleet.start_controller()?;
    }
    let status = fleet.wait_state(&id, "completed", SOON)?;
    assert_eq!(in_state(&status, "confirmed").len(), 4, "{status:#}");
    fleet.expect_version("2.0.0")?;
    // Nobody was swapped twice: one generation beyond the first release's.
    let generations: Vec<_> = crate::entries(&status).map(|entry| entry["generation"].to_string()).collect();
    assert!(generations.windows(2).all(|pair| pair[0] == pair[1]), "{generations:?}");
    Ok(())
}

#[test]
fn the_controller_is_killed_while_it_rolls_back() -> Result {
    let mut fleet = Fleet::start(3)?;
    fleet.ship(&slow("1.0.0", "1"))?;
    let before = fleet.observed("api")?;
    fleet.import(&Release::good("2.0.0"))?;
    let id = fleet.start_rollout(&Plan::new("shop@2.0.0", "rolling"))?;
    fleet.wait_state(&id, "completed", SOON)?;
    fleet.cli(&["rollout", "rollback", &id, "--reason", "test"])?;
    fleet.wait_status(&id, "a host is back", SOON, |status| (!in_state(status, "reverted").is_empty()).then_some(()))?;
    fleet.kill_controller()?;
    fleet.start_controller()?;
    fleet.wait_state(&id, "rolled-back", SOON)?;
    // Hosts that were back before the kill have to be heard again.
    fleet.wait_online(3)?;
    assert_eq!(before, fleet.observed("api")?);
    fleet.expect_version("1.0.0")
}

#[test]
fn an_agent_is_killed_in_probation_and_goes_on() -> Result {
    let mut fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&slow("2.0.0", "3"))?;
    let id = fleet.start_rollout(&Plan::new("shop@2.0.0", "rolling").batch("1"))?;
    fleet.wait_host(&id, "h1", &["probation"], SOON)?;
    fleet.kill_agent(0)?;
    fleet.start_agent(0)?;
    fleet.wait_state(&id, "completed", SOON)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn agents_that_restart_leave_their_services_alone() -> Result {
    let mut fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    let id = fleet.newest()?;
    let before = processes(&fleet, &id)?;
    let poller = fleet.poll(Duration::from_millis(10));
    for _ in 0..3 {
        fleet.kill_agent(0)?;
        fleet.start_agent(0)?;
        fleet.stop_agent(1)?;
        fleet.start_agent(1)?;
        fleet.wait_online(2)?;
    }
    let asked = poller.asked();
    wait_for("the services were asked again", SOON, || Ok(poller.asked() > asked + 20))?;
    let misses = poller.finish();
    assert!(misses.is_empty(), "{misses:?}");
    assert_eq!(before, processes(&fleet, &id)?);
    // They are still looked after: the next release arrives.
    fleet.import(&Release::good("2.0.0"))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn the_controller_that_stops_leaves_the_services_alone() -> Result {
    let mut fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    let poller = fleet.poll(Duration::from_millis(10));
    fleet.stop_controller()?;
    fleet.expect_version("1.0.0")?;
    fleet.start_controller()?;
    fleet.wait_online(1)?;
    let misses = poller.finish();
    assert!(misses.is_empty(), "{misses:?}");
    fleet.gate_logs(&["connection", "controller", "reconnect"])
}

#[test]
fn a_rollout_that_starts_right_after_the_controller_waits_for_its_hosts() -> Result {
    let mut fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::good("2.0.0"))?;
    fleet.kill_controller()?;
    fleet.start_controller()?;
    // No host had the time to come back; none of them is lost.
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn an_unconfirmed_host_reverts_by_itself_and_an_absent_controller_does_not_count_it() -> Result {
    let mut fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&slow("2.0.0", "2"))?;
    let id = fleet.start_rollout(&Plan::new("shop@2.0.0", "rolling").limit("confirm_within = \"3s\""))?;
    fleet.wait_host(&id, "h1", &["probation"], SOON)?;
    fleet.kill_controller()?;
    wait_for("the new release answers", SOON, || Ok(fleet.expect_version("2.0.0").is_ok()))?;
    // Nobody confirms it.
    wait_for("the old release answers again", SOON, || Ok(fleet.expect_version("1.0.0").is_ok()))?;
    fleet.start_controller()?;
    // The controller was away, so the host is tried again.
    let status = fleet.wait_state(&id, "completed", SOON)?;
    assert_eq!(entry(&status, "h1")["state"], "confirmed", "{status:#}");
    fleet.expect_version("2.0.0")
}

#[test]
fn a_confirmed_host_never_reverts_for_want_of_a_controller() -> Result {
    let mut fleet = Fleet::start(1)?;
    fleet.import(&Release::good("1.0.0"))?;
    fleet.roll(&Plan::new("shop@1.0.0", "rolling").limit("confirm_within = \"2s\""))?.expect_code(0)?;
    fleet.kill_controller()?;
    tidegate_integration_tests::wait::hold(Duration::from_secs(5), || fleet.expect_version("1.0.0"))
}

#[test]
fn a_host_that_dies_is_unreachable_and_the_rollout_ends() -> Result {
    let mut fleet = Fleet::start(3)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&slow("2.0.0", "2"))?;
    let id = fleet.start_rollout(&Plan::new("shop@2.0.0", "rolling").batch("1"))?;
    let first = fleet
        .wait_status(&id, "a host is in probation", SOON, |status| in_state(status, "probation").first().map(|name| (*name).to_owned()))?;
    let index = fleet.hosts.iter().position(|host| host.name == first).unwrap_or_default();
    fleet.power_off(index)?;
    // It cannot be brought back, so the fleet is mixed, and it is named.
    let output = fleet.cli(&["rollout", "wait", &id, "--for", "completed", "--timeout", "120s"])?;
    assert_eq!(output.code, 6, "{output}");
    let status = fleet.status(&id)?;
    expect_state(&status, "mixed")?;
    assert_eq!(
        (&entry(&status, &first)["state"], &entry(&status, &first)["cause"]),
        (&"unreachable".into(), &"unreachable".into()),
        "{status:#}"
    );
    for (at, host) in fleet.hosts.iter().enumerate().filter(|(at, _)| *at != index) {
        let answer = tidegate_integration_tests::client::get(host.address(), "/", SOON)?;
        assert_eq!(answer.body, "Welcome to shop 1.0.0\n", "host {at}");
    }
    Ok(())
}

#[test]
fn a_host_that_is_down_before_the_start_can_be_skipped() -> Result {
    let mut fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.kill_agent(1)?;
    fleet.import(&Release::good("2.0.0"))?;
    let plan = Plan::new("shop@2.0.0", "rolling").line("on_unreachable = \"skip\"");
    fleet.roll(&plan)?.expect_code(0)?;
    let status = fleet.newest_status()?;
    assert_eq!(entry(&status, "h1")["state"], "confirmed", "{status:#}");
    assert!(["skipped", "unreachable"].iter().any(|state| entry(&status, "h2")["state"] == *state), "{status:#}");
    Ok(())
}

#[test]
fn a_fleet_leaves_nothing_behind() -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&Release::good("1.0.0"))?;
    let dir = fleet.dir().to_owned();
    assert!(!tidegate_integration_tests::process::below(&dir, &[]).is_empty());
    drop(fleet);
    assert!(tidegate_integration_tests::process::below(&dir, &[]).is_empty());
    assert!(!dir.exists());
    Ok(())
}
