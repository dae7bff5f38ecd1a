//! The newest reading of every observer, and when they are to be said.
//!
//! Owns: what belongs into the next [`Samples`], and that they fit their frame.
//! Must not: measure anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_protocol::codec;
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::metric::{MetricReading, Reading, Samples};
use tidegate_protocol::report::bounded;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::slot::Slot;

/// Between two samples, whatever there is to say.
const GAP: Duration = Duration::from_millis(50);
/// Between two samples because of something urgent: a flood of critical messages is
/// said by its first, then by its count.
const URGENT_GAP: Duration = Duration::from_secs(1);
/// What all observers of a new watch get for their first readings.
const FIRST: Duration = Duration::from_secs(1);
/// For something urgent to be said.
const SAID: Duration = Duration::from_millis(500);
/// Of a note when the frame is full, characters.
const SHORT_NOTE_CHARS: usize = 80;

/// All readings of one agent.
#[derive(Default)]
pub(super) struct Board {
    posts: Mutex<Posts>,
    /// There may be something to say before it is due.
    pub(super) news: Notify,
    said: Notify,
}

#[derive(Default)]
struct Posts {
    of: BTreeMap<Slot, Post>,
    urgent: bool,
    last: Option<Instant>,
    /// When something urgent was said last.
    hurried: Option<Instant>,
}

/// One watch.
struct Post {
    every: Duration,
    /// In the order of the watch; none before an observer's first word.
    readings: Vec<(String, Option<MetricReading>)>,
    begun: Instant,
    announced: bool,
}

/// What a watch shall have on the board.
pub(super) struct Wanted {
    pub(super) slot: Slot,
    pub(super) every: Duration,
    /// Each metric, and whether its observer goes on.
    pub(super) metrics: Vec<(String, bool)>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Posts> {
        // Values are replaced whole, so a panic leaves them readable.
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for these and forgets all others.
    pub(super) fn arrange(&self, wanted: Vec<Wanted>) {
        let mut posts = self.lock();
        let mut old = std::mem::take(&mut posts.of);
        for Wanted { slot, every, metrics } in wanted {
            let mut known = old.remove(&slot);
            let announced = known.as_ref().is_some_and(|post| post.announced) && metrics.iter().all(|(_, goes_on)| *goes_on);
            let mut take = |(metric, goes_on): (String, bool)| {
                let kept = known.as_mut().filter(|_| goes_on).and_then(|post| post.readings.iter_mut().find(|(m, _)| *m == metric));
                let reading = kept.and_then(|(_, reading)| reading.take());
                (metric, reading)
            };
            let readings = metrics.into_iter().map(&mut take).collect();
            posts.of.insert(slot, Post { every, readings, begun: Instant::now(), announced });
        }
        drop(posts);
        self.news.notify_one();
    }

    /// When the next samples are due; none while nothing is watched.
    pub(super) fn due(&self) -> Option<Instant> {
        let posts = self.lock();
        let every = posts.of.values().map(|post| post.every).min()?;
        let earliest = posts.last.map(|last| last + GAP);
        let now = Instant::now();
        let mut due = posts.last.map_or(now + FIRST, |last| last + every);
        for post in posts.of.values().filter(|post| !post.announced) {
            let all = post.readings.iter().all(|(_, reading)| reading.is_some());
            due = due.min(if all { now } else { post.begun + FIRST });
        }
        if posts.urgent {
            due = due.min(posts.hurried.map_or(now, |hurried| now.max(hurried + URGENT_GAP)));
        }
        Some(earliest.map_or(due, |earliest| due.max(earliest)))
    }

    /// All of it, for the wire.
    pub(super) fn samples(&self) -> Vec<Samples> {
        let mut posts = self.lock();
        let now = Instant::now();
        posts.last = Some(now);
        if std::mem::take(&mut posts.urgent) {
            posts.hurried = Some(now);
        }
        posts.of.values_mut().for_each(|post| post.announced = true);
        let of = |(slot, post): (&Slot, &Post)| Samples {
            component: slot.component.clone(),
            side: slot.side,
            readings: post.readings.iter().filter_map(|(_, reading)| reading.clone()).collect(),
        };
        let mut samples: Vec<Samples> = posts.of.iter().map(of).collect();
        drop(posts);
        self.said.notify_waiters();
        fit(&mut samples);
        samples
    }

    fn tell(&self, slot: &Slot, reading: MetricReading, urgent: bool) {
        let mut posts = self.lock();
        let hurries = urgent && !posts.urgent;
        let Some(post) = posts.of.get_mut(slot) else { return };
        // An observer that is not wanted any more has nothing to say.
        let Some((_, place)) = post.readings.iter_mut().find(|(metric, _)| *metric == reading.metric) else { return };
        let news = hurries || (place.is_none() && !post.announced);
        *place = Some(reading);
        posts.urgent |= urgent;
        drop(posts);
        if news {
            self.news.notify_one();
        }
    }

    /// Hands on what is urgent, however much was of late, and waits for it, a moment
    /// at most.
    async fn settled(&self) {
        self.lock().hurried = None;
        self.news.notify_one();
        let settled = async {
            loop {
                let said = self.said.notified();
                tokio::pin!(said);
                // Before the look, or a word in between would be missed.
                said.as_mut().enable();
                if !self.lock().urgent {
                    return;
                }
                said.await;
            }
        };
        // Late is better than never.
        let _ = timeout(SAID, settled).await;
    }
}

/// The place of one metric on the board.
#[derive(Clone)]
pub(super) struct Teller {
    board: Arc<Board>,
    slot: Slot,
    metric: String,
}

impl Teller {
    pub(super) fn new(board: Arc<Board>, slot: Slot, metric: String) -> Self {
        Self { board, slot, metric }
    }

