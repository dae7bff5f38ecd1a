//! Release trees: `opt/<component>/releases/<version>-<digest8>/`, complete
//! before it is ever named, and `current`, replaced by one rename.
//!
//! Owns laying out, verifying, repairing, naming, flipping and collecting trees.
//! Beside each tree stands `<name>.json`, so that the agent knows what a tree is
//! without the controller. Files are copied or reflinked from the store, never
//! hard-linked: a tree changed by hand must not change the store. Files that are
//! not in the manifest (logs, data) are left alone. Everything here blocks.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_protocol::digest::Hasher;
use tidegate_protocol::release::FileEntry;
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Component, ComponentName, Digest, RelPath, ReleaseRef, Target};

use crate::context::Installed;
use crate::durable;
use crate::error::failed;
use crate::store::{SYNC_EACH_MAX, Store};

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

/// The files of a tree that are not as the manifest says, each with what is
/// wrong. Extra files do not count.
///
/// # Errors
/// [`TreeError::Cancelled`]. A file that cannot be read is a changed file.
pub fn drift(tree: &Installed, go_on: &dyn Fn() -> bool) -> Result<Vec<Drifted>, TreeError> {
    let mut buffer = vec![0; BUFFER];
    let mut drifted = Vec::new();
    for file in &tree.component.files {
        if let Err(what) = same(&tree.dir, file, &mut buffer, go_on)? {
            drifted.push(Drifted { file: file.clone(), what });
        }
    }
    Ok(drifted)
}

/// A file that is not as the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drifted {
    /// What it should be.
    pub file: FileEntry,
    /// What is wrong, in parentheses.
    pub what: String,
}

/// Changes whenever a file of the manifest may have changed: inode, times and
/// size of each (a mode changes the time). Far cheaper than [`drift`].
#[must_use]
pub fn fingerprint(tree: &Installed) -> Digest {
    let mut hasher = Hasher::new();
    for file in &tree.component.files {
        let numbers = fs::symlink_metadata(tree.dir.join(file.path.as_str())).map_or([-1; 6], |m| {
            let inode = i64::from_ne_bytes(m.ino().to_ne_bytes());
            let size = i64::try_from(m.size()).unwrap_or(i64::MAX);
            [inode, m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), size]
        });
        numbers.iter().for_each(|n| hasher.update(&n.to_ne_bytes()));
    }
    hasher.finish()
}

/// A list of drifted files for a sentence.
#[must_use]
pub fn name_drift(drifted: &[Drifted]) -> String {
    let shown: Vec<String> = drifted.iter().take(5).map(|d| format!("{} {}", d.file.path, d.what)).collect();
    let more = if drifted.len() > 5 { format!(" and {} more", drifted.len() - 5) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// Compares one file; the inner error says what is wrong with it.
fn same(dir: &Path, entry: &FileEntry, buffer: &mut [u8], go_on: &dyn Fn() -> bool) -> Result<Result<(), String>, TreeError> {
    let path = dir.join(entry.path.as_str());
    let opened = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()).open(&path);
    let found = opened.and_then(|file| file.metadata().map(|meta| (file, meta)));
    let (mut file, meta) = match found {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err("(missing)".into())),
        Err(error) => return Ok(Err(format!("({error})"))),
    };
    if !meta.is_file() || meta.len() != entry.size {
        return Ok(Err("(changed)".into()));
    }
    if meta.permissions().mode() & 0o7777 != entry.mode {
        return Ok(Err(format!("(mode {:o})", meta.permissions().mode() & 0o7777)));
    }
    Ok(match hash(&mut file, buffer, go_on)? {
        Ok(digest) if digest == entry.digest => Ok(()),
        Ok(_) => Err("(changed)".into()),
        Err(error) => Err(format!("({error})")),
    })
}

