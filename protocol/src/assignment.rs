//! Desired state: what the controller wants of one component on one host.

use serde::{Deserialize, Serialize};

use crate::{ComponentName, Generation, Millis, ReleaseRef, RolloutId};

/// The newest word about a (host, component). Idempotent: a reconnect says it
/// again, and a host that has seen a higher generation ignores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The fence. (generation, phase) never falls.
    pub generation: Generation,
    /// Which component.
    pub component: ComponentName,
    /// For logs and the ledger; nothing is decided by it.
    pub rollout: RolloutId,
    /// Forward to a new release, or back to the one before.
    pub intent: Intent,
    /// What shall run.
    pub target: Target,
    /// How far the host may go.
    pub phase: Phase,
    /// From the swap to all smoke tests passed; then the host reverts itself.
    pub healthy_deadline: Millis,
    /// From healthy to confirmed; then the host reverts itself.
    pub confirm_within: Millis,
    /// Changed files in the present tree do not stop the swap.
    pub accept_drift: bool,
    /// Run the `integration` suite too: one host of each wave.
    pub integration: bool,
    /// False: past a point of no return, the host never reverts by itself.
    pub reversible: bool,
}

/// Which way an assignment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// To a new release: probation, lease, confirmation.
    Forward,
    /// To the release that ran before: no lease, no confirmation, smoke-tested.
    Back,
}

/// What shall run on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Nothing: the component was not there before.
    Absent,
    /// This release's component.
    Release(ReleaseRef),
}

impl Target {
    /// The release, if there is one.
    #[must_use]
    pub const fn release(&self) -> Option<&ReleaseRef> {
        match self {
            Self::Absent => None,
            Self::Release(release) => Some(release),
        }
    }
}

impl From<Option<ReleaseRef>> for Target {
    fn from(release: Option<ReleaseRef>) -> Self {
        release.map_or(Self::Absent, Self::Release)
    }
}

/// How far the host may go with a generation. Ordered: it only ever rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Look, touch nothing, fetch only the manifest.
    Preflight,
    /// Fetch, verify and lay out the bytes; the service is untouched.
    Stage,
    /// Never swapped, never will be: drop what was begun.
    Cancel,
    /// Swap, restart, prove, smoke-test.
    Swap,
    /// Keep it: the host never reverts by itself from here on.
    Confirm,
}