    /// The newest word.
    pub(super) fn tell(&self, since_unix_ms: u64, reading: Reading, note: Option<&str>) {
        self.say(since_unix_ms, reading, note, false);
    }

    /// As [`Teller::tell`], to be said at once.
    pub(super) fn tell_now(&self, since_unix_ms: u64, reading: Reading, note: Option<&str>) {
        self.say(since_unix_ms, reading, note, true);
    }

    /// The source cannot be read.
    pub(super) fn failed(&self, since_unix_ms: u64, why: &str) {
        self.tell(since_unix_ms, Reading::Failed, Some(why));
    }

    /// Before counting begins anew: what was found last is said first.
    pub(super) async fn settled(&self) {
        self.board.settled().await;
    }

    fn say(&self, since_unix_ms: u64, reading: Reading, note: Option<&str>, urgent: bool) {
        let reading = MetricReading { metric: self.metric.clone(), since_unix_ms, reading, note: note.map(bounded) };
        self.board.tell(&self.slot, reading, urgent);
    }
}

/// Makes samples fit their frame: what people read goes first.
fn fit(samples: &mut Vec<Samples>) {
    // The message around them takes a few bytes.
    let fits = |samples: &Vec<Samples>| codec::encode(samples, CONTROL_FRAME_BYTES_MAX - 64).is_ok();
    let notes = |samples: &mut Vec<Samples>, cut: fn(String) -> Option<String>| {
        let all = samples.iter_mut().flat_map(|s| &mut s.readings);
        all.for_each(|reading| reading.note = reading.note.take().and_then(cut));
    };
    if fits(samples) {
        return;
    }
    notes(samples, |note| Some(note.chars().take(SHORT_NOTE_CHARS).collect()));
    if fits(samples) {
        return;
    }
    notes(samples, |_| None);
    let mut dropped = 0_usize;
    while !fits(samples) {
        let Some(largest) = samples.iter_mut().max_by_key(|s| s.readings.len()).filter(|s| !s.readings.is_empty()) else { return };
        // Half of the largest at a time: encoding is not free.
        let keep = largest.readings.len() / 2;
        dropped += largest.readings.len() - keep;
        largest.readings.truncate(keep);
    }
    if dropped > 0 {
        tracing::warn!(dropped, "too many metrics are watched at once: some readings were left out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str) -> Slot {
        Slot::plain(name.parse().unwrap())
    }

    fn wanted(name: &str, metrics: &[(&str, bool)]) -> Wanted {
        let metrics = metrics.iter().map(|(m, on)| ((*m).to_owned(), *on)).collect();
        Wanted { slot: slot(name), every: Duration::from_secs(60), metrics }
    }

    fn teller(board: &Arc<Board>, name: &str, metric: &str) -> Teller {
        Teller::new(board.clone(), slot(name), metric.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_samples_wait_for_all_or_a_second_and_the_next_for_their_time() {
        let board = Arc::new(Board::default());
        assert_eq!(board.due(), None);
        board.arrange(vec![wanted("api", &[("a", false), ("b", false)])]);
        let began = Instant::now();
        assert_eq!(board.due(), Some(began + FIRST));
        teller(&board, "api", "a").tell(1, Reading::Count(1), None);
        assert_eq!(board.due(), Some(began + FIRST));
        teller(&board, "api", "b").failed(1, "no\nsuch");
        assert_eq!(board.due(), Some(began));
        let said = board.samples();
        assert_eq!(said[0].readings.len(), 2);
        assert_eq!(said[0].readings[1].note.as_deref(), Some("no such"));
        assert_eq!(board.due(), Some(began + Duration::from_secs(60)));
        teller(&board, "api", "a").tell(1, Reading::Count(2), None);
        assert_eq!(board.due(), Some(began + Duration::from_secs(60)));
        teller(&board, "api", "a").tell_now(1, Reading::Count(3), Some("panic"));
        assert_eq!(board.due(), Some(began + GAP), "urgent, but not more often than that");
        board.samples();
        assert_eq!(board.due(), Some(began + Duration::from_secs(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_urgent_words_is_said_at_once_then_every_second() {
        let board = Arc::new(Board::default());
        board.arrange(vec![wanted("api", &[("a", false)])]);
        let one = teller(&board, "api", "a");
        let mut said = Vec::new();
        let began = Instant::now();
        // A critical message each 10 ms for ten seconds.
        for n in 1..=1_000 {
            one.tell_now(1, Reading::Count(n), None);
            if board.due().is_some_and(|due| due <= Instant::now()) {
                said.push((began.elapsed().as_secs(), board.samples().remove(0).readings.remove(0).reading));
            }
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let wanted: Vec<_> = (0..10).map(|second| (second, Reading::Count(1 + 100 * second))).collect();
        assert_eq!(said, wanted);
        // Before counting begins anew the rest is not held back.
        let waits = tokio::spawn(async move { one.settled().await });
        tokio::task::yield_now().await;
        assert!(board.due().unwrap() <= Instant::now() && !waits.is_finished());
        board.samples();
        waits.await.unwrap();
        // Nor is the first after a while.
        tokio::time::advance(URGENT_GAP).await;
        teller(&board, "api", "a").tell_now(1, Reading::Count(1_001), None);
        assert_eq!(board.due(), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_keeps_its_reading_and_what_ended_cannot_speak() {
        let board = Arc::new(Board::default());
        board.arrange(vec![wanted("api", &[("a", false), ("b", false)]), wanted("web", &[("a", false)])]);
        let (old, gone) = (teller(&board, "api", "b"), teller(&board, "web", "a"));
        for one in [&old, &gone, &teller(&board, "api", "a")] {
            one.tell(1, Reading::Count(7), None);
        }
        board.samples();
        board.arrange(vec![wanted("api", &[("a", true), ("c", false)])]);
        old.tell(1, Reading::Count(8), None);
        gone.tell(1, Reading::Count(8), None);
        let said = board.samples();
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].readings.iter().map(|r| r.metric.as_str()).collect::<Vec<_>>(), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn counting_anew_waits_for_what_is_urgent() {
        let board = Arc::new(Board::default());
        board.arrange(vec![wanted("api", &[("a", false)])]);
        let one = teller(&board, "api", "a");
        one.settled().await;
        one.tell_now(1, Reading::Count(1), None);
        let waits = tokio::spawn(async move { one.settled().await });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        board.samples();
        waits.await.unwrap();
    }

    #[test]
    fn many_readings_fit_their_frame() {
        let reading = |i: usize| MetricReading {
            metric: format!("metric-{i}"),
            since_unix_ms: u64::MAX,
            reading: Reading::Histogram { bounds_us: vec![1 << 40; 63], counts: vec![1 << 40; 64] },
            note: Some("x".repeat(512)),
        };
        let one = |n: usize| Samples { component: "api".parse().unwrap(), side: None, readings: (0..n).map(reading).collect() };
        for (count, notes) in [(1, 512), (40, 80), (54, 0), (400, 0)] {
            let mut samples = vec![one(count), one(1)];
            fit(&mut samples);
            assert!(codec::encode(&samples, CONTROL_FRAME_BYTES_MAX).is_ok(), "{count}");
            assert_eq!(samples[0].readings[0].note.as_ref().map_or(0, String::len), notes, "{count}");
            assert!(samples[0].readings.len() >= count.min(20), "{count}");
        }
    }
}
