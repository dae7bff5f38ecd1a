//! Rows of DESIGN.md: words, operations, time.

use tidegate_protocol::report::{Cause, Progress};
use tidegate_protocol::{Generation, Intent, Millis, Phase, Target};
use tidegate_swap::{Op, Restart, State, Step};

use crate::model::{Host, back, forward, release, to, word};

/// Up to the state, all well; panics if it is not met on the way.
pub(crate) fn up_to(host: &mut Host, state: &State) {
    for _ in 0..32 {
        if host.state() == state {
            return;
        }
        host.ok();
    }
    panic!("{state:?} was not met");
}

fn names(host: &Host) -> Vec<&'static str> {
    let name = |op: &Op| match op {
        Op::Preflight { .. } => "preflight",
        Op::Stage { .. } => "stage",
        Op::Check { .. } => "check",
        Op::Observe { .. } => "observe",
        Op::Before { .. } => "before",
        Op::Flip { .. } => "flip",
        Op::Activate { .. } => "activate",
        Op::Smoke { .. } => "smoke",
        Op::After { .. } => "after",
        Op::Collect { .. } => "collect",
    };
    host.ops.iter().map(name).collect()
}

fn failed(host: &Host) -> Option<Cause> {
    host.machine.failure().map(|failure| failure.cause)
}

#[test]
fn each_phase_does_its_part_and_waits() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Preflight));
    let Some((_, Op::Preflight { target, current, .. })) = &host.op else { panic!("no preflight") };
    assert_eq!((target, current.as_ref()), (&release(2), Some(&release(0))));
    host.ok();
    assert_eq!((host.state(), host.op.is_none()), (&State::Checked, true));
    host.say(forward(2, 2, Phase::Stage));
    up_to(&mut host, &State::Staged);
    assert!(host.op.is_none());
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    assert_eq!(host.machine.lease_left(host.now), Some(Millis(20_000)));
    assert_eq!(host.machine.record().standing, Some(release(0)));
    host.say(forward(2, 2, Phase::Confirm));
    assert_eq!(host.state(), &State::Confirmed);
    let record = host.machine.record();
    assert_eq!((&record.standing, &record.previous), (&Some(release(2)), &Some(release(0))));
    assert_eq!(names(&host), ["preflight", "stage", "check", "observe", "before", "flip", "activate", "smoke", "after", "collect"]);
    assert_eq!(host.machine.lease_left(host.now), None);
    assert_eq!(record.history.last().map(|entry| (entry.swaps, entry.progress)), Some((1, Progress::Confirmed)));
}

#[test]
fn a_jump_does_all_earlier_steps() {
    let mut host = Host::new();
    host.say(forward(7, 3, Phase::Confirm));
    host.run_out();
    assert_eq!(host.state(), &State::Confirmed);
    // Nothing ran before, so there is nothing to observe.
    assert_eq!(names(&host), ["preflight", "stage", "check", "before", "flip", "activate", "smoke", "after", "collect"]);
}

#[test]
fn a_word_said_again_or_stale_only_reports() {
    let mut host = Host::on(0);
    host.say(forward(3, 2, Phase::Stage));
    let (record, reports) = (host.machine.record().clone(), host.reports);
    let changed = word(3, Intent::Forward, to(5), Phase::Swap);
    for (n, stale) in
        [forward(3, 2, Phase::Preflight), forward(2, 2, Phase::Confirm), forward(2, 4, Phase::Confirm), back(1, to(4)), changed]
            .into_iter()
            .enumerate()
    {
        host.say(stale);
        assert_eq!(host.machine.record(), &record);
        assert_eq!(host.reports, reports + 1 + u32::try_from(n).unwrap());
    }
}

#[test]
fn another_components_word_is_not_ours() {
    let mut host = Host::on(0);
    let mut other = forward(9, 2, Phase::Swap);
    other.component = "web".parse().unwrap();
    host.say(other);
    assert_eq!((host.state(), host.machine.generation()), (&State::Confirmed, Generation::new(1, 1)));
}

