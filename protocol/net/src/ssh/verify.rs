//! Whose signature this is.
//!
//! Owns: the order of the checks and what a refusal says. Must not: read files.

use serde::{Deserialize, Serialize};
use ssh_key::public::{KeyData, RsaPublicKey};
use ssh_key::{Algorithm, HashAlg, PublicKey, SshSig};

use super::signers::{AllowedSigners, Line};
use super::time::Seconds;
use super::wire::{self, BadKey, Wire};
use super::{KEY_TYPES_TEXT, KeyFingerprint};

/// The flag with which a security key says that a person touched it.
const SK_USER_PRESENT: u8 = 0x01;

/// Who made a valid signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// The principal that was asked for; else the first name listed for the key; else, where only patterns are listed,
    /// the list's text.
    pub principal: String,
    /// All names and patterns the key is listed under that count now and for this namespace, each once, in the file's
    /// order, without negated ones. A pattern's text is no name: to know whether a certain principal signed, ask
    /// [`verify`] for it.
    pub principals: Vec<String>,
    /// The key. Count these, never texts of signatures.
    pub key: KeyFingerprint,
    /// Type and base64, as in a .pub file, without comment.
    pub public_key: String,
    /// The comment of the first line that counts; may be empty.
    pub comment: String,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not the armored form of an OpenSSH signature.
    #[error("not an OpenSSH signature, {reason}: give the .sig file that `ssh-keygen -Y sign` wrote, whole and unchanged")]
    NotASignature {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The key inside the signature is none that can be verified here.
    #[error("the key in the signature cannot be used: {0}")]
    Key(BadKey),
    /// A signature or hash algorithm that is not verified here.
    #[error("{what} is not supported: sign with `ssh-keygen -Y sign` and a key of type {KEY_TYPES_TEXT}")]
    Unsupported {
        /// What the signature uses.
        what: String,
    },
    /// Made for another purpose.
    #[error("the signature is for the namespace \"{is}\", not for \"{wanted}\": sign again with -n {wanted}")]
    Namespace {
        /// In the signature.
        is: String,
        /// What it must be.
        wanted: String,
    },
    /// No line holds the key.
    #[error("the key {fingerprint} is not in {signers}: add it there with its principal, or sign with a key that is")]
    UnknownKey {
        /// Of the signature's key.
        fingerprint: KeyFingerprint,
        /// The file of allowed signers.
        signers: String,
    },
    /// No line with the key allows the namespace.
    #[error("the key {fingerprint} is in {signers}, but not for the namespace \"{namespace}\": add that to namespaces=\"…\" of its line")]
    NotForNamespace {
        /// Of the signature's key.
        fingerprint: KeyFingerprint,
        /// Of the signature.
        namespace: String,
        /// The file of allowed signers.
        signers: String,
    },
    /// The key is not that person's.
    #[error("the key {fingerprint} is listed in {signers} for {}, not for \"{wanted}\": that person must sign, with a key of their own", is.join(", "))]
    Principal {
        /// Who should have signed.
        wanted: String,
        /// Whose key it is, as listed.
        is: Vec<String>,
        /// Of the signature's key.
        fingerprint: KeyFingerprint,
        /// The file of allowed signers.
        signers: String,
    },
    /// The key's valid-after is to come.
    #[error("the key {fingerprint} counts only from {}: wait, or sign with another key", Seconds(*since))]
    NotYetValid {
        /// Of the signature's key.
        fingerprint: KeyFingerprint,
        /// From when on it counts, seconds since 1970, UTC; the earliest where several lines hold it.
        since: u64,
    },
    /// The key's valid-before is past.
    #[error("the key {fingerprint} counted only until {}: sign with another key, or have its line renewed", Seconds(*since))]
    Expired {
        /// Of the signature's key.
        fingerprint: KeyFingerprint,
        /// The end of its time, seconds since 1970, UTC; the latest where several lines hold it.
        since: u64,
    },
    /// A security key signed without being touched.
    #[error("the security key {fingerprint} was not touched for this signature: sign with a key made without no-touch-required")]
    NotTouched {
        /// Of the signature's key.
        fingerprint: KeyFingerprint,
    },
    /// The signature is not that of this key over this message.
    #[error("the signature by the key {fingerprint} does not fit the message: one of them was changed; sign what is shown now")]
    Broken {
        /// Of the key it claims.
        fingerprint: KeyFingerprint,
    },
}

