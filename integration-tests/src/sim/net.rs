//! The network between the controller and its hosts: sessions that are dialled,
//! go silent and are dialled again; messages that are late, lost, doubled.

use tidegate_protocol::{Assignment, ComponentReport};
use tidegate_rollout::Event;

use super::controller::IDLE;
use super::engine::{Ev, Sim};
use super::log;

/// From a host. The number is the session's.
#[derive(Clone)]
pub(super) enum Up {
    Dial(u64),
    Hello(u64, Said),
    Report(u64, Said),
}

/// A report, and its place among the host's reports.
#[derive(Clone)]
pub(super) struct Said {
    pub(super) sequence: u64,
    pub(super) components: Vec<ComponentReport>,
}

/// To a host.
#[derive(Clone)]
pub(super) enum Down {
    Accept(u64),
    Ack(u64),
    Assign(u64, Box<Assignment>),
}

/// How often a host reports when nothing changes.
const REPORT_EVERY: u64 = 2_000;
const DIAL_EVERY: u64 = 1_500;

impl Sim {
    /// Once a second while the agent lives: dial, report, notice silence.
    pub(super) fn agent_beat(&mut self, h: usize) {
        let now = self.now;
        let session = &mut self.hosts[h].session;
        if session.up && now >= session.heard + IDLE {
            session.up = false;
        }
        if !session.up && now >= session.since + DIAL_EVERY {
            session.n += 1;
            session.since = now;
            let n = session.n;
            self.send_up(h, Up::Dial(n));
        } else if session.up && now >= session.reported + REPORT_EVERY {
            self.send_report(h);
        }
        let life = self.hosts[h].life;
        self.after(1_000, Ev::AgentBeat { h, life });
    }

    pub(super) fn send_report(&mut self, h: usize) {
        if self.hosts[h].session.up {
            self.hosts[h].session.reported = self.now;
            let n = self.hosts[h].session.n;
            let said = self.said_of(h);
            self.send_up(h, Up::Report(n, said));
        }
    }

    fn said_of(&mut self, h: usize) -> Said {
        self.token += 1;
        Said { sequence: self.token, components: self.reports(h) }
    }

    pub(super) fn send_up(&mut self, h: usize, message: Up) {
        let cut = self.now < self.hosts[h].cut_up_until || self.cut_by_release(h);
        for copy in self.copies(cut, matches!(message, Up::Report(..))) {
            let at = self.arrival(h, 0, copy);
            self.at(at, Ev::ToController { h, message: message.clone() });
        }
    }

    pub(super) fn send_down(&mut self, h: usize, message: Down) {
        let cut = self.now < self.hosts[h].cut_down_until || self.cut_by_release(h);
        for copy in self.copies(cut, matches!(message, Down::Assign(..))) {
            let at = self.arrival(h, 1, copy);
            self.at(at, Ev::ToHost { h, message: message.clone() });
        }
    }

    /// The delays of the copies that arrive.
    fn copies(&mut self, cut: bool, state: bool) -> Vec<u64> {
        if cut || (state && self.odds(|o| o.loss)) {
            return Vec::new();
        }
        let delay = self.world.delay;
        let mut copies = vec![self.run.between(1, delay)];
        if state && self.odds(|o| o.duplicate) {
            copies.push(self.run.between(1, delay * 5));
        }
        if self.world.raw && self.faulty() && self.run.chance(50) {
            // One that lingers somewhere.
            copies.push(self.run.between(1, 20_000));
        }
        copies
    }

    /// In order, unless the network may reorder.
    fn arrival(&mut self, h: usize, direction: usize, delay: u64) -> u64 {
        let at = self.now + delay;
        if self.world.raw {
            return at;
        }
        let last = &mut self.in_order[h][direction];
        *last = at.max(*last);
        *last
    }

    pub(super) fn controller_hears(&mut self, h: usize, message: Up) {
        if !self.ctl.up {
            return;
        }
        let (raw, now) = (self.world.raw, self.now);
        match message {
            Up::Dial(n) => self.send_down(h, Down::Accept(n)),
            Up::Hello(n, said) => {
                let session = &mut self.ctl.sessions[h];
                if n < session.n {
                    return;
                }
                (session.n, session.up, session.heard) = (n, true, now);
                log!(self, "controller hears hello of {}", self.world.hosts[h]);
                let host = self.world.hosts[h].clone();
                self.event(&Event::Contact(&host, true));
                self.reported(h, &said);
                self.say_again(h);
            }
            Up::Report(n, said) => {
                let session = &mut self.ctl.sessions[h];
                let of_session = session.up && session.n == n;
                if of_session {
                    session.heard = now;
                    self.send_down(h, Down::Ack(n));
                }
                if of_session || raw {
                    self.reported(h, &said);
                }
            }
        }
    }

    pub(super) fn host_hears(&mut self, h: usize, message: Down) {
        if !self.hosts[h].agent {
            return;
        }
        let (raw, now) = (self.world.raw, self.now);
        let session = &mut self.hosts[h].session;
        match message {
            Down::Accept(n) => {
                if n == session.n && !session.up {
                    (session.up, session.heard, session.reported) = (true, now, now);
                    let said = self.said_of(h);
                    self.send_up(h, Up::Hello(n, said));
                }
            }
            Down::Ack(n) if n == session.n => session.heard = now,
            Down::Ack(_) => {}
            Down::Assign(n, assignment) => {
                let of_session = session.up && session.n == n;
                if of_session {
                    session.heard = now;
                }
                if of_session || raw {
                    self.assigned(h, *assignment);
                }
            }
        }
    }
}
