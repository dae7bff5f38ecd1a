//! What is still to be sent, by route and rollout: in order, again and again until
//! it is taken, refused for good, or a day old.
//!
//! In memory only: the journal says what has no outcome yet, and whoever holds it
//! submits that again after a restart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_protocol::{RolloutId, Timestamp};
use tidegate_rollout::notices::{GIVE_UP_AFTER, Notice};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Notifier;
use super::send::Sent;
use crate::clock::Clock;

/// Waiting for one route; more are refused.
const QUEUE_MAX: usize = 1_000;
/// Outcomes that nobody took yet.
const OUTCOMES_MAX: usize = 256;

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tempo {
    /// Between two messages on one route.
    pub(super) pace: Duration,
    /// Before the second try.
    pub(super) first: Duration,
    /// Between two tries, at most.
    pub(super) most: Duration,
    /// Older is given up.
    pub(super) give_up: Duration,
    /// However old it is, it is tried for so long.
    pub(super) least: Duration,
}

/// Slack takes about one message a second.
pub(super) const TEMPO: Tempo = Tempo {
    pace: Duration::from_secs(1),
    first: Duration::from_secs(1),
    most: Duration::from_secs(300),
    give_up: Duration::from_millis(GIVE_UP_AFTER.0),
    least: Duration::from_secs(600),
};

/// Rollouts for which a route is remembered as out of order.
const DEAD_MAX: usize = 256;

/// What became of a notice for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whose.
    pub rollout: RolloutId,
    /// Which: [`Notice::key`].
    pub key: String,
    /// When the rollout was submitted ([`Notice::since`]): tells an id that was
    /// refused and used again.
    pub since: Timestamp,
    /// Over which route.
    pub route: String,
    /// It was taken, or what went wrong; one line without secrets.
    pub result: Result<(), String>,
}

/// One notice on its way over one route.
type Id = (RolloutId, Timestamp, String, String);

type Flying = Arc<Mutex<BTreeSet<Id>>>;

struct Job {
    notice: Notice,
    until: Instant,
}

/// Takes what is to be sent; cheap to clone. Sending ends when the last one is
/// dropped.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// By route.
    queues: BTreeMap<String, mpsc::Sender<Job>>,
    /// For routes that controller.toml does not have.
    other: mpsc::Sender<(Notice, String, &'static str)>,
    flying: Flying,
    clock: Clock,
    tempo: Tempo,
}

impl Outbox {
    /// Starts one task for each route, on the present runtime. The receiver must be
    /// drained: a full one stops the sending.
    #[must_use]
    pub fn start(notifier: &Notifier, clock: Clock) -> (Self, mpsc::Receiver<Outcome>) {
        let routes = notifier.routes.clone();
        tokio::task::spawn_blocking(move || {
            for (route, file) in routes.exposed() {
                tracing::warn!(route, file, "every user of this machine can read the secret of a notification route: chmod 600");
            }
        });
        let names = notifier.known().into_keys().collect();
        let notifier = notifier.clone();
        Self::with(names, clock, TEMPO, move |route, notice| {
            let notifier = notifier.clone();
            async move { notifier.send(&route, &notice).await }
        })
    }

    pub(super) fn with<F>(
        routes: Vec<String>,
        clock: Clock,
        tempo: Tempo,
        send: impl Fn(String, Notice) -> F + Clone + Send + 'static,
    ) -> (Self, mpsc::Receiver<Outcome>)
    where
        F: Future<Output = Sent> + Send + 'static,
    {
        let (outcomes, received) = mpsc::channel(OUTCOMES_MAX);
        let flying = Flying::default();
        let mut queues = BTreeMap::new();
        for route in routes {
            let (queue, jobs) = mpsc::channel(QUEUE_MAX);
            let (name, send) = (route.clone(), send.clone());
            let worker = Worker {
                route: route.clone(),
                outcomes: outcomes.clone(),
                flying: flying.clone(),
                lanes: BTreeMap::new(),
                dead: BTreeMap::new(),
                tempo,
            };
            tokio::spawn(worker.run(jobs, move |notice| send(name.clone(), notice)));
            queues.insert(route, queue);
        }
        let (other, mut refused) = mpsc::channel::<(Notice, String, &'static str)>(QUEUE_MAX);
        let landed = flying.clone();
        tokio::spawn(async move {
            while let Some((notice, route, why)) = refused.recv().await {
                finish(&outcomes, &landed, notice, route, Err(why.to_owned())).await;
            }
        });
        (Self { queues, other, flying, clock, tempo }, received)
    }

    /// Sends what is durable in the journal; never waits. The same (rollout, key,
    /// route) is sent once while it is on its way.
    pub fn submit(&self, notices: Vec<(Notice, String)>) {
        for (notice, route) in notices {
            let id = id_of(&notice, &route);
            if !self.flying.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone()) {
                continue;
            }
            let age = self.clock.now().since(notice.at);
            let left = self.tempo.give_up.saturating_sub(Duration::from_millis(age.0)).max(self.tempo.least);
            let refused = match self.queues.get(&route) {
                None => Some((notice, "controller.toml has no such route")),
                Some(queue) => {
                    let sent = queue.try_send(Job { notice, until: Instant::now() + left });
                    sent.err().map(|e| (e.into_inner().notice, "too many messages wait for this route"))
                }
            };
            let Some((notice, why)) = refused else { continue };
            if self.other.try_send((notice, route.clone(), why)).is_err() {
                // Said by the journal's silence: it is submitted again after a restart.
                tracing::error!(route, key = id.2, "a notification found no place to wait");
                self.flying.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            }
        }
    }
}

