//! Records become facts: what is told of a rollout, whoever asks.
//!
//! Owns: picking up what each record says, last word first where it may be said
//! again. Must not: word anything for a document. The controller's own absences
//! and its attempts to deliver change nothing here.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::Digest;
use tidegate_protocol::report::{Failure, SmokeResult};
use tidegate_protocol::{
    Component, ComponentName, HostName, Intent, Millis, Phase, Release, ReleaseId, Side, TaskRun, TaskState, Timestamp,
};
use tidegate_rollout::Rollout;
use tidegate_rollout::gate::{Judgement, Observed, Verdict};
use tidegate_rollout::plan::Plan;
use tidegate_rollout::process::{Given, Override, Role, SignRole, Signed};
use tidegate_rollout::record::{GateStep, Origin, Record, Review, RolloutState, Seen, TargetState};
use tidegate_rollout::status::{StatusDoc, status};

use crate::{DocsError, Input};

/// One component on one host.
#[derive(Clone, Debug)]
pub(crate) struct TargetFact {
    pub(crate) host: HostName,
    pub(crate) component: ComponentName,
    /// Index (from 1) of its wave.
    pub(crate) wave: Option<usize>,
    pub(crate) state: TargetState,
    /// What it runs, where it was left as it is.
    pub(crate) unchanged: Option<ReleaseId>,
    /// What it ran before.
    pub(crate) origin: Option<Origin>,
    /// First ordered to swap.
    pub(crate) swap_at: Option<Timestamp>,
    pub(crate) confirmed_at: Option<Timestamp>,
    /// Ordered back, or began to go back by itself.
    pub(crate) back_from: Option<Timestamp>,
    pub(crate) back_at: Option<Timestamp>,
    pub(crate) failure: Option<Failure>,
    /// Last seen of it, whatever it ran.
    pub(crate) seen: Option<Seen>,
    /// Last seen of it on the release of the plan.
    pub(crate) proof: Option<Seen>,
    /// Of the release of the plan.
    pub(crate) smoke: Vec<SmokeResult>,
    /// When those were told.
    pub(crate) smoke_at: Option<Timestamp>,
    /// Of what ran before, once it was back.
    pub(crate) smoke_back: Vec<SmokeResult>,
    /// Blue-green: the last switch.
    pub(crate) switch: Option<SwitchFact>,
}

/// The switch of one host.
#[derive(Clone, Debug)]
pub(crate) struct SwitchFact {
    pub(crate) intent: Intent,
    pub(crate) to: Side,
    pub(crate) ended: Option<Result<(), Failure>>,
}

/// One task of the release, forward or back.
#[derive(Clone, Debug)]
pub(crate) struct TaskFact {
    pub(crate) name: String,
    pub(crate) what: TaskRun,
    pub(crate) host: HostName,
    pub(crate) at: Timestamp,
    pub(crate) ended: Option<TaskEnd>,
}

/// How it ended, at its last attempt.
#[derive(Clone, Debug)]
pub(crate) struct TaskEnd {
    pub(crate) state: TaskState,
    pub(crate) note: String,
    pub(crate) duration_ms: u64,
}

/// What became of one stage's gate.
#[derive(Clone, Debug)]
pub(crate) struct StageFact {
    pub(crate) stage: usize,
    pub(crate) opened: Timestamp,
    /// What was last done about it.
    pub(crate) step: GateStep,
    pub(crate) at: Timestamp,
    pub(crate) reason: String,
    pub(crate) extended: bool,
}

/// A way back of the whole rollout.
#[derive(Clone, Debug)]
pub(crate) struct BackFact {
    pub(crate) from: Timestamp,
    pub(crate) to: Option<Timestamp>,
    pub(crate) reason: String,
}

/// A notification, however often it was tried.
#[derive(Clone, Debug)]
pub(crate) struct NoticeFact {
    pub(crate) at: Timestamp,
    pub(crate) ok: bool,
    pub(crate) detail: String,
}

