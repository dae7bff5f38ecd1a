//! Gates in a rollout: what is observed, for how long, and what follows from each
//! verdict. How a verdict comes about from numbers is tested beside the judge.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod preflight;
mod restarts;
#[path = "../world/mod.rs"]
mod world;

use std::collections::BTreeMap;

use tidegate_protocol::*;
use tidegate_rollout::gate::Verdict;
use tidegate_rollout::record::{GateStep, Step, WaveState};
use tidegate_rollout::status::explain;
use tidegate_rollout::*;

use world::{GOOD, Load, R, Setup, World, journaled, name};

const SOURCE: &str = "[metrics.error_rate]\nsource = \"probe\"\nurl = \"http://127.0.0.1:8080/\"\nrate = \"100/s\"\n";
const ANALYSIS: &str = "interval = \"1s\"\nbaseline = \"5s\"\ndeadline = \"120s\"\nerror_deadline = \"60s\"\n";
const TRIGGER: &str = "[[rollback]]\nwhen = \"error_rate > 1%\"\naction = \"rollback\"\nmin_samples = 300\n";

/// A plan of one strategy with the source and a short analysis; `[analysis]` keys
/// and further tables follow.
fn plan(head: &str, analysis: &str, tables: &str) -> String {
    format!("{head}\n[analysis]\n{ANALYSIS}{analysis}\n{SOURCE}{TRIGGER}{tables}")
}

fn stages(percents: &[u8]) -> String {
    let stage = |p: &u8| {
        format!("[[stage]]\nname = \"{p} %\"\npercent = {p}\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\", \"critical_errors == 0\"]\n")
    };
    percents.iter().map(stage).collect()
}

fn canary(n: usize, percents: &[u8]) -> World {
    World::new(n, &["api"], &plan("strategy = \"canary\"", "", &stages(percents)))
}

/// Everything at once, judged behind it.
fn big_bang(n: usize, analysis: &str) -> World {
    World::new(n, &["api"], &plan("strategy = \"big-bang\"\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]", analysis, ""))
}

/// In the gray band: neither under 0.1 % nor over 1 %.
fn gray(_: &HostName, new: bool) -> Load {
    // 0.5 % of the requests.
    if new { Load { bad: 1, total: 200, ..GOOD } } else { GOOD }
}

fn quiet(_: &HostName, new: bool) -> Load {
    if new { Load { total: 0, ..GOOD } } else { GOOD }
}

fn until_baking(world: &mut World) {
    world.until_state(RolloutState::Baking, 90);
}

fn until_asked(world: &mut World) {
    until_baking(world);
    world.until("a person is asked", 200, |w| w.gate_steps().contains(&GateStep::Asked));
}

#[test]
fn a_canary_of_twenty_goes_through_its_stages_and_completes() {
    let mut world = canary(20, &[5, 25, 75, 100]);
    for (wave, hosts) in [(1, 1), (2, 5), (3, 15), (4, 20)] {
        world.until("the stage bakes", 60, |w| w.changed() == hosts && w.state() == RolloutState::Baking);
        let opened = world.now;
        assert_eq!(world.status().waves[wave - 1].state, WaveState::Baking, "{:?}", world.status().waves);
        world.until("the gate passes", 60, |w| w.gate_steps().iter().filter(|s| **s == GateStep::Passed).count() == wave);
        assert!(world.now.since(opened) >= Millis::from_secs(39), "stage {wave} was observed for {}", world.now.since(opened));
    }
    world.until_state(RolloutState::Completed, 5);
    assert!(world.everyone_on(&world.new));
    assert_eq!(world.gate_steps(), [GateStep::Opened, GateStep::Passed].repeat(4));
    assert!(world.status().waves.iter().all(|w| w.state == WaveState::Passed), "{:?}", world.status().waves);
    assert!(world.status().gates.iter().all(|g| g.verdict == "pass"), "{:?}", world.status().gates);
}

