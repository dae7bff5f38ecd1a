//! From evidence to verdicts.
//!
//! Owns: what one criterion or one test of a trigger says of the numbers laid
//! before it, and the sentence that explains it. Must not: choose the numbers (the
//! rollout does) or follow from a verdict.
//!
//! The pooled value is held against the limit as it is. One host alone is judged
//! too (one of a hundred that fails everything is 1 %), but what is said of many
//! hosts at once is wrong for one of them sooner or later by chance: shares and
//! quantiles of one host count only where the limit lies outside their one-sided
//! 99 % Wilson interval. See STATISTICS.md.

mod stats;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{HostName, Millis, Number};

use super::tally::Tally;
use super::{Criterion, Judgement, Kind, Metric, Observed, Reference, Test, TriggerTest, Verdict};
use crate::condition::Op;

/// A rate of one host is judged alone only from so many requests: a tenth of them
/// is chance.
const RATE_SAMPLES: u64 = 100;
/// Most errors named in one reason.
const ERRORS_NAMED: usize = 3;
/// Most hosts whose events are named in one reason.
const SAID_NAMED: usize = 3;

/// What there is about one metric.
#[derive(Clone, Debug, Default)]
pub struct Exhibit {
    /// The changed hosts together, over the observation or the trigger's window;
    /// the times of the hosts added up, so that a rate is that of one host.
    pub changed: Option<(Tally, Millis)>,
    /// The same, over the shortest recent time that has enough samples.
    pub recent: Option<(Tally, Millis)>,
    /// Each changed host.
    pub hosts: Vec<HostExhibit>,
    /// The hosts not changed yet, together, over the same time.
    pub control: Option<(Tally, Millis)>,
    /// Sealed before the first swap.
    pub baseline: Option<Observed>,
    /// Of events: the last one of each changed host that had one.
    pub said: Vec<(HostName, String)>,
    /// Sources that cannot be read now, one sentence each.
    pub errors: Vec<String>,
}

/// One changed host.
#[derive(Clone, Debug)]
pub struct HostExhibit {
    /// Which.
    pub host: HostName,
    /// Over the observation or the window.
    pub window: (Tally, Millis),
    /// Over the shortest recent time that has enough samples.
    pub recent: Option<(Tally, Millis)>,
}

/// A trigger's test that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trip {
    /// What was seen.
    pub observed: Number,
    /// Beyond what.
    pub limit: Number,
    /// From how many samples.
    pub samples: u64,
    /// The one host that decided, if it was not the pooled value.
    pub host: Option<HostName>,
    /// One sentence.
    pub reason: String,
}

/// The value that a test is relative to.
struct Against {
    value: f64,
    /// What it rests on; none where nobody counted.
    samples: u64,
    /// `of the baseline 80ms`, and what is missing.
    words: String,
}

/// One comparison; a band is two.
#[derive(Clone, Copy)]
struct Bound {
    op: Op,
    limit: f64,
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self.op {
            Op::Less => value < self.limit,
            Op::AtMost => value <= self.limit,
            Op::More => value > self.limit,
            Op::AtLeast => value >= self.limit,
            Op::Equal => value == self.limit,
        }
    }

    /// How the value lies on the side that does not hold, or (`holding`) on the
    /// one that does, beyond doubt: none where the tally cannot say.
    fn surely(self, tally: &Tally, kind: Kind, holding: bool) -> Option<bool> {
        let (hits, total) = tally.above(self.limit)?;
        let expected = match kind {
            Kind::Ratio => self.limit / 100.0,
            Kind::Quantile { permille } => 1.0 - f64::from(permille) / 1_000.0,
            _ => return None,
        };
        let upwards = match self.op {
            Op::More | Op::AtLeast => holding,
            Op::Less | Op::AtMost => !holding,
            // Not to be exactly this: which side does not matter.
            Op::Equal => return None,
        };
        Some(if upwards { stats::wilson_lower(hits, total) > expected } else { stats::wilson_upper(hits, total) < expected })
    }
}

/// What a set of comparisons says of one value.
struct Seen {
    value: f64,
    samples: u64,
    holds: bool,
    /// The comparison that does not hold, else the first.
    bound: Bound,
}

fn number(value: f64) -> Number {
    Number::new(value).unwrap_or(Number::ZERO)
}

