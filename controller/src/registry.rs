//! The fleet as the controller knows it: hosts, their sessions, what they last
//! said, and whose the newest generation of each component is.
//!
//! Plain values, owned by the core's one task. Must not: do I/O, decide about
//! rollouts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_protocol::report::{AgentFacts, Progress, ServiceState};
use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::{
    ComponentName, ComponentReport, Digest, Generation, HostName, JournalHead, Millis, ReleaseRef, Report, RolloutId, Side, SidesReport,
    Timestamp, VarDigest,
};
use tidegate_rollout::FleetHost;
use tidegate_rollout::plan::{FleetComponent, FleetSides};
use tidegate_rollout::rollout::GRACE;

use crate::operator::doc::{HostComponentDoc, HostDoc, HostSidesDoc, HostState, rfc3339};
use crate::outbox::{Goodbye, Outbox};
use crate::store::HostRow;

/// Labels of a host.
pub type Labels = BTreeMap<String, String>;

/// Without contact for this long, a host is offline.
pub const OFFLINE_AFTER: Millis = Millis::from_secs(30);
/// Most live sessions of one certificate; two are already a conflict.
const SESSIONS_MAX: usize = 4;

/// One connection of an agent.
#[derive(Clone, Debug)]
pub struct Session {
    /// Of this controller process.
    pub id: u64,
    /// Of the key it came with.
    pub spki: Digest,
    /// Of the messages: what it can be asked.
    pub version: u16,
    /// Which machine and which installation.
    pub agent: AgentFacts,
    /// What it is to be told.
    pub outbox: Arc<Outbox>,
    /// Its last word while another session speaks under the same certificate:
    /// what it runs counts again once it is alone.
    unheard: Option<Report>,
}

/// What an opened session means for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The host's only one.
    Alone,
    /// Another machine speaks under the same certificate.
    Conflict,
}

/// One host.
#[derive(Clone, Debug)]
pub struct Host {
    /// They decide targeting.
    pub labels: Labels,
    /// Left out by a person, with the reason.
    pub drained: Option<String>,
    /// The key it joined with.
    pub spki: Digest,
    /// Its certificate is no longer good.
    pub revoked: bool,
    /// From its last hello.
    pub agent: Option<AgentFacts>,
    /// Its last word.
    pub report: Option<Report>,
    /// Its last word about components with sides; a report without them leaves
    /// them as they are.
    pub sides: Vec<SidesReport>,
    /// Its `[vars]`, as it said at its hello; none if it did not. Not kept over a restart.
    pub vars: Option<Vec<VarDigest>>,
    /// The journal's head that it remembers. Not kept over a restart: it says it again.
    pub head: Option<JournalHead>,
    /// What did not fit about a head that it said.
    pub head_finding: Option<String>,
    /// Last contact.
    pub last_seen: Option<Timestamp>,
    /// What was written to the store differs from what it last said.
    pub unsaved: bool,
    /// The newest generation of each component, and whose it is.
    pub owners: BTreeMap<ComponentName, (Generation, RolloutId)>,
    sessions: Vec<Session>,
}

/// Why a session is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Never joined, or forgotten.
    #[error("host {0} has not joined this fleet; enroll it with a token")]
    Unknown(HostName),
    /// Its certificate is no longer good.
    #[error("host {0} was revoked")]
    Revoked(HostName),
    /// The name has joined anew with another key.
    #[error("host {0} has joined anew with another key; this certificate is no longer good")]
    OtherKey(HostName),
    /// Too many at once.
    #[error("host {0} has {SESSIONS_MAX} live sessions already; is its disk image on several machines?")]
    TooMany(HostName),
}

/// All hosts, by name.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    hosts: BTreeMap<HostName, Host>,
    next_session: u64,
    /// This process's start: who was silent before it, was not heard by anybody.
    since: Timestamp,
}

impl From<HostRow> for Host {
    fn from(row: HostRow) -> Self {
        Self {
            labels: row.labels,
            drained: row.drained,
            spki: row.spki,
            revoked: row.revoked_at.is_some(),
            agent: row.agent,
            report: row.last_report,
            sides: row.last_sides,
            vars: None,
            head: None,
            head_finding: None,
            last_seen: row.last_seen,
            unsaved: false,
            owners: BTreeMap::new(),
            sessions: Vec::new(),
        }
    }
}

