//! Comparing a tree with its manifest. Reads only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tidegate_protocol::Digest;
use tidegate_protocol::digest::Hasher;
use tidegate_protocol::release::FileEntry;

use super::{BUFFER, TreeError};
use crate::context::Installed;

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

pub(super) fn hash(file: &mut File, buffer: &mut [u8], go_on: &dyn Fn() -> bool) -> Result<io::Result<Digest>, TreeError> {
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
