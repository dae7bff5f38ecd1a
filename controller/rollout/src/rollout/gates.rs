//! Gates: observation, verdict, and the ladder for what is neither good nor bad.
//!
//! A gate opens when the waves before it are settled. At its end: pass opens the
//! next wave; fail goes back; inconclusive is observed once more, then a person is
//! asked, then it goes back; a source that cannot be read stops the clock.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{Millis, Timestamp};

use super::{GateRun, Rollout};
use crate::gate::{Judgement, Stage, Verdict, overall};
use crate::record::{GateStep, Record, RolloutState, TargetState};
use crate::spec::{OnInconclusive, OnUnreachable};

impl Rollout {
    /// The stage that the rollout is in: the first whose gate has not been passed.
    pub(crate) fn stage(&self) -> Option<(usize, &Stage)> {
        self.plan.gating.stages.get(self.passed).map(|stage| (self.passed, stage))
    }

    /// The highest wave that may open now.
    pub(super) fn last_open_wave(&self) -> usize {
        self.stage().map_or(usize::MAX, |(_, stage)| stage.after_wave)
    }

    /// Opens the gate of the present stage; true if there is one.
    pub(super) fn open_gate(&mut self, now: Timestamp, why: &str) -> bool {
        let Some((at, stage)) = self.stage() else { return false };
        let (name, watch, bake) = (stage.name.clone(), stage.watch, stage.bake);
        let wave = self.wave_now();
        let record = Record::Gate { stage: at, wave, step: GateStep::Opened, reason: why.to_string() };
        self.append(now, record);
        self.pin(now);
        let to = if watch { RolloutState::Watching } else { RolloutState::Baking };
        self.append(now, Record::State { to, reason: format!("{name}: {why}, observed for {bake}") });
        // A person went past all gates before: this one is over as it opens.
        self.promoted_before(now);
        true
    }

    /// Somebody went past all gates: past this one too, unless it fails or cannot be
    /// judged. True if it is over.
    fn promoted_before(&mut self, now: Timestamp) -> bool {
        let Some(by) = self.promoted_all.clone() else { return false };
        let holds_up =
            self.blind_since.is_some() || self.gate_verdict(now).is_none_or(|(v, _)| matches!(v, Verdict::Fail | Verdict::Error));
        if !holds_up {
            self.pass_by(now, GateStep::Overridden, by);
        }
        !holds_up
    }

    /// The wave that changed last, for records.
    fn wave_now(&self) -> usize {
        self.targets.iter().filter(|t| t.swap_ordered).map(|t| t.wave).max().unwrap_or(0).max(self.stage().map_or(0, |(_, s)| {
            // A stage that adds no host has a wave of its own.
            if s.standing { 0 } else { s.after_wave }
        }))
    }

    /// Where a pause returns to.
    pub(super) fn after_pause(&self) -> RolloutState {
        match (&self.gate, self.stage()) {
            (Some(_), Some((_, stage))) if stage.watch => RolloutState::Watching,
            (Some(_), Some(_)) => RolloutState::Baking,
            _ => RolloutState::Running,
        }
    }

    /// Nothing keeps it paused any more: goes on.
    pub(super) fn unpause(&mut self, now: Timestamp, reason: String) {
        let free = self.paused_by.is_none() && self.asked_at.is_none() && self.blind_since.is_none() && self.investigation.is_none();
        if self.state == RolloutState::Paused && free {
            let to = self.after_pause();
            self.append(now, Record::State { to, reason });
        }
    }

    /// Each criterion of a stage, now.
    pub(crate) fn judge_stage(&self, now: Timestamp, stage: &Stage) -> Vec<Judgement> {
        // A standing verdict covers all that changed since the first swap.
        let from = self.gate.as_ref().filter(|_| !stage.standing).map_or(Timestamp(0), |g| g.opened_at);
        let mut out: Vec<Judgement> = Vec::with_capacity(stage.criteria.len() + stage.attest.len());
        for criterion in &stage.criteria {
            let Some(metric) = self.plan.gating.metrics.get(&criterion.metric) else { continue };
            let mut exhibit = self.exhibit(now, &criterion.metric, from, None);
            exhibit.errors = self.blind(now, &[&criterion.metric]);
            out.push(crate::gate::judge::judge(criterion, metric, &exhibit));
        }
        out.extend(self.out_of_contact(now));
        for item in &stage.attest {
            let by = self.attested.get(&(self.passed, item.clone()));
            out.push(Judgement {
                name: format!("attest {item}"),
                metric: String::new(),
                verdict: if by.is_some() { Verdict::Pass } else { Verdict::Inconclusive },
                observed: None,
                limit: None,
                unit: String::new(),
                samples: u64::from(by.is_some()),
                reason: by.map_or_else(
                    || format!("nobody attested it yet: tidegate rollout attest {} --item {item} --note TEXT", self.id),
                    |by| format!("attested by {by}"),
                ),
                host: None,
                advisory: false,
                perf: false,
            });
        }
        out
    }

