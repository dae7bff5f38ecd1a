//! Before the first swap: what is tried, what is sealed, and queries.

use super::*;

pub(crate) const RELATIVE: &str = "strategy = \"big-bang\"\nbake = \"40s\"\nsuccess = [\"latency_p50 within 10% of baseline\"]";

#[test]
fn the_baseline_is_sealed_before_the_first_swap_and_only_once() {
    let mut world = World::new(3, &["api"], &plan(RELATIVE, "", ""));
    world.until("a baseline is sealed", 30, |w| w.count(|r| matches!(r, Record::Baseline { .. })) == 1);
    let sealed = world.sealed("latency_p50").unwrap();
    assert!((5.0..=10.0).contains(&sealed), "{sealed}");
    let first_swap = world.journal.iter().position(|(_, r)| matches!(r, Record::Ordered { phase: Phase::Swap, .. })).unwrap();
    let baseline = world.journal.iter().position(|(_, r)| matches!(r, Record::Baseline { .. })).unwrap();
    assert!(baseline < first_swap);
    let begun = world.at(|r| matches!(r, Record::Step { step: Step::Baseline })).unwrap();
    assert!(world.now.since(begun) >= Millis::from_secs(5));
    world.restart();
    world.until_state(RolloutState::Completed, 90);
    assert_eq!(world.count(|r| matches!(r, Record::Baseline { .. })), 1);
    assert_eq!(world.sealed("latency_p50"), Some(sealed));
}

#[test]
fn a_restart_between_the_seal_and_the_swap_does_not_seal_again() {
    let mut world = World::new(3, &["api"], &plan(RELATIVE, "", ""));
    world.until("a baseline is sealed", 30, |w| w.count(|r| matches!(r, Record::Baseline { .. })) == 1);
    let baseline = world.journal.iter().position(|(_, r)| matches!(r, Record::Baseline { .. })).unwrap();
    let mut world = World::new(3, &["api"], &plan(RELATIVE, "", ""));
    world.until("a baseline is sealed", 30, |w| w.journal.len() > baseline);
    world.restart_at(baseline + 1);
    world.load = Box::new(|_, _| Load { latency_ms: 90, ..GOOD });
    world.pass(30);
    assert_eq!(world.count(|r| matches!(r, Record::Baseline { .. })), 1);
    assert!(world.sealed("latency_p50").unwrap() < 11.0);
}

#[test]
fn worse_than_the_baseline_is_not_passed() {
    let mut world = World::new(3, &["api"], &plan(RELATIVE, "", ""));
    world.load = Box::new(|_, new| Load { latency_ms: if new { 40 } else { 8 }, ..GOOD });
    until_asked(&mut world);
    assert!(world.rollout.reason().contains("baseline"), "{}", world.rollout.reason());
}

#[test]
fn gate_preflight_refuses_a_source_that_cannot_be_read_and_nothing_is_touched() {
    let mut world = big_bang(3, "");
    world.load = Box::new(|host, _| Load { error: (*host == name(2)).then_some("404 Not Found"), ..GOOD });
    world.until_state(RolloutState::Refused, 20);
    let reason = world.rollout.reason().to_string();
    assert!(reason.contains("error_rate") && reason.contains("h2") && reason.contains("404 Not Found"), "{reason}");
    assert!(world.swaps.is_empty());
    assert_eq!(world.count(|r| matches!(r, Record::Ordered { phase: Phase::Stage | Phase::Swap, .. })), 0);
}

/// A host that answers something else than what was asked is a source in error: it
/// refuses the rollout, and does not spoil what all say together.
#[test]
fn an_answer_of_another_kind_is_a_source_in_error() {
    use tidegate_protocol::metric::{MetricReading, Reading};
    let mut world = big_bang(3, "");
    world.load = Box::new(|host, _| Load { silent: *host == name(2), ..GOOD });
    for _ in 0..20 {
        let reading = MetricReading { metric: "error_rate".into(), since_unix_ms: 1, reading: Reading::Count(7), note: None };
        let samples = Samples { component: "api".parse().unwrap(), side: None, readings: vec![reading] };
        world.handle(Event::Samples(&name(2), &samples)).unwrap();
        world.pass(1);
    }
    assert_eq!(world.state(), RolloutState::Refused);
    let reason = world.rollout.reason();
    assert!(reason.contains("error_rate") && reason.contains("h2") && reason.contains("something else"), "{reason}");
    assert!(world.swaps.is_empty());
}

