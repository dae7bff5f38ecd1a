//! The core and the process around rollouts: freezes, checklists, papers, witnesses.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::{Digest, JournalHead, Timestamp, VarDigest};
use tidegate_rollout::process::{Role, Signed};
use tidegate_rollout::{Record, RolloutState};
use tokio::sync::oneshot;

use super::tests::{Fleet, host, id, prepared, report};
use super::{HeadCheck, Input, Looked, Paperwork, Prepared};
use crate::environment::Environment;
use crate::operator::doc::{FreezeDoc, PlanDoc, StartDoc};
use crate::operator::msg::{ErrorCode, ErrorDoc, Request};
use crate::store::FleetRecord;

fn in_production(version: &str, extra: &str) -> Box<Prepared> {
    let Prepared { release, manifest, checks, .. } = *prepared(version, "");
    let text = format!(
        "release = \"shop@{version}\"\nenvironment = \"production\"\nlead = \"kim\"\nhosts = {{ api = \"role=api\" }}\nstrategy = \"rolling\"\n{extra}"
    );
    let spec = tidegate_rollout::Spec::parse(&text, "plan.toml").unwrap();
    Box::new(Prepared { spec, release, manifest, drill: None, checks })
}

fn started(fleet: &mut Fleet, name: &str, prepared: Box<Prepared>) -> Result<StartDoc, ErrorDoc> {
    let request = Request::RolloutStart { spec_text: String::new(), file_name: String::new(), run_id: Some(id(name)), confirm: None };
    fleet.ask(request, Some(prepared)).map(|json| serde_json::from_str(&json).unwrap())
}

fn freeze(fleet: &mut Fleet, environment: Option<&str>, selector: &str, until: Option<u64>) -> FreezeDoc {
    let request = Request::FreezeAdd {
        reason: "holidays".into(),
        from: None,
        until: until.map(Timestamp),
        environment: environment.map(str::to_owned),
        selector: selector.into(),
    };
    serde_json::from_str(&fleet.ask(request, None).unwrap()).unwrap()
}

fn tick(fleet: &mut Fleet, ms: u64) {
    fleet.now = Timestamp(fleet.now.0 + ms);
    fleet.state.tick(fleet.now);
    fleet.settle();
}

fn told_freeze(fleet: &Fleet) -> Vec<bool> {
    let of = |record: &Record| if let Record::Freeze { reason } = record { Some(reason.is_some()) } else { None };
    fleet.journal.iter().filter_map(|r| of(&r.record)).collect()
}

fn demanding(fleet: &mut Fleet, change: impl FnOnce(&mut Environment)) {
    let mut environment = Environment::unconfigured("production");
    change(&mut environment);
    fleet.state.setup.environments = BTreeMap::from([("production".to_owned(), environment)]);
}

#[test]
fn a_freeze_is_journaled_told_to_whom_it_covers_and_over_when_it_is() {
    let mut fleet = Fleet::new(&["a"]);
    fleet.online("a");
    started(&mut fleet, "r", in_production("1", "")).unwrap();
    // Others' freezes: another place, other hosts.
    freeze(&mut fleet, Some("staging"), "", None);
    freeze(&mut fleet, None, "role=db", None);
    tick(&mut fleet, 1_000);
    assert!(told_freeze(&fleet).is_empty());
    let third = freeze(&mut fleet, Some("production"), "role=api", None);
    assert_eq!((third.freeze, third.state.as_str()), (3, "active"));
    tick(&mut fleet, 1);
    assert_eq!(told_freeze(&fleet), [true]);
    assert_eq!(fleet.fleet.len(), 3);
    let removed = Request::FreezeRemove { freeze: 3, reason: "over".into() };
    assert!(fleet.ask(removed.clone(), None).unwrap().contains("\"removed\""));
    tick(&mut fleet, 1);
    assert_eq!(told_freeze(&fleet), [true, false]);
    assert!(matches!(&fleet.fleet[3].record, FleetRecord::FreezeRemoved { freeze: 3, by, .. } if by == "admin"));
    assert_eq!(fleet.ask(removed, None).unwrap_err().code, ErrorCode::Conflict);
    // One with an end ends by the clock.
    let until = fleet.now.0 + 10_000;
    freeze(&mut fleet, None, "", Some(until));
    tick(&mut fleet, 1);
    tick(&mut fleet, 10_000);
    assert_eq!(told_freeze(&fleet), [true, false, true, false]);
    let all = fleet.ask(Request::FreezeList { all: true }, None).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<FreezeDoc>>(&all).unwrap().iter().map(|f| f.state.as_str()).collect::<Vec<_>>(),
        ["active", "active", "removed", "over"]
    );
    let standing = fleet.ask(Request::FreezeList { all: false }, None).unwrap();
    assert_eq!(serde_json::from_str::<Vec<FreezeDoc>>(&standing).unwrap().len(), 2);
}

