//! What becomes of notifications when the other side does not take them, and that
//! no secret of theirs is anywhere but in its file.

use std::time::Duration;

use anyhow::{Context, ensure};
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::receiver::{Received, Say, WEBHOOK_SECRET};
use tidegate_integration_tests::{Plan, Release};

use super::run::HOLD;
use super::{ROUTING_KEY, SLACK_SECRET, World};
use crate::gating::{Story, is_kind};
use crate::{Result, SOON};

fn world() -> Result<World> {
    let world = World::with(1, |_| pairs(&[("role", "api")]), "")?;
    world.ship(&Release::good("1.0.0"))?;
    world.fleet.import(&Release::good("2.0.0"))?;
    world.fleet.import(&Release::good("3.0.0"))?;
    // The first rollout is told by the guide's default lines.
    world.receiver.wait("the first rollout's start", "/slack", SOON, Received::taken)?;
    Ok(world)
}

fn plan(world: &World, version: &str) -> Plan {
    Plan::new(&format!("shop@{version}"), "rolling").tables(&world.notify())
}

fn about(version: &str) -> impl Fn(&Received) -> bool {
    let word = format!("shop@{version}");
    move |r| r.text().contains(&word)
}

#[test]
fn a_dead_channel_is_told_on_the_next_route_and_busy_ones_are_waited_for() -> Result {
    let world = world()?;
    let (fleet, receiver) = (&world.fleet, &world.receiver);

    // Busy, then broken, then fine: told once in the end, and not before it may.
    receiver.next("/slack", &[Say::RetryAfter(2), Say::Status(500)]);
    fleet.roll(&plan(&world, "2.0.0"))?.expect_code(0)?;
    let fine = receiver.wait("the start, in the end", "/slack", SOON, |r| r.taken() && about("2.0.0")(r))?;
    let mut tries: Vec<Received> = receiver.at("/slack").into_iter().filter(about("2.0.0")).collect();
    tries.retain(|r| r.json["text"] == fine.json["text"]);
    let answers: Vec<u16> = tries.iter().map(|r| r.answered).collect();
    ensure!(answers == [429, 500, 200], "{}", receiver.story());
    let waited = tries[1].instant - tries[0].instant;
    ensure!(waited >= Duration::from_millis(1_900), "Retry-After: 2 was honoured for {waited:?}");

    // Archived: what the team is not told, the next route says, and that they are not told.
    receiver.always("/slack", Say::Status(410));
    fleet.roll(&plan(&world, "3.0.0"))?.expect_code(0)?;
    let instead = |r: &Received| about("3.0.0")(r) && r.text().contains("team") && r.text().contains("410");
    let told = if let Some(mail) = &world.mail {
        let mail = mail.wait("a mail instead", SOON, |mail| mail.text.contains("410") && mail.text.contains("shop@3.0.0"))?;
        mail.expect_valid()?;
        mail.text
    } else {
        receiver.wait("a page instead", "/v2/", SOON, instead)?.text()
    };
    ensure!(told.contains("started"), "what was not told is not in {told}");
    // Given up at the first 410: no second try.
    let refused = receiver.at("/slack").into_iter().filter(about("3.0.0")).count();
    ensure!(refused == 1, "{refused} tries at a dead channel: {}", receiver.story());
    let story = Story::of(fleet, &fleet.newest()?)?;
    let failed = story.all(|record| record["kind"] == "notified" && record["route"] == "team" && record["ok"] == false);
    ensure!(failed.len() == 1, "{}", story.text());
    receiver.expect_valid()?;
    Ok(())
}

#[test]
fn a_receiver_that_hangs_or_is_gone_holds_up_nobody() -> Result {
    let mut world = world()?;
    world.receiver.always("/slack", Say::Hang);
    if let Some(mail) = &mut world.mail {
        mail.kill()?;
    }
    let began = std::time::Instant::now();
    world.fleet.roll(&plan(&world, "2.0.0"))?.expect_code(0)?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(20), "a rollout of one host took {took:?} with receivers that do not answer");
    // The others are told meanwhile.
    world.receiver.wait("the completion", "/webhook", SOON, |r| r.taken() && about("2.0.0")(r) && r.text().contains("completed"))?;
    world.fleet.stop_controller().context("with messages under way")?;
    Ok(())
}

#[test]
fn a_test_says_of_every_route_whether_it_was_taken() -> Result {
    let world = World::with(0, |_| Vec::new(), "")?;
    let (fleet, receiver) = (&world.fleet, &world.receiver);
    let routes = fleet.json(&["notify", "test"])?;
    let count = if world.mail.is_some() { 4 } else { 3 };
    ensure!(routes.as_array().is_some_and(|all| all.len() == count && all.iter().all(|route| route["ok"] == true)), "{routes:#}");
    if let Some(mail) = &world.mail {
        mail.wait("a test mail", SOON, |mail| mail.taken())?.expect_valid()?;
    }
    for path in ["/slack", "/v2/", "/webhook"] {
        receiver.wait("a test", path, SOON, Received::taken)?;
    }
    // A test is no page: whoever sleeps goes on sleeping.
    let pages = receiver.at("/v2/enqueue");
    ensure!(pages.iter().all(|r| r.json["event_action"] != "trigger" || r.json["payload"]["severity"] == "info"), "{}", receiver.story());
    receiver.expect_valid()?;

    for (status, path) in [(403, "/slack"), (400, "/v2/"), (500, "/webhook")] {
        receiver.always(path, Say::Status(status));
    }
    let output = fleet.cli(&["notify", "test", "--output", "json"])?.expect_code(1)?;
    let routes = output.json()?;
    for (route, status) in [("team", "403"), ("on-call", "400"), ("hook", "500")] {
        let found = routes.as_array().into_iter().flatten().find(|one| one["route"] == route).context("the route")?;
        ensure!(found["ok"] == false && found["detail"].as_str().is_some_and(|text| text.contains(status)), "{found:#}");
    }
    fleet.cli(&["notify", "test", "nobody"])?.expect_said("nobody")?;
    Ok(())
}

#[test]
fn no_secret_is_in_a_log_a_journal_or_a_document() -> Result {
    let mut world = world()?;
    // Also where it goes wrong, and errors quote what they tried.
    world.receiver.next("/slack", &[Say::Status(403), Say::Status(500)]);
    world.receiver.next("/v2/", &[Say::Status(500)]);
    world.receiver.next("/webhook", &[Say::Status(500)]);
    world.fleet.roll(&plan(&world, "2.0.0"))?.expect_code(0)?;
    let id = world.fleet.newest()?;
    world.fleet.cli(&["notify", "test", "--output", "json"])?;
    world.fleet.papers(&id)?;
    world.receiver.wait("the completion", "/webhook", SOON, |r| r.taken() && r.text().contains("completed"))?;
    world.receiver.quiet("/nothing", 0, HOLD)?;
    let story = Story::of(&world.fleet, &id)?;
    ensure!(!story.all(is_kind("notified")).is_empty(), "{}", story.text());
    world.fleet.stop_controller()?;
    let secrets = [SLACK_SECRET, ROUTING_KEY, WEBHOOK_SECRET];
    let found = world.fleet.files_with(&secrets)?;
    ensure!(found.is_empty(), "a secret stands in {found:?}");
    ensure!(secrets.iter().all(|secret| !story.text().contains(secret)), "a secret is in the events");
    // The look finds what is there.
    std::fs::write(world.fleet.scratch().join("planted"), SLACK_SECRET)?;
    ensure!(world.fleet.files_with(&secrets)?.len() == 1);
    Ok(())
}
