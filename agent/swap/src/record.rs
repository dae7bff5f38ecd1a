//! What the ledger holds for one component: enough to go on after a crash.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::{Failure, Progress, SmokeResult};
use tidegate_protocol::{Assignment, BootId, ComponentName, Generation, ReleaseRef, Target, Timestamp};

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
    /// What ran before: the way back.
    pub from: Target,
    /// Whether that was healthy.
    pub was_healthy: bool,
    /// The `before` hook was started, so `after` must run.
    pub drained: bool,
    /// Taken before the flip.
    pub mark: Option<Mark>,
    /// The present deadline.
    pub lease: Option<Lease>,
    /// Boots seen in probation.
    pub reboots: u32,
    /// Results of the last run of smoke tests.
    pub smoke: Vec<SmokeResult>,
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
    /// Run `after`.
    Undrain,
}
