//! Blue-green: two sides of a component on each host, and the switch between them.
//!
//! A side is prepared with an ordinary [`Assignment`] (its own link, service
//! instance and ledger record); traffic follows only the switch, which has a
//! generation of its own.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::release::{Argv, Smoke};
use crate::report::Failure;
use crate::{Assignment, ComponentName, ComponentReport, Generation, ReleaseRef, RolloutId};

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The first side a component is installed on.
    Blue,
    /// The other one.
    Green,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Blue, Self::Green];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Blue => Self::Green,
            Self::Green => Self::Blue,
        }
    }

    /// `blue`, `green`: the link's name and `${side}`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Desired state of one side: as an assignment of a component, but the link is
/// `blue` or `green`, `${side}` is known, and traffic does not move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideAssignment {
    /// Which side.
    pub side: Side,
    /// What shall be there.
    pub assignment: Assignment,
}

/// Desired state of the switch: which side shall serve. Newest generation wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchOrder {
    /// The fence, from the same counter as assignments of the component.
    pub generation: Generation,
    /// Which component.
    pub component: ComponentName,
    /// For logs.
    pub rollout: RolloutId,
    /// The side that shall serve.
    pub to: Side,
    /// Whose tree holds `run`, if it is not a name of `[commands]`.
    pub release: ReleaseRef,
    /// What moves the traffic to `${side}`: a name in the host's `[commands]`, with no
    /// arguments but `${side}`, `${component}`, `${version}` and `${host}`, or a file
    /// of that release and its arguments.
    pub run: Argv,
    /// What must hold then; one that fails switches back.
    pub verify: Option<Smoke>,
}

/// How far the newest switch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchProgress {
    /// Never ordered.
    None,
    /// The command or its verification runs.
    Switching,
    /// Traffic is on the ordered side, and verified.
    Switched,
    /// It failed; traffic was put back where it was.
    Failed,
    /// It failed, and so did putting it back: a person must look.
    Stuck,
}

/// Observed state of a component with sides, whole, each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidesReport {
    /// Which component.
    pub component: ComponentName,
    /// The side that serves; none before the first switch.
    pub active: Option<Side>,
    /// Of the newest switch order seen; zero before the first.
    pub generation: Generation,
    /// How far that has come.
    pub progress: SwitchProgress,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Sides that were ever assigned.
    pub sides: Vec<SideReport>,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideReport {
    /// Which.
    pub side: Side,
    /// As for a component without sides.
    pub report: ComponentReport,
}
