//! Why a connection was closed: application close codes, stable on the wire.

use quinn::VarInt;

/// The process ends; come back later.
pub const SHUTDOWN: VarInt = VarInt::from_u32(0);
/// Not let in: no certificate, a wrong one, no common version. Retrying at once is useless.
pub const REFUSED: VarInt = VarInt::from_u32(1);
/// The host was revoked.
pub const REVOKED: VarInt = VarInt::from_u32(2);
/// Another live session has the same certificate and a different boot id.
pub const CONFLICT: VarInt = VarInt::from_u32(3);
/// A newer session of the same host took over.
pub const SUPERSEDED: VarInt = VarInt::from_u32(4);
/// The peer broke the protocol: an oversized, malformed or late frame.
pub const PROTOCOL: VarInt = VarInt::from_u32(5);
