//! The rollout machine: walks a plan forward, and back when it must.
//!
//! `handle` takes an event in and decides; each decision becomes a [`Record`]
//! that is applied at once and handed out as [`Action::Append`]. The driver makes
//! the records durable before it performs any [`Action::Send`] that follows, and
//! stops the process if it cannot. After a restart [`Rollout::fold`] applies the
//! same records and decides nothing again.

mod apply;
mod back;
mod begin;
mod book;
mod decide;
mod event;
mod gates;
mod mend;
mod observe;
mod observers;
mod open;
mod outages;
mod switching;
mod target;
mod tasks;
mod triggers;
mod verbs;
mod vigil;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::metric::Reading;
use tidegate_protocol::{Assignment, ComponentName, Generation, HostName, Millis, RolloutId, TaskRun, Timestamp};

use crate::gate::{Observed, Verdict};
use crate::plan::Plan;
use crate::process::Given;
use crate::record::{Origin, Record, RolloutState, Step, TargetState, Verb};
use crate::status::Drilled;

pub use begin::Brought;
pub use event::{Action, Event};
pub use observers::{Fetch, FetchFrom, Fetched};
use open::Freed;
pub(crate) use open::{GateRun, Investigation, Judged};
pub(crate) use target::{Contact, Live, Order, TargetRun};
pub use verbs::VerbError;

/// A host of a wave that is silent this long is unreachable.
pub const LOST_IN_WAVE: Millis = Millis::from_secs(15);
/// The driver notices silence at the latest after this.
pub const SILENCE_NOTICED: Millis = Millis::from_secs(10);
/// Preflight must be answered within this.
pub const PREFLIGHT_DEADLINE: Millis = Millis::from_secs(60);
/// Staging of one host may stand still this long.
pub const STAGING_STALL: Millis = Millis::from_secs(600);
/// A metric that cannot be read for this long before the first swap refuses the
/// rollout.
pub const GATE_TRY: Millis = Millis::from_secs(8);
/// The controller gives a host this much longer than the host gives itself.
pub const GRACE: Millis = Millis::from_secs(15);

