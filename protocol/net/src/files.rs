//! Small files that must not be lost, torn or read by others.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest PEM file that is read, bytes: a chain of a few certificates has a few KiB.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading failed.
    #[error("{path}: cannot be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Far larger than what it should hold.
    #[error("{path}: over {PEM_BYTES_MAX} bytes, this is not a PEM file of certificates or keys")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Writing, syncing or renaming failed; the old file, if any, is untouched.
    #[error("{path}: cannot be written")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes a file that only its owner may read (0600): complete and durable, or
/// not at all. Blocks: not for the async runtime's threads.
///
/// # Errors
/// [`FileError::Write`]; what stood at `path` before is then untouched.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_durable(path, bytes, 0o600).map_err(|source| FileError::Write { path: path.into(), source })
}

/// The same for what everybody may read (0644).
pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_durable(path, bytes, 0o644).map_err(|source| FileError::Write { path: path.into(), source })
}

/// Makes a directory, and its parents, that only its owner may enter (0700).
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| FileError::Write { path: dir.into(), source })
}

/// All bytes of a PEM file, bounded.
pub(crate) fn read_pem(path: &Path) -> Result<Vec<u8>, FileError> {
    let read = |source| FileError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(read)?.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > PEM_BYTES_MAX { Err(FileError::TooLarge { path: path.into() }) } else { Ok(bytes) }
}

fn write_durable(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    // A bare name lies in the working directory; an empty path could not be opened.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut random = [0; 4];
    getrandom::fill(&mut random)?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{:08x}", u32::from_le_bytes(random)));
    let temporary = dir.join(temporary_name);

    let written = (|| {
        // `create_new` with the mode: no instant at which others could open it.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // Best effort: the error that counts is the one above.
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        write_secret(&path, b"one").unwrap();
        write_secret(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        // A directory cannot be replaced by a file: the rename fails, after the temporary was written.
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(write_secret(&path, b"x"), Err(FileError::Write { .. })));
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn an_endless_file_is_not_read() {
        assert!(matches!(read_pem(Path::new("/dev/zero")), Err(FileError::TooLarge { .. })));
    }
}
