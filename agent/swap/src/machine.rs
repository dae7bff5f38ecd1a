//! The machine itself: what it holds, how the record becomes durable, and what is
//! shown of it. The transitions are in the files below; DESIGN.md has the tables.

mod assigned;
mod back;
mod done;
mod enter;
mod recover;
mod time;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::report::{Cause, Failure, Progress, bounded};
use tidegate_protocol::{Assignment, BootId, ComponentName, Generation, Intent, Millis, Phase, ReleaseRef, Target, Timestamp, limits};

use crate::action::{Action, Op, OpId, Restart};
use crate::event::{Event, Outcome};
use crate::record::{HistoryEntry, Lease, Mark, Record, State, Step, Swap};

/// One component on one host.
pub struct Machine {
    /// As it shall be: durable, or about to be.
    record: Record,
    /// As it was when last durable or, if the disk refused, as it stands in memory.
    /// Only this is shown.
    settled: Box<Record>,
    boot_id: BootId,
    now: Timestamp,
    unix_ms: u64,
    actions: VecDeque<Action>,
    running: Option<Running>,
    next_op: u64,
    /// A [`Action::Persist`] is out; what follows its answer.
    saving: Option<Then>,
    /// The disk refused the record that stands.
    unsaved: Option<Retry>,
    /// Came, and not taken yet: nothing is taken while saving.
    waiting_word: Option<Assignment>,
    waiting_done: Option<(OpId, Outcome)>,
    /// After recovery: how the next Activate restarts.
    restart: Option<Restart>,
    /// The disk failed while a flip ran: it goes back once the flip is done.
    doomed: Option<Failure>,
}

struct Running {
    id: OpId,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Preflight,
    Stage,
    Check,
    Observe,
    Before,
    Flip,
    Activate,
    Smoke,
    After,
    Collect,
}

/// What follows once a record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The effect of the state it holds.
    Enter,
    /// Nothing new: an operation goes on, or the state waits.
    Stay,
}

/// The next try to make the record durable.
struct Retry {
    at: Timestamp,
    tried: u32,
}

impl Machine {
    /// A component never assigned before.
    #[must_use]
    pub fn new(component: ComponentName, boot_id: BootId) -> Self {
        let record = Record {
            component,
            assignment: None,
            state: State::Idle,
            standing: None,
            previous: None,
            swap: None,
            pending: None,
            history: Vec::new(),
        };
        Self::hold(record, boot_id, Timestamp(0), 0)
    }

    /// After a crash, a restart or a reboot: goes on from what the ledger says.
    #[must_use]
    pub fn recover(record: Record, boot_id: BootId, now: Timestamp, unix_ms: u64) -> Self {
        let mut machine = Self::hold(record, boot_id, now, unix_ms);
        machine.resume();
        machine
    }

    fn hold(record: Record, boot_id: BootId, now: Timestamp, unix_ms: u64) -> Self {
        let settled = Box::new(record.clone());
        Self {
            record,
            settled,
            boot_id,
            now,
            unix_ms,
            actions: VecDeque::new(),
            running: None,
            next_op: 0,
            saving: None,
            unsaved: None,
            waiting_word: None,
            waiting_done: None,
            restart: None,
            doomed: None,
        }
    }

    /// Takes an event in. `now` is time since boot; `unix_ms` only marks the swap.
    pub fn handle(&mut self, now: Timestamp, unix_ms: u64, event: Event) {
        self.now = now;
        self.unix_ms = unix_ms;
        match event {
            Event::Persisted => self.persisted(),
            Event::PersistFailed(why) => self.persist_failed(&why),
            Event::Assigned(word) => self.keep_word(word),
            Event::Done(id, outcome) => {
                // Others are late: of an operation that was cancelled.
                if self.running.as_ref().is_some_and(|running| running.id == id) {
                    self.waiting_done = Some((id, outcome));
                }
            }
            Event::Timeout if self.saving.is_some() => {}
            Event::Timeout => {
                self.look_at_deadline();
                self.retry_persist();
            }
        }
        self.take_waiting();
    }

