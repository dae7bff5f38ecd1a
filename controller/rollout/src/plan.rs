//! From a [`Spec`] and the fleet as it is to a [`Plan`]: named hosts in waves,
//! absolute limits, nothing left to choose. Immutable, with a digest.

mod surroundings;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use tidegate_protocol::release::{Argv, Smoke};
use tidegate_protocol::{Component, ComponentName, Digest, HostName, Millis, Release, ReleaseRef, Side};

pub use self::surroundings::Surroundings;
use crate::amount::Amount;
use crate::gate::{Gating, resolve};
use crate::process::Process;
use crate::record::Origin;
use crate::selector::Labels;
use crate::sides;
use crate::spec::{OnUnreachable, Spec, Strategy};

/// Big-bang is for small systems.
const MAX_HOSTS_DEFAULT: usize = 10;
const HEALTHY_DEADLINE_DEFAULT: Millis = Millis::from_secs(300);
const CONFIRM_WITHIN_DEFAULT: Millis = Millis::from_secs(120);

/// What will be done, host by host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What.
    pub release: ReleaseRef,
    /// Where.
    pub environment: Option<String>,
    /// Who leads.
    pub lead: Option<String>,
    /// How.
    pub strategy: Strategy,
    /// In order of deployment.
    pub components: Vec<ComponentPlan>,
    /// In order, over all components.
    pub waves: Vec<Wave>,
    /// Bounds of the whole rollout.
    pub limits: Limits,
    /// What it is judged by.
    #[serde(default)]
    pub gating: Gating,
    /// Blue-green only.
    #[serde(default)]
    pub blue_green: Option<BlueGreen>,
    /// Forward, verify, back, verify: a rehearsal.
    #[serde(default)]
    pub drill: bool,
    /// Approvals, windows, contacts, tasks.
    #[serde(default)]
    pub process: Process,
    /// Digest of the spec and the release, without the host set: tells whether a
    /// repeated `--run-id` asks for the same thing.
    pub spec_digest: Digest,
}

/// One component of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentPlan {
    /// Which.
    pub name: ComponentName,
    /// The selector as written.
    pub selector: String,
    /// Digest of the component's tree in the release.
    pub tree_sha256: Digest,
    /// Hosts that change, in order.
    pub hosts: Vec<HostName>,
    /// Hosts that run exactly this release already: left alone.
    pub unchanged: Vec<HostName>,
    /// Hosts left out by policy (drained).
    pub skipped: Vec<HostName>,
    /// Most hosts in flight.
    pub window: usize,
    /// Hosts that stay in service.
    pub keep_in_service: usize,
    /// Most hosts on the way back.
    pub rollback_window: usize,
}

/// How traffic moves between the two sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlueGreen {
    /// Waits for `rollout promote` before the switch.
    pub manual: bool,
    /// A name of `[commands]`, or a file of the release and its arguments.
    pub run: Argv,
    /// Per component: what must hold after the switch.
    pub verify: BTreeMap<ComponentName, Smoke>,
    /// How long the old side is kept running after the end of the bake.
    pub keep_old: Millis,
    /// The idle side of each host, by component: where the release goes.
    pub sides: BTreeMap<ComponentName, BTreeMap<HostName, Side>>,
}

/// What a drill is made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrillScope {
    /// The first host of each component.
    First,
    /// This host.
    Host(HostName),
    /// The hosts of the canary stages up to this one, from 1.
    Stage(usize),
}

/// Hosts that change together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// From 1, over the whole rollout.
    pub index: usize,
    /// For people: `api 2/4`.
    pub name: String,
    /// Which component.
    pub component: ComponentName,
    /// Who.
    pub hosts: Vec<HostName>,
}

/// Bounds of a rollout, absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Distinct hosts that may fail; beyond it the rollout goes back.
    pub max_failed_hosts: usize,
    /// From swap to healthy.
    pub healthy_deadline: Millis,
    /// From healthy to confirmed.
    pub confirm_within: Millis,
    /// What a lost host means.
    pub on_unreachable: OnUnreachable,
    /// Changed files do not stop the swap.
    pub accept_drift: bool,
}

