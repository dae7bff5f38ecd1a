//! The checker: the invariants of the design, judged by what is durable and by
//! what hosts really run, never by what a machine says of itself.
//!
//! Owns: its own reading of the journal, kept apart from the machine's fold, and
//! what was ever durable on each host. Must not: change anything.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::{Generation, Intent, Phase, ReleaseRef, Timestamp};
use tidegate_rollout::record::Origin;
use tidegate_rollout::status::status;
use tidegate_rollout::{Plan, Record, Rollout, RolloutState, TargetState, Verb};
use tidegate_swap::{Op, State, Step};

use super::host::{Part, SimHost, on_its_way};
use super::world::{Bad, Kind, World};

/// A (host, component), by index.
type At = (usize, usize);

/// What was seen so far, and what was wrong with it.
pub(super) struct Check {
    pub(super) violations: Vec<String>,
    now: u64,
    models: Vec<Model>,
    /// The highest word that was ever durable.
    highest: BTreeMap<At, (Generation, Phase)>,
    confirmed: BTreeSet<(At, Generation)>,
    /// How often `current` went forward for a generation.
    pub(super) swaps: BTreeMap<(At, Generation), u32>,
    last_forward: BTreeMap<At, Generation>,
    /// Ever named as an exception: whatever runs there, a person was told.
    excepted: BTreeSet<At>,
    /// The disk refused what it did and a crash made it forget: it may go forward
    /// once more, out of anybody's window, until its lease brings it back.
    forgot: BTreeSet<At>,
}

/// The checker's own reading of one rollout's journal.
struct Model {
    plan: Plan,
    state: RolloutState,
    halting: bool,
    targets: BTreeMap<At, TargetModel>,
    orders: BTreeSet<(At, Generation, Back)>,
    last_state: Option<RolloutState>,
    /// Ordered back while the rollout went forward: right only if the very next
    /// record gives the host up as unreachable.
    given_up: Option<(At, String)>,
}

type Back = bool;

struct TargetModel {
    previous: Option<ReleaseRef>,
    state: TargetState,
    swap_ordered: bool,
    counted: bool,
    /// Unreachable or not back, at any time: it swaps and reverts on its own lease.
    excepted: bool,
    confirmed: bool,
    /// Since the last order.
    last: Option<(TargetState, Generation)>,
}

impl Model {
    fn new(world: &World, plan: &Plan, origins: &[Origin]) -> Self {
        let targets = origins.iter().filter_map(|origin| {
            let target = TargetModel {
                previous: origin.previous.clone(),
                state: TargetState::Pending,
                swap_ordered: false,
                counted: false,
                excepted: false,
                confirmed: false,
                last: None,
            };
            Some((position(world, &origin.host, &origin.component)?, target))
        });
        Self {
            plan: plan.clone(),
            state: RolloutState::Scheduled,
            halting: false,
            targets: targets.collect(),
            orders: BTreeSet::new(),
            last_state: None,
            given_up: None,
        }
    }
}

fn position(world: &World, host: &tidegate_protocol::HostName, component: &tidegate_protocol::ComponentName) -> Option<At> {
    let h = world.hosts.iter().position(|n| n == host)?;
    let c = world.components.iter().position(|n| n == component)?;
    Some((h, c))
}

impl Check {
    pub(super) fn new(_world: &World) -> Self {
        Self {
            violations: Vec::new(),
            now: 0,
            models: Vec::new(),
            highest: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            swaps: BTreeMap::new(),
            last_forward: BTreeMap::new(),
            excepted: BTreeSet::new(),
            forgot: BTreeSet::new(),
        }
    }

    pub(super) fn say(&mut self, what: String) {
        self.violations.push(format!("at {} ms: {what}", self.now));
    }

