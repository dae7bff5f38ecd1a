//! Verified bytes by digest: `store/<sha256>`.
//!
//! Owns how a file gets in (hashed while it is written, exact size, made durable,
//! then renamed) and out. Nothing is in the store under a name that its bytes did not
//! have when they were written. Everything here blocks.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use tidegate_protocol::digest::Hasher;
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Digest};

use crate::durable;
use crate::error::failed;

/// What begins the name of a file that is still arriving.
const INCOMING: &str = ".incoming-";

/// Up to so many files are synced one by one; above it, the file system is synced
/// once, which also writes out what others have not: fewer commits, but not ours alone.
pub const SYNC_EACH_MAX: usize = 32;
/// A batch's size: open files, and bytes lost to a connection that drops.
const BATCH_FILES: usize = 256;
const BATCH_BYTES: u64 = 64 * 1024 * 1024;

/// Why bytes did not get into the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory.
    #[error("the store {path} cannot be opened{}", crate::error::disk_hint(source))]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing, or making it durable.
    #[error("{path} cannot be written to the store{}", crate::error::disk_hint(source))]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Fewer bytes than promised.
    #[error("the artifact {digest} is short: {got} of {size} bytes arrived")]
    Short {
        /// Which.
        digest: Digest,
        /// Bytes wanted.
        size: u64,
        /// Bytes that came.
        got: u64,
    },
    /// More bytes than promised.
    #[error("the artifact {digest} is longer than its {size} bytes")]
    Long {
        /// Which.
        digest: Digest,
        /// Bytes wanted.
        size: u64,
    },
    /// Other bytes than promised.
    #[error("the artifact {digest} arrived with the sha256 {got}: its bytes were changed on the way or in the depot")]
    Corrupt {
        /// Which.
        digest: Digest,
        /// Of what came.
        got: Digest,
    },
}

impl StoreError {
    /// For the machine: wrong bytes are `verify`, the rest is `disk`.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Open { .. } | Self::Write { .. } => Cause::Disk,
            Self::Short { .. } | Self::Long { .. } | Self::Corrupt { .. } => Cause::Verify,
        };
        failed(cause, self)
    }
}

/// The directory of files by digest.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens it, makes its directory if need be and drops what an earlier run
    /// left half written.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(dir: PathBuf) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: dir.clone(), source };
        durable::make_dir(&dir, 0o700).map_err(open)?;
        for entry in fs::read_dir(&dir).map_err(open)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(INCOMING) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { dir })
    }

    /// Where that digest is, or would be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// Whether it is there with that size. Its bytes are hashed again when a
    /// tree is laid out from it. One with another size is removed.
    #[must_use]
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() == size => true,
            Ok(_) => {
                let _ = fs::remove_file(&path);
                false
            }
            Err(_) => false,
        }
    }

    /// Drops a file whose bytes turned out to be wrong.
    pub fn remove(&self, digest: &Digest) {
        let _ = fs::remove_file(self.path(digest));
    }

    /// Opens a file to copy from.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn open_file(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.path(digest))
    }

    /// Begins a file.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn incoming(&self, digest: Digest, size: u64) -> Result<Incoming, StoreError> {
        // Two components may fetch the same digest at once.
        static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let temp = self.dir.join(format!("{INCOMING}{}-{serial}", digest.short()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&temp);
        let file = file.map_err(|source| StoreError::Write { path: temp.clone(), source })?;
        Ok(Incoming { file: Some(file), temp, path: self.path(&digest), digest, size, got: 0, hasher: Hasher::new() })
    }

    /// Begins a batch of files.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn batch(&self) -> Result<Batch, StoreError> {
        // Open before the first write: it then hears of every error since.
        let dir = File::open(&self.dir).map_err(|source| StoreError::Open { path: self.dir.clone(), source })?;
        Ok(Batch { dir, path: self.dir.clone(), arrived: Vec::new(), bytes: 0 })
    }

    /// Deletes every file that is not in `keep`; returns how many.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn collect(&self, keep: &BTreeSet<Digest>) -> io::Result<usize> {
        let mut gone = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
            if digest.is_some_and(|digest| !keep.contains(&digest)) {
                fs::remove_file(entry.path())?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

/// A file that arrives. Dropped before [`Incoming::finish`], it leaves nothing.
pub struct Incoming {
    file: Option<File>,
    temp: PathBuf,
    path: PathBuf,
    digest: Digest,
    size: u64,
    got: u64,
    hasher: Hasher,
}

impl Incoming {
    /// Takes in the next bytes.
    ///
    /// # Errors
    /// [`StoreError::Long`], [`StoreError::Write`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.got = self.got.saturating_add(bytes.len() as u64);
        if self.got > self.size {
            return Err(StoreError::Long { digest: self.digest, size: self.size });
        }
        self.hasher.update(bytes);
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        file.write_all(bytes).map_err(|source| StoreError::Write { path: self.temp.clone(), source })
    }

    /// Checks size and digest. The file gets its name with its [`Batch`].
    ///
    /// # Errors
    /// [`StoreError::Short`], [`StoreError::Corrupt`]: nothing is left then.
    pub fn finish(mut self) -> Result<Arrived, StoreError> {
        if self.got != self.size {
            return Err(StoreError::Short { digest: self.digest, size: self.size, got: self.got });
        }
        let got = std::mem::take(&mut self.hasher).finish();
        if got != self.digest {
            return Err(StoreError::Corrupt { digest: self.digest, got });
        }
        Ok(Arrived(self))
    }
}

