//! Which events of a rollout are told, to whom, in which words.
//!
//! Owns: the fold from a rollout's records to [`Notice`]s, their keys, how many are
//! too many, and which route takes over for one that is out of order. Must not:
//! send anything, read a clock or a secret. Times are those of the records, so the
//! same journal gives the same notices for ever; what has no [`Record::Notified`]
//! is still owed.
//!
//! One event is one notice on a route. What a record begins and the next one of
//! the same moment names better (a trigger trips, the rollout goes back) is told
//! once, by the latter: a cause is held until a later record shows that nothing
//! follows from it.

mod limit;
mod routing;
mod words;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{ComponentName, HostName, Millis, RolloutId, TaskRun, TaskState, Timestamp};

use self::limit::{Flapping, Limits};
pub use self::routing::{default_specs, route_of};
use self::words::Words;
use crate::plan::Plan;
use crate::process::{Topic, Via};
use crate::record::{GateStep, Record, RolloutState, TargetState, Verb};
use crate::spec::TriggerAction;

/// What is older is not told any more.
pub const GIVE_UP_AFTER: Millis = Millis::from_secs(86_400);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// For information.
    Info,
    /// A person should look.
    Warning,
    /// Something failed.
    Error,
    /// A person must act.
    Critical,
}

impl Severity {
    /// The words of PagerDuty.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// One thing to tell. Plain text of one line each, without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Of which rollout.
    pub rollout: RolloutId,
    /// Stable; once per rollout and event: `started`, `stage-2-passed`, `paused-3`.
    pub key: String,
    /// What kind of event.
    pub topic: Topic,
    /// How bad.
    pub severity: Severity,
    /// A headline, at most 200 characters.
    pub title: String,
    /// One paragraph: rollout, release, environment, cause, the next command. At
    /// most 2,500 characters.
    pub text: String,
    /// When it happened.
    pub at: Timestamp,
    /// When the rollout was submitted: tells an id that was refused and used again.
    pub since: Timestamp,
    /// `shop@2.1.0`.
    pub release: String,
    /// Where.
    pub environment: Option<String>,
    /// An incident that it opens or adds to: `tidegate/ROLLOUT/THING`.
    pub raises: Option<String>,
    /// Incidents that are over with it.
    pub resolves: Vec<String>,
    /// Key of the first notice of this rollout on the same route.
    pub thread: String,
}

/// Incidents of a rollout.
const ISSUE: &str = "issue";
const WAITING: &str = "waiting";
const ROLLBACK: &str = "rollback";

/// A notice before it is known who gets it.
#[derive(Clone, Debug)]
struct Draft {
    key: String,
    /// The first is the notice's own; any of them finds its routes.
    topics: Vec<Topic>,
    severity: Severity,
    headline: String,
    text: String,
    raises: Option<&'static str>,
    resolves: Vec<&'static str>,
    /// Only for machines that keep incidents: people were told otherwise.
    quiet: bool,
}

/// A cause that waits for what follows from it.
#[derive(Clone, Debug)]
struct Held {
    at: Timestamp,
    kind: &'static str,
    draft: Draft,
}

/// What is to be told of one rollout, folded from its records in order.
#[derive(Clone, Debug)]
pub struct Notices {
    words: Words,
    routing: routing::Routing,
    state: RolloutState,
    started: bool,
    held: Option<Held>,
    said: Option<(Timestamp, Verb)>,
    /// The key of the notice that told of a wait that goes on.
    waiting: Option<String>,
    issue_open: bool,
    /// It goes back without a person having said so.
    back_by_itself: bool,
    failed: BTreeSet<(HostName, ComponentName, bool)>,
    counted: BTreeSet<HostName>,
    limits: Limits,
    flapping: Flapping,
    seen: BTreeMap<&'static str, u32>,
}

