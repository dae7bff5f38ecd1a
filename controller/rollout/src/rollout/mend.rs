//! What a crash between two records of one decision left half done.
//!
//! A driver makes all records of one event durable together, so this finds nothing
//! to do; a journal that was cut elsewhere is brought to a state that goes on, and
//! no word of a person or a trigger in it is lost.

use alloc::format;

use tidegate_protocol::{Intent, Phase, Timestamp};

use super::Rollout;
use crate::record::{Record, RolloutState, TargetState};

impl Rollout {
    /// After a restart, before anything else is decided.
    pub(super) fn mend(&mut self, now: Timestamp) {
        use RolloutState as S;
        if self.state == S::Scheduled && self.reason.is_empty() {
            self.enter(now);
        }
        if let Some(why) = self.owed_back.clone().filter(|_| self.is_live()) {
            self.begin_back(now, why);
        }
        if self.state == S::RollingBack {
            self.cancel_rest(now);
        }
        // Called back, but the order is missing.
        let called =
            self.which(|t| t.state == TargetState::Reverting && t.counted && t.order.as_ref().is_some_and(|o| o.intent == Intent::Forward));
        for at in called {
            self.order(now, at, Intent::Back, Phase::Swap);
        }
        let held = self.paused_by.is_some() || self.asked_at.is_some() || self.blind_since.is_some() || self.investigation.is_some();
        match self.state {
            S::Running | S::Baking | S::Watching if held => {
                let reason = format!("paused before the controller went away; {}", self.reason);
                self.append(now, Record::State { to: S::Paused, reason });
            }
            // What still holds it is found again.
            S::Paused if !held && !self.waits_for_switch() && self.lost_task().is_none() && !self.held_by_window(now) => {
                self.unpause(now, "nothing holds it any more".into())
            }
            S::Running | S::Baking | S::Watching if self.state != self.after_pause() => {
                let (to, reason) = (self.after_pause(), self.reason.clone());
                self.append(now, Record::State { to, reason });
            }
            _ => {}
        }
    }
}
