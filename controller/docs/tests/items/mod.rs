//! Every line whose evidence can be missing: take the evidence away, find its name.

use tidegate_docs::DOCUMENT_ITEMS;
use tidegate_protocol::Release;
use tidegate_rollout::Record;
use tidegate_rollout::record::{RolloutState, TargetState};

use crate::world::{Journal, PLAN, complete, complete_of, release, rolled_back};

/// The complete rollout, of a plan without this part.
fn plan(cut: &str) -> Journal {
    assert!(PLAN.contains(cut), "{cut}");
    complete_of(Journal::with(&PLAN.replace(cut, ""), release("2.1.0")))
}

/// The complete rollout, with a change of the manifest.
fn manifest(change: impl Fn(&mut Release)) -> Journal {
    let mut release = release("2.1.0");
    change(&mut release);
    complete_of(Journal::with(PLAN, release))
}

fn without(what: impl Fn(&Record) -> bool) -> Journal {
    let mut journal = complete();
    journal.without(what);
    journal
}

fn changed(change: impl Fn(&mut Record)) -> Journal {
    let mut journal = complete();
    journal.change(change);
    journal
}

/// Nothing was ever measured of these.
fn unmeasured(metrics: &[&str]) -> Journal {
    changed(|r| {
        if let Record::Baseline { values } | Record::Observed { values, .. } = r {
            values.retain(|o| !metrics.contains(&o.metric.as_str()));
        }
    })
}

/// Only this trigger.
fn only_trigger(when: &str) -> Journal {
    let action = if when.starts_with("declared") { "emergency" } else { "rollback" };
    complete_of(Journal::with(&format!("{PLAN}[[rollback]]\nwhen = \"{when}\"\naction = \"{action}\"\n"), release("2.1.0")))
}

fn review(change: impl Fn(&mut tidegate_rollout::record::Review)) -> Journal {
    changed(|r| {
        if let Record::Reviewed { review, .. } = r {
            change(review);
        }
    })
}

fn smoke(keep: impl Fn(&str) -> bool) -> Journal {
    changed(|r| {
        if let Record::Host { seen: Some(seen), .. } = r {
            seen.smoke.retain(|s| keep(&s.id));
        }
    })
}

/// The rollout without the evidence of one item.
fn missing(item: &str, document: &str) -> Journal {
    match item {
        "deployment-lead" | "handoff-from" => plan("lead = \"dana@example.com\"\n"),
        "start-deployment" => {
            let mut journal = complete();
            let began = journal.entries.iter().position(|e| matches!(e.record, Record::Began)).unwrap();
            journal.entries.truncate(began);
            journal.state(RolloutState::Refused, "an approval expired");
            journal
        }
        "tasks" => manifest(|r| r.tasks.clear()),
        "deploy-components" => without(|r| matches!(r, Record::Ordered { .. })),
        "smoke-tests" | "smoke-date" => smoke(|_| false),
        "traffic-switch" => without(|r| matches!(r, Record::Host { to: TargetState::Confirmed, .. })),
        "deployment-complete" | "metrics-duration" => without(|r| matches!(r, Record::State { to: RolloutState::Completed, .. })),
        "issue-resolution" => rolled_back(),
        "artifact-checksums" => changed(|r| {
            if let Record::Host { seen, .. } = r {
                *seen = None;
            }
        }),
        "notifications" => without(|r| matches!(r, Record::Notified { .. })),
        "environment" => plan("environment = \"production\"\n"),
        "smoke-critical" => smoke(|id| id.starts_with("INT")),
        "smoke-integration" => smoke(|id| id.starts_with("SMK")),
        "performance-baseline" => plan("[[perf]]\nname = \"API latency (p99)\"\nmetric = \"latency_p99\"\nmax = \"500ms\"\n"),
        "observation-period" => without(|r| matches!(r, Record::Gate { .. } | Record::Observed { .. })),
        "key-metrics-pre" => without(|r| matches!(r, Record::Baseline { .. })),
        "key-metrics-post" => without(|r| matches!(r, Record::Observed { .. })),
        "metric-error-rate" => unmeasured(&["error_rate"]),
        "metric-latency-p50" => unmeasured(&["latency_p50"]),
        "metric-latency-p99" => unmeasured(&["latency_p99"]),
        "metric-cpu" => unmeasured(&["host_cpu"]),
        "metric-memory" => unmeasured(&["host_memory"]),
        "alerts" => {
            let source = "[metrics.alerts]\nsource = \"alertmanager\"\nurl = \"http://alerts.example:9093\"\nmatchers = ['job=\"shop\"']\n";
            assert!(PLAN.contains(source) && PLAN.contains(", \"alerts == 0\""));
            complete_of(Journal::with(&PLAN.replace(source, "").replace(", \"alerts == 0\"", ""), release("2.1.0")))
        }
        "no-unexpected-errors" => unmeasured(&["critical_errors", "new_errors"]),
        "no-security-warnings" => unmeasured(&["security_warnings"]),
        "normal-traffic" => unmeasured(&["request_rate"]),
        "rollback-error-rate" => only_trigger("critical_errors > 0"),
        name if name.starts_with("rollback-") && name != "rollback-documented" => only_trigger("error_rate > 1%"),
        "downtime" => without(|r| matches!(r, Record::Probed { component, .. } if component.as_str() == "web")),
        "handoff-date" | "handoff-to" | "sign-off-lead" | "sign-off-ops-lead" => without(|r| matches!(r, Record::SignedOff { .. })),
        "release-notes" => manifest(|r| r.notes = None),
        "known-issues" => manifest(|r| r.known_issues = None),
        "dashboard-links" => plan("dashboards = [\"https://grafana.example.com/d/shop\"]\n"),
        "runbook-updates" => manifest(|r| r.runbook.deploy = None),
        "escalation-contacts" => {
            plan("[[contact]]\nrole = \"escalation\"\nname = \"Sam Ito\"\nphone = \"+49 30 9999\"\navailable = \"always\"\n")
        }
        "on-call-briefed" | "alerts-reviewed" | "runbook-tested" => without(|r| matches!(r, Record::Attested { item: i, .. } if i == item)),
        "rollback-documented" => {
            let mut journal = manifest(|r| r.runbook.rollback = None);
            journal.change(|r| {
                if let Record::Readiness { rows } = r {
                    rows.retain(|row| row.item != "rollback-tested");
                }
            });
            journal
        }
        "outstanding-owner" => changed(|r| {
            if let Record::Item { owner, .. } = r {
                owner.clear();
            }
        }),
        "review" => without(|r| matches!(r, Record::Reviewed { .. })),
        "review-participants" => review(|r| r.participants.clear()),
        "review-went-well" => review(|r| r.went_well.clear()),
        "review-could-improve" => review(|r| r.could_improve.clear()),
        "review-actions" => review(|r| r.action[0].owner.clear()),
        "metrics-rollback-time" => {
            let mut journal = rolled_back();
            journal.without(|r| matches!(r, Record::State { to: RolloutState::RolledBack, .. }));
            journal
        }
        other => panic!("{other} of {document}: nothing here takes its evidence away"),
    }
}

