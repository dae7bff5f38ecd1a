//! Investigations: a timer, one acknowledgement, and what ends them.

use super::*;

fn investigating() -> World {
    let mut world = baking();
    world.load = Box::new(|_, new| Load { latency_ms: if new { 90 } else { 8 }, ..GOOD });
    world.until_state(RolloutState::Paused, 60);
    assert_eq!(tripped(&world), 1);
    world
}

#[test]
fn an_investigation_that_nobody_ends_goes_back_by_its_timer() {
    let mut world = investigating();
    let since = world.now;
    world.until_state(RolloutState::RolledBack, 70);
    assert!(world.now.since(since) >= Millis::from_secs(59));
    assert!(world.rollout.reason().contains("nobody acknowledged"), "{}", world.rollout.reason());
}

#[test]
fn ack_gives_its_time_once_and_a_second_one_is_refused() -> R {
    let mut world = investigating();
    world.pass(50);
    world.verb(Verb::Ack)?;
    let acked = world.now;
    assert!(world.verb(Verb::Ack).unwrap_err().hint.contains("already"));
    world.pass(50);
    assert_eq!(world.state(), RolloutState::Paused);
    world.until_state(RolloutState::RolledBack, 20);
    assert!(world.now.since(acked) >= Millis::from_secs(59));
    Ok(())
}

#[test]
fn an_acknowledged_investigation_is_cleared_once_latency_mends() -> R {
    let mut world = investigating();
    world.verb(Verb::Ack)?;
    world.pass(10);
    assert_eq!(world.state(), RolloutState::Paused);
    world.load = Box::new(|_, _| Load { total: 400, ..GOOD });
    world.until_state(RolloutState::Baking, 50);
    assert_eq!(world.count(|r| matches!(r, Record::Investigation { step: InvestigationStep::Cleared, .. })), 1);
    // What was before it does not count again.
    world.pass(60);
    assert_eq!(tripped(&world), 1);
    assert_eq!(world.state(), RolloutState::Watching);
    Ok(())
}

#[test]
fn a_cleared_investigation_is_not_opened_again_by_a_restart() -> R {
    let mut world = investigating();
    // Most of what each host ever counted is slow.
    world.pass(40);
    world.verb(Verb::Ack)?;
    world.load = Box::new(|_, _| GOOD);
    world.until_state(RolloutState::Baking, 60);
    world.restart();
    world.pass(10);
    assert_eq!(tripped(&world), 1, "{}", world.rollout.reason());
    // But it is armed for what comes.
    world.load = Box::new(|_, _| Load { latency_ms: 90, total: 400, ..GOOD });
    world.until("it trips again", 40, |w| tripped(w) == 2);
    Ok(())
}

#[test]
fn latency_that_mends_without_an_ack_still_waits_for_a_person() {
    let mut world = investigating();
    world.load = Box::new(|_, _| GOOD);
    world.pass(50);
    assert_eq!(world.state(), RolloutState::Paused);
    world.until_state(RolloutState::RolledBack, 20);
}

#[test]
fn an_investigation_and_its_ack_live_through_a_restart() -> R {
    let mut world = investigating();
    world.pass(30);
    world.verb(Verb::Ack)?;
    world.pass(10);
    world.restart();
    assert_eq!(world.state(), RolloutState::Paused);
    assert!(world.verb(Verb::Ack).is_err());
    world.pass(40);
    assert_eq!(world.state(), RolloutState::Paused);
    world.until_state(RolloutState::RolledBack, 20);
    Ok(())
}

#[test]
fn resume_and_promote_do_not_end_an_investigation() {
    let mut world = investigating();
    for verb in [Verb::Resume, Verb::Promote, Verb::PromoteAll] {
        let refused = world.verb(verb).unwrap_err();
        assert!(refused.hint.contains("investigated") && refused.hint.contains("ack"), "{refused}");
    }
    assert_eq!(world.state(), RolloutState::Paused);
}

#[test]
fn a_pause_said_during_an_investigation_outlives_it() -> R {
    let mut world = investigating();
    world.verb(Verb::Pause)?;
    world.verb(Verb::Ack)?;
    world.load = Box::new(|_, _| Load { total: 400, ..GOOD });
    world.until("cleared", 50, |w| w.count(|r| matches!(r, Record::Investigation { step: InvestigationStep::Cleared, .. })) == 1);
    assert_eq!((world.state(), world.rollout.paused_by()), (RolloutState::Paused, Some("ops")));
    world.verb(Verb::Resume)?;
    assert_eq!(world.state(), RolloutState::Baking);
    Ok(())
}

#[test]
fn ack_without_an_investigation_is_refused() {
    let mut world = baking();
    assert!(world.verb(Verb::Ack).is_err());
    world.verb(Verb::Pause).unwrap();
    assert!(world.verb(Verb::Ack).is_err());
}

fn declared_to_be_investigated() -> World {
    let text = big_bang().replace(
        "declared data-corruption\"\naction = \"emergency\"",
        "declared data-corruption\"\naction = \"investigate\"\nafter = \"60s\"",
    );
    let mut world = World::new(2, &["api"], &text);
    world.until_state(RolloutState::Baking, 30);
    world.declare("data-corruption").unwrap();
    assert_eq!(world.state(), RolloutState::Paused);
    assert!(world.verb(Verb::Resume).is_err());
    world.verb(Verb::Ack).unwrap();
    world
}

#[test]
fn who_looked_at_what_was_declared_may_go_on() -> R {
    let mut world = declared_to_be_investigated();
    world.pass(10);
    world.verb(Verb::Resume)?;
    assert_eq!(world.state(), RolloutState::Baking);
    world.pass(10);
    assert_eq!(world.state(), RolloutState::Baking);
    Ok(())
}

#[test]
fn an_investigated_declaration_of_the_plan_waits_for_a_person() {
    let mut world = declared_to_be_investigated();
    // There is nothing to be measured that would end it.
    world.pass(50);
    assert_eq!(world.state(), RolloutState::Paused);
    world.until_state(RolloutState::RolledBack, 20);
    assert!(world.journal.iter().any(|(_, r)| matches!(r, Record::Tripped { action: TriggerAction::Investigate, .. })));
}
