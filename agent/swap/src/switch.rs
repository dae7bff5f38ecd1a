//! The switch: which of a component's two sides serves, and the way from one to
//! the other and back.
//!
//! Owns: the order of a switch's steps, what the ledger says before each of them,
//! and crash recovery. Must not: touch the sides themselves; they have machines of
//! their own. DESIGN.md, "The switch", has the tables.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::{Cause, Failure, bounded};
use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::{ComponentName, Generation, Side, SwitchOrder};

use crate::action::OpId;

/// One switch's durable record. JSON in the ledger; fields are only added, each
/// with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchRecord {
    /// Of which component.
    pub component: ComponentName,
    /// The side that was last verified to serve; none before the first switch.
    pub active: Option<Side>,
    /// The order that the state is about.
    pub order: Option<SwitchOrder>,
    /// A newer one, that waits for a command to end.
    #[serde(default)]
    pub pending: Option<SwitchOrder>,
    /// A command was begun since `active` was last verified: traffic may be elsewhere.
    #[serde(default)]
    pub moved: bool,
    /// How far the order has come.
    pub state: SwitchState,
}

/// Where a switch is. Each variant is durable before its first effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchState {
    /// Nothing was ever ordered.
    Idle,
    /// Is the ordered side fit to serve?
    Checking,
    /// The command runs.
    Switching,
    /// The verification runs.
    Verifying,
    /// The command runs with the side of before, then its verification.
    Undoing(Failure),
    /// On the ordered side, verified.
    Switched,
    /// Not switched; traffic is where it was (if it was anywhere).
    Failed(Failure),
    /// Neither switched nor put back.
    Stuck(Failure),
}

impl SwitchRecord {
    /// A component whose switch was never ordered.
    #[must_use]
    pub const fn new(component: ComponentName) -> Self {
        Self { component, active: None, order: None, pending: None, moved: false, state: SwitchState::Idle }
    }

    /// The highest generation seen; zero before the first.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.pending.as_ref().or(self.order.as_ref()).map_or(Generation::ZERO, |order| order.generation)
    }

    /// How far that generation has come.
    #[must_use]
    pub fn progress(&self) -> SwitchProgress {
        match &self.state {
            _ if self.pending.is_some() => SwitchProgress::Switching,
            SwitchState::Idle => SwitchProgress::None,
            SwitchState::Checking | SwitchState::Switching | SwitchState::Verifying | SwitchState::Undoing(_) => SwitchProgress::Switching,
            SwitchState::Switched => SwitchProgress::Switched,
            SwitchState::Failed(_) => SwitchProgress::Failed,
            SwitchState::Stuck(_) => SwitchProgress::Stuck,
        }
    }

    /// Why it failed, once it has.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match &self.state {
            SwitchState::Failed(failure) | SwitchState::Stuck(failure) if self.pending.is_none() => Some(failure),
            _ => None,
        }
    }
}

/// What a switch reacts to. It has no deadlines of its own: the driver bounds
/// every operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "an event lives as long as one call")]
pub enum SwitchEvent {
    /// The controller's word, new or said again.
    Ordered(SwitchOrder),
    /// The record of the last [`SwitchAction::Persist`] is durable.
    Persisted,
    /// It is not; why.
    PersistFailed(String),
    /// An operation ended.
    Done(OpId, Result<(), Failure>),
}

/// In the order polled, as [`crate::Action`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a handful of actions wait at a time, and most of them are Persist")]
pub enum SwitchAction {
    /// Make the record durable; nothing else is asked before the answer.
    Persist(SwitchRecord),
    /// Start this operation; its end comes as [`SwitchEvent::Done`].
    Run(OpId, SwitchOp),
    /// Call that operation back; no [`SwitchEvent::Done`] is wanted for it. Never
    /// said of a command.
    Cancel(OpId),
    /// Something that the controller should see has changed.
    Report,
}

/// One operation; each is idempotent. The order says which command and which
/// verification, the side whom they are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwitchOp {
    /// The side's standing release runs and is proven; command and verification
    /// are such that local policy allows them. Changes nothing.
    Check(SwitchOrder),
    /// Move the traffic to the side. The flag: on the way back.
    Command(SwitchOrder, Side, bool),
    /// What must hold then; passes if the order has none. The flag as above.
    Verify(SwitchOrder, Side, bool),
}

