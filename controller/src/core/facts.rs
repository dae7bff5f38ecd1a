//! What the core knows about the rows of a plan's checklist, and how fast its hosts
//! change.
//!
//! Owns: looking things up in registry and rollouts. Must not: judge them
//! (`tidegate_rollout::readiness` does), or do I/O: what is outside comes in
//! [`Around`].

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::report::ServiceState;
use tidegate_protocol::{ComponentName, HostName, Millis, ReleaseRef, RolloutId, SidesReport, Timestamp, VarDigest};
use tidegate_rollout::process::{ContactRole, ContactSpec, Estimate, Fit, Opening};
use tidegate_rollout::readiness::{
    Before, Compared, ComponentFact, Drill, Facts, HostFact, Pace, Ran, RouteTest, compare, estimate, needs, steps,
};
use tidegate_rollout::{Plan, Rollout, RolloutState};

use super::state::State;
use crate::environment::Environment;
use crate::operator::checks::Checks;
use crate::operator::doc::rfc3339;
use crate::registry::Host;
use crate::windows;

/// Openings of a window that are looked at.
const OPENINGS: usize = 8;
/// Label of a host's environment.
const ENV: &str = "env";

/// What is outside of registry and rollouts.
#[derive(Debug)]
pub(super) struct Around<'a> {
    /// Of the plan; [`Environment::unconfigured`] if controller.toml does not name it.
    pub(super) environment: &'a Environment,
    /// What was checked outside of the core.
    pub(super) checks: &'a Checks,
    /// The last test of each route.
    pub(super) routes: &'a BTreeMap<String, RouteTest>,
    /// A freeze that covers the plan, in one sentence.
    pub(super) freeze: Option<String>,
    /// The rollout that carries the plan out, once there is one.
    pub(super) rollout: Option<&'a RolloutId>,
}

impl State {
    /// Everything that the rows of this plan are judged by.
    pub(super) fn facts(&self, now: Timestamp, plan: &Plan, around: &Around<'_>) -> Facts {
        let rules = around.environment.rules.clone();
        let openings = windows::openings(&plan.process.windows, now, OPENINGS);
        let given = around.rollout.and_then(|id| self.rollouts.get(id)).map(|e| e.rollout.given());
        Facts {
            depot: around.checks.depot.clone(),
            staging: rules.staging.as_ref().and_then(|staging| self.ran_in(staging, &plan.release)),
            config: rules.staging.as_ref().map(|staging| self.compared(plan, staging)),
            drill: self.drill_of(&plan.release),
            before: self.before(plan, around.checks),
            routes: around.routes.clone(),
            hosts: self.host_facts(plan),
            dashboards: around.checks.dashboards.clone(),
            cover: cover(now, plan, &openings),
            openings,
            conflicts: self.conflicts(plan, around.rollout),
            freeze: around.freeze.clone(),
            attested: given.map(|g| g.attested.keys().cloned().collect()).unwrap_or_default(),
            overridden: given
                .map(|g| g.overridden.iter().map(|(what, (signed, why))| (*what, format!("{}: {why}", signed.principal))).collect())
                .unwrap_or_default(),
            rules,
        }
    }

    /// How long a resolved plan takes, at the pace of the newest drill or completed
    /// rollout of its components.
    pub(super) fn estimate(&self, plan: &Plan) -> Estimate {
        estimate(plan, self.pace(plan).as_ref())
    }

