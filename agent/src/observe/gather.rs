//! What one read of a scrape gathers from the series that pass by, and the
//! reading that comes of it.

use std::collections::BTreeMap;

use tidegate_protocol::limits::BUCKETS_MAX;
use tidegate_protocol::metric::{Number, Reading, ScrapeRead};

use super::exposition::{BadSelector, Line, Selector, Series, number, read};

/// Names remembered for a message.
const NAMES_MAX: usize = 2_000;
/// Names and series that a message shows.
const SHOWN: usize = 6;

/// Reads an exposition once for all of these: each has its reading, or a sentence
/// on what is missing.
pub(super) fn gather(text: &str, reads: &[Result<Gather, String>]) -> Vec<Result<Reading, String>> {
    let mut gathers: Vec<Result<Gather, String>> = reads.to_vec();
    let mut names: BTreeMap<&str, ()> = BTreeMap::new();
    let each = &mut |line: Line<'_>| gathers.iter_mut().flatten().for_each(|gather| gather.take(&line));
    let outcome = read(text, &mut |line| {
        if let Line::Series(Series { name, .. }) = &line
            && names.len() < NAMES_MAX
        {
            names.insert(name, ());
        }
        each(line);
    });
    let names: Vec<&str> = names.into_keys().collect();
    let finish = |gather: Result<Gather, String>| match &outcome {
        Ok(()) => gather.and_then(|gather| gather.finish(&names)),
        Err(bad) => gather.and(Err(bad.to_string())),
    };
    gathers.into_iter().map(finish).collect()
}

/// One read under way.
#[derive(Clone, Debug)]
pub(super) enum Gather {
    Ratio { bad: Sum, total: Sum },
    Histogram(Buckets),
    Counter(Sum),
    Gauge(Sum),
}

impl Gather {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// A text that is no selector.
    pub(super) fn new(read: &ScrapeRead) -> Result<Self, BadSelector> {
        Ok(match read {
            ScrapeRead::Ratio { bad, total } => Self::Ratio { bad: Sum::new(bad)?, total: Sum::new(total)? },
            ScrapeRead::Histogram { name } => Self::Histogram(Buckets::new(name)?),
            ScrapeRead::Counter { series } => Self::Counter(Sum::new(series)?),
            ScrapeRead::Gauge { series } => Self::Gauge(Sum::new(series)?),
        })
    }

    fn take(&mut self, line: &Line<'_>) {
        match self {
            Self::Ratio { bad, total } => {
                bad.take(line);
                total.take(line);
            }
            Self::Histogram(buckets) => buckets.take(line),
            Self::Counter(sum) | Self::Gauge(sum) => sum.take(line),
        }
    }

    fn finish(self, names: &[&str]) -> Result<Reading, String> {
        match self {
            Self::Ratio { bad, total } => {
                let all = total.counted(names)?;
                // A series of failures often is not there before the first one.
                let same = bad.selector.name == total.selector.name;
                let bad = if same { bad.finite()?.map_or(Ok(0), whole)? } else { bad.counted(names)? };
                if bad > all {
                    return Err(format!("{bad} bad ones of {all}: `bad` must be a part of `total`"));
                }
                Ok(Reading::Ratio { bad, total: all })
            }
            Self::Histogram(buckets) => buckets.finish(names),
            Self::Counter(sum) => sum.counted(names).map(Reading::Count),
            Self::Gauge(sum) => {
                let value = sum.finite()?.ok_or_else(|| sum.missing(names))?;
                Number::new(value).map(Reading::Gauge).ok_or_else(|| format!("{} is not a finite number", sum.selector.name))
            }
        }
    }
}

/// Matching series, added up.
#[derive(Clone, Debug)]
pub(super) struct Sum {
    text: String,
    selector: Selector,
    /// A series or a family of that name is there.
    named: bool,
    sum: Option<f64>,
    /// The first one without a finite value.
    odd: Option<String>,
    /// Of that name, not matching.
    others: Vec<String>,
}

impl Sum {
    fn new(text: &str) -> Result<Self, BadSelector> {
        Ok(Self { text: text.trim().to_owned(), selector: Selector::parse(text)?, named: false, sum: None, odd: None, others: Vec::new() })
    }

