//! What a test asks of a world.

use tidegate_protocol::*;
use tidegate_rollout::gate::{Group, Verdict};
use tidegate_rollout::record::GateStep;
use tidegate_rollout::status::{StatusDoc, status};
use tidegate_rollout::*;

use super::{World, name};

impl World {
    pub fn status(&self) -> StatusDoc {
        status(&self.rollout)
    }

    pub fn state(&self) -> RolloutState {
        self.rollout.state()
    }

    pub fn state_of(&self, i: usize) -> TargetState {
        self.status().hosts.iter().find(|h| h.host == name(i)).unwrap().state
    }

    pub fn everyone_on(&self, release: &ReleaseRef) -> bool {
        self.hosts.values().all(|h| h.current.as_ref() == Some(release))
    }

    /// Hosts on the new release.
    pub fn changed(&self) -> usize {
        self.hosts.values().filter(|h| h.current.as_ref() == Some(&self.new)).count()
    }

    /// What became of gates, in order.
    pub fn gate_steps(&self) -> Vec<GateStep> {
        self.journal
            .iter()
            .filter_map(|(_, r)| match r {
                Record::Gate { step, .. } => Some(*step),
                _ => None,
            })
            .collect()
    }

    /// The last verdict journaled.
    pub fn verdict(&self) -> Option<Verdict> {
        self.journal.iter().rev().find_map(|(_, r)| match r {
            Record::Judged { verdict, .. } => Some(*verdict),
            _ => None,
        })
    }

    pub fn count(&self, pick: impl Fn(&Record) -> bool) -> usize {
        self.journal.iter().filter(|(_, r)| pick(r)).count()
    }

    pub fn at(&self, pick: impl Fn(&Record) -> bool) -> Option<Timestamp> {
        self.journal.iter().find(|(_, r)| pick(r)).map(|(at, _)| *at)
    }

    /// The hosts ordered back, in order.
    pub fn ordered_back(&self) -> Vec<(Timestamp, HostName)> {
        self.journal
            .iter()
            .filter_map(|(at, r)| match r {
                Record::Ordered { host, intent: Intent::Back, .. } => Some((*at, host.clone())),
                _ => None,
            })
            .collect()
    }

    /// The side that serves, by host.
    pub fn active(&self) -> Vec<Option<Side>> {
        self.sides.values().map(|s| s.active).collect()
    }

    /// What a group of hosts was last seen at, before the first swap.
    pub fn sealed(&self, metric: &str) -> Option<f64> {
        self.status().baseline.iter().find(|o| o.metric == metric && o.group == Group::Baseline)?.value.map(Number::get)
    }
}
