//! Release trees: `opt/<component>/releases/<version>-<digest8>/`, complete
//! before it is ever named, and `current`, replaced by one rename.
//!
//! Owns laying out, verifying, repairing, naming, flipping and collecting trees.
//! Beside each tree stands `<name>.json`, so that the agent knows what a tree is
//! without the controller. Files are copied or reflinked from the store, never
//! hard-linked: a tree changed by hand must not change the store. Files that are
//! not in the manifest (logs, data) are left alone. Everything here blocks.

mod compare;
mod layout;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Component, ComponentName, Digest, RelPath, ReleaseRef, Target};

pub use compare::{Drifted, drift, fingerprint, name_drift};

use crate::context::Installed;
use crate::durable;
use crate::error::failed;
use crate::store::Store;

/// Begins the name of a tree that is not complete, or on its way out.
const TEMP: &str = ".tmp-";
/// A record holds one component: files of a manifest at most.
const RECORD_BYTES_MAX: u64 = tidegate_protocol::limits::MANIFEST_BYTES_MAX * 2;
const BUFFER: usize = 128 * 1024;

/// Why a tree could not be made, read or named.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Input or output.
    #[error("{path}: cannot {step}{}", crate::error::disk_hint(source))]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the store is not what its name says any more.
    #[error(
        "the stored file for {path} has the sha256 {got} instead of {digest}: the disk returned other bytes than were written; stage again, and look at the disk"
    )]
    Corrupt {
        /// In the tree.
        path: RelPath,
        /// What it should be.
        digest: Digest,
        /// What it is.
        got: Digest,
    },
    /// The record beside a tree does not read.
    #[error("{path} is damaged; stage the release again")]
    Record {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// `current` points at something that the agent did not lay out.
    #[error("{path} is not a link to a release that the agent laid out; move it away")]
    Foreign {
        /// The link.
        path: PathBuf,
    },
    /// The tree to point at is not there.
    #[error("release {release} is not laid out below {path}")]
    Gone {
        /// Which.
        release: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// Called back.
    #[error("called back")]
    Cancelled,
}

impl TreeError {
    /// For the machine: wrong or missing bytes are `verify`, the rest is `disk`.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Io { .. } | Self::Cancelled => Cause::Disk,
            Self::Foreign { .. } => Cause::Drifted,
            Self::Corrupt { .. } | Self::Record { .. } | Self::Gone { .. } => Cause::Verify,
        };
        failed(cause, self)
    }
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::Io { step, path, source }
}

/// What stands beside a tree.
#[derive(Deserialize)]
struct TreeRecord {
    release: ReleaseRef,
    component: Component,
}

/// As [`TreeRecord`], for writing.
#[derive(Serialize)]
struct TreeRecordRef<'a> {
    release: &'a ReleaseRef,
    component: &'a Component,
}

/// All trees below `opt`.
#[derive(Clone, Debug)]
pub struct Trees {
    opt: PathBuf,
}

