//! Label selectors, in the syntax of Kubernetes:
//! `role=api,zone!=b,env in (prod,stage),!legacy`.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Labels of a host.
pub type Labels = BTreeMap<String, String>;

/// All requirements must hold; none at all selects every host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    text: String,
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Missing(String),
}

/// A text that is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part:?} is not a label selector: write key=value, key!=value, key in (a,b), key notin (a,b), key or !key, joined by commas")]
pub struct BadSelector {
    /// The part that does not read.
    pub part: String,
}

/// A key or value that a label may have.
#[must_use]
pub fn label_word_ok(word: &str, empty_ok: bool) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if word.is_empty() {
        return empty_ok;
    }
    word.len() <= 253
        && edge(word.chars().next())
        && edge(word.chars().last())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
}

impl Selector {
    /// Whether a host with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Missing(key) => !labels.contains_key(key),
        })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Splits at commas outside parentheses.
fn parts(text: &str) -> Vec<&str> {
    let (mut out, mut depth, mut start) = (Vec::new(), 0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn set(text: &str) -> Option<BTreeSet<String>> {
    let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    inner.split(',').map(str::trim).map(|v| label_word_ok(v, false).then(|| v.to_string())).collect()
}

fn requirement(part: &str) -> Option<Requirement> {
    let part = part.trim();
    let key = |k: &str| label_word_ok(k, false).then(|| k.to_string());
    let one = |v: &str| label_word_ok(v.trim(), true).then(|| BTreeSet::from([v.trim().to_string()]));
    if let Some((k, v)) = part.split_once("!=") {
        return Some(Requirement::NotIn(key(k.trim())?, one(v)?));
    }
    if let Some((k, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(Requirement::In(key(k.trim())?, one(v)?));
    }
    if let Some(k) = part.strip_prefix('!') {
        return Some(Requirement::Missing(key(k.trim())?));
    }
    let mut words = part.splitn(2, char::is_whitespace);
    let name = words.next().unwrap_or_default();
    match words.next().map(str::trim) {
        None => Some(Requirement::Exists(key(name)?)),
        Some(rest) => {
            if let Some(values) = rest.strip_prefix("in").and_then(set) {
                Some(Requirement::In(key(name)?, values))
            } else {
                let values = rest.strip_prefix("notin").and_then(set)?;
                Some(Requirement::NotIn(key(name)?, values))
            }
        }
    }
}

impl core::str::FromStr for Selector {
    type Err = BadSelector;
    fn from_str(text: &str) -> Result<Self, BadSelector> {
        let requirements = if text.trim().is_empty() {
            Vec::new()
        } else {
            parts(text)
                .into_iter()
                .map(|p| requirement(p).ok_or_else(|| BadSelector { part: p.chars().take(120).collect() }))
                .collect::<Result<_, _>>()?
        };
        Ok(Self { text: text.trim().to_string(), requirements })
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
    }

    #[test]
    fn the_syntax_of_kubernetes() {
        let host = labels(&[("role", "api"), ("zone", "a"), ("env", "prod")]);
        for yes in [
            "",
            "role=api",
            "role==api",
            "role=api,zone!=b",
            "env in (prod,stage)",
            "env in (prod, stage),role=api",
            "zone",
            "!legacy",
            "zone notin (b,c)",
            "missing!=x",
        ] {
            assert!(yes.parse::<Selector>().unwrap().matches(&host), "{yes}");
        }
        for no in ["role=web", "zone!=a", "env in (stage)", "legacy", "!zone", "env notin (prod)", "role=api,zone=b"] {
            assert!(!no.parse::<Selector>().unwrap().matches(&host), "{no}");
        }
        for bad in ["=api", "role=a b", "env in prod", "env in ()", "role=api,,zone=a", "role in (a", "a b c", "-x=1"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
