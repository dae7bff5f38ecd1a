//! What the core knows, and how it changes: synchronous, with the time as an
//! argument, so that tests drive it without a runtime.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::{Assignment, HostName, Report, RolloutId, Timestamp};
use tidegate_rollout::{Action, Event, Record, Rollout};
use tokio::sync::watch;

use super::{Admitted, Followed, Input, Tick};
use crate::registry::{Opened, Registry};
use crate::store::{HostChange, Loaded, NewRecord};

/// The fleet, the rollouts, and what the current batch has decided so far.
#[derive(Debug)]
pub struct State {
    pub(super) epoch: u32,
    pub(super) registry: Registry,
    pub(super) rollouts: BTreeMap<RolloutId, Entry>,
    /// Rollouts that may have something to do.
    touched: BTreeSet<RolloutId>,
    pub(super) batch: Batch,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) rollout: Rollout,
    first_seq: u64,
    ticks: watch::Sender<Tick>,
}

type Reply = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Batch {
    /// Hosts that must hear all their assignments.
    hellos: BTreeSet<HostName>,
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
    /// In order.
    pub records: Vec<NewRecord>,
    /// In the same transaction.
    pub changes: Vec<HostChange>,
    /// After it.
    pub sends: Vec<(HostName, Assignment)>,
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
        let mut state = Self {
            epoch: loaded.epoch,
            registry: Registry::default(),
            rollouts: BTreeMap::new(),
            touched: BTreeSet::new(),
            batch: Batch::default(),
        };
        for row in loaded.hosts {
            state.registry.joined(row);
        }
        for (host, component, generation, owner) in loaded.generations {
            state.registry.owned(&host, &component, generation, &owner);
        }
        for found in loaded.rollouts {
            match Rollout::fold(found.id.clone(), found.records) {
                Some(rollout) => {
                    let tick = Tick { seq: found.last_seq, state: rollout.state() };
                    state.rollouts.insert(found.id, Entry { rollout, first_seq: found.first_seq, ticks: watch::channel(tick).0 });
                }
                None => tracing::error!(rollout = %found.id, "the journal has records of a rollout that never started; they are ignored"),
            }
        }
        state
    }

    /// Tells every rollout that has not ended that the controller is back.
    pub fn returned(&mut self, now: Timestamp) {
        self.registry.listens(now);
        let live: Vec<RolloutId> = self.rollouts.iter().filter(|(_, e)| e.rollout.is_live()).map(|(id, _)| id.clone()).collect();
        for id in live {
            self.tell(now, &id, Event::Returned);
        }
    }

    /// When [`State::tick`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.rollouts.values().filter_map(|e| e.rollout.poll_timeout()).min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Timestamp) {
        let due = |e: &Entry| e.rollout.poll_timeout().is_some_and(|at| at <= now);
        let due: Vec<RolloutId> = self.rollouts.iter().filter(|(_, e)| due(e)).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.tell(now, &id, Event::Timeout);
        }
    }

    /// Takes an input in. `true` = stop once it is settled.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> bool {
        match input {
            Input::Hello { host, spki, agent, report, outbox, reply } => {
                let opened = self.registry.open(&host, spki, agent, outbox);
                let answer = opened.map(|(session, opened)| self.opened(now, &host, session, opened, *report));
                // After the batch, so that a welcome never goes ahead of what it stands on.
                self.batch.replies.push(Box::new(move || drop(reply.send(answer))));
            }
            Input::Report { host, session, report } => {
                // Only the session that speaks for the host alone is heard.
                if self.registry.get(&host).and_then(|h| h.session()).is_some_and(|s| s.id == session) {
                    self.reported(now, &host, *report);
                } else if let Some(known) = self.registry.get_mut(&host) {
                    known.unheard(session, *report, now);
                }
            }
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

    fn reported(&mut self, now: Timestamp, host: &HostName, report: Report) {
        let Some(known) = self.registry.get_mut(host) else { return };
        let owned: Vec<(RolloutId, usize)> = report
            .components
            .iter()
            .enumerate()
            .filter_map(|(at, c)| known.owners.get(&c.component).map(|(_, id)| (id.clone(), at)))
            .collect();
        for (id, at) in owned {
            if let Some(component) = report.components.get(at) {
                self.tell(now, &id, Event::Report(host, component));
            }
        }
        if let Some(known) = self.registry.get_mut(host) {
            known.said(report, now);
        }
    }

    /// Says to every rollout that has a word in this host whether it is in contact.
    fn contact(&mut self, now: Timestamp, host: &HostName, up: bool) {
        let owners: BTreeSet<RolloutId> =
            self.registry.get(host).into_iter().flat_map(|h| h.owners.values()).map(|(_, id)| id.clone()).collect();
        for id in owners {
            self.tell(now, &id, Event::Contact(host, up));
        }
    }

    fn tell(&mut self, now: Timestamp, id: &RolloutId, event: Event<'_>) {
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

    pub(super) fn insert(&mut self, rollout: Rollout) {
        let id = rollout.id().clone();
        for (host, component, generation) in rollout.generations() {
            self.registry.owned(host, component, generation, &id);
        }
        let tick = Tick { seq: 0, state: rollout.state() };
        // Numbered when its first record is.
        self.rollouts.insert(id.clone(), Entry { rollout, first_seq: 0, ticks: watch::channel(tick).0 });
        self.touched.insert(id);
    }

    pub(super) fn touch(&mut self, id: &RolloutId) {
        self.touched.insert(id.clone());
    }

    /// Writes down what hosts said since the last time.
    pub fn save(&mut self) {
        for (name, host) in self.registry.iter_mut().filter(|(_, h)| h.unsaved) {
            host.unsaved = false;
            self.batch.changes.push(HostChange::Seen {
                host: name.clone(),
                agent: host.agent.clone(),
                report: host.report.clone(),
                at: host.last_seen.unwrap_or_default(),
            });
        }
    }

    /// Collects what the batch decided.
    pub fn settle(&mut self, now: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        for id in std::mem::take(&mut self.touched) {
            let Some(entry) = self.rollouts.get_mut(&id) else { continue };
            while let Some(action) = entry.rollout.poll_action() {
                match action {
                    Action::Append(record) => {
                        if let Record::Ordered { host, component, generation, .. } = &record {
                            self.registry.owned(host, component, *generation, &id);
                        }
                        outcome.records.push(NewRecord { rollout: id.clone(), at: now, record });
                    }
                    Action::Send(host, assignment) => outcome.sends.push((host, assignment)),
                    Action::SendSide(..) | Action::SendSwitch(..) | Action::Watch(_) => {}
                }
            }
        }
        for host in std::mem::take(&mut self.batch.hellos) {
            outcome.sends.extend(self.standing(&host).into_iter().map(|a| (host.clone(), a)));
        }
        outcome.changes = std::mem::take(&mut self.batch.changes);
        outcome.replies = std::mem::take(&mut self.batch.replies);
        outcome
    }

    /// All that a host is to hear at its hello: of each component the newest word.
    fn standing(&self, host: &HostName) -> Vec<Assignment> {
        let Some(known) = self.registry.get(host) else { return Vec::new() };
        let of = |id: &RolloutId| self.rollouts.get(id).map(|e| e.rollout.assignments(host)).unwrap_or_default();
        // A host that says itself how this generation ended need not hear of it.
        let ended = |a: &Assignment| {
            let said = known.report.iter().flat_map(|r| &r.components).find(|c| c.component == a.component);
            said.is_some_and(|c| c.generation == a.generation && c.progress.is_final())
        };
        let newest = known.owners.iter().filter_map(|(component, (_, id))| of(id).into_iter().find(|a| &a.component == component));
        newest.filter(|a| !ended(a)).collect()
    }

    /// Numbers what was appended: `first` is the number of the first record, whose
    /// rollout is the first of `rollouts`.
    pub fn appended(&mut self, first: u64, rollouts: &[RolloutId]) {
        let mut span: BTreeMap<&RolloutId, (u64, u64)> = BTreeMap::new();
        for (id, seq) in rollouts.iter().zip(first..) {
            span.entry(id).or_insert((seq, seq)).1 = seq;
        }
        for (id, (oldest, seq)) in span {
            let Some(entry) = self.rollouts.get_mut(id) else { continue };
            if entry.first_seq == 0 {
                entry.first_seq = oldest;
            }
            entry.ticks.send_replace(Tick { seq, state: entry.rollout.state() });
        }
    }

    /// Puts assignments where connected hosts find them; the others hear at their hello.
    pub fn send(&self, sends: Vec<(HostName, Assignment)>) {
        for (host, assignment) in sends {
            if let Some(session) = self.registry.get(&host).and_then(|h| h.session()) {
                session.outbox.assign(assignment);
            }
        }
    }
}
