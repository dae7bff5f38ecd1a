//! Documents of the controller as people read them. Pure: text in, text out.

use std::collections::BTreeMap;

use tidegate_rollout::RolloutState;
use tidegate_rollout::record::{TargetState, WaveState};
use tidegate_rollout::status::{HostDoc as TargetDoc, StatusDoc};

use super::table::{Cell, Table, Tone, clean, paint};
use super::{checklist, gates};
use crate::operator::doc::{EventDoc, ExplainDoc, HostDoc, HostState, ImportDoc, PlanDoc, ReleaseDoc, ReleaseShowDoc, RolloutDoc};

/// Longest sentence of others in a line, characters.
const TEXT_CHARS_MAX: usize = 600;

/// `12.5 MiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut scaled, mut unit) = (n, 0);
    // Tenths, in whole numbers.
    while scaled >= 1024 * 1024 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    let tenths = scaled.saturating_mul(10) / 1024;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).unwrap_or(&"TiB"))
}

fn percent(of: Option<f64>) -> String {
    of.map_or_else(|| "-".into(), |p| format!("{p:.1}%"))
}

fn opt<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".into(), T::to_string)
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    let all: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    all.join(",")
}

const fn host_tone(state: HostState) -> Tone {
    match state {
        HostState::Online => Tone::Good,
        HostState::Drained => Tone::Busy,
        HostState::Offline | HostState::Revoked | HostState::Conflict => Tone::Bad,
    }
}

const fn rollout_tone(state: RolloutState) -> Tone {
    match state {
        RolloutState::Completed => Tone::Good,
        RolloutState::Mixed | RolloutState::Refused | RolloutState::Halted | RolloutState::RolledBack => Tone::Bad,
        _ => Tone::Busy,
    }
}

const fn target_tone(state: TargetState) -> Tone {
    match state {
        TargetState::Confirmed => Tone::Good,
        TargetState::Failed | TargetState::RevertFailed | TargetState::Unreachable | TargetState::Reverted => Tone::Bad,
        TargetState::Pending | TargetState::Staged | TargetState::Skipped => Tone::Plain,
        _ => Tone::Busy,
    }
}

const fn wave_tone(state: WaveState) -> Tone {
    match state {
        WaveState::Passed | WaveState::Overridden => Tone::Good,
        WaveState::Failed | WaveState::RolledBack => Tone::Bad,
        WaveState::Open | WaveState::Baking => Tone::Busy,
        WaveState::Pending => Tone::Plain,
    }
}

/// `host list`.
#[must_use]
pub fn hosts(hosts: &[HostDoc], color: bool) -> String {
    let mut table = Table::new(["NAME", "STATE", "LABELS", "COMPONENTS", "CPU", "MEMORY", "LAST SEEN"]);
    for host in hosts {
        let components: Vec<String> = host
            .components
            .iter()
            .map(|(name, c)| format!("{name}: {}", c.release.as_ref().map_or_else(|| service(c.state).into(), ToString::to_string)))
            .collect();
        let memory = match (host.memory_bytes, host.memory_total_bytes) {
            (Some(used), Some(total)) => format!("{} of {}", bytes(used), bytes(total)),
            _ => "-".into(),
        };
        table.row([
            host.name.as_str().into(),
            Cell::toned(host.state.word(), host_tone(host.state)),
            labels(&host.labels).into(),
            components.join(", ").into(),
            percent(host.cpu_percent).into(),
            memory.into(),
            host.last_seen.as_deref().unwrap_or("never").into(),
        ]);
    }
    if table.is_empty() { "no host\n".into() } else { table.render(color) }
}

