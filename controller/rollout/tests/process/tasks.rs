//! Tasks: each row of the table in `rollout/tasks.rs`, forward and back, and the
//! same over every restart.

use TaskRun::{Run, Undo};
use TaskState::{Done, Failed, Lost, Running};

use super::*;

fn two() -> Vec<release::Task> {
    vec![task("backup"), task("migrate")]
}

fn runs(world: &World) -> Vec<(u16, TaskRun, u32)> {
    world.tasks_run.clone()
}

fn tasks_before_swaps(world: &World) {
    let place = |pick: fn(&Record) -> bool| world.journal.iter().position(|(_, r)| pick(r));
    let last = world.journal.iter().rposition(|(_, r)| matches!(r, Record::TaskEnded { what: Run, .. })).unwrap();
    let first = place(|r| matches!(r, Record::Ordered { phase: Phase::Swap, .. })).unwrap_or(usize::MAX);
    assert!(last < first);
}

#[test]
fn done_tasks_come_one_after_the_other_and_before_the_first_swap() {
    let world = fleet(2, ROLLING, with_tasks(two()));
    assert_eq!(world.state(), RolloutState::Completed);
    assert_eq!(runs(&world), [(0, Run, 1), (1, Run, 1)]);
    tasks_before_swaps(&world);
    let second = world.journal.iter().position(|(_, r)| matches!(r, Record::TaskOrdered { index: 1, .. })).unwrap();
    assert!(world.journal[..second].iter().any(|(_, r)| matches!(r, Record::TaskEnded { index: 0, state: Done, .. })));
    assert_eq!(world.status().tasks.iter().map(|t| t.state.as_str()).collect::<Vec<_>>(), ["done", "done"]);
    // One that has ended orders nothing.
    assert!(world.rollout.task_orders(&name(1)).is_empty());
}

#[test]
fn undo_comes_in_reverse_once_the_last_host_is_back() {
    let mut world = fleet_with(3, ROLLING, with_tasks(two()), |w| w.smoke_fails = ["h3".into()].into());
    assert_eq!(world.state(), RolloutState::RolledBack, "{}", world.rollout.reason());
    assert_eq!(runs(&world), [(0, Run, 1), (1, Run, 1), (1, Undo, 1), (0, Undo, 1)]);
    let undo = world.journal.iter().position(|(_, r)| matches!(r, Record::TaskOrdered { what: Undo, .. })).unwrap();
    let back = world.journal.iter().rposition(|(_, r)| matches!(r, Record::Host { .. })).unwrap();
    assert!(back < undo);
    // While hosts are on the way, none is undone.
    world = fleet_with(2, &canary(""), with_tasks(two()), |w| w.slow_back = true);
    world.until_state(RolloutState::Baking, 60);
    world.verb(Verb::Rollback).unwrap();
    assert_eq!((world.state(), runs(&world).len()), (RolloutState::RollingBack, 2));
    world.finish_back();
    assert_eq!((world.state(), runs(&world).len()), (RolloutState::RolledBack, 4));
}

#[test]
fn a_rollback_from_completed_undoes_too_and_what_was_never_run_is_left_alone() {
    let mut completed = fleet(2, ROLLING, with_tasks(two()));
    completed.verb(Verb::Rollback).unwrap();
    assert_eq!((completed.state(), runs(&completed).len()), (RolloutState::RolledBack, 4));
    assert!(completed.everyone_on(&completed.old));
    let ends = [((0, Run), vec![Failed])];
    let failed = fleet_with(2, ROLLING, with_tasks(two()), |w| w.task_ends = ends.into());
    assert_eq!((failed.state(), runs(&failed)), (RolloutState::RolledBack, vec![(0, Run, 1)]));
    assert!(failed.rollout.reason().contains("\"backup\" had failed and was not undone"), "{}", failed.rollout.reason());
    assert_eq!((failed.changed(), failed.swaps.len()), (0, 0));
    let ends = [((1, Run), vec![Failed])];
    let second = fleet_with(2, ROLLING, with_tasks(two()), |w| w.task_ends = ends.into());
    assert_eq!((second.state(), runs(&second)), (RolloutState::RolledBack, vec![(0, Run, 1), (1, Run, 1), (0, Undo, 1)]));
    // Without an undo there is nothing to run.
    let plain = release::Task { undo: None, ..task("notify") };
    let mut plain = fleet(2, ROLLING, with_tasks(vec![plain]));
    plain.verb(Verb::Rollback).unwrap();
    assert_eq!((plain.state(), runs(&plain).len()), (RolloutState::RolledBack, 1));
}

