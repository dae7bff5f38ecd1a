//! What a release is: a manifest that lists, per component, plain files by
//! digest, size and mode, and how the component runs, is checked and is tested.
//!
//! The manifest travels and is stored as JSON; its digest is over those bytes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::digest::Hasher;
use crate::limits;
use crate::{ComponentName, Digest, Millis, RelPath, ReleaseId, ReleaseName, Version};

/// The schema of manifests that this build writes.
pub const MANIFEST_SCHEMA: u32 = 1;

/// An argv: the program, then its arguments. Never a shell line.
pub type Argv = Vec<String>;

/// Which release, and the digest of its manifest's bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReleaseRef {
    /// `name@version`.
    pub id: ReleaseId,
    /// sha256 of the manifest.
    pub manifest: Digest,
}

/// An immutable set of components, in order of deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// [`MANIFEST_SCHEMA`].
    pub schema: u32,
    /// Shared by all versions.
    pub name: ReleaseName,
    /// This one.
    pub version: Version,
    /// Release notes, a file of the release.
    pub notes: Option<FileRef>,
    /// What is known to be wrong; `"none"` is a statement, absence is not.
    pub known_issues: Option<String>,
    /// Runbooks.
    pub runbook: Runbook,
    /// After this day (`YYYY-MM-DD`, UTC) no forward swap.
    pub expires: Option<String>,
    /// The version below which hosts must not go once this completed.
    pub floor: Option<Version>,
    /// Once per rollout, each on one host.
    pub tasks: Vec<Task>,
    /// In order of deployment.
    pub components: Vec<Component>,
}

/// A file of the release that belongs to no component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// Where the packer found it.
    pub path: String,
    /// sha256 of its bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// Runbooks of a release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runbook {
    /// How it is deployed.
    pub deploy: Option<FileRef>,
    /// How it is taken back.
    pub rollback: Option<FileRef>,
}

/// A step that runs once per rollout on one host, such as a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// For the execution log.
    pub name: String,
    /// Files it needs.
    pub files: Vec<FileEntry>,
    /// What runs.
    pub run: Argv,
    /// What takes it back.
    pub undo: Option<Argv>,
    /// False makes its success a point of no return.
    pub reversible: bool,
    /// May be run again when its end was not seen.
    pub idempotent: bool,
    /// Selector of the host it runs on.
    pub on: String,
}

/// One file of a tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Below the release directory.
    pub path: RelPath,
    /// sha256 of its bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Permission bits: `0o444` or `0o555` after the packer's mask.
    pub mode: u32,
}

/// A named thing that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Unique in the release.
    pub name: ComponentName,
    /// Its tree, sorted by path.
    pub files: Vec<FileEntry>,
    /// Absolute link → path below `current`.
    pub links: BTreeMap<String, RelPath>,
    /// How it runs.
    pub service: Service,
    /// What proves that it runs.
    pub proof: Proof,
    /// Against the staged tree, before the swap.
    pub check: Option<Argv>,
    /// Before the swap, such as draining a load balancer.
    pub before: Option<Argv>,
    /// After the swap, and after a revert when `before` ran.
    pub after: Option<Argv>,
    /// The machine type it was built for (`x86_64`), if it matters.
    pub arch: Option<String>,
    /// Releases kept on a host.
    pub keep: u32,
    /// Run on the host after the swap.
    pub smoke: Vec<Smoke>,
}

/// How a component's process is started, stopped and found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Service {
    /// A unit of the host's systemd.
    Systemd(String),
    /// Commands that start, stop and tell. `status` prints the main PID, or
    /// exits non-zero when the service does not run.
    Command {
        /// Returns once started.
        start: Argv,
        /// Returns once stopped.
        stop: Argv,
        /// Exit 0 and the main PID on stdout.
        status: Argv,
    },
    /// The agent keeps the process.
    Supervised {
        /// The program below the tree, and its arguments.
        run: Argv,
        /// Added to a clean environment.
        #[serde(default)]
        env: BTreeMap<String, String>,
    },
}

/// What proves that the assigned bytes run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// The main process executes, or interprets, a file of the release.
    #[default]
    Executable,
    /// The component says that no process of it executes a file of the release
    /// (say, a distribution's daemon that reads a released configuration).
    None,
}

/// Which suite a smoke test belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// On every host.
    #[default]
    Critical,
    /// On one host of each wave.
    Integration,
}

/// A test that runs on the host beside the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smoke {
    /// Unique in the component, such as `SMK-001`.
    pub id: String,
    /// For people.
    pub name: String,
    /// On every host, or once per wave.
    pub suite: Suite,
    /// What is asserted.
    pub check: SmokeCheck,
    /// Of one attempt.
    pub timeout: Millis,
    /// Attempts go on this long until one passes.
    pub retry_for: Millis,
}

