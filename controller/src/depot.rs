//! The depot: files by digest, verified when they come in.
//!
//! `<state>/depot/<sha256>`. A file that stands under its digest is complete: it
//! was hashed while written, synced, and put there by one rename. Never unpacks,
//! never looks inside. Blocking calls; callers are off the runtime's threads.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use tidegate_protocol::digest::Hasher;
use tidegate_protocol::limits::{ARTIFACT_BYTES_MAX, MANIFEST_BYTES_MAX};
use tidegate_protocol::{Digest, Release};

/// A file that the depot cannot take or give.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// The file system said no.
    #[error("{path}: cannot {what}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Over the limit of one artifact.
    #[error("{digest}: {size} bytes are over the limit of {ARTIFACT_BYTES_MAX} for one file")]
    TooLarge {
        /// Which.
        digest: Digest,
        /// Bytes.
        size: u64,
    },
    /// The bytes are not those that were announced.
    #[error("{wanted}: what arrived has the digest {found}; the bundle is damaged")]
    OtherBytes {
        /// Announced.
        wanted: Digest,
        /// Arrived.
        found: Digest,
    },
    /// Fewer or more bytes than announced.
    #[error("{digest}: {found} bytes arrived, {wanted} were announced; the bundle is damaged")]
    OtherSize {
        /// Which.
        digest: Digest,
        /// Announced.
        wanted: u64,
        /// Arrived.
        found: u64,
    },
    /// A manifest that is not one.
    #[error("{digest}: the manifest cannot be read: {why}")]
    Manifest {
        /// Of its bytes.
        digest: Digest,
        /// Why.
        why: String,
    },
}

/// Read at once when a file is verified.
const READ_BYTES: usize = 256 * 1024;

/// All files that releases are made of.
#[derive(Debug)]
pub struct Depot {
    dir: PathBuf,
    temporary: PathBuf,
    next: AtomicU64,
    /// Of imported releases: what hosts may fetch.
    served: RwLock<HashSet<Digest>>,
}

impl Depot {
    /// Opens or makes it; what an interrupted upload left is removed.
    ///
    /// # Errors
    /// [`DepotError::File`].
    pub fn open(dir: &Path) -> Result<Self, DepotError> {
        let temporary = dir.join("incoming");
        let made = |source| DepotError::File { what: "be made", path: temporary.clone(), source };
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DepotError::File { what: "be emptied", path: temporary, source: error });
            }
            _ => {}
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&temporary).map_err(made)?;
        Ok(Self { dir: dir.into(), temporary, next: AtomicU64::new(0), served: RwLock::default() })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// The size of a file that is there.
    #[must_use]
    pub fn size(&self, digest: Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().filter(fs::Metadata::is_file).map(|m| m.len())
    }

    /// Whether a file has to be brought (again). Reads it: a file whose bytes are
    /// not those of its name is removed, so that an import mends the depot.
    #[must_use]
    pub fn lacks(&self, digest: Digest) -> bool {
        let path = self.path(digest);
        match hash(&path) {
            Ok(found) if found == digest => false,
            Ok(found) => {
                tracing::error!(path = %path.display(), %found, "a file of the depot was damaged; it is removed and has to be imported again");
                // If it cannot be removed, the upload's rename still replaces it.
                let _ = fs::remove_file(&path);
                true
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(path = %path.display(), %error, "a file of the depot cannot be read");
                }
                true
            }
        }
    }

    /// Opens a file that an imported release is made of.
    ///
    /// # Errors
    /// [`DepotError::File`]; `Ok(None)` if it is not there, or not a host's business.
    pub fn open_served(&self, digest: Digest) -> Result<Option<(File, u64)>, DepotError> {
        if !self.served.read().unwrap_or_else(PoisonError::into_inner).contains(&digest) {
            return Ok(None);
        }
        let path = self.path(digest);
        let file = |source| DepotError::File { what: "be read", path: path.clone(), source };
        match File::open(&path) {
            Ok(open) => {
                let size = open.metadata().map_err(file)?.len();
                Ok(Some((open, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file(error)),
        }
    }

    /// From here on hosts may fetch these.
    pub fn serve(&self, manifest: Digest, release: &Release) {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        served.insert(manifest);
        served.extend(release.artifacts().into_keys());
    }

    /// The manifest under that digest, verified.
    ///
    /// # Errors
    /// It is not there, damaged, or not a manifest.
    pub fn manifest(&self, digest: Digest) -> Result<(Release, Vec<u8>), DepotError> {
        let path = self.path(digest);
        let file = |source| DepotError::File { what: "be read", path: path.clone(), source };
        let mut bytes = Vec::new();
        File::open(&path).map_err(file)?.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(file)?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(DepotError::OtherBytes { wanted: digest, found });
        }
        let release = serde_json::from_slice(&bytes).map_err(|e| DepotError::Manifest { digest, why: e.to_string() })?;
        Ok((release, bytes))
    }

    /// Artifacts of a release that are not there, or have another size.
    #[must_use]
    pub fn missing(&self, artifacts: &BTreeMap<Digest, u64>) -> Vec<Digest> {
        artifacts.iter().filter(|(digest, size)| self.size(**digest) != Some(**size)).map(|(digest, _)| *digest).collect()
    }

    /// Begins to take a file in.
    ///
    /// # Errors
    /// [`DepotError::TooLarge`], [`DepotError::File`].
    pub fn receive(&self, digest: Digest, size: u64) -> Result<Incoming<'_>, DepotError> {
        if size > ARTIFACT_BYTES_MAX {
            return Err(DepotError::TooLarge { digest, size });
        }
        // A number, not the digest: two uploads of one file must not share it.
        let path = self.temporary.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path).map_err(|source| DepotError::File {
            what: "be written",
            path: path.clone(),
            source,
        })?;
        Ok(Incoming { depot: self, file, path, digest, wanted: size, found: 0, hasher: Hasher::new(), placed: false })
    }

    /// Takes a whole small file in.
    ///
    /// # Errors
    /// [`DepotError::File`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, DepotError> {
        let digest = Digest::of(bytes);
        let mut incoming = self.receive(digest, bytes.len() as u64)?;
        incoming.write(bytes)?;
        incoming.finish()?;
        self.sync()?;
        Ok(digest)
    }

    /// Makes the names of finished files durable; once per group of uploads.
    ///
    /// # Errors
    /// [`DepotError::File`].
    pub fn sync(&self) -> Result<(), DepotError> {
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(|source| DepotError::File {
            what: "be synced",
            path: self.dir.clone(),
            source,
        })
    }
}

