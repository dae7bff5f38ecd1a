//! Limits in a metric's own unit, how many samples a test needs, and how much
//! worse is still stable. Reasons and sources stand in STATISTICS.md.

use alloc::format;

use tidegate_protocol::{Millis, Number};

use super::source::refused;
use crate::condition::Limit;
use crate::gate::{AgentSource, Kind, Metric, MetricSource, Reference, Test};
use crate::plan::PlanError;

/// A ratio that may be nothing at all cannot be proven: as for the guide's 0.1 %.
const SAMPLES_OF_ZERO: u64 = 3_000;

pub(super) fn number(value: f64) -> Number {
    Number::new(value).unwrap_or_default()
}

/// How many samples a test of a metric needs, where nobody says it.
pub(super) fn least(name: &str, metric: &Metric, test: &Test, trigger: bool) -> u64 {
    match &metric.source {
        // One answer is all there is to see.
        MetricSource::Prometheus { samples: None, .. } => return 1,
        MetricSource::Agent { what: AgentSource::Exec { .. } | AgentSource::ScrapeGauge { .. }, .. } => return 1,
        _ => {}
    }
    let ratio = metric.kind == Kind::Ratio || (metric.kind == Kind::Percent && name == "error_rate");
    match (metric.kind, test) {
        _ if ratio && trigger => 300,
        // Rule of three: so many without a bad one show that the share is below.
        (_, Test::Limit { limit: percent, .. } | Test::Margin { units: percent, .. }) if ratio => rule_of_three(percent.get()),
        _ if ratio => 300,
        // Of a rate, that there is nothing says enough.
        (Kind::Rate, _) if trigger => 0,
        // Fewer are chance: the rate of a few requests says nothing of traffic.
        (Kind::Rate, _) => 100,
        (Kind::Quantile { permille: 990.. }, _) => 200,
        (Kind::Quantile { .. }, _) => 100,
        _ => 1,
    }
}

fn rule_of_three(percent: f64) -> u64 {
    if percent <= 0.0 {
        return SAMPLES_OF_ZERO;
    }
    let exact = 300.0 / percent;
    // 300 / 0.1 is a hair beside 3000.
    let down = exact as u64;
    if exact - down as f64 > 1e-6 { down.saturating_add(1) } else { down.max(1) }
}

/// A condition's or row's limit in the metric's unit.
pub(super) fn limit_of(key: &str, name: &str, metric: &Metric, limit: Limit) -> Result<f64, PlanError> {
    let (wanted, example) = match metric.kind {
        Kind::Ratio | Kind::Percent => ("a percentage", "0.1%"),
        Kind::Quantile { .. } => ("a duration", "500ms"),
        Kind::Count | Kind::Rate | Kind::Value => ("a plain number", "5"),
    };
    match (metric.kind, limit) {
        (Kind::Ratio | Kind::Percent, Limit::Percent(value)) => Ok(value),
        (Kind::Quantile { .. }, Limit::Millis(value)) => Ok(value as f64),
        (Kind::Count | Kind::Rate | Kind::Value, Limit::Number(value)) => Ok(value),
        // Nothing is nothing in every unit.
        (_, Limit::Number(0.0)) => Ok(0.0),
        _ => {
            let unit = if metric.kind == Kind::Value { "; its unit stands in its block" } else { "" };
            Err(refused(key, format!("{name} takes {wanted}, such as {example}{unit}")))
        }
    }
}

pub(super) fn no_count(key: &str, name: &str, metric: &Metric) -> Result<(), PlanError> {
    if metric.kind == Kind::Count {
        return Err(refused(
            key,
            format!("{name} is counted since the observation began and has no baseline: write {name} == 0, or < a number"),
        ));
    }
    Ok(())
}

pub(super) fn quantity(text: &str) -> Option<Limit> {
    if let Some(percent) = text.strip_suffix('%') {
        return percent.trim().parse().ok().filter(|p: &f64| p.is_finite() && *p >= 0.0).map(Limit::Percent);
    }
    let plain = text.parse().ok().filter(|n: &f64| n.is_finite()).map(Limit::Number);
    plain.or_else(|| text.parse::<Millis>().ok().map(|m| Limit::Millis(m.0)))
}

/// How much worse than the reference is still stable.
pub(super) fn tolerance(name: &str, metric: &Metric, text: Option<&str>, of: Reference, band: bool) -> Result<Test, PlanError> {
    let key = format!("metrics.{name}.tolerance");
    let asked = match text {
        None => None,
        Some(text) => Some(quantity(text).ok_or_else(|| refused(key.clone(), "write \"10%\", \"20ms\" or \"5\""))?),
    };
    let points = |units: f64| Test::Margin { units: number(units), of };
    let share = |percent: f64| Test::Within { percent: number(percent), of };
    Ok(match (metric.kind, asked) {
        (Kind::Ratio, None) => points(0.1),
        (Kind::Percent, None) if name == "error_rate" => points(0.1),
        (Kind::Percent, None) => points(10.0),
        (Kind::Ratio | Kind::Percent, Some(Limit::Percent(units))) => points(units),
        (Kind::Quantile { .. }, None) => share(10.0),
        (Kind::Quantile { .. }, Some(Limit::Millis(units))) => points(units as f64),
        (Kind::Rate, asked @ (None | Some(Limit::Percent(_)))) => {
            let percent = if let Some(Limit::Percent(percent)) = asked { percent } else { 30.0 };
            if band { Test::Band { percent: number(percent), of } } else { share(percent) }
        }
        (Kind::Quantile { .. } | Kind::Value, Some(Limit::Percent(percent))) => share(percent),
        (Kind::Rate | Kind::Value, Some(Limit::Number(units))) => points(units),
        (Kind::Value, None) => share(10.0),
        (Kind::Count, _) => return Err(refused(key, "what is counted since the observation began is compared with nothing: remove it")),
        _ => {
            return Err(refused(
                key,
                format!("it does not fit the metric's unit ({})", if metric.kind.unit().is_empty() { "none" } else { metric.kind.unit() }),
            ));
        }
    })
}
