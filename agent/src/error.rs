//! Errors on their way out: to a person (text with its chain of causes, exit
//! code) and to the machine (a [`Failure`] with its class).
//!
//! Owns no error type of its own besides [`Exit`]: each edge has its enum.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use tidegate_protocol::Cause;
use tidegate_protocol::report::{Failure, bounded};

/// Why the program ends with a code other than 0.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    /// Exit code 2: the command line, or a file that does not read as what it should be.
    #[error("{0}")]
    Usage(String),
    /// Exit code 1: everything else.
    #[error("{0}")]
    Error(String),
}

impl Exit {
    /// An error whose chain is shown whole.
    pub fn error(error: &(dyn Error + 'static)) -> Self {
        Self::Error(chain(error))
    }

    /// The process's exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Error(_) => 1,
        }
    }
}

/// The text of an error and of all its sources: `a: b: c`.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    // An error chain has no cycle, but nothing says so: the bound costs nothing.
    for _ in 0..16 {
        let Some(cause) = source else { break };
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// A failure of the given class; the text is cut for the wire.
#[must_use]
pub fn failure(cause: Cause, message: &str) -> Failure {
    Failure { cause, message: bounded(message) }
}

/// A failure of the given class from an error and its chain.
#[must_use]
pub fn failed(cause: Cause, error: &(dyn Error + 'static)) -> Failure {
    failure(cause, &chain(error))
}

/// Whether an input/output error means that there is no room, and the sentence
/// that then helps.
#[must_use]
pub fn disk_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => " (the disk is full: free space and try again)",
        io::ErrorKind::ReadOnlyFilesystem => " (the file system is read-only: see the kernel's log)",
        io::ErrorKind::QuotaExceeded => " (the disk quota is used up)",
        _ => "",
    }
}
