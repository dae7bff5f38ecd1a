//! Metrics servers that the controller itself asks: Prometheus, Alertmanager.
//!
//! Owns: when something is fetched, how many requests run, how long each may take,
//! and the sentence that says why one failed. Must not: know what a number means
//! for a rollout; results go to the core as they are.

mod alertmanager;
mod base;
mod http;
mod prometheus;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::RolloutId;
use tidegate_rollout::{Fetch, FetchFrom, Fetched};
use tokio::sync::watch;
use tokio::task::{Id, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

pub use base::{BadBase, Base};
pub use http::{Access, Auth};

use crate::core::{CoreHandle, Input};
pub(crate) use http::{Http, HttpError, Reply};
use prometheus::Trouble;

/// Requests in flight.
const IN_FLIGHT_MAX: usize = 16;
/// Of one fetch: no longer than its interval, within these.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// Between two fetches of the same thing, whatever was asked.
const EVERY_MIN: Duration = Duration::from_millis(200);
/// A fetch whose question changes (other hosts) is asked anew at once, but not
/// more often than this.
const CHANGED_AGAIN: Duration = Duration::from_secs(1);
/// Longest text of others in a sentence, characters.
const EXCERPT_CHARS_MAX: usize = 300;

/// Answers over this are read off the runtime, bytes.
const READ_INLINE_MAX: usize = 64 * 1024;

/// A fetch of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For whom.
    pub rollout: RolloutId,
    /// What.
    pub fetch: Fetch,
}

/// Speaks to metrics servers; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sources {
    http: Arc<Http>,
}

impl Sources {
    /// With what controller.toml says about each server. Others are called only on
    /// loopback.
    #[must_use]
    pub fn new(places: impl IntoIterator<Item = (Base, Access)>) -> Self {
        Self { http: Arc::new(Http::new(places)) }
    }

    /// Fetches once.
    ///
    /// # Errors
    /// One sentence: which server, which query, what went wrong.
    pub async fn fetch(&self, from: &FetchFrom, within: Duration) -> Result<Fetched, String> {
        let (FetchFrom::Prometheus { url, .. } | FetchFrom::Alertmanager { url, .. }) = from;
        let base: Base = url.parse().map_err(|e: BadBase| e.to_string())?;
        let answered = async {
            match from {
                FetchFrom::Prometheus { query, samples, .. } => self.value(&base, query, samples.as_deref()).await,
                FetchFrom::Alertmanager { matchers, .. } => alertmanager::alerts(&self.http, &base, matchers).await.map(Fetched::Alerts),
            }
        };
        timeout(within, answered).await.unwrap_or_else(|_| {
            let what = match from {
                FetchFrom::Prometheus { query, .. } => format!("the query `{}`", excerpt(query)),
                FetchFrom::Alertmanager { .. } => "the list of alerts".to_owned(),
            };
            Err(format!("{base}: {what} was not answered within {} ms", within.as_millis()))
        })
    }

    /// The status that a page answers with. A redirect is an answer; it is not
    /// followed.
    ///
    /// # Errors
    /// One sentence: why there is none.
    pub async fn answers(&self, url: &str, within: Duration) -> Result<u16, String> {
        let page = url.split('#').next().unwrap_or_default();
        let (place, query) = page.split_once('?').map_or((page, None), |(place, query)| (place, Some(query)));
        let base: Base = place.parse().map_err(|e: BadBase| e.to_string())?;
        match timeout(within, self.http.open(&base, query)).await {
            Ok(Ok(reply)) => Ok(reply.status.as_u16()),
            Ok(Err(HttpError::Redirect { status, .. })) => Ok(status),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {} ms", within.as_millis())),
        }
    }

    async fn value(&self, base: &Base, query: &str, samples: Option<&str>) -> Result<Fetched, String> {
        let samples = match samples {
            None => None,
            Some(query) => match prometheus::query(&self.http, base, query).await.map_err(Trouble::text)? {
                count if count >= 0.0 => Some(whole(count)),
                count => {
                    return Err(format!("{base}: the query `{}` gives {count}, and samples are never fewer than none", excerpt(query)));
                }
            },
        };
        match prometheus::query(&self.http, base, query).await {
            Ok(value) => Ok(Fetched::Value { value, samples }),
            // Nothing to divide by where there was no traffic is no error: too few samples.
            Err(Trouble::Nan(_)) if samples == Some(0) => Ok(Fetched::Value { value: 0.0, samples }),
            Err(trouble) => Err(trouble.text()),
        }
    }
}

/// Not negative; increases that Prometheus extrapolates are not whole.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates, and it is not negative")]
fn whole(count: f64) -> u64 {
    count.round() as u64
}