impl Registry {
    /// One host.
    #[must_use]
    pub fn get(&self, name: &HostName) -> Option<&Host> {
        self.hosts.get(name)
    }

    /// One host.
    pub fn get_mut(&mut self, name: &HostName) -> Option<&mut Host> {
        self.hosts.get_mut(name)
    }

    /// All hosts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&HostName, &Host)> {
        self.hosts.iter()
    }

    /// All hosts, by name.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&HostName, &mut Host)> {
        self.hosts.iter_mut()
    }

    /// A host joined, or joined anew: sessions under another key end.
    pub fn joined(&mut self, row: HostRow) {
        let name = row.name.clone();
        let mut host = Host::from(row);
        if let Some(known) = self.hosts.remove(&name) {
            for session in known.sessions.iter().filter(|s| s.spki != host.spki) {
                session.outbox.part(Goodbye::OtherKey);
            }
            if known.spki == host.spki {
                (host.vars, host.head) = (known.vars, known.head);
            }
            host.head_finding = known.head_finding;
            host.owners = known.owners;
            host.sessions = known.sessions;
        }
        self.hosts.insert(name, host);
    }

    /// Raises the newest generation of a (host, component); a host may be gone.
    pub fn owned(&mut self, host: &HostName, component: &ComponentName, generation: Generation, by: &RolloutId) {
        if let Some(host) = self.hosts.get_mut(host) {
            let newest = host.owners.get(component).is_none_or(|(known, _)| *known <= generation);
            if newest {
                host.owners.insert(component.clone(), (generation, by.clone()));
            }
        }
    }

    /// Who owns the newest generation there.
    #[must_use]
    pub fn owner(&self, host: &HostName, component: &ComponentName) -> Option<&RolloutId> {
        self.hosts.get(host)?.owners.get(component).map(|(_, id)| id)
    }

    /// The next generation of a (host, component): above what was minted and above
    /// what the host says it has seen.
    #[must_use]
    pub fn mint(&self, epoch: u32, host: &HostName, component: &ComponentName) -> Generation {
        let Some(host) = self.hosts.get(host) else { return Generation::new(epoch, 1) };
        let minted = host.owners.get(component).map(|(generation, _)| *generation);
        let seen = host.component(component).map(|c| c.generation);
        // A switch and both sides count with the same counter.
        let sides = host.sides_of(component);
        let sided = sides.into_iter().flat_map(|of| of.sides.iter().map(|s| s.report.generation).chain([of.generation])).max();
        let highest = minted.max(seen).max(sided).unwrap_or(Generation::ZERO);
        if highest.epoch >= epoch { highest.next() } else { Generation::new(epoch, 1) }
    }

    /// A session opens. The same agent's older session ends.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn open(
        &mut self,
        name: &HostName,
        spki: Digest,
        version: u16,
        agent: AgentFacts,
        outbox: Arc<Outbox>,
    ) -> Result<(u64, Opened), NotAdmitted> {
        let host = self.hosts.get_mut(name).ok_or_else(|| NotAdmitted::Unknown(name.clone()))?;
        if host.revoked {
            return Err(NotAdmitted::Revoked(name.clone()));
        }
        if host.spki != spki {
            return Err(NotAdmitted::OtherKey(name.clone()));
        }
        host.sessions.retain(|old| {
            let same = old.agent.boot_id == agent.boot_id && old.agent.instance == agent.instance;
            if same {
                old.outbox.part(Goodbye::Superseded);
            }
            !same
        });
        if host.sessions.len() >= SESSIONS_MAX {
            return Err(NotAdmitted::TooMany(name.clone()));
        }
        self.next_session += 1;
        host.sessions.push(Session { id: self.next_session, spki, version, agent, outbox, unheard: None });
        Ok((self.next_session, if host.conflict() { Opened::Conflict } else { Opened::Alone }))
    }

    /// A session ended. `false` if it was replaced before.
    pub fn close(&mut self, name: &HostName, session: u64) -> bool {
        let Some(host) = self.hosts.get_mut(name) else { return false };
        let before = host.sessions.len();
        host.sessions.retain(|s| s.id != session);
        before != host.sessions.len()
    }

    /// The fleet as a plan is resolved against it.
    #[must_use]
    pub fn fleet(&self) -> Vec<FleetHost> {
        self.hosts
            .iter()
            .map(|(name, host)| FleetHost {
                name: name.clone(),
                labels: host.labels.clone(),
                drained: host.drained.is_some(),
                unusable: if host.revoked {
                    Some("its certificate was revoked; change its labels, or enroll it again".into())
                } else if host.conflict() {
                    Some("two machines speak under its certificate; stop one and enroll it under its own name".into())
                } else {
                    None
                },
                // A word of before this connection may be out of date: it is a
                // place to start from, not a proof that nothing is to be done.
                components: host.fleet_components(),
            })
            .collect()
    }

    /// This process listens from here on.
    pub const fn listens(&mut self, now: Timestamp) {
        self.since = now;
    }

    /// Since when a host is silent; `None` while it is in contact. What a
    /// controller's own restart takes is not a host's silence: agents back off
    /// meanwhile, so it may lie a little ahead.
    #[must_use]
    pub fn lost_since(&self, host: &HostName) -> Option<Timestamp> {
        let known = self.hosts.get(host);
        if known.is_some_and(|h| h.session().is_some()) {
            return None;
        }
        Some(known.and_then(|h| h.last_seen).unwrap_or_default().max(self.since + GRACE))
    }

    /// This process has just begun to listen, and hosts that may well be there have
    /// not said hello yet: what is known of them is no ground for a judgement.
    #[must_use]
    pub fn gathering(&self, now: Timestamp) -> bool {
        now < self.since + GRACE && self.hosts.values().any(|h| h.session().is_none() && !h.revoked)
    }

    /// Hosts in contact now.
    #[must_use]
    pub fn online(&self) -> BTreeSet<HostName> {
        self.hosts.iter().filter(|(_, h)| h.session().is_some()).map(|(n, _)| n.clone()).collect()
    }
}

