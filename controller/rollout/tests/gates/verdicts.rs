//! Each of the four verdicts, with the sentence that explains it.

use tidegate_rollout::condition::Op;
use tidegate_rollout::gate::judge::{Exhibit, HostExhibit, judge};

use super::*;

fn below(limit: f64) -> Test {
    Test::Limit { op: Op::Less, limit: n(limit) }
}

fn above(limit: f64) -> Test {
    Test::Limit { op: Op::More, limit: n(limit) }
}

fn criterion(test: Test, min_samples: u64, fails_beyond: Option<Test>) -> Criterion {
    Criterion { name: "as written".into(), metric: "m".into(), test, min_samples, advisory: false, fails_beyond, perf: false }
}

fn seen(changed: (Tally, Millis)) -> Exhibit {
    Exhibit { changed: Some(changed), ..Exhibit::default() }
}

fn host(name: &str, window: (Tally, Millis)) -> HostExhibit {
    HostExhibit { host: name.parse().unwrap(), window, recent: None }
}

#[test]
fn an_error_rate_between_the_limits_is_inconclusive() {
    let strict = criterion(below(0.1), 3_000, Some(above(1.0)));
    let alone = criterion(below(0.1), 3_000, None);
    let cases = [
        (&strict, seen(ratio(2, 3_000)), Verdict::Pass, "m is 0.0667%, from 3000 requests; wanted < 0.1%"),
        (
            &strict,
            seen(ratio(3, 3_000)),
            Verdict::Inconclusive,
            "m is 0.1%, from 3000 requests; wanted < 0.1%; not beyond the rollback limit > 1%",
        ),
        (
            &strict,
            seen(ratio(15, 3_000)),
            Verdict::Inconclusive,
            "m is 0.5%, from 3000 requests; wanted < 0.1%; not beyond the rollback limit > 1%",
        ),
        (
            &strict,
            seen(ratio(40, 3_000)),
            Verdict::Inconclusive,
            "m is 1.33%, from 3000 requests; wanted < 0.1%; beyond the rollback limit > 1%, which may be chance",
        ),
        (&strict, seen(ratio(60, 3_000)), Verdict::Fail, "m is 2%, from 3000 requests; wanted < 0.1%; beyond the rollback limit > 1%"),
        (&alone, seen(ratio(60, 3_000)), Verdict::Inconclusive, "m is 2%, from 3000 requests; wanted < 0.1%; no trigger says roll back"),
        (&strict, seen(ratio(0, 2_999)), Verdict::Inconclusive, "m: 2999 requests, 3000 are needed"),
        (&strict, seen(ratio(0, 0)), Verdict::Inconclusive, "m: 0 requests, 3000 are needed"),
        (&strict, Exhibit::default(), Verdict::Inconclusive, "no reading of m since the observation began"),
    ];
    for (criterion, exhibit, verdict, reason) in cases {
        let judgement = judge(criterion, &metric(Kind::Ratio), &exhibit);
        assert_eq!((judgement.verdict, judgement.reason.as_str()), (verdict, reason));
        assert_eq!((judgement.limit, judgement.unit.as_str()), (Some(n(0.1)), "%"));
    }
}

#[test]
fn a_source_that_cannot_be_read_is_an_error_whatever_the_numbers_say() {
    let errors = ["h1: connection refused", "h2: 404", "h3: NaN", "h4: 404"].map(String::from).to_vec();
    let judgement = judge(&criterion(below(0.1), 1, Some(above(1.0))), &metric(Kind::Ratio), &Exhibit { errors, ..seen(ratio(50, 50)) });
    assert_eq!(judgement.verdict, Verdict::Error);
    assert_eq!(judgement.reason, "cannot be read: h1: connection refused; h2: 404; h3: NaN; and 1 more");
}

