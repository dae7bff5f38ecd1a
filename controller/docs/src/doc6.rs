//! 6: the Post-Deployment Review: what people said, and the numbers.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_rollout::record::Review;

use crate::DocsError;
use crate::doc2::resolution;
use crate::model::{Cell, Document, Mark, Sheet};
use crate::story::{Story, duration};
use crate::text::{clock, span};
use crate::timeline;

#[derive(Clone, Debug, Serialize)]
struct Data<'a> {
    review: Option<&'a Review>,
    review_brought_by: Option<&'a str>,
    metrics: Metrics,
    timeline: Vec<&'a timeline::Row>,
}

/// Metrics Summary.
#[derive(Clone, Debug, Serialize)]
struct Metrics {
    /// Without the final watch.
    duration_ms: Option<u64>,
    watched_ms: Option<u64>,
    downtime_ms: Option<u64>,
    downtime_longest_host_ms: Option<u64>,
    downtime_declared_ms: Option<u64>,
    issues: usize,
    issues_unresolved: usize,
    rollbacks: usize,
    rollback_ms: Option<u64>,
    rollback_declared_ms: Option<u64>,
}

/// Fleet downtime, measured against declared.
pub(crate) fn downtime_cell(story: &Story<'_>) -> Cell {
    let declared = story.facts.plan.process.change.as_ref().and_then(|c| c.downtime).map(|s| s.0.0);
    let against = declared.map_or_else(|| ", none declared".to_string(), |d| format!(", declared {}", span(d)));
    match story.downtime.fleet_ms {
        None => {
            let who: Vec<&str> = story.downtime.components.iter().filter(|c| c.all_ms.is_none()).map(|c| c.component.as_str()).collect();
            Cell::open("downtime", &format!("not measured for {}: nothing that can be probed{against}", who.join(", ")))
        }
        Some(ms) => {
            let mark = match declared {
                Some(declared) if ms > declared => Mark::Bad,
                None if ms > 0 => Mark::Warn,
                _ => Mark::Good,
            };
            let worst =
                story.downtime.worst_ms.filter(|w| *w > 0).map_or_else(String::new, |w| format!(", longest of one host {}", span(w)));
            Cell::marked(mark, format!("{}{against}{worst}", span(ms)))
        }
    }
}

pub(crate) fn document(story: &Story<'_>) -> Result<Document, DocsError> {
    let facts = &story.facts;
    let change = facts.plan.process.change.as_ref();
    let review = facts.review.as_ref();
    let data = Data {
        review: review.map(|(r, ..)| r),
        review_brought_by: review.map(|(_, by, _)| by.as_str()),
        metrics: Metrics {
            duration_ms: facts.duration().map(|d| d.0),
            watched_ms: facts.watched().map(|d| d.0),
            downtime_ms: story.downtime.fleet_ms,
            downtime_longest_host_ms: story.downtime.worst_ms,
            downtime_declared_ms: change.and_then(|c| c.downtime).map(|s| s.0.0),
            issues: story.issues.len(),
            issues_unresolved: story.issues.iter().filter(|i| i.is_open()).count(),
            rollbacks: facts.backs.len(),
            rollback_ms: facts.rollback_time().map(|d| d.0),
            rollback_declared_ms: change.and_then(|c| c.rollback_time).map(|s| s.0.0),
        },
        timeline: excerpt(story),
    };
    let mut sheet = Sheet::default();
    let how = story.command("review", "-f review.toml");
    let words = review.map(|(r, ..)| r);
    let missing = |item: &str| Cell::open(item, &how);
    sheet.pairs(alloc::vec![
        ("Date", words.filter(|r| !r.date.trim().is_empty()).map_or_else(|| missing("review"), |r| Cell::new(r.date.as_str()))),
        (
            "Participants",
            match words.map(|r| r.participants.iter().filter(|p| !p.trim().is_empty()).map(String::as_str).collect::<Vec<_>>()) {
                Some(names) if !names.is_empty() => Cell::new(names.join(", ")),
                _ => missing("review-participants"),
            }
        ),
    ]);
    let list = |sheet: &mut Sheet, title: &str, item: &str, lines: &[String]| {
        sheet.h2(title);
        let lines: Vec<&String> = lines.iter().filter(|l| !l.trim().is_empty()).collect();
        if lines.is_empty() {
            sheet.text(format!("open: {item} ({how})"));
        } else {
            sheet.list(lines.into_iter().cloned());
        }
    };
    list(&mut sheet, "What Went Well", "review-went-well", words.map_or(&[], |r| &r.went_well));
    list(&mut sheet, "What Could Improve", "review-could-improve", words.map_or(&[], |r| &r.could_improve));
    sheet.h2("Action Items");
    let actions = words.map_or(&[][..], |r| &r.action);
    let named = |text: &str| if text.trim().is_empty() { missing("review-actions") } else { Cell::new(text) };
    let rows = actions.iter().map(|a| alloc::vec![named(&a.action), named(&a.owner), named(&a.due)]);
    let empty = if words.is_some() { "None".to_string() } else { format!("open: review-actions ({how})") };
    sheet.table(&["Action", "Owner", "Due"], rows.collect(), &empty);
    summary(&mut sheet, story, &data.metrics);
    sheet.h2("Issues Encountered");
    let rows = story.issues.iter().map(|i| {
        alloc::vec![
            Cell::new(i.number.to_string()),
            Cell::new(clock(i.at, facts.origin())),
            Cell::new(i.text.as_str()),
            resolution(story, i)
        ]
    });
    sheet.table(&["No.", "Time", "Issue", "Resolution"], rows.collect(), "None");
    sheet.h2("Timeline Excerpt");
    let rows = data
        .timeline
        .iter()
        .map(|r| alloc::vec![Cell::new(clock(r.at, facts.origin())), Cell::marked(r.status, r.step.as_str()), Cell::new(r.notes.as_str())]);
    sheet.table(&["Time", "Step", "Notes"], rows.collect(), "None");
    story.document(6, sheet, &data)
}

