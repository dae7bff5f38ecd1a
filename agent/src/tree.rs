//! Release trees: `opt/<component>/releases/<version>-<digest8>/`, complete
//! before it is ever named, and the links to them, each replaced by one rename:
//! `current`, or `blue` and `green` for a component with sides.
//!
//! Owns laying out, verifying, repairing, naming, flipping and collecting trees.
//! Beside each tree stands `<name>.json`, so that the agent knows what a tree is
//! without the controller. Files are copied or reflinked from the store, never
//! hard-linked: a tree changed by hand must not change the store. Files that are
//! not in the manifest (logs, data) are left alone. Two sides share one directory
//! of releases: whoever adds to it or takes from it holds a [`Claim`]. Everything
//! here blocks.

mod compare;
mod layout;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Component, ComponentName, Digest, RelPath, ReleaseRef, Side, Target};

pub use compare::{Drifted, drift, fingerprint, name_drift};

use crate::context::Installed;
use crate::durable;
use crate::error::failed;
use crate::slot::Slot;
use crate::store::Store;

/// Begins the name of a tree that is not complete, or on its way out.
const TEMP: &str = ".tmp-";
/// A record holds one component: files of a manifest at most.
const RECORD_BYTES_MAX: u64 = tidegate_protocol::limits::MANIFEST_BYTES_MAX * 2;
const BUFFER: usize = 128 * 1024;
/// Between two looks at whether the other side is done with the releases.
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

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
    /// A link of the slot's points at something that the agent did not lay out.
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
    /// The component runs with sides where none are meant, or the reverse.
    #[error("{}", mixed(slot, found))]
    Mixed {
        /// What was asked for.
        slot: Slot,
        /// The link that is there.
        found: PathBuf,
    },
    /// Called back.
    #[error("called back")]
    Cancelled,
}

fn mixed(slot: &Slot, found: &Path) -> String {
    let Slot { component, side } = slot;
    let found = found.display();
    match side {
        Some(_) => format!(
            "{component} runs without sides on this host ({found} is there), so it cannot get any: take it back to nothing first \
             (roll back its first rollout here), or use a strategy without sides"
        ),
        None => format!(
            "{component} runs with sides on this host ({found} is there), so it cannot run from `current` as well: deploy it blue-green, \
             or take both sides back to nothing first"
        ),
    }
}

impl TreeError {
    /// For the machine: wrong or missing bytes are `verify`, the rest is `disk`.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Io { .. } | Self::Cancelled => Cause::Disk,
            Self::Foreign { .. } => Cause::Drifted,
            Self::Mixed { .. } => Cause::Policy,
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
    /// Components whose releases are being added to or taken from.
    claimed: Arc<Mutex<BTreeSet<ComponentName>>>,
    /// Held from the look at a component's links to the flip of one.
    flips: Arc<Mutex<()>>,
}

