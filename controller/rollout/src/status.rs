//! What scripts and people read about a rollout: functions of its state.

mod describe;
mod gates;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::SmokeResult;
use tidegate_protocol::{
    Cause, ComponentName, Digest, Generation, HostName, ReleaseId, ReleaseRef, RolloutId, TaskRun, TaskState, Timestamp,
};

pub use self::describe::describe;
pub(crate) use self::gates::waits_for_person;
use self::gates::{explain_gate, gate_docs, gated, trigger_docs};
use crate::gate::Observed;
use crate::process::{PlannedTask, Row};
use crate::record::{RolloutState, TargetState, WaveState};
use crate::rollout::{Rollout, TargetRun};
use crate::spec::{Strategy, TriggerAction};

/// The schema of the documents here.
pub const SCHEMA: u32 = 1;

/// `rollout status --output json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusDoc {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which rollout.
    pub id: RolloutId,
    /// Its state.
    pub state: RolloutState,
    /// Why it is in that state.
    pub reason: String,
    /// `"person"` when nothing goes on without one; `reason` says what for.
    pub waiting_for: Option<String>,
    /// Who paused it; null when it stopped by itself.
    #[serde(default)]
    pub paused_by: Option<String>,
    /// `name@version`.
    pub release: ReleaseId,
    /// sha256 of the plan.
    pub plan_digest: Digest,
    /// How hosts change together.
    pub strategy: Strategy,
    /// Handed over and closed.
    pub closed: bool,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC; null while it lives.
    pub ended_at: Option<String>,
    /// In order.
    pub waves: Vec<WaveDoc>,
    /// In order of the plan.
    pub hosts: Vec<HostDoc>,
    /// Verdicts: of every stage the last one.
    pub gates: Vec<GateDoc>,
    /// What is observed now.
    #[serde(default)]
    pub observation: Option<ObservationDoc>,
    /// In order of the plan.
    #[serde(default)]
    pub triggers: Vec<TriggerDoc>,
    /// Of the built-in triggers, those without a source, with why.
    #[serde(default)]
    pub not_armed: Vec<String>,
    /// The values before the first swap.
    #[serde(default)]
    pub baseline: Vec<Observed>,
    /// Alerts that fired since the first swap.
    #[serde(default)]
    pub alerts: Vec<String>,
    /// Alerts that fired before it.
    #[serde(default)]
    pub alerts_before: Vec<String>,
    /// Forward, verify, back, verify.
    #[serde(default)]
    pub drill: bool,
    /// What a drill came to.
    #[serde(default)]
    pub drilled: Option<Drilled>,
    /// Rows of the checklist that keep it from beginning.
    #[serde(default)]
    pub missing: Vec<Row>,
    /// The window that is open or opens next; null without windows.
    #[serde(default)]
    pub window: Option<WindowDoc>,
    /// A freeze that covers it.
    #[serde(default)]
    pub freeze: Option<String>,
    /// The release's tasks, in order.
    #[serde(default)]
    pub tasks: Vec<TaskDoc>,
}

/// An opening of a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowDoc {
    /// RFC 3339, UTC.
    pub opens: String,
    /// RFC 3339, UTC.
    pub closes: String,
    /// In its own zone, too.
    pub text: String,
}

/// A task in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDoc {
    /// For people.
    pub name: String,
    /// Where.
    pub host: HostName,
    /// pending, running, done, failed, lost, undoing, undone, undo-failed.
    pub state: String,
    /// Its last line.
    pub note: Option<String>,
    /// False: past it a machine takes nothing back.
    pub reversible: bool,
}

/// What a drill came to; times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    /// Forward, verified, back, verified.
    pub passed: bool,
    /// First swap order to last confirmation.
    pub forward_ms: u64,
    /// First revert order to last host back.
    pub back_ms: u64,
}

/// A wave in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaveDoc {
    /// From 1.
    pub index: usize,
    /// `api 1/4`.
    pub name: String,
    /// Its state.
    pub state: WaveState,
    /// Who.
    pub hosts: Vec<HostName>,
}

