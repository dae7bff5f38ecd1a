//! What stands open in a rollout: a gate, an investigation, a pause that just ended.
//! Must not: decide anything.

use alloc::vec::Vec;

use tidegate_protocol::{Millis, Timestamp};

use crate::gate::{Judgement, Verdict};
use crate::record::Verb;

/// What ended a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freed {
    /// A person's word.
    By(Verb),
    /// What held it went away.
    ByItself,
}

/// An open gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GateRun {
    pub(crate) wave: usize,
    pub(crate) opened_at: Timestamp,
    /// Moved by pauses.
    pub(crate) ends_at: Timestamp,
    pub(crate) extended: bool,
    /// Its clock stands since then.
    pub(crate) held_since: Option<Timestamp>,
}

/// A trigger that pauses, pages and waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Investigation {
    pub(crate) trigger: usize,
    pub(crate) since: Timestamp,
    pub(crate) until: Timestamp,
    pub(super) after: Millis,
    pub(crate) acked: bool,
    pub(super) acked_at: Timestamp,
}

/// The last verdict journaled for a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) at: Timestamp,
    pub(crate) wave: usize,
    pub(crate) verdict: Verdict,
    pub(crate) judgements: Vec<Judgement>,
}
