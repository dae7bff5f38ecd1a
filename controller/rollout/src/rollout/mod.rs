//! The rollout machine: walks a plan forward, and back when it must.
//!
//! `handle` takes an event in and decides; each decision becomes a [`Record`]
//! that is applied at once and handed out as [`Action::Append`]. The driver makes
//! the records durable before it performs any [`Action::Send`] that follows, and
//! stops the process if it cannot. After a restart [`Rollout::fold`] applies the
//! same records and decides nothing again.

mod apply;
mod back;
mod decide;
mod observe;
mod verbs;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::report::{Failure, HostFacts, Progress};
use tidegate_protocol::{
    Assignment, ComponentName, ComponentReport, Generation, HostName, Intent, Millis, Phase, ReleaseRef, RolloutId, Samples,
    SideAssignment, SidesReport, SwitchOrder, Timestamp, Watch,
};

use crate::gate::Group;
use crate::plan::Plan;
use crate::record::{Origin, Record, RolloutState, Seen, Step, TargetState, Verb};

pub use verbs::VerbError;

/// A host of a wave that is silent this long is unreachable.
pub const LOST_IN_WAVE: Millis = Millis::from_secs(15);
/// The driver notices silence at the latest after this.
pub const SILENCE_NOTICED: Millis = Millis::from_secs(10);
/// Preflight must be answered within this.
pub const PREFLIGHT_DEADLINE: Millis = Millis::from_secs(60);
/// Staging of one host may stand still this long.
pub const STAGING_STALL: Millis = Millis::from_secs(600);
/// The controller gives a host this much longer than the host gives itself.
pub const GRACE: Millis = Millis::from_secs(15);

/// What the machine asks of its driver, in the order polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make it durable before anything that follows.
    Append(Record),
    /// Tell the host, if it is connected; a reconnect asks [`Rollout::assignments`].
    Send(HostName, Assignment),
    /// The same for one side of a component; a reconnect asks [`Rollout::sides`].
    SendSide(HostName, SideAssignment),
    /// The same for a switch; a reconnect asks [`Rollout::switches`].
    SendSwitch(HostName, SwitchOrder),
    /// What this rollout wants measured on the host changed: tell it all of its
    /// [`Rollout::watches`], those of other rollouts included.
    Watch(HostName),
}

/// What the driver fetches for this rollout, every [`Fetch::every`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Key of the plan's metrics; said back in [`Event::Fetched`].
    pub metric: String,
    /// Of whom; said back.
    pub group: Group,
    /// From where.
    pub from: FetchFrom,
    /// Between two fetches.
    pub every: Millis,
}

/// Where something is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchFrom {
    /// Instant queries; `$hosts` is bound already.
    Prometheus {
        /// Base URL.
        url: String,
        /// Its answer is the value.
        query: String,
        /// Its answer is the number of samples behind it.
        samples: Option<String>,
    },
    /// The number of alerts that fire, silenced and inhibited ones left out.
    Alertmanager {
        /// Base URL.
        url: String,
        /// All must match.
        matchers: Vec<String>,
    },
}

/// What a fetch brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Fetched {
    /// One number, and how many samples it rests on, if that was asked.
    Value {
        /// As answered.
        value: f64,
        /// If asked.
        samples: Option<u64>,
    },
    /// Alerts that fire: fingerprint → `name (labels): summary`.
    Alerts(BTreeMap<String, String>),
}

/// What the machine reacts to, besides time passing.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A host's component as just reported.
    Report(&'a HostName, &'a ComponentReport),
    /// A host's sides as just reported.
    Sides(&'a HostName, &'a SidesReport),
    /// The machine's own numbers, as just reported.
    Facts(&'a HostName, &'a HostFacts),
    /// What a host measured, as just reported.
    Samples(&'a HostName, &'a Samples),
    /// A fetch ended; the error is one sentence.
    Fetched {
        /// As in the [`Fetch`].
        metric: &'a str,
        /// As in the [`Fetch`].
        group: Group,
        /// What it brought.
        result: Result<&'a Fetched, &'a str>,
    },
    /// A person declares that something happened.
    Declared {
        /// `data-corruption`, `security-incident`, or what the plan names.
        what: &'a str,
        /// Who.
        by: &'a str,
        /// What they saw.
        reason: &'a str,
    },
    /// A person attests an item of a stage.
    Attested {
        /// Which.
        item: &'a str,
        /// Who.
        by: &'a str,
        /// What they looked at.
        note: &'a str,
    },
    /// A newer rollout takes over what this one only watches.
    Superseded(&'a RolloutId),
    /// A host came into contact, or was lost.
    Contact(&'a HostName, bool),
    /// A person's word.
    Said {
        /// Which.
        verb: Verb,
        /// Who.
        by: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// The controller came back and folded the journal. Say it once per rollout
    /// that has not ended, after [`Rollout::fold`].
    Returned,
    /// The time of [`Rollout::poll_timeout`] has come.
    Timeout,
}

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
    /// Who paused it; none while it is not paused, or paused itself.
    paused_by: Option<String>,
    /// The first host whose failure passed the budget, or a person's word.
    cause_of_rollback: Option<String>,
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
    /// The latest time seen; never goes back.
    now: Timestamp,
    /// When deadlines were last looked at. Reports must not move it: in a large
    /// fleet one comes more often than a look is due.
    looked_at: Timestamp,
}

/// One (host, component) on its way.
#[derive(Clone, Debug)]
pub(crate) struct TargetRun {
    pub(crate) origin: Origin,
    pub(crate) wave: usize,
    pub(crate) component_at: usize,
    pub(crate) integration: bool,
    pub(crate) state: TargetState,
    pub(crate) since: Timestamp,
    pub(crate) generation: Generation,
    pub(crate) order: Option<Order>,
    /// The first forward swap order of any generation.
    pub(crate) swap_ordered: bool,
    /// A generation that another rollout used since; the next one is above it.
    pub(crate) fence: Generation,
    pub(crate) failure: Option<Failure>,
    pub(crate) counted: bool,
    pub(crate) checked: bool,
    pub(crate) seen: Option<Seen>,
    pub(crate) confirmed_as: Option<u64>,
    /// Leases forgiven because the controller was away.
    pub(crate) forgiven: u32,
    /// It settled its way back in this attempt to roll back.
    pub(crate) back_settled: bool,
    /// Not journaled: learnt again after a restart.
    pub(crate) live: Live,
}

/// Live numbers, lost on restart and learnt again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    pub(crate) progress: Option<Progress>,
    pub(crate) staged_bytes: u64,
    pub(crate) moved_at: Timestamp,
    pub(crate) cpu_permille: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) seen: Option<Seen>,
}

