//! What is told of a rollout, on which routes, and how often.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod world;

use std::collections::BTreeMap;

use tidegate_protocol::report::Failure;
use tidegate_protocol::*;
use tidegate_rollout::notices::{Notice, Notices, Severity, route_of};
use tidegate_rollout::process::{NotifySpec, Topic, Via};
use tidegate_rollout::record::{GateStep, Verb};
use tidegate_rollout::spec::TriggerAction;
use tidegate_rollout::*;

use world::{Setup, World, name};

const ALL: &str = "[[notify]]\non = [\"started\", \"stage\", \"completed\", \"issue\", \"paused\", \"rollback\"]\n";

fn routes(all: &[(&str, Via)]) -> BTreeMap<String, Via> {
    all.iter().map(|(name, via)| ((*name).to_string(), *via)).collect()
}

fn guide() -> BTreeMap<String, Via> {
    routes(&[("team", Via::Slack), ("stakeholders", Via::Email), ("on-call", Via::Pagerduty)])
}

/// Everything to a channel for people and to one for machines.
fn both() -> String {
    format!("strategy = \"rolling\"\nbatch = 2\n{ALL}to = \"people\"\nvia = \"slack\"\n{ALL}to = \"pager\"\nvia = \"pagerduty\"\n")
}

fn both_routes() -> BTreeMap<String, Via> {
    routes(&[("people", Via::Slack), ("pager", Via::Pagerduty)])
}

struct Told {
    notices: Notices,
    plan: Plan,
    all: Vec<(Notice, String)>,
}

impl Told {
    fn of(world: &World, routes: &BTreeMap<String, Via>) -> Self {
        let mut told = Self::empty(world, routes);
        for (at, record) in &world.journal {
            told.take(at.0, record);
        }
        told
    }

    fn empty(world: &World, routes: &BTreeMap<String, Via>) -> Self {
        let plan = world.rollout.plan().clone();
        Self { notices: Notices::new(world.rollout.id(), &plan, routes), plan, all: Vec::new() }
    }

    fn take(&mut self, at: u64, record: &Record) -> Vec<(String, String)> {
        let new = self.notices.apply(&self.plan, Timestamp(at), record);
        self.all.extend(new.clone());
        new.into_iter().map(|(notice, route)| (notice.key, route)).collect()
    }

    fn keys(&self, route: &str) -> Vec<&str> {
        self.all.iter().filter(|(_, to)| to == route).map(|(n, _)| n.key.as_str()).collect()
    }

    fn get(&self, key: &str) -> &Notice {
        &self.all.iter().find(|(n, _)| n.key == key).unwrap_or_else(|| panic!("no {key}: {:?}", self.all)).0
    }
}

fn notified(key: &str, route: &str, ok: bool) -> Record {
    Record::Notified { key: key.into(), route: route.into(), ok, detail: if ok { String::new() } else { "HTTP 410".into() } }
}

fn failed(host: usize) -> Record {
    Record::Host {
        host: name(host),
        component: "api".parse().unwrap(),
        generation: Generation::new(1, 8),
        to: TargetState::Reverting,
        failure: Some(Failure { cause: Cause::Smoke, message: "SMK-001 failed".into() }),
        counted: true,
        seen: None,
    }
}

fn state(to: RolloutState, reason: &str) -> Record {
    Record::State { to, reason: reason.into() }
}

#[test]
fn a_plan_that_names_nobody_tells_as_the_guide_does() {
    let world = World::new(4, &["api"], "strategy = \"rolling\"\nenvironment = \"production\"\nlead = \"lead@example.com\"");
    let told = Told::of(&world, &guide());
    assert_eq!(told.keys("team"), ["started"]);
    assert_eq!(told.keys("stakeholders"), ["completed"]);
    assert_eq!(told.keys("on-call"), [""; 0]);
    let started = told.get("started");
    assert_eq!(started.title, "shop@2 to production: started");
    for part in
        ["Rollout r1 of shop@2 to production", "Lead: lead@example.com.", "by ops", "api on 4 host(s)", "`tidegate rollout watch r1`"]
    {
        assert!(started.text.contains(part), "{part:?} is not in {:?}", started.text);
    }
    // Only routes that exist.
    assert!(Told::of(&world, &routes(&[("team", Via::Email)])).all.is_empty());
    // A route named as its kind serves any audience.
    assert_eq!(Told::of(&world, &routes(&[("slack", Via::Slack)])).keys("slack"), ["started"]);
}

