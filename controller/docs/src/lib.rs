//! The six deliverables of the deployment process, as functions of the journal.
//!
//! Owns: one model per document, made from a rollout's records and the release's
//! manifest, and its renderings: Markdown, JSON, self-contained HTML, JUnit. The
//! same records make the same bytes. Must not: do I/O, read a clock, or know
//! anything that is not in its input.
#![no_std]

extern crate alloc;

mod chart;
mod csv;
mod doc1;
mod doc2;
mod doc3;
mod doc4;
mod doc5;
mod doc6;
mod downtime;
mod fold;
mod handoff;
mod html;
mod index;
mod issues;
mod items;
mod json;
mod junit;
mod markdown;
mod model;
mod open;
mod story;
mod text;
mod timeline;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::{Digest, Release, ReleaseId, RolloutId, Timestamp};
use tidegate_rollout::Record;

pub use crate::issues::{Issue, Resolved};
pub use crate::items::DOCUMENT_ITEMS;
use crate::story::Story;

/// The schema of every JSON document here.
pub const SCHEMA: u32 = 1;

/// One record as the journal holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the journal.
    pub seq: u64,
    /// When it was decided.
    pub at: Timestamp,
    /// Its hash, which covers all before it.
    pub hash: Digest,
    /// What.
    pub record: Record,
}

/// Everything that documents are made from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Which rollout.
    pub id: &'a RolloutId,
    /// Its records, the first one starts it.
    pub entries: &'a [Entry],
    /// The manifest of the release that it rolls out.
    pub release: &'a Release,
}

/// One deliverable in one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paper {
    /// A plain file name: `1-pre-deployment-checklist.md`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What keeps a rollout from being closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its fixed name.
    pub item: String,
    /// What is missing, and what to do.
    pub what: String,
}

/// Records that no document can be made from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocsError {
    /// Nothing is known of it.
    #[error("rollout {id} has no records")]
    Empty {
        /// Which.
        id: RolloutId,
    },
    /// The first record does not start a rollout.
    #[error("rollout {id}: its first record does not start it")]
    NotStarted {
        /// Which.
        id: RolloutId,
    },
    /// The manifest is of another release.
    #[error("rollout {id} is of {wanted}, the manifest given is of {given}")]
    OtherRelease {
        /// Which.
        id: RolloutId,
        /// The plan's.
        wanted: ReleaseId,
        /// The manifest's.
        given: ReleaseId,
    },
    /// A value that JSON cannot hold.
    #[error("document {document}: {why}")]
    Json {
        /// Which.
        document: &'static str,
        /// What serde said.
        why: String,
    },
}

/// All documents, in all formats, by file name.
///
/// # Errors
/// [`DocsError`].
pub fn papers(input: &Input<'_>) -> Result<Vec<Paper>, DocsError> {
    let story = Story::of(input)?;
    let mut papers = Vec::new();
    let makers = [index::document, doc1::document, doc2::document, doc3::document, doc4::document, doc5::document, doc6::document];
    for make in makers {
        let document = make(&story)?;
        papers.push(Paper { name: format!("{}.md", document.slug), text: markdown::render(&document) });
        papers.push(Paper { name: format!("{}.html", document.slug), text: html::render(&document) });
        papers.push(Paper { name: format!("{}.json", document.slug), text: json::render(&story, &document)? });
    }
    papers.push(Paper { name: "smoke.junit.xml".into(), text: junit::render(&story) });
    papers.push(Paper { name: "metrics.csv".into(), text: csv::render(&story) });
    papers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(papers)
}

/// The issues of the execution log; `rollout note --resolves N` takes their
/// numbers, which never change.
///
/// # Errors
/// [`DocsError`].
pub fn issues(input: &Input<'_>) -> Result<Vec<Issue>, DocsError> {
    Ok(Story::of(input)?.issues)
}

/// What a sign-off of the handoff covers: the digest of document 5's content
/// without signatures and times, so that the second signature covers what the first
/// did. An item, an attestation or an issue that is added changes it.
///
/// # Errors
/// [`DocsError`].
pub fn handoff_digest(input: &Input<'_>) -> Result<Digest, DocsError> {
    Ok(Story::of(input)?.handoff)
}

/// Everything that keeps the rollout from being closed; empty: it can be.
#[must_use]
pub fn open_items(input: &Input<'_>) -> Vec<Open> {
    match Story::of(input) {
        Ok(story) => open::of(&story),
        // What cannot be told cannot be handed over either.
        Err(error) => alloc::vec![Open { item: "records".into(), what: format!("{error}") }],
    }
}
