//! One metric of one host over time: cumulative readings in, growth out.
//!
//! Owns: what a restart, a lost reading or a new observer means for a count, and
//! how much of the past is kept. Must not: know what the numbers are judged by.
//!
//! Counts are summed up over epochs: each later `since_unix_ms` begins at zero
//! again, and what was there before stays counted. Of the past at most
//! `KEPT` points remain, dense near the present and sparse far from it, so that
//! ten thousand hosts fit in one process.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::metric::Reading;
use tidegate_protocol::{Millis, Timestamp};

use super::tally::Tally;

/// Points kept beside the pinned one.
const KEPT: usize = 16;
/// Longest text kept of a failure, bytes.
const WHY_BYTES_MAX: usize = 512;

/// One metric of one host.
#[derive(Clone, Debug, Default)]
pub struct Series {
    error: Option<(Timestamp, String)>,
    /// What the last good reading said of itself.
    note: Option<String>,
    /// Readings whose counting began before it are not heard.
    process: Option<u64>,
    shape: Shape,
    /// The epoch of `raw`.
    since_unix_ms: u64,
    /// The last good reading, as it came.
    raw: Counts,
    /// When what `points` counts began at zero; none where the first reading is
    /// the zero.
    zero: Option<Timestamp>,
    /// Rising; the last one is the newest good reading.
    points: Vec<Point>,
    pinned: Option<Point>,
}

/// What the readings are.
#[derive(Clone, Debug, Default, PartialEq)]
enum Shape {
    #[default]
    Unknown,
    Ratio,
    Histogram(Box<[u64]>),
    Count,
    Gauge,
}

/// The numbers of one reading, or of all so far: without what [`Shape`] knows.
#[derive(Clone, Debug, Default, PartialEq)]
enum Counts {
    #[default]
    Zero,
    Two(u64, u64),
    Many(Box<[u64]>),
    Sum(f64, u64),
}

/// All that was counted up to a time.
#[derive(Clone, Debug)]
struct Point {
    at: Timestamp,
    counts: Counts,
}

impl Counts {
    /// Growth from `before` to `self`, two readings of one epoch. A total that
    /// went down is a reset: everything there was counted since.
    fn growth(&self, before: &Self) -> Self {
        match (self, before) {
            (Self::Two(one, two), Self::Two(was, all)) if two >= all => Self::Two(one.saturating_sub(*was), two - all),
            (Self::Many(now), Self::Many(then)) if total(now) >= total(then) => {
                Self::Many(now.iter().zip(then).map(|(n, t)| n.saturating_sub(*t)).collect())
            }
            _ => self.clone(),
        }
    }

    fn add(&self, more: &Self) -> Self {
        match (self, more) {
            (Self::Two(a, b), Self::Two(c, d)) => Self::Two(a.saturating_add(*c), b.saturating_add(*d)),
            (Self::Many(a), Self::Many(b)) => Self::Many(a.iter().zip(b).map(|(a, b)| a.saturating_add(*b)).collect()),
            (Self::Sum(a, n), Self::Sum(b, m)) => Self::Sum(a + b, n.saturating_add(*m)),
            _ => more.clone(),
        }
    }
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
}

impl Shape {
    fn of(reading: &Reading) -> Option<(Self, Counts)> {
        Some(match reading {
            Reading::Ratio { bad, total } => (Self::Ratio, Counts::Two(*bad, *total)),
            Reading::Count(count) => (Self::Count, Counts::Two(0, *count)),
            Reading::Histogram { bounds_us, counts } if counts.len() == bounds_us.len() + 1 => {
                (Self::Histogram(bounds_us.as_slice().into()), Counts::Many(counts.as_slice().into()))
            }
            Reading::Gauge(value) => (Self::Gauge, Counts::Sum(value.get(), 1)),
            Reading::Histogram { .. } | Reading::Failed => return None,
        })
    }

    fn tally(&self, counts: &Counts) -> Option<Tally> {
        Some(match (self, counts) {
            (Self::Ratio, Counts::Two(bad, total)) => Tally::Ratio { bad: *bad, total: *total },
            (Self::Ratio, Counts::Zero) => Tally::Ratio { bad: 0, total: 0 },
            (Self::Count, Counts::Two(_, count)) => Tally::Count(*count),
            (Self::Count, Counts::Zero) => Tally::Count(0),
            (Self::Histogram(bounds), Counts::Many(counts)) => Tally::Histogram { bounds_us: bounds.to_vec(), counts: counts.to_vec() },
            (Self::Histogram(bounds), Counts::Zero) => {
                Tally::Histogram { bounds_us: bounds.to_vec(), counts: alloc::vec![0; bounds.len() + 1] }
            }
            (Self::Gauge, Counts::Sum(sum, readings)) => Tally::Gauge { sum: *sum, readings: *readings },
            (Self::Gauge, Counts::Zero) => Tally::Gauge { sum: 0.0, readings: 0 },
            _ => return None,
        })
    }
}

