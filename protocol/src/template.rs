//! `${…}` in strings of service, check, smoke and switch.
//!
//! Known names: `host`, `component`, `version`, `side`, `label.NAME`, `var.NAME`.
//! An unknown one is refused in preflight: a typo must not become an empty word.

use alloc::string::{String, ToString};

/// A text with a `${…}` that nothing defines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// No such name.
    #[error(
        "{name:?} in {text:?} is not defined on this host; known are host, component, version, label.NAME and var.NAME (from [vars] in agent.toml)"
    )]
    Unknown {
        /// The name.
        name: String,
        /// Where.
        text: String,
    },
    /// `${` without its `}`.
    #[error("{text:?} has a '${{' without its '}}'")]
    Open {
        /// Where.
        text: String,
    },
}

/// Replaces every `${name}` by what `lookup` knows.
///
/// # Errors
/// [`BadTemplate`]: an unknown name, or an open brace.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, BadTemplate> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        out.push_str(&rest[..at]);
        let Some(end) = rest[at..].find('}') else {
            return Err(BadTemplate::Open { text: text.to_string() });
        };
        let name = &rest[at + 2..at + end];
        let Some(value) = lookup(name) else {
            return Err(BadTemplate::Unknown { name: name.to_string(), text: text.to_string() });
        };
        out.push_str(&value);
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_and_typos_refused() {
        let lookup = |name: &str| (name == "var.port").then(|| "8081".to_string());
        assert_eq!(expand("http://h:${var.port}/x", lookup).unwrap(), "http://h:8081/x");
        assert_eq!(expand("$5 {x}", lookup).unwrap(), "$5 {x}");
        assert!(matches!(expand("${var.prot}", lookup), Err(BadTemplate::Unknown { .. })));
        assert!(matches!(expand("a ${var.port", lookup), Err(BadTemplate::Open { .. })));
    }
}
