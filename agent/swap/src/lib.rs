//! The host machine: one component's way from one release to the next and back;
//! and beside it the switch between a component's two sides.
//!
//! Owns: the order of the swap's steps, what the ledger says before each of them,
//! leases, and crash recovery. Must not: touch a disk, a process, a clock or the
//! network; know a wave, a gate or a strategy.
//!
//! Shape, as in quinn-proto: [`Machine::handle`] takes an event and a time,
//! [`Machine::poll_action`] says what to do next, [`Machine::poll_timeout`] when
//! to call again. Time is milliseconds since boot, suspend included.
#![no_std]
#![warn(missing_docs)]

extern crate alloc;

mod action;
mod event;
mod machine;
mod record;
mod switch;

pub use action::{Action, Op, OpId, Restart};
pub use event::{Event, Outcome};
pub use machine::Machine;
pub use record::{HistoryEntry, Lease, Mark, Record, State, Step, Swap};
pub use switch::{Switch, SwitchAction, SwitchEvent, SwitchOp, SwitchRecord, SwitchState};
