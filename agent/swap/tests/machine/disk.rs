//! DESIGN.md, "The disk refuses", and that nothing is asked before an answer.

use tidegate_protocol::report::{Cause, Progress};
use tidegate_protocol::{Millis, Phase};
use tidegate_swap::{Event, Op, OpId, Outcome, State, Step};

use crate::model::{Host, Write, back, forward, release, to};
use crate::table::up_to;

/// All well up to the state, whose record is then out, not answered.
fn saving(host: &mut Host, state: &State) {
    host.auto = false;
    for _ in 0..64 {
        if host.out.as_ref().is_some_and(|record| record.state == *state) {
            return;
        }
        if host.out.is_some() { host.write(Write::Good) } else { host.ok() }
    }
    panic!("{state:?} was not met");
}

fn cause(host: &Host) -> Option<Cause> {
    host.machine.failure().map(|failure| failure.cause)
}

#[test]
fn before_the_swap_it_fails_and_touches_nothing() {
    for state in [State::Checking, State::Checked, State::Staging, State::Staged, State::Swapping(Step::Drain)] {
        let mut host = Host::on(0);
        host.auto = false;
        host.say(forward(2, 2, Phase::Swap));
        saving(&mut host, &state);
        host.write(Write::Refused);
        assert_eq!((host.machine.progress(), cause(&host), host.op.is_none()), (Progress::Failed, Some(Cause::Disk), true), "{state:?}");
        host.run_out();
        assert_eq!(host.disk.as_ref().map(|record| record.state.progress()), Some(Progress::Failed), "{state:?}");
        assert_eq!(host.link, Some(release(0)));
    }
}

#[test]
fn a_flip_that_cannot_be_recorded_is_not_begun() {
    let mut host = Host::on(0);
    host.auto = false;
    host.say(forward(2, 2, Phase::Swap));
    saving(&mut host, &State::Swapping(Step::Flip));
    host.write(Write::Refused);
    assert_eq!(host.state(), &State::Swapping(Step::Undrain));
    host.run_out();
    assert_eq!((host.machine.progress(), cause(&host)), (Progress::Failed, Some(Cause::Disk)));
    assert!(!host.ops.iter().any(|op| matches!(op, Op::Flip { .. })));
    assert_eq!(host.machine.record().history.last().map(|entry| entry.swaps), Some(0));
}

#[test]
fn after_the_flip_it_goes_back_though_nothing_can_be_recorded() {
    for state in [State::Swapping(Step::Activate), State::Probation, State::Healthy] {
        let mut host = Host::on(0);
        host.auto = false;
        host.say(forward(2, 2, Phase::Swap));
        saving(&mut host, &state);
        let mut rested = false;
        for _ in 0..64 {
            if host.out.is_some() {
                host.write(Write::Refused);
            } else if host.op.is_some() {
                host.ok();
            } else if let Some(at) = host.machine.poll_timeout() {
                host.now = host.now.max(at);
                host.event(Event::Timeout);
            } else {
                rested = true;
                break;
            }
            let shown = host.machine.progress();
            assert!(shown != Progress::Healthy && shown != Progress::Confirmed);
        }
        assert!(rested, "{state:?}: tries for ever on a disk that refuses throughout");
        assert_eq!((host.machine.progress(), cause(&host)), (Progress::Reverted, Some(Cause::Disk)), "{state:?}");
        assert_eq!((host.link.clone(), host.machine.poll_timeout()), (Some(release(0)), None), "{state:?}");
        // Said again, it tries again.
        host.say(forward(2, 2, Phase::Swap));
        host.write(Write::Good);
        assert_eq!(host.disk.as_ref().map(|record| record.state.progress()), Some(Progress::Reverted));
    }
}