#[test]
fn cancel_works_before_the_swap_only() {
    for oks in 0..3 {
        let mut host = Host::on(0);
        host.say(forward(2, 2, Phase::Stage));
        (0..oks).for_each(|_| host.ok());
        host.say(forward(2, 2, Phase::Cancel));
        assert_eq!((host.state(), host.op.is_none()), (&State::Cancelled, true), "after {oks}");
        host.say(forward(2, 2, Phase::Swap));
        assert_eq!((host.state(), host.op.is_none()), (&State::Cancelled, true), "after {oks}");
    }
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Cancel));
    assert_eq!(host.state(), &State::Cancelled);
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    host.say(forward(2, 2, Phase::Cancel));
    host.run_out();
    assert_eq!(host.state(), &State::Reverted { failure: host.machine.failure().cloned(), was_unhealthy: false });
}

#[test]
fn a_failure_before_the_swap_touches_nothing() {
    for oks in 0..3 {
        let mut host = Host::on(0);
        let starts = host.starts;
        host.say(forward(2, 2, Phase::Swap));
        (0..oks).for_each(|_| host.ok());
        host.bad();
        assert!(matches!(host.state(), State::Failed(_)), "after {oks}");
        host.say(forward(2, 2, Phase::Confirm));
        host.run_out();
        assert_eq!((host.starts, host.link.clone()), (starts, Some(release(0))));
        assert!(matches!(host.state(), State::Failed(_)), "after {oks}");
    }
    let mut host = Host::on(0);
    host.say(word(2, Intent::Forward, Target::Absent, Phase::Swap));
    assert_eq!((failed(&host), host.op.is_none()), (Some(Cause::Policy), true));
}

#[test]
fn a_failed_drain_is_undone_and_nothing_swapped() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Swapping(Step::Drain));
    host.ok();
    host.bad();
    assert_eq!(host.state(), &State::Swapping(Step::Undrain));
    assert!(matches!(&host.op, Some((_, Op::After { target })) if *target == release(2)));
    host.bad();
    assert!(host.machine.failure().is_some_and(|failure| failure.message.contains("after hook")));
    assert_eq!((host.machine.progress(), host.link.clone()), (Progress::Failed, Some(release(0))));
    assert_eq!(host.machine.record().history.last().map(|entry| entry.swaps), Some(0));
}

#[test]
fn a_failure_after_the_flip_goes_back() {
    // flip, activate, smoke, after
    for (oks, cause, starts) in [(0, Cause::StartFailed, 0), (1, Cause::StartFailed, 1), (2, Cause::Smoke, 2), (3, Cause::StartFailed, 2)] {
        let mut host = Host::on(0);
        let started = host.starts;
        host.say(forward(2, 2, Phase::Swap));
        up_to(&mut host, &State::Swapping(Step::Flip));
        (0..oks).for_each(|_| host.ok());
        host.bad();
        assert_eq!((host.state().progress(), failed(&host)), (Progress::Reverting, Some(cause)), "after {oks}");
        host.say(forward(2, 2, Phase::Confirm));
        host.run_out();
        let State::Reverted { failure: Some(failure), was_unhealthy: false } = host.state() else { panic!("{:?}", host.state()) };
        assert_eq!(failure.cause, cause);
        assert_eq!((host.link.clone(), host.starts - started), (Some(release(0)), starts), "after {oks}");
        // The drain is undone last.
        assert_eq!(names(&host).last(), Some(&"after"));
        host.say(forward(2, 2, Phase::Confirm));
        assert_eq!(host.machine.progress(), Progress::Reverted);
    }
}

#[test]
fn a_first_install_goes_back_to_absent() {
    let mut host = Host::new();
    host.say(forward(1, 2, Phase::Swap));
    up_to(&mut host, &State::Probation);
    host.bad();
    host.run_out();
    assert!(matches!(host.state(), State::Reverted { was_unhealthy: false, .. }));
    assert_eq!((host.link.clone(), host.machine.record().standing.clone()), (None, None));
}