#[test]
fn a_stage_that_adds_no_host_is_observed_and_judged_all_the_same() {
    // 5 % and 25 % of three hosts are both one host.
    let mut world = canary(3, &[5, 25, 75, 100]);
    world.until_state(RolloutState::Completed, 300);
    assert_eq!(world.gate_steps(), [GateStep::Opened, GateStep::Passed].repeat(4));
    let opened: Vec<Timestamp> =
        world.journal.iter().filter(|(_, r)| matches!(r, Record::Gate { step: GateStep::Opened, .. })).map(|(at, _)| *at).collect();
    assert!(opened.windows(2).all(|w| w[1].since(w[0]) >= Millis::from_secs(40)), "{opened:?}");
    let swaps: Vec<usize> = [1, 2, 3, 4].map(|w| world.status().waves[w - 1].hosts.len()).into();
    assert_eq!(swaps, [1, 0, 1, 1]);
}

#[test]
fn a_stage_without_hosts_can_fail() {
    let mut world = canary(3, &[5, 25, 75, 100]);
    world.until("the second gate", 120, |w| w.gate_steps().iter().filter(|s| **s == GateStep::Opened).count() == 2);
    assert_eq!(world.changed(), 1);
    world.load = Box::new(|_, new| Load { bad: if new { 30 } else { 0 }, ..GOOD });
    world.until_state(RolloutState::RolledBack, 30);
    assert!(world.everyone_on(&world.old));
}

#[test]
fn too_few_samples_are_extended_once_then_a_person_is_asked_then_back() {
    let mut world = canary(20, &[5, 100]);
    world.load = Box::new(quiet);
    until_baking(&mut world);
    let opened = world.now;
    world.until("extended", 60, |w| w.gate_steps().contains(&GateStep::Extended));
    let (extended, first) = (world.now, world.now.since(opened));
    world.until("asked", 60, |w| w.gate_steps().contains(&GateStep::Asked));
    let second = world.now.since(extended);
    assert!((39..=41).contains(&(first.0 / 1_000)) && (39..=41).contains(&(second.0 / 1_000)), "{first} and {second}");
    assert_eq!(world.state(), RolloutState::Paused);
    assert_eq!(world.status().waiting_for.as_deref(), Some("person"));
    assert!(world.rollout.reason().contains("3000 are needed"), "{}", world.rollout.reason());
    assert_eq!(world.verdict(), Some(Verdict::Inconclusive));
    let asked = world.now;
    world.until_state(RolloutState::RolledBack, 130);
    assert!(world.now.since(asked) >= Millis::from_secs(119));
    assert!(world.rollout.reason().contains("nobody decided"), "{}", world.rollout.reason());
    assert!(world.everyone_on(&world.old));
    assert_eq!(world.gate_steps(), [GateStep::Opened, GateStep::Extended, GateStep::Asked]);
    assert_eq!(world.swaps.len(), 1, "the next wave never opened");
}

#[test]
fn the_gray_band_is_inconclusive_and_enough_samples_do_not_make_it_pass() {
    let mut world = big_bang(4, "");
    world.load = Box::new(gray);
    until_asked(&mut world);
    let gate = world.status().gates.into_iter().find(|g| g.name.starts_with("error_rate")).unwrap();
    assert_eq!(gate.verdict, "inconclusive");
    assert!((0.4..0.6).contains(&gate.observed.unwrap()), "{gate:?}");
    assert_eq!(gate.limit, Some(0.1));
    world.until_state(RolloutState::RolledBack, 130);
}

#[test]
fn a_gray_gate_that_clears_up_while_it_is_extended_passes() {
    let mut world = big_bang(4, "");
    world.load = Box::new(quiet);
    until_baking(&mut world);
    world.until("extended", 60, |w| w.gate_steps().contains(&GateStep::Extended));
    world.load = Box::new(|_, _| GOOD);
    world.until_state(RolloutState::Completed, 60);
    assert_eq!(world.gate_steps(), [GateStep::Opened, GateStep::Extended, GateStep::Passed]);
}

#[test]
fn inconclusive_can_be_told_to_pause_at_once() {
    let mut world = big_bang(4, "inconclusive = \"pause\"");
    world.load = Box::new(quiet);
    until_asked(&mut world);
    assert_eq!(world.gate_steps(), [GateStep::Opened, GateStep::Asked]);
    assert_eq!(world.state(), RolloutState::Paused);
}

#[test]
fn inconclusive_can_be_told_to_fail_at_once() {
    let mut world = big_bang(4, "inconclusive = \"fail\"");
    world.load = Box::new(quiet);
    world.until_state(RolloutState::RolledBack, 120);
    assert_eq!(world.gate_steps(), [GateStep::Opened, GateStep::Failed]);
    assert!(world.rollout.reason().contains("inconclusive"), "{}", world.rollout.reason());
}

