//! The enrolment token: a secret that is good once, and the digest of the CA
//! whose controller may be told it.
//!
//! Text form: `tg1.SECRET.PIN`, SECRET = 32 hex digits of 16 random bytes,
//! PIN = sha256 of the CA certificate's DER, 64 hex digits.

use std::fmt;
use std::str::FromStr;

use tidegate_protocol::Digest;

/// First part of every token of this form.
const PREFIX: &str = "tg1";
/// Random bytes of the secret.
const SECRET_BYTES: usize = 16;

/// A token, as printed by `token create` and given to `enroll`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Sent once, over the pinned connection.
    pub secret: String,
    /// sha256 of the CA certificate, DER.
    pub ca_pin: Digest,
}

/// A text that is not a token. Holds nothing of the text: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an enrolment token: tg1.SECRET.CA-DIGEST is wanted, as `tidegate token create` prints it")]
pub struct BadToken;

impl Token {
    /// A new token for the CA with this digest.
    ///
    /// # Errors
    /// The operating system has no random bytes.
    pub fn generate(ca_pin: Digest) -> Result<Self, std::io::Error> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self { secret: hex(&bytes), ca_pin })
    }

    /// What the controller stores instead of the secret.
    #[must_use]
    pub fn secret_hash(&self) -> Digest {
        secret_hash(&self.secret)
    }
}

/// The stored form of a presented secret, to compare with [`Token::secret_hash`].
/// 128 random bits need no slow hash, and comparing digests leaks nothing of use.
#[must_use]
pub fn secret_hash(secret: &str) -> Digest {
    Digest::of(secret.as_bytes())
}

impl FromStr for Token {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(secret), Some(pin), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(BadToken);
        };
        let hex_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if secret.len() != SECRET_BYTES * 2 || !secret.bytes().all(hex_digit) {
            return Err(BadToken);
        }
        Ok(Self { secret: secret.into(), ca_pin: pin.parse().map_err(|_| BadToken)? })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}", self.secret, self.ca_pin)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("secret", &"…").field("ca_pin", &self.ca_pin).finish()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let token = Token::generate(Digest::of(b"ca")).unwrap();
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!("{text}\n").parse(), Ok(token.clone()), "a pasted line end is harmless");
        assert_ne!(Token::generate(Digest::of(b"ca")).unwrap(), token);
        assert_eq!(token.secret_hash(), secret_hash(&token.secret));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = Token::generate(Digest::of(b"ca")).unwrap().to_string();
        for bad in [
            "",
            "tg1",
            "tg1..",
            &good[1..],
            &good[..good.len() - 1],
            &good.replace("tg1", "tg2"),
            &format!("{good}.x"),
            &good.to_uppercase(),
        ] {
            assert_eq!(bad.parse::<Token>(), Err(BadToken), "{bad}");
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let token = Token::generate(Digest::of(b"ca")).unwrap();
        assert!(!format!("{token:?}").contains(&token.secret));
    }
}
