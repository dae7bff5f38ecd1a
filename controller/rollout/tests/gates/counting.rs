//! Tallies and series, as properties: however readings are split, thinned or
//! interrupted by restarts, nothing is lost and nothing counted twice.

use proptest::prelude::*;
use tidegate_protocol::metric::Reading;
use tidegate_rollout::gate::series::Series;

use super::*;

const BOUNDS: [u64; 3] = [1_000, 10_000, 100_000];

fn histogram(counts: &[u64]) -> Tally {
    Tally::Histogram { bounds_us: BOUNDS.to_vec(), counts: counts.to_vec() }
}

fn counts() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(0u64..1_000, 4)
}

/// One life of a process: what it had counted at each reading, rising.
fn lives() -> impl Strategy<Value = Vec<Vec<u64>>> {
    let life = proptest::collection::vec(0u64..50, 1..30);
    proptest::collection::vec(life, 1..6).prop_map(|lives| {
        let rising = |steps: Vec<u64>| {
            let mut sum = 0;
            steps
                .into_iter()
                .map(|step| {
                    sum += step;
                    sum
                })
                .collect()
        };
        lives.into_iter().map(rising).collect()
    })
}

/// Plays lives into a series, a reading a second; says when each came and what
/// had been counted in all.
fn play(series: &mut Series, lives: &[Vec<u64>]) -> Vec<(Timestamp, u64)> {
    let (mut out, mut before, mut now) = (Vec::new(), 0, Timestamp(1_000_000));
    for life in lives {
        let since = now.0;
        for total in life {
            now = now + Millis::from_secs(1);
            series.push(now, since, &Reading::Ratio { bad: total / 2, total: *total }, None);
            out.push((now, before + total));
        }
        before += life.last().copied().unwrap_or(0);
    }
    out
}

fn total(window: Option<(Tally, Millis)>) -> u64 {
    window.expect("something was heard").0.samples()
}