/// A host as the controller knows it when a plan is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetHost {
    /// Its name.
    pub name: HostName,
    /// Its labels.
    pub labels: Labels,
    /// Left out by a person.
    pub drained: bool,
    /// Revoked, or two machines under one name.
    pub unusable: Option<String>,
    /// Its components, by the last report.
    pub components: BTreeMap<ComponentName, FleetComponent>,
}

/// A component as last reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetComponent {
    /// What `current` points at.
    pub release: Option<ReleaseRef>,
    /// It runs, unchanged and confirmed.
    pub settled: bool,
    /// What runs, by digest.
    pub running_sha256: Option<Digest>,
    /// Its tree.
    pub tree_sha256: Option<Digest>,
    /// It has sides; the one that serves is `Some` once there was a switch.
    pub sides: Option<FleetSides>,
}

/// The sides of a component as last reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetSides {
    /// The side that serves.
    pub active: Option<Side>,
}

/// Why a plan cannot be resolved. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The plan names a component that the release has not.
    #[error("the release {release} has no component {component:?}; it has {known}")]
    NoComponent {
        /// Which release.
        release: String,
        /// Which component.
        component: ComponentName,
        /// What there is.
        known: String,
    },
    /// A selector selects nobody.
    #[error(
        "the selector {selector:?} of component {component} matches no host; `tidegate host list -l '{selector}'` shows what it matches"
    )]
    NoHost {
        /// Of which component.
        component: ComponentName,
        /// As written.
        selector: String,
    },
    /// Too many hosts for big-bang.
    #[error("big-bang would change {hosts} hosts of {component} at once, max_hosts is {max}: use strategy \"rolling\", or raise max_hosts")]
    TooManyHosts {
        /// Of which component.
        component: ComponentName,
        /// How many.
        hosts: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A matching host cannot take part.
    #[error("host {host}: {why}")]
    Unusable {
        /// Which.
        host: HostName,
        /// Why, and what to do.
        why: String,
    },
    /// A component name belongs to one release name in a fleet.
    #[error(
        "component {component} on host {host} belongs to release {owner}, not to {release}: component names are unique in a fleet; rename it"
    )]
    OtherRelease {
        /// Which component.
        component: ComponentName,
        /// Where it was seen.
        host: HostName,
        /// Whose it is.
        owner: String,
        /// Who asks.
        release: String,
    },
    /// A criterion, a trigger, a metric or a stage cannot be carried out on this
    /// fleet: no source, nothing to compare with.
    #[error("{key}: {message}")]
    Gate {
        /// Which key of plan.toml.
        key: String,
        /// What is wrong and what to write.
        message: String,
    },
    /// The plan reads, but what it judges by does not hold together: mend the file.
    #[error("{key}: {message}")]
    Misfit {
        /// Which key of plan.toml.
        key: String,
        /// What is wrong and what to write.
        message: String,
    },
    /// A task of the release has no host to run on.
    #[error("task {task:?} of the release runs on {on:?}, and no such host is in contact: `tidegate host list -l '{on}'` shows them")]
    NoTaskHost {
        /// Which.
        task: String,
        /// Its selector.
        on: String,
    },
    /// More hosts than one rollout takes.
    #[error("the plan selects {0} targets, one rollout takes at most 100000")]
    TooLarge(usize),
}

impl Plan {
    /// Resolves `spec` against the fleet. `manifest` is the release that the spec
    /// names, `release` its reference.
    ///
    /// # Errors
    /// [`PlanError`]; nothing was touched.
    pub fn resolve(spec: &Spec, release: &ReleaseRef, manifest: &Release, fleet: &[FleetHost]) -> Result<Self, PlanError> {
        Self::resolve_in(spec, release, manifest, fleet, &Surroundings::default())
    }

