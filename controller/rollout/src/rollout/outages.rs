//! Outages as hosts measure them: which are watched, and what is journaled.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::{ComponentName, HostName, Outages, Timestamp};

use super::Rollout;
use crate::record::Record;

/// Most intervals that are journaled of one component on one host.
const INTERVALS_MAX: usize = 256;

/// What was heard of the outages of a rollout's targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutageBook {
    /// What is called, by target.
    probes: BTreeMap<(HostName, ComponentName), String>,
    /// Begins of the intervals in the journal.
    known: BTreeMap<(HostName, ComponentName), BTreeSet<u64>>,
    /// Goes on since then. Not journaled.
    open: BTreeMap<(HostName, ComponentName), u64>,
}

impl OutageBook {
    /// Takes a record in.
    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::Probed { host, component, probe } => {
                self.probes.insert((host.clone(), component.clone()), probe.clone());
            }
            Record::Outage { host, component, from_unix_ms, .. } => {
                self.known.entry((host.clone(), component.clone())).or_default().insert(*from_unix_ms);
            }
            _ => {}
        }
    }
}

impl Rollout {
    /// Components of a host whose outages this rollout wants observed.
    #[must_use]
    pub fn outage_watches(&self, host: &HostName) -> Vec<ComponentName> {
        if !self.is_live() || self.waits_to_begin() {
            return Vec::new();
        }
        self.plan.components.iter().filter(|c| self.at(host, &c.name).is_some()).map(|c| c.name.clone()).collect()
    }

    /// A host's word on its outages.
    pub(super) fn outages(&mut self, now: Timestamp, host: &HostName, told: &Outages) {
        if !self.is_live() || self.waits_to_begin() || self.at(host, &told.component).is_none() {
            return;
        }
        let key = (host.clone(), told.component.clone());
        if self.outages.probes.get(&key) != Some(&told.probe) {
            // One that cannot be called any more was called before.
            let before = self.outages.probes.get(&key).is_some_and(|p| !p.is_empty());
            if !before || !told.probe.is_empty() {
                let (host, component) = key.clone();
                self.append(now, Record::Probed { host, component, probe: told.probe.clone() });
            }
        }
        self.outages.open.remove(&key);
        for interval in &told.intervals {
            let known = self.outages.known.get(&key);
            if known.is_some_and(|k| k.contains(&interval.from_unix_ms) || k.len() >= INTERVALS_MAX) {
                continue;
            }
            if interval.to_unix_ms == 0 {
                self.outages.open.insert(key.clone(), interval.from_unix_ms);
                continue;
            }
            let (host, component) = key.clone();
            let (from_unix_ms, to_unix_ms) = (interval.from_unix_ms, Some(interval.to_unix_ms.max(interval.from_unix_ms)));
            self.append(now, Record::Outage { host, component, from_unix_ms, to_unix_ms });
        }
    }

    /// It ends: what goes on is written down as that.
    pub(super) fn end_outages(&mut self, now: Timestamp) {
        for ((host, component), from_unix_ms) in core::mem::take(&mut self.outages.open) {
            self.append(now, Record::Outage { host, component, from_unix_ms, to_unix_ms: None });
        }
    }
}
