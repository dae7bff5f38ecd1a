//! Going forward: what follows from the state, decided again after every event
//! until nothing follows.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Intent, Phase, Timestamp};

use super::{GRACE, LOST_IN_WAVE, PREFLIGHT_DEADLINE, Rollout, STAGING_STALL, TargetRun};
use crate::gate::Verdict;
use crate::record::{Record, RolloutState, Seen, Step, TargetState};
use crate::spec::{OnUnreachable, Strategy};

/// What waits too long.
enum Overdue {
    Lost,
    Slow(&'static str),
    No,
}

impl Rollout {
    pub(super) fn decide(&mut self, now: Timestamp) {
        // Each pass moves at least one target or the rollout; the bound is far
        // above what a plan can need and turns a bug into a stop, not a hang.
        let bound = 16 + 16 * self.targets.len();
        for _ in 0..bound {
            let moved = match self.state {
                RolloutState::Running | RolloutState::Paused | RolloutState::Baking | RolloutState::Watching => self.forward(now),
                RolloutState::RollingBack => self.backward(now),
                RolloutState::AwaitingApproval | RolloutState::Scheduled => self.look_to_begin(now),
                _ => false,
            };
            if !moved {
                return;
            }
        }
    }

    /// What waited too long, forward or back.
    pub(super) fn deadlines(&mut self, now: Timestamp) {
        for at in 0..self.targets.len() {
            match self.state {
                RolloutState::Running | RolloutState::Paused | RolloutState::Baking | RolloutState::Watching => self.overdue(now, at),
                RolloutState::RollingBack => self.overdue_back(now, at),
                _ => return,
            }
            if self.plan.blue_green.is_some() {
                self.overdue_switch(now, at);
            }
        }
    }

    fn forward(&mut self, now: Timestamp) -> bool {
        // Past a point of no return it ends where it stands, and once is enough.
        if let Some(reason) = self.over_budget().filter(|_| !self.stands()) {
            if self.targets.iter().any(|t| t.swap_ordered) || !self.tasks.is_empty() {
                self.begin_back(now, reason);
            } else {
                self.refuse(now, reason);
            }
            return true;
        }
        self.confirm(now);
        if let Some(reason) = self.halting.clone() {
            if self.targets.iter().any(|t| t.state.in_flight()) || self.task_runs(now) {
                return false;
            }
            self.cancel_rest(now);
            let left = self.stands().then(|| self.left_as_they_are()).flatten();
            let reason = left.map_or(reason.clone(), |left| format!("{reason}; left as they are: {left}"));
            self.append(now, Record::State { to: RolloutState::Halted, reason });
            return true;
        }
        // Like a host that fails: a pause does not hold it up.
        if let Some(reason) = self.failed_task() {
            self.begin_back(now, reason);
            return true;
        }
        // While a gate is open nobody is admitted.
        if self.state != RolloutState::Running {
            return false;
        }
        match self.step {
            Step::Preflight => self.preflight(now),
            Step::Staging => self.staging(now),
            Step::Baseline => {
                let sealed = self.seal(now);
                if sealed {
                    self.staged(now);
                }
                sealed
            }
            Step::Tasks => self.tasks(now),
            Step::Swapping | Step::Switching => self.admit(now),
        }
    }

    fn preflight(&mut self, now: Timestamp) -> bool {
        for at in self.which(|t| t.order.is_none() && t.state == TargetState::Pending) {
            self.order(now, at, Intent::Forward, Phase::Preflight);
        }
        if self.targets.iter().any(|t| t.state == TargetState::Pending && !t.checked) {
            return false;
        }
        // Every query and probe is tried before any host is touched.
        match self.tried(now) {
            Ok(true) => return false,
            Ok(false) => self.append(now, Record::Step { step: Step::Staging }),
            Err(why) => self.refuse(now, format!("gate preflight: {why}")),
        }
        true
    }

    fn staging(&mut self, now: Timestamp) -> bool {
        for at in self.which(|t| t.state == TargetState::Pending && t.order.as_ref().is_none_or(|o| o.phase < Phase::Stage)) {
            self.order(now, at, Intent::Forward, Phase::Stage);
        }
        if self.targets.iter().any(|t| matches!(t.state, TargetState::Pending | TargetState::Staging)) {
            return false;
        }
        if !self.targets.is_empty() && !self.targets.iter().any(|t| t.state == TargetState::Staged) {
            let reason = format!("no host is left to change: {}", self.exceptions());
            self.refuse(now, reason);
        } else if self.plan.gating.analysis.needs_baseline {
            self.append(now, Record::Step { step: Step::Baseline });
            self.begin_baseline(now);
        } else {
            self.staged(now);
        }
        true
    }

