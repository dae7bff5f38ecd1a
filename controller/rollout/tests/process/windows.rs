//! Windows and freezes while it goes forward: they stop admission and nothing else.

use super::*;

/// Open from the beginning for `secs`, and again at 1000 s for long.
fn open_for(secs: u64) -> Process {
    in_windows(&[opening(0, secs), opening(1_000, 9_000)], 10, 5)
}

/// Canary of four hosts that is observed for the first time.
fn baking() -> World {
    let mut world = fleet(4, &canary(WINDOW), open_for(15));
    world.until_state(RolloutState::Baking, 30);
    world
}

/// The same: paused as its window closed, the first host changed.
fn held() -> World {
    let mut world = baking();
    world.until_state(RolloutState::Paused, 120);
    assert!(world.rollout.reason().contains("the window"), "{}", world.rollout.reason());
    assert_eq!(world.changed(), 1);
    world
}

fn swap_orders(world: &World) -> usize {
    world.count(|r| {
        matches!(r, Record::Ordered { phase: Phase::Swap, intent: Intent::Forward, .. } | Record::Switch { intent: Intent::Forward, .. })
    })
}

/// A restart journals that it was one, and changes nothing else.
fn restart_changes_nothing(world: &mut World) {
    for _ in 0..2 {
        let (before, state, reason) = (world.journal.len(), world.state(), world.rollout.reason().to_string());
        world.restart();
        world.pass(2);
        let news: Vec<_> = world.journal[before..]
            .iter()
            .map(|(_, r)| r.clone())
            .filter(|r| !matches!(r, Record::Observed { .. } | Record::Judged { .. }))
            .collect();
        assert_eq!(news, [Record::Returned]);
        assert_eq!((world.state(), world.rollout.reason()), (state, reason.as_str()));
    }
}

#[test]
fn a_window_that_closes_lets_the_gate_observe_and_admits_nobody() {
    let mut world = baking();
    world.freeze(Some("incident"));
    world.pass(3);
    assert_eq!(world.state(), RolloutState::Baking);
    restart_changes_nothing(&mut world);
    world.until_state(RolloutState::Paused, 60);
    assert_eq!(world.gate_steps().last(), Some(&record::GateStep::Passed));
    assert!(world.rollout.reason().contains("a freeze stands: incident"), "{}", world.rollout.reason());
    assert_eq!((world.changed(), swap_orders(&world)), (1, 1));
    assert_eq!(world.status().waiting_for.as_deref(), Some("person"));
    restart_changes_nothing(&mut world);
}

#[test]
fn what_paused_for_a_window_waits_for_a_person() {
    let mut world = held();
    let paused = world.count(|r| matches!(r, Record::State { to: RolloutState::Paused, .. }));
    let refused = world.verb(Verb::Resume).unwrap_err();
    assert!(refused.hint.contains("it opens next 1000-9000") && refused.hint.contains("override ID --what window"), "{refused}");
    assert!(world.verb(Verb::PromoteAll).unwrap_err().hint.contains("override"));
    assert!(world.verb(Verb::Promote).is_err() && world.verb(Verb::Ack).is_err());
    restart_changes_nothing(&mut world);
    // Open again: nobody said so yet, before a restart and after it.
    world.now = at(1_001);
    world.pass(5);
    restart_changes_nothing(&mut world);
    assert_eq!((world.state(), swap_orders(&world)), (RolloutState::Paused, 1));
    assert_eq!(world.count(|r| matches!(r, Record::State { to: RolloutState::Paused, .. })), paused, "said once");
    world.verb(Verb::Resume).unwrap();
    world.until_state(RolloutState::Completed, 120);
    assert!(world.everyone_on(&world.new));
}

#[test]
fn a_word_that_was_journaled_is_not_asked_for_again() {
    let mut world = held();
    world.now = at(1_001);
    let said = world.journal.len() + 1;
    world.kill_at = Some(said);
    world.verb(Verb::Resume).unwrap();
    assert!(matches!(world.journal[said - 1].1, Record::Said { verb: Verb::Resume, .. }));
    world.restart_at(said);
    world.until_state(RolloutState::Completed, 120);
}

#[test]
fn an_override_goes_on_by_name_and_each_covers_its_own() {
    let mut world = held();
    world.freeze(Some("incident"));
    world.override_it(Override::Window).unwrap();
    assert_eq!(world.state(), RolloutState::Paused, "a signature is no resume");
    assert!(world.verb(Verb::Resume).unwrap_err().hint.contains("override ID --what freeze"));
    world.override_it(Override::Freeze).unwrap();
    world.verb(Verb::Resume).unwrap();
    world.until_state(RolloutState::Completed, 120);
    assert!(world.now < at(1_000));
}