#[test]
fn resume_of_an_asked_gate_observes_once_more() -> R {
    let mut world = big_bang(4, "");
    world.load = Box::new(quiet);
    until_asked(&mut world);
    world.verb(Verb::Resume)?;
    assert_eq!(world.state(), RolloutState::Baking);
    let resumed = world.now;
    world.until("asked again", 60, |w| w.gate_steps().iter().filter(|s| **s == GateStep::Asked).count() == 2);
    assert!(world.now.since(resumed) >= Millis::from_secs(39));
    assert_eq!(world.state(), RolloutState::Paused);
    // The deadline is that of the second question.
    world.pass(100);
    assert_eq!(world.state(), RolloutState::Paused);
    world.verb(Verb::Resume)?;
    world.load = Box::new(|_, _| GOOD);
    world.until_state(RolloutState::Completed, 60);
    Ok(())
}

#[test]
fn promote_goes_past_one_gate_by_name() -> R {
    let mut world = canary(20, &[5, 25, 100]);
    until_baking(&mut world);
    world.verb(Verb::Promote)?;
    world.until("the next wave bakes", 5, |w| w.changed() == 5 && w.state() == RolloutState::Baking);
    let overridden = world
        .journal
        .iter()
        .any(|(_, r)| matches!(r, Record::Gate { stage: 0, step: GateStep::Overridden, reason, .. } if reason.contains("promote by ops")));
    assert!(overridden);
    assert_eq!(world.status().waves[0].state, WaveState::Overridden);
    // Only that one: the next is observed in full.
    world.pass(30);
    assert_eq!((world.changed(), world.state()), (5, RolloutState::Baking));
    Ok(())
}

#[test]
fn promote_goes_past_an_asked_gate() -> R {
    let mut world = canary(20, &[5, 100]);
    world.load = Box::new(quiet);
    until_asked(&mut world);
    world.verb(Verb::Promote)?;
    world.until("the next wave", 5, |w| w.changed() == 20);
    Ok(())
}

#[test]
fn promote_all_goes_past_every_gate_to_come() -> R {
    let mut world = canary(20, &[5, 25, 75, 100]);
    until_baking(&mut world);
    world.verb(Verb::PromoteAll)?;
    world.until_state(RolloutState::Completed, 5);
    assert_eq!(world.count(|r| matches!(r, Record::Gate { step: GateStep::Overridden, .. })), 4);
    assert!(world.status().waves.iter().all(|w| w.state == WaveState::Overridden), "{:?}", world.status().waves);
    Ok(())
}

#[test]
fn promote_without_a_gate_is_refused_and_says_what_there_is() {
    let mut world = World::with(4, &["api"], &plan("strategy = \"canary\"", "", &stages(&[50, 100])), |w| w.slow = ["h1".into()].into());
    world.until("the first host swaps", 30, |w| !w.swaps.is_empty());
    let refused = world.verb(Verb::Promote).unwrap_err();
    assert!(refused.hint.contains("promote --all"), "{refused}");
}

/// A criterion on a count that nothing else watches: it fails without a trigger.
fn counted(strategy: &str) -> String {
    let tables = "[metrics.crashes]\nsource = \"scrape\"\nurl = \"http://127.0.0.1:9100/\"\ncounter = \"crashes_total\"\n";
    format!("{strategy}\nbake = \"40s\"\nsuccess = [\"crashes == 0\"]\n[analysis]\n{ANALYSIS}\n{TRIGGER}{SOURCE}{tables}")
}

#[test]
fn promote_all_said_before_does_not_cover_a_gate_that_fails() -> R {
    let api: ComponentName = "api".parse()?;
    let mut world = World::with(6, &["api"], &counted("strategy = \"rolling\"\nbatch = 1"), |w| w.slow = ["h2".into()].into());
    // Said while no gate is open.
    world.verb(Verb::PromoteAll)?;
    world.until("the second host swaps", 20, |w| w.swaps.len() == 2);
    let before = world.count(|r| matches!(r, Record::Gate { step: GateStep::Overridden, .. }));
    world.load = Box::new(|_, new| Load { events: u64::from(new), ..GOOD });
    world.pass(5);
    world.hosts.get_mut(&(name(2), api.clone())).unwrap().progress = Progress::Healthy;
    world.say(&name(2), &api);
    world.run();
    world.until_state(RolloutState::RolledBack, 60);
    assert_eq!(world.swaps.len(), 2);
    assert_eq!(world.count(|r| matches!(r, Record::Gate { step: GateStep::Overridden, .. })), before);
    Ok(())
}

