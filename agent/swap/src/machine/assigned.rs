//! The controller's words: tables "Words of the controller", "Phase rises" and
//! "Newer generation".

use super::*;

impl Machine {
    pub(super) fn assigned(&mut self, word: Assignment) {
        let seen = highest(&self.record);
        if word.component != self.record.component || word.generation < seen {
            self.actions.push_back(Action::Report);
        } else if word.generation > seen || self.record.assignment.is_none() {
            self.newer(word);
        } else if let Some(pending) = &self.record.pending {
            if rises(pending, &word) {
                self.record.pending = Some(word);
                self.save(Then::Stay);
            } else {
                self.said_again();
            }
        } else {
            self.same(word);
        }
    }

    /// Nothing new: the answer is where we are.
    fn said_again(&mut self) {
        self.actions.push_back(Action::Report);
        if self.unsaved.is_some() {
            self.save_again();
        }
    }

    fn same(&mut self, word: Assignment) {
        if !self.record.assignment.as_ref().is_some_and(|old| rises(old, &word)) {
            return self.said_again();
        }
        let phase = word.phase;
        let before_swap = matches!(self.record.state, State::Checking | State::Checked | State::Staging | State::Staged);
        match &self.record.state {
            _ if before_swap && phase == Phase::Cancel => {
                self.stop();
                self.record.assignment = Some(word);
                self.go(State::Cancelled);
            }
            _ if before_swap && word.intent == Intent::Back && phase >= Phase::Swap => {
                self.stop();
                self.begin_back(word);
            }
            State::Checking | State::Staging | State::Swapping(_) | State::Probation => {
                self.record.assignment = Some(word);
                self.save(Then::Stay);
            }
            State::Checked | State::Staged | State::Healthy => {
                self.record.assignment = Some(word);
                self.advance();
                if self.saving.is_none() {
                    self.save(Then::Stay);
                }
            }
            _ => self.said_again(),
        }
    }

    fn newer(&mut self, word: Assignment) {
        let back = word.intent == Intent::Back && word.phase >= Phase::Swap;
        match &self.record.state {
            State::Swapping(Step::Drain) if back || !self.record.swap.as_ref().is_some_and(|swap| swap.drained) => {
                self.stop();
                self.adopt(word);
            }
            State::Swapping(Step::Drain) => {
                self.stop();
                let why = superseded(&word);
                if let Some(swap) = self.record.swap.as_mut() {
                    swap.failure = Some(why);
                }
                self.record.pending = Some(word);
                self.go(State::Swapping(Step::Undrain));
            }
            State::Swapping(Step::Activate) | State::Probation | State::Healthy => self.supersede(word),
            State::Swapping(_) | State::Reverting(..) => {
                self.record.pending = Some(word);
                self.save(Then::Stay);
            }
            _ => {
                self.stop();
                self.adopt(word);
            }
        }
    }

    /// A newer generation meets a swap that has moved the link (no flip runs).
    pub(super) fn supersede(&mut self, word: Assignment) {
        if word.intent == Intent::Back && word.phase >= Phase::Swap {
            self.stop();
            self.adopt(word);
        } else if reversible(&self.record) {
            self.stop();
            let why = superseded(&word);
            self.record.pending = Some(word);
            self.begin_revert(why, true);
        } else {
            // Past the point of no return it runs on to its end.
            self.record.pending = Some(word);
            if self.record.state == State::Healthy { self.advance() } else { self.save(Then::Stay) }
        }
    }

    /// Makes a generation the present one. Nothing runs.
    pub(super) fn adopt(&mut self, word: Assignment) {
        self.record.pending = None;
        self.restart = None;
        self.doomed = None;
        if word.intent == Intent::Back && word.phase >= Phase::Swap {
            return self.begin_back(word);
        }
        self.record.swap = self.record.inherited();
        let state = match (&word.target, word.intent, word.phase) {
            (_, _, Phase::Cancel) => State::Cancelled,
            (Target::Absent, Intent::Forward, _) => {
                State::Failed(failure(Cause::Policy, String::from("a forward assignment must name a release; nothing was touched")))
            }
            _ => State::Checking,
        };
        self.record.assignment = Some(word);
        self.go(state);
    }
}

/// The same order, further. What it aims at never changes within a generation.
fn rises(old: &Assignment, new: &Assignment) -> bool {
    new.phase > old.phase && old.phase != Phase::Cancel && new.intent == old.intent && new.target == old.target
}

fn superseded(by: &Assignment) -> Failure {
    failure(Cause::Trigger, format!("superseded by generation {}", by.generation))
}