impl Host {
    /// Its one session; none while two machines claim to be it.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        match self.sessions.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// Two machines speak under one certificate.
    #[must_use]
    pub fn conflict(&self) -> bool {
        self.sessions.len() > 1
    }

    /// All of its sessions.
    #[must_use]
    pub fn sessions(&self) -> &[Session] {
        &self.sessions
    }

    /// A report of a session that does not speak for the host.
    pub fn unheard(&mut self, session: u64, report: Report, now: Timestamp) {
        if let Some(session) = self.sessions.iter_mut().find(|s| s.id == session) {
            session.unheard = Some(report);
            self.last_seen = Some(now);
        }
    }

    /// What the one session that is left said meanwhile.
    pub fn heard_again(&mut self) -> Option<Report> {
        match self.sessions.as_mut_slice() {
            [one] => one.unheard.take(),
            _ => None,
        }
    }

    /// What it last said of its components.
    pub fn components(&self) -> impl Iterator<Item = &ComponentReport> {
        self.report.iter().flat_map(|r| &r.components)
    }

    fn component(&self, name: &ComponentName) -> Option<&ComponentReport> {
        self.components().find(|c| &c.component == name)
    }

    /// What it last said of the sides of a component.
    #[must_use]
    pub fn sides_of(&self, name: &ComponentName) -> Option<&SidesReport> {
        self.sides.iter().find(|s| &s.component == name)
    }

    /// Its components as a plan is resolved against them: of one with sides, the
    /// side that serves is what it runs.
    fn fleet_components(&self) -> BTreeMap<ComponentName, FleetComponent> {
        let fresh = self.session().is_some();
        let mut all: BTreeMap<_, _> = self.components().map(|c| (c.component.clone(), fleet_component(c, fresh))).collect();
        for of in &self.sides {
            let serves = serving(of).map(|report| fleet_component(report, fresh && of.progress != SwitchProgress::Switching));
            let now = all.entry(of.component.clone()).or_default();
            if let Some(serves) = serves {
                *now = serves;
            }
            now.sides = Some(FleetSides { active: of.active });
        }
        all
    }