#[test]
fn a_freeze_refuses_a_start_and_a_drill_and_outlives_a_restart() {
    let mut fleet = Fleet::new(&["a"]);
    fleet.online("a");
    freeze(&mut fleet, None, "", None);
    let refused = started(&mut fleet, "r", in_production("1", "")).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Refused);
    assert!(
        refused.cause.as_deref().unwrap().contains("no-freeze") && refused.cause.as_deref().unwrap().contains("holidays"),
        "{refused:?}"
    );
    let drill = Box::new(Prepared { drill: Some(tidegate_rollout::DrillScope::First), ..*in_production("1", "") });
    let request = Request::RolloutDrill {
        spec_text: String::new(),
        file_name: String::new(),
        run_id: None,
        scope: tidegate_rollout::DrillScope::First,
    };
    assert_eq!(fleet.ask(request, Some(drill)).unwrap_err().code, ErrorCode::Refused);
    assert!(fleet.journal.is_empty() && fleet.sent.is_empty(), "nothing was minted or said");

    let loaded = crate::store::Loaded {
        epoch: 1,
        hosts: vec![super::tests::row("a")],
        fleet: fleet.fleet.iter().map(|f| (f.at, f.record.clone())).collect(),
        ..crate::store::Loaded::default()
    };
    let mut again = Fleet::of(loaded, fleet.now);
    again.online("a");
    assert_eq!(started(&mut again, "r", in_production("1", "")).unwrap_err().code, ErrorCode::Refused);
    // Numbers go on.
    assert_eq!(freeze(&mut again, None, "", None).freeze, 2);
}

#[test]
fn a_row_that_fails_refuses_by_name_and_one_that_people_give_is_waited_for() {
    let mut fleet = Fleet::new(&["a"]);
    fleet.online("a");
    demanding(&mut fleet, |e| {
        e.demanded = BTreeSet::from(["tested-in-staging".to_owned(), "low-traffic".to_owned()]);
        e.attest = vec!["low-traffic".into()];
    });
    let request = || Request::RolloutPlan { spec_text: String::new(), file_name: String::new() };
    let doc: PlanDoc = serde_json::from_str(&fleet.ask(request(), Some(in_production("1", ""))).unwrap()).unwrap();
    assert_eq!(doc.refused_because.len(), 1, "{:?}", doc.refused_because);
    assert!(doc.refused_because[0].starts_with("tested-in-staging: "));
    let row = doc.readiness.iter().find(|r| r.item == "low-traffic").unwrap();
    assert!(!row.ok && row.demanded && row.verdict == Some(tidegate_rollout::process::RowVerdict::Open), "{row:?}");
    assert!(doc.template_digest.is_some() && doc.estimate.is_some());
    let refused = started(&mut fleet, "r", in_production("1", "")).unwrap_err();
    assert!(refused.cause.as_deref().unwrap().contains("tested-in-staging"), "{refused:?}");
    assert!(fleet.journal.is_empty());

    demanding(&mut fleet, |e| {
        e.demanded = BTreeSet::from(["low-traffic".to_owned()]);
        e.attest = vec!["low-traffic".into()];
    });
    started(&mut fleet, "r", in_production("1", "")).unwrap();
    assert_eq!(fleet.state_of(&id("r")), RolloutState::AwaitingApproval);
    assert!(fleet.sent.is_empty(), "nothing is ordered before");
    assert_eq!(fleet.state.to_check.len(), 1, "it is looked at while it waits");
    let attest = Request::RolloutAttest { id: id("r"), item: "low-traffic".into(), note: "graph of last week".into() };
    fleet.ask(attest, None).unwrap();
    tick(&mut fleet, 1);
    assert_eq!(fleet.state_of(&id("r")), RolloutState::Running);
    assert_eq!(fleet.sent.len(), 1);
    assert!(fleet.state.to_check.is_empty());
}

#[test]
fn a_waiting_rollout_hears_when_a_row_does_not_hold_any_more() {
    let mut fleet = Fleet::new(&["a"]);
    let a = fleet.online("a");
    demanding(&mut fleet, |e| {
        e.demanded = BTreeSet::from(["low-traffic".to_owned(), "hosts-in-contact".to_owned()]);
        e.attest = vec!["low-traffic".into()];
    });
    started(&mut fleet, "r", in_production("1", "")).unwrap();
    let found = |fleet: &Fleet| fleet.journal.iter().filter(|r| matches!(r.record, Record::Readiness { .. })).count();
    assert_eq!(found(&fleet), 1);
    tick(&mut fleet, 5_000);
    assert_eq!(found(&fleet), 1, "nothing changed");
    fleet.input(Input::Gone { host: host("a"), session: a });
    tick(&mut fleet, 5_000);
    assert_eq!(found(&fleet), 2);
}

