//! Papers: what people add, and when; outages, as hosts tell them.

use tidegate_rollout::record::Review;

use super::*;

fn note() -> Record {
    Record::Noted { by: "ops".into(), text: "seen".into(), resolves: Some(1) }
}

fn item() -> Record {
    Record::Item { item: 1, what: "x".into(), owner: "ops".into(), status: "open".into(), eta: "2026-12-01".into(), by: "ops".into() }
}

fn sign() -> Record {
    Record::SignedOff { role: SignRole::OpsLead, signed: signed("olga"), document: Digest::of(b"handoff") }
}

fn review() -> Record {
    Record::Reviewed { review: Review { date: "2026-11-24".into(), ..Review::default() }, by: "ops".into() }
}

fn close() -> Record {
    Record::Closed { by: "ops".into() }
}

/// Which of note, item, sign-off, review, close are taken.
fn taken(world: &World) -> [bool; 5] {
    [note(), item(), sign(), review(), close()].map(|record| {
        let mut rollout = world.rollout.clone();
        let (state, locks) = (rollout.state(), rollout.locks());
        let told = rollout.handle(world.now, Event::Paper(&record)).is_ok();
        let appended: Vec<Action> = std::iter::from_fn(|| rollout.poll_action()).collect();
        assert_eq!(appended, if told { vec![Action::Append(record)] } else { Vec::new() });
        assert_eq!((rollout.state(), rollout.locks()), (state, locks), "a paper moves nothing");
        told
    })
}

#[test]
fn each_paper_has_its_time() {
    let while_it_runs = [true, true, false, false, false];
    let mut waiting = Process::default();
    waiting.brought.freeze = Some("year end".into());
    let waiting = fleet(1, ROLLING, waiting);
    assert_eq!((waiting.state(), taken(&waiting)), (RolloutState::Scheduled, while_it_runs));
    let mut world = fleet(4, &canary("").replace("\"canary\"", "\"canary\"\nwatch = \"30s\""), Process::default());
    assert_eq!((world.state(), taken(&world)), (RolloutState::Running, while_it_runs));
    world.until_state(RolloutState::Baking, 60);
    assert_eq!(taken(&world), while_it_runs);
    world.verb(Verb::Pause).unwrap();
    assert_eq!(taken(&world), while_it_runs);
    world.verb(Verb::Resume).unwrap();
    world.until_state(RolloutState::Watching, 120);
    assert_eq!(taken(&world), [true, true, true, true, false]);
    world.until_state(RolloutState::Completed, 120);
    assert_eq!(taken(&world), [true; 5]);
    // On the way back, and in every other end.
    world.slow_back = true;
    world.verb(Verb::Rollback).unwrap();
    assert_eq!((world.state(), taken(&world)), (RolloutState::RollingBack, while_it_runs));
    world.finish_back();
    assert_eq!((world.state(), taken(&world)), (RolloutState::RolledBack, [true; 5]));
    let mut halted = waiting;
    halted.verb(Verb::Halt).unwrap();
    assert_eq!((halted.state(), taken(&halted)), (RolloutState::Halted, [true; 5]));
}

#[test]
fn after_the_close_there_is_nothing_to_add() {
    let mut world = fleet(1, ROLLING, Process::default());
    world.attest("on-call-briefed").unwrap();
    world.paper(sign()).unwrap();
    world.paper(review()).unwrap();
    world.paper(close()).unwrap();
    assert!(world.status().closed && world.rollout.given().closed.is_some());
    for restarted in [false, true] {
        if restarted {
            world.restart();
        }
        let before = world.journal.len();
        for record in [note(), item(), sign(), review(), close()] {
            let refused = world.paper(record).unwrap_err();
            assert!(refused.hint.contains("closed by ops"), "{refused}");
        }
        assert!(world.attest("runbook-tested").is_err());
        assert_eq!(world.journal.len(), before);
    }
}

#[test]
fn the_handoff_is_prepared_from_the_beginning_on() {
    let mut world = fleet(4, &canary(""), Process::default());
    world.attest("alerts-reviewed").unwrap();
    assert!(world.attest("unheard-of").is_err());
    world.until_state(RolloutState::Completed, 120);
    world.attest("runbook-tested").unwrap();
    assert_eq!(world.rollout.given().attested.len(), 2);
}

