//! What the ledger holds for one component: enough to go on after a crash.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::{Failure, Progress, SmokeResult};
use tidegate_protocol::{Assignment, BootId, ComponentName, Generation, Intent, ReleaseRef, Target, Timestamp};

/// One component's durable record. JSON in the ledger; fields are only added,
/// each with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which.
    pub component: ComponentName,
    /// The newest assignment seen; none before the first.
    pub assignment: Option<Assignment>,
    /// How far it has come.
    pub state: State,
    /// The release to be on when nothing is under way: the last one confirmed, or
    /// gone back to. During a swap it is what the host reverts to.
    pub standing: Option<ReleaseRef>,
    /// The standing release before that one; kept on disk.
    pub previous: Option<ReleaseRef>,
    /// About the swap under way or the last one.
    pub swap: Option<Swap>,
    /// A newer assignment that waits for the present one's revert.
    #[serde(default)]
    pub pending: Option<Assignment>,
    /// What became of past generations, newest last, bounded.
    #[serde(default)]
    pub history: Vec<HistoryEntry>,
}

/// A past or present generation, for people and for the proof that no generation
/// is swapped twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Which.
    pub generation: Generation,
    /// What it aimed at.
    pub target: Target,
    /// How often `current` was flipped for it (forward).
    pub swaps: u32,
    /// How it ended, or how far it is.
    pub progress: Progress,
}

/// An instant on one boot of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The boot.
    pub boot_id: BootId,
    /// Since boot, suspend included, milliseconds.
    pub at: Timestamp,
    /// Wall clock at that instant, Unix milliseconds: for journal cursors and
    /// people, never for deadlines.
    pub unix_ms: u64,
}

/// A deadline that the host enforces by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The boot it counts on; on another boot a fresh lease is given (once).
    pub boot_id: BootId,
    /// When it runs out.
    pub deadline: Timestamp,
}

/// About one swap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// What ran before: the way back. (For `Intent::Back`, what is left.)
    pub from: Target,
    /// Whether that was healthy.
    pub was_healthy: bool,
    /// The `before` hook was started, so `after` must run.
    pub drained: bool,
    /// Taken before the flip, and again when the flip is done, before the restart.
    pub mark: Option<Mark>,
    /// The present deadline.
    pub lease: Option<Lease>,
    /// Boots seen in probation.
    pub reboots: u32,
    /// Results of the last run of smoke tests.
    pub smoke: Vec<SmokeResult>,
    /// Why a drain is being undone ([`Step::Undrain`] on the way forward).
    #[serde(default)]
    pub failure: Option<Failure>,
    /// On the way back: the service may run the other release, so it is restarted
    /// even if its executable looks right.
    #[serde(default)]
    pub restart: bool,
    /// On the way back: what was gone back to is unhealthy, as it was before.
    #[serde(default)]
    pub unhealthy_again: bool,
}

/// Where a generation is. Each variant is durable before its first effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing was ever assigned.
    Idle,
    /// Preflight runs.
    Checking,
    /// Preflight passed.
    Checked,
    /// Bytes arrive, then `check` runs.
    Staging,
    /// READY: complete, verified, checked; the service is untouched.
    Staged,
    /// Cancelled before the swap.
    Cancelled,
    /// Failed before the swap.
    Failed(Failure),
    /// On the way to the target.
    Swapping(Step),
    /// Smoke tests run.
    Probation,
    /// Smoke tests passed; the `after` hook has run; waits for the confirmation.
    Healthy,
    /// Kept.
    Confirmed,
    /// On the way back to `swap.from` (or, for `Intent::Back`, to the target).
    Reverting(Step, Option<Failure>),
    /// Back, proven and smoke-tested; why it went back, if by itself.
    Reverted {
        /// Why; none when it was ordered.
        failure: Option<Failure>,
        /// As unhealthy as it was before the swap.
        was_unhealthy: bool,
    },
    /// Could not get back.
    RevertFailed(Failure),
}

/// A step of going somewhere, forward or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Look at the health of what runs; run `before`. (Forward only.)
    Drain,
    /// Make sure the bytes to go back to are there. (Back only.)
    Fetch,
    /// Replace the link.
    Flip,
    /// SWAPPED: (re)start and prove.
    Activate,
    /// Smoke tests of what was gone back to. (Back only.)
    Smoke,
    /// Run `after`. (Forward: only to undo a drain; nothing was flipped.)
    Undrain,
}

impl State {
    /// What the controller is told.
    #[must_use]
    pub const fn progress(&self) -> Progress {
        match self {
            Self::Checking => Progress::Checking,
            // Nothing was ever asked: as good as looked at, of generation zero.
            Self::Idle | Self::Checked => Progress::Checked,
            Self::Staging => Progress::Staging,
            Self::Staged => Progress::Staged,
            Self::Cancelled => Progress::Cancelled,
            Self::Failed(_) => Progress::Failed,
            Self::Swapping(_) => Progress::Swapping,
            Self::Probation => Progress::Probation,
            Self::Healthy => Progress::Healthy,
            Self::Confirmed => Progress::Confirmed,
            Self::Reverting(..) => Progress::Reverting,
            Self::Reverted { .. } => Progress::Reverted,
            Self::RevertFailed(_) => Progress::RevertFailed,
        }
    }

    /// Why it failed or goes back.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) | Self::RevertFailed(failure) => Some(failure),
            Self::Reverting(_, failure) | Self::Reverted { failure, .. } => failure.as_ref(),
            _ => None,
        }
    }

    /// A forward swap may have moved the link, and is not decided yet.
    pub(crate) const fn unconfirmed(&self) -> bool {
        matches!(self, Self::Swapping(Step::Flip | Step::Activate) | Self::Probation | Self::Healthy)
    }

    /// Neither on its way forward past the drain nor on its way back.
    pub(crate) const fn at_rest(&self) -> bool {
        !matches!(self, Self::Swapping(_) | Self::Probation | Self::Healthy | Self::Reverting(..))
    }
}

impl Swap {
    pub(crate) const fn new(from: Target) -> Self {
        Self {
            from,
            was_healthy: true,
            drained: false,
            mark: None,
            lease: None,
            reboots: 0,
            smoke: Vec::new(),
            failure: None,
            restart: false,
            unhealthy_again: false,
        }
    }
}

impl Record {
    /// Where a way back leads, and what it leaves.
    pub(crate) fn way_back(&self) -> (Target, Target) {
        let from = self.swap.as_ref().map_or_else(|| self.standing.clone().into(), |swap| swap.from.clone());
        match &self.assignment {
            Some(assignment) if assignment.intent == Intent::Back => (assignment.target.clone(), from),
            Some(assignment) => (from, assignment.target.clone()),
            None => (from.clone(), from),
        }
    }

    /// What is known of the health of a release from the last swap, in the shape
    /// that a generation starts with: `from` is the release it speaks of.
    pub(crate) fn inherited(&self) -> Option<Swap> {
        let old = self.swap.as_ref()?;
        let subject = match &self.state {
            State::Reverting(..) | State::Reverted { .. } | State::RevertFailed(_) => self.way_back().0,
            _ => old.from.clone(),
        };
        Some(Swap { was_healthy: old.was_healthy, ..Swap::new(subject) })
    }
}
