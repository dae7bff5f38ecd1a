//! The documents against rollouts written by hand.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]
#![allow(dead_code, unreachable_pub, reason = "not every test uses all of the world, which others may use too")]

mod formats;
mod handoff;
mod issues;
mod items;
mod world;

use tidegate_docs::{DocsError, Entry, Input, papers};
use tidegate_rollout::Record;
use tidegate_rollout::record::RolloutState;

use world::{Journal, complete, host, release, rolled_back};

#[test]
fn all_papers_are_there_by_name() {
    let names: Vec<String> = complete().papers().into_iter().map(|p| p.name).collect();
    let of = |slug: &str| ["html", "json", "md"].map(|e| format!("{slug}.{e}"));
    let slugs = [
        "1-pre-deployment-checklist",
        "2-deployment-execution-log",
        "3-smoke-test-results",
        "4-monitoring-verification",
        "5-operations-handoff",
        "6-post-deployment-review",
        "index",
    ];
    let mut wanted: Vec<String> = slugs.iter().flat_map(|s| of(s)).collect();
    wanted.extend(["metrics.csv".to_string(), "smoke.junit.xml".to_string()]);
    assert_eq!(names, wanted);
}

#[test]
fn what_people_read() {
    for (kind, journal) in [("complete", complete()), ("rolled-back", rolled_back())] {
        for paper in journal.papers().into_iter().filter(|p| p.name.ends_with(".md")) {
            let name = format!("{kind}-{}", paper.name.trim_end_matches(".md"));
            insta::assert_snapshot!(name, paper.text);
        }
    }
}

#[test]
fn the_same_records_make_the_same_bytes() {
    assert_eq!(complete().papers(), complete().papers());
    assert_eq!(rolled_back().papers(), rolled_back().papers());
}

/// Without the journal's head, which names the records themselves.
fn bodies(journal: &Journal) -> Vec<(String, String)> {
    let cut = |p: tidegate_docs::Paper| match p.name.rsplit_once('.') {
        Some((_, "md")) => Some((p.name.clone(), p.text.split("\n---\n").next().unwrap().to_string())),
        Some((_, "csv" | "xml")) => Some((p.name, p.text)),
        _ => None,
    };
    journal.papers().into_iter().filter_map(cut).collect()
}

#[test]
fn a_controller_that_was_away_and_deliveries_tried_again_change_nothing() {
    let calm = rolled_back();
    let mut disturbed = rolled_back();
    let at = |j: &Journal, of: fn(&Record) -> bool| j.entries.iter().position(|e| of(&e.record)).unwrap();
    let mut put = |at: usize, record: Record| {
        let (now, hash) = (disturbed.entries[at].at, disturbed.entries[at].hash);
        disturbed.entries.insert(at, Entry { seq: 0, at: now, hash, record });
    };
    let told = Record::Notified { key: "started".into(), route: "team".into(), ok: true, detail: String::new() };
    let end = calm.entries.len();
    // From the back, so that places stay.
    put(end - 3, told.clone());
    put(end - 3, Record::Returned);
    let swap = at(&calm, |r| matches!(r, Record::Ordered { .. }));
    put(swap + 3, Record::Returned);
    put(swap + 1, told);
    let outage = at(&calm, |r| matches!(r, Record::Probed { .. }));
    let again = calm.entries[outage].record.clone();
    put(outage + 2, again);
    put(outage + 2, Record::Reminded { reason: "still waits".into() });
    assert_eq!(bodies(&calm), bodies(&disturbed));
}

#[test]
fn a_document_is_made_at_every_moment() {
    for journal in [complete(), rolled_back()] {
        for upto in (1..=journal.entries.len()).step_by(9) {
            let input = Input { id: &journal.id, entries: &journal.entries[..upto], release: &journal.release };
            let made = papers(&input).unwrap();
            assert_eq!(made.len(), 23, "{upto}");
        }
    }
}