/// One attempt to carry out a plan.
#[derive(Clone, Debug)]
pub struct Rollout {
    id: RolloutId,
    plan: Plan,
    by: String,
    state: RolloutState,
    reason: String,
    step: Step,
    /// A person said halt; it ends when nobody is in flight.
    halting: Option<String>,
    /// That was the machine itself, past a point of no return.
    stopping: bool,
    /// What held it is over, by a record; the state that follows is not journaled yet.
    freed: Option<Freed>,
    /// Who paused it; none while it is not paused, or paused itself.
    paused_by: Option<String>,
    /// The first host whose failure passed the budget, or a person's word.
    cause_of_rollback: Option<String>,
    /// It was journaled that it must go back, and not yet that it does.
    owed_back: Option<String>,
    targets: Vec<TargetRun>,
    index: BTreeMap<(HostName, ComponentName), usize>,
    contact: BTreeMap<HostName, Contact>,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
    state_since: Timestamp,
    step_since: Timestamp,
    /// The controller's latest return.
    returned_at: Option<Timestamp>,
    /// Rises with every confirmation: the order that a rollback reverses.
    confirmations: u64,
    /// Any staging progress, anywhere.
    staging_moved_at: Timestamp,
    actions: VecDeque<Action>,
    /// The values sealed before the first swap.
    pub(crate) sealed: Vec<Observed>,
    /// The open gate.
    pub(crate) gate: Option<GateRun>,
    /// Stages whose gates were passed or overridden.
    pub(crate) passed: usize,
    /// Rolling: hosts of waves up to this need no standing verdict, for a person said so.
    past_wave: usize,
    /// Waves whose gate a person went past.
    pub(crate) overridden: BTreeSet<usize>,
    /// Who went past all gates.
    promoted_all: Option<String>,
    /// A person was asked about an inconclusive gate.
    pub(crate) asked_at: Option<Timestamp>,
    /// A source cannot be read.
    pub(crate) blind_since: Option<Timestamp>,
    /// A person was last asked about that.
    pub(crate) blind_asked: Option<Timestamp>,
    pub(crate) investigation: Option<Investigation>,
    /// The last one began: other triggers look back to that once it is over.
    investigated_at: Option<Timestamp>,
    /// Triggers look no further back than this, one each.
    trigger_from: Vec<Timestamp>,
    /// All hosts at once, whatever the limits say.
    emergency: bool,
    /// By stage: what was last journaled.
    pub(crate) judged: BTreeMap<usize, Judged>,
    /// By stage and item: who.
    attested: BTreeMap<(usize, String), String>,
    /// Alerts that fired before the first swap, and since.
    pub(crate) alerts_before: BTreeMap<String, String>,
    pub(crate) alerts_new: BTreeMap<String, (Timestamp, String)>,
    /// Rolling: the verdict on all that changed, when it was found and after how
    /// many confirmations. Not journaled.
    standing: Option<(Timestamp, u64, Verdict)>,
    pub(crate) drilled: Option<Drilled>,
    /// Blue-green, manual: a person said that traffic may move.
    switch_go: bool,
    first_swap_at: Option<Timestamp>,
    last_confirmed_at: Option<Timestamp>,
    back_began_at: Option<Timestamp>,
    /// The last values journaled.
    observed_at: Timestamp,
    /// Triggers were last looked at.
    triggers_at: Timestamp,
    /// What people and checks gave.
    pub(crate) given: Given,
    /// In state `scheduled` since then.
    scheduled_since: Option<Timestamp>,
    /// A person who is waited for was last told again.
    reminded_at: Option<Timestamp>,
    /// By place and command.
    pub(crate) tasks: BTreeMap<(u16, TaskRun), tasks::TaskGo>,
    outages: outages::OutageBook,
    /// Notifications that came to an end, by key and route.
    notified: BTreeSet<(String, String)>,
    /// A person said rollback: that goes back past any point.
    person_back: bool,
    /// What hosts measured: not journaled.
    book: book::Book,
    /// The latest time seen; never goes back.
    now: Timestamp,
    /// When deadlines were last looked at. Reports must not move it: in a large
    /// fleet one comes more often than a look is due.
    looked_at: Timestamp,
}

impl Rollout {
    /// A new rollout: plan and host set are frozen, preflight is ordered.
    /// `lost` says since when a host is silent, which may lie ahead where a grace
    /// is due; `None` means in contact.
    #[must_use]
    pub fn start(
        id: RolloutId,
        plan: Plan,
        origins: Vec<Origin>,
        by: &str,
        lost: impl Fn(&HostName) -> Option<Timestamp>,
        now: Timestamp,
    ) -> Self {
        Self::submit(id, plan, origins, by, lost, Brought::default(), now)
    }

    /// As [`Rollout::start`]; it waits to begin while people, a window, a freeze or
    /// a row of the checklist keep it from that.
    #[must_use]
    pub fn submit(
        id: RolloutId,
        plan: Plan,
        origins: Vec<Origin>,
        by: &str,
        lost: impl Fn(&HostName) -> Option<Timestamp>,
        brought: Brought,
        now: Timestamp,
    ) -> Self {
        let record = Record::Started { plan: alloc::boxed::Box::new(plan.clone()), by: by.into(), from: origins.clone() };
        let mut rollout = Self::blank(id, plan, by.into(), origins, now);
        for (host, contact) in &mut rollout.contact {
            let lost = lost(host);
            *contact = Contact { up: lost.is_none(), since: lost.unwrap_or(now) };
        }
        rollout.actions.push_back(Action::Append(record));
        if !brought.rows.is_empty() {
            rollout.append(now, Record::Readiness { rows: brought.rows });
        }
        rollout.told_windows(now, &brought.openings);
        rollout.frozen(now, brought.freeze.as_deref());
        rollout.enter(now);
        rollout.decide(now);
        rollout
    }

