//! A simulated host: the real machines, and what they change.
//!
//! Owns: performing what the machines ask for, with everything that can happen
//! between a step's begin, its effect and its end; what the host says of itself.
//! Must not: decide anything that the machine decides.

use std::collections::{BTreeSet, VecDeque};

use tidegate_protocol::report::{Progress, Running, ServiceState};
use tidegate_protocol::{Assignment, BootId, ComponentReport, Intent, Phase, ReleaseRef, Timestamp};
use tidegate_swap::{Action, Event, HistoryEntry, Machine, Op, OpId, Outcome, Record, State, Step};

use super::engine::{EPOCH, Ev, Sim};
use super::world::name;
use super::{Mutant, log};

/// One host.
pub(super) struct SimHost {
    pub(super) power: bool,
    pub(super) agent: bool,
    /// One life of the agent: what was under way in another one never arrives.
    pub(super) life: u64,
    pub(super) boot: u64,
    pub(super) booted_at: u64,
    pub(super) hang_until: u64,
    pub(super) disk_full_until: u64,
    pub(super) cut_up_until: u64,
    pub(super) cut_down_until: u64,
    pub(super) session: Session,
    pub(super) parts: Vec<Part>,
}

/// The agent's end of its connection.
#[derive(Default)]
pub(super) struct Session {
    pub(super) n: u64,
    pub(super) up: bool,
    pub(super) since: u64,
    pub(super) heard: u64,
    pub(super) reported: u64,
}

/// One component on one host.
pub(super) struct Part {
    /// What is durable.
    pub(super) ledger: Option<Record>,
    pub(super) machine: Option<Machine>,
    /// Under way to the disk.
    pub(super) saving: Option<(Record, u64)>,
    pub(super) running: Option<Doing>,
    /// Came while the driver waited for the disk.
    pub(super) inbox: VecDeque<Event>,
    /// What `current` points at.
    pub(super) link: Option<ReleaseRef>,
    pub(super) trees: BTreeSet<ReleaseRef>,
    pub(super) service: Option<Process>,
    /// `before` ran, `after` did not.
    pub(super) drained: bool,
    pub(super) timer: u64,
}

/// The main process.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) tree: ReleaseRef,
    /// Since boot.
    pub(super) started_at: u64,
}

/// An operation under way.
pub(super) struct Doing {
    pub(super) id: OpId,
    pub(super) op: Op,
    pub(super) token: u64,
    /// It had its effect; its end is not told yet.
    pub(super) effect: bool,
    /// Before a flip: what a power cut may bring back.
    pub(super) link_before: Option<ReleaseRef>,
}

impl SimHost {
    pub(super) fn new(installed: Option<&ReleaseRef>, components: &[(tidegate_protocol::ComponentName, bool)]) -> Self {
        let parts = components
            .iter()
            .map(|(component, has)| {
                let installed = installed.filter(|_| *has);
                Part {
                    ledger: installed.map(|release| settled(component, release)),
                    machine: None,
                    saving: None,
                    running: None,
                    inbox: VecDeque::new(),
                    link: installed.cloned(),
                    trees: installed.cloned().into_iter().collect(),
                    service: installed.map(|release| Process { tree: release.clone(), started_at: 0 }),
                    drained: false,
                    timer: u64::MAX,
                }
            })
            .collect();
        Self {
            power: true,
            agent: false,
            life: 0,
            boot: 1,
            booted_at: 0,
            hang_until: 0,
            disk_full_until: 0,
            cut_up_until: 0,
            cut_down_until: 0,
            session: Session::default(),
            parts,
        }
    }

    pub(super) fn boot_id(&self) -> BootId {
        name(&format!("boot-{}", self.boot))
    }
}

