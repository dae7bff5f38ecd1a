//! The JSON documents of the contract, made here and printed by the CLI.
//!
//! Field names are public interface: they are added to, never renamed. Times are
//! RFC 3339 UTC, sizes bytes, durations in the unit that ends the name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::ServiceState;
use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::{Digest, HostName, ReleaseId, RolloutId, Side, Timestamp};
use tidegate_rollout::process::{RowKind, RowVerdict, Section};
use tidegate_rollout::{Plan, RolloutState};

/// The schema of these documents.
pub const SCHEMA: u32 = 1;

/// `2026-11-23T02:13:05.120Z`.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).map_or_else(String::new, |t| format!("{t:.3}"))
}

/// The controller's version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionDoc {
    /// Of the program.
    pub version: String,
}

/// A new token. Shown once: the controller keeps only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDoc {
    /// For `tidegate-agent enroll --token`.
    pub token: String,
    /// Good until.
    pub expires_at: String,
}

/// State of a host in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// In contact.
    Online,
    /// 30 s without contact.
    Offline,
    /// Left out by a person.
    Drained,
    /// Its certificate is no longer good.
    Revoked,
    /// Two machines under one certificate.
    Conflict,
}

impl HostState {
    /// The word of the contract.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Drained => "drained",
            Self::Revoked => "revoked",
            Self::Conflict => "conflict",
        }
    }
}

/// One host of `host list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostDoc {
    /// As its certificate says.
    pub name: HostName,
    /// In the fleet.
    pub state: HostState,
    /// They decide targeting.
    pub labels: BTreeMap<String, String>,
    /// None before its first hello.
    pub agent_version: Option<String>,
    /// Last contact.
    pub last_seen: Option<String>,
    /// Of the whole machine.
    pub cpu_percent: Option<f64>,
    /// In use.
    pub memory_bytes: Option<u64>,
    /// Installed.
    pub memory_total_bytes: Option<u64>,
    /// By name.
    pub components: BTreeMap<String, HostComponentDoc>,
}

/// A component on a host, apart from any rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostComponentDoc {
    /// What `current` points at.
    pub release: Option<ReleaseId>,
    /// What it would go back to.
    pub previous: Option<ReleaseId>,
    /// What runs.
    pub running_sha256: Option<Digest>,
    /// Its whole tree.
    pub tree_sha256: Option<Digest>,
    /// absent, running, stopped, drifted.
    pub state: ServiceState,
    /// The highest generation the host has seen.
    pub generation: String,
    /// Of one core.
    pub cpu_percent: f64,
    /// Resident.
    pub memory_bytes: u64,
    /// Blue-green: both sides; the fields above are those of the one that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sides: Option<HostSidesDoc>,
}

/// The two sides of a component on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostSidesDoc {
    /// The side that serves; null before the first switch.
    pub active: Option<Side>,
    /// none, switching, switched, failed, stuck.
    pub switch: SwitchProgress,
    /// Of the newest switch order that the host has seen.
    pub generation: String,
    /// `blue` and `green`, those that were ever assigned.
    pub sides: BTreeMap<String, HostComponentDoc>,
}

/// Sentences for a person, the most important first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainDoc {
    /// [`SCHEMA`].
    pub schema: u32,
    /// A host's or a rollout's name.
    pub subject: String,
    /// One sentence each.
    pub lines: Vec<String>,
}

/// What the depot lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingDoc {
    /// In the order asked.
    pub missing: Vec<Digest>,
}

/// What an upload wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadDoc {
    /// Files that were new.
    pub new_files: u64,
    /// Their bytes.
    pub new_bytes: u64,
}

/// An imported release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportDoc {
    /// `name@version`.
    pub release: ReleaseId,
    /// sha256 of the manifest.
    pub digest: Digest,
    /// Distinct files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that came over this connection; 0 when all was there.
    pub new_bytes: u64,
}

