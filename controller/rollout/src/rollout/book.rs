//! The evidence of a living rollout: what hosts measured and what was fetched.
//!
//! Not journaled: counters are cumulative, so that after a restart the first word
//! of a host says again what it counted since its new process began. Must not:
//! decide anything.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::metric::Reading;
use tidegate_protocol::report::HostFacts;
use tidegate_protocol::{ComponentReport, Millis, Number, Samples, Timestamp};

use super::{Fetched, Rollout, TargetRun};
use crate::gate::judge::{Exhibit, HostExhibit};
use crate::gate::series::Series;
use crate::gate::tally::Tally;
use crate::gate::{AgentSource, Group, Kind, Metric, MetricSource, Observed, ReportNumber};
use crate::record::TargetState;

/// Less than any service takes from one start to the next.
const CLOCK_SLACK_MS: u64 = 500;

/// Readings and answers of one rollout.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    /// By target and observer (or number of a report).
    series: BTreeMap<(usize, String), Series>,
    answers: BTreeMap<(String, Group), Answer>,
    /// When the newest sample came that no trigger has looked at.
    pub(super) unjudged_since: Option<Timestamp>,
}

/// What a fetch last brought.
#[derive(Clone, Debug, Default)]
struct Answer {
    value: f64,
    samples: u64,
    at: Option<Timestamp>,
    /// Of the window that is being sealed.
    sum: f64,
    count: u64,
    error: Option<(Timestamp, String)>,
}

impl Answer {
    fn failed(&mut self, now: Timestamp, why: &str) {
        match &mut self.error {
            Some((_, text)) => *text = why.to_string(),
            none => *none = Some((now, why.to_string())),
        }
    }
}

const fn number_key(number: ReportNumber) -> &'static str {
    match number {
        ReportNumber::ServiceCpu => "report.service_cpu",
        ReportNumber::ServiceMemory => "report.service_memory",
        ReportNumber::HostCpu => "report.host_cpu",
        ReportNumber::HostMemory => "report.host_memory",
        ReportNumber::Restarts => "report.restarts",
    }
}

fn key_of(metric: &Metric) -> Option<&str> {
    match &metric.source {
        MetricSource::Agent { observer, .. } => Some(observer),
        MetricSource::Report(number) => Some(number_key(*number)),
        MetricSource::Prometheus { .. } | MetricSource::Alertmanager { .. } => None,
    }
}

/// On the new release, and kept: what gates and triggers judge.
pub(super) fn changed(target: &TargetRun) -> bool {
    target.state == TargetState::Confirmed
}

/// Still on what it ran before.
fn control(target: &TargetRun) -> bool {
    !target.swap_ordered
        && target.origin.previous.is_some()
        && matches!(target.state, TargetState::Pending | TargetState::Staging | TargetState::Staged)
}

impl Rollout {
    /// Takes samples of a host in.
    pub(super) fn sampled(&mut self, now: Timestamp, at: usize, samples: &Samples) {
        let Some(target) = self.targets.get(at) else { return };
        if samples.side != self.watched_side(at) {
            return;
        }
        // Two looks at a host's clocks may differ by a little.
        let process = target.seen.as_ref().and_then(|s| s.main_pid_started_at).filter(|_| changed(target));
        let process = process.map(|at| at.saturating_sub(CLOCK_SLACK_MS));
        let asked = |name: &str| {
            self.plan.gating.metrics.values().find_map(|m| match &m.source {
                MetricSource::Agent { observer, what, .. } if observer == name => Some(what),
                _ => None,
            })
        };
        for reading in &samples.readings {
            // Names that a host makes up would be kept for as long as the rollout lives.
            let Some(what) = asked(&reading.metric) else { continue };
            let series =
                self.book.series.entry((at, reading.metric.clone())).or_insert_with(|| process.map_or_else(Series::open, Series::fresh));
            // One host that answers something else must not spoil what all say together.
            if answers(what, &reading.reading) {
                series.push(now, reading.since_unix_ms, &reading.reading, reading.note.as_deref());
            } else {
                series.push(now, reading.since_unix_ms, &Reading::Failed, Some("its agent answered something else than what was asked"));
            }
        }
        self.book.unjudged_since.get_or_insert(now);
    }

