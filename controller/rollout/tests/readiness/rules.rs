//! What rows demand where, what an emergency goes without, and how facts become
//! sentences.

use std::collections::BTreeSet;

use tidegate_protocol::*;
use tidegate_rollout::process::*;
use tidegate_rollout::readiness::*;
use tidegate_rollout::spec::OnUnreachable;
use tidegate_rollout::{Spec, Surroundings};

use super::blocking;
use super::case::*;

const SMALL: &str = "release = \"shop@2\"\nhosts = { api = \"\" }\nstrategy = \"rolling\"\nbatch = 1\n";

fn small(extra: &str) -> Case {
    let plan = resolve(&format!("{SMALL}{extra}"), &Surroundings::default());
    Case { plan, given: Given::default(), ..Case::complete() }
}

#[test]
fn where_nothing_is_demanded_only_what_the_program_knows_by_itself_blocks() {
    let always = ["artifacts-verified", "checksums-recorded", "capacity", "no-conflicts", "no-freeze", "agents-able", "rollback-target"];
    let mut case = small("");
    case.facts = Facts { depot: Some(Held::default()), ..Facts::default() };
    let rows = case.checklist();
    assert_eq!(blocking(&rows), Vec::<&str>::new(), "{:#?}", refusals(&rows));
    let demanded: BTreeSet<&str> = rows.iter().filter(|row| row.demanded).map(|row| row.item.as_str()).collect();
    assert_eq!(demanded, always.into());
    for row in rows.iter().filter(|row| !row.demanded && row.section != Section::Fleet) {
        assert!(matches!(row.verdict, RowVerdict::NotApplicable | RowVerdict::Pass), "{row:?}");
    }
    for item in ["artifacts-verified", "checksums-recorded", "capacity", "no-conflicts", "no-freeze", "rollback-target"] {
        let mut case = small("");
        let base = Case::complete().without(item);
        (case.facts, case.manifest) = (base.facts, base.manifest);
        assert_eq!(blocking(&case.checklist()), [item]);
    }
    // A depot that nobody looked at proves nothing.
    let mut case = small("");
    case.facts.depot = None;
    assert_eq!(blocking(&case.checklist()), ["artifacts-verified"]);
}

#[test]
fn what_a_plan_brings_must_hold() {
    let mut case = small("dashboards = [\"http://127.0.0.1:1/\"]\n");
    assert_eq!(blocking(&case.checklist()), ["dashboards"], "one that was not tried waits");
    case.facts.dashboards.insert("http://127.0.0.1:1/".into(), Ok(302));
    assert_eq!(blocking(&case.checklist()), Vec::<&str>::new());
    let mut case = small("[[window]]\nstart_time = \"22:00\"\nlength_minutes = 60\n");
    case.plan.process.estimate = Estimate { forward: DAY, back: HOUR, from: "assumed".into() };
    case.facts.openings = vec![opening(DAY)];
    let row = case.row("rollback-time");
    assert!(row.blocks() && row.evidence.contains("needs 25h (forward 24h, back 1h; assumed), window 25h"), "{}", row.evidence);
    case.facts.overridden.insert(Override::Window, "ops@example.com: agreed".into());
    let row = case.row("rollback-time");
    assert!(row.verdict == RowVerdict::NotApplicable && row.evidence.starts_with("overridden by ops@example.com"), "{}", row.evidence);
}

#[test]
fn an_emergency_that_somebody_signs_for_goes_without_some_rows() {
    let waived = ["tested-in-staging", "rollback-tested", "communication-plan", "window", "rollback-time", "no-freeze"];
    let emergency = |mut case: Case| {
        case.plan.process.change.as_mut().unwrap().kind = ChangeType::Emergency;
        case
    };
    for item in waived {
        let mut case = emergency(Case::complete().without(item));
        assert_eq!(blocking(&case.checklist()), Vec::<&str>::new(), "{item}");
        assert_eq!(case.row(item).verdict, RowVerdict::NotApplicable);
        assert!(case.row(item).evidence.starts_with("an emergency change goes without it"), "{}", case.row(item).evidence);
        // The word alone waives nothing: somebody signs.
        case.plan.process.approvals.clear();
        assert_eq!(blocking(&case.checklist()), [item]);
    }
    for item in ["artifacts-verified", "no-conflicts", "rollback-target", "capacity"] {
        assert_eq!(blocking(&emergency(Case::complete().without(item)).checklist()), [item]);
    }
}

