//! Drives the switches: one task per component with sides, which performs what
//! its machine asks for and tells it what happened.
//!
//! Owns: the order persist → effect, and calling an operation back. Must not:
//! decide anything about a switch, nor touch a side.

mod perform;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tidegate_protocol::limits::COMPONENTS_MAX;
use tidegate_protocol::report::Failure;
use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::{Cause, ComponentName, Generation, Side, SwitchOrder};
use tidegate_swap::{OpId, Switch, SwitchAction, SwitchEvent, SwitchOp, SwitchRecord, SwitchState};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::error::{chain, failure};
use crate::failpoint;
use crate::host::Host;
use crate::ledger;
use crate::work::{Leash, scope};

/// A switch as the report sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchSeen {
    /// Of which component.
    pub component: ComponentName,
    /// The side that serves.
    pub active: Option<Side>,
    /// Of the newest order seen.
    pub generation: Generation,
    /// How far that has come.
    pub progress: SwitchProgress,
    /// Why it failed.
    pub failure: Option<Failure>,
}

impl SwitchSeen {
    /// What a record says.
    #[must_use]
    pub fn of(record: &SwitchRecord) -> Self {
        Self {
            component: record.component.clone(),
            active: record.active,
            generation: record.generation(),
            progress: record.progress(),
            failure: record.failure().cloned(),
        }
    }
}

/// One switch's task, from outside.
struct Handle {
    order: watch::Sender<Option<SwitchOrder>>,
    seen: watch::Receiver<SwitchSeen>,
}

/// All switches of the host.
pub(crate) struct Switches {
    host: Arc<Host>,
    handles: BTreeMap<ComponentName, Handle>,
    tasks: JoinSet<()>,
    changed: Arc<Notify>,
}

impl Switches {
    pub(crate) fn new(host: Arc<Host>, changed: Arc<Notify>) -> Self {
        Self { host, handles: BTreeMap::new(), tasks: JoinSet::new(), changed }
    }

    /// Goes on from the ledger. A record that does not read stops its switch only.
    pub(crate) fn recover(&mut self, records: Vec<ledger::SwitchEntry>) {
        for (component, record) in records {
            match record {
                Ok(record) => self.begin(component, Switch::recover(record)),
                Err(error) => {
                    let text = chain(&error);
                    tracing::error!(%component, error = text, "the switch of this component is left alone");
                    self.stand_still(component, &text);
                }
            }
        }
    }

    pub(crate) fn order(&mut self, order: SwitchOrder) {
        let component = order.component.clone();
        if !self.handles.contains_key(&component) {
            if self.handles.len() >= COMPONENTS_MAX {
                tracing::error!(%component, "switch ignored: this host has {COMPONENTS_MAX} of them already");
                return;
            }
            self.begin(component.clone(), Switch::new(component.clone()));
        }
        let Some(handle) = self.handles.get(&component) else { return };
        handle.order.send_if_modified(|waiting| {
            let newer = waiting.as_ref().is_none_or(|old| old.generation <= order.generation);
            if newer {
                *waiting = Some(order);
            }
            newer
        });
    }

    pub(crate) fn seen(&self) -> Vec<SwitchSeen> {
        self.handles.values().map(|handle| handle.seen.borrow().clone()).collect()
    }

    /// Stops driving; a command that runs is killed whole, and run again at the
    /// next start.
    pub(crate) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }

    fn begin(&mut self, component: ComponentName, switch: Switch) {
        let (order, ordered) = watch::channel(None);
        let (show, seen) = watch::channel(SwitchSeen::of(switch.shown()));
        let actor =
            Actor { host: self.host.clone(), component: component.clone(), switch, show, changed: self.changed.clone(), running: None };
        self.tasks.spawn(actor.run(ordered));
        self.handles.insert(component, Handle { order, seen });
    }

    /// A task that does nothing but answer every order with the failure.
    fn stand_still(&mut self, component: ComponentName, why: &str) {
        let (order, mut ordered) = watch::channel::<Option<SwitchOrder>>(None);
        let still = SwitchSeen {
            component: component.clone(),
            active: None,
            generation: Generation::ZERO,
            progress: SwitchProgress::Failed,
            failure: Some(failure(Cause::Disk, why)),
        };
        let (show, seen) = watch::channel(still);
        let changed = self.changed.clone();
        self.tasks.spawn(async move {
            while ordered.changed().await.is_ok() {
                let generation = ordered.borrow_and_update().as_ref().map_or(Generation::ZERO, |order| order.generation);
                show.send_modify(|shown| shown.generation = generation);
                changed.notify_one();
            }
        });
        self.handles.insert(component, Handle { order, seen });
    }
}

