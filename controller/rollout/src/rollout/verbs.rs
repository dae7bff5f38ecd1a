//! A person's word to a rollout.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::Timestamp;

use super::Rollout;
use crate::gate::Verdict;
use crate::record::{GateStep, InvestigationStep, Record, RolloutState, Step, Verb};
use crate::spec::TriggerAction;

/// A word that does not fit the state; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rollout {id} is {state}: {word} does not apply ({hint})")]
pub struct VerbError {
    /// Which rollout.
    pub id: String,
    /// Its state.
    pub state: RolloutState,
    /// What was said.
    pub word: &'static str,
    /// What can be done instead.
    pub hint: String,
}

impl Rollout {
    pub(super) fn said(&mut self, now: Timestamp, verb: Verb, by: &str, reason: &str) -> Result<(), VerbError> {
        use RolloutState as S;
        let because = if reason.is_empty() { format!("{verb} by {by}") } else { format!("{verb} by {by}: {reason}") };
        let refuse = |hint: &str| Err(self.refused(verb, hint.to_string()));
        let next = match (verb, self.state) {
            // Saying it twice is not an error.
            (Verb::Resume, S::Running | S::Baking | S::Watching) | (Verb::Rollback, S::RollingBack) => return Ok(()),
            (Verb::Pause, S::Paused) if self.paused_by.is_some() => return Ok(()),
            (Verb::Halt, _) if self.halting.is_some() => return Ok(()),
            (Verb::Halt, S::AwaitingApproval | S::Scheduled) => None,
            (_, S::AwaitingApproval | S::Scheduled) => return refuse(&self.waiting_hint(now)),
            (Verb::Pause, S::Running | S::Baking | S::Watching) if self.halting.is_none() => Some(S::Paused),
            // A rollout that stopped by itself stays where it is when that is over.
            (Verb::Pause, S::Paused) => None,
            (Verb::Resume, S::Paused) => return self.resume(now, by, because),
            (Verb::Promote | Verb::PromoteAll, S::Running | S::Paused | S::Baking | S::Watching) => {
                return self.promote(now, verb, by, because);
            }
            (Verb::Ack, S::Paused) => return self.ack(now, by, because),
            (Verb::Halt, S::Running | S::Paused | S::Baking | S::Watching | S::RollingBack) => None,
            (Verb::Rollback, S::Running | S::Paused | S::Baking | S::Watching | S::Completed | S::Halted | S::Mixed) => {
                if self.targets.iter().any(|t| t.retired.is_some()) {
                    return refuse("the old sides were stopped after keep_old: start a rollout of the release that shall run");
                }
                Some(S::RollingBack)
            }
            (Verb::Pause, S::Running | S::Baking | S::Watching) => return refuse("it is being halted; rollback takes it back"),
            (Verb::Resume, S::RollingBack) => return refuse("it is on the way back already"),
            (Verb::Pause, S::RollingBack) => return refuse("a way back is not paused; halt ends it where it is"),
            (Verb::Promote | Verb::PromoteAll, S::RollingBack) => return refuse("it is on the way back"),
            (Verb::Ack, S::Running | S::Baking | S::Watching | S::RollingBack) => return refuse("nothing is being investigated"),
            (Verb::Rollback, S::RolledBack | S::Refused) => return refuse("no host is changed"),
            _ => return refuse("it has ended; start a new rollout"),
        };
        self.append(now, Record::Said { verb, by: by.into(), reason: because.clone() });
        match next {
            Some(S::RollingBack) => self.begin_back(now, because),
            Some(to) => self.append(now, Record::State { to, reason: because }),
            None => {}
        }
        Ok(())
    }

    pub(super) fn refused(&self, verb: Verb, hint: String) -> VerbError {
        self.refused_word(verb.word(), hint)
    }

    pub(super) fn refused_word(&self, word: &'static str, hint: String) -> VerbError {
        VerbError { id: self.id.to_string(), state: self.state, word, hint }
    }

    /// A person's pause ends. What else keeps it paused still does.
    fn resume(&mut self, now: Timestamp, by: &str, because: String) -> Result<(), VerbError> {
        if let Some(open) = &self.investigation {
            let trigger = self.plan.gating.triggers.get(open.trigger);
            // What a person declared no measurement can end: the one who looked does.
            if !open.acked || trigger.is_none_or(|t| t.declared.is_none()) {
                let when = trigger.map(|t| t.when.to_string()).unwrap_or_default();
                return Err(self.refused(Verb::Resume, super::triggers::hint(open, &when)));
            }
        }
        if self.waits_for_switch() {
            return Err(self.refused(Verb::Resume, "every side is prepared and waits: `promote` moves the traffic".to_string()));
        }
        if let Some(hint) = self.held_by_window(now) {
            return Err(self.refused(Verb::Resume, hint));
        }
        if let Some(open) = &self.investigation {
            let (trigger, step) = (open.trigger, InvestigationStep::Cleared);
            self.append(now, Record::Investigation { trigger, step, by: Some(by.into()) });
        }
        let lost = self.lost_task();
        let asked = self.asked_at.is_some();
        self.append(now, Record::Said { verb: Verb::Resume, by: by.into(), reason: because.clone() });
        if asked {
            // Looked at, and not gone past: observed once more.
            let wave = self.gate.as_ref().map_or(0, |g| g.wave);
            self.append(now, Record::Gate { stage: self.passed, wave, step: GateStep::Extended, reason: because.clone() });
        }
        if let Some(task) = lost {
            self.task_again(now, &task);
        }
        self.unpause(now, because);
        Ok(())
    }

