//! DESIGN.md, "The switch": its tables, crashes at every point, and random runs.
//! The model is a host with a front that leads to one side or none.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use proptest::prelude::*;
use tidegate_protocol::report::{Cause, Failure};
use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::{Digest, Generation, ReleaseRef, Side, SwitchOrder};
use tidegate_swap::{OpId, Switch, SwitchAction, SwitchEvent, SwitchOp, SwitchRecord, SwitchState};

use Side::{Blue, Green};

fn order(n: u64, to: Side) -> SwitchOrder {
    SwitchOrder {
        generation: Generation::new(1, n),
        component: "api".parse().unwrap(),
        rollout: "r1".parse().unwrap(),
        to,
        release: ReleaseRef { id: "shop@2".parse().unwrap(), manifest: Digest::of(b"2") },
        run: vec!["lb".into()],
        verify: None,
    }
}

fn broken(cause: Cause) -> Failure {
    Failure { cause, message: "broken".into() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Good,
    Refused,
    CrashBefore,
    CrashAfter,
}

/// How an operation ends. A bad command may have moved the traffic all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Good,
    Bad,
    BadButDone,
    CrashBefore,
    CrashAfter,
}

struct Host {
    switch: Switch,
    disk: Option<SwitchRecord>,
    /// Where traffic goes.
    front: Option<Side>,
    op: Option<(OpId, SwitchOp)>,
    out: Option<SwitchRecord>,
    newest: Generation,
    shown: Generation,
    /// The disk refused something: what is shown may then not be durable.
    refused: bool,
    commands: Vec<Side>,
}

impl Host {
    fn new() -> Self {
        Self {
            switch: Switch::new("api".parse().unwrap()),
            disk: None,
            front: None,
            op: None,
            out: None,
            newest: Generation::ZERO,
            shown: Generation::ZERO,
            refused: false,
            commands: Vec::new(),
        }
    }

    /// Blue serves.
    fn on_blue() -> Self {
        let mut host = Self::new();
        host.say(order(1, Blue));
        host.run_out();
        assert_eq!((host.state(), host.front), (&SwitchState::Switched, Some(Blue)));
        host.commands.clear();
        host
    }

    fn state(&self) -> &SwitchState {
        &self.switch.shown().state
    }

    fn active(&self) -> Option<Side> {
        self.switch.shown().active
    }

    fn say(&mut self, word: SwitchOrder) {
        self.newest = self.newest.max(word.generation);
        self.event(SwitchEvent::Ordered(word));
    }

    fn event(&mut self, event: SwitchEvent) {
        self.switch.handle(event);
        self.pump();
    }

    fn pump(&mut self) {
        while self.out.is_none() {
            match self.switch.poll_action() {
                None => break,
                Some(SwitchAction::Report) => {}
                Some(SwitchAction::Persist(record)) => self.out = Some(record),
                Some(SwitchAction::Cancel(id)) => {
                    let (running, op) = self.op.take().unwrap();
                    assert_eq!(running, id);
                    assert!(!matches!(op, SwitchOp::Command(..)), "a command is never called back");
                }
                Some(SwitchAction::Run(id, op)) => {
                    assert!(self.op.is_none(), "two at once");
                    self.justified(&op);
                    if let SwitchOp::Command(_, side, _) = &op {
                        self.commands.push(*side);
                    }
                    self.op = Some((id, op));
                }
            }
        }
        self.check();
    }

    /// Nothing is begun that the ledger does not say.
    fn justified(&self, op: &SwitchOp) {
        if self.refused {
            return;
        }
        let disk = self.disk.as_ref().unwrap();
        let of = |order: &SwitchOrder| assert_eq!(disk.order.as_ref(), Some(order));
        match op {
            SwitchOp::Check(order) => {
                of(order);
                assert_eq!(disk.state, SwitchState::Checking);
            }
            SwitchOp::Command(order, side, undo) | SwitchOp::Verify(order, side, undo) => {
                of(order);
                assert!(disk.moved);
                if *undo {
                    assert!(matches!(disk.state, SwitchState::Undoing(_)));
                    assert_eq!(Some(*side), disk.active);
                } else {
                    assert!(matches!(disk.state, SwitchState::Switching | SwitchState::Verifying));
                    assert_eq!(*side, order.to);
                }
            }
        }
    }

