//! What goes wrong between two endpoints, in words that name the fix.

use std::io;
use std::net::SocketAddr;

use quinn::{ConnectionError, TransportErrorCode};

use crate::identity::IdentityError;

// TLS alerts (RFC 8446, section 6) as QUIC carries them: 0x100 + number.
const CRYPTO: u64 = 0x100;
const ALERTS: std::ops::Range<u64> = CRYPTO..0x200;
const CERTIFICATE_EXPIRED: u64 = CRYPTO + 45;
const ACCESS_DENIED: u64 = CRYPTO + 49;
const NO_APPLICATION_PROTOCOL: u64 = CRYPTO + 120;

/// An endpoint that could not be made, or a connection that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The UDP socket could not be had.
    #[error("cannot bind UDP {addr}: is another process on that port?")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Certificate, key or CA do not make a TLS configuration.
    #[error("the TLS identity cannot be used ({what})")]
    Tls {
        /// Which part.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Our own certificate ended.
    #[error("the certificate of {name} expired {hours} hours ago; enroll the host again, or make the operator a new one")]
    OwnCertificateExpired {
        /// Whose.
        name: String,
        /// Since.
        hours: i64,
    },
    /// A certificate does not say who it is for.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No address for the name.
    #[error("{host_port}: no address found; HOST:PORT is wanted, and the name must resolve")]
    Resolve {
        /// What was asked for.
        host_port: String,
        /// Why, if the resolver said so.
        source: Option<io::Error>,
    },
    /// Nobody answered.
    #[error(
        "{host_port} ({addr}) did not answer within {seconds} s: is the controller running there, and does a firewall let UDP through?"
    )]
    Unreachable {
        /// What was asked for.
        host_port: String,
        /// Where it was last tried.
        addr: SocketAddr,
        /// How long.
        seconds: u64,
    },
    /// The operating system would not send there.
    #[error("{addr} cannot be dialled from here")]
    Dial {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: quinn::ConnectError,
    },
    /// What answered is not our controller.
    #[error("{addr} is not a controller of our CA ({reason}); check the address, or whether the token or identity is of another fleet")]
    NotOurController {
        /// Where.
        addr: SocketAddr,
        /// What TLS said.
        reason: String,
    },
    /// The controller did not accept our certificate.
    #[error("the controller at {addr} refused our certificate ({reason}); if it expired or is of another CA, enroll again")]
    CertificateRefused {
        /// Where.
        addr: SocketAddr,
        /// What TLS said.
        reason: String,
    },
    /// The two sides have no protocol in common.
    #[error("{addr} does not speak our protocol: one side is too old, or it is not a Tidegate controller")]
    Protocol {
        /// Where.
        addr: SocketAddr,
    },
    /// The controller has too many handshakes at hand.
    #[error("the controller at {addr} is busy; try again in a few seconds")]
    Busy {
        /// Where.
        addr: SocketAddr,
    },
    /// The peer closed the connection and said why.
    #[error("{addr} closed the connection: {reason}")]
    Closed {
        /// Who.
        addr: SocketAddr,
        /// One of [`crate::close`].
        code: u64,
        /// Bounded, without control characters.
        reason: String,
    },
    /// The connection ended otherwise.
    #[error("the connection to {addr} was lost")]
    Lost {
        /// Who.
        addr: SocketAddr,
        /// Why.
        source: ConnectionError,
    },
    /// A peer on the main protocol without a certificate.
    #[error("{addr} showed no certificate; only enrolment works without one")]
    NoCertificate {
        /// Who.
        addr: SocketAddr,
    },
    /// A certificate whose role has no business here.
    #[error("{addr} came with a certificate of role {role}")]
    WrongRole {
        /// Who.
        addr: SocketAddr,
        /// What it says.
        role: crate::Role,
    },
}

/// Why a connection ended, in words. A certificate that the controller refuses
/// shows up here when it is refused after the handshake looked complete.
#[must_use]
pub fn explain(addr: SocketAddr, error: &ConnectionError) -> NetError {
    let text = tidegate_protocol::report::bounded;
    match error {
        // Our own checks failed: the code is the alert that we sent.
        ConnectionError::TransportError(ours) => match u64::from(ours.code) {
            NO_APPLICATION_PROTOCOL => NetError::Protocol { addr },
            ACCESS_DENIED => NetError::NotOurController { addr, reason: "its certificate is not a controller's".into() },
            code if ALERTS.contains(&code) => NetError::NotOurController { addr, reason: text(&ours.reason) },
            _ => NetError::Lost { addr, source: error.clone() },
        },
        // The peer's checks failed.
        ConnectionError::ConnectionClosed(theirs) => match u64::from(theirs.error_code) {
            code if code == u64::from(TransportErrorCode::CONNECTION_REFUSED) => NetError::Busy { addr },
            NO_APPLICATION_PROTOCOL => NetError::Protocol { addr },
            CERTIFICATE_EXPIRED => NetError::CertificateRefused { addr, reason: "it has expired, or a clock is wrong".into() },
            code if ALERTS.contains(&code) => {
                let reason = text(&String::from_utf8_lossy(&theirs.reason));
                let reason = if reason.is_empty() { format!("TLS alert {}", code - CRYPTO) } else { reason };
                NetError::CertificateRefused { addr, reason }
            }
            _ => NetError::Lost { addr, source: error.clone() },
        },
        ConnectionError::ApplicationClosed(theirs) => {
            NetError::Closed { addr, code: theirs.error_code.into_inner(), reason: text(&String::from_utf8_lossy(&theirs.reason)) }
        }
        _ => NetError::Lost { addr, source: error.clone() },
    }
}
