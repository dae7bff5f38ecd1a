//! Whatever is said and whenever the controller dies: no trigger is lost, and no gate
//! is gone around.

use proptest::prelude::*;

use super::*;

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
            Step::Lose(i) => {
                world.lose(usize::from(*i));
                // Forgotten over the restart, and gone before it said it again.
                if let Some(due) = owed.as_mut().filter(|o| o.host == *i && o.unheard) {
                    due.by = None;
                }
            }
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