/// A (host, component) in the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostDoc {
    /// Where.
    pub host: HostName,
    /// Of what.
    pub component: ComponentName,
    /// Its wave; null for a host that ran the release already or was left out.
    pub wave: Option<usize>,
    /// Its state in the rollout.
    pub state: TargetState,
    /// The newest generation.
    pub generation: Option<Generation>,
    /// What it runs, as last seen.
    pub release: Option<ReleaseId>,
    /// What it ran before.
    pub previous: Option<ReleaseId>,
    /// sha256 of what runs, as last seen.
    pub running_sha256: Option<Digest>,
    /// sha256 of its tree, as last seen.
    pub tree_sha256: Option<Digest>,
    /// Start of the main process, RFC 3339, UTC.
    pub main_pid_started_at: Option<String>,
    /// Why it failed, if it did.
    pub cause: Option<Cause>,
    /// The same for people.
    pub message: Option<String>,
    /// Its smoke tests.
    pub smoke: Vec<SmokeResult>,
    /// Of one core.
    pub cpu_percent: Option<f64>,
    /// Resident, bytes.
    pub memory_bytes: Option<u64>,
}

/// A gate in the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateDoc {
    /// After which wave.
    pub wave: usize,
    /// Which criterion.
    pub name: String,
    /// pass, fail, inconclusive, error.
    pub verdict: String,
    /// What was seen.
    pub observed: Option<f64>,
    /// Against what.
    pub limit: Option<f64>,
    /// From how many samples.
    pub samples: u64,
    /// `%`, `ms`, `/s` or nothing: of observed and limit.
    pub unit: String,
    /// One sentence: value, limit, reference, and what is missing.
    pub reason: String,
    /// The one host that decided, if it was not the value of all.
    pub host: Option<HostName>,
    /// Which stage of the plan.
    pub stage: String,
    /// Shown, but does not decide.
    pub advisory: bool,
    /// A row of the performance baseline: limit = expected, observed = actual.
    pub perf: bool,
}

/// A trigger in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerDoc {
    /// As written.
    pub when: String,
    /// rollback, investigate, emergency.
    pub action: TriggerAction,
    /// armed, off (before the first swap, or it has ended), investigating.
    pub state: String,
}

/// The open observation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservationDoc {
    /// Which stage of the plan.
    pub stage: String,
    /// After which wave.
    pub wave: usize,
    /// RFC 3339, UTC.
    pub since: String,
    /// RFC 3339, UTC; null while its clock stands.
    pub until: Option<String>,
    /// It was inconclusive once.
    pub extended: bool,
}

/// Unix milliseconds as RFC 3339, UTC, with milliseconds (civil-from-days after
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    let (secs, ms) = (unix_ms / 1_000, unix_ms % 1_000);
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

