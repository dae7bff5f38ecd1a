//! What the core knows, and how it changes: synchronous, with the time as an
//! argument, so that tests drive it without a runtime.

mod settle;

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::{ComponentName, Generation, HostName, Report, RolloutId, Samples, SidesReport, TaskOrder, Timestamp, Watch};
use tidegate_rollout::gate::{Group, MetricSource};
use tidegate_rollout::notices::{Notice, Notices};
use tidegate_rollout::process::Via;
use tidegate_rollout::{Action, Event, Fetch, Fetched, Record, Rollout};
use tokio::sync::watch;

use super::fleet::FleetLog;
use super::ready::Waiting;
use super::witness::Heads;
use super::{Admitted, Followed, Input, Looked, Setup, Tick, ToCheck};
use crate::outbox::Word;
use crate::registry::{Opened, Registry};
use crate::sources::Wanted;
use crate::store::{Appended, HostChange, Loaded, LoadedRollout, NewFleet, NewRecord};

/// The fleet, the rollouts, and what the current batch has decided so far.
#[derive(Debug)]
pub struct State {
    pub(super) epoch: u32,
    pub(super) registry: Registry,
    pub(super) rollouts: BTreeMap<RolloutId, Entry>,
    pub(super) fleet: FleetLog,
    pub(super) heads: Heads,
    pub(super) setup: Setup,
    /// Checklists may have changed.
    pub(super) changed: bool,
    /// As published last.
    pub(super) to_check: Vec<ToCheck>,
    /// Those that have not ended: a fleet has few of them and many that have.
    live: BTreeSet<RolloutId>,
    /// Rollouts that may have something to do.
    touched: BTreeSet<RolloutId>,
    /// Rollouts that may want other things fetched.
    refetch: BTreeSet<RolloutId>,
    pub(super) batch: Batch,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) rollout: Rollout,
    /// What people are told of it.
    notices: Notices,
    pub(super) first_seq: u64,
    ticks: watch::Sender<Tick>,
    /// What it last wanted fetched.
    fetches: Vec<Fetch>,
    /// The freeze that it was last told of.
    pub(super) frozen: Option<String>,
    /// While it waits to begin: what its checklist is made of. None after a restart,
    /// until it was looked at anew.
    pub(super) waiting: Option<Waiting>,
    /// Its windows are not looked at before.
    pub(super) windows_at: Timestamp,
}

impl Entry {
    fn new(rollout: Rollout, notices: Notices, first_seq: u64, last_seq: u64) -> Self {
        let tick = Tick { seq: last_seq, state: rollout.state() };
        let frozen = rollout.given().freeze.clone();
        Self {
            rollout,
            notices,
            first_seq,
            ticks: watch::channel(tick).0,
            fetches: Vec::new(),
            frozen,
            waiting: None,
            windows_at: Timestamp(0),
        }
    }

    /// Whether it can ever want something fetched: making the list of a large
    /// fleet is not free.
    fn asks_sources(&self) -> bool {
        let outside = |s: &MetricSource| matches!(s, MetricSource::Prometheus { .. } | MetricSource::Alertmanager { .. });
        self.rollout.plan().gating.metrics.values().any(|m| outside(&m.source))
    }
}

type Reply = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Batch {
    /// Hosts that must hear all their assignments.
    hellos: BTreeSet<HostName>,
    pub(super) fleet: Vec<NewFleet>,
    pub(super) changes: Vec<HostChange>,
    pub(super) replies: Vec<Reply>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("hellos", &self.hellos).field("changes", &self.changes).finish_non_exhaustive()
    }
}

/// What a batch came to: append, then send, then answer.
#[derive(Default)]
pub struct Outcome {
    /// First.
    pub fleet: Vec<NewFleet>,
    /// In order.
    pub records: Vec<NewRecord>,
    /// In the same transaction.
    pub changes: Vec<HostChange>,
    /// After it.
    pub sends: Vec<(HostName, Word)>,
    /// After it: notices, each with its route.
    pub notices: Vec<(Notice, String)>,
    /// After it, if it changed: all that is to be fetched.
    pub fetches: Option<Vec<Wanted>>,
    /// After it, if it changed: all that is to be checked outside.
    pub to_check: Option<Vec<ToCheck>>,
    /// After it.
    pub replies: Vec<Reply>,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcome").field("records", &self.records).field("sends", &self.sends).finish_non_exhaustive()
    }
}