#[test]
fn a_standard_change_that_waives_signatures_follows_a_known_template() {
    let text = PLAN.replace("\"normal\"", "\"standard\"");
    let spec = Spec::parse(&text, "plan.toml").unwrap();
    // Signatures are wanted, rows are not: the word must not do away with them.
    let around = Surroundings { approvals: vec![Role::Operations], ..Surroundings::default() };
    let mut case = Case { plan: resolve(&text, &around), given: Given::default(), ..Case::complete() };
    assert_eq!(blocking(&case.checklist()), ["change-template"]);
    assert!(case.row("change-template").evidence.contains(&template_digest(&spec).to_string()), "it says what to list");
    case.facts.rules.standard_changes.insert(template_digest(&spec));
    assert_eq!(blocking(&case.checklist()), Vec::<&str>::new());

    let other = |from: &str, to: &str| template_digest(&Spec::parse(&text.replace(from, to), "plan.toml").unwrap());
    for (from, to) in [
        ("shop@2", "shop@3"),
        ("CR-1", "CR-2"),
        ("\"Shop 2\"", "\"Shop 3\""),
        ("environment", "start_by = \"2026-11-24T23:00:00Z\"\nenvironment"),
    ] {
        assert_eq!(other(from, to), template_digest(&spec), "{from} belongs to one change");
    }
    for (from, to) in
        [("shop@2", "blog@2"), ("\"5m\"", "\"6m\""), ("hosts = { api = \"\" }", "hosts = { api = \"zone=a\" }"), ("\"medium\"", "\"low\"")]
    {
        assert_ne!(other(from, to), template_digest(&spec), "{from} belongs to the template");
    }
}

#[test]
fn ages_are_held_to_the_millisecond() {
    let mut case = Case::complete();
    let max = case.facts.rules.drill_max_age;
    for (age, holds) in [(max, true), (Millis(max.0 + 1), false)] {
        case.facts.drill.as_mut().unwrap().at = NOW - age;
        assert_eq!(case.row("rollback-tested").verdict == RowVerdict::Pass, holds);
    }
    let max = case.facts.rules.route_test_max_age;
    for (age, holds) in [(max, true), (Millis(max.0 + 1), false)] {
        case.facts.routes.get_mut("team").unwrap().at = NOW - age;
        assert_eq!(case.row("communication-plan").verdict == RowVerdict::Pass, holds);
    }
    case.facts.routes.insert("team".into(), RouteTest { at: NOW, ok: false, detail: "HTTP 410".into() });
    assert!(case.row("communication-plan").evidence.contains("team refused its test: HTTP 410"));
    case.plan.process.notify.retain(|n| n.to != "on-call");
    assert!(case.row("communication-plan").evidence.contains("nobody is told of: issue"));
}

#[test]
fn a_runbook_that_did_not_change_waits_for_a_person() {
    let mut case = Case::complete().without("deployment-runbook");
    let row = case.row("deployment-runbook");
    assert_eq!(row.verdict, RowVerdict::Open, "a person can mend it: the start waits");
    assert!(row.evidence.contains("--item runbook-still-valid"), "{}", row.evidence);
    case.given.attested.insert("runbook-still-valid".into(), Attestation { by: "ada".into(), note: "read".into(), at: NOW });
    assert_eq!(case.row("deployment-runbook").verdict, RowVerdict::Pass);
    for text in ["release-notes", "deployment-runbook", "rollback-runbook"] {
        let mut case = Case::complete();
        let manifest = &case.manifest;
        let file = match text {
            "release-notes" => &manifest.notes,
            "deployment-runbook" => &manifest.runbook.deploy,
            _ => &manifest.runbook.rollback,
        };
        let digest = file.as_ref().unwrap().digest;
        case.facts.depot.as_mut().unwrap().blank.insert(digest);
        assert_eq!(blocking(&case.checklist()), [text], "only white space in it");
    }
}

#[test]
fn capacity_counts_the_hosts_that_stay() {
    let mut case = Case::complete();
    case.plan.components[0].window = 1;
    let load = |case: &mut Case, permille: u32| {
        for host in case.facts.hosts.values_mut() {
            host.machine.as_mut().unwrap().cpu_permille = permille;
        }
    };
    // Four hosts at 60 %, one out: three at 80 %.
    load(&mut case, 600);
    assert_eq!(case.row("capacity").verdict, RowVerdict::Pass);
    load(&mut case, 601);
    let row = case.row("capacity");
    assert!(row.blocks() && row.evidence.contains("api: 1 of 4 out, CPU of the others 81 %"), "{}", row.evidence);
    case.plan.process.demanded.remove("capacity");
    assert_eq!(case.row("capacity").verdict, RowVerdict::Pass, "by itself the program only looks at disks");
    case.facts.hosts.get_mut(&host(2)).unwrap().machine.as_mut().unwrap().disk_free_bytes = 2_999;
    assert!(case.row("capacity").evidence.contains("h2 has 2.9 KiB free, 2.9 KiB are wanted"), "{}", case.row("capacity").evidence);
    // Who never said a number is not full.
    case.facts.hosts.remove(&host(2));
    assert_eq!(case.row("capacity").verdict, RowVerdict::Pass);
    case.plan.process.demanded.insert("capacity".into());
    load(&mut case, 100);
    assert!(case.row("capacity").blocks(), "but the guide wants it known");
}