    /// The rollout as its records left it; nothing is decided again. `None` if
    /// the first record does not start one.
    #[must_use]
    pub fn fold(id: RolloutId, entries: impl IntoIterator<Item = (Timestamp, Record)>) -> Option<Self> {
        let mut entries = entries.into_iter();
        let (at, Record::Started { plan, by, from }) = entries.next()? else { return None };
        let mut rollout = Self::blank(id, *plan, by, from, at);
        for (at, record) in entries {
            rollout.apply(at, &record);
        }
        Some(rollout)
    }

    /// Takes an event in and decides.
    ///
    /// # Errors
    /// [`VerbError`]: a person's word that does not fit the state; it changed nothing.
    /// What had come before may have: actions are to be polled all the same.
    pub fn handle(&mut self, now: Timestamp, event: Event<'_>) -> Result<(), VerbError> {
        self.now = self.now.max(now);
        let now = self.now;
        // Deadlines are looked at when time passes, not at each of the thousands
        // of reports of a large fleet.
        let deadlines = matches!(event, Event::Timeout | Event::Contact(..));
        let was_live = self.is_live();
        let waiting = self.actions.len();
        let mut told = Ok(());
        match event {
            Event::Report(host, report) => {
                let Some(at) = self.at(host, &report.component) else { return Ok(()) };
                self.contact.insert(host.clone(), Contact { up: true, since: now });
                if self.plan.blue_green.is_some() {
                    // Its sides are told apart, see Event::Sides.
                    return Ok(());
                }
                let observed = self.observe(now, at, report);
                if !observed {
                    return Ok(());
                }
            }
            Event::Sides(host, report) => {
                let Some(at) = self.at(host, &report.component) else { return Ok(()) };
                self.contact.insert(host.clone(), Contact { up: true, since: now });
                if self.plan.blue_green.is_none() || !self.observe_sides(now, at, report) {
                    return Ok(());
                }
            }
            Event::Facts(host, facts) => {
                // Every host says these every few seconds: no walk over all targets.
                let own: Vec<usize> = self.plan.components.iter().filter_map(|c| self.at(host, &c.name)).collect();
                for at in own {
                    self.facts(now, at, facts);
                }
                return Ok(());
            }
            Event::Samples(host, samples) => {
                let Some(at) = self.at(host, &samples.component).filter(|_| was_live) else { return Ok(()) };
                self.sampled(now, at, samples);
                let smoke = samples.readings.iter().find(|r| r.metric == observers::SMOKE);
                if let Some((bad, total, note)) = smoke.and_then(|r| match r.reading {
                    Reading::Ratio { bad, total } => Some((bad, total, r.note.as_deref())),
                    _ => None,
                }) {
                    self.relapsed(now, at, bad, total, note);
                }
                self.look_at_triggers(now, false);
                // Of thousands of messages few lead to a decision; the others wait for the tick.
                if self.actions.len() == waiting {
                    return Ok(());
                }
            }
            Event::Fetched { metric, group, result } => {
                if !was_live {
                    return Ok(());
                }
                self.fetched(now, metric, group, result);
                self.look_at_triggers(now, false);
                if self.actions.len() == waiting {
                    return Ok(());
                }
            }
            Event::Declared { what, by, reason } => self.may_declare(what).map(|()| self.declared(now, what, by, reason))?,
            Event::Attested { item, by, note } => self.attest(now, item, by, note)?,
            Event::Readiness(rows) => self.readiness(now, rows),
            Event::Windows(openings) => self.told_windows(now, openings),
            Event::Frozen(reason) => self.frozen(now, reason),
            Event::Approved { role, signed } => self.approved(now, role, signed)?,
            Event::Overridden { what, role, signed, reason } => self.overridden_by(now, what, role, signed, reason)?,
            Event::Task(host, report) => self.task_reported(now, host, report),
            Event::Outages(host, told) => {
                self.outages(now, host, told);
                return Ok(());
            }
            Event::Notified { key, route, result } => {
                if !self.notified.contains(&(key.into(), route.into())) {
                    let (ok, detail) = (result.is_ok(), result.err().unwrap_or_default().into());
                    self.append(now, Record::Notified { key: key.into(), route: route.into(), ok, detail });
                }
                return Ok(());
            }
            Event::Paper(record) => return self.paper(now, record.clone()),
            Event::Superseded(by) => {
                if self.is_live() && !self.holds() {
                    self.append(now, Record::State { to: RolloutState::Completed, reason: alloc::format!("superseded by {by}") });
                }
            }
            Event::Contact(host, up) => {
                if let Some(contact) = self.contact.get_mut(host).filter(|c| c.up != up) {
                    // The silence began with the last word, not when it was noticed.
                    let since = if up { now } else { contact.since.max(now - SILENCE_NOTICED) };
                    *contact = Contact { up, since };
                }
            }
            Event::Said { verb, by, reason } => {
                // What came a moment ago comes before what is said now.
                let before = self.state;
                self.look_at_triggers(now, self.book.unjudged_since.is_some());
                told = if self.state == RolloutState::RollingBack && before != self.state && verb != Verb::Rollback {
                    Err(self.refused(verb, alloc::format!("it went on the way back a moment ago: {}", self.reason)))
                } else {
                    self.said(now, verb, by, reason)
                };
            }
            Event::Returned => {
                self.append(now, Record::Returned);
                // Agents back off while the controller is away: give them the
                // offline deadline of the rules, not the one of a wave.
                for contact in self.contact.values_mut() {
                    *contact = Contact { up: false, since: now + GRACE };
                }
                for target in &mut self.targets {
                    target.live.moved_at = now;
                }
                self.staging_moved_at = now;
                self.step_since = now;
                self.book = book::Book::default();
                self.mend(now);
            }
            Event::Timeout => {
                self.look_at_triggers(now, true);
                self.look_at_investigation(now);
                self.look_at_gate(now);
                self.remind(now);
            }
        }
        if deadlines {
            self.looked_at = now;
            self.deadlines(now);
        }
        self.decide(now);
        if was_live && !self.is_live() {
            self.end_outages(now);
            self.tell_watches();
        }
        told
    }