/// The status document.
#[must_use]
pub fn status(rollout: &Rollout) -> StatusDoc {
    let plan = rollout.plan();
    let (started, ended) = rollout.times();
    // Once over all targets, not once per wave: a large fleet has as many waves.
    let mut by_wave: BTreeMap<usize, Vec<&TargetRun>> = BTreeMap::new();
    for target in rollout.targets() {
        by_wave.entry(target.wave).or_default().push(target);
    }
    let of_wave = |index| {
        let own = wave_state(rollout.state(), by_wave.get(&index).map_or(&[], Vec::as_slice));
        gated(rollout, index, own, by_wave.get(&index).is_none_or(Vec::is_empty))
    };
    let blue_green = plan.blue_green.is_some();
    let mut hosts: Vec<HostDoc> = rollout.targets().iter().map(host_doc).collect();
    for (doc, target) in hosts.iter_mut().zip(rollout.targets()) {
        // Prepared, but traffic is where it was.
        if blue_green && doc.state == TargetState::Confirmed && !target.switched() {
            doc.state = TargetState::Healthy;
        }
    }
    for component in &plan.components {
        for (names, state) in [(&component.unchanged, TargetState::Confirmed), (&component.skipped, TargetState::Skipped)] {
            for host in names {
                let unchanged = state == TargetState::Confirmed;
                hosts.push(HostDoc {
                    host: host.clone(),
                    component: component.name.clone(),
                    wave: None,
                    state,
                    generation: None,
                    release: unchanged.then(|| plan.release.id.clone()),
                    previous: unchanged.then(|| plan.release.id.clone()),
                    running_sha256: None,
                    tree_sha256: unchanged.then_some(component.tree_sha256),
                    main_pid_started_at: None,
                    cause: None,
                    message: Some(if unchanged { "ran this release already" } else { "drained" }.to_string()),
                    smoke: Vec::new(),
                    cpu_percent: None,
                    memory_bytes: None,
                });
            }
        }
    }
    StatusDoc {
        schema: SCHEMA,
        id: rollout.id().clone(),
        state: rollout.state(),
        reason: rollout.reason().to_string(),
        waiting_for: waits_for_person(rollout).then(|| "person".to_string()),
        paused_by: rollout.paused_by().map(ToString::to_string),
        release: plan.release.id.clone(),
        plan_digest: plan.digest(),
        strategy: plan.strategy,
        closed: rollout.given().closed.is_some(),
        started_at: rfc3339(started.0),
        ended_at: ended.map(|t| rfc3339(t.0)),
        waves: plan
            .waves
            .iter()
            .map(|w| WaveDoc { index: w.index, name: w.name.clone(), state: of_wave(w.index), hosts: w.hosts.clone() })
            .collect(),
        hosts,
        gates: gate_docs(rollout),
        observation: rollout.gate.as_ref().zip(rollout.stage()).map(|(gate, (_, stage))| ObservationDoc {
            stage: stage.name.clone(),
            wave: gate.wave,
            since: rfc3339(gate.opened_at.0),
            until: gate.held_since.is_none().then(|| rfc3339(gate.ends_at.0)),
            extended: gate.extended,
        }),
        triggers: trigger_docs(rollout),
        not_armed: plan.gating.not_armed.clone(),
        baseline: rollout.sealed.clone(),
        alerts: rollout.alerts_new.values().map(|(_, text)| text.clone()).collect(),
        alerts_before: rollout.alerts_before.values().cloned().collect(),
        drill: plan.drill,
        drilled: rollout.drilled,
        missing: missing(rollout),
        window: rollout.is_live().then(|| rollout.given().next_opening(rollout.now())).flatten().map(|o| WindowDoc {
            opens: rfc3339(o.opens.0),
            closes: rfc3339(o.closes.0),
            text: o.text.clone(),
        }),
        freeze: rollout.given().freeze.clone().filter(|_| rollout.is_live()),
        tasks: plan.process.tasks.iter().map(|t| task_doc(rollout, t)).collect(),
    }
}

/// What keeps it from beginning.
fn missing(rollout: &Rollout) -> Vec<Row> {
    if !rollout.waits_to_begin() {
        return Vec::new();
    }
    rollout.given().checklist(rollout.plan(), rollout.now()).into_iter().filter(Row::blocks).collect()
}

fn task_doc(rollout: &Rollout, task: &PlannedTask) -> TaskDoc {
    let ended = |what| rollout.task(task.index, what).map(|go| go.ended.clone());
    let (state, note) = match (ended(TaskRun::Run), ended(TaskRun::Undo)) {
        (_, Some(None)) => ("undoing", None),
        (_, Some(Some((TaskState::Done, note)))) => ("undone", Some(note)),
        (_, Some(Some((_, note)))) => ("undo-failed", Some(note)),
        (None, None) => ("pending", None),
        (Some(None), None) => ("running", None),
        (Some(Some((TaskState::Done, note))), None) => ("done", Some(note)),
        (Some(Some((TaskState::Lost, note))), None) => ("lost", Some(note)),
        (Some(Some((_, note))), None) => ("failed", Some(note)),
    };
    TaskDoc { name: task.name.clone(), host: task.host.clone(), state: state.to_string(), note, reversible: task.reversible }
}

fn host_doc(target: &TargetRun) -> HostDoc {
    let seen = target.live.seen.as_ref().or(target.seen.as_ref());
    let live = target.live.progress.is_some();
    let smoke = seen.map(|s| &s.smoke).filter(|s| !s.is_empty()).or(target.seen.as_ref().map(|s| &s.smoke));
    let id = |r: &ReleaseRef| r.id.clone();
    HostDoc {
        host: target.origin.host.clone(),
        component: target.origin.component.clone(),
        wave: Some(target.wave),
        state: target.state,
        generation: Some(target.generation),
        release: seen.map_or_else(|| target.origin.previous.as_ref().map(id), |s| s.release.as_ref().map(id)),
        previous: target.origin.previous.as_ref().map(id),
        running_sha256: seen.map_or(target.origin.running_sha256, |s| s.running_sha256),
        tree_sha256: seen.map_or(target.origin.tree_sha256, |s| s.tree_sha256),
        main_pid_started_at: seen.and_then(|s| s.main_pid_started_at).map(rfc3339),
        cause: target.failure.as_ref().map(|f| f.cause),
        message: target.failure.as_ref().map(|f| f.message.clone()),
        smoke: smoke.cloned().unwrap_or_default(),
        cpu_percent: live.then(|| f64::from(target.live.cpu_permille) / 10.0),
        memory_bytes: live.then_some(target.live.memory_bytes),
    }
}

