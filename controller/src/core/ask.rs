//! What operators ask of the fleet and of rollouts.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::limits::LABELS_MAX;
use tidegate_protocol::message::VERSION_WATCH;
use tidegate_protocol::{ComponentName, Digest, Generation, HostName, RolloutId, Timestamp};
use tidegate_rollout::gate::{AgentSource, MetricSource};
use tidegate_rollout::selector::label_word_ok;
use tidegate_rollout::status::{StatusDoc, explain, status};
use tidegate_rollout::{Event, FleetHost, Plan, PlanError, Rollout, RolloutState, Selector, Verb};

use super::state::State;
use super::{Answer, Prepared};
use crate::operator::doc::{ExplainDoc, HostState, PlanDoc, PlanHostDoc, PlanWaveDoc, ReadinessDoc, RolloutDoc, SCHEMA, StartDoc, rfc3339};
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
            Request::RolloutPlan { .. } => self.plan(&*prepared.ok_or_else(unprepared)?),
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

    fn plan(&self, prepared: &Prepared) -> Answer {
        let fleet = self.registry.fleet();
        let plan = resolve(prepared, &fleet)?;
        let online = self.registry.online();
        let now_runs: BTreeMap<&HostName, &FleetHost> = fleet.iter().map(|h| (&h.name, h)).collect();
        let mut hosts = Vec::new();
        for component in &plan.components {
            let wave_of: BTreeMap<&HostName, usize> = plan
                .waves
                .iter()
                .filter(|w| w.component == component.name)
                .flat_map(|w| w.hosts.iter().map(move |h| (h, w.index)))
                .collect();
            for (names, action) in [(&component.hosts, "change"), (&component.unchanged, "unchanged"), (&component.skipped, "skipped")] {
                for host in names {
                    let from = now_runs.get(host).and_then(|h| h.components.get(&component.name)).and_then(|c| c.release.as_ref());
                    hosts.push(PlanHostDoc {
                        host: host.clone(),
                        component: component.name.to_string(),
                        wave: wave_of.get(host).copied(),
                        action: action.into(),
                        from: from.map(|r| r.id.clone()),
                        to: (action != "skipped").then(|| plan.release.id.clone()),
                        online: online.contains(host),
                    });
                }
            }
        }
        let offline: Vec<&str> = hosts.iter().filter(|h| h.action == "change" && !h.online).map(|h| h.host.as_str()).collect();
        let mut readiness = vec![ReadinessDoc {
            name: "every host that changes is in contact".into(),
            ok: offline.is_empty(),
            observed: if offline.is_empty() { "all are".into() } else { format!("not in contact: {}", offline.join(", ")) },
        }];
        readiness.extend(self.can_measure(&plan));
        let conflict = self.conflict(&plan, None).map(|e| e.message);
        json(&PlanDoc {
            schema: SCHEMA,
            plan_digest: plan.digest(),
            release: plan.release.id.clone(),
            strategy: plan.strategy.word().into(),
            waves: plan.waves.iter().map(|w| PlanWaveDoc { index: w.index, name: w.name.clone(), hosts: w.hosts.clone() }).collect(),
            hosts,
            readiness,
            refused_because: conflict.into_iter().chain(self.too_old(&plan)).collect(),
            plan,
        })
    }

    fn start(&mut self, now: Timestamp, by: &str, run_id: Option<RolloutId>, confirm: Option<Digest>, prepared: &Prepared) -> Answer {
        // A refused id may be used again; any other is taken.
        if let Some(entry) = run_id.as_ref().and_then(|id| self.rollouts.get(id)).filter(|e| e.rollout.state() != RolloutState::Refused) {
            return attach(&entry.rollout, confirm, prepared);
        }
        let fleet = self.registry.fleet();
        let plan = resolve(prepared, &fleet)?;
        confirmed(&plan, confirm)?;
        if let Some(refused) = self.conflict(&plan, run_id.as_ref()) {
            return Err(refused);
        }
        let id = match run_id {
            Some(id) => id,
            None => self.new_id(&plan, now)?,
        };
        let origins = plan.origins(&fleet, |host, component| self.registry.mint(self.epoch, host, component));
        let plan_digest = plan.digest();
        let watching: Vec<RolloutId> = self.sharing(&plan).map(|(r, ..)| r.id().clone()).filter(|r| *r != id).collect();
        self.supersede(now, &watching, &id);
        tracing::info!(rollout = %id, release = %plan.release.id, by, "rollout started");
        let rollout = Rollout::start(id.clone(), plan, origins, by, |host| self.registry.lost_since(host), now);
        self.insert(rollout);
        json(&StartDoc { id, plan_digest, attached: false })
    }

    /// Agents of an older version neither measure nor switch.
    fn can_measure(&self, plan: &Plan) -> Option<ReadinessDoc> {
        let measured = plan.gating.metrics.values().any(|m| matches!(m.source, MetricSource::Agent { .. }));
        if !measured && plan.blue_green.is_none() {
            return None;
        }
        let names: BTreeSet<String> = plan.targets().filter_map(|(host, _)| self.old_agent(host)).collect();
        let names: Vec<String> = names.into_iter().collect();
        let observed = if names.is_empty() { "all in contact can".into() } else { format!("too old, upgrade them: {}", names.join(", ")) };
        Some(ReadinessDoc { name: "every agent can do what the plan asks of it".into(), ok: names.is_empty(), observed })
    }

    /// Agents whose age ends the rollout in its preflight. What is read of a journal
    /// does not: without it nothing is counted.
    fn too_old(&self, plan: &Plan) -> Vec<String> {
        let measured = |source: &MetricSource, component: &ComponentName| {
            let MetricSource::Agent { what, component: of, .. } = source else { return false };
            let journal =
                matches!(what, AgentSource::JournalCritical { .. } | AgentSource::JournalNewErrors | AgentSource::JournalSecurity { .. });
            !journal && of.as_ref().is_none_or(|of| of == component)
        };
        let of = |(host, component): (&HostName, &ComponentName)| {
            let old = self.old_agent(host)?;
            let metrics = plan.gating.metrics.iter().filter(|(_, metric)| measured(&metric.source, component));
            let names: Vec<&str> = metrics.map(|(name, _)| name.as_str()).collect();
            let cannot = match (plan.blue_green.is_some(), names.is_empty()) {
                (true, _) => "serve two sides of".to_owned(),
                (false, false) => format!("measure {} of", names.join(", ")),
                (false, true) => return None,
            };
            Some(format!("the agent on {old} is too old to {cannot} {component}: upgrade it"))
        };
        plan.targets().filter_map(of).collect()
    }

    /// `host (version)` of an agent that is in contact and neither measures nor switches.
    fn old_agent(&self, host: &HostName) -> Option<String> {
        let session = self.registry.get(host).and_then(|h| h.session());
        session.filter(|s| s.version < VERSION_WATCH).map(|s| format!("{host} ({})", s.agent.version))
    }

    /// A rollout that holds one of the plan's targets. One that only watches does not.
    fn conflict(&self, plan: &Plan, except: Option<&RolloutId>) -> Option<ErrorDoc> {
        self.sharing(plan).find(|(r, ..)| r.holds() && Some(r.id()) != except).map(|(live, host, component)| {
            ErrorDoc::new(ErrorCode::Refused, format!("rollout {} ({}) holds {component} on {host}", live.id(), live.state()))
                .cause("one rollout at a time per host and component")
                .fix(format!("wait for it (`tidegate rollout watch {0}`), or end it (`tidegate rollout halt {0}`)", live.id()))
        })
    }

    /// Live rollouts with a target of the plan, and which.
    fn sharing<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = (&'a Rollout, &'a HostName, &'a ComponentName)> {
        self.alive().filter_map(|(_, entry)| {
            let (host, component) = plan.targets().find(|(h, c)| entry.rollout.generation(h, c).is_some())?;
            Some((&entry.rollout, host, component))
        })
    }

    /// Short, and in the order of starting.
    fn new_id(&self, plan: &Plan, now: Timestamp) -> Result<RolloutId, ErrorDoc> {
        let short = |text: &str| text.chars().take(18).map(|c| if c == '+' { '-' } else { c }).collect::<String>();
        let time: String = rfc3339(now).chars().filter(char::is_ascii_digit).take(14).collect();
        let (day, clock) = time.split_at_checked(8).unwrap_or((&time, ""));
        for _ in 0..8 {
            let mut random = [0; 2];
            getrandom::fill(&mut random).map_err(|e| internal(&e))?;
            let id = format!(
                "{}-{}-{day}-{clock}-{:04x}",
                short(plan.release.id.name.as_str()),
                short(plan.release.id.version.as_str()),
                u16::from_le_bytes(random)
            );
            let id: RolloutId = id.parse().map_err(|e| internal(&e))?;
            if !self.rollouts.contains_key(&id) {
                return Ok(id);
            }
        }
        Err(ErrorDoc::new(ErrorCode::Unavailable, "no free rollout id; try again"))
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

/// The same start again: its answer was lost, or somebody wants to watch.
fn attach(rollout: &Rollout, confirm: Option<Digest>, prepared: &Prepared) -> Answer {
    let running = rollout.plan();
    if running.spec_digest != Plan::spec_digest(&prepared.spec, &prepared.release) || running.drill != prepared.drill.is_some() {
        return Err(ErrorDoc::new(ErrorCode::Refused, format!("--run-id {} belongs to another plan", rollout.id()))
            .cause(format!("it {} {} and is {}", if running.drill { "drills" } else { "rolls out" }, running.release.id, rollout.state()))
            .fix("use another --run-id, or the same plan.toml and release"));
    }
    confirmed(running, confirm)?;
    json(&StartDoc { id: rollout.id().clone(), plan_digest: running.digest(), attached: true })
}

fn resolve(prepared: &Prepared, fleet: &[FleetHost]) -> Result<Plan, ErrorDoc> {
    let Prepared { spec, release, manifest, drill } = prepared;
    let plan = match drill {
        None => Plan::resolve(spec, release, manifest, fleet),
        Some(scope) => Plan::resolve_drill(spec, release, manifest, fleet, scope),
    };
    plan.map_err(|e| {
        // A plan that contradicts itself is a file to be mended, not a fleet that is not ready.
        let code = if matches!(e, PlanError::Misfit { .. }) { ErrorCode::Usage } else { ErrorCode::Refused };
        ErrorDoc::new(code, e.to_string())
    })
}

fn confirmed(plan: &Plan, confirm: Option<Digest>) -> Result<(), ErrorDoc> {
    match confirm {
        Some(wanted) if wanted != plan.digest() => {
            Err(ErrorDoc::new(ErrorCode::Refused, format!("the plan's digest is {}, --confirm says {wanted}", plan.digest()))
                .cause("plan.toml, the release or the hosts it selects changed since it was looked at")
                .fix("look at `tidegate rollout plan` again and confirm its digest"))
        }
        _ => Ok(()),
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

fn internal(error: &dyn std::fmt::Display) -> ErrorDoc {
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