#[test]
fn a_count_needs_a_reading_but_no_number_of_them_and_does_not_get_better() {
    let none = Test::Limit { op: Op::Equal, limit: n(0.0) };
    let count = |count| seen((Tally::Count(count), Millis(0)));
    let cases = [
        (none, count(0), Verdict::Pass, "m is 0; wanted == 0"),
        (none, count(1), Verdict::Fail, "m is 1; wanted == 0; it cannot come down again"),
        (none, Exhibit::default(), Verdict::Inconclusive, "no reading of m since the observation began"),
        (below(3.0), count(3), Verdict::Fail, "m is 3; wanted < 3; it cannot come down again"),
        // So many orders may still come.
        (above(100.0), count(7), Verdict::Inconclusive, "m is 7; wanted > 100; no trigger says roll back"),
        (Test::Limit { op: Op::Equal, limit: n(3.0) }, count(2), Verdict::Inconclusive, "m is 2; wanted == 3; no trigger says roll back"),
    ];
    for (test, exhibit, verdict, reason) in cases {
        let judgement = judge(&criterion(test, 1_000, None), &metric(Kind::Count), &exhibit);
        assert_eq!((judgement.verdict, judgement.reason.as_str()), (verdict, reason));
    }
}

#[test]
fn one_host_that_fails_everything_decides_and_is_named() {
    let mut hosts: Vec<HostExhibit> = (1..100).map(|i| host(&format!("h{i}"), ratio(0, 300))).collect();
    hosts.push(host("h100", ratio(300, 300)));
    let exhibit = Exhibit { hosts: hosts.clone(), ..seen(ratio(300, 30_000)) };
    let judgement = judge(&criterion(below(2.0), 150, Some(above(5.0))), &metric(Kind::Ratio), &exhibit);
    assert_eq!(judgement.verdict, Verdict::Fail);
    assert_eq!(judgement.host, Some("h100".parse().unwrap()));
    assert_eq!(judgement.observed, Some(n(100.0)));
    assert_eq!(judgement.samples, 300);
    assert_eq!(judgement.reason, "m on h100 is 100%, from 300 requests; wanted < 2%; beyond the rollback limit > 5%");
    // Without enough samples of its own it is not judged alone.
    let judgement = judge(&criterion(below(2.0), 301, Some(above(5.0))), &metric(Kind::Ratio), &exhibit);
    assert_eq!((judgement.verdict, judgement.host), (Verdict::Pass, None));
    // The worst of several is named.
    hosts.push(host("h101", ratio(30, 300)));
    let judgement = judge(&criterion(below(2.0), 150, None), &metric(Kind::Ratio), &Exhibit { hosts, ..seen(ratio(330, 30_300)) });
    assert_eq!((judgement.verdict, judgement.host), (Verdict::Inconclusive, Some("h100".parse().unwrap())));
}

#[test]
fn chance_on_one_host_of_many_does_not_decide() {
    // 0.05 % everywhere: on some host three of 2,000 requests fail sooner or later.
    let hosts = vec![host("h1", ratio(3, 2_000)), host("h2", ratio(0, 2_000)), host("h3", ratio(0, 2_000))];
    let judgement = judge(&criterion(below(0.1), 2_000, None), &metric(Kind::Ratio), &Exhibit { hosts, ..seen(ratio(3, 6_000)) });
    assert_eq!(judgement.verdict, Verdict::Pass, "{}", judgement.reason);
    // The same of a quantile: 3 slow ones of 200 are no p99 above 50 ms beyond doubt, 20 are.
    for (slow, verdict) in [(3, Verdict::Pass), (20, Verdict::Inconclusive)] {
        let hosts = vec![host("h1", latencies(200 - slow, slow)), host("h2", latencies(20_000, 0))];
        let exhibit = Exhibit { hosts, ..seen(latencies(20_200 - slow, slow)) };
        let judgement = judge(&criterion(below(50.0), 200, None), &metric(Kind::Quantile { permille: 990 }), &exhibit);
        assert_eq!(judgement.verdict, verdict, "{}", judgement.reason);
    }
}