    /// As [`Plan::resolve`], in an environment that demands something.
    ///
    /// # Errors
    /// [`PlanError`]; nothing was touched.
    pub fn resolve_in(
        spec: &Spec,
        release: &ReleaseRef,
        manifest: &Release,
        fleet: &[FleetHost],
        surroundings: &Surroundings,
    ) -> Result<Self, PlanError> {
        for component in spec.hosts.keys() {
            if manifest.component(component).is_none() {
                let known: Vec<&str> = manifest.components.iter().map(|c| c.name.as_str()).collect();
                return Err(PlanError::NoComponent {
                    release: release.id.to_string(),
                    component: component.clone(),
                    known: known.join(", "),
                });
            }
        }
        let mut components = Vec::new();
        let mut all = BTreeSet::new();
        // The release's order is the order of deployment.
        for component in &manifest.components {
            if spec.hosts.contains_key(&component.name) {
                let planned = resolve_component(spec, release, component, fleet)?;
                all.extend(planned.hosts.iter().cloned());
                components.push(planned);
            }
        }
        let targets = components.iter().map(|c| c.hosts.len()).sum();
        if targets > 100_000 {
            return Err(PlanError::TooLarge(targets));
        }
        let runs = |host: &FleetHost, name| host.components.get(name).is_some_and(|c: &FleetComponent| c.release.is_some());
        let first_install = !components.iter().any(|c| fleet.iter().any(|h| c.hosts.contains(&h.name) && runs(h, &c.name)));
        let mut gating = resolve::resolve(spec, manifest, first_install)?;
        let blue_green = sides::resolve(spec, manifest, &components, fleet, &mut gating)?;
        let waves = match spec.strategy {
            Strategy::Canary => canary_waves(spec, &components, &gating),
            Strategy::BlueGreen => whole_waves(&components),
            Strategy::Rolling | Strategy::BigBang => waves(&components),
        };
        place_gates(spec.strategy, &mut gating, components.len(), waves.len());
        Ok(Self {
            release: release.clone(),
            environment: spec.environment.clone(),
            lead: spec.lead.clone(),
            strategy: spec.strategy,
            waves,
            components,
            limits: Limits {
                max_failed_hosts: spec.limits.max_failed_hosts.unwrap_or(Amount::Count(0)).floor(all.len()),
                healthy_deadline: spec.limits.healthy_deadline.map_or(HEALTHY_DEADLINE_DEFAULT, |s| s.0),
                confirm_within: spec.limits.confirm_within.map_or(CONFIRM_WITHIN_DEFAULT, |s| s.0),
                on_unreachable: spec.on_unreachable,
                accept_drift: spec.accept_drift,
            },
            gating,
            blue_green,
            drill: false,
            process: surroundings::process(spec, manifest, fleet, surroundings)?,
            spec_digest: Self::spec_digest(spec, release),
        })
    }

    /// As [`Plan::resolve`], for a rehearsal: forward, verify, back, verify, on few
    /// hosts and without waiting.
    ///
    /// # Errors
    /// [`PlanError`]; nothing was touched.
    pub fn resolve_drill(
        spec: &Spec,
        release: &ReleaseRef,
        manifest: &Release,
        fleet: &[FleetHost],
        scope: &DrillScope,
    ) -> Result<Self, PlanError> {
        // A rehearsal runs no tasks, tells nobody and asks nobody.
        let untasked = Release { tasks: Vec::new(), ..manifest.clone() };
        let mut plan = Self::resolve(spec, release, &untasked, fleet)?;
        plan.process = Process::default();
        let keep: BTreeSet<HostName> = match scope {
            DrillScope::First => plan.components.iter().filter_map(|c| c.hosts.first().cloned()).collect(),
            DrillScope::Host(host) => BTreeSet::from([host.clone()]),
            DrillScope::Stage(stage) => {
                let last = plan.gating.stages.get(stage.saturating_sub(1)).map_or(usize::from(*stage == 1), |s| s.after_wave);
                plan.waves.iter().filter(|w| w.index <= last).flat_map(|w| w.hosts.iter().cloned()).collect()
            }
        };
        for component in &mut plan.components {
            component.hosts.retain(|host| keep.contains(host));
        }
        if plan.components.iter().all(|c| c.hosts.is_empty()) {
            let message = "no host that changes is in it: `tidegate rollout plan` shows hosts and stages".to_string();
            return Err(PlanError::Gate { key: "drill".to_string(), message });
        }
        plan.waves = whole_waves(&plan.components);
        plan.gating.stages.clear();
        plan.limits.max_failed_hosts = 0;
        plan.drill = true;
        Ok(plan)
    }

