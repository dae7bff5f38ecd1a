//! What people add to a rollout: approvals, overrides, and the papers around its end.

use tidegate_protocol::{RolloutId, Timestamp};
use tidegate_rollout::Event;

use super::ask::json;
use super::state::State;
use super::{Answer, Paperwork, no_rollout};
use crate::operator::msg::{ErrorCode, ErrorDoc};

impl State {
    pub(super) fn paper(&mut self, now: Timestamp, id: &RolloutId, first_seq: u64, paper: Paperwork) -> Answer {
        let entry = self.rollouts.get_mut(id).ok_or_else(|| no_rollout(id))?;
        if entry.first_seq != first_seq {
            return Err(ErrorDoc::new(ErrorCode::Conflict, format!("rollout {id} was started anew meanwhile"))
                .fix("look at it again, and sign what is shown then"));
        }
        let said = match paper {
            Paperwork::Approved(role, signed) => {
                tracing::info!(rollout = %id, %role, principal = signed.principal, key = signed.key, "an approval came");
                entry.rollout.handle(now, Event::Approved { role, signed: &signed })
            }
            Paperwork::Overridden { what, role, signed, reason } => {
                let what_word = what.word();
                tracing::info!(rollout = %id, what = what_word, %role, principal = signed.principal, reason, "a person goes past it");
                entry.rollout.handle(now, Event::Overridden { what, role, signed: &signed, reason: &reason })
            }
            Paperwork::Paper(record) => entry.rollout.handle(now, Event::Paper(&record)),
        };
        // What came before a word that is refused counts all the same.
        self.touch(id);
        self.recheck();
        said.map_err(|e| ErrorDoc::new(ErrorCode::Conflict, e.to_string()))?;
        json(&self.status(id)?)
    }
}
