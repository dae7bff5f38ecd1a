//! Tasks: steps that run once per rollout on this host, such as a backup or a
//! migration, forward or back.
//!
//! Owns which attempt is due, what is known of each, and what is forgotten. An
//! attempt that began never begins again: one whose end was not seen is `lost`, and
//! what it left running is killed before that is said. Must not: know a component,
//! or why the controller wants a task.
//!
//! When the agent is stopped, nothing begins any more, and what runs has a few
//! seconds to end; then it is killed whole and has failed. When the agent dies, what
//! runs goes on until the next start kills it.

mod group;
mod job;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tidegate_protocol::limits::TASKS_MAX;
use tidegate_protocol::report::bounded;
use tidegate_protocol::{ComponentName, ReleaseRef, RolloutId, TaskOrder, TaskReport, TaskRun, TaskState};
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};

use self::job::{Job, component_of};
pub use self::record::{Book, BookError, Entry, Key, Record, Spawn};
use crate::error::chain;
use crate::host::Host;
use crate::tree::{TreeError, Trees};

/// Below the directory of releases; no component's name begins with a dot.
const TREES: &str = ".tasks";
/// Records on their way from the attempts.
const NEWS: usize = 16;

/// What the attempts are told and tell.
pub struct Ends {
    /// The newest list; none before the first.
    pub orders: watch::Receiver<Option<Vec<TaskOrder>>>,
    /// What is known, whole.
    pub told: watch::Sender<Option<Arc<Vec<TaskReport>>>>,
    /// Whether the agent is stopped.
    pub stop: watch::Receiver<Stop>,
}

/// Whether the agent is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It is not.
    No,
    /// Nothing begins any more; what runs has a while to end.
    Soon,
    /// It was told twice: what runs is killed.
    Now,
}

/// Runs what the newest list wants, until stopped and nothing runs any more.
pub async fn run(host: Arc<Host>, book: Book, ends: Ends) {
    let Ends { mut orders, told, mut stop } = ends;
    let (news, mut arriving) = mpsc::channel(NEWS);
    let trees = Trees::at(&host.ctx.opt_dir.join(TREES));
    let mut runner = Runner {
        host,
        book,
        trees,
        known: BTreeMap::new(),
        damaged: BTreeMap::new(),
        blind: None,
        orders: Vec::new(),
        busy: BTreeMap::new(),
        jobs: JoinSet::new(),
        serial: 0,
        stop: stop.clone(),
        news,
    };
    runner.recover().await;
    orders.mark_changed();
    loop {
        let reports = runner.reports();
        told.send_if_modified(|last| {
            let news = last.as_deref() != Some(&reports);
            if news {
                *last = Some(Arc::new(reports));
            }
            news
        });
        let stopped = *stop.borrow() > Stop::No;
        if stopped && runner.jobs.is_empty() {
            return;
        }
        tokio::select! {
            biased;
            Some(record) = arriving.recv() => runner.learned(record),
            Some(ended) = runner.jobs.join_next_with_id() => {
                // What it said last stands in the channel.
                while let Ok(record) = arriving.try_recv() {
                    runner.learned(record);
                }
                match ended {
                    Ok((id, ())) => runner.ended(id, None).await,
                    Err(error) => runner.ended(error.id(), Some(&error.to_string())).await,
                }
                if !stopped {
                    runner.arrange().await;
                }
            }
            changed = stop.changed(), if !stopped => if changed.is_err() {
                return;
            },
            changed = orders.changed(), if !stopped => {
                if changed.is_err() {
                    return;
                }
                let wanted = orders.borrow_and_update().clone();
                if let Some(wanted) = wanted {
                    runner.orders = bounded_orders(wanted);
                    runner.arrange().await;
                }
            }
        }
    }
}

/// One order for each task and way, the highest attempt of it, at most
/// [`TASKS_MAX`] of them.
fn bounded_orders(orders: Vec<TaskOrder>) -> Vec<TaskOrder> {
    let mut kept: Vec<TaskOrder> = Vec::new();
    for order in orders {
        let room = kept.len() < TASKS_MAX;
        match kept.iter_mut().find(|other| Key::of(other) == Key::of(&order)) {
            Some(other) if other.attempt < order.attempt => *other = order,
            Some(_) => {}
            None if room => kept.push(order),
            None => {
                tracing::error!(rollout = %order.rollout, index = order.index, "a task is ignored: {TASKS_MAX} are ordered already");
            }
        }
    }
    kept
}