    /// What shall be measured changed everywhere.
    fn tell_watches(&mut self) {
        let hosts: Vec<HostName> = self.contact.keys().cloned().collect();
        self.actions.extend(hosts.into_iter().map(Action::Watch));
        self.tell_process();
    }

    /// What to do next, in order; `None` until another event.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Rollout::handle`] with [`Event::Timeout`]: deadlines are
    /// whole seconds and longer, so a live rollout looks twice a second.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.is_live().then_some(self.looked_at + Millis(500))
    }

    /// The standing assignments of a host: said again at every hello.
    #[must_use]
    pub fn assignments(&self, host: &HostName) -> Vec<Assignment> {
        if self.plan.blue_green.is_some() {
            return Vec::new();
        }
        let of_host = self.plan.components.iter().filter_map(|c| self.at(host, &c.name));
        of_host.filter_map(|at| self.assignment(at)).collect()
    }

    /// It holds its targets: no other rollout may touch them. One that only
    /// watches does not, and is told of its successor by [`Event::Superseded`].
    #[must_use]
    pub fn holds(&self) -> bool {
        let watches = self.gate.is_some() && self.stage().is_some_and(|(_, stage)| stage.watch);
        self.is_live() && !(watches && matches!(self.state, RolloutState::Watching | RolloutState::Paused))
    }

    /// Not ended.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        !self.state.is_terminal()
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &RolloutId {
        &self.id
    }

    /// What it carries out.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its state.
    #[must_use]
    pub const fn state(&self) -> RolloutState {
        self.state
    }

    /// Why it is in that state.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Who started it.
    #[must_use]
    pub fn by(&self) -> &str {
        &self.by
    }

    /// The (host, component)s that no other rollout may touch now.
    #[must_use]
    pub fn locks(&self) -> Vec<(HostName, ComponentName)> {
        if self.is_live() { self.index.keys().cloned().collect() } else { Vec::new() }
    }

    /// Another rollout used `generation` there and changed nothing (it was
    /// refused): what this one orders next is above it.
    pub fn fence(&mut self, now: Timestamp, host: &HostName, component: &ComponentName, generation: Generation) {
        let Some(target) = self.at(host, component).and_then(|at| self.targets.get(at)) else { return };
        if generation > target.generation.max(target.fence) {
            let record = Record::Fenced { host: host.clone(), component: component.clone(), generation };
            self.append(now, record);
        }
    }

    /// Whether any target was ever ordered to swap.
    #[must_use]
    pub fn changed_anything(&self) -> bool {
        self.targets.iter().any(|t| t.swap_ordered)
    }

    /// The newest generation of one target.
    #[must_use]
    pub fn generation(&self, host: &HostName, component: &ComponentName) -> Option<Generation> {
        self.at(host, component).and_then(|at| self.targets.get(at)).map(|t| t.generation)
    }

    /// The newest generation of each target.
    pub fn generations(&self) -> impl Iterator<Item = (&HostName, &ComponentName, Generation)> {
        self.targets.iter().map(|t| (&t.origin.host, &t.origin.component, t.generation))
    }

    /// Who paused it; none where it stopped by itself and nobody attends to it.
    #[must_use]
    pub fn paused_by(&self) -> Option<&str> {
        self.paused_by.as_deref()
    }

    /// When it started, and when it ended.
    #[must_use]
    pub const fn times(&self) -> (Timestamp, Option<Timestamp>) {
        (self.started_at, self.ended_at)
    }

    /// Of a drill that is over: how it went, and how long it took.
    #[must_use]
    pub const fn drilled(&self) -> Option<Drilled> {
        self.drilled
    }

    /// First swap order and last confirmation so far.
    #[must_use]
    pub fn swapped(&self) -> Option<(Timestamp, Timestamp)> {
        self.first_swap_at.zip(self.last_confirmed_at)
    }

    /// The latest time seen.
    pub(crate) const fn now(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn targets(&self) -> &[TargetRun] {
        &self.targets
    }

    pub(crate) fn at(&self, host: &HostName, component: &ComponentName) -> Option<usize> {
        self.index.get(&(host.clone(), component.clone())).copied()
    }

    fn assignment(&self, at: usize) -> Option<Assignment> {
        let target = self.targets.get(at)?;
        let order = target.order.as_ref()?;
        Some(Assignment {
            generation: target.generation,
            component: target.origin.component.clone(),
            rollout: self.id.clone(),
            intent: order.intent,
            target: order.target.clone().into(),
            phase: order.phase,
            healthy_deadline: self.plan.limits.healthy_deadline,
            confirm_within: self.plan.limits.confirm_within,
            accept_drift: self.plan.limits.accept_drift,
            integration: order.integration,
            reversible: self.past_return().is_none(),
        })
    }

    /// Applies a record and hands it out; an order is sent after it.
    fn append(&mut self, now: Timestamp, record: Record) {
        self.apply(now, &record);
        let place = match &record {
            Record::Ordered { host, component, .. }
            | Record::Switch { host, component, .. }
            | Record::Retired { host, component, .. }
            | Record::Host { host, component, to: TargetState::Confirmed, .. } => Some((host.clone(), component.clone())),
            _ => None,
        };
        let at = place.as_ref().and_then(|(host, component)| self.at(host, component));
        let follows = match (&record, at) {
            (Record::Ordered { .. }, Some(at)) => match self.side_assignment(at) {
                Some(order) => place.map(|(host, _)| Action::SendSide(host, order)),
                None => place.zip(self.assignment(at)).map(|((host, _), order)| Action::Send(host, order)),
            },
            (Record::Switch { .. }, Some(at)) => place.zip(self.switch_order(at)).map(|((host, _), order)| Action::SendSwitch(host, order)),
            (Record::Retired { .. }, Some(at)) => place.zip(self.retirement(at)).map(|((host, _), order)| Action::SendSide(host, order)),
            // From here on its own health is watched, and the new release's numbers count.
            (Record::Host { .. }, Some(at)) => {
                self.begin_series(at);
                place.map(|(host, _)| Action::Watch(host))
            }
            _ => None,
        };
        self.actions.push_back(Action::Append(record));
        self.actions.extend(follows);
    }
}
