//! Which handshakes the controller takes on, and when.
//!
//! A fleet that reconnects all at once must neither stall live sessions nor fill
//! the memory: so many handshakes at once, proof of the address under load, and
//! a deadline for each. Who the peer is comes out; what it may do does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::close;
use crate::endpoint::{Peer, peer};
use crate::error::{NetError, explain};
use crate::transport::grant;

/// Handshakes at once. About a millisecond of CPU each.
pub const HANDSHAKES_MAX: usize = 64;
/// From so many on, an address must prove itself first (a QUIC retry): a
/// round trip more, but a forged address never costs a handshake.
pub const RETRY_ABOVE: usize = 16;
/// From first packet to certificate checked.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a newcomer waits for a place before it is told to come back. The
/// ones behind it wait in quinn's bounded queue.
const PLACE_TIMEOUT: Duration = Duration::from_secs(1);

/// The places, and what became of those who wanted one.
#[derive(Clone, Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    max: usize,
    retry_above: usize,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    retried: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

/// Since start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionCounts {
    /// Sent to prove their address.
    pub retried: u64,
    /// Told to come back: no place.
    pub refused: u64,
    /// Handshakes that failed or took too long, and peers without a right to be here.
    pub failed: u64,
}

/// A connection whose peer is known.
#[derive(Debug)]
pub struct Accepted {
    /// With the limits of its role.
    pub connection: quinn::Connection,
    /// Who.
    pub peer: Peer,
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(HANDSHAKES_MAX, RETRY_ABOVE)
    }
}

impl Admission {
    /// Other numbers than [`HANDSHAKES_MAX`] and [`RETRY_ABOVE`].
    #[must_use]
    pub fn new(max: usize, retry_above: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(max)), max, retry_above, counts: Arc::default() }
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> AdmissionCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        AdmissionCounts { retried: read(&self.counts.retried), refused: read(&self.counts.refused), failed: read(&self.counts.failed) }
    }

    fn busy(&self) -> usize {
        self.max - self.places.available_permits().min(self.max)
    }
}

/// Takes handshakes until the endpoint is closed or nobody receives any more.
/// Each runs in its own task, bounded in number and time; what comes out of it
/// goes to `out`. A handshake keeps its place until `out` has taken it, so a slow
/// receiver slows admission and nothing piles up.
pub async fn accept(endpoint: &quinn::Endpoint, admission: &Admission, out: &mpsc::Sender<Accepted>) {
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = out.closed() => None,
        };
        let Some(incoming) = incoming else { return };
        if admission.busy() >= admission.retry_above && !incoming.remote_address_validated() && incoming.may_retry() {
            admission.counts.retried.fetch_add(1, Ordering::Relaxed);
            // It fails only for those that may not be retried.
            let _ = incoming.retry();
            continue;
        }
        let Ok(Ok(place)) = timeout(PLACE_TIMEOUT, admission.places.clone().acquire_owned()).await else {
            admission.counts.refused.fetch_add(1, Ordering::Relaxed);
            incoming.refuse();
            continue;
        };
        let (admission, out) = (admission.clone(), out.clone());
        tokio::spawn(async move {
            match handshake(incoming).await {
                // Sending fails when nobody receives any more; the connection then closes by its drop.
                Ok(accepted) => drop(out.send(accepted).await),
                Err(error) => {
                    admission.counts.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, "handshake refused");
                }
            }
            drop(place);
        });
    }
}

async fn handshake(incoming: quinn::Incoming) -> Result<Accepted, NetError> {
    let addr = incoming.remote_address();
    let explain = |error| explain(addr, &error);
    let connecting = incoming.accept().map_err(explain)?;
    let connection = match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(done) => done.map_err(explain)?,
        Err(_) => return Err(NetError::Lost { addr, source: quinn::ConnectionError::TimedOut }),
    };
    match peer(&connection) {
        Ok(peer) => {
            grant(&connection, &peer);
            Ok(Accepted { connection, peer })
        }
        Err(error) => {
            connection.close(close::REFUSED, error.to_string().as_bytes());
            Err(error)
        }
    }
}