#[test]
fn promote_is_refused_where_the_verdict_is_fail() {
    let mut world = World::new(2, &["api"], &counted("strategy = \"big-bang\""));
    until_baking(&mut world);
    world.pass(1);
    // It arrives between two looks: nothing followed from it yet.
    world.now = world.now + Millis(10);
    world.sample(&name(1), &Load { events: 1, ..GOOD });
    assert_eq!(world.state(), RolloutState::Baking);
    let refused = world.verb(Verb::Promote).unwrap_err();
    assert!(refused.hint.contains("fail") && refused.hint.contains("crashes"), "{refused}");
    world.until_state(RolloutState::RolledBack, 5);
}

#[test]
fn promote_is_refused_while_a_source_cannot_be_read() {
    let mut world = big_bang(3, "");
    until_baking(&mut world);
    world.load = Box::new(|_, _| Load { error: Some("connection refused"), ..GOOD });
    world.until_state(RolloutState::Paused, 30);
    for verb in [Verb::Promote, Verb::PromoteAll] {
        let refused = world.verb(verb).unwrap_err();
        assert!(refused.hint.contains("error") && refused.hint.contains("connection refused"), "{refused}");
    }
}

#[test]
fn promote_is_refused_while_the_source_of_a_trigger_cannot_be_read() {
    let head = "strategy = \"big-bang\"\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]";
    let tables = "[[rollback]]\nwhen = \"slow > 5\"\naction = \"rollback\"\n[metrics.slow]\nsource = \"prometheus\"\nurl = \"http://p:9090\"\nquery = \"up\"\n";
    let mut world = World::new(3, &["api"], &plan(head, "", tables));
    for _ in 0..20 {
        world.fetched("slow", Ok(1.0));
        world.pass(1);
    }
    assert_eq!(world.state(), RolloutState::Baking);
    world.until_state(RolloutState::Paused, 20);
    let refused = world.verb(Verb::Promote).unwrap_err();
    assert!(refused.hint.contains("cannot be read"), "{refused}");
}

#[test]
fn a_criterion_beyond_the_limit_of_an_emergency_or_rollback_trigger_fails() {
    // The trigger wants many samples, the criterion fewer: the gate fails by itself.
    let head = "strategy = \"big-bang\"\nbake = \"40s\"\nsuccess = [\"error_rate < 0.5%\"]";
    let tables = "[[rollback]]\nwhen = \"error_rate > 1%\"\naction = \"rollback\"\nmin_samples = 1000000\n";
    let text = format!("{head}\n[analysis]\n{ANALYSIS}{SOURCE}{tables}");
    let mut world = World::new(2, &["api"], &text);
    until_baking(&mut world);
    world.load = Box::new(|_, new| Load { bad: if new { 5 } else { 0 }, ..GOOD });
    world.until_state(RolloutState::RolledBack, 30);
    assert_eq!(world.gate_steps(), [GateStep::Opened, GateStep::Failed]);
    assert!(world.rollout.reason().contains("beyond the rollback limit"), "{}", world.rollout.reason());
    assert_eq!(world.count(|r| matches!(r, Record::Tripped { .. })), 0);
}

#[test]
fn a_source_in_error_pauses_and_goes_on_by_itself_with_the_clock_standing() {
    let mut world = big_bang(3, "");
    until_baking(&mut world);
    world.pass(10);
    world.load = Box::new(|_, _| Load { error: Some("connection refused"), ..GOOD });
    world.until_state(RolloutState::Paused, 30);
    let held = world.now;
    let doc = world.status();
    assert_eq!((doc.waiting_for.as_deref(), doc.paused_by.as_deref()), (None, None));
    assert_eq!(doc.observation.unwrap().until, None);
    assert!(world.rollout.reason().contains("connection refused"), "{}", world.rollout.reason());
    assert!(explain(&world.rollout, world.now).iter().any(|l| l.contains("its clock stands")));
    // Well beyond the bake.
    world.pass(50);
    assert_eq!(world.state(), RolloutState::Paused);
    world.load = Box::new(|_, _| GOOD);
    world.until_state(RolloutState::Baking, 5);
    let stood = world.now.since(held);
    world.until_state(RolloutState::Completed, 60);
    let opened = world.at(|r| matches!(r, Record::Gate { step: GateStep::Opened, .. })).unwrap();
    assert!(world.now.since(opened) >= Millis(40_000 + stood.0), "{} with {stood} on hold", world.now.since(opened));
    let steps = [GateStep::Opened, GateStep::Blind, GateStep::Sighted, GateStep::Passed];
    assert_eq!(world.gate_steps(), steps);
}

