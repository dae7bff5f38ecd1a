//! What the place that a plan is for adds to it: demands of the environment, who
//! is in contact, how long it took before (rule 37: a plan adds, never drops).

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{HostName, Millis, Release, Timestamp};

use super::{FleetHost, PlanError};
use crate::process::{APPROVAL_VALID_DEFAULT, ApprovalSpec, ChangeType, Estimate, PlannedTask, Process, Role};
use crate::selector::Selector;
use crate::spec::Spec;

/// What a plan is resolved in, besides the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Approvals that the environment demands.
    pub approvals: Vec<Role>,
    /// How long an approval is good; zero = the default.
    pub approval_valid: Millis,
    /// Rows of the checklist that the environment demands, by item.
    pub demanded: BTreeSet<String>,
    /// Of those, what a person attests.
    pub attest: Vec<String>,
    /// Dashboards of the environment.
    pub dashboards: Vec<String>,
    /// Hosts in contact.
    pub online: BTreeSet<HostName>,
    /// How long it takes.
    pub estimate: Estimate,
}

/// The process part of a plan.
pub(super) fn process(spec: &Spec, manifest: &Release, fleet: &[FleetHost], around: &Surroundings) -> Result<Process, PlanError> {
    let mut approvals = spec.approval.clone();
    let mut demand = |role: Role, optional: bool| match approvals.iter_mut().find(|a| a.role == role) {
        // The plan may not make optional what the environment demands.
        Some(known) => known.optional &= optional || role == Role::ProductOwner,
        None => approvals.push(ApprovalSpec { role, optional }),
    };
    for role in &around.approvals {
        demand(*role, *role == Role::ProductOwner);
    }
    let change = spec.change.clone();
    if change.as_ref().is_some_and(|c| c.kind == ChangeType::Normal) && around.demanded.contains("change-request") {
        demand(Role::Cab, false);
    }
    approvals.sort_by_key(|a| a.role);
    let mut attest = around.attest.clone();
    for item in &spec.attest {
        if !attest.contains(item) {
            attest.push(item.clone());
        }
    }
    let mut dashboards = around.dashboards.clone();
    dashboards.extend(spec.dashboards.iter().filter(|d| !around.dashboards.contains(d)).cloned());
    let start_by = spec.start_by.as_deref().map(timestamp).transpose()?;
    Ok(Process {
        approvals,
        approval_valid: if around.approval_valid == Millis(0) { APPROVAL_VALID_DEFAULT } else { around.approval_valid },
        windows: spec.window.clone(),
        start_by,
        contacts: spec.contact.clone(),
        notify: spec.notify.clone(),
        template: change.as_ref().filter(|c| c.kind == ChangeType::Standard).map(|_| crate::readiness::template_digest(spec)),
        change,
        risks: spec.risk.clone(),
        dashboards,
        demanded: around.demanded.clone(),
        attest,
        tasks: tasks(spec, manifest, fleet, around)?,
        estimate: around.estimate.clone(),
    })
}

fn timestamp(text: &str) -> Result<Timestamp, PlanError> {
    let bad = || PlanError::Misfit {
        key: "start_by".to_string(),
        message: format!("{text:?} is not a time: write for example \"2026-11-24T23:00:00Z\""),
    };
    let parsed: jiff::Timestamp = text.parse().map_err(|_| bad())?;
    u64::try_from(parsed.as_millisecond()).map(Timestamp).map_err(|_| bad())
}

/// Each task on the first online match, fixed here (rule 23).
fn tasks(spec: &Spec, manifest: &Release, fleet: &[FleetHost], around: &Surroundings) -> Result<Vec<PlannedTask>, PlanError> {
    let mut planned = Vec::new();
    for (index, task) in manifest.tasks.iter().enumerate() {
        let none = || PlanError::NoTaskHost { task: task.name.clone(), on: task.on.clone() };
        let selector: Selector = task.on.parse().map_err(|_| none())?;
        let in_environment = |host: &&FleetHost| match (&spec.environment, host.labels.get("env")) {
            (Some(wanted), Some(env)) => wanted == env,
            _ => true,
        };
        let fits = |host: &&FleetHost| selector.matches(&host.labels) && host.unusable.is_none() && !host.drained;
        let mut hosts: Vec<&HostName> = fleet.iter().filter(fits).filter(in_environment).map(|h| &h.name).collect();
        hosts.sort_by_key(|host| super::natural(host.as_str()));
        let host = hosts.into_iter().find(|host| around.online.contains(*host)).ok_or_else(none)?;
        planned.push(PlannedTask {
            index: u16::try_from(index).unwrap_or(u16::MAX),
            name: task.name.clone(),
            host: host.clone(),
            reversible: task.reversible,
            idempotent: task.idempotent,
            undo: task.undo.is_some(),
        });
    }
    Ok(planned)
}
