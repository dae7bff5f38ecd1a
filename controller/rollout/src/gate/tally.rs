//! Cumulative readings, added and subtracted, and what value they come to.
//!
//! Owns: the arithmetic of counts, and the one way a quantile is read out of
//! buckets. Must not: know a host, a time of day or a limit.

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
    /// How many samples it has: requests, latencies, events, readings.
    #[must_use]
    pub fn samples(&self) -> u64 {
        match self {
            Self::Ratio { total, .. } => *total,
            Self::Histogram { counts, .. } => sum(counts),
            Self::Count(count) => *count,
            Self::Gauge { readings, .. } => *readings,
            Self::Answer { samples, .. } => *samples,
        }
    }

    /// What was added since `earlier`; none where the two do not fit together. A
    /// number that went down adds nothing.
    #[must_use]
    pub fn minus(&self, earlier: &Self) -> Option<Self> {
        Some(match (self, earlier) {
            (Self::Ratio { bad, total }, Self::Ratio { bad: b, total: t }) => {
                Self::Ratio { bad: bad.saturating_sub(*b), total: total.saturating_sub(*t) }
            }
            (Self::Histogram { bounds_us, counts }, Self::Histogram { bounds_us: bounds, counts: before }) => Self::Histogram {
                bounds_us: fitting(bounds_us, bounds, counts, before)?,
                counts: counts.iter().zip(before).map(|(now, then)| now.saturating_sub(*then)).collect(),
            },
            (Self::Count(now), Self::Count(then)) => Self::Count(now.saturating_sub(*then)),
            (Self::Gauge { sum, readings }, Self::Gauge { sum: s, readings: r }) => {
                Self::Gauge { sum: sum - s, readings: readings.saturating_sub(*r) }
            }
            _ => return None,
        })
    }

    /// Both together; none where the two do not fit together. Answers are values
    /// already and do not add up.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Option<Self> {
        Some(match (self, other) {
            (Self::Ratio { bad, total }, Self::Ratio { bad: b, total: t }) => {
                Self::Ratio { bad: bad.saturating_add(*b), total: total.saturating_add(*t) }
            }
            (Self::Histogram { bounds_us, counts }, Self::Histogram { bounds_us: bounds, counts: more }) => Self::Histogram {
                bounds_us: fitting(bounds_us, bounds, counts, more)?,
                counts: counts.iter().zip(more).map(|(one, two)| one.saturating_add(*two)).collect(),
            },
            (Self::Count(one), Self::Count(two)) => Self::Count(one.saturating_add(*two)),
            (Self::Gauge { sum, readings }, Self::Gauge { sum: s, readings: r }) => {
                Self::Gauge { sum: sum + s, readings: readings.saturating_add(*r) }
            }
            _ => return None,
        })
    }

    /// The value in the natural unit of `kind`; none without samples, or where the
    /// tally is not of that kind. `over` is how long was counted, for rates: that
    /// of one host, or of many added up, which makes it the rate of one host.
    #[must_use]
    pub fn value(&self, kind: Kind, over: Millis) -> Option<f64> {
        let value = match (self, kind) {
            (Self::Answer { value, .. }, _) => *value,
            (Self::Ratio { bad, total }, Kind::Ratio) if *total > 0 => *bad as f64 * 100.0 / *total as f64,
            (Self::Histogram { bounds_us, counts }, Kind::Quantile { permille }) => quantile_us(bounds_us, counts, permille)? / 1_000.0,
            (Self::Count(count), Kind::Count) => *count as f64,
            (Self::Count(count) | Self::Ratio { total: count, .. }, Kind::Rate) if over.0 > 0 => *count as f64 * 1_000.0 / over.0 as f64,
            // What is read in milliseconds is a latency, whoever worked it out.
            (Self::Gauge { sum, readings }, Kind::Percent | Kind::Value | Kind::Quantile { .. }) if *readings > 0 => sum / *readings as f64,
            _ => return None,
        };
        value.is_finite().then_some(value)
    }

    /// How many of the samples are the kind's evidence of being above `limit`, and
    /// how many there are: the bad requests of a ratio; the requests slower than
    /// the limit of a quantile, the bucket that holds it counted in proportion.
    /// None for what is no count of samples.
    #[must_use]
    pub(super) fn above(&self, limit: f64) -> Option<(f64, f64)> {
        match self {
            Self::Ratio { bad, total } if *total > 0 => Some(((*bad).min(*total) as f64, *total as f64)),
            Self::Histogram { bounds_us, counts } => {
                let total = sum(counts);
                (total > 0).then(|| (slower_than(bounds_us, counts, limit * 1_000.0), total as f64))
            }
            _ => None,
        }
    }
}

fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |all, count| all.saturating_add(*count))
}

fn fitting(one: &[u64], two: &[u64], counts: &[u64], others: &[u64]) -> Option<Vec<u64>> {
    (one == two && counts.len() == others.len()).then(|| one.to_vec())
}