    /// The machine's own numbers, for every component there.
    pub(super) fn facts(&mut self, now: Timestamp, at: usize, facts: &HostFacts) {
        let wanted = |number| self.plan.gating.metrics.values().any(|m| m.source == MetricSource::Report(number));
        let total = facts.memory_total_bytes.max(1) as f64;
        let values = [
            (ReportNumber::HostCpu, f64::from(facts.cpu_permille) / 10.0),
            (ReportNumber::HostMemory, facts.memory_bytes as f64 * 100.0 / total),
        ];
        let values = values.map(|(number, value)| (number, value, wanted(number)));
        if let Some(target) = self.targets.get_mut(at) {
            target.live.memory_total_bytes = facts.memory_total_bytes;
        }
        for (number, value, wanted) in values {
            if wanted {
                self.gauge(now, at, number, value);
            }
        }
    }

    /// The numbers of a component's report.
    pub(super) fn numbers(&mut self, now: Timestamp, at: usize, report: &ComponentReport) {
        if self.plan.gating.metrics.is_empty() {
            return;
        }
        let total = self.targets.get(at).map_or(0, |t| t.live.memory_total_bytes);
        self.gauge(now, at, ReportNumber::ServiceCpu, f64::from(report.cpu_permille) / 10.0);
        if total > 0 {
            self.gauge(now, at, ReportNumber::ServiceMemory, report.memory_bytes as f64 * 100.0 / total as f64);
        }
        let key = (at, number_key(ReportNumber::Restarts).to_string());
        self.book.series.entry(key).or_default().push(now, 0, &Reading::Count(u64::from(report.restarts)), None);
    }

    fn gauge(&mut self, now: Timestamp, at: usize, number: ReportNumber, value: f64) {
        let Some(value) = Number::new(value) else { return };
        self.book.series.entry((at, number_key(number).to_string())).or_default().push(now, 0, &Reading::Gauge(value), None);
    }

    /// A host is on the new release: what it measured before was of the old one.
    pub(super) fn begin_series(&mut self, at: usize) {
        let own: Vec<(usize, String)> =
            self.book.series.range((at, String::new())..(at + 1, String::new())).map(|(k, _)| k.clone()).collect();
        for key in own {
            self.book.series.remove(&key);
        }
    }

    /// Every series remembers where it stands: an observation begins.
    pub(super) fn pin(&mut self, now: Timestamp) {
        self.book.series.values_mut().for_each(|s| s.pin(now));
    }

    /// What a fetch brought. Alerts are counted in the journaled state.
    pub(super) fn fetched(&mut self, now: Timestamp, name: &str, group: Group, result: Result<&Fetched, &str>) {
        let scale = match self.plan.gating.metrics.get(name).map(|m| &m.source) {
            Some(MetricSource::Prometheus { scale, .. }) => scale.get(),
            Some(MetricSource::Alertmanager { .. }) => 1.0,
            _ => return,
        };
        let answer = self.book.answers.entry((name.to_string(), group)).or_default();
        match result {
            Ok(Fetched::Value { value, samples }) => {
                answer.value = value * scale;
                answer.samples = samples.unwrap_or(1);
                answer.sum += answer.value;
                answer.count += 1;
            }
            Ok(Fetched::Alerts(alerts)) => {
                answer.value = alerts.len() as f64;
                answer.samples = 1;
            }
            Err(why) => {
                answer.failed(now, why);
                return;
            }
        }
        answer.at = Some(now);
        answer.error = None;
        if let Ok(Fetched::Alerts(alerts)) = result {
            self.alerts(now, alerts);
        }
        self.book.unjudged_since.get_or_insert(now);
    }