    /// Everything is ready for the first change.
    fn staged(&mut self, now: Timestamp) {
        let step = if self.plan.process.tasks.is_empty() { Step::Swapping } else { Step::Tasks };
        self.append(now, Record::Step { step });
    }

    /// The next hosts, in groups: a component after the other; in a canary a wave
    /// after the other, none beyond the present stage's. A group admits while its
    /// window, its floor of hosts in service, the standing verdict and the budget
    /// allow.
    fn admit(&mut self, now: Timestamp) -> bool {
        if self.more_to_come() && self.pause_if_closed(now) {
            return true;
        }
        let by_wave = self.plan.strategy == Strategy::Canary;
        let last_open = self.last_open_wave();
        let groups = if by_wave { self.plan.waves.len() } else { self.plan.components.len() };
        for group in 0..groups {
            let of_group = |t: &TargetRun| if by_wave { t.wave == group + 1 } else { t.component_at == group };
            if by_wave && group + 1 > last_open {
                break;
            }
            let own: Vec<usize> = self.which(of_group);
            if own.iter().all(|i| self.targets.get(*i).is_some_and(settled)) {
                continue;
            }
            let at = own.first().and_then(|i| self.targets.get(*i)).map_or(0, |t| t.component_at);
            let Some(component) = self.plan.components.get(at) else { continue };
            let (window, keep, name, total) = (component.window, component.keep_in_service, component.name.clone(), component.hosts.len());
            if let Some(moved) = self.wait_for_verdict(now) {
                return moved;
            }
            // Past this wave a host needs the verdict on those that changed.
            let upto = self.upto_wave(now);
            let mut in_flight = self.targets.iter().filter(|t| t.component_at == at && t.state.in_flight()).count();
            let mut out = self.out_of_service(at);
            for i in own {
                let Some(target) = self.targets.get(i).filter(|t| admissible(t)) else { continue };
                let first_install = target.origin.previous.is_none();
                if in_flight >= window || target.wave > upto {
                    break;
                }
                // A host without the component serves nobody: it cannot be taken out.
                if !first_install && out + 1 > total.saturating_sub(keep) {
                    if in_flight == 0 {
                        let reason = format!(
                            "min_healthy keeps {keep} of {total} hosts of {name} in service and {out} are out: bring them back and resume, or roll back",
                        );
                        self.append(now, Record::State { to: RolloutState::Paused, reason });
                    }
                    break;
                }
                if !self.up(target) {
                    if self.lost(now, target) {
                        self.apply_policy(now, i, "was not in contact when its turn came");
                        return true;
                    }
                    continue;
                }
                self.order(now, i, Intent::Forward, Phase::Swap);
                in_flight += 1;
                out += usize::from(!first_install && self.plan.blue_green.is_none());
            }
            return false;
        }
        self.settled_so_far(now)
    }

    /// A host may still be ordered to swap, or traffic to move.
    pub(super) fn more_to_come(&self) -> bool {
        let sided = self.plan.blue_green.is_some();
        let prepared = |t: &TargetRun| sided && t.state == TargetState::Confirmed && t.switch.is_none();
        matches!(self.step, Step::Swapping | Step::Switching) && self.targets.iter().any(|t| admissible(t) || prepared(t))
    }