impl Notices {
    /// Of a rollout whose records follow, the first one first. `routes`: those of
    /// controller.toml by name.
    #[must_use]
    pub fn new(rollout: &RolloutId, plan: &Plan, routes: &BTreeMap<String, Via>) -> Self {
        Self {
            words: Words::new(rollout, plan),
            routing: routing::Routing::new(rollout, plan, routes),
            state: RolloutState::Scheduled,
            started: false,
            held: None,
            said: None,
            waiting: None,
            issue_open: false,
            back_by_itself: false,
            failed: BTreeSet::new(),
            counted: BTreeSet::new(),
            limits: Limits::default(),
            flapping: Flapping::default(),
            seen: BTreeMap::new(),
        }
    }

    /// What is told and has no word yet of how that ended: to be sent (again) after
    /// a restart. Without what is older than [`GIVE_UP_AFTER`].
    #[must_use]
    pub fn pending(&self, now: Timestamp) -> Vec<(Notice, String)> {
        self.routing.pending(now)
    }

    /// Takes the next record in. What it returns is sent once the record is
    /// durable: to each route by name.
    pub fn apply(&mut self, plan: &Plan, at: Timestamp, record: &Record) -> Vec<(Notice, String)> {
        // A rehearsal tells nobody.
        if plan.drill {
            return Vec::new();
        }
        let mut out = Vec::new();
        if self.held.as_ref().is_some_and(|held| at > held.at)
            && let Some(held) = self.held.take()
        {
            self.issue(held.at, held.kind, None, held.draft, &mut out);
        }
        match record {
            Record::Started { by, .. } => {
                self.words.by.clone_from(by);
                self.words.since = at;
            }
            Record::Began => self.begun(plan, at, &mut out),
            Record::Said { verb, .. } => self.said = Some((at, *verb)),
            Record::State { to, reason } => {
                self.state_is(plan, at, *to, reason, &mut out);
                self.state = *to;
            }
            Record::Host { host, component, to, failure: Some(failure), counted, .. } => {
                self.host(plan, at, (host, component, *to), *counted, &format!("{}: {}", failure.cause, failure.message), &mut out);
            }
            Record::Gate { stage, step, reason, .. } => self.gate(plan, at, *stage, *step, reason, &mut out),
            Record::Tripped { when, action, reason, host, .. } => {
                let n = self.count("trigger");
                let on = host.as_ref().map_or_else(String::new, |h| format!(" on {h}"));
                let severity = if *action == TriggerAction::Emergency { Severity::Critical } else { Severity::Error };
                let text = self.words.text(&format!("Trigger `{when}` tripped{on}: {reason}"), self.words.see());
                self.hold(at, "trigger", format!("issue-trigger-{n}"), severity, format!("trigger {when}"), text);
            }
            Record::TaskEnded { name, what, state: state @ (TaskState::Failed | TaskState::Lost), note, .. } => {
                let n = self.count("task");
                let what = if *what == TaskRun::Undo { "The undo of task" } else { "Task" };
                let how = if *state == TaskState::Lost { "began, and its end was not seen" } else { "failed" };
                let text = self.words.text(&format!("{what} {name:?} {how}: {note}"), self.words.see());
                self.hold(at, "task", format!("issue-task-{n}"), Severity::Error, format!("task {name} {how}"), text);
            }
            Record::Switched { host, component, failure: Some(failure), .. } if self.state != RolloutState::RollingBack => {
                let n = self.count("switch");
                let cause = format!("The switch of {component} failed on host {host}: {}: {}.", failure.cause, failure.message);
                let text = self.words.text(&cause, self.words.see());
                self.hold(at, "switch", format!("issue-switch-{n}"), Severity::Error, format!("switch failed on {host}"), text);
            }
            Record::Stopping { reason } => {
                let n = self.count("stopping");
                let severity = self.followed(at).map_or(Severity::Critical, |s| s.max(Severity::Critical));
                let next = self.words.person_decides();
                self.tell(
                    at,
                    Draft {
                        key: format!("stopping-{n}"),
                        topics: [Topic::Issue].into(),
                        severity,
                        headline: "stops where it stands".into(),
                        text: self.words.text(&format!("It ends where it stands, and no machine takes it back: {reason}"), next),
                        raises: Some(ISSUE),
                        resolves: Vec::new(),
                        quiet: false,
                    },
                    &mut out,
                );
            }
            Record::Reminded { reason } => {
                let n = self.count("reminded");
                self.remind(at, format!("reminded-{n}"), reason, &mut out);
            }
            Record::Notified { key, route, ok, detail } => out.extend(self.routing.notified(&self.words, at, key, route, *ok, detail)),
            _ => {}
        }
        out
    }

