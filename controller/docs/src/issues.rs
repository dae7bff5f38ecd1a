//! Issues Encountered: what went wrong, numbered, and what became of it.
//!
//! An issue gets its number where it first shows in the journal and keeps it, so
//! that a note can name it. Its resolution is a person's, or what the machine saw
//! by itself (a host is back, a source answers again). Which ones want a person:
//! every failed host, gate and task, every trip that was not cleared, whatever
//! stopped short. A host that was taken back is safe, and yet its failure has a
//! cause that somebody must look at. Overrides and pauses carry their reason, a
//! route that is dead is named until it takes something again.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_protocol::{Cause, ComponentName, HostName, TaskRun, TaskState, Timestamp};
use tidegate_rollout::record::{GateStep, InvestigationStep, Record, RolloutState, Step, TargetState, Verb};
use tidegate_rollout::status::rfc3339;

use crate::fold::Facts;

/// One issue of the execution log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Issue {
    /// From 1; `rollout note ID --resolves N` names it.
    pub number: u32,
    /// When it showed, Unix milliseconds.
    #[serde(serialize_with = "time")]
    pub at: Timestamp,
    /// What it is about: host, gate, trigger, override, pause, task, switch,
    /// notification, rollout.
    pub kind: &'static str,
    /// On which host, if on one.
    pub host: Option<HostName>,
    /// Of which component, if of one.
    pub component: Option<ComponentName>,
    /// One sentence.
    pub text: String,
    /// What became of it, as far as records say so by themselves.
    pub resolution: Option<String>,
    /// What a person said of it.
    pub resolved_by: Option<Resolved>,
    /// It takes a person's word before the rollout can be closed.
    pub needs_person: bool,
}

/// A person's resolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resolved {
    /// Who.
    pub by: String,
    /// What they did.
    pub text: String,
    /// When, Unix milliseconds.
    #[serde(serialize_with = "time")]
    pub at: Timestamp,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn time<S: serde::Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339(at.0))
}

impl Issue {
    /// It keeps the rollout from being closed.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.needs_person && self.resolved_by.is_none()
    }

    /// Its fixed name: `issue-3`.
    #[must_use]
    pub fn item(&self) -> String {
        format!("issue-{}", self.number)
    }
}

/// What two records must share to be about the same issue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Host(ComponentName, HostName),
    NotBack(ComponentName, HostName),
    Switch(ComponentName, HostName),
    Unsure(usize),
    Blind,
    Failed(usize),
    Trip(Option<usize>),
    Task(String, TaskRun),
    Route(String),
    Pause,
    Waits,
    Stop,
}

struct Log<'a> {
    facts: &'a Facts<'a>,
    issues: Vec<Issue>,
    /// Issues that later records may still be about.
    open: BTreeMap<Key, usize>,
    /// Something that explains a pause that follows at once.
    explained: Option<Timestamp>,
    state: RolloutState,
}

/// All issues, in order of their numbers.
pub(crate) fn of(facts: &Facts<'_>) -> Vec<Issue> {
    let mut log = Log { facts, issues: Vec::new(), open: BTreeMap::new(), explained: None, state: RolloutState::Scheduled };
    for entry in facts.input.entries {
        log.take(entry.at, &entry.record);
    }
    log.issues
}

