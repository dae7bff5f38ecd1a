//! TLS identity, endpoints and framed streams: what both daemons and the
//! operator's CLI share below the messages.
//!
//! Owns: certificates (who someone is), the CA, tokens, QUIC limits, the
//! admission of handshakes, frames on streams. Must not: know a message's
//! meaning, keep sessions, decide who may do what (it says only *who* asks).
//!
//! Everything that names rcgen, rustls, webpki or x509-parser is in this crate.
#![warn(missing_docs)]

pub mod admission;
pub mod ca;
pub mod close;
pub mod endpoint;
mod error;
mod files;
pub mod identity;
pub mod ssh;
pub mod stream;
mod tls;
pub mod token;
pub mod transport;

pub use admission::{Accepted, Admission, accept};
pub use ca::{Ca, CaError, make_csr};
pub use endpoint::{Caller, Peer, client, client_config, connect, peer, server, server_config};
pub use error::{NetError, explain};
pub use files::{FileError, write_secret};
pub use identity::{Identity, IdentityError, PeerIdentity, Role, peer_identity};
pub use stream::{FrameReceiver, FrameSender, StreamError};
pub use token::{BadToken, Token};

// The crates whose types stand in this API: callers use these, so that all agree on one version.
pub use {quinn, rustls};
