//! The effect of each state, once it is durable: the operation it runs, or the next
//! state if what it waits for is there.

use super::*;

impl Machine {
    pub(super) fn enter(&mut self) {
        let (to, away) = self.record.way_back();
        let target = self.record.assignment.as_ref().map_or(Target::Absent, |assignment| assignment.target.clone());
        match &self.record.state {
            State::Idle | State::Checked | State::Staged | State::Cancelled | State::Failed(_) => self.advance(),
            State::Healthy | State::Reverted { .. } | State::RevertFailed(_) => self.advance(),
            State::Confirmed => {
                let keep = self.keep();
                self.run(Kind::Collect, Op::Collect { keep });
            }
            State::Checking => match target {
                Target::Absent => self.go(State::Checked),
                Target::Release(target) => {
                    let accept_drift = self.record.assignment.as_ref().is_some_and(|assignment| assignment.accept_drift);
                    let current = self.record.standing.clone();
                    self.run(Kind::Preflight, Op::Preflight { target, current, accept_drift });
                }
            },
            State::Staging => match target {
                Target::Absent => self.go(State::Staged),
                Target::Release(target) => self.run(Kind::Stage, Op::Stage { target }),
            },
            State::Swapping(Step::Drain) => self.enter_drain(target),
            State::Swapping(Step::Undrain) => match target {
                Target::Absent => self.drain_undone(None),
                Target::Release(target) => self.run(Kind::After, Op::After { target }),
            },
            State::Swapping(Step::Flip) => self.run(Kind::Flip, Op::Flip { to: target }),
            State::Swapping(_) => {
                let restart = self.restart.take().unwrap_or(Restart::Always);
                self.run(Kind::Activate, Op::Activate { to: target, from: to, restart });
            }
            State::Probation => match self.restart.take() {
                Some(restart) => self.run(Kind::Activate, Op::Activate { to: target, from: to, restart }),
                None => self.smoke(),
            },
            State::Reverting(Step::Fetch, failure) => {
                let failure = failure.clone();
                match to {
                    Target::Absent => self.go(State::Reverting(Step::Flip, failure)),
                    Target::Release(target) => self.run(Kind::Stage, Op::Stage { target }),
                }
            }
            State::Reverting(Step::Flip | Step::Drain, _) => self.run(Kind::Flip, Op::Flip { to }),
            State::Reverting(Step::Activate, _) => {
                let always = self.record.swap.as_ref().is_none_or(|swap| swap.restart);
                let usual = if always { Restart::Always } else { Restart::UnlessProven(None) };
                let restart = self.restart.take().unwrap_or(usual);
                self.run(Kind::Activate, Op::Activate { to, from: away, restart });
            }
            State::Reverting(Step::Smoke, _) => match self.restart.take() {
                Some(restart) => self.run(Kind::Activate, Op::Activate { to, from: away, restart }),
                None => self.smoke(),
            },
            State::Reverting(Step::Undrain, _) => match away {
                Target::Absent => self.reverted(),
                Target::Release(target) => self.run(Kind::After, Op::After { target }),
            },
        }
    }

    /// A state that waits: goes on if the phase allows more, or if a newer
    /// generation waits for this one's end.
    pub(super) fn advance(&mut self) {
        let phase = self.phase();
        let at_rest = self.record.state.at_rest();
        if at_rest && let Some(word) = self.record.pending.take() {
            return self.adopt(word);
        }
        match self.record.state {
            State::Checked if phase >= Phase::Stage => self.go(State::Staging),
            State::Staged if phase >= Phase::Swap => self.begin_swap(),
            State::Healthy if self.record.pending.is_some() => {
                // Only past a point of no return does a newer one wait until here.
                let Some(word) = self.record.pending.take() else { return };
                self.stand_on_target();
                self.adopt(word);
            }
            State::Healthy if phase == Phase::Confirm => self.confirm(),
            _ => {}
        }
    }

    fn begin_swap(&mut self) {
        self.record.swap = Some(Swap::new(self.record.standing.clone().into()));
        self.go(State::Swapping(Step::Drain));
    }

    fn enter_drain(&mut self, target: Target) {
        let drained = self.record.swap.as_ref().is_some_and(|swap| swap.drained);
        match (target, self.record.standing.clone()) {
            (Target::Release(target), _) if drained => self.run(Kind::Before, Op::Before { target }),
            (_, Some(current)) if !drained => self.run(Kind::Observe, Op::Observe { current: Some(current) }),
            // Nothing ran before: going back to that is never a failure of health.
            _ => self.drained(true),
        }
    }

    pub(super) fn drained(&mut self, was_healthy: bool) {
        if let Some(swap) = self.record.swap.as_mut() {
            swap.was_healthy = was_healthy;
            swap.drained = true;
        }
        self.go(State::Swapping(Step::Drain));
    }

    pub(super) fn begin_flip(&mut self) {
        let (mark, lease) = (self.mark(), self.lease(self.healthy_deadline()));
        if let Some(swap) = self.record.swap.as_mut() {
            swap.mark = Some(mark);
            swap.lease = Some(lease);
        }
        self.record.state = State::Swapping(Step::Flip);
        note(&mut self.record);
        if let Some(entry) = self.record.history.last_mut() {
            entry.swaps = entry.swaps.saturating_add(1);
        }
        self.save(Then::Enter);
    }

    pub(super) fn smoke(&mut self) {
        let back = matches!(self.record.state, State::Reverting(..));
        let target = if back { self.record.way_back().0 } else { self.target() };
        let Target::Release(target) = target else { return };
        let integration = !back && self.record.assignment.as_ref().is_some_and(|assignment| assignment.integration);
        let since = self.record.swap.as_ref().and_then(|swap| swap.mark.clone()).unwrap_or_else(|| self.mark());
        self.run(Kind::Smoke, Op::Smoke { target, integration, since });
    }

    /// Smoke tests passed: the drain is undone, then it is healthy.
    pub(super) fn smoked(&mut self) {
        let drained = self.record.swap.as_ref().is_some_and(|swap| swap.drained);
        match self.target() {
            Target::Release(target) if drained => self.run(Kind::After, Op::After { target }),
            _ => self.healthy(),
        }
    }

    pub(super) fn healthy(&mut self) {
        let confirm_within = self.record.assignment.as_ref().map_or(Millis(0), |assignment| assignment.confirm_within);
        let lease = reversible(&self.record).then(|| self.lease(confirm_within));
        if let Some(swap) = self.record.swap.as_mut() {
            swap.drained = false;
            swap.lease = lease;
        }
        self.go(State::Healthy);
    }

    pub(super) fn confirm(&mut self) {
        self.stand_on_target();
        if let Some(swap) = self.record.swap.as_mut() {
            swap.lease = None;
        }
        self.go(State::Confirmed);
    }

    /// From now on this is what the host goes back to.
    pub(super) fn stand_on_target(&mut self) {
        let target = self.target().release().cloned();
        if self.record.standing != target {
            self.record.previous = self.record.standing.take();
            self.record.standing = target;
        }
    }

    pub(super) fn target(&self) -> Target {
        self.record.assignment.as_ref().map_or(Target::Absent, |assignment| assignment.target.clone())
    }
}
