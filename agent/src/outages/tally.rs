//! Times without a good answer, out of the answers one by one. No clock, no I/O.

use std::collections::VecDeque;

use tidegate_protocol::Outage;
use tidegate_protocol::limits::OUTAGES_MAX;

/// What is known of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// It is to answer: it was there before, or has answered since it is there.
    pub(super) armed: bool,
    pub(super) intervals: Vec<Outage>,
}

impl Tally {
    /// An answer to the probe that began then, in order. True if an interval began
    /// or ended.
    pub(super) fn took(&mut self, at: u64, good: bool) -> bool {
        if good {
            self.armed = true;
            return self.close(at);
        }
        if !self.armed || self.intervals.last().is_some_and(|last| last.to_unix_ms == 0) {
            return false;
        }
        let full = self.intervals.len() >= OUTAGES_MAX;
        match self.intervals.last_mut().filter(|_| full) {
            // Too many: the last ones grow together.
            Some(last) => last.to_unix_ms = 0,
            None => self.intervals.push(Outage { from_unix_ms: at, to_unix_ms: 0 }),
        }
        true
    }

    /// It is not installed any more, and answers to nobody. True if an interval ended.
    pub(super) fn absent(&mut self, at: u64) -> bool {
        self.armed = false;
        self.close(at)
    }

    fn close(&mut self, at: u64) -> bool {
        let open = self.intervals.last_mut().filter(|last| last.to_unix_ms == 0);
        // A clock that was set back makes it short, not senseless.
        open.map(|open| open.to_unix_ms = at.max(open.from_unix_ms).max(1)).is_some()
    }
}

/// Probes under way, and answers that wait for those of earlier ones: a probe that
/// times out is known long after the good answer to its successor.
#[derive(Debug, Default)]
pub(super) struct Flights {
    next: u64,
    waiting: VecDeque<(u64, u64, Option<bool>)>,
}

impl Flights {
    /// One that begins now; its number.
    pub(super) fn begin(&mut self, at: u64) -> u64 {
        self.next += 1;
        self.waiting.push_back((self.next, at, None));
        self.next
    }

    /// Its answer came. What is known now, in order: when each began, and whether it
    /// was good.
    pub(super) fn end(&mut self, number: u64, good: bool) -> Vec<(u64, bool)> {
        if let Some(flight) = self.waiting.iter_mut().find(|(n, ..)| *n == number) {
            flight.2 = Some(good);
        }
        let mut known = Vec::new();
        while let Some((_, at, Some(good))) = self.waiting.front().copied() {
            known.push((at, good));
            self.waiting.pop_front();
        }
        known
    }

    /// No answer is waited for any more.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(intervals: &[Outage]) -> Vec<(u64, u64)> {
        intervals.iter().map(|one| (one.from_unix_ms, one.to_unix_ms)).collect()
    }

    #[test]
    fn an_outage_lasts_from_the_first_bad_probe_to_the_next_good_one() {
        let mut tally = Tally { armed: true, ..Tally::default() };
        let changes: Vec<bool> = [(1_000, true), (1_500, false), (2_000, false), (2_500, true), (3_000, true), (3_500, false)]
            .map(|(at, good)| tally.took(at, good))
            .into();
        assert_eq!(changes, [false, true, false, true, false, true]);
        assert_eq!(of(&tally.intervals), [(1_500, 2_500), (3_500, 0)]);
        // The clock was set back by an hour.
        assert!(tally.took(100, true));
        assert_eq!(of(&tally.intervals), [(1_500, 2_500), (3_500, 3_500)]);
    }

    #[test]
    fn nothing_counts_before_the_first_good_answer_of_what_was_not_there() {
        let mut tally = Tally::default();
        assert!(!tally.took(1, false) && !tally.took(2, true) && tally.took(3, false));
        // Taken back to nothing: the outage ends, and begins anew only with an answer.
        assert!(tally.absent(4));
        assert!(!tally.absent(5) && !tally.took(6, false));
        assert_eq!(of(&tally.intervals), [(3, 4)]);
    }

    #[test]
    fn beyond_the_bound_the_last_ones_grow_together() {
        let mut tally = Tally { armed: true, ..Tally::default() };
        for i in 0..100 {
            tally.took(10 * i + 1, false);
            tally.took(10 * i + 5, true);
        }
        assert_eq!(tally.intervals.len(), OUTAGES_MAX);
        assert_eq!(of(&tally.intervals)[..2], [(1, 5), (11, 15)]);
        assert_eq!(of(&tally.intervals).last(), Some(&(631, 995)));
    }

    #[test]
    fn answers_count_in_the_order_of_their_probes() {
        let mut flights = Flights::default();
        let (slow, quick) = (flights.begin(10), flights.begin(20));
        assert!(flights.end(quick, true).is_empty());
        assert_eq!(flights.end(slow, false), [(10, false), (20, true)]);
        let gone = flights.begin(30);
        flights.clear();
        assert!(flights.end(gone, false).is_empty());
    }
}