    fn take(&mut self, line: &Line<'_>) {
        match line {
            // OpenMetrics leaves the suffix to the series.
            Line::Family(name) => {
                self.named |=
                    self.selector.name.strip_suffix("_total").unwrap_or(&self.selector.name) == *name || self.selector.name == *name
            }
            Line::Series(series) if series.name == self.selector.name => {
                self.named = true;
                if !self.selector.matches(series) {
                    if self.others.len() < SHOWN {
                        self.others.push(series.to_string());
                    }
                } else if series.value.is_finite() {
                    self.sum = Some(self.sum.unwrap_or_default() + series.value);
                } else if self.odd.is_none() {
                    self.odd = Some(format!("{series} is {}", series.value));
                }
            }
            Line::Series(_) => {}
        }
    }

    /// None if no series matches.
    fn finite(&self) -> Result<Option<f64>, String> {
        match &self.odd {
            Some(odd) => Err(odd.clone()),
            None => Ok(self.sum),
        }
    }

    /// A counter: 0 if only its name is there.
    fn counted(&self, names: &[&str]) -> Result<u64, String> {
        match self.finite()? {
            Some(sum) => whole(sum).map_err(|e| format!("{}: {e}", self.text)),
            None if self.named => Ok(0),
            None => Err(self.missing(names)),
        }
    }

    fn missing(&self, names: &[&str]) -> String {
        if self.others.is_empty() {
            no_such(&self.selector.name, names)
        } else {
            format!("no series matches {}; there are: {}", self.text, self.others.join(", "))
        }
    }
}

fn whole(sum: f64) -> Result<u64, String> {
    if sum < 0.0 { Err(format!("a counter is {sum}, which is below zero")) } else { Ok(sum.round() as u64) }
}

/// Nothing has this name: those most like it are named.
fn no_such(name: &str, names: &[&str]) -> String {
    if names.is_empty() {
        return format!("no series {name}; there is none at all");
    }
    let words: Vec<&str> = name.split(['_', ':']).collect();
    let alike = |other: &str| {
        let shared = other.split(['_', ':']).filter(|word| words.contains(word)).count();
        let begins = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        (shared, begins)
    };
    let mut sorted: Vec<&str> = names.to_vec();
    sorted.sort_by_key(|other| std::cmp::Reverse(alike(other)));
    sorted.truncate(SHOWN);
    let more = names.len() - sorted.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("no series {name}; there are: {}{more}", sorted.join(", "))
}

/// A histogram's buckets, by label set.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    selector: Selector,
    /// Of each label set: upper bound in microseconds (none for +Inf) and the
    /// cumulative count.
    sets: BTreeMap<String, Vec<(Option<u64>, f64)>>,
    odd: Option<String>,
}

impl Buckets {
    fn new(name: &str) -> Result<Self, BadSelector> {
        let mut selector = Selector::parse(name)?;
        if !selector.name.ends_with("_bucket") {
            selector.name.push_str("_bucket");
        }
        Ok(Self { selector, sets: BTreeMap::new(), odd: None })
    }

    fn take(&mut self, line: &Line<'_>) {
        let Line::Series(series) = line else { return };
        if series.name != self.selector.name || !self.selector.matches(series) || self.odd.is_some() {
            return;
        }
        let bound = series.label("le").and_then(number);
        let bound = match bound {
            Some(f64::INFINITY) => None,
            Some(seconds) if seconds.is_finite() => Some((seconds.max(0.0) * 1_000_000.0).round() as u64),
            _ => {
                self.odd = Some(format!("{series} has no bound in `le`"));
                return;
            }
        };
        if !series.value.is_finite() || series.value < 0.0 {
            self.odd = Some(format!("{series} is {}", series.value));
            return;
        }
        let set: String =
            series.labels.iter().filter(|(label, _)| *label != "le").map(|(label, value)| format!("{label}={value:?},")).collect();
        self.sets.entry(set).or_default().push((bound, series.value));
    }