    /// In the words of the contract.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> HostState {
        if self.revoked {
            HostState::Revoked
        } else if self.conflict() {
            HostState::Conflict
        } else if self.drained.is_some() {
            HostState::Drained
        } else if self.session().is_some() || self.last_seen.is_some_and(|at| now.since(at) < OFFLINE_AFTER) {
            HostState::Online
        } else {
            HostState::Offline
        }
    }

    /// Its last word is replaced. What only drifts (load, sequence numbers) need
    /// not be written down.
    pub fn said(&mut self, report: Report, now: Timestamp) {
        let essence =
            |c: &ComponentReport| (c.component.clone(), c.generation, c.progress, c.current.clone(), c.service, c.running.clone());
        let same = self.report.as_ref().is_some_and(|old| {
            old.components.len() == report.components.len()
                && old.components.iter().zip(&report.components).all(|(a, b)| essence(a) == essence(b))
        });
        self.unsaved |= !same;
        self.report = Some(report);
        self.last_seen = Some(now);
    }

    /// Its last word about sides is replaced.
    pub fn said_sides(&mut self, sides: Vec<SidesReport>) {
        type Essence<'a> = (Option<Side>, Generation, SwitchProgress, Vec<(Side, Generation, Progress, &'a Option<ReleaseRef>)>);
        fn essence(of: &SidesReport) -> Essence<'_> {
            let each = of.sides.iter().map(|s| (s.side, s.report.generation, s.report.progress, &s.report.current));
            (of.active, of.generation, of.progress, each.collect())
        }
        let same = self.sides.len() == sides.len()
            && self.sides.iter().zip(&sides).all(|(a, b)| a.component == b.component && essence(a) == essence(b));
        self.unsaved |= !same;
        self.sides = sides;
    }

    fn component_docs(&self) -> BTreeMap<String, HostComponentDoc> {
        let mut all: BTreeMap<_, _> = self.components().map(|c| (c.component.to_string(), component_doc(c))).collect();
        for of in &self.sides {
            // Before the first switch, what is there is the first side that was made.
            let shown = serving(of).or_else(|| of.sides.first().map(|s| &s.report));
            if let Some(shown) = shown {
                let doc = HostComponentDoc { sides: Some(sides_doc(of)), ..component_doc(shown) };
                all.insert(of.component.to_string(), doc);
            }
        }
        all
    }

    /// As `host list` shows it.
    #[must_use]
    pub fn doc(&self, name: &HostName, now: Timestamp) -> HostDoc {
        let facts = self.report.as_ref().map(|r| &r.host);
        HostDoc {
            name: name.clone(),
            state: self.state(now),
            labels: self.labels.clone(),
            agent_version: self.agent.as_ref().map(|a| a.version.clone()),
            last_seen: self.last_seen.map(rfc3339),
            cpu_percent: facts.map(|f| f64::from(f.cpu_permille) / 10.0),
            memory_bytes: facts.map(|f| f.memory_bytes),
            memory_total_bytes: facts.map(|f| f.memory_total_bytes),
            components: self.component_docs(),
        }
    }
}

/// What the side that serves runs.
fn serving(of: &SidesReport) -> Option<&ComponentReport> {
    of.sides.iter().find(|s| Some(s.side) == of.active).map(|s| &s.report)
}

fn fleet_component(report: &ComponentReport, fresh: bool) -> FleetComponent {
    use Progress as P;
    let under_way = matches!(report.progress, P::Swapping | P::Probation | P::Healthy | P::Reverting | P::RevertFailed);
    FleetComponent {
        release: report.current.clone(),
        settled: fresh && report.service == ServiceState::Running && !under_way,
        running_sha256: report.running.as_ref().and_then(|r| r.sha256),
        tree_sha256: report.tree_sha256,
        sides: None,
    }
}

fn sides_doc(of: &SidesReport) -> HostSidesDoc {
    HostSidesDoc {
        active: of.active,
        switch: of.progress,
        generation: of.generation.to_string(),
        sides: of.sides.iter().map(|s| (s.side.to_string(), component_doc(&s.report))).collect(),
    }
}

fn component_doc(report: &ComponentReport) -> HostComponentDoc {
    HostComponentDoc {
        release: report.current.as_ref().map(|r| r.id.clone()),
        previous: report.previous.as_ref().map(|r| r.id.clone()),
        running_sha256: report.running.as_ref().and_then(|r| r.sha256),
        tree_sha256: report.tree_sha256,
        state: report.service,
        generation: report.generation.to_string(),
        cpu_percent: f64::from(report.cpu_permille) / 10.0,
        memory_bytes: report.memory_bytes,
        sides: None,
    }
}
