//! What a plan resolves to.

use tidegate_rollout::condition::Op;
use tidegate_rollout::gate::resolve::percents;
use tidegate_rollout::spec::TriggerAction;

use super::*;

const METRICS: &str = r#"
[metrics.error_rate]
source = "scrape"
url = "http://127.0.0.1:9100/metrics"
bad = 'http_requests_total{code=~"5.."}'
total = "http_requests_total"
[metrics.latency]
source = "scrape"
url = "http://127.0.0.1:9100/metrics"
histogram = "http_request_duration_seconds"
"#;

fn limit(op: Op, value: f64) -> Test {
    Test::Limit { op, limit: n(value) }
}

fn c(name: &str, metric: &str, test: Test, min_samples: u64) -> Criterion {
    let fails_beyond = match metric {
        "error_rate" => Some(limit(Op::More, 1.0)),
        "critical_errors" => Some(limit(Op::More, 0.0)),
        _ => None,
    };
    let advisory = metric.ends_with("_cpu") || metric.ends_with("_memory");
    Criterion { name: name.into(), metric: metric.into(), test, min_samples, advisory, fails_beyond, perf: false }
}

/// `stable` and `no_degradation` of everything [`METRICS`] has.
fn tolerances(word: &str, rate: Test) -> Vec<Criterion> {
    let of = Reference::Control;
    let points = |units| Test::Margin { units: n(units), of };
    let within = Test::Within { percent: n(10.0), of };
    [
        ("error_rate", points(0.1), 3_000),
        ("latency_p50", within, 100),
        ("latency_p99", within, 200),
        ("request_rate", rate, 100),
        ("service_cpu", points(10.0), 1),
        ("host_cpu", points(10.0), 1),
        ("service_memory", points(10.0), 1),
        ("host_memory", points(10.0), 1),
    ]
    .map(|(metric, test, least)| c(&format!("{word}: {metric}"), metric, test, least))
    .to_vec()
}