proptest! {
    #[test]
    fn a_fresh_series_counts_everything_over_all_restarts(lives in lives()) {
        let mut series = Series::fresh(1_000_000);
        let told = play(&mut series, &lives);
        let (at, all) = *told.last().unwrap();
        prop_assert_eq!(total(series.since(Timestamp(0))), all);
        prop_assert_eq!(series.last_at(), Some(at));
    }

    #[test]
    fn an_open_series_counts_from_its_first_reading(lives in lives()) {
        let mut series = Series::open();
        let told = play(&mut series, &lives);
        prop_assert_eq!(total(series.since(Timestamp(0))), told.last().unwrap().1 - told[0].1);
    }

    #[test]
    fn lost_readings_lose_nothing_that_a_later_one_says(lives in lives(), keep in proptest::collection::vec(any::<bool>(), 30)) {
        let mut series = Series::fresh(1_000_000);
        // The last reading of each life is heard.
        let heard: Vec<Vec<u64>> = lives
            .iter()
            .map(|life| life.iter().enumerate().filter(|(i, _)| keep[*i] || i + 1 == life.len()).map(|(_, n)| *n).collect())
            .collect();
        play(&mut series, &heard);
        prop_assert_eq!(total(series.since(Timestamp(0))), lives.iter().map(|life| life.last().unwrap()).sum::<u64>());
    }

    #[test]
    fn what_is_pinned_is_exact_however_long_ago(before in lives(), after in lives()) {
        let mut series = Series::fresh(1_000_000);
        let told = play(&mut series, &before);
        let (at, counted) = *told.last().unwrap();
        series.pin(at);
        // Later than all before it.
        let mut now = at;
        let (mut whole, mut life_before) = (0, 0);
        for life in &after {
            let since = now.0 + 1;
            for n in life {
                now = now + Millis(700);
                series.push(now, since, &Reading::Ratio { bad: 0, total: *n }, None);
                whole = life_before + n;
            }
            life_before += life.last().unwrap();
        }
        prop_assert_eq!(total(series.since(at)), whole);
        prop_assert_eq!(series.since(at).unwrap().1, now.since(at));
        prop_assert_eq!(total(series.since(Timestamp(0))), counted + whole);
    }

    #[test]
    fn recent_has_enough_and_stays_inside(lives in lives(), ago in 0u64..200, least in 1u64..200) {
        let mut series = Series::fresh(1_000_000);
        let (last, _) = *play(&mut series, &lives).last().unwrap();
        let from = last - Millis::from_secs(ago);
        let all = series.since(from);
        if let Some((tally, over)) = series.recent(from, least) {
            prop_assert!(tally.samples() >= least);
            prop_assert!(over <= last.since(from) || from < Timestamp(1_001_000));
            prop_assert!(tally.samples() <= total(all));
        } else if from < Timestamp(1_001_000) {
            prop_assert!(total(all) < least);
        }
    }

    #[test]
    fn parts_add_up_to_the_whole(parts in proptest::collection::vec(counts(), 1..8), permille in 1u16..1_000) {
        let whole: Vec<u64> = (0..4).map(|i| parts.iter().map(|p| p[i]).sum()).collect();
        let sum = parts.iter().skip(1).fold(histogram(&parts[0]), |sum, part| sum.plus(&histogram(part)).unwrap());
        prop_assert_eq!(&sum, &histogram(&whole));
        let kind = Kind::Quantile { permille };
        prop_assert_eq!(sum.value(kind, Millis(0)), histogram(&whole).value(kind, Millis(0)));
        prop_assert_eq!(sum.minus(&histogram(&parts[0])).unwrap().plus(&histogram(&parts[0])).unwrap(), sum.clone());
        if let Some(value) = sum.value(kind, Millis(0)) {
            prop_assert!((0.0..=100.0).contains(&value), "{}", value);
            let higher = sum.value(Kind::Quantile { permille: (permille + 50).min(999) }, Millis(0)).unwrap();
            prop_assert!(higher >= value);
        } else {
            prop_assert_eq!(sum.samples(), 0);
        }
    }
}

fn heard(series: &Series) -> Option<Tally> {
    series.since(Timestamp(0)).map(|(tally, _)| tally)
}

#[test]
fn what_the_process_before_counted_is_not_heard() {
    let mut series = Series::fresh(500);
    series.push(Timestamp(1_000), 499, &Reading::Count(80), None);
    series.push(Timestamp(1_100), 499, &Reading::Failed, Some("gone"));
    assert_eq!((series.since(Timestamp(0)), series.last_at(), series.error()), (None, None, None));
    series.push(Timestamp(1_200), 500, &Reading::Count(3), None);
    assert_eq!(heard(&series), Some(Tally::Count(3)));
    // At the very moment of an observation: a new process is counted whole, unless a mark says otherwise.
    assert_eq!(series.since(Timestamp(1_200)).map(|(tally, _)| tally), Some(Tally::Count(3)));
    series.pin(Timestamp(1_200));
    assert_eq!(series.since(Timestamp(1_200)).map(|(tally, _)| tally), Some(Tally::Count(0)));
    // The observation began before a word was heard: all of it counts.
    let mut series = Series::fresh(500);
    series.pin(Timestamp(900));
    series.push(Timestamp(1_000), 600, &Reading::Count(2), None);
    assert_eq!(series.since(Timestamp(900)), Some((Tally::Count(2), Millis(100))));
}

#[test]
fn a_number_that_went_down_is_a_reset() {
    let mut series = Series::open();
    for (bad, total) in [(1, 100), (2, 200), (1, 30), (1, 50)] {
        series.push(Timestamp(1_000 + total), 7, &Reading::Ratio { bad, total }, None);
    }
    // A clock that does not move back: the last two came at the time of the second.
    assert_eq!(heard(&series), Some(Tally::Ratio { bad: 2, total: 150 }));
    // Only the bad ones went down: no restart, nothing to add.
    series.push(Timestamp(9_000), 7, &Reading::Ratio { bad: 0, total: 60 }, None);
    assert_eq!(heard(&series), Some(Tally::Ratio { bad: 2, total: 160 }));
}

