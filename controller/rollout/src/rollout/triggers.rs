//! Triggers: armed from the first swap to the end, paused included.

use alloc::format;
use alloc::string::{String, ToString};

use tidegate_protocol::{Millis, Timestamp};

use super::{Investigation, Rollout};
use crate::gate::Trigger;
use crate::gate::judge::{Exhibit, Trip, trips};
use crate::record::{InvestigationStep, Record, RolloutState};
use crate::spec::TriggerAction;

/// Pooled values of a large fleet are not summed up for every message of it: so
/// long between two looks, and more with many changed hosts.
const LOOK_GAP: Millis = Millis(200);

impl Rollout {
    /// Looks at every trigger, unless that was done just now and more messages of
    /// the same kind can wait for the next tick.
    pub(super) fn look_at_triggers(&mut self, now: Timestamp, at_once: bool) {
        let back = self.state == RolloutState::RollingBack;
        // On the way back only an emergency makes a difference: the others at once too.
        let armed = self.is_live() && self.changed_anything() && !(back && self.emergency) && !self.stands();
        let gap = Millis(LOOK_GAP.0.max(self.confirmations / 4));
        if !armed || (!at_once && now.since(self.triggers_at) < gap) {
            return;
        }
        self.triggers_at = now;
        // The first look after an investigation goes back to its beginning.
        let over = self.investigation.is_none().then(|| self.investigated_at.take()).flatten();
        let arrived = self.book.unjudged_since.take().unwrap_or(now);
        for index in 0..self.plan.gating.triggers.len() {
            let Some(trigger) = self.plan.gating.triggers.get(index) else { continue };
            if back && trigger.action != TriggerAction::Emergency {
                continue;
            }
            let investigated = self.investigation.as_ref().is_some_and(|i| i.trigger == index);
            let investigates = trigger.action == TriggerAction::Investigate;
            if investigates && (investigated || self.investigation.is_some()) {
                continue;
            }
            let from = self.cleared(index);
            // What happened while another one was being investigated is looked at after it.
            let upto = over.filter(|_| investigates).unwrap_or(now);
            let from = from.max(Timestamp(upto.0.saturating_sub(self.plan.gating.analysis.window.0)));
            let Some(trip) = self.tripped(now, trigger, from, false) else { continue };
            let (when, action, after) = (trigger.when.to_string(), trigger.action, trigger.after);
            let record = Record::Tripped {
                trigger: Some(index),
                when: when.clone(),
                action,
                observed: Some(trip.observed),
                limit: Some(trip.limit),
                samples: trip.samples,
                host: trip.host.clone(),
                reason: trip.reason.clone(),
                after_ms: now.since(arrived).0,
            };
            self.append(now, record);
            if !investigates {
                self.begin_back(now, format!("trigger {when}: {}", trip.reason));
                return;
            }
            let reason = format!("trigger {when}: {}; `ack` gives {after} more, else it goes back in {after}", trip.reason);
            self.append(now, Record::State { to: RolloutState::Paused, reason });
        }
    }

    /// A trigger looks no further back than to where it was cleared. After a restart
    /// hosts say again all that they counted, of before too: then it begins behind
    /// their first words.
    fn cleared(&self, index: usize) -> Timestamp {
        let from = self.trigger_from.get(index).copied().unwrap_or_default();
        match self.returned_at {
            Some(back) if from.0 > 0 && back >= from => back + self.plan.gating.analysis.interval + self.plan.gating.analysis.interval,
            _ => from,
        }
    }

    /// Whether a trigger holds over the time since `from`; `fresh`: over the latest
    /// samples alone, as few as decide.
    fn tripped(&self, now: Timestamp, trigger: &Trigger, from: Timestamp, fresh: bool) -> Option<Trip> {
        trigger.tests.iter().find_map(|test| {
            let metric = self.plan.gating.metrics.get(&test.metric)?;
            let mut exhibit = self.exhibit(now, &test.metric, from, Some(test.min_samples));
            if fresh {
                exhibit = latest(exhibit);
            }
            trips(test, metric, &exhibit)
        })
    }

    /// An investigation ends by its timer, or once somebody looked and the
    /// condition is gone.
    pub(super) fn look_at_investigation(&mut self, now: Timestamp) {
        let Some(open) = self.investigation.clone() else { return };
        let Some(trigger) = self.plan.gating.triggers.get(open.trigger) else { return };
        let when = trigger.when.to_string();
        if now >= open.until {
            let who = if open.acked { "acknowledged, but not ended" } else { "nobody acknowledged it" };
            self.begin_back(now, format!("trigger {when} was investigated for {} without an end ({who})", now.since(open.since)));
            return;
        }
        // Something must have been seen since that shows it.
        let measured = !trigger.tests.is_empty();
        let mended = open.acked
            && measured
            && self.seen_since(now, trigger, open.acked_at)
            && self.tripped(now, trigger, open.acked_at, true).is_none();
        if mended {
            self.append(now, Record::Investigation { trigger: open.trigger, step: InvestigationStep::Cleared, by: None });
            self.unpause(now, format!("trigger {when} was acknowledged and does not hold any more"));
        }
    }

    fn seen_since(&self, now: Timestamp, trigger: &Trigger, from: Timestamp) -> bool {
        trigger.tests.iter().all(|test| {
            let exhibit = self.exhibit(now, &test.metric, from, Some(test.min_samples));
            exhibit.recent.or(exhibit.changed).is_some_and(|(tally, _)| tally.samples() >= test.min_samples)
        })
    }

    /// A person says that something happened: all hosts at once.
    pub(super) fn declared(&mut self, now: Timestamp, what: &str, by: &str, reason: &str) {
        let index = self.plan.gating.triggers.iter().position(|t| t.declared.as_deref() == Some(what));
        let action = index.and_then(|i| self.plan.gating.triggers.get(i)).map_or(TriggerAction::Emergency, |t| t.action);
        let because = format!("{what} declared by {by}: {reason}");
        let record = Record::Tripped {
            trigger: index,
            when: format!("declared {what}"),
            action,
            observed: None,
            limit: None,
            samples: 0,
            host: None,
            reason: because.clone(),
            after_ms: 0,
        };
        self.append(now, record);
        match action {
            TriggerAction::Investigate if self.is_live() && self.state != RolloutState::RollingBack => {
                self.append(now, Record::State { to: RolloutState::Paused, reason: because });
            }
            _ if self.state == RolloutState::RollingBack => {}
            _ => self.begin_back(now, because),
        }
    }
}

/// Only what was seen last: the question is whether it still holds.
fn latest(mut exhibit: Exhibit) -> Exhibit {
    exhibit.changed = exhibit.recent.take().or(exhibit.changed);
    for host in &mut exhibit.hosts {
        if let Some(recent) = host.recent.take() {
            host.window = recent;
        }
    }
    exhibit
}

impl Investigation {
    /// From its record.
    pub(super) fn opened(trigger: usize, at: Timestamp, after: Millis) -> Self {
        Self { trigger, since: at, until: at + after, after, acked: false, acked_at: at }
    }

    pub(super) fn acknowledge(&mut self, at: Timestamp) {
        (self.acked, self.acked_at, self.until) = (true, at, at + self.after);
    }
}

/// What a person may still do, for errors.
pub(super) fn hint(open: &Investigation, when: &str) -> String {
    let ack = if open.acked { "it was acknowledged" } else { "`ack` gives it more time" };
    format!("trigger {when} is being investigated: {ack}, it goes on by itself once acknowledged and over, `rollback` takes it back")
}
