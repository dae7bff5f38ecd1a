//! The bytes of a signature and of a key (`PROTOCOL.sshsig`, RFC 4253, `PROTOCOL.u2f`).
//!
//! Owns: taking hostile bytes apart, strictly: each signature has one encoding.
//! Must not: decide who may sign, or say anything of a signature but its shape.
//!
//! ssh-key could read the whole, but it takes version 0 and a filled reserved
//! field, wants one line width, and does not name what it does not know.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, HashAlg, Signature};

use super::verify::VerifyError;
use super::{KEY_TYPES_TEXT, KeyFingerprint, NAMESPACE_BYTES_MAX, SIGNATURE_BYTES_MAX};

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
const MAGIC: &[u8] = b"SSHSIG";
const VERSION: u32 = 1;
/// Flags (one byte) and counter (four) of a security key.
const SK_TRAILER_BYTES: usize = 5;
/// What is shown of a name that is not known.
const SHOWN_BYTES_MAX: usize = 64;

/// Shortest RSA modulus, bits: less can be factored.
const RSA_BITS_MIN: usize = 2048;
/// Longest RSA modulus, bits: what ring verifies; a longer one only costs time.
const RSA_BITS_MAX: usize = 8192;

/// A signature, taken apart and not yet verified.
pub(super) struct Wire {
    pub(super) key_blob: Vec<u8>,
    pub(super) key: KeyData,
    pub(super) namespace: String,
    pub(super) hash: HashAlg,
    pub(super) signature: Signature,
    /// The flags a security key signed; None for other keys.
    pub(super) sk_flags: Option<u8>,
}

impl Wire {
    pub(super) fn fingerprint(&self) -> KeyFingerprint {
        KeyFingerprint::of(&self.key_blob)
    }
}

/// Why a key is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Not base64, cut off, or with something behind it.
    #[error("the key is cut off or changed: copy the whole line of the .pub file")]
    Malformed,
    /// The type in the text and in the key's bytes differ.
    #[error("the line says {said}, the key itself says {is}: copy both from the .pub file")]
    Type {
        /// In the text.
        said: String,
        /// In the bytes.
        is: String,
    },
    /// A type that is not verified here.
    #[error("keys of type {0} are not supported: use {KEY_TYPES_TEXT}")]
    Unsupported(String),
    /// A certificate instead of a key.
    #[error("certificates ({0}) are not supported: sign with the plain key, and list that key (the .pub file without -cert)")]
    Certificate(String),
    /// An RSA key that is too short or too long.
    #[error("an RSA key of {bits} bits: {RSA_BITS_MIN} to {RSA_BITS_MAX} are taken; make a new one with `ssh-keygen -t ed25519`")]
    RsaSize {
        /// Of the modulus.
        bits: usize,
    },
}

/// The fields of an SSH structure, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*first))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let bytes = usize::try_from(self.u32()?).ok()?;
        let (first, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(first)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Strict base64, with its padding.
pub(super) fn decode(base64: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(base64).ok()
}

/// Takes an armored signature apart. Lines may be of any width and end in LF or CRLF.
pub(super) fn parse(armored: &str) -> Result<Wire, VerifyError> {
    let not = |reason| VerifyError::NotASignature { reason };
    if armored.len() > SIGNATURE_BYTES_MAX {
        return Err(not("it is far longer than one"));
    }
    let text = armored.trim_ascii();
    let body = text.strip_prefix(BEGIN).ok_or(not("it does not begin with -----BEGIN SSH SIGNATURE-----"))?;
    let body = body.strip_suffix(END).ok_or(not("its end is missing"))?;
    let base64: Vec<u8> = body.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')).collect();
    let blob = decode(&base64).ok_or(not("the text between its first and last line is not base64"))?;

    let mut fields = Fields(blob.strip_prefix(MAGIC).ok_or(not("its bytes do not begin with SSHSIG"))?);
    if fields.u32() != Some(VERSION) {
        return Err(not("its version is not 1, the only one there is"));
    }
    let cut = || not("its bytes are cut off, or something follows them");
    let key_blob = fields.string().ok_or_else(cut)?;
    let namespace = fields.string().ok_or_else(cut)?;
    let reserved = fields.string().ok_or_else(cut)?;
    let hash = fields.string().ok_or_else(cut)?;
    let signature = fields.string().ok_or_else(cut)?;
    fields.end().ok_or_else(cut)?;

    if !reserved.is_empty() {
        return Err(not("its reserved field is filled"));
    }
    let namespace = std::str::from_utf8(namespace).ok().filter(|text| namespace_is_sane(text));
    let namespace = namespace.ok_or(not("its namespace is empty, too long, or not printable text"))?.to_owned();
    let hash = match hash {
        b"sha256" => HashAlg::Sha256,
        b"sha512" => HashAlg::Sha512,
        other => return Err(VerifyError::Unsupported { what: format!("the hash algorithm {}", shown(other)) }),
    };
    let (key, key_type) = parse_key(key_blob).map_err(VerifyError::Key)?;
    let (signature, sk_flags) = parse_signature(signature, &key_type)?;
    Ok(Wire { key_blob: key_blob.to_vec(), key, namespace, hash, signature, sk_flags })
}

/// Not empty, bounded, and safe to print.
pub(super) fn namespace_is_sane(namespace: &str) -> bool {
    !namespace.is_empty() && namespace.len() <= NAMESPACE_BYTES_MAX && !namespace.chars().any(char::is_control)
}

/// A public key's bytes: the key and the name of its type.
pub(super) fn parse_key(blob: &[u8]) -> Result<(KeyData, String), BadKey> {
    let name = shown(Fields(blob).string().ok_or(BadKey::Malformed)?);
    if name.contains("-cert-v") {
        return Err(BadKey::Certificate(name));
    }
    if !matches!(
        name.as_str(),
        "ssh-ed25519"
            | "ecdsa-sha2-nistp256"
            | "ecdsa-sha2-nistp384"
            | "ssh-rsa"
            | "sk-ssh-ed25519@openssh.com"
            | "sk-ecdsa-sha2-nistp256@openssh.com"
    ) {
        return Err(BadKey::Unsupported(name));
    }
    let key: KeyData = ssh_key::PublicKey::from_bytes(blob).map_err(|_| BadKey::Malformed)?.into();
    if let KeyData::Rsa(rsa) = &key {
        let modulus = rsa.n.as_positive_bytes().ok_or(BadKey::Malformed)?;
        let unused = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
        let bits = modulus.len() * 8 - unused;
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return Err(BadKey::RsaSize { bits });
        }
    }
    Ok((key, name))
}