/// A number as people write it: four digits behind the point at most, more only
/// for what is tiny.
fn digits(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.01 || v == 0.0 => format!("{value:.4}"),
        _ => format!("{value:.6}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

const fn sign(op: Op) -> &'static str {
    match op {
        Op::Less => "<",
        Op::AtMost => "<=",
        Op::More => ">",
        Op::AtLeast => ">=",
        Op::Equal => "==",
    }
}

/// What one sample of a kind is.
const fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Ratio | Kind::Rate => "requests",
        Kind::Count => "events",
        Kind::Quantile { .. } | Kind::Percent | Kind::Value => "samples",
    }
}

/// Whether the samples of a metric are few enough to say nothing. What is counted
/// as events or over time speaks by its absence too.
const fn needs_samples(kind: Kind) -> bool {
    !matches!(kind, Kind::Count | Kind::Rate)
}

fn reference_of(test: &Test) -> Option<Reference> {
    match test {
        Test::Limit { .. } => None,
        Test::OfBaseline { .. } => Some(Reference::Baseline),
        Test::Within { of, .. } | Test::Margin { of, .. } | Test::Band { of, .. } => Some(*of),
    }
}

/// The value a test is relative to; `Err` says why there is none.
fn against(test: &Test, metric: &Metric, exhibit: &Exhibit, min_samples: u64) -> Result<Option<Against>, String> {
    let Some(reference) = reference_of(test) else { return Ok(None) };
    let unit = metric.kind.unit();
    let mut instead = "";
    if reference == Reference::Control {
        if let Some((tally, over)) = &exhibit.control
            && tally.samples() >= if metric.kind == Kind::Rate { 0 } else { min_samples.max(1) }
            && let Some(value) = tally.value(metric.kind, *over)
        {
            let words = format!("the control group's {}{unit}", digits(value));
            return Ok(Some(Against { value, samples: tally.samples(), words }));
        }
        instead = match &exhibit.control {
            Some(_) => " (the control group has too few samples)",
            None => " (there is no control group)",
        };
    }
    match &exhibit.baseline {
        Some(Observed { value: Some(value), samples, .. }) => {
            let few =
                if needs_samples(metric.kind) && *samples < min_samples { format!(" of only {samples} samples") } else { String::new() };
            let words = format!("the baseline's {}{unit}{few}{instead}", digits(value.get()));
            Ok(Some(Against { value: value.get(), samples: *samples, words }))
        }
        Some(_) => Err(format!("no baseline: it was sealed without a sample{instead}")),
        None => Err(format!("no baseline: nothing was sealed before the first swap{instead}")),
    }
}

/// The comparisons that a test stands for. A reference of a ratio is never taken
/// for smaller than its samples, or those judged, could show (rule of three).
fn bounds(test: &Test, metric: &Metric, against: Option<&Against>, samples: u64) -> (Bound, Option<Bound>) {
    let reference = against.map_or(0.0, |a| match metric.kind {
        Kind::Ratio => a.value.max(100.0 * stats::smallest_share(a.samples.min(samples.max(1)))),
        _ => a.value,
    });
    let one_sided = |room: f64| {
        if metric.higher_is_worse {
            Bound { op: Op::AtMost, limit: reference + room }
        } else {
            Bound { op: Op::AtLeast, limit: reference - room }
        }
    };
    let share = |percent: Number| reference.abs() * percent.get() / 100.0;
    match test {
        Test::Limit { op, limit } => (Bound { op: *op, limit: limit.get() }, None),
        Test::OfBaseline { op, percent } => (Bound { op: *op, limit: reference * percent.get() / 100.0 }, None),
        Test::Within { percent, .. } => (one_sided(share(*percent)), None),
        Test::Margin { units, .. } => (one_sided(units.get()), None),
        Test::Band { percent, .. } => {
            let room = share(*percent);
            (Bound { op: Op::AtMost, limit: reference + room }, Some(Bound { op: Op::AtLeast, limit: reference - room }))
        }
    }
}

fn look(test: &Test, metric: &Metric, against: Option<&Against>, window: &(Tally, Millis)) -> Option<Seen> {
    let (tally, over) = window;
    let value = tally.value(metric.kind, *over)?;
    let samples = tally.samples();
    let (one, two) = bounds(test, metric, against, samples);
    let broken = [Some(one), two].into_iter().flatten().find(|b| !b.holds(value));
    Some(Seen { value, samples, holds: broken.is_none(), bound: broken.unwrap_or(one) })
}

