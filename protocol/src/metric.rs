//! What an agent measures beside a service, and how it says what it saw.
//!
//! Desired state again: [`Watch`]es come down whole, [`Samples`] go up whole.
//! Counters travel as cumulative values with the time they began at, so that a
//! lost message loses nothing and a restart is seen as one.

use alloc::string::String;
use alloc::vec::Vec;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::release::Argv;
use crate::side::Side;
use crate::{ComponentName, Millis, RolloutId};

/// A finite number: neither NaN nor infinite, so that it compares and is JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Number(f64);

// Sound: NaN cannot be made.
impl Eq for Number {}

impl Number {
    /// Zero.
    pub const ZERO: Self = Self(0.0);

    /// `None` for NaN and the infinities.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        value.is_finite().then_some(Self(value))
    }

    /// The value.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.0)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(d)?).ok_or_else(|| D::Error::custom("a finite number is wanted"))
    }
}

/// What shall be measured of one component while a rollout lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Which component.
    pub component: ComponentName,
    /// For logs.
    pub rollout: RolloutId,
    /// For `${side}`; none for a component that runs without sides.
    pub side: Option<Side>,
    /// Between two [`Samples`]; a critical message is said at once.
    pub every: Millis,
    /// At most [`crate::limits::OBSERVERS_MAX`].
    pub observers: Vec<Observer>,
}

/// One metric and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observer {
    /// As the plan names it; the key of its readings.
    pub metric: String,
    /// Where it comes from.
    pub source: Source,
}

/// Where an agent gets a metric from. Strings may hold `${…}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// GET at a steady rate. Readings: [`Reading::Ratio`] for `bad` requests
    /// (status 500 and above, timeout, no connection) or [`Reading::Histogram`] of
    /// the time to the end of the body. Observers with the same URL, rate and
    /// timeout share their requests.
    Probe {
        /// `http://…`, loopback unless local policy lists more.
        url: String,
        /// Requests per minute.
        per_minute: u32,
        /// Of one request.
        timeout: Millis,
        /// What is told.
        read: ProbeRead,
    },
    /// The service's own Prometheus endpoint, text format.
    Scrape {
        /// `http://…`, loopback unless local policy lists more.
        url: String,
        /// What is read out of it.
        read: ScrapeRead,
    },
    /// The service's own messages since the watch began. [`Reading::Count`].
    Journal {
        /// Which of them.
        what: JournalWhat,
        /// Texts that count as well.
        patterns: Vec<String>,
    },
    /// A command of the release or of `[commands]`: its last line of output is the
    /// value. [`Reading::Gauge`].
    Exec {
        /// The program and its arguments.
        run: Argv,
    },
    /// The component's own critical smoke tests, again. [`Reading::Ratio`] of
    /// rounds with a failed test.
    Smoke,
}

/// What is told of probe requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeRead {
    /// Bad ones of all.
    Errors,
    /// Their latency.
    Latency,
}

/// What is read from a Prometheus endpoint. Texts are series selectors as
/// `http_requests_total{code=~"5.."}`; matching series are added up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScrapeRead {
    /// Two counters. [`Reading::Ratio`].
    Ratio {
        /// Of these.
        bad: String,
        /// Out of these.
        total: String,
    },
    /// A histogram by its base name, in seconds. [`Reading::Histogram`].
    Histogram {
        /// Without `_bucket`.
        name: String,
    },
    /// One counter. [`Reading::Count`].
    Counter {
        /// Which.
        series: String,
    },
    /// One gauge. [`Reading::Gauge`].
    Gauge {
        /// Which.
        series: String,
    },
}

/// Which messages count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalWhat {
    /// Priority crit or worse, or one of the patterns.
    Critical,
    /// Distinct error messages (priority err or worse, or lines that read like
    /// one) that the baseline did not have.
    NewErrors,
    /// The built-in security patterns, and these.
    Security,
}

/// What was measured of one component, whole, each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// Which component.
    pub component: ComponentName,
    /// Which side was measured.
    pub side: Option<Side>,
    /// One per observer that has something to say.
    pub readings: Vec<MetricReading>,
}

/// The newest word of one observer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricReading {
    /// As in the [`Observer`].
    pub metric: String,
    /// When the counting began, Unix milliseconds: the main process's start for
    /// what the service counts, the observer's for what the agent counts. A later
    /// one means that counters began at zero again.
    pub since_unix_ms: u64,
    /// What was read.
    pub reading: Reading,
    /// The last bad thing seen, bounded: a message, a status, why it failed.
    pub note: Option<String>,
}

/// A reading. Counters are cumulative.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reading {
    /// Bad ones of all.
    Ratio {
        /// Bad ones.
        bad: u64,
        /// All.
        total: u64,
    },
    /// Latencies. `counts[i]` fell in (`bounds_us[i-1]`, `bounds_us[i]`]; the last
    /// count is of those above the last bound.
    Histogram {
        /// Upper bounds, microseconds, rising.
        bounds_us: Vec<u64>,
        /// One more than bounds.
        counts: Vec<u64>,
    },
    /// So many so far.
    Count(u64),
    /// The value now.
    Gauge(Number),
    /// The source cannot be read; `note` says why.
    Failed,
}
