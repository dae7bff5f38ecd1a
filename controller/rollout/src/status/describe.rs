//! One journal record in one sentence.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{ComponentName, HostName, Intent, Phase, TaskRun, TaskState};

use crate::gate::{Group, Observed};
use crate::record::{GateStep, InvestigationStep, Record, Step};
use crate::spec::TriggerAction;

/// Values in one line.
fn values_text(values: &[Observed]) -> String {
    let text = |o: &Observed| {
        let group = match o.group {
            Group::Baseline => "",
            Group::Changed => " changed",
            Group::Control => " control",
            Group::Worst => " worst host",
        };
        let value = o.value.map_or_else(|| "nothing".to_string(), |v| round(v.get()));
        format!("{}{group} {value} ({} samples)", o.metric, o.samples)
    };
    values.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Three digits behind the point at most.
fn round(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_string()
}

/// One journal record for people: where, and one sentence.
#[must_use]
pub fn describe(record: &Record) -> (Option<HostName>, Option<ComponentName>, String) {
    match record {
        Record::Started { plan, by, .. } => {
            (None, None, format!("{} to {} host(s), {}, started by {by}", plan.release.id, plan.targets().count(), plan.strategy.word()))
        }
        Record::State { to, reason } => (None, None, if reason.is_empty() { to.to_string() } else { format!("{to}: {reason}") }),
        Record::Step { step } => (
            None,
            None,
            match step {
                Step::Preflight => "preflight of every host",
                Step::Staging => "staging on every host",
                Step::Baseline => "values are sealed before the first swap",
                Step::Tasks => "the release's tasks run",
                Step::Swapping => "every host is staged: hosts swap",
                Step::Switching => "every side is prepared: traffic moves",
            }
            .to_string(),
        ),
        Record::Ordered { host, component, generation, intent, target, phase, .. } => {
            let to = target.release().map_or_else(|| "nothing".to_string(), |r| r.id.to_string());
            let text = match (intent, phase) {
                (Intent::Back, _) => format!("ordered back to {to}"),
                (_, Phase::Preflight) => "preflight ordered".to_string(),
                (_, Phase::Stage) => format!("staging of {to} ordered"),
                (_, Phase::Cancel) => "cancelled before its swap".to_string(),
                (_, Phase::Swap) => format!("swap to {to} ordered"),
                (_, Phase::Confirm) => "confirmation sent".to_string(),
            };
            (Some(host.clone()), Some(component.clone()), format!("{text} (generation {generation})"))
        }
        Record::Host { host, component, to, failure, .. } => {
            let text = failure.as_ref().map_or_else(|| to.to_string(), |f| format!("{to}: {}: {}", f.cause, f.message));
            (Some(host.clone()), Some(component.clone()), text)
        }
        Record::Said { reason, .. } => (None, None, reason.clone()),
        Record::Found { origin } => {
            let ran = origin.previous.as_ref().map_or_else(|| "nothing".to_string(), |r| r.id.to_string());
            (Some(origin.host.clone()), Some(origin.component.clone()), format!("preflight found {ran}: that is the way back"))
        }
        Record::Fenced { host, component, generation } => {
            (Some(host.clone()), Some(component.clone()), format!("a refused rollout used generation {generation} since"))
        }
        Record::Baseline { values } => (None, None, format!("baseline sealed: {}", values_text(values))),
        Record::Observed { values, .. } => (None, None, format!("seen: {}", values_text(values))),
        Record::Judged { verdict, judgements, .. } => {
            let of: Vec<String> = judgements.iter().map(|j| format!("{} {} ({})", j.name, j.verdict.word(), j.reason)).collect();
            (None, None, format!("gate is {}: {}", verdict.word(), of.join("; ")))
        }
        Record::Gate { step, reason, .. } => {
            let what = match step {
                GateStep::Opened => "observation begins",
                GateStep::Extended => "inconclusive, observed once more",
                GateStep::Asked => "a person is asked",
                GateStep::Passed => "gate passed",
                GateStep::Overridden => "gate overridden",
                GateStep::Failed => "gate failed",
                GateStep::Blind => "a source cannot be read: neither forward nor back",
                GateStep::Sighted => "sources can be read again",
            };
            (None, None, format!("{what}: {reason}"))
        }
        Record::Tripped { when, reason, host, after_ms, action, .. } => {
            let does = match action {
                TriggerAction::Rollback => "rolls back",
                TriggerAction::Investigate => "is investigated",
                TriggerAction::Emergency => "takes all hosts back at once",
            };
            (host.clone(), None, format!("trigger {when} {does}: {reason} ({after_ms} ms after the sample came)"))
        }
        Record::Investigation { step, by, .. } => match step {
            InvestigationStep::Acknowledged => {
                (None, None, format!("investigation acknowledged by {}", by.as_deref().unwrap_or("somebody")))
            }
            InvestigationStep::Cleared => (None, None, "investigation over: the condition does not hold any more".to_string()),
        },
        Record::Alert { text, before, .. } => {
            (None, None, if *before { format!("alert fired before the start: {text}") } else { format!("alert fires: {text}") })
        }
        Record::Attested { item, by, note } => (None, None, format!("{by} attests {item}: {note}")),
        Record::Switch { host, component, to, intent, generation } => {
            let back = if *intent == Intent::Back { " back" } else { "" };
            (Some(host.clone()), Some(component.clone()), format!("told to switch{back} to {to} (generation {generation})"))
        }
        Record::Switched { host, component, active, failure, .. } => {
            let text = match (failure, active) {
                (None, Some(side)) => format!("traffic is on {side}"),
                (None, None) => "switched".to_string(),
                (Some(failure), _) => format!("switch failed: {}: {}", failure.cause, failure.message),
            };
            (Some(host.clone()), Some(component.clone()), text)
        }
        Record::Retired { host, component, side, .. } => {
            (Some(host.clone()), Some(component.clone()), format!("the old side {side} is stopped"))
        }
        Record::Drilled { passed, forward_ms, back_ms } => {
            let how = if *passed { "passed" } else { "did not pass" };
            (None, None, format!("drill {how}: forward in {forward_ms} ms, back in {back_ms} ms"))
        }
        Record::Returned => (None, None, "the controller came back and goes on".to_string()),
        Record::Readiness { rows } => {
            let bad: Vec<&str> = rows.iter().filter(|r| r.blocks()).map(|r| r.item.as_str()).collect();
            let text =
                if bad.is_empty() { "all that the program checks holds".to_string() } else { format!("missing: {}", bad.join(", ")) };
            (None, None, format!("readiness: {text}"))
        }
        Record::Windows { openings } => {
            (None, None, openings.first().map_or_else(|| "no window opens any more".to_string(), |o| format!("next window: {}", o.text)))
        }
        Record::Freeze { reason: Some(reason) } => (None, None, format!("a freeze covers it: {reason}")),
        Record::Freeze { reason: None } => (None, None, "no freeze covers it any more".to_string()),
        Record::Approved { role, signed } => (None, None, format!("approved as {role} by {} with {}", signed.principal, signed.key)),
        Record::Overridden { what, role, signed, reason } => {
            (None, None, format!("{} overridden by {} as {role}: {reason}", what.word(), signed.principal))
        }
        Record::Began => (None, None, "the checklist is complete: it goes forward".to_string()),
        Record::TaskOrdered { name, what, attempt, host, .. } => {
            let again = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
            let how = if *what == TaskRun::Undo { "undo of " } else { "" };
            (Some(host.clone()), None, format!("{how}task {name:?} ordered{again}"))
        }
        Record::TaskEnded { name, what, state, note, duration_ms, .. } => {
            let how = if *what == TaskRun::Undo { "undo of " } else { "" };
            let text = match state {
                TaskState::Done => format!("done in {duration_ms} ms: {note}"),
                TaskState::Lost => "began, and its end was not seen".to_string(),
                _ => format!("failed: {note}"),
            };
            (None, None, format!("{how}task {name:?} {text}"))
        }
        Record::Stopping { reason } => (None, None, format!("it ends where it stands: {reason}")),
        Record::Probed { host, component, probe } => {
            let text = if probe.is_empty() {
                "nothing can be probed: outages are not known".to_string()
            } else {
                format!("outages are measured at {probe}")
            };
            (Some(host.clone()), Some(component.clone()), text)
        }
        Record::Outage { host, component, from_unix_ms, to_unix_ms } => {
            let text = match to_unix_ms {
                Some(to) => format!("gave no good answer for {} ms", to.saturating_sub(*from_unix_ms)),
                None => "gives no good answer".to_string(),
            };
            (Some(host.clone()), Some(component.clone()), text)
        }
        Record::Notified { route, ok: true, key, .. } => (None, None, format!("{route} was told: {key}")),
        Record::Notified { route, key, detail, .. } => (None, None, format!("{route} could not be told of {key}: {detail}")),
        Record::Reminded { reason } => (None, None, format!("still waits for a person: {reason}")),
        Record::Noted { by, text, resolves: Some(issue) } => (None, None, format!("issue {issue} resolved by {by}: {text}")),
        Record::Noted { by, text, .. } => (None, None, format!("note by {by}: {text}")),
        Record::Item { item, what, owner, status, eta, .. } => {
            (None, None, format!("outstanding item {item}: {what} ({owner}, {status}, until {eta})"))
        }
        Record::SignedOff { role, signed, .. } => {
            (None, None, format!("handoff signed as {} by {} with {}", role.word(), signed.principal, signed.key))
        }
        Record::Reviewed { by, .. } => (None, None, format!("reviewed; the review came from {by}")),
        Record::Closed { by } => (None, None, format!("closed by {by}")),
        Record::Healed { host, component, release } => {
            let on = release.as_ref().map_or_else(|| "nothing".to_string(), |r| r.id.to_string());
            (Some(host.clone()), Some(component.clone()), format!("healed: runs {on} as it should"))
        }
    }
}