/// A ledger as an earlier rollout left it.
fn settled(component: &tidegate_protocol::ComponentName, release: &ReleaseRef) -> Record {
    let generation = tidegate_protocol::Generation::new(1, 1);
    let target = tidegate_protocol::Target::Release(release.clone());
    Record {
        component: component.clone(),
        assignment: Some(Assignment {
            generation,
            component: component.clone(),
            rollout: name("r0"),
            intent: Intent::Forward,
            target: target.clone(),
            phase: Phase::Confirm,
            healthy_deadline: tidegate_protocol::Millis::from_secs(60),
            confirm_within: tidegate_protocol::Millis::from_secs(60),
            accept_drift: false,
            integration: false,
            reversible: true,
        }),
        state: State::Confirmed,
        standing: Some(release.clone()),
        previous: None,
        swap: None,
        pending: None,
        history: vec![HistoryEntry { generation, target, swaps: 1, progress: Progress::Confirmed }],
    }
}

impl Sim {
    /// The agent begins (again): every machine goes on from its ledger.
    pub(super) fn agent_up(&mut self, h: usize) {
        let host = &mut self.hosts[h];
        if !host.power || host.agent {
            return;
        }
        host.agent = true;
        host.session = Session { n: host.session.n, ..Session::default() };
        log!(self, "{} agent begins, boot {}", self.world.hosts[h], self.hosts[h].boot);
        let (at, unix) = self.host_time(h);
        let boot_id = self.hosts[h].boot_id();
        for c in 0..self.hosts[h].parts.len() {
            let part = &mut self.hosts[h].parts[c];
            part.machine = part.ledger.clone().map(|record| Machine::recover(record, boot_id.clone(), at, unix));
            self.pump(h, c);
        }
        let life = self.hosts[h].life;
        self.after(1, Ev::AgentBeat { h, life });
    }

    /// The agent's process is gone; the service is not.
    pub(super) fn agent_down(&mut self, h: usize) {
        log!(self, "{} agent killed", self.world.hosts[h]);
        self.hosts[h].agent = false;
        self.hosts[h].life += 1;
        self.hosts[h].session.up = false;
        for c in 0..self.hosts[h].parts.len() {
            // What the kernel or the service manager was asked for may be done yet.
            let went_on = self.hosts[h].parts[c].running.as_ref().is_some_and(|doing| !doing.effect) && self.run.chance(500);
            if went_on {
                self.half_effect(h, c);
            }
            if let Some((record, _)) = self.hosts[h].parts[c].saving.take()
                && self.run.chance(300)
            {
                self.durable(h, c, record);
            }
            if self.hosts[h].parts[c].shows_more_than_is_durable() {
                self.check.forgets(h, c);
            }
            let part = &mut self.hosts[h].parts[c];
            part.machine = None;
            part.running = None;
            part.inbox.clear();
            part.timer = u64::MAX;
        }
    }

    pub(super) fn kill_agent(&mut self, h: usize) {
        if self.hosts[h].agent {
            self.agent_down(h);
            let life = self.hosts[h].life;
            let away = self.run.pick(&[150, 1_000, 5_000, 20_000]);
            self.after(away, Ev::AgentUp { h, life });
        }
    }

    /// Power is cut; what was not durable is gone.
    pub(super) fn reboot(&mut self, h: usize) {
        if !self.hosts[h].power {
            return;
        }
        log!(self, "{} loses power", self.world.hosts[h]);
        for c in 0..self.hosts[h].parts.len() {
            let undone = self.run.chance(500);
            let part = &mut self.hosts[h].parts[c];
            if let Some(doing) = part.running.take().filter(|doing| doing.effect && matches!(doing.op, Op::Flip { .. }))
                && undone
            {
                // The rename was not on the disk yet.
                let lost = part.link.clone();
                part.link = doing.link_before;
                self.check.link_lost(h, c, lost.as_ref());
            }
        }
        if self.hosts[h].agent {
            self.agent_down(h);
        }
        self.hosts[h].parts.iter_mut().for_each(|part| part.service = None);
        self.hosts[h].power = false;
        self.hosts[h].life += 1;
        let away = self.run.pick(&[2_000, 8_000, 25_000]);
        self.after(away, Ev::PowerUp { h });
    }

