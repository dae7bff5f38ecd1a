//! Drives the machines: one task per slot (a component, or one side of it), which
//! performs what its machine asks for and tells it what happened.
//!
//! Owns: the order persist → effect, timers on a clock that counts suspend,
//! calling an operation back. Must not: decide anything about a swap.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_protocol::limits::COMPONENTS_MAX;
use tidegate_protocol::report::{Failure, Progress};
use tidegate_protocol::{Assignment, Cause, Generation, Phase, SwitchOrder, Timestamp};
use tidegate_swap::{Action, Event, Machine, Op, OpId, Outcome, Record, State, Step};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::error::{chain, failure};
use crate::failpoint;
use crate::host::Host;
use crate::ledger;
use crate::ops;
use crate::service::{since_boot, unix_ms};
use crate::slot::Slot;
use crate::switch::{SwitchSeen, Switches};
use crate::work::{Counters, Leash, scope};

/// Longest sleep on the runtime's clock, which stands still in suspend.
const SLICE: Duration = Duration::from_secs(1);

/// What a slot's task shows of it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// As the machine says.
    pub progress: Progress,
    /// Durable; none when it could not be read, and then nothing is done.
    pub record: Option<Record>,
    /// The newest assignment, even if nothing can be done about it.
    pub generation: Generation,
    /// Why that generation failed or goes back, or why nothing can be done.
    pub failure: Option<Failure>,
}

/// One slot's task, from outside.
struct Handle {
    assign: watch::Sender<Option<Assignment>>,
    snapshot: watch::Receiver<Snapshot>,
    counters: Arc<Counters>,
}

/// All components of the host, their sides and their switches.
pub struct Driver {
    host: Arc<Host>,
    handles: BTreeMap<Slot, Handle>,
    switches: Switches,
    tasks: JoinSet<()>,
    changed: Arc<Notify>,
}

/// One slot as the report sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which.
    pub slot: Slot,
    /// What its task shows.
    pub snapshot: Snapshot,
    /// Verified while staging, bytes.
    pub staged_bytes: u64,
    /// Over the wire, bytes.
    pub fetched_bytes: u64,
}

impl Driver {
    /// No component yet. `changed` is told of everything the controller should see.
    #[must_use]
    pub fn new(host: Arc<Host>, changed: Arc<Notify>) -> Self {
        let switches = Switches::new(host.clone(), changed.clone());
        Self { host, handles: BTreeMap::new(), switches, tasks: JoinSet::new(), changed }
    }

    /// Goes on from the ledger. A record that does not read stops its slot only.
    pub fn recover(&mut self, records: Vec<ledger::Entry>) {
        for (slot, record) in records {
            match record {
                Ok(record) => {
                    let machine = Machine::recover(record, self.host.ctx.boot_id.clone(), since_boot(), unix_ms());
                    self.begin(slot, machine);
                }
                Err(error) => {
                    let text = chain(&error);
                    tracing::error!(component = %slot, error = text, "this component is left alone");
                    self.stand_still(slot, &text);
                }
            }
        }
    }

    /// As [`Driver::recover`], for switches.
    pub fn recover_switches(&mut self, records: Vec<ledger::SwitchEntry>) {
        self.switches.recover(records);
    }

    /// Takes the controller's word on a switch. Only the newest of one waits.
    pub fn switch(&mut self, order: SwitchOrder) {
        self.switches.order(order);
    }

    /// All switches that were ever ordered, in order of component.
    #[must_use]
    pub fn switches(&self) -> Vec<SwitchSeen> {
        self.switches.seen()
    }

