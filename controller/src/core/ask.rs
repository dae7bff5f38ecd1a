//! What operators ask of the fleet and of rollouts.

use std::collections::BTreeMap;

use tidegate_protocol::limits::LABELS_MAX;
use tidegate_protocol::{ComponentName, Generation, HostName, RolloutId, Timestamp};
use tidegate_rollout::selector::label_word_ok;
use tidegate_rollout::status::{StatusDoc, explain, status};
use tidegate_rollout::{Event, Rollout, Selector, Verb};

use super::state::State;
use super::{Answer, Prepared};
use crate::operator::doc::{ExplainDoc, HostState, RolloutDoc, SCHEMA, rfc3339};
use crate::operator::msg::{ErrorCode, ErrorDoc, Request};
use crate::registry::Labels;
use crate::store::HostChange;

/// Longest reason that is kept, bytes.
const REASON_BYTES_MAX: usize = 1_024;
/// Longest name of an item or a declaration, bytes.
const NAME_BYTES_MAX: usize = 64;

impl State {
    pub(super) fn ask(&mut self, now: Timestamp, by: &str, request: Request, prepared: Option<Box<Prepared>>) -> Answer {
        match request {
            Request::HostList { selector } => self.host_list(now, &selector),
            Request::HostShow { host } => self.host_show(now, &host),
            Request::HostLabel { host, set } => self.host_label(now, &host, set),
            Request::HostDrain { host, reason } => {
                let reason = reason_of(reason)?;
                self.host_drain(now, &host, Some(if reason.is_empty() { format!("by {by}") } else { format!("by {by}: {reason}") }))
            }
            Request::HostUndrain { host, .. } => self.host_drain(now, &host, None),
            Request::HostExplain { host } => self.host_explain(now, &host),
            Request::RolloutPlan { .. } => self.plan(now, &*prepared.ok_or_else(unprepared)?),
            Request::RolloutStart { run_id, confirm, .. } => self.start(now, by, run_id, confirm, &*prepared.ok_or_else(unprepared)?),
            Request::RolloutDrill { run_id, .. } => self.start(now, by, run_id, None, &*prepared.ok_or_else(unprepared)?),
            Request::RolloutList => {
                let mut list: Vec<RolloutDoc> = self.rollouts.values().map(|e| rollout_doc(&e.rollout)).collect();
                list.sort_by(|a, b| b.started_at.cmp(&a.started_at).then_with(|| a.id.cmp(&b.id)));
                json(&list)
            }
            Request::RolloutStatus { id } => json(&self.status(&id)?),
            Request::RolloutExplain { id } => {
                let lines = explain(self.rollout(&id)?, now);
                json(&ExplainDoc { schema: SCHEMA, subject: id.to_string(), lines })
            }
            Request::RolloutVerb { id, verb, reason } => self.verb(now, by, &id, verb, &reason_of(reason)?),
            Request::RolloutDeclare { id, what, reason } => {
                let (what, reason) = (named(what, "what is declared")?, said(reason, "--reason")?);
                self.person(now, &id, "declared", Event::Declared { what: &what, by, reason: &reason })
            }
            Request::RolloutAttest { id, item, note } => {
                let (item, note) = (named(item, "--item")?, said(note, "--note")?);
                self.person(now, &id, "attested", Event::Attested { item: &item, by, note: &note })
            }
            Request::FreezeAdd { reason, from, until, environment, selector } => {
                self.freeze_add(now, by, super::fleet::Wanted { reason, from, until, environment, selector })
            }
            Request::FreezeList { all } => self.freeze_list(now, all),
            Request::FreezeRemove { freeze, reason } => self.freeze_remove(now, by, freeze, reason),
            // The server answers these itself.
            Request::Version
            | Request::TokenCreate { .. }
            | Request::ReleaseMissing { .. }
            | Request::ReleaseUpload { .. }
            | Request::ReleaseImport { .. }
            | Request::ReleaseList
            | Request::ReleaseShow { .. }
            | Request::RolloutWatch { .. }
            | Request::RolloutEvents { .. }
            | Request::RolloutWait { .. }
            | Request::RolloutReplay { .. }
            | Request::Payload { .. }
            | Request::RolloutSign { .. }
            | Request::RolloutNote { .. }
            | Request::RolloutItem { .. }
            | Request::RolloutHandoff { .. }
            | Request::RolloutReview { .. }
            | Request::RolloutClose { .. }
            | Request::RolloutDocs { .. }
            | Request::NotifyTest { .. }
            | Request::AuditVerify
            | Request::AuditExport { .. } => Err(unprepared()),
        }
    }