fn enough(metric: &Metric, tally: &Tally, min_samples: u64, alone: bool) -> bool {
    match metric.kind {
        Kind::Count => true,
        Kind::Rate => tally.samples() >= if alone { min_samples.max(RATE_SAMPLES) } else { min_samples },
        _ => tally.samples() >= min_samples.max(1),
    }
}

/// How the limit reads: `limit < 0.1%`, `limit <= 110ms: 10% above the baseline's
/// 100ms`.
fn limit_words(test: &Test, metric: &Metric, bound: Bound, against: Option<&Against>) -> String {
    let unit = metric.kind.unit();
    let limit = format!("{} {}{unit}", sign(bound.op), digits(bound.limit));
    let Some(reference) = against else { return limit };
    let of = match test {
        Test::Limit { .. } => return limit,
        Test::OfBaseline { percent, .. } => format!("{}% of", digits(percent.get())),
        Test::Within { percent, .. } => format!("within {}% of", digits(percent.get())),
        Test::Margin { units, .. } => format!("within {}{} of", digits(units.get()), if unit == "%" { " points" } else { unit }),
        Test::Band { percent, .. } => format!("not {}% off", digits(percent.get())),
    };
    format!("{limit}, {of} {}", reference.words)
}

/// The verdict on one criterion.
///
/// - error: a source cannot be read; nothing else is looked at.
/// - inconclusive: too few samples, nothing to compare with, or it does not hold
///   and no trigger says roll back.
/// - fail: it does not hold, and is beyond what a trigger allows, beyond doubt; or
///   a count that only grows is beyond its limit.
/// - pass: it holds, for the changed hosts together and for each that can be
///   judged alone.
#[must_use]
pub fn judge(criterion: &Criterion, metric: &Metric, exhibit: &Exhibit) -> Judgement {
    let mut out = Judgement {
        name: criterion.name.clone(),
        metric: criterion.metric.clone(),
        verdict: Verdict::Inconclusive,
        observed: None,
        limit: None,
        unit: metric.kind.unit().into(),
        samples: exhibit.changed.as_ref().map_or(0, |(tally, _)| tally.samples()),
        reason: String::new(),
        host: None,
        advisory: criterion.advisory,
        perf: criterion.perf,
    };
    if let Test::Limit { limit, .. } = criterion.test {
        out.limit = Some(limit);
    }
    if !exhibit.errors.is_empty() {
        let more = exhibit.errors.len().saturating_sub(ERRORS_NAMED);
        let named: Vec<&str> = exhibit.errors.iter().take(ERRORS_NAMED).map(String::as_str).collect();
        let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
        (out.verdict, out.reason) = (Verdict::Error, format!("cannot be read: {}{rest}", named.join("; ")));
        return out;
    }
    let name = &criterion.metric;
    let Some(changed) = &exhibit.changed else {
        out.reason = format!("no reading of {name} since the observation began");
        return out;
    };
    out.observed = changed.0.value(metric.kind, changed.1).and_then(Number::new);
    if !enough(metric, &changed.0, criterion.min_samples, false) {
        let (least, what) = (criterion.min_samples.max(1), noun(metric.kind));
        out.reason = format!("{name}: {} {what}, {least} are needed", out.samples);
        return out;
    }
    let reference = match against(&criterion.test, metric, exhibit, criterion.min_samples) {
        Ok(reference) => reference,
        Err(why) => {
            out.reason = why;
            return out;
        }
    };
    let Some(pooled) = look(&criterion.test, metric, reference.as_ref(), changed) else {
        out.reason = format!("{name} has no value yet");
        return out;
    };
    let verdict = verdict_of(criterion, metric, exhibit, &pooled, changed);
    let mut worst = (verdict, pooled, None);
    // A group of one host is that host.
    for host in exhibit.hosts.iter().filter(|_| exhibit.hosts.len() > 1) {
        let (tally, _) = &host.window;
        if !enough(metric, tally, criterion.min_samples, true) {
            continue;
        }
        let Some(seen) = look(&criterion.test, metric, reference.as_ref(), &host.window) else { continue };
        if seen.holds || seen.bound.surely(tally, metric.kind, false) == Some(false) {
            continue;
        }
        let verdict = verdict_of(criterion, metric, exhibit, &seen, &host.window);
        let worse = match &worst {
            (than, ..) if verdict != *than => verdict > *than,
            // The pooled value says it already.
            (_, _, None) => false,
            (_, before, Some(_)) => distance(&seen) > distance(before),
        };
        if worse {
            worst = (verdict, seen, Some(host.host.clone()));
        }
    }
    let (verdict, seen, host) = worst;
    out.verdict = verdict;
    out.observed = Some(number(seen.value));
    out.limit = Some(number(seen.bound.limit));
    out.samples = seen.samples;
    out.reason = reason(criterion, metric, exhibit, &seen, reference.as_ref(), verdict, host.as_ref());
    out.host = host;
    out
}