/// A file whose bytes are right, but not durable yet, and without its name.
/// Dropped, it leaves nothing.
pub struct Arrived(Incoming);

impl Arrived {
    fn sync(&self) -> Result<(), StoreError> {
        let synced = self.0.file.as_ref().map_or(Ok(()), File::sync_all);
        synced.map_err(|source| StoreError::Write { path: self.0.temp.clone(), source })
    }

    fn name(mut self) -> Result<(), StoreError> {
        fs::rename(&self.0.temp, &self.0.path).map_err(|source| StoreError::Write { path: self.0.path.clone(), source })?;
        self.0.file = None;
        Ok(())
    }
}

/// Files that become durable together: a file system that syncs each of
/// thousands of small ones takes seconds for it.
pub struct Batch {
    dir: File,
    path: PathBuf,
    arrived: Vec<Arrived>,
    bytes: u64,
}

impl Batch {
    /// Adds a file.
    pub fn add(&mut self, arrived: Arrived) {
        self.bytes = self.bytes.saturating_add(arrived.0.size);
        self.arrived.push(arrived);
    }

    /// Enough has come together; [`Batch::keep`] it.
    #[must_use]
    pub fn full(&self) -> bool {
        self.arrived.len() >= BATCH_FILES || self.bytes >= BATCH_BYTES
    }

    /// Makes all bytes durable, then gives them their names, then makes those
    /// durable. Returns how many; the batch is empty then.
    ///
    /// # Errors
    /// [`StoreError::Write`]: none of them counts as kept.
    pub fn keep(&mut self) -> Result<usize, StoreError> {
        let write = |source| StoreError::Write { path: self.path.clone(), source };
        let arrived = std::mem::take(&mut self.arrived);
        self.bytes = 0;
        if arrived.len() > SYNC_EACH_MAX {
            rustix::fs::syncfs(&self.dir).map_err(|errno| write(errno.into()))?;
        } else {
            arrived.iter().try_for_each(Arrived::sync)?;
        }
        let count = arrived.len();
        arrived.into_iter().try_for_each(Arrived::name)?;
        if count > 0 {
            self.dir.sync_all().map_err(write)?;
        }
        Ok(count)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.temp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        (dir, store)
    }