#[test]
fn one_failure_that_takes_all_back_is_one_notice_and_its_end_another() {
    let world = World::with(5, &["api"], &both(), |w| w.smoke_fails = ["h3".into()].into());
    assert_eq!(world.rollout.state(), RolloutState::RolledBack);
    let told = Told::of(&world, &both_routes());
    assert_eq!(told.keys("people"), ["started", "rollback-1", "rolled-back-1"]);
    assert_eq!(told.keys("pager"), ["started", "rollback-1", "rolled-back-1"]);
    let back = told.get("rollback-1");
    assert_eq!((back.topic, back.severity), (Topic::Rollback, Severity::Error));
    assert!(back.text.contains("h3") && back.text.contains("smoke"), "{}", back.text);
    assert_eq!(back.raises.as_deref(), Some("tidegate/r1/rollback"));
    let end = told.get("rolled-back-1");
    assert_eq!(end.resolves, ["tidegate/r1/rollback", "tidegate/r1/issue"]);
    assert_eq!((end.raises.as_ref(), end.thread.as_str()), (None, "started"));
    // On-call hears of it though the plan sends it issues only.
    let only = both().replace("[\"started\", \"stage\", \"completed\", \"issue\", \"paused\", \"rollback\"]", "[\"issue\"]");
    let world = World::with(5, &["api"], &only, |w| w.smoke_fails = ["h3".into()].into());
    assert_eq!(Told::of(&world, &both_routes()).keys("pager"), ["rollback-1", "rolled-back-1"]);
}

#[test]
fn hosts_that_cannot_get_back_are_named_and_their_incident_stays() {
    let world = World::with(3, &["api"], &both(), |w| (w.smoke_fails, w.stuck) = (["h3".into()].into(), ["h3".into()].into()));
    assert_eq!(world.rollout.state(), RolloutState::Mixed);
    let told = Told::of(&world, &both_routes());
    assert_eq!(told.keys("pager"), ["started", "rollback-1", "mixed-1"]);
    let mixed = told.get("mixed-1");
    assert!(mixed.text.contains("h3") && mixed.severity == Severity::Critical && mixed.resolves.is_empty(), "{mixed:?}");
    assert_eq!(mixed.raises.as_deref(), Some("tidegate/r1/rollback"));
}

#[test]
fn a_failure_within_the_budget_is_an_issue_that_the_end_resolves() {
    let plan = format!("{}[limits]\nmax_failed_hosts = 1\n", both());
    let world = World::with(6, &["api"], &plan, |w| w.smoke_fails = ["h2".into()].into());
    let told = Told::of(&world, &both_routes());
    assert_eq!(told.keys("people"), ["started", "issue-host-h2-api", "completed"]);
    // People know; only what keeps incidents is told that this one is over.
    assert_eq!(told.keys("pager"), ["started", "issue-host-h2-api", "completed", "issues-over"]);
    assert_eq!(told.get("issue-host-h2-api").raises, Some(told.get("issues-over").resolves[0].clone()));
    assert!(told.get("completed").text.contains("h2"));
}

#[test]
fn what_is_refused_says_so_once() {
    let world = World::with(3, &["api"], &both(), |w| w.preflight_fails = ["h2".into()].into());
    let told = Told::of(&world, &both_routes());
    assert_eq!(told.keys("people"), ["started", "refused"]);
    let refused = told.get("refused");
    assert!(refused.text.contains("h2") && refused.severity == Severity::Warning, "{refused:?}");
}

