//! The process around a rollout: what a plan freezes of it, the checklist, and
//! what people gave, folded from records.
//!
//! Owns: rows and their names, who may approve what, which rows still wait for a
//! person. Must not: know hosts in waves, verify a signature, read a time zone.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use tidegate_protocol::{Digest, HostName, Millis, RolloutId, Timestamp};

use crate::plan::Plan;
use crate::record::Record;
pub use crate::spec::{
    ApprovalSpec, ChangeSpec, ChangeType, ClockTime, ContactRole, ContactSpec, Day, Fit, Grade, Hours, Level, NotifySpec, RiskSpec, Role,
    Topic, Via, WindowSpec,
};

/// How long an approval is good.
pub const APPROVAL_VALID_DEFAULT: Millis = Millis::from_secs(7 * 86_400);
/// How old a passed drill may be.
pub const DRILL_MAX_AGE_DEFAULT: Millis = Millis::from_secs(14 * 86_400);
/// How old an answered test of a notification route may be.
pub const ROUTE_TEST_MAX_AGE_DEFAULT: Millis = Millis::from_secs(86_400);
/// A task that takes longer has failed.
pub const TASK_DEADLINE: Millis = Millis::from_secs(3_600);
/// How often a person who is waited for is told again.
pub const REMIND_EVERY: Millis = Millis::from_secs(3_600);

/// What of the process a plan freezes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Signatures wanted, from plan and environment.
    pub approvals: Vec<ApprovalSpec>,
    /// How long an approval is good.
    pub approval_valid: Millis,
    /// When it may go forward; none = always.
    pub windows: Vec<WindowSpec>,
    /// A rollout that has not begun by then is refused.
    pub start_by: Option<Timestamp>,
    /// Whom to call.
    pub contacts: Vec<ContactSpec>,
    /// Whom to tell.
    pub notify: Vec<NotifySpec>,
    /// The change request.
    pub change: Option<ChangeSpec>,
    /// Its risks.
    pub risks: Vec<RiskSpec>,
    /// What people look at.
    pub dashboards: Vec<String>,
    /// Rows of the checklist that must hold, by item; from plan and environment.
    pub demanded: BTreeSet<String>,
    /// Of those, what a person attests before the start, by item.
    pub attest: Vec<String>,
    /// The release's tasks, each with its host.
    pub tasks: Vec<PlannedTask>,
    /// How long it takes, measured or assumed.
    pub estimate: Estimate,
    /// Of a standard change: [`crate::readiness::template_digest`] of the plan as
    /// written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Digest>,
}

/// A task and where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTask {
    /// Place in the release's list, from 0.
    pub index: u16,
    /// For people.
    pub name: String,
    /// Where.
    pub host: HostName,
    /// False makes its success a point of no return.
    pub reversible: bool,
    /// May be run again when its end was not seen.
    pub idempotent: bool,
    /// It has a command that takes it back.
    pub undo: bool,
}

/// How long a rollout takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estimate {
    /// Bakes and swaps up to 100 %, without the final watch.
    pub forward: Millis,
    /// The way back of all hosts.
    pub back: Millis,
    /// Where the numbers come from: `measured by drill …`, `assumed`.
    pub from: String,
}

/// A part of the guide's checklist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// 1.1 Prerequisites.
    Prerequisites,
    /// 1.1 Artifacts.
    Artifacts,
    /// 1.1 Documentation.
    Documentation,
    /// 1.1 Approvals.
    Approvals,
    /// 1.1 Environment.
    Environment,
    /// 1.2 Window, contacts, communication.
    Window,
    /// 1.3 Change request.
    Change,
    /// What Tidegate needs by itself.
    Fleet,
}

impl Section {
    /// As a heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Prerequisites => "Prerequisites",
            Self::Artifacts => "Artifacts",
            Self::Documentation => "Documentation",
            Self::Approvals => "Approvals",
            Self::Environment => "Environment",
            Self::Window => "Deployment window",
            Self::Change => "Change request",
            Self::Fleet => "Fleet",
        }
    }
}

/// How a row is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowKind {
    /// The program checks.
    Automatic,
    /// A person attests, with evidence.
    Attest,
    /// A person signs.
    Approval,
}

