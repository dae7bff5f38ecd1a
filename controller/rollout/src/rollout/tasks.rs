//! Tasks: once per rollout, one after the other, each on its host.

use tidegate_protocol::Timestamp;

use super::Rollout;
use crate::record::{Record, Step};

impl Rollout {
    pub(super) fn tasks(&mut self, now: Timestamp) -> bool {
        self.append(now, Record::Step { step: Step::Swapping });
        true
    }
}