#[test]
fn many_failing_hosts_are_no_storm() {
    let plan = format!("{}[limits]\nmax_failed_hosts = 300\n", both().replace("batch = 2", "batch = 100"));
    let world = World::new(300, &["api"], &plan);
    let mut told = Told::empty(&world, &both_routes());
    let minute = 60_000;
    told.take(0, &state(RolloutState::Running, "started"));
    // A hundred hosts within a minute.
    for host in 1..=80 {
        told.take(1_000 + host * 10, &failed(usize::try_from(host).unwrap()));
    }
    assert_eq!(told.keys("people"), ["started", "issue-host-h1-api"]);
    // Five minutes later one that sums up, and no more in this wave.
    told.take(6 * minute, &failed(81));
    told.take(20 * minute, &failed(82));
    assert_eq!(told.keys("people").len(), 3);
    assert!(told.get("issue-host-h81-api").text.contains("79 more"), "{}", told.get("issue-host-h81-api").text);
    // The next wave has its own.
    told.take(30 * minute, &failed(150));
    told.take(30 * minute + 1, &failed(151));
    assert_eq!(told.keys("people").len(), 4);
    // The same host again is nothing new.
    told.take(60 * minute, &failed(150));
    assert_eq!(told.keys("people").len(), 4);
    // On the way back the outcome names them.
    told.take(61 * minute, &state(RolloutState::RollingBack, "rollback by ops"));
    told.take(90 * minute, &failed(250));
    assert_eq!(told.keys("people").last(), Some(&"rollback-1"));
}

#[test]
fn a_trigger_is_told_by_what_it_does_and_alone_if_nothing_follows() {
    let world = World::new(3, &["api"], &both());
    let tripped = |action| Record::Tripped {
        trigger: Some(0),
        when: "critical_errors > 0".into(),
        action,
        observed: None,
        limit: None,
        samples: 1,
        host: Some(name(2)),
        reason: "3 critical errors".into(),
        after_ms: 5,
    };
    let mut told = Told::empty(&world, &both_routes());
    told.take(0, &state(RolloutState::Running, "started"));
    assert_eq!(told.take(10, &tripped(TriggerAction::Emergency)), []);
    told.take(10, &state(RolloutState::RollingBack, "trigger critical_errors > 0: 3 critical errors"));
    assert_eq!(told.keys("people"), ["started", "rollback-1"]);
    assert_eq!(told.get("rollback-1").severity, Severity::Critical);
    // Already on the way back: nothing else says it, so it does.
    told.take(20, &tripped(TriggerAction::Emergency));
    told.take(30, &Record::Returned);
    assert_eq!(told.keys("people"), ["started", "rollback-1", "issue-trigger-2"]);
    assert!(told.get("issue-trigger-2").text.contains("on h2"));
}

#[test]
fn a_pause_is_an_incident_until_somebody_goes_on() {
    let world = World::new(3, &["api"], &both());
    let mut told = Told::empty(&world, &both_routes());
    let hour = 3_600_000;
    told.take(0, &state(RolloutState::Running, "started"));
    told.take(5, &Record::Said { verb: Verb::Pause, by: "ann".into(), reason: "pause by ann".into() });
    told.take(5, &state(RolloutState::Paused, "pause by ann: coffee\nForged: header"));
    told.take(hour, &Record::Reminded { reason: "pause by ann: coffee".into() });
    told.take(hour + 1, &Record::Gate { stage: 0, wave: 1, step: GateStep::Asked, reason: "blind".into() });
    told.take(2 * hour, &Record::Reminded { reason: "pause by ann: coffee".into() });
    told.take(3 * hour, &state(RolloutState::Running, "resume by ann"));
    assert_eq!(told.keys("people"), ["started", "paused-1", "reminded-1", "reminded-2"]);
    assert_eq!(told.keys("pager"), ["started", "paused-1", "reminded-1", "reminded-2", "paused-1-over"]);
    let paused = told.get("paused-1");
    assert_eq!((paused.topic, paused.severity), (Topic::Paused, Severity::Info));
    assert!(!paused.text.contains('\n') && paused.text.contains("`tidegate rollout resume r1`"), "{}", paused.text);
    assert_eq!(told.get("paused-1-over").resolves, [paused.raises.clone().unwrap()]);
    assert_eq!(told.get("reminded-2").raises, paused.raises);
}