    fn check(&mut self) {
        let shown = self.switch.shown();
        assert!(self.refused || shown.generation() >= self.shown, "a generation was forgotten");
        self.shown = shown.generation();
        if shown.active.is_some() && !shown.moved && !self.refused {
            assert_eq!(self.front, shown.active, "in {:?}", shown.state);
        }
        if shown.progress() == SwitchProgress::Switched && !self.refused {
            assert_eq!(shown.active, shown.order.as_ref().map(|order| order.to));
            assert_eq!(shown.active, self.front);
        }
    }

    fn crash(&mut self) {
        (self.op, self.out) = (None, None);
        let component = "api".parse().unwrap();
        self.switch = self.disk.clone().map_or_else(|| Switch::new(component), Switch::recover);
        // Words that were not durable are forgotten, and said again.
        self.shown = self.switch.shown().generation();
        self.pump();
    }

    fn write(&mut self, write: Write) {
        let record = self.out.take().unwrap();
        match write {
            Write::Good => {
                self.disk = Some(record);
                self.event(SwitchEvent::Persisted);
            }
            Write::Refused => {
                self.refused = true;
                self.event(SwitchEvent::PersistFailed("no space".into()));
            }
            Write::CrashBefore => self.crash(),
            Write::CrashAfter => {
                self.disk = Some(record);
                self.crash();
            }
        }
    }

    fn finish(&mut self, end: End) {
        let (id, op) = self.op.take().unwrap();
        let effect = matches!(end, End::Good | End::BadButDone | End::CrashAfter);
        if let (SwitchOp::Command(_, side, _), true) = (&op, effect) {
            self.front = Some(*side);
        }
        let cause = match op {
            SwitchOp::Check(_) => Cause::Policy,
            SwitchOp::Command(..) => Cause::StartFailed,
            SwitchOp::Verify(..) => Cause::Smoke,
        };
        match end {
            End::Good => self.event(SwitchEvent::Done(id, Ok(()))),
            End::Bad | End::BadButDone => self.event(SwitchEvent::Done(id, Err(broken(cause)))),
            End::CrashBefore | End::CrashAfter => self.crash(),
        }
    }

    /// Everything ends well from here.
    fn run_out(&mut self) {
        for _ in 0..100 {
            if self.out.is_some() {
                self.write(Write::Good);
            } else if self.op.is_some() {
                self.finish(End::Good);
            } else {
                assert!(matches!(self.state(), SwitchState::Idle | SwitchState::Switched | SwitchState::Failed(_) | SwitchState::Stuck(_)));
                assert!(self.switch.shown().pending.is_none(), "left waiting");
                return;
            }
        }
        panic!("does not come to rest: {:?}", self.state());
    }

    /// Writes go well until this operation runs.
    fn up_to(&mut self, wanted: impl Fn(&SwitchOp) -> bool) {
        for _ in 0..50 {
            if self.out.is_some() {
                self.write(Write::Good);
            } else if self.op.as_ref().is_some_and(|(_, op)| wanted(op)) {
                return;
            } else {
                self.finish(End::Good);
            }
        }
        panic!("never came");
    }

    fn bad(&mut self) {
        self.finish(End::Bad);
        if self.out.is_some() {
            self.write(Write::Good);
        }
    }
}

fn is_command(op: &SwitchOp) -> bool {
    matches!(op, SwitchOp::Command(..))
}

fn is_verify(op: &SwitchOp) -> bool {
    matches!(op, SwitchOp::Verify(..))
}

fn cause(host: &Host) -> Option<Cause> {
    host.switch.shown().failure().map(|failure| failure.cause)
}