/// The signature proper, which must be of the key's own type.
fn parse_signature(blob: &[u8], key_type: &str) -> Result<(Signature, Option<u8>), VerifyError> {
    let cut = || VerifyError::NotASignature { reason: "the signature in it is cut off, or something follows it" };
    let mut fields = Fields(blob);
    let name = fields.string().ok_or_else(cut)?;
    let data = fields.string().ok_or_else(cut)?;
    let fits = match key_type {
        // `ssh-rsa` itself would be SHA-1.
        "ssh-rsa" => matches!(name, b"rsa-sha2-256" | b"rsa-sha2-512"),
        other => name == other.as_bytes(),
    };
    if !fits {
        return Err(VerifyError::Unsupported { what: format!("a signature of type {} by a key of type {key_type}", shown(name)) });
    }
    let algorithm = std::str::from_utf8(name).ok().and_then(|name| Algorithm::new(name).ok()).ok_or_else(cut)?;
    // ssh-key keeps a security key's flags and counter behind the signature's own bytes.
    let trailer = fields.0;
    let sk_flags = if key_type.starts_with("sk-") { Some(*trailer.first().ok_or_else(cut)?) } else { None };
    if trailer.len() != if sk_flags.is_some() { SK_TRAILER_BYTES } else { 0 } {
        return Err(cut());
    }
    let signature = Signature::new(algorithm, [data, trailer].concat()).map_err(|_| cut())?;
    Ok((signature, sk_flags))
}

/// Foreign bytes for an error message: bounded, printable.
fn shown(bytes: &[u8]) -> String {
    bytes.get(..SHOWN_BYTES_MAX).unwrap_or(bytes).escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A string as in RFC 4251.
    fn string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    #[test]
    fn keys_of_other_types_are_named() {
        let key = |name: &str| [string(name.as_bytes()), string(&[1; 32])].concat();
        assert!(parse_key(&key("ssh-ed25519")).is_ok());
        assert_eq!(parse_key(&key("ssh-dss")).err(), Some(BadKey::Unsupported("ssh-dss".into())));
        assert_eq!(parse_key(&key("ecdsa-sha2-nistp521")).err(), Some(BadKey::Unsupported("ecdsa-sha2-nistp521".into())));
        let cert = "ssh-ed25519-cert-v01@openssh.com";
        assert_eq!(parse_key(&key(cert)).err(), Some(BadKey::Certificate(cert.into())));
        assert_eq!(parse_key(&key("\x1b[2Jx")).err(), Some(BadKey::Unsupported("\\x1b[2Jx".into())), "shown harmless");
        assert_eq!(parse_key(b"").err(), Some(BadKey::Malformed));
        assert_eq!(parse_key(&[key("ssh-ed25519"), vec![0]].concat()).err(), Some(BadKey::Malformed), "something behind it");
    }

    #[test]
    fn short_and_endless_rsa_keys_are_refused() {
        let key = |bytes: usize| {
            let modulus = [vec![0, 0xc0], vec![1; bytes - 1]].concat();
            [string(b"ssh-rsa"), string(&[1, 0, 1]), string(&modulus)].concat()
        };
        assert!(parse_key(&key(256)).is_ok());
        assert!(parse_key(&key(1024)).is_ok());
        assert_eq!(parse_key(&key(128)).err(), Some(BadKey::RsaSize { bits: 1024 }));
        assert_eq!(parse_key(&key(1025)).err(), Some(BadKey::RsaSize { bits: 8200 }));
    }
}
