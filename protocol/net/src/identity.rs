//! Who someone is: read out of a certificate, never out of a payload.
//!
//! One SAN URI says role and name: `tidegate://controller/NAME`,
//! `tidegate://host/NAME`, `tidegate://operator/NAME?roles=admin,viewer`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_protocol::{Digest, HostName};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::files::{FileError, read_pem};
use crate::token::hex;

const SCHEME: &str = "tidegate://";
/// What an operator may be.
pub const OPERATOR_ROLES: [&str; 3] = ["admin", "operator", "viewer"];

/// Which side of Tidegate a certificate speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The controller.
    Controller,
    /// A host's agent.
    Host,
    /// A person or script at the CLI.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Controller => "controller",
            Self::Host => "host",
            Self::Operator => "operator",
        })
    }
}

/// What a verified certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Controller, host or operator.
    pub role: Role,
    /// Follows the rules of [`HostName`] in every role.
    pub name: String,
    /// Of [`OPERATOR_ROLES`], sorted; empty unless an operator.
    pub operator_roles: Vec<String>,
    /// sha256 of the public key (SubjectPublicKeyInfo, DER): revocation names host *and* key.
    pub spki_sha256: Digest,
    /// End of validity, Unix seconds.
    pub not_after_unix: i64,
    /// Serial number, hex.
    pub serial: String,
}

impl PeerIdentity {
    /// The host's name, if this is a host.
    #[must_use]
    pub fn host(&self) -> Option<HostName> {
        if self.role == Role::Host { self.name.parse().ok() } else { None }
    }
}

/// A certificate or key that cannot serve as an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not X.509.
    #[error("the certificate is malformed")]
    Malformed,
    /// It does not say who it is for, or says it twice.
    #[error("the certificate has {count} tidegate:// names, exactly one is wanted: it was not made by a Tidegate CA")]
    NotOneName {
        /// How many.
        count: usize,
    },
    /// The name breaks the form.
    #[error("the certificate's name {uri:?} is not tidegate://controller/NAME, tidegate://host/NAME or tidegate://operator/NAME?roles=…")]
    BadName {
        /// What it says, cut.
        uri: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// No certificate in the file.
    #[error("{path}: holds no PEM certificate that can be read")]
    NoCertificate {
        /// Which file.
        path: PathBuf,
    },
    /// No key in the file.
    #[error("{path}: holds no PEM private key that can be read")]
    NoKey {
        /// Which file.
        path: PathBuf,
    },
}

/// Reads role and name. Does not verify: the TLS layer did.
///
/// # Errors
/// Unless the certificate has exactly one well-formed `tidegate://` SAN URI.
pub fn peer_identity(cert_der: &[u8]) -> Result<PeerIdentity, IdentityError> {
    let (rest, cert) = X509Certificate::from_der(cert_der).map_err(|_| IdentityError::Malformed)?;
    if !rest.is_empty() {
        return Err(IdentityError::Malformed);
    }
    let mut uris = Vec::new();
    for extension in cert.extensions() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() {
            uris.extend(san.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
                _ => None,
            }));
        }
    }
    let &[uri] = uris.as_slice() else {
        return Err(IdentityError::NotOneName { count: uris.len() });
    };
    let (role, name, operator_roles) = parse_uri(uri).ok_or_else(|| IdentityError::BadName { uri: uri.chars().take(120).collect() })?;
    Ok(PeerIdentity {
        role,
        name,
        operator_roles,
        spki_sha256: Digest::of(cert.public_key().raw),
        not_after_unix: cert.validity().not_after.timestamp(),
        serial: hex(cert.raw_serial()),
    })
}

/// The inverse of [`name_uri`], and as strict: what it would not write is not read.
fn parse_uri(uri: &str) -> Option<(Role, String, Vec<String>)> {
    let (role, rest) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    let (name, query) = rest.split_once('?').map_or((rest, None), |(name, query)| (name, Some(query)));
    let name: HostName = name.parse().ok()?;
    let (role, roles) = match (role, query) {
        ("controller", None) => (Role::Controller, Vec::new()),
        ("host", None) => (Role::Host, Vec::new()),
        ("operator", Some(query)) => {
            let words: Vec<String> = query.strip_prefix("roles=")?.split(',').map(str::to_string).collect();
            (Role::Operator, operator_roles(&words)?)
        }
        _ => return None,
    };
    Some((role, name.to_string(), roles))
}