fn told(probe: &str, intervals: &[(u64, u64)]) -> Outages {
    let intervals = intervals.iter().map(|(from_unix_ms, to_unix_ms)| Outage { from_unix_ms: *from_unix_ms, to_unix_ms: *to_unix_ms });
    Outages { component: "api".parse().unwrap(), probe: probe.into(), since_unix_ms: 1, intervals: intervals.collect() }
}

fn outages(world: &World) -> Vec<(u64, Option<u64>)> {
    let outage = |(_, r): &(Timestamp, Record)| match r {
        Record::Outage { from_unix_ms, to_unix_ms, .. } => Some((*from_unix_ms, *to_unix_ms)),
        _ => None,
    };
    world.journal.iter().filter_map(outage).collect()
}

#[test]
fn an_outage_is_journaled_once_and_an_open_one_at_the_end() {
    let mut world = fleet(4, &canary(""), Process::default());
    assert_eq!(world.rollout.outage_watches(&name(1)), ["api".parse().unwrap()]);
    let say = |world: &mut World, told: &Outages| world.handle(Event::Outages(&name(1), told)).unwrap();
    let probed = |w: &World| w.count(|r| matches!(r, Record::Probed { .. }));
    say(&mut world, &told("", &[]));
    assert_eq!(probed(&world), 1, "that nothing can be called is known too");
    say(&mut world, &told("http://127.0.0.1:8080/", &[(10, 20), (30, 0)]));
    say(&mut world, &told("http://127.0.0.1:8080/", &[(10, 20), (30, 0)]));
    assert_eq!((probed(&world), outages(&world)), (2, vec![(10, Some(20))]));
    // The release brings no address any more: it was called all the same.
    say(&mut world, &told("", &[(10, 20), (30, 0)]));
    assert_eq!(probed(&world), 2);
    world.restart();
    say(&mut world, &told("http://127.0.0.1:8080/", &[(10, 20), (30, 35), (40, 0)]));
    world.restart();
    say(&mut world, &told("http://127.0.0.1:8080/", &[(10, 20), (30, 35), (40, 0)]));
    assert_eq!((probed(&world), outages(&world)), (2, vec![(10, Some(20)), (30, Some(35))]));
    world.until_state(RolloutState::Completed, 120);
    assert_eq!(outages(&world).last(), Some(&(40, None)));
    let before = world.journal.len();
    say(&mut world, &told("http://127.0.0.1:8080/", &[(50, 60)]));
    assert_eq!(world.journal.len(), before);
    assert!(world.rollout.outage_watches(&name(1)).is_empty());
}

#[test]
fn outages_of_others_are_not_its_own_and_their_number_is_bounded() {
    let mut world = fleet(4, &canary(""), Process::default());
    let many: Vec<(u64, u64)> = (1..=400).map(|i| (i * 10, i * 10 + 5)).collect();
    let other = Outages { component: "web".parse().unwrap(), ..told("x", &many) };
    let before = world.journal.len();
    world.handle(Event::Outages(&name(1), &other)).unwrap();
    world.handle(Event::Outages(&name(9), &told("x", &many))).unwrap();
    assert_eq!(world.journal.len(), before);
    world.handle(Event::Outages(&name(1), &told("x", &many))).unwrap();
    assert_eq!(outages(&world).len(), 256);
}

#[test]
fn a_notification_is_over_once_by_key_and_route() {
    let mut world = fleet(1, ROLLING, Process::default());
    let told = |w: &mut World, key, route, result| w.handle(Event::Notified { key, route, result }).unwrap();
    for _ in 0..2 {
        told(&mut world, "r1/1", "team", Ok(()));
        told(&mut world, "r1/1", "pager", Err("410 Gone"));
        world.restart();
    }
    let ended = |(_, r): &(Timestamp, Record)| match r {
        Record::Notified { route, ok, detail, .. } => Some((route.clone(), *ok, detail.clone())),
        _ => None,
    };
    let ended: Vec<_> = world.journal.iter().filter_map(ended).collect();
    assert_eq!(ended, [("team".into(), true, String::new()), ("pager".into(), false, "410 Gone".to_string())]);
}
