//! What a host's report means for its target. Outcomes are written from
//! observations, never from orders.

use alloc::format;
use alloc::string::ToString;

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, ComponentReport, Intent, Phase, Progress, ReleaseRef, Timestamp};

use super::{Rollout, TargetRun};
use crate::record::{Origin, Record, Seen, TargetState};

impl Seen {
    fn of(report: &ComponentReport) -> Self {
        Self {
            release: report.current.clone(),
            running_sha256: report.running.as_ref().and_then(|r| r.sha256),
            tree_sha256: report.tree_sha256,
            main_pid_started_at: report.running.as_ref().map(|r| r.started_at_unix_ms),
            was_unhealthy: report.was_unhealthy,
            smoke: report.smoke.clone(),
        }
    }
}

/// Whether a host runs exactly what it ran before the rollout (I11); if not, why.
fn not_restored(target: &TargetRun, way_back: Option<&ReleaseRef>, seen: &Seen) -> Option<Failure> {
    let origin = &target.origin;
    let name = |r: Option<&ReleaseRef>| r.map_or_else(|| "nothing".to_string(), |r| r.id.to_string());
    let differs = |before: Option<tidegate_protocol::Digest>, now: Option<tidegate_protocol::Digest>| before.is_some() && before != now;
    let message = if seen.release.as_ref() != way_back {
        format!("says it is back, but is on {} and not on {}", name(seen.release.as_ref()), name(way_back))
    } else if way_back.is_none() {
        return None;
    } else if differs(origin.tree_sha256, seen.tree_sha256) {
        "says it is back, but its tree is not the one of before".to_string()
    } else if !seen.was_unhealthy && differs(origin.running_sha256, seen.running_sha256) {
        "says it is back, but another executable runs than before".to_string()
    } else {
        return None;
    };
    Some(Failure { cause: Cause::StartFailed, message })
}

impl Rollout {
    /// True if something changed that may need a decision.
    pub(super) fn observe(&mut self, now: Timestamp, at: usize, report: &ComponentReport) -> bool {
        let Some(target) = self.targets.get_mut(at) else { return false };
        let live = &mut target.live;
        if live.staged_bytes != report.staged_bytes || live.progress != Some(report.progress) {
            live.moved_at = now;
            self.staging_moved_at = now;
        }
        live.progress = Some(report.progress);
        live.staged_bytes = report.staged_bytes;
        live.cpu_permille = report.cpu_permille;
        live.memory_bytes = report.memory_bytes;
        let seen = Seen::of(report);
        live.seen = Some(seen.clone());
        if self.is_live() {
            self.numbers(now, at, report);
            if self.keep_vigil(now, at, report) {
                return true;
            }
        }
        let Some(target) = self.targets.get(at) else { return false };

        if report.generation > target.generation {
            return self.is_live() && self.outran(now, at, report);
        }
        let Some(order) = target.order.clone().filter(|_| report.generation == target.generation) else { return false };
        match order.intent {
            Intent::Forward => self.observe_forward(now, at, report, seen, order.phase),
            Intent::Back => self.observe_back(now, at, report, seen),
        }
    }

    fn observe_forward(&mut self, now: Timestamp, at: usize, report: &ComponentReport, seen: Seen, phase: Phase) -> bool {
        use TargetState as S;
        let Some(target) = self.targets.get_mut(at) else { return false };
        let state = target.state;
        let failure =
            || report.failure.clone().or_else(|| Some(Failure { cause: Cause::Timeout, message: "the host gave no reason".to_string() }));
        match report.progress {
            Progress::Checked if state == S::Pending && !target.checked => {
                target.checked = true;
                self.found(now, at, &seen);
                true
            }
            Progress::Staged if matches!(state, S::Pending | S::Staging) && phase >= Phase::Stage => {
                self.host(now, at, S::Staged, None, false, Some(seen))
            }
            Progress::Probation if matches!(state, S::Swapping | S::Unreachable) => self.host(now, at, S::Probation, None, false, None),
            Progress::Healthy if matches!(state, S::Swapping | S::Probation | S::Unreachable) => match self.not_the_target(at, &seen) {
                None => self.host(now, at, S::Healthy, None, false, Some(seen)),
                Some(failure) => self.call_back(now, at, failure, Some(seen)),
            },
            Progress::Confirmed if phase == Phase::Confirm && matches!(state, S::Healthy | S::Unreachable) => {
                self.host(now, at, S::Confirmed, None, false, Some(seen));
                // The next report may be seconds away: restarts until then count too.
                if let Some(target) = self.targets.get_mut(at) {
                    target.live.vigil.restarts = Some(report.restarts);
                }
                true
            }
            // Before the first flip: the service was not touched.
            Progress::Failed if !matches!(state, S::Failed | S::Skipped) => self.host(now, at, S::Failed, failure(), true, Some(seen)),
            Progress::Reverting if matches!(state, S::Swapping | S::Probation | S::Healthy | S::Unreachable) => {
                let counted = !self.forgivable(at, report.failure.as_ref());
                self.host(now, at, S::Reverting, failure(), counted, None)
            }
            Progress::Reverted if !matches!(state, S::Reverted | S::RevertFailed | S::Confirmed) => {
                let counted = !self.forgivable(at, report.failure.as_ref());
                let wrong = self.targets.get(at).and_then(|t| not_restored(t, self.way_back(t).as_ref(), &seen));
                match wrong {
                    None => self.host(now, at, S::Reverted, failure(), counted, Some(seen)),
                    Some(wrong) => self.host(now, at, S::RevertFailed, Some(wrong), true, Some(seen)),
                }
            }
            Progress::RevertFailed if state != S::RevertFailed => self.host(now, at, S::RevertFailed, failure(), true, Some(seen)),
            _ => false,
        }
    }