/// `host show`, and what `label`, `drain`, `undrain` answer.
#[must_use]
pub fn host(host: &HostDoc, color: bool) -> String {
    let mut out = format!("{}: {}\n", host.name, paint(host.state.word(), host_tone(host.state), color));
    let fields = [
        ("labels", labels(&host.labels)),
        ("agent", host.agent_version.clone().unwrap_or_default()),
        ("last seen", host.last_seen.clone().unwrap_or_else(|| "never".into())),
        ("cpu", percent(host.cpu_percent)),
        (
            "memory",
            format!(
                "{} of {}",
                host.memory_bytes.map_or_else(|| "-".into(), bytes),
                host.memory_total_bytes.map_or_else(|| "-".into(), bytes)
            ),
        ),
    ];
    for (name, value) in fields {
        let value = if value.is_empty() { "-".into() } else { clean(&value, TEXT_CHARS_MAX) };
        out.push_str(&format!("  {name:<10} {value}\n"));
    }
    if host.components.is_empty() {
        return out;
    }
    let mut table = Table::new(["COMPONENT", "STATE", "RELEASE", "PREVIOUS", "RUNNING", "TREE", "CPU", "MEMORY"]);
    for (name, c) in &host.components {
        table.row([
            name.into(),
            service(c.state).into(),
            opt(c.release.as_ref()).into(),
            opt(c.previous.as_ref()).into(),
            c.running_sha256.map(|d| d.short()).unwrap_or_default().into(),
            c.tree_sha256.map(|d| d.short()).unwrap_or_default().into(),
            percent(Some(c.cpu_percent)).into(),
            bytes(c.memory_bytes).into(),
        ]);
    }
    format!("{out}\n{}", table.render(color))
}

const fn service(state: tidegate_protocol::report::ServiceState) -> &'static str {
    use tidegate_protocol::report::ServiceState;
    match state {
        ServiceState::Absent => "absent",
        ServiceState::Running => "running",
        ServiceState::Stopped => "stopped",
        ServiceState::Drifted => "drifted",
    }
}

/// `explain`.
#[must_use]
pub fn explain(doc: &ExplainDoc, _color: bool) -> String {
    doc.lines.iter().map(|line| format!("{}\n", clean(line, TEXT_CHARS_MAX))).collect()
}

/// `release list`.
#[must_use]
pub fn releases(releases: &[ReleaseDoc], color: bool) -> String {
    let mut table = Table::new(["RELEASE", "DIGEST", "COMPONENTS", "FILES", "SIZE", "IMPORTED"]);
    for release in releases {
        table.row([
            release.release.to_string().into(),
            release.digest.short().into(),
            release.components.join(", ").into(),
            release.files.to_string().into(),
            bytes(release.bytes).into(),
            release.imported_at.as_str().into(),
        ]);
    }
    if table.is_empty() { "no release\n".into() } else { table.render(color) }
}

/// `release show`.
#[must_use]
pub fn release(doc: &ReleaseShowDoc, color: bool) -> String {
    let summary = &doc.summary;
    let mut out = format!(
        "{}\n  digest     {}\n  imported   {}\n  files      {} ({})\n",
        summary.release,
        summary.digest,
        clean(&summary.imported_at, TEXT_CHARS_MAX),
        summary.files,
        bytes(summary.bytes)
    );
    let Ok(manifest) = serde_json::from_value::<tidegate_protocol::Release>(doc.manifest.clone()) else {
        return out + "  (its manifest is of a newer version; --output json shows it)\n";
    };
    for (name, value) in [("issues", &manifest.known_issues), ("expires", &manifest.expires)] {
        if let Some(value) = value {
            out.push_str(&format!("  {name:<10} {}\n", clean(value, TEXT_CHARS_MAX)));
        }
    }
    let mut table = Table::new(["COMPONENT", "TREE", "FILES", "SIZE", "SERVICE", "SMOKE TESTS"]);
    for component in &manifest.components {
        let smoke: Vec<&str> = component.smoke.iter().map(|s| s.id.as_str()).collect();
        let service = match &component.service {
            tidegate_protocol::release::Service::Systemd(unit) => unit.clone(),
            tidegate_protocol::release::Service::Command { start, .. } => start.join(" "),
            tidegate_protocol::release::Service::Supervised { run, .. } => run.join(" "),
        };
        table.row([
            component.name.as_str().into(),
            component.tree_digest().short().into(),
            component.files.len().to_string().into(),
            bytes(component.bytes()).into(),
            clean(&service, 60).into(),
            smoke.join(", ").into(),
        ]);
    }
    format!("{out}\n{}", table.render(color))
}

/// `release import`.
#[must_use]
pub fn import(doc: &ImportDoc, _color: bool) -> String {
    format!(
        "imported {} ({}): {} file(s), {}, {} of it new\n",
        doc.release,
        doc.digest.short(),
        doc.files,
        bytes(doc.bytes),
        bytes(doc.new_bytes)
    )
}

