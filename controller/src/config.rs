//! controller.toml: read once at start, strictly.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::approvers::{Approvers, ApproversFile};
use crate::environment::{Environment, EnvironmentFile};
use crate::notify::Routes;
use crate::sources::{Access, Auth, BadBase, Base};

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
    /// Metrics servers that plans may name, and how they are spoken to. Those on
    /// loopback need not be here.
    pub sources: BTreeMap<Base, Access>,
    /// What a rollout to an environment must bring, by name.
    pub environments: BTreeMap<String, Environment>,
    /// Who may approve what; none = nobody.
    pub approvers: Option<Approvers>,
    /// Where notifications go.
    pub routes: Routes,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    state: PathBuf,
    trust: Trust,
    // Known to the contract; a value in them is refused by name until it is enforced.
    approvers: Option<ApproversFile>,
    routes: Option<toml::Table>,
    #[serde(default)]
    environments: BTreeMap<String, EnvironmentFile>,
    retention: Option<toml::Table>,
    limits: Option<toml::Table>,
    #[serde(default)]
    sources: BTreeMap<String, SourceFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceFile {
    token_file: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
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
        for (key, table) in [("retention", &file.retention), ("limits", &file.limits)] {
            if filled(table) {
                return bad(key, not_yet);
            }
        }
        let base = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let state = std::path::absolute(base.join(&file.state)).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let environments = file.environments.into_iter().map(|(name, e)| Environment::new(&name, e).map(|e| (name, e)));
        let environments = environments.collect::<Result<_, _>>();
        let environments = environments.map_err(|message| ConfigError::Value { path: path.into(), key: "environments", message })?;
        let approvers = file.approvers.map(|a| Approvers::parse(a, base)).transpose();
        let approvers = approvers.map_err(|message| ConfigError::Value { path: path.into(), key: "approvers", message })?;
        let sources = sources(file.sources, base).map_err(|message| ConfigError::Value { path: path.into(), key: "sources", message })?;
        let routes = Routes::parse(file.routes.unwrap_or_default(), base).map_err(|message| ConfigError::Value {
            path: path.into(),
            key: "routes",
            message,
        })?;
        Ok(Self { listen: file.listen, state, threshold: file.trust.threshold, sources, environments, approvers, routes })
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

/// Files are relative to controller.toml; they are read when they are needed.
fn sources(files: BTreeMap<String, SourceFile>, dir: &Path) -> Result<BTreeMap<Base, Access>, String> {
    let mut all = BTreeMap::new();
    for (url, file) in files {
        let base: Base = url.parse().map_err(|e: BadBase| e.to_string())?;
        let auth = match (file.token_file, file.user, file.password_file) {
            (None, None, None) => None,
            (Some(token), None, None) => Some(Auth::Token(dir.join(token))),
            (None, Some(user), Some(password)) => Some(Auth::Basic { user, password_file: dir.join(password) }),
            _ => return Err(format!("{base}: write token_file, or user and password_file, or none of them")),
        };
        if auth.is_some() && !base.https && !base.is_loopback() {
            return Err(format!("{base}: over http everybody on the way reads the secret; write https"));
        }
        if file.ca_file.is_some() && !base.https {
            return Err(format!("{base}: ca_file belongs to https"));
        }
        let shown = base.to_string();
        if all.insert(base, Access { auth, ca_file: file.ca_file.map(|ca| dir.join(ca)) }).is_some() {
            return Err(format!("{shown} stands there twice"));
        }
    }
    Ok(all)
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
    fn sources_read() {
        let text = format!(
            "{GOOD}[sources.\"https://prom.example/a/\"]\ntoken_file = \"token\"\nca_file = \"/ca.pem\"\n[sources.\"http://am:9093\"]\n"
        );
        let config = Config::parse(&text, Path::new("/etc/x/controller.toml")).unwrap();
        let prom = &config.sources[&"https://prom.example/a".parse().unwrap()];
        assert_eq!(prom.auth, Some(Auth::Token("/etc/x/token".into())));
        assert_eq!(prom.ca_file.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(config.sources[&"http://am:9093".parse().unwrap()], Access::default());
        for (source, wanted) in [
            ("[sources.\"https://a\"]\ntoken = \"geheim\"\n", "token_file"),
            ("[sources.\"https://a\"]\nuser = \"u\"\n", "password_file"),
            ("[sources.\"http://a\"]\ntoken_file = \"t\"\n", "write https"),
            ("[sources.\"http://a\"]\nca_file = \"t\"\n", "ca_file"),
            ("[sources.\"prom:9090\"]\n", "http://HOST:PORT"),
            ("[sources.\"http://a\"]\n[sources.\"http://A:80/\"]\n", "twice"),
        ] {
            let message = Config::parse(&format!("{GOOD}{source}"), Path::new("/c.toml")).unwrap_err().to_string();
            assert!(message.starts_with("/c.toml: ") && message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn errors_name_the_file_the_place_and_the_fix() {
        for (text, wanted) in [
            (GOOD.replace("listen", "listn"), &["line 1", "listn", "listen"][..]),
            (GOOD.replace("0.0.0.0:7443", "7443"), &["line 1"]),
            (GOOD.replace("threshold = 0", "threshold = 1"), &["trust.threshold", "threshold = 0"]),
            (format!("{GOOD}[routes.team]\nvia = \"slack\"\n"), &["routes: team.url_file", "url_env"]),
            (
                format!("{GOOD}[environments.production]\nreadiness = [\"tested\"]\n"),
                &["environments: production.readiness", "tested-in-staging"],
            ),
            (format!("{GOOD}[environments.production]\ndrills = \"14d\"\n"), &["line 6", "drills", "drill_max_age"]),
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
