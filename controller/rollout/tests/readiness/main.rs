//! The checklist: the guide's table is complete, each of its items blocks alone
//! when its evidence is taken away, and what the rows say.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

mod case;
mod lines;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use case::Case;
use lines::LINES;
use tidegate_rollout::process::{ATTEST_ROWS, HANDOFF_ROWS, Role, Row, RowKind, RowVerdict, approval_item};
use tidegate_rollout::readiness::{automatic, refusals};

const GUIDE: &str = include_str!("../../../docs/GUIDE.md");
/// Rows of the table that are Tidegate's own.
const OWN: &str = "Tidegate";

struct Entry<'a> {
    section: &'a str,
    line: &'a str,
    by: &'a str,
    /// A fixed item name, or none where it is a heading.
    item: Option<&'a str>,
    kind: &'a str,
    shown: &'a str,
}

fn entries() -> Vec<Entry<'static>> {
    let rows = GUIDE.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| Section |"));
    let entry = |line: &'static str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [section, line, by, item, kind, shown] = cells.as_slice() else { panic!("not six cells: {line}") };
        let item = item.strip_prefix('`').and_then(|i| i.strip_suffix('`'));
        Entry { section, line, by, item, kind, shown }
    };
    rows.map(entry).collect()
}

fn blocking(rows: &[Row]) -> Vec<&str> {
    rows.iter().filter(|row| row.blocks()).map(|row| row.item.as_str()).collect()
}

#[test]
fn every_line_of_the_guide_is_in_the_table_and_nothing_else() {
    let entries = entries();
    let known: BTreeSet<(&str, &str)> = LINES.iter().copied().collect();
    let table: BTreeSet<(&str, &str)> = entries.iter().filter(|e| e.section != OWN).map(|e| (e.section, e.line)).collect();
    assert_eq!(known.difference(&table).collect::<Vec<_>>(), Vec::<&(&str, &str)>::new(), "lines of the guide without a row");
    assert_eq!(table.difference(&known).collect::<Vec<_>>(), Vec::<&(&str, &str)>::new(), "rows of no line of the guide");
    for entry in &entries {
        assert!(!entry.by.is_empty() && !entry.line.is_empty(), "{}", entry.line);
        assert!(entry.shown.split(", ").all(|n| ["1", "2", "3", "4", "5", "6"].contains(&n)), "{}: {}", entry.line, entry.shown);
        let names_item = matches!(entry.kind, "automatic" | "attest" | "approval");
        assert!(names_item || entry.kind == "recorded", "{}: {}", entry.line, entry.kind);
        assert_eq!(names_item, entry.item.is_some(), "{}: an item is in code, a heading is not", entry.line);
    }
}

#[test]
fn every_item_is_in_the_table_with_its_kind() {
    let mut kinds: BTreeMap<String, &str> = automatic().map(|(item, ..)| (item.to_owned(), "automatic")).collect();
    kinds.extend(ATTEST_ROWS.iter().map(|(item, ..)| ((*item).to_owned(), "attest")));
    kinds.extend(HANDOFF_ROWS.iter().map(|(item, _)| ((*item).to_owned(), "attest")));
    kinds.extend(Role::ALL.iter().map(|role| (approval_item(*role), "approval")));
    kinds.insert("second-approver".into(), "approval");
    for stage in &Case::complete().plan.gating.stages {
        kinds.extend(stage.attest.iter().map(|item| (item.clone(), "attest")));
    }
    let mut unseen: BTreeSet<&str> = kinds.keys().map(String::as_str).collect();
    for entry in entries() {
        let Some(item) = entry.item else { continue };
        assert_eq!(kinds.get(item), Some(&entry.kind), "{item}");
        unseen.remove(item);
    }
    assert_eq!(unseen, BTreeSet::new(), "items without a row in the table");
}

#[test]
fn a_complete_checklist_blocks_nothing() {
    let rows = Case::complete().checklist();
    assert_eq!(blocking(&rows), Vec::<&str>::new(), "{:#?}", refusals(&rows));
    for row in &rows {
        assert!(row.demanded && !row.evidence.is_empty(), "{row:?}");
        let applies = !["change-template"].contains(&row.item.as_str());
        assert_eq!(row.verdict, if applies { RowVerdict::Pass } else { RowVerdict::NotApplicable }, "{row:?}");
    }
}

#[test]
fn each_row_blocks_alone_when_its_evidence_is_gone() {
    let elsewhere: BTreeSet<&str> = HANDOFF_ROWS.iter().map(|(item, _)| *item).chain(["no-customer-complaints"]).collect();
    let items: BTreeSet<&str> = entries().iter().filter_map(|e| e.item).filter(|item| !elsewhere.contains(item)).collect();
    assert!(items.len() > 30);
    for item in items {
        let rows = Case::complete().without(item).checklist();
        assert_eq!(blocking(&rows), [item], "without the evidence of {item}: {:#?}", refusals(&rows));
        let said = refusals(&rows);
        assert!(said.len() == 1 && said[0].starts_with(&format!("{item}: ")), "{said:?}");
        // What is missing is said, not only that something is.
        let row = rows.iter().find(|row| row.item == item).unwrap();
        let says_how = row.evidence.contains([' ']) && row.evidence.len() > 20;
        assert!(says_how, "{item}: {}", row.evidence);
        let says_what_to_run = item == "second-approver" || row.evidence.contains("tidegate rollout");
        assert!(row.kind == RowKind::Automatic || says_what_to_run, "{item}: {}", row.evidence);
    }
}
