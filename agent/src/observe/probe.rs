//! A steady stream of requests to the service: how many are bad, how long they
//! take.
//!
//! Owns the rate: a service that does not answer is not asked more slowly, nor by
//! ever more requests at once. Observers of one URL, rate and timeout share it.

use std::time::Duration;

use tidegate_protocol::Millis;
use tidegate_protocol::metric::{ProbeRead, Reading};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::bench::Bench;
use super::board::Teller;
use crate::error::chain;
use crate::smoke::http::{Body, Target, get};

/// Requests under way at once; one more that is due is a bad one.
const FLIGHTS_MAX: usize = 16;
const PER_MINUTE: std::ops::RangeInclusive<u32> = 1..=6_000;
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 10..=60_000;

/// Upper bounds of latency, microseconds: nine a decade from 220 us to 60 s. Fixed,
/// so that hosts and agents add up; so narrow that a tenth more shows in a quantile.
const BOUNDS_US: [u64; 50] = bounds();

const fn bounds() -> [u64; 50] {
    let steps = [10, 13, 17, 22, 28, 36, 46, 60, 77];
    let mut bounds = [0; 50];
    let (mut at, mut step, mut decade) = (0, 3, 10);
    while at < bounds.len() {
        bounds[at] = steps[step] * decade;
        at += 1;
        step += 1;
        if step == steps.len() {
            step = 0;
            decade *= 10;
        }
    }
    bounds
}

/// What is asked, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) url: String,
    pub(super) per_minute: u32,
    pub(super) timeout: Millis,
}

/// How one request ended.
enum Ended {
    Good(Duration),
    Late(String),
    Bad(String),
}

#[derive(Default)]
struct Counts {
    bad: u64,
    total: u64,
    latency: Vec<u64>,
    note: Option<String>,
}

impl Counts {
    fn new() -> Self {
        Self { latency: vec![0; BOUNDS_US.len() + 1], ..Self::default() }
    }

    fn take(&mut self, ended: Ended) {
        self.total += 1;
        let bucket = match ended {
            Ended::Good(took) => {
                let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                Some(BOUNDS_US.partition_point(|bound| *bound < us))
            }
            Ended::Late(note) => {
                (self.bad, self.note) = (self.bad + 1, Some(note));
                Some(BOUNDS_US.len())
            }
            Ended::Bad(note) => {
                (self.bad, self.note) = (self.bad + 1, Some(note));
                None
            }
        };
        if let Some(count) = bucket.and_then(|bucket| self.latency.get_mut(bucket)) {
            *count += 1;
        }
    }

    fn reading(&self, read: ProbeRead) -> Reading {
        match read {
            ProbeRead::Errors => Reading::Ratio { bad: self.bad, total: self.total },
            ProbeRead::Latency => Reading::Histogram { bounds_us: BOUNDS_US.to_vec(), counts: self.latency.clone() },
        }
    }
}

pub(super) async fn run(mut bench: Bench, probe: Probe, reads: Vec<(Teller, ProbeRead)>) {
    if !bench.ready().await {
        return;
    }
    let per_minute = probe.per_minute.clamp(*PER_MINUTE.start(), *PER_MINUTE.end());
    let limit = Duration::from_millis(probe.timeout.0.clamp(*TIMEOUT_MS.start(), *TIMEOUT_MS.end()));
    let mut ticks = interval(Duration::from_secs(60) / per_minute);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut flights: JoinSet<(u64, Ended)> = JoinSet::new();
    let (mut epoch, mut counts) = (0, Counts::new());
    let mut subject = bench.now();
    bench.another(&subject);
    loop {
        tokio::select! {
            () = bench.changed() => {
                subject = bench.now();
                if bench.another(&subject) {
                    epoch += 1;
                    counts = Counts::new();
                }
                continue;
            }
            Some(flight) = flights.join_next() => {
                // One that began before the main process did is not its own.
                let Ok((of, ended)) = flight else { continue };
                if of != epoch {
                    continue;
                }
                counts.take(ended);
            }
            _ = ticks.tick() => {
                let (url, target) = match bench.target(subject.installed.as_deref(), &probe.url) {
                    Ok(found) => found,
                    Err(why) => {
                        reads.iter().for_each(|(teller, _)| teller.failed(bench.since(), &why));
                        continue;
                    }
                };
                if flights.len() < FLIGHTS_MAX {
                    flights.spawn(async move { (epoch, request(&url, &target, limit).await) });
                    continue;
                }
                counts.take(Ended::Bad(format!("GET {url}: {FLIGHTS_MAX} requests are under way and none of them ends")));
            }
        }
        for (teller, read) in &reads {
            teller.tell(bench.since(), counts.reading(*read), counts.note.as_deref());
        }
    }
}

async fn request(url: &str, target: &Target, limit: Duration) -> Ended {
    let began = Instant::now();
    match timeout(limit, get(target, None, Body::Drain)).await {
        Ok(Ok(got)) if got.status < 500 => Ended::Good(began.elapsed()),
        Ok(Ok(got)) => Ended::Bad(format!("GET {url} → {}", got.status)),
        Ok(Err(error)) => Ended::Bad(format!("GET {url} → {}", chain(&error))),
        Err(_) => Ended::Late(format!("GET {url} → nothing within {} ms", limit.as_millis())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise_from_a_quarter_of_a_millisecond_to_a_minute() {
        assert_eq!((BOUNDS_US[0], BOUNDS_US[6], BOUNDS_US[49]), (220, 1_000, 60_000_000));
        assert!(BOUNDS_US.windows(2).all(|pair| pair[0] < pair[1] && pair[1] * 10 < pair[0] * 14));
        assert!(BOUNDS_US.len() < tidegate_protocol::limits::BUCKETS_MAX);
    }

    #[test]
    fn a_latency_on_a_bound_is_below_it_and_only_timeouts_overflow() {
        let mut counts = Counts::new();
        counts.take(Ended::Good(Duration::from_micros(1_000)));
        counts.take(Ended::Good(Duration::from_micros(1_001)));
        counts.take(Ended::Bad("503".into()));
        counts.take(Ended::Late("late".into()));
        assert_eq!((counts.latency[6], counts.latency[7], counts.latency[50]), (1, 1, 1));
        assert_eq!(counts.latency.iter().sum::<u64>(), 3);
        assert_eq!(counts.reading(ProbeRead::Errors), Reading::Ratio { bad: 2, total: 4 });
        assert_eq!(counts.note.as_deref(), Some("late"));
    }
}