    fn rollout(&self, id: &RolloutId) -> Result<&Rollout, ErrorDoc> {
        self.rollouts.get(id).map(|e| &e.rollout).ok_or_else(|| no_rollout(id))
    }

    /// Hosts that the rollout leaves alone are not its targets: what they run is
    /// what they last said.
    pub(super) fn status(&self, id: &RolloutId) -> Result<StatusDoc, ErrorDoc> {
        let mut doc = status(self.rollout(id)?);
        for host in doc.hosts.iter_mut().filter(|h| h.wave.is_none()) {
            let known = self.registry.get(&host.host);
            let Some(said) = known.and_then(|h| h.components().find(|c| c.component == host.component)) else { continue };
            host.release = said.current.as_ref().map(|r| r.id.clone());
            host.running_sha256 = said.running.as_ref().and_then(|r| r.sha256);
            host.tree_sha256 = said.tree_sha256;
            host.main_pid_started_at = said.running.as_ref().map(|r| rfc3339(Timestamp(r.started_at_unix_ms)));
            host.cpu_percent = Some(f64::from(said.cpu_permille) / 10.0);
            host.memory_bytes = Some(said.memory_bytes);
        }
        Ok(doc)
    }

    fn host_list(&self, now: Timestamp, selector: &str) -> Answer {
        let selector: Selector =
            selector.parse().map_err(|e: tidegate_rollout::selector::BadSelector| ErrorDoc::new(ErrorCode::Usage, e.to_string()))?;
        let list: Vec<_> = self.registry.iter().filter(|(_, h)| selector.matches(&h.labels)).map(|(name, h)| h.doc(name, now)).collect();
        json(&list)
    }

    fn host_show(&self, now: Timestamp, host: &HostName) -> Answer {
        json(&self.registry.get(host).ok_or_else(|| no_host(host))?.doc(host, now))
    }

    fn host_label(&mut self, now: Timestamp, host: &HostName, set: BTreeMap<String, Option<String>>) -> Answer {
        let known = self.registry.get_mut(host).ok_or_else(|| no_host(host))?;
        let mut labels = known.labels.clone();
        for (key, value) in set {
            match value {
                Some(value) => {
                    check_label(&key, &value)?;
                    labels.insert(key, value);
                }
                None => {
                    labels.remove(&key);
                }
            }
        }
        check_labels(&labels)?;
        if labels != known.labels {
            known.labels.clone_from(&labels);
            for session in known.sessions() {
                session.outbox.label(labels.clone());
            }
            self.batch.changes.push(HostChange::Labels(host.clone(), labels));
            self.fleet.changed = true;
        }
        self.host_show(now, host)
    }

    fn host_drain(&mut self, now: Timestamp, host: &HostName, reason: Option<String>) -> Answer {
        let known = self.registry.get_mut(host).ok_or_else(|| no_host(host))?;
        known.drained.clone_from(&reason);
        self.batch.changes.push(HostChange::Drained(host.clone(), reason));
        self.host_show(now, host)
    }