fn hash(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let (mut hasher, mut chunk) = (Hasher::new(), vec![0; READ_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(chunk.get(..n).unwrap_or_default()),
        }
    }
}

/// A file that is coming in; dropped unfinished, it leaves nothing.
pub struct Incoming<'a> {
    depot: &'a Depot,
    file: File,
    path: PathBuf,
    digest: Digest,
    wanted: u64,
    found: u64,
    hasher: Hasher,
    placed: bool,
}

impl Incoming<'_> {
    /// The next bytes.
    ///
    /// # Errors
    /// More than announced, or the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DepotError> {
        self.found = self.found.saturating_add(bytes.len() as u64);
        if self.found > self.wanted {
            return Err(DepotError::OtherSize { digest: self.digest, wanted: self.wanted, found: self.found });
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|source| DepotError::File { what: "be written", path: self.path.clone(), source })
    }

    /// Verifies, syncs and names it. The name is durable after [`Depot::sync`].
    ///
    /// # Errors
    /// It is not what was announced; nothing is left.
    pub fn finish(mut self) -> Result<(), DepotError> {
        if self.found != self.wanted {
            return Err(DepotError::OtherSize { digest: self.digest, wanted: self.wanted, found: self.found });
        }
        let found = std::mem::take(&mut self.hasher).finish();
        if found != self.digest {
            return Err(DepotError::OtherBytes { wanted: self.digest, found });
        }
        let to = self.depot.path(self.digest);
        self.file.sync_all().and_then(|()| fs::rename(&self.path, &to)).map_err(|source| DepotError::File {
            what: "be put in place",
            path: to.clone(),
            source,
        })?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // Best effort: the next start empties the directory.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_announced_comes_in() {
        let dir = tempfile::tempdir().unwrap();
        let depot = Depot::open(dir.path()).unwrap();
        let digest = depot.put(b"hello").unwrap();
        assert_eq!(depot.size(digest), Some(5));

        let wanted = Digest::of(b"hello!");
        let mut short = depot.receive(wanted, 6).unwrap();
        short.write(b"hello").unwrap();
        assert!(matches!(short.finish(), Err(DepotError::OtherSize { found: 5, .. })));
        let mut long = depot.receive(wanted, 6).unwrap();
        assert!(matches!(long.write(b"hello!!"), Err(DepotError::OtherSize { .. })));
        drop(long);
        let mut flipped = depot.receive(wanted, 6).unwrap();
        flipped.write(b"hellO!").unwrap();
        assert!(matches!(flipped.finish(), Err(DepotError::OtherBytes { .. })));
        assert_eq!(depot.size(wanted), None);
        assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0, "litter");
        assert!(matches!(depot.receive(wanted, u64::MAX), Err(DepotError::TooLarge { .. })));
    }

    #[test]
    fn a_damaged_file_has_to_be_brought_again() {
        let dir = tempfile::tempdir().unwrap();
        let depot = Depot::open(dir.path()).unwrap();
        let digest = depot.put(b"hello").unwrap();
        assert!(!depot.lacks(digest));
        for damage in [&b"hellO"[..], b"hel"] {
            fs::remove_file(depot.path(digest)).unwrap();
            fs::write(depot.path(digest), damage).unwrap();
            assert!(depot.lacks(digest));
            assert_eq!(depot.size(digest), None, "an upload would take it for present");
            depot.put(b"hello").unwrap();
            assert!(!depot.lacks(digest));
        }
        assert!(depot.lacks(Digest::of(b"never seen")));
    }

    #[test]
    fn only_imported_files_are_served() {
        let dir = tempfile::tempdir().unwrap();
        let depot = Depot::open(dir.path()).unwrap();
        let digest = depot.put(b"secret of another release").unwrap();
        assert!(depot.open_served(digest).unwrap().is_none());
        depot.served.write().unwrap().insert(digest);
        assert_eq!(depot.open_served(digest).unwrap().unwrap().1, 25);
    }
}