#[test]
fn what_a_person_may_say_while_it_is_closed() {
    let mut world = held();
    world.verb(Verb::Pause).unwrap();
    assert_eq!(world.rollout.paused_by(), Some("ops"));
    assert!(world.verb(Verb::Resume).is_err());
    assert_eq!(world.rollout.paused_by(), Some("ops"), "a refused word changes nothing");
    restart_changes_nothing(&mut world);

    let mut world = held();
    world.freeze(Some("incident"));
    world.verb(Verb::Rollback).unwrap();
    assert_eq!(world.state(), RolloutState::RolledBack);
    assert!(world.everyone_on(&world.old));

    let mut world = held();
    world.verb(Verb::Halt).unwrap();
    assert_eq!((world.state(), world.changed()), (RolloutState::Halted, 1));

    let mut world = held();
    world.declare("data-corruption").unwrap();
    assert_eq!(world.state(), RolloutState::RolledBack);
}

#[test]
fn a_refused_resume_ends_no_investigation() {
    let plan = canary("[[rollback]]\nwhen = \"declared data-corruption\"\naction = \"investigate\"\nafter = \"600s\"\n[[window]]\n");
    let mut world = fleet(4, &plan, open_for(15));
    world.until_state(RolloutState::Paused, 120);
    world.declare("data-corruption").unwrap();
    world.verb(Verb::Ack).unwrap();
    let before = world.journal.len();
    assert!(world.verb(Verb::Resume).unwrap_err().hint.contains("override"));
    assert_eq!(world.journal.len(), before);
    world.now = at(1_001).min(world.now + Millis::from_secs(500));
    world.verb(Verb::Rollback).unwrap();
    assert_eq!(world.state(), RolloutState::RolledBack);
}

#[test]
fn triggers_stay_armed_and_the_way_back_knows_no_window() {
    let mut world = held();
    world.freeze(Some("incident"));
    world.sample(&name(1), &Load { bad: 5_000, total: 5_000, ..GOOD });
    world.until_state(RolloutState::RolledBack, 5);
    assert!(world.everyone_on(&world.old));
}

#[test]
fn a_host_in_flight_runs_on_and_is_confirmed() {
    let mut world = fleet_with(3, &format!("{ROLLING}{WINDOW}"), open_for(15), |w| w.slow = ["h2".into()].into());
    assert_eq!((world.state_of(1), world.state_of(2)), (TargetState::Confirmed, TargetState::Probation));
    world.freeze(Some("incident"));
    assert_eq!(world.state(), RolloutState::Paused);
    let key = (name(2), "api".parse().unwrap());
    world.hosts.get_mut(&key).unwrap().progress = Progress::Healthy;
    world.say(&key.0, &key.1);
    world.run();
    assert_eq!((world.state(), world.state_of(2), world.state_of(3)), (RolloutState::Paused, TargetState::Confirmed, TargetState::Staged));
    restart_changes_nothing(&mut world);
    // The last one goes, and then nothing is left that a freeze could hold up.
    world.freeze(None);
    world.verb(Verb::Resume).unwrap();
    assert_eq!(world.state(), RolloutState::Completed);
}

#[test]
fn with_nobody_left_to_admit_it_ends_in_a_freeze() {
    let mut world = fleet_with(1, &format!("{ROLLING}{WINDOW}"), open_for(15), |w| w.slow = ["h1".into()].into());
    world.freeze(Some("incident"));
    assert_eq!(world.state(), RolloutState::Running);
    let key = (name(1), "api".parse().unwrap());
    world.hosts.get_mut(&key).unwrap().progress = Progress::Healthy;
    world.say(&key.0, &key.1);
    world.run();
    assert_eq!(world.state(), RolloutState::Completed);
}

#[test]
fn the_way_back_must_fit_before_each_admission_and_a_stage_where_stages_count() {
    // The first stage is over after about 20 s; 5 s are needed for the way back.
    let by = |fit: Fit, closes: u64| {
        let open = Opening { fit, ..opening(0, closes) };
        let mut world = fleet(4, &canary(WINDOW), in_windows(&[open], 10, 5));
        world.until_state(RolloutState::Baking, 30);
        world.until("the first stage", 60, |w| matches!(w.state(), RolloutState::Running | RolloutState::Paused) || w.changed() > 1);
        (world.changed(), world.now.since(BEGIN).0 / 1_000, world.rollout.reason().to_string())
    };
    let (_, over, _) = by(Fit::All, 10_000);
    // One second less than what the way back takes, and just enough.
    assert_eq!(by(Fit::All, over + 4).0, 1);
    assert_eq!(by(Fit::All, over + 6).0, 4);
    // The second stage is observed for 10 s.
    let (changed, _, reason) = by(Fit::Stage, over + 13);
    assert!(changed == 1 && reason.contains("15s are needed"), "{reason}");
    assert_eq!(by(Fit::Stage, over + 17).0, 4);
}