    /// What to do next; `None` until another event.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Machine::handle`] with [`Event::Timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.saving.is_some() {
            return None;
        }
        let retry = self.unsaved.as_ref().filter(|retry| retry.tried < PERSIST_TRIES_MAX).map(|retry| retry.at);
        [self.deadline(), retry].into_iter().flatten().min()
    }

    /// The record as it stands (durable or about to be).
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// For the report: how far [`Machine::generation`] has come. A generation that
    /// waits for the present one's revert has come nowhere: `Checking`.
    #[must_use]
    pub fn progress(&self) -> Progress {
        if self.settled.pending.is_some() { Progress::Checking } else { self.settled.state.progress() }
    }

    /// Why that generation failed or goes back.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        if self.settled.pending.is_some() { None } else { self.settled.state.failure() }
    }

    /// The highest generation seen, a waiting one included; zero before the first.
    #[must_use]
    pub fn generation(&self) -> Generation {
        highest(&self.settled)
    }

    /// How long until the host reverts by itself; none when it will not.
    #[must_use]
    pub fn lease_left(&self, now: Timestamp) -> Option<Millis> {
        let settled = &self.settled;
        let waits = settled.state.unconfirmed() && reversible(settled);
        let lease = settled.swap.as_ref()?.lease.as_ref().filter(|lease| waits && lease.boot_id == self.boot_id)?;
        Some(lease.deadline.since(now))
    }

    /// Releases that are never collected: what stands, what stood before it, what
    /// is aimed at and what would be gone back to.
    #[must_use]
    pub fn keep(&self) -> Vec<ReleaseRef> {
        let mut keep = Vec::new();
        for record in [&self.record, &*self.settled] {
            let targets = [
                record.assignment.as_ref().map(|assignment| &assignment.target),
                record.pending.as_ref().map(|assignment| &assignment.target),
                record.swap.as_ref().map(|swap| &swap.from),
            ];
            let releases = targets.into_iter().flatten().filter_map(Target::release);
            for release in releases.chain(&record.standing).chain(&record.previous) {
                if !keep.contains(release) {
                    keep.push(release.clone());
                }
            }
        }
        keep
    }

    fn keep_word(&mut self, word: Assignment) {
        let newer = |old: &Assignment| (word.generation, word.phase) > (old.generation, old.phase);
        // Of one generation only the highest word counts, and phases jump: nothing
        // is lost by keeping one. A Cancel that a Swap follows must win, though.
        let cancelled = |old: &Assignment| old.generation == word.generation && old.phase == Phase::Cancel;
        if self.waiting_word.as_ref().is_none_or(|old| newer(old) && !cancelled(old)) {
            self.waiting_word = Some(word);
        }
    }

    fn take_waiting(&mut self) {
        // Each turn takes one of the two, and none comes back: at most two turns.
        while self.saving.is_none() && (self.waiting_done.is_some() || self.waiting_word.is_some()) {
            // The first of an event and an expiry is final, and an expiry has its
            // time: it comes before whatever arrives after it.
            self.look_at_deadline();
            if self.saving.is_some() {
                return;
            }
            if let Some((id, outcome)) = self.waiting_done.take() {
                self.done(id, outcome);
            } else if let Some(word) = self.waiting_word.take() {
                self.assigned(word);
            } else {
                return;
            }
        }
    }

    /// Asks for the record to be durable; nothing else is asked until it is.
    fn save(&mut self, then: Then) {
        note(&mut self.record);
        self.saving = Some(then);
        self.actions.push_back(Action::Persist(self.record.clone()));
    }

    fn go(&mut self, state: State) {
        self.record.state = state;
        self.save(Then::Enter);
    }

    fn persisted(&mut self) {
        let Some(then) = self.saving.take() else { return };
        self.unsaved = None;
        self.settle(then);
    }

    fn settle(&mut self, then: Then) {
        *self.settled = self.record.clone();
        self.actions.push_back(Action::Report);
        if then == Then::Enter {
            self.enter();
        }
    }

    /// Table "The disk refuses": never a claim that is not durable, never a step
    /// forward; a way back goes on in memory.
    fn persist_failed(&mut self, why: &str) {
        let Some(then) = self.saving.take() else { return };
        // A transition is a try of its own; only the same record again uses up tries.
        let before = self.unsaved.as_ref().map_or(0, |retry| retry.tried);
        let tried = if then == Then::Enter { 1 } else { before.saturating_add(1) };
        let wait = Millis(PERSIST_RETRY.0.saturating_mul(u64::from(tried)));
        self.unsaved = Some(Retry { at: self.now + wait, tried });
        let failure = Failure { cause: Cause::Disk, message: bounded(&format!("the ledger cannot be written: {why}")) };
        let flipping = self.running.as_ref().is_some_and(|running| running.kind == Kind::Flip);
        match (&self.settled.state, &self.record.state) {
            (State::Healthy, State::Confirmed) => {
                let phase = self.record.assignment.as_ref().map(|assignment| assignment.phase);
                self.record = (*self.settled).clone();
                if let (Some(assignment), Some(phase)) = (self.record.assignment.as_mut(), phase) {
                    assignment.phase = phase;
                }
            }
            (_, State::Cancelled | State::Failed(_) | State::Reverted { .. } | State::RevertFailed(_) | State::Swapping(Step::Undrain))
            | (State::Reverting(..), _) => self.settle(then),
            (settled, State::Reverting(..)) if !settled.at_rest() => self.settle(then),
            (settled, _) if settled.at_rest() => {
                self.stop();
                self.record.standing = self.settled.standing.clone();
                self.record.previous = self.settled.previous.clone();
                self.record.swap = self.settled.inherited();
                self.go_in_memory(State::Failed(failure));
            }
            (State::Swapping(Step::Drain), _) => {
                self.stop();
                self.record.history = self.settled.history.clone();
                self.record.swap = self.settled.swap.clone();
                match self.record.swap.as_mut().filter(|swap| swap.drained) {
                    Some(swap) => {
                        swap.failure = Some(failure);
                        self.go_in_memory(State::Swapping(Step::Undrain));
                    }
                    None => self.go_in_memory(State::Failed(failure)),
                }
            }
            _ if flipping => {
                self.doomed = Some(failure);
                self.settle(Then::Stay);
            }
            _ => {
                // From here the way back; it is persisted once more, and goes on
                // in memory if that fails too.
                self.stop();
                self.undo_transition();
                self.fail(failure);
            }
        }
    }

    /// The settled record again, but for what the controller said meanwhile and
    /// what the smoke tests showed.
    fn undo_transition(&mut self) {
        let wanted = core::mem::replace(&mut self.record, (*self.settled).clone());
        let same = highest_of(&wanted.assignment) == highest_of(&self.record.assignment);
        if same {
            self.record.pending = wanted.pending;
            self.record.assignment = wanted.assignment;
            if let (Some(swap), Some(old)) = (self.record.swap.as_mut(), wanted.swap) {
                swap.smoke = old.smoke;
            }
        } else {
            self.record.pending = wanted.pending.or(wanted.assignment);
        }
    }

    fn go_in_memory(&mut self, state: State) {
        self.record.state = state;
        note(&mut self.record);
        self.settle(Then::Enter);
    }

    /// A record that the disk refused is offered again, so many times in a row.
    fn retry_persist(&mut self) {
        let due = self.unsaved.as_ref().is_some_and(|retry| retry.tried < PERSIST_TRIES_MAX && self.now >= retry.at);
        if due && self.saving.is_none() {
            self.save_again();
        }
    }

    fn save_again(&mut self) {
        if self.record.state == State::Healthy && self.phase() == Phase::Confirm {
            self.confirm();
        } else {
            self.save(Then::Stay);
        }
    }

    fn run(&mut self, kind: Kind, op: Op) {
        let id = OpId(self.next_op);
        self.next_op = self.next_op.saturating_add(1);
        self.running = Some(Running { id, kind });
        self.actions.push_back(Action::Run(id, op));
    }

    /// Kills what runs. Never called on a flip: one that began is finished.
    fn stop(&mut self) {
        let ended = self.waiting_done.take().map(|(id, _)| id);
        if let Some(running) = self.running.take().filter(|running| ended != Some(running.id)) {
            // One that the driver has not seen yet is simply not asked.
            let asked = self.actions.len();
            self.actions.retain(|action| !matches!(action, Action::Run(id, _) if *id == running.id));
            if self.actions.len() == asked {
                self.actions.push_back(Action::Cancel(running.id));
            }
        }
    }

    fn phase(&self) -> Phase {
        self.record.assignment.as_ref().map_or(Phase::Preflight, |assignment| assignment.phase)
    }

    fn is_back(&self) -> bool {
        self.record.assignment.as_ref().is_some_and(|assignment| assignment.intent == Intent::Back)
    }

    fn mark(&self) -> Mark {
        Mark { boot_id: self.boot_id.clone(), at: self.now, unix_ms: self.unix_ms }
    }

    fn lease(&self, length: Millis) -> Lease {
        Lease { boot_id: self.boot_id.clone(), deadline: self.now + length }
    }

    fn healthy_deadline(&self) -> Millis {
        self.record.assignment.as_ref().map_or(Millis(0), |assignment| assignment.healthy_deadline)
    }
}

