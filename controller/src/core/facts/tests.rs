//! What the core finds in its own registry and rollouts.

use tidegate_protocol::report::HostFacts;
use tidegate_protocol::{Digest, Report};
use tidegate_rollout::Verb;
use tidegate_rollout::process::{ContactRole, Fit, Opening};

use super::super::Prepared;
use super::super::tests::{Fleet, host, looked, manifest, obeyed, prepared, report};
use super::*;
use crate::core::Input;
use crate::operator::doc::StartDoc;
use crate::operator::msg::Request;

/// A fleet of production (a, b) and staging (s), all in contact.
fn fleet() -> (Fleet, BTreeMap<HostName, u64>) {
    let mut fleet = Fleet::new(&["a", "b", "s"]);
    let sessions: BTreeMap<HostName, u64> = ["a", "b", "s"].map(|name| (host(name), fleet.online(name))).into();
    for (name, env) in [("a", "production"), ("b", "production"), ("s", "staging")] {
        fleet.state.registry.get_mut(&host(name)).unwrap().labels.insert("env".into(), env.into());
    }
    (fleet, sessions)
}

fn to(version: &str, environment: &str, extra: &str) -> Box<Prepared> {
    prepared(version, &format!("environment = \"{environment}\"\n{extra}"))
}

fn start(fleet: &mut Fleet, prepared: Box<Prepared>) -> RolloutId {
    let request = Request::RolloutStart { spec_text: String::new(), file_name: String::new(), run_id: None, confirm: None };
    let doc: StartDoc = serde_json::from_str(&fleet.ask(request, Some(prepared)).unwrap()).unwrap();
    doc.id
}

fn plan(fleet: &Fleet, version: &str, extra: &str) -> Plan {
    let prepared = to(version, "production", extra);
    Plan::resolve(&prepared.spec, &prepared.release, &prepared.manifest, &fleet.state.registry.fleet()).unwrap()
}

fn facts_in(fleet: &Fleet, plan: &Plan, environment: &Environment, checks: &Checks) -> Facts {
    let routes = BTreeMap::new();
    let around = Around { environment, checks, routes: &routes, freeze: None, rollout: None };
    fleet.state.facts(fleet.now, plan, &around)
}

fn facts(fleet: &Fleet, plan: &Plan) -> Facts {
    facts_in(fleet, plan, &Environment::unconfigured("production"), &looked())
}

#[test]
fn staging_counts_the_same_bytes_that_stayed() {
    let (mut fleet, sessions) = fleet();
    let two = plan(&fleet, "2", "");
    assert_eq!(facts(&fleet, &two).staging, None);
    let other = start(&mut fleet, to("1", "staging", ""));
    fleet.obey(&sessions);
    assert_eq!(facts(&fleet, &two).staging, None, "another version");
    let same = start(&mut fleet, to("2", "staging", ""));
    assert_eq!(facts(&fleet, &two).staging, None, "it has not completed");
    fleet.obey(&sessions);
    assert_eq!(facts(&fleet, &two).staging.map(|ran| ran.rollout), Some(same.clone()));
    assert_ne!(same, other);
    let prod = Environment::unconfigured("elsewhere");
    assert!(facts_in(&fleet, &two, &prod, &looked()).staging.is_some());
    assert_eq!(facts_in(&fleet, &two, &Environment::unconfigured("staging"), &looked()).staging, None, "staging itself has none before it");
    fleet.verb(&same, Verb::Rollback).unwrap();
    fleet.obey(&sessions);
    assert_eq!(facts(&fleet, &two).staging, None, "it was taken back");
}

#[test]
fn the_newest_drill_tells_the_pace() {
    let (mut fleet, sessions) = fleet();
    let two = plan(&fleet, "2", "batch = 1\n");
    assert!(fleet.state.estimate(&two).from.starts_with("assumed"));
    let mut rehearsal = to("2", "production", "");
    rehearsal.drill = Some(tidegate_rollout::DrillScope::First);
    let request = Request::RolloutDrill {
        spec_text: String::new(),
        file_name: String::new(),
        run_id: None,
        scope: tidegate_rollout::DrillScope::First,
    };
    let doc: StartDoc = serde_json::from_str(&fleet.ask(request, Some(rehearsal)).unwrap()).unwrap();
    assert_eq!(facts(&fleet, &two).drill, None, "it is not over");
    // Each order takes some time.
    while !fleet.sent.is_empty() {
        fleet.now = fleet.now + Millis(2_000);
        for (host, assignment) in std::mem::take(&mut fleet.sent) {
            let report = Box::new(report(vec![obeyed(&assignment)]));
            let session = sessions[&host];
            fleet.input(Input::Report { host, session, report });
        }
    }
    let drill = facts(&fleet, &two).drill.unwrap();
    assert!(drill.forward > Millis(0) && drill.back > Millis(0), "{drill:?}");
    assert_eq!(drill.rollout, doc.id);
    let estimate = fleet.state.estimate(&two);
    assert_eq!(estimate.from, format!("measured by drill {}", doc.id));
    // Two hosts, one at a time; two at a time on the way back.
    assert_eq!((estimate.forward, estimate.back), (Millis(drill.forward.0 * 2), drill.back));
    assert_eq!(facts(&fleet, &plan(&fleet, "3", "")).drill, None, "of other bytes");
}

