//! A model host: link, service, trees, ledger. It performs what the machine asks,
//! and holds the invariants after every step.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::report::{Cause, Failure, Progress, SmokeResult, SmokeStatus};
use tidegate_protocol::{Assignment, Digest, Generation, Intent, Millis, Phase, ReleaseRef, Target, Timestamp};
use tidegate_swap::{Action, Event, Machine, Op, OpId, Outcome, Record, Restart, State, Step};

pub(crate) fn release(n: u8) -> ReleaseRef {
    ReleaseRef { id: format!("shop@{n}").parse().unwrap(), manifest: Digest::of(&[n]) }
}

pub(crate) fn to(n: u8) -> Target {
    Target::Release(release(n))
}

/// Releases 0 and 1 share their executable: only their trees differ.
fn executable(release: &ReleaseRef) -> u8 {
    (0..8).find(|n| *release == self::release(*n)).map_or(9, |n| n.max(1))
}

pub(crate) fn word(n: u64, intent: Intent, target: Target, phase: Phase) -> Assignment {
    Assignment {
        generation: Generation::new(1, n),
        component: "api".parse().unwrap(),
        rollout: "r1".parse().unwrap(),
        intent,
        target,
        phase,
        healthy_deadline: Millis(60_000),
        confirm_within: Millis(20_000),
        accept_drift: false,
        integration: false,
        reversible: true,
    }
}

pub(crate) fn forward(n: u64, release: u8, phase: Phase) -> Assignment {
    word(n, Intent::Forward, to(release), phase)
}

pub(crate) fn back(n: u64, target: Target) -> Assignment {
    word(n, Intent::Back, target, Phase::Swap)
}

