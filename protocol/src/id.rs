//! Names as types, checked once where they enter.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: {rule}")]
pub struct BadName {
    /// What it should have been.
    pub kind: &'static str,
    /// What was given, cut to a printable length.
    pub text: String,
    /// What is allowed.
    pub rule: &'static str,
}

/// Length and characters; the first must be a letter or a digit, so that no
/// name is ever an option, a hidden file or `..`.
fn well_formed(text: &str, max: usize, extra: &[u8], upper: bool) -> bool {
    let ok = |c: u8| c.is_ascii_digit() || c.is_ascii_lowercase() || (upper && c.is_ascii_uppercase()) || extra.contains(&c);
    let first = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    first && text.len() <= max && text.bytes().all(ok) && !text.contains("..")
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $max:literal, $extra:literal, $upper:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The text of it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                if well_formed(text, $max, $extra, $upper) {
                    Ok(Self(text.to_string()))
                } else {
                    Err(BadName { kind: $kind, text: text.chars().take(80).collect(), rule: $rule })
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

name!(
    /// The name of a machine, as its certificate says it.
    HostName, "host name", 253, b"-._", false,
    "lower-case letters, digits, '-', '_' and '.', at most 253, starting with a letter or digit"
);
name!(
    /// A named thing that runs, such as `api`.
    ComponentName, "component name", 63, b"-_", false,
    "lower-case letters, digits, '-' and '_', at most 63, starting with a letter or digit"
);
name!(
    /// The name all versions of a release share, such as `shop`.
    ReleaseName, "release name", 63, b"-_", false,
    "lower-case letters, digits, '-' and '_', at most 63, starting with a letter or digit"
);
name!(
    /// The version of a release, such as `2.1.0`.
    Version, "version", 63, b"-_.+", true,
    "letters, digits, '.', '-', '_' and '+', at most 63, starting with a letter or digit"
);
name!(
    /// One attempt to carry out a plan.
    RolloutId, "rollout id", 63, b"-_.", true,
    "letters, digits, '-', '_' and '.', at most 63, starting with a letter or digit"
);
name!(
    /// One boot of a machine (`/proc/sys/kernel/random/boot_id`).
    BootId, "boot id", 63, b"-", false,
    "lower-case letters, digits and '-', at most 63"
);

/// `name@version`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseId {
    /// Shared by all versions.
    pub name: ReleaseName,
    /// This one.
    pub version: Version,
}

impl FromStr for ReleaseId {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let Some((name, version)) = text.split_once('@') else {
            return Err(BadName {
                kind: "release",
                text: text.chars().take(80).collect(),
                rule: "NAME@VERSION is wanted, for example shop@2.1.0",
            });
        };
        Ok(Self { name: name.parse()?, version: version.parse()? })
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

impl fmt::Debug for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for ReleaseId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReleaseId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_alphabet() {
        assert!("web-1.example".parse::<HostName>().is_ok());
        for bad in ["", ".", "..", "-x", "a/b", "A", "a b", "a\n", "a..b", "ä", &"x".repeat(254)] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
        let release: ReleaseId = "shop@2.1.0-RC1".parse().unwrap();
        assert_eq!(release.to_string(), "shop@2.1.0-RC1");
        for bad in ["shop", "shop@", "@1", "shop@../x", "sh op@1"] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad:?}");
        }
    }
}
