//! Execution Timeline: one row per step that a person would tell, in order of time.
//!
//! Rows are grouped as in the guide: a component is one row with n of m nodes, a
//! stage one row with its gate, however often something was ordered or tried.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_protocol::report::SmokeStatus;
use tidegate_protocol::{Intent, TaskRun, TaskState, Timestamp};
use tidegate_rollout::record::{GateStep, Record, RolloutState, Step, TargetState, Verb};
use tidegate_rollout::spec::{Strategy, TriggerAction};
use tidegate_rollout::status::rfc3339;

use crate::fold::Facts;
use crate::model::Mark;
use crate::text::{clock, count, millis, span};

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    #[serde(serialize_with = "time")]
    pub(crate) at: Timestamp,
    pub(crate) step: String,
    pub(crate) status: Mark,
    pub(crate) notes: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn time<S: serde::Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339(at.0))
}

/// How smoke tests ended, over all hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SmokeTotals {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl SmokeTotals {
    pub(crate) const fn total(self) -> usize {
        self.passed + self.failed + self.skipped
    }
}

/// Of the release of the plan.
pub(crate) fn smoke_totals(facts: &Facts<'_>) -> SmokeTotals {
    let mut totals = SmokeTotals::default();
    for result in facts.targets.iter().flat_map(|t| &t.smoke) {
        match result.status {
            SmokeStatus::Pass => totals.passed += 1,
            SmokeStatus::Fail => totals.failed += 1,
            SmokeStatus::Skipped => totals.skipped += 1,
        }
    }
    totals
}

/// All rows.
pub(crate) fn of(facts: &Facts<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    start(facts, &mut rows);
    tasks(facts, &mut rows);
    components(facts, &mut rows);
    smoke(facts, &mut rows);
    stages(facts, &mut rows);
    traffic(facts, &mut rows);
    told(facts, &mut rows);
    backs(facts, &mut rows);
    ends(facts, &mut rows);
    rows.sort_by_key(|row| row.at);
    rows
}

fn row(at: Timestamp, step: impl Into<String>, status: Mark, notes: impl Into<String>) -> Row {
    Row { at, step: step.into(), status, notes: notes.into() }
}

fn start(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    let plan = facts.plan;
    let hosts = count(plan.targets().map(|(host, _)| host).collect::<alloc::collections::BTreeSet<_>>().len(), "host");
    let drill = if plan.drill { "drill: " } else { "" };
    let notes = format!("{drill}{} to {hosts}, {}, started by {}", plan.release.id, plan.strategy.word(), facts.by);
    let waited = facts.began.map_or_else(String::new, |began| {
        let waited = began.since(facts.started);
        if waited.0 < 1_000 { String::new() } else { format!("; asked for {} before", millis(waited)) }
    });
    // What never went forward did not start.
    if facts.state != RolloutState::Refused || facts.began.is_some() || facts.first_swap.is_some() {
        rows.push(row(facts.origin(), "Start deployment", Mark::Good, format!("{notes}{waited}")));
    } else {
        rows.push(row(facts.started, "Asked for", Mark::Plain, notes));
    }
    let steps = facts.input.entries.iter().filter_map(|e| match e.record {
        Record::Step { step } => Some((e.at, step)),
        _ => None,
    });
    let mut seen: BTreeMap<Step, Timestamp> = BTreeMap::new();
    for (at, step) in steps {
        seen.entry(step).or_insert(at);
    }
    let all = facts.targets.iter().filter(|t| t.origin.is_some()).count();
    let staged = |at: Timestamp| {
        let staged =
            facts.input.entries.iter().filter(|e| matches!(&e.record, Record::Host { to: TargetState::Staged, .. })).count().min(all);
        let mark = if staged == all { Mark::Good } else { Mark::Warn };
        row(at, "Stage artifacts", mark, format!("verified on {staged}/{all} targets, no service touched"))
    };
    if let Some(at) = seen.get(&Step::Staging) {
        rows.push(staged(*at));
    }
    if let Some(at) = seen.get(&Step::Baseline).filter(|_| !facts.baseline.is_empty()) {
        rows.push(row(*at, "Seal the baseline", Mark::Good, count(facts.baseline.len(), "metric")));
    }
}

fn tasks(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    for task in &facts.tasks {
        let step = if task.what == TaskRun::Undo { format!("Undo: {}", task.name) } else { task.name.clone() };
        let (mark, notes) = match &task.ended {
            None => (Mark::Open, format!("on {}: its end was not seen", task.host)),
            Some(end) => {
                let note = if end.note.trim().is_empty() { "-" } else { end.note.trim() };
                let took = format!("{note} (on {}, {})", task.host, span(end.duration_ms));
                match end.state {
                    TaskState::Done => (Mark::Good, took),
                    TaskState::Lost => (Mark::Bad, format!("began on {}, and its end was not seen", task.host)),
                    _ => (Mark::Bad, took),
                }
            }
        };
        rows.push(row(task.at, step, mark, notes));
    }
}

