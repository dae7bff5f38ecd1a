//! What the driver tells the machine.

use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::Assignment;
use tidegate_protocol::report::{Failure, SmokeResult};

use crate::action::OpId;

/// Everything the machine reacts to, besides time passing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The controller's word, new or said again.
    Assigned(Assignment),
    /// The record of the last [`crate::Action::Persist`] is durable.
    Persisted,
    /// It is not; why. The machine takes no further step of the swap: what was
    /// asked is undone or not begun (an fsync error means the bytes are suspect).
    PersistFailed(String),
    /// An operation ended.
    Done(OpId, Outcome),
    /// The time of [`crate::Machine::poll_timeout`] has come.
    Timeout,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Ok,
    /// Not so; why.
    Failed(Failure),
    /// End of an [`crate::Op::Observe`].
    Observed {
        /// Active, and its own smoke tests pass right now (one attempt each).
        healthy: bool,
    },
    /// End of an [`crate::Op::Smoke`].
    Smoke {
        /// One per test, in order.
        results: Vec<SmokeResult>,
        /// The first failure, if any.
        failure: Option<Failure>,
    },
}
