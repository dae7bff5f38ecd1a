//! What one swap machine is about: a component, or one of its two sides.
//!
//! Owns the names that follow from it: of the link, the ledger record, the log,
//! the transient unit. Nothing of a component without sides has an `@` in it.

use std::fmt;
use std::str::FromStr;

use tidegate_protocol::{ComponentName, Side};

/// A component that runs from `current`, or one side of a component that runs
/// from `blue` and `green`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Which component.
    pub component: ComponentName,
    /// Which side of it; none for a component without sides.
    pub side: Option<Side>,
}

impl Slot {
    /// A component without sides.
    #[must_use]
    pub const fn plain(component: ComponentName) -> Self {
        Self { component, side: None }
    }

    /// One side of a component.
    #[must_use]
    pub const fn side(component: ComponentName, side: Side) -> Self {
        Self { component, side: Some(side) }
    }

    /// Every slot that this component may have.
    #[must_use]
    pub fn all(component: &ComponentName) -> [Self; 3] {
        [None, Some(Side::Blue), Some(Side::Green)].map(|side| Self { component: component.clone(), side })
    }

    /// The link that is flipped, beside `releases`.
    #[must_use]
    pub const fn link(&self) -> &'static str {
        match self.side {
            None => "current",
            Some(side) => side.word(),
        }
    }
}

/// `api`, `api@green`: no component name has an `@`.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            None => write!(f, "{}", self.component),
            Some(side) => write!(f, "{}@{side}", self.component),
        }
    }
}

/// A text that names no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a component or of a side of one")]
pub struct BadSlot;

impl FromStr for Slot {
    type Err = BadSlot;
    fn from_str(text: &str) -> Result<Self, BadSlot> {
        let (component, side) = match text.split_once('@') {
            None => (text, None),
            Some((component, word)) => (component, Some(Side::ALL.into_iter().find(|side| side.word() == word).ok_or(BadSlot)?)),
        };
        Ok(Self { component: component.parse().map_err(|_| BadSlot)?, side })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_to_text_and_back_and_a_plain_one_is_the_component() {
        let component: ComponentName = "api-2_x".parse().unwrap();
        for slot in Slot::all(&component) {
            assert_eq!(slot.to_string().parse(), Ok(slot));
        }
        assert_eq!(Slot::plain(component.clone()).to_string(), "api-2_x");
        assert_eq!(Slot::side(component.clone(), Side::Green).to_string(), "api-2_x@green");
        assert_eq!(Slot::all(&component).map(|slot| slot.link()), ["current", "blue", "green"]);
        for text in ["", "@blue", "api@", "api@red", "api@blue@green", "api@switch", ".api"] {
            assert_eq!(text.parse::<Slot>(), Err(BadSlot), "{text}");
        }
    }
}