/// A signature that goes past something.
#[derive(Clone, Debug)]
pub(crate) struct OverrideFact {
    pub(crate) at: Timestamp,
    pub(crate) what: Override,
    pub(crate) role: Role,
    pub(crate) signed: Signed,
    pub(crate) reason: String,
}

/// An outstanding item, as last told.
#[derive(Clone, Debug)]
pub(crate) struct ItemFact {
    pub(crate) what: String,
    pub(crate) owner: String,
    pub(crate) status: String,
    pub(crate) eta: String,
}

/// A signature under the handoff.
#[derive(Clone, Debug)]
pub(crate) struct SignOffFact {
    pub(crate) at: Timestamp,
    pub(crate) signed: Signed,
    pub(crate) document: Digest,
}

/// A trigger's condition held.
#[derive(Clone, Debug)]
pub(crate) struct TripFact {
    pub(crate) at: Timestamp,
    pub(crate) trigger: Option<usize>,
    pub(crate) reason: String,
}

/// The last verdict of one stage.
#[derive(Clone, Debug)]
pub(crate) struct JudgedFact {
    pub(crate) verdict: Verdict,
    pub(crate) judgements: Vec<Judgement>,
}

/// Everything that documents tell.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) plan: &'a Plan,
    pub(crate) plan_digest: Digest,
    pub(crate) release: &'a Release,
    pub(crate) by: &'a str,
    pub(crate) given: Given,
    pub(crate) status: StatusDoc,
    pub(crate) state: RolloutState,
    pub(crate) reason: String,
    pub(crate) started: Timestamp,
    /// Checklist complete, or where no record says so the start.
    pub(crate) began: Option<Timestamp>,
    pub(crate) first_swap: Option<Timestamp>,
    pub(crate) ended: Option<Timestamp>,
    /// Of the last record that belongs to the rollout itself, not to its papers.
    pub(crate) last: Timestamp,
    pub(crate) targets: Vec<TargetFact>,
    pub(crate) tasks: Vec<TaskFact>,
    pub(crate) stages: Vec<StageFact>,
    pub(crate) backs: Vec<BackFact>,
    pub(crate) baseline: Vec<Observed>,
    pub(crate) observed: Vec<(Timestamp, &'a [Observed])>,
    pub(crate) judged: BTreeMap<usize, JudgedFact>,
    /// `[[perf]]` rows by name, as last judged.
    pub(crate) perf: BTreeMap<String, Judgement>,
    pub(crate) trips: Vec<TripFact>,
    /// When, text, before the first swap.
    pub(crate) alerts: Vec<(Timestamp, String, bool)>,
    /// What is called, empty where nothing can be.
    pub(crate) probed: BTreeMap<(ComponentName, HostName), String>,
    /// Start → end.
    pub(crate) outages: BTreeMap<(ComponentName, HostName), BTreeMap<u64, Option<u64>>>,
    pub(crate) notified: BTreeMap<(String, String), NoticeFact>,
    pub(crate) overrides: Vec<OverrideFact>,
    pub(crate) items: BTreeMap<u32, ItemFact>,
    pub(crate) sign_offs: BTreeMap<SignRole, SignOffFact>,
    pub(crate) review: Option<(Review, String, Timestamp)>,
    pub(crate) notes: Vec<(Timestamp, String, String)>,
}

