//! `tidegate-agent enroll`: a token becomes an identity.
//!
//! Owns: the one exchange, and what is written when it was granted. A refusal
//! writes nothing; an identity that works is kept until its successor stands.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_net::identity::cert_pem;
use tidegate_net::{
    Caller, FrameReceiver, FrameSender, Identity, NetError, Role, StreamError, Token, client, client_config, close, connect, make_csr,
    write_secret,
};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::message::{EnrollReply, EnrollRequest};
use tidegate_protocol::{Digest, HostName};
use tokio::time::timeout;

use crate::config::{Config, ConfigError};
use crate::durable;
use crate::error::Exit;
use crate::paths::{self, Paths};

/// From request to reply: the controller writes to its journal first.
const REPLY: Duration = Duration::from_secs(15);

/// What was asked on the command line.
#[derive(Clone, Debug)]
pub struct Request {
    /// Everything below this directory, instead of the system paths.
    pub dir: Option<PathBuf>,
    /// `HOST:PORT`.
    pub controller: String,
    /// As `token create` printed it.
    pub token: Token,
    /// Else the machine's own name.
    pub name: Option<String>,
    /// For `[vars]`.
    pub vars: BTreeMap<String, String>,
    /// Replace an identity that is there.
    pub force: bool,
}

/// Why the host did not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The machine's name cannot be a host name.
    #[error("the machine's name cannot be used; give one with --name")]
    Name(#[source] tidegate_protocol::id::BadName),
    /// There is one that works.
    #[error("{path} holds the identity of {host}; `run` uses it, and --force replaces it")]
    Enrolled {
        /// Where.
        path: PathBuf,
        /// Whose.
        host: String,
    },
    /// agent.toml is there already and does not read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// agent.toml is never overwritten.
    #[error("{path} is there already and is kept: put the variables into its [vars]")]
    VarsKept {
        /// Which.
        path: PathBuf,
    },
    /// The directory cannot be written.
    #[error("{path} cannot be written; run as root, or give --dir")]
    NotWritable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No key.
    #[error("no key could be made")]
    Key(#[source] tidegate_net::CaError),
    /// No connection.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The exchange broke.
    #[error("the enrolment with {controller} broke off")]
    Stream {
        /// With whom.
        controller: String,
        /// Why.
        source: StreamError,
    },
    /// No answer.
    #[error("{controller} did not answer within {} s; the token may be used up: if so, create a new one", REPLY.as_secs())]
    NoReply {
        /// Who.
        controller: String,
    },
    /// The controller says no.
    #[error("{controller} refused the token {token}: {reason}")]
    Refused {
        /// Who.
        controller: String,
        /// Which, shortened.
        token: String,
        /// Its words.
        reason: String,
    },
    /// What was granted is not what was asked for.
    #[error("{controller} granted something else than asked for: {what}")]
    Granted {
        /// Who.
        controller: String,
        /// What is wrong.
        what: String,
    },
    /// The identity could not be written.
    #[error("{path} cannot be written; the token is used up: create a new one once this is put right")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<EnrollError> for Exit {
    fn from(error: EnrollError) -> Self {
        match error {
            EnrollError::Config(error) => Self::Usage(crate::error::chain(&error)),
            error => Self::error(&error),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// The name in the certificate.
    pub host: HostName,
    /// Where everything is.
    pub paths: Paths,
}

/// Joins the fleet.
///
/// # Errors
/// [`EnrollError`]; unless the last step failed nothing was written.
pub async fn enroll(request: Request) -> Result<Enrolled, EnrollError> {
    let name = name(request.name.as_deref())?;
    let (paths, config_there) = lay_of_the_land(&request)?;
    if let Ok(old) = load(&paths.identity())
        && !request.force
    {
        let host = old.own().map_or_else(|_| "someone".into(), |own| own.name);
        return Err(EnrollError::Enrolled { path: paths.identity(), host });
    }
    for path in [&paths.state, &paths.config] {
        writable(path)?;
    }
    let (csr, key_pem) = make_csr().map_err(EnrollError::Key)?;
    let (host, identity) = exchange(&request, &name, csr, &key_pem).await?;
    write_identity(&paths, &identity, &key_pem)?;
    if !config_there {
        let text = config_text(&request, &host, request.dir.is_some());
        let write = |source| EnrollError::Write { path: paths.config.clone(), source };
        durable::make_dir(paths.config.parent().unwrap_or(Path::new("/")), 0o755).map_err(write)?;
        durable::replace(&paths.config, text.as_bytes(), 0o644).map_err(write)?;
    }
    Ok(Enrolled { host, paths })
}

fn name(wanted: Option<&str>) -> Result<HostName, EnrollError> {
    let own = || rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    wanted.map_or_else(own, str::to_owned).parse().map_err(EnrollError::Name)
}

/// The directories, and whether agent.toml is there already.
fn lay_of_the_land(request: &Request) -> Result<(Paths, bool), EnrollError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| EnrollError::NotWritable { path, source }
    };
    let (config, state, opt) = match &request.dir {
        Some(dir) => {
            let dir = std::path::absolute(dir).map_err(unreadable(dir))?;
            (dir.join(paths::CONFIG_NAME), dir.join("state"), dir.join("opt"))
        }
        None => (paths::SYSTEM_CONFIG.into(), paths::SYSTEM_STATE.into(), paths::SYSTEM_OPT.into()),
    };
    if !config.exists() {
        return Ok((Paths { config, state, opt }, false));
    }
    let there = Config::load(&config)?;
    if !request.vars.is_empty() {
        return Err(EnrollError::VarsKept { path: config });
    }
    Ok((there.paths, true))
}

fn load(dir: &Path) -> Result<Identity, tidegate_net::IdentityError> {
    Identity::load(&dir.join("host.crt"), &dir.join("host.key"), &dir.join("ca.crt"))
}

/// Asked before the token is spent; makes nothing.
fn writable(path: &Path) -> Result<(), EnrollError> {
    let nearest = path.ancestors().skip(1).find(|p| p.exists()).unwrap_or(Path::new("/"));
    let access = rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    access.map_err(|errno| EnrollError::NotWritable { path: path.to_owned(), source: errno.into() })
}

async fn exchange(request: &Request, name: &HostName, csr: Vec<u8>, key_pem: &str) -> Result<(HostName, Identity), EnrollError> {
    let controller = &request.controller;
    let endpoint = client(None)?;
    let config = client_config(Caller::Enrolling { ca_pin: request.token.ca_pin })?;
    let connection = connect(&endpoint, config, controller).await?;
    let lost = |error: &_| tidegate_net::explain(connection.remote_address(), error);
    let (send, recv) = connection.open_bi().await.map_err(|error| lost(&error))?;
    let (mut sender, mut receiver) = (FrameSender::new(send), FrameReceiver::new(recv));
    let broke = |source| EnrollError::Stream { controller: controller.clone(), source };
    let ask = EnrollRequest {
        secret: request.token.secret.clone(),
        name: name.clone(),
        csr,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    sender.send(&ask, CONTROL_FRAME_BYTES_MAX).await.map_err(broke)?;
    sender.finish();
    let no_reply = || EnrollError::NoReply { controller: controller.clone() };
    let reply = timeout(REPLY, receiver.receive::<EnrollReply>(CONTROL_FRAME_BYTES_MAX)).await.map_err(|_| no_reply())?;
    let reply = match reply {
        Ok(Some(reply)) => reply,
        Ok(None) => return Err(no_reply()),
        Err(error) => {
            return Err(match connection.close_reason() {
                Some(reason) => lost(&reason).into(),
                None => broke(error),
            });
        }
    };
    connection.close(close::SHUTDOWN, b"");
    // Lets the close get out; a controller that misses it only waits a little longer.
    let _ = timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
    match reply {
        EnrollReply::Refused { reason } => Err(EnrollError::Refused {
            controller: controller.clone(),
            token: format!("tg1.{}…", request.token.secret.chars().take(6).collect::<String>()),
            reason: tidegate_protocol::report::bounded(&reason),
        }),
        EnrollReply::Granted { host, certificate, ca } => {
            let wrong = |what: String| EnrollError::Granted { controller: controller.clone(), what };
            if Digest::of(&ca) != request.token.ca_pin {
                return Err(wrong("its CA is not the one that the token names".into()));
            }
            let identity = Identity::from_parts(certificate.into(), key_pem, ca.into()).map_err(|e| wrong(e.to_string()))?;
            let own = identity.own().map_err(|e| wrong(e.to_string()))?;
            if own.role != Role::Host || own.host().as_ref() != Some(&host) {
                return Err(wrong(format!("a certificate of {} {}", own.role, own.name)));
            }
            Ok((host, identity))
        }
    }
}

/// The three files, complete before they take the place of the old ones.
fn write_identity(paths: &Paths, identity: &Identity, key_pem: &str) -> Result<(), EnrollError> {
    let dir = paths.identity();
    let write = |source| EnrollError::Write { path: dir.clone(), source };
    // Only the state is private: services run as other users below the rest.
    durable::make_dir(paths.state.parent().unwrap_or(Path::new("/")), 0o755).map_err(write)?;
    durable::make_dir(&paths.state, 0o700).map_err(write)?;
    let fresh = paths.state.join(".tmp-identity");
    let _ = fs::remove_dir_all(&fresh);
    durable::make_dir(&fresh, 0o700).map_err(write)?;
    let cert: String = identity.chain.iter().map(|der| cert_pem(der)).collect();
    let files = [("host.key", key_pem.to_owned(), 0o600), ("host.crt", cert, 0o644), ("ca.crt", cert_pem(&identity.ca), 0o644)];
    for (name, text, mode) in files {
        let path = fresh.join(name);
        if mode == 0o600 {
            write_secret(&path, text.as_bytes()).map_err(|e| write(io::Error::other(e)))?;
        } else {
            durable::replace(&path, text.as_bytes(), mode).map_err(write)?;
        }
    }
    if dir.exists() {
        rustix::fs::renameat_with(rustix::fs::CWD, &fresh, rustix::fs::CWD, &dir, rustix::fs::RenameFlags::EXCHANGE)
            .map_err(|e| write(e.into()))?;
        // The old one is kept until the next: the new one has not been used yet.
        let previous = paths.state.join("identity.previous");
        let _ = fs::remove_dir_all(&previous);
        fs::rename(&fresh, &previous).map_err(write)?;
    } else {
        fs::rename(&fresh, &dir).map_err(write)?;
    }
    durable::sync_dir(&paths.state).map_err(write)
}

fn config_text(request: &Request, host: &HostName, below: bool) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = String::from("# Local policy of this host's agent: the controller cannot write this file.\n");
    let _ = writeln!(text, "controllers = [{}]", quoted(&request.controller));
    let _ = writeln!(text, "name = {}", quoted(host.as_str()));
    if below {
        text.push_str("# Relative paths count from this file.\nstate = \"state\"\nopt = \"opt\"\n");
    }
    text.push_str("\n[trust]\n# Publisher keys that must have signed a release. 0 = releases are not verified\n# against publisher signatures: for development fleets only.\nthreshold = 0\n");
    text.push_str("\n[vars]\n");
    for (name, value) in &request.vars {
        let _ = writeln!(text, "{} = {}", quoted(name), quoted(value));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_file_reads_back() {
        let request = Request {
            dir: Some("/x".into()),
            controller: "[::1]:7443".into(),
            token: Token { secret: "s".into(), ca_pin: Digest::of(b"ca") },
            name: None,
            vars: [("port".to_owned(), "80\"81".to_owned())].into(),
            force: false,
        };
        let text = config_text(&request, &"web-1".parse().unwrap(), true);
        let config = Config::parse(Path::new("/x/agent.toml"), &text).unwrap();
        assert_eq!(config.vars, request.vars);
        assert_eq!(config.controllers, ["[::1]:7443"]);
        assert_eq!(config.paths, Paths { config: "/x/agent.toml".into(), state: "/x/state".into(), opt: "/x/opt".into() });
        let system = config_text(&request, &"web-1".parse().unwrap(), false);
        let config = Config::parse(Path::new("/etc/tidegate/agent.toml"), &system).unwrap();
        assert_eq!(config.paths.state, Path::new(paths::SYSTEM_STATE));
    }
}