#[test]
fn what_cannot_be_told_is_an_error() {
    let journal = complete();
    let other = release("9.9.9");
    let of = |entries, release| papers(&Input { id: &journal.id, entries, release }).unwrap_err();
    assert!(matches!(of(&[], &journal.release), DocsError::Empty { .. }));
    assert!(matches!(of(&journal.entries[1..], &journal.release), DocsError::NotStarted { .. }));
    assert!(matches!(of(&journal.entries, &other), DocsError::OtherRelease { .. }));
    let open = tidegate_docs::open_items(&Input { id: &journal.id, entries: &[], release: &journal.release });
    assert_eq!(open[0].item, "records");
}

#[test]
fn every_outcome_is_told_truthfully() {
    let upto = |state: RolloutState, what: &str| {
        let mut j = Journal::new();
        j.prepared();
        if state != RolloutState::Refused {
            j.wave(0);
        }
        j.state(state, what);
        (j.paper("2-deployment-execution-log.md"), j.paper("5-operations-handoff.md"), j.paper("index.md"))
    };
    let (log, handoff, index) = upto(RolloutState::Mixed, "not back: api-1");
    assert!(log.contains("| Mixed | ✗ | not back: api-1 |"), "{log}");
    assert!(handoff.contains("tidegate rollout rollback"), "{handoff}");
    assert!(index.contains("✗ Mixed"), "{index}");
    let (log, _, _) = upto(RolloutState::Halted, "halt by dana");
    assert!(log.contains("| Halted | ✗ | halt by dana |") && log.contains("1/5 nodes"), "{log}");
    let (log, handoff, _) = upto(RolloutState::Refused, "api-2: disk: no space");
    assert!(log.contains("| Refused | ✗ | api-2: disk: no space |"), "{log}");
    assert!(log.contains("no service was touched"), "{log}");
    assert!(handoff.contains("Nothing to take back: no service was touched."), "{handoff}");
}

#[test]
fn a_final_watch_is_not_part_of_the_duration() {
    let text = world::PLAN.replace("bake = \"1h\"", "watch = \"24h\"");
    let mut j = Journal::with(&text, release("2.1.0"));
    j.prepared();
    j.stage(0, 30);
    for wave in j.waves_of_stage(1) {
        j.wave(wave);
    }
    use tidegate_rollout::record::GateStep;
    for (stage, step) in [(1, GateStep::Opened), (1, GateStep::Passed), (2, GateStep::Opened)] {
        j.gate(stage, step, "every host of the stage is kept");
    }
    j.state(RolloutState::Watching, "observed for 24h");
    let watching = j.paper("6-post-deployment-review.md");
    assert!(j.paper("2-deployment-execution-log.md").contains("| Final watch | ○ |"));
    assert!(watching.contains("- **Deployment duration:** 36 min 49 s, then watched for 0 s"), "{watching}");
    j.after(86_400_000);
    j.state(RolloutState::Completed, "every criterion holds");
    let text = j.paper("6-post-deployment-review.md");
    assert!(text.contains("- **Deployment duration:** 36 min 49 s, then watched for 1 d"), "{text}");
}

#[test]
fn downtime_is_what_probes_saw() {
    let downtime = |outages: &[(&str, u64, Option<u64>)]| {
        let mut j = Journal::new();
        j.prepared();
        let first = j.now;
        j.wave(0);
        for (name, from, to) in outages {
            let (host, component) = (host(name), world::component(if name.starts_with("api") { "api" } else { "web" }));
            j.say(Record::Outage { host, component, from_unix_ms: first + from, to_unix_ms: to.map(|t| first + t) });
        }
        j.now = first + 100_000;
        j.state(RolloutState::Completed, "done");
        let text = j.paper("6-post-deployment-review.md");
        text.lines().find(|l| l.starts_with("- **Downtime:**")).unwrap().to_string()
    };
    assert_eq!(downtime(&[]), "- **Downtime:** ✓ 0 s, declared 0 s");
    let one = downtime(&[("api-1", 1_000, Some(4_000))]);
    assert_eq!(one, "- **Downtime:** ✓ 0 s, declared 0 s, longest of one host 3 s");
    // All three hosts of web at once, for one second; one of them to the very end.
    let all = downtime(&[("web-1", 1_000, Some(3_000)), ("web-2", 2_000, None), ("web-3", 0, Some(9_000))]);
    assert_eq!(all, "- **Downtime:** ✗ 1 s, declared 0 s, longest of one host 1 min 38 s");
}
