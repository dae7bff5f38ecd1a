//! The fence of a (host, component): only the controller mints generations,
//! and nothing acts below the highest one seen.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `(epoch, n)`, ordered by epoch first. The epoch rises when the controller's
/// state is restored from a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    /// Rises on restore; compares before `n`.
    pub epoch: u32,
    /// Rises by one with every assignment of the (host, component).
    pub n: u64,
}

impl Generation {
    /// Below every generation that is ever minted.
    pub const ZERO: Self = Self { epoch: 0, n: 0 };

    /// A generation of this epoch.
    #[must_use]
    pub const fn new(epoch: u32, n: u64) -> Self {
        Self { epoch, n }
    }

    /// The next one in the same epoch.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { epoch: self.epoch, n: self.n + 1 }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.n)
    }
}

/// A text that is not a generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a generation: EPOCH.N is wanted")]
pub struct BadGeneration;

impl FromStr for Generation {
    type Err = BadGeneration;
    fn from_str(text: &str) -> Result<Self, BadGeneration> {
        let (epoch, n) = text.split_once('.').ok_or(BadGeneration)?;
        Ok(Self { epoch: epoch.parse().map_err(|_| BadGeneration)?, n: n.parse().map_err(|_| BadGeneration)? })
    }
}

impl Serialize for Generation {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { (self.epoch, self.n).serialize(s) }
    }
}

impl<'de> Deserialize<'de> for Generation {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?.parse().map_err(D::Error::custom)
        } else {
            <(u32, u64)>::deserialize(d).map(|(epoch, n)| Self { epoch, n })
        }
    }
}
