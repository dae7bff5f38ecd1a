//! The one condition grammar of plans: `metric < 0.1%`, `metric == 0`,
//! `metric within 10% of baseline`, `metric > 200% of baseline`, `stable`,
//! `no_degradation`, `declared NAME`.

use alloc::string::{String, ToString};
use core::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A condition as written, and as understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    /// What it asks.
    pub ask: Ask,
}

// Sound: the numbers in it are finite.
impl Eq for Condition {}

/// What a condition asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// A metric against a limit.
    Compare {
        /// Which metric.
        metric: String,
        /// How.
        op: Op,
        /// Against what.
        limit: Limit,
    },
    /// One-sided: no worse than the baseline by more than so many percent.
    Within {
        /// Which metric.
        metric: String,
        /// Percent.
        percent: f64,
    },
    /// Every listed metric inside its tolerance.
    Stable,
    /// No worse than the control group.
    NoDegradation,
    /// A person declared it.
    Declared(String),
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
    /// `==`
    Equal,
}

/// The right side of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// A plain number.
    Number(f64),
    /// A share, in percent.
    Percent(f64),
    /// A duration, milliseconds.
    Millis(u64),
    /// Percent of the sealed baseline; 200 is twice the value.
    OfBaseline(f64),
}

/// A text that is not a condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a condition: write for example \"error_rate < 0.1%\", \"latency_p99 within 10% of baseline\", \"latency_p50 > 200% of baseline\", \"stable\", \"no_degradation\" or \"declared NAME\""
)]
pub struct BadCondition {
    /// What was given.
    pub text: String,
}

fn word(text: &str) -> Option<String> {
    let ok = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
    (ok && text.len() <= 64).then(|| text.to_string())
}

fn percent(text: &str) -> Option<f64> {
    text.strip_suffix('%')?.parse().ok().filter(|p: &f64| p.is_finite() && *p >= 0.0)
}

fn limit(words: &[&str]) -> Option<Limit> {
    match words {
        [p, "of", "baseline"] => percent(p).map(Limit::OfBaseline),
        [one] => percent(one)
            .map(Limit::Percent)
            .or_else(|| one.parse().ok().filter(|n: &f64| n.is_finite()).map(Limit::Number))
            .or_else(|| one.parse::<tidegate_protocol::Millis>().ok().map(|m| Limit::Millis(m.0))),
        _ => None,
    }
}

fn ask(text: &str) -> Option<Ask> {
    let words: alloc::vec::Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["stable"] => Some(Ask::Stable),
        ["no_degradation"] => Some(Ask::NoDegradation),
        ["declared", name] => word(name).map(Ask::Declared),
        [metric, "within", p, "of", "baseline"] => Some(Ask::Within { metric: word(metric)?, percent: percent(p)? }),
        [metric, op, rest @ ..] => {
            let op = match *op {
                "<" => Op::Less,
                "<=" => Op::AtMost,
                ">" => Op::More,
                ">=" => Op::AtLeast,
                "==" => Op::Equal,
                _ => return None,
            };
            Some(Ask::Compare { metric: word(metric)?, op, limit: limit(rest)? })
        }
        _ => None,
    }
}

impl core::str::FromStr for Condition {
    type Err = BadCondition;
    fn from_str(text: &str) -> Result<Self, BadCondition> {
        ask(text).map(|ask| Self { text: text.to_string(), ask }).ok_or_else(|| BadCondition { text: text.chars().take(160).collect() })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guides_own_conditions_read() {
        let good = [
            "error_rate < 0.1%",
            "latency_p99 within 10% of baseline",
            "no_degradation",
            "stable",
            "critical_errors == 0",
            "latency_p50 > 200% of baseline",
            "latency_p99 < 500ms",
            "declared data-corruption",
        ];
        for text in good {
            assert_eq!(text.parse::<Condition>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "error_rate",
            "error_rate < ",
            "error_rate ~ 1",
            "x < y",
            "latency within 10 of baseline",
            "Stable",
            "a < 1% of",
            "a < NaN",
        ] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
    }
}