/// First wait between tries to persist; it grows by as much with each.
const PERSIST_RETRY: Millis = Millis(1_000);
/// Tries in a row, the first one included; then only another event tries again.
const PERSIST_TRIES_MAX: u32 = 6;

fn highest(record: &Record) -> Generation {
    let word = record.pending.as_ref().or(record.assignment.as_ref());
    word.map_or(Generation::ZERO, |assignment| assignment.generation)
}

fn highest_of(word: &Option<Assignment>) -> Option<Generation> {
    word.as_ref().map(|assignment| assignment.generation)
}

fn reversible(record: &Record) -> bool {
    record.assignment.as_ref().is_none_or(|assignment| assignment.reversible)
}

/// Keeps the present generation's line of the history up to date.
fn note(record: &mut Record) {
    let Some(assignment) = &record.assignment else { return };
    let progress = record.state.progress();
    match record.history.last_mut().filter(|entry| entry.generation == assignment.generation) {
        Some(entry) => entry.progress = progress,
        None => {
            let target = assignment.target.clone();
            record.history.push(HistoryEntry { generation: assignment.generation, target, swaps: 0, progress });
            let over = record.history.len().saturating_sub(limits::HISTORY_MAX);
            record.history.drain(..over);
        }
    }
}

fn failure(cause: Cause, message: String) -> Failure {
    Failure { cause, message: bounded(&message) }
}