#[test]
fn a_failed_undo_makes_it_mixed_and_the_others_are_undone_all_the_same() {
    for how in [Failed, Lost] {
        let mut world = fleet_with(2, ROLLING, with_tasks(two()), |w| w.task_ends = [((1, Undo), vec![how])].into());
        world.verb(Verb::Rollback).unwrap();
        assert_eq!(world.state(), RolloutState::Mixed);
        assert!(world.rollout.reason().contains("undo of task \"migrate\" on h1"), "{}", world.rollout.reason());
        assert_eq!(runs(&world).last(), Some(&(0, Undo, 1)));
        assert!(world.everyone_on(&world.old));
    }
}

#[test]
fn a_lost_task_is_looked_at_by_a_person() {
    let lost = || {
        let world = fleet_with(2, ROLLING, with_tasks(two()), |w| w.task_ends = [((0, Run), vec![Lost, Done])].into());
        assert_eq!((world.state(), runs(&world)), (RolloutState::Paused, vec![(0, Run, 1)]));
        assert_eq!(world.status().waiting_for.as_deref(), Some("person"));
        world
    };
    let mut again = lost();
    again.restart();
    again.pass(20);
    assert_eq!((again.state(), runs(&again).len()), (RolloutState::Paused, 1), "no machine runs it again");
    again.verb(Verb::Resume).unwrap();
    assert_eq!((again.state(), runs(&again)), (RolloutState::Completed, vec![(0, Run, 1), (0, Run, 2), (1, Run, 1)]));

    let mut counts = lost();
    counts.verb(Verb::Promote).unwrap();
    assert_eq!((counts.state(), runs(&counts)), (RolloutState::Completed, vec![(0, Run, 1), (1, Run, 1)]));
    assert!(counts.status().tasks[0].note.as_deref().unwrap().contains("counted as done: promote by ops"));

    let mut back = lost();
    back.verb(Verb::Rollback).unwrap();
    assert_eq!((back.state(), runs(&back)), (RolloutState::RolledBack, vec![(0, Run, 1), (0, Undo, 1)]));

    // Heard of after all.
    for (how, end) in [(Done, RolloutState::Completed), (Failed, RolloutState::RolledBack)] {
        let mut heard = lost();
        heard.finish_tasks(how);
        assert_eq!(heard.state(), end, "{}", heard.rollout.reason());
        assert!(!runs(&heard).contains(&(0, Run, 2)));
    }

    // Frozen meanwhile: nothing is run again before that is over.
    let mut frozen = lost();
    frozen.freeze(Some("incident"));
    assert!(frozen.verb(Verb::Resume).unwrap_err().hint.contains("freeze"));
    assert_eq!(runs(&frozen).len(), 1);
}