#[test]
fn coming_back_to_a_sick_release_is_no_failure_of_the_way_back() {
    for (healthy, smoke) in [(true, true), (true, false), (false, true), (false, false)] {
        for failing_start in [true, false] {
            let mut host = Host::on(0);
            host.say(forward(2, 2, Phase::Swap));
            up_to(&mut host, &State::Swapping(Step::Drain));
            if healthy {
                host.ok()
            } else {
                host.bad()
            }
            up_to(&mut host, &State::Probation);
            host.bad();
            host.ok();
            if failing_start && !smoke {
                host.bad();
            } else {
                host.ok();
                if smoke { host.ok() } else { host.bad() }
            }
            host.run_out();
            let ended = match (healthy, smoke) {
                (_, true) => matches!(host.state(), State::Reverted { was_unhealthy: false, .. }),
                (false, false) => matches!(host.state(), State::Reverted { was_unhealthy: true, .. }),
                (true, false) => matches!(host.state(), State::RevertFailed(_)),
            };
            assert!(ended, "{healthy} {smoke}: {:?}", host.state());
        }
    }
}

#[test]
fn deadlines_revert() {
    for (state, cause) in
        [(State::Swapping(Step::Activate), Cause::Timeout), (State::Probation, Cause::Timeout), (State::Healthy, Cause::LeaseExpired)]
    {
        let mut host = Host::on(0);
        host.say(forward(2, 2, Phase::Swap));
        up_to(&mut host, &state);
        let at = host.machine.poll_timeout().unwrap();
        host.wait(at.since(host.now).0 - 1);
        assert_eq!(host.state(), &state, "a moment early");
        host.wait(1);
        assert_eq!((failed(&host), host.state().progress()), (Some(cause), Progress::Reverting));
        host.run_out();
        assert_eq!((host.link.clone(), host.machine.progress()), (Some(release(0)), Progress::Reverted));
    }
}

#[test]
fn a_confirmation_after_the_lease_finds_the_revert() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    host.now = host.now + Millis(20_000);
    host.say(forward(2, 2, Phase::Confirm));
    assert_eq!((failed(&host), host.machine.progress()), (Some(Cause::LeaseExpired), Progress::Reverting));
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    host.now = host.now + Millis(19_999);
    host.say(forward(2, 2, Phase::Confirm));
    assert_eq!(host.machine.progress(), Progress::Confirmed);
    host.wait(1_000_000);
    assert_eq!(host.machine.progress(), Progress::Confirmed);
}

#[test]
fn a_flip_that_takes_too_long_is_waited_for_then_taken_back() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Swapping(Step::Flip));
    assert_eq!(host.machine.poll_timeout(), None);
    host.wait(100_000);
    assert_eq!(host.state(), &State::Swapping(Step::Flip));
    host.ok();
    assert_eq!((failed(&host), host.state().progress()), (Some(Cause::Timeout), Progress::Reverting));
}

#[test]
fn a_way_back_has_a_deadline() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Probation);
    host.bad();
    host.ok();
    host.wait(60_000);
    assert_eq!((host.machine.progress(), failed(&host), host.op.is_none()), (Progress::RevertFailed, Some(Cause::Timeout), true));
}

#[test]
fn past_the_point_of_no_return_nothing_reverts() {
    let mut order = forward(2, 2, Phase::Swap);
    order.reversible = false;
    let mut host = Host::on(0);
    host.say(order.clone());
    up_to(&mut host, &State::Probation);
    let starts = host.starts;
    host.bad();
    assert_eq!((host.machine.progress(), failed(&host)), (Progress::RevertFailed, Some(Cause::Smoke)));
    assert!(host.machine.failure().is_some_and(|failure| failure.message.contains("point of no return")));
    assert_eq!((host.link.clone(), host.starts, host.op.is_none()), (Some(release(2)), starts, true));

    let mut host = Host::on(0);
    host.say(order.clone());
    up_to(&mut host, &State::Healthy);
    assert_eq!((host.machine.poll_timeout(), host.machine.lease_left(host.now)), (None, None));
    host.wait(1_000_000);
    assert_eq!(host.state(), &State::Healthy);
    // A newer one finds it standing.
    host.say(forward(3, 3, Phase::Stage));
    assert_eq!((host.state(), &host.machine.record().standing), (&State::Checking, &Some(release(2))));

    // During its swap a newer one waits; an ordered way back does not.
    let mut host = Host::on(0);
    host.say(order.clone());
    up_to(&mut host, &State::Probation);
    host.say(forward(3, 3, Phase::Stage));
    assert_eq!(host.state(), &State::Probation);
    up_to(&mut host, &State::Checking);
    assert_eq!(host.machine.record().standing, Some(release(2)));
    let mut host = Host::on(0);
    host.say(order);
    up_to(&mut host, &State::Probation);
    host.say(back(3, to(0)));
    host.run_out();
    assert_eq!((host.link.clone(), host.machine.progress()), (Some(release(0)), Progress::Reverted));
}

