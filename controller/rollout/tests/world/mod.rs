//! A small fleet that obeys the rollout machine at once, except the hosts that are
//! told to misbehave: orders are carried out, processes start, requests are counted
//! and told like an agent tells them. Time passes only when a test says so.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test program uses another part of it")]

mod look;
mod requests;
mod tasks;
mod twin;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::report::{Failure, ServiceState};
use tidegate_protocol::side::{SideReport, SwitchProgress};
use tidegate_protocol::*;
use tidegate_rollout::plan::{FleetComponent, FleetSides};
use tidegate_rollout::spec::Strategy;
use tidegate_rollout::status::status;
use tidegate_rollout::*;

pub use requests::{GOOD, Load};
pub use words::{absent, manifest, report, running, running_since, started};

pub type R = Result<(), Box<dyn std::error::Error>>;

/// When every world begins.
pub const BEGIN: Timestamp = Timestamp(1_000_000);

/// How a world begins.
pub struct Setup {
    pub hosts: usize,
    pub components: Vec<&'static str>,
    /// Nothing runs yet.
    pub first_install: bool,
    /// Only the first host, forward and back.
    pub drill: bool,
}

/// What a world has of the process around a rollout.
#[derive(Default)]
pub struct Process {
    pub around: Surroundings,
    pub tasks: Vec<release::Task>,
    pub brought: Brought,
}

/// Hosts that do at once what they are told, except those told to misbehave.
pub struct World {
    pub rollout: Rollout,
    pub now: Timestamp,
    pub journal: Vec<(Timestamp, Record)>,
    /// Lengths of the journal that a driver can have made durable: one `handle`, one transaction.
    pub durable: Vec<usize>,
    /// With `watch_fold`: the status at each of them.
    pub snapshots: Option<Vec<(usize, String)>>,
    pub hosts: BTreeMap<(HostName, ComponentName), ComponentReport>,
    pub sides: BTreeMap<(HostName, ComponentName), SidesReport>,
    pub old: ReleaseRef,
    pub new: ReleaseRef,
    /// Fail their smoke test and revert by themselves.
    pub smoke_fails: BTreeSet<String>,
    /// Fail in preflight.
    pub preflight_fails: BTreeSet<String>,
    /// Cannot revert.
    pub stuck: BTreeSet<String>,
    /// Hear nothing and say nothing.
    pub deaf: BTreeSet<String>,
    /// Stop at probation.
    pub slow: BTreeSet<String>,
    /// Their switch fails, and traffic is put back.
    pub switch_fails: BTreeSet<String>,
    /// Their switch fails, and so does putting it back.
    pub switch_stuck: BTreeSet<String>,
    /// Begin to go back, and do not get there until `finish_back`.
    pub slow_back: bool,
    tree: Digest,
    pub most_in_flight: usize,
    pub swaps: Vec<(HostName, Generation)>,
    pub switched: Vec<(HostName, Side)>,
    /// By host, and whether it runs the new release.
    pub load: Loads,
    counted: BTreeMap<Place, requests::Counted>,
    done: BTreeMap<Place, (Generation, Phase)>,
    states: BTreeMap<(HostName, ComponentName), TargetState>,
    inbox: Vec<Order>,
    watched: BTreeMap<HostName, Vec<Watch>>,
    /// Every attempt that a host began.
    pub tasks_run: Vec<(u16, TaskRun, u32)>,
    /// How the attempts of tasks end, where not well; the last one stands for those after it.
    pub task_ends: BTreeMap<(u16, TaskRun), Vec<TaskState>>,
    /// What hosts know of those that ended.
    pub task_said: BTreeMap<(u16, TaskRun, u32), TaskReport>,
    /// The controller is killed once its journal has so many records.
    pub kill_at: Option<usize>,
    pub killed: bool,
}

/// What a host does in a second, by host and whether it runs the new release.
type Loads = Box<dyn Fn(&HostName, bool) -> Load>;

/// A link of a component on a host.
type Place = (HostName, ComponentName, Option<Side>);

enum Order {
    Assign(HostName, Assignment),
    Side(HostName, SideAssignment),
    Switch(HostName, SwitchOrder),
    Tasks(HostName),
}

fn tree_of(release: &Release) -> Digest {
    release.components[0].tree_digest()
}

pub fn name(i: usize) -> HostName {
    format!("h{i}").parse().unwrap()
}