    /// The host boots: its service manager starts what `current` points at.
    pub(super) fn power_up(&mut self, h: usize) {
        let now = self.now;
        let host = &mut self.hosts[h];
        host.power = true;
        host.boot += 1;
        host.booted_at = now;
        log!(self, "{} boots", self.world.hosts[h]);
        for c in 0..self.hosts[h].parts.len() {
            if let Some(link) = self.hosts[h].parts[c].link.clone() {
                self.start_service(h, c, &link);
            }
        }
        let life = self.hosts[h].life;
        let wait = self.run.between(100, 3_000);
        self.after(wait, Ev::AgentUp { h, life });
    }

    /// Since boot, and Unix milliseconds.
    pub(super) fn host_time(&self, h: usize) -> (Timestamp, u64) {
        (Timestamp(self.now - self.hosts[h].booted_at), EPOCH + self.now)
    }

    pub(super) fn tell(&mut self, h: usize, c: usize, event: Event) {
        let (at, unix) = self.host_time(h);
        let hears = self.world.hears_while_saving;
        let part = &mut self.hosts[h].parts[c];
        let answer = matches!(event, Event::Persisted | Event::PersistFailed(_));
        if part.saving.is_some() && !answer && !hears {
            part.inbox.push_back(event);
            return;
        }
        if let Some(machine) = part.machine.as_mut() {
            machine.handle(at, unix, event);
        }
        self.pump(h, c);
    }

    /// Performs what the machine asks for, up to the next wait for the disk.
    pub(super) fn pump(&mut self, h: usize, c: usize) {
        let mut news = false;
        loop {
            let part = &mut self.hosts[h].parts[c];
            if part.saving.is_some() {
                break;
            }
            let Some(machine) = part.machine.as_mut() else { return };
            match machine.poll_action() {
                Some(Action::Persist(record)) => {
                    self.token += 1;
                    let token = self.token;
                    self.hosts[h].parts[c].saving = Some((record, token));
                    let took = self.run.between(1, 25);
                    self.after(took, Ev::Saved { h, c, token });
                }
                Some(Action::Run(id, op)) => self.begin(h, c, id, op),
                Some(Action::Cancel(id)) => self.cancel(h, c, id),
                Some(Action::Report) => news = true,
                None => match part.inbox.pop_front() {
                    Some(event) => {
                        let (at, unix) = self.host_time(h);
                        if let Some(machine) = self.hosts[h].parts[c].machine.as_mut() {
                            machine.handle(at, unix, event);
                        }
                    }
                    None => break,
                },
            }
        }
        self.set_timer(h, c);
        if news {
            self.send_report(h);
        }
    }

    fn set_timer(&mut self, h: usize, c: usize) {
        if self.mutant == Some(Mutant::NoDeadlines) {
            return;
        }
        let booted_at = self.hosts[h].booted_at;
        let life = self.hosts[h].life;
        let part = &mut self.hosts[h].parts[c];
        let Some(at) = part.machine.as_ref().and_then(Machine::poll_timeout).map(|at| at.0 + booted_at) else { return };
        if at < part.timer || part.timer < self.now {
            part.timer = at;
            self.at(at, Ev::MachineTimer { h, c, life });
        }
    }

    pub(super) fn machine_timer(&mut self, h: usize, c: usize) {
        let (at, _) = self.host_time(h);
        let part = &mut self.hosts[h].parts[c];
        part.timer = u64::MAX;
        let due = part.machine.as_ref().and_then(Machine::poll_timeout).is_some_and(|due| due <= at);
        if due { self.tell(h, c, Event::Timeout) } else { self.set_timer(h, c) }
    }

    /// The disk answers.
    pub(super) fn saved(&mut self, h: usize, c: usize, token: u64) {
        if self.hosts[h].parts[c].saving.as_ref().is_none_or(|(_, t)| *t != token) {
            return;
        }
        if self.strikes(h) {
            return;
        }
        let Some((record, _)) = self.hosts[h].parts[c].saving.take() else { return };
        let fails = self.now < self.hosts[h].disk_full_until || self.odds(|o| o.persist_fail);
        if fails {
            log!(self, "{} {} ledger refuses {:?}", self.world.hosts[h], self.world.components[c], record.state);
            // An fsync error: the bytes may be there all the same. Not those of a
            // confirmation: the ledger's writer must never leave one behind that it
            // called failed, for the machine then reverts what reads as kept.
            if record.state != State::Confirmed && self.run.chance(100) {
                self.durable(h, c, record);
            }
            return self.tell(h, c, Event::PersistFailed("no space left on device".to_string()));
        }
        if self.mutant != Some(Mutant::ForgetsLedger) {
            self.durable(h, c, record);
        }
        if self.strikes(h) {
            return;
        }
        self.tell(h, c, Event::Persisted);
    }

