//! From a plan to a rollout: what is shown of it, what keeps it from being started,
//! and what it brings when it is.

use std::collections::BTreeMap;

use tidegate_protocol::{ComponentName, Digest, HostName, RolloutId, Timestamp};
use tidegate_rollout::process::{Given, Row, RowKind, RowVerdict};
use tidegate_rollout::readiness::{Facts, rows, template_digest};
use tidegate_rollout::{Brought, FleetHost, Plan, PlanError, Rollout, RolloutState};

use super::ask::{internal, json};
use super::facts::Around;
use super::ready::Waiting;
use super::state::State;
use super::{Answer, Prepared};
use crate::environment::Environment;
use crate::operator::checks::Checks;
use crate::operator::doc::{
    ApprovalDoc, EstimateDoc, OpeningDoc, PlanDoc, PlanHostDoc, PlanWaveDoc, ReadinessDoc, SCHEMA, StartDoc, rfc3339,
};
use crate::operator::msg::{ErrorCode, ErrorDoc};

impl State {
    pub(super) fn plan(&self, now: Timestamp, prepared: &Prepared) -> Answer {
        let fleet = self.registry.fleet();
        let plan = self.resolved(prepared, &fleet)?;
        let facts = self.gathered(now, &plan, &prepared.checks, None);
        let rows = rows(&plan, &prepared.manifest, &facts, now);
        let refused_because = refusing(&rows).map(|row| format!("{}: {}", row.item, row.evidence)).collect();
        let approvals = plan.process.approvals.iter().map(|a| ApprovalDoc { role: a.role.word().into(), optional: a.optional }).collect();
        let estimate = &plan.process.estimate;
        let estimate = EstimateDoc { forward_ms: estimate.forward.0, back_ms: estimate.back.0, from: estimate.from.clone() };
        let opening = |o: &tidegate_rollout::process::Opening| OpeningDoc {
            opens: rfc3339(o.opens),
            closes: rfc3339(o.closes),
            text: o.text.clone(),
        };
        let openings = facts.openings.iter().map(opening).collect();
        let checklist = Given { rows, ..Given::default() }.checklist(&plan, now);
        json(&PlanDoc {
            schema: SCHEMA,
            plan_digest: plan.digest(),
            release: plan.release.id.clone(),
            strategy: plan.strategy.word().into(),
            waves: plan.waves.iter().map(|w| PlanWaveDoc { index: w.index, name: w.name.clone(), hosts: w.hosts.clone() }).collect(),
            hosts: self.planned_hosts(&plan, &fleet),
            readiness: checklist.iter().map(readiness_doc).collect(),
            refused_because,
            openings,
            estimate: Some(estimate),
            template_digest: Some(template_digest(&prepared.spec)),
            approvals,
            plan,
        })
    }

    fn planned_hosts(&self, plan: &Plan, fleet: &[FleetHost]) -> Vec<PlanHostDoc> {
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
        hosts
    }

    /// The plan in its environment, with how long it takes.
    fn resolved(&self, prepared: &Prepared, fleet: &[FleetHost]) -> Result<Plan, ErrorDoc> {
        let Prepared { spec, release, manifest, drill, .. } = prepared;
        let plan = match drill {
            None => {
                let around = self.environment(spec.environment.as_deref()).surroundings(self.registry.online(), Default::default());
                Plan::resolve_in(spec, release, manifest, fleet, &around)
            }
            Some(scope) => Plan::resolve_drill(spec, release, manifest, fleet, scope),
        };
        let mut plan = plan.map_err(|e| {
            // A plan that contradicts itself is a file to be mended, not a fleet that is not ready.
            let code = if matches!(e, PlanError::Misfit { .. }) { ErrorCode::Usage } else { ErrorCode::Refused };
            ErrorDoc::new(code, e.to_string())
        })?;
        if !plan.drill {
            plan.process.estimate = self.estimate(&plan);
        }
        Ok(plan)
    }

    /// What controller.toml says of that place.
    pub(super) fn environment(&self, name: Option<&str>) -> Environment {
        let name = name.unwrap_or_default();
        self.setup.environments.get(name).cloned().unwrap_or_else(|| Environment::unconfigured(name))
    }

