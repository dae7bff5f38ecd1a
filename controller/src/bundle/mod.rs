//! Releases as files: reading release.toml, packing trees into a bundle, reading
//! bundles back.
//!
//! Owns: everything between a build's output and a checked manifest with its
//! files. Must not: talk to a controller or print.
//!
//! A bundle is one tar file whose every byte follows from its content, so that
//! packing the same input twice gives the same file:
//!
//! ```text
//! release.json      the manifest; its sha256 is the release's digest. That digest
//!                   also stands in a pax comment, so that a damaged manifest shows
//! files/<sha256>    each file once, sorted by digest
//! ```
//!
//! Nothing here follows a link out of a tree, holds a whole file in memory, or
//! leaves a half-written bundle behind.

mod error;
mod format;
mod pack;
mod read;
mod resolve;
mod source;
mod tree;
mod walk;

pub use error::BundleError;
pub use pack::{Packed, pack};
pub use read::{Bundle, BundleFile};

/// Bytes so far, and of how many.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);
