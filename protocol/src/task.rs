//! Tasks: steps that run once per rollout on one host, such as a backup or a
//! migration, and what a host says of them.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::{Millis, ReleaseRef, RolloutId};

/// Desired state of one task on the host that runs it. Idempotent: it is said
/// again at every welcome, and a host that knows how this attempt ended, or that
/// it began, never begins it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOrder {
    /// Of which rollout.
    pub rollout: RolloutId,
    /// Place in the release's list of tasks, from 0.
    pub index: u16,
    /// The release that brings files, command and undo.
    pub release: ReleaseRef,
    /// Forward, or back.
    pub what: TaskRun,
    /// The fence, from 1. Higher only when the controller wants it run again.
    pub attempt: u32,
    /// It is killed after this, and has failed.
    pub deadline: Millis,
}

/// Which of a task's two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskRun {
    /// `run`.
    Run,
    /// `undo`.
    Undo,
}

impl TaskRun {
    /// `run`, `undo`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Undo => "undo",
        }
    }
}

/// What a host says of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// As ordered.
    pub rollout: RolloutId,
    /// As ordered.
    pub index: u16,
    /// As ordered.
    pub what: TaskRun,
    /// As ordered.
    pub attempt: u32,
    /// How far it is.
    pub state: TaskState,
    /// The last line of its standard output; of a failure what it said last, and
    /// how it ended.
    pub note: String,
    /// When its process began, on the host's clock; 0 while it did not.
    pub started_at_unix_ms: u64,
    /// From begin to end; 0 until then.
    pub duration_ms: u64,
}

/// How far an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Its files arrive; nothing runs.
    Staging,
    /// It runs. Durable on the host before the process begins.
    Running,
    /// It ended with 0.
    Done,
    /// It ended otherwise, was killed at its deadline, or could not begin.
    Failed,
    /// It began, and its end was not seen: the host or the agent went down.
    Lost,
}

impl TaskState {
    /// Nothing follows from this attempt.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Lost)
    }
}