/// An attempt under way.
struct Busy {
    order: TaskOrder,
    serial: u64,
    /// Its record says so.
    begun: bool,
    wanted: watch::Sender<bool>,
    id: Id,
}

struct Runner {
    host: Arc<Host>,
    book: Book,
    trees: Trees,
    /// Durable, but for attempts that could not begin on a disk that takes nothing.
    known: BTreeMap<Key, Record>,
    /// Records that do not read, and why.
    damaged: BTreeMap<Key, String>,
    /// Why no record reads.
    blind: Option<String>,
    orders: Vec<TaskOrder>,
    /// One attempt of a task at a time: it never runs while it is undone.
    busy: BTreeMap<(RolloutId, u16), Busy>,
    jobs: JoinSet<()>,
    serial: u64,
    stop: watch::Receiver<Stop>,
    news: mpsc::Sender<Record>,
}

impl Runner {
    /// Reads the records. Of one that says `running` nothing may run any more before
    /// it is `lost`.
    async fn recover(&mut self) {
        let (book, boot_id) = (self.book.clone(), self.host.ctx.boot_id.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut all = book.read_all()?;
            for record in all.iter_mut().filter_map(|(_, record)| record.as_mut().ok()) {
                if record.state.is_final() {
                    continue;
                }
                tracing::warn!(rollout = %record.rollout, index = record.index, what = record.what.word(), "a task ran when the agent went down; its end is not known");
                let left = record.spawn.take().map(|spawn| group::clear(&spawn, &boot_id)).unwrap_or_default();
                let hint = if left.is_empty() { String::new() } else { ", and of what it started something cannot be killed".to_owned() };
                record.state = TaskState::Lost;
                record.note = bounded(&format!("the agent or the host went down while it ran; how far it came is not known{hint}"));
                if let Err(error) = book.write(record) {
                    // The next start says the same.
                    tracing::error!(error = chain(&error), "that a task was lost was not recorded");
                }
            }
            Ok::<_, BookError>(all)
        });
        match read.await {
            Ok(Ok(all)) => {
                for (key, record) in all {
                    match record {
                        Ok(record) => {
                            self.serial = self.serial.max(record.serial);
                            self.known.insert(key, record);
                        }
                        Err(error) => {
                            let text = chain(&error);
                            tracing::error!(error = text, "a task of this host will not be run again by itself");
                            self.damaged.insert(key, text);
                        }
                    }
                }
            }
            Ok(Err(error)) => self.blind = Some(chain(&error)),
            Err(error) => self.blind = Some(error.to_string()),
        }
        if let Some(error) = &self.blind {
            tracing::error!(error, "nothing is known of earlier tasks, so none is run");
        }
    }

    fn learned(&mut self, record: Record) {
        let of = (record.rollout.clone(), record.index);
        if let Some(busy) = self.busy.get_mut(&of).filter(|busy| busy.serial == record.serial) {
            busy.begun = true;
        }
        self.known.insert(record.key(), record);
    }

    /// An attempt is over; `died` if it broke down in the middle.
    async fn ended(&mut self, id: Id, died: Option<&str>) {
        let of = self.busy.iter().find(|(_, busy)| busy.id == id).map(|(of, _)| of.clone());
        let Some(busy) = of.and_then(|of| self.busy.remove(&of)) else { return };
        let Some(why) = died else { return };
        tracing::error!(error = why, rollout = %busy.order.rollout, index = busy.order.index, "an attempt at a task broke down");
        let mut record = Record::new(&busy.order, busy.serial, TaskState::Lost, bounded(&format!("the agent broke down: {why}")));
        if let Some(known) = self.known.get(&record.key()).filter(|known| known.serial == record.serial) {
            record.started_at_unix_ms = known.started_at_unix_ms;
        }
        self.keep(record).await;
    }

    /// Records something that nothing ran for.
    async fn keep(&mut self, record: Record) {
        let (book, written) = (self.book.clone(), record.clone());
        let written = tokio::task::spawn_blocking(move || book.write(&written)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(error = chain(&error), "a task's record was not kept");
        }
        self.known.insert(record.key(), record);
    }

    /// Calls back what is not wanted and has not begun, and begins what is due.
    async fn arrange(&mut self) {
        for busy in self.busy.values() {
            let wanted = self.orders.contains(&busy.order);
            busy.wanted.send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
        }
        self.collect().await;
        for order in self.orders.clone() {
            let key = Key::of(&order);
            let of = (order.rollout.clone(), order.index);
            if self.busy.contains_key(&of) || self.known.get(&key).is_some_and(|known| known.attempt >= order.attempt) {
                continue;
            }
            if let Some(why) = self.damaged.remove(&key).or_else(|| self.blind.clone()) {
                self.serial += 1;
                let note = format!("{why}: whether it ran is not known");
                self.keep(Record::new(&order, self.serial, TaskState::Lost, bounded(&note))).await;
                continue;
            }
            let undone = |other: &TaskOrder| other.rollout == order.rollout && other.index == order.index && other.what == TaskRun::Undo;
            if order.what == TaskRun::Run && self.orders.iter().any(undone) {
                tracing::warn!(rollout = %order.rollout, index = order.index, "a task does not begin: it is to be undone");
                continue;
            }
            if self.make_room(&key).await {
                self.begin(order);
            }
        }
    }

    fn begin(&mut self, order: TaskOrder) {
        self.serial += 1;
        let (wanted, still_wanted) = watch::channel(true);
        let job = Job {
            host: self.host.clone(),
            book: self.book.clone(),
            trees: self.trees.clone(),
            order: order.clone(),
            serial: self.serial,
            wanted: still_wanted,
            stop: self.stop.clone(),
            news: self.news.clone(),
        };
        let id = self.jobs.spawn(job.run()).id();
        self.busy.insert((order.rollout.clone(), order.index), Busy { order, serial: self.serial, begun: false, wanted, id });
    }

    /// Forgets the oldest of those that nobody asks for, until there is room for one
    /// more. False if there is none.
    async fn make_room(&mut self, key: &Key) -> bool {
        loop {
            let keys: BTreeSet<Key> =
                self.known.keys().cloned().chain(self.busy.values().map(|busy| Key::of(&busy.order))).chain([key.clone()]).collect();
            if keys.len() <= TASKS_MAX {
                return true;
            }
            let ordered = |key: &Key| self.orders.iter().any(|order| Key::of(order) == *key);
            let runs = |key: &Key| self.busy.contains_key(&(key.rollout.clone(), key.index));
            let old = self.known.iter().filter(|(key, known)| known.state.is_final() && !ordered(key) && !runs(key));
            let Some(oldest) = old.min_by_key(|(_, known)| known.serial).map(|(key, _)| key.clone()) else {
                tracing::error!(rollout = %key.rollout, index = key.index, "a task waits: this host has {TASKS_MAX} under way or asked for");
                return false;
            };
            let (book, gone) = (self.book.clone(), oldest.clone());
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || book.forget(&gone)).await {
                tracing::warn!(error = chain(&error), "an old task's record was not removed");
            }
            self.known.remove(&oldest);
        }
    }

    /// Removes trees that no order wants. Nothing begins meanwhile.
    async fn collect(&self) {
        let mut keep: BTreeMap<String, Vec<ReleaseRef>> = BTreeMap::new();
        for order in self.orders.iter().chain(self.busy.values().map(|busy| &busy.order)) {
            keep.entry(component_of(order.index)).or_default().push(order.release.clone());
        }
        let trees = self.trees.clone();
        let done = tokio::task::spawn_blocking(move || collect(&trees, &keep)).await;
        if let Ok(Err(error)) = done {
            tracing::warn!(error = chain(&error), "files of old tasks were not removed");
        }
    }

    /// What is known, whole, at most [`TASKS_MAX`].
    fn reports(&self) -> Vec<TaskReport> {
        let mut all: BTreeMap<Key, TaskReport> = self.known.iter().map(|(key, record)| (key.clone(), record.report())).collect();
        for busy in self.busy.values().filter(|busy| !busy.begun) {
            let staging = Record::new(&busy.order, busy.serial, TaskState::Staging, String::new());
            all.insert(staging.key(), staging.report());
        }
        all.into_values().take(TASKS_MAX).collect()
    }
}

