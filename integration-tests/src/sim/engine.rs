//! The clock and the queue: takes the next event, hands it to whom it concerns,
//! lets the checker look.
//!
//! Owns: virtual time, the order of events, when faults strike and end, when a
//! run is over. Must not: use anything that differs between two runs of a seed.

use std::collections::BTreeMap;

use tidegate_rollout::RolloutState;
use tidegate_rollout::status::status;
use tidegate_swap::{Outcome, State};

use super::check::Check;
use super::controller::SimController;
use super::host::SimHost;
use super::net::{Down, Up};
use super::rng::Rng;
use super::world::{Fault, Odds, World};
use super::{Mutant, log};

/// Unix milliseconds at the start of every run.
pub(super) const EPOCH: u64 = 1_800_000_000_000;
/// A rollout that has not ended so long after the last fault is stuck. Above
/// twice the longest wait that a plan without a person has (staging, 10 min).
const STUCK: u64 = 25 * 60_000;
/// Nothing may happen for this long before a phase is over.
const QUIET: u64 = 8_000;

pub(super) enum Ev {
    ControllerTick { life: u64 },
    ControllerUp { life: u64 },
    Flushed { life: u64 },
    ToController { h: usize, message: Up },
    ToHost { h: usize, message: Down },
    AgentBeat { h: usize, life: u64 },
    AgentUp { h: usize, life: u64 },
    PowerUp { h: usize },
    MachineTimer { h: usize, c: usize, life: u64 },
    Saved { h: usize, c: usize, token: u64 },
    OpEffect { h: usize, c: usize, token: u64 },
    OpDone { h: usize, c: usize, token: u64, outcome: Outcome },
    Fault(Fault),
    Start,
}

/// One run of one seed.
pub(super) struct Sim {
    pub(super) world: World,
    pub(super) mutant: Option<Mutant>,
    pub(super) run: Rng,
    pub(super) now: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    sequence: u64,
    pub(super) token: u64,
    pub(super) hosts: Vec<SimHost>,
    pub(super) ctl: SimController,
    pub(super) check: Check,
    pub(super) phase: usize,
    phase_began: u64,
    quiet_since: Option<u64>,
    /// Last arrival per host and direction.
    pub(super) in_order: Vec<[u64; 2]>,
    pub(super) log: Option<Vec<String>>,
    pub(super) events: u64,
}

impl Sim {
    pub(super) fn new(world: World, mutant: Option<Mutant>, verbose: bool) -> Self {
        let installed = world.installed.map(|r| world.releases[r].reference.clone());
        let hosts: Vec<SimHost> = (0..world.hosts.len())
            .map(|h| {
                let parts: Vec<_> = world.components.iter().enumerate().map(|(c, name)| (name.clone(), world.has(h, c))).collect();
                SimHost::new(installed.as_ref(), &parts)
            })
            .collect();
        let count = hosts.len();
        Self {
            run: Rng::new(world.seed, 2),
            check: Check::new(&world),
            world,
            mutant,
            now: 1_000,
            queue: BTreeMap::new(),
            sequence: 0,
            token: 0,
            hosts,
            ctl: SimController::new(count),
            phase: 0,
            phase_began: 0,
            quiet_since: None,
            in_order: vec![[0; 2]; count],
            log: verbose.then(Vec::new),
            events: 0,
        }
    }

    pub(super) fn at(&mut self, time: u64, event: Ev) {
        self.sequence += 1;
        self.queue.insert((time.max(self.now), self.sequence), event);
    }

    pub(super) fn after(&mut self, wait: u64, event: Ev) {
        self.at(self.now + wait, event);
    }

    /// Faults may strike now.
    pub(super) fn faulty(&self) -> bool {
        self.phase_began != 0 && self.now < self.phase_began + self.world.phases[self.phase].faults_end
    }

    /// Whether one of the odds strikes now.
    pub(super) fn odds(&mut self, which: fn(&Odds) -> u64) -> bool {
        let odds = which(&self.world.odds);
        odds > 0 && self.faulty() && self.run.chance(odds)
    }

    pub(super) fn go(&mut self) {
        for h in 0..self.hosts.len() {
            self.agent_up(h);
        }
        self.after(1, Ev::ControllerTick { life: 0 });
        self.after(6_000, Ev::Start);
        while let Some(((time, _), event)) = self.queue.pop_first() {
            self.now = time;
            self.events += 1;
            self.take(event);
            self.check.step(&self.world, self.now, &self.hosts);
            if self.check.failed() {
                return;
            }
            if self.phase_began != 0 && self.over() {
                self.end_phase();
                let locked = self.ctl.runs.last().is_some_and(|run| run.rollout.is_live());
                if self.check.failed() || locked || self.phase + 1 >= self.world.phases.len() {
                    return;
                }
                self.phase += 1;
                self.phase_began = 0;
                self.quiet_since = None;
                self.after(100, Ev::Start);
            }
        }
    }

