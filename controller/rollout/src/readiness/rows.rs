//! Each automatic row: what it asks of the facts, and what it says of them.

mod change;
mod documents;
mod fleet;
mod prerequisites;
mod when;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{Release, Timestamp};

use super::{Facts, spell};
use crate::plan::Plan;
use crate::process::{ChangeType, RowVerdict, Section};

/// Names in one sentence; the rest is counted.
const NAMED_MAX: usize = 5;

/// A verdict and what was seen.
pub(super) type Found = (RowVerdict, String);

/// A line of the checklist that the program checks.
pub(super) struct Line {
    pub(super) item: &'static str,
    pub(super) section: Section,
    pub(super) title: &'static str,
    /// Demanded whatever the environment says: the program knows by itself.
    pub(super) always: bool,
    /// An emergency change goes without it.
    pub(super) waived: bool,
    pub(super) look: fn(&Look<'_>) -> Found,
}

const fn line(item: &'static str, section: Section, title: &'static str, look: fn(&Look<'_>) -> Found) -> Line {
    Line { item, section, title, always: false, waived: false, look }
}

const fn always(line: Line) -> Line {
    Line { always: true, ..line }
}

const fn waived(line: Line) -> Line {
    Line { waived: true, ..line }
}

/// In the order of the guide.
pub(super) static LINES: &[Line] = &[
    waived(line("tested-in-staging", Section::Prerequisites, "Release candidate tested in staging", prerequisites::staging)),
    line("staging-mirrors-production", Section::Prerequisites, "Staging mirrors production configuration", prerequisites::mirrors),
    waived(line("rollback-tested", Section::Prerequisites, "Rollback procedure tested", prerequisites::drilled)),
    always(line("artifacts-verified", Section::Artifacts, "Deployment artifacts built and verified", documents::artifacts)),
    always(line("checksums-recorded", Section::Artifacts, "Artifact checksums recorded", documents::checksums)),
    line("configuration-prepared", Section::Artifacts, "Configuration files prepared", documents::configuration),
    line("release-notes", Section::Documentation, "Release notes complete", documents::notes),
    line("deployment-runbook", Section::Documentation, "Deployment runbook updated", documents::deployment),
    line("rollback-runbook", Section::Documentation, "Rollback runbook verified", documents::rollback),
    waived(line("communication-plan", Section::Documentation, "Communication plan ready", documents::communication)),
    always(line("capacity", Section::Environment, "Infrastructure capacity verified", fleet::capacity)),
    line("dashboards", Section::Environment, "Monitoring dashboards ready", fleet::dashboards),
    line("on-call-identified", Section::Environment, "On-call engineer identified", when::on_call),
    waived(line("window", Section::Window, "Scheduled start, end and time zone", when::window)),
    line("support-available", Section::Window, "Support staff available", when::support),
    always(line("no-conflicts", Section::Window, "No conflicting deployments", when::conflicts)),
    waived(line("rollback-time", Section::Window, "Rollback time accounted for", when::rollback_time)),
    always(waived(line("no-freeze", Section::Window, "No freeze", when::freeze))),
    line("change-request", Section::Change, "Change request: summary, type, risk level, business justification", change::request),
    line("risk-assessment", Section::Change, "Risk assessment", change::risks),
    line("downtime-declared", Section::Change, "Downtime required, rollback time", change::downtime),
    line("change-template", Section::Change, "A standard change follows an approved template", change::template),
    line("hosts-in-contact", Section::Fleet, "Every host that changes is in contact", fleet::contact),
    always(line("agents-able", Section::Fleet, "Every agent can do what the plan asks of it", fleet::able)),
    always(line("rollback-target", Section::Fleet, "What hosts would go back to is present and intact", fleet::target)),
    line("trigger-sources", Section::Fleet, "The rollback criteria are armed", fleet::triggers),
];

/// What rows look at.
pub(super) struct Look<'a> {
    pub(super) plan: &'a Plan,
    pub(super) manifest: &'a Release,
    pub(super) facts: &'a Facts,
    pub(super) now: Timestamp,
}

impl Look<'_> {
    /// By the program itself, by environment and plan, or because the plan brings
    /// what the row is about.
    pub(super) fn demanded(&self, line: &Line) -> bool {
        let process = &self.plan.process;
        line.always
            || process.demanded.contains(line.item)
            || match line.item {
                "dashboards" => !process.dashboards.is_empty(),
                "window" | "rollback-time" => !process.windows.is_empty(),
                // The word "standard" waives signatures: only a known template may.
                "change-template" => {
                    !process.approvals.is_empty() && process.change.as_ref().is_some_and(|c| c.kind == ChangeType::Standard)
                }
                _ => false,
            }
    }

    /// The environment asks for the whole row, not only for what is always checked.
    fn asks(&self, item: &str) -> bool {
        self.plan.process.demanded.contains(item)
    }
}

fn pass(evidence: impl Into<String>) -> Found {
    (RowVerdict::Pass, evidence.into())
}

fn fail(evidence: impl Into<String>) -> Found {
    (RowVerdict::Fail, evidence.into())
}

fn open(evidence: impl Into<String>) -> Found {
    (RowVerdict::Open, evidence.into())
}

fn beside(evidence: impl Into<String>) -> Found {
    (RowVerdict::NotApplicable, evidence.into())
}

/// RFC 3339, to the second.
fn when(at: Timestamp) -> String {
    let time = i64::try_from(at.0 / 1_000).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.map_or_else(|| "?".to_string(), |t| t.to_string())
}

/// `a, b, c and 4 more`
fn named<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| n.to_string()).collect();
    let shown = names.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} bytes"),
    }
}
