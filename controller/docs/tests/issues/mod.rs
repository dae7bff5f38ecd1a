//! What becomes an issue, and what becomes of it.

use tidegate_docs::{Issue, issues};
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, TaskRun, TaskState};
use tidegate_rollout::Record;
use tidegate_rollout::process::{Override, Role};
use tidegate_rollout::record::{GateStep, InvestigationStep, RolloutState, TargetState, Verb};
use tidegate_rollout::spec::TriggerAction;

use crate::world::{Journal, component, host, signed};

fn of(tell: impl Fn(&mut Journal)) -> Vec<Issue> {
    let mut journal = Journal::new();
    journal.prepared();
    journal.wave(0);
    tell(&mut journal);
    issues(&journal.input()).unwrap()
}

fn one(tell: impl Fn(&mut Journal)) -> Issue {
    let mut issues = of(tell);
    assert_eq!(issues.len(), 1, "{issues:#?}");
    issues.remove(0)
}

fn resolution(issue: &Issue) -> &str {
    issue.resolution.as_deref().unwrap_or_default()
}

#[test]
fn an_inconclusive_gate_that_passes_needs_nobody() {
    let issue = one(|j| {
        j.gate(0, GateStep::Opened, "");
        j.after(60_000);
        j.gate(0, GateStep::Extended, "too few samples");
        j.after(60_000);
        j.gate(0, GateStep::Passed, "every criterion holds");
    });
    assert!(issue.text.contains("Canary was inconclusive: too few samples"));
    assert!(resolution(&issue).starts_with("passed at ") && !issue.is_open());
}

#[test]
fn an_override_carries_its_reason() {
    let gate = one(|j| {
        j.gate(0, GateStep::Opened, "");
        j.gate(0, GateStep::Extended, "too few samples");
        j.gate(0, GateStep::Asked, "too few samples");
        j.state(RolloutState::Paused, "the gate is inconclusive");
        j.gate(0, GateStep::Overridden, "promote by dana: quiet night");
        j.state(RolloutState::Running, "promote by dana: quiet night");
    });
    assert!(resolution(&gate).contains("promote by dana: quiet night") && !gate.is_open(), "{gate:?}");
    let window = one(|j| {
        j.say(Record::Overridden {
            what: Override::Window,
            role: Role::Cab,
            signed: signed("cab@example.com", 3),
            reason: "customers wait".into(),
        });
    });
    assert_eq!((window.kind, resolution(&window), window.is_open()), ("override", "customers wait", false));
}

#[test]
fn a_source_that_answers_again_needs_nobody_and_its_pause_is_no_issue_of_its_own() {
    let issue = one(|j| {
        j.gate(0, GateStep::Opened, "");
        j.gate(0, GateStep::Blind, "prometheus: connection refused");
        j.state(RolloutState::Paused, "a source cannot be read");
        j.after(30_000);
        j.gate(0, GateStep::Sighted, "every source answers");
        j.state(RolloutState::Baking, "every source answers again");
    });
    assert!(resolution(&issue).contains("could be read again") && !issue.is_open(), "{issue:?}");
}

#[test]
fn a_pause_is_resolved_by_going_on() {
    let said = one(|j| {
        j.say(Record::Said { verb: Verb::Pause, by: "ori".into(), reason: "pause by ori: looking".into() });
        j.state(RolloutState::Paused, "pause by ori: looking");
        j.after(60_000);
        j.say(Record::Said { verb: Verb::Resume, by: "ori".into(), reason: "resume by ori".into() });
        j.state(RolloutState::Running, "resume by ori");
    });
    assert_eq!((said.text.as_str(), said.is_open()), ("pause by ori: looking", false));
    assert!(resolution(&said).contains("resume by ori"));
    let own = one(|j| {
        j.state(RolloutState::Paused, "the window is over");
        j.after(60_000);
        j.state(RolloutState::Running, "the next window opened");
    });
    assert_eq!(own.text, "paused: the window is over");
    assert!(resolution(&own).contains("the next window opened"));
}

