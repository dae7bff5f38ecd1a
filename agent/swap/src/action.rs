//! What the machine asks of its driver.

use tidegate_protocol::{ReleaseRef, Target};

use crate::record::{Mark, Record};

/// Names one run of an operation, so that a late completion is told from the
/// current one. Never repeats within one agent process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// In the order polled; the driver finishes one before it polls the next, except
/// that [`Action::Run`] only starts its operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a handful of actions wait at a time, and most of them are Persist")]
pub enum Action {
    /// Make the record durable (fsync), then say [`crate::Event::Persisted`] or
    /// [`crate::Event::PersistFailed`]. Nothing else is asked before the answer.
    Persist(Record),
    /// Start this operation; its end comes as [`crate::Event::Done`]. At most one
    /// runs at a time for a component.
    Run(OpId, Op),
    /// Kill that operation, whole; return when nothing of it runs any more. No
    /// [`crate::Event::Done`] is wanted for it (a late one is ignored).
    Cancel(OpId),
    /// Something that the controller should see has changed.
    Report,
}

/// One operation on the host. Each is idempotent: after a crash it is run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fetch the manifest; look at space, inodes, policy, templates, unit, arch,
    /// drift of `current`, and that `current` is intact as a target to go back to.
    Preflight {
        /// What shall run.
        target: ReleaseRef,
        /// What runs now.
        current: Option<ReleaseRef>,
        /// Changed files in `current` are allowed.
        accept_drift: bool,
    },
    /// Fetch, hash while writing, lay out the tree, re-read and verify it.
    Stage {
        /// What shall run.
        target: ReleaseRef,
    },
    /// The component's `check` command against the staged tree (none: passes).
    Check {
        /// What shall run.
        target: ReleaseRef,
    },
    /// Is the service healthy as it stands? Ends as [`crate::Outcome::Observed`].
    Observe {
        /// What runs now.
        current: Option<ReleaseRef>,
    },
    /// The `before` hook of `target` (none: passes).
    Before {
        /// What shall run.
        target: ReleaseRef,
    },
    /// Point `current` at it by one rename, or remove the link; fsync.
    Flip {
        /// What `current` shall be.
        to: Target,
    },
    /// (Re)start the service on `to` and prove the running executable, or stop it
    /// for good. A service that `from` had and `to` has not (another unit,
    /// another manager) is stopped first. Fails, and starts nothing, if `current`
    /// is not `to`: a revert that the disk refused to record may have been lost.
    Activate {
        /// What shall run.
        to: Target,
        /// What ran before.
        from: Target,
        /// Whether a proven process may stay.
        restart: Restart,
    },
    /// The smoke tests of `target`, in order, until one fails. Ends as
    /// [`crate::Outcome::Smoke`].
    Smoke {
        /// What runs.
        target: ReleaseRef,
        /// The `integration` suite too.
        integration: bool,
        /// Messages before it do not count.
        since: Mark,
    },
    /// The `after` hook of `target` (none: passes).
    After {
        /// Whose hook.
        target: ReleaseRef,
    },
    /// Delete releases and store files that nothing needs; its failure is logged
    /// and changes nothing.
    Collect {
        /// Never deleted.
        keep: alloc::vec::Vec<ReleaseRef>,
    },
}

/// Whether a service that already runs the right bytes may stay as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Restart in any case.
    Always,
    /// Leave a process alone that runs the right bytes and started at or after
    /// this mark (same boot); else (re)start. With `None` its age does not matter.
    UnlessProven(Option<Mark>),
}
