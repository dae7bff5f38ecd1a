//! Deadlines: table "Time".

use super::*;

impl Machine {
    /// When the present state runs out; none while a flip runs, which is waited
    /// for.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let counts = match self.record.state {
            State::Swapping(Step::Activate) | State::Probation => true,
            State::Healthy => reversible(&self.record),
            State::Reverting(step, _) => !matches!(step, Step::Flip | Step::Drain),
            _ => false,
        };
        self.lease_deadline().filter(|_| counts)
    }

    fn lease_deadline(&self) -> Option<Timestamp> {
        let lease = self.record.swap.as_ref()?.lease.as_ref()?;
        (lease.boot_id == self.boot_id).then_some(lease.deadline)
    }

    /// Of the lease, whatever the state.
    pub(super) fn expired(&self) -> bool {
        self.lease_deadline().is_some_and(|deadline| self.now >= deadline)
    }

    pub(super) fn look_at_deadline(&mut self) {
        if self.deadline().is_none_or(|deadline| self.now < deadline) {
            return;
        }
        self.stop();
        match self.record.state {
            State::Healthy => self.fail(lease_expired()),
            State::Reverting(..) => {
                self.revert_failed(failure(Cause::Timeout, String::from("the way back took longer than healthy_deadline")));
            }
            _ => self.fail(self.too_slow()),
        }
    }

    pub(super) fn too_slow(&self) -> Failure {
        failure(Cause::Timeout, format!("not healthy within healthy_deadline ({})", self.healthy_deadline()))
    }
}

pub(super) fn lease_expired() -> Failure {
    failure(Cause::LeaseExpired, String::from("healthy, but no confirmation came within confirm_within"))
}
