//! The core with hand-fed time and sessions that are only their outboxes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_protocol::message::VERSIONS;
use tidegate_protocol::report::{AgentFacts, HostFacts, Progress, Running, ServiceState};
use tidegate_protocol::{
    Assignment, BootId, ComponentReport, Digest, Generation, HostName, Intent, JournalHead, Phase, Release, ReleaseRef, Report, RolloutId,
    Timestamp, Watch,
};
use tidegate_rollout::{Record, RolloutState, Spec, Verb};
use tokio::sync::oneshot;

use super::{Admitted, Answer, Input, Prepared, State};
use crate::operator::checks::Checks;
use crate::operator::doc::{PlanDoc, StartDoc};
use crate::operator::msg::{ErrorCode, Request};
use crate::outbox::{Outbox, Word};
use crate::registry::NotAdmitted;
use crate::sources::Wanted;
use crate::store::{Appended, HostRow, Loaded, NewFleet, NewRecord};

pub(crate) fn manifest(version: &str) -> (ReleaseRef, Release) {
    let text = format!(
        r#"{{"schema":1,"name":"shop","version":"{version}","notes":null,"known_issues":null,"runbook":{{"deploy":null,"rollback":null}},
        "expires":null,"floor":null,"tasks":[],"components":[{{"name":"api","files":[{{"path":"bin/api","digest":"{}","size":3,"mode":365}}],
        "links":{{}},"service":{{"supervised":{{"run":["bin/api"]}}}},"proof":"executable","check":null,"before":null,"after":null,
        "arch":null,"keep":3,"smoke":[]}}]}}"#,
        Digest::of(version.as_bytes())
    );
    let release: Release = serde_json::from_str(&text).unwrap();
    release.check().unwrap();
    (ReleaseRef { id: release.id(), manifest: Digest::of(text.as_bytes()) }, release)
}

pub(super) fn prepared(version: &str, extra: &str) -> Box<Prepared> {
    let text = format!("release = \"shop@{version}\"\nhosts = {{ api = \"role=api\" }}\nstrategy = \"rolling\"\n{extra}");
    let (release, manifest) = manifest(version);
    Box::new(Prepared { spec: Spec::parse(&text, "plan.toml").unwrap(), release, manifest, drill: None, checks: looked() })
}

/// As if the depot had been looked at, and everything was there.
pub(super) fn looked() -> Checks {
    Checks { depot: Some(Default::default()), ..Checks::default() }
}

pub(super) fn row(name: &str) -> HostRow {
    HostRow {
        name: name.parse().unwrap(),
        labels: BTreeMap::from([("role".into(), "api".into())]),
        drained: None,
        spki: key(name),
        serial: "01".into(),
        token_hash: Digest::of(b"t"),
        enrolled_at: Timestamp(0),
        revoked_at: None,
        agent: None,
        last_report: None,
        last_sides: vec![],
        last_seen: None,
    }
}