    fn host_explain(&self, now: Timestamp, host: &HostName) -> Answer {
        let known = self.registry.get(host).ok_or_else(|| no_host(host))?;
        let state = known.state(now);
        let ago = known.last_seen.map_or_else(
            || "it has not been in contact since it joined".to_owned(),
            |at| format!("last contact {} s ago", now.since(at).0 / 1_000),
        );
        let mut lines = vec![format!("{host} is {}: {ago}", state.word())];
        match state {
            HostState::Conflict => lines.extend(known.sessions().iter().map(|s| {
                format!(
                    "a machine with boot id {} and installation {:016x} speaks under its certificate; stop all but one",
                    s.agent.boot_id, s.agent.instance
                )
            })),
            HostState::Offline => lines.push("check that tidegate-agent runs there and that UDP reaches the controller".into()),
            HostState::Revoked => lines.push("enroll it again with a token bound to its name to let it back in".into()),
            HostState::Online | HostState::Drained => {}
        }
        if let Some(reason) = &known.drained {
            lines.push(format!("drained {reason}; new rollouts leave it out until `tidegate host undrain {host}`"));
        }
        for report in known.components() {
            let runs = report.current.as_ref().map_or_else(|| "nothing".to_owned(), |r| r.id.to_string());
            let failure = report.failure.as_ref().map_or_else(String::new, |f| format!("; {}: {}", f.cause, f.message));
            lines.push(format!(
                "{}: has {runs}, generation {} is {}{failure}",
                report.component,
                report.generation,
                word(&report.progress)
            ));
        }
        for of in &known.sides {
            let serves = of.active.map_or_else(|| "no side serves yet".to_owned(), |side| format!("side {side} serves"));
            let failure = of.failure.as_ref().map_or_else(String::new, |f| format!("; {}: {}", f.cause, f.message));
            lines.push(format!(
                "{}: {serves}, its newest switch (generation {}) is {}{failure}",
                of.component,
                of.generation,
                word(&of.progress)
            ));
            for side in &of.sides {
                let (report, side) = (&side.report, side.side);
                let runs = report.current.as_ref().map_or_else(|| "nothing".to_owned(), |r| r.id.to_string());
                let failure = report.failure.as_ref().map_or_else(String::new, |f| format!("; {}: {}", f.cause, f.message));
                lines.push(format!(
                    "{} {side}: has {runs}, is {}, generation {} is {}{failure}",
                    of.component,
                    word(&report.service),
                    report.generation,
                    word(&report.progress)
                ));
            }
        }
        for (component, (generation, id)) in &known.owners {
            if let Some(entry) = self.rollouts.get(id) {
                lines.push(format!(
                    "{component}: the newest order (generation {generation}) is of rollout {id}, which is {}",
                    entry.rollout.state()
                ));
            }
        }
        json(&ExplainDoc { schema: SCHEMA, subject: host.to_string(), lines })
    }

    fn verb(&mut self, now: Timestamp, by: &str, id: &RolloutId, verb: Verb, reason: &str) -> Answer {
        let rollout = self.rollout(id)?;
        let fences = if verb == Verb::Rollback { self.may_roll_back(rollout)? } else { Vec::new() };
        let Some(entry) = self.rollouts.get_mut(id) else { return Err(no_rollout(id)) };
        for (host, component, generation) in fences {
            entry.rollout.fence(now, &host, &component, generation);
        }
        let said = entry.rollout.handle(now, Event::Said { verb, by, reason });
        // A word that is refused may have come behind a sample that tripped a trigger.
        self.touch(id);
        said.map_err(|e| ErrorDoc::new(ErrorCode::Conflict, e.to_string()))?;
        tracing::info!(rollout = %id, verb = verb.word(), by, reason, "an operator spoke");
        json(&self.status(id)?)
    }

    /// A person's word that is no verb.
    fn person(&mut self, now: Timestamp, id: &RolloutId, what: &str, event: Event<'_>) -> Answer {
        // What is declared may take the rollout back, whatever its state.
        let fences = if matches!(event, Event::Declared { .. }) { self.may_roll_back(self.rollout(id)?)? } else { Vec::new() };
        let entry = self.rollouts.get_mut(id).ok_or_else(|| no_rollout(id))?;
        tracing::info!(rollout = %id, what, ?event, "an operator spoke");
        for (host, component, generation) in fences {
            entry.rollout.fence(now, &host, &component, generation);
        }
        entry.rollout.handle(now, event).map_err(|e| ErrorDoc::new(ErrorCode::Conflict, e.to_string()))?;
        self.touch(id);
        self.recheck();
        json(&self.status(id)?)
    }