/// Sorted, each once; none if a word is unknown or there is no word.
pub(crate) fn operator_roles(words: &[String]) -> Option<Vec<String>> {
    let known = words.iter().all(|word| OPERATOR_ROLES.contains(&word.as_str()));
    let set: BTreeSet<&String> = words.iter().collect();
    (known && !set.is_empty()).then(|| set.into_iter().cloned().collect())
}

/// The SAN URI of a certificate.
pub(crate) fn name_uri(role: Role, name: &HostName, operator_roles: &[String]) -> String {
    let query = if role == Role::Operator { format!("?roles={}", operator_roles.join(",")) } else { String::new() };
    format!("{SCHEME}{role}/{name}{query}")
}

/// A certificate, its key, and the CA that both sides trust.
#[derive(Debug)]
pub struct Identity {
    /// The certificate; our CA signs it itself, so there is nothing between.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// The CA's certificate.
    pub ca: CertificateDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key(), ca: self.ca.clone() }
    }
}

impl Identity {
    /// Reads PEM files. Blocks: not for the async runtime's threads.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no certificate or key.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, IdentityError> {
        Ok(Self { chain: load_certs(cert)?, key: load_key(key)?, ca: load_cert(ca)? })
    }

    /// From what is in memory: a certificate in DER, a key in PEM, the CA in DER.
    ///
    /// # Errors
    /// The key is not PEM.
    pub fn from_parts(cert: CertificateDer<'static>, key_pem: &str, ca: CertificateDer<'static>) -> Result<Self, IdentityError> {
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| IdentityError::NoKey { path: PathBuf::from("(in memory)") })?;
        Ok(Self { chain: vec![cert], key, ca })
    }

    /// Who this identity says it is.
    ///
    /// # Errors
    /// As [`peer_identity`].
    pub fn own(&self) -> Result<PeerIdentity, IdentityError> {
        peer_identity(self.chain.first().ok_or(IdentityError::Malformed)?)
    }
}

fn load_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = read_pem(path)?;
    let no = || IdentityError::NoCertificate { path: path.into() };
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| no())?;
    if certs.is_empty() { Err(no()) } else { Ok(certs) }
}

pub(crate) fn load_cert(path: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    let certs = load_certs(path)?;
    certs.into_iter().next().ok_or_else(|| IdentityError::NoCertificate { path: path.into() })
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(&read_pem(path)?).map_err(|_| IdentityError::NoKey { path: path.into() })
}

/// A certificate as PEM, for writing it to a file.
#[must_use]
pub fn cert_pem(der: &[u8]) -> String {
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let text = base64(der);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // The alphabet is ASCII: every index is a character boundary.
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

/// RFC 4648 with padding; the one direction that PEM needs.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let index = (group >> (18 - 6 * position)) & 63;
            out.push(if position <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_read_as_written() {
        let name: HostName = "web-1.example".parse().unwrap();
        for (role, roles) in
            [(Role::Controller, vec![]), (Role::Host, vec![]), (Role::Operator, vec!["admin".to_string(), "viewer".to_string()])]
        {
            let uri = name_uri(role, &name, &roles);
            assert_eq!(parse_uri(&uri), Some((role, name.to_string(), roles)), "{uri}");
        }
    }

    #[test]
    fn other_uris_are_nobody() {
        for bad in [
            "tidegate://host/",
            "tidegate://host/A",
            "tidegate://host/a/b",
            "tidegate://host/a?roles=admin",
            "tidegate://host/a#x",
            "tidegate://operator/a",
            "tidegate://operator/a?roles=",
            "tidegate://operator/a?roles=root",
            "tidegate://operator/a?roles=admin,",
            "tidegate://Host/a",
            "tidegate://hosts/a",
            "https://host/a",
        ] {
            assert_eq!(parse_uri(bad), None, "{bad}");
        }
    }

    #[test]
    fn random_bytes_are_no_certificate() {
        for bytes in [&b""[..], b"\x30", b"\x30\x82\xff\xff", &[0; 300]] {
            assert!(matches!(peer_identity(bytes), Err(IdentityError::Malformed)));
        }
    }

    #[test]
    fn base64_known_answers() {
        // RFC 4648, section 10.
        for (plain, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }
}
