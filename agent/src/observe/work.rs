//! From watches to what runs: observers that share their requests, their scrape or
//! their reader of messages are one piece of work.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tidegate_protocol::limits::{COMPONENTS_MAX, METRIC_NAME_BYTES_MAX, OBSERVERS_MAX};
use tidegate_protocol::metric::{JournalWhat, Observer, ProbeRead, ScrapeRead, Source};
use tidegate_protocol::release::Argv;
use tidegate_protocol::{RolloutId, Watch};

use super::bench::Bench;
use super::board::Teller;
use super::journal::{self, Counter};
use super::probe::{self, Probe};
use super::{rounds, scrape};
use crate::slot::Slot;

/// Between two samples.
const EVERY_MS: std::ops::RangeInclusive<u64> = 100..=300_000;
/// Components, each with two sides.
const WATCHES_MAX: usize = 2 * COMPONENTS_MAX;

/// A watch, as it is carried out.
pub(super) struct Wanted {
    pub(super) slot: Slot,
    pub(super) every: Duration,
    /// In the order of the watch.
    pub(super) metrics: Vec<String>,
    pub(super) works: Vec<Work>,
}

/// One task. Equal ones go on when a new list of watches comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Work {
    slot: Slot,
    /// Another rollout counts from its own beginning.
    rollout: RolloutId,
    every: Duration,
    task: Task,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Task {
    Probe(Probe, Vec<(String, ProbeRead)>),
    Scrape(String, Vec<(String, ScrapeRead)>),
    Journal(Vec<(String, JournalWhat, Vec<String>)>),
    Exec(String, Argv),
    Smoke(String),
}

/// What all of these come to. What is over a limit is left out and logged: it has no
/// reading, which the controller sees.
pub(super) fn works(watches: Vec<Watch>) -> Vec<Wanted> {
    let mut out: Vec<Wanted> = Vec::new();
    if watches.len() > WATCHES_MAX {
        tracing::warn!(watches = watches.len(), max = WATCHES_MAX, "too many watches: the last ones are left out");
    }
    for watch in watches.into_iter().take(WATCHES_MAX) {
        let slot = Slot { component: watch.component, side: watch.side };
        if out.iter().any(|wanted| wanted.slot == slot) {
            tracing::warn!(%slot, rollout = %watch.rollout, "a second watch of the same is left out");
            continue;
        }
        let every = Duration::from_millis(watch.every.0.clamp(*EVERY_MS.start(), *EVERY_MS.end()));
        let mut metrics: Vec<String> = Vec::new();
        let mut tasks: Vec<Task> = Vec::new();
        for Observer { metric, source } in watch.observers {
            if metrics.len() >= OBSERVERS_MAX || metric.is_empty() || metric.len() > METRIC_NAME_BYTES_MAX || metrics.contains(&metric) {
                tracing::warn!(%slot, rollout = %watch.rollout, metric, "an observer is left out: too many, or its name is too long or there already");
                continue;
            }
            metrics.push(metric.clone());
            Task::add(&mut tasks, metric, source);
        }
        let work = |task| Work { slot: slot.clone(), rollout: watch.rollout.clone(), every, task };
        let works = tasks.into_iter().map(work).collect();
        out.push(Wanted { slot, every, metrics, works });
    }
    out
}

impl Task {
    /// One more observer: beside others that ask the same, if there are any.
    fn add(tasks: &mut Vec<Self>, metric: String, source: Source) {
        match source {
            Source::Probe { url, per_minute, timeout, read } => {
                let probe = Probe { url, per_minute, timeout };
                let same = tasks.iter_mut().find_map(|task| match task {
                    Self::Probe(other, reads) if *other == probe => Some(reads),
                    _ => None,
                });
                match same {
                    Some(reads) => reads.push((metric, read)),
                    None => tasks.push(Self::Probe(probe, vec![(metric, read)])),
                }
            }
            Source::Scrape { url, read } => {
                let same = tasks.iter_mut().find_map(|task| match task {
                    Self::Scrape(other, reads) if *other == url => Some(reads),
                    _ => None,
                });
                match same {
                    Some(reads) => reads.push((metric, read)),
                    None => tasks.push(Self::Scrape(url, vec![(metric, read)])),
                }
            }
            Source::Journal { what, patterns } => {
                let same = tasks.iter_mut().find_map(|task| if let Self::Journal(all) = task { Some(all) } else { None });
                match same {
                    Some(all) => all.push((metric, what, patterns)),
                    None => tasks.push(Self::Journal(vec![(metric, what, patterns)])),
                }
            }
            Source::Exec { run } => tasks.push(Self::Exec(metric, run)),
            Source::Smoke => tasks.push(Self::Smoke(metric)),
        }
    }
}

