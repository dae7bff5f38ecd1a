//! Steady traffic on many hosts at once, for gates that judge what users see.
//!
//! Owns: one thread that asks each target for `/` at its own rate and counts what
//! came back. Must not: slow down with the service (a rate that falls when the
//! service is slow hides the requests that users would have made), or use more
//! than one thread: tests that use it share two cores.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::Miss;

/// Of one request, connecting included.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Requests per second that one connection carries: one that takes 100 ms still
/// keeps the rate.
const PER_CONNECTION: u32 = 10;
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Misses that are kept; all are counted.
const MISSES_MAX: usize = 1_000;

/// What is asked, and how often.
#[derive(Clone, Debug)]
pub struct Target {
    /// For [`Miss::name`].
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// Requests per second.
    pub per_second: u32,
}

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Kept, as a service behind a load balancer sees it.
    Kept,
    /// One per request, as a visitor's first one.
    Fresh,
}

/// What came back from all targets together.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests made.
    pub asked: u64,
    /// Of them, those not answered with 200.
    pub missed: u64,
    /// The first of these.
    pub misses: Vec<Miss>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicU64,
    missed: AtomicU64,
    misses: Mutex<Vec<Miss>>,
}

/// Traffic that goes on until it is finished or dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts asking.
    ///
    /// # Errors
    /// There is no thread or runtime to be had.
    pub fn start(targets: Vec<Target>, connections: Connections) -> anyhow::Result<Self> {
        let shared = Arc::<Shared>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime for the load")?;
        let inner = Arc::clone(&shared);
        let body = move || {
            runtime.block_on(async {
                let mut tasks = Vec::new();
                for target in targets {
                    let tracks = target.per_second.div_ceil(PER_CONNECTION).max(1);
                    for track in 0..tracks {
                        let (target, shared) = (target.clone(), Arc::clone(&inner));
                        tasks.push(tokio::spawn(async move { ask_again(&target, track, tracks, connections, &shared).await }));
                    }
                }
                for task in tasks {
                    let _ = task.await;
                }
            });
        };
        let thread = thread::Builder::new().name("load".to_owned()).spawn(body).context("a thread for the load")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// How many requests were made so far.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Stops asking; what came back in the whole time.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        self.stop();
        let misses = self.shared.misses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Tally { asked: self.asked(), missed: self.shared.missed.load(Ordering::Relaxed), misses }
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One of `tracks` connections to a target, each with its share of the rate and
/// its place in the beat.
async fn ask_again(target: &Target, track: u32, tracks: u32, connections: Connections, shared: &Shared) {
    let every = Duration::from_secs(1) * tracks / target.per_second.max(1);
    let mut next = Instant::now() + every * track / tracks;
    let mut kept = None;
    while !shared.stop.load(Ordering::Relaxed) {
        sleep_until(next).await;
        // A service that was away is not asked for all of that time at once.
        next = (next + every).max(Instant::now());
        let began = SystemTime::now();
        let answered = match timeout(ANSWER_WITHIN, ask(target.address, kept.take())).await {
            Ok(Ok((200, stream))) => {
                kept = stream.filter(|_| connections == Connections::Kept);
                None
            }
            Ok(Ok((status, stream))) => {
                kept = stream.filter(|_| connections == Connections::Kept);
                Some(format!("status {status}"))
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {ANSWER_WITHIN:?}")),
        };
        shared.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = answered {
            shared.missed.fetch_add(1, Ordering::Relaxed);
            let mut misses = shared.misses.lock().unwrap_or_else(PoisonError::into_inner);
            if misses.len() < MISSES_MAX {
                misses.push(Miss { name: target.name.clone(), began, ended: SystemTime::now(), error });
            }
        }
    }
}

/// One request; its status, and the connection if it can be used again.
async fn ask(address: SocketAddr, kept: Option<TcpStream>) -> io::Result<(u16, Option<TcpStream>)> {
    if let Some(stream) = kept {
        // A server may close a connection that it kept just when it is used
        // again; every client then asks anew over a fresh one (RFC 9112, 9.3.1).
        match exchange(stream).await {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected) => {}
            other => return other,
        }
    }
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    exchange(stream).await
}

async fn exchange(mut stream: TcpStream) -> io::Result<(u16, Option<TcpStream>)> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: load\r\n\r\n").await?;
    let mut bytes = Vec::with_capacity(512);
    let (status, end, keep) = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            // Nothing at all came: the connection was closed before the request.
            let kind = if bytes.is_empty() { io::ErrorKind::NotConnected } else { io::ErrorKind::UnexpectedEof };
            return Err(io::Error::new(kind, "closed before the end of the answer's head"));
        }
        if let Some(head) = head(&bytes)? {
            break head;
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(bad("the answer is too long"));
        }
    };
    while bytes.len() < end {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed in the answer's body"));
        }
    }
    Ok((status, keep.then_some(stream)))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Status, where the answer ends, and whether the connection stays; none while
/// the head is not complete.
fn head(bytes: &[u8]) -> io::Result<Option<(u16, usize, bool)>> {
    let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(bytes.get(..at).unwrap_or_default()).map_err(|_| bad("the answer's head is not text"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| bad("no status"))?;
    let field = |name: &str| head.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name));
    let length: usize = field("content-length").and_then(|(_, value)| value.trim().parse().ok()).ok_or_else(|| bad("no content-length"))?;
    if length > ANSWER_BYTES_MAX {
        return Err(bad("the answer is too long"));
    }
    let keep = !field("connection").is_some_and(|(_, value)| value.trim().eq_ignore_ascii_case("close"));
    Ok(Some((status, at + 4 + length, keep)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::wait::wait_for;

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(head(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\nConnection: close\r\n\r\n").unwrap(), Some((503, 59, false)));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    /// Answers on one connection after the other: 200, 500, then hangs up.
    #[test]
    fn what_fails_is_counted_and_a_kept_connection_that_closes_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for (connection, stream) in listener.incoming().take(3).enumerate() {
                let mut stream = stream.unwrap();
                let mut request = [0; 256];
                if connection == 2 {
                    // Half an answer is a miss.
                    let _ = stream.read(&mut request).unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
                    break;
                }
                let status = ["200 OK", "500 Bad"][connection];
                // Closed after one answer without a word: asked again elsewhere.
                let _ = stream.read(&mut request).unwrap();
                stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 1\r\n\r\n!").as_bytes()).unwrap();
            }
        });
        let target = Target { name: "one".to_owned(), address, per_second: 10 };
        let load = Load::start(vec![target], Connections::Kept).unwrap();
        wait_for("three requests", Duration::from_secs(10), || Ok(load.asked() >= 3)).unwrap();
        server.join().unwrap();
        let tally = load.finish();
        let errors: Vec<&str> = tally.misses.iter().take(2).map(|miss| miss.error.as_str()).collect();
        assert_eq!(errors, ["status 500", "closed before the end of the answer's head"]);
        assert_eq!(tally.missed + 1, tally.asked);
    }
}