#[test]
fn a_source_in_error_for_long_asks_a_person_again_and_again_and_still_goes_on() {
    let mut world = big_bang(3, "");
    until_baking(&mut world);
    world.load = Box::new(|_, _| Load { error: Some("connection refused"), ..GOOD });
    world.until_state(RolloutState::Paused, 30);
    world.pass(65);
    assert_eq!(world.status().waiting_for.as_deref(), Some("person"));
    world.pass(130);
    assert_eq!(world.gate_steps().iter().filter(|s| **s == GateStep::Asked).count(), 3);
    // Neither forward nor back, however long it takes.
    world.pass(200);
    assert_eq!((world.state(), world.changed()), (RolloutState::Paused, 3));
    world.load = Box::new(|_, _| GOOD);
    world.until_state(RolloutState::Completed, 60);
}

#[test]
fn a_source_in_error_while_a_person_is_asked_does_not_reverse() -> R {
    let mut world = big_bang(3, "");
    world.load = Box::new(quiet);
    until_asked(&mut world);
    world.load = Box::new(|_, _| Load { error: Some("connection refused"), ..GOOD });
    world.pass(20);
    assert!(world.gate_steps().contains(&GateStep::Blind));
    // Well beyond the deadline of the question: a blind controller does not reverse.
    world.pass(150);
    assert_eq!((world.state(), world.changed()), (RolloutState::Paused, 3));
    // Looked at by a person: observed once more, but only with eyes open.
    world.verb(Verb::Resume)?;
    assert_eq!(world.state(), RolloutState::Paused);
    world.pass(60);
    assert_eq!(world.state(), RolloutState::Paused);
    world.load = Box::new(|_, _| GOOD);
    world.until_state(RolloutState::Baking, 5);
    let sighted = world.now;
    world.until_state(RolloutState::Completed, 60);
    assert!(world.now.since(sighted) >= Millis::from_secs(39), "the second observation lasted {}", world.now.since(sighted));
    Ok(())
}

#[test]
fn a_persons_pause_stops_the_clock_of_a_bake() -> R {
    let mut world = big_bang(3, "");
    until_baking(&mut world);
    let opened = world.now;
    world.pass(10);
    world.verb(Verb::Pause)?;
    assert_eq!(world.status().paused_by.as_deref(), Some("ops"));
    world.pass(100);
    assert_eq!(world.state(), RolloutState::Paused);
    world.verb(Verb::Resume)?;
    assert_eq!(world.state(), RolloutState::Baking);
    world.pass(25);
    assert_eq!(world.state(), RolloutState::Baking);
    world.until_state(RolloutState::Completed, 10);
    assert!(world.now.since(opened) >= Millis::from_secs(139));
    Ok(())
}

fn watched(bake: &str) -> String {
    plan(&format!("strategy = \"big-bang\"\nbake = \"{bake}\"\nwatch = \"120s\"\nsuccess = [\"error_rate < 0.1%\"]"), "", "")
}

#[test]
fn watching_holds_no_lock_and_ends_completed() {
    let mut world = World::new(3, &["api"], &watched("40s"));
    until_baking(&mut world);
    assert!(world.rollout.holds());
    world.until_state(RolloutState::Watching, 60);
    assert!(!world.rollout.holds());
    let since = world.now;
    world.until_state(RolloutState::Completed, 130);
    assert!(world.now.since(since) >= Millis::from_secs(119));
}

#[test]
fn a_newer_rollout_ends_a_watch() -> R {
    let mut world = World::new(3, &["api"], &watched("40s"));
    world.until_state(RolloutState::Watching, 120);
    world.handle(Event::Superseded(&"r2".parse()?))?;
    assert_eq!(world.state(), RolloutState::Completed);
    assert!(world.rollout.reason().contains("superseded") && world.rollout.reason().contains("r2"), "{}", world.rollout.reason());
    assert!(world.rollout.watches(&name(1)).is_empty());
    Ok(())
}

