//! Writing a tree's files from the store: copied or reflinked, read back, durable.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tidegate_protocol::Component;
use tidegate_protocol::release::FileEntry;

use super::compare::hash;
use super::{BUFFER, Drifted, TEMP, TreeError, io_error};
use crate::context::Installed;
use crate::durable;
use crate::store::{SYNC_EACH_MAX, Store};

/// Copies every file, re-reads and compares all of them, makes them durable.
pub(super) fn fill(root: &Path, store: &Store, component: &Component, go_on: &dyn Fn() -> bool) -> Result<(), TreeError> {
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
pub(super) fn repair(tree: &Installed, store: &Store, drifted: &[Drifted], go_on: &dyn Fn() -> bool) -> Result<(), TreeError> {
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