#[test]
fn the_guides_canary() {
    let gating = gating("canary", METRICS).unwrap();
    let of = Reference::Control;
    let errors = c("error_rate < 0.1%", "error_rate", limit(Op::Less, 0.1), 3_000);
    let within =
        |metric: &str, least| c(&format!("latency within 10% of baseline: {metric}"), metric, Test::Within { percent: n(10.0), of }, least);
    let stable = tolerances("stable", Test::Band { percent: n(30.0), of });
    let degradation = tolerances("no_degradation", Test::Within { percent: n(30.0), of });
    let stage = |name: &str, minutes: u64, attest: &[&str], watch, criteria: Vec<Criterion>| Stage {
        name: name.into(),
        after_wave: 0,
        bake: Millis::from_secs(60 * minutes),
        standing: false,
        attest: attest.iter().map(ToString::to_string).collect(),
        watch,
        criteria,
    };
    let first = vec![
        errors.clone(),
        within("latency_p50", 100),
        within("latency_p99", 200),
        c("critical_errors == 0", "critical_errors", limit(Op::Equal, 0.0), 1),
    ];
    let wanted = vec![
        stage("Canary", 30, &[], false, first),
        stage("Early Adopters", 60, &["no-customer-complaints"], false, [vec![errors], stable.clone()].concat()),
        stage("Majority", 120, &[], false, [stable.clone(), degradation].concat()),
        stage("Full", 0, &[], false, vec![]),
        stage("Full: watch", 24 * 60, &[], true, stable),
    ];
    for (stage, wanted) in gating.stages.iter().zip(&wanted) {
        assert_eq!(stage, wanted);
    }
    assert_eq!(gating.stages.len(), wanted.len());
    assert_eq!(percents(&spec("canary", METRICS)), [5, 25, 75, 100]);

    let trigger = |when: &str, action, tests: Vec<(&str, Test, u64)>, declared: Option<&str>, minutes: u64| Trigger {
        when: when.parse().unwrap(),
        action,
        tests: tests.into_iter().map(|(metric, test, min_samples)| TriggerTest { metric: metric.into(), test, min_samples }).collect(),
        declared: declared.map(Into::into),
        after: Millis::from_secs(60 * minutes),
    };
    let twice = Test::OfBaseline { op: Op::More, percent: n(200.0) };
    let wanted = vec![
        trigger("error_rate > 1%", TriggerAction::Rollback, vec![("error_rate", limit(Op::More, 1.0), 300)], None, 0),
        trigger("latency_p50 > 200% of baseline", TriggerAction::Investigate, vec![("latency_p50", twice, 100)], None, 15),
        trigger("critical_errors > 0", TriggerAction::Rollback, vec![("critical_errors", limit(Op::More, 0.0), 1)], None, 0),
        trigger("declared data-corruption", TriggerAction::Emergency, vec![], Some("data-corruption"), 0),
        trigger("declared security-incident", TriggerAction::Emergency, vec![], Some("security-incident"), 0),
    ];
    assert_eq!(gating.triggers, wanted);
    assert!(gating.not_armed.is_empty(), "{:?}", gating.not_armed);
    assert_eq!(gating.analysis, Analysis { needs_baseline: true, ..Analysis::default() });

    let url = || "http://127.0.0.1:9100/metrics".to_string();
    let agent = |observer: &str, what| MetricSource::Agent { observer: observer.into(), what, component: None };
    let errors =
        AgentSource::ScrapeRatio { url: url(), bad: "http_requests_total{code=~\"5..\"}".into(), total: "http_requests_total".into() };
    let times = AgentSource::ScrapeHistogram { url: url(), name: "http_request_duration_seconds".into() };
    let critical = MetricSource::Agent {
        observer: "critical_errors".into(),
        what: AgentSource::JournalCritical { patterns: vec![] },
        component: Some("api".parse().unwrap()),
    };
    let wanted = [
        ("critical_errors", Kind::Count, critical, true),
        ("error_rate", Kind::Ratio, agent("error_rate", errors.clone()), true),
        ("host_cpu", Kind::Percent, MetricSource::Report(ReportNumber::HostCpu), true),
        ("host_memory", Kind::Percent, MetricSource::Report(ReportNumber::HostMemory), true),
        ("latency_p50", Kind::Quantile { permille: 500 }, agent("latency", times.clone()), true),
        ("latency_p99", Kind::Quantile { permille: 990 }, agent("latency", times), true),
        ("request_rate", Kind::Rate, agent("error_rate", errors), false),
        ("service_cpu", Kind::Percent, MetricSource::Report(ReportNumber::ServiceCpu), true),
        ("service_memory", Kind::Percent, MetricSource::Report(ReportNumber::ServiceMemory), true),
    ];
    let wanted: BTreeMap<String, Metric> = wanted
        .into_iter()
        .map(|(name, kind, source, higher_is_worse)| (name.to_string(), Metric { kind, source, higher_is_worse, min_samples: None }))
        .collect();
    assert_eq!(gating.metrics, wanted);
    // What is journaled reads back the same.
    let json = serde_json::to_string(&gating).unwrap();
    assert_eq!(serde_json::from_str::<Gating>(&json).unwrap(), gating);
}

#[test]
fn triggers_without_a_source_are_listed_as_not_armed() {
    let bare = gating("rolling", "").unwrap();
    let armed: Vec<String> = bare.triggers.iter().map(|t| t.when.to_string()).collect();
    assert_eq!(armed, ["critical_errors > 0", "declared data-corruption", "declared security-incident"]);
    assert_eq!(bare.not_armed.len(), 2);
    assert!(bare.not_armed[0].starts_with("error_rate > 1%: error_rate has no source: write [metrics.error_rate]"), "{:?}", bare.not_armed);
    assert!(bare.not_armed[1].starts_with("latency_p50 > 200% of baseline: latency_p50 has no source"), "{:?}", bare.not_armed);
    assert!(bare.stages.is_empty() && !bare.analysis.needs_baseline);
    // Nobody's messages are read: not that one either.
    let silent = resolve(&spec("rolling", ""), &release(&["api:command"]), false).unwrap();
    assert_eq!(silent.triggers.len(), 2);
    assert_eq!(silent.not_armed.len(), 3);
    // A first install has no baseline.
    let first = resolve(&spec("rolling", METRICS), &release(&["api"]), true).unwrap();
    assert_eq!(first.not_armed, ["latency_p50 > 200% of baseline: there is no baseline, no host runs it yet"]);
    assert!(!first.analysis.needs_baseline);
}

