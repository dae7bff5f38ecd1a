//! Blue-green: prepared everywhere, switched at once, and back by one step.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod world;

use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::*;
use tidegate_rollout::record::GateStep;
use tidegate_rollout::*;

use world::{GOOD, Load, R, Setup, World, journaled, name};

const ANALYSIS: &str = "[analysis]\ninterval = \"1s\"\nbaseline = \"5s\"\ndeadline = \"120s\"\n";
const SOURCE: &str = "[metrics.error_rate]\nsource = \"probe\"\nurl = \"http://127.0.0.1:8080/\"\nrate = \"100/s\"\n";
const TRIGGER: &str = "[[rollback]]\nwhen = \"error_rate > 1%\"\naction = \"rollback\"\nmin_samples = 300\n";

fn plan(head: &str, tables: &str) -> String {
    format!("strategy = \"blue-green\"\nswitch = {{ run = \"lb ${{side}}\" }}\n{head}\n{ANALYSIS}{SOURCE}{TRIGGER}{tables}")
}

/// Traffic moved, observed for 40 s.
fn observed() -> String {
    plan("bake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]", "")
}

fn sided(n: usize, plan: &str, set: impl FnOnce(&mut World)) -> World {
    World::with(n, &["api"], plan, set)
}

fn on(world: &World, side: Side) -> bool {
    world.active().iter().all(|a| *a == Some(side))
}

fn switches(world: &World, of: Intent) -> Vec<Timestamp> {
    let at = |(at, r): &(Timestamp, Record)| matches!(r, Record::Switch { intent, .. } if *intent == of).then_some(*at);
    world.journal.iter().filter_map(at).collect()
}

/// What stands on a side of a host.
fn release_on(world: &World, i: usize, side: Side) -> Option<ReleaseRef> {
    let sides = &world.sides[&(name(i), "api".parse().unwrap())];
    sides.sides.iter().find(|s| s.side == side)?.report.current.clone()
}

/// No order ever touched the side that served before.
fn old_sides_untouched(world: &World) {
    for i in 1..=world.sides.len() {
        assert_eq!(release_on(world, i, Side::Blue), Some(world.old.clone()), "h{i}");
    }
    assert_eq!(world.count(|r| matches!(r, Record::Retired { .. })), 0);
}

#[test]
fn all_are_prepared_then_all_are_switched_and_the_rollout_completes() {
    let mut world = sided(5, &observed(), |_| {});
    world.until("a side is prepared", 10, |w| w.count(|r| matches!(r, Record::Switch { .. })) > 0);
    let last_confirmed = world.journal.iter().rposition(|(_, r)| matches!(r, Record::Host { to: TargetState::Confirmed, .. })).unwrap();
    let first_switch = world.journal.iter().position(|(_, r)| matches!(r, Record::Switch { .. })).unwrap();
    assert!(last_confirmed < first_switch, "a host was switched before all were prepared");
    let at = switches(&world, Intent::Forward);
    assert_eq!(at.len(), 5);
    assert!(at.iter().all(|t| *t == at[0]), "not at once: {at:?}");
    world.until_state(RolloutState::Completed, 60);
    assert!(on(&world, Side::Green));
    assert!(world.status().hosts.iter().all(|h| h.state == TargetState::Confirmed), "{:?}", world.status().hosts);
    // Without keep_old the old sides run on.
    old_sides_untouched(&world);
}

#[test]
fn the_old_side_serves_until_every_side_is_prepared() -> R {
    let api: ComponentName = "api".parse()?;
    let mut world = sided(3, &observed(), |w| w.slow = ["h3".into()].into());
    world.pass(20);
    assert!(on(&world, Side::Blue) && switches(&world, Intent::Forward).is_empty());
    assert_eq!([1, 3].map(|i| world.state_of(i)), [TargetState::Healthy, TargetState::Probation]);
    let mine = world.sides.get_mut(&(name(3), api.clone())).unwrap();
    mine.sides.iter_mut().find(|s| s.side == Side::Green).unwrap().report.progress = Progress::Healthy;
    world.say_sides(&name(3), &api);
    world.run();
    assert!(on(&world, Side::Green));
    Ok(())
}