/// Blocks.
fn collect(trees: &Trees, keep: &BTreeMap<String, Vec<ReleaseRef>>) -> Result<(), TreeError> {
    let io = |step: &'static str, path: PathBuf| move |source| TreeError::Io { step, path, source };
    let entries = match std::fs::read_dir(trees.root()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io("read the directory", trees.root().to_owned()))?,
    };
    for entry in entries {
        let name = entry.map_err(io("read the directory", trees.root().to_owned()))?.file_name();
        let Some(name) = name.to_str().and_then(|name| name.parse::<ComponentName>().ok()) else { continue };
        let wanted = keep.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
        trees.collect(&name, wanted)?;
        if wanted.is_empty() {
            // Empty now, unless someone put something there.
            let dir = trees.root().join(name.as_str());
            let _ = std::fs::remove_dir(dir.join("releases")).and_then(|()| std::fs::remove_dir(dir));
        }
    }
    Ok(())
}

/// What is recorded on this host, for `status`. Blocks.
#[must_use]
pub fn recorded(book: &Book) -> Vec<Record> {
    book.read_all().unwrap_or_default().into_iter().filter_map(|(_, record)| record.ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, scratch};
    use crate::host::tests::host;
    use tidegate_protocol::{Digest, Millis};

    fn order(rollout: usize, attempt: u32) -> TaskOrder {
        TaskOrder {
            rollout: format!("r-{rollout}").parse().unwrap(),
            index: 0,
            release: ReleaseRef { id: "shop@2.1.0".parse().unwrap(), manifest: Digest::of(b"m") },
            what: TaskRun::Run,
            attempt,
            deadline: Millis::from_secs(60),
        }
    }

    fn runner(dir: &std::path::Path, known: usize) -> Runner {
        let book = Book::new(dir.join("tasks"));
        let mut runner = Runner {
            trees: Trees::at(&dir.join("opt/.tasks")),
            host: host(context(dir)),
            book: book.clone(),
            known: BTreeMap::new(),
            damaged: BTreeMap::new(),
            blind: None,
            orders: Vec::new(),
            busy: BTreeMap::new(),
            jobs: JoinSet::new(),
            serial: 0,
            stop: watch::channel(Stop::No).1,
            news: mpsc::channel(NEWS).0,
        };
        for i in 0..known {
            // The youngest has the lowest name.
            let record = Record::new(&order(i, 1), (TASKS_MAX - i) as u64, TaskState::Done, String::new());
            book.write(&record).unwrap();
            runner.known.insert(record.key(), record);
        }
        runner
    }

    #[tokio::test]
    async fn the_oldest_that_nobody_asks_for_is_forgotten_for_a_new_one() {
        let dir = scratch();
        let mut runner = runner(dir.path(), TASKS_MAX);
        let (oldest, next) = (order(TASKS_MAX - 1, 1), order(TASKS_MAX - 2, 1));
        runner.orders = vec![oldest.clone()];
        assert!(runner.make_room(&Key::of(&order(1, 2))).await, "another attempt takes no room");
        assert_eq!(runner.known.len(), TASKS_MAX);
        assert!(runner.make_room(&Key::of(&order(99, 1))).await);
        let on_disk = |runner: &Runner| runner.book.read_all().unwrap().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(on_disk(&runner).len(), TASKS_MAX - 1);
        assert!(on_disk(&runner).contains(&Key::of(&oldest)) && !on_disk(&runner).contains(&Key::of(&next)));
        // All of them are asked for: nothing is forgotten.
        runner.known.insert(Key::of(&next), Record::new(&next, 1, TaskState::Done, String::new()));
        runner.orders = (0..TASKS_MAX).map(|i| order(i, 1)).collect();
        assert!(!runner.make_room(&Key::of(&order(99, 1))).await);
        assert_eq!(runner.known.len(), TASKS_MAX);
    }

    #[tokio::test]
    async fn without_readable_records_nothing_runs() {
        let dir = scratch();
        let mut runner = runner(dir.path(), 0);
        // Not a directory.
        std::fs::write(dir.path().join("tasks"), "").unwrap();
        runner.recover().await;
        runner.orders = vec![order(1, 1)];
        runner.arrange().await;
        assert!(runner.busy.is_empty());
        let reports = runner.reports();
        assert_eq!(reports.iter().map(|report| report.state).collect::<Vec<_>>(), [TaskState::Lost]);
        assert!(reports[0].note.contains("not known"), "{}", reports[0].note);
    }

    #[test]
    fn of_one_task_the_highest_attempt_is_ordered_and_of_all_not_too_many() {
        let orders = bounded_orders(vec![order(1, 2), order(1, 1), order(2, 1), order(2, 3)]);
        assert_eq!(orders.iter().map(|order| order.attempt).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(bounded_orders((0..2 * TASKS_MAX).map(|i| order(i, 1)).collect()).len(), TASKS_MAX);
    }
}