/// How a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowVerdict {
    /// It holds.
    Pass,
    /// It does not.
    Fail,
    /// A person has not said so yet.
    Open,
    /// It does not apply; the evidence says why.
    NotApplicable,
}

impl RowVerdict {
    /// As it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Open => "open",
            Self::NotApplicable => "not-applicable",
        }
    }
}

/// One row of the checklist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its fixed name: `tested-in-staging`, `approval-security`.
    pub item: String,
    /// Where it stands in the guide.
    pub section: Section,
    /// As the guide says it.
    pub title: String,
    /// How it is decided.
    pub kind: RowKind,
    /// Without it the rollout does not begin.
    pub demanded: bool,
    /// How it stands.
    pub verdict: RowVerdict,
    /// What was seen; what is missing and what to do.
    pub evidence: String,
    /// Who said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

impl Row {
    /// It keeps the rollout from beginning.
    #[must_use]
    pub fn blocks(&self) -> bool {
        self.demanded && matches!(self.verdict, RowVerdict::Fail | RowVerdict::Open)
    }
}

/// The rows that a person attests before the start: item, section, the guide's
/// line. Fixed names: scripts and the guide's table know them.
pub const ATTEST_ROWS: &[(&str, Section, &str)] = &[
    ("security-exit", Section::Prerequisites, "All Phase 9 (Security) exit criteria met"),
    ("images-signed", Section::Artifacts, "Container images tagged and signed"),
    ("runbook-still-valid", Section::Documentation, "Deployment runbook updated (unchanged, and still valid)"),
    ("alert-thresholds", Section::Environment, "Alert thresholds configured"),
    ("low-traffic", Section::Window, "Low traffic period"),
];

/// The rows that a person attests at the handoff: item, the guide's line.
pub const HANDOFF_ROWS: &[(&str, &str)] = &[
    ("on-call-briefed", "On-call briefed on changes"),
    ("alerts-reviewed", "Alerts reviewed and updated"),
    ("runbook-tested", "Runbook procedures tested"),
];

/// Lines of the documents that the program fills where it could see, and that a
/// person may attest where it could not. Nothing that is measured or signed.
pub const PAPER_ROWS: &[&str] = &[
    "known-issues",
    "smoke-critical",
    "smoke-integration",
    "performance-baseline",
    "alerts",
    "no-unexpected-errors",
    "no-security-warnings",
    "normal-traffic",
    "handoff-to",
    "release-notes",
    "dashboard-links",
    "runbook-updates",
    "escalation-contacts",
    "rollback-documented",
];

/// Item of the row of an approval.
#[must_use]
pub fn approval_item(role: Role) -> String {
    format!("approval-{role}")
}

/// The guide's line of an approval.
#[must_use]
pub const fn approval_title(role: Role) -> &'static str {
    match role {
        Role::TechLead => "Technical lead approval",
        Role::Security => "Security sign-off",
        Role::Operations => "Operations sign-off",
        Role::ProductOwner => "Product owner approval (if applicable)",
        Role::Cab => "Change advisory board (CAB) approval",
    }
}

/// A name of an item.
#[must_use]
pub fn is_item_name(text: &str) -> bool {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty() && text.len() <= 64 && text.bytes().all(ok)
}

/// A time at which a window is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// From.
    pub opens: Timestamp,
    /// To.
    pub closes: Timestamp,
    /// In the window's zone and UTC, with what daylight saving does to it.
    pub text: String,
    /// What must fit.
    pub fit: Fit,
    /// Past its end a rollout that began goes on.
    pub overrun: bool,
}

/// What a person overrides by name and signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Override {
    /// The window is closed, or too short.
    Window,
    /// A freeze stands.
    Freeze,
}

impl Override {
    /// `window`, `freeze`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Freeze => "freeze",
        }
    }

    /// Whose signature it takes: any of these.
    #[must_use]
    pub const fn roles(self) -> &'static [Role] {
        &[Role::Operations, Role::Cab]
    }
}

/// Who signs the handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignRole {
    /// The deployment lead.
    Lead,
    /// The operations lead.
    OpsLead,
}

impl SignRole {
    /// `lead`, `ops-lead`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Lead => "lead",
            Self::OpsLead => "ops-lead",
        }
    }
}

