//! The exit codes of the contract, as a type.

use std::process::ExitCode;

use crate::operator::msg::{ErrorDoc, exit_of};
use tidegate_rollout::RolloutState;

/// How a command ends. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for commands that wait: completed.
    Done = 0,
    /// An error.
    Error = 1,
    /// The command line, or a file that does not read as what it should be.
    Usage = 2,
    /// The rollout waits for a person.
    Person = 3,
    /// Rolled back, the fleet is clean.
    RolledBack = 4,
    /// Refused before the first swap order.
    Refused = 5,
    /// Named hosts are neither new nor back.
    Mixed = 6,
    /// The rollout goes on, this command no longer watches it.
    Detached = 7,
    /// Halted by a person.
    Halted = 8,
}

/// The table as people read it.
const HELP: &str = "\
Exit codes:
  0  done; for commands that wait: completed
  1  error (the controller can't be reached, no such thing, denied)
  2  usage: the command line, or a file that does not read as what it should be
  3  waiting for a person
  4  rolled back, the fleet is clean
  5  refused before the first swap order: no service was touched
  6  mixed fleet: the named hosts are neither new nor back
  7  the rollout goes on, but this command no longer watches it
  8  halted by a person";

/// Below the long help of commands whose exit code says how a rollout went.
pub(super) fn after(examples: &str) -> String {
    format!("{examples}\n\n{HELP}")
}

impl Exit {
    const ALL: [Self; 9] =
        [Self::Done, Self::Error, Self::Usage, Self::Person, Self::RolledBack, Self::Refused, Self::Mixed, Self::Detached, Self::Halted];

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Of a command that saw its rollout in this state, in the end.
    #[must_use]
    pub fn of_state(state: RolloutState) -> Self {
        Self::from(exit_of(state))
    }
}

/// A controller's word; one that this build does not know is an error.
impl From<u8> for Exit {
    fn from(code: u8) -> Self {
        Self::ALL.into_iter().find(|e| e.code() == code).unwrap_or(Self::Error)
    }
}

impl From<&ErrorDoc> for Exit {
    fn from(error: &ErrorDoc) -> Self {
        Self::from(error.code.exit())
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::msg::ErrorCode;

    #[test]
    fn numbers_are_those_of_the_contract() {
        let states = [
            (RolloutState::Completed, 0),
            (RolloutState::RolledBack, 4),
            (RolloutState::Refused, 5),
            (RolloutState::Mixed, 6),
            (RolloutState::Halted, 8),
            (RolloutState::AwaitingApproval, 7),
            (RolloutState::Scheduled, 7),
            (RolloutState::Running, 7),
            (RolloutState::Paused, 7),
            (RolloutState::Baking, 7),
            (RolloutState::Watching, 7),
            (RolloutState::RollingBack, 7),
        ];
        assert_eq!(states.len(), RolloutState::ALL.len());
        for (state, code) in states {
            assert_eq!(Exit::of_state(state).code(), code, "{state}");
        }
        let errors = [
            (ErrorCode::Usage, 2),
            (ErrorCode::Refused, 5),
            (ErrorCode::Denied, 1),
            (ErrorCode::Unavailable, 1),
            (ErrorCode::Internal, 1),
            (ErrorCode::Detached, 7),
        ];
        for (error, code) in errors {
            assert_eq!(Exit::from(&ErrorDoc::new(error, "x")).code(), code, "{error:?}");
        }
        for code in 0..=8 {
            assert_eq!(Exit::from(code).code(), code);
            assert!(HELP.contains(&format!("\n  {code}  ")), "{code}");
        }
        assert_eq!(Exit::from(99), Exit::Error);
    }
}