    /// Everything about one metric, over the time since `from`; for triggers also
    /// over the shortest recent time that has `recent` samples.
    pub(super) fn exhibit(&self, now: Timestamp, name: &str, from: Timestamp, recent: Option<u64>) -> Exhibit {
        let Some(metric) = self.plan.gating.metrics.get(name) else { return Exhibit::default() };
        let baseline = self.sealed.iter().find(|o| o.metric == name && o.group == Group::Baseline).cloned();
        let Some(key) = key_of(metric) else { return self.answered(now, name, metric, baseline, from, recent.is_some()) };
        let mut exhibit = Exhibit { baseline, ..Exhibit::default() };
        for at in self.judged_targets(metric, changed) {
            let Some(target) = self.targets.get(at) else { continue };
            let Some(series) = self.book.series.get(&(at, key.to_string())) else { continue };
            // After a restart a host says again what it counted before the gate opened:
            // that is evidence for triggers, not for this gate.
            let said_again = recent.is_none() && from > target.since && self.returned_at.is_some_and(|back| back > from);
            let Some(window) = (if said_again { series.heard() } else { grown(metric, series, from) }) else { continue };
            let own = recent.and_then(|least| series.recent(from, least));
            exhibit.changed = pooled(exhibit.changed.take(), &window);
            if let (Tally::Count(1..), Some(note)) = (&window.0, series.note()) {
                exhibit.said.push((target.origin.host.clone(), note.to_string()));
            }
            exhibit.hosts.push(HostExhibit { host: target.origin.host.clone(), window, recent: own });
        }
        if let Some(least) = recent {
            exhibit.recent = self.recent(now, metric, key, from, least);
        }
        for at in self.judged_targets(metric, control) {
            if let Some(window) = self.book.series.get(&(at, key.to_string())).and_then(|s| grown(metric, s, from)) {
                exhibit.control = pooled(exhibit.control.take(), &window);
            }
        }
        exhibit
    }

    /// The changed hosts together, over the shortest of a few recent times that
    /// has enough samples.
    fn recent(&self, now: Timestamp, metric: &Metric, key: &str, from: Timestamp, least: u64) -> Option<(Tally, Millis)> {
        let step = self.plan.gating.analysis.interval.0.max(1);
        let targets = self.judged_targets(metric, changed);
        let mut found = None;
        for doubling in 0..12 {
            let begin = Timestamp(now.0.saturating_sub(step.saturating_mul(1 << doubling))).max(from);
            let mut sum = None;
            for at in &targets {
                if let Some(window) = self.book.series.get(&(*at, key.to_string())).and_then(|s| s.since(begin)) {
                    sum = pooled(sum.take(), &window);
                }
            }
            let enough = sum.as_ref().is_some_and(|(tally, _)| tally.samples() >= least);
            found = sum;
            if enough || begin == from {
                break;
            }
        }
        found.filter(|(tally, _)| tally.samples() >= least)
    }

    /// A metric that the controller fetches.
    fn answered(&self, now: Timestamp, name: &str, metric: &Metric, baseline: Option<Observed>, from: Timestamp, trigger: bool) -> Exhibit {
        // An old answer about hosts that are not in the group any more says nothing.
        let asked = self.fetch_groups(metric);
        let tally = |group| {
            let answer = self.book.answers.get(&(name.to_string(), group)).filter(|_| asked.contains(&group))?;
            answer.at.filter(|at| group != Group::Control || now.since(*at) < self.patience())?;
            Some((Tally::Answer { value: answer.value, samples: answer.samples }, Millis(0)))
        };
        if matches!(metric.source, MetricSource::Alertmanager { .. }) {
            let seen = self.book.answers.values().any(|a| a.at.is_some());
            // A gate minds every alert since the first swap, a trigger the later ones.
            let count = self.alerts_new.values().filter(|(at, _)| !trigger || *at >= from).count() as u64;
            return Exhibit { changed: seen.then_some((Tally::Count(count), Millis(0))), ..Exhibit::default() };
        }
        Exhibit { changed: tally(Group::Changed), control: tally(Group::Control), baseline, ..Exhibit::default() }
    }

    /// The targets that a metric is about.
    fn judged_targets(&self, metric: &Metric, pick: fn(&TargetRun) -> bool) -> Vec<usize> {
        let only = match &metric.source {
            MetricSource::Agent { component, .. } => component.as_ref(),
            _ => None,
        };
        self.which(|t| pick(t) && only.is_none_or(|c| *c == t.origin.component))
    }