#[test]
fn gate_preflight_waits_for_a_source_that_comes_up_late() {
    let mut world = big_bang(3, "");
    world.load = Box::new(|_, _| Load { error: Some("connection refused"), ..GOOD });
    world.pass(6);
    assert_eq!(world.state(), RolloutState::Running);
    world.load = Box::new(|_, _| GOOD);
    world.until_state(RolloutState::Completed, 60);
}

#[test]
fn gate_preflight_refuses_a_source_that_does_not_answer() {
    let mut world = big_bang(3, "");
    world.load = Box::new(|host, _| Load { silent: *host == name(3), ..GOOD });
    world.pass(50);
    assert_eq!(world.state(), RolloutState::Running);
    world.until_state(RolloutState::Refused, 20);
    let reason = world.rollout.reason().to_string();
    assert!(reason.contains("error_rate") && reason.contains("h3"), "{reason}");
    assert!(world.swaps.is_empty());
}

const QUERY: &str = "strategy = \"canary\"\n[analysis]\ninterval = \"1s\"\n\
    [metrics.error_rate]\nsource = \"prometheus\"\nurl = \"http://p:9090\"\nquery = \"errors{instance=~'$hosts'}\"\n\
    [[rollback]]\nwhen = \"error_rate > 1%\"\naction = \"rollback\"\n\
    [[stage]]\nname = \"one\"\npercent = 25\nbake = \"20s\"\nsuccess = [\"error_rate < 0.1%\"]\n\
    [[stage]]\nname = \"all\"\npercent = 100\nbake = \"20s\"\nsuccess = [\"error_rate < 0.1%\"]\n";

#[test]
fn gate_preflight_refuses_a_query_that_fails_and_says_why() {
    let mut world = World::new(4, &["api"], QUERY);
    for _ in 0..12 {
        world.fetched("error_rate", Err("the query has no result"));
        world.pass(1);
    }
    assert_eq!(world.state(), RolloutState::Refused);
    let reason = world.rollout.reason().to_string();
    assert!(reason.contains("error_rate") && reason.contains("the query has no result"), "{reason}");
    assert!(world.swaps.is_empty() && world.rollout.fetches().is_empty());
}

#[test]
fn a_query_is_asked_of_the_changed_hosts_and_its_silence_pauses() {
    let mut world = World::new(4, &["api"], QUERY);
    let bound = |w: &World| -> Vec<String> {
        w.rollout
            .fetches()
            .into_iter()
            .map(|f| match f.from {
                FetchFrom::Prometheus { query, .. } => query,
                FetchFrom::Alertmanager { .. } => String::new(),
            })
            .collect()
    };
    assert_eq!(bound(&world), ["errors{instance=~'h1|h2|h3|h4'}"]);
    world.fetched("error_rate", Ok(0.0));
    world.pass(1);
    assert_eq!(world.state(), RolloutState::Baking);
    assert_eq!(bound(&world), ["errors{instance=~'h1'}", "errors{instance=~'h2|h3|h4'}"]);
    for _ in 0..5 {
        world.fetched("error_rate", Ok(0.0));
        world.pass(1);
    }
    assert_eq!(world.state(), RolloutState::Baking);
    // The server is gone.
    for _ in 0..6 {
        world.fetched("error_rate", Err("connection refused"));
        world.pass(1);
    }
    assert_eq!((world.state(), world.changed()), (RolloutState::Paused, 1));
    for _ in 0..60 {
        world.fetched("error_rate", Ok(0.0));
        world.pass(1);
    }
    assert_eq!((world.state(), world.changed()), (RolloutState::Completed, 4));
}

#[test]
fn a_query_over_the_limit_rolls_back() {
    let mut world = World::new(4, &["api"], QUERY);
    world.fetched("error_rate", Ok(0.0));
    world.pass(1);
    // 0.02 of the requests, in the unit of PromQL.
    world.fetched("error_rate", Ok(0.02));
    world.until_state(RolloutState::RolledBack, 5);
    assert!(world.rollout.reason().contains("error_rate"), "{}", world.rollout.reason());
}