    /// How many of these there were, this one included.
    fn count(&mut self, what: &'static str) -> u32 {
        let n = self.seen.entry(what).or_default();
        *n = n.saturating_add(1);
        *n
    }

    fn begun(&mut self, plan: &Plan, at: Timestamp, out: &mut Vec<(Notice, String)>) {
        if core::mem::replace(&mut self.started, true) {
            return;
        }
        let what = format!("Started by {}: {}, {}.", self.words.by, words::hosts(plan), plan.strategy.word());
        let draft = self.info("started", Topic::Started, "started", self.words.text(&what, self.words.watch()));
        self.tell(at, draft, out);
    }

    fn state_is(&mut self, plan: &Plan, at: Timestamp, to: RolloutState, reason: &str, out: &mut Vec<(Notice, String)>) {
        use RolloutState as S;
        let came = to != self.state;
        // The wait is over, whatever follows.
        if came && let Some(key) = self.waiting.take() {
            let text = self.words.text(&format!("Nobody is waited for any more: it is {to} ({reason})"), self.words.watch());
            let draft = Draft {
                resolves: [WAITING].into(),
                quiet: true,
                ..self.info(&format!("{key}-over"), Topic::Paused, "waits no more", text)
            };
            self.tell(at, draft, out);
        }
        match to {
            S::Running => self.begun(plan, at, out),
            S::Paused if came => self.paused(at, reason, out),
            S::AwaitingApproval if came => {
                let n = self.count("awaiting-approval");
                let draft = Draft {
                    severity: Severity::Info,
                    raises: Some(WAITING),
                    ..self.info(
                        &format!("awaiting-approval-{n}"),
                        Topic::Paused,
                        "waits for people",
                        self.words.text(reason, self.words.approve()),
                    )
                };
                self.waiting = Some(draft.key.clone());
                self.tell(at, draft, out);
            }
            S::RollingBack if came => {
                let n = self.count("rollback");
                let by_person = self.said == Some((at, Verb::Rollback));
                self.back_by_itself = !by_person;
                let severity = self.followed(at).unwrap_or(Severity::Error).max(Severity::Error);
                let what = format!("It goes back to what ran before: {reason}.");
                let draft = Draft {
                    topics: self.back_topics(),
                    severity: if by_person { Severity::Warning } else { severity },
                    raises: Some(ROLLBACK),
                    ..self.info(&format!("rollback-{n}"), Topic::Rollback, "is rolled back", self.words.text(&what, self.words.watch()))
                };
                self.tell(at, draft, out);
            }
            S::RolledBack | S::Mixed | S::Halted | S::Refused | S::Completed => self.ended(at, to, reason, out),
            _ => {}
        }
    }