    fn put(store: &Store, digest: Digest, size: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut incoming = store.incoming(digest, size)?;
        for part in bytes.chunks(3) {
            incoming.write(part)?;
        }
        let mut batch = store.batch()?;
        batch.add(incoming.finish()?);
        batch.keep().map(drop)
    }

    fn names(store: &Store) -> usize {
        fs::read_dir(&store.dir).unwrap().count()
    }

    #[test]
    fn right_bytes_get_their_name() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello world");
        put(&store, digest, 11, b"hello world").unwrap();
        assert!(store.has(&digest, 11));
        assert_eq!(fs::read(store.path(&digest)).unwrap(), b"hello world");
    }

    #[test]
    fn wrong_bytes_leave_nothing_and_are_a_verify_failure() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello world");
        let flipped = put(&store, digest, 11, b"hello worle").unwrap_err();
        assert!(matches!(flipped, StoreError::Corrupt { .. }), "{flipped}");
        let short = put(&store, digest, 11, b"hello worl").unwrap_err();
        assert!(matches!(short, StoreError::Short { got: 10, .. }), "{short}");
        let long = put(&store, digest, 11, b"hello world!").unwrap_err();
        assert!(matches!(long, StoreError::Long { .. }), "{long}");
        let wrong_size = put(&store, digest, 12, b"hello world").unwrap_err();
        assert!(matches!(wrong_size, StoreError::Short { .. }), "{wrong_size}");
        for error in [flipped, short, long, wrong_size] {
            assert_eq!(error.failure().cause, Cause::Verify);
            assert!(error.failure().message.contains(&digest.to_string()));
        }
        assert_eq!(names(&store), 0);
    }

    #[test]
    fn a_disk_that_refuses_is_a_disk_failure() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello");
        let mut incoming = store.incoming(digest, 5).unwrap();
        // /dev/full answers every write with ENOSPC.
        incoming.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let error = incoming.write(b"hello").unwrap_err();
        assert_eq!(error.failure().cause, Cause::Disk);
        assert!(error.failure().message.contains("the disk is full"), "{}", error.failure().message);
        drop(incoming);
        assert_eq!(names(&store), 0);
    }

    #[test]
    fn a_batch_gets_its_names_together_or_leaves_nothing() {
        let (_dir, store) = store();
        for count in [1, SYNC_EACH_MAX + 1] {
            for keep in [false, true] {
                let mut batch = store.batch().unwrap();
                let digests: Vec<Digest> = (0..count).map(|n| Digest::of(format!("{count}-{n}").as_bytes())).collect();
                for (n, digest) in digests.iter().enumerate() {
                    let text = format!("{count}-{n}");
                    let mut incoming = store.incoming(*digest, text.len() as u64).unwrap();
                    incoming.write(text.as_bytes()).unwrap();
                    batch.add(incoming.finish().unwrap());
                }
                assert!(!store.path(&digests[0]).exists());
                if keep {
                    assert_eq!(batch.keep().unwrap(), count);
                }
                drop(batch);
                assert_eq!(digests.iter().filter(|d| store.path(d).exists()).count(), if keep { count } else { 0 });
            }
        }
        assert_eq!(names(&store), 1 + SYNC_EACH_MAX + 1);
    }

    #[test]
    fn leftovers_are_swept_and_a_file_of_another_size_does_not_count() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello");
        fs::write(store.dir.join(".incoming-abc-0"), "x").unwrap();
        fs::write(store.path(&digest), "hell").unwrap();
        let store = Store::open(store.dir).unwrap();
        assert!(!store.has(&digest, 5));
        assert_eq!(names(&store), 0);
    }

    #[test]
    fn collect_keeps_what_it_is_told_to() {
        let (_dir, store) = store();
        for text in [b"a", b"b", b"c"] {
            put(&store, Digest::of(text), 1, text).unwrap();
        }
        assert_eq!(store.collect(&BTreeSet::from([Digest::of(b"b")])).unwrap(), 2);
        assert!(store.has(&Digest::of(b"b"), 1));
        assert_eq!(names(&store), 1);
    }
}
