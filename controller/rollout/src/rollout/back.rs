//! Going back: newest first, past hosts that fail, to a definite outcome.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Intent, Phase, Timestamp};

use super::decide::plus;
use super::{GRACE, Rollout, TargetRun};
use crate::record::{Record, RolloutState, TargetState};

impl Rollout {
    pub(super) fn begin_back(&mut self, now: Timestamp, reason: String) {
        if self.state == RolloutState::RollingBack {
            return;
        }
        if let Some(task) = self.past_return().filter(|_| !self.person_back) {
            // A machine takes nothing back past this point: it ends where it stands,
            // and people decide.
            if !self.stands() {
                let reason = format!("past the point of no return ({:?} cannot be taken back): {reason}", task.name);
                self.append(now, Record::Stopping { reason });
            }
            return;
        }
        self.append(now, Record::State { to: RolloutState::RollingBack, reason });
        self.cancel_rest(now);
    }

    /// It should go back and may not: it ends where it stands, whatever else is seen.
    pub(super) fn stands(&self) -> bool {
        self.stopping && self.halting.is_some()
    }

    pub(super) fn backward(&mut self, now: Timestamp) -> bool {
        if self.halting.is_none() {
            if self.plan.blue_green.is_some() {
                self.switch_back(now);
            } else {
                self.order_back(now);
            }
        } else if !self.targets.iter().any(|t| t.state == TargetState::Reverting) && !self.task_runs(now) {
            let reason = self.halting.clone().unwrap_or_default();
            self.append(now, Record::State { to: RolloutState::Halted, reason });
            return true;
        }
        if !self.targets.iter().all(back_settled) {
            return false;
        }
        if let Some(moved) = self.undo_tasks(now) {
            return moved;
        }
        let (undo_failed, named) = self.not_undone();
        let mut bad: Vec<String> = self
            .targets
            .iter()
            .filter(|t| t.swap_ordered && matches!(t.state, TargetState::RevertFailed | TargetState::Unreachable))
            .map(name_of)
            .collect();
        bad.extend(undo_failed);
        let why = self.cause_of_rollback.iter().cloned().chain(named).collect::<Vec<_>>().join("; ");
        if self.plan.drill {
            let drilled = self.drill_record(now);
            self.append(now, drilled);
        }
        let record = if bad.is_empty() {
            Record::State { to: RolloutState::RolledBack, reason: why }
        } else {
            Record::State { to: RolloutState::Mixed, reason: format!("not back: {}; went back because {why}", bad.join("; ")) }
        };
        self.append(now, record);
        true
    }

    /// Hosts out of service already go back at once, whatever their number; those
    /// in service as wide as `rollback_parallel` and `min_healthy` allow,
    /// components and confirmations reversed.
    fn order_back(&mut self, now: Timestamp) {
        let broken = self.which(|t| {
            t.swap_ordered && !back_ordered(t) && matches!(t.state, TargetState::Swapping | TargetState::Probation | TargetState::Healthy)
        });
        for at in broken.into_iter().rev() {
            self.order(now, at, Intent::Back, Phase::Swap);
        }
        // Failed to get back by themselves, or silent: they are told once more.
        let stuck =
            self.which(|t| t.swap_ordered && !t.back_settled && matches!(t.state, TargetState::RevertFailed | TargetState::Unreachable));
        for at in stuck.into_iter().rev() {
            self.order(now, at, Intent::Back, Phase::Swap);
        }
        if self.emergency {
            for at in self.which(|t| t.state == TargetState::Confirmed).into_iter().rev() {
                self.order(now, at, Intent::Back, Phase::Swap);
            }
            return;
        }
        for component_at in (0..self.plan.components.len()).rev() {
            let Some(component) = self.plan.components.get(component_at) else { continue };
            let (window, keep) = (component.rollback_window, component.keep_in_service);
            let own = self.which(|t| t.component_at == component_at);
            if own.iter().all(|i| self.targets.get(*i).is_some_and(back_settled)) {
                continue;
            }
            let reverting = own
                .iter()
                .filter(|i| self.targets.get(**i).is_some_and(|t| t.state == TargetState::Reverting && t.confirmed_as.is_some()))
                .count();
            // Bounded by their deadline; after it they no longer count as moving.
            let moving = own.iter().any(|i| self.targets.get(*i).is_some_and(|t| t.state == TargetState::Reverting));
            let mut out = self.out_of_service(component_at);
            let mut kept: Vec<usize> =
                own.iter().copied().filter(|i| self.targets.get(*i).is_some_and(|t| t.state == TargetState::Confirmed)).collect();
            kept.sort_by_key(|i| core::cmp::Reverse(self.targets.get(*i).and_then(|t| t.confirmed_as)));
            for (on_the_way, at) in (reverting..).zip(kept) {
                let first_install = self.targets.get(at).is_some_and(|t| t.origin.previous.is_none());
                let floor = !first_install && out + 1 > own.len().saturating_sub(keep);
                // Broken hosts must not hold the others back for ever: once nobody
                // moves any more, one at a time always goes.
                if on_the_way >= window || (floor && (moving || on_the_way > 0)) {
                    break;
                }
                self.order(now, at, Intent::Back, Phase::Swap);
                out += usize::from(!first_install);
            }
            // An earlier component waits until this one is back.
            return;
        }
    }

    pub(super) fn overdue_back(&mut self, now: Timestamp, at: usize) {
        let Some(target) = self.targets.get(at).filter(|t| t.state == TargetState::Reverting) else { return };
        if now.since(target.since) < plus(self.plan.limits.healthy_deadline, GRACE) {
            return;
        }
        let (to, cause, message) = if self.up(target) {
            (TargetState::RevertFailed, Cause::Timeout, "did not get back by its deadline")
        } else {
            (TargetState::Unreachable, Cause::Unreachable, "no contact while it should go back; it will when it returns")
        };
        // An own revert that did not end is told once more by an order.
        let failure = target.failure.clone().filter(|_| target.counted).unwrap_or(Failure { cause, message: message.into() });
        self.host(now, at, to, Some(failure), false, None);
    }
}

fn back_ordered(target: &TargetRun) -> bool {
    target.order.as_ref().is_some_and(|o| o.intent == Intent::Back)
}

/// Nothing more will happen to it on the way back.
fn back_settled(target: &TargetRun) -> bool {
    !target.swap_ordered
        || match target.state {
            TargetState::Reverted | TargetState::Failed | TargetState::Skipped => true,
            TargetState::RevertFailed | TargetState::Unreachable => target.back_settled,
            _ => false,
        }
}

pub(super) fn name_of(target: &TargetRun) -> String {
    let why = target.failure.as_ref().map_or_else(String::new, |f| format!(": {}: {}", f.cause, f.message));
    format!("{} ({}) {}{why}", target.origin.host, target.origin.component, target.state)
}
