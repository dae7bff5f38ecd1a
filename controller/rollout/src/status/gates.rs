//! Gates and triggers as scripts and people read them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::Timestamp;

use super::{GateDoc, TriggerDoc};
use crate::gate::Judgement;
use crate::record::{RolloutState, WaveState};
use crate::rollout::Rollout;

/// A rollout whose source is in error goes on by itself, until a person is asked.
pub(crate) fn waits_for_person(rollout: &Rollout) -> bool {
    let only_blind = rollout.blind_since.is_some()
        && rollout.blind_asked.is_none()
        && rollout.paused_by().is_none()
        && rollout.asked_at.is_none()
        && rollout.investigation.is_none();
    match rollout.state() {
        RolloutState::AwaitingApproval => true,
        RolloutState::Paused => !only_blind,
        _ => false,
    }
}

/// The open gate as it stands now, the others as they were last journaled.
pub(super) fn gate_docs(rollout: &Rollout) -> Vec<GateDoc> {
    let stages = &rollout.plan().gating.stages;
    let open = rollout.gate.as_ref().and(rollout.stage()).map(|(at, stage)| (at, rollout.judge_stage(rollout.now(), stage)));
    let mut out = Vec::new();
    for (at, stage) in stages.iter().enumerate() {
        let doc = |judgement: &Judgement, wave: usize| GateDoc {
            wave,
            name: judgement.name.clone(),
            verdict: judgement.verdict.word().to_string(),
            observed: judgement.observed.map(tidegate_protocol::Number::get),
            limit: judgement.limit.map(tidegate_protocol::Number::get),
            samples: judgement.samples,
            unit: judgement.unit.clone(),
            reason: judgement.reason.clone(),
            host: judgement.host.clone(),
            stage: stage.name.clone(),
            advisory: judgement.advisory,
            perf: judgement.perf,
        };
        match &open {
            Some((now_at, judgements)) if *now_at == at => {
                let wave = rollout.gate.as_ref().map_or(stage.after_wave, |g| g.wave);
                out.extend(judgements.iter().map(|j| doc(j, wave)));
            }
            _ => {
                if let Some(judged) = rollout.judged.get(&at) {
                    out.extend(judged.judgements.iter().map(|j| doc(j, judged.wave)));
                }
            }
        }
    }
    out
}

pub(super) fn trigger_docs(rollout: &Rollout) -> Vec<TriggerDoc> {
    let armed = rollout.is_live() && rollout.changed_anything();
    let investigated = rollout.investigation.as_ref().map(|i| i.trigger);
    let state = |at: usize, declared: bool| {
        if investigated == Some(at) {
            "investigating"
        } else if armed || (declared && rollout.is_live()) {
            "armed"
        } else {
            "off"
        }
    };
    let triggers = rollout.plan().gating.triggers.iter().enumerate();
    triggers
        .map(|(at, t)| TriggerDoc { when: t.when.to_string(), action: t.action, state: state(at, t.declared.is_some()).to_string() })
        .collect()
}

/// What a wave's gate makes of its state.
pub(super) fn gated(rollout: &Rollout, wave: usize, own: WaveState, empty: bool) -> WaveState {
    let stages = &rollout.plan().gating.stages;
    let Some((at, stage)) = stages.iter().enumerate().find(|(_, s)| s.after_wave >= wave) else { return own };
    if rollout.overridden.contains(&wave) && own == WaveState::Passed {
        return WaveState::Overridden;
    }
    let back = matches!(rollout.state(), RolloutState::RollingBack | RolloutState::RolledBack | RolloutState::Mixed);
    if stage.standing || back {
        return own;
    }
    let reached = rollout.passed > at || rollout.gate.as_ref().is_some_and(|_| rollout.passed == at);
    match own {
        // A wave without hosts is where its gate is.
        WaveState::Passed | WaveState::Pending if empty && !reached => WaveState::Pending,
        WaveState::Passed | WaveState::Pending if rollout.passed > at && (empty || own == WaveState::Passed) => {
            if rollout.overridden.contains(&stage.after_wave) { WaveState::Overridden } else { WaveState::Passed }
        }
        // The hosts are done, the observation is not; a watch holds nothing up.
        WaveState::Passed | WaveState::Pending if reached && stage.after_wave == wave => WaveState::Baking,
        WaveState::Passed if reached => WaveState::Passed,
        WaveState::Passed if rollout.state() != RolloutState::Completed => WaveState::Open,
        other => other,
    }
}

/// Why the open gate is open, and what each criterion says.
pub(super) fn explain_gate(rollout: &Rollout, now: Timestamp) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(open) = &rollout.investigation {
        let when = rollout.plan().gating.triggers.get(open.trigger).map(|t| t.when.to_string()).unwrap_or_default();
        let acked = if open.acked { "acknowledged" } else { "not acknowledged" };
        out.push(format!("trigger {when} is investigated ({acked}); it goes back in {} s", open.until.since(now).0 / 1_000));
    }
    if rollout.waits_for_switch() {
        out.push("every side is prepared; `tidegate rollout promote` moves the traffic".to_string());
    }
    let (Some(gate), Some((_, stage))) = (&rollout.gate, rollout.stage()) else { return out };
    let clock = match gate.held_since {
        Some(_) => "its clock stands".to_string(),
        None => format!("{} s left", gate.ends_at.since(now).0 / 1_000),
    };
    let extended = if gate.extended { ", extended once" } else { "" };
    out.push(format!("gate {}: observed for {} s, {clock}{extended}", stage.name, now.since(gate.opened_at).0 / 1_000));
    if let Some(asked) = rollout.asked_at {
        let deadline = rollout.plan().gating.analysis.deadline;
        out.push(format!(
            "a person is asked: `promote`, `resume` or `rollback`; it goes back in {} s",
            (asked + deadline).since(now).0 / 1_000
        ));
    }
    for judgement in rollout.judge_stage(now, stage) {
        let advisory = if judgement.advisory { " (advisory)" } else { "" };
        out.push(format!("{}{advisory} is {}: {}", judgement.name, judgement.verdict.word(), judgement.reason));
    }
    out
}
