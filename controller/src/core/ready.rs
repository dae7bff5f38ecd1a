//! Rollouts that wait to begin: the checklist looked at again and again, and the
//! openings of windows, which every live rollout goes by.

use tidegate_protocol::{Digest, Millis, Release, RolloutId, Timestamp};
use tidegate_rollout::readiness::rows;
use tidegate_rollout::{Event, Rollout};

use super::ToCheck;
use super::state::State;
use crate::operator::checks::Checks;
use crate::windows;

/// Without a change that matters, a checklist is looked at so often.
const LOOK_EVERY: Millis = Millis::from_secs(5);
/// Openings told at once.
const OPENINGS: usize = 8;
/// Windows that never open again are looked for so often.
const BARREN_EVERY: Millis = Millis::from_secs(3_600);

/// What is looked at of a rollout that waits to begin.
#[derive(Debug)]
pub(super) struct Waiting {
    manifest: Release,
    checks: Checks,
    looked_at: Timestamp,
}

impl Waiting {
    pub(super) const fn new(manifest: Release, checks: Checks) -> Self {
        Self { manifest, checks, looked_at: Timestamp(0) }
    }
}

impl State {
    /// Something changed that a checklist may depend on.
    pub(super) const fn recheck(&mut self) {
        self.changed = true;
    }

    /// Looks at what waits to begin, and at windows.
    pub(super) fn look_at_waiting(&mut self, now: Timestamp) {
        // What was found before a restart stands until the hosts are back.
        if self.registry.gathering(now) {
            self.look_at_windows(now);
            return;
        }
        let changed = std::mem::take(&mut self.changed);
        let due = |waiting: &Waiting| changed || now.since(waiting.looked_at) >= LOOK_EVERY;
        let ids: Vec<RolloutId> = self
            .alive()
            .filter(|(_, e)| e.rollout.waits_to_begin() && e.waiting.as_ref().is_some_and(due))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            let Some(entry) = self.rollouts.get(&id) else { continue };
            let Some(waiting) = &entry.waiting else { continue };
            let plan = entry.rollout.plan();
            let facts = self.gathered(now, plan, &waiting.checks, Some(&id));
            let rows = rows(plan, &waiting.manifest, &facts, now);
            if let Some(waiting) = self.rollouts.get_mut(&id).and_then(|e| e.waiting.as_mut()) {
                waiting.looked_at = now;
            }
            self.tell(now, &id, Event::Readiness(&rows));
        }
        self.look_at_windows(now);
    }

    /// Tells those whose openings are all over of the next ones.
    fn look_at_windows(&mut self, now: Timestamp) {
        let over =
            |rollout: &Rollout| !rollout.plan().process.windows.is_empty() && rollout.given().openings.iter().all(|o| o.closes <= now);
        let ids: Vec<RolloutId> = self.alive().filter(|(_, e)| now >= e.windows_at && over(&e.rollout)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(entry) = self.rollouts.get_mut(&id) else { continue };
            let openings = windows::openings(&entry.rollout.plan().process.windows, now, OPENINGS);
            if openings.is_empty() {
                entry.windows_at = now + BARREN_EVERY;
            } else {
                self.tell(now, &id, Event::Windows(&openings));
            }
        }
    }

    /// What was checked outside of the core, for one that waits to begin.
    pub(super) fn checked(&mut self, id: &RolloutId, manifest: Release, checks: Checks) {
        if let Some(entry) = self.rollouts.get_mut(id).filter(|e| e.rollout.waits_to_begin()) {
            entry.waiting = Some(Waiting::new(manifest, checks));
        }
    }

    /// All that is to be checked outside of the core, if it changed.
    pub(super) fn checks_wanted(&mut self) -> Option<Vec<ToCheck>> {
        let of = |rollout: &Rollout| {
            let plan = rollout.plan();
            let manifest: Digest = plan.release.manifest;
            ToCheck { rollout: rollout.id().clone(), manifest, dashboards: plan.process.dashboards.clone() }
        };
        let all: Vec<ToCheck> = self.alive().filter(|(_, e)| e.rollout.waits_to_begin()).map(|(_, e)| of(&e.rollout)).collect();
        if all == self.to_check {
            return None;
        }
        for entry in self.rollouts.values_mut().filter(|e| e.waiting.is_some() && !e.rollout.waits_to_begin()) {
            entry.waiting = None;
        }
        self.to_check.clone_from(&all);
        Some(all)
    }
}