    /// Hosts on the new release, or on the way there, by name.
    fn left_as_they_are(&self) -> Option<String> {
        let changed = |t: &&TargetRun| t.swap_ordered && t.state != TargetState::Reverted;
        let all = self.targets.iter().filter(changed);
        let (named, count): (Vec<String>, usize) = (all.clone().take(20).map(super::back::name_of).collect(), all.count());
        let more = count.saturating_sub(named.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        (count > 0).then(|| format!("{}{more}", named.join("; ")))
    }

    /// Rolling: once a host has changed, the next one needs the verdict on those
    /// that did. Some while it is awaited.
    fn wait_for_verdict(&mut self, now: Timestamp) -> Option<bool> {
        let next = self.targets.iter().filter(|t| admissible(t)).map(|t| t.wave).min().unwrap_or(usize::MAX);
        if next <= self.upto_wave(now) {
            return None;
        }
        // Those in flight run on; then the gate is looked at by itself.
        let in_flight = self.targets.iter().any(|t| t.state.in_flight());
        Some(!in_flight && self.open_gate(now, "the next host waits for the verdict on those that changed"))
    }

    /// The last wave that may be admitted without another look.
    fn upto_wave(&mut self, now: Timestamp) -> usize {
        let changed = self.targets.iter().any(|t| t.state == TargetState::Confirmed);
        let standing = self.stage().is_some_and(|(_, stage)| stage.standing) && self.plan.blue_green.is_none();
        if !changed || !standing || self.standing_verdict(now) == Verdict::Pass { usize::MAX } else { self.past_wave }
    }

    /// Every host that may move now has: the gate, the switch, or the end.
    fn settled_so_far(&mut self, now: Timestamp) -> bool {
        // Blue-green: what is judged on the idle sides comes before the switch.
        let before_switch = self.stage().is_some_and(|(_, stage)| stage.standing);
        if self.plan.blue_green.is_some()
            && !before_switch
            && let Some(moved) = self.switching(now)
        {
            return moved;
        }
        // Nothing that came may be left unseen by an end.
        self.look_at_triggers(now, self.book.unjudged_since.is_some());
        if self.state != RolloutState::Running {
            return true;
        }
        if self.stage().is_some() && !self.plan.drill {
            return self.open_gate(now, "its hosts are settled");
        }
        if self.plan.drill {
            self.begin_back(now, "drill: forward and verified, now back".to_string());
            return true;
        }
        self.retire(now);
        let excepted = self.exceptions();
        let kept = self.targets.iter().filter(|t| t.state == TargetState::Confirmed).count();
        let mut reason = format!("{kept} of {} confirmed on {}", self.targets.len(), self.plan.release.id);
        if !excepted.is_empty() {
            reason = format!("{reason}; {excepted}");
        }
        self.append(now, Record::State { to: RolloutState::Completed, reason });
        true
    }

    fn confirm(&mut self, now: Timestamp) {
        let healthy = self.which(|t| {
            t.state == TargetState::Healthy && t.order.as_ref().is_some_and(|o| o.intent == Intent::Forward && o.phase < Phase::Confirm)
        });
        for at in healthy {
            self.order(now, at, Intent::Forward, Phase::Confirm);
        }
    }

    /// Hosts of a component that do not serve: in flight, or broken, or silent
    /// after a swap order. Those without the component before do not count.
    pub(super) fn out_of_service(&self, component_at: usize) -> usize {
        // Traffic stays on the other side meanwhile.
        if self.plan.blue_green.is_some() {
            return 0;
        }
        let out = |t: &&TargetRun| {
            t.component_at == component_at
                && t.origin.previous.is_some()
                && (t.state.in_flight() || t.state == TargetState::RevertFailed || (t.state == TargetState::Unreachable && t.swap_ordered))
        };
        self.targets.iter().filter(out).count()
    }

    /// Deadlines of one target on the way forward.
    fn overdue(&mut self, now: Timestamp, at: usize) {
        let Some(target) = self.targets.get(at) else { return };
        let limits = &self.plan.limits;
        let swap_at = target.order.as_ref().and_then(|o| o.swap_at).unwrap_or(target.since);
        let lost = self.lost(now, target);
        let waiting = lost && limits.on_unreachable == OnUnreachable::Wait;
        let verdict = match target.state {
            TargetState::Pending if target.order.is_some() && !target.checked => match (lost, waiting) {
                (true, false) => Overdue::Lost,
                (true, true) if now.since(self.step_since) >= STAGING_STALL => Overdue::Lost,
                (false, _) if self.up(target) && now.since(self.step_since) >= PREFLIGHT_DEADLINE => {
                    Overdue::Slow("preflight was not answered in time")
                }
                _ => Overdue::No,
            },
            TargetState::Staging => {
                // A host that has not begun may stand in line behind the others.
                let moved =
                    if target.live.staged_bytes == 0 { target.live.moved_at.max(self.staging_moved_at) } else { target.live.moved_at };
                match (lost, waiting) {
                    (true, false) => Overdue::Lost,
                    (true, true) if now.since(target.since) >= STAGING_STALL => Overdue::Lost,
                    (false, _) if now.since(moved) >= STAGING_STALL => Overdue::Slow("staging made no progress for 10 minutes"),
                    _ => Overdue::No,
                }
            }
            TargetState::Swapping | TargetState::Probation => {
                let late = now.since(swap_at) >= plus(limits.healthy_deadline, GRACE);
                match (lost, waiting) {
                    (true, false) => Overdue::Lost,
                    (true, true) if now.since(swap_at) >= plus(plus(limits.healthy_deadline, limits.confirm_within), GRACE) => {
                        Overdue::Lost
                    }
                    (false, _) if late && self.up(target) => Overdue::Slow("was not healthy by its deadline and did not revert"),
                    _ => Overdue::No,
                }
            }
            TargetState::Healthy => {
                let late = now.since(target.since) >= plus(limits.confirm_within, GRACE);
                match (lost, waiting) {
                    (true, false) => Overdue::Lost,
                    (true, true) if late => Overdue::Lost,
                    (false, _) if late && self.up(target) => Overdue::Slow("neither confirmed nor reverted"),
                    _ => Overdue::No,
                }
            }
            TargetState::Reverting if now.since(target.since) >= plus(limits.healthy_deadline, GRACE) => {
                let to = if self.up(target) { TargetState::RevertFailed } else { TargetState::Unreachable };
                let failure = target
                    .failure
                    .clone()
                    .unwrap_or(Failure { cause: Cause::Timeout, message: "the revert did not end by its deadline".to_string() });
                self.host(now, at, to, Some(failure), true, None);
                return;
            }
            _ => Overdue::No,
        };
        match verdict {
            Overdue::No => {}
            Overdue::Lost => self.apply_policy(now, at, "no contact"),
            Overdue::Slow(why) => {
                let failure = Failure { cause: Cause::Timeout, message: why.to_string() };
                if target.swap_ordered {
                    self.call_back(now, at, failure, None);
                } else {
                    self.order(now, at, Intent::Forward, Phase::Cancel);
                    self.host(now, at, TargetState::Failed, Some(failure), true, None);
                }
            }
        }
    }

    fn apply_policy(&mut self, now: Timestamp, at: usize, why: &str) {
        let Some(target) = self.targets.get(at) else { return };
        let swapped = target.swap_ordered;
        let counted = self.plan.limits.on_unreachable != OnUnreachable::Skip;
        let failure = Failure { cause: Cause::Unreachable, message: format!("{why}; it goes back by itself, or when it returns") };
        let failure = if swapped { failure } else { Failure { message: format!("{why}; it was not touched"), ..failure } };
        // What was ordered must not happen later, beside others: it is taken back.
        if swapped && self.past_return().is_none() {
            self.order(now, at, Intent::Back, Phase::Swap);
        } else if !swapped && target.order.is_some() {
            self.order(now, at, Intent::Forward, Phase::Cancel);
        }
        let to = if swapped || counted { TargetState::Unreachable } else { TargetState::Skipped };
        self.host(now, at, to, Some(failure), counted, None);
    }

    /// Takes back one host that was ordered to swap, whatever it says of itself.
    pub(super) fn call_back(&mut self, now: Timestamp, at: usize, failure: Failure, seen: Option<Seen>) -> bool {
        if let Some(task) = self.past_return().filter(|_| !self.person_back) {
            let message = format!("{}; stays as it is: {:?} cannot be taken back", failure.message, task.name);
            return self.host(now, at, TargetState::RevertFailed, Some(Failure { message, ..failure }), true, seen);
        }
        self.host(now, at, TargetState::Reverting, Some(failure), true, seen);
        self.order(now, at, Intent::Back, Phase::Swap);
        true
    }

    /// Journals and sends an order. A way back is a new generation; so is a
    /// forward swap after one that ended.
    pub(super) fn order(&mut self, now: Timestamp, at: usize, intent: Intent, phase: Phase) {
        let Some(target) = self.targets.get(at) else { return };
        let again = intent == Intent::Forward && phase == Phase::Swap && target.state == TargetState::Reverted;
        let generation = if intent == Intent::Back || again { target.newest().next() } else { target.generation };
        let to = match intent {
            Intent::Forward => Some(self.plan.release.clone()),
            Intent::Back => self.way_back(target),
        };
        let record = Record::Ordered {
            host: target.origin.host.clone(),
            component: target.origin.component.clone(),
            generation,
            intent,
            target: to.into(),
            phase,
            integration: target.integration && intent == Intent::Forward,
        };
        self.append(now, record);
    }

    /// What a target's own link goes back to: the idle side to nothing.
    pub(super) fn way_back(&self, target: &TargetRun) -> Option<tidegate_protocol::ReleaseRef> {
        target.origin.previous.clone().filter(|_| self.plan.blue_green.is_none())
    }

    /// No target moves forward any more.
    pub(super) fn all_settled(&self) -> bool {
        self.targets.iter().all(settled)
    }

    fn refuse(&mut self, now: Timestamp, reason: String) {
        self.cancel_rest(now);
        self.append(now, Record::State { to: RolloutState::Refused, reason });
    }

    /// Cancels every target that was never ordered to swap.
    pub(super) fn cancel_rest(&mut self, now: Timestamp) {
        for at in self.which(|t| !t.swap_ordered) {
            let Some(target) = self.targets.get(at) else { continue };
            let (ordered, state) = (target.order.as_ref().is_some_and(|o| o.phase < Phase::Cancel), target.state);
            if ordered {
                self.order(now, at, Intent::Forward, Phase::Cancel);
            }
            if matches!(state, TargetState::Pending | TargetState::Staging | TargetState::Staged) {
                self.host(now, at, TargetState::Skipped, None, false, None);
            }
        }
    }

    /// The budget counts distinct hosts over the whole rollout.
    fn over_budget(&self) -> Option<String> {
        let failed: BTreeSet<_> = self.targets.iter().filter(|t| t.counted).map(|t| &t.origin.host).collect();
        let max = self.plan.limits.max_failed_hosts;
        if failed.len() <= max {
            return None;
        }
        // One budget, but a host that failed and one that is only silent are not the same.
        let silent = |t: &&TargetRun| t.counted && t.failure.as_ref().is_some_and(|f| f.cause == Cause::Unreachable);
        let silent: BTreeSet<_> = self.targets.iter().filter(silent).map(|t| &t.origin.host).collect();
        let apart = if silent.is_empty() { String::new() } else { format!(" ({} of them unreachable)", silent.len()) };
        Some(format!("{} of {} host(s) failed{apart}, {max} allowed: {}", failed.len(), self.contact.len(), self.exceptions()))
    }

    /// Every target that is neither as it was nor confirmed, or that failed, with
    /// its cause.
    pub(super) fn exceptions(&self) -> String {
        let mut named: Vec<String> = Vec::new();
        let all = self.targets.iter().filter(|t| t.failure.is_some());
        let count = all.clone().count();
        for target in all.take(20) {
            if let Some(failure) = &target.failure {
                named.push(format!("{} ({}): {}: {}", target.origin.host, target.origin.component, failure.cause, failure.message));
            }
        }
        if count > named.len() {
            named.push(format!("and {} more", count - named.len()));
        }
        named.join("; ")
    }

    pub(super) fn which(&self, pick: impl Fn(&TargetRun) -> bool) -> Vec<usize> {
        self.targets.iter().enumerate().filter(|(_, t)| pick(t)).map(|(i, _)| i).collect()
    }

    pub(crate) fn up(&self, target: &TargetRun) -> bool {
        self.contact.get(&target.origin.host).is_some_and(|c| c.up)
    }

    pub(super) fn lost(&self, now: Timestamp, target: &TargetRun) -> bool {
        self.contact.get(&target.origin.host).is_none_or(|c| !c.up && now.since(c.since) >= LOST_IN_WAVE)
    }
}

/// May be ordered to swap: staged, or back by itself after a lease that nobody is to
/// blame for. One that was ordered back stays out.
fn admissible(target: &TargetRun) -> bool {
    let forward = || target.order.as_ref().is_some_and(|o| o.intent == Intent::Forward);
    target.state == TargetState::Staged || (target.state == TargetState::Reverted && !target.counted && target.forgiven < 2 && forward())
}

/// Nothing more will happen to it on the way forward.
fn settled(target: &TargetRun) -> bool {
    !admissible(target)
        && matches!(
            target.state,
            TargetState::Confirmed
                | TargetState::Failed
                | TargetState::Reverted
                | TargetState::RevertFailed
                | TargetState::Unreachable
                | TargetState::Skipped
        )
}

pub(super) fn plus(a: tidegate_protocol::Millis, b: tidegate_protocol::Millis) -> tidegate_protocol::Millis {
    tidegate_protocol::Millis(a.0.saturating_add(b.0))
}
