//! The facts with all that is derived from them, and what every document needs:
//! its frame, and lines whose evidence may be missing.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;
use serde_json::Value;
use tidegate_protocol::Digest;
use tidegate_rollout::process::{Row, RowVerdict};
use tidegate_rollout::status::rfc3339;

use crate::downtime::{self, Downtime};
use crate::fold::Facts;
use crate::issues::{self, Issue};
use crate::model::{Cell, Check, Document, Footer, Mark, Sheet};
use crate::text::{millis, moment};
use crate::timeline::{self, outcome};
use crate::{DocsError, Input, SCHEMA, handoff};

/// Everything that is told.
#[derive(Clone, Debug)]
pub(crate) struct Story<'a> {
    pub(crate) facts: Facts<'a>,
    pub(crate) issues: Vec<Issue>,
    pub(crate) timeline: Vec<timeline::Row>,
    pub(crate) downtime: Downtime,
    /// What sign-offs must cover to count.
    pub(crate) handoff: Digest,
}

impl<'a> Story<'a> {
    /// # Errors
    /// [`DocsError`].
    pub(crate) fn of(input: &Input<'a>) -> Result<Self, DocsError> {
        let facts = Facts::of(input)?;
        let (issues, timeline, downtime) = (issues::of(&facts), timeline::of(&facts), downtime::measure(&facts));
        let handoff = handoff::digest(&facts, &issues)?;
        Ok(Self { facts, issues, timeline, downtime, handoff })
    }

    /// A document with its frame.
    pub(crate) fn document<T: Serialize>(&self, number: u8, sheet: Sheet, data: &T) -> Result<Document, DocsError> {
        let (slug, title) = PAPERS.get(usize::from(number)).copied().unwrap_or(("index", "Deployment documents"));
        let facts = &self.facts;
        let place = facts.plan.environment.as_deref().map_or_else(String::new, |e| format!(" · {e}"));
        let (word, mark) = outcome(facts.state);
        let data = serde_json::to_value(data).map_err(|e| DocsError::Json { document: slug, why: format!("{e}") })?;
        Ok(Document {
            number,
            slug,
            title,
            subtitle: format!("{}{place} · rollout {}", facts.plan.release.id, facts.input.id).into(),
            badge: Cell::marked(mark, word),
            blocks: sheet.blocks,
            footer: self.footer(),
            data,
        })
    }

    fn footer(&self) -> Footer {
        let last = self.facts.input.entries.last();
        Footer {
            rollout: self.facts.input.id.as_str().into(),
            journal_seq: last.map_or(0, |e| e.seq),
            journal_hash: last.map_or_else(String::new, |e| format!("{}", e.hash)).into(),
        }
    }

    /// What every document's JSON begins with.
    pub(crate) fn head(&self, document: &Document) -> Head {
        let facts = &self.facts;
        Head {
            schema: SCHEMA,
            document: document.slug,
            title: document.title,
            rollout: facts.input.id.as_str().into(),
            release: format!("{}", facts.plan.release.id),
            manifest_sha256: facts.plan.release.manifest,
            plan_sha256: facts.plan_digest,
            environment: facts.plan.environment.clone(),
            state: facts.state.word(),
            reason: facts.reason.clone(),
            started_at: rfc3339(facts.started.0),
            ended_at: facts.ended.map(|t| rfc3339(t.0)),
            journal_seq: document.footer.journal_seq,
            journal_sha256: document.footer.journal_hash.as_str().into(),
        }
    }

    /// A command that mends something here.
    pub(crate) fn command(&self, verb: &str, rest: &str) -> String {
        format!("tidegate rollout {verb} {} {rest}", self.facts.input.id)
    }

    /// What a person says to tick a line.
    pub(crate) fn attest(&self, item: &str) -> String {
        self.command("attest", &format!("--item {item} --note EVIDENCE"))
    }

    /// A line that the program saw (good or bad), that a person attested, or that
    /// is open by its name. A person's word does not tick what was seen to fail.
    pub(crate) fn line(&self, item: &str, title: &str, seen: Option<(Mark, String)>, missing: &str) -> Check {
        let check = |mark, evidence: String, by: &str, at: String| Check {
            item: item.into(),
            title: title.into(),
            mark,
            evidence: evidence.into(),
            by: by.into(),
            at: at.into(),
        };
        match (seen, self.facts.attested(item)) {
            (Some((mark, evidence)), None) => check(mark, evidence, "", String::new()),
            (Some((mark, evidence)), Some((by, note, at))) => check(mark, format!("{evidence}; {note}"), by, moment(at)),
            (None, Some((by, note, at))) => check(Mark::Good, note.into(), by, moment(at)),
            (None, None) => check(Mark::Open, format!("{missing}; {}", self.attest(item)), "", String::new()),
        }
    }
}

/// The six and their index: file name, title; by number.
pub(crate) const PAPERS: [(&str, &str); 7] = [
    ("index", "Deployment documents"),
    ("1-pre-deployment-checklist", "Pre-Deployment Checklist"),
    ("2-deployment-execution-log", "Deployment Execution Log"),
    ("3-smoke-test-results", "Smoke Test Results"),
    ("4-monitoring-verification", "Monitoring Verification"),
    ("5-operations-handoff", "Operations Handoff"),
    ("6-post-deployment-review", "Post-Deployment Review"),
];

/// The head of a document's JSON.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Head {
    schema: u32,
    document: &'static str,
    title: &'static str,
    rollout: String,
    release: String,
    manifest_sha256: Digest,
    plan_sha256: Digest,
    environment: Option<String>,
    state: &'static str,
    reason: String,
    started_at: String,
    ended_at: Option<String>,
    journal_seq: u64,
    journal_sha256: String,
}

/// A row of the checklist as a box.
pub(crate) fn check_of(row: &Row) -> Check {
    let mark = match (row.verdict, row.demanded) {
        (RowVerdict::Pass, _) => Mark::Good,
        (RowVerdict::Fail, true) => Mark::Bad,
        (RowVerdict::Fail, false) => Mark::Warn,
        (RowVerdict::Open, _) => Mark::Open,
        (RowVerdict::NotApplicable, _) => Mark::NotApplicable,
    };
    Check {
        item: row.item.as_str().into(),
        title: row.title.as_str().into(),
        mark,
        evidence: row.evidence.as_str().into(),
        by: row.by.as_deref().unwrap_or_default().into(),
        at: row.at.map_or_else(String::new, moment).into(),
    }
}

/// How long the deployment took, and was watched after it.
pub(crate) fn duration(facts: &Facts<'_>) -> Option<String> {
    let watched = facts.watched().map_or_else(String::new, |w| format!(", then watched for {}", millis(w)));
    facts.duration().map(|d| format!("{}{watched}", millis(d)))
}

/// A value that is there, or open by its name.
pub(crate) fn given(value: Option<&str>, item: &str, missing: &str) -> Cell {
    match value.filter(|v| !v.trim().is_empty()) {
        Some(value) => Cell::new(value),
        None => Cell::open(item, missing),
    }
}

/// The whole file of a document's JSON: head, data, and the model itself.
#[derive(Serialize)]
pub(crate) struct Whole<'a> {
    #[serde(flatten)]
    pub(crate) head: Head,
    pub(crate) data: &'a Value,
    pub(crate) model: &'a Document,
}
