//! Requests that services answer, and how the agents beside them tell it.

use std::collections::BTreeSet;

use tidegate_protocol::metric::{Reading, Source};
use tidegate_protocol::*;
use tidegate_rollout::*;

use super::World;

/// Upper bounds of the latency histogram, microseconds.
const BOUNDS_US: [u64; 6] = [5_000, 10_000, 20_000, 50_000, 100_000, 500_000];

/// What one host does in a second, and what its agent says of it.
#[derive(Clone, Debug)]
pub struct Load {
    /// Bad requests, per second.
    pub bad: u64,
    /// All requests, per second.
    pub total: u64,
    /// Of each request.
    pub latency_ms: u64,
    /// Critical messages, per second.
    pub critical: u64,
    /// What other counters count, per second.
    pub events: u64,
    /// A round of smoke tests fails.
    pub smoke_fails: bool,
    /// Every source but the smoke tests is in error.
    pub error: Option<&'static str>,
    /// The agent says nothing at all.
    pub silent: bool,
}

/// A hundred good requests in a second.
pub const GOOD: Load = Load { bad: 0, total: 100, latency_ms: 8, critical: 0, events: 0, smoke_fails: false, error: None, silent: false };

/// All counted since a process began.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    since: u64,
    bad: u64,
    total: u64,
    buckets: [u64; 7],
    critical: u64,
    events: u64,
    smoke_bad: u64,
    smoke_total: u64,
}

impl World {
    /// A second of requests everywhere, and what the agents say of it.
    pub(super) fn requests(&mut self) {
        let places: BTreeSet<HostName> = self.hosts.keys().map(|(h, _)| h.clone()).collect();
        for host in places {
            let watches = self.rollout.watches(&host);
            for watch in &watches {
                self.second(&host, watch);
            }
            if !watches.is_empty() {
                self.watched.insert(host, watches);
            }
        }
    }

    fn serving(&self, host: &HostName, watch: &Watch) -> Option<ComponentReport> {
        let key = (host.clone(), watch.component.clone());
        match watch.side {
            None => self.hosts.get(&key).cloned(),
            Some(side) => self.sides.get(&key)?.sides.iter().find(|s| s.side == side).map(|s| s.report.clone()),
        }
    }

    fn second(&mut self, host: &HostName, watch: &Watch) {
        let Some(process) =
            self.serving(host, watch).and_then(|r| r.running.map(|run| (run.started_at_unix_ms, r.current == Some(self.new.clone()))))
        else {
            return;
        };
        let load = (self.load)(host, process.1);
        let counted = self.counted.entry((host.clone(), watch.component.clone(), watch.side)).or_default();
        if counted.since != process.0 {
            *counted = Counted { since: process.0, ..Counted::default() };
        }
        counted.bad += load.bad;
        counted.total += load.total;
        let bucket = BOUNDS_US.iter().position(|b| load.latency_ms * 1_000 <= *b).unwrap_or(BOUNDS_US.len());
        counted.buckets[bucket] += load.total;
        counted.critical += load.critical;
        counted.events += load.events;
        counted.smoke_bad += u64::from(load.smoke_fails);
        counted.smoke_total += 1;
        if !load.silent && self.hears(host) {
            self.tell(host, watch, load.error);
        }
    }

    /// Says again what is counted so far.
    fn tell(&mut self, host: &HostName, watch: &Watch, error: Option<&str>) {
        let Some(counted) = self.counted.get(&(host.clone(), watch.component.clone(), watch.side)) else { return };
        let readings = watch
            .observers
            .iter()
            .map(|observer| {
                let reading = match &observer.source {
                    Source::Smoke => Reading::Ratio { bad: counted.smoke_bad, total: counted.smoke_total },
                    _ if error.is_some() => Reading::Failed,
                    Source::Probe { read: metric::ProbeRead::Latency, .. }
                    | Source::Scrape { read: metric::ScrapeRead::Histogram { .. }, .. } => {
                        Reading::Histogram { bounds_us: BOUNDS_US.to_vec(), counts: counted.buckets.to_vec() }
                    }
                    Source::Probe { .. } | Source::Scrape { read: metric::ScrapeRead::Ratio { .. }, .. } => {
                        Reading::Ratio { bad: counted.bad, total: counted.total }
                    }
                    Source::Journal { .. } => Reading::Count(counted.critical),
                    Source::Scrape { .. } => Reading::Count(counted.events),
                    Source::Exec { .. } => Reading::Gauge(Number::new(counted.bad as f64).unwrap()),
                };
                let note = (reading == Reading::Failed).then(|| error.unwrap_or_default().to_string());
                metric::MetricReading { metric: observer.metric.clone(), since_unix_ms: counted.since, reading, note }
            })
            .collect();
        let samples = Samples { component: watch.component.clone(), side: watch.side, readings };
        self.handle(Event::Samples(host, &samples)).unwrap();
    }

    /// One more sample of a host, with so much on top of what it counted; it is
    /// told at once, as the host was last asked to.
    pub fn sample(&mut self, host: &HostName, load: &Load) {
        let watches = self.rollout.watches(host);
        let watches = if watches.is_empty() { self.watched.get(host).cloned().unwrap_or_default() } else { watches };
        for watch in watches {
            let once = load.clone();
            let before = std::mem::replace(&mut self.load, Box::new(move |_, _| once.clone()));
            self.second(host, &watch);
            self.load = before;
        }
        self.run();
    }
}
