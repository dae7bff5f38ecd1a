//! OpenSSH signatures (SSHSIG): approvals and sign-offs, later releases.
//!
//! Owns: the `allowed_signers` file, who made a signature, making one. Must not:
//! know what is signed, what a principal may decide, or how many signatures are
//! enough. Whoever counts signatures counts distinct [`Signer::key`]s, never
//! distinct texts: one key can sign a message in many ways.
//!
//! The format is `PROTOCOL.sshsig` of OpenSSH, and stock `ssh-keygen -Y sign`
//! and `-Y verify` make and check the same signatures. Where this is stricter
//! than stock: times need their `Z`, RSA keys 2048 to 8192 bits, security keys a
//! touch for each signature, the reserved field is empty, and nothing in a file
//! of signers is skipped: what is not understood is refused.
//!
//! Supported: `ssh-ed25519`, `ecdsa-sha2-nistp256`, `ecdsa-sha2-nistp384`,
//! `ssh-rsa` (SHA-2 signatures only), `sk-ssh-ed25519@openssh.com` and
//! `sk-ecdsa-sha2-nistp256@openssh.com`. Not: certificates, P-521, DSA, WebAuthn.

mod keygen;
mod pattern;
mod sign;
mod signers;
mod time;
mod verify;
mod wire;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidegate_protocol::Digest;

pub use pattern::BadPatterns;
pub use sign::{SignError, sign};
pub use signers::{AllowedSigners, LineProblem, SignersError};
pub use time::BadTime;
pub use verify::{Signer, VerifyError, fingerprint, verify};
pub use wire::BadKey;

/// The namespace of approvals and sign-offs.
pub const NAMESPACE_APPROVAL: &str = "tidegate-approval";
/// The namespace of signed releases.
pub const NAMESPACE_RELEASE: &str = "tidegate-release";

/// Longest armored signature, bytes: that of an RSA key of 8192 bits has about 3 KiB.
pub const SIGNATURE_BYTES_MAX: usize = 16 * 1024;
/// Longest namespace, bytes.
pub const NAMESPACE_BYTES_MAX: usize = 256;
/// Longest principal or pattern, bytes.
pub const PRINCIPAL_BYTES_MAX: usize = 256;

/// What error messages name as the way out.
const KEY_TYPES_TEXT: &str = "ssh-ed25519, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384, ssh-rsa (2048 to 8192 bits), \
                              sk-ssh-ed25519@openssh.com or sk-ecdsa-sha2-nistp256@openssh.com";

/// A public key's SHA-256 fingerprint, as `ssh-keygen -l` prints it: `SHA256:` and 43 characters of base64.
/// In JSON it is that text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyFingerprint([u8; 32]);

/// A text that is no SHA-256 fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a key's fingerprint: it is `SHA256:` and 43 characters of base64, as `ssh-keygen -lf KEY.pub` prints it")]
pub struct BadFingerprint;

impl KeyFingerprint {
    fn of(key_blob: &[u8]) -> Self {
        Self(Digest::of(key_blob).0)
    }
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ssh_key::Fingerprint::Sha256(self.0).fmt(f)
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyFingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        // The length first: the decoder below is meant for texts of about this size.
        if text.len() != "SHA256:".len() + 43 {
            return Err(BadFingerprint);
        }
        match text.parse() {
            Ok(ssh_key::Fingerprint::Sha256(bytes)) => Ok(Self(bytes)),
            _ => Err(BadFingerprint),
        }
    }
}

impl Serialize for KeyFingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyFingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_reads_back_and_nothing_else_does() {
        let key = KeyFingerprint::of(b"a key");
        assert_eq!(key.to_string().parse(), Ok(key));
        let long = "SHA256:".to_owned() + &"A".repeat(86);
        for bad in ["", "SHA256:", "MD5:00", &key.to_string()[..49], &long, &long.replace("256", "512")] {
            assert_eq!(bad.parse::<KeyFingerprint>(), Err(BadFingerprint), "{bad}");
        }
    }
}
