//! Triggers: what each of them does in each state, that nothing turns them off, and
//! health past the first pass.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod world;

use proptest::prelude::*;
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

/// What can happen, in any order.
#[derive(Clone, Debug)]
enum Step {
    Pass(u8),
    Moment,
    Errors(u8),
    Critical(u8),
    Slow(u8),
    Say(Verb),
    Restart,
    Lose(u8),
    Find(u8),
    Quiet(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verb = prop::sample::select(vec![Verb::Pause, Verb::Resume, Verb::Promote, Verb::PromoteAll, Verb::Ack, Verb::Halt]);
    let one = prop_oneof![
        12 => (1..15_u8).prop_map(Step::Pass),
        2 => Just(Step::Moment),
        1 => (1..7_u8).prop_map(Step::Errors),
        1 => (1..7_u8).prop_map(Step::Critical),
        2 => (1..7_u8).prop_map(Step::Slow),
        8 => verb.prop_map(Step::Say),
        3 => Just(Step::Restart),
        1 => (1..7_u8).prop_map(Step::Lose),
        2 => (1..7_u8).prop_map(Step::Find),
        1 => any::<bool>().prop_map(Step::Quiet),
    ];
    prop::collection::vec(one, 1..40)
}

fn canary() -> String {
    let stage = |percent: u8| {
        format!("[[stage]]\nname = \"{percent} %\"\npercent = {percent}\nbake = \"10s\"\nsuccess = [\"error_rate < 0.5%\"]\n")
    };
    let stages: String = [20, 50, 100].into_iter().map(stage).collect();
    let text = format!("{}{stages}", plan("strategy = \"canary\"\nwatch = \"40s\"\non_unreachable = \"skip\""));
    text.replace("after = \"60s\"", "after = \"20s\"").replace("deadline = \"120s\"", "deadline = \"30s\"")
}

/// A bad sample was delivered and must have taken effect.
#[derive(Debug)]
struct Owed {
    host: u8,
    /// None: its evidence was lost with the controller, and the host is away.
    by: Option<Timestamp>,
    /// The controller that heard it is gone, and its host has not said it again:
    /// whoever ends the rollout now does not know.
    unheard: bool,
}

fn check(world: &World, owed: &mut Option<Owed>) -> Result<(), TestCaseError> {
    let back = matches!(world.state(), RolloutState::RollingBack | RolloutState::RolledBack | RolloutState::Mixed);
    if back {
        *owed = None;
    }
    if let Some(due) = owed.as_ref().filter(|o| !(o.unheard && world.state().is_terminal())) {
        prop_assert!(
            due.by.is_none_or(|by| world.now <= by),
            "lost: {due:?}, now {:?} {} {}",
            world.now,
            world.state(),
            world.rollout.reason()
        );
        prop_assert!(due.unheard || !world.state().is_terminal(), "ended in {} and {due:?} was forgotten", world.state());
    }
    prop_assert!(world.state().is_terminal() || world.rollout.poll_timeout().is_some());
    Ok(())
}

/// After a restart it would be the same.
fn check_fold(world: &World) -> Result<(), TestCaseError> {
    let folded = Rollout::fold("r1".parse().unwrap(), world.journal.iter().cloned()).unwrap();
    prop_assert_eq!(journaled(&folded), journaled(&world.rollout));
    Ok(())
}

/// I8, and no end twice.
fn check_journal(world: &World) -> Result<(), TestCaseError> {
    let plan = world.rollout.plan();
    let wave_of = |host: &HostName| plan.waves.iter().find(|w| w.hosts.contains(host)).map_or(0, |w| w.index);
    let (mut past, mut named, mut last) = (Vec::new(), false, None);
    for (_, record) in &world.journal {
        match record {
            Record::Said { verb: Verb::Promote | Verb::PromoteAll, by, .. } => named = !by.is_empty(),
            Record::Gate { stage, step: GateStep::Passed, .. } => past.push(*stage),
            Record::Gate { stage, step: GateStep::Overridden, .. } => {
                prop_assert!(named, "a gate was overridden by nobody");
                past.push(*stage);
            }
            Record::Ordered { host, phase: Phase::Swap, intent: Intent::Forward, .. } => {
                let wave = wave_of(host);
                for (at, stage) in plan.gating.stages.iter().enumerate().filter(|(_, s)| s.after_wave < wave) {
                    prop_assert!(past.contains(&at), "{host} of wave {wave} was admitted before the gate {}", stage.name);
                }
            }
            Record::State { to, .. } => {
                prop_assert!(!(to.is_terminal() && last == Some(*to)), "it ended twice in {to}");
                last = Some(*to);
            }
            _ => {}
        }
    }
    Ok(())
}

fn confirmed_and_heard(world: &World, i: u8) -> bool {
    let heard = !world.deaf.contains(&format!("h{i}"));
    let live = !world.state().is_terminal() && world.state() != RolloutState::RollingBack;
    heard && live && world.state_of(usize::from(i)) == TargetState::Confirmed
}

fn perform(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::new(6, &["api"], &canary());
    world.until("the first host is changed", 30, |w| w.changed() > 0);
    let mut owed: Option<Owed> = None;
    for step in steps {
        match step {
            Step::Pass(secs) => {
                for _ in 0..*secs {
                    world.pass(1);
                    if let Some(due) = owed.as_mut().filter(|o| o.by.is_some() && !world.state().is_terminal()) {
                        due.unheard = false;
                    }
                    check(&world, &mut owed)?;
                }
            }
            Step::Moment => world.now = world.now + Millis(20),
            Step::Errors(i) | Step::Critical(i) | Step::Slow(i) => {
                let load = match step {
                    Step::Errors(_) => bad(),
                    Step::Critical(_) => critical(),
                    _ => slow(),
                };
                let due = !matches!(step, Step::Slow(_)) && confirmed_and_heard(&world, *i);
                world.sample(&name(usize::from(*i)), &load);
                if due && owed.is_none() {
                    owed = Some(Owed { host: *i, by: Some(world.now + Millis::from_secs(1)), unheard: false });
                }
            }
            Step::Say(verb) => drop(world.verb(*verb)),
            Step::Restart => {
                world.restart();
                if let Some(due) = &mut owed {
                    let away = world.deaf.contains(&format!("h{}", due.host));
                    // Its next sample says it again.
                    due.by = (!away).then(|| world.now + Millis::from_secs(2));
                    due.unheard = true;
                }
            }
            Step::Lose(i) => world.lose(usize::from(*i)),
            Step::Find(i) => {
                world.find(usize::from(*i));
                if let Some(due) = owed.as_mut().filter(|o| o.host == *i && o.by.is_none()) {
                    due.by = Some(world.now + Millis::from_secs(2));
                }
            }
            Step::Quiet(quiet) => {
                let total = if *quiet { 0 } else { 100 };
                world.load = Box::new(move |_, _| Load { total, ..GOOD });
            }
        }
        check(&world, &mut owed)?;
        check_fold(&world)?;
    }
    check_journal(&world)?;
    // Whatever happened: it comes to an end once everybody is there, and a person answers.
    world.load = Box::new(|_, _| GOOD);
    for i in 1..=6 {
        world.find(i);
    }
    for _ in 0..400 {
        if world.state().is_terminal() {
            break;
        }
        if world.state() == RolloutState::Paused {
            drop(world.verb(Verb::Resume));
        }
        world.pass(1);
        check(&world, &mut owed)?;
    }
    prop_assert!(world.state().is_terminal(), "{} {}", world.state(), world.rollout.reason());
    check_journal(&world)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_verb_and_no_restart_loses_a_trigger_and_no_gate_is_gone_around(steps in steps()) {
        perform(&steps)?;
    }
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