    /// Digest of the spec and the release, without the host set: known without a
    /// fleet, so that a repeated `--run-id` attaches even to a plan that could not
    /// be resolved any more.
    #[must_use]
    pub fn spec_digest(spec: &Spec, release: &ReleaseRef) -> Digest {
        Digest::of(alloc::format!("{}\n{}", release.manifest, serde_json::to_string(spec).unwrap_or_default()).as_bytes())
    }

    /// sha256 of the plan's JSON: what approvals sign and `--confirm` compares.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }

    /// Every (host, component) that the plan changes, in order.
    pub fn targets(&self) -> impl Iterator<Item = (&HostName, &ComponentName)> {
        self.components.iter().flat_map(|c| c.hosts.iter().map(move |h| (h, &c.name)))
    }

    /// What each target runs now, with the generation that `mint` gives it.
    pub fn origins(
        &self,
        fleet: &[FleetHost],
        mut mint: impl FnMut(&HostName, &ComponentName) -> tidegate_protocol::Generation,
    ) -> Vec<Origin> {
        let by_name: BTreeMap<&HostName, &FleetHost> = fleet.iter().map(|h| (&h.name, h)).collect();
        self.targets()
            .map(|(host, component)| {
                let now = by_name.get(host).and_then(|h| h.components.get(component)).cloned().unwrap_or_default();
                Origin {
                    host: host.clone(),
                    component: component.clone(),
                    generation: mint(host, component),
                    previous: now.release,
                    running_sha256: now.running_sha256,
                    tree_sha256: now.tree_sha256,
                }
            })
            .collect()
    }
}