#[test]
fn an_ordered_way_back_from_a_confirmed_release() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Confirm));
    host.run_out();
    host.ops.clear();
    host.say(back(3, to(0)));
    host.run_out();
    assert_eq!(host.state(), &State::Reverted { failure: None, was_unhealthy: false });
    assert_eq!(names(&host), ["stage", "flip", "activate", "smoke"]);
    assert!(matches!(&host.ops[2], Op::Activate { restart: Restart::Always, from, .. } if *from == to(2)));
    let record = host.machine.record();
    assert_eq!((&record.standing, &record.previous), (&Some(release(0)), &Some(release(2))));
    assert_eq!(record.history.last().map(|entry| entry.swaps), Some(0));
}

#[test]
fn an_ordered_way_back_that_fails_stays_where_it_is() {
    for (oks, link) in [(0, 2), (1, 2), (2, 0), (3, 0)] {
        let mut host = Host::on(0);
        host.say(forward(2, 2, Phase::Confirm));
        host.run_out();
        host.say(back(3, to(0)));
        (0..oks).for_each(|_| host.ok());
        host.bad();
        assert_eq!(host.machine.progress(), Progress::RevertFailed, "after {oks}");
        host.run_out();
        assert_eq!((host.link.clone(), host.machine.record().standing.clone()), (Some(release(link)), Some(release(link))), "after {oks}");
    }
}

#[test]
fn an_ordered_way_back_to_a_release_that_was_sick() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Confirm));
    up_to(&mut host, &State::Swapping(Step::Drain));
    host.bad();
    host.run_out();
    host.say(back(3, to(0)));
    up_to(&mut host, &State::Reverting(Step::Smoke, None));
    host.bad();
    assert_eq!(host.state(), &State::Reverted { failure: None, was_unhealthy: true });
    // The same through a preflight of the way back.
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Confirm));
    up_to(&mut host, &State::Swapping(Step::Drain));
    host.bad();
    host.run_out();
    host.say(word(3, Intent::Back, to(0), Phase::Stage));
    up_to(&mut host, &State::Staged);
    host.say(back(3, to(0)));
    up_to(&mut host, &State::Reverting(Step::Smoke, None));
    host.bad();
    assert_eq!(host.state(), &State::Reverted { failure: None, was_unhealthy: true });
}

#[test]
fn an_ordered_way_back_finds_a_host_that_went_back_by_itself() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    host.run_out();
    assert_eq!(host.machine.progress(), Progress::Reverted);
    let starts = host.starts;
    host.say(back(3, to(0)));
    host.run_out();
    assert_eq!((host.state(), host.starts), (&State::Reverted { failure: None, was_unhealthy: false }, starts));
    assert!(host.ops.iter().rev().any(|op| matches!(op, Op::Activate { restart: Restart::UnlessProven(None), .. })));
}

#[test]
fn an_ordered_way_back_takes_an_unconfirmed_swap_over() {
    let states =
        [State::Swapping(Step::Drain), State::Swapping(Step::Flip), State::Swapping(Step::Activate), State::Probation, State::Healthy];
    for state in states {
        let mut host = Host::on(0);
        host.say(forward(2, 2, Phase::Swap));
        up_to(&mut host, &state);
        host.say(back(3, to(0)));
        if state == State::Swapping(Step::Flip) {
            assert_eq!((host.state(), host.machine.progress()), (&state, Progress::Checking));
            host.ok();
        }
        assert_eq!(host.state(), &State::Reverting(Step::Fetch, None), "{state:?}");
        assert_eq!(host.machine.generation(), Generation::new(1, 3));
        host.run_out();
        assert_eq!((host.link.clone(), host.machine.record().standing.clone()), (Some(release(0)), Some(release(0))), "{state:?}");
        let undrained = names(&host).iter().filter(|name| **name == "after").count();
        assert_eq!(undrained, usize::from(state != State::Swapping(Step::Drain)), "{state:?}");
    }
}