/// One release of `release list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseDoc {
    /// `name@version`.
    pub release: ReleaseId,
    /// sha256 of the manifest.
    pub digest: Digest,
    /// In order of deployment.
    pub components: Vec<String>,
    /// Distinct files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When.
    pub imported_at: String,
}

/// A release with its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseShowDoc {
    /// As in the list.
    #[serde(flatten)]
    pub summary: ReleaseDoc,
    /// As packed.
    pub manifest: serde_json::Value,
}

/// What a plan would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDoc {
    /// [`SCHEMA`].
    pub schema: u32,
    /// For `--confirm`.
    pub plan_digest: Digest,
    /// What.
    pub release: ReleaseId,
    /// `rolling`, `big-bang`.
    pub strategy: String,
    /// Hosts that change together, in order.
    pub waves: Vec<PlanWaveDoc>,
    /// Host by host.
    pub hosts: Vec<PlanHostDoc>,
    /// What was checked.
    pub readiness: Vec<ReadinessDoc>,
    /// Why `start` would refuse it now; empty = it would not.
    pub refused_because: Vec<String>,
    /// When its windows are open, those that ended left out; empty without windows.
    #[serde(default)]
    pub openings: Vec<OpeningDoc>,
    /// How long it takes.
    #[serde(default)]
    pub estimate: Option<EstimateDoc>,
    /// What a standard change with this plan is approved as: for `standard_changes`
    /// of controller.toml.
    #[serde(default)]
    pub template_digest: Option<Digest>,
    /// Signatures that it would wait for.
    #[serde(default)]
    pub approvals: Vec<ApprovalDoc>,
    /// The plan itself.
    pub plan: Plan,
}

/// A time at which a window is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpeningDoc {
    /// RFC 3339, UTC.
    pub opens: String,
    /// RFC 3339, UTC.
    pub closes: String,
    /// In its own zone, too, with what daylight saving does to it.
    pub text: String,
}

/// How long a plan takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EstimateDoc {
    /// Bakes and swaps up to 100 %, without the final watch.
    pub forward_ms: u64,
    /// The way back of all hosts.
    pub back_ms: u64,
    /// Where the numbers come from.
    pub from: String,
}

/// An approval that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalDoc {
    /// Whose.
    pub role: String,
    /// Given, or said to be not applicable with a reason.
    pub optional: bool,
}

/// A wave of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanWaveDoc {
    /// From 1.
    pub index: usize,
    /// For people.
    pub name: String,
    /// Who.
    pub hosts: Vec<HostName>,
}

/// A host of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanHostDoc {
    /// Which.
    pub host: HostName,
    /// Of what.
    pub component: String,
    /// None for hosts that stay as they are.
    pub wave: Option<usize>,
    /// `change`, `unchanged` or `skipped`.
    pub action: String,
    /// What it runs now.
    pub from: Option<ReleaseId>,
    /// What it would run.
    pub to: Option<ReleaseId>,
    /// In contact now.
    pub online: bool,
}

/// One row of the checklist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessDoc {
    /// What.
    pub name: String,
    /// It holds, or does not apply.
    pub ok: bool,
    /// What was seen.
    pub observed: String,
    /// Its fixed name: `tested-in-staging`, `approval-security`; empty for metrics
    /// that were tried.
    #[serde(default)]
    pub item: String,
    /// Where it stands in the guide.
    #[serde(default)]
    pub section: Option<Section>,
    /// As the guide says it.
    #[serde(default)]
    pub title: String,
    /// How it is decided.
    #[serde(default)]
    pub kind: Option<RowKind>,
    /// Without it the rollout does not begin.
    #[serde(default)]
    pub demanded: bool,
    /// How it stands.
    #[serde(default)]
    pub verdict: Option<RowVerdict>,
    /// As `observed`.
    #[serde(default)]
    pub evidence: String,
    /// Who said so.
    #[serde(default)]
    pub by: Option<String>,
    /// When, RFC 3339, UTC.
    #[serde(default)]
    pub at: Option<String>,
}