    /// Blue-green, manual: traffic waits for a person.
    pub(crate) fn waits_for_switch(&self) -> bool {
        self.step == Step::Switching && !self.switch_go && self.plan.blue_green.as_ref().is_some_and(|b| b.manual)
    }

    /// Past the open gate, by name: a running observation or an inconclusive
    /// verdict; never one that fails or is in error.
    fn promote(&mut self, now: Timestamp, verb: Verb, by: &str, because: String) -> Result<(), VerbError> {
        if let Some(open) = &self.investigation {
            let when = self.plan.gating.triggers.get(open.trigger).map(|t| t.when.to_string()).unwrap_or_default();
            return Err(self.refused(verb, super::triggers::hint(open, &when)));
        }
        let said = Record::Said { verb, by: by.into(), reason: because.clone() };
        if let Some(task) = self.lost_task() {
            self.append(now, said);
            self.task_counts(now, &task, &because);
            self.unpause(now, because);
            return Ok(());
        }
        if self.waits_for_switch() {
            self.append(now, said);
            self.unpause(now, because);
            return Ok(());
        }
        match self.gate_verdict(now) {
            Some((verdict @ (Verdict::Fail | Verdict::Error), why)) => {
                Err(self.refused(verb, format!("the gate's verdict is {}: {why}", verdict.word())))
            }
            // That of a trigger, it may be: nobody goes forward with a blind eye.
            _ if self.blind_since.is_some() => Err(self.refused(verb, "a source cannot be read".to_string())),
            Some(_) => {
                self.append(now, said);
                self.pass_by(now, GateStep::Overridden, because);
                Ok(())
            }
            None if verb == Verb::PromoteAll && self.stage().is_some() => {
                // It would stop again at once.
                if let Some(hint) = self.held_by_window(now).filter(|_| self.state == RolloutState::Paused) {
                    return Err(self.refused(verb, hint));
                }
                self.append(now, said);
                self.unpause(now, because);
                Ok(())
            }
            None => Err(self.refused(verb, "no gate is open now; `promote --all` goes past those to come".to_string())),
        }
    }

    /// Somebody looks: the investigation's timer runs once more.
    fn ack(&mut self, now: Timestamp, by: &str, because: String) -> Result<(), VerbError> {
        match &self.investigation {
            None => Err(self.refused(Verb::Ack, "nothing is being investigated".to_string())),
            Some(open) if open.acked => Err(self.refused(Verb::Ack, "it was acknowledged already, and once is all".to_string())),
            Some(open) => {
                let trigger = open.trigger;
                self.append(now, Record::Said { verb: Verb::Ack, by: by.into(), reason: because });
                self.append(now, Record::Investigation { trigger, step: InvestigationStep::Acknowledged, by: Some(by.into()) });
                Ok(())
            }
        }
    }

    /// What may be declared: on anything that changed a host and is not back.
    pub(super) fn may_declare(&self, what: &str) -> Result<(), VerbError> {
        let ended = matches!(self.state, RolloutState::RolledBack | RolloutState::Refused);
        let retired = self.targets.iter().any(|t| t.retired.is_some());
        let known = ["data-corruption", "security-incident"].contains(&what)
            || self.plan.gating.triggers.iter().any(|t| t.declared.as_deref() == Some(what));
        let trigger = self.plan.gating.triggers.iter().find(|t| t.declared.as_deref() == Some(what));
        let investigates = trigger.is_some_and(|t| t.action == TriggerAction::Investigate);
        let hint = if investigates && !self.is_live() {
            "the plan investigates it, and there is nothing to stop any more; rollback takes it back"
        } else if self.waits_to_begin() {
            "nothing was ordered yet; halt ends it"
        } else if !self.is_live() && !self.person_back && self.past_return().is_some() {
            "a task that cannot be taken back was run: no machine takes anything back, rollback does by a person's word"
        } else if !known {
            "data-corruption, security-incident and what the plan's triggers name can be declared"
        } else if ended {
            "no host is changed"
        } else if retired {
            "the old sides were stopped after keep_old: start a rollout of the release that shall run"
        } else {
            return Ok(());
        };
        Err(self.refused_word("declare", hint.to_string()))
    }

    /// A person attests an item of the plan.
    pub(super) fn attest(&mut self, now: Timestamp, item: &str, by: &str, note: &str) -> Result<(), VerbError> {
        if let Some(fits) = self.attest_process(item) {
            fits?;
            self.append(now, Record::Attested { item: item.into(), by: by.into(), note: note.into() });
            return Ok(());
        }
        let items: Vec<&str> = self.plan.gating.stages.iter().flat_map(|s| &s.attest).map(String::as_str).collect();
        if !items.contains(&item) {
            let known =
                if items.is_empty() { "the plan asks for none".to_string() } else { format!("the plan asks for {}", items.join(", ")) };
            return Err(self.refused_word("attest", format!("{item:?} is not an item to attest: {known}")));
        }
        if !self.is_live() {
            return Err(self.refused_word("attest", "it has ended".to_string()));
        }
        let asked = self.stage().is_some_and(|(_, stage)| stage.attest.iter().any(|i| i == item));
        if self.gate.is_none() || !asked {
            return Err(self.refused_word("attest", format!("{item} is attested while the gate that asks for it is open")));
        }
        self.append(now, Record::Attested { item: item.into(), by: by.into(), note: note.into() });
        // A person was asked, and this is the answer.
        let free = self.paused_by.is_none() && self.investigation.is_none() && self.blind_since.is_none();
        if self.asked_at.is_some() && free && matches!(self.gate_verdict(now), Some((Verdict::Pass, _))) {
            self.pass_by(now, GateStep::Passed, format!("every criterion holds since {by} attested {item}"));
        }
        Ok(())
    }
}