#[test]
fn comparisons_are_one_sided_in_the_bad_direction() {
    let within = |of| Test::Within { percent: n(10.0), of };
    let gauge = |value: f64| (Tally::Gauge { sum: value * 4.0, readings: 4 }, Millis(0));
    let lower = Metric { higher_is_worse: false, ..metric(Kind::Value) };
    for (metric, value, verdict) in [
        (metric(Kind::Value), 110.0, Verdict::Pass),
        (metric(Kind::Value), 111.0, Verdict::Inconclusive),
        (metric(Kind::Value), 1.0, Verdict::Pass),
        (lower.clone(), 90.0, Verdict::Pass),
        (lower.clone(), 89.0, Verdict::Inconclusive),
        (lower, 1_000.0, Verdict::Pass),
    ] {
        let exhibit = Exhibit { baseline: sealed(100.0, 4), ..seen(gauge(value)) };
        let judgement = judge(&criterion(within(Reference::Baseline), 1, None), &metric, &exhibit);
        assert_eq!(judgement.verdict, verdict, "{value}: {}", judgement.reason);
    }
    let band = Test::Band { percent: n(30.0), of: Reference::Baseline };
    for (value, verdict, limit) in [
        (70.0, Verdict::Pass, 130.0),
        (130.0, Verdict::Pass, 130.0),
        (69.0, Verdict::Inconclusive, 70.0),
        (131.0, Verdict::Inconclusive, 130.0),
    ] {
        let exhibit = Exhibit { baseline: sealed(100.0, 4), ..seen(gauge(value)) };
        let judgement = judge(&criterion(band, 1, None), &metric(Kind::Value), &exhibit);
        assert_eq!((judgement.verdict, judgement.limit), (verdict, Some(n(limit))), "{}", judgement.reason);
    }
    let margin = Test::Margin { units: n(10.0), of: Reference::Baseline };
    for (value, verdict) in [(50.0, Verdict::Pass), (50.1, Verdict::Inconclusive)] {
        let exhibit = Exhibit { baseline: sealed(40.0, 4), ..seen(gauge(value)) };
        assert_eq!(judge(&criterion(margin, 1, None), &metric(Kind::Percent), &exhibit).verdict, verdict);
    }
}

#[test]
fn without_a_control_group_the_baseline_is_used_and_the_verdict_says_so() {
    let test = criterion(Test::Within { percent: n(10.0), of: Reference::Control }, 100, None);
    let p50 = metric(Kind::Quantile { permille: 500 });
    let now = latencies(200, 0);
    let cases = [
        (Some(latencies(500, 0)), sealed(1.0, 500), Verdict::Pass, "wanted <= 5.5ms, within 10% of the control group's 5ms"),
        (
            Some(latencies(99, 0)),
            sealed(5.0, 500),
            Verdict::Pass,
            "within 10% of the baseline's 5ms (the control group has too few samples)",
        ),
        (
            None,
            sealed(4.0, 500),
            Verdict::Inconclusive,
            "wanted <= 4.4ms, within 10% of the baseline's 4ms (there is no control group); no trigger",
        ),
        (None, sealed(5.0, 7), Verdict::Pass, "the baseline's 5ms of only 7 samples"),
        (None, None, Verdict::Inconclusive, "no baseline: nothing was sealed before the first swap (there is no control group)"),
    ];
    for (control, baseline, verdict, part) in cases {
        let judgement = judge(&test, &p50, &Exhibit { control, baseline, ..seen(now.clone()) });
        assert_eq!(judgement.verdict, verdict, "{}", judgement.reason);
        assert!(judgement.reason.contains(part), "{part:?} is not in {:?}", judgement.reason);
    }
    let unsealed = Some(Observed { metric: "m".into(), group: Group::Baseline, value: None, samples: 0 });
    let judgement = judge(&test, &p50, &Exhibit { baseline: unsealed, ..seen(now) });
    assert!(judgement.reason.starts_with("no baseline: it was sealed without a sample"), "{}", judgement.reason);
}

