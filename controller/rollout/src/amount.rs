//! `"10%"` or a count, and the one rounding rule for each use of them.

use alloc::string::{String, ToString};
use core::fmt;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A count of hosts, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Count(u32),
    /// Percent, 0 to 100.
    Percent(u8),
}

impl Amount {
    /// Window sizes (`batch`, `max_parallel`, `rollback_parallel`):
    /// `max(1, floor(n·p))`, never more than `n`.
    #[must_use]
    pub fn window(self, n: usize) -> usize {
        self.floor(n).clamp(1, n.max(1))
    }

    /// Failure budgets: `floor(n·p)`.
    #[must_use]
    pub fn floor(self, n: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => n * usize::from(percent) / 100,
        }
    }

    /// `min_healthy`: `min(ceil(n·p), n − 1)`, so that something can ever move.
    #[must_use]
    pub fn keep_in_service(self, n: usize) -> usize {
        let wanted = match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => (n * usize::from(percent)).div_ceil(100),
        };
        wanted.min(n.saturating_sub(1))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

const RULE: &str = "a whole number of hosts or a percentage from \"0%\" to \"100%\"";

impl core::str::FromStr for Amount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || alloc::format!("{text:?}: {RULE} is wanted");
        match text.strip_suffix('%') {
            Some(number) => number.parse().ok().filter(|p| *p <= 100).map(Self::Percent).ok_or_else(bad),
            None => text.parse().map(Self::Count).map_err(|_| bad()),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => s.serialize_u32(*count),
            Self::Percent(_) => s.serialize_str(&self.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Amount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(RULE)
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Amount, E> {
                u32::try_from(v).map(Amount::Count).map_err(|_| E::custom(alloc::format!("{v}: {RULE} is wanted")))
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Amount, E> {
                u32::try_from(v).map(Amount::Count).map_err(|_| E::custom(alloc::format!("{v}: {RULE} is wanted")))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Amount, E> {
                v.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(V).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_rule_18() {
        let ten = Amount::Percent(10);
        assert_eq!([1, 3, 10, 15, 20, 100].map(|n| ten.window(n)), [1, 1, 1, 1, 2, 10]);
        assert_eq!([1, 9, 10, 25].map(|n| ten.floor(n)), [0, 0, 1, 2]);
        let two_thirds = Amount::Percent(66);
        assert_eq!([1, 2, 3, 10].map(|n| two_thirds.keep_in_service(n)), [0, 1, 2, 7]);
        assert_eq!(Amount::Percent(100).keep_in_service(4), 3);
        assert_eq!(Amount::Count(50).window(4), 4);
        for bad in ["", "-1", "101%", "1.5", "x%"] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
    }
}
