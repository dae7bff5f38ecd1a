//! Frames on QUIC streams: bounded in size before anything is allocated, and in
//! time once they began.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_protocol::codec::{self, CodecError, PREFIX_BYTES};
use tokio::time::{Instant, timeout_at};

use crate::close;

/// From a frame's first byte to its last, each way. A peer that takes longer is
/// cut: it holds a stream and a buffer.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Room made before a body's first byte is there; the rest grows with what arrives.
const FIRST_RESERVE_BYTES: usize = 16 * 1024;

/// A frame that did not get through. The stream is of no use after it.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Over its limit, or not a value of this type.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The peer was slow.
    #[error("a frame took longer than {} s", FRAME_TIMEOUT.as_secs())]
    Slow,
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// Nothing more arrives.
    #[error("the stream cannot be read any more")]
    Read(#[from] quinn::ReadError),
    /// Nothing more can be sent.
    #[error("the stream cannot be written any more")]
    Write(#[from] quinn::WriteError),
}

/// Sends frames.
#[derive(Debug)]
pub struct FrameSender {
    /// For raw bytes after a frame.
    pub send: quinn::SendStream,
}

/// Receives frames.
#[derive(Debug)]
pub struct FrameReceiver {
    /// For raw bytes after a frame: nothing beyond a received frame was read.
    pub recv: quinn::RecvStream,
    partial: Partial,
}

/// What was read of a frame when [`FrameReceiver::receive`] was last dropped.
#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    deadline: Option<Instant>,
}

impl FrameSender {
    /// Frames on this stream from here on.
    #[must_use]
    pub fn new(send: quinn::SendStream) -> Self {
        Self { send }
    }

    /// Sends one frame of at most `max` bytes. Not cancel-safe: a dropped call may
    /// leave half a frame, so finish it or drop the stream. On a slow peer the
    /// stream is reset.
    ///
    /// # Errors
    /// [`StreamError::Codec`] (nothing was sent), [`StreamError::Slow`], [`StreamError::Write`].
    pub async fn send<T: Serialize + Sync>(&mut self, value: &T, max: usize) -> Result<(), StreamError> {
        let frame = codec::encode(value, max)?;
        match timeout_at(Instant::now() + FRAME_TIMEOUT, self.send.write_all(&frame)).await {
            Ok(done) => Ok(done?),
            Err(_) => {
                // Half a frame may be out: nothing after it could be read.
                let _ = self.send.reset(close::PROTOCOL);
                Err(StreamError::Slow)
            }
        }
    }

    /// No more frames; what was sent is still delivered. Twice is harmless.
    pub fn finish(&mut self) {
        let _ = self.send.finish();
    }

    /// The stream itself.
    #[must_use]
    pub fn into_inner(self) -> quinn::SendStream {
        self.send
    }
}

impl FrameReceiver {
    /// Frames on this stream from here on.
    #[must_use]
    pub fn new(recv: quinn::RecvStream) -> Self {
        Self { recv, partial: Partial::default() }
    }

    /// The next frame of at most `max` bytes; none when the peer finished the
    /// stream between two frames. Waits without limit for a frame to begin, then
    /// [`FRAME_TIMEOUT`] for its end. Cancel-safe: a dropped call loses nothing,
    /// and the next one goes on (with the same `T` and `max`).
    ///
    /// # Errors
    /// [`StreamError`]; the stream is of no use after it.
    pub async fn receive<T: DeserializeOwned>(&mut self, max: usize) -> Result<Option<T>, StreamError> {
        loop {
            let have = self.partial.bytes.len();
            let want = match self.partial.bytes.first_chunk::<PREFIX_BYTES>() {
                None => PREFIX_BYTES,
                Some(prefix) => PREFIX_BYTES + codec::frame_len(*prefix, max)?,
            };
            if have >= PREFIX_BYTES && have >= want {
                let frame = std::mem::take(&mut self.partial).bytes;
                let (_, body) = frame.split_at(PREFIX_BYTES);
                return Ok(Some(codec::decode(body)?));
            }
            let read = self.recv.read_chunk(want - have, true);
            let chunk = match self.partial.deadline {
                None => read.await?,
                Some(deadline) => timeout_at(deadline, read).await.map_err(|_| StreamError::Slow)??,
            };
            match chunk {
                Some(chunk) => {
                    if have == 0 {
                        self.partial.deadline = Some(Instant::now() + FRAME_TIMEOUT);
                        self.partial.bytes.reserve(want.min(FIRST_RESERVE_BYTES));
                    }
                    self.partial.bytes.extend_from_slice(&chunk.bytes);
                }
                None if have == 0 => return Ok(None),
                None => return Err(StreamError::Truncated),
            }
        }
    }

    /// The stream itself, for raw bytes after a frame.
    #[must_use]
    pub fn into_inner(self) -> quinn::RecvStream {
        self.recv
    }
}