/// What a reader of the review wants: begin, end, and all that was not as planned.
fn excerpt<'a>(story: &'a Story<'_>) -> Vec<&'a timeline::Row> {
    const ROWS_MAX: usize = 40;
    let steps = ["Start deployment", "Deploy ", "Traffic switch", "Roll back", "Stage "];
    let wanted = |r: &&timeline::Row| {
        !matches!(r.status, Mark::Good | Mark::Plain | Mark::NotApplicable) || steps.iter().any(|s| r.step.starts_with(s))
    };
    let last = story.timeline.iter().rfind(|r| r.step == timeline::outcome(story.facts.state).0);
    let mut rows: Vec<&timeline::Row> = story.timeline.iter().filter(wanted).collect();
    if let Some(last) = last.filter(|l| !rows.contains(l)) {
        rows.push(last);
        rows.sort_by_key(|r| r.at);
    }
    rows.truncate(ROWS_MAX);
    rows
}

fn summary(sheet: &mut Sheet, story: &Story<'_>, m: &Metrics) {
    let facts = &story.facts;
    sheet.h2("Metrics Summary");
    let declared = |d: Option<u64>| d.map_or_else(|| ", none declared".to_string(), |d| format!(", declared {}", span(d)));
    let rollback = match (m.rollbacks, m.rollback_ms) {
        (0, _) => Cell::marked(Mark::NotApplicable, format!("not needed{}", declared(m.rollback_declared_ms))),
        (_, Some(ms)) => {
            let mark = if m.rollback_declared_ms.is_some_and(|d| ms > d) { Mark::Bad } else { Mark::Good };
            Cell::marked(mark, format!("{}{}", span(ms), declared(m.rollback_declared_ms)))
        }
        (_, None) => Cell::open("metrics-rollback-time", "the way back has not ended"),
    };
    let unresolved = if m.issues_unresolved == 0 { Mark::Good } else { Mark::Open };
    sheet.pairs(alloc::vec![
        ("Deployment duration", duration(facts).map_or_else(|| Cell::open("metrics-duration", "it has not ended"), Cell::new)),
        ("Downtime", downtime_cell(story)),
        ("Issues encountered", Cell::marked(unresolved, format!("{} ({} unresolved)", m.issues, m.issues_unresolved))),
        ("Rollbacks", Cell::new(m.rollbacks.to_string())),
        ("Rollback time", rollback),
    ]);
}