    /// Confirmed hosts that are away: nobody knows how they are.
    fn out_of_contact(&self, now: Timestamp) -> Option<Judgement> {
        if self.plan.limits.on_unreachable == OnUnreachable::Skip {
            return None;
        }
        let away: Vec<&str> = self
            .targets
            .iter()
            .filter(|t| t.state == TargetState::Confirmed && self.lost(now, t))
            .map(|t| t.origin.host.as_str())
            .take(5)
            .collect();
        let reason = format!("no contact with {}: nobody knows how it is", away.join(", "));
        let host = away.first().and_then(|name| name.parse().ok())?;
        Some(Judgement {
            name: "changed hosts are in contact".to_string(),
            metric: String::new(),
            verdict: Verdict::Inconclusive,
            observed: None,
            limit: None,
            unit: String::new(),
            samples: 0,
            reason,
            host: Some(host),
            advisory: false,
            perf: false,
        })
    }

    /// The verdict that every admission of a rolling rollout needs. Asked at every
    /// event, found anew only so often.
    pub(super) fn standing_verdict(&mut self, now: Timestamp) -> Verdict {
        const FRESH: Millis = Millis(400);
        let Some((_, stage)) = self.stage().filter(|(_, s)| s.standing && self.past_wave < s.after_wave) else { return Verdict::Pass };
        if let Some((at, confirmations, verdict)) = self.standing
            && confirmations == self.confirmations
            && now.since(at) < FRESH
        {
            return verdict;
        }
        let verdict = overall(&self.judge_stage(now, stage));
        self.standing = Some((now, self.confirmations, verdict));
        verdict
    }

    /// Looks at the open gate; called when time passes.
    pub(super) fn look_at_gate(&mut self, now: Timestamp) {
        if !matches!(self.state, RolloutState::Baking | RolloutState::Watching | RolloutState::Paused) {
            return;
        }
        let Some(gate) = self.gate.clone() else { return };
        let Some((at, stage)) = self.stage().map(|(at, stage)| (at, stage.clone())) else { return };
        let judgements = self.judge_stage(now, &stage);
        let verdict = overall(&judgements);
        let why = reasons(&judgements, verdict);
        let over = now >= gate.ends_at && gate.held_since.is_none();
        self.note_verdict(now, at, &stage, verdict, judgements, over || verdict == Verdict::Fail);
        self.note_values(now, &stage, &gate);
        if verdict == Verdict::Fail {
            self.step_gate(now, GateStep::Failed, why.clone());
            self.begin_back(now, format!("the gate {} failed: {why}", stage.name));
            return;
        }
        self.look_at_sight(now, &stage);
        if let Some(asked) = self.asked_at {
            let deadline = self.plan.gating.analysis.deadline;
            // Who cannot see reverses as little as it advances.
            if now.since(asked) >= deadline && self.blind_since.is_none() {
                self.begin_back(now, format!("the gate {} was inconclusive and nobody decided within {deadline}: {why}", stage.name));
            }
            return;
        }
        if self.state == RolloutState::Paused || self.promoted_before(now) {
            return;
        }
        match verdict {
            Verdict::Pass if over || stage.standing => {
                self.pass_by(now, GateStep::Passed, format!("{}: every criterion holds", stage.name))
            }
            Verdict::Inconclusive if over => match (self.plan.gating.analysis.inconclusive, gate.extended) {
                (OnInconclusive::Fail, _) => {
                    self.step_gate(now, GateStep::Failed, why.clone());
                    self.begin_back(now, format!("the gate {} is inconclusive: {why}", stage.name));
                }
                (OnInconclusive::Extend, false) => self.step_gate(now, GateStep::Extended, why),
                _ => {
                    self.step_gate(now, GateStep::Asked, why.clone());
                    let deadline = self.plan.gating.analysis.deadline;
                    let reason = format!(
                        "the gate {} is inconclusive: {why}; `promote` goes on, `rollback` goes back, nobody within {deadline} goes back",
                        stage.name
                    );
                    self.append(now, Record::State { to: RolloutState::Paused, reason });
                }
            },
            // In error the clock runs into the pause of `look_at_sight`.
            _ => {}
        }
    }

