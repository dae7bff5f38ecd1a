//! agent.toml: what this host is told by its own people. The controller cannot
//! write it, and nothing the controller says widens it.
//!
//! Owns reading the file and every message about a mistake in it (file, line,
//! key, fix). Must not touch anything else.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tidegate_protocol::HostName;

use crate::context::Policy;
use crate::paths::{self, Paths};

/// Most controllers one file may name.
const CONTROLLERS_MAX: usize = 16;
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why there is no configuration. All of these are exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not readable.
    #[error("{path} cannot be read; `tidegate-agent enroll` writes it")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, an unknown key, a value of another type.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// With line, column and key.
        message: String,
    },
    /// A value that cannot be.
    #[error("{path}: line {line}: {key}: {problem}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Where the key stands, from 1 (1 if it does not).
        line: usize,
        /// Which key.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// `[trust]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// Publisher keys, OpenSSH format.
    #[serde(default)]
    pub allowed_signers: Option<PathBuf>,
    /// Distinct public keys that must have signed a release.
    pub threshold: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    controllers: Vec<String>,
    #[serde(default)]
    name: Option<HostName>,
    #[serde(default)]
    state: Option<PathBuf>,
    #[serde(default)]
    opt: Option<PathBuf>,
    #[serde(default)]
    trust: Option<Trust>,
    #[serde(default)]
    policy: Policy,
    #[serde(default)]
    commands: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    vars: BTreeMap<String, String>,
}

/// A configuration that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `HOST:PORT`, in the order to try.
    pub controllers: Vec<String>,
    /// The name asked for at enrolment; the certificate decides.
    pub name: Option<HostName>,
    /// Where everything lives.
    pub paths: Paths,
    /// Whose releases this host takes.
    pub trust: Trust,
    /// What may be done here, `[commands]` included.
    pub policy: Policy,
    /// For `${var.NAME}`.
    pub vars: BTreeMap<String, String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`]: it names the file, the line and the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let path = std::path::absolute(path).map_err(read)?;
        if fs::metadata(&path).map_err(read)?.len() > FILE_BYTES_MAX {
            return Err(read(io::ErrorKind::FileTooLarge.into()));
        }
        let text = fs::read_to_string(&path).map_err(read)?;
        Self::parse(&path, &text)
    }

    /// As [`Config::load`], from a text; `path` must be absolute.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string().trim_end().to_owned() })?;
        let bad = |key: &'static str, problem: &str| ConfigError::Value {
            path: path.to_owned(),
            line: line_of(text, key),
            key,
            problem: problem.to_owned(),
        };
        if file.controllers.is_empty() || file.controllers.len() > CONTROLLERS_MAX {
            return Err(bad("controllers", "name one to 16 controllers, for example [\"ctl1.example:7443\"]"));
        }
        for controller in &file.controllers {
            if split_address(controller).is_none() {
                return Err(bad("controllers", &format!("{controller:?} is not HOST:PORT, for example \"ctl1.example:7443\"")));
            }
        }
        let no_trust =
            || bad("trust", "is missing: say [trust] with `threshold`, the number of publisher keys that must have signed a release");
        let trust = file.trust.ok_or_else(no_trust)?;
        if trust.threshold > 0 {
            // Fail closed: a promise that is not kept would be worse than none.
            return Err(bad("threshold", "this version cannot verify publisher signatures yet; on a development fleet say threshold = 0"));
        }
        if !file.policy.commands.is_empty() {
            return Err(bad("policy", "commands stand under [commands], not under [policy]"));
        }
        for (name, argv) in &file.commands {
            if argv.first().is_none_or(|program| !program.starts_with('/')) {
                return Err(bad("commands", &format!("{name} must be a list that begins with the absolute path of a program")));
            }
        }
        for name in file.vars.keys() {
            if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-') {
                return Err(bad("vars", &format!("{name:?} is not a name of letters, digits, '-' and '_'")));
            }
        }
        let paths = Paths {
            config: path.to_owned(),
            state: paths::beside(path, file.state.as_deref().unwrap_or(Path::new(paths::SYSTEM_STATE))),
            opt: paths::beside(path, file.opt.as_deref().unwrap_or(Path::new(paths::SYSTEM_OPT))),
        };
        let policy = Policy { commands: file.commands, ..file.policy };
        Ok(Self { controllers: file.controllers, name: file.name, paths, trust, policy, vars: file.vars })
    }
}

/// `HOST:PORT` → host and port; IPv6 addresses stand in brackets.
#[must_use]
pub fn split_address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port: u16 = port.parse().ok()?;
    (!host.is_empty() && !host.contains(char::is_whitespace) && port != 0).then_some((host, port))
}

/// The line of a key or table, from 1.
fn line_of(text: &str, key: &str) -> usize {
    let begins = |line: &str| {
        line.trim_start().trim_start_matches('[').strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']']))
    };
    text.lines().position(begins).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/x/agent.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_contract_s_keys_are_read() {
        let config = parse(
            "controllers = [\"ctl1.example:7443\", \"[::1]:7443\"]\nstate = \"state\"\nopt = \"/o\"\n[trust]\nthreshold = 0\n[policy]\ncomponents = [\"api\"]\nunits = [\"shop-api.service\"]\n\
             paths = [\"/opt/tidegate\"]\nrun_as = \"tidegate-run\"\nurls = []\n[commands]\nlb-switch = [\"/usr/local/sbin/lb-switch\"]\n[vars]\nport = \"8081\"\n",
        )
        .unwrap();
        assert_eq!(config.paths.state, Path::new("/x/state"));
        assert_eq!(config.paths.opt, Path::new("/o"));
        assert_eq!(config.vars["port"], "8081");
        assert_eq!(config.policy.commands["lb-switch"], ["/usr/local/sbin/lb-switch"]);
    }

    #[test]
    fn a_mistake_names_file_line_and_key() {
        let base = "controllers = [\"c:1\"]\n[trust]\nthreshold = 0\n";
        for (text, wants) in [
            (format!("controler = 1\n{base}"), vec!["/x/agent.toml", "line 1", "controler", "expected one of"]),
            (format!("{base}[policy]\nunit = []\n"), vec!["line 5", "unit"]),
            (format!("{base}[vars]\nport = 8081\n"), vec!["line 5", "string"]),
            (base.replace("c:1", "c"), vec!["line 1", "controllers", "HOST:PORT"]),
            (base.replace("[\"c:1\"]", "[]"), vec!["line 1", "controllers"]),
            (base.replace('0', "1"), vec!["line 3", "threshold", "threshold = 0"]),
            ("controllers = [\"c:1\"]\n".into(), vec!["trust", "missing"]),
            (format!("{base}[commands]\nx = [\"lb\"]\n"), vec!["line 4", "commands", "absolute"]),
            (format!("{base}[vars]\n\"a b\" = \"1\"\n"), vec!["line 4", "vars"]),
        ] {
            let error = parse(&text).unwrap_err();
            for want in wants {
                assert!(error.contains(want), "{want:?} is not in {error:?}");
            }
        }
    }
}
