//! The outbox over a scripted channel, with the times of the real one shortened:
//! what a test waits for are outcomes, what it measures are shortest times.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::outbox::{TEMPO, Tempo, back_off};
use super::*;
use crate::clock::Clock;

/// A second is 20 ms; a day one second.
const SHORT: Tempo = Tempo {
    pace: Duration::from_millis(20),
    first: Duration::from_millis(20),
    most: Duration::from_millis(160),
    give_up: Duration::from_secs(1),
    least: Duration::from_millis(800),
};

/// Later than the clock of any machine that runs this: the outbox begins there.
const NOW: Timestamp = Timestamp(7_000_000_000_000);

type Tries = Arc<Mutex<Vec<(String, String, Instant)>>>;

/// By route what the next tries come to; taken when nothing is left.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<BTreeMap<String, VecDeque<Sent>>>>,
    tries: Tries,
}

impl Script {
    fn say(self, route: &str, answers: impl IntoIterator<Item = Sent>) -> Self {
        self.answers.lock().unwrap().entry(route.into()).or_default().extend(answers);
        self
    }

    fn outbox(&self) -> (Outbox, mpsc::Receiver<Outcome>) {
        let own = self.clone();
        let clock = Clock::starting_after(NOW);
        Outbox::with(vec!["a".into(), "b".into()], clock, SHORT, move |route, notice: Notice| {
            let own = own.clone();
            async move {
                own.tries.lock().unwrap().push((route.clone(), notice.key, Instant::now()));
                own.answers.lock().unwrap().get_mut(&route).and_then(VecDeque::pop_front).unwrap_or(Sent::Taken)
            }
        })
    }

    fn tries(&self, route: &str) -> Vec<(String, Instant)> {
        self.tries.lock().unwrap().iter().filter(|(r, ..)| r == route).map(|(_, key, at)| (key.clone(), *at)).collect()
    }
}

fn later(after: Option<u64>) -> Sent {
    Sent::Later { why: "HTTP 500".into(), after: after.map(Duration::from_millis) }
}

/// Happens now.
fn fresh(key: &str, rollout: &str) -> Notice {
    Notice { rollout: rollout.parse().unwrap(), at: NOW, ..notice(key) }
}

async fn next(outcomes: &mut mpsc::Receiver<Outcome>) -> (String, String, Result<(), String>) {
    let outcome = outcomes.recv().await.unwrap();
    (outcome.key, outcome.route, outcome.result)
}

#[tokio::test]
async fn what_is_not_taken_is_tried_again_ever_more_rarely() {
    let script = Script::default().say("a", vec![later(None); 6]);
    let (outbox, mut outcomes) = script.outbox();
    outbox.submit(vec![(fresh("one", "r1"), "a".into())]);
    assert_eq!(next(&mut outcomes).await, ("one".into(), "a".into(), Ok(())));
    let tries = script.tries("a");
    assert_eq!(tries.len(), 7);
    for (n, pair) in tries.windows(2).enumerate() {
        let whole = SHORT.first.saturating_mul(1 << n).min(SHORT.most);
        // The pace of the route is the least.
        assert!(pair[1].1 - pair[0].1 >= (whole / 2).max(SHORT.pace), "{n}: {tries:?}");
    }
    // A second, two, four … five minutes, and not all at the same moment.
    for n in [0, 1, 2, 8, 9, 31, 32, u32::MAX] {
        let whole = Duration::from_secs(1_u64.checked_shl(n).unwrap_or(300).min(300));
        let all: Vec<Duration> = (0..50).map(|_| back_off(TEMPO, n)).collect();
        assert!(all.iter().all(|wait| *wait >= whole / 2 && *wait <= whole), "{n}: {all:?}");
        assert!(all.iter().any(|wait| *wait != all[0]));
    }
}

#[tokio::test]
async fn after_its_time_it_is_given_up() {
    let script = Script::default().say("a", vec![later(None); 200]);
    let (outbox, mut outcomes) = script.outbox();
    let began = Instant::now();
    outbox.submit(vec![(fresh("one", "r1"), "a".into())]);
    let (_, _, result) = next(&mut outcomes).await;
    let why = result.unwrap_err();
    assert!(why.contains("given up after") && why.ends_with("HTTP 500"), "{why}");
    // The next try would have come too late; before that it was tried.
    assert!(began.elapsed() >= SHORT.least - SHORT.most, "{:?}", began.elapsed());
    assert!(script.tries("a").len() >= 3);
    // What is old when it comes, after a long outage, still gets its chance.
    let script = Script::default().say("a", vec![later(None); 2]);
    let (outbox, mut outcomes) = script.outbox();
    outbox.submit(vec![(Notice { at: Timestamp(1), ..fresh("old", "r1") }, "a".into())]);
    assert_eq!(next(&mut outcomes).await.2, Ok(()));
}