fn components(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    for component in &facts.plan.components {
        let swaps = || facts.changed(&component.name).filter_map(|t| t.swap_at);
        let Some(first) = swaps().min() else { continue };
        let kept = || facts.changed(&component.name).filter_map(|t| t.confirmed_at);
        let (done, last) = (kept().count(), kept().max());
        let all = component.hosts.len();
        let until = last.map_or_else(String::new, |l| format!(", the last at {}", clock(l, facts.origin())));
        let failed = facts.changed(&component.name).filter(|t| t.failure.is_some() && t.swap_at.is_some()).count();
        let failed = if failed == 0 { String::new() } else { format!(", {failed} failed") };
        let left: Vec<String> = [(component.unchanged.len(), "ran it already"), (component.skipped.len(), "drained")]
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("; {n} {what}"))
            .collect();
        let mark = if done == all { Mark::Good } else { Mark::Bad };
        rows.push(row(first, format!("Deploy {}", component.name), mark, format!("{done}/{all} nodes{until}{failed}{}", left.join(""))));
    }
}

fn smoke(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    let totals = smoke_totals(facts);
    let Some(at) = facts.targets.iter().filter_map(|t| t.smoke_at).max() else { return };
    let (mark, notes) = match totals {
        SmokeTotals { failed: 0, skipped: 0, passed } => (Mark::Good, format!("All pass ({passed} of {passed})")),
        SmokeTotals { failed: 0, skipped, .. } => (Mark::Warn, format!("none failed, {skipped} of {} not run", totals.total())),
        SmokeTotals { failed, .. } => (Mark::Bad, format!("{failed} of {} failed", totals.total())),
    };
    rows.push(row(at, "Smoke tests", mark, notes));
}

fn stages(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    let canary = facts.plan.strategy == Strategy::Canary;
    for fact in &facts.stages {
        let Some(stage) = facts.plan.gating.stages.get(fact.stage) else { continue };
        let name = match (stage.watch, canary) {
            (true, _) => "Final watch".to_string(),
            (false, true) => format!("Stage {}: {}", fact.stage + 1, stage.name),
            (false, false) => stage.name.clone(),
        };
        let again = if fact.extended { ", extended once" } else { "" };
        let observed = millis(fact.at.since(fact.opened));
        let (mark, what) = match fact.step {
            GateStep::Passed => (Mark::Good, format!("gate passed after {observed}{again}")),
            GateStep::Overridden => (Mark::Warn, format!("gate overridden after {observed}{again}: {}", fact.reason)),
            GateStep::Failed => (Mark::Bad, format!("gate failed after {observed}{again}: {}", fact.reason)),
            GateStep::Asked => (Mark::Warn, format!("inconclusive{again}, a person was asked: {}", fact.reason)),
            GateStep::Blind => (Mark::Warn, format!("a source could not be read: {}", fact.reason)),
            GateStep::Opened | GateStep::Extended | GateStep::Sighted => {
                let mark = if facts.state.is_terminal() { Mark::NotApplicable } else { Mark::Open };
                let over = if facts.state.is_terminal() { "ended with the rollout" } else { "observed" };
                (mark, format!("{over}{again}"))
            }
        };
        rows.push(row(fact.opened, name, mark, what));
    }
}

fn traffic(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    let all = facts.targets.iter().filter(|t| t.origin.is_some()).count();
    let blue_green = facts.plan.blue_green.is_some();
    let first_switch =
        facts.input.entries.iter().find(|e| matches!(e.record, Record::Switch { intent: Intent::Forward, .. })).map(|e| e.at);
    let is_new = |t: &&crate::fold::TargetFact| {
        if blue_green {
            t.switch.as_ref().is_some_and(|s| s.intent == Intent::Forward && matches!(s.ended, Some(Ok(()))))
        } else {
            t.state == TargetState::Confirmed
        }
    };
    let new = facts.targets.iter().filter(|t| t.origin.is_some()).filter(is_new).count();
    let at = if blue_green { first_switch } else { facts.targets.iter().filter_map(|t| t.confirmed_at).max() };
    let Some(at) = at.filter(|_| all > 0) else { return };
    let share = new * 100 / all;
    let side = facts.targets.iter().filter_map(|t| t.switch.as_ref()).map(|s| s.to).next();
    let side = side.map_or_else(String::new, |s| format!(" ({s})"));
    let way_back = facts.backs.last();
    let back = if way_back.is_some() { ", after the way back" } else { "" };
    let at = way_back.map_or(at, |b| b.to.unwrap_or(b.from).max(at));
    let mark = match (new == all, way_back) {
        (true, _) => Mark::Good,
        (false, Some(_)) if new == 0 => Mark::Warn,
        _ => Mark::Bad,
    };
    rows.push(row(at, "Traffic switch", mark, format!("{share}% new{side}{back}")));
}

