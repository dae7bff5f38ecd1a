//! Bytes from the controller's depot: one stream per batch, one pass.
//!
//! Owns: what happens when the connection drops, stalls or never comes back.
//! The network side stays on the runtime; hashing and writing run on a blocking
//! thread behind a bounded channel, so a slow disk slows the stream and nothing
//! piles up.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_net::quinn::{self, Connection};
use tidegate_net::{FrameReceiver, FrameSender, StreamError};
use tidegate_protocol::limits::{CONTROL_FRAME_BYTES_MAX, FETCH_DIGESTS_MAX};
use tidegate_protocol::message::{FetchHeader, FetchRequest};
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Digest};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::error::{chain, failure};
use crate::store::{Arrived, Store, StoreError};
use crate::work::Scope;

/// A stream that brings nothing for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// Without any progress, reconnects included, staging ends.
const NO_PROGRESS: Duration = Duration::from_secs(600);
/// Streams in a row that brought nothing, on live connections.
const FRUITLESS_MAX: u32 = 20;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Chunks between network and disk; each is at most [`CHUNK_BYTES`].
const CHUNKS: usize = 16;
const CHUNK_BYTES: usize = 64 * 1024;
/// Fetches at once: the connection carries four streams, one is the control stream.
const STREAMS: usize = 2;

/// A file that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its bytes' digest.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// What it is, for messages.
    pub name: String,
}

/// The way to the depot: the connection that stands, if one does.
#[derive(Debug)]
pub struct Depot {
    connection: watch::Receiver<Option<Connection>>,
    streams: Semaphore,
}

/// How one stream ended.
enum Broken {
    /// Another try may help.
    Lost(String),
    /// It may not.
    Failed(Failure),
}

impl From<StreamError> for Broken {
    fn from(error: StreamError) -> Self {
        Self::Lost(chain(&error))
    }
}

/// How long nothing has come, over several streams.
struct Patience {
    since: Instant,
    fruitless: u32,
    last: String,
}

impl Patience {
    fn new() -> Self {
        Self { since: Instant::now(), fruitless: 0, last: "there is no connection to the controller".into() }
    }

    fn progress(&mut self) {
        self.since = Instant::now();
        self.fruitless = 0;
    }

    fn left(&self) -> Duration {
        NO_PROGRESS.saturating_sub(self.since.elapsed())
    }

    fn over(&self) -> Failure {
        let since = self.since.elapsed().as_secs();
        failure(Cause::Timeout, &format!("staging made no progress for {since} s: {}", self.last))
    }

