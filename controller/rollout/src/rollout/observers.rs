//! What a rollout wants measured and fetched, as a function of its state.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::metric::{JournalWhat, Observer, ProbeRead, ScrapeRead, Source};
use tidegate_protocol::{HostName, Millis, Side, Watch};

use super::Rollout;
use super::book::changed;
use crate::gate::{AgentSource, Group, Metric, MetricSource};
use crate::record::{RolloutState, TargetState};

/// What the driver fetches for this rollout, every [`Fetch::every`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Key of the plan's metrics; said back in [`Event::Fetched`](super::Event::Fetched).
    pub metric: String,
    /// Of whom; said back.
    pub group: Group,
    /// From where.
    pub from: FetchFrom,
    /// Between two fetches.
    pub every: Millis,
}

/// Where something is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchFrom {
    /// Instant queries; `$hosts` is bound already.
    Prometheus {
        /// Base URL.
        url: String,
        /// Its answer is the value.
        query: String,
        /// Its answer is the number of samples behind it.
        samples: Option<String>,
    },
    /// The number of alerts that fire, silenced and inhibited ones left out.
    Alertmanager {
        /// Base URL.
        url: String,
        /// All must match.
        matchers: Vec<String>,
    },
}

/// What a fetch brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Fetched {
    /// One number, and how many samples it rests on, if that was asked.
    Value {
        /// As answered.
        value: f64,
        /// If asked.
        samples: Option<u64>,
    },
    /// Alerts that fire: fingerprint → `name (labels): summary`.
    Alerts(BTreeMap<String, String>),
}

/// The observer that watches confirmed hosts for a relapse; no plan names it.
pub(super) const SMOKE: &str = "smoke";

impl Rollout {
    /// What this rollout wants measured on a host now: said again at every hello,
    /// together with that of others.
    #[must_use]
    pub fn watches(&self, host: &HostName) -> Vec<Watch> {
        if !self.is_live() || self.waits_to_begin() {
            return Vec::new();
        }
        let of_host = self.plan.components.iter().filter_map(|c| self.at(host, &c.name));
        of_host.filter_map(|at| self.watch_of(at)).collect()
    }

    fn watch_of(&self, at: usize) -> Option<Watch> {
        let target = self.targets.get(at)?;
        let side = self.watched_side(at);
        if self.plan.blue_green.is_some() && side.is_none() {
            return None;
        }
        let mut observers: Vec<Observer> = Vec::new();
        for metric in self.plan.gating.metrics.values() {
            let MetricSource::Agent { observer, what, component } = &metric.source else { continue };
            let own = component.as_ref().is_none_or(|c| *c == target.origin.component);
            if own && observers.iter().all(|o| o.metric != *observer) {
                observers.push(Observer { metric: observer.clone(), source: source(what) });
            }
        }
        if changed(target) {
            observers.push(Observer { metric: SMOKE.to_string(), source: Source::Smoke });
        }
        Some(Watch {
            component: target.origin.component.clone(),
            rollout: self.id.clone(),
            side,
            every: self.plan.gating.analysis.interval,
            observers,
        })
    }

    /// The side of a target that is measured: the one that serves, until the new
    /// one is prepared. None without sides, and where none serves.
    pub(super) fn watched_side(&self, at: usize) -> Option<Side> {
        let target = self.targets.get(at)?;
        let new = self.side_of(at)?;
        if target.state == TargetState::Confirmed { Some(new) } else { target.origin.previous.as_ref().map(|_| new.other()) }
    }

    /// Where a target's release goes; none without sides.
    pub(crate) fn side_of(&self, at: usize) -> Option<Side> {
        let target = self.targets.get(at)?;
        let sides = &self.plan.blue_green.as_ref()?.sides;
        sides.get(&target.origin.component)?.get(&target.origin.host).copied()
    }

    /// What the driver fetches now. Asked again after every event.
    #[must_use]
    pub fn fetches(&self) -> Vec<Fetch> {
        if !self.is_live() || self.waits_to_begin() || self.state == RolloutState::RollingBack {
            return Vec::new();
        }
        let mut out = Vec::new();
        for (name, metric) in &self.plan.gating.metrics {
            for group in self.fetch_groups(metric) {
                let from = match &metric.source {
                    MetricSource::Prometheus { url, query, samples, .. } => {
                        let hosts = self.hosts_of(group);
                        let bind = |text: &String| text.replace("$hosts", &hosts);
                        FetchFrom::Prometheus { url: url.clone(), query: bind(query), samples: samples.as_ref().map(bind) }
                    }
                    MetricSource::Alertmanager { url, matchers } => {
                        FetchFrom::Alertmanager { url: url.clone(), matchers: matchers.clone() }
                    }
                    MetricSource::Agent { .. } | MetricSource::Report(_) => continue,
                };
                out.push(Fetch { metric: name.clone(), group, from, every: self.plan.gating.analysis.interval });
            }
        }
        out
    }

    /// Of whom a fetched metric is asked now.
    pub(super) fn fetch_groups(&self, metric: &Metric) -> Vec<Group> {
        let any_changed = self.targets.iter().any(changed);
        match &metric.source {
            MetricSource::Alertmanager { .. } if self.first_swap_at.is_none() => alloc::vec![Group::Baseline],
            MetricSource::Alertmanager { .. } => alloc::vec![Group::Changed],
            MetricSource::Prometheus { .. } if !any_changed => alloc::vec![Group::Baseline],
            MetricSource::Prometheus { query, .. } if query.contains("$hosts") && !self.hosts_of(Group::Control).is_empty() => {
                alloc::vec![Group::Changed, Group::Control]
            }
            MetricSource::Prometheus { .. } => alloc::vec![Group::Changed],
            MetricSource::Agent { .. } | MetricSource::Report(_) => Vec::new(),
        }
    }

    /// A regex alternation of host names; dots are matched as dots without a
    /// backslash, which PromQL strings would eat.
    fn hosts_of(&self, group: Group) -> String {
        let mut names: Vec<&str> = self
            .targets
            .iter()
            .filter(|t| match group {
                Group::Baseline => true,
                Group::Changed | Group::Worst => changed(t),
                Group::Control => !t.swap_ordered && t.origin.previous.is_some(),
            })
            .map(|t| t.origin.host.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names.join("|").replace('.', "[.]")
    }
}

fn source(what: &AgentSource) -> Source {
    match what.clone() {
        AgentSource::ProbeErrors { url, per_minute, timeout } => Source::Probe { url, per_minute, timeout, read: ProbeRead::Errors },
        AgentSource::ProbeLatency { url, per_minute, timeout } => Source::Probe { url, per_minute, timeout, read: ProbeRead::Latency },
        AgentSource::ScrapeRatio { url, bad, total } => Source::Scrape { url, read: ScrapeRead::Ratio { bad, total } },
        AgentSource::ScrapeHistogram { url, name } => Source::Scrape { url, read: ScrapeRead::Histogram { name } },
        AgentSource::ScrapeCounter { url, series } => Source::Scrape { url, read: ScrapeRead::Counter { series } },
        AgentSource::ScrapeGauge { url, series } => Source::Scrape { url, read: ScrapeRead::Gauge { series } },
        AgentSource::JournalCritical { patterns } => Source::Journal { what: JournalWhat::Critical, patterns },
        AgentSource::JournalNewErrors => Source::Journal { what: JournalWhat::NewErrors, patterns: Vec::new() },
        AgentSource::JournalSecurity { patterns } => Source::Journal { what: JournalWhat::Security, patterns },
        AgentSource::Exec { run } => Source::Exec { run },
        AgentSource::Smoke => Source::Smoke,
    }
}