#[test]
fn a_newer_rollout_ends_nothing_else() -> R {
    let mut world = World::new(3, &["api"], &watched("40s"));
    until_baking(&mut world);
    world.handle(Event::Superseded(&"r2".parse()?))?;
    assert_eq!(world.state(), RolloutState::Baking);
    Ok(())
}

#[test]
fn a_late_failure_in_the_watch_rolls_back() {
    let mut world = World::new(3, &["api"], &watched("40s"));
    world.until_state(RolloutState::Watching, 120);
    world.pass(60);
    world.load = Box::new(|_, new| Load { bad: if new { 20 } else { 0 }, ..GOOD });
    world.until_state(RolloutState::RolledBack, 60);
    assert!(world.everyone_on(&world.old));
}

fn rolling(analysis: &str) -> String {
    plan("strategy = \"rolling\"\nbatch = 1\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]", analysis, "")
}

#[test]
fn rolling_admits_the_next_host_on_a_pass_and_not_before() {
    let mut world = World::new(3, &["api"], &rolling(""));
    world.until("the first host is changed", 20, |w| w.changed() == 1);
    // 100 requests a second, 3000 are needed.
    world.pass(20);
    assert_eq!(world.changed(), 1);
    world.until("the second host", 30, |w| w.changed() >= 2);
    world.until_state(RolloutState::Completed, 60);
    assert_eq!(world.most_in_flight, 1);
}

#[test]
fn rolling_goes_up_the_ladder_where_the_verdict_stays_inconclusive() {
    let mut world = World::new(3, &["api"], &rolling(""));
    world.load = Box::new(quiet);
    world.until("a person is asked", 120, |w| w.gate_steps().contains(&GateStep::Asked));
    assert_eq!((world.changed(), world.state()), (1, RolloutState::Paused));
    assert_eq!(world.gate_steps(), [GateStep::Opened, GateStep::Extended, GateStep::Asked]);
    world.until_state(RolloutState::RolledBack, 130);
}

#[test]
fn promote_in_a_rolling_rollout_covers_the_next_wave_only() -> R {
    let mut world = World::new(4, &["api"], &rolling(""));
    world.load = Box::new(quiet);
    until_baking(&mut world);
    world.verb(Verb::Promote)?;
    world.pass(2);
    assert_eq!((world.changed(), world.state()), (2, RolloutState::Baking));
    world.pass(30);
    assert_eq!(world.changed(), 2);
    Ok(())
}

#[test]
fn a_rolling_rollout_whose_verdict_goes_gray_stops_admitting() -> R {
    let api: ComponentName = "api".parse()?;
    let mut world = World::with(6, &["api"], &rolling(""), |w| w.slow = ["h2".into()].into());
    world.until("the second host swaps", 60, |w| w.swaps.len() == 2);
    world.load = Box::new(gray);
    world.pass(60);
    // It gets there while the verdict on the first one is in the gray band.
    world.hosts.get_mut(&(name(2), api.clone())).unwrap().progress = Progress::Healthy;
    world.say(&name(2), &api);
    world.run();
    world.until("a person is asked", 150, |w| w.gate_steps().contains(&GateStep::Asked));
    assert_eq!(world.swaps.len(), 2);
    Ok(())
}

#[test]
fn a_stage_waits_for_what_a_person_attests() -> R {
    let tables = "[[stage]]\nname = \"one\"\npercent = 50\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]\nattest = [\"no-customer-complaints\"]\n\
                  [[stage]]\nname = \"all\"\npercent = 100\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]\n";
    let mut world = World::new(4, &["api"], &plan("strategy = \"canary\"", "", tables));
    world.until("extended", 120, |w| w.gate_steps().contains(&GateStep::Extended));
    assert_eq!(world.changed(), 2);
    let gate = world.status().gates.into_iter().find(|g| g.name.contains("no-customer-complaints")).unwrap();
    assert_eq!(gate.verdict, "inconclusive");
    assert!(world.handle(Event::Attested { item: "weather", by: "ops", note: "" }).is_err());
    world.handle(Event::Attested { item: "no-customer-complaints", by: "dana", note: "asked support" })?;
    world.until("the next wave", 45, |w| w.changed() == 4);
    world.until_state(RolloutState::Completed, 60);
    assert!(world.status().gates.iter().any(|g| g.name.contains("no-customer-complaints") && g.reason.contains("dana")));
    assert!(world.handle(Event::Attested { item: "no-customer-complaints", by: "dana", note: "" }).is_err());
    Ok(())
}

