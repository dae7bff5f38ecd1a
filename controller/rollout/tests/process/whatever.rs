//! Whatever comes in any order, and whenever the controller dies: nothing is ordered
//! before the beginning, nothing goes forward while it is closed, nothing holds up the
//! way back, no task runs twice by itself.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Reversible, idempotent, with an undo; how the attempts of run and undo end.
type AskedTask = (bool, bool, bool, Vec<TaskState>, Vec<TaskState>);

/// What a plan and its environment ask.
#[derive(Clone, Debug)]
struct Asked {
    strategy: u8,
    approvals: Vec<Role>,
    change: Option<(&'static str, &'static str)>,
    /// Lengths of openings and of the gaps before them; none = no window.
    windows: Option<Vec<(u64, u64)>>,
    fit: Fit,
    overrun: bool,
    frozen: bool,
    attest: bool,
    row: Option<RowVerdict>,
    start_by: bool,
    tasks: Vec<AskedTask>,
    bad_host: Option<u8>,
}

/// What can happen.
#[derive(Clone, Debug)]
enum Step {
    Pass(u8),
    Say(Verb),
    Approve(Role, bool),
    Attest,
    Override(Override),
    Freeze(bool),
    Row(RowVerdict),
    Tell,
    Restart,
    Lose(u8),
    Find(u8),
    Errors(u8),
    Finish(TaskState),
    Declare,
}

const OPEN_BACK: u64 = 5;

