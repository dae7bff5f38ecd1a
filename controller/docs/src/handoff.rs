//! What the handoff hands over, and its digest: what two people sign.
//!
//! [`Content`] holds document 5 without its signatures, without times and without
//! anything that depends on when or how often it is generated. Its JSON is under
//! signatures that were given: fields are only added, and left out while empty.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_protocol::Digest;
use tidegate_rollout::gate::Verdict;
use tidegate_rollout::process::{ContactSpec, HANDOFF_ROWS};
use tidegate_rollout::record::GateStep;

use crate::DocsError;
use crate::doc2::runs;
use crate::fold::Facts;
use crate::issues::Issue;

/// What is handed over.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Content {
    handoff: u32,
    rollout: String,
    release: String,
    manifest_sha256: Digest,
    plan_sha256: Digest,
    outcome: &'static str,
    from: Option<String>,
    pub(crate) notes: Option<Digest>,
    pub(crate) known_issues: Option<String>,
    pub(crate) dashboards: Vec<String>,
    pub(crate) deploy_runbook: Option<Digest>,
    pub(crate) rollback_runbook: Option<Digest>,
    pub(crate) contacts: Vec<ContactSpec>,
    pub(crate) attested: Vec<Attested>,
    pub(crate) runs: Vec<Runs>,
    pub(crate) outstanding: Vec<Outstanding>,
}

/// An attestation, without its time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Attested {
    pub(crate) item: String,
    pub(crate) by: String,
    pub(crate) note: String,
}

/// What a host runs now.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Runs {
    pub(crate) host: String,
    pub(crate) component: String,
    pub(crate) release: Option<String>,
    pub(crate) tree_sha256: Option<Digest>,
    pub(crate) state: &'static str,
}

/// What is left to be done.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outstanding {
    pub(crate) what: String,
    pub(crate) owner: String,
    pub(crate) status: String,
    pub(crate) eta: String,
    /// Not written down by a person.
    #[serde(skip)]
    pub(crate) carried: bool,
}

/// Lines of document 5 that a person can tick by attesting them.
pub(crate) const ATTESTED: [&str; 7] =
    ["known-issues", "release-notes", "dashboard-links", "runbook-updates", "escalation-contacts", "rollback-documented", "handoff-to"];

/// From the records.
pub(crate) fn content(facts: &Facts<'_>, issues: &[Issue]) -> Content {
    let (plan, release) = (facts.plan, facts.release);
    let items = HANDOFF_ROWS.iter().map(|(item, _)| *item).chain(ATTESTED);
    let attested = items.filter_map(|item| {
        let given = facts.given.attested.get(item)?;
        Some(Attested { item: item.to_string(), by: given.by.clone(), note: given.note.clone() })
    });
    let runs = facts.targets.iter().map(|t| {
        let seen = t.seen.as_ref();
        Runs {
            host: t.host.to_string(),
            component: t.component.to_string(),
            release: if t.origin.is_some() { runs(t) } else { t.unchanged.as_ref().map(ToString::to_string) },
            tree_sha256: seen.and_then(|s| s.tree_sha256).or_else(|| t.origin.as_ref().and_then(|o| o.tree_sha256)),
            state: t.state.word(),
        }
    });
    Content {
        handoff: 1,
        rollout: facts.input.id.to_string(),
        release: plan.release.id.to_string(),
        manifest_sha256: plan.release.manifest,
        plan_sha256: facts.plan_digest,
        outcome: facts.state.word(),
        from: plan.lead.clone(),
        notes: release.notes.as_ref().map(|f| f.digest),
        known_issues: release.known_issues.clone(),
        dashboards: plan.process.dashboards.clone(),
        deploy_runbook: release.runbook.deploy.as_ref().map(|f| f.digest),
        rollback_runbook: release.runbook.rollback.as_ref().map(|f| f.digest),
        contacts: plan.process.contacts.clone(),
        attested: attested.collect(),
        runs: runs.collect(),
        outstanding: outstanding(facts, issues),
    }
}

/// Items that people wrote down, issues without a person's resolution, gates that
/// were skipped or whose last verdict was not pass.
fn outstanding(facts: &Facts<'_>, issues: &[Issue]) -> Vec<Outstanding> {
    let items = facts.items.iter().map(|(number, item)| Outstanding {
        what: format!("{number}. {}", item.what),
        owner: item.owner.clone(),
        status: item.status.clone(),
        eta: item.eta.clone(),
        carried: false,
    });
    let carried = |what: String, status: &str| Outstanding {
        what,
        owner: String::new(),
        status: status.to_string(),
        eta: String::new(),
        carried: true,
    };
    let open = issues
        .iter()
        .filter(|i| i.is_open() || (i.resolution.is_none() && i.resolved_by.is_none()))
        .map(|i| carried(format!("issue {}: {}", i.number, i.text), "open"));
    let skipped = facts.stages.iter().filter_map(|s| {
        let name = &facts.plan.gating.stages.get(s.stage)?.name;
        let verdict = facts.judged.get(&s.stage).map_or("no verdict", |j| j.verdict.word());
        let overridden = s.step == GateStep::Overridden && facts.judged.get(&s.stage).is_none_or(|j| j.verdict != Verdict::Pass);
        overridden.then(|| carried(format!("the gate {name} was skipped ({verdict}): {}", s.reason), "skipped"))
    });
    items.chain(open).chain(skipped).collect()
}

/// sha256 of the content's JSON.
///
/// # Errors
/// [`DocsError::Json`].
pub(crate) fn digest(facts: &Facts<'_>, issues: &[Issue]) -> Result<Digest, DocsError> {
    let text = serde_json::to_string(&content(facts, issues))
        .map_err(|e| DocsError::Json { document: "5-operations-handoff", why: format!("{e}") })?;
    Ok(Digest::of(text.as_bytes()))
}
