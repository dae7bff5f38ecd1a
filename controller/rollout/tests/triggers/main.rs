//! Triggers: what each of them does in each state, that nothing turns them off, and
//! health past the first pass.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod investigation;
mod never_lost;
mod vigil;
#[path = "../world/mod.rs"]
mod world;

use tidegate_protocol::report::ServiceState;
use tidegate_protocol::*;
use tidegate_rollout::record::{GateStep, InvestigationStep};
use tidegate_rollout::spec::TriggerAction;
use tidegate_rollout::*;

use world::{GOOD, Load, R, World, journaled, name, running_since};

const ANALYSIS: &str = "[analysis]\ninterval = \"1s\"\nbaseline = \"5s\"\ndeadline = \"120s\"\nerror_deadline = \"60s\"\n";
const SOURCE: &str = "[metrics.error_rate]\nsource = \"probe\"\nurl = \"http://127.0.0.1:8080/\"\nrate = \"100/s\"\n\
    [metrics.meltdowns]\nsource = \"scrape\"\nurl = \"http://127.0.0.1:9100/\"\ncounter = \"meltdowns_total\"\n";
/// Of what can be declared the plan names one.
const TRIGGERS: &str = "[[rollback]]\nwhen = \"error_rate > 1%\"\naction = \"rollback\"\nmin_samples = 300\n\
    [[rollback]]\nwhen = \"latency_p50 > 200% of baseline\"\naction = \"investigate\"\nafter = \"60s\"\n\
    [[rollback]]\nwhen = \"critical_errors > 0\"\naction = \"rollback\"\n\
    [[rollback]]\nwhen = \"meltdowns > 0\"\naction = \"emergency\"\n\
    [[rollback]]\nwhen = \"declared data-corruption\"\naction = \"emergency\"\n";
const LIMITS: &str = "[limits]\nrollback_parallel = 1\nmin_healthy = \"50%\"\n";

fn plan(head: &str) -> String {
    format!("{head}\n{LIMITS}{ANALYSIS}{SOURCE}{TRIGGERS}")
}

fn big_bang() -> String {
    plan("strategy = \"big-bang\"\nbake = \"40s\"\nwatch = \"1h\"\nsuccess = [\"error_rate < 0.1%\"]")
}

fn bad() -> Load {
    Load { bad: 5_000, total: 5_000, ..GOOD }
}

fn slow() -> Load {
    Load { total: 20_000, latency_ms: 90, ..GOOD }
}

fn critical() -> Load {
    Load { critical: 1, ..GOOD }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    BeforeTheFirstSwap,
    Running,
    PausedByAPerson,
    PausedAsked,
    PausedBlind,
    Investigating,
    Baking,
    Watching,
    RollingBack,
    Completed,
    Halted,
    Mixed,
    RolledBack,
    Refused,
}

fn baking() -> World {
    let mut world = World::new(4, &["api"], &big_bang());
    world.until_state(RolloutState::Baking, 30);
    world.pass(5);
    world
}

