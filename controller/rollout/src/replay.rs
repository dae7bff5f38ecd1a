//! A plan judged against what a rollout journaled, without touching a host.
//!
//! Only what was journaled is known: values once per interval, at each gate and
//! from the sealed baseline. The answer is what this plan's gates and triggers
//! would have said of them, at the moments when they were seen.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use tidegate_protocol::{Millis, Release, Timestamp};

use crate::gate::judge::{Exhibit, HostExhibit, judge, trips};
use crate::gate::resolve::resolve;
use crate::gate::tally::Tally;
use crate::gate::{Gating, Group, Judgement, Observed, Stage, Verdict, overall};
use crate::plan::PlanError;
use crate::record::{GateStep, Record, RolloutState};
use crate::spec::{Spec, TriggerAction};
use crate::status::{SCHEMA, rfc3339};

/// `rollout replay --output json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayDoc {
    /// 1.
    pub schema: u32,
    /// How the rollout that was recorded ended, or its state now.
    pub recorded: RolloutState,
    /// What this plan would have done with the same values.
    pub outcome: ReplayOutcome,
    /// When it would have come to that, RFC 3339, UTC.
    pub at: Option<String>,
    /// Why.
    pub reason: String,
    /// In order of time.
    pub steps: Vec<ReplayStep>,
    /// What this plan judges and the recorded rollout did not measure.
    pub unknown: Vec<String>,
}

/// What a plan would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayOutcome {
    /// Every gate that was recorded passes.
    Passes,
    /// A gate would have stayed inconclusive: a person would have been asked.
    Asks,
    /// It would have gone back.
    RollsBack,
    /// It would have been investigated.
    Investigates,
    /// Nothing was recorded that it judges.
    Unknown,
}

/// One look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayStep {
    /// RFC 3339, UTC.
    pub at: String,
    /// After which wave.
    pub wave: usize,
    /// A stage's name, or a trigger as written.
    pub of: String,
    /// Of all that decide.
    pub verdict: Verdict,
    /// Each criterion.
    pub judgements: Vec<Judgement>,
}

/// Judges `spec` against `records`, the journal of one rollout. `manifest` is the
/// release that `spec` names.
///
/// # Errors
/// [`PlanError::Gate`]: the plan's gates do not hold together.
pub fn replay(spec: &Spec, manifest: &Release, records: &[(Timestamp, Record)]) -> Result<ReplayDoc, PlanError> {
    let gating = resolve(spec, manifest, false)?;
    let mut run = Run { gating, ..Run::default() };
    for (at, record) in records {
        run.take(*at, record);
    }
    Ok(run.document())
}

#[derive(Default)]
struct Run {
    gating: Gating,
    recorded: Option<RolloutState>,
    /// What is known now: by metric and group.
    seen: BTreeMap<String, BTreeMap<Group, Observed>>,
    wave: usize,
    passed: usize,
    steps: Vec<ReplayStep>,
    end: Option<(Timestamp, ReplayOutcome, String)>,
}