type Work = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// The operation under way.
struct Running {
    id: OpId,
    name: &'static str,
    work: Work,
    leash: Leash,
}

struct Actor {
    host: Arc<Host>,
    component: ComponentName,
    switch: Switch,
    show: watch::Sender<SwitchSeen>,
    changed: Arc<Notify>,
    running: Option<Running>,
}

impl Actor {
    async fn run(mut self, mut ordered: watch::Receiver<Option<SwitchOrder>>) {
        loop {
            self.act().await;
            let work = async {
                match self.running.as_mut() {
                    Some(running) => running.work.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = ordered.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let order = ordered.borrow_and_update().clone();
                    if let Some(order) = order {
                        self.switch.handle(SwitchEvent::Ordered(order));
                    }
                }
                result = work => self.done(result).await,
            }
        }
    }

    /// Performs everything the machine asks for now.
    async fn act(&mut self) {
        while let Some(action) = self.switch.poll_action() {
            match action {
                SwitchAction::Persist(record) => self.persist(record).await,
                SwitchAction::Run(id, op) => self.start(id, op),
                SwitchAction::Cancel(id) => {
                    if let Some(running) = self.running.take_if(|running| running.id == id) {
                        tracing::info!(component = %self.component, op = running.name, "called back");
                        drop(running.work);
                        running.leash.end().await;
                    }
                }
                SwitchAction::Report => {}
            }
        }
        let now = SwitchSeen::of(self.switch.shown());
        let news = self.show.send_if_modified(|shown| {
            let news = *shown != now;
            if news {
                *shown = now;
            }
            news
        });
        if news {
            self.changed.notify_one();
        }
    }

    async fn persist(&mut self, record: SwitchRecord) {
        let state = state_name(&record.state);
        tracing::info!(component = %self.component, generation = %record.generation(), switch = state, "ledger");
        failpoint::hit(|| format!("agent.switch.persist.before.{state}"));
        let ledger = self.host.ledger.clone();
        let written = tokio::task::spawn_blocking(move || ledger.write_switch(&record)).await;
        failpoint::hit(|| format!("agent.switch.persist.after.{state}"));
        let event = match written {
            Ok(Ok(())) => SwitchEvent::Persisted,
            Ok(Err(error)) => SwitchEvent::PersistFailed(chain(&error)),
            Err(error) => SwitchEvent::PersistFailed(error.to_string()),
        };
        if let SwitchEvent::PersistFailed(error) = &event {
            tracing::error!(component = %self.component, error, "the ledger cannot be written");
        }
        self.switch.handle(event);
    }

    fn start(&mut self, id: OpId, op: SwitchOp) {
        let name = op_name(&op);
        tracing::debug!(component = %self.component, op = name, "begins");
        failpoint::hit(|| format!("agent.switch.op.before.{name}"));
        let (scope, leash) = scope(Arc::default());
        let work = Box::pin(perform::perform(self.host.clone(), op, scope));
        self.running = Some(Running { id, name, work, leash });
    }

    async fn done(&mut self, result: Result<(), Failure>) {
        let Some(running) = self.running.take() else { return };
        failpoint::hit(|| format!("agent.switch.op.after.{}", running.name));
        match &result {
            Ok(()) => tracing::debug!(component = %self.component, op = running.name, "done"),
            Err(why) => tracing::warn!(component = %self.component, op = running.name, cause = %why.cause, error = why.message, "failed"),
        }
        drop(running.work);
        running.leash.end().await;
        self.switch.handle(SwitchEvent::Done(running.id, result));
    }
}

/// An operation for logs and failpoints.
fn op_name(op: &SwitchOp) -> &'static str {
    match op {
        SwitchOp::Check(_) => "check",
        SwitchOp::Command(_, _, false) => "command",
        SwitchOp::Command(_, _, true) => "undo-command",
        SwitchOp::Verify(_, _, false) => "verify",
        SwitchOp::Verify(_, _, true) => "undo-verify",
    }
}

/// A state for logs and failpoints.
#[must_use]
pub fn state_name(state: &SwitchState) -> &'static str {
    match state {
        SwitchState::Idle => "idle",
        SwitchState::Checking => "checking",
        SwitchState::Switching => "switching",
        SwitchState::Verifying => "verifying",
        SwitchState::Undoing(_) => "undoing",
        SwitchState::Switched => "switched",
        SwitchState::Failed(_) => "failed",
        SwitchState::Stuck(_) => "stuck",
    }
}
