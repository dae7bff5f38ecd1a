//! Health past the first pass: hosts that were confirmed and go bad.

use super::*;

fn told(world: &mut World, i: usize, change: impl Fn(&mut ComponentReport)) {
    let api: ComponentName = "api".parse().unwrap();
    change(world.hosts.get_mut(&(name(i), api.clone())).unwrap());
    world.say(&name(i), &api);
    world.run();
}

#[test]
fn a_crash_loop_in_the_bake_is_counted_called_back_and_over_the_budget_all_go_back() {
    let mut world = baking();
    for start in 1..=3 {
        assert_eq!(world.state(), RolloutState::Baking, "after {} starts", start - 1);
        let now = world.now.0;
        told(&mut world, 2, |r| r.running = Some(running_since(b"2", now)));
        world.pass(2);
    }
    assert_eq!(world.state(), RolloutState::RolledBack);
    let h2 = world.status().hosts.into_iter().find(|h| h.host == name(2)).unwrap();
    assert_eq!(h2.cause, Some(Cause::CrashLoop));
    assert!(world.rollout.reason().contains("h2") && world.rollout.reason().contains("crash-loop"), "{}", world.rollout.reason());
}

#[test]
fn restarts_that_a_report_counts_are_a_crash_loop_too() {
    let mut world = baking();
    told(&mut world, 2, |r| r.restarts = 0);
    told(&mut world, 2, |r| r.restarts = 3);
    assert_eq!(world.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
    // Three within the time between the report that confirmed it and the next.
    let mut world = baking();
    told(&mut world, 2, |r| r.restarts = 3);
    assert_eq!(world.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
}

#[test]
fn two_starts_are_no_crash_loop_nor_are_three_in_an_hour() {
    let mut world = World::new(4, &["api"], &big_bang());
    world.until_state(RolloutState::Watching, 90);
    for _ in 0..4 {
        let now = world.now.0;
        told(&mut world, 2, |r| r.running = Some(running_since(b"2", now)));
        world.pass(320);
    }
    assert_eq!(world.state(), RolloutState::Watching, "{}", world.rollout.reason());
}

fn broken(change: impl Fn(&mut ComponentReport) + Copy) -> World {
    let mut world = baking();
    told(&mut world, 3, change);
    world.pass(5);
    told(&mut world, 3, change);
    assert_eq!(world.state(), RolloutState::Baking, "a restart takes that long");
    world.pass(6);
    told(&mut world, 3, change);
    world
}

#[test]
fn another_executable_than_the_assigned_one_is_called_back() {
    let world = broken(|r| r.running.as_mut().unwrap().sha256 = Some(Digest::of(b"something else")));
    assert_eq!(world.state(), RolloutState::RolledBack);
    assert!(world.rollout.reason().contains("another executable"), "{}", world.rollout.reason());
}

#[test]
fn a_service_that_stopped_is_called_back() {
    let world = broken(|r| (r.running, r.service) = (None, ServiceState::Stopped));
    assert_eq!(world.state(), RolloutState::RolledBack);
    assert!(world.rollout.reason().contains("does not run"), "{}", world.rollout.reason());
}

#[test]
fn changed_files_are_called_back() {
    let world = broken(|r| r.service = ServiceState::Drifted);
    assert_eq!(world.state(), RolloutState::RolledBack);
    assert!(world.rollout.reason().contains("drifted"), "{}", world.rollout.reason());
}

#[test]
fn a_service_that_stopped_for_a_moment_is_not() {
    let mut world = baking();
    told(&mut world, 3, |r| r.service = ServiceState::Drifted);
    world.pass(5);
    told(&mut world, 3, |r| r.service = ServiceState::Running);
    world.pass(20);
    told(&mut world, 3, |r| r.service = ServiceState::Drifted);
    world.pass(5);
    told(&mut world, 3, |r| r.service = ServiceState::Drifted);
    assert_eq!(world.state(), RolloutState::Baking);
}

#[test]
fn smoke_tests_that_fail_twice_in_a_row_after_they_passed_are_a_relapse() {
    let mut world = baking();
    world.load = Box::new(|host, new| Load { smoke_fails: new && *host == name(3), ..GOOD });
    world.until_state(RolloutState::RolledBack, 5);
    assert!(world.rollout.reason().contains("h3") && world.rollout.reason().contains("smoke"), "{}", world.rollout.reason());
}

#[test]
fn one_failed_round_of_smoke_tests_is_no_relapse() {
    let mut world = baking();
    for _ in 0..5 {
        world.load = Box::new(|_, new| Load { smoke_fails: new, ..GOOD });
        world.pass(1);
        world.load = Box::new(|_, _| GOOD);
        world.pass(1);
    }
    assert_eq!(world.state(), RolloutState::Baking);
}

#[test]
fn a_relapse_within_the_budget_takes_only_that_host_back() {
    let text = big_bang().replace("[limits]", "[limits]\nmax_failed_hosts = 1");
    let mut world = World::new(4, &["api"], &text);
    world.until_state(RolloutState::Baking, 30);
    world.load = Box::new(|host, new| Load { smoke_fails: new && *host == name(3), ..GOOD });
    world.pass(10);
    assert_eq!((world.state(), world.state_of(3)), (RolloutState::Baking, TargetState::Reverted));
    assert_eq!(world.changed(), 3);
    world.until_state(RolloutState::Watching, 60);
}