    /// Takes the controller's word on a slot. Only the newest of one waits.
    pub fn assign(&mut self, slot: Slot, assignment: Assignment) {
        if !self.handles.contains_key(&slot) {
            let components = self.handles.keys().map(|slot| &slot.component).collect::<std::collections::BTreeSet<_>>();
            if components.len() >= COMPONENTS_MAX && !components.contains(&slot.component) {
                tracing::error!(component = %slot, "assignment ignored: this host has {COMPONENTS_MAX} components already");
                return;
            }
            let machine = Machine::new(slot.component.clone(), self.host.ctx.boot_id.clone());
            self.begin(slot.clone(), machine);
        }
        let Some(handle) = self.handles.get(&slot) else { return };
        handle.assign.send_if_modified(|waiting| {
            let newer = waiting.as_ref().is_none_or(|old| takes_place(&assignment, old));
            if newer {
                *waiting = Some(assignment);
            }
            newer
        });
    }

    /// All slots, in order of name.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let look = |(slot, handle): (&Slot, &Handle)| Seen {
            slot: slot.clone(),
            snapshot: handle.snapshot.borrow().clone(),
            staged_bytes: handle.counters.staged.load(Ordering::Relaxed),
            fetched_bytes: handle.counters.fetched.load(Ordering::Relaxed),
        };
        self.handles.iter().map(look).collect()
    }

    /// How far a slot's newest generation has come.
    #[must_use]
    pub fn progress(&self, slot: &Slot) -> Option<Progress> {
        self.handles.get(slot).map(|handle| handle.snapshot.borrow().progress)
    }

    /// Stops driving: operations are called back, services and the ledger stay.
    pub async fn shutdown(mut self) {
        self.switches.shutdown().await;
        self.tasks.shutdown().await;
    }

    fn begin(&mut self, slot: Slot, machine: Machine) {
        let (assign, assigned) = watch::channel(None);
        let (show, snapshot) = watch::channel(shown(&machine));
        let counters = Arc::new(Counters::default());
        let actor = Actor {
            host: self.host.clone(),
            slot: slot.clone(),
            machine,
            counters: counters.clone(),
            show,
            changed: self.changed.clone(),
            running: None,
        };
        self.tasks.spawn(actor.run(assigned));
        self.handles.insert(slot, Handle { assign, snapshot, counters });
    }

    /// A task that does nothing but answer every assignment with the failure.
    fn stand_still(&mut self, slot: Slot, why: &str) {
        let (assign, mut assigned) = watch::channel::<Option<Assignment>>(None);
        let still =
            Snapshot { progress: Progress::Failed, record: None, generation: Generation::ZERO, failure: Some(failure(Cause::Disk, why)) };
        let (show, snapshot) = watch::channel(still);
        let changed = self.changed.clone();
        self.tasks.spawn(async move {
            while assigned.changed().await.is_ok() {
                let generation = assigned.borrow_and_update().as_ref().map_or(Generation::ZERO, |a| a.generation);
                show.send_modify(|shown| shown.generation = generation);
                changed.notify_one();
            }
        });
        self.handles.insert(slot, Handle { assign, snapshot, counters: Arc::default() });
    }
}

/// Whether the newer word may be the only one that the machine hears. A cancelled
/// generation stays so, whatever is said of it later.
fn takes_place(new: &Assignment, old: &Assignment) -> bool {
    let rank = |a: &Assignment| (a.generation, a.phase);
    let cancelled = old.generation == new.generation && old.phase == Phase::Cancel;
    rank(old) <= rank(new) && (!cancelled || new.phase == Phase::Cancel)
}

/// Generation, progress and failure belong together: of a generation that waits
/// for the present one's revert, the last two are not the present one's.
fn shown(machine: &Machine) -> Snapshot {
    Snapshot {
        progress: machine.progress(),
        record: Some(machine.record().clone()),
        generation: machine.generation(),
        failure: machine.failure().cloned(),
    }
}

type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The operation under way.
struct Running {
    id: OpId,
    name: &'static str,
    work: Work,
    leash: Leash,
}

struct Actor {
    host: Arc<Host>,
    slot: Slot,
    machine: Machine,
    counters: Arc<Counters>,
    show: watch::Sender<Snapshot>,
    changed: Arc<Notify>,
    running: Option<Running>,
}

/// What woke the task.
enum Woken {
    Assigned(Option<Assignment>),
    Done(Outcome),
    Late,
    Ended,
}

