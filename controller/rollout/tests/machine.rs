//! The rollout machine against a small fleet that obeys at once: one test per
//! row that matters. The seeded simulation covers the disorder.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod world;

use tidegate_protocol::report::Failure;
use tidegate_protocol::*;
use tidegate_rollout::status::status;
use tidegate_rollout::*;

use world::{R, World, manifest, name, report};

#[test]
fn a_good_release_reaches_every_host_within_its_window() {
    let world = World::new(7, &["api"], "strategy = \"rolling\"\nbatch = 2");
    assert_eq!(world.rollout.state(), RolloutState::Completed);
    assert!(world.everyone_on(&world.new));
    assert_eq!(world.most_in_flight, 2);
    let doc = world.status();
    assert_eq!(doc.waves.len(), 4);
    assert!(doc.waves.iter().all(|w| w.state == record::WaveState::Passed), "{:?}", doc.waves);
    assert!(doc.hosts.iter().all(|h| h.state == TargetState::Confirmed));
}

#[test]
fn one_failed_host_takes_everybody_back() {
    let world = World::with(7, &["api"], "strategy = \"rolling\"\nbatch = 2", |w| w.smoke_fails = ["h5".into()].into());
    assert_eq!(world.rollout.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
    assert!(world.everyone_on(&world.old));
    assert!(world.rollout.reason().contains("h5") && world.rollout.reason().contains("smoke"), "{}", world.rollout.reason());
    assert_eq!(world.state_of(7), TargetState::Skipped);
    assert_eq!(world.state_of(1), TargetState::Reverted);
    // Newest first: the orders back name the confirmations reversed.
    let back: Vec<String> = world
        .journal
        .iter()
        .filter_map(|(_, r)| match r {
            Record::Ordered { host, intent: Intent::Back, .. } => Some(host.to_string()),
            _ => None,
        })
        .collect();
    let mut reversed = back.clone();
    reversed.sort_by(|a, b| b.cmp(a));
    assert_eq!(back, reversed);
}

#[test]
fn at_the_limit_is_allowed_beyond_it_rolls_back() {
    let plan = "strategy = \"rolling\"\nbatch = 3\n[limits]\nmax_failed_hosts = 1";
    let world = World::with(6, &["api"], plan, |w| w.smoke_fails = ["h2".into()].into());
    assert_eq!(world.rollout.state(), RolloutState::Completed);
    assert_eq!(world.state_of(2), TargetState::Reverted);
    assert!(world.rollout.reason().contains("h2"));
    let world = World::with(6, &["api"], plan, |w| w.smoke_fails = ["h2".into(), "h6".into()].into());
    assert_eq!(world.rollout.state(), RolloutState::RolledBack);
    assert!(world.everyone_on(&world.old));
}

#[test]
fn the_budget_counts_hosts_not_components() {
    let plan = "strategy = \"rolling\"\nbatch = 3\n[limits]\nmax_failed_hosts = 1";
    let world = World::with(4, &["api", "web"], plan, |w| w.smoke_fails = ["h2".into()].into());
    assert_eq!(world.rollout.state(), RolloutState::Completed, "{}", world.rollout.reason());
}

#[test]
fn preflight_failure_refuses_before_anything_is_touched() {
    let world = World::with(3, &["api"], "strategy = \"rolling\"", |w| w.preflight_fails = ["h2".into()].into());
    assert_eq!(world.rollout.state(), RolloutState::Refused);
    assert!(world.swaps.is_empty());
    assert!(world.rollout.reason().contains("h2") && world.rollout.reason().contains("disk"));
}

#[test]
fn a_lost_host_is_unreachable_by_a_deadline_and_named() {
    let mut world =
        World::with(3, &["api"], "strategy = \"rolling\"\n[limits]\nhealthy_deadline = \"20s\"", |w| w.slow = ["h2".into()].into());
    assert_eq!(world.state_of(2), TargetState::Probation);
    world.deaf = ["h2".into()].into();
    world.rollout.handle(world.now, Event::Contact(&name(2), false)).unwrap();
    world.pass(16);
    assert_eq!(world.rollout.state(), RolloutState::RollingBack);
    world.pass(60);
    assert_eq!(world.rollout.state(), RolloutState::Mixed);
    assert!(world.rollout.reason().contains("h2"));
    assert_eq!(world.state_of(1), TargetState::Reverted);
    // It returns, hears its standing assignment, and heals; the state stays.
    world.deaf.clear();
    for assignment in world.rollout.assignments(&name(2)) {
        world.obey(&name(2), &assignment);
    }
    world.run();
    assert_eq!((world.rollout.state(), world.state_of(2)), (RolloutState::Mixed, TargetState::Reverted));
    assert!(world.journal.iter().any(|(_, r)| matches!(r, Record::Healed { .. })));
    assert!(world.everyone_on(&world.old));
}

#[test]
fn on_unreachable_skip_leaves_the_host_out() {
    let mut world = World::with(3, &["api"], "strategy = \"rolling\"\non_unreachable = \"skip\"", |w| w.deaf = ["h2".into()].into());
    world.rollout.handle(world.now, Event::Contact(&name(2), false)).unwrap();
    world.pass(20);
    assert_eq!(world.rollout.state(), RolloutState::Completed);
    assert_eq!(world.state_of(2), TargetState::Skipped);
    // Left out within what the plan allows: its wave is not one that never came.
    assert!(world.status().waves.iter().all(|w| w.state == record::WaveState::Passed));
}

#[test]
fn a_revert_that_fails_ends_mixed_and_the_others_go_back() {
    let world = World::with(5, &["api"], "strategy = \"rolling\"\nbatch = 1", |w| {
        w.smoke_fails = ["h4".into()].into();
        w.stuck = ["h2".into()].into();
    });
    assert_eq!(world.rollout.state(), RolloutState::Mixed);
    assert!(world.rollout.reason().contains("h2"), "{}", world.rollout.reason());
    assert_eq!([1, 2, 3].map(|i| world.state_of(i)), [TargetState::Reverted, TargetState::RevertFailed, TargetState::Reverted]);
}

#[test]
fn components_go_in_order_and_come_back_reversed() {
    let world = World::with(3, &["api", "web"], "strategy = \"big-bang\"", |_| {});
    assert_eq!(world.rollout.state(), RolloutState::Completed);
    let order: Vec<String> = world
        .journal
        .iter()
        .filter_map(|(_, r)| match r {
            Record::Ordered { component, phase: Phase::Swap, .. } => Some(component.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["api", "api", "api", "web", "web", "web"]);
    let mut world = world;
    world.verb(Verb::Rollback).unwrap();
    assert_eq!(world.rollout.state(), RolloutState::RolledBack);
    let back: Vec<String> = world
        .journal
        .iter()
        .filter_map(|(_, r)| match r {
            Record::Ordered { component, intent: Intent::Back, .. } => Some(component.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(back, ["web", "web", "web", "api", "api", "api"]);
    assert!(world.everyone_on(&world.old));
}

#[test]
fn pause_admits_nobody_and_confirms_go_on() -> R {
    let mut world = World::with(4, &["api"], "strategy = \"rolling\"\nbatch = 2", |w| w.slow = ["h1".into(), "h2".into()].into());
    world.verb(Verb::Pause)?;
    for i in [1, 2] {
        world.hosts.get_mut(&(name(i), "api".parse()?)).unwrap().progress = Progress::Healthy;
        world.say(&name(i), &"api".parse()?);
        world.run();
    }
    assert_eq!([1, 2, 3].map(|i| world.state_of(i)), [TargetState::Confirmed, TargetState::Confirmed, TargetState::Staged]);
    assert_eq!(world.status().waiting_for.as_deref(), Some("person"));
    world.verb(Verb::Resume)?;
    assert_eq!(world.rollout.state(), RolloutState::Completed);
    assert!(world.verb(Verb::Pause).is_err());
    Ok(())
}

#[test]
fn halt_lets_what_was_ordered_end_and_leaves_hosts_as_they_are() -> R {
    let mut world = World::with(4, &["api"], "strategy = \"rolling\"\nbatch = 1", |w| w.slow = ["h2".into()].into());
    world.verb(Verb::Halt)?;
    assert_eq!(world.rollout.state(), RolloutState::Running);
    world.hosts.get_mut(&(name(2), "api".parse()?)).unwrap().progress = Progress::Healthy;
    world.say(&name(2), &"api".parse()?);
    world.run();
    assert_eq!(world.rollout.state(), RolloutState::Halted);
    assert_eq!([2, 3, 4].map(|i| world.state_of(i)), [TargetState::Confirmed, TargetState::Skipped, TargetState::Skipped]);
    world.verb(Verb::Rollback)?;
    assert_eq!(world.rollout.state(), RolloutState::RolledBack);
    Ok(())
}

#[test]
fn a_lease_that_ran_out_while_the_controller_was_away_is_given_again() -> R {
    let mut world = World::with(2, &["api"], "strategy = \"rolling\"", |w| w.slow = ["h1".into()].into());
    // Killed and back, after the host gave up waiting and reverted.
    let mut rollout = Rollout::fold("r1".parse()?, world.journal.clone()).unwrap();
    assert_eq!(
        status(&rollout).hosts.iter().map(|h| h.state).collect::<Vec<_>>(),
        world.status().hosts.iter().map(|h| h.state).collect::<Vec<_>>()
    );
    rollout.handle(world.now, Event::Returned)?;
    world.rollout = rollout;
    world.slow.clear();
    let component: ComponentName = "api".parse()?;
    let before = report(&component, &world.old.clone());
    let mine = world.hosts.get_mut(&(name(1), component.clone())).unwrap();
    *mine = ComponentReport {
        generation: mine.generation,
        progress: Progress::Reverted,
        failure: Some(Failure { cause: Cause::LeaseExpired, message: "120s".into() }),
        ..before
    };
    for i in [1, 2] {
        world.rollout.handle(world.now, Event::Contact(&name(i), true))?;
        world.say(&name(i), &component);
    }
    world.run();
    assert_eq!(world.rollout.state(), RolloutState::Completed, "{}", world.rollout.reason());
    let generations: Vec<u64> = world.swaps.iter().filter(|(h, _)| *h == name(1)).map(|(_, g)| g.n).collect();
    assert_eq!(generations, [7, 8]);
    Ok(())
}

#[test]
fn the_fold_of_the_journal_is_the_rollout() -> R {
    for fails in [None, Some("h3")] {
        let world = World::with(5, &["api", "web"], "strategy = \"rolling\"\nbatch = 2", |w| {
            w.smoke_fails = fails.into_iter().map(String::from).collect()
        });
        let json: Vec<String> = world.journal.iter().map(|(_, r)| serde_json::to_string(r).unwrap()).collect();
        let read = json.iter().zip(&world.journal).map(|(j, (at, _))| (*at, serde_json::from_str::<Record>(j).unwrap()));
        let folded = Rollout::fold("r1".parse()?, read).unwrap();
        assert_eq!(folded.state(), world.rollout.state());
        for (a, b) in status(&folded).hosts.iter().zip(&world.status().hosts) {
            assert_eq!((&a.host, a.state, a.cause, a.generation, &a.release), (&b.host, b.state, b.cause, b.generation, &b.release));
        }
        for i in 1..=5 {
            assert_eq!(folded.assignments(&name(i)), world.rollout.assignments(&name(i)));
        }
    }
    Ok(())
}

#[test]
fn a_host_that_says_healthy_on_something_else_is_called_back() {
    let mut world = World::with(2, &["api"], "strategy = \"rolling\"", |w| w.slow = ["h1".into()].into());
    let component: ComponentName = "api".parse().unwrap();
    let mine = world.hosts.get_mut(&(name(1), component.clone())).unwrap();
    mine.progress = Progress::Healthy;
    mine.tree_sha256 = Some(Digest::of(b"another tree"));
    world.say(&name(1), &component);
    world.run();
    assert_eq!(world.rollout.state(), RolloutState::RolledBack);
    assert!(world.rollout.reason().contains("tree"), "{}", world.rollout.reason());
}

#[test]
fn a_host_fenced_by_a_higher_generation_is_not_fought() {
    let mut world = World::with(2, &["api"], "strategy = \"rolling\"", |w| w.slow = ["h1".into()].into());
    let component: ComponentName = "api".parse().unwrap();
    world.hosts.get_mut(&(name(1), component.clone())).unwrap().generation = Generation::new(2, 1);
    world.say(&name(1), &component);
    assert!(matches!(world.rollout.state(), RolloutState::RollingBack | RolloutState::Mixed));
    assert!(world.rollout.reason().contains("2.1"), "{}", world.rollout.reason());
}

#[test]
fn min_healthy_that_cannot_be_kept_pauses_for_a_person() {
    let plan = "strategy = \"rolling\"\nbatch = 2\n[limits]\nmax_failed_hosts = 2\nmin_healthy = \"75%\"";
    let world = World::with(4, &["api"], plan, |w| {
        w.smoke_fails = ["h1".into()].into();
        w.stuck = ["h1".into()].into();
    });
    assert_eq!(world.rollout.state(), RolloutState::Paused);
    assert!(world.rollout.reason().contains("min_healthy"));
    assert_eq!((world.status().waiting_for.as_deref(), world.status().paused_by), (Some("person"), None));
    assert_eq!(world.most_in_flight, 1);
}

#[test]
fn the_way_back_is_what_preflight_found() {
    let mut world = World::with(2, &["api"], "strategy = \"rolling\"", |w| {
        // The controller believed in an older report; the host runs something else.
        let (other, _) = manifest("1b", &["api"]);
        let component: ComponentName = "api".parse().unwrap();
        w.hosts.get_mut(&(name(1), component)).unwrap().current = Some(other);
    });
    assert_eq!(world.rollout.state(), RolloutState::Completed);
    let found = world
        .journal
        .iter()
        .any(|(_, r)| matches!(r, Record::Found { origin } if origin.previous.as_ref().unwrap().id.version.as_str() == "1b"));
    assert!(found);
    world.verb(Verb::Rollback).unwrap();
    let target = world.journal.iter().find_map(|(_, r)| match r {
        Record::Ordered { host, intent: Intent::Back, target, .. } if *host == name(1) => target.release().map(|r| r.id.to_string()),
        _ => None,
    });
    assert_eq!(target.as_deref(), Some("shop@1b"));
}

#[test]
fn a_generation_used_by_a_refused_rollout_is_stepped_over() {
    let mut world = World::new(2, &["api"], "strategy = \"rolling\"");
    let component: ComponentName = "api".parse().unwrap();
    world.rollout.fence(world.now, &name(1), &component, Generation::new(1, 9));
    world.verb(Verb::Rollback).unwrap();
    assert_eq!(world.rollout.generation(&name(1), &component), Some(Generation::new(1, 10)));
    assert_eq!(world.rollout.generation(&name(2), &component), Some(Generation::new(1, 8)));
    assert_eq!(world.rollout.state(), RolloutState::RolledBack);
}

#[test]
fn a_host_lost_a_moment_before_the_start_has_its_time() {
    let world = World::new(1, &["api"], "strategy = \"rolling\"");
    let origins = vec![record::Origin {
        host: name(1),
        component: "api".parse().unwrap(),
        generation: Generation::new(1, 8),
        previous: None,
        running_sha256: None,
        tree_sha256: None,
    }];
    for (silent, state) in [(5, RolloutState::Running), (20, RolloutState::Refused)] {
        let lost = world.now - Millis::from_secs(silent);
        let mut rollout =
            Rollout::start("r2".parse().unwrap(), world.rollout.plan().clone(), origins.clone(), "ops", |_| Some(lost), world.now);
        rollout.handle(world.now + Millis(600), Event::Timeout).unwrap();
        assert_eq!(rollout.state(), state);
    }
}

#[test]
fn a_rollback_said_while_halting_takes_everybody_back() -> R {
    let mut world = World::with(4, &["api"], "strategy = \"rolling\"\nbatch = 1", |w| w.slow = ["h2".into()].into());
    world.verb(Verb::Halt)?;
    assert!(world.verb(Verb::Pause).unwrap_err().hint.contains("halted"));
    world.verb(Verb::Rollback)?;
    assert_eq!(world.rollout.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
    assert!(world.everyone_on(&world.old));
    Ok(())
}

#[test]
fn a_failure_while_halting_still_rolls_back() -> R {
    let plan = "strategy = \"rolling\"\nbatch = 2\n";
    let mut world = World::with(4, &["api"], plan, |w| w.slow = ["h1".into(), "h2".into()].into());
    world.verb(Verb::Halt)?;
    let api: ComponentName = "api".parse()?;
    let failed = Some(Failure { cause: Cause::Smoke, message: "as told".into() });
    let generation = world.hosts[&(name(1), api.clone())].generation;
    let back = ComponentReport { generation, progress: Progress::Reverted, failure: failed, ..report(&api, &world.old) };
    world.hosts.insert((name(1), api.clone()), back);
    world.say(&name(1), &api);
    world.run();
    // Nobody is left in flight by an end that came too early.
    assert_eq!(world.rollout.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
    assert!(world.everyone_on(&world.old));
    Ok(())
}

#[test]
fn the_way_back_keeps_min_healthy_while_a_broken_host_is_on_its_way() -> R {
    let plan = "strategy = \"rolling\"\nbatch = 1\n[limits]\nmin_healthy = 2";
    let mut world = World::with(3, &["api"], plan, |w| w.slow = ["h2".into()].into());
    let api: ComponentName = "api".parse()?;
    let mine = world.hosts.get_mut(&(name(2), api.clone())).unwrap();
    (mine.progress, mine.failure) = (Progress::Reverting, Some(Failure { cause: Cause::Smoke, message: "as told".into() }));
    world.deaf = ["h2".into()].into();
    world.say(&name(2), &api);
    world.run();
    assert_eq!(world.rollout.state(), RolloutState::RollingBack);
    assert_eq!([1, 2].map(|i| world.state_of(i)), [TargetState::Confirmed, TargetState::Reverting]);
    let generation = world.hosts[&(name(2), api.clone())].generation;
    world.hosts.insert((name(2), api.clone()), ComponentReport { generation, progress: Progress::Reverted, ..report(&api, &world.old) });
    world.say(&name(2), &api);
    world.run();
    assert_eq!(world.rollout.state(), RolloutState::RolledBack);
    assert_eq!(world.most_in_flight, 1);
    Ok(())
}

#[test]
fn the_way_back_is_twice_as_wide_as_max_parallel() {
    let width = |plan: &str| World::new(12, &["api"], plan).rollout.plan().components[0].rollback_window;
    assert_eq!(width("strategy = \"rolling\"\nbatch = 2\n[limits]\nmax_parallel = 4"), 8);
    assert_eq!(width("strategy = \"rolling\"\nbatch = 2"), 4);
    assert_eq!(width("strategy = \"rolling\"\nbatch = 2\n[limits]\nrollback_parallel = \"50%\""), 6);
    assert_eq!(width("strategy = \"big-bang\"\nmax_hosts = 20"), 12);
}

#[test]
fn a_pause_says_whether_somebody_attends_to_it() -> R {
    let mut world = World::with(4, &["api"], "strategy = \"rolling\"", |w| w.slow = ["h1".into()].into());
    world.verb(Verb::Pause)?;
    assert_eq!(world.status().paused_by.as_deref(), Some("ops"));
    assert_eq!(Rollout::fold("r1".parse()?, world.journal.clone()).unwrap().paused_by(), Some("ops"));
    world.verb(Verb::Resume)?;
    assert_eq!(world.status().paused_by, None);
    Ok(())
}

#[test]
fn a_host_given_up_in_its_swap_and_skipped_is_not_swapped_again() -> R {
    let api: ComponentName = "api".parse()?;
    let plan = "strategy = \"rolling\"\non_unreachable = \"skip\"";
    let mut world = World::with(3, &["api"], plan, |w| w.slow = ["h2".into(), "h3".into()].into());
    world.deaf = ["h2".into()].into();
    world.rollout.handle(world.now, Event::Contact(&name(2), false))?;
    world.pass(16);
    assert_eq!([2, 3].map(|i| world.state_of(i)), [TargetState::Unreachable, TargetState::Probation]);
    // It returns while the others go on, and hears that it is to go back.
    world.deaf.clear();
    world.rollout.handle(world.now, Event::Contact(&name(2), true))?;
    for assignment in world.rollout.assignments(&name(2)) {
        world.obey(&name(2), &assignment);
    }
    world.hosts.get_mut(&(name(3), api.clone())).unwrap().progress = Progress::Healthy;
    world.say(&name(3), &api);
    world.run();
    assert_eq!((world.rollout.state(), world.state_of(2)), (RolloutState::Completed, TargetState::Reverted));
    assert_eq!(world.swaps.iter().filter(|(h, _)| *h == name(2)).count(), 1);
    Ok(())
}