    fn observe_back(&mut self, now: Timestamp, at: usize, report: &ComponentReport, seen: Seen) -> bool {
        use TargetState as S;
        let Some(target) = self.targets.get(at) else { return false };
        let settled = matches!(target.state, S::Reverted | S::RevertFailed);
        let exception = matches!(target.state, S::RevertFailed | S::Unreachable);
        let healed = exception && !self.is_live();
        let changed = match report.progress {
            Progress::Reverted if target.state != S::Reverted => match not_restored(target, self.way_back(target).as_ref(), &seen) {
                None => {
                    let release = seen.release.clone();
                    let (host, component) = (target.origin.host.clone(), target.origin.component.clone());
                    let changed = self.host(now, at, S::Reverted, None, false, Some(seen));
                    if healed {
                        self.append(now, Record::Healed { host, component, release });
                    }
                    changed
                }
                Some(_) if settled => false,
                Some(failure) => self.host(now, at, S::RevertFailed, Some(failure), false, Some(seen)),
            },
            Progress::RevertFailed | Progress::Failed if !settled => {
                self.host(now, at, S::RevertFailed, report.failure.clone(), false, Some(seen))
            }
            _ => false,
        };
        changed && self.is_live()
    }

    /// The way back is what the host's preflight found, not what the controller
    /// remembered when the rollout started.
    fn found(&mut self, now: Timestamp, at: usize, seen: &Seen) {
        let Some(target) = self.targets.get(at) else { return };
        // A host that cannot read its own link says nothing: that must not turn
        // the way back into a removal.
        if seen.release.is_none() || self.plan.blue_green.is_some() {
            return;
        }
        let found = Origin {
            previous: seen.release.clone(),
            running_sha256: seen.running_sha256,
            tree_sha256: seen.tree_sha256,
            ..target.origin.clone()
        };
        if found != target.origin {
            self.append(now, Record::Found { origin: found });
        }
    }

    /// A host that says healthy while it runs something else.
    fn not_the_target(&self, at: usize, seen: &Seen) -> Option<Failure> {
        let target = self.targets.get(at)?;
        let component = self.plan.components.get(target.component_at)?;
        let message = if seen.release.as_ref() != Some(&self.plan.release) {
            "says healthy, but is on another release"
        } else if seen.tree_sha256 != Some(component.tree_sha256) {
            "says healthy, but its tree is not the release's"
        } else {
            return None;
        };
        Some(Failure { cause: Cause::StartFailed, message: message.to_string() })
    }

    /// The host obeyed somebody else: another controller, or this one before it
    /// was restored from a backup.
    fn outran(&mut self, now: Timestamp, at: usize, report: &ComponentReport) -> bool {
        let Some(target) = self.targets.get(at) else { return false };
        if matches!(target.state, TargetState::Failed | TargetState::RevertFailed) {
            return false;
        }
        let to = if target.swap_ordered { TargetState::RevertFailed } else { TargetState::Failed };
        let message = format!(
            "has seen generation {}, above {}: another controller, or this one from before a restore, gave it orders",
            report.generation, target.generation
        );
        self.host(now, at, to, Some(Failure { cause: Cause::Policy, message }), true, None)
    }

    /// Rule 4: a lease that ran out while the controller was away does not count.
    fn forgivable(&self, at: usize, failure: Option<&Failure>) -> bool {
        let Some(target) = self.targets.get(at) else { return false };
        let swap_at = target.order.as_ref().and_then(|o| o.swap_at);
        let away = self.returned_at.zip(swap_at).is_some_and(|(returned, swap)| returned >= swap);
        away && target.forgiven < 2 && failure.is_some_and(|f| f.cause == Cause::LeaseExpired)
    }

    /// Journals a host's new state; always true.
    pub(super) fn host(
        &mut self,
        now: Timestamp,
        at: usize,
        to: TargetState,
        failure: Option<Failure>,
        counted: bool,
        seen: Option<Seen>,
    ) -> bool {
        let Some(target) = self.targets.get(at) else { return false };
        let record = Record::Host {
            host: target.origin.host.clone(),
            component: target.origin.component.clone(),
            generation: target.generation,
            to,
            failure,
            counted,
            seen,
        };
        self.append(now, record);
        true
    }
}