/// What a smoke test asserts. Strings may hold `${…}` (see [`crate::template`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SmokeCheck {
    /// GET; the status and, if given, a text the body must contain.
    Http {
        /// `http://…`, loopback unless local policy lists more.
        url: String,
        /// The status wanted.
        status: u16,
        /// The body must contain it.
        body: Option<String>,
    },
    /// A connection is accepted.
    Tcp {
        /// `HOST:PORT`.
        address: String,
    },
    /// The program exits 0.
    Exec {
        /// The program below the tree, and its arguments.
        run: Argv,
    },
    /// The component's unit is active and was restarted at most so often.
    Systemd {
        /// `NRestarts` since the swap.
        max_restarts: u32,
    },
    /// None of the texts is in the service's own messages since the swap.
    Journal {
        /// Texts that must not appear.
        deny: Vec<String>,
        /// How long to watch.
        #[serde(rename = "for")]
        watch: Millis,
    },
    /// A file has this digest.
    File {
        /// Absolute, or below the tree.
        path: String,
        /// The digest wanted.
        sha256: Digest,
    },
}

/// A manifest that does not hold together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRelease {
    /// Written by a newer Tidegate.
    #[error("the manifest has schema {0}, this build reads {MANIFEST_SCHEMA}: upgrade Tidegate")]
    Schema(u32),
    /// Nothing to deploy.
    #[error("the release has no component")]
    Empty,
    /// A bound of [`crate::limits`] is passed.
    #[error("{what} of {component}: {count} is over the limit of {max}")]
    TooMany {
        /// Files, smoke tests, …
        what: &'static str,
        /// Where, or the release's name.
        component: String,
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A name stands twice.
    #[error("{what} {name:?} stands twice")]
    Duplicate {
        /// Component, file, smoke test.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// One file's path is another file's directory.
    #[error("component {component}: {path:?} is a file and a directory at once")]
    FileIsDirectory {
        /// Where.
        component: ComponentName,
        /// Which.
        path: String,
    },
    /// A file's mode has more than read and execute bits.
    #[error("component {component}: {path:?} has mode {mode:o}; only 444 and 555 are shipped")]
    Mode {
        /// Where.
        component: ComponentName,
        /// Which.
        path: RelPath,
        /// The mode given.
        mode: u32,
    },
    /// An argv without a program, or far too long.
    #[error("component {component}: {what} is not a command: a program and at most 63 arguments are wanted")]
    Argv {
        /// Where.
        component: String,
        /// Which one.
        what: &'static str,
    },
    /// A link that is not an absolute path, or that points at nothing.
    #[error("component {component}: the link {link:?} must be an absolute path without '..' to a file or directory of the tree")]
    Link {
        /// Where.
        component: ComponentName,
        /// Which.
        link: String,
    },
    /// A check that asserts nothing.
    #[error("smoke test {id}: it asserts nothing")]
    NoAssertion {
        /// Which.
        id: String,
    },
    /// A systemd smoke test of something that is not a unit.
    #[error("smoke test {id}: `systemd` needs a component whose service is a systemd unit")]
    NotAUnit {
        /// Which.
        id: String,
    },
}

impl Release {
    /// `name@version`.
    #[must_use]
    pub fn id(&self) -> ReleaseId {
        ReleaseId { name: self.name.clone(), version: self.version.clone() }
    }

    /// The component of that name.
    #[must_use]
    pub fn component(&self, name: &ComponentName) -> Option<&Component> {
        self.components.iter().find(|c| &c.name == name)
    }

    /// Every distinct file that hosts or tasks need, by digest, with its size.
    #[must_use]
    pub fn artifacts(&self) -> BTreeMap<Digest, u64> {
        let trees = self.components.iter().flat_map(|c| &c.files).chain(self.tasks.iter().flat_map(|t| &t.files));
        let texts = [&self.notes, &self.runbook.deploy, &self.runbook.rollback];
        let texts = texts.into_iter().flatten().map(|f| (f.digest, f.size));
        trees.map(|f| (f.digest, f.size)).chain(texts).collect()
    }

    /// Refuses what no packer of ours writes: checked on import and again on
    /// every host, for the manifest may come from anyone.
    ///
    /// # Errors
    /// The first thing wrong.
    pub fn check(&self) -> Result<(), BadRelease> {
        if self.schema != MANIFEST_SCHEMA {
            return Err(BadRelease::Schema(self.schema));
        }
        if self.components.is_empty() {
            return Err(BadRelease::Empty);
        }
        bound("components", self.name.as_str(), self.components.len(), limits::COMPONENTS_MAX)?;
        unique("component", self.components.iter().map(|c| c.name.as_str()))?;
        for task in &self.tasks {
            argv(&task.name, "run", Some(&task.run))?;
            argv(&task.name, "undo", task.undo.as_ref())?;
        }
        self.components.iter().try_for_each(Component::check)
    }
}

impl Component {
    /// The digest of the whole tree: two releases may share an executable and
    /// differ in a configuration file, so this is always reported beside it.
    /// sha256 over `MODE SP SIZE SP DIGEST SP PATH NUL`, files sorted by path.
    #[must_use]
    pub fn tree_digest(&self) -> Digest {
        tree_digest(&self.files)
    }

    /// Bytes of the whole tree.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.size))
    }

    fn check(&self) -> Result<(), BadRelease> {
        let name = self.name.as_str();
        bound("files", name, self.files.len(), limits::FILES_MAX)?;
        bound("smoke tests", name, self.smoke.len(), limits::SMOKE_TESTS_MAX)?;
        unique("file", self.files.iter().map(|f| f.path.as_str()))?;
        unique("smoke test", self.smoke.iter().map(|s| s.id.as_str()))?;
        let paths: BTreeSet<&str> = self.files.iter().map(|f| f.path.as_str()).collect();
        for file in &self.files {
            if file.mode != 0o444 && file.mode != 0o555 {
                return Err(BadRelease::Mode { component: self.name.clone(), path: file.path.clone(), mode: file.mode });
            }
            let text = file.path.as_str();
            let parent_is_file = text.match_indices('/').any(|(at, _)| paths.contains(&text[..at]));
            if parent_is_file {
                return Err(BadRelease::FileIsDirectory { component: self.name.clone(), path: text.into() });
            }
        }
        for (link, target) in &self.links {
            let to = target.as_str();
            let exists = paths.iter().any(|p| *p == to || p.strip_prefix(to).is_some_and(|rest| rest.starts_with('/')));
            let absolute = link.strip_prefix('/').is_some_and(|rest| rest.parse::<RelPath>().is_ok());
            if !exists || !absolute {
                return Err(BadRelease::Link { component: self.name.clone(), link: link.clone() });
            }
        }
        argv(name, "check", self.check.as_ref())?;
        argv(name, "before", self.before.as_ref())?;
        argv(name, "after", self.after.as_ref())?;
        match &self.service {
            Service::Systemd(_) => {}
            Service::Command { start, stop, status } => {
                argv(name, "service.command.start", Some(start))?;
                argv(name, "service.command.stop", Some(stop))?;
                argv(name, "service.command.status", Some(status))?;
            }
            Service::Supervised { run, .. } => argv(name, "service.supervised.run", Some(run))?,
        }
        self.smoke.iter().try_for_each(|smoke| match &smoke.check {
            SmokeCheck::Exec { run } => argv(name, "smoke.exec.run", Some(run)),
            SmokeCheck::Journal { deny, .. } if deny.is_empty() || deny.iter().any(String::is_empty) => {
                Err(BadRelease::NoAssertion { id: smoke.id.clone() })
            }
            SmokeCheck::Systemd { .. } if !matches!(self.service, Service::Systemd(_)) => {
                Err(BadRelease::NotAUnit { id: smoke.id.clone() })
            }
            _ => Ok(()),
        })
    }
}

/// See [`Component::tree_digest`].
#[must_use]
pub fn tree_digest(files: &[FileEntry]) -> Digest {
    let mut sorted: Vec<&FileEntry> = files.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hasher = Hasher::new();
    for file in sorted {
        hasher.update(alloc::format!("{:o} {} {} {}\0", file.mode, file.size, file.digest, file.path).as_bytes());
    }
    hasher.finish()
}

fn bound(what: &'static str, component: &str, count: usize, max: usize) -> Result<(), BadRelease> {
    if count > max { Err(BadRelease::TooMany { what, component: component.into(), count, max }) } else { Ok(()) }
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a str>) -> Result<(), BadRelease> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(BadRelease::Duplicate { what, name: name.into() });
        }
    }
    Ok(())
}

fn argv(component: &str, what: &'static str, argv: Option<&Argv>) -> Result<(), BadRelease> {
    let Some(argv) = argv else { return Ok(()) };
    let program = argv.first().is_some_and(|p| !p.is_empty());
    if program && argv.len() <= limits::ARGV_MAX && !argv.iter().any(|a| a.contains('\0')) {
        Ok(())
    } else {
        Err(BadRelease::Argv { component: component.into(), what })
    }
}