#[test]
fn an_idempotent_one_is_run_again_three_times_in_all() {
    let again = || with_tasks(vec![release::Task { idempotent: true, ..task("backup") }]);
    let world_of = |ends: Vec<TaskState>| fleet_with(1, ROLLING, again(), |w| w.task_ends = [((0, Run), ends)].into());
    let twice = world_of(vec![Lost, Done]);
    assert_eq!((twice.state(), runs(&twice)), (RolloutState::Completed, vec![(0, Run, 1), (0, Run, 2)]));
    let mut never = world_of(vec![Lost]);
    assert_eq!((never.state(), runs(&never).len()), (RolloutState::Paused, 3));
    never.verb(Verb::Resume).unwrap();
    assert_eq!((never.state(), runs(&never).len()), (RolloutState::Paused, 4));
    // Its undo as well, and then it is gone past.
    let mut undo = fleet_with(1, ROLLING, again(), |w| w.task_ends = [((0, Undo), vec![Lost])].into());
    undo.verb(Verb::Rollback).unwrap();
    assert_eq!((undo.state(), runs(&undo).len()), (RolloutState::Mixed, 4));
    // Not while it is frozen.
    let mut frozen = fleet_with(1, ROLLING, again(), |w| w.task_ends = [((0, Run), vec![Running, Done])].into());
    frozen.freeze(Some("incident"));
    frozen.finish_tasks(Lost);
    assert_eq!((frozen.state(), runs(&frozen).len()), (RolloutState::Paused, 1), "{}", frozen.rollout.reason());
    frozen.freeze(None);
    frozen.verb(Verb::Resume).unwrap();
    assert_eq!((frozen.state(), runs(&frozen).len()), (RolloutState::Completed, 2));
}

#[test]
fn silent_past_its_deadline_it_is_lost() {
    let running = || fleet_with(1, ROLLING, with_tasks(vec![task("backup")]), |w| w.task_ends = [((0, Run), vec![Running])].into());
    let mut world = running();
    assert_eq!((world.state(), world.status().tasks[0].state.as_str()), (RolloutState::Running, "running"));
    world.now = world.now + Millis::from_secs(3_614);
    world.tick(0);
    assert_eq!(world.state(), RolloutState::Running);
    world.tick(1_000);
    assert_eq!((world.state(), world.status().tasks[0].state.as_str()), (RolloutState::Paused, "lost"));
    // On the way back too.
    let mut world = running();
    world.verb(Verb::Rollback).unwrap();
    assert_eq!((world.state(), runs(&world).len()), (RolloutState::RollingBack, 1), "its end decides");
    world.now = world.now + Millis::from_secs(3_615);
    world.tick(0);
    assert_eq!((world.state(), runs(&world)), (RolloutState::RolledBack, vec![(0, Run, 1), (0, Undo, 1)]));
}

#[test]
fn pause_and_freeze_let_a_running_task_end_and_begin_no_other() {
    let mut world = fleet_with(1, ROLLING, with_tasks(two()), |w| w.task_ends = [((0, Run), vec![Running])].into());
    world.verb(Verb::Pause).unwrap();
    world.finish_tasks(Done);
    assert_eq!((world.state(), runs(&world).len()), (RolloutState::Paused, 1));
    world.freeze(Some("incident"));
    assert!(world.verb(Verb::Resume).unwrap_err().hint.contains("freeze"));
    world.freeze(None);
    world.verb(Verb::Resume).unwrap();
    assert_eq!((world.state(), runs(&world).len()), (RolloutState::Completed, 2));

    let mut frozen = fleet_with(1, ROLLING, with_tasks(two()), |w| w.task_ends = [((0, Run), vec![Running])].into());
    frozen.freeze(Some("incident"));
    assert_eq!(frozen.state(), RolloutState::Running);
    frozen.finish_tasks(Done);
    assert_eq!((frozen.state(), runs(&frozen).len()), (RolloutState::Paused, 1));
    // The way back is nobody's window.
    frozen.verb(Verb::Rollback).unwrap();
    assert_eq!((frozen.state(), runs(&frozen)), (RolloutState::RolledBack, vec![(0, Run, 1), (0, Undo, 1)]));

    // A failure is one in a pause as well.
    let mut failed = fleet_with(1, ROLLING, with_tasks(two()), |w| w.task_ends = [((0, Run), vec![Running])].into());
    failed.verb(Verb::Pause).unwrap();
    failed.finish_tasks(Failed);
    assert_eq!(failed.state(), RolloutState::RolledBack);
}

