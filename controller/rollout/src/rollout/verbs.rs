//! A person's word to a rollout.

use alloc::format;
use alloc::string::{String, ToString};

use tidegate_protocol::Timestamp;

use super::Rollout;
use crate::record::{Record, RolloutState, Verb};

/// A word that does not fit the state; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rollout {id} is {state}: {verb} does not apply ({hint})")]
pub struct VerbError {
    /// Which rollout.
    pub id: String,
    /// Its state.
    pub state: RolloutState,
    /// What was said.
    pub verb: Verb,
    /// What can be done instead.
    pub hint: &'static str,
}

impl Rollout {
    pub(super) fn said(&mut self, now: Timestamp, verb: Verb, by: &str, reason: &str) -> Result<(), VerbError> {
        use RolloutState as S;
        let refuse = |hint| Err(VerbError { id: self.id.to_string(), state: self.state, verb, hint });
        let next = match (verb, self.state) {
            // Saying it twice is not an error.
            (Verb::Pause, S::Paused) | (Verb::Resume, S::Running) | (Verb::Rollback, S::RollingBack) => return Ok(()),
            (Verb::Halt, _) if self.halting.is_some() => return Ok(()),
            (Verb::Pause, S::Running) if self.halting.is_none() => Some(S::Paused),
            (Verb::Resume, S::Paused) => Some(S::Running),
            (Verb::Halt, S::Running | S::Paused | S::RollingBack) => None,
            (Verb::Rollback, S::Running | S::Paused | S::Completed | S::Halted | S::Mixed) => Some(S::RollingBack),
            (Verb::Pause, S::Running) => return refuse("it is being halted; rollback takes it back"),
            (Verb::Resume, S::RollingBack) => return refuse("it is on the way back already"),
            (Verb::Pause, S::RollingBack) => return refuse("a way back is not paused; halt ends it where it is"),
            (Verb::Rollback, S::RolledBack | S::Refused) => return refuse("no host is changed"),
            _ => return refuse("it has ended; start a new rollout"),
        };
        let because = if reason.is_empty() { format!("{verb} by {by}") } else { format!("{verb} by {by}: {reason}") };
        let said = Record::Said { verb, by: by.into(), reason: because.clone() };
        self.append(now, said);
        match next {
            Some(S::RollingBack) => self.begin_back(now, because),
            Some(to) => self.append(now, Record::State { to, reason: because }),
            None => {}
        }
        Ok(())
    }
}
