//! controller.toml: read once at start, strictly.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Largest file that is read, bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// controller.toml as checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where agents and operators dial; port 0 = any, see `<state>/listening`.
    pub listen: SocketAddr,
    /// Absolute: CA, identity, journal, depot.
    pub state: PathBuf,
    /// Distinct publisher keys that must have signed a release.
    pub threshold: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    state: PathBuf,
    trust: Trust,
    // Known to the contract; a value in them is refused by name until it is enforced.
    approvers: Option<toml::Value>,
    routes: Option<toml::Table>,
    environments: Option<toml::Table>,
    retention: Option<toml::Table>,
    limits: Option<toml::Table>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trust {
    threshold: u32,
    allowed_signers: Option<PathBuf>,
}

/// A controller.toml that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: cannot be read; `tidegate-controller init` makes one")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Far larger than a configuration.
    #[error("{path}: over {CONFIG_BYTES_MAX} bytes, this is not a controller.toml")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Not TOML, an unknown key, a value that does not fit; names the line.
    #[error("{path}: {message}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Line, column, what was found and what is wanted.
        message: String,
    },
    /// It asks for what this version does not do.
    #[error("{path}: {key}: {message}")]
    Value {
        /// Which.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What is wrong and what to write.
        message: String,
    },
}

impl Config {
    /// Reads and checks a file. A relative `state` is relative to the file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        let size = std::fs::metadata(path).map_err(read)?.len();
        if size > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.into() });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(read)?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File =
            toml::from_str(text).map_err(|e| ConfigError::Syntax { path: path.into(), message: e.to_string().trim_end().to_string() })?;
        let bad = |key, message: &str| Err(ConfigError::Value { path: path.into(), key, message: message.into() });
        if file.trust.threshold > 0 {
            return bad(
                "trust.threshold",
                "this version cannot check release signatures; write threshold = 0 (every release is then trusted)",
            );
        }
        if file.trust.allowed_signers.is_some() {
            return bad("trust.allowed_signers", "this version cannot check release signatures; remove it");
        }
        let not_yet = "this version does not enforce it yet, and a configuration must not promise what is not enforced; remove it";
        let filled = |table: &Option<toml::Table>| table.as_ref().is_some_and(|t| !t.is_empty());
        if file.approvers.as_ref().is_some_and(|a| a.as_table().is_none_or(|t| !t.is_empty())) {
            return bad("approvers", not_yet);
        }
        for (key, table) in
            [("routes", &file.routes), ("environments", &file.environments), ("retention", &file.retention), ("limits", &file.limits)]
        {
            if filled(table) {
                return bad(key, not_yet);
            }
        }
        let base = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let state = std::path::absolute(base.join(&file.state)).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Ok(Self { listen: file.listen, state, threshold: file.trust.threshold })
    }

    /// Where the CA's certificate and key are.
    #[must_use]
    pub fn ca_dir(&self) -> PathBuf {
        self.state.join("ca")
    }

    /// Where the controller's certificate and key are.
    #[must_use]
    pub fn identity_dir(&self) -> PathBuf {
        self.state.join("identity")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "listen = \"0.0.0.0:7443\"\nstate = \"data\"\n[trust]\nthreshold = 0\n";

    #[test]
    fn it_reads() {
        let config = Config::parse(GOOD, Path::new("/etc/x/controller.toml")).unwrap();
        assert_eq!(config.state, Path::new("/etc/x/data"));
        assert_eq!(config.listen.port(), 7443);
        Config::parse(&format!("{GOOD}[limits]\n[routes]\n"), Path::new("/c.toml")).unwrap();
    }

    #[test]
    fn errors_name_the_file_the_place_and_the_fix() {
        for (text, wanted) in [
            (GOOD.replace("listen", "listn"), &["line 1", "listn", "listen"][..]),
            (GOOD.replace("0.0.0.0:7443", "7443"), &["line 1"]),
            (GOOD.replace("threshold = 0", "threshold = 1"), &["trust.threshold", "threshold = 0"]),
            (format!("{GOOD}[routes.team]\nvia = \"slack\"\n"), &["routes", "remove it"]),
            ("state = \"x\"\n[trust]\nthreshold = 0\n".into(), &["listen"]),
        ] {
            let message = Config::parse(&text, Path::new("/c.toml")).unwrap_err().to_string();
            assert!(message.starts_with("/c.toml: "), "{message}");
            for part in wanted {
                assert!(message.contains(part), "{part:?} is not in {message}");
            }
        }
    }
}