#[test]
fn waiting_for_approval_is_told_once_whatever_is_missing_meanwhile() {
    let world = World::new(3, &["api"], &both());
    let mut told = Told::empty(&world, &both_routes());
    told.take(0, &state(RolloutState::AwaitingApproval, "waits for people: approval-security, approval-operations"));
    told.take(9, &state(RolloutState::AwaitingApproval, "waits for people: approval-security"));
    told.take(20, &state(RolloutState::Scheduled, "the window is closed"));
    told.take(30, &Record::Began);
    told.take(30, &state(RolloutState::Running, "started"));
    assert_eq!(told.keys("people"), ["awaiting-approval-1", "started"]);
    assert_eq!(told.keys("pager"), ["awaiting-approval-1", "awaiting-approval-1-over", "started"]);
    assert!(told.get("awaiting-approval-1").text.contains("tidegate rollout approve r1 --role ROLE"));
}

#[test]
fn a_source_that_comes_and_goes_does_not_ring_every_minute() {
    let world = World::new(3, &["api"], &both());
    let mut told = Told::empty(&world, &both_routes());
    for minute in 0..30 {
        told.take(minute * 60_000, &state(RolloutState::Baking, "every source answers again"));
        told.take(minute * 60_000 + 30_000, &Record::Gate { stage: 0, wave: 1, step: GateStep::Blind, reason: "no answer".into() });
        told.take(minute * 60_000 + 30_000, &state(RolloutState::Paused, "a source cannot be read: no answer"));
    }
    assert_eq!(told.keys("people"), ["paused-1", "paused-2", "paused-3"]);
}

#[test]
fn a_stage_is_told_when_it_passes() {
    let tables = "[[stage]]\nname = \"Canary\"\npercent = 50\nbake = \"5s\"\nsuccess = [\"critical_errors == 0\"]\n\
                  [[stage]]\nname = \"Full\"\npercent = 100\nbake = \"5s\"\nsuccess = [\"critical_errors == 0\"]\n";
    let mut world = World::new(2, &["api"], &format!("{}{tables}", both().replace("rolling\"\nbatch = 2", "canary\"")));
    world.until_state(RolloutState::Completed, 300);
    let told = Told::of(&world, &both_routes());
    assert_eq!(told.keys("people"), ["started", "stage-1-passed", "stage-2-passed", "completed"]);
    assert!(told.get("stage-1-passed").title.contains("stage Canary passed"));
}

#[test]
fn a_drill_tells_nobody() {
    let world = World::begin(Setup { hosts: 3, components: vec!["api"], first_install: false, drill: true }, &both(), |_| {});
    assert!(world.journal.len() > 5);
    assert!(Told::of(&world, &both_routes()).all.is_empty());
}

#[test]
fn a_route_that_is_out_of_order_is_told_on_the_next_one_and_replaced_by_it() {
    let world = World::new(3, &["api"], &both());
    let mut told = Told::empty(&world, &both_routes());
    told.take(0, &state(RolloutState::Running, "started"));
    told.take(1, &notified("started", "people", true));
    told.take(1, &notified("started", "pager", true));
    told.take(2, &state(RolloutState::Paused, "the gate is blind"));
    told.take(2, &state(RolloutState::RollingBack, "the gate failed"));
    told.take(3, &notified("paused-1", "people", true));
    told.take(3, &notified("rollback-1", "people", true));
    assert_eq!(told.take(4, &notified("paused-1", "pager", false)), [("route-pager".to_string(), "people".to_string())]);
    let report = told.get("route-pager").clone();
    assert!(
        report.text.contains("HTTP 410") && report.text.contains("the gate is blind") && report.text.contains("tidegate notify test pager")
    );
    // Others that were under way to it have been told there already.
    assert_eq!(told.take(5, &notified("rollback-1", "pager", false)), []);
    // And the last one that is left cannot hand on.
    assert_eq!(told.take(6, &notified("route-pager", "people", false)), []);
    assert_eq!(told.take(7, &state(RolloutState::RolledBack, "the gate failed")), []);
}

