//! Making a signature.
//!
//! Owns: reading a private key with the care ssh takes, and the way to the stock
//! `ssh-keygen` for keys that only it can use. Must not: ask anybody anything, or
//! keep a key.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ssh_key::{HashAlg, LineEnding, PrivateKey};

use super::verify::{self, VerifyError};
use super::{NAMESPACE_BYTES_MAX, keygen, wire};

/// Largest key file, bytes: a private RSA key of 16384 bits has 13 KiB.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The key file cannot be read.
    #[error("{path}: the key cannot be read: give the path of your private key, or of the .pub file of a key in ssh-agent")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Far larger than a key.
    #[error("{path}: over {KEY_FILE_BYTES_MAX} bytes, this is no key")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Others may read the private key, so it may no longer be only its owner's.
    #[error(
        "{path}: others may open this private key (mode {mode:04o}): run `chmod 600 {path}`, or make a new key if others could read it"
    )]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The namespace is not one.
    #[error("not a namespace: 1 to {NAMESPACE_BYTES_MAX} bytes of printable text")]
    Namespace,
    /// The private directory for the message could not be made, filled or read.
    #[error("{path}: the message could not be laid down for ssh-keygen: check TMPDIR")]
    Scratch {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no ssh-keygen.
    #[error(
        "{path}: this key needs `ssh-keygen`, which is not installed (Debian: openssh-client, Fedora: openssh, Alpine: openssh-keygen); \
         without it only unencrypted ed25519 and ECDSA keys (P-256, P-384) in OpenSSH's format can sign"
    )]
    NoSshKeygen {
        /// The key.
        path: PathBuf,
    },
    /// ssh-keygen could not be run.
    #[error("`ssh-keygen` could not be run")]
    Run {
        /// Why.
        source: io::Error,
    },
    /// ssh-keygen did not sign.
    #[error("{path}: `ssh-keygen -Y sign` did not sign: {said}")]
    Refused {
        /// The key.
        path: PathBuf,
        /// Its own words, or where they stand.
        said: String,
    },
    /// ssh-keygen took too long, and was ended.
    #[error("{path}: `ssh-keygen -Y sign` was ended after {seconds} s: is a security key waiting to be touched?")]
    TimedOut {
        /// The key.
        path: PathBuf,
        /// How long it had.
        seconds: u64,
    },
    /// What was made could not be verified here: nobody would accept it.
    #[error("{path}: a signature by this key would not be accepted")]
    NotAccepted {
        /// The key.
        path: PathBuf,
        /// Why.
        source: Box<VerifyError>,
    },
}

/// Signs `message` and returns the armored signature, as `ssh-keygen -Y sign -n NAMESPACE -f KEY_PATH` would.
///
/// An unencrypted ed25519, P-256 or P-384 key signs here. For every other (encrypted, RSA, on a security key, a .pub
/// file whose private half ssh-agent holds) the stock `ssh-keygen` from PATH does it, and where standard input is a
/// terminal it may ask there for a passphrase, a PIN or a touch; where it is not, nobody is asked and such a key fails.
///
/// Blocks, for minutes if a person is asked: not for the async runtime's threads.
///
/// # Errors
/// The key cannot be read or is open to others, ssh-keygen is missing or fails, or the signature would be refused by
/// [`verify`](super::verify()).
pub fn sign(key_path: &Path, namespace: &str, message: &[u8]) -> Result<String, SignError> {
    if !wire::namespace_is_sane(namespace) {
        return Err(SignError::Namespace);
    }
    let armored = match read_private(key_path)?.and_then(|key| sign_here(&key, namespace, message)) {
        Some(armored) => armored,
        None => keygen::sign(key_path, namespace, message)?,
    };
    // Told to whoever can still take another key, not to whoever receives it; and a faulty key file signs nothing.
    let accepted = wire::parse(&armored).and_then(|wire| verify::check(&wire, message));
    accepted.map_err(|source| SignError::NotAccepted { path: key_path.into(), source: Box::new(source) })?;
    Ok(armored)
}

/// The file's text, if it is a private key; None for a public one.
fn read_private(path: &Path) -> Result<Option<Vec<u8>>, SignError> {
    let read = |source| SignError::Read { path: path.into(), source };
    let file = File::open(path).map_err(read)?;
    // Of the open file: another one may stand at the path a moment later.
    let metadata = file.metadata().map_err(read)?;
    let mut bytes = Vec::new();
    file.take(KEY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(SignError::TooLarge { path: path.into() });
    }
    if !bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Ok(None);
    }
    // As ssh: only its owner can have been careless; a group's key that root owns is root's decision.
    let own = std::fs::metadata("/proc/self").map_or(true, |me| me.uid() == metadata.uid());
    if own && metadata.mode() & 0o077 != 0 {
        return Err(SignError::Exposed { path: path.into(), mode: metadata.mode() & 0o7777 });
    }
    Ok(Some(bytes))
}

/// None if the key is not one that can sign here: encrypted, RSA, on a security key, in an old format.
fn sign_here(key: &[u8], namespace: &str, message: &[u8]) -> Option<String> {
    let key = PrivateKey::from_openssh(key).ok().filter(|key| !key.is_encrypted())?;
    // The hash that ssh-keygen takes by default.
    let signature = key.sign(namespace, HashAlg::Sha512, message).ok()?;
    let mut armored = signature.to_pem(LineEnding::LF).ok()?;
    if !armored.ends_with('\n') {
        armored.push('\n');
    }
    Some(armored)
}
