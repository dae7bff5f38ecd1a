//! The six deliverables of the deployment process, as functions of the journal.
//!
//! Owns: one model per document, made from a rollout's records and the release's
//! manifest, and its renderings: Markdown, JSON, self-contained HTML, JUnit. The
//! same records make the same bytes. Must not: do I/O, read a clock, or know
//! anything that is not in its input.
#![no_std]

extern crate alloc;

use alloc::string::String;

use tidegate_protocol::{Digest, Release, RolloutId, Timestamp};
use tidegate_rollout::Record;

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
