//! Watches, samples, sides and fetches on their way through the core.

use std::collections::BTreeMap;

use tidegate_protocol::metric::{MetricReading, ProbeRead, Reading, Source};
use tidegate_protocol::side::{SideReport, SwitchProgress};
use tidegate_protocol::{Generation, HostName, Millis, RolloutId, Samples, Side, SidesReport, Timestamp, Watch};
use tidegate_rollout::gate::Group;
use tidegate_rollout::{FetchFrom, Fetched, Record, RolloutState, Verb};

use super::Input;
use super::tests::{Fleet, host, id, prepared};
use crate::operator::doc::{PlanDoc, StartDoc};
use crate::operator::msg::{ErrorCode, Request};
use crate::outbox::Word;

const PROBE: &str = "
bake = \"60s\"
success = [\"error_rate < 1%\"]
[[rollback]]
when = \"error_rate > 5%\"
action = \"rollback\"
min_samples = 10
[metrics.error_rate]
source = \"probe\"
url = \"http://127.0.0.1:8080/\"
min_samples = 10
";

const PROMETHEUS: &str = "
bake = \"60s\"
success = [\"error_rate < 1%\"]
rollback = []
[metrics.error_rate]
source = \"prometheus\"
url = \"http://127.0.0.1:9090\"
query = 'sum(errors{host=~\"$hosts\"})'
unit = \"percent\"
";

fn start(fleet: &mut Fleet, version: &str, extra: &str) -> RolloutId {
    let request = Request::RolloutStart { spec_text: String::new(), file_name: String::new(), run_id: None, confirm: None };
    let json = fleet.ask(request, Some(prepared(version, extra))).unwrap();
    serde_json::from_str::<StartDoc>(&json).unwrap().id
}

fn online(fleet: &mut Fleet, names: &[&str]) -> BTreeMap<HostName, u64> {
    names.iter().map(|name| (host(name), fleet.online(name))).collect()
}

fn watches_of(fleet: &Fleet, name: &str) -> Option<Vec<Watch>> {
    fleet.watched.iter().rev().find(|(h, _)| *h == host(name)).map(|(_, w)| w.clone())
}

fn later(fleet: &mut Fleet, by: Millis) {
    fleet.now = fleet.now + by;
    fleet.state.tick(fleet.now);
    fleet.settle();
}

/// Lets time pass until nobody is told anything any more, obeying all the while.
fn obey(fleet: &mut Fleet, sessions: &BTreeMap<HostName, u64>, seconds: u64) {
    for _ in 0..seconds * 2 {
        fleet.obey(sessions);
        later(fleet, Millis(500));
    }
    fleet.obey(sessions);
}

/// What an agent would say of everything it was asked to measure.
fn measured(fleet: &Fleet, since_unix_ms: u64, bad: u64, total: u64) -> Vec<Samples> {
    let reading = |source: &Source| match source {
        Source::Probe { read: ProbeRead::Latency, .. } => Reading::Histogram { bounds_us: vec![1_000], counts: vec![total, 0] },
        Source::Probe { .. } => Reading::Ratio { bad, total },
        _ => Reading::Ratio { bad: 0, total },
    };
    let of = |watch: Watch| Samples {
        component: watch.component,
        side: watch.side,
        readings: watch
            .observers
            .iter()
            .map(|o| MetricReading { metric: o.metric.clone(), since_unix_ms, reading: reading(&o.source), note: None })
            .collect(),
    };
    watches_of(fleet, "a").unwrap_or_default().into_iter().map(of).collect()
}

#[test]
fn every_hello_is_told_all_that_is_to_be_measured() {
    let mut fleet = Fleet::new(&["a"]);
    let sessions = online(&mut fleet, &["a"]);
    assert_eq!(watches_of(&fleet, "a"), Some(vec![]), "an agent that measured before must hear that nobody asks any more");
    start(&mut fleet, "1", PROBE);
    obey(&mut fleet, &sessions, 2);
    let asked = watches_of(&fleet, "a").unwrap();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].observers.iter().any(|o| o.metric == "error_rate"), "{asked:?}");
    // It connects anew: the whole list again.
    fleet.watched.clear();
    fleet.online("a");
    assert_eq!(watches_of(&fleet, "a"), Some(asked));
}