#[test]
fn a_trip_that_is_cleared_needs_nobody_one_that_goes_back_does() {
    let trip = |action| Record::Tripped {
        trigger: Some(1),
        when: "latency_p50 > 200% of baseline".into(),
        action,
        observed: None,
        limit: None,
        samples: 100,
        host: None,
        reason: "170ms, limit 160ms".into(),
        after_ms: 1,
    };
    let cleared = one(|j| {
        j.say(trip(TriggerAction::Investigate));
        j.state(RolloutState::Paused, "trigger …; ack gives 15m more");
        j.say(Record::Investigation { trigger: 1, step: InvestigationStep::Acknowledged, by: Some("ori".into()) });
        j.say(Record::Investigation { trigger: 1, step: InvestigationStep::Cleared, by: None });
        j.state(RolloutState::Running, "does not hold any more");
    });
    assert!(!cleared.is_open() && resolution(&cleared).contains("does not hold any more"));
    let back = one(|j| {
        j.say(trip(TriggerAction::Rollback));
        j.state(RolloutState::RollingBack, "trigger");
    });
    assert!(back.is_open() && back.needs_person);
    assert_eq!(resolution(&back), "the rollout went back");
}

#[test]
fn a_lease_that_ran_out_while_the_controller_was_away_is_no_issue() {
    let failure = |cause| Some(Failure { cause, message: "no confirmation".into() });
    let tell = |counted: bool| {
        of(move |j| {
            j.say(Record::Host {
                host: host("api-2"),
                component: component("api"),
                generation: tidegate_protocol::Generation::default(),
                to: TargetState::Reverted,
                failure: failure(Cause::LeaseExpired),
                counted,
                seen: None,
            });
        })
    };
    assert_eq!(tell(false).len(), 0);
    assert_eq!(tell(true).len(), 1);
}

#[test]
fn a_host_that_is_not_back_is_a_second_issue_and_healing_is_said() {
    let issues = of(|j| {
        let (h, c) = (host("api-1"), component("api"));
        j.host(&h, &c, TargetState::Reverting, Some(Failure { cause: Cause::CrashLoop, message: "died 5 times".into() }), None);
        j.host(&h, &c, TargetState::RevertFailed, Some(Failure { cause: Cause::Disk, message: "EIO".into() }), None);
        j.state(RolloutState::Mixed, "not back: api-1");
        j.say(Record::Healed { host: h, component: c, release: Some(crate::world::reference("2.0.0")) });
    });
    assert_eq!(issues.len(), 2, "{issues:#?}");
    assert!(issues.iter().all(Issue::is_open));
    assert!(issues[1].text.contains("could not get back: disk: EIO"));
    assert!(issues.iter().all(|i| resolution(i).contains("healed")), "{issues:#?}");
}

#[test]
fn a_lost_task_and_a_dead_route_are_told_once() {
    let lost = of(|j| {
        for attempt in [1, 2] {
            let state = if attempt == 1 { TaskState::Lost } else { TaskState::Done };
            let (name, note) = ("Deploy database migrations".to_string(), String::new());
            j.say(Record::TaskEnded { index: 1, name, what: TaskRun::Run, attempt, state, note, duration_ms: 10 });
        }
    });
    assert_eq!(lost.len(), 1);
    assert!(!lost[0].is_open() && resolution(&lost[0]).contains("a further attempt"), "{lost:?}");
    let route = one(|j| {
        for key in ["issue-1", "issue-2"] {
            j.say(Record::Notified { key: key.into(), route: "on-call".into(), ok: false, detail: "410".into() });
        }
    });
    assert!(route.text.contains("on-call") && !route.is_open() && route.resolution.is_none());
}

#[test]
fn numbers_never_change_as_the_journal_grows() {
    let journal = crate::world::rolled_back();
    let mut known: Vec<(u32, String)> = Vec::new();
    for upto in 1..=journal.entries.len() {
        let input = tidegate_docs::Input { id: &journal.id, entries: &journal.entries[..upto], release: &journal.release };
        let now: Vec<(u32, String)> = issues(&input).unwrap().into_iter().map(|i| (i.number, i.text)).collect();
        assert_eq!(now[..known.len()], known[..], "at {upto}");
        known = now;
    }
    assert_eq!(known.len(), 3);
}