    fn finish(mut self, names: &[&str]) -> Result<Reading, String> {
        if let Some(odd) = self.odd {
            return Err(odd);
        }
        if self.sets.is_empty() {
            return Err(no_such(&self.selector.name, names));
        }
        let mut merged: BTreeMap<u64, u64> = BTreeMap::new();
        let mut over = 0_u64;
        for (set, buckets) in &mut self.sets {
            // The one without a bound comes last.
            buckets.sort_by_key(|(bound, _)| bound.unwrap_or(u64::MAX));
            if !matches!(buckets.last(), Some((None, _))) {
                return Err(format!("{}{{{set}}} has no bucket with le=\"+Inf\"", self.selector.name));
            }
            let mut below = 0;
            for (bound, cumulative) in buckets.iter() {
                let upto = cumulative.round() as u64;
                // Read while it counts: a later bucket may be ahead, never behind.
                let inside =
                    upto.checked_sub(below).ok_or_else(|| format!("the buckets of {}{{{set}}} do not rise", self.selector.name))?;
                match bound {
                    Some(bound) => {
                        let count = merged.entry(*bound).or_default();
                        *count = count.saturating_add(inside);
                    }
                    None => over = over.saturating_add(inside),
                }
                below = upto;
            }
        }
        let (bounds_us, mut counts) = fewer(&merged);
        counts.push(over);
        Ok(Reading::Histogram { bounds_us, counts })
    }
}