fn resolve_component(spec: &Spec, release: &ReleaseRef, component: &Component, fleet: &[FleetHost]) -> Result<ComponentPlan, PlanError> {
    let name = &component.name;
    let Some(selector) = spec.hosts.get(name) else {
        return Err(PlanError::NoHost { component: name.clone(), selector: String::new() });
    };
    // Hosts without the label `env` are in every environment.
    let in_environment = |host: &FleetHost| match (&spec.environment, host.labels.get("env")) {
        (Some(wanted), Some(env)) => wanted == env,
        _ => true,
    };
    let (mut hosts, mut unchanged, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for host in fleet.iter().filter(|h| selector.matches(&h.labels) && in_environment(h)) {
        if let Some(why) = &host.unusable {
            return Err(PlanError::Unusable { host: host.name.clone(), why: why.clone() });
        }
        let now = host.components.get(name);
        if let Some(other) = now.and_then(|c| c.release.as_ref()).filter(|r| r.id.name != release.id.name) {
            return Err(PlanError::OtherRelease {
                component: name.clone(),
                host: host.name.clone(),
                owner: other.id.name.to_string(),
                release: release.id.name.to_string(),
            });
        }
        let slotted = spec.strategy == Strategy::BlueGreen;
        if let Some(known) = now.filter(|c| c.release.is_some() && c.sides.is_some() != slotted) {
            let runs = if known.sides.is_some() { "two sides" } else { "one link, `current`" };
            let fix = if slotted { "deploy it without sides, or under another component name" } else { "use strategy \"blue-green\"" };
            return Err(PlanError::Unusable { host: host.name.clone(), why: alloc::format!("{name} has {runs} there: {fix}") });
        }
        if host.drained {
            skipped.push(host.name.clone());
        } else if now.is_some_and(|c| c.settled && c.release.as_ref() == Some(release)) {
            unchanged.push(host.name.clone());
        } else {
            hosts.push(host.name.clone());
        }
    }
    if hosts.is_empty() && unchanged.is_empty() {
        return Err(PlanError::NoHost { component: name.clone(), selector: selector.as_str().to_string() });
    }
    hosts.sort_by_key(|host| natural(host.as_str()));
    let n = hosts.len();
    let max_parallel = spec.limits.max_parallel.map_or(n, |a| a.window(n));
    let window = match spec.strategy {
        Strategy::BigBang => {
            let max = spec.max_hosts.map(|m| m as usize).or(spec.batch.map(|a| a.floor(n))).unwrap_or(MAX_HOSTS_DEFAULT);
            if n > max {
                return Err(PlanError::TooManyHosts { component: name.clone(), hosts: n, max });
            }
            n
        }
        Strategy::Rolling => spec.batch.unwrap_or(Amount::Count(1)).window(n).min(max_parallel),
        // Inside a stage, or on the idle sides, as many as the limits allow.
        Strategy::Canary | Strategy::BlueGreen => max_parallel,
    };
    let big_bang = spec.strategy == Strategy::BigBang;
    Ok(ComponentPlan {
        name: name.clone(),
        selector: selector.as_str().to_string(),
        tree_sha256: component.tree_digest(),
        unchanged,
        skipped,
        window,
        // A component that is nowhere yet has nothing to keep in service; the
        // machine looks at that host by host.
        keep_in_service: if big_bang { 0 } else { spec.limits.min_healthy.map_or(0, |a| a.keep_in_service(n)) },
        rollback_window: spec.limits.rollback_parallel.map_or_else(
            // Twice max_parallel; where the plan does not say, the window is what it means.
            || (2 * if big_bang { n } else { spec.limits.max_parallel.map_or(window, |_| max_parallel) }).clamp(1, n.max(1)),
            |a| a.window(n),
        ),
        hosts,
    })
}

/// Stage after stage, components in order inside each. A stage that adds no host
/// has a wave all the same: it is observed and judged.
fn canary_waves(spec: &Spec, components: &[ComponentPlan], gating: &Gating) -> Vec<Wave> {
    let names: Vec<&str> = gating.stages.iter().filter(|s| !s.watch).map(|s| s.name.as_str()).collect();
    let mut waves = Vec::new();
    let mut before = alloc::vec![0; components.len()];
    for (stage, percent) in resolve::percents(spec).into_iter().enumerate() {
        let name = names.get(stage).copied().unwrap_or("stage");
        for (component, taken) in components.iter().zip(&mut before) {
            let n = component.hosts.len();
            let upto = if percent >= 100 { n } else { Amount::Percent(percent).window(n).min(n) };
            let hosts = component.hosts.get(*taken..upto).unwrap_or_default().to_vec();
            *taken = upto.max(*taken);
            let name = if components.len() == 1 { name.to_string() } else { alloc::format!("{name}: {}", component.name) };
            waves.push(Wave { index: waves.len() + 1, name, component: component.name.clone(), hosts });
        }
    }
    waves
}

/// One wave per component.
fn whole_waves(components: &[ComponentPlan]) -> Vec<Wave> {
    let wave = |(at, c): (usize, &ComponentPlan)| Wave {
        index: at + 1,
        name: c.name.to_string(),
        component: c.name.clone(),
        hosts: c.hosts.clone(),
    };
    components.iter().enumerate().map(wave).collect()
}

/// Each gate behind the last wave of its stage.
fn place_gates(strategy: Strategy, gating: &mut Gating, components: usize, waves: usize) {
    let mut stage = 0;
    for gate in &mut gating.stages {
        if strategy == Strategy::Canary && !gate.watch {
            stage += 1;
            gate.after_wave = stage * components;
        } else {
            gate.after_wave = waves;
        }
    }
}

fn waves(components: &[ComponentPlan]) -> Vec<Wave> {
    let mut waves = Vec::new();
    for component in components {
        let of = component.hosts.len().div_ceil(component.window.max(1));
        for (at, hosts) in component.hosts.chunks(component.window.max(1)).enumerate() {
            waves.push(Wave {
                index: waves.len() + 1,
                name: alloc::format!("{} {}/{of}", component.name, at + 1),
                component: component.name.clone(),
                hosts: hosts.to_vec(),
            });
        }
    }
    waves
}

/// `h2` before `h10`: runs of digits compare as numbers.
fn natural(name: &str) -> Vec<(u64, String)> {
    let mut out = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[text..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |d| text + d);
        out.push((0, rest[..text].to_string()));
        if digits > text {
            out.push((rest[text..digits].parse().unwrap_or(u64::MAX), String::new()));
        }
        rest = &rest[digits..];
    }
    out
}
