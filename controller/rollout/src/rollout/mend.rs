//! What a crash between two records of one decision left half done.
//!
//! A driver makes all records of one event durable together, so this finds nothing
//! to do; a journal that was cut elsewhere is brought to a state that goes on, and
//! no word of a person or a trigger in it is lost.

use alloc::format;

use tidegate_protocol::{Intent, Phase, Timestamp};

use super::{Freed, Rollout};
use crate::record::{Record, RolloutState, TargetState, Verb};

impl Rollout {
    /// After a restart, before anything else is decided.
    pub(super) fn mend(&mut self, now: Timestamp) {
        use RolloutState as S;
        if self.waits_to_begin() && self.given.began_at.is_some() {
            self.begin(now);
        } else if self.state == S::Scheduled && self.reason.is_empty() {
            self.enter(now);
        }
        if let Some(why) = self.owed_back.clone().filter(|_| self.is_live()) {
            self.begin_back(now, why);
        }
        if self.state == S::RollingBack {
            self.cancel_rest(now);
        }
        // Called back, but the order is missing.
        let may = self.past_return().is_none() || self.person_back;
        let called = self.which(|t| {
            may && t.state == TargetState::Reverting && t.counted && t.order.as_ref().is_some_and(|o| o.intent == Intent::Forward)
        });
        for at in called {
            self.order(now, at, Intent::Back, Phase::Swap);
        }
        let held = self.paused_by.is_some() || self.asked_at.is_some() || self.blind_since.is_some() || self.investigation.is_some();
        match self.state {
            S::Running | S::Baking | S::Watching if held => {
                let reason = format!("paused before the controller went away; {}", self.reason);
                self.append(now, Record::State { to: S::Paused, reason });
            }
            S::Paused if !held && !self.waits_for_switch() => self.freed_before(now),
            S::Running | S::Baking | S::Watching if self.state != self.after_pause() => {
                let (to, reason) = (self.after_pause(), self.reason.clone());
                self.append(now, Record::State { to, reason });
            }
            _ => {}
        }
    }

    /// Paused, and what held it ended as the controller went away. Without that it
    /// waits for a person still, whatever changed meanwhile.
    fn freed_before(&mut self, now: Timestamp) {
        let Some(freed) = self.freed else { return };
        match (self.lost_task(), freed) {
            (Some(_), Freed::By(Verb::Resume)) if self.held_by_window(now).is_some() => return,
            (Some(task), Freed::By(Verb::Resume)) => self.task_again(now, &task),
            (Some(task), Freed::By(_)) => self.task_counts(now, &task, "said before the controller went away"),
            (Some(_), Freed::ByItself) => return,
            (None, _) => {}
        }
        self.unpause(now, "nothing holds it any more".into());
    }
}