#[test]
fn halt_waits_for_the_task_that_runs() {
    for (what, how) in [(Run, Done), (Run, Failed), (Run, Lost), (Undo, Done)] {
        let mut world = fleet_with(1, ROLLING, with_tasks(two()), |w| w.task_ends = [((1, what), vec![Running])].into());
        if what == Undo {
            world.verb(Verb::Rollback).unwrap();
        }
        world.verb(Verb::Halt).unwrap();
        assert!(world.rollout.is_live(), "{what:?}");
        let before = runs(&world);
        world.finish_tasks(how);
        assert_eq!((world.state(), runs(&world)), (RolloutState::Halted, before));
        assert!(world.count(|r| matches!(r, Record::TaskEnded { index: 1, what: w, state, .. } if (*w, *state) == (what, how))) == 1);
    }
}

#[test]
fn an_undo_that_began_is_waited_for_whatever_is_heard_of_its_task() {
    let ends = [((0, Run), vec![Lost]), ((0, Undo), vec![Running])];
    let mut world = fleet_with(1, ROLLING, with_tasks(vec![task("backup")]), |w| w.task_ends = ends.into());
    world.verb(Verb::Rollback).unwrap();
    assert_eq!((world.state(), runs(&world).len()), (RolloutState::RollingBack, 2));
    let report = |what, state| TaskReport {
        rollout: "r1".parse().unwrap(),
        index: 0,
        what,
        attempt: 1,
        state,
        note: "late".into(),
        started_at_unix_ms: 1,
        duration_ms: 1,
    };
    world.handle(Event::Task(&name(1), &report(Run, Failed))).unwrap();
    assert_eq!(world.state(), RolloutState::RollingBack);
    world.handle(Event::Task(&name(1), &report(Undo, Failed))).unwrap();
    assert_eq!(world.state(), RolloutState::Mixed);
}

#[test]
fn only_the_attempt_that_was_ordered_is_heard_and_only_from_its_host() {
    let mut world = fleet_with(2, ROLLING, with_tasks(two()), |w| w.task_ends = [((0, Run), vec![Running])].into());
    let good = TaskReport {
        rollout: "r1".parse().unwrap(),
        index: 0,
        what: Run,
        attempt: 1,
        state: Done,
        note: String::new(),
        started_at_unix_ms: 1,
        duration_ms: 1,
    };
    let before = world.journal.len();
    for bad in [
        TaskReport { attempt: 2, ..good.clone() },
        TaskReport { what: Undo, ..good.clone() },
        TaskReport { index: 1, ..good.clone() },
        TaskReport { rollout: "r2".parse().unwrap(), ..good.clone() },
        TaskReport { state: Running, ..good.clone() },
    ] {
        world.handle(Event::Task(&name(1), &bad)).unwrap();
    }
    world.handle(Event::Task(&name(2), &good)).unwrap();
    assert_eq!(world.journal.len(), before);
    world.handle(Event::Task(&name(1), &good)).unwrap();
    assert!(world.journal.len() > before);
    let ended = |w: &World| w.count(|r| matches!(r, Record::TaskEnded { index: 0, .. }));
    world.handle(Event::Task(&name(1), &TaskReport { state: Failed, ..good })).unwrap();
    assert_eq!(ended(&world), 1, "the first word counts");
}

