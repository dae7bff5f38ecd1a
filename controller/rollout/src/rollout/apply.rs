//! Applying a record: the only place where a rollout's journaled state changes.
//! Decides nothing, so that an old journal reads the same for ever.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::{Intent, Phase, RolloutId, Timestamp};

use super::{Contact, GRACE, LOST_IN_WAVE, Live, Order, Rollout, TargetRun};
use crate::plan::Plan;
use crate::record::{Origin, Record, RolloutState, Step, TargetState, Verb};

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
                    live: Live { moved_at: at, ..Live::default() },
                    origin,
                }
            })
            .collect();
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
            paused_by: None,
            cause_of_rollback: None,
            targets,
            started_at: at,
            ended_at: None,
            state_since: at,
            step_since: at,
            returned_at: None,
            confirmations: 0,
            staging_moved_at: at,
            actions: VecDeque::new(),
            now: at,
            looked_at: at,
        }
    }

    pub(super) fn apply(&mut self, at: Timestamp, record: &Record) {
        self.now = self.now.max(at);
        match record {
            Record::Started { .. } | Record::Healed { .. } => {}
            Record::State { to, reason } => {
                self.state = *to;
                self.reason.clone_from(reason);
                self.state_since = at;
                self.ended_at = to.is_terminal().then_some(at);
                if *to != RolloutState::Paused {
                    self.paused_by = None;
                }
                if to.is_terminal() {
                    self.halting = None;
                }
                if *to == RolloutState::RollingBack {
                    // A halt that was said before is overtaken: by a person's later
                    // word, or by a failure while triggers were still armed.
                    self.halting = None;
                    self.cause_of_rollback = Some(reason.clone());
                    self.targets.iter_mut().for_each(|t| t.back_settled = false);
                }
            }
            Record::Step { step } => {
                self.step = *step;
                self.step_since = at;
                self.staging_moved_at = at;
            }
            Record::Ordered { host, component, generation, intent, target, phase, integration } => {
                let Some(run) = self.at(host, component).and_then(|i| self.targets.get_mut(i)) else { return };
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
                let back = run.order.as_ref().is_some_and(|o| o.intent == Intent::Back);
                if rolling_back && back && matches!(to, TargetState::Reverted | TargetState::RevertFailed | TargetState::Unreachable) {
                    run.back_settled = true;
                }
                if *to == TargetState::Confirmed {
                    self.confirmations += 1;
                    run.confirmed_as = Some(self.confirmations);
                }
            }
            Record::Said { verb, by, reason } => match verb {
                Verb::Halt => self.halting = Some(reason.clone()),
                Verb::Pause => self.paused_by = Some(by.clone()),
                _ => {}
            },
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
            _ => {}
        }
    }
}
