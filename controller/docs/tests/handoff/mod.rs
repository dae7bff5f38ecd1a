//! What keeps a rollout from being closed, and what signatures cover.

use tidegate_docs::{handoff_digest, open_items};
use tidegate_rollout::Record;
use tidegate_rollout::process::SignRole;
use tidegate_rollout::record::RolloutState;

use crate::world::{Journal, complete, rolled_back, signed};

fn open(journal: &Journal) -> Vec<String> {
    open_items(&journal.input()).into_iter().map(|o| o.item).collect()
}

/// Everything but the word `close`.
fn ready() -> Journal {
    let mut journal = complete();
    journal.without(|r| matches!(r, Record::Closed { .. }));
    journal
}

#[test]
fn a_whole_rollout_can_be_closed() {
    assert_eq!(open(&ready()), Vec::<String>::new());
    assert_eq!(open(&complete()), Vec::<String>::new());
}

#[test]
fn each_missing_part_is_named_with_a_command() {
    type Cut = fn(&Record) -> bool;
    let cases: [(&str, Cut); 6] = [
        ("rollout-ended", |r| matches!(r, Record::State { to: RolloutState::Completed, .. })),
        ("on-call-briefed", |r| matches!(r, Record::Attested { item, .. } if item == "on-call-briefed")),
        ("alerts-reviewed", |r| matches!(r, Record::Attested { item, .. } if item == "alerts-reviewed")),
        ("runbook-tested", |r| matches!(r, Record::Attested { item, .. } if item == "runbook-tested")),
        ("sign-off-ops-lead", |r| matches!(r, Record::SignedOff { role: SignRole::OpsLead, .. })),
        ("review", |r| matches!(r, Record::Reviewed { .. })),
    ];
    for (item, cut) in cases {
        let mut journal = ready();
        journal.without(cut);
        let open = open_items(&journal.input());
        let found = open.iter().find(|o| o.item == item).unwrap_or_else(|| panic!("{item} is not in {open:?}"));
        assert!(found.what.contains("tidegate rollout "), "{found:?}");
        assert!(found.what.contains(journal.id.as_str()), "{found:?}");
    }
}

#[test]
fn known_issues_and_participants_are_wanted() {
    let mut journal = ready();
    journal.release.known_issues = None;
    assert!(open(&journal).contains(&"known-issues".to_string()));
    journal.say(Record::Attested { item: "known-issues".into(), by: "dana".into(), note: "none".into() });
    assert!(!open(&journal).contains(&"known-issues".to_string()));
    let mut journal = ready();
    journal.change(|r| {
        if let Record::Reviewed { review, .. } = r {
            review.participants = vec![" ".into()];
        }
    });
    assert_eq!(open(&journal), ["review-participants"]);
}

#[test]
fn the_second_signature_covers_what_the_first_did() {
    let journal = complete();
    let digests: Vec<_> = journal
        .entries
        .iter()
        .filter_map(|e| match &e.record {
            Record::SignedOff { document, .. } => Some(*document),
            _ => None,
        })
        .collect();
    assert_eq!(digests.len(), 2);
    assert_eq!(digests[0], digests[1]);
    assert_eq!(handoff_digest(&journal.input()).unwrap(), digests[0]);
}

#[test]
fn an_addition_voids_signatures_and_a_new_one_mends_it() {
    let mut journal = ready();
    journal.say(Record::Item {
        item: 2,
        what: "Watch the queue".into(),
        owner: "ori".into(),
        status: "open".into(),
        eta: "tomorrow".into(),
        by: "ori@example.com".into(),
    });
    assert_eq!(open(&journal), ["sign-off-lead", "sign-off-ops-lead"]);
    let text = journal.paper("5-operations-handoff.md");
    assert_eq!(text.matches("void: it covers an older handoff").count(), 2, "{text}");
    journal.sign(SignRole::Lead, 11);
    journal.sign(SignRole::OpsLead, 12);
    assert_eq!(open(&journal), Vec::<String>::new());
    journal.say(Record::Attested { item: "on-call-briefed".into(), by: "ori".into(), note: "again, with the night shift".into() });
    assert_eq!(open(&journal), ["sign-off-lead", "sign-off-ops-lead"]);
}

#[test]
fn one_key_is_one_person() {
    let mut journal = ready();
    journal.without(|r| matches!(r, Record::SignedOff { .. }));
    journal.sign(SignRole::Lead, 7);
    journal.sign(SignRole::OpsLead, 7);
    assert_eq!(open(&journal), ["sign-off-ops-lead"]);
    assert!(journal.paper("5-operations-handoff.md").contains("by the same key as the other"));
    let document = handoff_digest(&journal.input()).unwrap();
    journal.say(Record::SignedOff { role: SignRole::OpsLead, signed: signed("ops", 8), document });
    assert_eq!(open(&journal), Vec::<String>::new());
}

#[test]
fn unresolved_issues_keep_it_open_until_a_person_resolves_them() {
    let mut journal = rolled_back();
    journal.handed_over();
    assert_eq!(open(&journal), ["issue-1", "issue-2"]);
    for (issue, text) in [(1, "full disk, cleaned up"), (2, "a bug in login, SHOP-77")] {
        journal.say(Record::Noted { by: "dana".into(), text: text.into(), resolves: Some(issue) });
    }
    // They were handed over as outstanding, and now they are not.
    assert_eq!(open(&journal), ["sign-off-lead", "sign-off-ops-lead"]);
    journal.sign(SignRole::Lead, 1);
    journal.sign(SignRole::OpsLead, 2);
    assert_eq!(open(&journal), Vec::<String>::new());
    let log = journal.paper("2-deployment-execution-log.md");
    assert!(log.contains("✓ full disk, cleaned up (dana); reverted by itself to shop@2.0.0"), "{log}");
}