impl Series {
    /// Of a host that runs on: what is counted begins with the first reading.
    #[must_use]
    pub fn open() -> Self {
        Self::default()
    }

    /// Of a host whose process began at `process_unix_ms` (the host's clock):
    /// readings whose counting began before it are of the process before and are
    /// not heard; the first one that is heard counts from zero.
    #[must_use]
    pub fn fresh(process_unix_ms: u64) -> Self {
        Self { process: Some(process_unix_ms), ..Self::default() }
    }

    /// Takes a reading in. `note` says why one failed, or what was counted last.
    pub fn push(&mut self, now: Timestamp, since_unix_ms: u64, reading: &Reading, note: Option<&str>) {
        if self.process.is_some_and(|process| since_unix_ms < process) {
            return;
        }
        let Some((shape, raw)) = Shape::of(reading) else {
            let why = match reading {
                Reading::Failed => note.unwrap_or("the source cannot be read"),
                _ => "a histogram without one count per bucket",
            };
            self.failed(now, why);
            return;
        };
        self.error = None;
        self.note = note.map(short);
        if self.shape != shape {
            self.begin(now, since_unix_ms, shape, raw);
            return;
        }
        let grown = if since_unix_ms > self.since_unix_ms { raw.clone() } else { raw.growth(&self.raw) };
        let counts = self.points.last().map_or_else(|| grown.clone(), |last| last.counts.add(&grown));
        self.since_unix_ms = since_unix_ms;
        self.raw = raw;
        self.keep(Point { at: now, counts });
    }

    /// The first reading, or the first with another shape or other buckets.
    fn begin(&mut self, now: Timestamp, since_unix_ms: u64, shape: Shape, raw: Counts) {
        let first = self.shape == Shape::Unknown;
        let new_epoch = !first && since_unix_ms > self.since_unix_ms;
        // What a gauge says is a sample by itself.
        let from_zero = shape == Shape::Gauge || new_epoch || (first && self.process.is_some());
        // How long was counted before the first word is only known on the host's
        // clock; a wrong one is bounded by what is asked for.
        self.zero = from_zero.then_some(if shape == Shape::Gauge { now } else { Timestamp(since_unix_ms).min(now) });
        // A mark set before anything was heard is the zero itself.
        let mark = self.pinned.take().filter(|p| first && from_zero && p.counts == Counts::Zero);
        self.pinned = mark;
        self.points = Vec::new();
        let counts = if from_zero { raw.clone() } else { raw.growth(&raw) };
        (self.shape, self.since_unix_ms, self.raw) = (shape, since_unix_ms, raw);
        self.points.push(Point { at: now, counts });
    }

    fn failed(&mut self, now: Timestamp, why: &str) {
        let why = short(why);
        let since = self.error.as_ref().map_or(now, |(since, _)| *since);
        self.error = Some((since, why));
    }

    /// Adds a point; of too many, the one goes whose neighbours are closest for
    /// their age. The first and the last stay.
    fn keep(&mut self, point: Point) {
        if let Some(last) = self.points.last_mut().filter(|last| last.at >= point.at) {
            last.counts = point.counts;
            return;
        }
        let now = point.at;
        self.points.push(point);
        if self.points.len() <= KEPT {
            return;
        }
        let mut closest = None;
        for (index, near) in self.points.windows(3).enumerate() {
            let [before, _, after] = near else { continue };
            let gap = after.at.since(before.at).0 as f64 / (now.since(after.at).0 + 1) as f64;
            if closest.is_none_or(|(_, least)| gap < least) {
                closest = Some((index + 1, gap));
            }
        }
        if let Some((index, _)) = closest {
            self.points.remove(index);
        }
    }

    /// Since when the source cannot be read, and why; none once it answers again.
    #[must_use]
    pub fn error(&self) -> Option<(Timestamp, &str)> {
        self.error.as_ref().map(|(at, why)| (*at, why.as_str()))
    }

    /// What the last good reading said of itself: the last message that counted.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// When the last good reading came.
    #[must_use]
    pub fn last_at(&self) -> Option<Timestamp> {
        self.points.last().map(|p| p.at)
    }

    /// Keeps the present reading exactly, as the beginning of an observation.
    pub fn pin(&mut self, now: Timestamp) {
        self.pinned = Some(self.points.last().cloned().unwrap_or(Point { at: now, counts: Counts::Zero }));
    }