#[test]
fn the_other_strategies_have_one_observation_and_a_watch() {
    let shape = |strategy: &str, rest: &str| -> Vec<(String, u64, bool, bool, usize)> {
        let gating = gating(strategy, &format!("{rest}\n{METRICS}")).unwrap();
        gating.stages.into_iter().map(|s| (s.name, s.bake.0 / 1_000, s.standing, s.watch, s.criteria.len())).collect()
    };
    let one = |bake, standing, criteria| ("Observation".to_string(), bake, standing, false, criteria);
    let watch = |secs, criteria| ("Watch".to_string(), secs, false, true, criteria);
    let success = "success = [\"error_rate < 0.1%\"]";
    let switch = "switch = { run = \"lb ${side}\" }";
    assert_eq!(shape("rolling", ""), []);
    assert_eq!(shape("rolling", success), [one(300, true, 1)]);
    assert_eq!(shape("rolling", "bake = \"7m\""), [one(420, false, 0)]);
    assert_eq!(shape("rolling", &format!("{success}\nbake = \"1m\"\nwatch = \"1h\"")), [one(60, true, 1), watch(3_600, 1)]);
    assert_eq!(shape("big-bang", success), [one(300, false, 1)]);
    assert_eq!(shape("big-bang", ""), []);
    assert_eq!(shape("big-bang", "watch = \"1h\""), [watch(3_600, 0)]);
    assert_eq!(shape("blue-green", &format!("{switch}\n{success}")), [one(300, false, 1)]);
    assert_eq!(shape("blue-green", switch), []);
    let perf = "[[perf]]\nmetric = \"latency\"\nmax = \"500ms\"";
    assert_eq!(shape("big-bang", perf), [one(300, false, 2)]);
    assert_eq!(percents(&spec("rolling", "")), Vec::<u8>::new());
}

#[test]
fn performance_rows_are_criteria_wherever_something_is_observed() {
    let rows = "[[perf]]\nname = \"API p99\"\nmetric = \"latency_p99\"\nmax = \"500ms\"\nmin_samples = 50\n[[perf]]\nmetric = \"error_rate\"\nmax = \"0.5%\"\n";
    let gating = gating("canary", &format!("{rows}{METRICS}")).unwrap();
    let with: Vec<usize> = gating.stages.iter().map(|s| s.criteria.iter().filter(|c| c.perf).count()).collect();
    assert_eq!(with, [2, 2, 2, 0, 2]);
    let rows: Vec<&Criterion> = gating.stages[0].criteria.iter().filter(|c| c.perf).collect();
    assert_eq!(rows[0], &Criterion { perf: true, ..c("API p99", "latency_p99", limit(Op::AtMost, 500.0), 50) });
    assert_eq!(rows[1], &Criterion { perf: true, ..c("error_rate", "error_rate", limit(Op::AtMost, 0.5), 600) });
}

#[test]
fn the_plans_own_stages_and_watch() {
    let stages = "[[stage]]\nname = \"A\"\npercent = 10\nbake = \"1m\"\nsuccess = [\"error_rate < 0.1%\"]\n[[stage]]\nname = \"B\"\npercent = 100\nbake = \"2m\"\nwatch = \"1h\"\nsuccess = [\"critical_errors == 0\"]\n";
    let spec = spec("canary", &format!("{stages}{METRICS}"));
    assert_eq!(percents(&spec), [10, 100]);
    let gating = resolve(&spec, &release(&["api"]), false).unwrap();
    let shape: Vec<_> = gating.stages.iter().map(|s| (s.name.as_str(), s.bake.0 / 1_000, s.watch, s.criteria.len())).collect();
    assert_eq!(shape, [("A", 60, false, 1), ("B", 120, false, 1), ("B: watch", 3_600, true, 1)]);
}