impl Run {
    fn take(&mut self, at: Timestamp, record: &Record) {
        match record {
            Record::State { to, .. } => self.recorded = Some(*to),
            Record::Baseline { values } => self.note(values),
            Record::Observed { wave, values } => {
                self.wave = *wave;
                self.note(values);
                self.triggers(at);
            }
            Record::Gate { wave, step, .. } => {
                self.wave = *wave;
                // Where the recorded rollout looked, this one looks too.
                if matches!(step, GateStep::Extended | GateStep::Asked | GateStep::Passed | GateStep::Overridden | GateStep::Failed) {
                    self.gate(at, matches!(step, GateStep::Passed | GateStep::Overridden));
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, values: &[Observed]) {
        for value in values {
            self.seen.entry(value.metric.clone()).or_default().insert(value.group, value.clone());
        }
    }

    fn exhibit(&self, metric: &str) -> Exhibit {
        let group = |group| self.seen.get(metric).and_then(|groups| groups.get(&group));
        let tally =
            |observed: &Observed| observed.value.map(|value| (Tally::Answer { value: value.get(), samples: observed.samples }, Millis(0)));
        let worst = group(Group::Worst).and_then(tally).and_then(|window| {
            let host = "worst-host".parse().ok()?;
            Some(HostExhibit { host, window, recent: None })
        });
        Exhibit {
            changed: group(Group::Changed).and_then(tally),
            hosts: worst.into_iter().collect(),
            control: group(Group::Control).and_then(tally),
            baseline: group(Group::Baseline).cloned(),
            ..Exhibit::default()
        }
    }

    fn triggers(&mut self, at: Timestamp) {
        if self.end.is_some() {
            return;
        }
        for trigger in &self.gating.triggers {
            let trip = trigger.tests.iter().find_map(|test| {
                let metric = self.gating.metrics.get(&test.metric)?;
                trips(test, metric, &self.exhibit(&test.metric))
            });
            if let Some(trip) = trip {
                let outcome = match trigger.action {
                    TriggerAction::Investigate => ReplayOutcome::Investigates,
                    TriggerAction::Rollback | TriggerAction::Emergency => ReplayOutcome::RollsBack,
                };
                self.end = Some((at, outcome, format!("trigger {}: {}", trigger.when, trip.reason)));
                return;
            }
        }
    }

    fn gate(&mut self, at: Timestamp, passed: bool) {
        let Some(stage) = self.stage().cloned() else { return };
        let judge_one = |criterion: &crate::gate::Criterion| {
            let metric = self.gating.metrics.get(&criterion.metric)?;
            Some(judge(criterion, metric, &self.exhibit(&criterion.metric)))
        };
        let judgements: Vec<Judgement> = stage.criteria.iter().filter_map(judge_one).collect();
        let verdict = overall(&judgements);
        self.steps.push(ReplayStep { at: rfc3339(at.0), wave: self.wave, of: stage.name.clone(), verdict, judgements: judgements.clone() });
        if passed {
            self.passed += 1;
        }
        if self.end.is_some() {
            return;
        }
        let why: Vec<String> =
            judgements.iter().filter(|j| j.verdict == verdict && !j.advisory).map(|j| format!("{}: {}", j.name, j.reason)).collect();
        let why = format!("the gate {} is {}: {}", stage.name, verdict.word(), why.join("; "));
        match verdict {
            Verdict::Fail => self.end = Some((at, ReplayOutcome::RollsBack, why)),
            // One that was passed there would have asked a person here.
            Verdict::Inconclusive | Verdict::Error if passed => self.end = Some((at, ReplayOutcome::Asks, why)),
            _ => {}
        }
    }

    /// The stage that a gate of the recorded rollout stands for: in order, the
    /// last one for all that follow.
    fn stage(&self) -> Option<&Stage> {
        self.gating.stages.get(self.passed).or(self.gating.stages.last())
    }

    fn document(self) -> ReplayDoc {
        let judged = self.gating.stages.iter().flat_map(|s| s.criteria.iter().map(|c| &c.metric));
        let armed = self.gating.triggers.iter().flat_map(|t| t.tests.iter().map(|t| &t.metric));
        let mut unknown: Vec<String> = judged.chain(armed).filter(|m| !self.seen.contains_key(*m)).cloned().collect();
        unknown.sort();
        unknown.dedup();
        let (at, outcome, reason) = match self.end {
            Some((at, outcome, reason)) => (Some(rfc3339(at.0)), outcome, reason),
            None if self.seen.is_empty() => {
                (None, ReplayOutcome::Unknown, "the rollout journaled no values that this plan judges".to_string())
            }
            None => (None, ReplayOutcome::Passes, "every gate that was recorded passes, and no trigger trips".to_string()),
        };
        ReplayDoc {
            schema: SCHEMA,
            recorded: self.recorded.unwrap_or(RolloutState::Scheduled),
            outcome,
            at,
            reason,
            steps: self.steps,
            unknown,
        }
    }
}