#[tokio::test]
async fn a_refusal_is_final_for_its_rollout_and_for_no_other() {
    let script = Script::default().say("a", [Sent::Dead("HTTP 410".into())]);
    let (outbox, mut outcomes) = script.outbox();
    let to_a = |key: &str, rollout: &str| (fresh(key, rollout), "a".to_owned());
    outbox.submit(vec![to_a("one", "r1"), to_a("two", "r1"), to_a("three", "r2")]);
    assert_eq!(next(&mut outcomes).await, ("one".into(), "a".into(), Err("HTTP 410".into())));
    assert_eq!(next(&mut outcomes).await, ("two".into(), "a".into(), Err("not tried, the route is out of order: HTTP 410".into())));
    assert_eq!(next(&mut outcomes).await, ("three".into(), "a".into(), Ok(())));
    outbox.submit(vec![to_a("four", "r1")]);
    assert!(next(&mut outcomes).await.2.unwrap_err().starts_with("not tried"));
    assert_eq!(script.tries("a").iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["one", "three"]);
}

#[tokio::test]
async fn a_busy_route_waits_as_long_as_it_says_and_others_do_not() {
    let script = Script::default().say("a", [later(Some(300))]);
    let (outbox, mut outcomes) = script.outbox();
    let began = Instant::now();
    for (key, rollout, route) in [("one", "r1", "a"), ("two", "r2", "a"), ("three", "r1", "b")] {
        outbox.submit(vec![(fresh(key, rollout), route.into())]);
    }
    assert_eq!(next(&mut outcomes).await.0, "three");
    // The whole route, other rollouts included.
    assert_eq!(next(&mut outcomes).await.2, Ok(()));
    assert_eq!(next(&mut outcomes).await.2, Ok(()));
    let tries = script.tries("a");
    assert!(tries[1..].iter().all(|(_, at)| *at - began >= Duration::from_millis(300)), "{tries:?}");
    assert_eq!(tries.len(), 3);
}

#[tokio::test]
async fn one_rollout_keeps_its_order_and_does_not_hold_up_another() {
    let script = Script::default().say("a", vec![later(None); 3]);
    let (outbox, mut outcomes) = script.outbox();
    outbox.submit(vec![(fresh("raise", "r1"), "a".into()), (fresh("resolve", "r1"), "a".into())]);
    outbox.submit(vec![(fresh("other", "r2"), "a".into())]);
    let mut ends = Vec::new();
    for _ in 0..3 {
        ends.push(next(&mut outcomes).await.0);
    }
    let at = |key: &str| ends.iter().position(|k| k == key).unwrap();
    assert!(at("raise") < at("resolve"), "{ends:?}");
    assert_eq!(script.tries("a").iter().filter(|(key, _)| key == "resolve").count(), 1);
}

#[tokio::test]
async fn messages_keep_their_distance_and_the_same_one_goes_once() {
    let script = Script::default();
    let (outbox, mut outcomes) = script.outbox();
    let many: Vec<(Notice, String)> = (0..20).map(|n| (fresh(&format!("n{n}"), "r1"), "a".to_owned())).collect();
    let began = Instant::now();
    outbox.submit(many.clone());
    outbox.submit(many.clone());
    for n in 0..20 {
        assert_eq!(next(&mut outcomes).await.0, format!("n{n}"));
    }
    assert!(began.elapsed() >= SHORT.pace * 19, "{:?}", began.elapsed());
    assert_eq!(script.tries("a").len(), 20);
    // Landed: after a crash before the journal knew, it is sent again.
    outbox.submit(many[..1].to_vec());
    assert_eq!(next(&mut outcomes).await.0, "n0");
    // Two attempts under one id are two.
    outbox.submit(vec![many[0].clone(), (Notice { since: Timestamp(5), ..many[0].0.clone() }, "a".into())]);
    let (one, two) = (outcomes.recv().await.unwrap(), outcomes.recv().await.unwrap());
    assert_eq!((one.key.as_str(), two.since), ("n0", Timestamp(5)));
}

#[tokio::test]
async fn queues_have_an_end_and_unknown_routes_an_answer() {
    let script = Script::default();
    let (outbox, mut outcomes) = script.outbox();
    outbox.submit(vec![(fresh("one", "r1"), "nobody".into())]);
    assert_eq!(next(&mut outcomes).await.2, Err("controller.toml has no such route".into()));
    // Nothing runs between these: all that finds no place is refused.
    outbox.submit((0..1_100).map(|n| (fresh(&format!("n{n}"), "r1"), "a".to_owned())).collect());
    for _ in 0..100 {
        let (.., result) = loop {
            let one = next(&mut outcomes).await;
            if one.2.is_err() {
                break one;
            }
        };
        assert!(result.unwrap_err().contains("wait for this route"));
    }
}

#[tokio::test]
async fn the_real_thing_tries_again_after_a_500() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(&[&answer("500 Internal Server Error", ""), &answer("200 OK", "ok")]).await;
    let file = secret_file(dir.path(), "slack", &format!("{}/services/x", receiver.url));
    let team = notifier(&format!("[team]\nvia = \"slack\"\nurl_file = {file:?}\n"));
    let (outbox, mut outcomes) = Outbox::start(&team, Clock::starting_after(Timestamp(0)));
    outbox.submit(vec![(notice("one"), "team".into())]);
    assert_eq!(timeout(PATIENCE, next(&mut outcomes)).await.unwrap().2, Ok(()));
    assert_eq!(receiver.asked().len(), 2);
    assert_eq!(receiver.asked()[0].body, receiver.asked()[1].body);
}