#[test]
fn past_the_point_of_no_return_it_ends_where_it_stands() {
    let no_return = || with_tasks(vec![release::Task { reversible: false, ..task("migrate") }]);
    let backs = |w: &World| w.ordered_back().len();
    // A trigger, with one host in flight: it runs on, and what is seen is written once.
    let mut world = fleet_with(4, &canary(""), no_return(), |w| w.slow = ["h3".into()].into());
    world.until("three are changed", 60, |w| w.status().hosts.iter().filter(|h| h.state == TargetState::Confirmed).count() == 3);
    assert!(world.rollout.assignments(&name(1)).iter().all(|a| !a.reversible));
    for _ in 0..5 {
        world.sample(&name(1), &Load { bad: 5_000, total: 5_000, ..GOOD });
        world.pass(1);
    }
    assert!(world.rollout.is_live());
    assert_eq!(world.count(|r| matches!(r, Record::Tripped { .. })), 1);
    assert_eq!(world.count(|r| matches!(r, Record::Stopping { .. })), 1);
    world.restart();
    let key = (name(3), "api".parse().unwrap());
    world.hosts.get_mut(&key).unwrap().progress = Progress::Healthy;
    world.say(&key.0, &key.1);
    world.run();
    assert_eq!((world.state(), backs(&world), world.changed()), (RolloutState::Halted, 0, 4));
    let reason = world.rollout.reason().to_string();
    assert!(reason.contains("\"migrate\" cannot be taken back") && (1..=4).all(|i| reason.contains(&format!("h{i} (api)"))), "{reason}");
    // What machines and declarations cannot, a person can.
    assert!(world.declare("data-corruption").unwrap_err().hint.contains("rollback"));
    world.verb(Verb::Rollback).unwrap();
    assert_eq!((world.state(), backs(&world)), (RolloutState::RolledBack, 4));
    assert!(runs(&world).contains(&(0, Undo, 1)) && world.everyone_on(&world.old));

    // A failed host.
    let failed = fleet_with(3, ROLLING, no_return(), |w| w.smoke_fails = ["h2".into()].into());
    assert_eq!((failed.state(), backs(&failed)), (RolloutState::Halted, 0));
    // A gate.
    let mut gate = fleet_with(4, &canary(""), no_return(), |w| w.load = Box::new(|_, new| Load { bad: u64::from(new), ..GOOD }));
    gate.until_state(RolloutState::Halted, 200);
    assert_eq!(backs(&gate), 0);
    // A declaration, while it goes.
    let mut declared = fleet(4, &canary(""), no_return());
    declared.until_state(RolloutState::Baking, 60);
    declared.declare("data-corruption").unwrap();
    assert_eq!((declared.state(), backs(&declared)), (RolloutState::Halted, 0));
    // A host that is lost in flight.
    let mut lost = fleet_with(2, ROLLING, no_return(), |w| w.slow = ["h1".into()].into());
    lost.lose(1);
    lost.until_state(RolloutState::Halted, 60);
    assert_eq!(backs(&lost), 0);
    // A confirmed host that does not run any more.
    let mut relapsed = fleet(4, &canary(""), no_return());
    relapsed.until_state(RolloutState::Baking, 60);
    let key = (name(1), "api".parse().unwrap());
    relapsed.hosts.get_mut(&key).unwrap().service = report::ServiceState::Drifted;
    for _ in 0..12 {
        relapsed.say(&key.0, &key.1);
        relapsed.pass(1);
    }
    assert_eq!((relapsed.state(), backs(&relapsed)), (RolloutState::Halted, 0), "{}", relapsed.rollout.reason());
    assert_eq!(relapsed.state_of(1), TargetState::RevertFailed);
    // A later task that fails, and a person's halt overtaken by nothing.
    let tasks = vec![release::Task { reversible: false, ..task("migrate") }, task("index")];
    let later = fleet_with(2, ROLLING, with_tasks(tasks), |w| w.task_ends = [((1, Run), vec![Failed])].into());
    assert_eq!((later.state(), runs(&later).len(), later.swaps.len()), (RolloutState::Halted, 2, 0));
    // Itself: it failed, so nothing was passed.
    let itself = fleet_with(2, ROLLING, no_return(), |w| w.task_ends = [((0, Run), vec![Failed])].into());
    assert_eq!(itself.state(), RolloutState::RolledBack);
    // It cannot be undone, and that is said.
    let never = release::Task { reversible: false, undo: None, ..task("drop") };
    let mut never = fleet(1, ROLLING, with_tasks(vec![never]));
    never.verb(Verb::Rollback).unwrap();
    assert_eq!(never.state(), RolloutState::RolledBack);
    assert!(never.rollout.reason().contains("task \"drop\" cannot be undone"), "{}", never.rollout.reason());
}