#[test]
fn forward_and_back() {
    let mut host = Host::on_blue();
    host.say(order(2, Green));
    host.run_out();
    assert_eq!((host.state(), host.active(), host.front), (&SwitchState::Switched, Some(Green), Some(Green)));
    host.say(order(3, Blue));
    host.run_out();
    assert_eq!((host.active(), host.front), (Some(Blue), Some(Blue)));
    assert_eq!(host.commands, [Green, Blue]);
}

#[test]
fn old_words_and_repeated_ones_change_nothing() {
    let mut host = Host::on_blue();
    host.say(order(5, Green));
    host.run_out();
    for word in [order(5, Green), order(5, Blue), order(4, Blue), order(1, Blue)] {
        host.say(word);
        assert!(host.out.is_none() && host.op.is_none());
    }
    assert_eq!((host.active(), host.switch.shown().generation()), (Some(Green), Generation::new(1, 5)));
    let other = SwitchOrder { component: "web".parse().unwrap(), ..order(9, Blue) };
    host.switch.handle(SwitchEvent::Ordered(other));
    assert_eq!(host.switch.shown().generation(), Generation::new(1, 5));
}

#[test]
fn a_side_that_is_not_fit_is_refused_before_traffic_moves() {
    let mut host = Host::on_blue();
    host.say(order(2, Green));
    host.up_to(|op| matches!(op, SwitchOp::Check(_)));
    host.bad();
    host.run_out();
    assert_eq!((cause(&host), host.active(), host.front), (Some(Cause::Policy), Some(Blue), Some(Blue)));
    assert!(host.commands.is_empty());
}

#[test]
fn a_failure_puts_traffic_back_and_a_second_one_is_stuck() {
    for (at, wanted) in [(is_command as fn(&SwitchOp) -> bool, Cause::StartFailed), (is_verify, Cause::Smoke)] {
        let mut host = Host::on_blue();
        host.say(order(2, Green));
        host.up_to(at);
        host.bad();
        assert_eq!(host.switch.shown().progress(), SwitchProgress::Switching, "not told as failed while it goes back");
        assert_eq!(cause(&host), None);
        host.run_out();
        assert_eq!((cause(&host), host.active(), host.front), (Some(wanted), Some(Blue), Some(Blue)));
        assert_eq!(host.switch.shown().progress(), SwitchProgress::Failed);
        assert_eq!(host.commands, [Green, Blue]);

        for back in [is_command as fn(&SwitchOp) -> bool, is_verify] {
            let mut host = Host::on_blue();
            host.say(order(2, Green));
            host.up_to(at);
            host.bad();
            host.up_to(back);
            host.bad();
            host.run_out();
            assert_eq!((cause(&host), host.switch.shown().progress()), (Some(wanted), SwitchProgress::Stuck));
            assert_eq!(host.active(), Some(Blue));
            // A person looked; the next order starts anew.
            host.say(order(3, Green));
            host.run_out();
            assert_eq!((host.active(), host.front), (Some(Green), Some(Green)));
        }
    }
}

#[test]
fn the_first_switch_has_nowhere_to_go_back_to() {
    let mut host = Host::new();
    host.say(order(1, Blue));
    host.up_to(is_verify);
    host.bad();
    host.run_out();
    let failure = host.switch.shown().failure().unwrap();
    assert_eq!((failure.cause, host.active()), (Cause::Smoke, None));
    assert!(failure.message.contains("no side served before"), "{}", failure.message);
}

#[test]
fn to_the_side_that_serves_already_is_done_again_and_tried_twice() {
    let mut host = Host::on_blue();
    host.say(order(2, Blue));
    host.run_out();
    assert_eq!((host.state(), &host.commands[..]), (&SwitchState::Switched, &[Blue][..]));
    host.say(order(3, Blue));
    host.up_to(is_command);
    host.bad();
    host.run_out();
    assert_eq!((host.state(), host.front), (&SwitchState::Switched, Some(Blue)));
    host.say(order(4, Blue));
    host.up_to(is_command);
    host.bad();
    host.up_to(is_command);
    host.bad();
    host.run_out();
    assert_eq!(host.switch.shown().progress(), SwitchProgress::Stuck);
}