    /// Sources that cannot be read now, one sentence each, at most a few: of the
    /// metrics named.
    pub(super) fn blind(&self, now: Timestamp, names: &[&str]) -> Vec<String> {
        let mut out = Vec::new();
        let patience = self.patience();
        for name in names {
            let Some(metric) = self.plan.gating.metrics.get(*name) else { continue };
            match &metric.source {
                MetricSource::Report(_) => {}
                MetricSource::Prometheus { .. } | MetricSource::Alertmanager { .. } => {
                    let group = self.fetch_groups(metric).into_iter().next().unwrap_or(Group::Changed);
                    let answer = self.book.answers.get(&((*name).to_string(), group));
                    let began = self.last_confirmed_at.unwrap_or(now).max(self.returned_at.unwrap_or_default());
                    let last = answer.and_then(|a| a.at).unwrap_or(began);
                    if now.since(last) >= patience {
                        let why = answer.and_then(|a| a.error.as_ref()).map_or("it has not answered", |(_, why)| why.as_str());
                        out.push(format!("{name}: {why}"));
                    }
                }
                MetricSource::Agent { observer, .. } => {
                    for at in self.judged_targets(metric, changed) {
                        if let Some(why) = self.silent(now, at, observer, patience) {
                            out.push(format!("{name}: {why}"));
                            break;
                        }
                    }
                }
            }
            if out.len() >= 5 {
                break;
            }
        }
        out
    }

    /// A source that does not answer for so long is in error.
    fn patience(&self) -> Millis {
        Millis(self.plan.gating.analysis.interval.0.saturating_mul(3).max(3_000))
    }

    /// Why nothing is known of an observer of a changed host.
    fn silent(&self, now: Timestamp, at: usize, observer: &str, patience: Millis) -> Option<String> {
        // A host that is away is told apart, see `judge_stage`.
        let target = self.targets.get(at).filter(|t| self.up(t))?;
        let host = &target.origin.host;
        let series = self.book.series.get(&(at, observer.to_string()));
        if let Some((since, why)) = series.and_then(Series::error) {
            return (now.since(since) >= patience).then(|| format!("{host}: {why}"));
        }
        let began = target.since.max(self.returned_at.unwrap_or_default());
        let last = series.and_then(Series::last_at).map_or(began, |at| at.max(began));
        // A host that is away is noticed like everywhere else.
        let patience = Millis(patience.0.max(super::LOST_IN_WAVE.0));
        (now.since(last) >= patience).then(|| format!("{host}: no reading for {} s", now.since(last).0 / 1_000))
    }

    /// Before any host is touched: what was tried and cannot be read (`Err`), or is
    /// still awaited (`Ok(true)`).
    pub(super) fn tried(&self, now: Timestamp) -> Result<bool, String> {
        let mut waits = None;
        let late = now.since(self.step_since) >= super::PREFLIGHT_DEADLINE;
        for (name, metric) in &self.plan.gating.metrics {
            match &metric.source {
                MetricSource::Report(_) => {}
                MetricSource::Prometheus { .. } | MetricSource::Alertmanager { .. } => {
                    match self.book.answers.get(&(name.clone(), Group::Baseline)) {
                        Some(Answer { error: Some((since, why)), .. }) if now.since(*since) >= super::GATE_TRY => {
                            return Err(format!("the metric {name} cannot be judged: {why}"));
                        }
                        Some(answer) if answer.at.is_some() && answer.error.is_none() => {}
                        _ => {
                            waits.get_or_insert_with(|| format!("the metric {name} was not answered in time"));
                        }
                    }
                }
                MetricSource::Agent { observer, what, .. } => {
                    // A journal is there to be read; only one that cannot be is worth a refusal.
                    let journal = matches!(
                        what,
                        AgentSource::JournalCritical { .. } | AgentSource::JournalNewErrors | AgentSource::JournalSecurity { .. }
                    );
                    for at in self.judged_targets(metric, control) {
                        let Some(target) = self.targets.get(at).filter(|t| self.up(t)) else { continue };
                        if self.watched_side(at).is_none() && self.plan.blue_green.is_some() {
                            continue;
                        }
                        let series = self.book.series.get(&(at, observer.clone()));
                        match (series.and_then(Series::error), series.and_then(Series::last_at)) {
                            (Some((since, why)), _) if now.since(since) >= super::GATE_TRY => {
                                return Err(format!("the metric {name} cannot be judged on {}: {why}", target.origin.host));
                            }
                            (None, Some(_)) => {}
                            (None, None) if journal => {}
                            _ => {
                                waits.get_or_insert_with(|| {
                                    format!(
                                        "the agent on {} did not measure {name} in time; is it older than this controller?",
                                        target.origin.host
                                    )
                                });
                            }
                        }
                    }
                }
            }
        }
        match waits {
            Some(why) if late => Err(why),
            other => Ok(other.is_some()),
        }
    }