    pub(super) fn failed(&self) -> bool {
        !self.violations.is_empty()
    }

    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.say(what());
        }
    }

    pub(super) fn forgets(&mut self, h: usize, c: usize) {
        self.forgot.insert((h, c));
    }

    pub(super) fn started(&mut self, world: &World, plan: &Plan, origins: &[Origin]) {
        self.models.push(Model::new(world, plan, origins));
    }

    /// After a crash: only what is durable was ever so.
    pub(super) fn replay<'a>(
        &mut self,
        world: &World,
        journals: impl Iterator<Item = (&'a Plan, &'a [(Timestamp, Record)])>,
        hosts: &[SimHost],
    ) {
        self.models.clear();
        for (run, (plan, journal)) in journals.enumerate() {
            for (_, record) in journal {
                if let Record::Started { from, .. } = record {
                    self.models.push(Model::new(world, plan, from));
                }
                self.read(world, run, record, hosts, false);
            }
        }
    }

    pub(super) fn appended(&mut self, world: &World, run: usize, record: &Record, hosts: &[SimHost]) {
        self.read(world, run, record, hosts, true);
    }

    fn read(&mut self, world: &World, run: usize, record: &Record, hosts: &[SimHost], judge: bool) {
        let Some(mut model) = (run < self.models.len()).then(|| self.models.remove(run)) else { return };
        let mut wrong = Vec::new();
        if let Some((at, what)) = model.given_up.take() {
            let unreachable = matches!(record, Record::Host { host, component, to: TargetState::Unreachable, .. } if position(world, host, component) == Some(at));
            if !unreachable {
                wrong.push(what);
            }
        }
        match record {
            Record::Started { .. } | Record::Step { .. } | Record::Returned | Record::Fenced { .. } | Record::Healed { .. } => {}
            // Gates and sides have checks of their own, in the rollout crate.
            Record::Baseline { .. }
            | Record::Observed { .. }
            | Record::Judged { .. }
            | Record::Gate { .. }
            | Record::Tripped { .. }
            | Record::Investigation { .. }
            | Record::Alert { .. }
            | Record::Attested { .. }
            | Record::Switch { .. }
            | Record::Switched { .. }
            | Record::Retired { .. }
            | Record::Drilled { .. } => {}
            // The process has checks of its own too: readiness, signatures, tasks, papers.
            Record::Readiness { .. }
            | Record::Windows { .. }
            | Record::Freeze { .. }
            | Record::Approved { .. }
            | Record::Overridden { .. }
            | Record::Began
            | Record::TaskOrdered { .. }
            | Record::TaskEnded { .. }
            | Record::Stopping { .. }
            | Record::Probed { .. }
            | Record::Outage { .. }
            | Record::Notified { .. }
            | Record::Reminded { .. }
            | Record::Noted { .. }
            | Record::Item { .. }
            | Record::SignedOff { .. }
            | Record::Reviewed { .. }
            | Record::Closed { .. } => {}
            Record::Found { origin } => {
                let target = position(world, &origin.host, &origin.component).and_then(|at| model.targets.get_mut(&at));
                if let Some(target) = target {
                    if target.swap_ordered {
                        wrong.push(format!("{} {}: its way back changed after its swap order", origin.host, origin.component));
                    }
                    target.previous.clone_from(&origin.previous);
                }
            }
            Record::State { to, .. } => {
                if model.last_state == Some(*to) {
                    wrong.push(format!("I10: the rollout became {to} twice"));
                }
                (model.last_state, model.state) = (Some(*to), *to);
                model.halting &= !to.is_terminal();
                if *to == RolloutState::RolledBack {
                    for ((h, c), target) in model.targets.iter().filter(|(at, t)| t.swap_ordered && !self.forgot.contains(at)) {
                        let link = &hosts[*h].parts[*c].link;
                        if *link != target.previous {
                            wrong.push(format!("I11: rolled back, but {} is on {link:?}", world.hosts[*h]));
                        }
                    }
                }
            }
            Record::Said { verb, .. } => model.halting |= *verb == Verb::Halt,
            Record::Ordered { host, component, generation, intent, phase, .. } => {
                let Some(at) = position(world, host, component) else { return };
                let who = format!("{host} {component} {generation}");
                let back = *intent == Intent::Back;
                if !back && *phase == Phase::Swap {
                    wrong.extend(may_swap(world, &model, at).into_iter().map(|why| format!("{who}: {why}")));
                }
                let going_back = model.state == RolloutState::RollingBack;
                if let Some(target) = model.targets.get_mut(&at) {
                    if !back && *phase == Phase::Confirm && target.state != TargetState::Healthy {
                        wrong.push(format!("{who}: confirmed while {}", target.state));
                    }
                    if back && !going_back && target.state != TargetState::Reverting {
                        let what = format!("{who}: called back while the rollout is {} and it is {}", model.state, target.state);
                        model.given_up = Some((at, what));
                    }
                    target.last = None;
                    match (back, phase) {
                        (true, _) => target.state = TargetState::Reverting,
                        (false, Phase::Stage) => target.state = TargetState::Staging,
                        (false, Phase::Swap) => (target.state, target.swap_ordered) = (TargetState::Swapping, true),
                        _ => {}
                    }
                }
                if back || *phase == Phase::Swap {
                    model.orders.insert((at, *generation, back));
                }
            }
            Record::Host { host, component, generation, to, counted, .. } => {
                let Some(at) = position(world, host, component) else { return };
                if *to == TargetState::Confirmed && !self.confirmed.contains(&(at, *generation)) {
                    wrong.push(format!("{host} {component}: journaled as confirmed({generation}), which it never was"));
                }
                let ended = model.state.is_terminal();
                if let Some(target) = model.targets.get_mut(&at) {
                    if target.last == Some((*to, *generation)) {
                        wrong.push(format!("I10: {host} {component} became {to} twice"));
                    }
                    target.last = Some((*to, *generation));
                    target.state = *to;
                    target.counted |= counted;
                    target.confirmed |= *to == TargetState::Confirmed;
                    if matches!(to, TargetState::Unreachable | TargetState::RevertFailed) {
                        target.excepted = true;
                    }
                    if matches!(to, TargetState::Unreachable | TargetState::RevertFailed | TargetState::Failed) {
                        self.excepted.insert(at);
                    }
                    if ended && *to == TargetState::Confirmed && target.previous.is_some() && !target.swap_ordered {
                        wrong.push(format!("{host} {component}: confirmed after the end without an order"));
                    }
                }
            }
        }
        self.models.insert(run, model);
        if judge {
            wrong.into_iter().for_each(|what| self.say(what));
        }
    }

    /// A ledger record is durable; `part` still has the one before.
    pub(super) fn durable(&mut self, world: &World, h: usize, c: usize, part: &Part, record: &tidegate_swap::Record) {
        let who = || format!("{} {}", world.hosts[h], world.components[c]);
        let word = record.pending.as_ref().or(record.assignment.as_ref());
        let next = word.map_or((Generation::ZERO, Phase::Preflight), |a| (a.generation, a.phase));
        if let Some(before) = self.highest.insert((h, c), next) {
            self.expect(next >= before, || format!("I5: {} fell from {before:?} to {next:?}", who()));
        }
        let Some(assignment) = &record.assignment else { return };
        if matches!(record.state, State::Healthy | State::Confirmed) {
            let wanted = assignment.target.release();
            let runs = part.service.as_ref().map(|p| &p.tree);
            self.expect(part.link.as_ref() == wanted && runs == wanted, || {
                format!("{} is {:?} on {:?}, but {runs:?} runs and current is {:?}", who(), record.state, assignment.target, part.link)
            });
        }
        if record.state == State::Confirmed {
            self.confirmed.insert(((h, c), assignment.generation));
        }
    }

    /// An operation begins.
    pub(super) fn begins(&mut self, world: &World, h: usize, c: usize, part: &Part, op: &Op) {
        let Op::Flip { to } = op else { return };
        let who = format!("{} {}", world.hosts[h], world.components[c]);
        let Some(record) = part.machine.as_ref().map(|m| m.record()) else { return };
        let Some(assignment) = &record.assignment else { return self.say(format!("{who}: a flip without an order")) };
        let (at, generation) = ((h, c), assignment.generation);
        let back = assignment.intent == Intent::Back;
        if record.state == State::Swapping(Step::Flip) {
            let durable = part
                .ledger
                .as_ref()
                .is_some_and(|l| l.state == record.state && l.assignment.as_ref().is_some_and(|a| a.generation == generation));
            self.expect(durable, || format!("{who}: the flip to {to:?} begins before the ledger says so"));
            let highest = self.highest.get(&at).map(|h| h.0);
            self.expect(highest.is_none_or(|h| generation >= h), || format!("I5: {who} swaps for {generation}, but has seen {highest:?}"));
            self.expect(!back && to == &assignment.target, || format!("{who}: swaps to {to:?}, told {assignment:?}"));
        } else {
            let kept = !back && self.confirmed.contains(&(at, generation));
            self.expect(!kept, || format!("{who}: goes back by itself after confirmed({generation})"));
        }
        let ordered = self.models.iter().any(|m| m.orders.contains(&(at, generation, back)));
        self.expect(ordered, || format!("I5: {who} moves for {generation}, which the journal never ordered"));
    }

    /// `current` was replaced.
    pub(super) fn link_moved(&mut self, world: &World, h: usize, c: usize, part: &Part, before: Option<&ReleaseRef>) {
        let complete = part.link.as_ref().is_none_or(|link| part.trees.contains(link));
        self.expect(complete, || format!("I2: {} {}: current points at an incomplete tree", world.hosts[h], world.components[c]));
        let Some(record) = part.machine.as_ref().map(|m| m.record()) else { return };
        let forward = record.state == State::Swapping(Step::Flip);
        self.last_forward.remove(&(h, c));
        if let (true, Some(assignment)) = (forward && part.link.as_ref() != before, &record.assignment) {
            let generation = assignment.generation;
            let swaps = self.swaps.entry(((h, c), generation)).or_default();
            *swaps += 1;
            let twice = *swaps > 1 && !self.forgot.contains(&(h, c));
            self.last_forward.insert((h, c), generation);
            self.expect(!twice, || format!("{} {}: swapped twice for {generation}", world.hosts[h], world.components[c]));
        }
    }

    /// A power cut undid a rename that was not durable.
    pub(super) fn link_lost(&mut self, h: usize, c: usize, _lost: Option<&ReleaseRef>) {
        if let Some(generation) = self.last_forward.remove(&(h, c))
            && let Some(swaps) = self.swaps.get_mut(&((h, c), generation))
        {
            *swaps = swaps.saturating_sub(1);
        }
    }

    /// After every event: I2, I4 and I7 over the whole fleet.
    pub(super) fn step(&mut self, world: &World, now: u64, hosts: &[SimHost]) {
        self.now = now;
        for (h, host) in hosts.iter().enumerate() {
            for (c, part) in host.parts.iter().enumerate() {
                let complete = part.link.as_ref().is_none_or(|link| part.trees.contains(link));
                let way_back = part.ledger.as_ref().filter(|l| on_its_way(&l.state)).and_then(|l| {
                    let forward = l.assignment.as_ref().is_some_and(|a| a.intent == Intent::Forward);
                    l.swap.as_ref().filter(|_| forward).and_then(|s| s.from.release())
                });
                if !complete {
                    self.say(format!("I2: {} {}: current points at nothing complete", world.hosts[h], world.components[c]));
                }
                if way_back.is_some_and(|release| !part.trees.contains(release)) {
                    self.say(format!("I7: {} {}: the release to go back to is gone", world.hosts[h], world.components[c]));
                }
            }
        }
        if let Some(model) = self.models.last() {
            let wrong = out_of_service(world, model, &self.forgot, hosts);
            wrong.into_iter().for_each(|what| self.say(what));
        }
    }

    /// Everything is at rest: I3, I11, and what this kind of world must come to.
    pub(super) fn phase_ended(&mut self, world: &World, phase: usize, rollout: &Rollout, hosts: &[SimHost]) {
        let Some(model) = self.models.pop() else { return self.say("no rollout was ever started".to_string()) };
        let new = &rollout.plan().release;
        for doc in status(rollout).hosts {
            let Some((h, c)) = position(world, &doc.host, &doc.component) else { continue };
            let Some(target) = model.targets.get(&(h, c)) else { continue };
            let part = &hosts[h].parts[c];
            let (link, old) = (part.link.as_ref(), target.previous.as_ref());
            let runs = part.service.as_ref().map(|p| &p.tree);
            let who = format!("{} {} is {}", doc.host, doc.component, doc.state);
            self.expect(doc.state == target.state, || format!("{who}, but the journal says {}", target.state));
            let excused = self.excepted.contains(&(h, c)) || old.is_some_and(|r| world.bad(h, r).is_some());
            match doc.state {
                TargetState::Confirmed => {
                    self.expect(link == Some(new) && runs == Some(new), || format!("I3: {who}, on {link:?}, runs {runs:?}"));
                }
                TargetState::Reverted
                | TargetState::Skipped
                | TargetState::Failed
                | TargetState::Pending
                | TargetState::Staging
                | TargetState::Staged => {
                    self.expect(link == old && (runs == old || excused), || {
                        format!("I3: {who}, on {link:?}, runs {runs:?}, was on {old:?}")
                    });
                }
                TargetState::Unreachable => {
                    let known = link == old || (target.swap_ordered && link == Some(new));
                    self.expect(known && doc.cause.is_some(), || format!("I3: {who}, on {link:?}, cause {:?}", doc.cause));
                }
                // Whatever is there is complete (I2); a person was told of it.
                TargetState::RevertFailed => self.expect(doc.cause.is_some(), || format!("I3: {who}, and nobody is told why")),
                TargetState::Swapping | TargetState::Probation | TargetState::Healthy | TargetState::Reverting => {
                    self.say(format!("I3: {who} at rest, on {link:?}"));
                }
            }
            if rollout.state() == RolloutState::RolledBack && target.swap_ordered {
                self.expect(link == old, || format!("I11: rolled back, but {who} on {link:?}"));
            }
            if rollout.state() == RolloutState::Completed && doc.state != TargetState::Confirmed {
                self.expect(doc.cause.is_some(), || format!("I3: completed, but {who} and nobody is told why"));
            }
            let failed = matches!(part.ledger.as_ref().map(|l| &l.state), Some(State::Failed(_) | State::RevertFailed(_)));
            // A drain that an earlier rollout named as not undone, and nothing since.
            let known = self.excepted.contains(&(h, c)) && !target.swap_ordered;
            self.expect(!part.drained || failed || known, || format!("{who}, and was left drained"));
        }
        let good = world.kind == Kind::Calm || world.kind == Kind::ControllerOnly || phase + 1 < world.phases.len();
        let state = rollout.state();
        if good && world.kind != Kind::Chaos {
            let all = model.targets.values().all(|t| t.state == TargetState::Confirmed);
            self.expect(state == RolloutState::Completed && all, || {
                format!("a good release without a fault ended {state}: {}", rollout.reason())
            });
        }
        if world.kind == Kind::BadRelease {
            let release = &world.releases[world.phases[phase].release];
            let network = release.bad.values().any(|b| *b == Bad::Network);
            let definite = matches!(state, RolloutState::Completed | RolloutState::RolledBack | RolloutState::Refused);
            self.expect(definite || network, || format!("a bad release alone ended {state}: {}", rollout.reason()));
        }
        self.models.push(model);
    }
}

