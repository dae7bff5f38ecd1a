//! Secrets of routes: where they are, read when they are needed, never shown.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;

/// Largest secret that is read, bytes.
const SECRET_BYTES_MAX: u64 = 8 * 1024;

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SecretAt {
    /// In a file, trimmed.
    File(PathBuf),
    /// In a variable of the environment.
    Env(String),
}

impl fmt::Display for SecretAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "${name}"),
        }
    }
}

/// A secret that was read: it does not print.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Others' text without the secret, should they say it back.
    pub(crate) fn scrub(&self, text: &str) -> String {
        scrub(text, &self.0)
    }
}

/// Short texts are everywhere, and no secrets.
pub(crate) fn scrub(text: &str, secret: &str) -> String {
    if secret.len() < 4 { text.to_owned() } else { text.replace(secret, "…") }
}

impl SecretAt {
    /// Reads it anew: secrets rotate.
    ///
    /// # Errors
    /// One sentence with the place, never the content.
    pub(crate) async fn read(&self) -> Result<Secret, String> {
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|_| format!("the variable {name} is not set, or no text"))?,
            Self::File(path) => {
                let file = path.clone();
                let read =
                    spawn_blocking(move || read_file(&file)).await.map_err(|_| format!("{}: its reading ended early", path.display()))?;
                read.map_err(|e| format!("{} cannot be read: {e}", path.display()))?
            }
        };
        let text = text.trim();
        if text.is_empty() {
            return Err(format!("{self} is empty"));
        }
        if text.chars().any(char::is_control) {
            return Err(format!("{self} has more than one line, or characters that do not print"));
        }
        Ok(Secret(text.to_owned()))
    }

    /// Whether every user of the machine may read it. Blocks.
    pub(crate) fn exposed(&self) -> bool {
        match self {
            Self::File(path) => std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o004 != 0),
            Self::Env(_) => false,
        }
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(io::Error::other(format!("over {SECRET_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not text"))
}
