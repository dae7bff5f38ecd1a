//! What stops the daemon, with the exit codes of the contract.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::init::InitError;
use crate::store::StoreError;

/// Why `tidegate-controller` ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// controller.toml does not read as what it should be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `init` could not do its work; nothing was left behind.
    #[error(transparent)]
    Init(#[from] InitError),
    /// Another controller runs on this state.
    #[error("{path}: another tidegate-controller runs on this state directory; stop it first")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file or directory of the state cannot be used.
    #[error("{path}: cannot {what}")]
    State {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The journal cannot be opened, read or trusted.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The CA cannot be read.
    #[error(transparent)]
    Ca(#[from] tidegate_net::CaError),
    /// The controller's own certificate cannot be read.
    #[error(transparent)]
    Identity(#[from] tidegate_net::IdentityError),
    /// The endpoint cannot be made.
    #[error(transparent)]
    Net(#[from] tidegate_net::NetError),
    /// The runtime cannot be made.
    #[error("the async runtime cannot be started")]
    Runtime(#[source] std::io::Error),
    /// A decision could not be made durable: what is in memory is ahead of the
    /// journal, so nothing more may be decided.
    #[error("the journal could not be appended to; nothing was sent. Stopping, so that the next start goes on from the journal")]
    Append(#[source] StoreError),
}

impl DaemonError {
    /// 2 for files and command lines that do not read, else 1.
    #[must_use]
    pub const fn exit(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Init(error) => error.exit(),
            _ => 1,
        }
    }

    /// The error and what led to it, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut out = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            let text = error.to_string();
            // `transparent` variants say the same twice.
            if !out.ends_with(&text) {
                out.push_str(": ");
                out.push_str(&text);
            }
            next = error.source();
        }
        out
    }
}