/// `rollout plan`.
#[must_use]
pub fn plan(doc: &PlanDoc, color: bool) -> String {
    let (plan, count) = (&doc.plan, |action: &str| doc.hosts.iter().filter(|h| h.action == action).count());
    let mut out = format!(
        "{} would change {} host(s), {}; {} unchanged, {} skipped\n",
        doc.release,
        count("change"),
        clean(&doc.strategy, 40),
        count("unchanged"),
        count("skipped")
    );
    for component in &plan.components {
        out.push_str(&format!(
            "  {}: {} at a time, {} stay in service, {} at a time on the way back\n",
            component.name, component.window, component.keep_in_service, component.rollback_window
        ));
    }
    let limits = &plan.limits;
    out.push_str(&format!(
        "  max_failed_hosts {}, healthy_deadline {}, confirm_within {}\n  plan digest {}\n\n",
        limits.max_failed_hosts, limits.healthy_deadline, limits.confirm_within, doc.plan_digest
    ));
    let mut table = Table::new(["WAVE", "HOST", "COMPONENT", "ACTION", "FROM", "TO", "CONTACT"]);
    for host in &doc.hosts {
        let wave = host
            .wave
            .and_then(|w| doc.waves.iter().find(|d| d.index == w))
            .map_or_else(|| "-".to_string(), |w| format!("{} ({})", w.index, w.name));
        let tone = if host.action == "change" { Tone::Busy } else { Tone::Plain };
        table.row([
            wave.into(),
            host.host.as_str().into(),
            host.component.as_str().into(),
            Cell::toned(&host.action, tone),
            opt(host.from.as_ref()).into(),
            opt(host.to.as_ref()).into(),
            if host.online { "online".into() } else { Cell::toned("offline", Tone::Bad) },
        ]);
    }
    out.push_str(&table.render(color));
    out.push_str(&gates::plan(&plan.gating, color));
    out.push_str(&checklist::process(doc, color));
    out.push_str(&checklist::of_plan(&doc.readiness, color));
    if doc.refused_because.is_empty() {
        out.push_str("\nnothing was touched; start it with `tidegate rollout start`\n");
    } else {
        out.push_str(&format!("\n{}\n", paint("start would refuse it:", Tone::Bad, color)));
        doc.refused_because.iter().for_each(|why| out.push_str(&format!("  {}\n", clean(why, TEXT_CHARS_MAX))));
    }
    out
}

/// `rollout list`.
#[must_use]
pub fn rollouts(rollouts: &[RolloutDoc], color: bool) -> String {
    let mut table = Table::new(["ID", "STATE", "RELEASE", "STRATEGY", "HOSTS", "STARTED", "REASON"]);
    for rollout in rollouts {
        table.row([
            rollout.id.as_str().into(),
            Cell::toned(rollout.state.word(), rollout_tone(rollout.state)),
            rollout.release.to_string().into(),
            rollout.strategy.as_str().into(),
            rollout.hosts.to_string().into(),
            rollout.started_at.as_str().into(),
            clean(&rollout.reason, 100).into(),
        ]);
    }
    if table.is_empty() { "no rollout\n".into() } else { table.render(color) }
}

/// `rollout status`, and how a watched rollout ended.
#[must_use]
pub fn status(doc: &StatusDoc, color: bool) -> String {
    status_at(doc, color, None)
}