#[test]
fn no_error_before_does_not_mean_that_none_is_allowed() {
    let within = criterion(Test::Within { percent: n(10.0), of: Reference::Baseline }, 300, None);
    // Nothing in 3,000 still allows 0.1 % (rule of three), and 10 % more of it.
    for (bad, total, samples, verdict) in [
        (0, 3_000, 3_000, Verdict::Pass),
        (3, 3_000, 3_000, Verdict::Pass),
        (4, 3_000, 3_000, Verdict::Inconclusive),
        // What is judged could not have shown less than 1 %.
        (3, 300, 1_000_000, Verdict::Pass),
        (4, 300, 1_000_000, Verdict::Inconclusive),
        (12, 30_000, 1_000_000, Verdict::Inconclusive),
    ] {
        let judgement = judge(&within, &metric(Kind::Ratio), &Exhibit { baseline: sealed(0.0, samples), ..seen(ratio(bad, total)) });
        assert_eq!(judgement.verdict, verdict, "{bad}/{total}: {}", judgement.reason);
    }
}

#[test]
fn no_traffic_is_inconclusive_and_a_rate_is_that_of_one_host() {
    let rate = metric(Kind::Rate);
    let band = criterion(Test::Band { percent: n(30.0), of: Reference::Control }, 1, None);
    // 2 hosts with 600 requests each in a minute against 8 with as many.
    let changed = (Tally::Count(1_200), Millis::from_secs(120));
    let control = Some((Tally::Count(4_800), Millis::from_secs(480)));
    let judgement = judge(&band, &rate, &Exhibit { control: control.clone(), ..seen(changed) });
    assert_eq!((judgement.verdict, judgement.observed), (Verdict::Pass, Some(n(10.0))), "{}", judgement.reason);
    let judgement = judge(&band, &rate, &Exhibit { control, ..seen((Tally::Count(0), Millis::from_secs(120))) });
    assert_eq!((judgement.verdict, judgement.reason.as_str()), (Verdict::Inconclusive, "m: 0 requests, 1 are needed"));
}

#[test]
fn what_is_advisory_is_shown_and_does_not_decide() {
    let mut fails = judge(&criterion(below(0.1), 1, Some(above(1.0))), &metric(Kind::Ratio), &seen(ratio(5, 10)));
    assert_eq!(overall(std::slice::from_ref(&fails)), Verdict::Fail);
    fails.advisory = true;
    assert_eq!(overall(&[fails]), Verdict::Pass);
}

/// Exactly so many or fewer of `n`, each with probability `p`.
fn binomial(most: u32, n: u32, p: f64) -> f64 {
    let mut term = (f64::from(n) * (-p).ln_1p()).exp();
    let mut sum = term;
    for i in 1..=most {
        term *= f64::from(n - i + 1) / f64::from(i) * p / (1.0 - p);
        sum += term;
    }
    sum
}

#[test]
fn the_tables_of_statistics_md_are_true() {
    let text = include_str!("../../STATISTICS.md");
    let rows: Vec<Vec<&str>> =
        text.lines().filter_map(|l| l.strip_prefix("| ")).map(|l| l.trim_end_matches(" |").split(" | ").collect()).collect();
    let find = |head: &str| rows.iter().find(|row| row[0] == head).expect("a row of STATISTICS.md");
    for (bad, least) in find("requests that show < 0.1 %")[1..].iter().enumerate() {
        let (bad, least): (u32, u32) = (bad.try_into().unwrap(), least.parse().unwrap());
        assert!(binomial(bad, least, 0.001) <= 0.05 && binomial(bad, least - 1, 0.001) > 0.05, "{bad} bad: {least}");
    }
    let rates: Vec<f64> = find("requests")[1..].iter().map(|r| r.trim_end_matches(" %").parse::<f64>().unwrap() / 100.0).collect();
    for n in [300u32, 3_000, 10_000, 30_000] {
        for (rate, said) in rates.iter().zip(&find(&n.to_string())[1..]) {
            // Fewer than 0.1 % bad passes.
            let passes = 100.0 * binomial(n.div_ceil(1_000) - 1, n, *rate);
            assert_eq!(format!("{passes:.1}"), **said, "{n} requests at {rate}");
        }
    }
    // The looks of triggers.
    assert!((1.0 - binomial(3, 300, 0.005) - 0.065).abs() < 0.001);
    assert!((1.0 / (1.0 - binomial(7, 300, 0.005)) - 6_300.0).abs() < 300.0);
    assert!(binomial(12, 19_440, 0.001) <= 0.05 && binomial(12, 19_440, 0.000_5) >= 0.8);
}
