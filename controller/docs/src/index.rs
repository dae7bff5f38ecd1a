//! The deliverables checklist: which documents exist, which are signed, what is
//! open.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_rollout::process::{RowKind, RowVerdict, SignRole};

use crate::DocsError;
use crate::model::{Cell, Check, Document, Mark, Sheet};
use crate::open::{SignState, sign_state};
use crate::story::{PAPERS, Story, duration};
use crate::text::moment_utc;

#[derive(Clone, Debug, Serialize)]
struct Data {
    deliverables: Vec<Deliverable>,
    open: Vec<(String, String)>,
    closed_by: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Deliverable {
    document: &'static str,
    title: &'static str,
    complete: bool,
    note: String,
}

pub(crate) fn document(story: &Story<'_>) -> Result<Document, DocsError> {
    let facts = &story.facts;
    let open = crate::open::of(story);
    let rows = facts.given.checklist(facts.plan, facts.began.unwrap_or(facts.last));
    let unsigned = rows.iter().filter(|r| r.kind == RowKind::Approval && r.verdict == RowVerdict::Open).count();
    let blocked = rows.iter().filter(|r| r.blocks()).count();
    let signed = [SignRole::Lead, SignRole::OpsLead].into_iter().filter(|r| sign_state(story, *r) == SignState::Good).count();
    let unresolved = story.issues.iter().filter(|i| i.is_open()).count();
    let checklist = match (blocked, unsigned) {
        (0, 0) => format!("complete, {} signed", crate::text::count(facts.given.approvals.len(), "approval")),
        (rows, signatures) => format!("{rows} rows open, of them {signatures} signatures"),
    };
    let ended = facts.state.is_terminal();
    let reviewed = facts.review.as_ref().is_some_and(|(r, ..)| r.participants.iter().any(|p| !p.trim().is_empty()));
    let notes = [
        (blocked == 0, checklist),
        (ended && unresolved == 0, if ended { format!("{unresolved} issues unresolved") } else { "the rollout has not ended".into() }),
        (facts.targets.iter().any(|t| !t.smoke.is_empty()), "results of every host, also as JUnit XML".into()),
        (!facts.observed.is_empty(), "values also as CSV".into()),
        (signed == 2, format!("{signed} of 2 signatures")),
        (reviewed, if reviewed { "the review was held" } else { "nobody wrote a review yet" }.into()),
    ];
    let deliverables: Vec<Deliverable> = PAPERS
        .iter()
        .skip(1)
        .zip(notes)
        .map(|((document, title), (complete, note))| Deliverable { document, title, complete, note })
        .collect();
    let data = Data {
        deliverables,
        open: open.iter().map(|o| (o.item.clone(), o.what.clone())).collect(),
        closed_by: facts.given.closed.as_ref().map(|(_, by)| by.clone()),
    };
    let mut sheet = Sheet::default();
    sheet.pairs(alloc::vec![
        ("Release", Cell::new(format!("{}", facts.plan.release.id))),
        ("Environment", facts.plan.environment.as_deref().map_or_else(Cell::none, Cell::new)),
        ("Deployment Lead", facts.plan.lead.as_deref().map_or_else(Cell::none, Cell::new)),
        ("Start", Cell::new(moment_utc(facts.origin()))),
        ("End", facts.ended.map_or_else(Cell::none, |t| Cell::new(moment_utc(t)))),
        ("Duration", duration(facts).map_or_else(Cell::none, Cell::new)),
        ("Downtime", crate::doc6::downtime_cell(story)),
        ("Why it is where it is", Cell::new(facts.reason.as_str())),
    ]);
    sheet.h2("Deliverables Checklist");
    let row = |(at, d): (usize, &Deliverable)| Check {
        item: d.document.into(),
        title: if at == 0 { format!("{} (signed)", d.title).into() } else { d.title.into() },
        mark: if d.complete { Mark::Good } else { Mark::Open },
        evidence: d.note.as_str().into(),
        ..Check::default()
    };
    sheet.checks(data.deliverables.iter().enumerate().map(row).collect());
    sheet.h2("Open");
    if open.is_empty() {
        let closed = facts.given.closed.as_ref().map(|(at, by)| format!("Nothing: closed by {by}, {}.", moment_utc(*at)));
        sheet.text(closed.unwrap_or_else(|| format!("Nothing: {}", story.command("close", "").trim_end())));
    }
    sheet.checks(crate::open::checks(&open));
    sheet.h2("How to Check These Papers");
    sheet.text("Every document ends with the journal's head: sequence number and hash of the last record that it knows. The hash covers all records before it, and agents remember the last head they saw, so that an edited, removed, reordered or cut-off journal shows.");
    sheet.code(
        "Checks chain and heads; then makes the same bytes again",
        &format!("tidegate audit verify\ntidegate docs {} --out DIR", facts.input.id),
    );
    story.document(0, sheet, &data)
}