    /// Growth since `from`, and over how long: from the last reading at or before
    /// it, a pinned one if there is one, else from the first one after it; of what
    /// counts from zero all of it, where the first reading came at `from` or later.
    /// None as long as nothing was heard since `from`.
    #[must_use]
    pub fn since(&self, from: Timestamp) -> Option<(Tally, Millis)> {
        let last = self.points.last().filter(|last| last.at >= from)?;
        let before = self.points.iter().rev().find(|p| p.at <= from);
        // What a new process said first, at that very moment, is said of after it.
        let first = self.points.first().map(|p| p.at);
        let before = before.filter(|b| self.zero.is_none() || b.at < from || Some(b.at) != first);
        let pinned = self.pinned.as_ref().filter(|p| p.at <= from && before.is_none_or(|b| b.at <= p.at));
        match (pinned.or(before), self.zero) {
            (Some(base), _) => self.between(base, last),
            (None, Some(zero)) => {
                let first = self.points.first().map_or(last.at, |p| p.at);
                let began = zero.clamp(from.min(first), first);
                Some((self.shape.tally(&last.counts)?, last.at.since(began)))
            }
            (None, None) => self.between(self.points.first()?, last),
        }
    }

    /// As [`Series::since`], but only between two readings: over a time that is
    /// known, as a rate needs it.
    #[must_use]
    pub fn paced(&self, from: Timestamp) -> Option<(Tally, Millis)> {
        let last = self.points.last().filter(|last| last.at >= from)?;
        let pinned = self.pinned.as_ref().filter(|p| p.at <= from && !matches!(p.counts, Counts::Zero));
        let before = self.points.iter().rev().find(|p| p.at <= from).or_else(|| self.points.first());
        let base = match (pinned, before) {
            (Some(pinned), Some(before)) if before.at <= from && before.at > pinned.at => before,
            (Some(pinned), _) => pinned,
            (None, before) => before?,
        };
        self.between(base, last).filter(|(_, over)| over.0 > 0)
    }

    /// Growth since the first reading, whatever began to be counted before it.
    #[must_use]
    pub fn heard(&self) -> Option<(Tally, Millis)> {
        self.between(self.points.first()?, self.points.last()?)
    }

    /// Growth over the shortest recent time that has `min_samples`, never
    /// reaching before `from`.
    #[must_use]
    pub fn recent(&self, from: Timestamp, min_samples: u64) -> Option<(Tally, Millis)> {
        let last = self.points.last()?;
        let enough = |window: &(Tally, Millis)| window.0.samples() >= min_samples.max(1);
        let within = self.points.iter().rev().skip(1).take_while(|p| p.at >= from);
        if let Some(window) = within.filter_map(|base| self.between(base, last)).find(enough) {
            return Some(window);
        }
        // All of it is recent.
        let all = self.zero.is_some() && self.points.first().is_some_and(|first| first.at >= from);
        if all { self.since(from).filter(enough) } else { None }
    }

    fn between(&self, base: &Point, last: &Point) -> Option<(Tally, Millis)> {
        let grown = self.shape.tally(&last.counts)?.minus(&self.shape.tally(&base.counts)?)?;
        Some((grown, last.at.since(base.at)))
    }
}

fn short(text: &str) -> String {
    let mut end = text.len().min(WHY_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The past is thinned: little is kept, and what a window reaches back to is
    /// not much older than what was asked.
    #[test]
    fn a_day_of_readings_keeps_few_and_stays_close() {
        let mut series = Series::open();
        let begin = Timestamp(1_000_000);
        let mut now = begin;
        for n in 0..5_760u64 {
            now = begin + Millis::from_secs(15 * n);
            series.push(now, 7, &Reading::Count(n), None);
            assert!(series.points.len() <= KEPT, "{}", series.points.len());
            assert!(series.points.is_sorted_by(|a, b| a.at < b.at));
        }
        assert_eq!(series.points.first().map(|p| p.at), Some(begin));
        for minutes in [1, 5, 15, 60, 600] {
            let asked = Millis::from_secs(60 * minutes);
            let (tally, over) = series.since(now - asked).unwrap();
            assert_eq!(tally, Tally::Count(over.0 / 15_000));
            assert!(over >= asked && over.0 <= asked.0 * 5 / 2, "{asked}: {over}");
        }
    }

    #[test]
    fn a_failure_is_kept_short_and_whole() {
        let mut series = Series::open();
        series.push(Timestamp(1), 0, &Reading::Failed, Some(&"\u{e9}".repeat(WHY_BYTES_MAX)));
        assert_eq!(series.error().map(|(_, why)| why.len()), Some(WHY_BYTES_MAX));
        series.push(Timestamp(2), 0, &Reading::Failed, Some(&alloc::format!("x{}", "\u{e9}".repeat(WHY_BYTES_MAX))));
        assert_eq!(series.error().map(|(at, why)| (at, why.len())), Some((Timestamp(1), WHY_BYTES_MAX - 1)));
    }
}
