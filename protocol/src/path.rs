//! Paths inside a release: they never leave its root.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::PATH_BYTES_MAX;

/// A relative path of plain segments joined by `/`: no `.`, no `..`, no empty
/// segment, no control character.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(String);

/// A path that could leave the release's root or confuse a reader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a path inside a release: relative, without '.', '..', empty or over-long parts and control characters")]
pub struct BadPath {
    /// What was given, cut to a printable length.
    pub text: String,
}

impl RelPath {
    /// The text of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RelPath {
    type Err = BadPath;
    fn from_str(text: &str) -> Result<Self, BadPath> {
        let segment_ok =
            |s: &str| !s.is_empty() && s != "." && s != ".." && s.len() <= 255 && !s.chars().any(char::is_control) && !s.contains('\\');
        if text.len() <= PATH_BYTES_MAX && text.split('/').all(segment_ok) {
            Ok(Self(text.to_string()))
        } else {
            Err(BadPath { text: text.chars().take(120).collect() })
        }
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_root() {
        assert!("bin/api".parse::<RelPath>().is_ok());
        assert!("a b/ü".parse::<RelPath>().is_ok());
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\0b", "a\nb", "a\\b"] {
            assert!(bad.parse::<RelPath>().is_err(), "{bad:?}");
        }
    }
}
