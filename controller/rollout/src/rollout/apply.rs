//! Applying a record: the only place where a rollout's journaled state changes.
//! Decides nothing, so that an old journal reads the same for ever.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::{Intent, Phase, RolloutId, Timestamp};

use super::book::Book;
use super::switching::Switch;
use super::tasks::TaskGo;
use super::{Contact, Freed, GRACE, GateRun, Investigation, Judged, LOST_IN_WAVE, Live, Order, Rollout, TargetRun};
use crate::plan::Plan;
use crate::record::{GateStep, InvestigationStep, Origin, Record, RolloutState, Step, TargetState, Verb};
use crate::spec::TriggerAction;
use crate::status::Drilled;

impl Rollout {
    pub(super) fn blank(id: RolloutId, plan: Plan, by: String, origins: Vec<Origin>, at: Timestamp) -> Self {
        let mut place = BTreeMap::new();
        for wave in &plan.waves {
            for (position, host) in wave.hosts.iter().enumerate() {
                // The integration suite runs on one host of each wave: its first.
                place.insert((host.clone(), wave.component.clone()), (wave.index, position == 0));
            }
        }
        let component_at: BTreeMap<_, _> = plan.components.iter().enumerate().map(|(i, c)| (c.name.clone(), i)).collect();
        let targets: Vec<TargetRun> = origins
            .into_iter()
            .map(|origin| {
                let key = (origin.host.clone(), origin.component.clone());
                let (wave, integration) = place.get(&key).copied().unwrap_or_default();
                TargetRun {
                    wave,
                    integration,
                    component_at: component_at.get(&origin.component).copied().unwrap_or_default(),
                    state: TargetState::Pending,
                    since: at,
                    generation: origin.generation,
                    order: None,
                    swap_ordered: false,
                    fence: origin.generation,
                    failure: None,
                    counted: false,
                    checked: false,
                    seen: None,
                    confirmed_as: None,
                    forgiven: 0,
                    back_settled: false,
                    switch: None,
                    retired: None,
                    live: Live { moved_at: at, ..Live::default() },
                    origin,
                }
            })
            .collect();
        let trigger_from = plan.gating.triggers.iter().map(|_| Timestamp(0)).collect();
        // Until somebody says otherwise, nobody is in contact.
        let lost = Contact { up: false, since: at - LOST_IN_WAVE - GRACE };
        Self {
            index: targets.iter().enumerate().map(|(i, t)| ((t.origin.host.clone(), t.origin.component.clone()), i)).collect(),
            contact: targets.iter().map(|t| (t.origin.host.clone(), lost)).collect(),
            id,
            plan,
            by,
            state: RolloutState::Scheduled,
            reason: String::new(),
            step: Step::Preflight,
            halting: None,
            stopping: false,
            freed: None,
            paused_by: None,
            cause_of_rollback: None,
            owed_back: None,
            targets,
            started_at: at,
            ended_at: None,
            state_since: at,
            step_since: at,
            returned_at: None,
            confirmations: 0,
            staging_moved_at: at,
            actions: VecDeque::new(),
            sealed: Vec::new(),
            gate: None,
            passed: 0,
            past_wave: 0,
            overridden: BTreeSet::new(),
            promoted_all: None,
            asked_at: None,
            blind_since: None,
            blind_asked: None,
            investigation: None,
            investigated_at: None,
            trigger_from,
            emergency: false,
            judged: BTreeMap::new(),
            standing: None,
            drilled: None,
            attested: BTreeMap::new(),
            alerts_before: BTreeMap::new(),
            alerts_new: BTreeMap::new(),
            switch_go: false,
            first_swap_at: None,
            last_confirmed_at: None,
            back_began_at: None,
            observed_at: at,
            triggers_at: at,
            given: crate::process::Given::default(),
            scheduled_since: None,
            reminded_at: None,
            tasks: BTreeMap::new(),
            outages: super::outages::OutageBook::default(),
            notified: BTreeSet::new(),
            person_back: false,
            book: Book::default(),
            now: at,
            looked_at: at,
        }
    }

