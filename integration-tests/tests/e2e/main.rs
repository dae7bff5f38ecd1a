//! Real processes over real QUIC on loopback: a controller, agents and the CLI,
//! driven as an operator drives them.
//!
//! Every test has a fleet of its own and leaves nothing. `TIDEGATE_KEEP=1` keeps
//! the fleet's directory with all logs.

mod blue_green;
mod canary;
mod crash;
mod fleet;
mod gates;
mod gating;
mod joining;
mod json;
mod lease;
mod one_host;
mod process;
mod proof;
mod refusals;
mod resume;
mod sources;
mod tools;
mod triggers;
mod verbs;

use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use tidegate_integration_tests::{Component, Release};

pub(crate) type Result<T = ()> = anyhow::Result<T>;

/// For anything that must happen without a deadline of its own having to pass.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A release whose service needs so long to start: time to do something to it.
pub(crate) fn slow(version: &str, seconds: &str) -> Release {
    let smoke = tidegate_integration_tests::release::http_smoke("port", "30s");
    Release::new(version)
        .component(Component::new("api").conf("behaviour = slow-start").conf(&format!("seconds = {seconds}")).smoke(&[&smoke]))
}

/// The hosts of a rollout's status that have `state`.
pub(crate) fn in_state<'a>(status: &'a Value, state: &str) -> Vec<&'a str> {
    entries(status).filter(|entry| entry["state"] == state).filter_map(|entry| entry["host"].as_str()).collect()
}

/// A host's entry in a rollout's status; null if there is none, which equals
/// nothing that a test asks for.
pub(crate) fn entry<'a>(status: &'a Value, host: &str) -> &'a Value {
    tidegate_integration_tests::ask::host_entry(status, host).unwrap_or(&Value::Null)
}

pub(crate) fn entries(status: &Value) -> impl Iterator<Item = &Value> {
    status["hosts"].as_array().into_iter().flatten()
}

/// Checks that a rollout's status says `state`.
pub(crate) fn expect_state(status: &Value, state: &str) -> Result {
    ensure!(status["state"] == state, "the rollout is {} where {state} is due: {status:#}", status["state"]);
    Ok(())
}
