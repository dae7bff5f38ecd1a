//! Small files that survive a power cut: written beside, fsynced, renamed over,
//! directory fsynced. Everything here blocks; call it off the async runtime.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Replaces a file's whole content, or leaves it as it was. An error after the
/// rename (the directory's fsync) leaves it unknown which: the caller must treat
/// it as not written.
///
/// # Errors
/// Whatever the disk says.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (dir, temp) = beside(path)?;
    let written = write_new(&temp, bytes, mode).and_then(|()| fs::rename(&temp, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temp);
        return Err(error);
    }
    sync_dir(&dir)
}

fn write_new(temp: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // One writer per path: a leftover of a crash is ours to remove.
    remove_if_there(temp)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(temp)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Points a symbolic link at `target` by one rename.
///
/// # Errors
/// Whatever the disk says.
pub fn replace_link(path: &Path, target: &Path) -> io::Result<()> {
    let (dir, temp) = beside(path)?;
    remove_if_there(&temp)?;
    std::os::unix::fs::symlink(target, &temp)?;
    if let Err(error) = fs::rename(&temp, path) {
        let _ = fs::remove_file(&temp);
        return Err(error);
    }
    sync_dir(&dir)
}

/// Removes a file or link and makes that durable; not there is fine.
///
/// # Errors
/// Whatever the disk says.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_if_there(path)?;
    let (dir, _) = beside(path)?;
    sync_dir(&dir)
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// Whatever the disk says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a directory and its parents; an existing one keeps its mode.
///
/// # Errors
/// Whatever the disk says.
pub fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(dir)
}

/// A whole file, refused when it is larger than `max` bytes; `None` if it is not there.
///
/// # Errors
/// Whatever the disk says; [`io::ErrorKind::FileTooLarge`].
pub fn read_bounded(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Some(bytes)) }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The directory of a path, and the temporary name beside it.
fn beside(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut temp = std::ffi::OsString::from(".tmp-");
    temp.push(name);
    Ok((dir.to_owned(), dir.join(temp)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_forgets_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(dir.path().join(".tmp-a"), "torn").unwrap();
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read_bounded(&path, 2).is_err());
        assert!(!dir.path().join(".tmp-a").exists());
        assert!(read_bounded(&dir.path().join("none"), 3).unwrap().is_none());
    }
}