    pub(super) fn apply(&mut self, at: Timestamp, record: &Record) {
        self.now = self.now.max(at);
        self.given.apply(at, record);
        self.outages.apply(record);
        match record {
            Record::Started { .. }
            | Record::Healed { .. }
            | Record::Readiness { .. }
            | Record::Windows { .. }
            | Record::Freeze { .. }
            | Record::Approved { .. }
            | Record::Overridden { .. }
            | Record::Began
            | Record::Probed { .. }
            | Record::Outage { .. }
            | Record::Noted { .. }
            | Record::Item { .. }
            | Record::SignedOff { .. }
            | Record::Reviewed { .. }
            | Record::Closed { .. } => {}
            Record::TaskOrdered { index, what, attempt, .. } => {
                self.tasks.insert((*index, *what), TaskGo { attempt: *attempt, since: at, ended: None });
            }
            Record::TaskEnded { index, what, attempt, state, note, .. } => {
                if let Some(go) = self.tasks.get_mut(&(*index, *what)).filter(|go| go.attempt == *attempt) {
                    go.ended = Some((*state, note.clone()));
                    self.freed = self.freed.or(Some(Freed::ByItself));
                }
            }
            Record::Stopping { reason } => (self.halting, self.stopping, self.owed_back) = (Some(reason.clone()), true, None),
            Record::Notified { key, route, .. } => {
                self.notified.insert((key.clone(), route.clone()));
            }
            Record::Reminded { .. } => self.reminded_at = Some(at),
            Record::State { to, reason } => {
                if *to == RolloutState::Scheduled {
                    if self.state != *to || self.scheduled_since.is_none() {
                        self.scheduled_since = Some(at);
                    }
                } else {
                    self.scheduled_since = None;
                }
                // The same state with another reason is no new wait.
                if self.state != *to || self.reason.is_empty() {
                    self.state_since = at;
                }
                self.state = *to;
                self.reason.clone_from(reason);
                self.ended_at = to.is_terminal().then_some(at);
                if *to == RolloutState::Paused {
                    if let Some(gate) = &mut self.gate {
                        gate.held_since.get_or_insert(at);
                    }
                } else {
                    (self.paused_by, self.asked_at, self.blind_since, self.blind_asked) = (None, None, None, None);
                    // Time that nobody could use does not count as observation.
                    if let Some(gate) = &mut self.gate
                        && let Some(held) = gate.held_since.take()
                    {
                        gate.ends_at = gate.ends_at + at.since(held);
                    }
                }
                self.freed = None;
                if to.is_terminal() || *to == RolloutState::RollingBack {
                    self.stopping = false;
                }
                if to.is_terminal() {
                    self.halting = None;
                    self.investigation = None;
                    self.gate = None;
                }
                if *to == RolloutState::RollingBack {
                    self.investigation = None;
                    self.gate = None;
                    self.back_began_at = Some(at);
                    // A halt that was said before is overtaken: by a person's later
                    // word, or by a failure while triggers were still armed.
                    self.halting = None;
                    self.cause_of_rollback = Some(reason.clone());
                    self.owed_back = None;
                    for target in &mut self.targets {
                        target.back_settled = false;
                        if let Some(switch) = target.switch.as_mut() {
                            switch.of_before = switch.ended.is_some();
                        }
                    }
                }
            }
            Record::Step { step } => {
                self.step = *step;
                self.step_since = at;
                self.staging_moved_at = at;
            }
            Record::Ordered { host, component, generation, intent, target, phase, integration } => {
                let Some(run) = self.index.get(&(host.clone(), component.clone())).and_then(|i| self.targets.get_mut(*i)) else { return };
                let same = run.generation == *generation;
                let swap_at = run
                    .order
                    .as_ref()
                    .filter(|_| same)
                    .and_then(|o| o.swap_at)
                    .or_else(|| matches!(phase, Phase::Swap | Phase::Confirm).then_some(at));
                if !same && *intent == Intent::Forward {
                    // A lease ran out while the controller was away: once more.
                    run.forgiven += 1;
                    run.failure = None;
                }
                match (intent, phase) {
                    (Intent::Back, _) => run.state = TargetState::Reverting,
                    (Intent::Forward, Phase::Stage) => run.state = TargetState::Staging,
                    (Intent::Forward, Phase::Swap) => {
                        run.state = TargetState::Swapping;
                        run.swap_ordered = true;
                        self.first_swap_at.get_or_insert(at);
                    }
                    (Intent::Forward, _) => {}
                }
                run.generation = *generation;
                run.since = at;
                run.live.moved_at = at;
                run.order = Some(Order {
                    intent: *intent,
                    target: target.release().cloned(),
                    phase: *phase,
                    at,
                    swap_at,
                    integration: *integration,
                });
            }
            Record::Host { host, component, generation: _, to, failure, counted, seen } => {
                let rolling_back = self.state == RolloutState::RollingBack;
                let Some(run) = self.index.get(&(host.clone(), component.clone())).and_then(|i| self.targets.get_mut(*i)) else { return };
                run.state = *to;
                run.since = at;
                run.counted |= *counted;
                if failure.is_some() {
                    run.failure.clone_from(failure);
                }
                if seen.is_some() {
                    run.seen.clone_from(seen);
                }
                let back = run.order.as_ref().is_some_and(|o| o.intent == Intent::Back)
                    || run.switch.as_ref().is_some_and(|s| s.intent == Intent::Back);
                if rolling_back && back && matches!(to, TargetState::Reverted | TargetState::RevertFailed | TargetState::Unreachable) {
                    run.back_settled = true;
                }
                if *to == TargetState::Confirmed {
                    self.confirmations += 1;
                    self.last_confirmed_at = Some(at);
                    run.live.vigil = super::vigil::Vigil::default();
                    run.confirmed_as = Some(self.confirmations);
                }
            }
            Record::Said { verb, by, reason } => {
                if matches!(verb, Verb::Resume | Verb::Promote | Verb::PromoteAll) {
                    self.freed = Some(Freed::By(*verb));
                }
                match verb {
                    Verb::Halt => self.halting = Some(reason.clone()),
                    Verb::Pause => self.paused_by = Some(by.clone()),
                    // Resumed, though something else may keep it where it is.
                    Verb::Resume => (self.paused_by, self.asked_at) = (None, None),
                    Verb::Promote | Verb::PromoteAll => {
                        if *verb == Verb::PromoteAll {
                            self.promoted_all = Some(reason.clone());
                        }
                        self.paused_by = None;
                        self.switch_go |= self.step == Step::Switching;
                    }
                    Verb::Rollback => (self.owed_back, self.person_back) = (Some(reason.clone()), true),
                    Verb::Ack => {}
                }
            }
            Record::Found { origin } => {
                if let Some(run) = self.at(&origin.host, &origin.component).and_then(|i| self.targets.get_mut(i)) {
                    run.origin = origin.clone();
                }
            }
            Record::Fenced { host, component, generation } => {
                if let Some(run) = self.at(host, component).and_then(|i| self.targets.get_mut(i)) {
                    run.fence = *generation;
                }
            }
            Record::Returned => self.returned_at = Some(at),
            Record::Baseline { values } => self.sealed.clone_from(values),
            Record::Observed { .. } => self.observed_at = at,
            Record::Judged { stage, wave, verdict, judgements } => {
                let judged = Judged { at, wave: *wave, verdict: *verdict, judgements: judgements.clone() };
                self.judged.insert(*stage, judged);
            }
            Record::Gate { stage, wave, step, reason } => {
                if *step == GateStep::Failed {
                    self.owed_back = Some(reason.clone());
                }
                self.apply_gate(at, *stage, *wave, *step);
            }
            Record::Tripped { trigger, action, reason, .. } => match (action, trigger) {
                (TriggerAction::Investigate, Some(index)) => {
                    let after = self.plan.gating.triggers.get(*index).map_or(tidegate_protocol::Millis(0), |t| t.after);
                    self.investigated_at.get_or_insert(at);
                    // One at a time: a second does not give the first more time.
                    self.investigation.get_or_insert_with(|| Investigation::opened(*index, at, after));
                }
                (TriggerAction::Investigate, None) => {}
                (action, _) => {
                    if *action == TriggerAction::Emergency {
                        // Whoever said halt on the way back did not know of this.
                        (self.emergency, self.halting) = (true, None);
                    }
                    if self.state != RolloutState::RollingBack {
                        self.owed_back = Some(reason.clone());
                    }
                }
            },
            Record::Investigation { trigger, step, .. } => match step {
                InvestigationStep::Acknowledged => {
                    if let Some(open) = self.investigation.as_mut() {
                        open.acknowledge(at);
                    }
                }
                InvestigationStep::Cleared => {
                    self.freed = self.freed.or(Some(Freed::ByItself));
                    self.investigation = None;
                    if let Some(from) = self.trigger_from.get_mut(*trigger) {
                        *from = at;
                    }
                }
            },
            // Those before the first step and after the last are the checklist's.
            Record::Attested { item, by, .. } if self.gate.is_some() => {
                self.attested.insert((self.passed, item.clone()), by.clone());
            }
            Record::Attested { .. } => {}
            Record::Alert { fingerprint, text, before } => {
                if *before {
                    self.alerts_before.insert(fingerprint.clone(), text.clone());
                } else {
                    self.alerts_new.insert(fingerprint.clone(), (at, text.clone()));
                }
            }
            Record::Switch { host, component, generation, intent, to } => {
                if let Some(run) = self.at(host, component).and_then(|i| self.targets.get_mut(i)) {
                    run.switch = Some(Switch {
                        generation: *generation,
                        intent: *intent,
                        to: *to,
                        at,
                        ended_at: None,
                        ended: None,
                        put_back: false,
                        of_before: false,
                    });
                }
            }
            Record::Switched { host, component, generation, active, failure } => {
                let run = self.index.get(&(host.clone(), component.clone())).and_then(|i| self.targets.get_mut(*i));
                let Some(run) = run else { return };
                if let Some(switch) = run.switch.as_mut().filter(|s| s.generation == *generation) {
                    switch.ended_at = Some(at);
                    switch.ended = Some(failure.clone().map_or(Ok(()), Err));
                    switch.put_back = failure.is_some() && *active == Some(switch.to.other());
                    if let Some(failure) = failure.as_ref().filter(|_| switch.intent == Intent::Forward) {
                        run.failure = Some(failure.clone());
                        run.counted = true;
                    }
                }
            }
            Record::Retired { host, component, generation, .. } => {
                if let Some(run) = self.at(host, component).and_then(|i| self.targets.get_mut(i)) {
                    run.retired = Some(*generation);
                }
            }
            Record::Drilled { passed, forward_ms, back_ms } => {
                self.drilled = Some(Drilled { passed: *passed, forward_ms: *forward_ms, back_ms: *back_ms });
            }
        }
    }