pub(crate) fn broken(cause: Cause) -> Failure {
    Failure { cause, message: "broken".into() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Good,
    Refused,
    CrashBefore,
    CrashAfter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Good,
    Bad,
    CrashBefore,
    CrashAfter,
}

#[derive(Clone, Debug)]
struct Process {
    tree: ReleaseRef,
    started: Timestamp,
}

pub(crate) struct Host {
    pub(crate) machine: Machine,
    /// Answers every Persist well, at once.
    pub(crate) auto: bool,
    pub(crate) disk: Option<Record>,
    pub(crate) link: Option<ReleaseRef>,
    process: Option<Process>,
    /// The last start failed: what runs then is anybody's guess.
    sick: bool,
    pub(crate) starts: u32,
    pub(crate) trees: BTreeSet<ReleaseRef>,
    /// The tree whose running process passed its smoke tests on this boot.
    proved: Option<ReleaseRef>,
    pub(crate) now: Timestamp,
    boot: u32,
    pub(crate) op: Option<(OpId, Op)>,
    pub(crate) out: Option<Record>,
    pub(crate) ops: Vec<Op>,
    pub(crate) reports: u32,
    refused: bool,
    rebooted: bool,
    /// The disk refused what was shown, then a crash lost it: only the lease and
    /// the fence hold for these.
    lost: BTreeSet<Generation>,
    fence: Generation,
    shown: BTreeMap<Generation, Progress>,
    moved: BTreeMap<Generation, u32>,
    confirmed: BTreeSet<Generation>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            machine: Machine::new("api".parse().unwrap(), "boot-0".parse().unwrap()),
            auto: true,
            disk: None,
            link: None,
            process: None,
            sick: false,
            starts: 0,
            trees: BTreeSet::new(),
            proved: None,
            now: Timestamp(1_000_000),
            boot: 0,
            op: None,
            out: None,
            ops: Vec::new(),
            reports: 0,
            refused: false,
            rebooted: false,
            lost: BTreeSet::new(),
            fence: Generation::ZERO,
            shown: BTreeMap::new(),
            moved: BTreeMap::new(),
            confirmed: BTreeSet::new(),
        }
    }

    /// A host on which that release is confirmed as generation 1.
    pub(crate) fn on(n: u8) -> Self {
        let mut host = Self::new();
        host.say(forward(1, n, Phase::Confirm));
        host.run_out();
        assert_eq!(*host.state(), State::Confirmed);
        host.ops.clear();
        host
    }

    pub(crate) fn state(&self) -> &State {
        &self.machine.record().state
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.machine.handle(self.now, self.now.0 + 5, event);
        self.pump();
    }

    pub(crate) fn say(&mut self, word: Assignment) {
        self.event(Event::Assigned(word));
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.now = self.now + Millis(ms);
        self.event(Event::Timeout);
    }

    /// The supervisor restarts it by itself: it starts from what the link names.
    pub(crate) fn restart_by_itself(&mut self) {
        self.process = self.process.take().and(self.link.clone()).map(|tree| Process { tree, started: self.now });
    }

    pub(crate) fn crash(&mut self) {
        if self.refused {
            self.lost.extend(self.shown.keys().copied());
            self.lost.extend(self.machine.record().assignment.as_ref().map(|word| word.generation));
            self.lost.insert(self.machine.generation());
            self.fence = Generation::ZERO;
            if let Some(disk) = &self.disk {
                self.fence = seen(disk);
            }
        }
        (self.op, self.out, self.refused) = (None, None, false);
        let boot_id = format!("boot-{}", self.boot).parse().unwrap();
        self.machine = match self.disk.clone() {
            None => Machine::new("api".parse().unwrap(), boot_id),
            Some(record) => {
                let text = serde_json::to_string(&record).unwrap();
                assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record, "the ledger reads back what it wrote");
                Machine::recover(record, boot_id, self.now, self.now.0 + 5)
            }
        };
        self.pump();
    }

    pub(crate) fn reboot(&mut self) {
        self.boot += 1;
        self.now = Timestamp(5_000);
        self.process = self.link.clone().map(|tree| Process { tree, started: self.now });
        self.now = Timestamp(9_000);
        self.proved = None;
        self.rebooted = true;
        self.crash();
    }

    pub(crate) fn write(&mut self, how: Write) {
        let record = self.out.take().expect("a Persist is out");
        if matches!(how, Write::Good | Write::CrashAfter) {
            self.fence = self.fence.max(seen(&record));
            self.check_claim(&record);
            self.disk = Some(record);
            self.refused = false;
        }
        match how {
            Write::Good => self.event(Event::Persisted),
            Write::Refused => {
                self.refused = true;
                self.event(Event::PersistFailed("no space".into()));
            }
            Write::CrashBefore | Write::CrashAfter => self.crash(),
        }
    }

    pub(crate) fn ok(&mut self) {
        self.finish(End::Good);
    }

    pub(crate) fn bad(&mut self) {
        self.finish(End::Bad);
    }

    pub(crate) fn finish(&mut self, how: End) {
        let (id, op) = self.op.take().expect("an operation runs");
        // Nothing takes no time: what an operation starts is younger than its mark.
        self.now = self.now + Millis(1);
        let mut good = matches!(how, End::Good | End::CrashAfter);
        // After a revert that the disk refused to record was lost, only the link
        // tells: the driver's proof fails then.
        if !self.lost.is_empty() {
            good &= match &op {
                Op::Activate { to, .. } => self.link.as_ref() == to.release(),
                Op::Smoke { target, .. } => self.process.as_ref().is_some_and(|process| process.tree == *target),
                _ => true,
            };
        }
        if matches!(op, Op::Activate { .. }) {
            self.sick = !good;
        }
        if good {
            self.effect(&op);
        }
        let outcome = match (&op, good) {
            (Op::Observe { .. }, healthy) => Outcome::Observed { healthy },
            (Op::Smoke { .. }, good) => {
                let status = if good { SmokeStatus::Pass } else { SmokeStatus::Fail };
                let results = vec![SmokeResult { id: "http".into(), status, duration_ms: 1, message: String::new() }];
                Outcome::Smoke { results, failure: (!good).then(|| broken(Cause::Smoke)) }
            }
            (_, true) => Outcome::Ok,
            (_, false) => Outcome::Failed(broken(Cause::StartFailed)),
        };
        match how {
            End::Good | End::Bad => self.event(Event::Done(id, outcome)),
            End::CrashBefore | End::CrashAfter => self.crash(),
        }
    }

    fn effect(&mut self, op: &Op) {
        match op {
            Op::Stage { target } => {
                self.trees.insert(target.clone());
            }
            Op::Flip { to } => {
                let word = self.machine.record().assignment.clone().unwrap();
                let forward = matches!(self.state(), State::Swapping(_));
                if forward && self.link.as_ref() != to.release() {
                    let moved = self.moved.entry(word.generation).or_default();
                    *moved += 1;
                    assert!(*moved <= 1 || self.lost.contains(&word.generation), "{} was swapped twice", word.generation);
                }
                self.link = to.release().cloned();
                assert!(self.link.as_ref().is_none_or(|link| self.trees.contains(link)), "I2: the link names an incomplete tree");
            }
            Op::Activate { to: Target::Absent, .. } => self.process = None,
            Op::Activate { to: Target::Release(to), restart, .. } => {
                assert_eq!(self.link.as_ref(), Some(to), "activated what the link does not name");
                let stays = self.process.as_ref().is_some_and(|process| {
                    let right = executable(&process.tree) == executable(to);
                    match restart {
                        Restart::Always => false,
                        Restart::UnlessProven(None) => right,
                        Restart::UnlessProven(Some(mark)) => {
                            assert_eq!(mark.boot_id.as_str(), format!("boot-{}", self.boot), "a mark of another boot");
                            right && process.started >= mark.at
                        }
                    }
                });
                if !stays {
                    self.starts += 1;
                    self.proved = None;
                    self.process = Some(Process { tree: to.clone(), started: self.now });
                }
            }
            Op::Smoke { target, .. } => {
                let process = self.process.as_ref().expect("a smoke test of a service that runs");
                if process.tree == *target {
                    self.proved = Some(target.clone());
                }
            }
            Op::Collect { keep } => self.trees.retain(|tree| keep.contains(tree)),
            _ => {}
        }
    }

    pub(crate) fn pump(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            assert!(self.out.is_none(), "asked before the Persist was answered: {action:?}");
            match action {
                Action::Persist(record) => {
                    for entry in &record.history {
                        assert!(entry.swaps <= 1, "counted twice: {entry:?}");
                    }
                    assert!(record.history.len() <= 32);
                    self.out = Some(record);
                    if self.auto {
                        self.write(Write::Good);
                    }
                }
                Action::Run(id, op) => {
                    assert!(self.op.is_none(), "{op:?} beside {:?}", self.op);
                    self.check_op(&op);
                    self.ops.push(op.clone());
                    self.op = Some((id, op));
                }
                Action::Cancel(id) => {
                    let (running, op) = self.op.take().expect("cancelled what runs");
                    assert_eq!(running, id);
                    assert!(!matches!(op, Op::Flip { .. }), "a flip that began is finished");
                }
                Action::Report => self.reports += 1,
            }
        }
        self.check();
    }

    /// I5, and what may follow an end.
    fn check_op(&mut self, op: &Op) {
        let record = self.machine.record();
        let word = record.assignment.as_ref().expect("an operation of a generation");
        let goes_back = matches!(record.state, State::Reverting(..) | State::Swapping(Step::Undrain));
        if !goes_back && word.reversible {
            assert!(word.generation >= self.fence, "I5: {op:?} for {} below {}", word.generation, self.fence);
        }
        if matches!(op, Op::Flip { .. } | Op::Activate { .. }) {
            assert!(!self.confirmed.contains(&word.generation), "{} was confirmed, yet {op:?}", word.generation);
            let shown = self.shown.get(&word.generation).filter(|_| !self.lost.contains(&word.generation));
            let over = shown.is_some_and(|progress| progress.is_final() || *progress == Progress::Reverting);
            assert!(goes_back || !over, "{op:?} forward after {shown:?}");
        }
    }

    /// Healthy and confirmed are observations.
    fn check_claim(&mut self, record: &Record) {
        if !matches!(record.state, State::Healthy | State::Confirmed) || !self.lost.is_empty() {
            return;
        }
        let word = record.assignment.as_ref().unwrap();
        let target = word.target.release();
        assert_eq!(self.link.as_ref(), target, "claimed {:?}, the link says otherwise", record.state);
        assert_eq!(self.proved.as_ref(), target, "claimed {:?}, not proven", record.state);
        if record.state == State::Confirmed {
            self.confirmed.insert(word.generation);
        }
    }

    fn check(&mut self) {
        let generation = self.machine.generation();
        let last = self.shown.last_key_value().map(|(generation, _)| *generation);
        assert!(last.is_none_or(|last| last <= generation || self.lost.contains(&last)), "generation fell: {last:?} {generation}");
        let progress = self.machine.progress();
        if generation != Generation::ZERO {
            let old = self.shown.insert(generation, progress);
            if let Some(old) = old.filter(|_| !self.lost.contains(&generation)) {
                let again = self.rebooted && old == Progress::Healthy;
                let fine =
                    old == progress || (!old.is_final() && rank(progress) >= rank(old)) || (again && progress == Progress::Probation);
                let back =
                    old != Progress::Reverting || matches!(progress, Progress::Reverting | Progress::Reverted | Progress::RevertFailed);
                assert!(fine && back, "{generation}: {old:?} became {progress:?}");
            }
        }
        let record = self.machine.record();
        assert!(self.link.as_ref().is_none_or(|link| self.trees.contains(link)), "I2");
        if self.lost.is_empty() {
            assert!(record.standing.as_ref().is_none_or(|tree| self.trees.contains(tree)), "I7: what stands was collected");
            let from = record.swap.as_ref().filter(|_| !record.state.progress().is_final() && rank(record.state.progress()) >= 4);
            let from = from.and_then(|swap| swap.from.release());
            assert!(from.is_none_or(|tree| self.trees.contains(tree)), "I7: the way back was collected");
        }
    }

    /// Everything ends well from here, and every deadline fires.
    pub(crate) fn run_out(&mut self) {
        for _ in 0..400 {
            if self.out.is_some() {
                self.write(Write::Good);
            } else if self.op.is_some() {
                self.ok();
            } else if let Some(at) = self.machine.poll_timeout() {
                self.now = self.now.max(at);
                self.event(Event::Timeout);
            } else {
                return self.check_rest();
            }
        }
        panic!("does not come to rest: {:?}", self.state());
    }

    fn check_rest(&self) {
        let record = self.machine.record();
        let phase = record.assignment.as_ref().map_or(Phase::Preflight, |word| word.phase);
        let reversible = record.assignment.as_ref().is_none_or(|word| word.reversible);
        assert!(record.pending.is_none(), "left waiting");
        let rests = match &record.state {
            State::Idle => true,
            State::Checked => phase == Phase::Preflight,
            State::Staged => phase == Phase::Stage,
            State::Healthy => phase == Phase::Swap && !reversible,
            state => state.progress().is_final(),
        };
        assert!(rests, "rests in {:?} at phase {phase:?}", record.state);
        let stands = matches!(record.state, State::Confirmed | State::Reverted { .. } | State::Cancelled | State::Checked | State::Staged);
        let gave_up = record.history.iter().any(|entry| entry.progress == Progress::RevertFailed);
        if stands && self.lost.is_empty() && !gave_up {
            assert_eq!(self.link, record.standing, "at rest in {:?}", record.state);
            let tree = self.process.as_ref().map(|process| &process.tree);
            assert!(self.sick || tree == record.standing.as_ref(), "runs {tree:?} in {:?}", record.state);
        }
    }
}

fn seen(record: &Record) -> Generation {
    let word = record.pending.as_ref().or(record.assignment.as_ref());
    word.map_or(Generation::ZERO, |word| word.generation)
}

fn rank(progress: Progress) -> u8 {
    match progress {
        Progress::Checking => 0,
        Progress::Checked => 1,
        Progress::Staging => 2,
        Progress::Staged => 3,
        Progress::Swapping => 4,
        Progress::Probation => 5,
        Progress::Healthy => 6,
        Progress::Reverting => 7,
        _ => 8,
    }
}
