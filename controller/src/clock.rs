//! The controller's one clock: wall time at start, monotonic from there.
//!
//! Never goes backwards, not even over a restart: it starts at the journal's last
//! time if the machine's clock is behind it.

use tidegate_protocol::Timestamp;
use tokio::time::{Duration, Instant};

/// Unix milliseconds that only rise.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Timestamp,
    start: Instant,
}

impl Clock {
    /// Wall time now, or `last` if that is later.
    #[must_use]
    pub fn starting_after(last: Timestamp) -> Self {
        let wall =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
        Self { origin: Timestamp(wall.max(last.0)), start: Instant::now() }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp(self.origin.0.saturating_add(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }

    /// When that time comes, for the runtime's timers.
    #[must_use]
    pub fn instant(&self, at: Timestamp) -> Instant {
        self.start + Duration::from_millis(at.0.saturating_sub(self.origin.0))
    }
}