/// I8 and I9, and the window as the journal sees it.
fn may_swap(world: &World, model: &Model, at: At) -> Vec<String> {
    let mut wrong = Vec::new();
    if model.state != RolloutState::Running || model.halting {
        wrong.push(format!("I9: ordered to swap while the rollout is {}{}", model.state, if model.halting { ", halting" } else { "" }));
    }
    let early = model.targets.values().any(|t| matches!(t.state, TargetState::Pending | TargetState::Staging));
    if early {
        wrong.push("I8: ordered to swap before all are staged".to_string());
    }
    let failed: BTreeSet<usize> = model.targets.iter().filter(|(_, t)| t.counted).map(|((h, _), _)| *h).collect();
    if failed.len() > model.plan.limits.max_failed_hosts {
        wrong.push(format!("I8: ordered to swap with {} failed hosts", failed.len()));
    }
    let in_flight = model.targets.iter().filter(|(a, t)| a.1 == at.1 && t.state.in_flight()).count();
    let window = model.plan.components.iter().find(|c| c.name == world.components[at.1]).map_or(0, |c| c.window);
    if in_flight >= window {
        wrong.push(format!("I4: ordered to swap with {in_flight} in flight, window {window}"));
    }
    wrong
}

/// I4, by what hosts have in their ledgers.
fn out_of_service(world: &World, model: &Model, forgot: &BTreeSet<At>, hosts: &[SimHost]) -> Vec<String> {
    let mut wrong = Vec::new();
    for component in &model.plan.components {
        let Some(c) = world.components.iter().position(|n| *n == component.name) else { continue };
        let (mut forward, mut back, mut down, mut first) = (0, 0, 0, false);
        let mut own = 0;
        for (_, target) in model.targets.iter().filter(|((_, tc), _)| *tc == c) {
            own += 1;
            first |= target.previous.is_none();
        }
        let counts = |at: &At, t: &TargetModel| at.1 == c && !t.excepted && !forgot.contains(at);
        for ((h, _), target) in model.targets.iter().filter(|(at, t)| counts(at, t)) {
            let Some(state) = hosts[*h].parts[c].moving() else { continue };
            if target.confirmed {
                back += 1
            } else {
                forward += 1
            }
            down += usize::from(*state != State::Healthy);
        }
        let rolling_back = model.state == RolloutState::RollingBack;
        if forward > component.window || back > component.rollback_window {
            wrong.push(format!(
                "I4: {forward} hosts of {} on their way forward (window {}), {back} on their way back (window {})",
                component.name, component.window, component.rollback_window
            ));
        }
        let floor = own - component.keep_in_service.min(own) + usize::from(rolling_back);
        if !first && down > floor {
            wrong.push(format!(
                "I4: {down} of {own} hosts of {} are out of service, {} must stay in",
                component.name, component.keep_in_service
            ));
        }
    }
    wrong
}