fn hash(file: &mut File, buffer: &mut [u8], go_on: &dyn Fn() -> bool) -> Result<io::Result<Digest>, TreeError> {
    let mut hasher = Hasher::new();
    loop {
        if !go_on() {
            return Err(TreeError::Cancelled);
        }
        match file.read(buffer) {
            Ok(0) => return Ok(Ok(hasher.finish())),
            Ok(read) => hasher.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
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
    /// [`TreeError::Record`], [`TreeError::Io`].
    pub fn locate(&self, component: &ComponentName, release: &ReleaseRef) -> Result<Option<Installed>, TreeError> {
        let prefix = format!("{}-", release.id.version);
        for name in self.names(component)? {
            if name.starts_with(&prefix)
                && let Some(tree) = self.load(component, &name)?
                && &tree.release == release
            {
                return Ok(Some(tree));
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
            repair(&tree, store, &drifted, go_on)?;
            return Ok(tree);
        }
        let releases = self.releases(&component.name);
        let name = self.free_name(&releases, release, component);
        let dir = releases.join(&name);
        let temp = releases.join(format!("{TEMP}{name}"));
        remove_tree(&temp)?;
        durable::make_dir(&temp, 0o755).map_err(io_error("make the directory", &temp))?;
        let filled = fill(&temp, store, component, go_on);
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

/// Copies every file, re-reads and compares all of them, makes them durable.
fn fill(root: &Path, store: &Store, component: &Component, go_on: &dyn Fn() -> bool) -> Result<(), TreeError> {
    let mut dirs = BTreeSet::from([root.to_owned()]);
    let mut buffer = vec![0; BUFFER];
    // Open before the first write: it then hears of every error since.
    let opened = File::open(root).map_err(io_error("open", root))?;
    let one_by_one = component.files.len() <= SYNC_EACH_MAX;
    for file in &component.files {
        let path = root.join(file.path.as_str());
        let mut parent = path.parent();
        while let Some(dir) = parent.filter(|dir| dir.starts_with(root) && !dirs.contains(*dir)) {
            dirs.insert(dir.to_owned());
            parent = dir.parent();
        }
        if let Some(dir) = path.parent() {
            durable::make_dir(dir, 0o755).map_err(io_error("make the directory", dir))?;
        }
        let copied = copy(store, file, &path, &mut buffer, go_on)?;
        if one_by_one {
            copied.sync_all().map_err(io_error("sync", &path))?;
        }
    }
    // Deepest first: a parent sorts before its children.
    for dir in dirs.iter().rev() {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).map_err(io_error("set the mode", dir))?;
        if one_by_one {
            durable::sync_dir(dir).map_err(io_error("sync the directory", dir))?;
        }
    }
    if one_by_one { Ok(()) } else { rustix::fs::syncfs(&opened).map_err(|errno| io_error("sync the file system of", root)(errno.into())) }
}

/// One file from the store to a new path, by reflink where the file system can;
/// what was written is read back and hashed. The caller makes it durable.
fn copy(store: &Store, entry: &FileEntry, path: &Path, buffer: &mut [u8], go_on: &dyn Fn() -> bool) -> Result<File, TreeError> {
    let mut from = store.open_file(&entry.digest).map_err(io_error("open the stored file of", path))?;
    let mut to = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(io_error("create", path))?;
    if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
        // Copies inside the kernel.
        io::copy(&mut from, &mut to).map_err(io_error("write", path))?;
        io::Seek::rewind(&mut to).map_err(io_error("read back", path))?;
    }
    to.set_permissions(Permissions::from_mode(entry.mode)).map_err(io_error("set the mode of", path))?;
    let got = hash(&mut to, buffer, go_on)?.map_err(io_error("read back", path))?;
    if got == entry.digest {
        return Ok(to);
    }
    store.remove(&entry.digest);
    Err(TreeError::Corrupt { path: entry.path.clone(), digest: entry.digest, got })
}

/// Puts drifted files right, each by one rename; the rest is left alone.
fn repair(tree: &Installed, store: &Store, drifted: &[Drifted], go_on: &dyn Fn() -> bool) -> Result<(), TreeError> {
    let mut buffer = vec![0; BUFFER];
    for Drifted { file, .. } in drifted {
        let path = tree.dir.join(file.path.as_str());
        let Some(dir) = path.parent() else { continue };
        durable::make_dir(dir, 0o755).map_err(io_error("make the directory", dir))?;
        let temp = dir.join(format!("{TEMP}{}", file.digest.short()));
        durable::remove(&temp).map_err(io_error("remove", &temp))?;
        let copied = copy(store, file, &temp, &mut buffer, go_on);
        let synced = copied.and_then(|file| file.sync_all().map_err(io_error("sync", &temp)));
        let named = synced.and_then(|()| fs::rename(&temp, &path).map_err(io_error("replace", &path)));
        if let Err(error) = named {
            let _ = fs::remove_file(&temp);
            return Err(error);
        }
        durable::sync_dir(dir).map_err(io_error("sync the directory", dir))?;
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<(), TreeError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::release::{Proof, Service};

    struct Bench {
        _dir: tempfile::TempDir,
        store: Store,
        trees: Trees,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let trees = Trees::open(&dir.path().join("opt")).unwrap();
        Bench { _dir: dir, store, trees }
    }

    fn release(bench: &Bench, version: &str, files: &[(&str, &[u8], u32)]) -> (ReleaseRef, Component) {
        let mut entries = Vec::new();
        for (path, bytes, mode) in files {
            let digest = Digest::of(bytes);
            let mut incoming = bench.store.incoming(digest, bytes.len() as u64).unwrap();
            incoming.write(bytes).unwrap();
            let mut batch = bench.store.batch().unwrap();
            batch.add(incoming.finish().unwrap());
            batch.keep().unwrap();
            entries.push(FileEntry { path: path.parse().unwrap(), digest, size: bytes.len() as u64, mode: *mode });
        }
        let component = Component {
            name: "api".parse().unwrap(),
            files: entries,
            links: std::collections::BTreeMap::new(),
            service: Service::Supervised { run: vec!["bin/api".into()], env: std::collections::BTreeMap::new() },
            proof: Proof::Executable,
            check: None,
            before: None,
            after: None,
            arch: None,
            keep: 2,
            smoke: Vec::new(),
        };
        let release = ReleaseRef { id: format!("shop@{version}").parse().unwrap(), manifest: Digest::of(version.as_bytes()) };
        (release, component)
    }

    fn lay_out(bench: &Bench, version: &str, text: &[u8]) -> Installed {
        let (release, component) = release(bench, version, &[("bin/api", text, 0o555), ("etc/a/api.conf", b"x = 1", 0o444)]);
        bench.trees.lay_out(&bench.store, &release, &component, &|| true).unwrap()
    }

    fn api() -> ComponentName {
        "api".parse().unwrap()
    }

    #[test]
    fn a_tree_has_its_files_modes_and_name() {
        let bench = bench();
        let tree = lay_out(&bench, "1.0.0", b"one");
        assert_eq!(fs::read(tree.dir.join("bin/api")).unwrap(), b"one");
        assert_eq!(fs::metadata(tree.dir.join("bin/api")).unwrap().permissions().mode() & 0o7777, 0o555);
        assert_eq!(fs::metadata(tree.dir.join("etc/a")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(tree.dir.join("bin/api")).unwrap().nlink(), 1);
        let name = tree.dir.file_name().unwrap().to_str().unwrap();
        assert_eq!(name, format!("1.0.0-{}", tree.component.tree_digest().short()));
        assert_eq!(bench.trees.locate(&api(), &tree.release).unwrap().unwrap(), tree);
        assert!(bench.trees.read_current(&api()).unwrap().is_none());
    }

    #[test]
    fn flip_changes_the_link_and_nothing_else() {
        let bench = bench();
        let one = lay_out(&bench, "1.0.0", b"one");
        let two = lay_out(&bench, "2.0.0", b"two");
        bench.trees.flip(&api(), &Target::Release(one.release.clone())).unwrap();
        // A leftover of a flip that was cut short does not stand in the way.
        std::os::unix::fs::symlink("nowhere", bench.trees.current_path(&api()).with_file_name(".tmp-current")).unwrap();
        bench.trees.flip(&api(), &Target::Release(two.release.clone())).unwrap();
        assert_eq!(bench.trees.read_current(&api()).unwrap().unwrap().release, two.release);
        let gone = ReleaseRef { id: "shop@3".parse().unwrap(), manifest: Digest::of(b"3") };
        assert!(matches!(bench.trees.flip(&api(), &Target::Release(gone)), Err(TreeError::Gone { .. })));
        assert_eq!(bench.trees.read_current(&api()).unwrap().unwrap().release, two.release);
        bench.trees.flip(&api(), &Target::Absent).unwrap();
        assert!(bench.trees.read_current(&api()).unwrap().is_none());
        assert!(one.dir.is_dir() && two.dir.is_dir());
    }

    #[test]
    fn current_is_complete_whoever_looks_and_whenever() {
        let bench = bench();
        let targets = [lay_out(&bench, "1.0.0", b"one"), lay_out(&bench, "2.0.0", b"two")];
        bench.trees.flip(&api(), &Target::Release(targets[0].release.clone())).unwrap();
        let file = bench.trees.current_path(&api()).join("bin/api");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..200 {
                    bench.trees.flip(&api(), &Target::Release(targets[n % 2].release.clone())).unwrap();
                }
                stop.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let bytes = fs::read(&file).unwrap();
                assert!(bytes == b"one" || bytes == b"two");
            }
        });
    }

    #[test]
    fn drift_names_files_and_is_repaired_while_extra_files_stay() {
        let bench = bench();
        let tree = lay_out(&bench, "1.0.0", b"one");
        fs::write(tree.dir.join("data.log"), "mine").unwrap();
        assert_eq!(drift(&tree, &|| true).unwrap(), []);
        let before = fingerprint(&tree);
        assert_eq!(before, fingerprint(&tree));
        fs::set_permissions(tree.dir.join("bin/api"), Permissions::from_mode(0o755)).unwrap();
        assert_ne!(before, fingerprint(&tree));
        fs::write(tree.dir.join("bin/api"), "two").unwrap();
        fs::set_permissions(tree.dir.join("bin/api"), Permissions::from_mode(0o555)).unwrap();
        fs::remove_file(tree.dir.join("etc/a/api.conf")).unwrap();
        let drifted = drift(&tree, &|| true).unwrap();
        assert_eq!(name_drift(&drifted), "bin/api (changed), etc/a/api.conf (missing)");
        // The store was not changed with the tree.
        let again = bench.trees.lay_out(&bench.store, &tree.release, &tree.component, &|| true).unwrap();
        assert_eq!(again, tree);
        assert_eq!(drift(&tree, &|| true).unwrap(), []);
        assert_eq!(fs::read(tree.dir.join("data.log")).unwrap(), b"mine");
    }

    #[test]
    fn a_stored_file_that_rotted_is_refused_and_leaves_no_tree() {
        let bench = bench();
        let (release, component) = release(&bench, "1.0.0", &[("bin/api", b"one", 0o555)]);
        let stored = bench.store.path(&component.files[0].digest);
        fs::set_permissions(&stored, Permissions::from_mode(0o600)).unwrap();
        fs::write(&stored, "onf").unwrap();
        let error = bench.trees.lay_out(&bench.store, &release, &component, &|| true).unwrap_err();
        assert!(matches!(error, TreeError::Corrupt { .. }), "{error}");
        assert_eq!(error.failure().cause, Cause::Verify);
        assert!(!stored.exists());
        assert!(bench.trees.locate(&api(), &release).unwrap().is_none());
    }

    #[test]
    fn same_version_and_files_under_another_manifest_is_another_tree() {
        let bench = bench();
        let one = lay_out(&bench, "1.0.0", b"one");
        let other = ReleaseRef { manifest: Digest::of(b"other"), ..one.release.clone() };
        let two = bench.trees.lay_out(&bench.store, &other, &one.component, &|| true).unwrap();
        assert_ne!(one.dir, two.dir);
        assert_eq!(bench.trees.locate(&api(), &one.release).unwrap().unwrap(), one);
        assert_eq!(bench.trees.locate(&api(), &other).unwrap().unwrap(), two);
    }

    #[test]
    fn collect_keeps_current_and_what_it_is_told_to() {
        let bench = bench();
        let trees: Vec<Installed> = (1..=5).map(|n| lay_out(&bench, &format!("{n}.0.0"), format!("v{n}").as_bytes())).collect();
        bench.trees.flip(&api(), &Target::Release(trees[1].release.clone())).unwrap();
        fs::create_dir(trees[0].dir.with_file_name(".tmp-9.0.0-abc")).unwrap();
        assert_eq!(bench.trees.collect(&api(), std::slice::from_ref(&trees[0].release)).unwrap(), 3);
        let left: Vec<bool> = trees.iter().map(|t| t.dir.exists()).collect();
        assert_eq!(left, [true, true, false, false, false]);
        assert_eq!(bench.trees.names(&api()).unwrap().len(), 2);
        assert!(!trees[0].dir.with_file_name(".tmp-9.0.0-abc").exists());
    }

    #[test]
    fn a_current_made_by_someone_else_is_not_guessed_at() {
        let bench = bench();
        let tree = lay_out(&bench, "1.0.0", b"one");
        let current = bench.trees.current_path(&api());
        std::os::unix::fs::symlink("/usr", &current).unwrap();
        assert!(matches!(bench.trees.read_current(&api()), Err(TreeError::Foreign { .. })));
        bench.trees.flip(&api(), &Target::Release(tree.release.clone())).unwrap();
        fs::remove_dir_all(&tree.dir).unwrap();
        assert!(matches!(bench.trees.read_current(&api()), Err(TreeError::Gone { .. })));
    }
}
