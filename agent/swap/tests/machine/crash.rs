//! DESIGN.md, "Crash points": a crash in every state, effect done or not, on the
//! same boot or another, before or after the lease ran out.

use tidegate_protocol::report::{Cause, Progress};
use tidegate_protocol::{Millis, Phase};
use tidegate_swap::{Op, Restart, State, Step};

use crate::model::{End, Host, Write, back, forward, release, to};
use crate::table::up_to;

/// A crash at the n-th chance of a whole run to Confirmed. False when there is none.
fn crash_at(host: &mut Host, n: usize, write: Write, end: End) -> bool {
    host.auto = false;
    for chance in 0..64 {
        let here = chance == n;
        if host.out.is_some() {
            host.write(if here { write } else { Write::Good });
        } else if host.op.is_some() {
            host.finish(if here { end } else { End::Good });
        } else {
            return false;
        }
        if here {
            return true;
        }
    }
    panic!("does not end");
}

#[test]
fn a_crash_anywhere_on_the_way_forward_ends_as_if_there_was_none() {
    for (write, end) in [(Write::CrashBefore, End::CrashBefore), (Write::CrashAfter, End::CrashAfter)] {
        let mut n = 0;
        loop {
            let mut host = Host::on(0);
            let starts = host.starts;
            host.auto = false;
            host.say(forward(2, 1, Phase::Confirm));
            let crashed = crash_at(&mut host, n, write, end);
            // A reconnect says it again.
            host.say(forward(2, 1, Phase::Confirm));
            host.run_out();
            assert_eq!((host.state(), host.link.clone()), (&State::Confirmed, Some(release(1))), "at {n}");
            assert_eq!(host.starts, starts + 1, "restarted once, at {n}");
            assert_eq!(host.machine.record().history.last().map(|entry| entry.swaps), Some(1), "at {n}");
            if !crashed {
                break;
            }
            n += 1;
        }
        assert!(n > 20, "only {n} crash points");
    }
}

#[test]
fn a_crash_anywhere_on_the_way_back_still_gets_back() {
    for ordered in [true, false] {
        for (write, end) in [(Write::CrashBefore, End::CrashBefore), (Write::CrashAfter, End::CrashAfter)] {
            let mut n = 0;
            loop {
                let mut host = Host::on(0);
                host.say(forward(2, 1, Phase::Swap));
                up_to(&mut host, &State::Probation);
                let starts = host.starts;
                host.auto = false;
                if ordered {
                    host.say(back(3, to(0)))
                } else {
                    host.bad()
                }
                let crashed = crash_at(&mut host, n, write, end);
                host.say(if ordered { back(3, to(0)) } else { forward(2, 1, Phase::Swap) });
                // Lost before it was durable: the probation goes on, and fails again.
                if !ordered && matches!(host.state(), State::Probation) {
                    host.ok();
                    host.bad();
                }
                host.run_out();
                assert_eq!((host.machine.progress(), host.link.clone()), (Progress::Reverted, Some(release(0))), "{ordered} at {n}");
                assert_eq!(host.starts, starts + 1, "restarted once, {ordered} at {n}");
                if !crashed {
                    break;
                }
                n += 1;
            }
            assert!(n > 8, "only {n} crash points");
        }
    }
}

#[test]
fn a_reboot_anywhere_never_leaves_a_half() {
    for oks in 0..9 {
        let mut host = Host::on(0);
        host.say(forward(2, 1, Phase::Confirm));
        (0..oks).for_each(|_| host.ok());
        host.reboot();
        host.run_out();
        assert_eq!((host.state(), host.link.clone()), (&State::Confirmed, Some(release(1))), "after {oks}");
    }
}