#[test]
fn one_that_may_overrun_goes_on_past_its_end() {
    for told_again in [false, true] {
        let over = Opening { overrun: true, ..opening(0, 8) };
        let mut world = fleet(4, &canary(WINDOW), in_windows(&[over], 10, 5));
        assert_eq!(world.state(), RolloutState::Running);
        world.until("the end of the window", 20, |w| w.now >= at(9));
        if told_again {
            world.handle(Event::Windows(&[opening(5_000, 6_000)])).unwrap();
            world.restart();
            let before = world.journal.len();
            world.handle(Event::Windows(&[opening(5_000, 6_000)])).unwrap();
            assert_eq!(world.journal.len(), before, "known already");
        }
        assert!(world.changed() < 4);
        world.until_state(RolloutState::Completed, 200);
    }
    // A freeze stops that one too.
    let over = Opening { overrun: true, ..opening(0, 8) };
    let mut world = fleet(4, &canary(WINDOW), in_windows(&[over], 10, 5));
    world.freeze(Some("incident"));
    world.until_state(RolloutState::Paused, 120);
}

#[test]
fn blue_green_prepares_and_does_not_move_traffic_while_it_is_closed() {
    let mut world = fleet(3, &blue_green(false, WINDOW), open_for(100));
    world.freeze(Some("incident"));
    world.until_state(RolloutState::Paused, 60);
    // Open for the sides, closed for the switch.
    world.slow = ["h1".into(), "h2".into(), "h3".into()].into();
    world.freeze(None);
    world.verb(Verb::Resume).unwrap();
    world.freeze(Some("incident"));
    world.slow.clear();
    for i in 1..=3 {
        let key = (name(i), "api".parse().unwrap());
        world.sides.get_mut(&key).unwrap().sides.iter_mut().for_each(|s| {
            if s.report.progress == Progress::Probation {
                s.report.progress = Progress::Healthy;
            }
        });
        world.say_sides(&key.0, &key.1);
    }
    world.run();
    assert!(world.status().hosts.iter().all(|h| h.state == TargetState::Healthy), "prepared: {:?}", world.status().hosts);
    world.pass(5);
    assert_eq!((world.state(), world.switched.len()), (RolloutState::Paused, 0), "{}", world.rollout.reason());
    assert!(world.verb(Verb::Resume).unwrap_err().hint.contains("freeze"));
    restart_changes_nothing(&mut world);
    assert_eq!(world.switched.len(), 0);
    world.freeze(None);
    restart_changes_nothing(&mut world);
    world.verb(Verb::Resume).unwrap();
    world.until_state(RolloutState::Completed, 120);
    assert_eq!(world.active(), [Some(Side::Green); 3]);
}

#[test]
fn blue_green_by_hand_moves_traffic_only_while_it_is_open() {
    let mut world = fleet(2, &blue_green(true, WINDOW), open_for(100));
    world.until_state(RolloutState::Paused, 60);
    assert!(world.rollout.reason().contains("promote"), "{}", world.rollout.reason());
    world.freeze(Some("incident"));
    restart_changes_nothing(&mut world);
    world.verb(Verb::Promote).unwrap();
    assert_eq!((world.state(), world.switched.len()), (RolloutState::Paused, 0));
    assert!(world.rollout.reason().contains("freeze"), "{}", world.rollout.reason());
    restart_changes_nothing(&mut world);
    world.freeze(None);
    world.verb(Verb::Resume).unwrap();
    assert_eq!(world.switched.len(), 2);
    // Traffic is there: a freeze holds up neither the end nor the way back.
    world.freeze(Some("incident"));
    world.verb(Verb::Rollback).unwrap();
    world.until_state(RolloutState::RolledBack, 60);
    assert_eq!(world.active(), [Some(Side::Blue); 2]);
}

#[test]
fn watching_is_not_held_up() {
    let mut world = fleet(4, &canary("").replace("strategy = \"canary\"", "strategy = \"canary\"\nwatch = \"30s\""), Process::default());
    world.until_state(RolloutState::Watching, 120);
    world.freeze(Some("incident"));
    restart_changes_nothing(&mut world);
    assert_eq!(world.state(), RolloutState::Watching);
    world.until_state(RolloutState::Completed, 120);
}