/// The same, with what is left of the observation now.
#[must_use]
pub fn status_at(doc: &StatusDoc, color: bool, now: Option<jiff::Timestamp>) -> String {
    let what = if doc.drill { "drill" } else { "rollout" };
    let mut out = format!("{what} {} of {}: {}\n", doc.id, doc.release, paint(doc.state.word(), rollout_tone(doc.state), color));
    if !doc.reason.is_empty() {
        out.push_str(&format!("  reason   {}\n", clean(&doc.reason, TEXT_CHARS_MAX)));
    }
    if let Some(who) = &doc.waiting_for {
        out.push_str(&format!("  waiting  for a {}\n", clean(who, 40)));
    }
    if let Some(open) = &doc.observation {
        out.push_str(&format!("  observed {}\n", gates::observation(open, now)));
    }
    out.push_str(&format!("  plan     {} ({})\n  started  {}\n", doc.plan_digest.short(), doc.strategy.word(), clean(&doc.started_at, 40)));
    if let Some(ended) = &doc.ended_at {
        out.push_str(&format!("  ended    {}{}\n", clean(ended, 40), took(&doc.started_at, ended)));
    }
    if let Some(drilled) = &doc.drilled {
        let passed = if drilled.passed { paint("passed", Tone::Good, color) } else { paint("not passed", Tone::Bad, color) };
        let span = |ms: u64| format!("{}.{} s", ms / 1_000, ms % 1_000 / 100);
        out.push_str(&format!("  drill    {passed}; forward {}, back {}\n", span(drilled.forward_ms), span(drilled.back_ms)));
    }
    if doc.closed {
        out.push_str("  closed   handed over and reviewed\n");
    }
    out.push_str(&checklist::of_status(doc, color));
    out.push_str(&checklist::tasks(doc, color));
    let mut waves = Table::new(["WAVE", "NAME", "STATE", "CONFIRMED"]);
    for wave in &doc.waves {
        let done = doc.hosts.iter().filter(|h| h.wave == Some(wave.index) && h.state == TargetState::Confirmed).count();
        waves.row([
            wave.index.to_string().into(),
            wave.name.as_str().into(),
            Cell::toned(wave.state.word(), wave_tone(wave.state)),
            format!("{done}/{}", wave.hosts.len()).into(),
        ]);
    }
    if !waves.is_empty() {
        out.push_str(&format!("\n{}", waves.render(color)));
    }
    let mut hosts = Table::new(["HOST", "COMPONENT", "STATE", "RUNS", "BEFORE", "CPU", "MEMORY", "CAUSE"]);
    for host in &doc.hosts {
        hosts.row([
            host.host.as_str().into(),
            host.component.as_str().into(),
            Cell::toned(host.state.word(), target_tone(host.state)),
            opt(host.release.as_ref()).into(),
            opt(host.previous.as_ref()).into(),
            percent(host.cpu_percent).into(),
            host.memory_bytes.map_or_else(|| "-".into(), bytes).into(),
            cause(host).into(),
        ]);
    }
    if !hosts.is_empty() {
        out.push_str(&format!("\n{}", hosts.render(color)));
    }
    out.push_str(&gates::status(doc, color));
    out
}

fn cause(host: &TargetDoc) -> String {
    match (&host.cause, &host.message) {
        (Some(cause), Some(message)) => format!("{cause}: {message}"),
        (Some(cause), None) => cause.to_string(),
        (None, message) => message.clone().unwrap_or_default(),
    }
}

fn took(started: &str, ended: &str) -> String {
    let (Ok(started), Ok(ended)) = (started.parse::<jiff::Timestamp>(), ended.parse::<jiff::Timestamp>()) else {
        return String::new();
    };
    let seconds = ended.duration_since(started).as_secs().max(0);
    match seconds {
        0..60 => format!(" ({seconds} s)"),
        60..3_600 => format!(" ({} min {} s)", seconds / 60, seconds % 60),
        _ => format!(" ({} h {} min)", seconds / 3_600, seconds / 60 % 60),
    }
}

/// What `pause`, `resume`, `promote`, `halt` and other words answer.
#[must_use]
pub fn state_line(doc: &StatusDoc, color: bool) -> String {
    let reason = if doc.reason.is_empty() { String::new() } else { format!(": {}", clean(&doc.reason, TEXT_CHARS_MAX)) };
    format!("rollout {} is {}{reason}\n", doc.id, paint(doc.state.word(), rollout_tone(doc.state), color))
}

/// `rollout events`.
#[must_use]
pub fn events(events: &[EventDoc], color: bool) -> String {
    let mut table = Table::new(["TIME", "WHAT", "HOST", "COMPONENT", "MESSAGE"]);
    for event in events {
        table.row([
            event.at.as_str().into(),
            event.kind.as_str().into(),
            opt(event.host.as_ref()).into(),
            event.component.as_deref().unwrap_or_default().into(),
            event.message.as_str().into(),
        ]);
    }
    if table.is_empty() { "no event\n".into() } else { table.render(color) }
}

/// One event as a line of a log.
#[must_use]
pub fn event_line(event: &EventDoc) -> String {
    let place = match (&event.host, &event.component) {
        (Some(host), Some(component)) => format!("{host} {component}: "),
        (Some(host), None) => format!("{host}: "),
        _ => String::new(),
    };
    clean(&format!("{} {place}{}", event.at, event.message), TEXT_CHARS_MAX)
}
