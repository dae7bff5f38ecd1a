//! Going on after a crash: table "Crash points". A function of the record, the
//! boot and the time; nothing else is asked.

use super::*;

impl Machine {
    pub(super) fn resume(&mut self) {
        let same_boot = |boot_id: Option<&BootId>| boot_id == Some(&self.boot_id);
        let swap = self.record.swap.as_ref();
        let mark = swap.and_then(|swap| swap.mark.clone()).filter(|mark| same_boot(Some(&mark.boot_id)));
        let here = same_boot(swap.and_then(|swap| swap.lease.as_ref()).map(|lease| &lease.boot_id));
        match &self.record.state {
            State::Checking | State::Staging | State::Swapping(Step::Drain | Step::Undrain | Step::Fetch | Step::Smoke) => self.enter(),
            State::Reverting(step, _) => {
                let restarts = self.record.swap.as_ref().is_none_or(|swap| swap.restart);
                let proven = Restart::UnlessProven(mark.filter(|_| restarts));
                self.restart = matches!(step, Step::Activate | Step::Smoke).then_some(proven);
                // However long the agent was away, the way back is tried.
                let lease = self.lease(self.healthy_deadline());
                if let Some(swap) = self.record.swap.as_mut() {
                    swap.lease = Some(lease);
                }
                self.save(Then::Enter);
            }
            State::Swapping(_) | State::Probation | State::Healthy => {
                let goes = |word: &mut Assignment| reversible_or_back(&self.record.assignment, word);
                if let Some(word) = self.record.pending.take_if(goes) {
                    self.supersede(word);
                } else if here || (self.record.state == State::Healthy && mark.is_some()) {
                    self.resume_same_boot(mark);
                } else {
                    self.resume_other_boot();
                }
            }
            _ => self.advance(),
        }
    }

    fn resume_same_boot(&mut self, mark: Option<Mark>) {
        let state = &self.record.state;
        // An irreversible one has no lease once healthy, and a flip that began must
        // be finished before it can be left as it is.
        let exempt = !reversible(&self.record) && matches!(state, State::Healthy | State::Swapping(Step::Flip));
        if self.expired() && !exempt {
            let why = if *state == State::Healthy { time::lease_expired() } else { self.too_slow() };
            return self.fail(why);
        }
        // Before Activate was durable no restart was asked: what looks right there
        // may have started from the old tree.
        self.restart = matches!(state, State::Swapping(Step::Activate) | State::Probation).then_some(Restart::UnlessProven(mark));
        self.enter();
    }

    fn resume_other_boot(&mut self) {
        let reversible = reversible(&self.record);
        let reboots = self.record.swap.as_ref().map_or(0, |swap| swap.reboots).saturating_add(1);
        let lease = self.lease(self.healthy_deadline());
        if let Some(swap) = self.record.swap.as_mut() {
            swap.reboots = reboots;
            swap.lease = Some(lease);
        }
        if reboots >= 2 && reversible {
            return self.fail(failure(Cause::CrashLoop, String::from("the host rebooted twice before the release was confirmed")));
        }
        let state = match self.record.state {
            State::Healthy => State::Probation,
            ref state => state.clone(),
        };
        self.restart = (state != State::Swapping(Step::Flip)).then_some(Restart::UnlessProven(None));
        self.go(state);
    }
}

fn reversible_or_back(present: &Option<Assignment>, word: &Assignment) -> bool {
    let back = word.intent == Intent::Back && word.phase >= Phase::Swap;
    back || present.as_ref().is_none_or(|assignment| assignment.reversible)
}