impl Log<'_> {
    fn take(&mut self, at: Timestamp, record: &Record) {
        match record {
            Record::Host { host, component, to, failure, counted, seen, .. } => {
                let release = seen.as_ref().and_then(|s| s.release.as_ref()).map(|r| r.id.to_string());
                // Rule 4: a lease that ran out while the controller was away is nobody's failure.
                let failure = failure.as_ref().filter(|f| *counted || f.cause != Cause::LeaseExpired);
                let words = failure.map(|f| format!("{}: {}", f.cause, f.message));
                self.host(at, host, component, *to, words, release);
            }
            Record::Healed { host, component, release } => {
                let on = release.as_ref().map_or_else(|| "nothing, as before".to_string(), |r| r.id.to_string());
                for key in [Key::NotBack(component.clone(), host.clone()), Key::Host(component.clone(), host.clone())] {
                    self.resolve(&key, format!("healed at {}: it runs {on}", self.clock(at)), false);
                }
            }
            Record::Switched { host, component, failure, active, .. } => {
                let key = Key::Switch(component.clone(), host.clone());
                match failure {
                    Some(failure) => {
                        let side = active.map_or_else(String::new, |s| format!("; {s} serves"));
                        let text = format!("{host} ({component}): the switch failed: {}{side}", failure.message);
                        self.raise(at, key, "switch", text, true);
                        self.place(host, Some(component));
                    }
                    None => self.resolve(&key, format!("switched at {}", self.clock(at)), false),
                }
            }
            Record::Gate { stage, step, reason, .. } => self.gate(at, *stage, *step, reason),
            Record::Tripped { trigger, when, reason, host, .. } => {
                self.raise(at, Key::Trip(*trigger), "trigger", format!("trigger {when}: {reason}"), true);
                if let Some(host) = host {
                    self.place(host, None);
                }
                self.explained = Some(at);
            }
            Record::Investigation { trigger, step: InvestigationStep::Cleared, by } => {
                let by = by.as_deref().map_or_else(|| "it does not hold any more".to_string(), |by| format!("ended by {by}"));
                let key = Key::Trip(Some(*trigger));
                self.resolve(&key, format!("investigated; {by} ({})", self.clock(at)), true);
                self.open.remove(&key);
            }
            Record::Overridden { what, role, signed, reason } => {
                let text = format!("{} overridden by {} as {role}", what.word(), signed.principal);
                self.raise(at, Key::Stop, "override", text, false);
                self.resolve(&Key::Stop, reason.clone(), true);
                self.open.remove(&Key::Stop);
            }
            Record::TaskEnded { name, what, state, note, .. } => self.task(at, name, *what, *state, note),
            Record::Said { verb, by: _, reason } => self.said(at, *verb, reason),
            Record::Stopping { reason } => {
                self.raise(at, Key::Stop, "rollout", format!("it ends where it stands: {reason}"), true);
                self.open.remove(&Key::Stop);
                self.explained = Some(at);
            }
            Record::Notified { key, route, ok, detail } => {
                let at_key = Key::Route(route.clone());
                if *ok {
                    self.resolve(&at_key, format!("the route took later notifications ({})", self.clock(at)), false);
                    self.open.remove(&at_key);
                } else if !self.facts.notified.get(&(key.clone(), route.clone())).is_some_and(|n| n.ok) {
                    self.raise(at, at_key, "notification", format!("route {route} could not be told of {key}: {detail}"), false);
                }
            }
            Record::Noted { by, text, resolves: Some(number) } => {
                if let Some(issue) = self.issues.iter_mut().find(|i| i.number == *number) {
                    issue.resolved_by = Some(Resolved { by: by.clone(), text: text.clone(), at });
                }
            }
            Record::State { to, reason } => self.state_changed(at, *to, reason),
            _ => {}
        }
    }

    fn host(
        &mut self,
        at: Timestamp,
        host: &HostName,
        component: &ComponentName,
        to: TargetState,
        why: Option<String>,
        on: Option<String>,
    ) {
        let (key, not_back) = (Key::Host(component.clone(), host.clone()), Key::NotBack(component.clone(), host.clone()));
        let clock = self.clock(at);
        match to {
            TargetState::Confirmed => {
                self.resolve(&key, format!("confirmed later, at {clock}"), false);
                self.open.remove(&key);
                return;
            }
            TargetState::RevertFailed => {
                let text = format!("{host} ({component}) could not get back: {}", why.as_deref().unwrap_or("no reason was given"));
                self.raise(at, not_back, "host", text, true);
                self.place(host, Some(component));
                return;
            }
            _ => {}
        }
        if let Some(why) = why {
            let word = match to {
                TargetState::Unreachable => "unreachable",
                TargetState::Skipped => "left out",
                _ => "failed",
            };
            self.raise(at, key.clone(), "host", format!("{host} ({component}) {word}: {why}"), true);
            self.place(host, Some(component));
        }
        if to == TargetState::Reverted {
            let on = on.unwrap_or_else(|| "nothing, as before".to_string());
            let how = if self.state == RolloutState::RollingBack { "taken back" } else { "reverted by itself" };
            self.resolve(&key, format!("{how} to {on} at {clock}"), false);
            self.resolve(&not_back, format!("back on {on} at {clock}"), false);
        }
    }

    fn gate(&mut self, at: Timestamp, stage: usize, step: GateStep, reason: &str) {
        let name = self.facts.plan.gating.stages.get(stage).map_or_else(|| format!("{}", stage + 1), |s| s.name.clone());
        let clock = self.clock(at);
        match step {
            GateStep::Extended => {
                self.raise(at, Key::Unsure(stage), "gate", format!("the gate {name} was inconclusive: {reason}"), false);
            }
            GateStep::Asked => {
                // A blind gate asks as well: that issue stands already.
                if !self.open.contains_key(&Key::Blind) {
                    self.raise(at, Key::Unsure(stage), "gate", format!("the gate {name} was inconclusive: {reason}"), false);
                }
                self.explained = Some(at);
            }
            GateStep::Passed => {
                self.resolve(&Key::Unsure(stage), format!("passed at {clock}"), false);
                self.open.remove(&Key::Unsure(stage));
            }
            GateStep::Overridden => {
                if !self.open.contains_key(&Key::Unsure(stage)) {
                    self.raise(at, Key::Unsure(stage), "override", format!("the gate {name} was overridden"), false);
                }
                self.resolve(&Key::Unsure(stage), format!("overridden at {clock}: {reason}"), true);
                self.open.remove(&Key::Unsure(stage));
            }
            GateStep::Failed => {
                self.raise(at, Key::Failed(stage), "gate", format!("the gate {name} failed: {reason}"), true);
                self.explained = Some(at);
            }
            GateStep::Blind => {
                self.raise(at, Key::Blind, "gate", format!("a source could not be read: {reason}"), false);
                self.explained = Some(at);
            }
            GateStep::Sighted => {
                self.resolve(&Key::Blind, format!("every source could be read again at {clock}"), false);
                self.open.remove(&Key::Blind);
            }
            GateStep::Opened => {}
        }
    }

    fn task(&mut self, at: Timestamp, name: &str, what: TaskRun, state: TaskState, note: &str) {
        let key = Key::Task(name.to_string(), what);
        let how = if what == TaskRun::Undo { "undo of task" } else { "task" };
        match state {
            TaskState::Done => {
                self.resolve(&key, format!("a further attempt ended well at {}", self.clock(at)), true);
                self.open.remove(&key);
            }
            TaskState::Lost => self.raise(at, key, "task", format!("{how} {name} began, and its end was not seen"), true),
            _ => self.raise(at, key, "task", format!("{how} {name} failed: {note}"), true),
        }
        self.explained = Some(at);
    }

    fn said(&mut self, at: Timestamp, verb: Verb, reason: &str) {
        match verb {
            Verb::Pause => {
                self.raise(at, Key::Pause, "pause", reason.to_string(), false);
                self.explained = Some(at);
            }
            Verb::Halt => {
                self.raise(at, Key::Stop, "rollout", reason.to_string(), true);
                self.resolve(&Key::Stop, "hosts stay as they are and are named".to_string(), false);
                self.open.remove(&Key::Stop);
            }
            Verb::Rollback => {
                self.raise(at, Key::Stop, "rollout", reason.to_string(), false);
                self.resolve(&Key::Stop, "the rollout went back".to_string(), false);
                self.open.remove(&Key::Stop);
            }
            Verb::Resume => self.ended_pause(at, reason),
            Verb::Promote | Verb::PromoteAll | Verb::Ack => {}
        }
    }

    fn ended_pause(&mut self, at: Timestamp, reason: &str) {
        let clock = self.clock(at);
        for key in [Key::Pause, Key::Waits] {
            self.resolve(&key, format!("went on at {clock}: {reason}"), true);
            self.open.remove(&key);
        }
    }

    fn state_changed(&mut self, at: Timestamp, to: RolloutState, reason: &str) {
        let was = core::mem::replace(&mut self.state, to);
        match to {
            RolloutState::Paused => {
                // Waiting for somebody to move the traffic is the plan, not an issue.
                let planned = self.facts.plan.blue_green.as_ref().is_some_and(|b| b.manual)
                    && self.facts.input.entries.iter().any(|e| e.at <= at && matches!(e.record, Record::Step { step: Step::Switching }));
                let known = self.explained.is_some_and(|e| at.since(e).0 < 1_000) || self.open.contains_key(&Key::Blind);
                if !planned && !known {
                    self.raise(at, Key::Waits, "pause", format!("paused: {reason}"), false);
                }
                return;
            }
            RolloutState::RollingBack => {
                let back = "the rollout went back";
                let keys: Vec<Key> = self
                    .open
                    .keys()
                    .filter(|k| matches!(k, Key::Failed(_) | Key::Trip(_) | Key::Unsure(_) | Key::Blind | Key::Switch(..)))
                    .cloned()
                    .collect();
                for key in keys {
                    self.resolve(&key, back.to_string(), false);
                    // What made it go back wants a person, whatever it was.
                    if let Some(issue) = self.open.get(&key).and_then(|i| self.issues.get_mut(*i)) {
                        issue.needs_person |= issue.kind != "override" && !matches!(key, Key::Blind);
                    }
                    if !matches!(key, Key::Switch(..)) {
                        self.open.remove(&key);
                    }
                }
            }
            RolloutState::Refused if self.issues.is_empty() => {
                self.raise(at, Key::Stop, "rollout", format!("refused: {reason}"), false);
                self.resolve(&Key::Stop, "no service was touched".to_string(), false);
            }
            _ => {}
        }
        if was == RolloutState::Paused {
            self.ended_pause(at, reason);
        }
    }

    /// A new issue, unless the same one stands already.
    fn raise(&mut self, at: Timestamp, key: Key, kind: &'static str, text: String, needs_person: bool) {
        if let Some(issue) = self.open.get(&key).and_then(|i| self.issues.get_mut(*i)) {
            issue.needs_person |= needs_person;
            return;
        }
        let number = u32::try_from(self.issues.len() + 1).unwrap_or(u32::MAX);
        self.open.insert(key, self.issues.len());
        self.issues.push(Issue { number, at, kind, host: None, component: None, text, resolution: None, resolved_by: None, needs_person });
    }

    /// Where the last one raised is; a repeated one has its place.
    fn place(&mut self, host: &HostName, component: Option<&ComponentName>) {
        if let Some(issue) = self.issues.last_mut().filter(|i| i.host.is_none() && i.text.contains(host.as_str())) {
            issue.host = Some(host.clone());
            issue.component = component.cloned();
        }
    }

    /// What the records say became of it; `settles`: nobody needs to add anything.
    fn resolve(&mut self, key: &Key, how: String, settles: bool) {
        if let Some(issue) = self.open.get(key).and_then(|i| self.issues.get_mut(*i)) {
            issue.resolution = Some(how);
            issue.needs_person &= !settles;
        }
    }

    fn clock(&self, at: Timestamp) -> String {
        crate::text::clock(at, self.facts.origin())
    }
}