    fn durable(&mut self, h: usize, c: usize, record: Record) {
        log!(
            self,
            "{} {} ledger {} {:?}{}",
            self.world.hosts[h],
            self.world.components[c],
            record.assignment.as_ref().map_or_else(|| "-".to_string(), |a| a.generation.to_string()),
            record.state,
            record.pending.as_ref().map_or_else(String::new, |p| format!(", then {}", p.generation)),
        );
        self.check.durable(&self.world, h, c, &self.hosts[h].parts[c], &record);
        self.hosts[h].parts[c].ledger = Some(record);
    }

    fn begin(&mut self, h: usize, c: usize, id: OpId, op: Op) {
        self.token += 1;
        let token = self.token;
        log!(self, "{} {} runs {op:?}", self.world.hosts[h], self.world.components[c]);
        self.check.begins(&self.world, h, c, &self.hosts[h].parts[c], &op);
        let (from, to) = match &op {
            Op::Preflight { .. } | Op::Observe { .. } | Op::Check { .. } => (20, 500),
            Op::Stage { .. } => (100, 4_000),
            Op::Before { .. } | Op::After { .. } => (10, 800),
            Op::Flip { .. } => (1, 40),
            Op::Activate { .. } => (50, 3_000),
            Op::Smoke { .. } => (100, 4_000),
            Op::Collect { .. } => (5, 200),
        };
        let mut took = self.run.between(from, to);
        if self.odds(|o| o.op_slow) {
            took += if matches!(op, Op::Flip { .. }) { 20_000 } else { 90_000 };
        }
        if self.hosts[h].parts[c].running.is_some() {
            self.check.say(format!("{} {}: two operations at once", self.world.hosts[h], self.world.components[c]));
        }
        self.hosts[h].parts[c].running = Some(Doing { id, op, token, effect: false, link_before: None });
        self.after(took, Ev::OpEffect { h, c, token });
    }

    fn cancel(&mut self, h: usize, c: usize, id: OpId) {
        if self.hosts[h].parts[c].running.as_ref().is_none_or(|doing| doing.id != id) {
            return;
        }
        log!(self, "{} {} calls back", self.world.hosts[h], self.world.components[c]);
        let doing = self.hosts[h].parts[c].running.as_ref();
        if doing.is_some_and(|d| matches!(d.op, Op::Flip { .. })) {
            self.check.say(format!("{} {}: a flip was called back", self.world.hosts[h], self.world.components[c]));
        }
        if doing.is_some_and(|d| !d.effect) && self.run.chance(300) {
            self.half_effect(h, c);
        }
        self.hosts[h].parts[c].running = None;
    }

    pub(super) fn op_effect(&mut self, h: usize, c: usize, token: u64) {
        if self.hosts[h].parts[c].running.as_ref().is_none_or(|d| d.token != token) || self.strikes(h) {
            return;
        }
        let outcome = self.effect(h, c);
        if self.strikes(h) {
            return;
        }
        let wait = self.run.between(0, 20);
        self.after(wait, Ev::OpDone { h, c, token, outcome });
    }

    pub(super) fn op_done(&mut self, h: usize, c: usize, token: u64, outcome: Outcome) {
        let Some(doing) = self.hosts[h].parts[c].running.take_if(|d| d.token == token) else { return };
        if !matches!(outcome, Outcome::Ok) {
            log!(self, "{} {} {outcome:?}", self.world.hosts[h], self.world.components[c]);
        }
        self.tell(h, c, Event::Done(doing.id, outcome));
    }