impl<'a> Facts<'a> {
    /// # Errors
    /// [`DocsError`].
    pub(crate) fn of(input: &Input<'a>) -> Result<Self, DocsError> {
        let Some((first, rest)) = input.entries.split_first() else { return Err(DocsError::Empty { id: input.id.clone() }) };
        let Record::Started { plan, by, from } = &first.record else { return Err(DocsError::NotStarted { id: input.id.clone() }) };
        if input.release.id() != plan.release.id {
            return Err(DocsError::OtherRelease { id: input.id.clone(), wanted: plan.release.id.clone(), given: input.release.id() });
        }
        let entries = input.entries.iter().map(|e| (e.at, e.record.clone()));
        let rollout = Rollout::fold(input.id.clone(), entries).ok_or(DocsError::NotStarted { id: input.id.clone() })?;
        let status = status(&rollout);
        let origins: BTreeMap<_, _> = from.iter().map(|o| ((&o.component, &o.host), o)).collect();
        let targets = status.hosts.iter().map(|host| TargetFact {
            host: host.host.clone(),
            component: host.component.clone(),
            wave: host.wave,
            state: host.state,
            origin: origins.get(&(&host.component, &host.host)).map(|o| (*o).clone()),
            unchanged: host.release.clone().filter(|_| host.wave.is_none()),
            swap_at: None,
            confirmed_at: None,
            back_from: None,
            back_at: None,
            failure: None,
            seen: None,
            proof: None,
            smoke: Vec::new(),
            smoke_at: None,
            smoke_back: Vec::new(),
            switch: None,
        });
        let mut facts = Self {
            input: *input,
            plan,
            plan_digest: plan.digest(),
            release: input.release,
            by,
            given: rollout.given().clone(),
            state: rollout.state(),
            reason: rollout.reason().to_string(),
            started: first.at,
            began: None,
            first_swap: None,
            ended: rollout.times().1,
            last: first.at,
            targets: targets.collect(),
            status,
            tasks: Vec::new(),
            stages: Vec::new(),
            backs: Vec::new(),
            baseline: Vec::new(),
            observed: Vec::new(),
            judged: BTreeMap::new(),
            perf: BTreeMap::new(),
            trips: Vec::new(),
            alerts: Vec::new(),
            probed: BTreeMap::new(),
            outages: BTreeMap::new(),
            notified: BTreeMap::new(),
            overrides: Vec::new(),
            items: BTreeMap::new(),
            sign_offs: BTreeMap::new(),
            review: None,
            notes: Vec::new(),
        };
        let mut index = BTreeMap::new();
        for (at, target) in facts.targets.iter().enumerate() {
            index.insert((target.component.clone(), target.host.clone()), at);
        }
        let mut intents = BTreeMap::new();
        for entry in rest {
            facts.take(entry.at, &entry.record, &index, &mut intents);
        }
        Ok(facts)
    }

