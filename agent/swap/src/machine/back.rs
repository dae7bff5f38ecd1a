//! The way back: by itself, or ordered (`Intent::Back`).

use super::*;

impl Machine {
    /// The swap failed or ran out of time after the flip. No flip runs.
    pub(super) fn fail(&mut self, why: Failure) {
        if reversible(&self.record) {
            self.begin_revert(why, true);
        } else {
            self.give_up(why, true);
        }
    }

    /// Past a point of no return: nothing is touched, a person must look.
    pub(super) fn give_up(&mut self, why: Failure, flipped: bool) {
        if flipped {
            self.stand_on_target();
        }
        if let Some(swap) = self.record.swap.as_mut() {
            swap.lease = None;
        }
        let message = format!("past the point of no return, so nothing was touched: {}", why.message);
        self.go(State::RevertFailed(failure(why.cause, message)));
    }

    /// `restart`: the service may run the new release.
    pub(super) fn begin_revert(&mut self, why: Failure, restart: bool) {
        self.restart = None;
        self.doomed = None;
        let lease = self.lease(self.healthy_deadline());
        if let Some(swap) = self.record.swap.as_mut() {
            swap.lease = Some(lease);
            swap.restart = restart;
        }
        self.go(State::Reverting(Step::Flip, Some(why)));
    }

    /// Adopts an ordered way back, whatever the present generation does. No flip
    /// runs.
    pub(super) fn begin_back(&mut self, word: Assignment) {
        self.restart = None;
        self.doomed = None;
        let old = &self.record;
        let unfinished = old.state.unconfirmed() || matches!(old.state, State::RevertFailed(_));
        let on_the_way = unfinished || matches!(old.state, State::Swapping(_));
        let standing = Target::from(old.standing.clone());
        let inherited = old.inherited().filter(|swap| swap.from == word.target);
        // A drain that could not be undone is undone now, whatever came in between.
        let drained = old.swap.as_ref().is_some_and(|swap| swap.drained);
        let away = match (&old.state, &old.assignment) {
            (State::RevertFailed(_), _) if self.is_back() => old.way_back().1,
            (_, Some(assignment)) if on_the_way || drained => assignment.target.clone(),
            _ => standing.clone(),
        };
        let swap = Swap {
            was_healthy: inherited.is_none_or(|swap| swap.was_healthy),
            drained,
            lease: Some(self.lease(word.healthy_deadline)),
            restart: unfinished || standing != word.target,
            ..Swap::new(away)
        };
        self.record.pending = None;
        self.record.swap = Some(swap);
        self.record.assignment = Some(word);
        self.go(State::Reverting(Step::Fetch, None));
    }

    pub(super) fn back_done(&mut self, step: Step, why: Option<Failure>, kind: Kind, problem: Option<Failure>) {
        let to_release = self.record.way_back().0.release().is_some();
        match (step, problem) {
            (Step::Fetch, None) => self.go(State::Reverting(Step::Flip, why)),
            (Step::Flip | Step::Drain, None) => {
                let mark = self.mark();
                if let Some(swap) = self.record.swap.as_mut() {
                    swap.mark = Some(mark);
                }
                self.go(State::Reverting(Step::Activate, why));
            }
            (Step::Activate, None) if to_release => self.go(State::Reverting(Step::Smoke, why)),
            // After recovery the proof comes first.
            (Step::Smoke, None) if kind == Kind::Activate => self.smoke(),
            (Step::Activate | Step::Smoke, None) => self.back_up(why),
            (Step::Undrain, None) => self.reverted(),
            (Step::Activate | Step::Smoke, Some(problem)) => match self.record.swap.as_mut() {
                // As sick as it was: that is what going back means.
                Some(swap) if !swap.was_healthy => {
                    swap.unhealthy_again = true;
                    self.back_up(why);
                }
                _ => self.revert_failed(problem),
            },
            (_, Some(problem)) => self.revert_failed(problem),
        }
    }

    /// It runs again; now it may take load.
    fn back_up(&mut self, why: Option<Failure>) {
        if self.record.swap.as_ref().is_some_and(|swap| swap.drained) {
            self.go(State::Reverting(Step::Undrain, why));
        } else {
            self.reverted();
        }
    }

    pub(super) fn reverted(&mut self) {
        let why = self.record.state.failure().cloned();
        if self.is_back() {
            self.stand_on_target();
        }
        let was_unhealthy = self.record.swap.as_mut().is_some_and(|swap| {
            swap.drained = false;
            swap.lease = None;
            swap.unhealthy_again
        });
        self.go(State::Reverted { failure: why, was_unhealthy });
    }

    pub(super) fn revert_failed(&mut self, problem: Failure) {
        // Once flipped, the link says where the host is; what follows starts there.
        let flipped = matches!(self.record.state, State::Reverting(Step::Activate | Step::Smoke | Step::Undrain, _));
        if self.is_back() && flipped {
            self.stand_on_target();
        }
        if let Some(swap) = self.record.swap.as_mut() {
            swap.lease = None;
        }
        let message = match self.record.state.failure() {
            Some(why) => format!("{} (on the way back because: {})", problem.message, why.message),
            None => problem.message,
        };
        self.go(State::RevertFailed(failure(problem.cause, message)));
    }
}