#[test]
fn one_of_twenty_hosts_that_fails_everything_decides() {
    // Pooled it is under the trigger's limit; the one host is not.
    let head = "strategy = \"big-bang\"\nmax_hosts = 20\nbake = \"40s\"\nsuccess = [\"error_rate < 6%\"]";
    let tables = "[[rollback]]\nwhen = \"error_rate > 50%\"\naction = \"rollback\"\nmin_samples = 300\n";
    let mut world = World::new(20, &["api"], &format!("{head}\n[analysis]\n{ANALYSIS}{SOURCE}{tables}"));
    until_baking(&mut world);
    world.load = Box::new(|host, new| Load { bad: if new && *host == name(13) { 100 } else { 0 }, ..GOOD });
    world.until_state(RolloutState::RolledBack, 30);
    assert!(world.rollout.reason().contains("h13"), "{}", world.rollout.reason());
    let one = world.status().gates.into_iter().find(|g| g.verdict == "fail").unwrap();
    assert_eq!(one.host, Some(name(13)), "{one:?}");
}

#[test]
fn two_components_go_stage_by_stage_in_order_inside_each() {
    let tables = stages(&[25, 100]);
    let mut world = World::new(4, &["api", "web"], &plan("strategy = \"canary\"", "", &tables));
    world.until_state(RolloutState::Completed, 200);
    let order: Vec<String> = world
        .journal
        .iter()
        .filter_map(|(_, r)| match r {
            Record::Ordered { host, component, phase: Phase::Swap, .. } => Some(format!("{component}@{host}")),
            Record::Gate { step: GateStep::Passed, .. } => Some("gate".to_string()),
            _ => None,
        })
        .collect();
    let wanted = ["api@h1", "web@h1", "gate", "api@h2", "api@h3", "api@h4", "web@h2", "web@h3", "web@h4", "gate"];
    assert_eq!(order, wanted);
    let waves: Vec<usize> = world.status().waves.iter().map(|w| w.hosts.len()).collect();
    assert_eq!(waves, [1, 1, 3, 3]);
}

fn drill(plan: &str, set: impl FnOnce(&mut World)) -> World {
    World::begin(Setup { hosts: 3, components: vec!["api"], first_install: false, drill: true }, plan, set)
}

#[test]
fn a_drill_goes_forward_and_back_and_says_how_long_it_took() {
    let mut world = drill(&rolling(""), |_| {});
    world.until_state(RolloutState::RolledBack, 60);
    assert!(world.journal.iter().any(|(_, r)| matches!(r, Record::Drilled { passed: true, .. })));
    assert_eq!(world.swaps.len(), 1);
    assert!(world.everyone_on(&world.old) && world.status().drill);
    assert!(world.gate_steps().is_empty());
}

#[test]
fn a_drill_whose_smoke_test_fails_did_not_pass() {
    let mut world = drill(&rolling(""), |w| w.smoke_fails = ["h1".into()].into());
    world.until_state(RolloutState::RolledBack, 60);
    assert!(world.journal.iter().any(|(_, r)| matches!(r, Record::Drilled { passed: false, .. })));
    assert!(world.everyone_on(&world.old));
}

#[test]
fn cpu_and_memory_are_judged_where_the_plan_says_so() -> R {
    let tables = "[metrics.cpu]\nsource = \"host\"\n";
    let head = "strategy = \"big-bang\"\nbake = \"40s\"\nsuccess = [\"host_cpu < 80%\"]";
    let mut world = World::new(2, &["api"], &plan(head, "", tables));
    until_baking(&mut world);
    for _ in 0..60 {
        for i in [1, 2] {
            let facts = report::HostFacts { cpu_permille: 950, memory_total_bytes: 1_000, ..report::HostFacts::default() };
            world.handle(Event::Facts(&name(i), &facts))?;
        }
        world.pass(1);
    }
    let gate = world.status().gates.into_iter().find(|g| g.name.contains("host_cpu")).unwrap();
    assert_eq!((gate.verdict.as_str(), gate.observed), ("inconclusive", Some(95.0)));
    Ok(())
}
