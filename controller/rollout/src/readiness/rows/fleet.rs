//! Capacity, dashboards, and what Tidegate needs of the fleet.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::message::{VERSION_PROCESS, VERSION_WATCH};
use tidegate_protocol::{ComponentName, HostName};

use super::{Found, Look, beside, fail, named, open, pass, size};
use crate::condition::Ask;
use crate::gate::{AgentSource, MetricSource};
use crate::spec::OnUnreachable;

/// Free bytes wanted for each byte of a component: staged, laid out, and the next.
const DISK_FACTOR: u64 = 3;
/// Most that hosts which stay may be loaded with, in thousandths.
const CPU_PERMILLE_MAX: u64 = 800;

pub(super) fn capacity(look: &Look<'_>) -> Found {
    let strict = look.asks("capacity");
    let mut needed: BTreeMap<&HostName, u64> = BTreeMap::new();
    for (host, component) in look.plan.targets() {
        let bytes = look.manifest.component(component).map_or(0, tidegate_protocol::Component::bytes);
        let of = needed.entry(host).or_default();
        *of = of.saturating_add(bytes.saturating_mul(DISK_FACTOR));
    }
    let machine = |host: &HostName| look.facts.hosts.get(host).and_then(|h| h.machine.as_ref());
    // Numbers that are all zero were never measured.
    let known = |host: &HostName| machine(host).filter(|m| m.disk_free_bytes > 0 || m.memory_total_bytes > 0);
    let silent: Vec<&HostName> = needed.keys().copied().filter(|host| known(host).is_none()).collect();
    let full: Vec<String> = needed
        .iter()
        .filter_map(|(host, wanted)| {
            let free = known(host)?.disk_free_bytes;
            (free < *wanted).then(|| format!("{host} has {} free, {} are wanted", size(free), size(*wanted)))
        })
        .collect();
    if !full.is_empty() {
        return fail(format!("disk: {}; make room there (3 times the component's bytes)", named(&full)));
    }
    if strict && !silent.is_empty() {
        return fail(format!("these hosts never said what they have: {}; start their agents", named(&silent)));
    }
    let (mut notes, mut loaded) = (Vec::new(), Vec::new());
    for component in &look.plan.components {
        let serving: Vec<&HostName> = component.hosts.iter().chain(&component.unchanged).collect();
        let out = component.window.min(component.hosts.len());
        let stay = serving.len().saturating_sub(out) as u64;
        let load: u64 = serving.iter().filter_map(|host| known(host)).map(|m| u64::from(m.cpu_permille)).sum();
        // With nobody left there is nothing that could be overloaded.
        let Some(each) = load.checked_div(stay).filter(|_| out > 0) else { continue };
        let busiest = serving.iter().max_by_key(|host| known(host).map_or(0, |m| m.cpu_permille));
        let percent = each.div_ceil(10);
        let text = format!("{}: {out} of {} out, CPU of the others {percent} %", component.name, serving.len());
        if each > CPU_PERMILLE_MAX {
            loaded.push(format!("{text} (busiest: {})", busiest.map_or("-", |h| h.as_str())));
        } else {
            notes.push(text);
        }
    }
    if strict && !loaded.is_empty() {
        return fail(format!("{}; at most {} % is wanted: lower max_parallel, or add hosts", named(&loaded), CPU_PERMILLE_MAX / 10));
    }
    notes.extend(loaded);
    let smallest = needed.keys().filter_map(|host| Some((known(host)?.disk_free_bytes, host))).min();
    let disk =
        smallest.map_or_else(|| "disk: not known".to_string(), |(free, host)| format!("disk: at least {} free ({host})", size(free)));
    if !silent.is_empty() && smallest.is_some() {
        notes.push(format!("not known of {}", named(&silent)));
    }
    notes.insert(0, disk);
    pass(notes.join("; "))
}

pub(super) fn dashboards(look: &Look<'_>) -> Found {
    let urls = &look.plan.process.dashboards;
    if urls.is_empty() {
        return fail("neither plan nor environment names any: write dashboards = [\"https://…\"]");
    }
    let (mut untried, mut bad) = (Vec::new(), Vec::new());
    for url in urls {
        match look.facts.dashboards.get(url) {
            None => untried.push(url),
            Some(Ok(status)) if (200..400).contains(status) => {}
            Some(Ok(status)) => bad.push(format!("{url} answers HTTP {status}")),
            Some(Err(why)) => bad.push(format!("{url}: {why}")),
        }
    }
    if !bad.is_empty() {
        return fail(format!("{}; mend or correct it", named(&bad)));
    }
    if !untried.is_empty() {
        return open(format!("not tried: {}; they are tried for callers with the role operator", named(&untried)));
    }
    pass(format!("{} answered: {}", urls.len(), named(urls)))
}

