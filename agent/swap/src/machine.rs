//! The machine itself.

use alloc::collections::VecDeque;

use tidegate_protocol::report::Progress;
use tidegate_protocol::{BootId, ComponentName, Timestamp};

use crate::action::{Action, OpId};
use crate::event::Event;
use crate::record::{Record, State};

/// One component on one host.
pub struct Machine {
    record: Record,
    boot_id: BootId,
    actions: VecDeque<Action>,
    running: Option<OpId>,
}

impl Machine {
    /// A component never assigned before.
    #[must_use]
    pub fn new(component: ComponentName, boot_id: BootId) -> Self {
        let record = Record {
            component, assignment: None, state: State::Idle, standing: None, previous: None, swap: None,
            pending: None, history: alloc::vec::Vec::new(),
        };
        Self { record, boot_id, actions: VecDeque::new(), running: None }
    }

    /// After a crash, a restart or a reboot: goes on from what the ledger says.
    #[must_use]
    pub fn recover(record: Record, boot_id: BootId, _now: Timestamp, _unix_ms: u64) -> Self {
        Self { record, boot_id, actions: VecDeque::new(), running: None }
    }

    /// Takes an event in. `now` is time since boot; `unix_ms` only marks the swap.
    pub fn handle(&mut self, _now: Timestamp, _unix_ms: u64, _event: Event) {}

    /// What to do next; `None` until another event.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Machine::handle`] with [`Event::Timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        None
    }

    /// The record as it stands (durable or about to be).
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// For the report.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress::Checked
    }
}