    fn take(&mut self, at: Timestamp, record: &'a Record, index: &Index, intents: &mut BTreeMap<usize, Intent>) {
        if !is_paper(record) {
            self.last = at;
        }
        match record {
            Record::State { to, reason } => self.state_changed(at, *to, reason),
            Record::Began => self.began = Some(at),
            Record::Found { origin } => {
                if let Some(target) = self.target_mut(index, &origin.host, &origin.component) {
                    target.origin = Some(origin.clone());
                }
            }
            Record::Ordered { host, component, intent, phase, .. } => {
                if let Some(position) = index.get(&(component.clone(), host.clone())) {
                    intents.insert(*position, *intent);
                }
                if *phase == Phase::Swap && *intent == Intent::Forward {
                    self.first_swap.get_or_insert(at);
                }
                if let Some(target) = self.target_mut(index, host, component) {
                    match (intent, phase) {
                        (Intent::Back, _) => {
                            target.back_from.get_or_insert(at);
                        }
                        (Intent::Forward, Phase::Swap) => {
                            target.swap_at.get_or_insert(at);
                            (target.back_from, target.back_at) = (None, None);
                        }
                        _ => {}
                    }
                }
            }
            Record::Host { host, component, to, failure, seen, .. } => {
                let position = index.get(&(component.clone(), host.clone()));
                let back = position.and_then(|p| intents.get(p)) == Some(&Intent::Back);
                let release = self.plan.release.clone();
                let Some(target) = self.target_mut(index, host, component) else { return };
                match to {
                    TargetState::Confirmed => {
                        target.confirmed_at = Some(at);
                        target.failure = None;
                    }
                    TargetState::Reverting => {
                        target.back_from.get_or_insert(at);
                    }
                    TargetState::Reverted => target.back_at = Some(at),
                    _ => {}
                }
                if failure.is_some() {
                    target.failure.clone_from(failure);
                }
                if let Some(seen) = seen {
                    if !seen.smoke.is_empty() && back {
                        target.smoke_back.clone_from(&seen.smoke);
                    } else if !seen.smoke.is_empty() {
                        target.smoke.clone_from(&seen.smoke);
                        target.smoke_at = Some(at);
                    }
                    if seen.release.as_ref() == Some(&release) && !back {
                        target.proof = Some(seen.clone());
                    }
                    target.seen = Some(seen.clone());
                }
            }
            Record::Switch { host, component, intent, to, .. } => {
                if let Some(target) = self.target_mut(index, host, component) {
                    target.switch = Some(SwitchFact { intent: *intent, to: *to, ended: None });
                }
            }
            Record::Switched { host, component, failure, .. } => {
                if let Some(switch) = self.target_mut(index, host, component).and_then(|t| t.switch.as_mut()) {
                    switch.ended = Some(failure.clone().map_or(Ok(()), Err));
                }
            }
            // A further attempt is the same line.
            Record::TaskOrdered { name, what, host, .. } if !self.tasks.iter().any(|t| t.name == *name && t.what == *what) => {
                self.tasks.push(TaskFact { name: name.clone(), what: *what, host: host.clone(), at, ended: None });
            }
            Record::TaskEnded { name, what, state, note, duration_ms, .. } => {
                if let Some(task) = self.tasks.iter_mut().find(|t| t.name == *name && t.what == *what) {
                    task.ended = Some(TaskEnd { state: *state, note: note.clone(), duration_ms: *duration_ms });
                }
            }
            Record::Gate { stage, step, reason, .. } => self.gate(at, *stage, *step, reason),
            Record::Baseline { values } => self.baseline.clone_from(values),
            Record::Observed { values, .. } => self.observed.push((at, values)),
            Record::Judged { stage, verdict, judgements, .. } => {
                for judgement in judgements.iter().filter(|j| j.perf) {
                    self.perf.insert(judgement.name.clone(), judgement.clone());
                }
                self.judged.insert(*stage, JudgedFact { verdict: *verdict, judgements: judgements.clone() });
            }
            Record::Tripped { trigger, reason, .. } => {
                self.trips.push(TripFact { at, trigger: *trigger, reason: reason.clone() });
            }
            Record::Alert { text, before, .. } => self.alerts.push((at, text.clone(), *before)),
            Record::Overridden { what, role, signed, reason } => {
                self.overrides.push(OverrideFact { at, what: *what, role: *role, signed: signed.clone(), reason: reason.clone() });
            }
            Record::Probed { host, component, probe } => {
                self.probed.insert((component.clone(), host.clone()), probe.clone());
            }
            Record::Outage { host, component, from_unix_ms, to_unix_ms } => {
                let known = self.outages.entry((component.clone(), host.clone())).or_default();
                let end = known.entry(*from_unix_ms).or_insert(*to_unix_ms);
                *end = to_unix_ms.or(*end);
            }
            Record::Notified { key, route, ok, detail } => {
                let new = NoticeFact { at, ok: *ok, detail: detail.clone() };
                let known = self.notified.entry((key.clone(), route.clone())).or_insert_with(|| new.clone());
                if *ok && !known.ok {
                    *known = new;
                }
            }
            Record::Item { item, what, owner, status, eta, .. } => {
                let fact = ItemFact { what: what.clone(), owner: owner.clone(), status: status.clone(), eta: eta.clone() };
                self.items.insert(*item, fact);
            }
            Record::SignedOff { role, signed, document } => {
                self.sign_offs.insert(*role, SignOffFact { at, signed: signed.clone(), document: *document });
            }
            Record::Reviewed { review, by } => self.review = Some((review.clone(), by.clone(), at)),
            Record::Noted { by, text, resolves: None } => self.notes.push((at, by.clone(), text.clone())),
            _ => {}
        }
    }

