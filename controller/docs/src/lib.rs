//! The six deliverables of the deployment process, as functions of the journal.
//!
//! Owns: one model per document, made from a rollout's records and the release's
//! manifest, and its renderings: Markdown, JSON, self-contained HTML, JUnit. The
//! same records make the same bytes. Must not: do I/O, read a clock, or know
//! anything that is not in its input.
#![no_std]

extern crate alloc;
