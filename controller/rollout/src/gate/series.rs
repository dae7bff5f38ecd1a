//! One metric of one host over time: cumulative readings in, growth out.

use alloc::string::String;

use tidegate_protocol::metric::Reading;
use tidegate_protocol::{Millis, Timestamp};

use super::tally::Tally;

/// One metric of one host.
#[derive(Clone, Debug, Default)]
pub struct Series {
    error: Option<(Timestamp, String)>,
    last_at: Option<Timestamp>,
}

impl Series {
    /// Of a host that runs on: what is counted begins with the first reading.
    #[must_use]
    pub fn open() -> Self {
        Self::default()
    }

    /// Of a host whose process began at `process_unix_ms` (the host's clock):
    /// readings whose counting began before it are of the process before and are
    /// not heard; the first one that is heard counts from zero.
    #[must_use]
    pub fn fresh(_process_unix_ms: u64) -> Self {
        Self::default()
    }

    /// Takes a reading in.
    pub fn push(&mut self, now: Timestamp, _since_unix_ms: u64, _reading: &Reading, _note: Option<&str>) {
        self.last_at = Some(now);
    }

    /// Since when the source cannot be read, and why; none once it answers again.
    #[must_use]
    pub fn error(&self) -> Option<(Timestamp, &str)> {
        self.error.as_ref().map(|(at, why)| (*at, why.as_str()))
    }

    /// When the last good reading came.
    #[must_use]
    pub fn last_at(&self) -> Option<Timestamp> {
        self.last_at
    }

    /// Keeps the present reading exactly, as the beginning of an observation.
    pub fn pin(&mut self, _now: Timestamp) {}

    /// Growth since `from`, and over how long: from the last reading at or before
    /// it, a pinned one if there is one, else from the first one after it.
    #[must_use]
    pub fn since(&self, _from: Timestamp) -> Option<(Tally, Millis)> {
        None
    }

    /// Growth over the shortest recent time that has `min_samples`, never
    /// reaching before `from`.
    #[must_use]
    pub fn recent(&self, _from: Timestamp, _min_samples: u64) -> Option<(Tally, Millis)> {
        None
    }
}