#[test]
fn switching_back_wins_whatever_runs() {
    // A verification is called back, a command is finished first.
    let mut host = Host::on_blue();
    host.say(order(2, Green));
    host.up_to(is_verify);
    host.say(order(3, Blue));
    assert!(host.op.is_none());
    host.run_out();
    assert_eq!((host.active(), host.front, &host.commands[..]), (Some(Blue), Some(Blue), &[Green, Blue][..]));

    for end in [End::Good, End::Bad, End::BadButDone] {
        let mut host = Host::on_blue();
        host.say(order(2, Green));
        host.up_to(is_command);
        host.say(order(3, Blue));
        assert!(host.op.is_some(), "the command goes on");
        host.write(Write::Good);
        assert_eq!((host.switch.shown().generation(), host.switch.shown().progress()), (Generation::new(1, 3), SwitchProgress::Switching));
        host.finish(end);
        host.run_out();
        assert_eq!((host.state(), host.front), (&SwitchState::Switched, Some(Blue)), "{end:?}");
    }

    // Its side turns out unfit: traffic may be on the other one, so it is put back all the same.
    let mut host = Host::on_blue();
    host.say(order(2, Green));
    host.up_to(is_verify);
    host.say(order(3, Blue));
    host.up_to(|op| matches!(op, SwitchOp::Check(_)));
    host.bad();
    host.run_out();
    assert_eq!((host.state(), host.front), (&SwitchState::Switched, Some(Blue)));
}