    /// A blind controller neither advances nor reverses.
    fn look_at_sight(&mut self, now: Timestamp, stage: &Stage) {
        let triggers = self.plan.gating.triggers.iter().flat_map(|t| &t.tests).map(|t| t.metric.as_str());
        let mut names: Vec<&str> = stage.criteria.iter().filter(|c| !c.advisory).map(|c| c.metric.as_str()).chain(triggers).collect();
        names.sort_unstable();
        names.dedup();
        let errors = self.blind(now, &names);
        match (errors.is_empty(), self.blind_since) {
            (false, None) => {
                let why = errors.join("; ");
                self.step_gate(now, GateStep::Blind, why.clone());
                if self.state != RolloutState::Paused {
                    let reason = format!("a source cannot be read: {why}; goes on by itself when it answers");
                    self.append(now, Record::State { to: RolloutState::Paused, reason });
                }
            }
            (true, Some(_)) => {
                self.step_gate(now, GateStep::Sighted, "every source answers".to_string());
                self.unpause(now, "every source answers again".to_string());
            }
            (false, Some(since)) => {
                // A person is asked, and asked again.
                let patience = self.plan.gating.analysis.error_deadline;
                let again = self.blind_asked.unwrap_or(since);
                if now.since(again) >= patience {
                    let why = format!("a source cannot be read for {} s: {}", now.since(since).0 / 1_000, errors.join("; "));
                    self.step_gate(now, GateStep::Asked, why);
                }
            }
            (true, None) => {}
        }
    }

    fn step_gate(&mut self, now: Timestamp, step: GateStep, reason: String) {
        let wave = self.gate.as_ref().map_or(0, |g| g.wave);
        self.append(now, Record::Gate { stage: self.passed, wave, step, reason });
    }

    /// The gate is passed or overridden: the next wave may open.
    pub(super) fn pass_by(&mut self, now: Timestamp, step: GateStep, reason: String) {
        self.step_gate(now, step, reason.clone());
        self.append(now, Record::State { to: RolloutState::Running, reason });
    }

    /// Journals a verdict that changed or decides.
    fn note_verdict(&mut self, now: Timestamp, at: usize, stage: &Stage, verdict: Verdict, judgements: Vec<Judgement>, decides: bool) {
        let wave = self.gate.as_ref().map_or(stage.after_wave, |g| g.wave);
        let known = self.judged.get(&at).filter(|k| k.wave == wave);
        let changed = known.is_none_or(|k| k.verdict != verdict);
        let recently = known.is_some_and(|k| now.since(k.at) < self.plan.gating.analysis.interval);
        // What decides is journaled with its numbers, once.
        let wanted = if decides { changed || known.is_some_and(|k| k.judgements != judgements) } else { changed && !recently };
        if judgements.is_empty() || !wanted {
            return;
        }
        self.append(now, Record::Judged { stage: at, wave, verdict, judgements });
    }

    /// Journals the values themselves, once per interval.
    fn note_values(&mut self, now: Timestamp, stage: &Stage, gate: &GateRun) {
        let every = self.plan.gating.analysis.interval;
        let every = Millis(every.0.max(if stage.watch { 60_000 } else { 1_000 }));
        // While the clock stands nothing is observed.
        if gate.held_since.is_some() || self.plan.gating.metrics.is_empty() || now.since(self.observed_at) < every {
            return;
        }
        let from = if stage.standing { Timestamp(0) } else { gate.opened_at };
        let values = self.values(now, from);
        if !values.is_empty() {
            self.append(now, Record::Observed { wave: gate.wave, values });
        }
    }

    /// The verdict on the open gate, for a person who wants to go past it.
    pub(super) fn gate_verdict(&self, now: Timestamp) -> Option<(Verdict, String)> {
        self.gate.as_ref()?;
        let (_, stage) = self.stage()?;
        let judgements = self.judge_stage(now, stage);
        let verdict = overall(&judgements);
        Some((verdict, reasons(&judgements, verdict)))
    }

    /// The values are sealed once the time of the baseline has passed.
    pub(super) fn seal(&mut self, now: Timestamp) -> bool {
        // Sealed once: a crash may lie between that and the step that follows.
        if !self.sealed.is_empty() {
            return true;
        }
        if now.since(self.step_since) < self.plan.gating.analysis.baseline {
            return false;
        }
        let values = self.baseline_values(self.step_since);
        self.append(now, Record::Baseline { values });
        true
    }

    /// Alerts that fire: those from before the first swap are listed apart.
    pub(super) fn alerts(&mut self, now: Timestamp, alerts: &alloc::collections::BTreeMap<String, String>) {
        const ALERTS_MAX: usize = 1_000;
        for (fingerprint, text) in alerts {
            let before = self.first_swap_at.is_none();
            let known = self.alerts_before.contains_key(fingerprint) || self.alerts_new.contains_key(fingerprint);
            let full = if before { self.alerts_before.len() } else { self.alerts_new.len() } >= ALERTS_MAX;
            if known || full {
                continue;
            }
            self.append(now, Record::Alert { fingerprint: fingerprint.clone(), text: text.clone(), before });
        }
    }
}

/// What decides, in one sentence.
fn reasons(judgements: &[Judgement], verdict: Verdict) -> String {
    let deciding: Vec<String> =
        judgements.iter().filter(|j| !j.advisory && j.verdict == verdict).take(5).map(|j| format!("{}: {}", j.name, j.reason)).collect();
    deciding.join("; ")
}