pub(super) fn contact(look: &Look<'_>) -> Found {
    let hosts: BTreeSet<&HostName> = look.plan.targets().map(|(host, _)| host).collect();
    let offline: Vec<&&HostName> = hosts.iter().filter(|host| !look.facts.hosts.get(**host).is_some_and(|h| h.online)).collect();
    if offline.is_empty() {
        return pass(format!("all {} are", hosts.len()));
    }
    let text = format!("not in contact: {}", named(&offline));
    match look.plan.limits.on_unreachable {
        OnUnreachable::Fail => fail(format!("{text}; start tidegate-agent there, or write on_unreachable = \"skip\"")),
        OnUnreachable::Wait => beside(format!("{text}; they are waited for")),
        OnUnreachable::Skip => beside(format!("{text}; they are left out")),
    }
}

/// Agents of an older version that would end the rollout in its preflight. What is
/// read of a journal does not: without it nothing is counted.
pub(super) fn able(look: &Look<'_>) -> Found {
    let (plan, facts) = (look.plan, look.facts);
    let older = |host: &HostName, than: u16| {
        let known = facts.hosts.get(host)?;
        known.version.filter(|v| *v < than).map(|_| format!("{host} ({})", known.agent))
    };
    let measured = |source: &MetricSource, component: &ComponentName| {
        let MetricSource::Agent { what, component: of, .. } = source else { return false };
        let journal =
            matches!(what, AgentSource::JournalCritical { .. } | AgentSource::JournalNewErrors | AgentSource::JournalSecurity { .. });
        !journal && of.as_ref().is_none_or(|of| of == component)
    };
    let mut cannot = Vec::new();
    for (host, component) in plan.targets() {
        let Some(old) = older(host, VERSION_WATCH) else { continue };
        let names: Vec<&str> =
            plan.gating.metrics.iter().filter(|(_, m)| measured(&m.source, component)).map(|(name, _)| name.as_str()).collect();
        let what = match (plan.blue_green.is_some(), names.is_empty()) {
            (true, _) => "serve two sides of".to_string(),
            (false, false) => format!("measure {} of", names.join(", ")),
            (false, true) => continue,
        };
        cannot.push(format!("the agent on {old} is too old to {what} {component}"));
    }
    let task = |t: &crate::process::PlannedTask| {
        older(&t.host, VERSION_PROCESS).map(|old| format!("the agent on {old} is too old to run the task {:?}", t.name))
    };
    cannot.extend(plan.process.tasks.iter().filter_map(task));
    if cannot.is_empty() { pass("all in contact can") } else { fail(format!("{}: upgrade it", named(&cannot))) }
}

pub(super) fn target(look: &Look<'_>) -> Found {
    let (mut drifted, mut first, mut back) = (BTreeSet::new(), 0_usize, 0_usize);
    for (host, component) in look.plan.targets() {
        match look.facts.hosts.get(host).and_then(|h| h.components.get(component)) {
            Some(known) if known.installed && known.drifted && !look.plan.limits.accept_drift => {
                drifted.insert(format!("{component} on {host}"));
            }
            Some(known) if known.installed => back += 1,
            _ => first += 1,
        }
    }
    if !drifted.is_empty() {
        return fail(format!(
            "files of the release that runs were changed: {}; restore them, or write accept_drift = true",
            named(&drifted)
        ));
    }
    let all = back + first;
    match first {
        0 => pass(format!("{back} of {all} host(s) have what they would go back to, unchanged")),
        _ => pass(format!(
            "{back} of {all} host(s) have what they would go back to; {first} install for the first time and would go back to nothing"
        )),
    }
}

/// The guide's table 3.3: each row needs a trigger, and a trigger a source.
pub(super) fn triggers(look: &Look<'_>) -> Found {
    let gating = &look.plan.gating;
    let on_metric = |names: &[&str]| gating.triggers.iter().any(|t| t.tests.iter().any(|test| names.contains(&test.metric.as_str())));
    let declared = |name: &str| {
        let of =
            |t: &crate::gate::Trigger| t.declared.as_deref() == Some(name) || matches!(&t.when.ask, Ask::Declared(what) if what == name);
        gating.triggers.iter().any(of)
    };
    let rows = [
        ("error rate", on_metric(&["error_rate"])),
        ("P50 latency", on_metric(&["latency_p50"])),
        ("critical error", on_metric(&["critical_errors"])),
        ("data corruption", declared("data-corruption")),
        ("security incident", declared("security-incident")),
    ];
    let missing: Vec<&str> = rows.iter().filter(|(_, armed)| !armed).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return pass(format!("{} armed: {}", gating.triggers.len(), named(gating.triggers.iter().map(|t| t.when.to_string()))));
    }
    let why = if gating.not_armed.is_empty() { String::new() } else { format!(" ({})", named(&gating.not_armed)) };
    fail(format!("not armed: {}{why}; give each a [[rollback]] and its metric a source, [metrics.NAME]", named(&missing)))
}