    /// A fetch answers a new question from here on.
    pub(super) fn begin_baseline(&mut self, now: Timestamp) {
        self.pin(now);
        for answer in self.book.answers.values_mut() {
            (answer.sum, answer.count) = (0.0, 0);
        }
    }

    /// The values before the first swap.
    pub(super) fn baseline_values(&self, from: Timestamp) -> Vec<Observed> {
        let mut out = Vec::new();
        for (name, metric) in &self.plan.gating.metrics {
            let (value, samples) = match key_of(metric) {
                Some(key) => {
                    let mut sum = None;
                    for at in self.judged_targets(metric, control) {
                        if let Some(window) = self.book.series.get(&(at, key.to_string())).and_then(|s| grown(metric, s, from)) {
                            sum = pooled(sum.take(), &window);
                        }
                    }
                    sum.map_or((None, 0), |(tally, over)| (tally.value(metric.kind, over), tally.samples()))
                }
                None => self.book.answers.get(&(name.clone(), Group::Baseline)).map_or((None, 0), |a| {
                    let mean = (a.count > 0).then(|| a.sum / a.count as f64);
                    (mean, if a.samples > 1 { a.samples } else { a.count })
                }),
            };
            out.push(Observed { metric: name.clone(), group: Group::Baseline, value: value.and_then(Number::new), samples });
        }
        out
    }

    /// Every metric as it is now: changed hosts, the worst of them, control group.
    pub(super) fn values(&self, now: Timestamp, from: Timestamp) -> Vec<Observed> {
        let mut out = Vec::new();
        for (name, metric) in &self.plan.gating.metrics {
            let exhibit = self.exhibit(now, name, from, None);
            let value = |window: &(Tally, Millis)| window.0.value(metric.kind, window.1).and_then(Number::new);
            for (group, window) in [(Group::Changed, &exhibit.changed), (Group::Control, &exhibit.control)] {
                if let Some(window) = window {
                    out.push(Observed { metric: name.clone(), group, value: value(window), samples: window.0.samples() });
                }
            }
            let worse = |a: Number, b: Number| if metric.higher_is_worse { a.get() > b.get() } else { a.get() < b.get() };
            let mut worst: Option<(Number, u64)> = None;
            for host in &exhibit.hosts {
                if let Some(seen) = value(&host.window).filter(|v| worst.is_none_or(|(w, _)| worse(*v, w))) {
                    worst = Some((seen, host.window.0.samples()));
                }
            }
            if let Some((value, samples)) = worst.filter(|_| exhibit.hosts.len() > 1 && metric.kind != Kind::Rate) {
                out.push(Observed { metric: name.clone(), group: Group::Worst, value: Some(value), samples });
            }
        }
        out
    }
}

/// Whether a reading is of the kind that its source gives.
const fn answers(what: &AgentSource, reading: &Reading) -> bool {
    match what {
        AgentSource::ProbeErrors { .. } | AgentSource::ScrapeRatio { .. } | AgentSource::Smoke => {
            matches!(reading, Reading::Ratio { .. } | Reading::Failed)
        }
        AgentSource::ProbeLatency { .. } | AgentSource::ScrapeHistogram { .. } => {
            matches!(reading, Reading::Histogram { .. } | Reading::Failed)
        }
        AgentSource::ScrapeCounter { .. }
        | AgentSource::JournalCritical { .. }
        | AgentSource::JournalNewErrors
        | AgentSource::JournalSecurity { .. } => matches!(reading, Reading::Count(_) | Reading::Failed),
        AgentSource::ScrapeGauge { .. } | AgentSource::Exec { .. } => matches!(reading, Reading::Gauge(_) | Reading::Failed),
    }
}

/// Growth of one host since `from`.
fn grown(metric: &Metric, series: &Series, from: Timestamp) -> Option<(Tally, Millis)> {
    if metric.kind == Kind::Rate { series.paced(from) } else { series.since(from) }
}

fn pooled(sum: Option<(Tally, Millis)>, window: &(Tally, Millis)) -> Option<(Tally, Millis)> {
    match sum {
        None => Some(window.clone()),
        // Two that do not fit together (other histogram bounds): the first stands.
        // The times add up: a rate is that of one host, whatever their number.
        Some((tally, over)) => Some((tally.plus(&window.0).unwrap_or(tally), Millis(over.0.saturating_add(window.1.0)))),
    }
}