    /// Going back is allowed until a newer rollout changed the component there, or
    /// is about to. One that was refused only used up generations: those are the
    /// answer.
    fn may_roll_back(&self, rollout: &Rollout) -> Result<Vec<(HostName, ComponentName, Generation)>, ErrorDoc> {
        let mut fences = Vec::new();
        for (host, component) in rollout.plan().targets() {
            if let Some(owner) = self.registry.owner(host, component).filter(|o| *o != rollout.id()) {
                let newer = self.rollouts.get(owner).map(|e| &e.rollout);
                if newer.is_some_and(|r| !r.is_live() && !r.changed_anything()) {
                    let used = newer.and_then(|r| r.generation(host, component));
                    fences.extend(used.map(|generation| (host.clone(), component.clone(), generation)));
                    continue;
                }
                let release = self.rollouts.get(owner).map_or_else(String::new, |e| format!(" of {}", e.rollout.plan().release.id));
                return Err(ErrorDoc::new(ErrorCode::Refused, format!("rollout {} cannot be rolled back any more", rollout.id()))
                    .cause(format!("the newer rollout {owner}{release} has {component} on {host} since"))
                    .fix(format!("roll back {owner}, or start a rollout of the release that shall run")));
            }
        }
        Ok(fences)
    }
}

fn rollout_doc(rollout: &Rollout) -> RolloutDoc {
    let (plan, (started, ended)) = (rollout.plan(), rollout.times());
    RolloutDoc {
        id: rollout.id().clone(),
        state: rollout.state(),
        reason: rollout.reason().to_owned(),
        release: plan.release.id.clone(),
        strategy: plan.strategy.word().into(),
        hosts: plan.components.iter().map(|c| c.hosts.len() + c.unchanged.len() + c.skipped.len()).sum(),
        started_at: rfc3339(started),
        ended_at: ended.map(rfc3339),
    }
}

/// A label that selectors can name.
pub(crate) fn check_label(key: &str, value: &str) -> Result<(), ErrorDoc> {
    if label_word_ok(key, false) && label_word_ok(value, true) {
        return Ok(());
    }
    let shown: String = format!("{key}={value}").chars().take(120).collect();
    Err(ErrorDoc::new(ErrorCode::Usage, format!("{shown:?} is not a label"))
        .fix("key and value have letters, digits, '-', '_', '.' and '/', and begin and end with a letter or digit"))
}

/// Not too many of them.
pub(crate) fn check_labels(labels: &Labels) -> Result<(), ErrorDoc> {
    labels.iter().try_for_each(|(key, value)| check_label(key, value))?;
    if labels.len() > LABELS_MAX {
        return Err(ErrorDoc::new(ErrorCode::Usage, format!("{} labels are over the limit of {LABELS_MAX} per host", labels.len())));
    }
    Ok(())
}

pub(super) fn reason_of(reason: String) -> Result<String, ErrorDoc> {
    if reason.len() > REASON_BYTES_MAX {
        return Err(ErrorDoc::new(ErrorCode::Usage, format!("the reason has {} bytes, at most {REASON_BYTES_MAX} are kept", reason.len())));
    }
    // It reaches terminals and the journal.
    Ok(reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// A name as plans write them.
fn named(name: String, what: &str) -> Result<String, ErrorDoc> {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(ok) {
        return Ok(name);
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    Err(ErrorDoc::new(ErrorCode::Usage, format!("{what}: {shown:?} is not a name"))
        .fix("names have lower-case letters, digits, '-' and '_', at most 64 of them"))
}

/// Words that must not be missing: somebody will ask for them later.
pub(crate) fn said(text: String, what: &str) -> Result<String, ErrorDoc> {
    let text = reason_of(text)?;
    if text.trim().is_empty() {
        return Err(ErrorDoc::new(ErrorCode::Usage, format!("{what} is empty")).fix("say what was seen: it goes into the journal"));
    }
    Ok(text)
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> Answer {
    serde_json::to_string(value).map_err(|e| internal(&e))
}

/// The contract's word for a value whose only text form is its JSON.
fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
}

pub(super) fn internal(error: &dyn std::fmt::Display) -> ErrorDoc {
    ErrorDoc::new(ErrorCode::Internal, "the controller could not make its answer").cause(error.to_string())
}

fn unprepared() -> ErrorDoc {
    ErrorDoc::new(ErrorCode::Internal, "the request reached the core by a wrong way; this is a defect of Tidegate")
}

fn no_host(host: &HostName) -> ErrorDoc {
    ErrorDoc::new(ErrorCode::NotFound, format!("no host {host}")).fix("`tidegate host list` shows all hosts")
}

pub(crate) fn no_rollout(id: &RolloutId) -> ErrorDoc {
    ErrorDoc::new(ErrorCode::NotFound, format!("no rollout {id}")).fix("`tidegate rollout list` shows all rollouts")
}