fn key(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn agent(boot: &str, instance: u64) -> AgentFacts {
    AgentFacts { version: "1".into(), boot_id: boot.parse::<BootId>().unwrap(), instance, arch: "x86_64".into() }
}

pub(super) fn report(components: Vec<ComponentReport>) -> Report {
    Report { sequence: 1, host: HostFacts::default(), components }
}

/// What an agent that does as it is told would say next.
pub(super) fn obeyed(assignment: &Assignment) -> ComponentReport {
    let progress = match (assignment.intent, assignment.phase) {
        (Intent::Back, _) => Progress::Reverted,
        (_, Phase::Preflight) => Progress::Checked,
        (_, Phase::Stage) => Progress::Staged,
        (_, Phase::Cancel) => Progress::Cancelled,
        (_, Phase::Swap) => Progress::Healthy,
        (_, Phase::Confirm) => Progress::Confirmed,
    };
    let runs = assignment.intent == Intent::Back || assignment.phase >= Phase::Swap;
    let release = assignment.target.release().filter(|_| runs).cloned();
    let (_, shop) = manifest(release.as_ref().map_or("0", |r| r.id.version.as_str()));
    let tree = release.as_ref().and_then(|_| shop.components.first()).map(|c| c.tree_digest());
    ComponentReport {
        component: assignment.component.clone(),
        generation: assignment.generation,
        progress,
        failure: None,
        previous: None,
        service: if release.is_some() { ServiceState::Running } else { ServiceState::Absent },
        running: release.is_some().then(|| Running {
            pid: 1,
            started_at_unix_ms: 1,
            start_ticks: assignment.generation.n,
            sha256: shop.components.first().and_then(|c| c.files.first()).map(|f| f.digest),
        }),
        current: release,
        tree_sha256: tree,
        was_unhealthy: false,
        smoke: vec![],
        staged_bytes: 0,
        fetched_bytes: 0,
        cpu_permille: 0,
        memory_bytes: 0,
        restarts: 0,
        lease_left_ms: None,
    }
}

/// A `started` record, for tests of the journal.
pub(crate) fn started(rollout: &str) -> NewRecord {
    let mut fleet = Fleet::new(&["a"]);
    let start = Request::RolloutStart { spec_text: String::new(), file_name: String::new(), run_id: Some(id(rollout)), confirm: None };
    fleet.ask(start, Some(prepared("1", ""))).unwrap();
    fleet.journal.into_iter().find(|r| matches!(r.record, Record::Started { .. })).unwrap()
}

pub(super) fn id(text: &str) -> RolloutId {
    text.parse().unwrap()
}

pub(super) struct Fleet {
    pub(super) state: State,
    pub(super) now: Timestamp,
    pub(super) journal: Vec<NewRecord>,
    pub(super) sent: Vec<(HostName, Assignment)>,
    pub(super) watched: Vec<(HostName, Vec<Watch>)>,
    pub(super) fleet: Vec<NewFleet>,
    /// As published last.
    pub(super) fetches: Option<Vec<Wanted>>,
}

impl Fleet {
    pub(super) fn new(hosts: &[&str]) -> Self {
        let loaded = Loaded { epoch: 1, hosts: hosts.iter().map(|h| row(h)).collect(), ..Loaded::default() };
        Self::of(loaded, Timestamp(1_000_000))
    }

    pub(super) fn of(loaded: Loaded, now: Timestamp) -> Self {
        Self { state: State::restore(loaded), now, journal: vec![], sent: vec![], watched: vec![], fleet: vec![], fetches: None }
    }

    pub(super) fn input(&mut self, input: Input) {
        assert!(!self.state.handle(self.now, input));
        self.settle();
    }

    pub(super) fn settle(&mut self) {
        let outcome = self.state.settle(self.now);
        let first = self.journal.len() as u64 + 1;
        let touched: Vec<RolloutId> = outcome.records.iter().map(|r| r.rollout.clone()).collect();
        self.journal.extend(outcome.records);
        let head = JournalHead { seq: self.journal.len() as u64, hash: Digest::of(b"head") };
        self.fleet.extend(outcome.fleet);
        self.state.appended(Appended { first, head: (head.seq > 0).then_some(head) }, &touched);
        for (host, word) in outcome.sends.clone() {
            match word {
                Word::Assign(assignment) => self.sent.push((host, assignment)),
                Word::Watch(watches) => self.watched.push((host, watches)),
                Word::Side(_) | Word::Switch(_) | Word::Tasks(_) | Word::Outages(_) | Word::Head(_) => {}
            }
        }
        self.state.send(outcome.sends);
        self.fetches = outcome.fetches.or(self.fetches.take());
        outcome.replies.into_iter().for_each(|reply| reply());
    }

    pub(super) fn ask(&mut self, request: Request, prepared: Option<Box<Prepared>>) -> Answer {
        let (reply, mut answer) = oneshot::channel();
        self.input(Input::Ask { by: "admin".into(), request, prepared, reply });
        answer.try_recv().unwrap()
    }

    pub(super) fn start(&mut self, version: &str, run_id: Option<&str>) -> Result<StartDoc, crate::operator::msg::ErrorDoc> {
        let request = Request::RolloutStart { spec_text: String::new(), file_name: String::new(), run_id: run_id.map(id), confirm: None };
        self.ask(request, Some(prepared(version, ""))).map(|json| serde_json::from_str(&json).unwrap())
    }

    pub(super) fn hello(&mut self, name: &str, spki: Digest, agent: AgentFacts) -> (Result<Admitted, NotAdmitted>, Arc<Outbox>) {
        let outbox = Arc::new(Outbox::default());
        let (reply, mut answer) = oneshot::channel();
        let host = name.parse().unwrap();
        self.input(Input::Hello {
            host,
            spki,
            version: VERSIONS.max,
            agent,
            report: Box::new(report(vec![])),
            outbox: outbox.clone(),
            reply,
        });
        (answer.try_recv().unwrap(), outbox)
    }

    pub(super) fn online(&mut self, name: &str) -> u64 {
        self.hello(name, key(name), agent("boot", 1)).0.unwrap().session
    }

    /// Lets every host obey until nothing more is said.
    pub(super) fn obey(&mut self, sessions: &BTreeMap<HostName, u64>) {
        while !self.sent.is_empty() {
            for (host, assignment) in std::mem::take(&mut self.sent) {
                let Some(session) = sessions.get(&host) else { continue };
                let report = Box::new(report(vec![obeyed(&assignment)]));
                self.input(Input::Report { host, session: *session, report });
            }
        }
    }

    pub(super) fn state_of(&self, rollout: &RolloutId) -> RolloutState {
        self.state.rollouts[rollout].rollout.state()
    }

    pub(super) fn verb(&mut self, rollout: &RolloutId, verb: Verb) -> Answer {
        self.ask(Request::RolloutVerb { id: rollout.clone(), verb, reason: String::new() }, None)
    }
}

pub(super) fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

#[test]
fn a_fleet_moves_and_comes_back() {
    let mut fleet = Fleet::new(&["a", "b"]);
    let sessions = BTreeMap::from([(host("a"), fleet.online("a")), (host("b"), fleet.online("b"))]);
    let one = fleet.start("1", None).unwrap();
    fleet.obey(&sessions);
    assert_eq!(fleet.state_of(&one.id), RolloutState::Completed);
    let two = fleet.start("2", None).unwrap();
    fleet.obey(&sessions);
    assert_eq!(fleet.state_of(&two.id), RolloutState::Completed);

    // The first one is not the newest any more: going back from it is refused by name.
    let refused = fleet.verb(&one.id, Verb::Rollback).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Refused);
    assert!(refused.cause.unwrap().contains(two.id.as_str()));
    fleet.verb(&two.id, Verb::Rollback).unwrap();
    fleet.obey(&sessions);
    assert_eq!(fleet.state_of(&two.id), RolloutState::RolledBack);
    for name in ["a", "b"] {
        let known = fleet.state.registry.get(&host(name)).unwrap();
        let runs = known.components().next().unwrap().current.as_ref().unwrap();
        assert_eq!(runs.id.version.as_str(), "1");
    }
    // No generation was minted twice on a host.
    let mut minted: Vec<(HostName, Generation)> = fleet
        .journal
        .iter()
        .filter_map(|r| match &r.record {
            Record::Ordered { host, generation, phase: Phase::Swap, .. } => Some((host.clone(), *generation)),
            _ => None,
        })
        .collect();
    let all = minted.len();
    minted.sort();
    minted.dedup();
    assert_eq!(minted.len(), all);
}