impl Actor {
    async fn run(mut self, mut assigned: watch::Receiver<Option<Assignment>>) {
        loop {
            self.act().await;
            match self.wait(&mut assigned).await {
                Woken::Assigned(Some(assignment)) => self.tell(Event::Assigned(assignment)),
                Woken::Assigned(None) => {}
                Woken::Done(outcome) => self.done(outcome).await,
                Woken::Late => {
                    let due = self.machine.poll_timeout().is_some_and(|at| at <= since_boot());
                    if due {
                        self.tell(Event::Timeout);
                    }
                }
                Woken::Ended => return,
            }
        }
    }

    fn tell(&mut self, event: Event) {
        self.machine.handle(since_boot(), unix_ms(), event);
    }

    async fn wait(&mut self, assigned: &mut watch::Receiver<Option<Assignment>>) -> Woken {
        let left = self.machine.poll_timeout().map(|at| left(at, since_boot()));
        let work = async {
            match self.running.as_mut() {
                Some(running) => running.work.as_mut().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = assigned.changed() => match changed {
                Ok(()) => Woken::Assigned(assigned.borrow_and_update().clone()),
                Err(_) => Woken::Ended,
            },
            outcome = work => Woken::Done(outcome),
            () = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            } => Woken::Late,
        }
    }

    /// Performs everything the machine asks for now.
    async fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Persist(record) => self.persist(record).await,
                Action::Run(id, op) => self.start(id, op),
                Action::Cancel(id) => {
                    if let Some(running) = self.running.take_if(|running| running.id == id) {
                        tracing::info!(component = %self.slot, op = running.name, "called back");
                        drop(running.work);
                        running.leash.end().await;
                    }
                }
                Action::Report => {}
            }
        }
        let now = shown(&self.machine);
        let news = self.show.send_if_modified(|shown| {
            let news = shown.record != now.record || shown.progress != now.progress || shown.generation != now.generation;
            if news {
                *shown = now;
            }
            news
        });
        if news {
            self.changed.notify_one();
        }
    }

    async fn persist(&mut self, record: Record) {
        let state = state_name(&record.state);
        tracing::info!(component = %self.slot, generation = %generation(&record), state, "ledger");
        failpoint::hit(|| format!("agent.persist.before.{state}"));
        let (ledger, slot) = (self.host.ledger.clone(), self.slot.clone());
        let written = tokio::task::spawn_blocking(move || ledger.write(&slot, &record)).await;
        failpoint::hit(|| format!("agent.persist.after.{state}"));
        let event = match written {
            Ok(Ok(())) => Event::Persisted,
            Ok(Err(error)) => Event::PersistFailed(chain(&error)),
            Err(error) => Event::PersistFailed(error.to_string()),
        };
        if let Event::PersistFailed(error) = &event {
            tracing::error!(component = %self.slot, error, "the ledger cannot be written");
        }
        self.tell(event);
    }

    fn start(&mut self, id: OpId, op: Op) {
        let name = ops::name(&op);
        tracing::debug!(component = %self.slot, op = name, "begins");
        failpoint::hit(|| format!("agent.op.before.{name}"));
        if matches!(op, Op::Preflight { .. }) {
            // They are of one generation, and a new one begins.
            self.counters.staged.store(0, Ordering::Relaxed);
            self.counters.fetched.store(0, Ordering::Relaxed);
        }
        let (scope, leash) = scope(self.counters.clone());
        let work = Box::pin(ops::perform(self.host.clone(), self.slot.clone(), op, scope));
        self.running = Some(Running { id, name, work, leash });
    }

    async fn done(&mut self, outcome: Outcome) {
        let Some(running) = self.running.take() else { return };
        failpoint::hit(|| format!("agent.op.after.{}", running.name));
        match &outcome {
            Outcome::Failed(failure) | Outcome::Smoke { failure: Some(failure), .. } => {
                tracing::warn!(component = %self.slot, op = running.name, cause = %failure.cause, error = failure.message, "failed");
            }
            _ => tracing::debug!(component = %self.slot, op = running.name, "done"),
        }
        drop(running.work);
        running.leash.end().await;
        self.tell(Event::Done(running.id, outcome));
    }
}