    fn pace(&self, plan: &Plan) -> Option<Pace> {
        let names: BTreeSet<&ComponentName> = plan.components.iter().map(|c| &c.name).collect();
        let measured = |rollout: &Rollout| {
            let of = rollout.plan();
            let covers = names.iter().all(|name| of.components.iter().any(|c| &c.name == *name && !c.hosts.is_empty()));
            if !covers || of.release.id.name != plan.release.id.name {
                return None;
            }
            let (at, (forward, back)) = (rollout.times().1.or(rollout.swapped().map(|(_, last)| last))?, steps(of));
            let per = |ms: u64, steps: u64| ms.checked_div(steps).map(|ms| Millis(ms.max(1)));
            if let Some(drilled) = rollout.drilled().filter(|d| d.passed) {
                let (forward, back) = (per(drilled.forward_ms, forward)?, per(drilled.back_ms, back)?);
                return Some((at, Pace { forward, back, from: format!("measured by drill {}", rollout.id()) }));
            }
            if !matches!(rollout.state(), RolloutState::Completed | RolloutState::Watching) || of.drill {
                return None;
            }
            let (first, last) = rollout.swapped()?;
            // What was only observed between the waves was no work.
            let waves = of.waves.len();
            let bakes =
                of.gating.stages.iter().filter(|s| !s.watch && s.after_wave < waves).fold(0_u64, |sum, s| sum.saturating_add(s.bake.0));
            let forward = per(last.since(first).0.saturating_sub(bakes), forward)?;
            Some((at, Pace { forward, back: forward, from: format!("measured by rollout {}", rollout.id()) }))
        };
        self.rollouts.values().filter_map(|e| measured(&e.rollout)).max_by_key(|(at, _)| *at).map(|(_, pace)| pace)
    }

    /// The newest rollout of the same bytes that completed there.
    fn ran_in(&self, environment: &str, release: &ReleaseRef) -> Option<Ran> {
        let of = |rollout: &Rollout| {
            let plan = rollout.plan();
            let done = matches!(rollout.state(), RolloutState::Completed | RolloutState::Watching) && !plan.drill;
            let same = plan.release.manifest == release.manifest && plan.environment.as_deref() == Some(environment);
            let at = rollout.times().1.or_else(|| rollout.swapped().map(|(_, last)| last)).unwrap_or_else(|| rollout.times().0);
            (done && same).then(|| Ran { rollout: rollout.id().clone(), at })
        };
        self.rollouts.values().filter_map(|e| of(&e.rollout)).max_by_key(|ran| ran.at)
    }

    fn drill_of(&self, release: &ReleaseRef) -> Option<Drill> {
        let of = |rollout: &Rollout| {
            let drilled = rollout.drilled().filter(|d| d.passed && rollout.plan().release.manifest == release.manifest)?;
            let at = rollout.times().1?;
            Some(Drill { rollout: rollout.id().clone(), at, forward: Millis(drilled.forward_ms), back: Millis(drilled.back_ms) })
        };
        self.rollouts.values().filter_map(|e| of(&e.rollout)).max_by_key(|drill| drill.at)
    }

    /// The release that most of the targets run, if it is not the plan's.
    fn before(&self, plan: &Plan, checks: &Checks) -> Option<Before> {
        let mut counts: BTreeMap<ReleaseRef, usize> = BTreeMap::new();
        for (host, component) in plan.targets() {
            let current = self.registry.get(host).and_then(|h| current(h, component)).map(|(release, _)| release);
            if let Some(release) = current.filter(|r| r.id.name == plan.release.id.name && r.manifest != plan.release.manifest) {
                *counts.entry(release).or_default() += 1;
            }
        }
        let (release, _) = counts.into_iter().max_by_key(|(_, n)| *n)?;
        let runbook = checks.runbooks.get(&release.manifest)?;
        Some(Before { release: release.id, runbook: *runbook })
    }

    fn host_facts(&self, plan: &Plan) -> BTreeMap<HostName, HostFact> {
        let of_components = plan.components.iter().flat_map(|c| c.hosts.iter().chain(&c.unchanged).map(move |host| (host, Some(&c.name))));
        let mut all: BTreeMap<HostName, HostFact> = BTreeMap::new();
        for (name, component) in of_components.chain(plan.process.tasks.iter().map(|t| (&t.host, None))) {
            let Some(host) = self.registry.get(name) else { continue };
            let fact = all.entry(name.clone()).or_insert_with(|| HostFact {
                online: host.session().is_some(),
                version: host.session().map(|s| s.version),
                agent: host.agent.as_ref().map(|a| a.version.clone()).unwrap_or_default(),
                machine: host.report.as_ref().map(|r| r.host.clone()),
                components: BTreeMap::new(),
            });
            if let Some(component) = component {
                let runs = current(host, component);
                let drifted = runs.as_ref().is_some_and(|(_, service)| *service == ServiceState::Drifted);
                fact.components.insert(component.clone(), ComponentFact { installed: runs.is_some(), drifted });
            }
        }
        all
    }