impl Trees {
    /// Below this directory, which is made if need be.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn open(opt: &Path) -> Result<Self, TreeError> {
        durable::make_dir(opt, 0o755).map_err(io_error("make the directory", opt))?;
        // Canonical, so that `/proc/PID/exe` can be compared with it.
        let opt = fs::canonicalize(opt).map_err(io_error("resolve the directory", opt))?;
        Ok(Self { opt })
    }

    /// Without making anything, for reading.
    #[must_use]
    pub fn at(opt: &Path) -> Self {
        Self { opt: fs::canonicalize(opt).unwrap_or_else(|_| opt.to_owned()) }
    }

    /// The directory of all of them.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.opt
    }

    /// The link that is flipped.
    #[must_use]
    pub fn current_path(&self, component: &ComponentName) -> PathBuf {
        self.opt.join(component.as_str()).join("current")
    }

    fn releases(&self, component: &ComponentName) -> PathBuf {
        self.opt.join(component.as_str()).join("releases")
    }

    /// What `current` points at; `None` if the component is absent.
    ///
    /// # Errors
    /// [`TreeError::Foreign`], [`TreeError::Gone`], [`TreeError::Record`], [`TreeError::Io`].
    pub fn read_current(&self, component: &ComponentName) -> Result<Option<Installed>, TreeError> {
        let Some(dir) = self.current_dir(component)? else { return Ok(None) };
        let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match self.load(component, name)? {
            Some(tree) => Ok(Some(tree)),
            None => Err(TreeError::Gone { release: name.to_owned(), path: self.releases(component) }),
        }
    }

    /// The directory that `current` points at, without reading what it is.
    ///
    /// # Errors
    /// [`TreeError::Foreign`], [`TreeError::Io`].
    pub fn current_dir(&self, component: &ComponentName) -> Result<Option<PathBuf>, TreeError> {
        let path = self.current_path(component);
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(TreeError::Foreign { path }),
            Err(error) => return Err(io_error("read the link", &path)(error)),
        };
        let name = target.strip_prefix("releases").ok().and_then(Path::to_str).filter(|n| !n.contains('/') && !n.is_empty());
        match name {
            Some(name) => Ok(Some(self.releases(component).join(name))),
            None => Err(TreeError::Foreign { path }),
        }
    }

    /// The tree of that release, if it is laid out.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn locate(&self, component: &ComponentName, release: &ReleaseRef) -> Result<Option<Installed>, TreeError> {
        let prefix = format!("{}-", release.id.version);
        for name in self.names(component)? {
            if !name.starts_with(&prefix) {
                continue;
            }
            match self.load(component, &name) {
                Ok(Some(tree)) if &tree.release == release => return Ok(Some(tree)),
                Ok(_) => {}
                // Nobody knows any more what that is: staging lays it out anew, beside it.
                Err(error @ TreeError::Record { .. }) => {
                    tracing::warn!(%component, error = crate::error::chain(&error), "a laid-out release is left aside");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Names that have a record.
    fn names(&self, component: &ComponentName) -> Result<Vec<String>, TreeError> {
        let dir = self.releases(component);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("read the directory", &dir))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error("read the directory", &dir))?.file_name();
            let name = name.to_str().and_then(|n| n.strip_suffix(".json")).filter(|n| !n.starts_with('.'));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    fn load(&self, component: &ComponentName, name: &str) -> Result<Option<Installed>, TreeError> {
        let releases = self.releases(component);
        let dir = releases.join(name);
        let path = releases.join(format!("{name}.json"));
        let bytes = durable::read_bounded(&path, RECORD_BYTES_MAX).map_err(io_error("read the record", &path))?;
        let Some(bytes) = bytes.filter(|_| dir.is_dir()) else { return Ok(None) };
        let record: TreeRecord = serde_json::from_slice(&bytes).map_err(|source| TreeError::Record { path, source })?;
        Ok(Some(Installed { release: record.release, component: record.component, dir }))
    }

    /// Lays a tree out from the store; every file must be there. Complete,
    /// verified and durable before it gets its name. One that is there already
    /// is repaired where a file was changed.
    ///
    /// # Errors
    /// Every [`TreeError`]; a corrupt file is dropped from the store.
    pub fn lay_out(
        &self,
        store: &Store,
        release: &ReleaseRef,
        component: &Component,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Installed, TreeError> {
        if let Some(tree) = self.locate(&component.name, release)? {
            let drifted = drift(&tree, go_on)?;
            layout::repair(&tree, store, &drifted, go_on)?;
            return Ok(tree);
        }
        let releases = self.releases(&component.name);
        let name = self.free_name(&releases, release, component);
        let dir = releases.join(&name);
        let temp = releases.join(format!("{TEMP}{name}"));
        remove_tree(&temp)?;
        durable::make_dir(&temp, 0o755).map_err(io_error("make the directory", &temp))?;
        let filled = layout::fill(&temp, store, component, go_on);
        if let Err(error) = filled {
            let _ = remove_tree(&temp);
            return Err(error);
        }
        let record = releases.join(format!("{name}.json"));
        let value = TreeRecordRef { release, component };
        let bytes = serde_json::to_vec(&value).map_err(|source| TreeError::Record { path: record.clone(), source })?;
        durable::replace(&record, &bytes, 0o444).map_err(io_error("write the record", &record))?;
        fs::rename(&temp, &dir).map_err(io_error("name the tree", &dir))?;
        for parent in [&releases, &self.opt.join(component.name.as_str()), &self.opt] {
            durable::sync_dir(parent).map_err(io_error("sync the directory", parent))?;
        }
        Ok(Installed { release: release.clone(), component: component.clone(), dir })
    }

    /// `<version>-<digest8>`; two releases of one version and the same files
    /// (they differ in how the component runs) are told apart by the manifest.
    fn free_name(&self, releases: &Path, release: &ReleaseRef, component: &Component) -> String {
        let name = format!("{}-{}", release.id.version, component.tree_digest().short());
        if releases.join(&name).exists() { format!("{name}-{}", release.manifest.short()) } else { name }
    }

    /// Points `current` at the target by one rename, or removes it.
    ///
    /// # Errors
    /// [`TreeError::Gone`], [`TreeError::Io`].
    pub fn flip(&self, component: &ComponentName, to: &Target) -> Result<(), TreeError> {
        let current = self.current_path(component);
        let Some(release) = to.release() else {
            if !self.opt.join(component.as_str()).is_dir() {
                return Ok(());
            }
            return durable::remove(&current).map_err(io_error("remove the link", &current));
        };
        let gone = || TreeError::Gone { release: release.id.to_string(), path: self.releases(component) };
        let tree = self.locate(component, release)?.ok_or_else(gone)?;
        let name = tree.dir.file_name().ok_or_else(gone)?;
        durable::replace_link(&current, &Path::new("releases").join(name)).map_err(io_error("replace the link", &current))
    }

    /// Deletes trees that nothing needs: all but `keep`, what `current` points at,
    /// and the newest up to the component's own number.
    ///
    /// # Errors
    /// [`TreeError::Record`], [`TreeError::Io`]; what is kept stays whole.
    pub fn collect(&self, component: &ComponentName, keep: &[ReleaseRef]) -> Result<usize, TreeError> {
        self.sweep(component)?;
        let current = self.read_current(component)?;
        let want = current.as_ref().map_or(0, |tree| tree.component.keep as usize);
        let mut others = Vec::new();
        let mut kept = 0;
        for name in self.names(component)? {
            let Some(tree) = self.load(component, &name)? else { continue };
            if keep.contains(&tree.release) || current.as_ref().is_some_and(|c| c.dir == tree.dir) {
                kept += 1;
            } else {
                let modified = fs::metadata(&tree.dir).and_then(|m| m.modified()).ok();
                others.push((modified, name));
            }
        }
        others.sort();
        let surplus = others.len().saturating_sub(want.saturating_sub(kept));
        let releases = self.releases(component);
        for (_, name) in others.iter().take(surplus) {
            let temp = releases.join(format!("{TEMP}{name}"));
            let dir = releases.join(name);
            fs::rename(&dir, &temp).map_err(io_error("move the tree away", &dir))?;
            let record = releases.join(format!("{name}.json"));
            durable::remove(&record).map_err(io_error("remove the record", &record))?;
            remove_tree(&temp)?;
        }
        Ok(surplus)
    }

    /// Removes what a crash left: incomplete trees, records without a tree.
    fn sweep(&self, component: &ComponentName) -> Result<(), TreeError> {
        let releases = self.releases(component);
        let Ok(entries) = fs::read_dir(&releases) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(TEMP) {
                if entry.path().is_dir() {
                    remove_tree(&entry.path())?
                } else {
                    durable::remove(&entry.path()).map_err(io_error("remove", &entry.path()))?
                }
            } else if name.strip_suffix(".json").is_some_and(|tree| !releases.join(tree).is_dir()) {
                durable::remove(&entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Every digest that some tree of some component is made of.
    ///
    /// # Errors
    /// [`TreeError::Record`], [`TreeError::Io`].
    pub fn digests(&self) -> Result<BTreeSet<Digest>, TreeError> {
        let mut all = BTreeSet::new();
        let entries = fs::read_dir(&self.opt).map_err(io_error("read the directory", &self.opt))?;
        for entry in entries {
            let name = entry.map_err(io_error("read the directory", &self.opt))?.file_name();
            let Some(component) = name.to_str().and_then(|n| n.parse::<ComponentName>().ok()) else { continue };
            for name in self.names(&component)? {
                if let Some(tree) = self.load(&component, &name)? {
                    all.extend(tree.component.files.iter().map(|f| f.digest));
                }
            }
        }
        Ok(all)
    }
}

fn remove_tree(dir: &Path) -> Result<(), TreeError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
