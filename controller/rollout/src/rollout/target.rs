//! One (host, component) on its way: what its records made of it, and the live
//! numbers beside them. Must not: decide anything.

use tidegate_protocol::report::{Failure, Progress};
use tidegate_protocol::{Generation, Intent, Phase, ReleaseRef, Timestamp};

use super::{switching, vigil};
use crate::record::{Origin, Seen, TargetState};

/// One (host, component) on its way.
#[derive(Clone, Debug)]
pub(crate) struct TargetRun {
    pub(crate) origin: Origin,
    pub(crate) wave: usize,
    pub(crate) component_at: usize,
    pub(crate) integration: bool,
    pub(crate) state: TargetState,
    pub(crate) since: Timestamp,
    pub(crate) generation: Generation,
    pub(crate) order: Option<Order>,
    /// The first forward swap order of any generation.
    pub(crate) swap_ordered: bool,
    /// A generation that another rollout used since; the next one is above it.
    pub(crate) fence: Generation,
    pub(crate) failure: Option<Failure>,
    pub(crate) counted: bool,
    pub(crate) checked: bool,
    pub(crate) seen: Option<Seen>,
    pub(crate) confirmed_as: Option<u64>,
    /// Leases forgiven because the controller was away.
    pub(crate) forgiven: u32,
    /// It settled its way back in this attempt to roll back.
    pub(crate) back_settled: bool,
    /// Blue-green: the newest switch.
    pub(crate) switch: Option<switching::Switch>,
    /// Blue-green: the generation that stopped the old side.
    pub(crate) retired: Option<Generation>,
    /// Not journaled: learnt again after a restart.
    pub(crate) live: Live,
}

impl TargetRun {
    /// The highest generation used or known of: the next one is above it.
    pub(crate) fn newest(&self) -> Generation {
        let switch = self.switch.as_ref().map_or(Generation::ZERO, |s| s.generation);
        self.generation.max(self.fence).max(switch).max(self.retired.unwrap_or(Generation::ZERO))
    }
}

/// Live numbers, lost on restart and learnt again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    pub(crate) progress: Option<Progress>,
    pub(crate) staged_bytes: u64,
    pub(crate) moved_at: Timestamp,
    pub(crate) cpu_permille: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_total_bytes: u64,
    pub(crate) seen: Option<Seen>,
    pub(crate) vigil: vigil::Vigil,
}

/// The newest order of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) intent: Intent,
    pub(crate) target: Option<ReleaseRef>,
    pub(crate) phase: Phase,
    pub(crate) at: Timestamp,
    /// When this generation was first ordered to swap.
    pub(crate) swap_at: Option<Timestamp>,
    pub(crate) integration: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Contact {
    pub(crate) up: bool,
    pub(crate) since: Timestamp,
}
