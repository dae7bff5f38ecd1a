//! Blue-green: the switch as a barrier step over all hosts, and the way back by
//! one step.
//!
//! A target is *prepared* once its side is confirmed; traffic is where it was.
//! The switch has generations of its own. Going back is the switch the other way,
//! then the new side is stopped; the old side was never touched.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use tidegate_protocol::report::Failure;
use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::{
    Assignment, Cause, Generation, HostName, Intent, Millis, Phase, Side, SideAssignment, SidesReport, SwitchOrder, Target, Timestamp,
};

use super::decide::plus;
use super::{GRACE, Rollout, TargetRun};
use crate::record::{Record, RolloutState, Step, TargetState};

/// A front that is told to switch finishes what it serves: the side that it left is
/// stopped only after this.
const DRAIN: Millis = Millis::from_secs(5);

/// The newest switch of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) generation: Generation,
    pub(crate) intent: Intent,
    pub(crate) to: Side,
    pub(crate) at: Timestamp,
    /// When it ended.
    pub(crate) ended_at: Option<Timestamp>,
    /// How it ended: the ordered side serves, or why not.
    pub(crate) ended: Option<Result<(), Failure>>,
    /// It failed, and the host itself put the traffic back, as it says.
    pub(crate) put_back: bool,
    /// It ended in an attempt to go back before the present one.
    pub(crate) of_before: bool,
}

impl TargetRun {
    /// Traffic is on the new side.
    pub(crate) fn switched(&self) -> bool {
        self.switch.as_ref().is_some_and(|s| s.intent == Intent::Forward && matches!(s.ended, Some(Ok(()))))
    }

    /// Traffic may be on the new side and has not been brought back.
    fn must_switch_back(&self) -> bool {
        self.origin.previous.is_some()
            && self.switch.as_ref().is_some_and(|s| match s.intent {
                // One that is stuck, late or silent may have moved it.
                Intent::Forward => !s.put_back,
                Intent::Back => !matches!(s.ended, Some(Ok(()))),
            })
    }
}

impl Rollout {
    /// Every side is prepared: traffic moves, on all hosts, once that is wanted.
    /// True while there is something to do or to wait for.
    pub(super) fn switching(&mut self, now: Timestamp) -> Option<bool> {
        let manual = self.plan.blue_green.as_ref()?.manual;
        if self.step != Step::Switching {
            self.append(now, Record::Step { step: Step::Switching });
            return Some(true);
        }
        if manual && !self.switch_go {
            if self.state == RolloutState::Running {
                let reason = format!("every side is prepared: `tidegate rollout promote {}` moves the traffic", self.id);
                self.append(now, Record::State { to: RolloutState::Paused, reason });
            }
            return Some(false);
        }
        let prepared = self.which(|t| t.state == TargetState::Confirmed);
        let waiting: Vec<usize> = prepared.iter().copied().filter(|at| self.targets.get(*at).is_some_and(|t| t.switch.is_none())).collect();
        for at in &waiting {
            self.order_switch(now, *at, Intent::Forward);
        }
        if let Some(failed) = self.targets.iter().find(|t| matches!(t.switch.as_ref().and_then(|s| s.ended.as_ref()), Some(Err(_)))) {
            let why = failed.switch.as_ref().and_then(|s| s.ended.as_ref()?.as_ref().err().map(|f| f.message.clone())).unwrap_or_default();
            let reason = format!("the switch failed on {}: {why}", failed.origin.host);
            self.begin_back(now, reason);
            return Some(true);
        }
        if prepared.iter().all(|at| self.targets.get(*at).is_some_and(TargetRun::switched)) { None } else { Some(false) }
    }

    fn order_switch(&mut self, now: Timestamp, at: usize, intent: Intent) {
        let (Some(target), Some(new)) = (self.targets.get(at), self.side_of(at)) else { return };
        let to = if intent == Intent::Forward { new } else { new.other() };
        let record = Record::Switch {
            host: target.origin.host.clone(),
            component: target.origin.component.clone(),
            generation: target.newest().next(),
            intent,
            to,
        };
        self.append(now, record);
    }

    /// What a host says of its sides.
    pub(super) fn observe_sides(&mut self, now: Timestamp, at: usize, report: &SidesReport) -> bool {
        let mut moved = false;
        if let Some(side) = self.side_of(at)
            && let Some(own) = report.sides.iter().find(|s| s.side == side)
        {
            moved |= self.observe(now, at, &own.report);
        }
        let Some(target) = self.targets.get(at) else { return moved };
        let Some(switch) = target.switch.as_ref().filter(|s| s.generation == report.generation && s.ended.is_none()) else { return moved };
        let failure = match report.progress {
            SwitchProgress::Switched if report.active == Some(switch.to) => None,
            SwitchProgress::Switched => {
                Some(Failure { cause: Cause::StartFailed, message: "says it switched, but another side serves".to_string() })
            }
            SwitchProgress::Failed | SwitchProgress::Stuck => Some(
                report
                    .failure
                    .clone()
                    .unwrap_or(Failure { cause: Cause::StartFailed, message: "the switch failed without a reason".to_string() }),
            ),
            SwitchProgress::None | SwitchProgress::Switching => return moved,
        };
        // Where the traffic of a stuck one is, nobody knows.
        let active = report.active.filter(|_| report.progress != SwitchProgress::Stuck);
        self.end_switch(now, at, active, failure);
        true
    }