    async fn pause(&mut self, why: String) -> Result<(), Failure> {
        self.fruitless += 1;
        self.last = why;
        if self.fruitless > FRUITLESS_MAX || self.left().is_zero() {
            return Err(self.over());
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

impl Depot {
    /// Over whatever connection stands at the time.
    #[must_use]
    pub fn new(connection: watch::Receiver<Option<Connection>>) -> Self {
        Self { connection, streams: Semaphore::new(STREAMS) }
    }

    /// A connection that is not closed; waits for one.
    async fn connection(&self, patience: &Patience) -> Result<Connection, Failure> {
        let mut watch = self.connection.clone();
        let live = |c: &Option<Connection>| c.as_ref().is_some_and(|c| c.close_reason().is_none());
        match timeout(patience.left(), watch.wait_for(live)).await {
            Ok(Ok(connection)) => connection.clone().ok_or_else(|| patience.over()),
            _ => Err(patience.over()),
        }
    }

    /// One small artifact into memory, checked by its digest.
    ///
    /// # Errors
    /// `verify`: missing, too large or other bytes; `timeout`: no progress.
    pub async fn get(&self, digest: Digest, max: u64, name: &str) -> Result<Vec<u8>, Failure> {
        let mut patience = Patience::new();
        loop {
            let connection = self.connection(&patience).await?;
            match self.get_once(&connection, digest, max, name).await {
                Ok(bytes) => return Ok(bytes),
                Err(Broken::Failed(failure)) => return Err(failure),
                Err(Broken::Lost(why)) => patience.pause(why).await?,
            }
        }
    }

    async fn get_once(&self, connection: &Connection, digest: Digest, max: u64, name: &str) -> Result<Vec<u8>, Broken> {
        let _stream = self.streams.acquire().await.map_err(|e| Broken::Lost(e.to_string()))?;
        let mut receiver = request(connection, vec![digest]).await?;
        let size = header(&mut receiver, digest, name).await?;
        if size > max {
            return Err(Broken::Failed(failure(Cause::Verify, &format!("{name} ({digest}) has {size} bytes, at most {max} are allowed"))));
        }
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            let chunk = chunk(&mut receiver, size - bytes.len() as u64).await?;
            bytes.extend_from_slice(&chunk.bytes);
        }
        let got = Digest::of(&bytes);
        if got == digest {
            Ok(bytes)
        } else {
            Err(Broken::Failed(failure(
                Cause::Verify,
                &format!("{name} arrived with the sha256 {got} instead of {digest}: import the release again"),
            )))
        }
    }

    /// Brings all of them into the store.
    ///
    /// # Errors
    /// `verify`: missing or other bytes, named; `disk`; `timeout`: no progress.
    pub async fn fetch(&self, store: &Store, mut wants: Vec<Want>, scope: &Scope) -> Result<(), Failure> {
        let mut patience = Patience::new();
        tracing::debug!(files = wants.len(), "fetch begins");
        while !wants.is_empty() {
            let connection = self.connection(&patience).await?;
            let before = scope.counters.fetched.load(Ordering::Relaxed);
            let batch: Vec<Want> = wants.iter().take(FETCH_DIGESTS_MAX).cloned().collect();
            let (done, ended) = self.batch(&connection, store, batch, scope).await;
            wants.drain(..done.min(wants.len()));
            if done > 0 || scope.counters.fetched.load(Ordering::Relaxed) > before {
                patience.progress();
            }
            match ended {
                Ok(()) => {}
                Err(Broken::Failed(failure)) => return Err(failure),
                Err(Broken::Lost(why)) => patience.pause(why).await?,
            }
        }
        tracing::debug!("fetch done");
        Ok(())
    }

    /// One stream; also says how many files are complete in the store.
    async fn batch(&self, connection: &Connection, store: &Store, batch: Vec<Want>, scope: &Scope) -> (usize, Result<(), Broken>) {
        let Ok(_stream) = self.streams.acquire().await else { return (0, Err(Broken::Lost("the agent ends".into()))) };
        let mut receiver = match request(connection, batch.iter().map(|w| w.digest).collect()).await {
            Ok(receiver) => receiver,
            Err(broken) => return (0, Err(broken)),
        };
        let (chunks, arriving) = mpsc::channel(CHUNKS);
        let (files, writing) = (batch.clone(), store.clone());
        let writer = scope.blocking(move |scope| Ok(write(&writing, &files, arriving, scope)));
        // The reader owns the sender: its end, however it comes, ends the writer.
        let reader = async move {
            let mut end = Ok(());
            'files: for want in &batch {
                end = match header(&mut receiver, want.digest, &want.name).await {
                    Ok(size) if size == want.size => Ok(()),
                    Ok(size) => Err(Broken::Failed(failure(
                        Cause::Verify,
                        &format!("{} ({}): the depot has {size} bytes, the manifest says {}", want.name, want.digest, want.size),
                    ))),
                    Err(broken) => Err(broken),
                };
                let mut left = want.size;
                while end.is_ok() && left > 0 {
                    match chunk(&mut receiver, left).await {
                        Ok(chunk) => {
                            left = left.saturating_sub(chunk.bytes.len() as u64);
                            scope.counters.fetched.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
                            // The writer has gone: it says why.
                            if chunks.send(chunk).await.is_err() {
                                break 'files;
                            }
                        }
                        Err(broken) => end = Err(broken),
                    }
                }
                if end.is_err() {
                    break;
                }
            }
            end
        };
        let (read, written) = tokio::join!(reader, writer);
        match written {
            Ok((done, None)) => (done, read),
            Ok((done, Some(failure))) => (done, Err(Broken::Failed(failure))),
            Err(failure) => (0, Err(Broken::Failed(failure))),
        }
    }
}

/// Opens a stream and asks for the digests.
async fn request(connection: &Connection, digests: Vec<Digest>) -> Result<FrameReceiver, Broken> {
    let opened = timeout(STALL, connection.open_bi()).await;
    let (send, recv) = opened.map_err(|_| Broken::Lost("no stream could be opened".into()))?.map_err(|e| Broken::Lost(chain(&e)))?;
    let mut sender = FrameSender::new(send);
    sender.send(&FetchRequest { digests }, CONTROL_FRAME_BYTES_MAX).await?;
    sender.finish();
    Ok(FrameReceiver::new(recv))
}

async fn header(receiver: &mut FrameReceiver, digest: Digest, name: &str) -> Result<u64, Broken> {
    let stalled = |_| Broken::Lost(format!("the controller sent nothing for {} s", STALL.as_secs()));
    match timeout(STALL, receiver.receive::<FetchHeader>(CONTROL_FRAME_BYTES_MAX)).await.map_err(stalled)?? {
        Some(FetchHeader::File { size }) => Ok(size),
        Some(FetchHeader::Missing) => Err(Broken::Failed(failure(
            Cause::Verify,
            &format!("{name} ({digest}) is not in the controller's depot: import the release again"),
        ))),
        None => Err(Broken::Lost("the controller ended the stream early".into())),
    }
}

async fn chunk(receiver: &mut FrameReceiver, left: u64) -> Result<quinn::Chunk, Broken> {
    let max = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
    let stalled = |_| Broken::Lost(format!("the controller sent nothing for {} s", STALL.as_secs()));
    let read = timeout(STALL, receiver.recv.read_chunk(max, true)).await.map_err(stalled)?;
    match read {
        Ok(Some(chunk)) => Ok(chunk),
        Ok(None) => Err(Broken::Lost("the controller ended the stream early".into())),
        Err(error) => Err(Broken::Lost(chain(&error))),
    }
}

/// The blocking side: how many files are kept, and what stopped it.
fn write(store: &Store, files: &[Want], mut arriving: mpsc::Receiver<quinn::Chunk>, scope: &Scope) -> (usize, Option<Failure>) {
    let mut batch = match store.batch() {
        Ok(batch) => batch,
        Err(error) => return (0, Some(error.failure())),
    };
    let mut kept = 0;
    let mut wrong = None;
    for want in files {
        match write_one(store, want, &mut arriving, scope) {
            Ok(Some(arrived)) => batch.add(arrived),
            Ok(None) => break,
            Err(error) => {
                let plain = error.failure();
                wrong = Some(failure(plain.cause, &format!("{}: {}", want.name, plain.message)));
                break;
            }
        }
        if batch.full() {
            match batch.keep() {
                Ok(count) => kept += count,
                Err(error) => return (kept, Some(error.failure())),
            }
        }
    }
    // What came whole before the stream broke need not come again.
    match batch.keep() {
        Ok(count) => (kept + count, wrong),
        Err(error) => (kept, Some(error.failure())),
    }
}

/// None when the stream ended before the file did. What has come of it counts as
/// staged meanwhile: a large file is progress long before its end.
fn write_one(
    store: &Store,
    want: &Want,
    arriving: &mut mpsc::Receiver<quinn::Chunk>,
    scope: &Scope,
) -> Result<Option<Arrived>, StoreError> {
    let staged = &scope.counters.staged;
    let mut counted = 0;
    let mut receive = || {
        let mut incoming = store.incoming(want.digest, want.size)?;
        while counted < want.size {
            let Some(chunk) = arriving.blocking_recv() else { return Ok(None) };
            incoming.write(&chunk.bytes)?;
            counted += chunk.bytes.len() as u64;
            staged.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
        }
        incoming.finish().map(Some)
    };
    let received = receive();
    if !matches!(received, Ok(Some(_))) {
        staged.fetch_sub(counted, Ordering::Relaxed);
    }
    received
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::scope;
    use std::sync::Arc;

    #[test]
    fn a_large_file_counts_while_it_arrives_and_not_when_it_breaks_off() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let (scope, _leash) = scope(Arc::default());
        let counters = scope.counters.clone();
        let text = b"0123456789";
        let want = Want { digest: Digest::of(text), size: 10, name: "bin/api".into() };
        for whole in [false, true] {
            let (chunks, arriving) = mpsc::channel(CHUNKS);
            let (store, files, scope) = (store.clone(), [want.clone()], scope.clone());
            let writer = std::thread::spawn(move || write(&store, &files, arriving, &scope));
            let chunk = |from: usize, to: usize| quinn::Chunk { offset: 0, bytes: text[from..to].to_vec().into() };
            chunks.blocking_send(chunk(0, 4)).unwrap();
            while counters.staged.load(Ordering::Relaxed) != 4 {
                assert!(!writer.is_finished());
                std::thread::yield_now();
            }
            if whole {
                chunks.blocking_send(chunk(4, 10)).unwrap();
            }
            drop(chunks);
            let (kept, failure) = writer.join().unwrap();
            assert_eq!((kept, failure), (usize::from(whole), None));
            assert_eq!(counters.staged.load(Ordering::Relaxed), if whole { 10 } else { 0 });
        }
    }
}