#[test]
fn an_offline_host_is_the_plans_own_business() {
    let mut case = Case::complete().without("hosts-in-contact");
    for (policy, blocks) in [(OnUnreachable::Fail, true), (OnUnreachable::Wait, false), (OnUnreachable::Skip, false)] {
        case.plan.limits.on_unreachable = policy;
        let row = case.row("hosts-in-contact");
        assert_eq!(row.blocks(), blocks);
        assert!(row.evidence.contains("not in contact: h1"), "{}", row.evidence);
    }
    case.plan.process.demanded.remove("hosts-in-contact");
    case.plan.limits.on_unreachable = OnUnreachable::Fail;
    let row = case.row("hosts-in-contact");
    assert!(row.verdict == RowVerdict::Fail && !row.blocks(), "shown as it is");
}

#[test]
fn a_first_install_has_nothing_to_go_back_to() {
    let mut case = Case::complete();
    case.facts.hosts.values_mut().for_each(|h| h.components.clear());
    let row = case.row("rollback-target");
    assert!(row.verdict == RowVerdict::Pass && row.evidence.contains("4 install for the first time"), "{}", row.evidence);
    let mut case = Case::complete().without("rollback-target");
    case.plan.limits.accept_drift = true;
    assert_eq!(case.row("rollback-target").verdict, RowVerdict::Pass);
}

#[test]
fn a_declared_rollback_time_is_held_against_the_drill() {
    let mut case = Case::complete();
    for (seconds, holds) in [(300, true), (301, false)] {
        case.facts.drill.as_mut().unwrap().back = Millis::from_secs(seconds);
        assert_eq!(case.row("downtime-declared").verdict == RowVerdict::Pass, holds);
    }
    assert!(case.row("downtime-declared").evidence.contains("rollback_time = 5m is declared, drill d1 took 5m1s"));
}

#[test]
fn configurations_are_compared_name_by_name() {
    let var = |name: &str, value: &str| VarDigest { name: name.into(), digest: Digest::of(value.as_bytes()) };
    let (a, b) = (vec![var("port", "1"), var("id", "x")], vec![var("port", "1"), var("id", "y")]);
    let names = |here: &[&[VarDigest]], there: &[&[VarDigest]]| compare(here.iter().copied(), there.iter().copied());
    assert_eq!(names(&[&a], &[&a]), BTreeSet::new());
    assert_eq!(names(&[&a], &[&b]), BTreeSet::from(["id".into()]));
    assert_eq!(names(&[&a, &b], &[&b, &a]), BTreeSet::new(), "the same values, on other hosts");
    assert_eq!(names(&[&a], &[&a[..1]]), BTreeSet::from(["id".into()]), "a name that is missing");
    assert_eq!(names(&[&a, &a[..1]], &[&a]), BTreeSet::from(["id".into()]), "missing on one host");
    let mut case = Case::complete();
    case.facts.config.as_mut().unwrap().silent.insert(host(3));
    assert!(case.row("staging-mirrors-production").evidence.contains("h3"));
    case.facts.config = None;
    assert!(case.row("staging-mirrors-production").blocks());
    case.facts.rules.staging = None;
    assert_eq!(case.row("staging-mirrors-production").verdict, RowVerdict::NotApplicable);
}

#[test]
fn an_estimate_adds_bakes_and_steps() {
    let plan = small("bake = \"10m\"\n").plan;
    let (forward, back) = steps(&plan);
    assert_eq!((forward, back), (4, 2), "one host at a time, two on the way back");
    let assumed = estimate(&plan, None);
    assert!(assumed.from.starts_with("assumed: 30s"), "{}", assumed.from);
    assert_eq!(assumed.back, Millis::from_secs(60));
    let pace = Pace { forward: Millis::from_secs(7), back: Millis::from_secs(3), from: "measured by drill d1".into() };
    let measured = estimate(&plan, Some(&pace));
    assert_eq!(measured.forward, Millis(assumed.forward.0 - 4 * 30_000 + 4 * 7_000));
    assert_eq!((measured.back, measured.from.as_str()), (Millis::from_secs(6), "measured by drill d1"));

    let mut canary = Case::complete().plan;
    canary.process.estimate = estimate(&canary, None);
    // 30 min, 1 h, 2 h of the guide; four hosts, one each step; the sealed baseline.
    let bakes = Millis::from_secs(60 * 210);
    let baseline = canary.gating.analysis.baseline;
    assert_eq!(canary.process.estimate.forward, Millis(bakes.0 + baseline.0 + 30_000 * steps(&canary).0));
    let (all, stage) = (needs(&canary, Fit::All), needs(&canary, Fit::Stage));
    assert!(stage < all && stage >= Millis::from_secs(7_200), "{stage} {all}");
}

#[test]
fn durations_are_spelled_for_people() {
    for (ms, text) in [(0, "0s"), (1, "1s"), (45_000, "45s"), (600_000, "10m"), (15_000_000, "4h10m"), (90_061_000, "25h1m1s")] {
        assert_eq!(spell(Millis(ms)), text);
    }
}