    fn end_switch(&mut self, now: Timestamp, at: usize, active: Option<Side>, failure: Option<Failure>) {
        let Some((target, switch)) = self.targets.get(at).and_then(|t| t.switch.as_ref().map(|s| (t, s))) else { return };
        let record = Record::Switched {
            host: target.origin.host.clone(),
            component: target.origin.component.clone(),
            generation: switch.generation,
            active,
            failure,
        };
        self.append(now, record);
    }

    /// A switch that waits too long.
    pub(super) fn overdue_switch(&mut self, now: Timestamp, at: usize) {
        let Some(target) = self.targets.get(at) else { return };
        let Some(switch) = target.switch.as_ref().filter(|s| s.ended.is_none()) else { return };
        let late = now.since(switch.at) >= plus(self.plan.limits.healthy_deadline, GRACE);
        let failure = if self.lost(now, target) && (late || switch.intent == Intent::Forward) {
            Failure { cause: Cause::Unreachable, message: "no contact while traffic should move".to_string() }
        } else if late && self.up(target) {
            Failure { cause: Cause::Timeout, message: "the switch did not end by its deadline".to_string() }
        } else {
            return;
        };
        self.end_switch(now, at, None, Some(failure));
    }

    /// Going back: all switches at once, then the new sides are stopped.
    pub(super) fn switch_back(&mut self, now: Timestamp) {
        for at in self.which(|t| t.swap_ordered && !t.back_settled) {
            let Some(target) = self.targets.get(at) else { continue };
            if !target.must_switch_back() {
                let stopped = target.order.as_ref().is_some_and(|o| o.intent == Intent::Back);
                let left_at = target.switch.as_ref().and_then(|s| s.ended_at);
                let serves = left_at.is_some_and(|at| now.since(at) < DRAIN) && !self.emergency;
                if !stopped && !serves {
                    self.order(now, at, Intent::Back, Phase::Swap);
                }
                continue;
            }
            match target.switch.as_ref() {
                // It failed in an attempt before this one: told once more.
                Some(switch) if switch.intent == Intent::Back && switch.of_before => {
                    self.order_switch(now, at, Intent::Back);
                }
                Some(switch) if switch.intent == Intent::Back => {
                    if let Some(Err(failure)) = switch.ended.clone() {
                        let to = if failure.cause == Cause::Unreachable { TargetState::Unreachable } else { TargetState::RevertFailed };
                        self.host(now, at, to, Some(failure), true, None);
                    }
                }
                _ => self.order_switch(now, at, Intent::Back),
            }
        }
    }

    /// The old sides are stopped: there is no way back by a switch any more.
    pub(super) fn retire(&mut self, now: Timestamp) {
        // Without a time they run on until the next release needs their place.
        if self.plan.blue_green.as_ref().is_none_or(|b| b.keep_old.0 == 0) {
            return;
        }
        for at in self.which(|t| t.switched() && t.origin.previous.is_some() && t.retired.is_none()) {
            let (Some(target), Some(new)) = (self.targets.get(at), self.side_of(at)) else { continue };
            let record = Record::Retired {
                host: target.origin.host.clone(),
                component: target.origin.component.clone(),
                generation: target.newest().next(),
                side: new.other(),
            };
            self.append(now, record);
        }
    }

    /// The standing assignments of a host's sides: said again at every hello.
    #[must_use]
    pub fn sides(&self, host: &HostName) -> Vec<SideAssignment> {
        let of_host = self.plan.components.iter().filter_map(|c| self.at(host, &c.name));
        of_host.flat_map(|at| self.side_assignment(at).into_iter().chain(self.retirement(at))).collect()
    }

    /// The standing switch orders of a host: said again at every hello.
    #[must_use]
    pub fn switches(&self, host: &HostName) -> Vec<SwitchOrder> {
        let of_host = self.plan.components.iter().filter_map(|c| self.at(host, &c.name));
        of_host.filter_map(|at| self.switch_order(at)).collect()
    }

    pub(super) fn side_assignment(&self, at: usize) -> Option<SideAssignment> {
        Some(SideAssignment { side: self.side_of(at)?, assignment: self.assignment(at)? })
    }

    pub(super) fn retirement(&self, at: usize) -> Option<SideAssignment> {
        let target = self.targets.get(at)?;
        let generation = target.retired?;
        let assignment = Assignment {
            generation,
            component: target.origin.component.clone(),
            rollout: self.id.clone(),
            intent: Intent::Back,
            target: Target::Absent,
            phase: Phase::Swap,
            healthy_deadline: self.plan.limits.healthy_deadline,
            confirm_within: self.plan.limits.confirm_within,
            accept_drift: true,
            integration: false,
            reversible: true,
        };
        Some(SideAssignment { side: self.side_of(at)?.other(), assignment })
    }

    pub(super) fn switch_order(&self, at: usize) -> Option<SwitchOrder> {
        let (target, plan) = (self.targets.get(at)?, self.plan.blue_green.as_ref()?);
        let switch = target.switch.as_ref()?;
        Some(SwitchOrder {
            generation: switch.generation,
            component: target.origin.component.clone(),
            rollout: self.id.clone(),
            to: switch.to,
            release: self.plan.release.clone(),
            run: plan.run.clone(),
            // On the way back there is no other side to fall back to: nothing may undo it.
            verify: plan.verify.get(&target.origin.component).filter(|_| switch.intent == Intent::Forward).cloned(),
        })
    }
}