    /// The controller's word arrives.
    pub(super) fn assigned(&mut self, h: usize, mut word: Assignment) {
        let Some(c) = self.world.components.iter().position(|c| *c == word.component) else { return };
        let boot_id = self.hosts[h].boot_id();
        let part = &mut self.hosts[h].parts[c];
        let machine = part.machine.get_or_insert_with(|| Machine::new(word.component.clone(), boot_id));
        if self.mutant == Some(Mutant::IgnoresGenerations) && word.generation < machine.generation() {
            word.generation = machine.generation().next();
        }
        self.tell(h, c, Event::Assigned(word));
    }

    /// Everything the host says of itself.
    pub(super) fn reports(&self, h: usize) -> Vec<ComponentReport> {
        let (at, _) = self.host_time(h);
        let host = &self.hosts[h];
        let mut out = Vec::new();
        for (c, part) in host.parts.iter().enumerate() {
            let Some(machine) = &part.machine else { continue };
            let digests = |release: &ReleaseRef| self.world.digests(c, release);
            let record = machine.record();
            let progress = match machine.progress() {
                Progress::Healthy if self.mutant == Some(Mutant::ClaimsConfirmed) => Progress::Confirmed,
                progress => progress,
            };
            out.push(ComponentReport {
                component: self.world.components[c].clone(),
                generation: machine.generation(),
                progress,
                failure: machine.failure().cloned(),
                current: part.link.clone(),
                previous: record.previous.clone(),
                service: match (&part.service, &part.link) {
                    (Some(_), _) => ServiceState::Running,
                    (None, Some(_)) => ServiceState::Stopped,
                    (None, None) => ServiceState::Absent,
                },
                running: part.service.as_ref().map(|process| Running {
                    pid: 100,
                    started_at_unix_ms: EPOCH + host.booted_at + process.started_at,
                    start_ticks: process.started_at / 10,
                    sha256: digests(&process.tree).map(|d| d.0),
                }),
                tree_sha256: part.link.as_ref().and_then(digests).map(|d| d.1),
                was_unhealthy: matches!(record.state, State::Reverted { was_unhealthy: true, .. }),
                smoke: record.swap.as_ref().map(|s| s.smoke.clone()).unwrap_or_default(),
                staged_bytes: u64::from(matches!(record.state, State::Staged)),
                fetched_bytes: 0,
                cpu_permille: 1,
                memory_bytes: 1,
                restarts: 0,
                lease_left_ms: machine.lease_left(at).map(|left| left.0),
            });
        }
        out
    }

    /// Whether a host is killed or loses power at this very step.
    fn strikes(&mut self, h: usize) -> bool {
        if self.odds(|o| o.agent_crash) {
            self.kill_agent(h);
            return true;
        }
        if self.odds(|o| o.reboot) {
            self.reboot(h);
            return true;
        }
        false
    }
}

impl Part {
    /// The disk refused what the machine shows: a crash loses it, and the ledger's
    /// older state goes on under its own lease.
    fn shows_more_than_is_durable(&self) -> bool {
        let Some(machine) = &self.machine else { return false };
        let durable = self.ledger.as_ref().map(|ledger| {
            let word = ledger.pending.as_ref().or(ledger.assignment.as_ref());
            let progress = if ledger.pending.is_some() { Progress::Checking } else { ledger.state.progress() };
            (word.map(|a| a.generation).unwrap_or_default(), progress)
        });
        durable.is_some_and(|durable| durable != (machine.generation(), machine.progress()))
    }

    /// On its way, by its ledger and, if the disk refused what came later, by what
    /// the machine shows.
    pub(super) fn moving(&self) -> Option<&State> {
        let state = self.ledger.as_ref().map(|l| &l.state).filter(|s| on_its_way(s))?;
        self.machine.as_ref().is_none_or(|m| !m.progress().is_final()).then_some(state)
    }
}

/// On its way, forward or back: it may be out of service.
pub(super) const fn on_its_way(state: &State) -> bool {
    matches!(state, State::Swapping(Step::Flip | Step::Activate) | State::Probation | State::Healthy | State::Reverting(..))
}