fn asked() -> impl Strategy<Value = Asked> {
    let role = || prop::sample::subsequence(vec![Role::TechLead, Role::Security], 0..=2);
    let change = prop::sample::select(vec![
        None,
        Some(("standard", "low")),
        Some(("normal", "low")),
        Some(("normal", "high")),
        Some(("emergency", "low")),
    ]);
    let windows = prop::option::weighted(0.7, prop::collection::vec((0..40_u64, 5..80_u64), 1..5));
    let end = || prop::sample::select(vec![TaskState::Done, TaskState::Done, TaskState::Failed, TaskState::Lost, TaskState::Running]);
    let ends = move || prop::collection::vec(end(), 1..4);
    let task = (prop::bool::weighted(0.8), any::<bool>(), prop::bool::weighted(0.8), ends(), ends());
    let rows = prop::option::weighted(0.3, prop::sample::select(vec![RowVerdict::Pass, RowVerdict::Fail]));
    let first = (0..4_u8, role(), change, windows, prop::sample::select(vec![Fit::All, Fit::Stage]), prop::bool::weighted(0.2));
    let second = (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.3),
        rows,
        prop::bool::weighted(0.2),
        prop::collection::vec(task, 0..3),
        prop::option::weighted(0.2, 1..5_u8),
    );
    (first, second).prop_map(|((strategy, approvals, change, windows, fit, overrun), (frozen, attest, row, start_by, tasks, bad_host))| {
        Asked { strategy, approvals, change, windows, fit, overrun, frozen, attest, row, start_by, tasks, bad_host }
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verb = prop::sample::select(Verb::ALL.to_vec());
    let role = prop::sample::select(vec![Role::TechLead, Role::Security, Role::Operations]);
    let what = prop::sample::select(vec![Override::Window, Override::Freeze]);
    let end = prop::sample::select(vec![TaskState::Done, TaskState::Done, TaskState::Failed, TaskState::Lost]);
    let one = prop_oneof![
        12 => (1..15_u8).prop_map(Step::Pass),
        6 => verb.prop_map(Step::Say),
        4 => (role, any::<bool>()).prop_map(|(role, other)| Step::Approve(role, other)),
        2 => Just(Step::Attest),
        1 => what.prop_map(Step::Override),
        3 => any::<bool>().prop_map(Step::Freeze),
        2 => prop::sample::select(vec![RowVerdict::Pass, RowVerdict::Pass, RowVerdict::Fail]).prop_map(Step::Row),
        1 => Just(Step::Tell),
        4 => Just(Step::Restart),
        1 => (1..5_u8).prop_map(Step::Lose),
        2 => (1..5_u8).prop_map(Step::Find),
        1 => (1..5_u8).prop_map(Step::Errors),
        4 => end.prop_map(Step::Finish),
        1 => Just(Step::Declare),
    ];
    prop::collection::vec(one, 1..30)
}

impl Asked {
    fn openings(&self) -> Vec<Opening> {
        let mut from = 0;
        let each = |(gap, length): &(u64, u64)| {
            let opens = from + gap;
            from = opens + length + 1;
            Opening { fit: self.fit, overrun: self.overrun, ..opening(opens, opens + length) }
        };
        self.windows.iter().flatten().map(each).collect()
    }

    fn emergency(&self) -> bool {
        self.change.is_some_and(|(kind, _)| kind == "emergency")
    }

    fn world(&self) -> World {
        let change = self.change.map_or_else(String::new, |(kind, risk)| {
            format!("[change]\nid = \"CR-1\"\ntype = \"{kind}\"\nrisk = \"{risk}\"\nsummary = \"x\"\njustification = \"y\"\n")
        });
        let tables = format!("{}{change}", if self.windows.is_some() { WINDOW } else { "" });
        let plan = match self.strategy {
            0 => format!("{ROLLING}{tables}"),
            1 => canary(&tables),
            manual => blue_green(manual == 3, &tables),
        };
        let start_by = if self.start_by { "start_by = \"1970-01-01T00:18:00Z\"\n" } else { "" };
        let mut process = in_windows(&self.openings(), 20, OPEN_BACK);
        process.around.approvals = self.approvals.clone();
        process.around.approval_valid = Millis::from_secs(150);
        process.around.attest = if self.attest { vec!["security-exit".into()] } else { Vec::new() };
        process.brought.rows = self.row.map(|verdict| row("rollback-target", verdict)).into_iter().collect();
        process.brought.freeze = self.frozen.then(|| "year end".into());
        let tasks = self.tasks.iter().enumerate().map(|(i, (reversible, idempotent, undo, ..))| release::Task {
            reversible: *reversible,
            idempotent: *idempotent,
            undo: undo.then(|| vec!["bin/undo".into()]),
            ..task(&format!("task {i}"))
        });
        process.tasks = tasks.collect();
        fleet_with(4, &format!("{start_by}{plan}"), process, |w| {
            for (i, (.., run, undo)) in self.tasks.iter().enumerate() {
                w.task_ends.insert((i as u16, TaskRun::Run), run.clone());
                w.task_ends.insert((i as u16, TaskRun::Undo), undo.clone());
            }
            w.smoke_fails = self.bad_host.iter().map(|i| format!("h{i}")).collect();
        })
    }

    /// Reads the journal as an auditor does.
    fn audit(&self, world: &World) -> Result<(), TestCaseError> {
        let openings = self.openings();
        let (mut frozen, mut overridden, mut began) = (None, BTreeSet::new(), None);
        let (mut waited, mut running, mut person_back) = (false, false, false);
        let mut attempts: BTreeMap<(u16, TaskRun), (u32, Option<TaskState>)> = BTreeMap::new();
        let mut last = None;
        for (at, record) in &world.journal {
            let (at, emergency) = (*at, self.emergency());
            let covered = openings.iter().any(|o| {
                let inside = o.opens <= at && at < o.closes && (o.overrun || o.closes.since(at) >= Millis::from_secs(OPEN_BACK));
                inside || (o.overrun && began.is_some_and(|b| o.opens <= b && b < o.closes))
            });
            let window_open = self.windows.is_none() || emergency || overridden.contains(&Override::Window) || covered;
            let thawed = frozen.is_none() || emergency || overridden.contains(&Override::Freeze);
            let past_return = attempts.iter().any(|((task, what), (_, end))| {
                let reversible = self.tasks.get(usize::from(*task)).is_none_or(|t| t.0);
                *what == TaskRun::Run && !reversible && *end != Some(TaskState::Failed)
            });
            let forward = |what: &str| {
                prop_assert!(running && (began.is_some() || !waited), "{what} before the beginning");
                prop_assert!(window_open && thawed, "{what} while it was closed at {at:?}, frozen {frozen:?}");
                Ok(())
            };
            match record {
                Record::Freeze { reason } => frozen.clone_from(reason),
                Record::Overridden { what, .. } => drop(overridden.insert(*what)),
                Record::Began => {
                    prop_assert!(began.is_none(), "began twice");
                    prop_assert!(window_open && thawed, "it began while it was closed");
                    began = Some(at);
                }
                Record::Said { verb: Verb::Rollback, .. } => person_back = true,
                Record::State { to, .. } => {
                    waited |= matches!(to, RolloutState::AwaitingApproval | RolloutState::Scheduled);
                    running |= *to == RolloutState::Running;
                    prop_assert!(!(to.is_terminal() && last == Some(*to)), "it ended twice in {to}");
                    last = Some(*to);
                }
                Record::Ordered { phase: Phase::Swap, intent: Intent::Forward, .. } | Record::Switch { intent: Intent::Forward, .. } => {
                    forward("a swap")?;
                }
                Record::Ordered { intent: Intent::Back, .. } | Record::Switch { intent: Intent::Back, .. } => {
                    prop_assert!(person_back || !past_return, "a machine went back past a point of no return");
                }
                Record::Ordered { .. } => prop_assert!(running && (began.is_some() || !waited), "an order before the beginning"),
                Record::TaskOrdered { index, what, attempt, .. } => {
                    let before = attempts.insert((*index, *what), (*attempt, None));
                    match before {
                        None => prop_assert_eq!(*attempt, 1),
                        Some((n, end)) => {
                            prop_assert!(*attempt == n + 1 && end == Some(TaskState::Lost), "attempt {attempt} after {end:?}")
                        }
                    }
                    if *what == TaskRun::Run {
                        forward("a task")?;
                    }
                }
                Record::TaskEnded { index, what, attempt, state, .. } => {
                    let known = attempts.get_mut(&(*index, *what)).filter(|(n, _)| n == attempt);
                    prop_assert!(known.is_some(), "the end of what was not ordered");
                    known.unwrap().1 = Some(*state);
                }
                _ => {}
            }
        }
        let mut begun = world.tasks_run.clone();
        begun.sort_unstable();
        begun.dedup();
        prop_assert_eq!(begun.len(), world.tasks_run.len());
        Ok(())
    }

    fn check(&self, world: &World) -> Result<(), TestCaseError> {
        let (folded, live) = folds(world);
        prop_assert_eq!(folded, live);
        prop_assert!(world.state().is_terminal() || world.rollout.poll_timeout().is_some());
        prop_assert!(!world.rollout.waits_to_begin() || world.orders() == 0);
        self.audit(world)
    }
}

fn perform(world: &mut World, step: &Step, asked: &Asked) {
    match step {
        Step::Pass(secs) => world.pass(u64::from(*secs)),
        Step::Say(verb) => drop(world.verb(*verb)),
        Step::Approve(role, other) => drop(world.approve(*role, if *other { "tom" } else { "eve" })),
        Step::Attest => drop(world.attest("security-exit")),
        Step::Override(what) => drop(world.override_it(*what)),
        Step::Freeze(on) => world.freeze(on.then_some("incident")),
        Step::Row(verdict) => {
            world.handle(Event::Readiness(&[row("rollback-target", *verdict)])).unwrap();
            world.run();
        }
        Step::Tell => {
            let left: Vec<Opening> = asked.openings().into_iter().filter(|o| world.now < o.closes).collect();
            world.handle(Event::Windows(&left)).unwrap();
            world.run();
        }
        Step::Restart => world.restart(),
        Step::Lose(i) => world.lose(usize::from(*i)),
        Step::Find(i) => world.find(usize::from(*i)),
        Step::Errors(i) => world.sample(&name(usize::from(*i)), &Load { bad: 5_000, total: 5_000, ..GOOD }),
        Step::Finish(state) => world.finish_tasks(*state),
        Step::Declare => drop(world.declare("data-corruption")),
    }
}

/// All hosts are there, tasks end, nothing is bad any more.
fn calm(world: &mut World) {
    world.load = Box::new(|_, _| GOOD);
    for i in 1..=4 {
        world.find(i);
    }
    for ends in world.task_ends.values_mut() {
        *ends = vec![TaskState::Done];
    }
    world.finish_tasks(TaskState::Done);
}

fn live(asked: &Asked, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = asked.world();
    asked.check(&world)?;
    for step in steps {
        perform(&mut world, step, asked);
        asked.check(&world)?;
        // Whatever stands against going forward, a way back comes to its end.
        let mut other = world.twin();
        other.freeze(Some("for ever"));
        other.now = other.now + Millis::from_secs(3_000);
        if !other.rollout.waits_to_begin() && other.verb(Verb::Rollback).is_ok() {
            calm(&mut other);
            for _ in 0..60 {
                match other.state() {
                    // Somebody had said that on the way back.
                    RolloutState::Halted => other.verb(Verb::Rollback).unwrap(),
                    state if state.is_terminal() => break,
                    _ => other.pass(1),
                }
            }
            prop_assert!(
                matches!(other.state(), RolloutState::RolledBack | RolloutState::Mixed),
                "the way back was held up: {} {}",
                other.state(),
                other.rollout.reason()
            );
            asked.audit(&other)?;
        }
    }
    // Once everybody is there and answers, it comes to an end.
    calm(&mut world);
    world.freeze(None);
    for _ in 0..600 {
        if world.state().is_terminal() {
            break;
        }
        if world.state() == RolloutState::Paused {
            for verb in [Verb::Ack, Verb::Resume, Verb::Promote] {
                drop(world.verb(verb));
            }
            drop(world.override_it(Override::Window));
        }
        world.pass(1);
    }
    prop_assert!(world.state().is_terminal(), "{} {}", world.state(), world.rollout.reason());
    asked.check(&world)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_goes_around_people_windows_or_tasks(asked in asked(), steps in steps()) {
        live(&asked, &steps)?;
    }
}
