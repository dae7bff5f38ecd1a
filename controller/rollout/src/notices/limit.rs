//! Never a storm: how often one kind of thing is told, by the times of the records.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use tidegate_protocol::{Millis, Timestamp};

/// Between two notices of one kind.
const GAP: Millis = Millis::from_secs(300);
/// Of one kind in one wave: the first, and one that sums up.
const PER_WAVE: u32 = 2;
/// Pauses that a machine makes and ends by itself: so many within [`FLAP_WITHIN`].
const FLAPS: usize = 3;
const FLAP_WITHIN: Millis = Millis::from_secs(1_800);

#[derive(Clone, Debug)]
struct Last {
    at: Timestamp,
    wave: Option<usize>,
    in_wave: u32,
    untold: u32,
}

/// By kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits(BTreeMap<&'static str, Last>);

impl Limits {
    /// Whether this one is told, and how many before it were not.
    pub(super) fn admit(&mut self, kind: &'static str, at: Timestamp, wave: Option<usize>) -> Option<u32> {
        let Some(last) = self.0.get_mut(kind) else {
            self.0.insert(kind, Last { at, wave, in_wave: 1, untold: 0 });
            return Some(0);
        };
        let same_wave = wave.is_some() && last.wave == wave;
        if at.since(last.at) < GAP || (same_wave && last.in_wave >= PER_WAVE) {
            last.untold = last.untold.saturating_add(1);
            return None;
        }
        let more = last.untold;
        *last = Last { at, wave, in_wave: if same_wave { last.in_wave + 1 } else { 1 }, untold: 0 };
        Some(more)
    }
}

/// A source that comes and goes pauses a rollout again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Flapping(Vec<Timestamp>);

impl Flapping {
    pub(super) fn admit(&mut self, at: Timestamp) -> bool {
        self.0.retain(|told| at.since(*told) < FLAP_WITHIN);
        let room = self.0.len() < FLAPS;
        if room {
            self.0.push(at);
        }
        room
    }
}
