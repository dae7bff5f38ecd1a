//! What tests of gates and triggers share: traffic, a plan that is judged, and
//! reading what happened out of the events.

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::load::{Connections, Load, Target};
use tidegate_integration_tests::{Fleet, Plan, Release};

use crate::Result;

/// The service's own counters, scraped by its agent.
pub(crate) const SCRAPED: &[&str] = &[
    "source = \"scrape\"",
    "url = \"http://127.0.0.1:${var.port}/metrics\"",
    "bad = 'http_requests_total{code=~\"5..\"}'",
    "total = \"http_requests_total\"",
    "min_samples = 100",
];

/// The same for its latencies. Two cores that other tests use as well make a p99
/// of milliseconds wander: only what is far off is worse.
pub(crate) const LATENCY: &[&str] = &[
    "source = \"scrape\"",
    "url = \"http://127.0.0.1:${var.port}/metrics\"",
    "histogram = \"http_request_duration_seconds\"",
    "min_samples = 50",
    "tolerance = \"2000%\"",
];

/// How much comes in, as `stable` judges it: over seconds the beginnings and ends
/// of the counting weigh much.
const RATE: &[&str] =
    &["source = \"scrape\"", "url = \"http://127.0.0.1:${var.port}/metrics\"", "counter = \"http_requests_total\"", "tolerance = \"100%\""];

/// A fleet on 1.0.0, which answers within 20 ms, and 2.0.0 as `conf` says in the
/// depot.
pub(crate) fn two_releases(hosts: usize, conf: &[&str]) -> Result<Fleet> {
    let fleet = Fleet::start(hosts)?;
    fleet.ship(&Release::told("1.0.0", &["latency_ms = 20"]))?;
    fleet.import(&Release::told("2.0.0", conf))?;
    Ok(fleet)
}

/// Traffic: enough on the first host (the canary) to judge it in seconds, less on
/// the rest.
pub(crate) fn traffic(fleet: &Fleet, first: u32, rest: u32) -> Result<Load> {
    let target = |(at, host): (usize, &tidegate_integration_tests::fleet::Host)| Target {
        name: host.name.clone(),
        address: host.address(),
        per_second: if at == 0 { first } else { rest },
    };
    Load::start(fleet.hosts.iter().enumerate().map(target).collect(), Connections::Kept)
}

/// A plan for 2.0.0 with the guide's times scaled down to seconds, its own metrics
/// and no stages or triggers yet.
pub(crate) fn judged(strategy: &str) -> Plan {
    Plan::new("shop@2.0.0", strategy)
        .analysis("baseline = \"3s\"")
        .analysis("interval = \"500ms\"")
        .analysis("window = \"5s\"")
        .analysis("deadline = \"5s\"")
        .metric("error_rate", SCRAPED)
        .metric("latency", LATENCY)
        .metric("request_rate", RATE)
}

/// The trigger of the guide.
pub(crate) fn over_one_percent(plan: Plan, min_samples: u32) -> Plan {
    plan.trigger("error_rate > 1%", "rollback", &[&format!("min_samples = {min_samples}")])
}

/// What happened, oldest first.
pub(crate) struct Story(Vec<Value>);

impl Story {
    pub(crate) fn of(fleet: &Fleet, id: &str) -> Result<Self> {
        Ok(Self(fleet.events(id)?))
    }

    /// The records that `is` picks.
    pub(crate) fn all(&self, is: impl Fn(&Value) -> bool) -> Vec<&Value> {
        self.0.iter().filter(|event| is(&event["record"])).collect()
    }

    /// The first record that `is` picks.
    pub(crate) fn first(&self, what: &str, is: impl Fn(&Value) -> bool) -> Result<&Value> {
        self.0.iter().find(|event| is(&event["record"])).with_context(|| format!("no event {what} in\n{}", self.text()))
    }

    /// The first record after `than` that `is` picks.
    pub(crate) fn after(&self, than: &Value, what: &str, is: impl Fn(&Value) -> bool) -> Result<&Value> {
        let later = |event: &&Value| event["seq"].as_u64() > than["seq"].as_u64() && is(&event["record"]);
        self.0.iter().find(later).with_context(|| format!("no event {what} after {than} in\n{}", self.text()))
    }

    /// States of the rollout, in order.
    pub(crate) fn states(&self) -> Vec<&str> {
        self.0.iter().filter(|event| event["kind"] == "state").filter_map(|event| event["record"]["to"].as_str()).collect()
    }

    /// For messages.
    pub(crate) fn text(&self) -> String {
        let line = |event: &Value| {
            format!("{} {} {}", event["at"].as_str().unwrap_or("?"), event["kind"].as_str().unwrap_or("?"), event["message"])
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Milliseconds from one event to another.
pub(crate) fn between(from: &Value, to: &Value) -> Result<i64> {
    let at = |event: &Value| -> Result<i64> {
        let text = event["at"].as_str().context("an event without a time")?;
        Ok(text.parse::<jiff::Timestamp>().with_context(|| format!("{text} is no time"))?.as_millisecond())
    };
    Ok(at(to)? - at(from)?)
}

pub(crate) fn is_state(to: &'static str) -> impl Fn(&Value) -> bool {
    move |record| record["kind"] == "state" && record["to"] == to
}

pub(crate) fn is_gate(step: &'static str) -> impl Fn(&Value) -> bool {
    move |record| record["kind"] == "gate" && record["step"] == step
}

pub(crate) fn is_kind(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |record| record["kind"] == kind
}

/// A host was told to go back.
pub(crate) fn is_revert_order(record: &Value) -> bool {
    record["kind"] == "ordered" && record["intent"] == "back" && record["phase"] == "swap"
}

/// A host was told to take the new release.
pub(crate) fn is_swap_order(record: &Value) -> bool {
    record["kind"] == "ordered" && record["intent"] == "forward" && record["phase"] == "swap"
}

/// What a person reads of gates: name → verdict, those that decide.
pub(crate) fn verdicts(status: &Value) -> Vec<(String, String)> {
    let gates = status["gates"].as_array().map(Vec::as_slice).unwrap_or_default();
    let word = |gate: &Value, key: &str| gate[key].as_str().unwrap_or_default().to_owned();
    gates.iter().filter(|gate| gate["advisory"] != true).map(|gate| (word(gate, "name"), word(gate, "verdict"))).collect()
}

/// Every host runs 1.0.0 again, by its own word, and what it ran before.
pub(crate) fn expect_back(fleet: &Fleet, before: &[(String, Value)]) -> Result {
    fleet.expect_version("1.0.0")?;
    let now = fleet.observed("api")?;
    ensure!(before == now.as_slice(), "what runs is not what ran before: {before:#?}\n{now:#?}");
    Ok(())
}
