//! Cumulative readings, added and subtracted.

use alloc::vec::Vec;

use tidegate_protocol::Millis;

use super::Kind;

/// What was counted over some time, by one host or by many together.
#[derive(Clone, Debug, PartialEq)]
pub enum Tally {
    /// Bad ones of all.
    Ratio {
        /// Bad ones.
        bad: u64,
        /// All.
        total: u64,
    },
    /// Latencies by bucket; one more count than bounds.
    Histogram {
        /// Upper bounds, microseconds.
        bounds_us: Vec<u64>,
        /// Per bucket, not cumulative.
        counts: Vec<u64>,
    },
    /// Events.
    Count(u64),
    /// Readings of a gauge: their sum and number.
    Gauge {
        /// Sum.
        sum: f64,
        /// How many.
        readings: u64,
    },
    /// An answer that is a value already.
    Answer {
        /// In the natural unit.
        value: f64,
        /// Behind it.
        samples: u64,
    },
}

impl Tally {
    /// How many samples it has.
    #[must_use]
    pub fn samples(&self) -> u64 {
        0
    }

    /// What was added since `earlier`; none where the two do not fit together.
    #[must_use]
    pub fn minus(&self, _earlier: &Self) -> Option<Self> {
        None
    }

    /// Both together; none where the two do not fit together.
    #[must_use]
    pub fn plus(&self, _other: &Self) -> Option<Self> {
        None
    }

    /// The value in the natural unit of `kind`; none without samples, or where the
    /// tally is not of that kind. `over` is how long was counted, for rates.
    #[must_use]
    pub fn value(&self, _kind: Kind, _over: Millis) -> Option<f64> {
        None
    }
}