#[test]
fn configurations_of_both_places_are_compared() {
    let (mut fleet, sessions) = fleet();
    let plan = plan(&fleet, "1", "");
    let compared = facts(&fleet, &plan).config.unwrap();
    assert_eq!((compared.here, compared.there), (2, 1));
    assert_eq!(compared.silent, ["a", "b", "s"].map(host).into(), "nobody said anything yet");
    for (name, port) in [("a", "1"), ("b", "1"), ("s", "2")] {
        let vars = [("port", port), ("zone", "x")].map(|(n, v)| VarDigest { name: n.into(), digest: Digest::of(v.as_bytes()) });
        fleet.input(Input::Vars { host: host(name), session: sessions[&host(name)], vars: vars.into() });
    }
    let compared = facts(&fleet, &plan).config.unwrap();
    assert_eq!((compared.differs, compared.silent.len()), (BTreeSet::from(["port".to_owned()]), 0));
    fleet.state.registry.get_mut(&host("s")).unwrap().labels.insert("role".into(), "web".into());
    assert_eq!(facts(&fleet, &plan).config.unwrap().there, 0, "a host of staging with another role is no mirror");
    assert_eq!(facts_in(&fleet, &plan, &Environment::unconfigured("staging"), &looked()).config, None);
}

#[test]
fn hosts_releases_and_conflicts_are_as_they_were_last_heard_of() {
    let (mut fleet, sessions) = fleet();
    let first = start(&mut fleet, to("1", "production", ""));
    let two = plan(&fleet, "2", "");
    let held = facts(&fleet, &two).conflicts;
    assert!(held.len() == 1 && held[0].contains(first.as_str()) && held[0].contains("api on"), "{held:?}");
    let of_itself = Around {
        environment: &Environment::unconfigured("production"),
        checks: &looked(),
        routes: &BTreeMap::new(),
        freeze: Some("holidays".into()),
        rollout: Some(&first),
    };
    let own = fleet.state.facts(fleet.now, &two, &of_itself);
    assert!(own.conflicts.is_empty() && own.freeze.as_deref() == Some("holidays"), "a rollout is not in its own way");
    fleet.obey(&sessions);
    assert!(facts(&fleet, &two).conflicts.is_empty());

    // The runbook of what runs now, if its release can still be read.
    let one = manifest("1").0;
    let mut checks = looked();
    assert_eq!(facts_in(&fleet, &two, &Environment::unconfigured("production"), &checks).before, None);
    checks.runbooks.insert(one.manifest, Some(Digest::of(b"runbook")));
    let before = facts_in(&fleet, &two, &Environment::unconfigured("production"), &checks).before.unwrap();
    assert_eq!((before.release, before.runbook), (one.id, Some(Digest::of(b"runbook"))));

    let known = facts(&fleet, &two).hosts;
    assert_eq!(known.keys().cloned().collect::<Vec<_>>(), [host("a"), host("b")]);
    let runs = |name: &str, hosts: &BTreeMap<HostName, HostFact>| hosts[&host(name)].components[&"api".parse().unwrap()];
    assert_eq!(runs("a", &known), ComponentFact { installed: true, drifted: false });
    // A file is changed there, its disk fills up; the other one is lost.
    let report = fleet.state.registry.get(&host("a")).and_then(|h| h.report.clone()).unwrap();
    let mut components = report.components;
    components[0].service = ServiceState::Drifted;
    let full = HostFacts { disk_free_bytes: 7, ..HostFacts::default() };
    fleet.input(Input::Report {
        host: host("a"),
        session: sessions[&host("a")],
        report: Box::new(Report { sequence: 9, host: full, components }),
    });
    fleet.input(Input::Gone { host: host("b"), session: sessions[&host("b")] });
    let known = facts(&fleet, &two).hosts;
    assert_eq!(runs("a", &known), ComponentFact { installed: true, drifted: true });
    assert_eq!(known[&host("a")].machine.as_ref().map(|m| m.disk_free_bytes), Some(7));
    assert_eq!((known[&host("a")].online, known[&host("b")].online), (true, false));
    assert_eq!(known[&host("b")].version, None);
}

#[test]
fn contacts_are_held_against_the_opening_that_the_rollout_fits_into() {
    let (fleet, _) = fleet();
    let text = "[[window]]\nstart_time = \"22:00\"\nlength_minutes = 60\ntime_zone = \"Europe/Berlin\"\n\
        [[contact]]\nrole = \"on-call\"\nname = \"Kim\"\nphone = \"1\"\navailable = \"22:00-23:00\"\n\
        [[contact]]\nrole = \"lead\"\nname = \"Ada\"\nphone = \"1\"\navailable = \"09:00-17:00\"\n";
    let mut plan = plan(&fleet, "1", text);
    plan.process.estimate = Estimate { forward: Millis::from_secs(1_800), back: Millis::from_secs(600), from: "assumed".into() };
    let found = facts(&fleet, &plan).cover;
    assert!(found[&ContactRole::OnCall].is_ok(), "{found:?}");
    assert!(found[&ContactRole::Lead].as_ref().is_err_and(|gap| gap.contains("Ada") && gap.contains("22:00 CET")), "{found:?}");
    assert!(!found.contains_key(&ContactRole::Escalation));
    // An opening that is too short is not the one: the rollout would begin in the next.
    let short = Opening { opens: Timestamp(0), closes: fleet.now + Millis(60_000), text: String::new(), fit: Fit::All, overrun: false };
    let next = windows::openings(&plan.process.windows, fleet.now, 1);
    assert!(cover(fleet.now, &plan, &[vec![short], next].concat())[&ContactRole::OnCall].is_ok());
    plan.process.estimate.forward = Millis::from_secs(3_601);
    assert!(facts(&fleet, &plan).cover[&ContactRole::OnCall].is_err());
}