/// How a person acts on what they see, each time they look.
type Act = fn(&mut World);

struct Story {
    name: &'static str,
    tasks: Vec<release::Task>,
    ends: Vec<((u16, TaskRun), Vec<TaskState>)>,
    second_host_fails: bool,
    act: Act,
}

impl Story {
    fn begin(&self, kill_at: Option<usize>) -> World {
        fleet_with(2, ROLLING, with_tasks(self.tasks.clone()), |w| {
            w.task_ends = self.ends.iter().cloned().collect();
            w.smoke_fails = if self.second_host_fails { ["h2".into()].into() } else { BTreeSet::new() };
            w.kill_at = kill_at;
        })
    }
}

fn stories() -> Vec<Story> {
    let nothing: Act = |_| {};
    let back: Act = |w| {
        if w.state() == RolloutState::Completed {
            drop(w.verb(Verb::Rollback));
        }
    };
    let resume: Act = |w| {
        if w.state() == RolloutState::Paused {
            drop(w.verb(Verb::Resume));
        }
    };
    let promote: Act = |w| {
        if w.state() == RolloutState::Paused {
            drop(w.verb(Verb::Promote));
        }
    };
    let story = |name, ends, act| Story { name, tasks: two(), ends, second_host_fails: false, act };
    let lost = || vec![((0, Run), vec![Lost, Done])];
    let idempotent = vec![release::Task { idempotent: true, ..task("backup") }, task("migrate")];
    let no_return = vec![task("backup"), release::Task { reversible: false, ..task("migrate") }];
    vec![
        story("done", Vec::new(), nothing),
        story("undone", Vec::new(), back),
        story("failed", vec![((1, Run), vec![Failed])], nothing),
        story("undo failed", vec![((1, Undo), vec![Failed])], back),
        story("lost, again", lost(), resume),
        story("lost, counts", lost(), promote),
        Story { tasks: idempotent, ..story("idempotent", lost(), nothing) },
        Story { second_host_fails: true, ..story("a host fails", Vec::new(), nothing) },
        Story { tasks: no_return, second_host_fails: true, ..story("no return", Vec::new(), nothing) },
    ]
}

#[test]
fn over_a_restart_at_every_record_each_attempt_runs_once_and_the_end_is_the_same() {
    for story in stories() {
        let mut undisturbed = story.begin(None);
        (story.act)(&mut undisturbed);
        let (end, name) = (undisturbed.state(), story.name);
        assert!(end.is_terminal(), "{name}: {end}");
        for cut in 1..=undisturbed.journal.len() {
            let mut world = story.begin(Some(cut));
            (story.act)(&mut world);
            world.restart_at(cut);
            for _ in 0..2 {
                (story.act)(&mut world);
                world.until("an end", 60, |w| w.state().is_terminal());
            }
            let last = &undisturbed.journal[cut - 1].1;
            assert_eq!(world.state(), end, "{name}, cut at {cut} after {last:?}: {}", world.rollout.reason());
            assert_eq!(runs(&world), runs(&undisturbed), "{name}, cut at {cut} after {last:?}");
            let order = |(_, r): &(Timestamp, Record)| match r {
                Record::TaskOrdered { index, what, attempt, .. } => Some((*index, *what, *attempt)),
                _ => None,
            };
            let ordered: Vec<_> = world.journal.iter().filter_map(order).collect();
            assert_eq!(ordered, runs(&undisturbed), "{name}, cut at {cut} after {last:?}");
            let (folded, live) = folds(&world);
            assert_eq!(folded, live, "{name}, cut at {cut}");
        }
    }
}