/// How long to sleep until then, at most a slice. Never nothing: a machine that
/// would not move its deadline must not spin.
fn left(at: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis(at.since(now).0.max(1)).min(SLICE)
}

fn generation(record: &Record) -> Generation {
    record.assignment.as_ref().map_or(Generation::ZERO, |a| a.generation)
}

/// A state for logs and failpoints.
#[must_use]
pub fn state_name(state: &State) -> &'static str {
    match state {
        State::Idle => "idle",
        State::Checking => "checking",
        State::Checked => "checked",
        State::Staging => "staging",
        State::Staged => "staged",
        State::Cancelled => "cancelled",
        State::Failed(_) => "failed",
        State::Swapping(step) => match step {
            Step::Drain => "swapping-drain",
            Step::Fetch => "swapping-fetch",
            Step::Flip => "swapping-flip",
            Step::Activate => "swapping-activate",
            Step::Smoke => "swapping-smoke",
            Step::Undrain => "swapping-undrain",
        },
        State::Probation => "probation",
        State::Healthy => "healthy",
        State::Confirmed => "confirmed",
        State::Reverting(step, _) => match step {
            Step::Drain => "reverting-drain",
            Step::Fetch => "reverting-fetch",
            Step::Flip => "reverting-flip",
            Step::Activate => "reverting-activate",
            Step::Smoke => "reverting-smoke",
            Step::Undrain => "reverting-undrain",
        },
        State::Reverted { .. } => "reverted",
        State::RevertFailed(_) => "revert-failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::{Intent, Millis, Target};
    use tidegate_swap::Swap;

    fn word(n: u64, phase: Phase) -> Assignment {
        Assignment {
            generation: Generation::new(1, n),
            component: "api".parse().unwrap(),
            rollout: "r1".parse().unwrap(),
            intent: Intent::Forward,
            target: Target::Absent,
            phase,
            healthy_deadline: Millis::from_secs(60),
            confirm_within: Millis::from_secs(60),
            accept_drift: false,
            integration: false,
            reversible: true,
        }
    }

    #[test]
    fn a_generation_that_waits_is_shown_with_its_own_progress() {
        let swap = serde_json::json!({ "from": "absent", "was_healthy": true, "drained": false, "mark": null, "lease": null, "reboots": 0, "smoke": [] });
        let swap: Swap = serde_json::from_value(swap).unwrap();
        let record = Record {
            component: "api".parse().unwrap(),
            assignment: Some(word(1, Phase::Swap)),
            state: State::Reverting(Step::Flip, Some(failure(Cause::Smoke, "of generation 1"))),
            standing: None,
            previous: None,
            swap: Some(swap),
            pending: Some(word(2, Phase::Preflight)),
            history: Vec::new(),
        };
        let machine = Machine::recover(record, crate::daemon::boot_id().unwrap(), since_boot(), unix_ms());
        let shown = shown(&machine);
        assert_eq!((shown.generation, shown.progress, shown.failure), (Generation::new(1, 2), Progress::Checking, None));
    }

    #[test]
    fn of_words_that_wait_the_newest_wins_and_a_cancel_stays() {
        use Phase::{Cancel, Confirm, Preflight, Stage, Swap};
        for (new, old, wins) in [
            ((1, Stage), (1, Preflight), true),
            ((1, Stage), (1, Stage), true),
            ((1, Preflight), (1, Stage), false),
            ((2, Preflight), (1, Confirm), true),
            ((1, Confirm), (2, Preflight), false),
            ((1, Cancel), (1, Stage), true),
            ((1, Swap), (1, Cancel), false),
            ((1, Cancel), (1, Cancel), true),
            ((2, Swap), (1, Cancel), true),
        ] {
            assert_eq!(takes_place(&word(new.0, new.1), &word(old.0, old.1)), wins, "{new:?} after {old:?}");
        }
    }
}
