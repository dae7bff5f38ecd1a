//! A simulated controller: the real rollout machine, a journal that becomes
//! durable a little later, crashes in between.
//!
//! Owns: the order append → durable → send; folding the journal after a crash;
//! who is in contact. Must not: decide anything that the machine decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidegate_protocol::{Assignment, ComponentReport, Generation, HostName, Timestamp};
use tidegate_rollout::plan::FleetComponent;
use tidegate_rollout::status::status;
use tidegate_rollout::{Action, Event, FleetHost, Plan, Record, Rollout, RolloutState, Verb};

use super::engine::{EPOCH, Ev, Sim};
use super::net::{Down, Said};
use super::world::{OnPause, name};
use super::{Mutant, log};

/// A session that was silent so long is dead, on both ends.
pub(super) const IDLE: u64 = 5_000;

/// The controller's process and its disk.
pub(super) struct SimController {
    pub(super) up: bool,
    /// One life of the process.
    pub(super) life: u64,
    pub(super) runs: Vec<Run>,
    /// Asked for by the machines, not begun.
    queue: VecDeque<Out>,
    /// Under way to the disk, with what is sent after it.
    flushing: Vec<Out>,
    pub(super) sessions: Vec<CtlSession>,
    /// The newest report of each host.
    known: Vec<(u64, Vec<ComponentReport>)>,
    paused_since: Option<u64>,
    resumed: u32,
}

/// One rollout.
pub(super) struct Run {
    pub(super) rollout: Rollout,
    pub(super) plan: Plan,
    pub(super) journal: Vec<(Timestamp, Record)>,
}

/// The controller's end of a connection.
#[derive(Clone, Default)]
pub(super) struct CtlSession {
    pub(super) n: u64,
    pub(super) up: bool,
    pub(super) heard: u64,
}

enum Out {
    Append(usize, Timestamp, Record),
    Send(usize, Assignment),
}

impl SimController {
    pub(super) fn new(hosts: usize) -> Self {
        Self {
            up: true,
            life: 0,
            runs: Vec::new(),
            queue: VecDeque::new(),
            flushing: Vec::new(),
            sessions: vec![CtlSession::default(); hosts],
            known: vec![(0, Vec::new()); hosts],
            paused_since: None,
            resumed: 0,
        }
    }
}

/// What must be equal before a crash and after it: all of the status that is not
/// a live number, and every standing order.
fn image(rollout: &Rollout, hosts: &[HostName]) -> String {
    let mut doc = status(rollout);
    for host in &mut doc.hosts {
        (host.release, host.running_sha256, host.tree_sha256) = (None, None, None);
        (host.main_pid_started_at, host.cpu_percent, host.memory_bytes) = (None, None, None);
        host.smoke.clear();
    }
    let orders: Vec<Vec<Assignment>> = hosts.iter().map(|h| rollout.assignments(h)).collect();
    let generations: Vec<_> = rollout.generations().collect();
    format!("{doc:?} {orders:?} {generations:?} {:?}", rollout.locks())
}

impl Sim {
    pub(super) const fn ctl_time(&self) -> Timestamp {
        Timestamp(EPOCH + self.now)
    }

    /// Starts the rollout of a phase on the fleet as the controller knows it.
    pub(super) fn start_rollout(&mut self, phase: usize) {
        let fleet: Vec<FleetHost> = (0..self.world.hosts.len()).map(|h| self.fleet_host(h)).collect();
        let spec = self.world.spec(phase);
        let release = self.world.releases[self.world.phases[phase].release].clone();
        let plan = match Plan::resolve(&spec, &release.reference, &release.manifest, &fleet) {
            Ok(plan) => plan,
            Err(error) => return self.check.say(format!("the plan was refused: {error}")),
        };
        let mut minted: BTreeMap<_, Generation> = BTreeMap::new();
        for run in &self.ctl.runs {
            for (host, component, generation) in run.rollout.generations() {
                let highest = minted.entry((host.clone(), component.clone())).or_default();
                *highest = generation.max(*highest);
            }
        }
        let origins = plan.origins(&fleet, |host, component| {
            let highest = minted.get(&(host.clone(), component.clone())).copied().unwrap_or_default();
            highest.max(Generation::new(1, 1)).next()
        });
        let online: BTreeSet<HostName> =
            (0..self.world.hosts.len()).filter(|h| self.ctl.sessions[*h].up).map(|h| self.world.hosts[h].clone()).collect();
        let mut carried = plan.clone();
        if self.mutant == Some(Mutant::AdmitsDouble) {
            carried.components.iter_mut().for_each(|c| c.window *= 2);
        }
        let id = name(&format!("r{}", phase + 1));
        let run = self.ctl.runs.len();
        let rollout =
            Rollout::start(id, carried, origins.clone(), "alice", |host| (!online.contains(host)).then_some(Timestamp(0)), self.ctl_time());
        self.check.started(&self.world, &plan, &origins);
        self.ctl.runs.push(Run { rollout, plan, journal: Vec::new() });
        self.ctl.resumed = 0;
        self.drain(run);
    }