fn world_at(at: At) -> World {
    match at {
        At::BeforeTheFirstSwap => {
            let mut world = World::new(4, &["api"], &big_bang());
            world.pass(3);
            assert!(!world.rollout.changed_anything());
            world
        }
        At::Running => {
            let mut world = World::with(4, &["api"], &big_bang(), |w| w.slow = ["h4".into()].into());
            world.until("three are changed", 30, |w| w.state_of(4) == TargetState::Probation);
            world.pass(5);
            assert_eq!(world.state(), RolloutState::Running);
            world
        }
        At::Baking => baking(),
        At::PausedByAPerson => {
            let mut world = baking();
            world.verb(Verb::Pause).unwrap();
            world
        }
        At::PausedAsked => {
            let mut world = baking();
            // 0.5 %.
            world.load = Box::new(|_, new| if new { Load { bad: 1, total: 200, ..GOOD } } else { GOOD });
            world.until("asked", 120, |w| w.gate_steps().contains(&GateStep::Asked));
            world
        }
        At::PausedBlind => {
            let mut world = baking();
            world.load = Box::new(|host, _| Load { error: (*host == name(2)).then_some("connection refused"), ..GOOD });
            world.until_state(RolloutState::Paused, 30);
            world
        }
        At::Investigating => {
            let mut world = baking();
            world.sample(&name(2), &slow());
            world.tick(500);
            assert_eq!(world.state(), RolloutState::Paused);
            world
        }
        At::Watching => {
            let mut world = baking();
            world.until_state(RolloutState::Watching, 60);
            world
        }
        At::RollingBack => {
            let mut world = baking();
            world.slow_back = true;
            world.verb(Verb::Rollback).unwrap();
            assert_eq!(world.state(), RolloutState::RollingBack);
            world
        }
        At::Completed => {
            let mut world = world_at(At::Watching);
            world.handle(Event::Superseded(&"r2".parse().unwrap())).unwrap();
            world
        }
        At::Halted => {
            let mut world = baking();
            world.verb(Verb::Halt).unwrap();
            world
        }
        At::Mixed => {
            let mut world = baking();
            world.stuck = ["h1".into()].into();
            world.verb(Verb::Rollback).unwrap();
            world
        }
        At::RolledBack => {
            let mut world = baking();
            world.verb(Verb::Rollback).unwrap();
            world
        }
        At::Refused => {
            let mut world = World::with(4, &["api"], &big_bang(), |w| w.preflight_fails = ["h2".into()].into());
            world.pass(1);
            world
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Rollback,
    Investigate,
    Critical,
    Emergency,
    Declared,
    DeclaredUnknownToThePlan,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wanted {
    /// Stays as it is, and nothing is journaled.
    Off,
    /// Goes back, as wide as the plan says.
    Back,
    /// Goes back, every confirmed host at once.
    AllAtOnce,
    /// Pauses, with a timer.
    Asks,
    /// The person is told that it does not apply.
    Refused,
}

const COLUMNS: [Kind; 6] =
    [Kind::Rollback, Kind::Investigate, Kind::Critical, Kind::Emergency, Kind::Declared, Kind::DeclaredUnknownToThePlan];

#[rustfmt::skip]
const TABLE: [(At, [Wanted; 6]); 14] = {
    use Wanted::{AllAtOnce as E, Asks as I, Back as B, Off as O, Refused as R};
    [
        //                        rollback, investigate, critical, emergency, declared, declared (unnamed)
        (At::BeforeTheFirstSwap, [O, O, O, O, E, E]),
        (At::Running,            [B, I, B, E, E, E]),
        (At::PausedByAPerson,    [B, I, B, E, E, E]),
        (At::PausedAsked,        [B, I, B, E, E, E]),
        (At::PausedBlind,        [B, I, B, E, E, E]),
        (At::Investigating,      [B, O, B, E, E, E]),
        (At::Baking,             [B, I, B, E, E, E]),
        (At::Watching,           [B, I, B, E, E, E]),
        (At::RollingBack,        [O, O, O, E, E, E]),
        (At::Completed,          [O, O, O, O, E, E]),
        (At::Halted,             [O, O, O, O, E, E]),
        (At::Mixed,              [O, O, O, O, E, E]),
        (At::RolledBack,         [O, O, O, O, R, R]),
        (At::Refused,            [O, O, O, O, R, R]),
    ]
};

/// A host that is confirmed in every live state above, and still while the plan's one
/// at a time is on its way back.
const CALM: usize = 2;

fn tripped(world: &World) -> usize {
    world.count(|r| matches!(r, Record::Tripped { .. }))
}

fn confirmed(world: &World) -> Vec<HostName> {
    world.status().hosts.into_iter().filter(|h| h.state == TargetState::Confirmed).map(|h| h.host).collect()
}

#[test]
fn every_trigger_in_every_state_does_what_the_table_says() {
    for (at, row) in TABLE {
        for (kind, wanted) in COLUMNS.into_iter().zip(row) {
            let mut world = world_at(at);
            // Whoever is told to go back does not get there meanwhile.
            world.slow_back = true;
            let (state, trips, kept, ordered) = (world.state(), tripped(&world), confirmed(&world), world.ordered_back().len());
            let mut told = Ok(());
            match kind {
                Kind::Rollback => world.sample(&name(1), &bad()),
                Kind::Investigate => world.sample(&name(1), &slow()),
                Kind::Critical => world.sample(&name(1), &critical()),
                Kind::Emergency => world.sample(&name(CALM), &Load { events: 1, ..GOOD }),
                Kind::Declared => told = world.declare("data-corruption"),
                Kind::DeclaredUnknownToThePlan => told = world.declare("security-incident"),
            }
            let said = world.now;
            world.tick(500);
            world.tick(400);
            let cell = format!("{at:?} x {kind:?}: {} {}", world.state(), world.rollout.reason());
            let back: Vec<(Timestamp, HostName)> = world.ordered_back().split_off(ordered);
            assert_eq!(told.is_err(), wanted == Wanted::Refused, "{cell}");
            match wanted {
                Wanted::Off | Wanted::Refused => {
                    assert_eq!((world.state(), tripped(&world)), (state, trips), "{cell}");
                }
                Wanted::Asks => {
                    assert_eq!((world.state(), tripped(&world)), (RolloutState::Paused, trips + 1), "{cell}");
                    assert!(world.status().triggers.iter().any(|t| t.state == "investigating"), "{cell}");
                    assert_eq!(world.status().waiting_for.as_deref(), Some("person"), "{cell}");
                }
                Wanted::Back => {
                    assert_eq!((world.state(), tripped(&world)), (RolloutState::RollingBack, trips + 1), "{cell}");
                    assert!(!back.is_empty() && back.iter().all(|(at, _)| at.since(said) <= Millis::from_secs(1)), "{cell}: {back:?}");
                    let calm = back.iter().filter(|(_, host)| kept.contains(host)).count();
                    assert_eq!(calm, 1, "{cell}: rollback_parallel is 1, {back:?}");
                }
                Wanted::AllAtOnce => {
                    assert_eq!(tripped(&world), trips + 1, "{cell}");
                    let ends = [RolloutState::RollingBack, RolloutState::RolledBack, RolloutState::Mixed];
                    assert!(ends.contains(&world.state()), "{cell}");
                    assert!(
                        kept.iter().all(|host| back.iter().any(|(at, h)| h == host && at.since(said) <= Millis(500))),
                        "{cell}: {kept:?}, {back:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_declaration_that_nobody_knows_is_refused() {
    let mut world = baking();
    let refused = world.declare("bad-weather").unwrap_err();
    assert!(refused.hint.contains("data-corruption"), "{refused}");
    assert_eq!(world.state(), RolloutState::Baking);
}

#[test]
fn an_emergency_overtakes_a_halt_on_the_way_back() -> R {
    let mut world = world_at(At::RollingBack);
    world.verb(Verb::Halt)?;
    world.declare("data-corruption")?;
    assert!(confirmed(&world).is_empty(), "{:?}", confirmed(&world));
    world.finish_back();
    assert_eq!(world.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
    Ok(())
}

#[test]
fn the_record_says_how_long_the_sample_waited() {
    let mut world = baking();
    world.now = world.now + Millis(10);
    world.sample(&name(1), &bad());
    world.tick(300);
    let waited = world.journal.iter().find_map(|(_, r)| match r {
        Record::Tripped { after_ms, observed, samples, .. } => Some((*after_ms, observed.is_some(), *samples)),
        _ => None,
    });
    let (after_ms, observed, samples) = waited.unwrap();
    assert!(after_ms <= 500 && observed && samples >= 300, "{after_ms} ms, {samples} samples");
}

#[test]
fn a_halt_that_waits_for_hosts_does_not_disarm() -> R {
    let mut world = world_at(At::Running);
    world.verb(Verb::Halt)?;
    assert_eq!(world.state(), RolloutState::Running);
    world.sample(&name(1), &bad());
    world.tick(500);
    assert_eq!(world.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
    assert!(world.everyone_on(&world.old));
    Ok(())
}

#[test]
fn what_came_a_moment_before_a_promote_is_seen_first() -> R {
    let head = "strategy = \"big-bang\"\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]";
    let mut world = World::new(2, &["api"], &plan(head));
    world.until_state(RolloutState::Baking, 30);
    world.pass(5);
    // Too soon after the last look: triggers are not looked at for every sample.
    world.now = world.now + Millis(10);
    world.sample(&name(1), &critical());
    assert_eq!(world.state(), RolloutState::Baking);
    assert!(world.verb(Verb::PromoteAll).is_err());
    assert_eq!(world.state(), RolloutState::RolledBack);
    Ok(())
}