#[test]
fn one_rollout_at_a_time_and_a_run_id_only_once() {
    let mut fleet = Fleet::new(&["a"]);
    fleet.online("a");
    let first = fleet.start("1", Some("r1")).unwrap();
    assert!(!first.attached);
    assert!(fleet.start("1", Some("r1")).unwrap().attached);
    let other = fleet.start("2", Some("r1")).unwrap_err();
    assert_eq!(other.code, ErrorCode::Refused);
    let busy = fleet.start("2", None).unwrap_err();
    assert_eq!(busy.code, ErrorCode::Refused);
    assert!(busy.message.contains("r1") && busy.message.contains("api") && busy.message.contains('a'), "{busy:?}");
    // `plan` says the same and touches nothing.
    let plan = Request::RolloutPlan { spec_text: String::new(), file_name: String::new() };
    let plan: PlanDoc = serde_json::from_str(&fleet.ask(plan, Some(prepared("2", ""))).unwrap()).unwrap();
    let [why] = plan.refused_because.as_slice() else { panic!("{:?}", plan.refused_because) };
    assert!(why.starts_with(&format!("no-conflicts: {}", busy.message)), "{why}");
    assert_eq!(fleet.state.rollouts.len(), 1);
}

#[test]
fn a_wrong_digest_starts_nothing() {
    let mut fleet = Fleet::new(&["a"]);
    fleet.online("a");
    let confirm = Some(Digest::of(b"another plan"));
    let request = Request::RolloutStart { spec_text: String::new(), file_name: String::new(), run_id: None, confirm };
    assert_eq!(fleet.ask(request, Some(prepared("1", ""))).unwrap_err().code, ErrorCode::Refused);
    assert!(fleet.journal.is_empty() && fleet.sent.is_empty());
}

