//! Bytes of a frame: a little-endian `u32` length, then a bincode value
//! (bincode 2, standard configuration: little endian, variable-length integers).
//!
//! The only file that names bincode. Limits are checked before anything is
//! allocated: the length prefix by [`frame_len`], every inner length by
//! bincode's own byte limit.

use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// bincode charges what a value claims, not what it holds: inner vectors are
/// refused when their claimed length times the element size passes this.
const CLAIM_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why a frame could not be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value does not fit the frame's limit.
    #[error("a frame of {bytes} bytes is over its limit of {max}")]
    TooLarge {
        /// What it takes.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// The value cannot be encoded.
    #[error("a frame could not be encoded")]
    Encode,
    /// The bytes are not a value of this type.
    #[error("a frame is malformed")]
    Malformed,
    /// A value ended before the frame did.
    #[error("a frame has {bytes} bytes after its value")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// The length prefix, checked against `max` before anyone allocates.
///
/// # Errors
/// [`CodecError::TooLarge`].
pub fn frame_len(prefix: [u8; PREFIX_BYTES], max: usize) -> Result<usize, CodecError> {
    let bytes = u32::from_le_bytes(prefix) as usize;
    if bytes > max { Err(CodecError::TooLarge { bytes, max }) } else { Ok(bytes) }
}

/// A whole frame: prefix and value.
///
/// # Errors
/// [`CodecError::Encode`], [`CodecError::TooLarge`].
pub fn encode<T: Serialize>(value: &T, max: usize) -> Result<Vec<u8>, CodecError> {
    let body = bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(|_| CodecError::Encode)?;
    if body.len() > max {
        return Err(CodecError::TooLarge { bytes: body.len(), max });
    }
    let len = u32::try_from(body.len()).map_err(|_| CodecError::TooLarge { bytes: body.len(), max })?;
    let mut frame = Vec::with_capacity(PREFIX_BYTES + body.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The value of a frame's body (without its prefix).
///
/// # Errors
/// [`CodecError::Malformed`], [`CodecError::Trailing`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    let config = bincode::config::standard().with_limit::<CLAIM_BYTES_MAX>();
    let (value, read) = bincode::serde::decode_from_slice(body, config).map_err(|_| CodecError::Malformed)?;
    match body.len() - read {
        0 => Ok(value),
        bytes => Err(CodecError::Trailing { bytes }),
    }
}
