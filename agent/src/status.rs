//! `tidegate-agent status`: what this host is on, told from the ledger, the
//! release trees and the kernel. Needs neither the controller nor the daemon.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate_protocol::report::{Failure, Progress, Running, ServiceState};
use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::{ComponentName, Digest, Generation, HostName, JournalHead, ReleaseId, Side, TaskReport};
use tidegate_swap::{HistoryEntry, Record};
use tokio::time::timeout;

use crate::config::Config;
use crate::daemon::{StartError, context, host_name};
use crate::error::chain;
use crate::ledger::{Ledger, SwitchEntry};
use crate::report::lease_left;
use crate::service::Services;
use crate::slot::Slot;
use crate::switch::SwitchSeen;
use crate::tree::{self, Trees};
use crate::{head, tasks};

/// For a service manager to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The whole answer; JSON schema 1.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Of this document.
    pub schema: u32,
    /// From the certificate.
    pub host: HostName,
    /// In order of name; one with sides stands once for each.
    pub components: Vec<ComponentStatus>,
    /// Of components with sides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub switches: Vec<SwitchStatus>,
    /// Tasks of rollouts that ran here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskReport>,
    /// The highest head of the controller's journal that this host heard of.
    pub head: Option<JournalHead>,
    /// Why it cannot be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_error: Option<String>,
}

/// Which side of a component serves.
#[derive(Debug, Serialize)]
pub struct SwitchStatus {
    /// Which component.
    pub component: ComponentName,
    /// None before the first switch.
    pub active: Option<Side>,
    /// Of the newest switch ordered.
    pub generation: Generation,
    /// How far it has come.
    pub progress: Option<SwitchProgress>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Why the ledger could not be read.
    pub error: Option<String>,
}

/// One component, or one side of it.
#[derive(Debug, Serialize)]
pub struct ComponentStatus {
    /// Which.
    pub component: ComponentName,
    /// Which side of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
    /// Whether that side serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// What `current` leads to.
    pub release: Option<ReleaseId>,
    /// The standing release before that.
    pub previous: Option<ReleaseId>,
    /// The highest generation seen.
    pub generation: Generation,
    /// How far it has come.
    pub progress: Option<Progress>,
    /// As it is now.
    pub state: ServiceState,
    /// The main process, proven.
    pub running: Option<Running>,
    /// Digest of the tree, if its files are as the manifest says.
    pub tree_sha256: Option<Digest>,
    /// Files that were changed on this host.
    pub drifted: Vec<String>,
    /// Until the host reverts by itself.
    pub lease_left_ms: Option<u64>,
    /// Why it failed or went back.
    pub failure: Option<Failure>,
    /// Past generations, oldest first.
    pub history: Vec<HistoryEntry>,
    /// Why the ledger or the tree could not be read.
    pub error: Option<String>,
}

impl ComponentStatus {
    /// `api`, `api@green`.
    fn title(&self) -> String {
        Slot { component: self.component.clone(), side: self.side }.to_string()
    }
}

/// Looks.
///
/// # Errors
/// No identity, or no ledger to read.
pub async fn look(config: &Config) -> Result<Status, StartError> {
    let host = host_name(&config.paths)?;
    let trees = Trees::at(&config.paths.opt);
    let ctx = Arc::new(context(config, host.clone(), trees.root().to_owned())?);
    let services = Services::observing(ctx.clone());
    let ledger = Ledger::at(config.paths.ledger());
    let switches: Vec<SwitchStatus> = ledger.read_switches()?.into_iter().map(switch).collect();
    let mut components = Vec::new();
    for (slot, record) in ledger.read_all()? {
        let (record, error) = match record {
            Ok(record) => (Some(record), None),
            Err(error) => (None, Some(chain(&error))),
        };
        let lease = record.as_ref().and_then(|r| lease_left(r, &ctx.boot_id));
        let serves = switches.iter().find(|switch| switch.component == slot.component).and_then(|switch| switch.active);
        let active = slot.side.map(|side| serves == Some(side));
        components.push(ComponentStatus { active, ..one(slot, record, error, lease, &trees, &services).await });
    }
    let (head, head_error) = match head::read(&config.paths.head()) {
        Ok(head) => (head, None),
        Err(error) => (None, Some(chain(&error))),
    };
    let tasks = tasks::recorded(&tasks::Book::new(config.paths.tasks())).iter().map(tasks::Record::report).collect();
    Ok(Status { schema: 1, host, components, switches, tasks, head, head_error })
}

fn switch((component, record): SwitchEntry) -> SwitchStatus {
    match record {
        Ok(record) => {
            let SwitchSeen { component, active, generation, progress, failure } = SwitchSeen::of(&record);
            SwitchStatus { component, active, generation, progress: Some(progress), failure, error: None }
        }
        Err(error) => {
            let error = Some(chain(&error));
            SwitchStatus { component, active: None, generation: Generation::ZERO, progress: None, failure: None, error }
        }
    }
}

