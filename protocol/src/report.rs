//! Observed state: what a host says of itself, whole, each time.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{BootId, ComponentName, Digest, Generation, ReleaseRef};

/// Everything a host reports, every few seconds and on every change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Rises by one per report of one agent process.
    pub sequence: u64,
    /// The machine.
    pub host: HostFacts,
    /// Its components, those it has and those it is asked to have.
    pub components: Vec<ComponentReport>,
}

/// The machine's own numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Of all cores, in thousandths of the machine: 1000 = all cores busy.
    pub cpu_permille: u32,
    /// In use, bytes.
    pub memory_bytes: u64,
    /// Installed, bytes.
    pub memory_total_bytes: u64,
    /// Free where releases live, bytes.
    pub disk_free_bytes: u64,
    /// Free inodes there.
    pub inodes_free: u64,
}

/// How far a generation has come on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// Preflight runs.
    Checking,
    /// Preflight passed.
    Checked,
    /// Bytes arrive.
    Staging,
    /// READY: verified and laid out; the service is untouched.
    Staged,
    /// Cancelled before the swap: nothing was touched.
    Cancelled,
    /// Failed before the swap: the service was not touched.
    Failed,
    /// The flip or the restart runs.
    Swapping,
    /// Runs; smoke tests have not all passed yet.
    Probation,
    /// Smoke tests passed; waits for the confirmation.
    Healthy,
    /// Kept.
    Confirmed,
    /// On the way back.
    Reverting,
    /// Back on what ran before, and proven.
    Reverted,
    /// Could not get back: a person must look.
    RevertFailed,
}

impl Progress {
    /// Nothing follows without a new order.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Cancelled | Self::Failed | Self::Confirmed | Self::Reverted | Self::RevertFailed)
    }
}

/// Why a host failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A smoke test failed.
    Smoke,
    /// The service did not start, or what runs is not what was assigned.
    StartFailed,
    /// No confirmation in time.
    LeaseExpired,
    /// It kept dying.
    CrashLoop,
    /// No contact.
    Unreachable,
    /// Bytes are not what the manifest says.
    Verify,
    /// Local policy says no.
    Policy,
    /// No space, no inodes, or an input/output error.
    Disk,
    /// Files of the present release were changed.
    Drifted,
    /// A step took longer than its deadline.
    Timeout,
    /// An order of the controller.
    Trigger,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Smoke => "smoke",
            Self::StartFailed => "start-failed",
            Self::LeaseExpired => "lease-expired",
            Self::CrashLoop => "crash-loop",
            Self::Unreachable => "unreachable",
            Self::Verify => "verify",
            Self::Policy => "policy",
            Self::Disk => "disk",
            Self::Drifted => "drifted",
            Self::Timeout => "timeout",
            Self::Trigger => "trigger",
        })
    }
}

/// A failure: the class that decides, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub cause: Cause,
    /// The thing, the cause and, where there is one, the fix.
    pub message: String,
}

/// The process that runs now, as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Main PID.
    pub pid: u32,
    /// When that process started, Unix milliseconds.
    pub started_at_unix_ms: u64,
    /// The same in clock ticks since boot (`/proc/PID/stat` field 22): with the
    /// PID and the boot id it names a process for ever.
    pub start_ticks: u64,
    /// sha256 of the executable, or of the script that it interprets; none if
    /// neither belongs to the release and the component declares so.
    pub sha256: Option<Digest>,
}

/// What a component is on a host, apart from any rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Not installed.
    #[default]
    Absent,
    /// Runs.
    Running,
    /// Installed, does not run.
    Stopped,
    /// A file of the present release was changed.
    Drifted,
}

/// One component of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentReport {
    /// Which.
    pub component: ComponentName,
    /// The highest generation seen.
    pub generation: Generation,
    /// How far that generation has come.
    pub progress: Progress,
    /// Why it failed or went back, once it did.
    pub failure: Option<Failure>,
    /// What `current` points at, complete.
    pub current: Option<ReleaseRef>,
    /// What it would go back to.
    pub previous: Option<ReleaseRef>,
    /// Now.
    pub service: ServiceState,
    /// The main process, if one runs.
    pub running: Option<Running>,
    /// Digest of the tree that `current` points at, from its manifest, after its
    /// files were compared with it.
    pub tree_sha256: Option<Digest>,
    /// It was already unhealthy before the swap, and is again as it was.
    pub was_unhealthy: bool,
    /// Of this generation.
    pub smoke: Vec<SmokeResult>,
    /// Verified so far while staging, bytes.
    pub staged_bytes: u64,
    /// Fetched over the wire for this generation, bytes.
    pub fetched_bytes: u64,
    /// Of one core, in thousandths: 1000 = one core busy.
    pub cpu_permille: u32,
    /// Resident, bytes.
    pub memory_bytes: u64,
    /// Starts of the service after the first since the swap.
    pub restarts: u32,
    /// Until the host reverts by itself, while it waits.
    pub lease_left_ms: Option<u64>,
}

/// How a smoke test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SmokeStatus {
    /// It asserts what it should.
    Pass,
    /// It does not.
    Fail,
    /// Not run: another one failed first, or the host was called back.
    Skipped,
}

/// One smoke test's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmokeResult {
    /// As in the release.
    pub id: String,
    /// How it ended.
    pub status: SmokeStatus,
    /// From its first attempt to its verdict.
    pub duration_ms: u64,
    /// What was seen, bounded by `MESSAGE_BYTES_MAX`.
    pub message: String,
}

/// Who speaks, in the hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFacts {
    /// The agent's version.
    pub version: String,
    /// One boot of the machine.
    pub boot_id: BootId,
    /// One installation of the agent: with the boot id it tells a cloned machine
    /// from a reconnect.
    pub instance: u64,
    /// `x86_64`, …
    pub arch: String,
}

/// Cuts a text for the wire at a character boundary and drops control characters:
/// what a host says may reach a terminal.
#[must_use]
pub fn bounded(text: &str) -> String {
    let max = crate::limits::MESSAGE_BYTES_MAX;
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}