    fn ended(&mut self, at: Timestamp, to: RolloutState, reason: &str, out: &mut Vec<(Notice, String)>) {
        use RolloutState as S;
        let cause = self.followed(at);
        let n = self.count(to.word());
        let words = &self.words;
        let draft = match to {
            S::RolledBack => Draft {
                topics: self.back_topics(),
                resolves: [ROLLBACK, ISSUE].into(),
                ..self.info(
                    &format!("rolled-back-{n}"),
                    Topic::Rollback,
                    "was rolled back",
                    words.text(
                        &format!("Every changed host runs again what it ran before. It went back because of this: {reason}"),
                        words.papers(),
                    ),
                )
            },
            S::Mixed => Draft {
                topics: [Topic::Rollback, Topic::Issue].into(),
                severity: Severity::Critical,
                raises: Some(ROLLBACK),
                ..self.info(
                    &format!("mixed-{n}"),
                    Topic::Rollback,
                    "left hosts that are neither new nor back",
                    words.text(reason, words.mixed()),
                )
            },
            S::Halted => Draft {
                topics: if self.state == S::RollingBack { [Topic::Issue, Topic::Rollback].into() } else { [Topic::Issue].into() },
                severity: cause.unwrap_or(Severity::Warning),
                raises: Some(ISSUE),
                ..self.info(
                    &format!("halted-{n}"),
                    Topic::Issue,
                    "was halted",
                    words.text(&format!("It ended where it stood, hosts stay as they are: {reason}"), words.person_decides()),
                )
            },
            S::Refused => Draft {
                severity: cause.unwrap_or(Severity::Warning).min(Severity::Warning),
                raises: Some(ISSUE),
                ..self.info("refused", Topic::Issue, "was refused", words.text(&format!("No service was touched: {reason}"), words.mend()))
            },
            _ => self.info("completed", Topic::Completed, "completed", words.text(&format!("Completed: {reason}"), words.papers())),
        };
        self.tell(at, draft, out);
        if to == S::Completed && self.issue_open {
            self.issue_open = false;
            let text = self.words.text("It completed with the issues that were told.", self.words.papers());
            let draft = Draft { resolves: [ISSUE].into(), quiet: true, ..self.info("issues-over", Topic::Issue, "completed", text) };
            self.tell(at, draft, out);
        }
    }

    fn paused(&mut self, at: Timestamp, reason: &str, out: &mut Vec<(Notice, String)>) {
        let n = self.count("paused");
        let cause = self.followed(at);
        let by_person = self.said == Some((at, Verb::Pause));
        if !by_person && !self.flapping.admit(at) {
            return;
        }
        let draft = Draft {
            topics: if cause.is_some() { [Topic::Paused, Topic::Issue].into() } else { [Topic::Paused].into() },
            severity: cause.unwrap_or(if by_person { Severity::Info } else { Severity::Warning }),
            raises: Some(WAITING),
            ..self.info(
                &format!("paused-{n}"),
                Topic::Paused,
                "is paused",
                self.words.text(&format!("Paused: {reason}"), self.words.go_on()),
            )
        };
        self.waiting = Some(draft.key.clone());
        self.tell(at, draft, out);
    }

    fn remind(&mut self, at: Timestamp, key: String, reason: &str, out: &mut Vec<(Notice, String)>) {
        if self.limits.admit("reminded", at, None).is_none() {
            return;
        }
        let next = if self.state == RolloutState::AwaitingApproval { self.words.approve() } else { self.words.go_on() };
        let text = self.words.text(&format!("It is {} and still waits for a person: {reason}", self.state), next);
        let draft = Draft {
            severity: Severity::Warning,
            raises: Some(WAITING),
            ..self.info(&key, Topic::Paused, "still waits for a person", text)
        };
        self.waiting.get_or_insert(key);
        self.tell(at, draft, out);
    }

    fn gate(&mut self, plan: &Plan, at: Timestamp, stage: usize, step: GateStep, reason: &str, out: &mut Vec<(Notice, String)>) {
        let name = plan.gating.stages.get(stage).map_or_else(|| (stage + 1).to_string(), |s| s.name.clone());
        match step {
            GateStep::Passed | GateStep::Overridden => {
                let how = if step == GateStep::Passed { "passed" } else { "overridden" };
                let text = self.words.text(&format!("Stage {name} {how}: {reason}"), self.words.watch());
                let key = format!("stage-{}-{how}", stage + 1);
                let headline = format!("stage {name} {how}");
                let draft = self.info(&key, Topic::Stage, &headline, text);
                self.tell(at, draft, out);
            }
            GateStep::Failed | GateStep::Blind => {
                let n = self.count("gate");
                let (word, what) =
                    if step == GateStep::Failed { ("failed", "failed") } else { ("blind", "cannot be judged, a source does not answer") };
                let text = self.words.text(&format!("The gate {name} {what}: {reason}"), self.words.see());
                self.hold(at, "gate", format!("issue-gate-{word}-{n}"), Severity::Error, format!("gate {name} {what}"), text);
            }
            // A first question is told by the pause that follows it.
            GateStep::Asked if self.state == RolloutState::Paused => {
                let n = self.count("asked");
                self.remind(at, format!("asked-{n}"), reason, out);
            }
            GateStep::Asked | GateStep::Opened | GateStep::Extended | GateStep::Sighted => {}
        }
    }