    fn take(&mut self, event: Ev) {
        match event {
            Ev::ControllerTick { life } if self.ctl.up && life == self.ctl.life => self.controller_tick(),
            Ev::ControllerUp { life } if life == self.ctl.life => self.controller_up(),
            Ev::Flushed { life } if self.ctl.up && life == self.ctl.life => self.flushed(),
            Ev::ControllerTick { .. } | Ev::ControllerUp { .. } | Ev::Flushed { .. } => {}
            Ev::ToController { h, message } => self.controller_hears(h, message),
            Ev::Fault(fault) => self.fault(fault),
            Ev::Start => {
                self.phase_began = self.now;
                log!(self, "phase {}: {}", self.phase + 1, self.world.phases[self.phase].plan.replace('\n', "; "));
                for (after, fault) in self.world.phases[self.phase].faults.clone() {
                    self.after(after, Ev::Fault(fault));
                }
                self.start_rollout(self.phase);
            }
            Ev::PowerUp { h } => self.power_up(h),
            Ev::AgentUp { h, life } if life == self.hosts[h].life => self.agent_up(h),
            Ev::AgentUp { .. } => {}
            event => self.take_on_host(event),
        }
    }

    /// What only a living agent that does not hang takes in.
    fn take_on_host(&mut self, event: Ev) {
        let (h, life) = match &event {
            Ev::ToHost { h, .. } | Ev::Saved { h, .. } | Ev::OpEffect { h, .. } | Ev::OpDone { h, .. } => (*h, None),
            Ev::AgentBeat { h, life } | Ev::MachineTimer { h, life, .. } => (*h, Some(*life)),
            _ => return,
        };
        if life.is_some_and(|life| life != self.hosts[h].life) || !self.hosts[h].agent {
            return;
        }
        if self.now < self.hosts[h].hang_until {
            let until = self.hosts[h].hang_until;
            return self.at(until, event);
        }
        match event {
            Ev::ToHost { message, .. } => self.host_hears(h, message),
            Ev::AgentBeat { .. } => self.agent_beat(h),
            Ev::MachineTimer { c, .. } => self.machine_timer(h, c),
            Ev::Saved { c, token, .. } => self.saved(h, c, token),
            Ev::OpEffect { c, token, .. } => self.op_effect(h, c, token),
            Ev::OpDone { c, token, outcome, .. } => self.op_done(h, c, token, outcome),
            _ => {}
        }
    }

    fn fault(&mut self, fault: Fault) {
        log!(self, "fault {fault:?}");
        let now = self.now;
        match fault {
            Fault::AgentKill(h) => self.kill_agent(h),
            Fault::Reboot(h) => self.reboot(h),
            Fault::CutUp(h, long) => self.hosts[h].cut_up_until = now + long,
            Fault::CutDown(h, long) => self.hosts[h].cut_down_until = now + long,
            Fault::Cut(h, long) => (self.hosts[h].cut_up_until, self.hosts[h].cut_down_until) = (now + long, now + long),
            Fault::Hang(h, long) => self.hosts[h].hang_until = now + long,
            Fault::DiskFull(h, long) => self.hosts[h].disk_full_until = now + long,
            Fault::ControllerCrash(away) => {
                let durable = self.run.chance(500);
                self.crash_controller(durable, Some(away));
            }
            Fault::Said(verb) => self.said(verb),
        }
    }

    /// The rollout has ended or waits for a person who does not come, and every
    /// host is at rest; or it is stuck.
    fn over(&mut self) -> bool {
        let end = self.phase_began + self.world.phases[self.phase].faults_end;
        let quiet = self.now > end && self.ctl.up && self.rests();
        let since = *self.quiet_since.get_or_insert(self.now);
        if !quiet {
            self.quiet_since = None;
        } else if self.now >= since + QUIET {
            return true;
        }
        if self.now > end + STUCK {
            let state = self.ctl.runs.last().map(|run| run.rollout.state());
            let restless: Vec<String> = self.restless();
            self.check.say(format!("stuck: {state:?} long after the last fault; not at rest: {}", restless.join(", ")));
            return true;
        }
        false
    }

    fn rests(&self) -> bool {
        let ended = self.ctl.runs.last().is_some_and(|run| {
            let waits = self.world.phases[self.phase].on_pause == super::world::OnPause::Nothing;
            let idle = || status(&run.rollout).hosts.iter().all(|host| !host.state.in_flight());
            !run.rollout.is_live() || (waits && run.rollout.state() == RolloutState::Paused && idle())
        });
        // A release that cuts the network and cannot be taken back keeps its host away.
        let here = |h: usize| self.ctl.sessions[h].up || self.cut_by_release(h);
        ended && (0..self.hosts.len()).all(here) && self.restless().is_empty()
    }

    fn restless(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (h, host) in self.hosts.iter().enumerate() {
            for (c, part) in host.parts.iter().enumerate() {
                let machine = part.machine.as_ref();
                let state = machine.map(|m| &m.record().state);
                let moving = matches!(state, Some(State::Swapping(_) | State::Probation | State::Healthy | State::Reverting(..)));
                if !host.agent || part.saving.is_some() || part.running.is_some() || moving {
                    out.push(format!("{} {} {state:?}", self.world.hosts[h], self.world.components[c]));
                }
            }
        }
        out
    }

    fn end_phase(&mut self) {
        self.compare_fold();
        if let Some(run) = self.ctl.runs.last() {
            log!(self, "ended {}: {}", run.rollout.state(), run.rollout.reason());
            self.check.phase_ended(&self.world, self.phase, &run.rollout, &self.hosts);
        }
    }
}