/// As many bounds as may travel: of too many, neighbours are merged.
fn fewer(merged: &BTreeMap<u64, u64>) -> (Vec<u64>, Vec<u64>) {
    let step = merged.len().div_ceil(BUCKETS_MAX - 1).max(1);
    let all: Vec<(u64, u64)> = merged.iter().map(|(bound, count)| (*bound, *count)).collect();
    all.chunks(step)
        .map(|chunk| (chunk.last().map_or(0, |(bound, _)| *bound), chunk.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count))))
        .unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, read: &ScrapeRead) -> Result<Reading, String> {
        gather(text, &[Gather::new(read).map_err(|e| e.to_string())]).remove(0)
    }

    fn ratio(bad: &str, total: &str) -> ScrapeRead {
        ScrapeRead::Ratio { bad: bad.into(), total: total.into() }
    }

    const REQUESTS: &str = "# TYPE r_total counter\nr_total{code=\"200\",p=\"a\"} 90\nr_total{code=\"200\",p=\"b\"} 8\nr_total{code=\"503\",p=\"a\"} 2\nother_total 7\n";

    #[test]
    fn ratios_add_up_what_matches() {
        assert_eq!(one(REQUESTS, &ratio("r_total{code=~\"5..\"}", "r_total")), Ok(Reading::Ratio { bad: 2, total: 100 }));
        // No failure yet: its series is not there, the name is.
        assert_eq!(one(REQUESTS, &ratio("r_total{code=\"599\"}", "r_total")), Ok(Reading::Ratio { bad: 0, total: 100 }));
        assert_eq!(one(REQUESTS, &ratio("other_total", "r_total")), Ok(Reading::Ratio { bad: 7, total: 100 }));
        assert_eq!(
            one("# TYPE r counter\n# TYPE e_total counter\n", &ratio("e_total", "r_total")),
            Ok(Reading::Ratio { bad: 0, total: 0 })
        );
        let error = one(REQUESTS, &ratio("r_errors_total", "r_total")).unwrap_err();
        assert_eq!(error, "no series r_errors_total; there are: r_total, other_total");
        let error = one(REQUESTS, &ratio("r_total", "requests_total")).unwrap_err();
        assert!(error.starts_with("no series requests_total; there are: r_total"), "{error}");
        let error = one(REQUESTS, &ratio("r_total", "other_total")).unwrap_err();
        assert!(error.contains("100 bad ones of 7"), "{error}");
        assert_eq!(one("", &ratio("a", "b")), Err("no series b; there is none at all".into()));
    }

    #[test]
    fn nan_and_nonsense_are_failures() {
        for value in ["NaN", "+Inf", "-Inf", "-3"] {
            let text = format!("r_total{{code=\"500\"}} {value}\nr_total 5\nq {value}\n");
            let error = one(&text, &ratio("r_total{code=\"500\"}", "r_total")).unwrap_err();
            assert!(error.contains("r_total") || error.contains("below zero"), "{value}: {error}");
            let gauge = one(&text, &ScrapeRead::Gauge { series: "q".into() });
            assert_eq!(gauge.is_ok(), value == "-3", "{value}: {gauge:?}");
        }
        assert!(one("a b c\n", &ratio("a", "a")).unwrap_err().contains("line 1"));
        assert!(one("a 1\n", &ratio("sum(a)", "a")).unwrap_err().contains("sum(a)"));
    }

    #[test]
    fn gauges_and_counters() {
        let text = "q{n=\"a\"} 1.5\nq{n=\"b\"} 2\n";
        let gauge = |series: &str| one(text, &ScrapeRead::Gauge { series: series.into() });
        assert_eq!(gauge("q"), Ok(Reading::Gauge(Number::new(3.5).unwrap())));
        assert_eq!(gauge("q{n=\"c\"}").unwrap_err(), "no series matches q{n=\"c\"}; there are: q{n=\"a\"}, q{n=\"b\"}");
        assert_eq!(one(REQUESTS, &ScrapeRead::Counter { series: "r_total{p!=\"b\"}".into() }), Ok(Reading::Count(92)));
    }

    #[test]
    fn histograms_are_added_up_over_label_sets() {
        let text = concat!(
            "d_bucket{p=\"a\",le=\"0.005\"} 1\nd_bucket{p=\"a\",le=\"0.1\"} 4\nd_bucket{p=\"a\",le=\"+Inf\"} 5\nd_sum{p=\"a\"} 1\nd_count{p=\"a\"} 5\n",
            "d_bucket{p=\"b\",le=\"+Inf\"} 3\nd_bucket{p=\"b\",le=\"0.1\"} 2\nd_bucket{p=\"b\",le=\"5e-3\"} 2\n",
        );
        let read = |name: &str| ScrapeRead::Histogram { name: name.into() };
        let wanted = Reading::Histogram { bounds_us: vec![5_000, 100_000], counts: vec![3, 3, 2] };
        assert_eq!(one(text, &read("d")), Ok(wanted));
        let of_b = Reading::Histogram { bounds_us: vec![5_000, 100_000], counts: vec![2, 0, 1] };
        assert_eq!(one(text, &read("d{p=\"b\"}")), Ok(of_b));
        for (text, word) in [
            ("d_bucket{le=\"1\"} 1\n", "+Inf"),
            ("d_bucket{le=\"1\"} 5\nd_bucket{le=\"+Inf\"} 3\n", "do not rise"),
            ("d_bucket{le=\"x\"} 5\n", "le"),
            ("d_bucket 5\n", "le"),
            ("d_bucket{le=\"1\"} NaN\n", "NaN"),
            ("d_sum 5\n", "no series d_bucket"),
        ] {
            let error = one(text, &read("d")).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn counts_beyond_all_bounds_do_not_overflow() {
        let set = |p: &str| format!("d_bucket{{p=\"{p}\",le=\"1\"}} 1.8e19\nd_bucket{{p=\"{p}\",le=\"+Inf\"}} 1.8e19\n");
        let text = set("a") + &set("b");
        let wanted = Reading::Histogram { bounds_us: vec![1_000_000], counts: vec![u64::MAX, 0] };
        assert_eq!(one(&text, &ScrapeRead::Histogram { name: "d".into() }), Ok(wanted));
    }

    #[test]
    fn too_many_buckets_are_merged() {
        let line = |i: u64| format!("d_bucket{{le=\"{i}\"}} {i}\n");
        let text: String = (1..=200).map(line).chain(["d_bucket{le=\"+Inf\"} 205\n".to_owned()]).collect();
        let Ok(Reading::Histogram { bounds_us, counts }) = one(&text, &ScrapeRead::Histogram { name: "d".into() }) else { panic!() };
        assert!(counts.len() <= BUCKETS_MAX && counts.len() == bounds_us.len() + 1);
        assert_eq!((bounds_us.last(), counts.iter().sum::<u64>(), counts.last()), (Some(&200_000_000), 205, Some(&5)));
        assert!(bounds_us.is_sorted());
    }
}
