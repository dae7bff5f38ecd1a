//! Blue-green: from plan.toml and the fleet to the sides of each host, and to what
//! moves the traffic.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};

use tidegate_protocol::release::{Component, Service, Smoke, SmokeCheck, Suite};
use tidegate_protocol::{ComponentName, HostName, Millis, Release, Side};

use crate::gate::{AgentSource, Gating, MetricSource, Stage};
use crate::plan::{BlueGreen, ComponentPlan, FleetHost, PlanError};
use crate::spec::{Spec, Strategy, SwitchMode, VerifyCheck, VerifySpec};

const VERIFY_TIMEOUT: Millis = Millis::from_secs(5);
const VERIFY_RETRY: Millis = Millis::from_secs(10);
/// Least time given to what is measured on the idle sides.
const IDLE_PATIENCE: Millis = Millis::from_secs(300);

/// None for the other strategies. What the idle sides are judged by becomes a gate
/// before the switch.
///
/// # Errors
/// [`PlanError::Misfit`].
pub(crate) fn resolve(
    spec: &Spec,
    manifest: &Release,
    components: &[ComponentPlan],
    fleet: &[FleetHost],
    gating: &mut Gating,
) -> Result<Option<BlueGreen>, PlanError> {
    if spec.strategy != Strategy::BlueGreen {
        return Ok(None);
    }
    let bad = |key: &str, message: String| PlanError::Misfit { key: key.to_string(), message };
    let Some(switch) = &spec.switch else {
        return Err(bad("switch", "strategy \"blue-green\" needs it, for example switch = { run = \"lb-switch ${side}\" }".to_string()));
    };
    let run = switch.run.argv();
    if run.first().is_none_or(String::is_empty) {
        return Err(bad("switch.run", "names no command: a name of [commands] or a file of the release is wanted".to_string()));
    }
    let mut verify = BTreeMap::new();
    let mut sides = BTreeMap::new();
    for planned in components {
        let Some(component) = manifest.component(&planned.name) else { continue };
        if !mentions_side(component) {
            let message = format!(
                "the service of {} is the same on both sides: use ${{side}}, or a ${{var.NAME}} that [vars] of agent.toml gives as NAME_blue and NAME_green",
                planned.name
            );
            return Err(bad("strategy", message));
        }
        if let Some(wanted) = &switch.verify {
            verify.insert(planned.name.clone(), check_of(wanted, component)?);
        }
        sides.insert(planned.name.clone(), idle_sides(&planned.name, planned, fleet));
    }
    before_switch(gating);
    let keep_old = spec.keep_old.map_or(Millis(0), |s| s.0);
    // A first install has no old side to keep.
    let installed = |c: &ComponentPlan| {
        fleet.iter().any(|h| c.hosts.contains(&h.name) && h.components.get(&c.name).is_some_and(|f| f.release.is_some()))
    };
    if keep_old.0 > 0 && components.iter().any(installed) && !gating.stages.iter().any(|s| s.watch && s.bake >= keep_old) {
        gating.stages.push(Stage {
            name: "old side kept".to_string(),
            after_wave: 0,
            bake: keep_old,
            standing: false,
            attest: alloc::vec::Vec::new(),
            watch: true,
            criteria: alloc::vec::Vec::new(),
        });
    }
    Ok(Some(BlueGreen { manual: spec.switch_mode.unwrap_or_default() == SwitchMode::Manual, run, verify, keep_old, sides }))
}

/// The side that does not serve; the first one where none does.
fn idle_sides(name: &ComponentName, planned: &ComponentPlan, fleet: &[FleetHost]) -> BTreeMap<HostName, Side> {
    let by_name: BTreeMap<&HostName, &FleetHost> = fleet.iter().map(|h| (&h.name, h)).collect();
    let active = |host: &HostName| by_name.get(host)?.components.get(name)?.sides.as_ref()?.active;
    planned.hosts.iter().map(|host| (host.clone(), active(host).map_or(Side::Blue, Side::other))).collect()
}

/// The performance baseline is measured on the idle sides before traffic moves,
/// where a probe can: an idle side has no other requests.
fn before_switch(gating: &mut Gating) {
    let probed = |metric: &str| {
        gating.metrics.get(metric).is_some_and(|m| {
            let probes = |what: &AgentSource| matches!(what, AgentSource::ProbeErrors { .. } | AgentSource::ProbeLatency { .. });
            matches!(&m.source, MetricSource::Agent { what, .. } if probes(what))
        })
    };
    let criteria: alloc::vec::Vec<_> =
        gating.stages.iter().filter(|s| !s.watch).flat_map(|s| &s.criteria).filter(|c| c.perf && probed(&c.metric)).cloned().collect();
    if !criteria.is_empty() {
        let stage = Stage {
            name: "before the switch".to_string(),
            after_wave: 0,
            bake: IDLE_PATIENCE,
            standing: true,
            attest: alloc::vec::Vec::new(),
            watch: false,
            criteria,
        };
        gating.stages.insert(0, stage);
    }
}

fn mentions_side(component: &Component) -> bool {
    let differs = |text: &String| text.contains("${side}") || text.contains("${var.");
    match &component.service {
        Service::Systemd(unit) => differs(unit),
        Service::Command { start, stop, status } => start.iter().chain(stop).chain(status).any(differs),
        Service::Supervised { run, env } => run.iter().chain(env.values()).any(differs),
    }
}

fn check_of(wanted: &VerifySpec, component: &Component) -> Result<Smoke, PlanError> {
    let bad = |message: String| PlanError::Misfit { key: "switch.verify".to_string(), message };
    match wanted {
        VerifySpec::Smoke(id) => component.smoke.iter().find(|s| s.id == *id).cloned().ok_or_else(|| {
            let known: alloc::vec::Vec<&str> = component.smoke.iter().map(|s| s.id.as_str()).collect();
            bad(format!("{} has no smoke test {id:?}; it has {}", component.name, known.join(", ")))
        }),
        VerifySpec::Check(check) => {
            let VerifyCheck { http, tcp, exec, timeout, retry_for } = &**check;
            let check = match (http, tcp, exec) {
                (Some(http), None, None) => {
                    SmokeCheck::Http { url: http.url.clone(), status: http.status.unwrap_or(200), body: http.body.clone() }
                }
                (None, Some(tcp), None) => SmokeCheck::Tcp { address: tcp.address.clone() },
                (None, None, Some(exec)) => SmokeCheck::Exec { run: exec.run.argv() },
                _ => return Err(bad("exactly one of http, tcp and exec is wanted".to_string())),
            };
            Ok(Smoke {
                id: "switch".to_string(),
                name: "after the switch".to_string(),
                suite: Suite::Critical,
                check,
                timeout: timeout.map_or(VERIFY_TIMEOUT, |s| s.0),
                retry_for: retry_for.map_or(VERIFY_RETRY, |s| s.0),
            })
        }
    }
}
