//! The words and the wire of Tidegate.
//!
//! Owns: ids, digests, generations, what a release is, what a host is assigned
//! and what it reports, the messages of every stream and how they are encoded.
//! Must not: do I/O, read a clock, know a wave, a gate or a strategy.
//!
//! Everything here is `no_std` so that purity is a compile error, not a habit.
//! Wire types are frozen once released: a change is a new variant at the end of
//! an enum, sent only to peers that offered the version (golden bytes in
//! `tests/golden` hold the line).
#![no_std]
#![warn(missing_docs)]

extern crate alloc;

pub mod assignment;
pub mod codec;
pub mod digest;
pub mod generation;
pub mod id;
pub mod limits;
pub mod message;
pub mod metric;
pub mod path;
pub mod release;
pub mod report;
pub mod side;
pub mod task;
pub mod template;
pub mod time;
pub mod witness;

pub use assignment::{Assignment, Intent, Phase, Target};
pub use digest::Digest;
pub use generation::Generation;
pub use id::{BootId, ComponentName, HostName, ReleaseId, ReleaseName, RolloutId, Version};
pub use metric::{Number, Samples, Watch};
pub use path::RelPath;
pub use release::{Component, Release, ReleaseRef};
pub use report::{Cause, ComponentReport, Progress, Report};
pub use side::{Side, SideAssignment, SidesReport, SwitchOrder};
pub use task::{TaskOrder, TaskReport, TaskRun, TaskState};
pub use time::{Millis, Timestamp};
pub use witness::{JournalHead, Outage, Outages, VarDigest};