fn distance(seen: &Seen) -> f64 {
    (seen.value - seen.bound.limit).abs()
}

fn verdict_of(criterion: &Criterion, metric: &Metric, exhibit: &Exhibit, seen: &Seen, window: &(Tally, Millis)) -> Verdict {
    if seen.holds {
        return Verdict::Pass;
    }
    // What only grows comes back from beyond a limit as little as a broken promise.
    let beyond = matches!(seen.bound.op, Op::Less | Op::AtMost) || (seen.bound.op == Op::Equal && seen.value > seen.bound.limit);
    if metric.kind == Kind::Count && beyond {
        return Verdict::Fail;
    }
    let Some(test) = &criterion.fails_beyond else { return Verdict::Inconclusive };
    let Ok(reference) = against(test, metric, exhibit, criterion.min_samples) else { return Verdict::Inconclusive };
    // A gate is looked at again and again, with fewer samples than its trigger may
    // want: what takes a rollout back must not be chance.
    if holds(test, metric, reference.as_ref(), window, true).is_some() { Verdict::Fail } else { Verdict::Inconclusive }
}

/// Whether a trigger's test holds, for one host alone beyond doubt.
fn holds(test: &Test, metric: &Metric, reference: Option<&Against>, window: &(Tally, Millis), surely: bool) -> Option<Seen> {
    let seen = look(test, metric, reference, window).filter(|seen| seen.holds)?;
    let doubted = surely && seen.bound.surely(&window.0, metric.kind, true) == Some(false);
    (!doubted).then_some(seen)
}

/// `; h2: "out of paper"`: whose events they were, and the last of each.
fn said(exhibit: &Exhibit, only: Option<&HostName>) -> String {
    let of = exhibit.said.iter().filter(|(host, _)| only.is_none_or(|only| host == only));
    let mut text: String = of.clone().take(SAID_NAMED).map(|(host, note)| format!("; {host}: {note:?}")).collect();
    let more = of.count().saturating_sub(SAID_NAMED);
    if more > 0 {
        text += &format!("; and {more} more");
    }
    text
}

fn reason(
    criterion: &Criterion,
    metric: &Metric,
    exhibit: &Exhibit,
    seen: &Seen,
    reference: Option<&Against>,
    verdict: Verdict,
    host: Option<&HostName>,
) -> String {
    let unit = metric.kind.unit();
    let whom = host.map_or_else(String::new, |host| format!(" on {host}"));
    let from = match metric.kind {
        Kind::Count => String::new(),
        kind => format!(", from {} {}", seen.samples, noun(kind)),
    };
    let limit = limit_words(&criterion.test, metric, seen.bound, reference);
    let value = digits(seen.value);
    let said = if seen.holds { String::new() } else { said(exhibit, host) };
    let head = format!("{}{whom} is {value}{unit}{from}; wanted {limit}{said}", criterion.metric);
    match (verdict, &criterion.fails_beyond) {
        (Verdict::Pass | Verdict::Error, _) => head,
        (Verdict::Fail, _) if metric.kind == Kind::Count => format!("{head}; it cannot come down again"),
        (Verdict::Fail | Verdict::Inconclusive, Some(test)) => format!("{head}; {}", back_words(test, metric, exhibit, seen, verdict)),
        (Verdict::Fail | Verdict::Inconclusive, None) => format!("{head}; no trigger says roll back"),
    }
}