    fn fleet_host(&self, h: usize) -> FleetHost {
        let mut host = self.world.fleet_host(h);
        for report in &self.ctl.known[h].1 {
            if report.current.is_none() {
                continue;
            }
            let component = FleetComponent {
                release: report.current.clone(),
                settled: report.progress.is_final(),
                running_sha256: report.running.as_ref().and_then(|r| r.sha256),
                tree_sha256: report.tree_sha256,
                sides: None,
            };
            host.components.insert(report.component.clone(), component);
        }
        host
    }

    /// One event to every rollout that may care.
    pub(super) fn event(&mut self, event: &Event<'_>) {
        let at = self.ctl_time();
        for run in 0..self.ctl.runs.len() {
            let rollout = &mut self.ctl.runs[run].rollout;
            let due = !matches!(event, Event::Timeout) || rollout.poll_timeout().is_some_and(|due| due <= at);
            if due {
                // A word that does not fit is refused; that is all right.
                let _refused = rollout.handle(at, event.clone());
                self.drain(run);
            }
        }
    }

    fn drain(&mut self, run: usize) {
        let at = self.ctl_time();
        while let Some(action) = self.ctl.runs[run].rollout.poll_action() {
            match action {
                Action::Append(record) => {
                    log!(self, "journal {}", describe(&record));
                    self.check.appended(&self.world, run, &record, self.hosts.as_slice());
                    if self.mutant == Some(Mutant::JournalsTwice) && matches!(record, Record::Host { .. }) {
                        self.check.appended(&self.world, run, &record, self.hosts.as_slice());
                        self.ctl.queue.push_back(Out::Append(run, at, record.clone()));
                    }
                    self.ctl.queue.push_back(Out::Append(run, at, record));
                }
                // Simulated hosts measure nothing and have no sides.
                Action::Watch(_) | Action::Tasks(_) | Action::Outages(_) | Action::SendSide(..) | Action::SendSwitch(..) => {}
                Action::Send(host, assignment) => {
                    let Some(h) = self.world.hosts.iter().position(|n| *n == host) else { continue };
                    if self.mutant == Some(Mutant::SendsFirst) {
                        self.deliver(h, assignment);
                    } else {
                        self.ctl.queue.push_back(Out::Send(h, assignment));
                    }
                }
            }
        }
        self.flush();
    }

    /// Group commit: what has come together becomes durable at once.
    fn flush(&mut self) {
        if !self.ctl.flushing.is_empty() || self.ctl.queue.is_empty() {
            return;
        }
        self.ctl.flushing = self.ctl.queue.drain(..).collect();
        let life = self.ctl.life;
        let took = self.run.between(1, 20);
        self.after(took, Ev::Flushed { life });
    }

    pub(super) fn flushed(&mut self) {
        if self.odds(|o| o.controller_crash) {
            let durable = self.run.chance(500);
            return self.crash_controller(durable, None);
        }
        for out in &self.ctl.flushing {
            if let Out::Append(run, at, record) = out {
                self.ctl.runs[*run].journal.push((*at, record.clone()));
            }
        }
        for out in std::mem::take(&mut self.ctl.flushing) {
            let Out::Send(h, assignment) = out else { continue };
            if self.odds(|o| o.controller_crash) {
                return self.crash_controller(false, None);
            }
            self.deliver(h, assignment);
        }
        self.flush();
    }

    fn deliver(&mut self, h: usize, assignment: Assignment) {
        let durable = self.ctl.runs.iter().any(|run| {
            *run.rollout.id() == assignment.rollout
                && run.journal.iter().any(|(_, record)| {
                    matches!(record, Record::Ordered { host, component, generation, intent, phase, .. }
                        if *host == self.world.hosts[h] && *component == assignment.component
                            && *generation == assignment.generation && *intent == assignment.intent && *phase == assignment.phase)
                })
        });
        if !durable {
            self.check.say(format!("{}: an order was sent before it was durable: {assignment:?}", self.world.hosts[h]));
        }
        let n = self.ctl.sessions[h].n;
        if self.ctl.sessions[h].up {
            self.send_down(h, Down::Assign(n, Box::new(assignment)));
        }
    }

    /// All standing orders, the newest rollout's of each component; after what is
    /// on its way to the disk, for they may stand there only.
    pub(super) fn say_again(&mut self, h: usize) {
        let mut standing = BTreeMap::new();
        for run in &self.ctl.runs {
            for assignment in run.rollout.assignments(&self.world.hosts[h]) {
                standing.insert(assignment.component.clone(), assignment);
            }
        }
        self.ctl.queue.extend(standing.into_values().map(|assignment| Out::Send(h, assignment)));
        self.flush();
    }