/// The newest order of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) intent: Intent,
    pub(crate) target: Option<ReleaseRef>,
    pub(crate) phase: Phase,
    pub(crate) at: Timestamp,
    /// When this generation was first ordered to swap.
    pub(crate) swap_at: Option<Timestamp>,
    pub(crate) integration: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Contact {
    pub(crate) up: bool,
    pub(crate) since: Timestamp,
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
        let record = Record::Started { plan: alloc::boxed::Box::new(plan.clone()), by: by.into(), from: origins.clone() };
        let mut rollout = Self::blank(id, plan, by.into(), origins, now);
        for (host, contact) in &mut rollout.contact {
            let lost = lost(host);
            *contact = Contact { up: lost.is_none(), since: lost.unwrap_or(now) };
        }
        rollout.actions.push_back(Action::Append(record));
        rollout.append(now, Record::State { to: RolloutState::Running, reason: "started".into() });
        rollout.append(now, Record::Step { step: Step::Preflight });
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
    /// [`VerbError`]: a person's word that does not fit the state; nothing changed.
    pub fn handle(&mut self, now: Timestamp, event: Event<'_>) -> Result<(), VerbError> {
        self.now = self.now.max(now);
        let now = self.now;
        // Deadlines are looked at when time passes, not at each of the thousands
        // of reports of a large fleet.
        let deadlines = matches!(event, Event::Timeout | Event::Contact(..));
        match event {
            Event::Report(host, report) => {
                let Some(at) = self.at(host, &report.component) else { return Ok(()) };
                self.contact.insert(host.clone(), Contact { up: true, since: now });
                if !self.observe(now, at, report) {
                    return Ok(());
                }
            }
            Event::Contact(host, up) => {
                if let Some(contact) = self.contact.get_mut(host).filter(|c| c.up != up) {
                    // The silence began with the last word, not when it was noticed.
                    let since = if up { now } else { contact.since.max(now - SILENCE_NOTICED) };
                    *contact = Contact { up, since };
                }
            }
            Event::Said { verb, by, reason } => self.said(now, verb, by, reason)?,
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
            }
            Event::Sides(..) | Event::Facts(..) | Event::Samples(..) | Event::Fetched { .. } | Event::Declared { .. } | Event::Attested { .. } | Event::Superseded(_) => {}
            Event::Timeout => {}
        }
        if deadlines {
            self.looked_at = now;
            self.deadlines(now);
        }
        self.decide(now);
        Ok(())
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
        let of_host = self.plan.components.iter().filter_map(|c| self.at(host, &c.name));
        of_host.filter_map(|at| self.assignment(at)).collect()
    }

    /// The standing assignments of a host's sides: said again at every hello.
    #[must_use]
    pub fn sides(&self, _host: &HostName) -> Vec<SideAssignment> {
        Vec::new()
    }

    /// The standing switch orders of a host: said again at every hello.
    #[must_use]
    pub fn switches(&self, _host: &HostName) -> Vec<SwitchOrder> {
        Vec::new()
    }

    /// What this rollout wants measured on a host now: said again at every hello,
    /// together with that of others.
    #[must_use]
    pub fn watches(&self, _host: &HostName) -> Vec<Watch> {
        Vec::new()
    }

    /// What the driver fetches now. Asked again after every event.
    #[must_use]
    pub fn fetches(&self) -> Vec<Fetch> {
        Vec::new()
    }

    /// It holds its targets: no other rollout may touch them. One that only
    /// watches does not, and is told of its successor by [`Event::Superseded`].
    #[must_use]
    pub fn holds(&self) -> bool {
        self.is_live() && self.state != RolloutState::Watching
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
            reversible: true,
        })
    }

    /// Applies a record and hands it out; an order is sent after it.
    fn append(&mut self, now: Timestamp, record: Record) {
        self.apply(now, &record);
        let ordered = match &record {
            Record::Ordered { host, component, .. } => Some((host.clone(), component.clone())),
            _ => None,
        };
        self.actions.push_back(Action::Append(record));
        if let Some((host, component)) = ordered
            && let Some(assignment) = self.at(&host, &component).and_then(|at| self.assignment(at))
        {
            self.actions.push_back(Action::Send(host, assignment));
        }
    }
}