impl State {
    /// As the store left it. Nothing is decided.
    #[must_use]
    pub fn restore(loaded: Loaded) -> Self {
        Self::restore_with(loaded, Setup::default())
    }

    /// As the store left it, where controller.toml says that.
    #[must_use]
    pub fn restore_with(loaded: Loaded, setup: Setup) -> Self {
        let mut state = Self {
            epoch: loaded.epoch,
            registry: Registry::default(),
            rollouts: BTreeMap::new(),
            fleet: FleetLog::default(),
            heads: Heads::new(loaded.head),
            setup,
            changed: true,
            to_check: Vec::new(),
            live: BTreeSet::new(),
            touched: BTreeSet::new(),
            refetch: BTreeSet::new(),
            batch: Batch::default(),
        };
        for row in loaded.hosts {
            state.registry.joined(row);
        }
        for (at, record) in &loaded.fleet {
            state.fleet.apply(*at, record);
        }
        for (host, component, generation, owner) in loaded.generations {
            state.registry.owned(&host, &component, generation, &owner);
        }
        for found in loaded.rollouts {
            let notices = noticed(&found, &state.setup.routes);
            match Rollout::fold(found.id.clone(), found.records).zip(notices) {
                Some((rollout, notices)) => {
                    if rollout.is_live() {
                        state.live.insert(found.id.clone());
                    }
                    state.rollouts.insert(found.id, Entry::new(rollout, notices, found.first_seq, found.last_seq));
                }
                None => tracing::error!(rollout = %found.id, "the journal has records of a rollout that never started; they are ignored"),
            }
        }
        state
    }

    /// What is told and has no word yet of how that ended.
    #[must_use]
    pub fn owed(&self, now: Timestamp) -> Vec<(Notice, String)> {
        self.rollouts.values().flat_map(|e| e.notices.pending(now)).collect()
    }

    /// Tells every rollout that has not ended that the controller is back.
    pub fn returned(&mut self, now: Timestamp) {
        self.registry.listens(now);
        for id in self.live.clone() {
            self.tell(now, &id, Event::Returned);
            self.refetch.insert(id);
        }
    }