/// The switch of one component on one host.
pub struct Switch {
    /// As it shall be: durable, or about to be.
    record: SwitchRecord,
    /// As it was when last durable or, if the disk refused, as it stands in memory.
    settled: Box<SwitchRecord>,
    actions: VecDeque<SwitchAction>,
    running: Option<(OpId, Kind)>,
    next_op: u64,
    /// A [`SwitchAction::Persist`] is out; what follows its answer.
    saving: Option<Then>,
    /// The disk refused what stands: the next word offers it again.
    unsaved: bool,
    waiting_word: Option<SwitchOrder>,
    waiting_done: Option<(OpId, Result<(), Failure>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Check,
    Command,
    Verify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Enter,
    Stay,
}

impl Switch {
    /// Never ordered before.
    #[must_use]
    pub fn new(component: ComponentName) -> Self {
        Self::hold(SwitchRecord::new(component))
    }

    /// After a crash, a restart or a reboot: the step of the recorded state again.
    #[must_use]
    pub fn recover(record: SwitchRecord) -> Self {
        let mut switch = Self::hold(record);
        switch.resume();
        switch
    }

    fn hold(record: SwitchRecord) -> Self {
        Self {
            settled: Box::new(record.clone()),
            record,
            actions: VecDeque::new(),
            running: None,
            next_op: 0,
            saving: None,
            unsaved: false,
            waiting_word: None,
            waiting_done: None,
        }
    }

    /// What is shown: durable, or as it stands in memory after the disk refused.
    #[must_use]
    pub fn shown(&self) -> &SwitchRecord {
        &self.settled
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: SwitchEvent) {
        match event {
            SwitchEvent::Persisted => {
                if let Some(then) = self.saving.take() {
                    self.unsaved = false;
                    self.settle(then);
                }
            }
            SwitchEvent::PersistFailed(why) => self.persist_failed(&why),
            SwitchEvent::Ordered(word) => {
                if self.waiting_word.as_ref().is_none_or(|old| word.generation > old.generation) {
                    self.waiting_word = Some(word);
                }
            }
            SwitchEvent::Done(id, result) => {
                // Others are late: of an operation that was called back.
                if self.running.is_some_and(|(running, _)| running == id) {
                    self.waiting_done = Some((id, result));
                }
            }
        }
        // Each turn takes one of the two, and none comes back.
        while self.saving.is_none() {
            if let Some((id, result)) = self.waiting_done.take() {
                self.done(id, result);
            } else if let Some(word) = self.waiting_word.take() {
                self.ordered(word);
            } else {
                return;
            }
        }
    }

    /// What to do next; `None` until another event.
    pub fn poll_action(&mut self) -> Option<SwitchAction> {
        self.actions.pop_front()
    }

    fn ordered(&mut self, word: SwitchOrder) {
        if word.component != self.record.component || word.generation <= self.record.generation() {
            self.actions.push_back(SwitchAction::Report);
            if self.unsaved {
                self.save(Then::Stay);
            }
            return;
        }
        match self.running {
            // Half a command is nobody's wish.
            Some((_, Kind::Command)) => {
                self.record.pending = Some(word);
                self.save(Then::Stay);
            }
            Some((id, Kind::Check | Kind::Verify)) => {
                self.running = None;
                self.actions.push_back(SwitchAction::Cancel(id));
                self.take(word);
            }
            None => self.take(word),
        }
    }

    fn take(&mut self, word: SwitchOrder) {
        self.record.pending = None;
        self.record.order = Some(word);
        self.go(SwitchState::Checking);
    }

    /// After a crash. What a command wrote just before a power cut may be lost, so
    /// what is to be verified is switched again.
    fn resume(&mut self) {
        if let Some(word) = self.record.pending.take() {
            return self.take(word);
        }
        match self.record.state {
            SwitchState::Verifying => self.go(SwitchState::Switching),
            _ => self.enter(),
        }
    }

    fn go(&mut self, state: SwitchState) {
        self.record.state = state;
        self.save(Then::Enter);
    }

    fn save(&mut self, then: Then) {
        self.saving = Some(then);
        self.actions.push_back(SwitchAction::Persist(self.record.clone()));
    }

    fn settle(&mut self, then: Then) {
        *self.settled = self.record.clone();
        self.actions.push_back(SwitchAction::Report);
        if then == Then::Enter {
            self.enter();
        }
    }