#[test]
fn a_side_that_fails_its_smoke_test_moves_no_traffic() {
    let mut world = sided(3, &observed(), |w| w.smoke_fails = ["h2".into()].into());
    world.until_state(RolloutState::RolledBack, 30);
    assert!(world.switched.is_empty() && on(&world, Side::Blue));
    old_sides_untouched(&world);
    assert!((1..=3).all(|i| release_on(&world, i, Side::Green).is_none()));
}

#[test]
fn one_switch_that_fails_takes_all_back() {
    let mut world = sided(4, &observed(), |w| w.switch_fails = ["h3".into()].into());
    world.until_state(RolloutState::RolledBack, 30);
    assert!(world.rollout.reason().contains("h3"), "{}", world.rollout.reason());
    assert!(on(&world, Side::Blue));
    // The one that failed put its traffic back by itself.
    let back: Vec<String> = world
        .journal
        .iter()
        .filter_map(|(_, r)| match r {
            Record::Switch { host, intent: Intent::Back, .. } => Some(host.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(back, ["h1", "h2", "h4"]);
    old_sides_untouched(&world);
    assert!((1..=4).all(|i| release_on(&world, i, Side::Green).is_none()));
}

#[test]
fn a_switch_that_is_stuck_is_told_to_go_back_before_its_side_is_stopped() -> R {
    let api: ComponentName = "api".parse()?;
    let mut world = sided(3, &observed(), |w| w.switch_stuck = ["h2".into()].into());
    world.until("it ends", 30, |w| w.state().is_terminal());
    // Where its traffic is nobody knows: its new side must not be stopped.
    assert_eq!((world.state(), world.state_of(2)), (RolloutState::Mixed, TargetState::RevertFailed));
    assert!(world.rollout.reason().contains("h2"), "{}", world.rollout.reason());
    assert_eq!(release_on(&world, 2, Side::Green), Some(world.new.clone()));
    assert_eq!([1, 3].map(|i| world.state_of(i)), [TargetState::Reverted; 2]);
    // A person mended it and says rollback once more.
    world.switch_stuck.clear();
    world.verb(Verb::Rollback)?;
    world.until_state(RolloutState::RolledBack, 10);
    assert_eq!(world.sides[&(name(2), api)].progress, SwitchProgress::Switched);
    assert!(on(&world, Side::Blue) && release_on(&world, 2, Side::Green).is_none());
    Ok(())
}

#[test]
fn a_manual_switch_waits_for_promote_by_name() -> R {
    let mut world = sided(3, &plan("switch_mode = \"manual\"\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]", ""), |_| {});
    world.until_state(RolloutState::Paused, 10);
    assert!(on(&world, Side::Blue));
    assert_eq!(world.status().waiting_for.as_deref(), Some("person"));
    assert!(world.verb(Verb::Resume).unwrap_err().hint.contains("promote"));
    world.pass(100);
    assert!(switches(&world, Intent::Forward).is_empty());
    world.restart();
    world.pass(3);
    assert_eq!((world.state(), switches(&world, Intent::Forward).len()), (RolloutState::Paused, 0));
    world.verb(Verb::Promote)?;
    assert!(on(&world, Side::Green));
    // Only the switch: what follows is observed.
    assert_eq!(world.state(), RolloutState::Baking);
    world.until_state(RolloutState::Completed, 60);
    Ok(())
}

#[test]
fn a_manual_switch_that_is_never_said_can_be_taken_back() -> R {
    let mut world = sided(3, &plan("switch_mode = \"manual\"", ""), |_| {});
    world.until_state(RolloutState::Paused, 10);
    world.verb(Verb::Rollback)?;
    assert_eq!(world.state(), RolloutState::RolledBack);
    assert!(world.switched.is_empty());
    Ok(())
}

const PERF: &str = "[[perf]]\nmetric = \"latency_p50\"\nmax = \"20ms\"\n";

#[test]
fn the_idle_sides_are_measured_before_traffic_moves() {
    let mut world = sided(3, &plan("bake = \"40s\"", PERF), |_| {});
    world.until("traffic moves", 60, |w| !switches(w, Intent::Forward).is_empty());
    let passed = world.journal.iter().position(|(_, r)| matches!(r, Record::Gate { stage: 0, step: GateStep::Passed, .. })).unwrap();
    let first_switch = world.journal.iter().position(|(_, r)| matches!(r, Record::Switch { .. })).unwrap();
    assert!(passed < first_switch);
    world.until_state(RolloutState::Completed, 60);
}

#[test]
fn idle_sides_that_are_too_slow_never_serve() {
    let mut world = sided(3, &plan("bake = \"40s\"", PERF), |_| {});
    world.load = Box::new(|_, new| Load { latency_ms: if new { 80 } else { 8 }, ..GOOD });
    world.until("it ends", 1_200, |w| w.state().is_terminal());
    assert_eq!(world.state(), RolloutState::RolledBack);
    assert!(world.switched.is_empty(), "{:?}", world.switched);
    old_sides_untouched(&world);
}

#[test]
fn rollback_while_watching_switches_all_back_first_and_then_stops_the_new_sides() -> R {
    let mut world = sided(4, &plan("bake = \"20s\"\nsuccess = [\"error_rate < 0.5%\"]\nkeep_old = \"1h\"", ""), |_| {});
    world.until_state(RolloutState::Watching, 120);
    assert!(on(&world, Side::Green));
    let before = world.journal.len();
    world.verb(Verb::Rollback)?;
    assert!(on(&world, Side::Blue));
    // What it left still finishes what it serves.
    world.pass(4);
    assert!((1..=4).all(|i| release_on(&world, i, Side::Green).is_some()));
    world.until_state(RolloutState::RolledBack, 10);
    assert!(on(&world, Side::Blue));
    old_sides_untouched(&world);
    let later = &world.journal[before..];
    let back: Vec<usize> =
        later.iter().enumerate().filter(|(_, (_, r))| matches!(r, Record::Switch { intent: Intent::Back, .. })).map(|(i, _)| i).collect();
    let stopped = later.iter().position(|(_, r)| matches!(r, Record::Ordered { .. })).unwrap();
    assert_eq!(back.len(), 4);
    assert!(back.iter().all(|i| *i < stopped), "not all at once: {back:?}, the first side was stopped at {stopped}");
    // Of each host: traffic first, then the stop.
    for i in 1..=4 {
        let at = |pick: &dyn Fn(&Record) -> bool| later.iter().position(|(_, r)| pick(r)).unwrap();
        let switched = at(&|r| matches!(r, Record::Switched { host, .. } if *host == name(i)));
        let ordered = at(&|r| matches!(r, Record::Ordered { host, .. } if *host == name(i)));
        assert!(switched < ordered, "h{i}");
    }
    assert!((1..=4).all(|i| release_on(&world, i, Side::Green).is_none()));
    // No fetch, no restart of what served before.
    assert!(
        world
            .sides
            .values()
            .all(|s| s.sides.iter().all(|s| s.side != Side::Blue || s.report.running.as_ref().unwrap().started_at_unix_ms == 1))
    );
    Ok(())
}

#[test]
fn a_trigger_after_the_switch_switches_back_within_a_second() {
    let mut world = sided(4, &observed(), |_| {});
    world.until_state(RolloutState::Baking, 30);
    world.load = Box::new(|_, new| Load { bad: if new { 10 } else { 0 }, ..GOOD });
    world.until_state(RolloutState::RolledBack, 10);
    assert!(on(&world, Side::Blue));
    let tripped = world.at(|r| matches!(r, Record::Tripped { .. })).unwrap();
    let back = switches(&world, Intent::Back);
    assert_eq!(back.len(), 4);
    assert!(back.iter().all(|t| t.since(tripped) <= Millis::from_secs(1)));
}

#[test]
fn rollback_from_completed_works_while_the_old_sides_run() -> R {
    let mut world = sided(3, &observed(), |_| {});
    world.until_state(RolloutState::Completed, 90);
    world.verb(Verb::Rollback)?;
    world.until_state(RolloutState::RolledBack, 10);
    assert!(on(&world, Side::Blue));
    old_sides_untouched(&world);
    Ok(())
}

#[test]
fn after_keep_old_the_old_sides_are_stopped_and_there_is_no_way_back_by_a_switch() -> R {
    let mut world = sided(3, &plan("keep_old = \"60s\"", ""), |_| {});
    world.until_state(RolloutState::Watching, 30);
    world.pass(50);
    assert_eq!(world.state(), RolloutState::Watching);
    old_sides_untouched(&world);
    world.until_state(RolloutState::Completed, 20);
    assert_eq!(world.count(|r| matches!(r, Record::Retired { .. })), 3);
    assert!((1..=3).all(|i| release_on(&world, i, Side::Blue).is_none()));
    assert!(on(&world, Side::Green));
    for refused in [world.verb(Verb::Rollback).unwrap_err(), world.declare("data-corruption").unwrap_err()] {
        assert!(refused.hint.contains("keep_old"), "{refused}");
    }
    assert_eq!(world.state(), RolloutState::Completed);
    // And not after a restart either.
    let journal = world.journal.clone();
    let mut folded = Rollout::fold("r1".parse()?, journal).unwrap();
    assert!(folded.handle(world.now, Event::Said { verb: Verb::Rollback, by: "ops", reason: "" }).is_err());
    Ok(())
}

#[test]
fn a_first_install_is_switched_to_and_a_failed_one_is_removed() {
    let first = |set: fn(&mut World)| {
        let setup = Setup { hosts: 3, components: vec!["api"], first_install: true, drill: false };
        World::begin(setup, &plan("bake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]", ""), set)
    };
    let mut world = first(|_| {});
    world.until_state(RolloutState::Completed, 90);
    assert!(on(&world, Side::Blue), "{:?}", world.active());
    let mut world = first(|w| w.switch_fails = ["h2".into()].into());
    world.until_state(RolloutState::RolledBack, 30);
    assert!((1..=3).all(|i| release_on(&world, i, Side::Blue).is_none()));
}

#[test]
fn a_host_lost_in_the_switch_takes_all_back_and_is_named() {
    let mut world = sided(3, &plan("switch_mode = \"manual\"\n[limits]\nhealthy_deadline = \"20s\"", ""), |_| {});
    world.until_state(RolloutState::Paused, 10);
    world.lose(2);
    world.verb(Verb::Promote).unwrap();
    world.until("all others are back", 40, |w| [1, 3].iter().all(|i| w.state_of(*i) == TargetState::Reverted));
    world.until("it ends", 90, |w| w.state().is_terminal());
    assert_eq!((world.state(), world.state_of(2)), (RolloutState::Mixed, TargetState::Unreachable));
    assert!(world.rollout.reason().contains("h2"), "{}", world.rollout.reason());
    // It returns and hears where traffic shall be: where it was.
    world.find(2);
    world.pass(1);
    assert!(on(&world, Side::Blue));
}

#[test]
fn a_host_that_was_switched_and_is_lost_on_the_way_back_ends_it_all_the_same() -> R {
    let mut world = sided(3, &plan("bake = \"40s\"\n[limits]\nhealthy_deadline = \"20s\"", ""), |_| {});
    world.until_state(RolloutState::Baking, 30);
    world.lose(2);
    world.verb(Verb::Rollback)?;
    world.until("it ends", 120, |w| w.state().is_terminal());
    assert_eq!((world.state(), world.state_of(2)), (RolloutState::Mixed, TargetState::Unreachable));
    assert_eq!([1, 3].map(|i| world.state_of(i)), [TargetState::Reverted; 2]);
    world.find(2);
    world.pass(1);
    assert!(on(&world, Side::Blue));
    Ok(())
}

#[test]
fn a_newer_rollout_ends_the_watch_and_the_old_sides_stay() -> R {
    let mut world = sided(3, &plan("keep_old = \"1h\"", ""), |_| {});
    world.until_state(RolloutState::Watching, 30);
    world.handle(Event::Superseded(&"r2".parse()?))?;
    assert_eq!(world.state(), RolloutState::Completed);
    world.pass(5);
    old_sides_untouched(&world);
    Ok(())
}

#[test]
fn a_prepared_side_that_dies_before_the_switch_takes_all_back() -> R {
    let api: ComponentName = "api".parse()?;
    let mut world = sided(3, &plan("switch_mode = \"manual\"", ""), |_| {});
    world.until_state(RolloutState::Paused, 10);
    let mine = world.sides.get_mut(&(name(2), api.clone())).unwrap();
    let green = &mut mine.sides.iter_mut().find(|s| s.side == Side::Green).unwrap().report;
    (green.service, green.running) = (report::ServiceState::Stopped, None);
    for _ in 0..15 {
        world.say_sides(&name(2), &api);
        world.run();
        world.pass(1);
    }
    assert_eq!(world.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
    assert!(world.rollout.reason().contains("h2") && world.switched.is_empty());
    Ok(())
}

#[test]
fn a_drill_switches_there_and_back() {
    let setup = Setup { hosts: 3, components: vec!["api"], first_install: false, drill: true };
    let mut world = World::begin(setup, &observed(), |_| {});
    world.until_state(RolloutState::RolledBack, 30);
    assert!(world.journal.iter().any(|(_, r)| matches!(r, Record::Drilled { passed: true, .. })));
    assert_eq!(world.switched, [(name(1), Side::Green), (name(1), Side::Blue)]);
    old_sides_untouched(&world);
}

fn stories() -> Vec<(&'static str, World)> {
    let manual = |w: &mut World| {
        w.until_state(RolloutState::Paused, 10);
        w.verb(Verb::Promote).unwrap();
    };
    let mut promoted = sided(2, &plan("switch_mode = \"manual\"\nbake = \"20s\"", ""), |_| {});
    manual(&mut promoted);
    let mut bad = sided(2, &observed(), |_| {});
    bad.load = Box::new(|_, new| Load { bad: if new { 10 } else { 0 }, ..GOOD });
    vec![
        ("good", sided(3, &observed(), |_| {})),
        ("kept", sided(2, &plan("keep_old = \"20s\"", ""), |_| {})),
        ("perf", sided(2, &plan("bake = \"20s\"", PERF), |_| {})),
        ("one fails", sided(3, &observed(), |w| w.switch_fails = ["h3".into()].into())),
        ("smoke", sided(3, &observed(), |w| w.smoke_fails = ["h2".into()].into())),
        ("bad", bad),
        ("promoted", promoted),
    ]
}

fn to_the_end(world: &mut World) -> RolloutState {
    world.until("an end", 600, |w| w.state().is_terminal());
    world.state()
}

#[test]
fn the_fold_of_what_is_durable_is_the_machine_at_every_point() {
    for (story, mut world) in stories() {
        world.snapshots = Some(vec![(world.journal.len(), journaled(&world.rollout))]);
        to_the_end(&mut world);
        for (records, live) in world.snapshots.take().unwrap() {
            let folded = Rollout::fold("r1".parse().unwrap(), world.journal[..records].iter().cloned()).unwrap();
            assert_eq!(journaled(&folded), live, "{story}: after {records} records, the last {:?}", world.journal[records - 1]);
        }
    }
}

#[test]
fn a_restart_at_any_record_comes_to_the_same_end() {
    for which in 0..stories().len() {
        let (story, mut undisturbed) = stories().remove(which);
        let end = to_the_end(&mut undisturbed);
        let active = undisturbed.active();
        for cut in 1..undisturbed.journal.len() {
            let (_, mut world) = stories().remove(which);
            if cut < world.journal.len() && story == "promoted" {
                // Its hosts are further already.
                continue;
            }
            world.kill_at = Some(cut);
            world.until("the record", 600, |w| w.killed || w.journal.len() >= cut);
            let last = format!("{:?}", world.journal[cut - 1].1);
            world.restart_at(cut);
            // A person who was not answered says it again.
            for _ in 0..30 {
                if world.state() == RolloutState::Paused && world.status().waiting_for.is_some() {
                    world.verb(Verb::Promote).unwrap();
                }
                world.pass(1);
            }
            assert_eq!(to_the_end(&mut world), end, "{story}, cut at {cut} after {last}: {}", world.rollout.reason());
            assert_eq!(world.active(), active, "{story}, cut at {cut} after {last}");
        }
    }
}