#[test]
fn tries_in_a_row_are_bounded() {
    let mut host = Host::on(0);
    host.auto = false;
    host.say(forward(2, 2, Phase::Stage));
    let mut tries = 0;
    while tries < 20 && host.out.is_some() {
        tries += 1;
        host.write(Write::Refused);
        if let Some(at) = host.machine.poll_timeout() {
            host.now = at;
            host.event(Event::Timeout);
        }
    }
    assert_eq!((tries, host.machine.progress()), (6, Progress::Failed));
}

#[test]
fn a_refusal_while_the_link_flips_takes_it_back() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Swapping(Step::Flip));
    host.auto = false;
    host.say(forward(2, 2, Phase::Confirm));
    host.write(Write::Refused);
    assert!(host.op.is_some(), "the flip is waited for");
    host.ok();
    host.run_out();
    assert_eq!((host.machine.progress(), cause(&host), host.link.clone()), (Progress::Reverted, Some(Cause::Disk), Some(release(0))));
}

#[test]
fn confirmed_is_shown_only_when_durable() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    host.auto = false;
    host.say(forward(2, 2, Phase::Confirm));
    assert_eq!(host.machine.progress(), Progress::Healthy);
    host.write(Write::Refused);
    assert_eq!((host.machine.progress(), host.state()), (Progress::Healthy, &State::Healthy));
    assert_eq!(host.machine.record().standing, Some(release(0)));
    host.wait(1_000);
    host.write(Write::Good);
    assert_eq!(host.machine.progress(), Progress::Confirmed);

    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    host.auto = false;
    host.say(forward(2, 2, Phase::Confirm));
    host.write(Write::Refused);
    host.wait(20_000);
    host.run_out();
    assert_eq!((host.machine.progress(), cause(&host)), (Progress::Reverted, Some(Cause::LeaseExpired)));
}

#[test]
fn an_ordered_way_back_that_cannot_be_recorded() {
    // Of a confirmed release: not begun.
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Confirm));
    host.run_out();
    host.auto = false;
    host.say(back(3, to(0)));
    host.write(Write::Refused);
    assert_eq!((host.machine.progress(), cause(&host), host.op.is_none()), (Progress::Failed, Some(Cause::Disk), true));
    // Of an unconfirmed one: that would go back anyway.
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Healthy);
    host.auto = false;
    host.say(back(3, to(0)));
    host.write(Write::Refused);
    host.run_out();
    assert_eq!((host.machine.progress(), host.link.clone()), (Progress::Reverted, Some(release(0))));
}

#[test]
fn words_and_ends_wait_for_the_ledger() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Stage));
    host.ok();
    host.auto = false;
    host.say(forward(2, 2, Phase::Swap));
    assert!(host.out.is_some() && host.op.is_some());
    host.ok();
    host.say(forward(3, 3, Phase::Preflight));
    host.say(forward(4, 4, Phase::Preflight));
    host.say(forward(3, 3, Phase::Confirm));
    assert_eq!(host.machine.poll_timeout(), None);
    host.auto = true;
    host.write(Write::Good);
    // The end of the staging counts, then the newest word.
    assert_eq!((host.state(), host.machine.generation().n), (&State::Checking, 4));
    host.ok();
    assert_eq!(host.state(), &State::Checked);
}

#[test]
fn a_late_end_of_a_cancelled_operation_is_ignored() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Stage));
    let (id, _) = host.op.clone().unwrap();
    host.say(forward(3, 3, Phase::Stage));
    host.event(Event::Done(id, Outcome::Ok));
    host.event(Event::Done(OpId(9_999), Outcome::Ok));
    assert_eq!(host.state(), &State::Checking);
    host.event(Event::Persisted);
    host.event(Event::PersistFailed("late".into()));
    assert_eq!(host.state(), &State::Checking);
    host.wait(Millis(1).0);
    assert_eq!(host.state(), &State::Checking);
}

#[test]
fn smoke_tests_without_a_result_prove_nothing() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Probation);
    let (id, _) = host.op.take().unwrap();
    host.event(Event::Done(id, Outcome::Ok));
    assert_eq!((host.machine.progress(), cause(&host)), (Progress::Reverting, Some(Cause::Smoke)));
}