    /// Everything that the automatic rows are judged by.
    pub(super) fn gathered(&self, now: Timestamp, plan: &Plan, checks: &Checks, rollout: Option<&RolloutId>) -> Facts {
        let environment = self.environment(plan.environment.as_deref());
        let around = Around { environment: &environment, checks, routes: &self.fleet.tests, freeze: self.frozen(plan, now), rollout };
        self.facts(now, plan, &around)
    }

    pub(super) fn start(
        &mut self,
        now: Timestamp,
        by: &str,
        run_id: Option<RolloutId>,
        confirm: Option<Digest>,
        prepared: &Prepared,
    ) -> Answer {
        // A refused id may be used again; any other is taken.
        if let Some(entry) = run_id.as_ref().and_then(|id| self.rollouts.get(id)).filter(|e| e.rollout.state() != RolloutState::Refused) {
            return attach(&entry.rollout, confirm, prepared);
        }
        let fleet = self.registry.fleet();
        let plan = self.resolved(prepared, &fleet)?;
        confirmed(&plan, confirm)?;
        if let Some(refused) = self.conflict(&plan, run_id.as_ref()) {
            return Err(refused);
        }
        let brought = if plan.drill { self.drillable(now, &plan)? } else { self.ready(now, &plan, prepared)? };
        let id = match run_id {
            Some(id) => id,
            None => self.new_id(&plan, now)?,
        };
        let origins = plan.origins(&fleet, |host, component| self.registry.mint(self.epoch, host, component));
        let plan_digest = plan.digest();
        let watching: Vec<RolloutId> = self.sharing(&plan).map(|(r, ..)| r.id().clone()).filter(|r| *r != id).collect();
        self.supersede(now, &watching, &id);
        let frozen = brought.freeze.clone();
        let rollout = Rollout::submit(id.clone(), plan, origins, by, |host| self.registry.lost_since(host), brought, now);
        tracing::info!(rollout = %id, release = %rollout.plan().release.id, by, state = %rollout.state(), "rollout started");
        let waiting = rollout.waits_to_begin().then(|| Waiting::new(prepared.manifest.clone(), prepared.checks.clone()));
        self.insert(rollout, frozen, waiting);
        json(&StartDoc { id, plan_digest, attached: false })
    }

    /// A rehearsal asks nobody and waits for no window; where nothing may change,
    /// it changes nothing either.
    fn drillable(&self, now: Timestamp, plan: &Plan) -> Result<Brought, ErrorDoc> {
        match self.frozen(plan, now) {
            None => Ok(Brought::default()),
            Some(freeze) => Err(ErrorDoc::new(ErrorCode::Refused, format!("a freeze stands: {freeze}"))
                .cause("a drill changes hosts, if only for a while")
                .fix("wait for its end, or `tidegate freeze remove N --reason TEXT`")),
        }
    }

    /// What a rollout brings, if no row of the program's own keeps it from being
    /// started. What people have to give it may wait for.
    fn ready(&self, now: Timestamp, plan: &Plan, prepared: &Prepared) -> Result<Brought, ErrorDoc> {
        let facts = self.gathered(now, plan, &prepared.checks, None);
        let rows = rows(plan, &prepared.manifest, &facts, now);
        let missing: Vec<String> = refusing(&rows).map(|row| format!("{} ({}): {}", row.item, row.title, row.evidence)).collect();
        if missing.is_empty() {
            return Ok(Brought { rows, openings: facts.openings, freeze: facts.freeze });
        }
        let release = &plan.release.id;
        Err(ErrorDoc::new(
            ErrorCode::Refused,
            format!("{release} is not ready to be rolled out: {} row(s) of the checklist fail", missing.len()),
        )
        .cause(missing.join("; "))
        .fix("mend them; `tidegate rollout plan` shows the whole checklist"))
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

/// Automatic rows that refuse a start. What only a person can give is waited for.
fn refusing(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| row.kind == RowKind::Automatic && row.blocks() && row.verdict == RowVerdict::Fail)
}

fn readiness_doc(row: &Row) -> ReadinessDoc {
    ReadinessDoc {
        name: row.title.clone(),
        ok: matches!(row.verdict, RowVerdict::Pass | RowVerdict::NotApplicable),
        observed: row.evidence.clone(),
        item: row.item.clone(),
        section: Some(row.section),
        title: row.title.clone(),
        kind: Some(row.kind),
        demanded: row.demanded,
        verdict: Some(row.verdict),
        evidence: row.evidence.clone(),
        by: row.by.clone(),
        at: row.at.map(rfc3339),
    }
}