/// Says who signed `message`, if the signature counts.
///
/// It counts if it verifies, was made for `namespace`, and a line of `signers` holds its key, allows the namespace,
/// covers `now_unix_ms` (milliseconds since 1970) and, where `principal` is given, matches it. All such lines together
/// make the [`Signer`].
///
/// # Errors
/// What is wrong with the signature, or why its key does not count. Any input is safe: it may come from a peer.
pub fn verify(
    signers: &AllowedSigners,
    armored_signature: &str,
    namespace: &str,
    message: &[u8],
    principal: Option<&str>,
    now_unix_ms: u64,
) -> Result<Signer, VerifyError> {
    let wire = wire::parse(armored_signature)?;
    if wire.namespace != namespace {
        return Err(VerifyError::Namespace { is: wire.namespace, wanted: namespace.to_owned() });
    }
    // Cheap and telling first; the arithmetic only for keys that someone trusts.
    let lines = lines_that_count(signers, &wire, principal, now_unix_ms)?;
    check(&wire, message)?;

    let mut principals: Vec<String> = Vec::new();
    for name in lines.iter().flat_map(|line| line.principals.positive()) {
        if !principals.iter().any(|known| known == name) {
            principals.push(name.to_owned());
        }
    }
    // `lines_that_count` returns no empty list; if it did, nobody signed.
    let first = lines.first().ok_or_else(|| unknown(signers, &wire))?;
    let principal = principal.or_else(|| lines.iter().find_map(|line| line.principals.literals().next()));
    Ok(Signer {
        principal: principal.map_or_else(|| first.principals.to_string(), str::to_owned),
        principals,
        key: wire.fingerprint(),
        public_key: first.public_key.clone(),
        comment: first.comment.clone(),
    })
}

/// The fingerprint of the key that a signature names. Nothing is verified: for lists and messages only.
///
/// # Errors
/// The text is no signature that could be verified here.
pub fn fingerprint(armored_signature: &str) -> Result<KeyFingerprint, VerifyError> {
    wire::parse(armored_signature).map(|wire| wire.fingerprint())
}

fn unknown(signers: &AllowedSigners, wire: &Wire) -> VerifyError {
    VerifyError::UnknownKey { fingerprint: wire.fingerprint(), signers: signers.file().to_owned() }
}

/// The lines that hold the key and let it speak, at least one; else the one reason nearest to being let through.
fn lines_that_count<'a>(
    signers: &'a AllowedSigners,
    wire: &Wire,
    principal: Option<&str>,
    now_unix_ms: u64,
) -> Result<Vec<&'a Line>, VerifyError> {
    let file = || signers.file().to_owned();
    let fingerprint = wire.fingerprint();

    let with_key: Vec<_> = signers.lines().iter().filter(|line| line.key_blob == wire.key_blob).collect();
    if with_key.is_empty() {
        return Err(unknown(signers, wire));
    }
    let for_namespace: Vec<_> = with_key.into_iter().filter(|line| line.allows(&wire.namespace)).collect();
    if for_namespace.is_empty() {
        return Err(VerifyError::NotForNamespace { fingerprint, namespace: wire.namespace.clone(), signers: file() });
    }
    let of_principal: Vec<_> = for_namespace.iter().copied().filter(|line| principal.is_none_or(|p| line.is_for(p))).collect();
    if of_principal.is_empty() {
        let is = for_namespace.iter().map(|line| line.principals.to_string()).collect();
        return Err(VerifyError::Principal { wanted: principal.unwrap_or_default().to_owned(), is, fingerprint, signers: file() });
    }
    let now = Seconds(now_unix_ms / 1000);
    let valid: Vec<_> = of_principal.iter().copied().filter(|line| line.covers(now)).collect();
    if valid.is_empty() {
        // A line that is still to come is the better news; every line here has one of the two.
        let since = of_principal.iter().filter_map(|line| line.valid_after.filter(|after| now < *after)).min();
        let until = of_principal.iter().filter_map(|line| line.valid_before).max().unwrap_or(now);
        return Err(match since {
            Some(since) => VerifyError::NotYetValid { fingerprint, since: since.0 },
            None => VerifyError::Expired { fingerprint, since: until.0 },
        });
    }
    Ok(valid)
}

/// The arithmetic: does the signature fit its own key, namespace and this message?
pub(super) fn check(wire: &Wire, message: &[u8]) -> Result<(), VerifyError> {
    let broken = || VerifyError::Broken { fingerprint: wire.fingerprint() };
    if let KeyData::Rsa(rsa) = &wire.key {
        // ring, which is here anyway, rather than the rsa crate with its open advisory.
        let signed = SshSig::signed_data(&wire.namespace, wire.hash, message).map_err(|_| broken())?;
        check_rsa(rsa, &wire.signature, &signed).ok_or_else(broken)?;
    } else {
        let signature = SshSig::new(wire.key.clone(), wire.namespace.as_str(), wire.hash, wire.signature.clone()).map_err(|_| broken())?;
        PublicKey::from(wire.key.clone()).verify(&wire.namespace, message, &signature).map_err(|_| broken())?;
    }
    // sshd demands the touch, `ssh-keygen -Y verify` does not; without it malware on the desk signs unseen.
    match wire.sk_flags {
        Some(flags) if flags & SK_USER_PRESENT == 0 => Err(VerifyError::NotTouched { fingerprint: wire.fingerprint() }),
        _ => Ok(()),
    }
}

fn check_rsa(key: &RsaPublicKey, signature: &ssh_key::Signature, signed: &[u8]) -> Option<()> {
    let components = ring::signature::RsaPublicKeyComponents { n: key.n.as_positive_bytes()?, e: key.e.as_positive_bytes()? };
    let parameters = match signature.algorithm() {
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) } => &ring::signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) } => &ring::signature::RSA_PKCS1_2048_8192_SHA512,
        _ => return None,
    };
    components.verify(parameters, signed, signature.as_bytes()).ok()
}
