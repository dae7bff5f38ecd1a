//! When a trigger's test holds, and when it is only chance.

use tidegate_rollout::condition::Op;
use tidegate_rollout::gate::judge::{Exhibit, HostExhibit, trips};

use super::*;

fn test(test: Test, min_samples: u64) -> TriggerTest {
    TriggerTest { metric: "m".into(), test, min_samples }
}

fn more(limit: f64, min_samples: u64) -> TriggerTest {
    test(Test::Limit { op: Op::More, limit: n(limit) }, min_samples)
}

fn window(changed: (Tally, Millis)) -> Exhibit {
    Exhibit { changed: Some(changed), ..Exhibit::default() }
}

#[test]
fn over_the_window_it_is_the_plain_comparison() {
    let rate = more(1.0, 300);
    for (bad, total, trips_it) in [(3, 300, false), (4, 300, true), (299, 299, false), (0, 0, false), (20, 1_000, true)] {
        let trip = trips(&rate, &metric(Kind::Ratio), &window(ratio(bad, total)));
        assert_eq!(trip.is_some(), trips_it, "{bad}/{total}");
    }
    let trip = trips(&rate, &metric(Kind::Ratio), &window(ratio(20, 1_000))).unwrap();
    assert_eq!(trip.reason, "m is 2% over the changed hosts together from 1000 requests; limit > 1%");
    assert_eq!((trip.observed, trip.limit, trip.samples, trip.host), (n(2.0), n(1.0), 1_000, None));
    assert_eq!(trips(&rate, &metric(Kind::Ratio), &Exhibit::default()), None);
}

#[test]
fn a_short_time_must_be_beyond_doubt() {
    let rate = more(1.0, 300);
    let kind = metric(Kind::Ratio);
    // The window still looks good; the last samples do not.
    for (bad, total, trips_it) in [(4, 300, false), (7, 300, false), (8, 300, true), (299, 299, false)] {
        let exhibit = Exhibit { recent: Some(ratio(bad, total)), ..window(ratio(20, 100_000)) };
        let trip = trips(&rate, &kind, &exhibit);
        assert_eq!(trip.is_some(), trips_it, "{bad}/{total}");
    }
    // Gauges cannot rule out chance: twice the readings.
    let load = more(50.0, 10);
    for (readings, trips_it) in [(19u32, false), (20, true)] {
        let recent = (Tally::Gauge { sum: 90.0 * f64::from(readings), readings: readings.into() }, Millis(0));
        let exhibit = Exhibit { recent: Some(recent), ..window((Tally::Gauge { sum: 100.0, readings: 100 }, Millis(0))) };
        assert_eq!(trips(&load, &metric(Kind::Percent), &exhibit).is_some(), trips_it);
    }
}

#[test]
fn one_host_trips_beyond_doubt_and_the_worst_is_named() {
    let rate = more(1.0, 300);
    let host = |name: &str, window, recent| HostExhibit { host: name.parse().unwrap(), window, recent };
    let mut exhibit = window(ratio(10, 30_000));
    // Five of 300 are more than 1 %, and still chance among a hundred hosts.
    exhibit.hosts = vec![host("h1", ratio(5, 300), None), host("h2", ratio(5, 29_700), None)];
    assert_eq!(trips(&rate, &metric(Kind::Ratio), &exhibit), None);
    exhibit.hosts.push(host("h3", ratio(0, 400), Some(ratio(100, 300))));
    exhibit.hosts.push(host("h4", ratio(60, 300), None));
    let trip = trips(&rate, &metric(Kind::Ratio), &exhibit).unwrap();
    assert_eq!(trip.host, Some("h3".parse().unwrap()));
    assert_eq!(trip.reason, "m is 33.33% on h3 from 300 requests over the last 1m; limit > 1%");
}

#[test]
fn a_critical_error_needs_no_second_one() {
    let trip = trips(&more(0.0, 1_000), &metric(Kind::Count), &window((Tally::Count(1), Millis(0)))).unwrap();
    assert_eq!(trip.reason, "m is 1 over the changed hosts together; limit > 0");
    assert_eq!(trips(&more(0.0, 1), &metric(Kind::Count), &window((Tally::Count(0), Millis(0)))), None);
    // Whose it was, and what it said.
    let said = ["h2", "h3", "h5", "h8"].map(|host| (host.parse().unwrap(), "out of \u{1b}paper".to_owned()));
    let reason = |count: usize| {
        let exhibit = Exhibit { said: said[..count].to_vec(), ..window((Tally::Count(count as u64), Millis(0))) };
        trips(&more(0.0, 1), &metric(Kind::Count), &exhibit).unwrap().reason
    };
    assert_eq!(reason(1), r#"m is 1 over the changed hosts together; limit > 0; h2: "out of \u{1b}paper""#);
    assert!(reason(4).ends_with(r#"; h5: "out of \u{1b}paper"; and 1 more"#), "{}", reason(4));
}

#[test]
fn twice_the_baseline_needs_a_baseline() {
    let twice = test(Test::OfBaseline { op: Op::More, percent: n(200.0) }, 100);
    let p50 = metric(Kind::Quantile { permille: 500 });
    let slow = latencies(40, 160);
    assert_eq!(trips(&twice, &p50, &window(slow.clone())), None);
    let trip = trips(&twice, &p50, &Exhibit { baseline: sealed(60.0, 500), ..window(slow.clone()) }).unwrap();
    assert_eq!(trip.limit, n(120.0));
    assert_eq!(trip.reason, "m is 137.5ms over the changed hosts together from 200 samples; limit > 120ms, 200% of the baseline's 60ms");
    assert_eq!(trips(&twice, &p50, &Exhibit { baseline: sealed(70.0, 500), ..window(slow.clone()) }), None);
    // Twice nothing is not beyond anything.
    assert_eq!(trips(&twice, &p50, &Exhibit { baseline: sealed(0.0, 500), ..window(slow) }), None);
    // An error rate that was zero is not taken for smaller than could be seen.
    let exhibit = |bad| Exhibit { baseline: sealed(0.0, 3_000), ..window(ratio(bad, 3_000)) };
    assert_eq!(trips(&twice, &metric(Kind::Ratio), &exhibit(6)), None);
    assert!(trips(&twice, &metric(Kind::Ratio), &exhibit(7)).is_some());
}