#[test]
fn an_approval_for_an_attempt_that_is_gone_counts_for_nothing() {
    let mut fleet = Fleet::new(&["a"]);
    fleet.online("a");
    demanding(&mut fleet, |e| e.approvals = vec![Role::Security]);
    started(&mut fleet, "r", in_production("1", "")).unwrap();
    assert_eq!(fleet.state_of(&id("r")), RolloutState::AwaitingApproval);
    let (reply, mut looked) = oneshot::channel();
    fleet.input(Input::Look { id: id("r"), reply });
    let Looked { plan, by, first_seq, last_seq } = looked.try_recv().unwrap().unwrap();
    assert_eq!((by.as_str(), first_seq), ("admin", 1));
    assert_eq!(last_seq, fleet.journal.len() as u64);
    assert_eq!(plan.process.approvals.len(), 1);
    let signed = || Signed { principal: "lee".into(), key: "SHA256:x".into(), signature: "s".into(), brought_by: "admin".into() };
    let paper = |fleet: &mut Fleet, first_seq: u64| {
        let (reply, mut answer) = oneshot::channel();
        fleet.input(Input::Paper { id: id("r"), first_seq, paper: Paperwork::Approved(Role::Security, signed()), reply });
        answer.try_recv().unwrap()
    };
    assert_eq!(paper(&mut fleet, first_seq + 1).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(fleet.state_of(&id("r")), RolloutState::AwaitingApproval);
    paper(&mut fleet, first_seq).unwrap();
    tick(&mut fleet, 1);
    assert_eq!(fleet.state_of(&id("r")), RolloutState::Running);
    // It has begun: another approval does not fit.
    assert_eq!(paper(&mut fleet, first_seq).unwrap_err().code, ErrorCode::Conflict);
}

#[test]
fn hosts_hear_of_the_head_now_and_then_and_witness_it() {
    let mut fleet = Fleet::new(&["a"]);
    let (_, outbox) = fleet.hello("a", Digest::of(b"a"), agent());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let heads = || {
        runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::ZERO, outbox.take()).await.ok().and_then(|words| words.head).map(|h| h.seq)
        })
    };
    assert_eq!(heads(), None, "an empty journal has no head");
    started(&mut fleet, "r", in_production("1", "")).unwrap();
    let tell = |fleet: &mut Fleet, ms: u64| {
        fleet.now = Timestamp(fleet.now.0 + ms);
        fleet.state.tell_heads(fleet.now);
    };
    tell(&mut fleet, 0);
    let first = fleet.journal.len() as u64;
    assert_eq!(heads(), Some(first));
    // More of it comes, and is said once the time has come.
    freeze(&mut fleet, None, "", None);
    tick(&mut fleet, 1_000);
    tell(&mut fleet, 0);
    assert_eq!(heads(), None);
    assert!(fleet.state.next_timeout().is_some());
    tell(&mut fleet, 5_000);
    let newest = fleet.journal.len() as u64;
    assert!(newest > first);
    assert_eq!(heads(), Some(newest));

    let session = fleet.state.registry.get(&host("a")).unwrap().session().unwrap().id;
    let say = |fleet: &mut Fleet, seq: u64, check: HeadCheck| {
        let head = JournalHead { seq, hash: Digest::of(b"head") };
        fleet.input(Input::Head { host: host("a"), session, head, check });
        let (reply, mut answer) = oneshot::channel();
        fleet.input(Input::Witnesses { reply });
        answer.try_recv().unwrap().remove(0)
    };
    assert_eq!(say(&mut fleet, newest, HeadCheck::Fits).finding, None);
    let more = say(&mut fleet, newest + 7, HeadCheck::Unknown);
    assert!(more.finding.as_deref().unwrap().contains("cut off"), "{more:?}");
    // What was found once is not forgotten when the host hears a newer head.
    assert!(say(&mut fleet, newest, HeadCheck::Fits).finding.is_some());
}

#[test]
fn what_hosts_say_of_their_variables_is_kept_while_they_are_there() {
    let mut fleet = Fleet::new(&["a"]);
    let session = fleet.online("a");
    let vars = vec![VarDigest { name: "port".into(), digest: Digest::of(b"port=1") }];
    fleet.input(Input::Vars { host: host("a"), session: session + 1, vars: vars.clone() });
    assert_eq!(fleet.state.registry.get(&host("a")).unwrap().vars, None, "not of another session");
    fleet.input(Input::Vars { host: host("a"), session, vars: vars.clone() });
    assert_eq!(fleet.state.registry.get(&host("a")).unwrap().vars, Some(vars));
    fleet.input(Input::Report { host: host("a"), session, report: Box::new(report(vec![])) });
}

fn agent() -> tidegate_protocol::report::AgentFacts {
    tidegate_protocol::report::AgentFacts { version: "1".into(), boot_id: "boot".parse().unwrap(), instance: 1, arch: "x86_64".into() }
}
