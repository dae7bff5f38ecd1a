//! What the controller decides: plans, strategies, and the rollout machine.
//!
//! Owns: reading plan.toml into a checked [`Spec`], resolving it to named hosts
//! in waves ([`Plan`], immutable, with a digest), and [`Rollout`], which walks a
//! plan forward and back. Must not: do I/O, read a clock, know a socket or a
//! database. The driver appends every [`Record`] before it sends anything.
#![no_std]

extern crate alloc;

pub mod amount;
pub mod condition;
pub mod gate;
pub mod notices;
pub mod plan;
pub mod process;
pub mod readiness;
pub mod record;
pub mod replay;
pub mod rollout;
pub mod selector;
mod sides;
pub mod spec;
pub mod status;

pub use plan::{DrillScope, FleetHost, Plan, PlanError, Surroundings};
pub use record::{Record, RolloutState, TargetState, Verb};
pub use rollout::{Action, Brought, Event, Fetch, FetchFrom, Fetched, Rollout, VerbError};
pub use selector::Selector;
pub use spec::{Spec, SpecError};