/// Waits, words of people, trips.
fn told(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    let mut since: Option<(Timestamp, RolloutState, String)> = None;
    let flush = |rows: &mut Vec<Row>, open: Option<(Timestamp, RolloutState, String)>, to: Option<Timestamp>| {
        let Some((from, state, reason)) = open else { return };
        let step = match state {
            RolloutState::Paused => "Paused",
            RolloutState::AwaitingApproval => "Wait for approval",
            RolloutState::Scheduled => "Wait for the window",
            _ => return,
        };
        let took = to.map_or_else(|| "still".to_string(), |to| millis(to.since(from)));
        let mark = if state == RolloutState::Paused { Mark::Warn } else { Mark::Plain };
        rows.push(row(from, step, mark, format!("{reason} ({took})")));
    };
    for entry in facts.input.entries {
        match &entry.record {
            Record::State { to, reason } => {
                let waits = matches!(to, RolloutState::Paused | RolloutState::AwaitingApproval | RolloutState::Scheduled);
                if let Some((_, _, said)) = since.as_mut().filter(|(_, state, _)| waits && state == to) {
                    // The same wait, said again.
                    said.clone_from(reason);
                    continue;
                }
                flush(rows, since.take(), Some(entry.at));
                since = waits.then(|| (entry.at, *to, reason.clone()));
            }
            Record::Said { verb, reason, .. } if *verb != Verb::Pause => {
                rows.push(row(entry.at, format!("Word of a person: {verb}"), Mark::Plain, reason.clone()));
            }
            Record::Overridden { what, role, signed, reason } => {
                let notes = format!("{} as {role}: {reason}", signed.principal);
                rows.push(row(entry.at, format!("Override of the {}", what.word()), Mark::Warn, notes));
            }
            Record::Tripped { when, reason, action, host, .. } => {
                let does = match action {
                    TriggerAction::Rollback => "rolls back",
                    TriggerAction::Investigate => "is investigated",
                    TriggerAction::Emergency => "takes all hosts back at once",
                };
                let on = host.as_ref().map_or_else(String::new, |h| format!(" (on {h})"));
                rows.push(row(entry.at, format!("Trigger {when} {does}"), Mark::Bad, format!("{reason}{on}")));
            }
            Record::Freeze { reason: Some(reason) } => rows.push(row(entry.at, "A freeze covers it", Mark::Warn, reason.clone())),
            Record::Freeze { reason: None } => rows.push(row(entry.at, "No freeze covers it any more", Mark::Plain, "-")),
            Record::Stopping { reason } => rows.push(row(entry.at, "Past the point of no return", Mark::Bad, reason.clone())),
            Record::Drilled { passed, forward_ms, back_ms } => {
                let mark = if *passed { Mark::Good } else { Mark::Bad };
                rows.push(row(entry.at, "Drill", mark, format!("forward in {}, back in {}", span(*forward_ms), span(*back_ms))));
            }
            Record::Noted { by, text, resolves: None } => rows.push(row(entry.at, "Note", Mark::Plain, format!("{text} ({by})"))),
            _ => {}
        }
    }
    flush(rows, since.take(), None);
}

fn backs(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    for back in &facts.backs {
        let swapped = facts.targets.iter().filter(|t| t.swap_at.is_some()).count();
        let returned = facts.targets.iter().filter(|t| t.swap_at.is_some() && t.state == TargetState::Reverted).count();
        let (mark, took) = match back.to {
            Some(to) if returned == swapped => (Mark::Good, format!("in {}", millis(to.since(back.from)))),
            Some(to) => (Mark::Bad, format!("ended after {}", millis(to.since(back.from)))),
            None => (Mark::Open, "on the way".to_string()),
        };
        rows.push(row(back.from, "Roll back", mark, format!("{returned}/{swapped} nodes back, {took}: {}", back.reason)));
    }
}

fn ends(facts: &Facts<'_>, rows: &mut Vec<Row>) {
    for entry in facts.input.entries {
        match &entry.record {
            Record::State { to, reason } if to.is_terminal() => {
                let (step, mark) = outcome(*to);
                rows.push(row(entry.at, step, mark, reason.clone()));
            }
            Record::Healed { host, component, release } => {
                let on = release.as_ref().map_or_else(|| "nothing".to_string(), |r| r.id.to_string());
                rows.push(row(entry.at, format!("Healed: {host} ({component})"), Mark::Good, format!("runs {on}")));
            }
            Record::Closed { by } => rows.push(row(entry.at, "Closed", Mark::Good, format!("by {by}"))),
            _ => {}
        }
    }
}

/// The guide's word for an end, and how it is marked.
pub(crate) const fn outcome(state: RolloutState) -> (&'static str, Mark) {
    match state {
        RolloutState::Completed => ("Deployment complete", Mark::Good),
        RolloutState::RolledBack => ("Rolled back", Mark::Warn),
        RolloutState::Mixed => ("Mixed", Mark::Bad),
        RolloutState::Halted => ("Halted", Mark::Bad),
        RolloutState::Refused => ("Refused", Mark::Bad),
        RolloutState::AwaitingApproval => ("Awaiting approval", Mark::Open),
        RolloutState::Scheduled => ("Scheduled", Mark::Open),
        RolloutState::Running => ("Running", Mark::Open),
        RolloutState::Paused => ("Paused", Mark::Warn),
        RolloutState::Baking => ("Baking", Mark::Open),
        RolloutState::Watching => ("Watching", Mark::Open),
        RolloutState::RollingBack => ("Rolling back", Mark::Warn),
    }
}