    fn state_changed(&mut self, at: Timestamp, to: RolloutState, reason: &str) {
        match to {
            RolloutState::RollingBack => self.backs.push(BackFact { from: at, to: None, reason: reason.to_string() }),
            _ if to.is_terminal() => {
                if let Some(back) = self.backs.last_mut().filter(|b| b.to.is_none()) {
                    back.to = Some(at);
                }
            }
            _ => {}
        }
    }

    fn gate(&mut self, at: Timestamp, stage: usize, step: GateStep, reason: &str) {
        match (step, self.stages.iter_mut().find(|s| s.stage == stage)) {
            // A standing gate opens again and again: one line.
            (GateStep::Opened, Some(known)) => (known.step, known.at) = (step, at),
            (_, Some(known)) => {
                (known.step, known.at, known.reason) = (step, at, reason.to_string());
                known.extended |= step == GateStep::Extended;
            }
            (_, None) => {
                self.stages.push(StageFact {
                    stage,
                    opened: at,
                    step,
                    at,
                    reason: reason.to_string(),
                    extended: step == GateStep::Extended,
                });
            }
        }
    }

    fn target_mut(&mut self, index: &Index, host: &HostName, component: &ComponentName) -> Option<&mut TargetFact> {
        index.get(&(component.clone(), host.clone())).and_then(|at| self.targets.get_mut(*at))
    }

    /// Where time on paper begins.
    pub(crate) fn origin(&self) -> Timestamp {
        self.began.unwrap_or(self.started)
    }

    /// Its end, or how far it is known.
    pub(crate) fn end(&self) -> Timestamp {
        self.ended.unwrap_or(self.last)
    }

    /// The targets of one component that change.
    pub(crate) fn changed<'b>(&'b self, component: &'b ComponentName) -> impl Iterator<Item = &'b TargetFact> {
        self.targets.iter().filter(move |t| t.component == *component && t.origin.is_some())
    }

    /// The manifest's component.
    pub(crate) fn component(&self, name: &ComponentName) -> Option<&'a Component> {
        self.release.component(name)
    }

    /// A person attested the item: who, what was looked at, when.
    pub(crate) fn attested(&self, item: &str) -> Option<(&str, &str, Timestamp)> {
        self.given.attested.get(item).map(|a| (a.by.as_str(), a.note.as_str(), a.at))
    }

    /// From the first revert to the last host back, of all ways back.
    pub(crate) fn rollback_time(&self) -> Option<Millis> {
        let spans = self.backs.iter().filter_map(|b| b.to.map(|to| to.since(b.from).0));
        (!self.backs.is_empty() && self.backs.iter().all(|b| b.to.is_some())).then(|| Millis(spans.sum()))
    }

    /// The final watch began: everything is deployed, and only looked at.
    fn watched_from(&self) -> Option<Timestamp> {
        let watch = |s: &&StageFact| self.plan.gating.stages.get(s.stage).is_some_and(|stage| stage.watch);
        self.stages.iter().find(watch).map(|s| s.opened).filter(|_| self.backs.is_empty())
    }

    /// How long the deployment took: begin to end, the final watch left out.
    pub(crate) fn duration(&self) -> Option<Millis> {
        self.watched_from().or(self.ended).map(|end| end.since(self.origin()))
    }

    /// How long it was watched after that.
    pub(crate) fn watched(&self) -> Option<Millis> {
        self.watched_from().map(|from| self.end().since(from))
    }
}

type Index = BTreeMap<(ComponentName, HostName), usize>;

/// Written after the deployment, about it.
pub(crate) const fn is_paper(record: &Record) -> bool {
    matches!(
        record,
        Record::Noted { .. }
            | Record::Item { .. }
            | Record::SignedOff { .. }
            | Record::Reviewed { .. }
            | Record::Closed { .. }
            | Record::Attested { .. }
            | Record::Notified { .. }
            | Record::Reminded { .. }
            | Record::Healed { .. }
            | Record::Returned
    )
}
