//! The links a component asks for outside its tree (`/usr/local/bin/api` →
//! `current/bin/api`): made once, within local policy, and taken back.
//!
//! Owns what stood there before: it is kept in the state directory and restored
//! when the component goes. Everything here blocks.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, ComponentName, Digest, RelPath};

use crate::durable;
use crate::error::failed;

/// A link may stand where a file of at most this size stood.
const SAVED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Why a link is not made or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Local policy.
    #[error(
        "the link {link} is not below a directory that [policy] paths of agent.toml lists; add its directory there, or drop the link from the release"
    )]
    NotAllowed {
        /// Which.
        link: String,
    },
    /// Something that cannot be kept.
    #[error("the link {link} cannot be made: a directory or a special file stands there; move it away")]
    Occupied {
        /// Which.
        link: String,
    },
    /// Someone put something else there since.
    #[error("{link} was changed since the agent made it; move it away")]
    Changed {
        /// Which.
        link: String,
    },
    /// The list of links does not read.
    #[error("{path} is damaged")]
    Record {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
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
}

impl LinkError {
    /// For the machine.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::NotAllowed { .. } | Self::Occupied { .. } => Cause::Policy,
            Self::Changed { .. } => Cause::Drifted,
            Self::Record { .. } | Self::Io { .. } => Cause::Disk,
        };
        failed(cause, self)
    }
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LinkError {
    let path = path.to_owned();
    move |source| LinkError::Io { step, path, source }
}

/// What stood where a link is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Before {
    Nothing,
    Link { target: PathBuf },
    File { saved: String, mode: u32, sha256: Digest },
}

/// The links of one host's components.
#[derive(Clone, Debug)]
pub struct Links {
    dir: PathBuf,
    allowed: Vec<PathBuf>,
}

impl Links {
    /// Keeps what stood there below `dir`; `allowed` is `[policy] paths`.
    #[must_use]
    pub fn new(dir: PathBuf, allowed: Vec<PathBuf>) -> Self {
        Self { dir, allowed }
    }

    /// Whether these links could be made.
    ///
    /// # Errors
    /// [`LinkError::NotAllowed`], [`LinkError::Occupied`].
    pub fn check(&self, component: &ComponentName, wanted: &BTreeMap<String, RelPath>) -> Result<(), LinkError> {
        let made = if wanted.is_empty() { BTreeMap::new() } else { self.read(component)? };
        for link in wanted.keys() {
            self.allow(link)?;
            let meta = fs::symlink_metadata(link);
            if !made.contains_key(link) && meta.is_ok_and(|m| !m.is_file() && !m.is_symlink()) {
                return Err(LinkError::Occupied { link: link.clone() });
            }
        }
        Ok(())
    }

    fn allow(&self, link: &str) -> Result<(), LinkError> {
        let no = || LinkError::NotAllowed { link: link.to_owned() };
        let parent = Path::new(link).parent().ok_or_else(no)?;
        // Resolved, so that no link on the way leads out of the allowed directory.
        let parent = fs::canonicalize(parent).map_err(io_error("resolve the link's directory", parent))?;
        let inside = |dir: &PathBuf| fs::canonicalize(dir).is_ok_and(|dir| parent.starts_with(dir));
        if self.allowed.iter().any(inside) { Ok(()) } else { Err(no()) }
    }

    /// Makes the links that are missing, pointing below `current`, and takes back
    /// those that are not wanted any more. With an empty `wanted`, all of them.
    ///
    /// # Errors
    /// Every [`LinkError`].
    pub fn converge(&self, component: &ComponentName, wanted: &BTreeMap<String, RelPath>, current: &Path) -> Result<(), LinkError> {
        let mut made = self.read(component)?;
        let unwanted: Vec<String> = made.keys().filter(|link| !wanted.contains_key(*link)).cloned().collect();
        for link in unwanted {
            if let Some(before) = made.get(&link) {
                self.restore(component, &link, before, current)?;
            }
            made.remove(&link);
            self.write(component, &made)?;
        }
        for (link, to) in wanted {
            self.allow(link)?;
            if !made.contains_key(link) {
                let before = self.save(component, link)?;
                made.insert(link.clone(), before);
                // Known before it is done: a crash in between loses nothing.
                self.write(component, &made)?;
            }
            let before = made.get(link).unwrap_or(&Before::Nothing);
            point(link, &current.join(to.as_str()), before, current)?;
        }
        Ok(())
    }