    /// `[vars]` of the targets, and of hosts of staging that the same selectors
    /// would select there.
    fn compared(&self, plan: &Plan, staging: &str) -> Compared {
        let mut compared = Compared::default();
        let (mut here, mut there) = (BTreeSet::new(), BTreeSet::new());
        for component in &plan.components {
            here.extend(component.hosts.iter().chain(&component.unchanged).cloned());
            let Ok(selector) = component.selector.parse::<tidegate_rollout::Selector>() else { continue };
            let of = |host: &&Host| host.labels.get(ENV).is_some_and(|env| env == staging) && selector.matches(&host.labels);
            there.extend(self.registry.iter().filter(|(_, host)| !host.revoked && of(host)).map(|(name, _)| name.clone()));
        }
        let mut vars = |hosts: &BTreeSet<HostName>| -> Vec<&[VarDigest]> {
            let mut said = Vec::new();
            for name in hosts {
                match self.registry.get(name).and_then(|h| h.vars.as_deref()) {
                    Some(vars) => said.push(vars),
                    None => {
                        compared.silent.insert(name.clone());
                    }
                }
            }
            said
        };
        let (ours, theirs) = (vars(&here), vars(&there));
        compared.differs = compare(ours, theirs);
        (compared.here, compared.there) = (here.len(), there.len());
        compared
    }

    /// Rollouts that hold a target of the plan.
    fn conflicts(&self, plan: &Plan, except: Option<&RolloutId>) -> Vec<String> {
        let held = |rollout: &Rollout| {
            let (host, component) = plan.targets().find(|(h, c)| rollout.generation(h, c).is_some())?;
            Some(format!("rollout {} ({}) holds {component} on {host}", rollout.id(), rollout.state()))
        };
        self.alive().map(|(_, e)| &e.rollout).filter(|r| r.holds() && Some(r.id()) != except).filter_map(held).collect()
    }
}

/// What a host runs of a component; of one with sides, what serves.
fn current(host: &Host, component: &ComponentName) -> Option<(ReleaseRef, ServiceState)> {
    let serving =
        |of: &SidesReport| of.sides.iter().find(|s| Some(s.side) == of.active).map(|s| (s.report.current.clone(), s.report.service));
    let sided = host.sides_of(component).and_then(serving);
    let plain = || host.components().find(|c| &c.component == component).map(|c| (c.current.clone(), c.service));
    let (release, service) = sided.or_else(plain)?;
    Some((release?, service))
}

/// Whether contacts are there while it runs, from the first opening that it fits
/// into, or from now on.
fn cover(now: Timestamp, plan: &Plan, openings: &[Opening]) -> BTreeMap<ContactRole, Result<String, String>> {
    let process = &plan.process;
    let fits = |o: &&Opening| o.closes.since(o.opens.max(now)) >= needs(plan, o.fit);
    let opening = openings.iter().find(fits).or_else(|| openings.first());
    // The minute, so that what is said does not change at each look.
    let from = opening.map_or(Timestamp(now.0 / 60_000 * 60_000), |o| o.opens.max(Timestamp(now.0 / 60_000 * 60_000)));
    let until = from + process.estimate.forward.max(Millis::from_secs(60));
    // A rollout that is cut into stages pauses where the window closes.
    let to = opening.filter(|o| o.fit == Fit::Stage && !o.overrun).map_or(until, |o| until.min(o.closes));
    let zone = process.windows.first().and_then(|w| w.time_zone.as_deref());
    ContactRole::ALL
        .iter()
        .filter_map(|role| {
            let contacts: Vec<&ContactSpec> = process.contacts.iter().filter(|c| c.role == *role).collect();
            if contacts.is_empty() {
                return None;
            }
            let covered = windows::cover(&contacts, zone, from, to);
            Some((*role, covered.map(|()| format!("there from {} to {}", rfc3339(from), rfc3339(to)))))
        })
        .collect()
}

#[cfg(test)]
mod tests;