/// As Prometheus' `histogram_quantile`: linear inside the bucket that holds the
/// rank, from zero in the first one; above the last bound, the last bound.
fn quantile_us(bounds_us: &[u64], counts: &[u64], permille: u16) -> Option<f64> {
    let highest = *bounds_us.last()? as f64;
    let total = sum(counts);
    if total == 0 {
        return None;
    }
    let rank = f64::from(permille) / 1_000.0 * total as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for (upper, count) in bounds_us.iter().zip(counts) {
        let (upper, count) = (*upper as f64, *count as f64);
        if count > 0.0 && below + count >= rank {
            return Some(lower + (upper - lower) * ((rank - below) / count).clamp(0.0, 1.0));
        }
        below += count;
        lower = upper;
    }
    Some(highest)
}

/// Nothing is known of how far beyond the last bound a latency was: it counts as
/// slower only than limits below that bound.
fn slower_than(bounds_us: &[u64], counts: &[u64], limit_us: f64) -> f64 {
    let (mut slower, mut lower) = (0.0, 0.0);
    for (index, count) in counts.iter().enumerate() {
        let count = *count as f64;
        match bounds_us.get(index) {
            Some(upper) => {
                let upper = *upper as f64;
                let width = (upper - lower).max(f64::MIN_POSITIVE);
                slower += count * ((upper - limit_us.max(lower)) / width).clamp(0.0, 1.0);
                lower = upper;
            }
            None if limit_us < lower => slower += count,
            None => {}
        }
    }
    slower
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const P50: Kind = Kind::Quantile { permille: 500 };
    const P99: Kind = Kind::Quantile { permille: 990 };

    fn histogram(counts: Vec<u64>) -> Tally {
        Tally::Histogram { bounds_us: vec![10_000, 20_000, 50_000], counts }
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let cases = [
            // all in the second bucket: linear between its bounds
            (vec![0, 100, 0, 0], P50, 15.0),
            // all in the first one: from zero
            (vec![100, 0, 0, 0], P50, 5.0),
            // rank 50 is the end of the first bucket
            (vec![50, 50, 0, 0], P50, 10.0),
            // rank 99 of 100: 9 of the 10 in the third bucket
            (vec![80, 10, 10, 0], P99, 47.0),
            // in the overflow bucket: the highest bound
            (vec![10, 0, 0, 90], P50, 50.0),
        ];
        for (counts, kind, wanted) in cases {
            let value = histogram(counts.clone()).value(kind, Millis(0)).unwrap();
            assert!((value - wanted).abs() < 1e-9, "{counts:?}: {value}, {wanted} wanted");
        }
        assert_eq!(histogram(vec![0; 4]).value(P50, Millis(0)), None);
        assert_eq!(Tally::Histogram { bounds_us: vec![], counts: vec![7] }.value(P50, Millis(0)), None);
    }

    #[test]
    fn slower_than_a_limit_is_counted_in_proportion() {
        let all = histogram(vec![10, 20, 30, 40]);
        for (limit_ms, wanted) in [(0.0, 100.0), (10.0, 90.0), (15.0, 80.0), (20.0, 70.0), (35.0, 55.0), (50.0, 0.0), (80.0, 0.0)] {
            assert_eq!(all.above(limit_ms), Some((wanted, 100.0)), "{limit_ms}");
        }
        assert_eq!(all.above(49.0).map(|(n, _)| n > 40.0), Some(true));
        assert_eq!(histogram(vec![0; 4]).above(1.0), None);
    }

    #[test]
    fn values_and_what_has_none() {
        let ratio = Tally::Ratio { bad: 5, total: 1_000 };
        assert_eq!(ratio.value(Kind::Ratio, Millis(0)), Some(0.5));
        assert_eq!(ratio.value(Kind::Rate, Millis(10_000)), Some(100.0));
        assert_eq!(ratio.value(Kind::Rate, Millis(0)), None);
        assert_eq!(Tally::Ratio { bad: 0, total: 0 }.value(Kind::Ratio, Millis(1)), None);
        assert_eq!(Tally::Ratio { bad: 0, total: 0 }.value(Kind::Rate, Millis(1)), Some(0.0));
        assert_eq!(Tally::Count(0).value(Kind::Count, Millis(0)), Some(0.0));
        assert_eq!(Tally::Gauge { sum: 30.0, readings: 4 }.value(Kind::Percent, Millis(0)), Some(7.5));
        assert_eq!(Tally::Gauge { sum: 0.0, readings: 0 }.value(Kind::Value, Millis(0)), None);
        assert_eq!(Tally::Answer { value: 12.0, samples: 1 }.value(P99, Millis(0)), Some(12.0));
        assert_eq!(Tally::Answer { value: f64::NAN, samples: 1 }.value(Kind::Value, Millis(0)), None);
        assert_eq!(Tally::Count(3).value(Kind::Ratio, Millis(1)), None);
    }

    #[test]
    fn what_does_not_fit_together_says_so() {
        let other = Tally::Histogram { bounds_us: vec![10_000], counts: vec![1, 1] };
        assert_eq!(histogram(vec![1; 4]).plus(&other), None);
        assert_eq!(histogram(vec![1; 4]).minus(&other), None);
        assert_eq!(Tally::Count(1).plus(&Tally::Ratio { bad: 0, total: 1 }), None);
        let down = Tally::Ratio { bad: 3, total: 10 }.minus(&Tally::Ratio { bad: 4, total: 4 });
        assert_eq!(down, Some(Tally::Ratio { bad: 0, total: 6 }));
    }
}