/// The state of a wave, from its hosts.
#[must_use]
fn wave_state(state: RolloutState, hosts: &[&TargetRun]) -> WaveState {
    let back = matches!(state, RolloutState::RollingBack | RolloutState::RolledBack | RolloutState::Mixed);
    let has = |pick: fn(&TargetRun) -> bool| hosts.iter().any(|t| pick(t));
    if back && has(|t| t.counted) {
        WaveState::Failed
    } else if back && has(|t| t.swap_ordered) {
        if has(|t| t.state.in_flight() || t.state == TargetState::Confirmed) { WaveState::Open } else { WaveState::RolledBack }
    } else if has(|t| t.state.in_flight()) {
        WaveState::Open
    } else if hosts.iter().all(|t| matches!(t.state, TargetState::Pending | TargetState::Staging | TargetState::Staged))
        || (state != RolloutState::Completed && !has(|t| t.swap_ordered))
    {
        WaveState::Pending
    } else if has(|t| matches!(t.state, TargetState::Staged | TargetState::Pending | TargetState::Staging)) {
        WaveState::Open
    } else if has(|t| t.counted) && !has(|t| t.state == TargetState::Confirmed) {
        WaveState::Failed
    } else {
        WaveState::Passed
    }
}

/// Why the rollout is where it is, and what it waits for: one sentence a line.
#[must_use]
pub fn explain(rollout: &Rollout, now: Timestamp) -> Vec<String> {
    let mut out =
        alloc::vec![format!("rollout {} of {} is {}: {}", rollout.id(), rollout.plan().release.id, rollout.state(), rollout.reason())];
    if !rollout.is_live() {
        out.extend(rollout.targets().iter().filter_map(|t| {
            t.failure.as_ref().map(|f| format!("{} ({}) is {}: {}: {}", t.origin.host, t.origin.component, t.state, f.cause, f.message))
        }));
        return out;
    }
    if rollout.waits_to_begin() {
        out.extend(missing(rollout).into_iter().map(|row| format!("{} is {}: {}", row.item, row.verdict.word(), row.evidence)));
        return out;
    }
    out.extend(explain_gate(rollout, now));
    if rollout.state() == RolloutState::Paused && rollout.paused_by().is_some() {
        out.push("nobody is admitted until `tidegate rollout resume`; `rollback` and `halt` work too".to_string());
    }
    for target in rollout.targets() {
        let who = format!("{} ({})", target.origin.host, target.origin.component);
        let age = now.since(target.since).0 / 1_000;
        let contact = if rollout.up(target) { "" } else { ", no contact" };
        let line = match target.state {
            TargetState::Pending if target.order.is_some() && !target.checked => {
                format!("{who} has not answered preflight for {age} s{contact}")
            }
            TargetState::Staging => format!("{who} stages: {} bytes verified so far{contact}", target.live.staged_bytes),
            TargetState::Swapping => format!("{who} was ordered to swap {age} s ago{contact}"),
            TargetState::Probation => {
                format!("{who} runs its smoke tests for {age} s; deadline {}{contact}", rollout.plan().limits.healthy_deadline)
            }
            TargetState::Healthy => format!(
                "{who} passed; confirmation sent {age} s ago, it reverts by itself after {}{contact}",
                rollout.plan().limits.confirm_within
            ),
            TargetState::Reverting => format!("{who} is on the way back for {age} s{contact}"),
            _ => match &target.failure {
                Some(failure) => format!("{who} is {}: {}: {}", target.state, failure.cause, failure.message),
                None => continue,
            },
        };
        out.push(line);
    }
    let waiting = rollout.targets().iter().filter(|t| matches!(t.state, TargetState::Staged)).count();
    if waiting > 0 && rollout.state() == RolloutState::Running {
        out.push(format!("{waiting} staged host(s) wait for their turn in the window"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_392_000_123), "2026-11-23T00:00:00.123Z");
    }
}