/// A crash at the n-th chance of a run. False when there is none.
fn crash_at(host: &mut Host, n: usize, write: Write, end: End) -> bool {
    for chance in 0..32 {
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
fn a_crash_anywhere_ends_as_if_there_was_none() {
    for failing in [false, true] {
        for (write, end) in [(Write::CrashBefore, End::CrashBefore), (Write::CrashAfter, End::CrashAfter)] {
            for n in 0.. {
                let mut host = Host::on_blue();
                host.say(order(2, Green));
                if failing {
                    host.up_to(is_verify);
                    host.finish(End::Bad);
                }
                let crashed = crash_at(&mut host, n, write, end);
                // A reconnect says it again.
                host.say(order(2, Green));
                if failing && matches!(host.state(), SwitchState::Verifying | SwitchState::Switching | SwitchState::Checking) {
                    // The failure was not durable: it fails again.
                    host.up_to(is_verify);
                    host.finish(End::Bad);
                }
                host.run_out();
                let wanted = if failing { Blue } else { Green };
                assert_eq!((host.active(), host.front), (Some(wanted), Some(wanted)), "{failing} {write:?} at {n}");
                assert_eq!(host.switch.shown().progress(), if failing { SwitchProgress::Failed } else { SwitchProgress::Switched });
                if !crashed {
                    assert!(n >= 4, "only {n} crash points");
                    break;
                }
            }
        }
    }
}

#[test]
fn at_rest_a_start_of_the_agent_does_nothing() {
    let mut host = Host::on_blue();
    host.crash();
    assert!(host.op.is_none() && host.out.is_none());
    assert_eq!((host.state(), host.active()), (&SwitchState::Switched, Some(Blue)));
}

#[test]
fn a_waiting_order_survives_a_crash() {
    let mut host = Host::on_blue();
    host.say(order(2, Green));
    host.up_to(is_command);
    host.say(order(3, Blue));
    host.write(Write::Good);
    host.finish(End::CrashAfter);
    host.run_out();
    assert_eq!((host.active(), host.front, host.switch.shown().generation()), (Some(Blue), Some(Blue), Generation::new(1, 3)));
}

#[test]
fn on_a_disk_that_refuses_nothing_is_begun_and_no_success_is_claimed() {
    // The order itself is refused: nothing is touched.
    let mut host = Host::on_blue();
    host.say(order(2, Green));
    host.write(Write::Refused);
    assert_eq!((cause(&host), host.front, host.commands.len()), (Some(Cause::Disk), Some(Blue), 0));
    // Said again, it is offered to the disk again.
    host.say(order(2, Green));
    host.run_out();
    assert_eq!((cause(&host), host.disk.as_ref().unwrap().generation()), (Some(Cause::Disk), Generation::new(1, 2)));

    // Switched, but the disk does not take it: back to what it says.
    let mut host = Host::on_blue();
    host.say(order(2, Green));
    host.up_to(is_verify);
    host.finish(End::Good);
    host.write(Write::Refused);
    host.run_out();
    assert_eq!((cause(&host), host.active(), host.front), (Some(Cause::Disk), Some(Blue), Some(Blue)));

    // It never comes back: that is no loop.
    let mut host = Host::on_blue();
    host.say(order(2, Blue));
    host.up_to(is_command);
    for _ in 0..40 {
        if host.out.is_some() {
            host.write(Write::Refused);
        } else if host.op.is_some() {
            host.finish(End::Good);
        }
    }
    assert!(host.op.is_none() && host.out.is_none());
    assert_eq!((host.state(), host.front, host.commands.len()), (&SwitchState::Switched, Some(Blue), 1));
}

type Choice = (u8, u8, u8);

fn run(choices: Vec<Choice>, refuse: bool) {
    let mut host = Host::new();
    let mut minted: Vec<SwitchOrder> = Vec::new();
    for (what, how, which) in choices {
        if host.out.is_some() && what < 190 {
            host.write(match how % 40 {
                0 => Write::CrashBefore,
                1 => Write::CrashAfter,
                2..6 if refuse => Write::Refused,
                _ => Write::Good,
            });
        } else if host.op.is_some() && what < 200 {
            host.finish(match how % 16 {
                0 => End::CrashBefore,
                1 => End::CrashAfter,
                2..4 => End::Bad,
                4 => End::BadButDone,
                _ => End::Good,
            });
        } else if how < 16 {
            host.crash();
        } else {
            // A new one, or any old one again.
            if how % 2 == 0 || minted.is_empty() {
                let to = if which % 2 == 0 { Blue } else { Green };
                minted.push(order(minted.len() as u64 + 1, to));
                host.say(minted.last().unwrap().clone());
            } else {
                let word = minted[usize::from(which) % minted.len()].clone();
                host.say(word);
            }
        }
    }
    // The newest is said again, as a reconnect would, and everything ends well.
    if let Some(word) = minted.last() {
        host.say(word.clone());
    }
    host.run_out();
    let shown = host.switch.shown().clone();
    assert_eq!(shown.generation(), host.newest);
    if shown.state == SwitchState::Switched {
        assert_eq!((shown.active, host.front), (minted.last().map(|order| order.to), minted.last().map(|order| order.to)));
    }
    // Whatever happened before: the next order that goes well is obeyed.
    let to = if host.front == Some(Blue) { Green } else { Blue };
    host.say(order(minted.len() as u64 + 1, to));
    host.run_out();
    assert_eq!((host.state(), host.active(), host.front), (&SwitchState::Switched, Some(to), Some(to)));
    // And durable: a crash changes nothing.
    host.crash();
    assert!(host.op.is_none());
    assert_eq!(host.active(), Some(to));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold(choices in prop::collection::vec(any::<Choice>(), 1..80)) {
        run(choices, false);
    }

    #[test]
    fn invariants_hold_on_a_disk_that_refuses(choices in prop::collection::vec(any::<Choice>(), 1..80)) {
        run(choices, true);
    }
}

#[test]
fn a_record_reads_back_and_an_older_one_too() {
    let mut host = Host::on_blue();
    host.say(order(2, Green));
    host.up_to(is_command);
    host.say(order(3, Blue));
    let record = host.out.clone().unwrap();
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<SwitchRecord>(&text).unwrap(), record);
    let bare = r#"{ "component": "api", "active": "blue", "order": null, "state": "switched" }"#;
    assert_eq!(serde_json::from_str::<SwitchRecord>(bare).unwrap().active, Some(Blue));
}