    /// The effect of a state, once it is durable.
    fn enter(&mut self) {
        let Some(order) = self.record.order.clone() else { return };
        let to = order.to;
        match (&self.record.state, self.record.active) {
            (SwitchState::Checking, _) => self.run(Kind::Check, SwitchOp::Check(order)),
            (SwitchState::Switching, _) => self.run(Kind::Command, SwitchOp::Command(order, to, false)),
            (SwitchState::Verifying, _) => self.run(Kind::Verify, SwitchOp::Verify(order, to, false)),
            (SwitchState::Undoing(_), Some(active)) => self.run(Kind::Command, SwitchOp::Command(order, active, true)),
            _ => {}
        }
    }

    fn run(&mut self, kind: Kind, op: SwitchOp) {
        let id = OpId(self.next_op);
        self.next_op = self.next_op.saturating_add(1);
        self.running = Some((id, kind));
        self.actions.push_back(SwitchAction::Run(id, op));
    }

    fn done(&mut self, id: OpId, result: Result<(), Failure>) {
        let Some((_, kind)) = self.running.take_if(|(running, _)| *running == id) else { return };
        // Whatever came of the command: a newer order says where traffic shall be.
        if let Some(word) = self.record.pending.take() {
            return self.take(word);
        }
        let result = result.map_err(|failure| Failure { message: bounded(&failure.message), ..failure });
        match (self.record.state.clone(), kind, result) {
            (SwitchState::Checking, _, Ok(())) => {
                self.record.moved = true;
                self.go(SwitchState::Switching);
            }
            (SwitchState::Checking, _, Err(why)) if !self.record.moved => self.go(SwitchState::Failed(why)),
            (SwitchState::Switching, _, Ok(())) => self.go(SwitchState::Verifying),
            (SwitchState::Verifying, _, Ok(())) => self.switched(),
            (SwitchState::Checking | SwitchState::Switching | SwitchState::Verifying, _, Err(why)) => self.undo(why),
            (SwitchState::Undoing(_), Kind::Command, Ok(())) => {
                if let (Some(order), Some(active)) = (self.record.order.clone(), self.record.active) {
                    self.run(Kind::Verify, SwitchOp::Verify(order, active, true));
                }
            }
            (SwitchState::Undoing(why), _, Ok(())) => self.undone(why),
            (SwitchState::Undoing(why), _, Err(problem)) => {
                let text = format!("{}; and putting the traffic back failed: {}", why.message, problem.message);
                self.go(SwitchState::Stuck(failure(why.cause, &text)));
            }
            // Nothing runs in the others.
            _ => {}
        }
    }

    fn switched(&mut self) {
        self.record.active = self.record.order.as_ref().map(|order| order.to);
        self.record.moved = false;
        self.go(SwitchState::Switched);
    }

    fn undo(&mut self, why: Failure) {
        if self.record.active.is_some() {
            return self.go(SwitchState::Undoing(why));
        }
        // There is nowhere to go back to.
        let text = format!("{}; no side served before, so traffic was not moved again", why.message);
        self.go(SwitchState::Failed(failure(why.cause, &text)));
    }

    fn undone(&mut self, why: Failure) {
        self.record.moved = false;
        if self.record.order.as_ref().map(|order| order.to) == self.record.active {
            // The second try did what was ordered.
            return self.go(SwitchState::Switched);
        }
        self.go(SwitchState::Failed(why));
    }

    /// Table "The disk refuses": nothing new is begun, a claim of success is taken
    /// back, and what only looks or goes back goes on in memory.
    fn persist_failed(&mut self, why: &str) {
        let Some(then) = self.saving.take() else { return };
        self.unsaved = true;
        let disk = failure(Cause::Disk, &format!("the ledger cannot be written: {why}"));
        match self.record.state {
            _ if then == Then::Stay => self.settle(then),
            SwitchState::Checking => self.refused(disk),
            SwitchState::Switching => {
                self.record.moved = self.settled.moved;
                self.refused(disk);
            }
            // That this side serves is durable already.
            SwitchState::Switched if self.record.active == self.settled.active => self.settle(then),
            SwitchState::Switched => {
                self.record.active = self.settled.active;
                self.record.moved = true;
                self.refused(disk);
            }
            _ => self.settle(then),
        }
    }

    fn refused(&mut self, disk: Failure) {
        self.record.state = match self.record.active {
            Some(_) if self.record.moved => SwitchState::Undoing(disk),
            _ => SwitchState::Failed(disk),
        };
        self.settle(Then::Enter);
    }
}

fn failure(cause: Cause, message: &str) -> Failure {
    Failure { cause, message: bounded(message) }
}