#[test]
fn what_a_host_measured_takes_the_rollout_back_and_ends_the_measuring() {
    let mut fleet = Fleet::new(&["a"]);
    let sessions = online(&mut fleet, &["a"]);
    let first = start(&mut fleet, "1", "");
    obey(&mut fleet, &sessions, 1);
    assert_eq!(fleet.state_of(&first), RolloutState::Completed);
    let rollout = start(&mut fleet, "2", PROBE);
    let session = sessions[&host("a")];
    // The probe is tried before anything is touched; what follows changed nothing.
    for total in 1..=60 {
        let samples = measured(&fleet, 1, 0, total);
        fleet.input(Input::Samples { host: host("a"), session, samples });
        obey(&mut fleet, &sessions, 1);
        if fleet.state_of(&rollout) == RolloutState::Baking {
            break;
        }
    }
    let status = fleet.ask(Request::RolloutExplain { id: rollout.clone() }, None).unwrap();
    assert_eq!(fleet.state_of(&rollout), RolloutState::Baking, "{status}");
    // The new process counts from its start.
    let since = fleet.now.0;
    let samples = measured(&fleet, since, 0, 100);
    fleet.input(Input::Samples { host: host("a"), session, samples });
    assert_eq!(fleet.state_of(&rollout), RolloutState::Baking);
    let samples = measured(&fleet, since, 90, 200);
    // A session that does not speak for the host is not heard.
    fleet.input(Input::Samples { host: host("a"), session: session + 99, samples: samples.clone() });
    assert_eq!(fleet.state_of(&rollout), RolloutState::Baking);
    fleet.now = fleet.now + Millis(250);
    fleet.input(Input::Samples { host: host("a"), session, samples });
    assert_eq!(fleet.state_of(&rollout), RolloutState::RollingBack, "at once, not at the next look");
    assert!(fleet.journal.iter().any(|r| matches!(r.record, Record::Tripped { .. })));
    obey(&mut fleet, &sessions, 2);
    assert_eq!(fleet.state_of(&rollout), RolloutState::RolledBack);
    assert_eq!(watches_of(&fleet, "a"), Some(vec![]));
}

#[test]
fn a_rollout_that_only_watches_gives_way_and_one_that_holds_does_not() {
    let mut fleet = Fleet::new(&["a", "b"]);
    let sessions = online(&mut fleet, &["a", "b"]);
    let first = start(&mut fleet, "1", "watch = \"24h\"\n");
    let busy = fleet.start("2", None).unwrap_err();
    assert_eq!(busy.code, ErrorCode::Refused);
    obey(&mut fleet, &sessions, 2);
    assert_eq!(fleet.state_of(&first), RolloutState::Watching);
    let plan = Request::RolloutPlan { spec_text: String::new(), file_name: String::new() };
    let doc: PlanDoc = serde_json::from_str(&fleet.ask(plan, Some(prepared("2", ""))).unwrap()).unwrap();
    assert_eq!(doc.refused_because, [""; 0]);
    let second = start(&mut fleet, "2", "");
    assert_eq!(fleet.state_of(&first), RolloutState::Completed);
    let ended = fleet.journal.iter().find_map(|r| match &r.record {
        Record::State { to: RolloutState::Completed, reason } if r.rollout == first => Some(reason.clone()),
        _ => None,
    });
    assert!(ended.unwrap().contains(second.as_str()));
    obey(&mut fleet, &sessions, 1);
    assert_eq!(fleet.state_of(&second), RolloutState::Completed);
}

#[test]
fn a_watch_that_a_person_paused_gives_way_too_and_ends() {
    let mut fleet = Fleet::new(&["a"]);
    let sessions = online(&mut fleet, &["a"]);
    let first = start(&mut fleet, "1", "watch = \"24h\"\n");
    obey(&mut fleet, &sessions, 2);
    assert_eq!(fleet.state_of(&first), RolloutState::Watching);
    fleet.verb(&first, Verb::Pause).unwrap();
    assert_eq!(fleet.state_of(&first), RolloutState::Paused);
    let second = start(&mut fleet, "2", "");
    assert_eq!(fleet.state_of(&first), RolloutState::Completed, "told of its successor, not left behind");
    obey(&mut fleet, &sessions, 1);
    assert_eq!(fleet.state_of(&second), RolloutState::Completed);
}

#[test]
fn what_is_to_be_fetched_is_published_and_its_answers_find_their_rollout() {
    let mut fleet = Fleet::new(&["a", "b.example"]);
    let sessions = online(&mut fleet, &["a", "b.example"]);
    let rollout = start(&mut fleet, "1", PROMETHEUS);
    obey(&mut fleet, &sessions, 1);
    let published = fleet.fetches.clone().unwrap();
    assert_eq!(published.len(), 1, "{published:?}");
    assert_eq!(published[0].rollout, rollout);
    let FetchFrom::Prometheus { query, .. } = &published[0].fetch.from else { panic!("{published:?}") };
    assert!(query.contains("a|b[.]example"), "{query}");

    // A server that cannot be asked refuses the plan before any host is touched.
    let group: Group = published[0].fetch.group;
    let fetched = |result| Input::Fetched { rollout: rollout.clone(), metric: "error_rate".into(), group, result };
    fleet.input(fetched(Err("http://127.0.0.1:9090: the query was not answered".into())));
    obey(&mut fleet, &sessions, 90);
    assert_eq!(fleet.state_of(&rollout), RolloutState::Refused);
    assert_eq!(fleet.fetches, Some(vec![]));
    // Late answers harm nobody.
    fleet.input(fetched(Ok(Fetched::Value { value: 1.0, samples: None })));
    assert_eq!(fleet.state_of(&rollout), RolloutState::Refused);
}