    /// When [`State::tick`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.alive().filter_map(|(_, e)| e.rollout.poll_timeout()).chain(self.heads.due()).min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Timestamp) {
        let due = |e: &Entry| e.rollout.poll_timeout().is_some_and(|at| at <= now);
        let due: Vec<RolloutId> = self.alive().filter(|(_, e)| due(e)).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.tell(now, &id, Event::Timeout);
            self.refetch.insert(id);
        }
        self.look_at_freezes(now);
        self.look_at_waiting(now);
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = (&RolloutId, &Entry)> {
        self.live.iter().filter_map(|id| self.rollouts.get_key_value(id))
    }

    /// Takes an input in. `true` = stop once it is settled.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> bool {
        match input {
            Input::Hello { host, spki, version, agent, report, outbox, reply } => {
                let opened = self.registry.open(&host, spki, version, agent, outbox);
                let answer = opened.map(|(session, opened)| self.opened(now, &host, session, opened, *report));
                // After the batch, so that a welcome never goes ahead of what it stands on.
                self.batch.replies.push(Box::new(move || drop(reply.send(answer))));
            }
            Input::Report { host, session, report } => {
                // Only the session that speaks for the host alone is heard.
                if self.speaks(&host, session) {
                    self.reported(now, &host, *report);
                } else if let Some(known) = self.registry.get_mut(&host) {
                    known.unheard(session, *report, now);
                }
            }
            Input::Samples { host, session, samples } => {
                if self.speaks(&host, session) {
                    self.measured(now, &host, &samples);
                }
            }
            Input::Sides { host, session, sides } => {
                if self.speaks(&host, session) {
                    self.sided(now, &host, sides);
                }
            }
            Input::Tasks { host, session, tasks } => {
                if self.speaks(&host, session) {
                    for report in tasks.iter().filter(|t| self.rollouts.contains_key(&t.rollout)).collect::<Vec<_>>() {
                        self.tell(now, &report.rollout, Event::Task(&host, report));
                    }
                }
            }
            Input::Outages { host, session, outages } => {
                if self.speaks(&host, session) {
                    for of in &outages {
                        for id in self.concerned(&host, Some(&of.component)) {
                            self.tell(now, &id, Event::Outages(&host, of));
                        }
                    }
                }
            }
            Input::Vars { host, session, vars } => {
                if self.speaks(&host, session)
                    && let Some(known) = self.registry.get_mut(&host)
                {
                    known.vars = Some(vars);
                }
            }
            Input::Head { host, session, head, check } => {
                if self.speaks(&host, session) {
                    self.remembered(&host, head, check);
                }
            }
            Input::Look { id, reply } => {
                // Behind the batch, so that what it says is durable.
                if let Some(entry) = self.rollouts.get(&id) {
                    let (rollout, first_seq, ticks) = (&entry.rollout, entry.first_seq, entry.ticks.subscribe());
                    let (plan, by) = (Box::new(rollout.plan().clone()), rollout.by().to_owned());
                    let looked = move || Looked { plan, by, first_seq, last_seq: ticks.borrow().seq };
                    self.batch.replies.push(Box::new(move || drop(reply.send(Some(looked())))));
                } else {
                    drop(reply.send(None));
                }
            }
            Input::Paper { id, first_seq, paper, reply } => {
                let answer = self.paper(now, &id, first_seq, paper);
                self.batch.replies.push(Box::new(move || drop(reply.send(answer))));
            }
            Input::Fleet { records, reply } => {
                records.into_iter().for_each(|record| self.note(now, record));
                self.batch.replies.push(Box::new(move || {
                    // Nobody may wait any more.
                    let _ = reply.send(());
                }));
            }
            Input::Notified(outcome) => {
                // An id may have been used again meanwhile: then it is not of this one.
                if self.rollouts.get(&outcome.rollout).is_some_and(|e| e.rollout.times().0 == outcome.since) {
                    let result = outcome.result.as_ref().map_err(String::as_str).copied();
                    self.tell(now, &outcome.rollout, Event::Notified { key: &outcome.key, route: &outcome.route, result });
                }
            }
            Input::Witnesses { reply } => drop(reply.send(self.witnesses())),
            Input::Checked { rollout, manifest, checks } => self.checked(&rollout, *manifest, *checks),
            Input::Fetched { rollout, metric, group, result } => self.fetched(now, &rollout, &metric, group, result.as_ref()),
            Input::Gone { host, session } => self.gone(now, &host, session),
            Input::Joined(row) => {
                let name = row.name.clone();
                self.registry.joined(*row);
                self.restore_owners(&name);
            }
            Input::Ask { by, request, prepared, reply } => {
                let answer = self.ask(now, &by, request, prepared);
                self.batch.replies.push(Box::new(move || drop(reply.send(answer))));
            }
            Input::Follow { id, reply } => {
                let followed = self.rollouts.get(&id).map(|e| Followed { first_seq: e.first_seq, ticks: e.ticks.subscribe() });
                self.batch.replies.push(Box::new(move || drop(reply.send(followed))));
            }
            Input::Stop => return true,
        }
        false
    }

    fn opened(&mut self, now: Timestamp, host: &HostName, session: u64, opened: Opened, report: Report) -> Admitted {
        let labels = self.registry.get(host).map(|h| h.labels.clone()).unwrap_or_default();
        match opened {
            Opened::Alone => {
                tracing::info!(%host, "host connected");
                self.alone(now, host, report);
            }
            Opened::Conflict => {
                tracing::warn!(%host, "two machines speak under one certificate: neither is given work until one of them stops");
                if let Some(known) = self.registry.get_mut(host) {
                    // What stood there so far is the other machine's.
                    let other = known.sessions().iter().find(|s| s.id != session).map(|s| s.id);
                    if let (Some(other), Some(theirs)) = (other, known.report.clone()) {
                        known.unheard(other, theirs, now);
                    }
                    known.unheard(session, report, now);
                }
                self.contact(now, host, false);
            }
        }
        Admitted { session, labels }
    }

    /// A host's only session speaks for it from here on.
    fn alone(&mut self, now: Timestamp, host: &HostName, report: Report) {
        if let Some(known) = self.registry.get_mut(host) {
            let agent = known.session().map(|s| s.agent.clone());
            known.agent = agent;
            known.unsaved = true;
        }
        self.contact(now, host, true);
        self.reported(now, host, report);
        self.batch.hellos.insert(host.clone());
    }

    fn gone(&mut self, now: Timestamp, host: &HostName, session: u64) {
        if !self.registry.close(host, session) {
            return;
        }
        let Some(known) = self.registry.get_mut(host) else { return };
        known.last_seen = Some(now);
        known.unsaved = true;
        match known.sessions().len() {
            0 => {
                tracing::info!(%host, "host lost");
                self.contact(now, host, false);
            }
            1 => {
                tracing::warn!(%host, "one machine speaks under this certificate again: the conflict is over");
                // What the other one last said is not what this one runs.
                match known.heard_again() {
                    Some(report) => self.alone(now, host, report),
                    None => known.report = None,
                }
            }
            _ => {}
        }
    }

    /// Whether that session speaks for the host.
    fn speaks(&self, host: &HostName, session: u64) -> bool {
        self.registry.get(host).and_then(|h| h.session()).is_some_and(|s| s.id == session)
    }

    fn reported(&mut self, now: Timestamp, host: &HostName, report: Report) {
        let Some(known) = self.registry.get_mut(host) else { return };
        let owned: Vec<(RolloutId, usize)> = report
            .components
            .iter()
            .enumerate()
            .filter_map(|(at, c)| known.owners.get(&c.component).map(|(_, id)| (id.clone(), at)))
            .collect();
        // The machine's numbers first: what a component says may be judged by them.
        for id in self.concerned(host, None) {
            self.tell(now, &id, Event::Facts(host, &report.host));
        }
        for (id, at) in owned {
            if let Some(component) = report.components.get(at) {
                self.tell(now, &id, Event::Report(host, component));
            }
        }
        if let Some(known) = self.registry.get_mut(host) {
            known.said(report, now);
        }
    }

    fn measured(&mut self, now: Timestamp, host: &HostName, samples: &[Samples]) {
        for of in samples {
            for id in self.concerned(host, Some(&of.component)) {
                self.tell(now, &id, Event::Samples(host, of));
            }
        }
    }

    fn sided(&mut self, now: Timestamp, host: &HostName, sides: Vec<SidesReport>) {
        for of in &sides {
            if let Some(id) = self.registry.owner(host, &of.component).cloned() {
                self.tell(now, &id, Event::Sides(host, of));
            }
        }
        if let Some(known) = self.registry.get_mut(host) {
            known.said_sides(sides);
        }
    }

    fn fetched(&mut self, now: Timestamp, id: &RolloutId, metric: &str, group: Group, result: Result<&Fetched, &String>) {
        // It may have ended while the answer was on its way.
        if self.live.contains(id) {
            self.tell(now, id, Event::Fetched { metric, group, result: result.map_err(String::as_str) });
        }
    }

    /// Live rollouts that have this component of the host (or any) among their
    /// targets: not only the newest one measures there.
    fn concerned(&self, host: &HostName, component: Option<&ComponentName>) -> Vec<RolloutId> {
        // Every target of a rollout has an owner here, be it another rollout.
        let Some(known) = self.registry.get(host) else { return Vec::new() };
        let has = |rollout: &Rollout| match component {
            Some(component) => rollout.generation(host, component).is_some(),
            None => known.owners.keys().any(|c| rollout.generation(host, c).is_some()),
        };
        self.alive().filter(|(_, e)| has(&e.rollout)).map(|(id, _)| id.clone()).collect()
    }

    /// Says to every rollout that has a word in this host whether it is in contact.
    fn contact(&mut self, now: Timestamp, host: &HostName, up: bool) {
        let mut owners: BTreeSet<RolloutId> =
            self.registry.get(host).into_iter().flat_map(|h| h.owners.values()).map(|(_, id)| id.clone()).collect();
        // A task may run where nothing is changed.
        let runs_tasks = |e: &Entry| e.rollout.plan().process.tasks.iter().any(|t| &t.host == host);
        owners.extend(self.alive().filter(|(_, e)| runs_tasks(e)).map(|(id, _)| id.clone()));
        for id in owners {
            self.tell(now, &id, Event::Contact(host, up));
        }
    }

    pub(super) fn tell(&mut self, now: Timestamp, id: &RolloutId, event: Event<'_>) {
        if let Some(entry) = self.rollouts.get_mut(id) {
            if let Err(error) = entry.rollout.handle(now, event) {
                // Only a person's word can be refused, and those go through `ask`.
                tracing::error!(rollout = %id, %error, "a rollout refused an event");
            }
            self.touched.insert(id.clone());
        }
    }

    /// A name that joins anew keeps the fence it had.
    fn restore_owners(&mut self, host: &HostName) {
        for (id, entry) in &self.rollouts {
            for component in &entry.rollout.plan().components {
                if let Some(generation) = entry.rollout.generation(host, &component.name) {
                    self.registry.owned(host, &component.name, generation, id);
                }
            }
        }
    }

    /// `frozen` is what it was told of a freeze.
    pub(super) fn insert(&mut self, rollout: Rollout, frozen: Option<String>, waiting: Option<Waiting>) {
        let id = rollout.id().clone();
        for (host, component, generation) in rollout.generations() {
            self.registry.owned(host, component, generation, &id);
        }
        // Numbered when its first record is.
        // Its records are folded as they are appended.
        let notices = Notices::new(&id, rollout.plan(), &self.setup.routes);
        self.rollouts.insert(id.clone(), Entry { frozen, waiting, ..Entry::new(rollout, notices, 0, 0) });
        self.fleet.changed = true;
        self.touch(&id);
    }

    /// It may have something to do; one that had ended may live again.
    pub(super) fn touch(&mut self, id: &RolloutId) {
        self.live.insert(id.clone());
        self.touched.insert(id.clone());
    }

    /// A newer rollout takes over what these only watch.
    pub(super) fn supersede(&mut self, now: Timestamp, older: &[RolloutId], newer: &RolloutId) {
        for id in older {
            tracing::info!(rollout = %id, %newer, "a newer rollout takes over");
            self.tell(now, id, Event::Superseded(newer));
        }
    }

    /// Writes down what hosts said since the last time.
    pub fn save(&mut self) {
        for (name, host) in self.registry.iter_mut().filter(|(_, h)| h.unsaved) {
            host.unsaved = false;
            self.batch.changes.push(HostChange::Seen {
                host: name.clone(),
                agent: host.agent.clone(),
                report: host.report.clone(),
                sides: host.sides.clone(),
                at: host.last_seen.unwrap_or_default(),
            });
        }
    }
}

/// What people are told of a rollout, as far as its records go.
fn noticed(found: &LoadedRollout, routes: &BTreeMap<String, Via>) -> Option<Notices> {
    let (_, Record::Started { plan, .. }) = found.records.first()? else { return None };
    let mut notices = Notices::new(&found.id, plan, routes);
    for (at, record) in &found.records {
        // What follows from it is owed until the journal says otherwise.
        let _ = notices.apply(plan, *at, record);
    }
    Some(notices)
}
