//! Ends of operations: table "Operations".

use tidegate_protocol::report::SmokeStatus;

use super::*;

impl Machine {
    pub(super) fn done(&mut self, id: OpId, outcome: Outcome) {
        // Of a cancelled operation, or of one that an expiry has just ended.
        if self.running.as_ref().is_none_or(|running| running.id != id) {
            return;
        }
        if self.saving.is_some() {
            self.waiting_done = Some((id, outcome));
            return;
        }
        let Some(Running { kind, .. }) = self.running.take() else { return };
        let result = match outcome {
            Outcome::Failed(failure) => Err(Failure { message: bounded(&failure.message), ..failure }),
            Outcome::Smoke { results, failure } => {
                if let Some(swap) = self.record.swap.as_mut() {
                    swap.smoke = results.into_iter().take(limits::SMOKE_TESTS_MAX).collect();
                }
                let failed = self.record.swap.as_ref().and_then(|swap| swap.smoke.iter().find(|test| test.status == SmokeStatus::Fail));
                let failure = failure.or_else(|| failed.map(|test| smoke_failure(format!("{}: {}", test.id, test.message))));
                failure.map_or(Ok(true), Err)
            }
            _ if kind == Kind::Smoke => Err(smoke_failure(String::from("the smoke tests ended without a result"))),
            Outcome::Observed { healthy } => Ok(healthy),
            Outcome::Ok => Ok(true),
        };
        match (self.record.state.clone(), kind) {
            (State::Checking, Kind::Preflight) => self.before_swap(result, State::Checked),
            (State::Staging, Kind::Check) => self.before_swap(result, State::Staged),
            (State::Staging, _) => match (result, self.target()) {
                (Ok(_), Target::Release(target)) => self.run(Kind::Check, Op::Check { target }),
                (result, _) => self.before_swap(result, State::Staged),
            },
            // Whether it was healthy is unknown then: nothing is excused later on.
            (State::Swapping(Step::Drain), Kind::Observe) => self.drained(result.unwrap_or(true)),
            (State::Swapping(Step::Drain), _) => match result {
                Ok(_) => self.begin_flip(),
                Err(failure) => {
                    if let Some(swap) = self.record.swap.as_mut() {
                        swap.failure = Some(failure);
                    }
                    self.go(State::Swapping(Step::Undrain));
                }
            },
            (State::Swapping(Step::Undrain), _) => self.drain_undone(result.err()),
            (State::Swapping(Step::Flip), _) => self.flipped(result.err()),
            (State::Swapping(_), _) => match result {
                Ok(_) => self.go(State::Probation),
                Err(failure) => self.fail(failure),
            },
            (State::Probation, kind) => match (result, kind) {
                (Err(failure), _) => self.fail(failure),
                (Ok(_), Kind::Activate) => self.smoke(),
                (Ok(_), Kind::Smoke) => self.smoked(),
                (Ok(_), _) => self.healthy(),
            },
            (State::Reverting(step, why), kind) => self.back_done(step, why, kind, result.err()),
            // Collect: its failure is the driver's to log.
            _ => {}
        }
    }

    fn before_swap(&mut self, result: Result<bool, Failure>, next: State) {
        match result {
            Ok(_) => self.go(next),
            Err(failure) => self.go(State::Failed(failure)),
        }
    }

    /// The service was not touched; it only takes load again.
    pub(super) fn drain_undone(&mut self, problem: Option<Failure>) {
        let swap = self.record.swap.as_mut();
        let why = swap.and_then(|swap| {
            swap.drained = problem.is_some();
            swap.failure.take()
        });
        let state = match (why, problem) {
            (Some(why), None) => why,
            (Some(why), Some(problem)) => {
                failure(why.cause, format!("{}; and the after hook that undoes the drain failed: {}", why.message, problem.message))
            }
            (None, problem) => problem.unwrap_or_else(|| failure(Cause::Timeout, String::from("the drain was given up"))),
        };
        self.go(State::Failed(state));
    }

    /// A flip is always waited for; whatever came meanwhile counts now.
    fn flipped(&mut self, problem: Option<Failure>) {
        if let Some(why) = problem {
            return self.flip_failed(why);
        }
        if let Some(why) = self.doomed.take() {
            return self.fail(why);
        }
        let supersedes = self.record.pending.take_if(|word| {
            let back = word.intent == Intent::Back && word.phase >= Phase::Swap;
            back || self.record.assignment.as_ref().is_none_or(|assignment| assignment.reversible)
        });
        if let Some(word) = supersedes {
            return self.supersede(word);
        }
        if self.expired() {
            return self.fail(self.too_slow());
        }
        let mark = self.mark();
        if let Some(swap) = self.record.swap.as_mut() {
            swap.mark = Some(mark);
        }
        self.go(State::Swapping(Step::Activate));
    }

    fn flip_failed(&mut self, why: Failure) {
        self.doomed = None;
        // An ordered way back that waits is the better way back.
        match self.record.pending.take_if(|word| word.intent == Intent::Back && word.phase >= Phase::Swap) {
            Some(word) => self.adopt(word),
            // The first try may have moved the link all the same, and a boot since
            // then started what it pointed at.
            None if reversible(&self.record) => {
                let booted = self.record.swap.as_ref().is_some_and(|swap| swap.reboots > 0);
                self.begin_revert(why, booted);
            }
            None => self.give_up(why, false),
        }
    }
}

fn smoke_failure(message: String) -> Failure {
    failure(Cause::Smoke, message)
}