    fn apply_gate(&mut self, at: Timestamp, stage: usize, wave: usize, step: GateStep) {
        let Some(spec) = self.plan.gating.stages.get(stage) else { return };
        let (bake, standing) = (spec.bake, spec.standing);
        if matches!(step, GateStep::Sighted | GateStep::Extended | GateStep::Passed | GateStep::Overridden) {
            self.freed = self.freed.or(Some(Freed::ByItself));
        }
        match step {
            GateStep::Opened => {
                self.gate = Some(GateRun { wave, opened_at: at, ends_at: at + bake, extended: false, held_since: None });
            }
            GateStep::Extended => {
                // Something else may still keep it paused: the clock stands from here on.
                let held = (self.state == RolloutState::Paused).then_some(at);
                if let Some(gate) = &mut self.gate {
                    (gate.ends_at, gate.extended, gate.held_since) = (at + bake, true, held);
                }
                self.asked_at = None;
            }
            GateStep::Asked if self.blind_since.is_some() => self.blind_asked = Some(at),
            GateStep::Asked => self.asked_at = Some(at),
            GateStep::Blind => self.blind_since = Some(at),
            GateStep::Sighted => (self.blind_since, self.blind_asked) = (None, None),
            GateStep::Passed | GateStep::Overridden => {
                let by_person = step == GateStep::Overridden;
                if by_person {
                    self.overridden.insert(wave);
                }
                if standing && !self.all_settled() {
                    // In the middle of a rolling rollout: the next ones may go.
                    if by_person {
                        self.past_wave = wave + 1;
                    }
                } else {
                    self.passed = stage + 1;
                }
                self.gate = None;
                self.asked_at = None;
            }
            GateStep::Failed => {}
        }
    }
}