impl Work {
    /// Whose readings it makes.
    pub(super) fn metrics(&self) -> Vec<&str> {
        match &self.task {
            Task::Probe(_, reads) => reads.iter().map(|(metric, _)| metric.as_str()).collect(),
            Task::Scrape(_, reads) => reads.iter().map(|(metric, _)| metric.as_str()).collect(),
            Task::Journal(all) => all.iter().map(|(metric, _, _)| metric.as_str()).collect(),
            Task::Exec(metric, _) | Task::Smoke(metric) => vec![metric],
        }
    }

    /// Goes on until dropped.
    pub(super) fn run(self, bench: Bench, teller: &dyn Fn(&str) -> Teller) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match self.task {
            Task::Probe(probe, reads) => {
                let reads = reads.into_iter().map(|(metric, read)| (teller(&metric), read)).collect();
                Box::pin(probe::run(bench, probe, reads))
            }
            Task::Scrape(url, reads) => {
                let reads = reads.into_iter().map(|(metric, read)| (teller(&metric), read)).collect();
                Box::pin(scrape::run(bench, url, reads))
            }
            Task::Journal(all) => {
                let all = all.into_iter().map(|(metric, what, patterns)| Counter::new(teller(&metric), what, patterns)).collect();
                Box::pin(journal::run(bench, all))
            }
            Task::Exec(metric, run) => Box::pin(rounds::exec(bench, run, teller(&metric))),
            Task::Smoke(metric) => Box::pin(rounds::smoke(bench, teller(&metric))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::Millis;

    fn watch(side: Option<tidegate_protocol::Side>, observers: Vec<(&str, Source)>) -> Watch {
        Watch {
            component: "api".parse().unwrap(),
            rollout: "r1".parse().unwrap(),
            side,
            every: Millis(1),
            observers: observers.into_iter().map(|(metric, source)| Observer { metric: metric.to_owned(), source }).collect(),
        }
    }

    fn probe(url: &str, read: ProbeRead) -> Source {
        Source::Probe { url: url.to_owned(), per_minute: 60, timeout: Millis(100), read }
    }

    #[test]
    fn what_asks_the_same_is_asked_once() {
        let journal = |what| Source::Journal { what, patterns: Vec::new() };
        let scrape = |name: &str| Source::Scrape { url: "http://m".into(), read: ScrapeRead::Gauge { series: name.into() } };
        let wanted = works(vec![watch(
            None,
            vec![
                ("errors", probe("http://a", ProbeRead::Errors)),
                ("s1", scrape("x")),
                ("critical", journal(JournalWhat::Critical)),
                ("latency", probe("http://a", ProbeRead::Latency)),
                ("other", probe("http://b", ProbeRead::Errors)),
                ("smoke", Source::Smoke),
                ("new", journal(JournalWhat::NewErrors)),
                ("s2", scrape("y")),
                ("depth", Source::Exec { run: vec!["bin/depth".into()] }),
            ],
        )]);
        let groups: Vec<Vec<&str>> = wanted[0].works.iter().map(Work::metrics).collect();
        assert_eq!(
            groups,
            [vec!["errors", "latency"], vec!["s1", "s2"], vec!["critical", "new"], vec!["other"], vec!["smoke"], vec!["depth"]]
        );
        assert_eq!(wanted[0].metrics.len(), 9);
        assert_eq!(wanted[0].every, Duration::from_millis(100));
    }

    #[test]
    fn what_is_too_much_is_left_out() {
        let names: Vec<String> = (0..40).map(|n| format!("m{n}")).collect();
        let many = names.iter().map(|name| (name.as_str(), Source::Smoke)).collect();
        assert_eq!(works(vec![watch(None, many)])[0].metrics.len(), OBSERVERS_MAX);
        let long = "x".repeat(METRIC_NAME_BYTES_MAX + 1);
        let odd = vec![("a", Source::Smoke), ("a", Source::Smoke), ("", Source::Smoke), (long.as_str(), Source::Smoke)];
        let wanted =
            works(vec![watch(None, odd), watch(None, vec![("b", Source::Smoke)]), watch(Some(tidegate_protocol::Side::Green), vec![])]);
        assert_eq!(wanted.len(), 2);
        assert_eq!(wanted[0].metrics, ["a"]);
        assert_eq!(wanted[1].slot.to_string(), "api@green");
    }
}
