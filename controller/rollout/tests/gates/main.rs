//! Gates: how readings add up, what verdict they lead to, and what a plan
//! resolves to.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic in a test is a failed test")]

mod counting;
mod refusals;
mod resolving;
mod triggers;
mod verdicts;

use std::collections::BTreeMap;

use tidegate_protocol::release::{FileEntry, MANIFEST_SCHEMA, Proof, Runbook, Service};
use tidegate_protocol::*;
use tidegate_rollout::gate::resolve::resolve;
use tidegate_rollout::gate::tally::Tally;
use tidegate_rollout::gate::*;
use tidegate_rollout::{PlanError, Spec};

fn n(value: f64) -> Number {
    Number::new(value).unwrap()
}

fn ratio(bad: u64, total: u64) -> (Tally, Millis) {
    (Tally::Ratio { bad, total }, Millis::from_secs(60))
}

/// `fast` requests of 0–10 ms and `slow` ones of 100–200 ms.
fn latencies(fast: u64, slow: u64) -> (Tally, Millis) {
    (Tally::Histogram { bounds_us: vec![10_000, 100_000, 200_000, 1_000_000], counts: vec![fast, 0, slow, 0, 0] }, Millis::from_secs(60))
}

fn metric(kind: Kind) -> Metric {
    let what = AgentSource::Smoke;
    let source = MetricSource::Agent { observer: "x".into(), what, component: None };
    Metric { kind, source, higher_is_worse: true, min_samples: None }
}

fn sealed(value: f64, samples: u64) -> Option<Observed> {
    Some(Observed { metric: "m".into(), group: Group::Baseline, value: Some(n(value)), samples })
}

fn service(kind: &str) -> Service {
    match kind {
        "command" => Service::Command { start: vec!["a".into()], stop: vec!["b".into()], status: vec!["c".into()] },
        _ => Service::Supervised { run: vec!["bin/x".into()], env: BTreeMap::new() },
    }
}

/// A release whose components are `name:service`.
fn release(components: &[&str]) -> Release {
    let component = |text: &&str| {
        let (name, kind) = text.split_once(':').unwrap_or((text, "supervised"));
        Component {
            name: name.parse().unwrap(),
            files: vec![FileEntry { path: "bin/x".parse().unwrap(), digest: Digest::of(b"x"), size: 1, mode: 0o555 }],
            links: BTreeMap::new(),
            service: service(kind),
            proof: Proof::Executable,
            check: None,
            before: None,
            after: None,
            arch: None,
            keep: 3,
            smoke: Vec::new(),
        }
    };
    Release {
        schema: MANIFEST_SCHEMA,
        name: "shop".parse().unwrap(),
        version: "2".parse().unwrap(),
        notes: None,
        known_issues: None,
        runbook: Runbook::default(),
        expires: None,
        floor: None,
        tasks: Vec::new(),
        components: components.iter().map(component).collect(),
    }
}

fn spec(strategy: &str, rest: &str) -> Spec {
    let text = format!("release = \"shop@2\"\nhosts = {{ api = \"\" }}\nstrategy = \"{strategy}\"\n{rest}");
    Spec::parse(&text, "plan.toml").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn gating(strategy: &str, rest: &str) -> Result<Gating, PlanError> {
    resolve(&spec(strategy, rest), &release(&["api"]), false)
}
