//! A plain HTTP client, and one that never stops asking.
//!
//! Owns: one GET with a deadline, and the poller that notes every failed answer
//! with its time, so that a test can say whether a user would have noticed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};

/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// Status and body of one GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// One GET over a connection of its own.
///
/// # Errors
/// No connection, no whole answer in time, or no HTTP.
pub fn get(address: SocketAddr, path: &str, timeout: Duration) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, timeout).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(timeout)).context("a read timeout")?;
    stream.set_write_timeout(Some(timeout)).context("a write timeout")?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).with_context(|| format!("asking {address}"))?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).with_context(|| format!("reading the answer of {address}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("{address} answered no HTTP: {text:?}") };
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).with_context(|| format!("no status in {head:?}"))?;
    Ok(Answer { status, body: body.to_owned() })
}

/// A request that a user would have noticed.
#[derive(Clone, Debug)]
pub struct Miss {
    /// As given to [`Poller::start`].
    pub name: String,
    /// When the request began.
    pub began: SystemTime,
    /// When it had failed.
    pub ended: SystemTime,
    /// How.
    pub error: String,
}

/// Asks every target for `/` again and again, each on its own thread.
#[derive(Debug)]
pub struct Poller {
    stop: Arc<AtomicBool>,
    misses: Arc<Mutex<Vec<Miss>>>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Poller {
    /// Starts asking `targets` (name, address) every `interval`.
    #[must_use]
    pub fn start(targets: &[(String, SocketAddr)], interval: Duration) -> Self {
        let mut poller = Self { stop: Arc::default(), misses: Arc::default(), asked: Arc::default(), threads: Vec::new() };
        let asking = targets.iter().cloned().map(|(name, address)| {
            let (stop, misses, asked) = (Arc::clone(&poller.stop), Arc::clone(&poller.misses), Arc::clone(&poller.asked));
            thread::spawn(move || {
                let mut next = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let began = SystemTime::now();
                    let error = match get(address, "/", Duration::from_secs(2)) {
                        Ok(answer) if answer.status == 200 => None,
                        Ok(answer) => Some(format!("status {}", answer.status)),
                        Err(error) => Some(format!("{error:#}")),
                    };
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Some(error) = error {
                        let miss = Miss { name: name.clone(), began, ended: SystemTime::now(), error };
                        misses.lock().unwrap_or_else(PoisonError::into_inner).push(miss);
                    }
                    // A fixed rate: a slow answer must not hide the requests that others would have made meanwhile.
                    next += interval;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            })
        });
        let threads = asking.collect();
        poller.threads = threads;
        poller
    }

    /// How many requests were made so far.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// The misses so far.
    #[must_use]
    pub fn misses(&self) -> Vec<Miss> {
        self.misses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops asking; the misses of the whole time.
    #[must_use]
    pub fn finish(mut self) -> Vec<Miss> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.misses()
    }
}