#[test]
fn one_block_serves_what_it_can() {
    let kinds = |block: &str, success: &str| {
        let gating = gating("rolling", &format!("success = [{success}]\n{block}")).unwrap();
        let of = |name: &str| match gating.metrics.get(name).map(|m| (m.kind, m.source.clone())) {
            Some((kind, MetricSource::Agent { observer, .. })) => format!("{}:{observer}", kind.unit()),
            Some((kind, MetricSource::Prometheus { scale, .. })) => format!("{}*{}", kind.unit(), scale.get()),
            Some((kind, _)) => kind.unit().to_string(),
            None => "none".to_string(),
        };
        ["error_rate", "latency_p50", "latency_p90", "request_rate", "mine"].map(of)
    };
    let probe = "[metrics.error_rate]\nsource = \"probe\"\nurl = \"http://127.0.0.1/\"\n";
    // Calls that are made anyway tell the latency and the rate too.
    assert_eq!(kinds(probe, "\"latency_p90 < 1s\""), ["%:error_rate", "ms:latency", "ms:latency", "/s:error_rate", "none"]);
    let probe = "[metrics.latency]\nsource = \"probe\"\nurl = \"http://127.0.0.1/\"\nrate = \"10/s\"\n";
    assert_eq!(kinds(probe, ""), ["%:error_rate", "ms:latency", "none", "none", "none"]);
    let own = "[metrics.mine]\nsource = \"exec\"\nrun = \"queue-depth\"\n";
    assert_eq!(kinds(own, "\"mine < 5\"")[4], ":mine");
    let own = "[metrics.mine]\nsource = \"scrape\"\nurl = \"http://127.0.0.1/\"\ngauge = \"depth\"\nunit = \"ms\"\n";
    assert_eq!(kinds(own, "\"mine < 5ms\"")[4], "ms:mine");
    let prometheus = |name: &str, unit: &str| {
        format!("[metrics.{name}]\nsource = \"prometheus\"\nurl = \"http://prom:9090\"\nquery = \"q{{host=~'$hosts'}}\"\n{unit}\n")
    };
    assert_eq!(kinds(&prometheus("error_rate", ""), "")[0], "%*100");
    assert_eq!(kinds(&prometheus("error_rate", "unit = \"percent\""), "")[0], "%*1");
    assert_eq!(kinds(&prometheus("latency_p50", ""), "")[1], "ms*1000");
    assert_eq!(kinds(&prometheus("latency_p50", "unit = \"ms\""), "")[1], "ms*1");
    assert_eq!(kinds(&prometheus("mine", ""), "\"mine < 5\"")[4], "*1");
    assert_eq!(kinds(&prometheus("mine", "unit = \"ratio\""), "\"mine < 5%\"")[4], "%*100");
    assert_eq!(kinds(&prometheus("mine", "unit = \"s\""), "\"mine < 5s\"")[4], "ms*1000");
}

#[test]
fn a_plan_declares_what_it_wants() {
    let gating = gating("rolling", "[[rollback]]\nwhen = \"declared angry-customers\"\naction = \"investigate\"\nafter = \"5m\"").unwrap();
    let found: Vec<_> = gating.triggers.iter().map(|t| (t.declared.as_deref(), t.action, t.tests.len(), t.after)).collect();
    assert_eq!(found, [(Some("angry-customers"), TriggerAction::Investigate, 0, Millis::from_secs(300))]);
}

#[test]
fn sizes_of_samples() {
    let least = |success: &str, rest: &str| {
        let gating = gating("rolling", &format!("success = [\"{success}\"]\n{rest}")).unwrap();
        gating.stages[0].criteria.iter().map(|c| c.min_samples).collect::<Vec<_>>()
    };
    assert_eq!(least("error_rate < 0.1%", METRICS), [3_000]);
    assert_eq!(least("error_rate < 0.7%", METRICS), [429]);
    assert_eq!(least("error_rate < 200%", METRICS), [2]);
    assert_eq!(least("error_rate == 0", METRICS), [3_000]);
    assert_eq!(least("error_rate within 10% of baseline", METRICS), [300]);
    assert_eq!(least("latency < 1s", METRICS), [100, 200]);
    assert_eq!(least("error_rate < 0.1%", &METRICS.replace("[metrics.latency]", "min_samples = 40\n[metrics.latency]")), [40]);
    let asked = "[metrics.error_rate]\nsource = \"prometheus\"\nurl = \"http://prom\"\nquery = \"q\"\n";
    assert_eq!(least("error_rate < 0.1%", asked), [1]);
    assert_eq!(least("error_rate < 0.1%", &format!("{asked}samples = \"n\"\n")), [3_000]);
}

#[test]
fn tolerances_and_directions_of_the_plans_own_metrics() {
    let mine = "[metrics.mine]\nsource = \"exec\"\nrun = \"score\"\nworse = \"lower\"\ntolerance = \"5%\"\n[metrics.cpu]\nsource = \"host\"\nadvisory = false\ntolerance = \"20%\"\n[analysis]\ncompare = \"before\"\n";
    let gating = gating("rolling", &format!("success = [\"stable\"]\n{mine}")).unwrap();
    let of = Reference::Baseline;
    let found: Vec<(&str, Test, bool)> = gating.stages[0].criteria.iter().map(|c| (c.metric.as_str(), c.test, c.advisory)).collect();
    let points = |units| Test::Margin { units: n(units), of };
    assert_eq!(
        found,
        [
            ("service_cpu", points(20.0), false),
            ("host_cpu", points(20.0), false),
            ("service_memory", points(10.0), true),
            ("host_memory", points(10.0), true),
            ("mine", Test::Within { percent: n(5.0), of }, false),
        ]
    );
    assert!(!gating.metrics["mine"].higher_is_worse);
    assert!(gating.analysis.needs_baseline);
}