    pub(super) fn crash_controller(&mut self, durable: bool, away: Option<u64>) {
        if !self.ctl.up {
            return;
        }
        log!(self, "controller killed");
        self.compare_fold();
        for out in std::mem::take(&mut self.ctl.flushing) {
            if let (true, Out::Append(run, at, record)) = (durable, out) {
                self.ctl.runs[run].journal.push((at, record));
            }
        }
        if self.mutant == Some(Mutant::LosesJournal) {
            for run in &mut self.ctl.runs {
                run.journal.truncate(run.journal.len().saturating_sub(3).max(1));
            }
        }
        self.ctl.queue.clear();
        self.ctl.up = false;
        self.ctl.life += 1;
        // A rollout whose first record was not durable never was.
        self.ctl.runs.retain(|run| !run.journal.is_empty());
        let journals = self.ctl.runs.iter().map(|run| (&run.plan, run.journal.as_slice()));
        self.check.replay(&self.world, journals, self.hosts.as_slice());
        let life = self.ctl.life;
        let away = away.unwrap_or_else(|| self.run.pick(&[100, 1_000, 6_000, 30_000, 90_000]));
        self.after(away, Ev::ControllerUp { life });
    }

    pub(super) fn controller_up(&mut self) {
        log!(self, "controller is back");
        self.ctl.up = true;
        self.ctl.sessions.iter_mut().for_each(|s| *s = CtlSession { n: s.n, ..CtlSession::default() });
        let at = self.ctl_time();
        for run in 0..self.ctl.runs.len() {
            let entry = &mut self.ctl.runs[run];
            if let Some(rollout) = Rollout::fold(entry.rollout.id().clone(), entry.journal.iter().cloned()) {
                entry.rollout = rollout;
            }
            if entry.rollout.is_live() {
                let _never_refused = entry.rollout.handle(at, Event::Returned);
            }
            self.drain(run);
        }
        if self.ctl.runs.len() < self.phase + 1 {
            // The person who started it got no answer, and asks again.
            self.start_rollout(self.phase);
        }
        let life = self.ctl.life;
        self.after(1, Ev::ControllerTick { life });
    }

    /// I10: folding the journal gives the live state.
    pub(super) fn compare_fold(&mut self) {
        let mut wrong = Vec::new();
        for (at, run) in self.ctl.runs.iter().enumerate() {
            let not_yet = self.ctl.flushing.iter().chain(&self.ctl.queue).filter_map(|out| match out {
                Out::Append(of, time, record) if *of == at => Some((*time, record.clone())),
                _ => None,
            });
            let entries = run.journal.iter().cloned().chain(not_yet);
            let Some(folded) = Rollout::fold(run.rollout.id().clone(), entries) else { continue };
            let (live, folded) = (image(&run.rollout, &self.world.hosts), image(&folded, &self.world.hosts));
            if live != folded {
                wrong.push(format!("I10: the fold of the journal is not the live state:\n  live   {live}\n  folded {folded}"));
            }
        }
        wrong.into_iter().for_each(|w| self.check.say(w));
    }

    /// Twice a second: deadlines, sessions that went silent, a person's look.
    pub(super) fn controller_tick(&mut self) {
        for h in 0..self.ctl.sessions.len() {
            let session = &mut self.ctl.sessions[h];
            if session.up && self.now >= session.heard + IDLE {
                session.up = false;
                log!(self, "controller lost {}", self.world.hosts[h]);
                let host = self.world.hosts[h].clone();
                self.event(&Event::Contact(&host, false));
            }
        }
        self.event(&Event::Timeout);
        self.person();
        let life = self.ctl.life;
        self.after(500, Ev::ControllerTick { life });
    }

    /// What a person does about a rollout that waits for one.
    fn person(&mut self) {
        let state = self.ctl.runs.last().map(|run| run.rollout.state());
        if state != Some(RolloutState::Paused) {
            self.ctl.paused_since = None;
            return;
        }
        let since = *self.ctl.paused_since.get_or_insert(self.now);
        let on_pause = self.world.phases[self.phase].on_pause;
        if on_pause == OnPause::Nothing || self.now < since + 20_000 {
            return;
        }
        self.ctl.paused_since = None;
        let verb = match on_pause {
            OnPause::Halt => Verb::Halt,
            OnPause::Resume if self.ctl.resumed < 4 => {
                self.ctl.resumed += 1;
                Verb::Resume
            }
            _ => Verb::Rollback,
        };
        self.said(verb);
    }

    pub(super) fn said(&mut self, verb: Verb) {
        if !self.ctl.up {
            return;
        }
        let Some(run) = self.ctl.runs.len().checked_sub(1) else { return };
        let at = self.ctl_time();
        log!(self, "a person says {verb}");
        let _refused = self.ctl.runs[run].rollout.handle(at, Event::Said { verb, by: "alice", reason: "" });
        self.drain(run);
    }

    pub(super) fn reported(&mut self, h: usize, said: &Said) {
        let host = self.world.hosts[h].clone();
        // The rollout must bear an old report; what a plan is made from must be new.
        if said.sequence >= self.ctl.known[h].0 {
            self.ctl.known[h] = (said.sequence, said.components.clone());
        }
        for report in &said.components {
            self.event(&Event::Report(&host, report));
        }
    }
}

fn describe(record: &Record) -> String {
    let (host, component, text) = tidegate_rollout::status::describe(record);
    match (host, component) {
        (Some(host), Some(component)) => format!("{host} {component}: {text}"),
        _ => text,
    }
}