async fn one(
    slot: Slot,
    record: Option<Record>,
    mut error: Option<String>,
    lease_left_ms: Option<u64>,
    trees: &Trees,
    services: &Services,
) -> ComponentStatus {
    let installed = match trees.read_current(&slot) {
        Ok(installed) => installed,
        Err(failed) => {
            error.get_or_insert_with(|| chain(&failed));
            None
        }
    };
    let mut state = ServiceState::Absent;
    let mut running = None;
    let mut drifted = Vec::new();
    if let Some(installed) = &installed {
        drifted = tree::drift(installed, &|| true).unwrap_or_default();
        let main = timeout(ANSWER, services.status(installed)).await.unwrap_or_default();
        state = if main.active { ServiceState::Running } else { ServiceState::Stopped };
        if main.main.is_some() {
            running = timeout(ANSWER, services.prove(installed)).await.ok().and_then(Result::ok);
        }
        if !drifted.is_empty() {
            state = ServiceState::Drifted;
        }
    }
    ComponentStatus {
        component: slot.component,
        side: slot.side,
        active: None,
        release: installed.as_ref().map(|i| i.release.id.clone()),
        previous: record.as_ref().and_then(|r| r.previous.as_ref()).map(|r| r.id.clone()),
        generation: record.as_ref().and_then(|r| r.assignment.as_ref()).map_or(Generation::ZERO, |a| a.generation),
        progress: record.as_ref().map(|r| r.state.progress()),
        state,
        running,
        tree_sha256: installed.as_ref().filter(|_| drifted.is_empty()).map(|i| i.component.tree_digest()),
        drifted: drifted.iter().map(|d| format!("{} {}", d.file.path, d.what)).collect(),
        lease_left_ms,
        failure: record.as_ref().and_then(|r| r.state.failure().cloned()),
        history: record.map(|r| r.history).unwrap_or_default(),
        error,
    }
}

/// For a terminal.
#[must_use]
pub fn human(status: &Status) -> String {
    let mut out = format!("host {}\n", status.host);
    if status.components.is_empty() {
        out.push_str("no component was ever assigned to this host\n");
        witnessed(status, &mut out);
        return out;
    }
    let none = || "-".to_owned();
    let mut rows = vec![["COMPONENT", "RELEASE", "PREVIOUS", "GENERATION", "PROGRESS", "STATE", "PID", "LEASE"].map(str::to_owned)];
    for c in &status.components {
        rows.push([
            c.title(),
            c.release.as_ref().map_or_else(none, ToString::to_string),
            c.previous.as_ref().map_or_else(none, ToString::to_string),
            c.generation.to_string(),
            c.progress.map_or_else(|| "unknown".into(), word),
            word(c.state),
            c.running.as_ref().map_or_else(none, |r| r.pid.to_string()),
            c.lease_left_ms.map_or_else(none, |ms| format!("{} s", ms / 1000)),
        ]);
    }
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    for row in &rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    for s in &status.switches {
        let serves = s.active.map_or_else(|| "no side serves".to_owned(), |side| format!("{side} serves"));
        let progress = s.progress.map_or_else(|| "unknown".into(), word);
        let _ = writeln!(out, "{}: {serves} (switch {}: {progress})", s.component, s.generation);
        if let Some(failure) = &s.failure {
            let _ = writeln!(out, "{}: {}: {}", s.component, failure.cause, failure.message);
        }
        if let Some(error) = &s.error {
            let _ = writeln!(out, "{}: {error}", s.component);
        }
    }
    for c in &status.components {
        if let Some(failure) = &c.failure {
            let _ = writeln!(out, "{}: {}: {}", c.title(), failure.cause, failure.message);
        }
        if !c.drifted.is_empty() {
            let _ = writeln!(out, "{}: changed on this host: {}", c.title(), c.drifted.join(", "));
        }
        if let Some(error) = &c.error {
            let _ = writeln!(out, "{}: {error}", c.title());
        }
    }
    witnessed(status, &mut out);
    out
}

/// What the host keeps beside its components.
fn witnessed(status: &Status, out: &mut String) {
    for task in &status.tasks {
        let TaskReport { rollout, index, what, attempt, state, note, .. } = task;
        let note = if note.is_empty() { String::new() } else { format!(": {note}") };
        let _ = writeln!(out, "task {index} of {rollout}: {} {attempt} {}{note}", what.word(), word(state));
    }
    if let Some(head) = &status.head {
        let _ = writeln!(out, "controller's journal: record {} {}", head.seq, head.hash);
    }
    if let Some(error) = &status.head_error {
        let _ = writeln!(out, "controller's journal: {error}");
    }
}

/// As in JSON, so that people and scripts read the same words.
fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