#[test]
fn sides_are_known_to_plans_and_their_generations_are_never_minted_again() {
    let mut fleet = Fleet::new(&["a"]);
    let sessions = online(&mut fleet, &["a"]);
    let one = start(&mut fleet, "1", "");
    obey(&mut fleet, &sessions, 1);
    assert_eq!(fleet.state_of(&one), RolloutState::Completed);
    let said = fleet.state.registry.get(&host("a")).unwrap().components().next().unwrap().clone();
    let green = SideReport { side: Side::Green, report: tidegate_protocol::ComponentReport { generation: Generation::new(1, 40), ..said } };
    let sides = vec![SidesReport {
        component: "api".parse().unwrap(),
        active: Some(Side::Green),
        generation: Generation::new(1, 77),
        progress: SwitchProgress::Switched,
        failure: None,
        sides: vec![green],
    }];
    fleet.input(Input::Sides { host: host("a"), session: sessions[&host("a")], sides });
    let minted = fleet.state.registry.mint(1, &host("a"), &"api".parse().unwrap());
    assert_eq!(minted, Generation::new(1, 78));
    let known = fleet.state.registry.fleet();
    let api = &known[0].components[&"api".parse().unwrap()];
    assert_eq!(api.sides.as_ref().unwrap().active, Some(Side::Green));
    assert!(api.settled && api.release.is_some());
    let doc = fleet.ask(Request::HostExplain { host: host("a") }, None).unwrap();
    assert!(doc.contains("side green serves") && doc.contains("1.77"), "{doc}");
    let doc = fleet.ask(Request::HostShow { host: host("a") }, None).unwrap();
    assert!(doc.contains(r#""active":"green""#), "{doc}");
}

#[test]
fn declarations_and_attestations_need_words_and_a_rollout() {
    let mut fleet = Fleet::new(&["a"]);
    let sessions = online(&mut fleet, &["a"]);
    let first = start(&mut fleet, "1", "");
    obey(&mut fleet, &sessions, 1);
    let declare =
        |id: &RolloutId, what: &str, reason: &str| Request::RolloutDeclare { id: id.clone(), what: what.into(), reason: reason.into() };
    assert_eq!(fleet.ask(declare(&id("none"), "data-corruption", "x"), None).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(fleet.ask(declare(&first, "data-corruption", " "), None).unwrap_err().code, ErrorCode::Usage);
    assert_eq!(fleet.ask(declare(&first, "Data corruption", "x"), None).unwrap_err().code, ErrorCode::Usage);
    // A newer rollout has the host since: going back from the first is refused by name.
    let second = start(&mut fleet, "2", "");
    obey(&mut fleet, &sessions, 1);
    let refused = fleet.ask(declare(&first, "data-corruption", "totals are wrong"), None).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Refused);
    assert!(refused.cause.unwrap().contains(second.as_str()));
    fleet.ask(declare(&second, "data-corruption", "totals are wrong"), None).unwrap();
    assert_eq!(fleet.state_of(&second), RolloutState::RollingBack);
    let attest = Request::RolloutAttest { id: second, item: "no-complaints".into(), note: String::new() };
    assert_eq!(fleet.ask(attest, None).unwrap_err().code, ErrorCode::Usage);
}

#[test]
fn a_reconnecting_host_hears_every_standing_word_and_then_its_lists() {
    let mut fleet = Fleet::new(&["a"]);
    fleet.online("a");
    start(&mut fleet, "1", PROBE);
    let outcome = {
        let (reply, _answer) = tokio::sync::oneshot::channel();
        let outbox = std::sync::Arc::new(crate::outbox::Outbox::default());
        let agent = tidegate_protocol::report::AgentFacts {
            version: "1".into(),
            boot_id: "boot".parse().unwrap(),
            instance: 1,
            arch: "x86_64".into(),
        };
        let hello = Input::Hello {
            host: host("a"),
            spki: tidegate_protocol::Digest::of(b"a"),
            version: 2,
            agent,
            report: Box::new(super::tests::report(vec![])),
            outbox,
            reply,
        };
        fleet.state.handle(Timestamp(fleet.now.0), hello);
        fleet.state.settle(fleet.now)
    };
    let words: Vec<&Word> = outcome.sends.iter().map(|(_, w)| w).collect();
    assert!(
        matches!(words.as_slice(), [Word::Assign(_), Word::Head(_), Word::Watch(_), Word::Tasks(_), Word::Outages(of)] if of.len() == 1),
        "{words:?}"
    );
}