#[test]
fn a_journal_refolded_says_the_same_assignments_again() {
    let mut fleet = Fleet::new(&["a", "b"]);
    let a = fleet.online("a");
    let started = fleet.start("1", Some("r")).unwrap();
    let said: Vec<Assignment> = fleet.sent.iter().filter(|(h, _)| *h == host("a")).map(|(_, s)| s.clone()).collect();
    assert_eq!(said.len(), 1);
    fleet.input(Input::Report { host: host("a"), session: a, report: Box::new(report(vec![])) });

    // The controller dies; only the journal and the rows are left.
    let records = fleet.journal.iter().map(|r| (r.at, r.record.clone())).collect();
    let generations = [("a", 1), ("b", 1)].map(|(h, n)| (host(h), "api".parse().unwrap(), Generation::new(1, n), started.id.clone()));
    let loaded = Loaded {
        epoch: 1,
        hosts: vec![row("a"), row("b")],
        generations: generations.into(),
        rollouts: vec![crate::store::LoadedRollout { id: started.id.clone(), first_seq: 1, last_seq: 9, records }],
        ..Loaded::default()
    };
    let mut again = Fleet::of(loaded, fleet.now);
    again.state.returned(again.now);
    again.settle();
    assert!(again.journal.iter().any(|r| r.record == Record::Returned));
    again.sent.clear();
    again.online("a");
    assert_eq!(again.sent, said.into_iter().map(|s| (host("a"), s)).collect::<Vec<_>>());
}

#[test]
fn two_machines_under_one_certificate_get_no_work_until_one_is_left() {
    let mut fleet = Fleet::new(&["a"]);
    fleet.online("a");
    let (second, clone) = fleet.hello("a", key("a"), agent("other-boot", 1));
    let second = second.unwrap().session;
    assert!(fleet.state.registry.get(&host("a")).unwrap().conflict());
    let refused = fleet.start("1", None).unwrap_err();
    assert!(refused.message.contains("two machines"), "{refused:?}");
    assert!(fleet.sent.is_empty());
    // The clone stops: the host goes on.
    fleet.input(Input::Gone { host: host("a"), session: second });
    drop(clone);
    assert!(!fleet.state.registry.get(&host("a")).unwrap().conflict());
    fleet.start("1", None).unwrap();
    assert_eq!(fleet.sent.len(), 1);
}

