//! What is wrong with a release.toml, a tree or a bundle, and what to do about it.

use std::path::PathBuf;

use tidegate_protocol::release::BadRelease;

/// Why a release could not be packed or a bundle not be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// release.toml does not read.
    #[error("{}: {message}", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Line, column, what was found, what is wanted.
        message: String,
    },
    /// release.toml reads, but asks for what cannot be.
    #[error("{}, line {line}: {what}", file.display())]
    Value {
        /// Which file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// The key and what is wrong with it.
        what: String,
        /// What to write.
        fix: String,
    },
    /// A tree holds what is not shipped.
    #[error("{}: {entry:?} {what}", tree.display())]
    Entry {
        /// The directory or archive.
        tree: PathBuf,
        /// The entry in it.
        entry: String,
        /// What is wrong with it.
        what: String,
        /// What to do.
        fix: String,
    },
    /// A tree as a whole cannot be shipped.
    #[error("{}: {what}", tree.display())]
    Tree {
        /// The directory or archive.
        tree: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        fix: String,
    },
    /// The manifest does not hold together.
    #[error("{}: the release does not hold together", file.display())]
    Manifest {
        /// release.toml or the bundle.
        file: PathBuf,
        /// What is wrong.
        #[source]
        source: BadRelease,
    },
    /// A bundle is not what its manifest says.
    #[error("{}: {what}", bundle.display())]
    Damaged {
        /// Which bundle.
        bundle: PathBuf,
        /// The entry and what is wrong with it.
        what: String,
    },
    /// A file or directory could not be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bundle, or a file unpacked on the way to it, could not be written.
    #[error("write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl BundleError {
    /// True where the input is at fault; false where this machine is.
    #[must_use]
    pub const fn is_input(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }

    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Value { fix, .. } | Self::Entry { fix, .. } | Self::Tree { fix, .. } => fix.clone(),
            Self::Syntax { .. } => "correct that line; the keys of release.toml are in `tidegate release pack --help`".into(),
            Self::Manifest { .. } => "correct release.toml and pack again".into(),
            Self::Damaged { .. } => "nothing was imported; copy the bundle again, or pack it again".into(),
            Self::Read { .. } => "check that the path is right and readable".into(),
            Self::Write { .. } => "check free space and permissions there; nothing was left behind".into(),
        }
    }
}