/// How long one fetch may take.
#[must_use]
pub fn timeout_of(fetch: &Fetch) -> Duration {
    Duration::from_millis(fetch.every.0).clamp(TIMEOUT_MIN, TIMEOUT_MAX)
}

/// One fetch with its timer.
struct Job {
    wanted: Wanted,
    due: Instant,
    asked_at: Option<Instant>,
    /// The task that fetches; tells an answer to an older question, too.
    running: Option<Id>,
}

impl Job {
    /// The same thing, whatever the present question.
    fn same_place(&self, other: &Wanted) -> bool {
        let (a, b) = (&self.wanted, other);
        a.rollout == b.rollout && a.fetch.metric == b.fetch.metric && a.fetch.group == b.fetch.group
    }
}

/// Keeps fetching what is wanted until the core ends. Results go to the core.
pub async fn run(sources: Sources, core: CoreHandle, wanted: watch::Receiver<Vec<Wanted>>) {
    let fetch = move |fetch: Fetch| {
        let sources = sources.clone();
        async move { sources.fetch(&fetch.from, timeout_of(&fetch)).await }
    };
    keep(fetch, core, wanted).await;
}

async fn keep<F>(fetch: impl Fn(Fetch) -> F, core: CoreHandle, mut wanted: watch::Receiver<Vec<Wanted>>)
where
    F: Future<Output = Result<Fetched, String>> + Send + 'static,
{
    let mut jobs: Vec<Job> = Vec::new();
    let mut flying: JoinSet<Result<Fetched, String>> = JoinSet::new();
    loop {
        while flying.len() < IN_FLIGHT_MAX {
            let now = Instant::now();
            let Some(job) = jobs.iter_mut().filter(|j| j.running.is_none() && j.due <= now).min_by_key(|j| j.due) else { break };
            let task = flying.spawn(fetch(job.wanted.fetch.clone()));
            (job.running, job.asked_at) = (Some(task.id()), Some(now));
        }
        let next = jobs.iter().filter(|j| j.running.is_none()).map(|j| j.due).min().filter(|_| flying.len() < IN_FLIGHT_MAX);
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = wanted.borrow_and_update().clone();
                jobs = replaced(std::mem::take(&mut jobs), now);
            }
            Some(done) = flying.join_next_with_id() => {
                // One that ended early gave no number, like any other that failed.
                let (id, result) = done.unwrap_or_else(|e| (e.id(), Err(format!("a fetch ended early, a defect of Tidegate: {}", chain(&e)))));
                // An answer to what is not asked any more is of no use.
                let Some(job) = jobs.iter_mut().find(|j| j.running == Some(id)) else { continue };
                job.running = None;
                let every = Duration::from_millis(job.wanted.fetch.every.0).max(EVERY_MIN);
                job.due = job.asked_at.map_or_else(Instant::now, |at| at + every);
                if let Err(error) = &result {
                    tracing::debug!(rollout = %job.wanted.rollout, metric = job.wanted.fetch.metric, error, "a fetch failed");
                }
                let Wanted { rollout, fetch } = job.wanted.clone();
                let input = Input::Fetched { rollout, metric: fetch.metric, group: fetch.group, result };
                if core.send(input).await.is_err() {
                    return;
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

/// The jobs of a new list: equal fetches keep their timers, changed ones are due.
fn replaced(mut old: Vec<Job>, wanted: Vec<Wanted>) -> Vec<Job> {
    let now = Instant::now();
    let mut jobs = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        if let Some(at) = old.iter().position(|j| j.wanted == wanted) {
            jobs.push(old.swap_remove(at));
            continue;
        }
        let asked_at = old.iter().filter(|j| j.same_place(&wanted)).filter_map(|j| j.asked_at).max();
        let due = asked_at.map_or(now, |at| now.max(at + CHANGED_AGAIN));
        jobs.push(Job { wanted, due, asked_at, running: None });
    }
    jobs
}

/// Reads an answer; `Err` when the reading itself ended early.
async fn read_off<T: Send + 'static>(reply: Reply, read: impl FnOnce(&Reply) -> T + Send + 'static) -> Result<T, String> {
    if reply.body.len() <= READ_INLINE_MAX {
        return Ok(read(&reply));
    }
    spawn_blocking(move || read(&reply)).await.map_err(|e| format!("the reading of an answer ended early: {}", chain(&e)))
}

/// Others' text for one line: bounded, without control characters.
pub(crate) fn excerpt(text: &str) -> String {
    let mut chars = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut out: String = chars.by_ref().take(EXCERPT_CHARS_MAX).collect();
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

/// An error and what led to it, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        next = error.source();
    }
    excerpt(&out)
}

#[cfg(test)]
mod tests;