/// How a value lies to the limit at which a rollout goes back.
fn back_words(test: &Test, metric: &Metric, exhibit: &Exhibit, seen: &Seen, verdict: Verdict) -> String {
    let reference = match against(test, metric, exhibit, 0) {
        Ok(reference) => reference,
        Err(why) => return format!("how bad is too bad cannot be said: {why}"),
    };
    let (bound, _) = bounds(test, metric, reference.as_ref(), seen.samples);
    let limit = limit_words(test, metric, bound, reference.as_ref());
    match (verdict, bound.holds(seen.value)) {
        (Verdict::Fail, _) => format!("beyond the rollback limit {limit}"),
        (_, true) => format!("beyond the rollback limit {limit}, which may be chance"),
        (_, false) => format!("not beyond the rollback limit {limit}"),
    }
}

/// Whether a trigger's test holds: over its window for the changed hosts together
/// as it is and for one host beyond doubt, or beyond doubt over the shortest
/// recent time that has enough samples. Counts need no minimum of them.
#[must_use]
pub fn trips(test: &TriggerTest, metric: &Metric, exhibit: &Exhibit) -> Option<Trip> {
    let reference = against(&test.test, metric, exhibit, test.min_samples).ok()?;
    // Twice nothing is not beyond anything.
    if reference.as_ref().is_some_and(|r| r.value == 0.0 && metric.kind != Kind::Ratio) {
        return None;
    }
    let reference = reference.as_ref();
    let judged = |window: &(Tally, Millis), alone: bool, surely: bool| {
        if !enough(metric, &window.0, test.min_samples, alone) {
            return None;
        }
        holds(&test.test, metric, reference, window, surely).map(|seen| (seen, window.1))
    };
    // Short times are looked at again and again: chance must be ruled out.
    let lately = |window: &(Tally, Millis), alone: bool| {
        let (tally, _) = window;
        let certain = matches!((metric.kind, tally), (Kind::Ratio | Kind::Quantile { .. }, Tally::Ratio { .. } | Tally::Histogram { .. }));
        let twice = tally.samples() >= test.min_samples.saturating_mul(2);
        if certain || twice || !needs_samples(metric.kind) { judged(window, alone, true) } else { None }
    };
    let pooled = exhibit.changed.as_ref().and_then(|w| judged(w, false, false)).map(|found| (found, "over"));
    let pooled = pooled.or_else(|| exhibit.recent.as_ref().and_then(|w| lately(w, false)).map(|found| (found, "over the last")));
    if let Some(((seen, over), words)) = pooled {
        let mut trip = trip(test, metric, reference, &seen, over, words, None);
        trip.reason += &said(exhibit, None);
        return Some(trip);
    }
    let hosts = exhibit.hosts.iter().filter_map(|host| {
        let window = judged(&host.window, true, true).map(|found| (found, "over"));
        let found = window.or_else(|| host.recent.as_ref().and_then(|w| lately(w, true)).map(|found| (found, "over the last")))?;
        Some((found, &host.host))
    });
    let worst = hosts.max_by(|((one, _), _), ((two, _), _)| distance(&one.0).total_cmp(&distance(&two.0)));
    worst.map(|(((seen, over), words), host)| {
        let mut trip = trip(test, metric, reference, &seen, over, words, Some(host));
        trip.reason += &said(exhibit, Some(host));
        trip
    })
}

fn trip(
    test: &TriggerTest,
    metric: &Metric,
    reference: Option<&Against>,
    seen: &Seen,
    over: Millis,
    words: &str,
    host: Option<&HostName>,
) -> Trip {
    let whom = host.map_or_else(|| "over the changed hosts together".to_string(), |host| format!("on {host}"));
    let unit = metric.kind.unit();
    let from = match metric.kind {
        Kind::Count => String::new(),
        kind => format!(" from {} {}", seen.samples, noun(kind)),
    };
    // A pooled time is that of all hosts added up.
    let time = if host.is_some() && over.0 > 0 { format!(" {words} {over}") } else { String::new() };
    let limit = limit_words(&test.test, metric, seen.bound, reference);
    Trip {
        observed: number(seen.value),
        limit: number(seen.bound.limit),
        samples: seen.samples,
        host: host.cloned(),
        reason: format!("{} is {}{unit} {whom}{from}{time}; limit {limit}", test.metric, digits(seen.value)),
    }
}