/// The fields of a status that a journal holds: what only lives is left out.
pub fn journaled(rollout: &Rollout) -> String {
    let mut doc = serde_json::to_value(status(rollout)).unwrap();
    if !doc["observation"].is_null() {
        doc["gates"] = serde_json::Value::Null;
    }
    // The next opening is found by the clock.
    doc["window"] = serde_json::Value::Null;
    for host in doc["hosts"].as_array_mut().unwrap() {
        for key in ["cpu_percent", "memory_bytes", "release", "running_sha256", "tree_sha256", "main_pid_started_at", "smoke"] {
            host[key] = serde_json::Value::Null;
        }
    }
    doc.to_string()
}

impl World {
    pub fn new(n: usize, components: &[&'static str], plan: &str) -> Self {
        Self::with(n, components, plan, |_| {})
    }

    pub fn with(n: usize, components: &[&'static str], plan: &str, set: impl FnOnce(&mut Self)) -> Self {
        Self::begin(Setup { hosts: n, components: components.to_vec(), first_install: false, drill: false }, plan, set)
    }

    pub fn begin(setup: Setup, plan: &str, set: impl FnOnce(&mut Self)) -> Self {
        Self::begin_in(setup, plan, Process::default(), set)
    }

    /// As `begin`, with what an environment demands and a driver brings.
    pub fn begin_in(setup: Setup, plan: &str, process: Process, set: impl FnOnce(&mut Self)) -> Self {
        let Setup { hosts: n, components, first_install, drill } = setup;
        let (old, _) = manifest("1", &components);
        let (new, mut release) = manifest("2", &components);
        release.tasks = process.tasks;
        let hosts = components.iter().map(|c| format!("{c} = \"\"")).collect::<Vec<_>>().join(", ");
        let spec = Spec::parse(&format!("release = \"shop@2\"\nhosts = {{ {hosts} }}\n{plan}"), "plan.toml").unwrap();
        let sided = spec.strategy == Strategy::BlueGreen;
        let running = FleetComponent {
            release: Some(old.clone()),
            settled: true,
            running_sha256: Some(Digest::of(b"1")),
            tree_sha256: Some(Digest::of(b"t1")),
            sides: sided.then_some(FleetSides { active: Some(Side::Blue) }),
        };
        let running = if first_install { FleetComponent::default() } else { running };
        let fleet: Vec<FleetHost> = (1..=n)
            .map(|i| FleetHost {
                name: name(i),
                labels: BTreeMap::new(),
                drained: false,
                unusable: None,
                components: components.iter().map(|c| (c.parse().unwrap(), running.clone())).collect(),
            })
            .collect();
        let plan = if drill {
            Plan::resolve_drill(&spec, &new, &release, &fleet, &DrillScope::First).unwrap()
        } else {
            let online = fleet.iter().map(|h| h.name.clone()).collect();
            Plan::resolve_in(&spec, &new, &release, &fleet, &Surroundings { online, ..process.around }).unwrap()
        };
        let origins = plan.origins(&fleet, |_, _| Generation::new(1, 7));
        let key = |o: &record::Origin| (o.host.clone(), o.component.clone());
        let before = |c: &ComponentName| if first_install { absent(c) } else { report(c, &old) };
        let hosts = origins.iter().map(|o| (key(o), before(&o.component))).collect();
        let sides_of = |c: &ComponentName| SidesReport {
            component: c.clone(),
            active: (!first_install).then_some(Side::Blue),
            generation: Generation::ZERO,
            progress: SwitchProgress::None,
            failure: None,
            sides: if first_install { Vec::new() } else { vec![SideReport { side: Side::Blue, report: report(c, &old) }] },
        };
        let sides = origins.iter().filter(|_| sided).map(|o| (key(o), sides_of(&o.component))).collect();
        let now = BEGIN;
        let rollout = Rollout::submit("r1".parse().unwrap(), plan, origins, "ops", |_| None, process.brought, now);
        let mut world = Self {
            rollout,
            now,
            journal: Vec::new(),
            durable: Vec::new(),
            snapshots: None,
            hosts,
            sides,
            tree: tree_of(&release),
            old,
            new,
            smoke_fails: BTreeSet::new(),
            preflight_fails: BTreeSet::new(),
            stuck: BTreeSet::new(),
            deaf: BTreeSet::new(),
            slow: BTreeSet::new(),
            switch_fails: BTreeSet::new(),
            switch_stuck: BTreeSet::new(),
            slow_back: false,
            most_in_flight: 0,
            swaps: Vec::new(),
            switched: Vec::new(),
            load: Box::new(|_, _| GOOD),
            counted: BTreeMap::new(),
            done: BTreeMap::new(),
            states: BTreeMap::new(),
            inbox: Vec::new(),
            watched: BTreeMap::new(),
            tasks_run: Vec::new(),
            task_ends: BTreeMap::new(),
            task_said: BTreeMap::new(),
            kill_at: None,
            killed: false,
        };
        set(&mut world);
        world.run();
        world
    }

    /// Tells the machine, and makes durable what it decided.
    pub fn handle(&mut self, event: Event<'_>) -> Result<(), VerbError> {
        if self.killed {
            return Ok(());
        }
        let told = self.rollout.handle(self.now, event);
        self.drain();
        told
    }

    fn drain(&mut self) {
        let before = self.journal.len();
        while let Some(action) = self.rollout.poll_action() {
            match action {
                Action::Append(record) => {
                    self.note(&record);
                    self.journal.push((self.now, record));
                }
                Action::Send(host, assignment) => self.inbox.push(Order::Assign(host, assignment)),
                Action::SendSide(host, order) => self.inbox.push(Order::Side(host, order)),
                Action::SendSwitch(host, order) => self.inbox.push(Order::Switch(host, order)),
                Action::Watch(_) | Action::Outages(_) => {}
                Action::Tasks(host) => self.inbox.push(Order::Tasks(host)),
            }
        }
        if self.kill_at.is_some_and(|at| self.journal.len() >= at) {
            // What follows from records that are not durable is never sent.
            self.killed = true;
            self.inbox.clear();
        }
        if self.journal.len() > before {
            self.durable.push(self.journal.len());
            if let Some(snapshots) = &mut self.snapshots {
                snapshots.push((self.journal.len(), journaled(&self.rollout)));
            }
        }
    }

    fn note(&mut self, record: &Record) {
        let (key, state) = match record {
            Record::Ordered { host, component, intent: Intent::Back, .. } => ((host, component), TargetState::Reverting),
            Record::Ordered { host, component, phase: Phase::Swap, .. } => ((host, component), TargetState::Swapping),
            Record::Host { host, component, to, .. } => ((host, component), *to),
            _ => return,
        };
        self.states.insert((key.0.clone(), key.1.clone()), state);
        self.most_in_flight = self.most_in_flight.max(self.states.values().filter(|s| s.in_flight()).count());
    }

    /// Obeys everything until nothing moves.
    pub fn run(&mut self) {
        loop {
            self.drain();
            if self.inbox.is_empty() {
                return;
            }
            match self.inbox.remove(0) {
                Order::Assign(host, order) if self.hears(&host) => self.obey(&host, &order),
                Order::Side(host, order) if self.hears(&host) => self.obey_side(&host, &order),
                Order::Switch(host, order) if self.hears(&host) => self.obey_switch(&host, &order),
                Order::Tasks(host) if self.hears(&host) => self.obey_tasks(&host),
                _ => {}
            }
        }
    }

    pub fn hears(&self, host: &HostName) -> bool {
        !self.deaf.contains(host.as_str())
    }

    pub fn obey(&mut self, host: &HostName, order: &Assignment) {
        let key = (host.clone(), order.component.clone());
        if self.is_news(&key, None, order)
            && let Some(mut mine) = self.hosts.remove(&key)
        {
            self.follow(host, order, &mut mine, false);
            self.hosts.insert(key, mine);
        }
        self.say(host, &order.component);
    }

    fn is_news(&mut self, key: &(HostName, ComponentName), side: Option<Side>, order: &Assignment) -> bool {
        let word = (order.generation, order.phase);
        let known = self.done.entry((key.0.clone(), key.1.clone(), side)).or_insert((Generation::ZERO, Phase::Preflight));
        // A later phase of the same generation, or a newer generation.
        let news = word.0 > known.0 || (word.0 == known.0 && word.1 > known.1);
        if news {
            *known = word;
        }
        news
    }

    /// What the host does with an order of one link, and says of it.
    fn follow(&mut self, host: &HostName, order: &Assignment, mine: &mut ComponentReport, idle: bool) {
        let at = host.as_str();
        let smoke_fails = self.smoke_fails.contains(at);
        let (preflight_fails, stuck, slow) = (self.preflight_fails.contains(at), self.stuck.contains(at), self.slow.contains(at));
        let back = |mine: &ComponentReport, now: Timestamp, old: &ReleaseRef| match &order.target {
            // By itself it goes where its own preflight found it.
            _ if order.intent == Intent::Forward && !idle && mine.previous.is_some() => started(report(&order.component, old), b"1", now),
            Target::Release(_) if order.intent == Intent::Back => started(report(&order.component, old), b"1", now),
            _ => absent(&order.component),
        };
        mine.generation = order.generation;
        let fail = |cause| Some(Failure { cause, message: "as told".into() });
        match (order.intent, order.phase) {
            (Intent::Forward, Phase::Preflight) if preflight_fails => (mine.progress, mine.failure) = (Progress::Failed, fail(Cause::Disk)),
            (Intent::Forward, Phase::Preflight) => (mine.progress, mine.failure) = (Progress::Checked, None),
            (Intent::Forward, Phase::Stage) => mine.progress = Progress::Staged,
            (Intent::Forward, Phase::Cancel) => mine.progress = Progress::Cancelled,
            (Intent::Forward, Phase::Swap) => {
                self.swaps.push((host.clone(), order.generation));
                mine.previous = mine.current.take();
                mine.current = Some(self.new.clone());
                mine.tree_sha256 = Some(self.tree);
                mine.service = ServiceState::Running;
                mine.running = Some(running_since(b"2", self.now.0));
                mine.progress = if slow { Progress::Probation } else { Progress::Healthy };
                if smoke_fails {
                    let before = back(mine, self.now, &self.old);
                    *mine = ComponentReport {
                        generation: order.generation,
                        progress: if stuck { Progress::RevertFailed } else { Progress::Reverted },
                        failure: fail(Cause::Smoke),
                        ..if stuck { mine.clone() } else { before }
                    };
                }
            }
            (Intent::Forward, Phase::Confirm) => mine.progress = Progress::Confirmed,
            (Intent::Back, _) if stuck => (mine.progress, mine.failure) = (Progress::RevertFailed, fail(Cause::StartFailed)),
            (Intent::Back, _) if self.slow_back => mine.progress = Progress::Reverting,
            (Intent::Back, _) => {
                let before = back(mine, self.now, &self.old);
                *mine = ComponentReport { generation: order.generation, progress: Progress::Reverted, ..before };
            }
        }
    }

    fn obey_side(&mut self, host: &HostName, order: &SideAssignment) {
        let SideAssignment { side, assignment } = order;
        let key = (host.clone(), assignment.component.clone());
        if self.is_news(&key, Some(*side), assignment)
            && let Some(mut all) = self.sides.remove(&key)
        {
            let at = all.sides.iter().position(|s| s.side == *side).unwrap_or_else(|| {
                all.sides.push(SideReport { side: *side, report: absent(&assignment.component) });
                all.sides.len() - 1
            });
            self.follow(host, assignment, &mut all.sides[at].report, true);
            self.sides.insert(key, all);
        }
        self.say_sides(host, &assignment.component);
    }

    fn obey_switch(&mut self, host: &HostName, order: &SwitchOrder) {
        let key = (host.clone(), order.component.clone());
        let (fails, stuck) = (self.switch_fails.contains(host.as_str()), self.switch_stuck.contains(host.as_str()));
        let Some(mine) = self.sides.get_mut(&key) else { return };
        if order.generation > mine.generation {
            mine.generation = order.generation;
            if fails || stuck {
                mine.progress = if stuck { SwitchProgress::Stuck } else { SwitchProgress::Failed };
                mine.failure = Some(Failure { cause: Cause::Smoke, message: "as told".into() });
            } else {
                (mine.progress, mine.active, mine.failure) = (SwitchProgress::Switched, Some(order.to), None);
                self.switched.push((host.clone(), order.to));
            }
        }
        self.say_sides(host, &order.component);
    }

    pub fn say(&mut self, host: &HostName, component: &ComponentName) {
        let report = self.hosts[&(host.clone(), component.clone())].clone();
        self.handle(Event::Report(host, &report)).unwrap();
    }

    pub fn say_sides(&mut self, host: &HostName, component: &ComponentName) {
        let report = self.sides[&(host.clone(), component.clone())].clone();
        self.handle(Event::Sides(host, &report)).unwrap();
    }

    /// Hosts that hang on their way back get there now.
    pub fn finish_back(&mut self) {
        self.slow_back = false;
        let keys: Vec<_> = self.hosts.iter().filter(|(_, r)| r.progress == Progress::Reverting).map(|(k, _)| k.clone()).collect();
        for (host, component) in keys {
            let generation = self.hosts[&(host.clone(), component.clone())].generation;
            let before = started(report(&component, &self.old), b"1", self.now);
            let mine = ComponentReport { generation, progress: Progress::Reverted, ..before };
            self.hosts.insert((host.clone(), component.clone()), mine);
            self.say(&host, &component);
        }
        self.run();
    }

    /// Seconds, in which requests are made and told.
    pub fn pass(&mut self, secs: u64) {
        for _ in 0..secs {
            self.tick(500);
            self.now = self.now + Millis(500);
            self.requests();
            self.handle(Event::Timeout).unwrap();
            self.run();
        }
    }

    /// Time without a word of any host.
    pub fn tick(&mut self, ms: u64) {
        self.now = self.now + Millis(ms);
        self.handle(Event::Timeout).unwrap();
        self.run();
    }

    /// Until something holds; a test fails that waits longer.
    pub fn until(&mut self, what: &str, most_secs: u64, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..most_secs {
            if self.killed || holds(self) {
                return;
            }
            self.pass(1);
        }
        assert!(self.killed || holds(self), "{what} did not come in {most_secs} s: {} {}", self.rollout.state(), self.rollout.reason());
    }

    pub fn until_state(&mut self, state: RolloutState, most_secs: u64) {
        self.until(state.word(), most_secs, |w| w.rollout.state() == state);
    }

    /// The controller is killed and comes back; every host that hears says hello.
    pub fn restart(&mut self) {
        self.restart_at(self.journal.len());
    }

    /// The same, after the first so many records: what was decided later never
    /// became durable, and was never sent.
    pub fn restart_at(&mut self, records: usize) {
        self.journal.truncate(records);
        self.inbox.clear();
        (self.killed, self.kill_at) = (false, None);
        self.rollout = Rollout::fold("r1".parse().unwrap(), self.journal.clone()).unwrap();
        if self.rollout.is_live() {
            self.handle(Event::Returned).unwrap();
        }
        self.hellos();
    }

    pub fn hellos(&mut self) {
        let keys: Vec<_> = self.hosts.keys().cloned().collect();
        for (host, component) in keys {
            if self.hears(&host) {
                self.hello(&host, &component);
            }
        }
        self.run();
    }

    /// A host comes back, says where it is, and is told its standing orders.
    pub fn hello(&mut self, host: &HostName, component: &ComponentName) {
        self.handle(Event::Contact(host, true)).unwrap();
        if self.sides.is_empty() {
            self.say(host, component)
        } else {
            self.say_sides(host, component)
        }
        let orders = self.rollout.assignments(host).into_iter().map(|o| Order::Assign(host.clone(), o));
        let sides = self.rollout.sides(host).into_iter().map(|o| Order::Side(host.clone(), o));
        let switches = self.rollout.switches(host).into_iter().map(|o| Order::Switch(host.clone(), o));
        let words: Vec<Order> = orders.chain(sides).chain(switches).chain([Order::Tasks(host.clone())]).collect();
        self.inbox.extend(words);
    }

    /// A host is lost: it hears nothing, and the controller noticed.
    pub fn lose(&mut self, i: usize) {
        self.deaf.insert(name(i).to_string());
        self.handle(Event::Contact(&name(i), false)).unwrap();
        self.run();
    }

    /// A lost host is back.
    pub fn find(&mut self, i: usize) {
        self.deaf.remove(name(i).as_str());
        let components: Vec<_> = self.hosts.keys().filter(|(h, _)| *h == name(i)).map(|(_, c)| c.clone()).collect();
        for component in components {
            self.hello(&name(i), &component);
        }
        self.run();
    }

    pub fn verb(&mut self, verb: Verb) -> Result<(), VerbError> {
        let said = self.handle(Event::Said { verb, by: "ops", reason: "" });
        self.run();
        said
    }

    pub fn declare(&mut self, what: &str) -> Result<(), VerbError> {
        let declared = self.handle(Event::Declared { what, by: "ops", reason: "seen" });
        self.run();
        declared
    }

    /// A fetch brought a value for a group.
    pub fn fetched(&mut self, metric: &str, result: Result<f64, &str>) {
        for fetch in self.rollout.fetches().into_iter().filter(|f| f.metric == metric) {
            let value = result.map(|value| Fetched::Value { value, samples: None });
            let group = fetch.group;
            self.handle(Event::Fetched { metric, group, result: value.as_ref().map_err(|why| *why) }).unwrap();
        }
        self.run();
    }
}