/// As open: a ticked box names its item too.
fn names(text: &str, item: &str) -> bool {
    let word = |line: &str| {
        line.match_indices(item).any(|(at, _)| {
            let around = [line[..at].chars().next_back(), line[at + item.len()..].chars().next()];
            around.iter().all(|c| c.is_none_or(|c| !c.is_alphanumeric() && c != '-'))
        })
    };
    text.lines().any(|line| (line.contains("open") || line.contains('○')) && word(line))
}

#[test]
fn every_missing_line_is_named_in_its_document() {
    let whole = complete();
    for (item, document, line) in DOCUMENT_ITEMS {
        let file = format!("{document}.md");
        assert!(!names(&whole.paper(&file), item), "{item} is open in {document} though nothing is missing");
        let text = missing(item, document).paper(&file);
        assert!(names(&text, item), "{item} ({line}) is not named in {document}:\n{text}");
        // What is the guide's own word for it stands there too.
        let heading = line.split(':').next().unwrap();
        let known = ["Communication", "Lead"].contains(&heading) || text.contains(heading);
        assert!(known, "{document} has no {heading:?}");
    }
}

#[test]
fn items_are_names_that_can_be_attested() {
    for (item, document, _) in DOCUMENT_ITEMS {
        assert!(tidegate_rollout::process::is_item_name(item), "{item}");
        assert_eq!(DOCUMENT_ITEMS.iter().filter(|(i, d, _)| i == item && d == document).count(), 1, "{item}");
    }
}

#[test]
fn a_person_can_tick_what_nobody_measured_but_not_what_failed() {
    let attest = |journal: &mut Journal| {
        journal.say(Record::Attested { item: "no-security-warnings".into(), by: "eve".into(), note: "looked at the SIEM".into() });
    };
    let mut journal = unmeasured(&["security_warnings"]);
    attest(&mut journal);
    let text = journal.paper("4-monitoring-verification.md");
    assert!(text.contains("- [x] No security warnings `no-security-warnings`: looked at the SIEM (eve"), "{text}");
    let mut journal = changed(|r| {
        if let Record::Judged { judgements, .. } = r {
            for judgement in judgements.iter_mut().filter(|j| j.metric == "security_warnings") {
                judgement.verdict = tidegate_rollout::gate::Verdict::Fail;
            }
        }
    });
    attest(&mut journal);
    let text = journal.paper("4-monitoring-verification.md");
    assert!(text.contains("- [ ] No security warnings — **failed**"), "{text}");
}