impl ReadinessDoc {
    /// Something that was tried beside the checklist; it is demanded.
    #[must_use]
    pub fn tried(name: String, ok: bool, observed: String) -> Self {
        Self {
            item: String::new(),
            section: Some(Section::Fleet),
            title: name.clone(),
            kind: Some(RowKind::Automatic),
            demanded: true,
            verdict: Some(if ok { RowVerdict::Pass } else { RowVerdict::Fail }),
            evidence: observed.clone(),
            by: None,
            at: None,
            name,
            ok,
            observed,
        }
    }
}

/// A started rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartDoc {
    /// Its id.
    pub id: RolloutId,
    /// Of the plan as frozen.
    pub plan_digest: Digest,
    /// It ran already: `--run-id` found it.
    pub attached: bool,
}

/// One rollout of `rollout list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutDoc {
    /// Its id.
    pub id: RolloutId,
    /// Now.
    pub state: RolloutState,
    /// Why it is so.
    pub reason: String,
    /// What.
    pub release: ReleaseId,
    /// How.
    pub strategy: String,
    /// Targets of it.
    pub hosts: usize,
    /// When.
    pub started_at: String,
    /// When, once it did.
    pub ended_at: Option<String>,
}

/// One line of a rollout's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDoc {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Place in the journal; rises over all rollouts.
    pub seq: u64,
    /// When.
    pub at: String,
    /// Of which.
    pub rollout: RolloutId,
    /// The record's kind: `started`, `state`, `ordered`, `host`, …
    pub kind: String,
    /// Where, if it is about one host.
    pub host: Option<HostName>,
    /// Of what, if it is about one component.
    pub component: Option<String>,
    /// For people.
    pub message: String,
    /// The record itself, without the frozen plan.
    pub record: serde_json::Value,
}

/// An error, as the contract prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorOut {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What went wrong.
    pub error: super::msg::ErrorDoc,
}

/// What a signature has to cover, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadDoc {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `tidegate-approval`.
    pub namespace: String,
    /// The text, `\n` at its end.
    pub payload: String,
}

/// One deliverable in one format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaperDoc {
    /// A plain file name: `1-pre-deployment-checklist.md`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A freeze.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeDoc {
    /// Its number.
    pub freeze: u32,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// RFC 3339, UTC.
    pub from: String,
    /// RFC 3339, UTC; null = until it is removed.
    pub until: Option<String>,
    /// Only there.
    pub environment: Option<String>,
    /// Only rollouts that touch a host it selects.
    pub selector: String,
    /// pending, active, over, removed.
    pub state: String,
}

/// A notification route and how its last test went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteDoc {
    /// Its name.
    pub route: String,
    /// slack, email, pagerduty, webhook.
    pub via: String,
    /// The other side took it.
    pub ok: bool,
    /// What it said.
    pub detail: String,
}

/// What `audit verify` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditDoc {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Chain and heads hold.
    pub ok: bool,
    /// Records read.
    pub records: u64,
    /// Hash of the newest.
    pub head: Option<Digest>,
    /// The first record that is not what was written.
    pub first_bad: Option<u64>,
    /// One sentence each: what is wrong.
    pub findings: Vec<String>,
    /// Hosts whose remembered head was compared.
    pub witnesses: usize,
}

/// What is handed over and what is still open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffDoc {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which rollout.
    pub id: RolloutId,
    /// sha256 of the handoff as it stands: what sign-offs cover.
    pub document: Digest,
    /// What keeps `close` from being accepted, by item, each with what to do.
    pub open: Vec<OpenDoc>,
    /// Signed by, in the order given; those over an older document say so.
    pub signed: Vec<SignedDoc>,
}

/// One thing that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDoc {
    /// Its fixed name.
    pub item: String,
    /// What is missing, and what to do.
    pub what: String,
}

/// One sign-off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedDoc {
    /// lead, ops-lead.
    pub role: String,
    /// Who.
    pub principal: String,
    /// `SHA256:…`
    pub key: String,
    /// RFC 3339, UTC.
    pub at: String,
    /// It covers the handoff as it stands.
    pub current: bool,
}