#[test]
fn a_newer_release_waits_for_the_revert_of_the_unconfirmed_one() {
    for state in [State::Swapping(Step::Flip), State::Swapping(Step::Activate), State::Probation, State::Healthy] {
        let mut host = Host::on(0);
        host.say(forward(2, 2, Phase::Swap));
        up_to(&mut host, &state);
        host.say(forward(3, 3, Phase::Stage));
        host.say(forward(4, 4, Phase::Preflight));
        host.say(forward(4, 4, Phase::Confirm));
        host.say(forward(2, 2, Phase::Confirm));
        assert_eq!((host.machine.generation(), host.machine.progress()), (Generation::new(1, 4), Progress::Checking));
        host.run_out();
        assert_eq!((host.state(), host.link.clone()), (&State::Confirmed, Some(release(4))), "{state:?}");
        let record = host.machine.record();
        assert_eq!(record.previous, Some(release(0)), "{state:?}");
        let past: Vec<_> = record.history.iter().map(|entry| (entry.generation.n, entry.progress)).collect();
        assert_eq!(past, [(1, Progress::Confirmed), (2, Progress::Reverted), (4, Progress::Confirmed)], "{state:?}");
    }
}

#[test]
fn a_newer_release_during_the_drain_undoes_it() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Swapping(Step::Drain));
    host.ok();
    host.say(forward(3, 3, Phase::Stage));
    assert_eq!(host.state(), &State::Swapping(Step::Undrain));
    host.ok();
    assert_eq!((host.state(), host.machine.record().history.len()), (&State::Checking, 3));
    assert_eq!(host.machine.record().history[1].progress, Progress::Failed);
}

#[test]
fn a_newer_release_is_adopted_after_a_failed_revert_too() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    host.say(forward(3, 3, Phase::Stage));
    host.bad();
    assert_eq!((host.state(), host.machine.generation()), (&State::Checking, Generation::new(1, 3)));
}

#[test]
fn a_waiting_generation_that_was_cancelled_stays_so() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    host.say(forward(3, 3, Phase::Cancel));
    host.say(forward(3, 3, Phase::Swap));
    host.run_out();
    assert_eq!((host.state(), host.link.clone()), (&State::Cancelled, Some(release(0))));
}

#[test]
fn the_release_that_stands_is_swapped_again() {
    let mut host = Host::on(0);
    let starts = host.starts;
    host.say(forward(2, 0, Phase::Confirm));
    host.run_out();
    assert_eq!((host.state(), host.starts), (&State::Confirmed, starts + 1));
    assert_eq!(host.machine.record().previous, None);
}

#[test]
fn an_early_confirmation_counts_once_healthy() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Probation);
    host.say(forward(2, 2, Phase::Confirm));
    assert_eq!(host.machine.progress(), Progress::Probation);
    host.run_out();
    assert_eq!(host.machine.progress(), Progress::Confirmed);
}

#[test]
fn history_is_bounded_and_keeps_the_newest() {
    let mut host = Host::on(0);
    for n in 2..60 {
        host.say(forward(n, 2, Phase::Preflight));
    }
    let history = &host.machine.record().history;
    assert_eq!((history.len(), history.last().map(|entry| entry.generation.n)), (32, Some(59)));
}

#[test]
fn what_a_way_back_needs_is_kept() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Confirm));
    host.run_out();
    host.say(forward(3, 3, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    for n in [0, 2, 3] {
        assert!(host.machine.keep().contains(&release(n)), "{n}");
    }
    // What a revert leaves is not what stands, and both are needed.
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Confirm));
    host.run_out();
    host.say(back(3, to(0)));
    host.say(forward(4, 4, Phase::Stage));
    for n in [0, 2, 4] {
        assert!(host.machine.keep().contains(&release(n)), "{n}");
    }
}
