//! What the controller wants measured beside the services of this host, and what
//! was seen.
//!
//! Owns the observers: one task per source, started and ended as the newest list
//! of watches says; those that are equal go on. Must not: judge a reading, or touch
//! a service. What is counted begins at zero with each new main process, so that
//! what is told with `since_unix_ms` at or after a process's start is its own.

mod bench;
mod board;
mod exposition;
mod follow;
mod gather;
mod journal;
mod probe;
mod rebase;
mod rounds;
mod scrape;
mod signature;
mod subject;
mod tally;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::{Samples, Watch};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use self::bench::Bench;
use self::board::{Board, Teller};
use self::subject::Subject;
use self::work::{Work, works};
use crate::host::Host;
use crate::slot::Slot;

pub use self::subject::ProgressOf;

/// Ends its task with itself.
struct Leash(JoinHandle<()>);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The observers of one agent.
struct Observatory {
    host: Arc<Host>,
    progress: Arc<ProgressOf>,
    board: Arc<Board>,
    subjects: BTreeMap<Slot, (watch::Receiver<Subject>, Leash)>,
    running: Vec<(Work, Leash)>,
}

/// Measures what the newest list of watches wants and hands on what was seen, until
/// dropped. `progress` says how far a slot's swap has come.
pub async fn run(
    host: Arc<Host>,
    progress: Arc<ProgressOf>,
    mut watches: watch::Receiver<Vec<Watch>>,
    samples: watch::Sender<Option<Arc<Vec<Samples>>>>,
) {
    let board = Arc::new(Board::default());
    let mut observatory = Observatory { host, progress, board: board.clone(), subjects: BTreeMap::new(), running: Vec::new() };
    watches.mark_changed();
    loop {
        let due = board.due();
        tokio::select! {
            changed = watches.changed() => {
                if changed.is_err() {
                    // The agent ends; whoever ends it drops this.
                    return std::future::pending().await;
                }
                let wanted = watches.borrow_and_update().clone();
                observatory.arrange(wanted);
                if board.due().is_none() {
                    samples.send_replace(None);
                }
            }
            () = board.news.notified() => {}
            () = until(due) => {
                samples.send_replace(Some(Arc::new(board.samples())));
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Observatory {
    /// Ends what is not wanted any more and begins what is new.
    fn arrange(&mut self, watches: Vec<Watch>) {
        let wanted = works(watches);
        self.running.retain(|(work, _)| wanted.iter().any(|w| w.works.contains(work)));
        self.subjects.retain(|slot, _| wanted.iter().any(|w| w.slot == *slot));
        let goes_on = |running: &[(Work, Leash)], metric: &str, works: &[Work]| {
            works.iter().any(|work| work.metrics().contains(&metric) && running.iter().any(|(other, _)| other == work))
        };
        let posts = wanted.iter().map(|w| board::Wanted {
            slot: w.slot.clone(),
            every: w.every,
            metrics: w.metrics.iter().map(|metric| (metric.clone(), goes_on(&self.running, metric, &w.works))).collect(),
        });
        self.board.arrange(posts.collect());
        for wanted in wanted {
            for work in wanted.works {
                if self.running.iter().all(|(other, _)| *other != work) {
                    let leash = self.begin(&wanted.slot, wanted.every, &work);
                    self.running.push((work, leash));
                }
            }
        }
    }

    fn begin(&mut self, slot: &Slot, every: Duration, work: &Work) -> Leash {
        let subject = match self.subjects.get(slot) {
            Some((subject, _)) => subject.clone(),
            None => {
                let (show, subject) = watch::channel(Subject::default());
                let looks = subject::look(self.host.clone(), self.progress.clone(), slot.clone(), show);
                self.subjects.insert(slot.clone(), (subject.clone(), Leash(tokio::spawn(looks))));
                subject
            }
        };
        let bench = Bench::new(self.host.ctx.clone(), self.host.services.clone(), subject, every);
        tracing::debug!(%slot, metrics = ?work.metrics(), "observer begins");
        let teller = |metric: &str| Teller::new(self.board.clone(), slot.clone(), metric.to_owned());
        Leash(tokio::spawn(work.clone().run(bench, &teller)))
    }
}

#[cfg(test)]
mod tests;
