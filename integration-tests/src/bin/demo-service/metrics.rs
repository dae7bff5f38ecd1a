//! What the service counts of its own requests, in Prometheus' text format.
//!
//! Owns the counters. Must not know which requests are counted.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets, milliseconds.
const BOUNDS_MS: [u64; 20] = [1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100, 150, 200, 300, 500, 1_000, 2_000, 5_000];

/// Counted since the start.
#[derive(Debug)]
pub(crate) struct Metrics {
    started: f64,
    good: AtomicU64,
    bad: AtomicU64,
    /// Not cumulative; the last is of those above all bounds.
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Metrics {
    /// `started`: Unix time in seconds.
    pub(crate) fn new(started: f64) -> Self {
        let zero = || AtomicU64::new(0);
        Self { started, good: zero(), bad: zero(), buckets: std::array::from_fn(|_| zero()), sum_us: zero() }
    }

    pub(crate) fn count(&self, bad: bool, took: Duration) {
        let counter = if bad { &self.bad } else { &self.good };
        counter.fetch_add(1, Ordering::Relaxed);
        let bucket = BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound)).unwrap_or(BOUNDS_MS.len());
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The page at `/metrics`.
    pub(crate) fn page(&self) -> String {
        let mut text = format!(
            "# HELP http_requests_total Requests answered.\n# TYPE http_requests_total counter\n\
             http_requests_total{{code=\"200\"}} {}\nhttp_requests_total{{code=\"500\"}} {}\n\
             # HELP http_request_duration_seconds Until the answer.\n# TYPE http_request_duration_seconds histogram\n",
            self.good.load(Ordering::Relaxed),
            self.bad.load(Ordering::Relaxed),
        );
        let mut so_far = 0;
        for (at, bucket) in self.buckets.iter().enumerate() {
            so_far += bucket.load(Ordering::Relaxed);
            let bound = BOUNDS_MS.get(at).map_or_else(|| "+Inf".to_owned(), |ms| format!("{}.{:03}", ms / 1000, ms % 1000));
            let _ = writeln!(text, "http_request_duration_seconds_bucket{{le=\"{bound}\"}} {so_far}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed);
        let _ = write!(
            text,
            "http_request_duration_seconds_sum {}.{:06}\nhttp_request_duration_seconds_count {so_far}\n\
             # TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {}\n",
            sum / 1_000_000,
            sum % 1_000_000,
            self.started
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_with_all() {
        let metrics = Metrics::new(1.5);
        for (bad, ms) in [(false, 1), (true, 20), (false, 21), (false, 60_000)] {
            metrics.count(bad, Duration::from_millis(ms));
        }
        let page = metrics.page();
        for line in [
            "http_requests_total{code=\"200\"} 3",
            "http_requests_total{code=\"500\"} 1",
            "http_request_duration_seconds_bucket{le=\"0.001\"} 1",
            "http_request_duration_seconds_bucket{le=\"0.020\"} 2",
            "http_request_duration_seconds_bucket{le=\"5.000\"} 3",
            "http_request_duration_seconds_bucket{le=\"+Inf\"} 4",
            "http_request_duration_seconds_sum 60.042000",
            "http_request_duration_seconds_count 4",
            "process_start_time_seconds 1.5",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
        }
    }
}