    /// Keeps a copy of what stands at the link's place.
    fn save(&self, component: &ComponentName, link: &str) -> Result<Before, LinkError> {
        let path = Path::new(link);
        let meta = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Before::Nothing),
            other => other.map_err(io_error("look at", path))?,
        };
        if meta.is_symlink() {
            let target = fs::read_link(path).map_err(io_error("read the link", path))?;
            return Ok(Before::Link { target });
        }
        if !meta.is_file() {
            return Err(LinkError::Occupied { link: link.to_owned() });
        }
        let bytes = durable::read_bounded(path, SAVED_BYTES_MAX).map_err(io_error("read", path))?.unwrap_or_default();
        let sha256 = Digest::of(&bytes);
        let saved = format!("{component}-{}", Digest::of(link.as_bytes()).short());
        let to = self.dir.join(&saved);
        durable::make_dir(&self.dir, 0o700).map_err(io_error("make the directory", &self.dir))?;
        durable::replace(&to, &bytes, 0o600).map_err(io_error("keep what stood there in", &to))?;
        Ok(Before::File { saved, mode: meta.permissions().mode() & 0o7777, sha256 })
    }

    /// Puts back what stood there; leaves alone what is not ours any more.
    fn restore(&self, component: &ComponentName, link: &str, before: &Before, current: &Path) -> Result<(), LinkError> {
        let path = Path::new(link);
        let ours = fs::read_link(path).is_ok_and(|target| target.starts_with(current));
        let there = fs::symlink_metadata(path).is_ok();
        if there && !ours {
            tracing::warn!(%component, link, "is not the agent's link any more and stays as it is");
            return Ok(());
        }
        match before {
            Before::Nothing => durable::remove(path).map_err(io_error("remove the link", path)),
            Before::Link { target } => durable::replace_link(path, target).map_err(io_error("restore the link", path)),
            Before::File { saved, mode, .. } => {
                let from = self.dir.join(saved);
                let bytes = durable::read_bounded(&from, SAVED_BYTES_MAX).map_err(io_error("read what stood there from", &from))?;
                let bytes = bytes.ok_or_else(|| io_error("read what stood there from", &from)(io::ErrorKind::NotFound.into()))?;
                durable::replace(path, &bytes, *mode).map_err(io_error("restore", path))?;
                fs::set_permissions(path, Permissions::from_mode(*mode)).map_err(io_error("restore the mode of", path))?;
                durable::remove(&from).map_err(io_error("remove", &from))
            }
        }
    }

    fn record(&self, component: &ComponentName) -> PathBuf {
        self.dir.join(format!("{component}.json"))
    }

    fn read(&self, component: &ComponentName) -> Result<BTreeMap<String, Before>, LinkError> {
        let path = self.record(component);
        let bytes = durable::read_bounded(&path, 1024 * 1024).map_err(io_error("read", &path))?;
        let Some(bytes) = bytes else { return Ok(BTreeMap::new()) };
        serde_json::from_slice(&bytes).map_err(|source| LinkError::Record { path, source })
    }

    fn write(&self, component: &ComponentName, made: &BTreeMap<String, Before>) -> Result<(), LinkError> {
        let path = self.record(component);
        durable::make_dir(&self.dir, 0o700).map_err(io_error("make the directory", &self.dir))?;
        if made.is_empty() {
            return durable::remove(&path).map_err(io_error("remove", &path));
        }
        let bytes = serde_json::to_vec_pretty(made).map_err(|source| LinkError::Record { path: path.clone(), source })?;
        durable::replace(&path, &bytes, 0o600).map_err(io_error("write", &path))
    }
}

