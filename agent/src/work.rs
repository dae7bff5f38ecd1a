//! Work of an operation off the async runtime, that can be called back.
//!
//! An operation is a future; dropping it stops it at its next await. What it
//! runs on a blocking thread is told through [`Scope::go_on`], and [`Leash::end`]
//! waits until nothing of it runs any more.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidegate_protocol::Cause;
use tidegate_protocol::report::Failure;
use tokio::sync::mpsc;

use crate::error::failed;

/// How far staging has come.
#[derive(Debug, Default)]
pub struct Counters {
    /// Verified, bytes.
    pub staged: AtomicU64,
    /// Over the wire, bytes.
    pub fetched: AtomicU64,
}

/// Handed to everything an operation does.
#[derive(Clone)]
pub struct Scope {
    ended: Arc<AtomicBool>,
    _alive: mpsc::Sender<Infallible>,
    /// Of the generation under way.
    pub counters: Arc<Counters>,
}

/// Held by whoever may call the operation back.
pub struct Leash {
    ended: Arc<AtomicBool>,
    alive: mpsc::Receiver<Infallible>,
}

/// A scope and its leash.
#[must_use]
pub fn scope(counters: Arc<Counters>) -> (Scope, Leash) {
    let ended = Arc::new(AtomicBool::new(false));
    let (sender, alive) = mpsc::channel(1);
    (Scope { ended: ended.clone(), _alive: sender, counters }, Leash { ended, alive })
}

impl Scope {
    /// False once the operation was called back.
    #[must_use]
    pub fn go_on(&self) -> bool {
        !self.ended.load(Ordering::SeqCst)
    }

    /// Runs something that blocks, and keeps the leash until it ends.
    ///
    /// # Errors
    /// What it returns; a thread that died is a `disk` failure.
    pub async fn blocking<T, F>(&self, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    {
        let scope = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&scope)).await;
        done.unwrap_or_else(|error| Err(failed(Cause::Disk, &error)))
    }
}

impl Leash {
    /// Calls back what still runs and waits for its end. The operation's future
    /// must have been dropped before.
    pub async fn end(mut self) {
        self.ended.store(true, Ordering::SeqCst);
        while self.alive.recv().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_the_blocking_thread() {
        let (scope, leash) = scope(Arc::default());
        let (started, begun) = std::sync::mpsc::channel();
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = stopped.clone();
        {
            let mut work = Box::pin(scope.blocking(move |scope| {
                started.send(()).unwrap();
                while scope.go_on() {
                    std::thread::yield_now();
                }
                seen.store(true, Ordering::SeqCst);
                Ok(())
            }));
            // One poll starts the thread; then the future is dropped.
            let once = std::future::poll_fn(|cx| std::task::Poll::Ready(work.as_mut().poll(cx).is_pending())).await;
            assert!(once);
            begun.recv().unwrap();
        }
        drop(scope);
        leash.end().await;
        assert!(stopped.load(Ordering::SeqCst));
    }
}