/// Held by whoever changes the releases of a component.
#[derive(Debug)]
pub struct Claim {
    component: ComponentName,
    claimed: Arc<Mutex<BTreeSet<ComponentName>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.component);
    }
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
        Ok(Self { opt, claimed: Arc::default(), flips: Arc::default() })
    }

    /// Without making anything, for reading.
    #[must_use]
    pub fn at(opt: &Path) -> Self {
        let opt = fs::canonicalize(opt).unwrap_or_else(|_| opt.to_owned());
        Self { opt, claimed: Arc::default(), flips: Arc::default() }
    }

    /// The directory of all of them.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.opt
    }

    /// The link that is flipped.
    #[must_use]
    pub fn current_path(&self, slot: &Slot) -> PathBuf {
        self.opt.join(slot.component.as_str()).join(slot.link())
    }

    /// The component's releases for oneself; none while another slot of
    /// it has them.
    #[must_use]
    pub fn try_claim(&self, component: &ComponentName) -> Option<Claim> {
        let free = self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(component.clone());
        free.then(|| Claim { component: component.clone(), claimed: self.claimed.clone() })
    }

    /// As [`Trees::try_claim`], waiting for the other one.
    ///
    /// # Errors
    /// [`TreeError::Cancelled`].
    pub fn claim(&self, component: &ComponentName, go_on: &dyn Fn() -> bool) -> Result<Claim, TreeError> {
        // As long as the other side lays out a tree, unless this one is called back.
        loop {
            if let Some(claim) = self.try_claim(component) {
                return Ok(claim);
            }
            if !go_on() {
                return Err(TreeError::Cancelled);
            }
            std::thread::sleep(CLAIM_PAUSE);
        }
    }

    /// A component runs from `current`, or from `blue` and `green`, never both.
    ///
    /// # Errors
    /// [`TreeError::Mixed`].
    pub fn check_sides(&self, slot: &Slot) -> Result<(), TreeError> {
        let others = Slot::all(&slot.component).into_iter().filter(|other| other.side.is_some() != slot.side.is_some());
        let mut links = others.map(|other| self.current_path(&other));
        match links.find(|link| link.is_symlink()) {
            Some(found) => Err(TreeError::Mixed { slot: slot.clone(), found }),
            None => Ok(()),
        }
    }

    fn releases(&self, component: &ComponentName) -> PathBuf {
        self.opt.join(component.as_str()).join("releases")
    }

    /// What the slot's link points at; `None` if it is absent.
    ///
    /// # Errors
    /// [`TreeError::Foreign`], [`TreeError::Gone`], [`TreeError::Record`], [`TreeError::Io`].
    pub fn read_current(&self, slot: &Slot) -> Result<Option<Installed>, TreeError> {
        let Some(dir) = self.current_dir(slot)? else { return Ok(None) };
        let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match self.load(slot, name)? {
            Some(tree) => Ok(Some(tree)),
            None => Err(TreeError::Gone { release: name.to_owned(), path: self.releases(&slot.component) }),
        }
    }

    /// The directory that the slot's link points at, without reading what it is.
    ///
    /// # Errors
    /// [`TreeError::Foreign`], [`TreeError::Io`].
    pub fn current_dir(&self, slot: &Slot) -> Result<Option<PathBuf>, TreeError> {
        let path = self.current_path(slot);
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(TreeError::Foreign { path }),
            Err(error) => return Err(io_error("read the link", &path)(error)),
        };
        let name = target.strip_prefix("releases").ok().and_then(Path::to_str).filter(|n| !n.contains('/') && !n.is_empty());
        match name {
            Some(name) => Ok(Some(self.releases(&slot.component).join(name))),
            None => Err(TreeError::Foreign { path }),
        }
    }

    /// The tree of that release, if it is laid out, as that slot runs it.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn locate(&self, slot: &Slot, release: &ReleaseRef) -> Result<Option<Installed>, TreeError> {
        let component = &slot.component;
        let prefix = format!("{}-", release.id.version);
        for name in self.names(component)? {
            if !name.starts_with(&prefix) {
                continue;
            }
            match self.load(slot, &name) {
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

    fn load(&self, slot: &Slot, name: &str) -> Result<Option<Installed>, TreeError> {
        let releases = self.releases(&slot.component);
        let dir = releases.join(name);
        let path = releases.join(format!("{name}.json"));
        let bytes = durable::read_bounded(&path, RECORD_BYTES_MAX).map_err(io_error("read the record", &path))?;
        let Some(bytes) = bytes.filter(|_| dir.is_dir()) else { return Ok(None) };
        let record: TreeRecord = serde_json::from_slice(&bytes).map_err(|source| TreeError::Record { path, source })?;
        Ok(Some(Installed { release: record.release, component: record.component, dir, side: slot.side }))
    }

    /// Lays a tree out from the store for a slot; every file must be there.
    /// Complete, verified and durable before it gets its name. One that is there
    /// already is repaired where a file was changed.
    ///
    /// # Errors
    /// Every [`TreeError`]; a corrupt file is dropped from the store.
    pub fn lay_out(
        &self,
        store: &Store,
        release: &ReleaseRef,
        component: &Component,
        side: Option<Side>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Installed, TreeError> {
        let _claim = self.claim(&component.name, go_on)?;
        let slot = Slot { component: component.name.clone(), side };
        if let Some(tree) = self.locate(&slot, release)? {
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
        Ok(Installed { release: release.clone(), component: component.clone(), dir, side })
    }

    /// `<version>-<digest8>`; two releases of one version and the same files
    /// (they differ in how the component runs) are told apart by the manifest.
    fn free_name(&self, releases: &Path, release: &ReleaseRef, component: &Component) -> String {
        let name = format!("{}-{}", release.id.version, component.tree_digest().short());
        if releases.join(&name).exists() { format!("{name}-{}", release.manifest.short()) } else { name }
    }

    /// Points the slot's link at the target by one rename, or removes it.
    ///
    /// # Errors
    /// [`TreeError::Gone`], [`TreeError::Mixed`], [`TreeError::Io`].
    pub fn flip(&self, slot: &Slot, to: &Target) -> Result<(), TreeError> {
        let component = &slot.component;
        let current = self.current_path(slot);
        // Two slots that both look before either has moved must not both move.
        let _one = self.flips.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(release) = to.release() else {
            if !self.opt.join(component.as_str()).is_dir() {
                return Ok(());
            }
            return durable::remove(&current).map_err(io_error("remove the link", &current));
        };
        self.check_sides(slot)?;
        let gone = || TreeError::Gone { release: release.id.to_string(), path: self.releases(component) };
        let tree = self.locate(slot, release)?.ok_or_else(gone)?;
        let name = tree.dir.file_name().ok_or_else(gone)?;
        durable::replace_link(&current, &Path::new("releases").join(name)).map_err(io_error("replace the link", &current))
    }

    /// Deletes trees that nothing needs: all but `keep`, what a link of the
    /// component points at, and the newest up to the component's own number. While
    /// another slot of it has its releases, nothing is deleted.
    ///
    /// # Errors
    /// [`TreeError::Record`], [`TreeError::Io`]; what is kept stays whole.
    pub fn collect(&self, component: &ComponentName, keep: &[ReleaseRef]) -> Result<usize, TreeError> {
        let Some(_claim) = self.try_claim(component) else { return Ok(0) };
        self.sweep(component)?;
        let mut linked = Vec::new();
        for slot in Slot::all(component) {
            // Where there are no sides, things named so are someone else's.
            if slot.side.is_none() || self.current_path(&slot).is_symlink() {
                linked.extend(self.read_current(&slot)?);
            }
        }
        let want = linked.iter().map(|tree| tree.component.keep as usize).max().unwrap_or_default();
        let plain = Slot::plain(component.clone());
        let mut others = Vec::new();
        let mut kept = 0;
        for name in self.names(component)? {
            let Some(tree) = self.load(&plain, &name)? else { continue };
            if keep.contains(&tree.release) || linked.iter().any(|linked| linked.dir == tree.dir) {
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
            let Some(slot) = name.to_str().and_then(|n| n.parse::<ComponentName>().ok()).map(Slot::plain) else { continue };
            for name in self.names(&slot.component)? {
                if let Some(tree) = self.load(&slot, &name)? {
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