    fn host(
        &mut self,
        plan: &Plan,
        at: Timestamp,
        (host, component, to): (&HostName, &ComponentName, TargetState),
        counted: bool,
        why: &str,
        out: &mut Vec<(Notice, String)>,
    ) {
        let stuck = to == TargetState::RevertFailed;
        let bad = counted || matches!(to, TargetState::Failed | TargetState::RevertFailed | TargetState::Unreachable);
        // On the way back the outcome names those that did not get there.
        if !bad || self.state == RolloutState::RollingBack || !self.failed.insert((host.clone(), component.clone(), stuck)) {
            return;
        }
        if counted {
            self.counted.insert(host.clone());
        }
        let wave = plan.waves.iter().find(|w| w.component == *component && w.hosts.contains(host));
        let of = wave.map_or_else(String::new, |w| format!(" (wave {})", w.name));
        let what = if stuck { "could not get back" } else { "failed" };
        let text = self.words.text(&format!("Host {host} {what} for {component}{of}: {why}"), self.words.see());
        let key = format!("issue-host-{host}-{component}{}", if stuck { "-stuck" } else { "" });
        let headline = format!("host {host} {what}");
        // Beyond the budget the rollout goes back, and says so itself.
        if self.counted.len() > plan.limits.max_failed_hosts {
            self.hold(at, "host", key, Severity::Error, headline, text);
        } else {
            let draft = self.issue_draft(key, Severity::Error, headline, text);
            self.issue(at, "host", wave.map(|w| w.index), draft, out);
        }
    }

    fn info(&self, key: &str, topic: Topic, headline: &str, text: String) -> Draft {
        Draft {
            key: key.into(),
            topics: [topic].into(),
            severity: Severity::Info,
            headline: headline.into(),
            text,
            raises: None,
            resolves: Vec::new(),
            quiet: false,
        }
    }

    fn issue_draft(&self, key: String, severity: Severity, headline: String, text: String) -> Draft {
        Draft { severity, raises: Some(ISSUE), ..self.info(&key, Topic::Issue, &headline, text) }
    }

    fn back_topics(&self) -> Vec<Topic> {
        if self.back_by_itself { [Topic::Rollback, Topic::Issue].into() } else { [Topic::Rollback].into() }
    }

    fn hold(&mut self, at: Timestamp, kind: &'static str, key: String, severity: Severity, headline: String, text: String) {
        match &mut self.held {
            // Of several causes at one moment the first stands for all.
            Some(held) => held.draft.severity = held.draft.severity.max(severity),
            None => self.held = Some(Held { at, kind, draft: self.issue_draft(key, severity, headline, text) }),
        }
    }

    /// What is told now follows from what was held: the cause's severity.
    fn followed(&mut self, at: Timestamp) -> Option<Severity> {
        self.held.take_if(|held| held.at == at).map(|held| held.draft.severity)
    }

    fn issue(&mut self, at: Timestamp, kind: &'static str, wave: Option<usize>, mut draft: Draft, out: &mut Vec<(Notice, String)>) {
        let Some(more) = self.limits.admit(kind, at, wave) else { return };
        if more > 0 {
            draft.text = format!("{} And {more} more since the last notice of this kind.", draft.text);
            draft.headline = format!("{} and {more} more", draft.headline);
        }
        self.issue_open = true;
        self.tell(at, draft, out);
    }

    fn tell(&mut self, at: Timestamp, draft: Draft, out: &mut Vec<(Notice, String)>) {
        out.extend(self.routing.deliver(&self.words, at, &draft));
    }
}