#[test]
fn what_only_a_dead_route_would_get_goes_to_the_next_one() {
    let plan = "strategy = \"rolling\"\n[[notify]]\non = [\"started\"]\nto = \"team\"\nvia = \"slack\"\n\
                [[notify]]\non = [\"rollback\"]\nto = \"on-call\"\nvia = \"pagerduty\"\n\
                [[notify]]\non = [\"completed\"]\nto = \"stakeholders\"\nvia = \"email\"\n";
    let world = World::new(3, &["api"], plan);
    let mut told = Told::empty(&world, &guide());
    told.take(0, &state(RolloutState::Running, "started"));
    told.take(1, &state(RolloutState::RollingBack, "trigger"));
    assert_eq!(told.take(2, &notified("rollback-1", "on-call", false)), [("route-on-call".to_string(), "stakeholders".to_string())]);
    assert_eq!(told.take(3, &notified("route-on-call", "stakeholders", false)), [("route-stakeholders".to_string(), "team".to_string())]);
    assert!(told.get("route-stakeholders").text.contains("on-call"));
    assert_eq!(told.take(4, &state(RolloutState::RolledBack, "trigger")), [("rolled-back-1".to_string(), "team".to_string())]);
    assert!(told.get("rolled-back-1").text.starts_with("(Route on-call is out of order"));
}

#[test]
fn what_was_not_answered_is_owed_for_a_day_and_a_fold_of_the_journal_says_the_same() {
    let world = World::with(5, &["api"], &both(), |w| w.smoke_fails = ["h3".into()].into());
    let mut told = Told::of(&world, &both_routes());
    let end = world.now.0;
    let keys = |told: &Told, at: u64| -> Vec<(String, String)> {
        told.notices.pending(Timestamp(at)).into_iter().map(|(n, to)| (n.key, to)).collect()
    };
    assert_eq!(keys(&told, end).len(), 6);
    // Folded once more, as after a restart: the same notices, words included.
    assert_eq!(Told::of(&world, &both_routes()).notices.pending(world.now), told.notices.pending(world.now));
    for key in ["started", "rollback-1"] {
        told.take(end + 1, &notified(key, "people", true));
        told.take(end + 1, &notified(key, "pager", true));
    }
    assert_eq!(keys(&told, end + 2), [("rolled-back-1".into(), "pager".into()), ("rolled-back-1".into(), "people".into())]);
    assert_eq!(keys(&told, end + 86_400_000), []);
    // A word on something that was never told changes nothing.
    assert_eq!(told.take(end + 3, &notified("completed", "people", false)), []);
}

#[test]
fn texts_are_bounded_and_keep_the_next_command() {
    let world = World::new(3, &["api"], &both());
    let mut told = Told::empty(&world, &both_routes());
    told.take(0, &state(RolloutState::Running, "started"));
    told.take(1, &state(RolloutState::Paused, &"ä\u{202e}\r\n".repeat(5_000)));
    let paused = told.get("paused-1");
    assert!(paused.text.chars().count() <= 2_500 && paused.text.contains("tidegate rollout resume r1"), "{}", paused.text);
    assert!(!paused.text.chars().any(|c| c.is_control() || c == '\u{202e}'));
}

#[test]
fn routes_are_found_by_name_then_by_kind() {
    let spec = |to: &str, via| NotifySpec { on: vec![Topic::Issue], to: to.into(), via };
    let all = routes(&[("team", Via::Slack), ("email", Via::Email), ("pagerduty", Via::Slack)]);
    assert_eq!(route_of(&spec("team", Via::Slack), &all), Ok("team"));
    assert_eq!(route_of(&spec("stakeholders", Via::Email), &all), Ok("email"));
    assert!(route_of(&spec("team", Via::Email), &all).unwrap_err().contains("of kind slack"));
    assert!(route_of(&spec("on-call", Via::Pagerduty), &all).unwrap_err().contains("\"pagerduty\" of controller.toml is of kind slack"));
    assert!(route_of(&spec("hook", Via::Webhook), &all).unwrap_err().contains("[routes.hook]"));
}