/// Makes one link, unless something unknown stands there.
fn point(link: &str, to: &Path, before: &Before, current: &Path) -> Result<(), LinkError> {
    let path = Path::new(link);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("look at", path)(error)),
        Ok(meta) if meta.is_symlink() => {
            let target = fs::read_link(path).map_err(io_error("read the link", path))?;
            if target == to {
                return Ok(());
            }
            let known = target.starts_with(current) || matches!(before, Before::Link { target: old } if *old == target);
            if !known {
                return Err(LinkError::Changed { link: link.to_owned() });
            }
        }
        Ok(_) => {
            let bytes = durable::read_bounded(path, SAVED_BYTES_MAX).map_err(io_error("read", path))?.unwrap_or_default();
            if !matches!(before, Before::File { sha256, .. } if *sha256 == Digest::of(&bytes)) {
                return Err(LinkError::Changed { link: link.to_owned() });
            }
        }
    }
    durable::replace_link(path, to).map_err(io_error("make the link", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_there_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("file"), "old").unwrap();
        fs::set_permissions(bin.join("file"), Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::symlink("/old", bin.join("link")).unwrap();
        let current = dir.path().join("opt/api/current");
        let links = Links::new(dir.path().join("links"), vec![bin.clone()]);
        let api: ComponentName = "api".parse().unwrap();
        let name = |n: &str| bin.join(n).to_str().unwrap().to_owned();
        let wanted: BTreeMap<String, RelPath> = ["file", "link", "new"].iter().map(|n| (name(n), "bin/api".parse().unwrap())).collect();
        links.check(&api, &wanted).unwrap();
        for _ in 0..2 {
            links.converge(&api, &wanted, &current).unwrap();
            for n in ["file", "link", "new"] {
                assert_eq!(fs::read_link(bin.join(n)).unwrap(), current.join("bin/api"));
            }
        }
        links.converge(&api, &BTreeMap::new(), &current).unwrap();
        assert_eq!(fs::read(bin.join("file")).unwrap(), b"old");
        assert_eq!(fs::metadata(bin.join("file")).unwrap().permissions().mode() & 0o7777, 0o751);
        assert_eq!(fs::read_link(bin.join("link")).unwrap(), Path::new("/old"));
        assert!(!bin.join("new").exists());
        assert_eq!(fs::read_dir(dir.path().join("links")).unwrap().count(), 0);
    }

    #[test]
    fn only_where_policy_allows_and_never_over_a_strangers_file() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, sbin) = (dir.path().join("bin"), dir.path().join("sbin"));
        fs::create_dir(&bin).unwrap();
        fs::create_dir(&sbin).unwrap();
        std::os::unix::fs::symlink(&sbin, bin.join("out")).unwrap();
        let current = dir.path().join("opt/api/current");
        let links = Links::new(dir.path().join("links"), vec![bin.clone()]);
        let api: ComponentName = "api".parse().unwrap();
        let one = |path: PathBuf| BTreeMap::from([(path.to_str().unwrap().to_owned(), "bin/api".parse::<RelPath>().unwrap())]);
        for outside in [sbin.join("api"), bin.join("out/api")] {
            assert!(matches!(links.check(&api, &one(outside.clone())), Err(LinkError::NotAllowed { .. })));
            assert!(matches!(links.converge(&api, &one(outside), &current), Err(LinkError::NotAllowed { .. })));
        }
        fs::create_dir(bin.join("dir")).unwrap();
        assert!(matches!(links.check(&api, &one(bin.join("dir"))), Err(LinkError::Occupied { .. })));
        links.converge(&api, &one(bin.join("api")), &current).unwrap();
        fs::remove_file(bin.join("api")).unwrap();
        fs::write(bin.join("api"), "a stranger's").unwrap();
        assert!(matches!(links.converge(&api, &one(bin.join("api")), &current), Err(LinkError::Changed { .. })));
        links.converge(&api, &BTreeMap::new(), &current).unwrap();
        assert_eq!(fs::read(bin.join("api")).unwrap(), b"a stranger's");
    }
}