#[test]
fn other_buckets_are_a_new_origin() {
    let mut series = Series::open();
    let reading = |bounds: &[u64], counts: &[u64]| Reading::Histogram { bounds_us: bounds.to_vec(), counts: counts.to_vec() };
    series.push(Timestamp(1), 7, &reading(&[10], &[5, 5]), None);
    series.push(Timestamp(2), 7, &reading(&[10], &[8, 5]), None);
    series.push(Timestamp(3), 7, &reading(&[10, 20], &[8, 1, 4]), None);
    series.push(Timestamp(4), 7, &reading(&[10, 20], &[9, 1, 4]), None);
    assert_eq!(heard(&series), Some(Tally::Histogram { bounds_us: vec![10, 20], counts: vec![1, 0, 0] }));
    // A new process with other buckets counts from zero.
    series.push(Timestamp(5), 8, &reading(&[30], &[2, 0]), None);
    assert_eq!(heard(&series), Some(Tally::Histogram { bounds_us: vec![30], counts: vec![2, 0] }));
    // Nonsense is a source that cannot be read.
    series.push(Timestamp(6), 8, &reading(&[30], &[2]), None);
    assert_eq!(series.error(), Some((Timestamp(6), "a histogram without one count per bucket")));
}

#[test]
fn gauges_are_averaged_over_what_was_read_since() {
    let mut series = Series::open();
    for (at, value) in [(10, 4.0), (20, 8.0), (30, 6.0)] {
        series.push(Timestamp(at), 0, &Reading::Gauge(n(value)), None);
    }
    let mean = |from| series.since(Timestamp(from)).and_then(|(t, over)| t.value(Kind::Value, over));
    assert_eq!((mean(0), mean(10), mean(20), mean(30), mean(31)), (Some(6.0), Some(6.0), Some(6.0), None, None));
}

#[test]
fn a_source_in_error_says_since_when_until_it_answers() {
    let mut series = Series::open();
    series.push(Timestamp(1), 0, &Reading::Count(1), None);
    series.push(Timestamp(2), 0, &Reading::Failed, Some("refused"));
    series.push(Timestamp(3), 0, &Reading::Failed, None);
    assert_eq!(series.error(), Some((Timestamp(2), "the source cannot be read")));
    assert_eq!(series.last_at(), Some(Timestamp(1)));
    series.push(Timestamp(4), 0, &Reading::Count(3), None);
    assert_eq!((series.error(), heard(&series)), (None, Some(Tally::Count(2))));
}

#[test]
fn nothing_heard_since_is_no_evidence() {
    let mut series = Series::open();
    series.push(Timestamp(10), 0, &Reading::Count(1), None);
    series.pin(Timestamp(11));
    assert_eq!(series.since(Timestamp(11)), None);
    series.push(Timestamp(20), 0, &Reading::Count(1), None);
    assert_eq!(series.since(Timestamp(11)), Some((Tally::Count(0), Millis(10))));
}

#[test]
fn a_fresh_rate_is_over_the_time_that_was_counted() {
    let mut series = Series::fresh(5_000);
    series.push(Timestamp(6_000), 5_000, &Reading::Count(10), None);
    series.push(Timestamp(7_000), 5_000, &Reading::Count(20), None);
    assert_eq!(series.since(Timestamp(0)), Some((Tally::Count(20), Millis(2_000))));
    // A host whose clock is far off is bounded by what was asked for.
    let mut series = Series::fresh(1);
    series.push(Timestamp(6_000), 1, &Reading::Count(10), None);
    assert_eq!(series.since(Timestamp(4_000)), Some((Tally::Count(10), Millis(2_000))));
}
