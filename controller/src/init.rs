//! `tidegate-controller init`: the CA, the controller's identity, its
//! configuration and the first operator's profile. All of it, or nothing.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tidegate_net::{Ca, CaError, write_secret};

/// Why `init` did nothing.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is something already.
    #[error("{path}: exists and is not empty; choose another directory, or start the controller with its controller.toml")]
    NotEmpty {
        /// Where.
        path: PathBuf,
    },
    /// No name that agents could dial.
    #[error("--name: {name:?} is neither a DNS name nor an IP address; give those that agents dial, separated by commas")]
    Name {
        /// What was given.
        name: String,
    },
    /// The file system said no.
    #[error("{path}: cannot {what}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate could not be made or written.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A key or configuration could not be written.
    #[error(transparent)]
    Write(#[from] tidegate_net::FileError),
}

impl InitError {
    /// 2 for a wrong command line, else 1.
    #[must_use]
    pub const fn exit(&self) -> u8 {
        match self {
            Self::Name { .. } => 2,
            _ => 1,
        }
    }
}

/// Makes `dir`. `names` are what agents dial, the first one goes into the
/// operator's profile. Blocks.
///
/// # Errors
/// [`InitError`]; `dir` is then as it was.
pub fn init(dir: &Path, names: &[String], listen: SocketAddr) -> Result<(), InitError> {
    let dir = &std::path::absolute(dir).map_err(|source| InitError::File { what: "be found", path: dir.into(), source })?;
    let name = checked(names)?;
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(InitError::NotEmpty { path: dir.clone() });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(InitError::File { what: "be read", path: dir.clone(), source }),
    }
    let parent = dir.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|source| InitError::File { what: "be made", path: parent.into(), source })?;
    // A sibling: the rename at the end must stay in one file system.
    let building = tempfile::Builder::new()
        .prefix(".tidegate-init-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|source| InitError::File { what: "be written to", path: parent.into(), source })?;
    fill(building.path(), dir, name, names, listen)?;
    // Replaces an empty directory, fails on any other; drops the sibling if it fails.
    fs::rename(building.path(), dir).map_err(|source| InitError::File { what: "be put in place", path: dir.clone(), source })?;
    let _ = building.keep();
    fs::File::open(parent).and_then(|p| p.sync_all()).map_err(|source| InitError::File { what: "be synced", path: parent.into(), source })
}

fn checked(names: &[String]) -> Result<&String, InitError> {
    if let Some(bad) =
        names.iter().find(|n| n.parse::<IpAddr>().is_err() && n.to_ascii_lowercase().parse::<tidegate_protocol::HostName>().is_err())
    {
        return Err(InitError::Name { name: bad.clone() });
    }
    names.first().ok_or_else(|| InitError::Name { name: String::new() })
}

/// Everything below `at`, which will be `dir`.
fn fill(at: &Path, dir: &Path, name: &str, names: &[String], listen: SocketAddr) -> Result<(), InitError> {
    let made = |path: &Path| {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| InitError::File {
            what: "be made",
            path: path.into(),
            source,
        })
    };
    let ca = Ca::create(name)?;
    ca.save(&at.join("ca"))?;

    let identity = at.join("identity");
    made(&identity)?;
    let (certificate, key) = ca.issue_controller(names)?;
    write_secret(&identity.join("controller.crt"), certificate.as_bytes())?;
    write_secret(&identity.join("controller.key"), key.as_bytes())?;

    let admin = at.join("operators").join("admin");
    made(&admin)?;
    let (certificate, key) = ca.issue_operator("admin", &["admin".to_owned()])?;
    write_secret(&admin.join("operator.crt"), certificate.as_bytes())?;
    write_secret(&admin.join("operator.key"), key.as_bytes())?;
    write_secret(&admin.join("ca.crt"), ca.cert_pem().as_bytes())?;
    write_secret(&admin.join("profile.toml"), profile(name, listen.port(), dir).as_bytes())?;

    write_secret(&at.join("controller.toml"), config(listen, dir).as_bytes())?;
    Ok(())
}

fn config(listen: SocketAddr, dir: &Path) -> String {
    format!(
        "# tidegate-controller: see `tidegate-controller serve --config` and --check-config\n\
         listen = \"{listen}\"\n\
         state = {state}\n\
         \n\
         [trust]\n\
         # Distinct publisher keys that must have signed a release before it is imported.\n\
         # 0 trusts every release that an operator imports: for development fleets.\n\
         threshold = 0\n\
         \n\
         # Metrics servers that plans may name (Prometheus, Alertmanager); those on loopback need not be here.\n\
         # Files are relative to this one; secrets are read at each request. TLS 1.3 is spoken.\n\
         # [sources.\"https://prom.example\"]\n\
         # token_file = \"prom-token\"                # or user = \"…\" and password_file = \"…\"\n\
         # ca_file = \"prom-ca.pem\"                 # else the system's roots\n",
        state = quoted(dir),
    )
}

/// An operator's `profile.toml`. With port 0 the port in use is only known once
/// the controller runs: then the profile says where it is written.
fn profile(name: &str, port: u16, dir: &Path) -> String {
    let host = match name.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => name.to_owned(),
    };
    let mut text =
        format!("# Who this operator is stands in operator.crt; where the controller is stands here.\ncontroller = \"{host}:{port}\"\n");
    if port == 0 {
        text.push_str("# The port in use, written by the controller at each start.\nlistening = ");
        text.push_str(&quoted(&dir.join("listening")));
        text.push('\n');
    }
    text
}

fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn it_makes_what_serve_and_the_cli_read() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("ctl");
        init(&dir, &["localhost".into(), "127.0.0.1".into()], any()).unwrap();
        let config = Config::load(&dir.join("controller.toml")).unwrap();
        assert_eq!(config.state, dir);
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        Ca::load(&config.ca_dir()).unwrap();
        let operator = tidegate_net::Identity::load(
            &dir.join("operators/admin/operator.crt"),
            &dir.join("operators/admin/operator.key"),
            &dir.join("operators/admin/ca.crt"),
        )
        .unwrap();
        assert_eq!(operator.own().unwrap().operator_roles, ["admin"]);
        assert!(matches!(init(&dir, &["localhost".into()], any()), Err(InitError::NotEmpty { .. })));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "a temporary directory was left");
    }

    #[test]
    fn a_bad_name_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("ctl");
        for names in [vec![], vec!["a b".to_owned()], vec!["localhost".to_owned(), String::new()]] {
            assert!(matches!(init(&dir, &names, any()), Err(InitError::Name { .. })), "{names:?}");
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