fn id_of(notice: &Notice, route: &str) -> Id {
    (notice.rollout.clone(), notice.since, notice.key.clone(), route.to_owned())
}

async fn finish(outcomes: &mpsc::Sender<Outcome>, flying: &Flying, notice: Notice, route: String, result: Result<(), String>) {
    let id = id_of(&notice, &route);
    let Notice { rollout, key, since, .. } = notice;
    // Nobody hears it any more: the controller ends.
    let _ = outcomes.send(Outcome { rollout, key, since, route, result }).await;
    flying.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
}

/// The notices of one rollout, in order.
struct Lane {
    jobs: VecDeque<Job>,
    tries: u32,
    due: Instant,
}

struct Worker {
    route: String,
    outcomes: mpsc::Sender<Outcome>,
    flying: Flying,
    lanes: BTreeMap<RolloutId, Lane>,
    /// Why, by rollout.
    dead: BTreeMap<RolloutId, String>,
    tempo: Tempo,
}

impl Worker {
    async fn run<F>(mut self, mut jobs: mpsc::Receiver<Job>, send: impl Fn(Notice) -> F)
    where
        F: Future<Output = Sent>,
    {
        let mut free_at = Instant::now();
        loop {
            let next = self.lanes.iter().min_by_key(|(_, lane)| lane.due).map(|(id, lane)| (id.clone(), lane.due.max(free_at)));
            let Some((id, due)) = next else {
                match jobs.recv().await {
                    Some(job) => self.queue(job).await,
                    None => return,
                }
                continue;
            };
            tokio::select! {
                biased;
                job = jobs.recv() => match job {
                    Some(job) => {
                        self.queue(job).await;
                        continue;
                    }
                    None => return,
                },
                () = sleep_until(due) => {}
            }
            let Some(notice) = self.lanes.get(&id).and_then(|lane| lane.jobs.front()).map(|job| job.notice.clone()) else {
                self.lanes.remove(&id);
                continue;
            };
            let sent = send(notice).await;
            let now = Instant::now();
            free_at = now + self.tempo.pace;
            match sent {
                Sent::Taken => self.landed(&id, Ok(())).await,
                Sent::Dead(why) => self.give_up(&id, why).await,
                Sent::Later { why, after } => {
                    if let Some(after) = after {
                        free_at = now + after;
                    }
                    self.later(&id, now, why, after).await;
                }
            }
        }
    }

    async fn queue(&mut self, job: Job) {
        let rollout = job.notice.rollout.clone();
        if let Some(why) = self.dead.get(&rollout) {
            let why = format!("not tried, the route is out of order: {why}");
            finish(&self.outcomes, &self.flying, job.notice, self.route.clone(), Err(why)).await;
            return;
        }
        let waiting: usize = self.lanes.values().map(|lane| lane.jobs.len()).sum();
        if waiting >= QUEUE_MAX {
            let why = format!("{waiting} messages wait for this route already");
            finish(&self.outcomes, &self.flying, job.notice, self.route.clone(), Err(why)).await;
            return;
        }
        let lane = self.lanes.entry(rollout).or_insert_with(|| Lane { jobs: VecDeque::new(), tries: 0, due: Instant::now() });
        lane.jobs.push_back(job);
    }

    /// The first of a lane is over.
    async fn landed(&mut self, id: &RolloutId, result: Result<(), String>) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        let job = lane.jobs.pop_front();
        (lane.tries, lane.due) = (0, Instant::now());
        if lane.jobs.is_empty() {
            self.lanes.remove(id);
        }
        if let Some(job) = job {
            finish(&self.outcomes, &self.flying, job.notice, self.route.clone(), result).await;
        }
    }

    async fn later(&mut self, id: &RolloutId, now: Instant, why: String, after: Option<Duration>) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        let wait = after.unwrap_or_else(|| back_off(self.tempo, lane.tries));
        lane.tries = lane.tries.saturating_add(1);
        lane.due = now + wait;
        let (tries, due) = (lane.tries, lane.due);
        if tries == 1 {
            tracing::info!(route = self.route, rollout = %id, why, "a notification is not taken yet; it is tried again");
        }
        // This one is too late now; those behind it have their own time.
        if lane.jobs.front().is_some_and(|job| due > job.until) {
            self.landed(id, Err(format!("given up after {tries} tries, the last one: {why}"))).await;
        }
    }

    /// Nothing of this rollout goes over this route any more.
    async fn give_up(&mut self, id: &RolloutId, why: String) {
        tracing::warn!(route = self.route, rollout = %id, why, "a notification route is out of order");
        if self.dead.len() >= DEAD_MAX {
            self.dead.pop_first();
        }
        let rest = self.lanes.remove(id).map(|lane| lane.jobs).unwrap_or_default();
        for (place, job) in rest.into_iter().enumerate() {
            let why = if place == 0 { why.clone() } else { format!("not tried, the route is out of order: {why}") };
            finish(&self.outcomes, &self.flying, job.notice, self.route.clone(), Err(why)).await;
        }
        self.dead.insert(id.clone(), why);
    }
}

/// Doubling, and spread over its second half, so that not all knock at once.
pub(super) fn back_off(tempo: Tempo, tries: u32) -> Duration {
    let whole = tempo.first.saturating_mul(1_u32.checked_shl(tries).unwrap_or(u32::MAX)).min(tempo.most);
    let mut random = [0_u8; 2];
    let share = getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX));
    whole.mul_f64(0.5 + share / 2.0)
}