/// A signature that was given, as journaled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Who, by the approvers' list.
    pub principal: String,
    /// `SHA256:…` of the key.
    pub key: String,
    /// Armored: stock `ssh-keygen -Y verify -n tidegate-approval` checks it.
    pub signature: String,
    /// Whose connection brought it.
    pub brought_by: String,
}

/// An approval as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// By whom, with what.
    pub signed: Signed,
    /// When it was journaled.
    pub at: Timestamp,
}

/// An attestation as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// Who.
    pub by: String,
    /// What was looked at.
    pub note: String,
    /// When.
    pub at: Timestamp,
}

/// What people and checks gave, folded from records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Rows that the program checked, as last found.
    pub rows: Vec<Row>,
    /// By role.
    pub approvals: BTreeMap<Role, Approval>,
    /// By item, those of the checklist and of the handoff.
    pub attested: BTreeMap<String, Attestation>,
    /// What was overridden, by whom and why.
    pub overridden: BTreeMap<Override, (Signed, String)>,
    /// Openings of the windows, as last told.
    pub openings: Vec<Opening>,
    /// A freeze that covers the rollout.
    pub freeze: Option<String>,
    /// It goes forward since then.
    pub began_at: Option<Timestamp>,
    /// Closed, by whom.
    pub closed: Option<(Timestamp, String)>,
}

impl Given {
    /// Takes a record in; those of other matters change nothing.
    pub fn apply(&mut self, at: Timestamp, record: &Record) {
        match record {
            Record::Readiness { rows } => self.rows.clone_from(rows),
            Record::Approved { role, signed } => {
                self.approvals.insert(*role, Approval { signed: signed.clone(), at });
            }
            Record::Attested { item, by, note } => {
                self.attested.insert(item.clone(), Attestation { by: by.clone(), note: note.clone(), at });
            }
            Record::Overridden { what, reason, signed, .. } => {
                self.overridden.insert(*what, (signed.clone(), reason.clone()));
            }
            Record::Windows { openings } => self.openings.clone_from(openings),
            Record::Freeze { reason } => self.freeze.clone_from(reason),
            Record::Began => self.began_at = Some(at),
            Record::Closed { by } => self.closed = Some((at, by.clone())),
            _ => {}
        }
    }

    /// The whole checklist at a time: what was checked, attested and signed.
    #[must_use]
    pub fn checklist(&self, plan: &Plan, now: Timestamp) -> Vec<Row> {
        let process = &plan.process;
        let mut rows = self.rows.clone();
        for (item, section, title) in ATTEST_ROWS {
            let demanded = process.attest.iter().any(|a| a == item);
            rows.push(self.attest_row(item, *section, title, demanded));
        }
        for item in process.attest.iter().filter(|item| ATTEST_ROWS.iter().all(|(known, ..)| known != *item)) {
            rows.push(self.attest_row(item, Section::Prerequisites, item, true));
        }
        for role in Role::ALL {
            if let Some(spec) = process.approvals.iter().find(|a| a.role == *role) {
                rows.push(self.approval_row(plan, spec, now));
            }
        }
        rows.extend(self.second_approver(plan, now));
        rows.sort_by_key(|row| row.section);
        rows
    }

    fn attest_row(&self, item: &str, section: Section, title: &str, demanded: bool) -> Row {
        let given = self.attested.get(item);
        Row {
            item: item.into(),
            section,
            title: title.into(),
            kind: RowKind::Attest,
            demanded,
            verdict: match given {
                Some(_) => RowVerdict::Pass,
                None if demanded => RowVerdict::Open,
                None => RowVerdict::NotApplicable,
            },
            evidence: match given {
                Some(given) => given.note.clone(),
                None if demanded => format!("a person attests it: tidegate rollout attest ID --item {item} --note EVIDENCE"),
                None => "not demanded here".into(),
            },
            by: given.map(|g| g.by.clone()),
            at: given.map(|g| g.at),
        }
    }