#[test]
fn the_same_agent_replaces_its_older_session() {
    let mut fleet = Fleet::new(&["a"]);
    let (first, old) = fleet.hello("a", key("a"), agent("boot", 1));
    let (second, _new) = fleet.hello("a", key("a"), agent("boot", 1));
    assert!(!fleet.state.registry.get(&host("a")).unwrap().conflict());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(old.take()).goodbye.is_some());
    // Its late end must not be taken for the newer one's.
    fleet.input(Input::Gone { host: host("a"), session: first.unwrap().session });
    assert_eq!(fleet.state.registry.get(&host("a")).unwrap().session().map(|s| s.id), Some(second.unwrap().session));
}

#[test]
fn only_the_enrolled_key_is_let_in() {
    let mut fleet = Fleet::new(&["a"]);
    assert_eq!(fleet.hello("a", key("x"), agent("boot", 1)).0.unwrap_err(), NotAdmitted::OtherKey(host("a")));
    assert_eq!(fleet.hello("b", key("b"), agent("boot", 1)).0.unwrap_err(), NotAdmitted::Unknown(host("b")));
    fleet.input(Input::Joined(Box::new(HostRow { revoked_at: Some(Timestamp(1)), ..row("a") })));
    assert_eq!(fleet.hello("a", key("a"), agent("boot", 1)).0.unwrap_err(), NotAdmitted::Revoked(host("a")));
}

#[test]
fn labels_are_checked_kept_and_told() {
    let mut fleet = Fleet::new(&["a"]);
    let (_, outbox) = fleet.hello("a", key("a"), agent("boot", 1));
    let set = |pairs: &[(&str, Option<&str>)]| Request::HostLabel {
        host: host("a"),
        set: pairs.iter().map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned))).collect(),
    };
    assert_eq!(fleet.ask(set(&[("a b", Some("c"))]), None).unwrap_err().code, ErrorCode::Usage);
    fleet.ask(set(&[("zone", Some("b")), ("role", None)]), None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(outbox.take()).labels, Some(BTreeMap::from([("zone".into(), "b".into())])));
    let many: Vec<String> = (0..70).map(|n| format!("k{n}")).collect();
    let many: Vec<(&str, Option<&str>)> = many.iter().map(|k| (k.as_str(), Some("v"))).collect();
    assert_eq!(fleet.ask(set(&many), None).unwrap_err().code, ErrorCode::Usage);
}

#[test]
fn a_word_of_before_a_restart_proves_nothing_and_a_restart_is_no_silence() {
    let mut fleet = Fleet::new(&["a"]);
    let a = fleet.online("a");
    let one = fleet.start("1", None).unwrap();
    fleet.obey(&BTreeMap::from([(host("a"), a)]));
    assert_eq!(fleet.state_of(&one.id), RolloutState::Completed);
    let last_report = fleet.state.registry.get(&host("a")).unwrap().report.clone();
    let plan = || Request::RolloutPlan { spec_text: String::new(), file_name: String::new() };
    let actions = |fleet: &mut Fleet| {
        let doc: PlanDoc = serde_json::from_str(&fleet.ask(plan(), Some(prepared("1", ""))).unwrap()).unwrap();
        doc.hosts.iter().map(|h| h.action.clone()).collect::<Vec<_>>()
    };
    assert_eq!(actions(&mut fleet), ["unchanged"]);

    // Its row was written long ago: it may have been moved on since.
    let stale = HostRow { last_report, last_seen: Some(Timestamp(1)), ..row("a") };
    let loaded = Loaded { epoch: 1, hosts: vec![stale], ..Loaded::default() };
    let mut again = Fleet::of(loaded, Timestamp(9_000_000));
    again.state.returned(again.now);
    assert_eq!(actions(&mut again), ["change"]);
    let two = again.start("1", None).unwrap();
    // An agent that backed off while the controller was away still comes in time.
    again.now = Timestamp(9_000_000 + 29_000);
    again.state.tick(again.now);
    again.settle();
    assert_eq!(again.state_of(&two.id), RolloutState::Running);
    again.now = Timestamp(9_000_000 + 31_000);
    again.state.tick(again.now);
    again.settle();
    assert_eq!(again.state_of(&two.id), RolloutState::Refused);
}