#[test]
fn a_reboot_gives_a_fresh_lease_once() {
    for state in [State::Swapping(Step::Flip), State::Swapping(Step::Activate), State::Probation, State::Healthy] {
        let mut host = Host::on(0);
        host.say(forward(2, 2, Phase::Swap));
        up_to(&mut host, &state);
        host.reboot();
        let again = if state == State::Healthy { State::Probation } else { state.clone() };
        assert_eq!(host.state(), &again);
        let lease = host.machine.record().swap.as_ref().and_then(|swap| swap.lease.clone()).unwrap();
        assert_eq!((lease.deadline, lease.boot_id.as_str()), (host.now + Millis(60_000), "boot-1"));
        if again == State::Probation {
            assert!(matches!(&host.op, Some((_, Op::Activate { restart: Restart::UnlessProven(None), .. }))));
        }
        host.reboot();
        let failure = host.machine.failure().expect("a second reboot reverts");
        assert_eq!((failure.cause, host.machine.progress()), (Cause::CrashLoop, Progress::Reverting), "{state:?}");
    }
}

#[test]
fn a_lease_counts_on_through_a_crash() {
    for (state, cause) in [
        (State::Swapping(Step::Flip), Cause::Timeout),
        (State::Swapping(Step::Activate), Cause::Timeout),
        (State::Probation, Cause::Timeout),
        (State::Healthy, Cause::LeaseExpired),
    ] {
        for (away, reverts) in [(19_999, false), (60_000, true)] {
            let mut host = Host::on(0);
            host.say(forward(2, 2, Phase::Swap));
            up_to(&mut host, &state);
            host.now = host.now + Millis(away);
            host.crash();
            assert_eq!(host.machine.failure().map(|failure| failure.cause), reverts.then_some(cause), "{state:?} {away}");
            host.run_out();
            assert_eq!(host.link, Some(release(0)), "{state:?} {away}");
        }
    }
}

#[test]
fn after_a_crash_a_proven_process_stays_and_an_older_one_does_not() {
    // Restarted by itself before the flip: the executable is the same in both.
    let mut host = Host::on(0);
    host.say(forward(2, 1, Phase::Confirm));
    up_to(&mut host, &State::Swapping(Step::Flip));
    host.now = host.now + Millis(10);
    host.restart_by_itself();
    host.now = host.now + Millis(10);
    host.finish(End::CrashAfter);
    host.run_out();
    assert_eq!(host.state(), &State::Confirmed);
    // The same, and the crash comes when the restart was durable but not begun.
    let mut host = Host::on(0);
    host.say(forward(2, 1, Phase::Confirm));
    up_to(&mut host, &State::Swapping(Step::Flip));
    host.now = host.now + Millis(10);
    host.restart_by_itself();
    host.now = host.now + Millis(10);
    host.ok();
    assert_eq!(host.state(), &State::Swapping(Step::Activate));
    host.finish(End::CrashBefore);
    host.run_out();
    assert_eq!(host.state(), &State::Confirmed);
}

#[test]
fn a_start_of_the_agent_at_rest_does_nothing() {
    let mut host = Host::on(0);
    for reboot in [false, true] {
        if reboot {
            host.reboot()
        } else {
            host.crash()
        }
        assert!((host.op.is_none(), host.machine.poll_timeout()) == (true, None));
    }
    host.say(forward(2, 2, Phase::Stage));
    up_to(&mut host, &State::Staged);
    host.crash();
    assert_eq!((host.state(), host.op.is_none()), (&State::Staged, true));
}

#[test]
fn a_way_back_is_tried_however_long_the_agent_was_away() {
    let mut host = Host::on(0);
    host.say(forward(2, 2, Phase::Swap));
    up_to(&mut host, &State::Probation);
    host.bad();
    host.now = host.now + Millis(10_000_000);
    host.crash();
    host.run_out();
    assert_eq!((host.machine.progress(), host.link.clone()), (Progress::Reverted, Some(release(0))));
}

#[test]
fn a_waiting_generation_survives_a_crash() {
    for state in [State::Swapping(Step::Flip), State::Swapping(Step::Activate)] {
        let mut host = Host::on(0);
        host.say(forward(2, 2, Phase::Swap));
        up_to(&mut host, &state);
        host.say(forward(3, 3, Phase::Confirm));
        host.crash();
        host.run_out();
        assert_eq!((host.state(), host.link.clone()), (&State::Confirmed, Some(release(3))));
    }
}