    fn approval_row(&self, plan: &Plan, spec: &ApprovalSpec, now: Timestamp) -> Row {
        let process = &plan.process;
        let item = approval_item(spec.role);
        let given = self.approvals.get(&spec.role);
        let waived = self.attested.get(&item).filter(|_| spec.optional);
        let skipped = self.skips(plan, spec.role, now);
        let expired = given.filter(|g| now.since(g.at) >= process.approval_valid);
        let (verdict, evidence, by, at) = match (given, expired, waived, skipped) {
            (Some(given), None, ..) => {
                (RowVerdict::Pass, format!("signed with {}", given.signed.key), Some(given.signed.principal.clone()), Some(given.at))
            }
            (.., Some(given), _) => (RowVerdict::NotApplicable, given.note.clone(), Some(given.by.clone()), Some(given.at)),
            (.., Some(why)) => (RowVerdict::NotApplicable, why, None, None),
            (_, Some(given), ..) => {
                let why = format!("the approval of {} is older than {}: sign again", given.signed.principal, process.approval_valid);
                (RowVerdict::Open, why, None, None)
            }
            (None, ..) => {
                let or = if spec.optional { format!(", or rollout attest ID --item {item} --note \"n/a: why\"") } else { String::new() };
                (RowVerdict::Open, format!("tidegate rollout approve ID --role {} --key SSH_KEY{or}", spec.role), None, None)
            }
        };
        let title = approval_title(spec.role).to_string();
        Row { item, section: Section::Approvals, title, kind: RowKind::Approval, demanded: true, verdict, evidence, by, at }
    }

    /// Why the type of the change needs no signature of this role.
    fn skips(&self, plan: &Plan, role: Role, now: Timestamp) -> Option<String> {
        let change = plan.process.change.as_ref()?;
        match change.kind {
            ChangeType::Standard => Some("a standard change: its template was approved once and for all".into()),
            ChangeType::Emergency => {
                let good = |a: &&Approval| now.since(a.at) < plan.process.approval_valid;
                let other = self.approvals.iter().find(|(r, a)| **r != role && good(a));
                other.map(|(role, a)| format!("an emergency change needs one approval: {role} by {}", a.signed.principal))
            }
            ChangeType::Normal => None,
        }
    }

    /// A change of high risk needs two people; in an emergency one must do.
    pub(crate) fn second_approver(&self, plan: &Plan, now: Timestamp) -> Option<Row> {
        let change = plan.process.change.as_ref().filter(|c| c.risk == Level::High && c.kind == ChangeType::Normal)?;
        let good = self.approvals.values().filter(|a| now.since(a.at) < plan.process.approval_valid);
        let keys: BTreeSet<&str> = good.map(|a| a.signed.key.as_str()).collect();
        let enough = keys.len() >= 2;
        Some(Row {
            item: "second-approver".into(),
            section: Section::Approvals,
            title: "Two approvers (high risk)".into(),
            kind: RowKind::Approval,
            demanded: true,
            verdict: if enough { RowVerdict::Pass } else { RowVerdict::Open },
            evidence: format!("{} is of high risk: approvals with two different keys are wanted, {} given", change.id, keys.len()),
            by: None,
            at: None,
        })
    }

    /// The opening that `now` lies in.
    #[must_use]
    pub fn open(&self, now: Timestamp) -> Option<&Opening> {
        self.openings.iter().find(|o| o.opens <= now && now < o.closes)
    }

    /// The next opening that has not ended.
    #[must_use]
    pub fn next_opening(&self, now: Timestamp) -> Option<&Opening> {
        self.openings.iter().filter(|o| now < o.closes).min_by_key(|o| o.opens)
    }
}

/// What an approval signs: any edit of release or plan changes it. One line each,
/// `\n` after every line.
#[must_use]
pub fn approval_payload(rollout: &RolloutId, plan: &Plan, role: Role) -> String {
    let (release, digest) = (&plan.release, plan.digest());
    format!(
        "tidegate-approval v1\nrollout: {rollout}\nrole: {role}\nrelease: {} sha256:{}\nplan: sha256:{digest}\n",
        release.id, release.manifest
    )
}

/// What an override signs. The reason is on one line.
#[must_use]
pub fn override_payload(rollout: &RolloutId, plan: &Plan, what: Override, role: Role, reason: &str) -> String {
    let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{}override: {}\nreason: {reason}\n", approval_payload(rollout, plan, role).replacen("approval", "override", 1), what.word())
}

/// What a sign-off of the handoff signs: the document by its digest.
#[must_use]
pub fn handoff_payload(rollout: &RolloutId, role: SignRole, document: Digest) -> String {
    format!("tidegate-handoff v1\nrollout: {rollout}\nrole: {}\nhandoff: sha256:{document}\n", role.word())
}
