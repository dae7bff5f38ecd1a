//! Reads a directory or an archive into the entries of a tree, hashing every
//! file once. Nothing is followed, nothing but plain files and links is taken.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tidegate_protocol::Digest;
use tidegate_protocol::digest::Hasher;

use super::error::BundleError;
use super::resolve::{Content, Node};
use super::tree::Bounds;

const BUFFER: usize = 128 * 1024;
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// `0o555` if anyone may execute it, else `0o444`.
const fn shipped_mode(mode: u32) -> u32 {
    if mode & 0o111 == 0 { 0o444 } else { 0o555 }
}

/// Copies all of `from`, hashing what passes.
pub(super) fn hash_copy(from: &mut impl Read, to: &mut impl Write) -> Result<(Digest, u64), CopyError> {
    let (mut hasher, mut size, mut buffer) = (Hasher::new(), 0_u64, vec![0; BUFFER]);
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(CopyError::Read(e)),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        hasher.update(bytes);
        to.write_all(bytes).map_err(CopyError::Write)?;
        size += read as u64;
    }
}

/// Which side of a copy failed.
pub(super) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl CopyError {
    pub(super) fn at(self, read: &Path, write: &Path) -> BundleError {
        match self {
            Self::Read(source) => BundleError::Read { path: read.to_path_buf(), source },
            Self::Write(source) => BundleError::Write { path: write.to_path_buf(), source },
        }
    }
}

/// Opens a plain file without following a link.
pub(super) fn open(path: &Path) -> Result<File, BundleError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(NO_FOLLOW)
        .open(path)
        .map_err(|source| BundleError::Read { path: path.to_path_buf(), source })
}

/// A directory on disk.
pub(super) fn directory(root: &Path, bounds: Bounds) -> Result<BTreeMap<String, Node>, BundleError> {
    let mut nodes = BTreeMap::new();
    let mut todo = vec![(root.to_path_buf(), String::new())];
    while let Some((dir, prefix)) = todo.pop() {
        let read = |source| BundleError::Read { path: dir.clone(), source };
        for item in fs::read_dir(&dir).map_err(read)? {
            let item = item.map_err(read)?;
            let path = item.path();
            let Some(name) = item.file_name().to_str().map(|n| if prefix.is_empty() { n.to_string() } else { format!("{prefix}/{n}") })
            else {
                return Err(refuse(root, &path.to_string_lossy(), "has a name that is not UTF-8", "rename it"));
            };
            let meta = fs::symlink_metadata(&path).map_err(|source| BundleError::Read { path: path.clone(), source })?;
            let node = if meta.is_dir() {
                todo.push((path, name.clone()));
                Node::Dir
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).map_err(|source| BundleError::Read { path: path.clone(), source })?;
                let Some(target) = target.to_str() else {
                    return Err(refuse(root, &name, "is a link to a name that is not UTF-8", "replace the link by a copy"));
                };
                Node::Link(target.to_string())
            } else if meta.is_file() {
                special_bits(root, &name, meta.mode())?;
                let mut file = open(&path)?;
                let (digest, size) = hash_copy(&mut file, &mut io::sink()).map_err(|e| e.at(&path, &path))?;
                Node::File(Content { digest, size, mode: shipped_mode(meta.mode()), bytes_at: path })
            } else {
                return Err(refuse(
                    root,
                    &name,
                    "is a device, a fifo or a socket",
                    "a release ships plain files only: remove it from the tree",
                ));
            };
            insert(root, &mut nodes, &name, node, bounds)?;
        }
    }
    Ok(nodes)
}

/// A tar archive, compressed by the manner its name tells. Files are unpacked
/// into `spool`, which the caller removes.
pub(super) fn archive(path: &Path, spool: &Path, bounds: Bounds) -> Result<BTreeMap<String, Node>, BundleError> {
    let cannot = |source| BundleError::Read { path: path.to_path_buf(), source };
    let file = BufReader::with_capacity(BUFFER, File::open(path).map_err(cannot)?);
    let name = path.to_string_lossy();
    let raw: Box<dyn Read> = if name.ends_with(".gz") || name.ends_with(".tgz") {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else if name.ends_with(".zst") {
        Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(cannot)?)
    } else {
        Box::new(file)
    };
    // Headers count too: a bomb need not hold a single file.
    let mut archive = tar::Archive::new(Bounded { inner: raw, left: bounds.bytes, hit: false });
    let mut nodes = BTreeMap::new();
    let broken = |e: &io::Error| BundleError::Tree {
        tree: path.to_path_buf(),
        what: format!("is not a whole tar archive: {e}"),
        fix: format!(
            "make it again with tar; a tree is a directory, .tar, .tar.gz or .tar.zst of at most {} entries and {} bytes unpacked",
            bounds.entries, bounds.bytes
        ),
    };
    for entry in archive.entries().map_err(|e| broken(&e))? {
        let mut entry = entry.map_err(|e| broken(&e))?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let bytes = entry.path_bytes().into_owned();
        let Some(name) = std::str::from_utf8(&bytes).ok().map(String::from) else {
            return Err(refuse(path, &String::from_utf8_lossy(&bytes), "has a name that is not UTF-8", "rename it"));
        };
        let Some(plain) = plain_name(&name) else {
            return Err(refuse(
                path,
                &name,
                "leads out of the tree",
                "names in an archive are relative and without '..': pack it with `tar -C DIR -cf FILE .`",
            ));
        };
        if plain.is_empty() {
            continue;
        }
        let node = if kind.is_dir() {
            Node::Dir
        } else if kind.is_symlink() {
            let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
            let Ok(target) = String::from_utf8(target) else {
                return Err(refuse(path, &plain, "is a link to a name that is not UTF-8", "replace the link by a copy"));
            };
            Node::Link(target)
        } else if kind.is_hard_link() {
            return Err(refuse(
                path,
                &plain,
                "is a hard link",
                "pack it with `tar --hard-dereference`, so that the archive holds plain files",
            ));
        } else if kind.is_file() || kind.is_contiguous() {
            let mode = entry.header().mode().map_err(|e| broken(&e))?;
            special_bits(path, &plain, mode)?;
            let to = spool.join(format!("{}-{}", spool_prefix(path), nodes.len()));
            let mut out = File::create_new(&to).map_err(|source| BundleError::Write { path: to.clone(), source })?;
            let wanted = entry.size();
            let (digest, size) = match hash_copy(&mut entry, &mut out) {
                Ok(done) => done,
                Err(CopyError::Read(e)) => return Err(broken(&e)),
                Err(e) => return Err(e.at(path, &to)),
            };
            if size != wanted {
                return Err(refuse(path, &plain, &format!("ends after {size} of {wanted} bytes"), "the archive is cut off: make it again"));
            }
            Node::File(Content { digest, size, mode: shipped_mode(mode), bytes_at: to })
        } else {
            return Err(refuse(
                path,
                &plain,
                "is a device, a fifo or a sparse file",
                "a release ships plain files only: leave it out, and pack without --sparse",
            ));
        };
        insert(path, &mut nodes, &plain, node, bounds)?;
    }
    Ok(nodes)
}

/// Two trees of one release may be archives with equal file numbers.
fn spool_prefix(path: &Path) -> String {
    Digest::of(path.as_os_str().as_encoded_bytes()).short()
}

/// `./bin//api/` → `bin/api`; nothing for a name that is absolute or climbs.
fn plain_name(name: &str) -> Option<String> {
    if name.starts_with('/') {
        return None;
    }
    let parts: Vec<&str> = name.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") { None } else { Some(parts.join("/")) }
}

fn insert(tree: &Path, nodes: &mut BTreeMap<String, Node>, name: &str, node: Node, bounds: Bounds) -> Result<(), BundleError> {
    if name.len() > tidegate_protocol::limits::PATH_BYTES_MAX {
        return Err(refuse(tree, name, "has too long a name", "at most 1024 bytes are shipped: shorten it"));
    }
    // Archives may leave directories out.
    for (at, _) in name.match_indices('/') {
        let parent = name.get(..at).unwrap_or_default();
        match nodes.get(parent) {
            Some(Node::Dir) => {}
            None => drop(nodes.insert(parent.to_string(), Node::Dir)),
            Some(_) => {
                return Err(refuse(tree, name, &format!("lies below {parent:?}, which is not a directory"), "remove one of the two"));
            }
        }
    }
    match (nodes.get(name), &node) {
        (Some(Node::Dir), Node::Dir) => return Ok(()),
        (Some(_), _) => return Err(refuse(tree, name, "stands twice", "keep one of the two: only the last would be seen when unpacked")),
        (None, _) => {}
    }
    nodes.insert(name.to_string(), node);
    if nodes.len() > bounds.entries {
        return Err(BundleError::Tree {
            tree: tree.to_path_buf(),
            what: format!("holds more than {} entries", bounds.entries),
            fix: "ship fewer files, or split it into several components".into(),
        });
    }
    Ok(())
}

fn special_bits(tree: &Path, name: &str, mode: u32) -> Result<(), BundleError> {
    if mode & 0o7000 == 0 {
        return Ok(());
    }
    Err(refuse(
        tree,
        name,
        &format!("has mode {:o}: setuid, setgid or sticky", mode & 0o7777),
        &format!("run `chmod ug-s,-t {name}`; a service that needs a privilege gets it from its unit"),
    ))
}

fn refuse(tree: &Path, entry: &str, what: &str, fix: &str) -> BundleError {
    let entry: String = entry.chars().take(200).collect();
    BundleError::Entry { tree: PathBuf::from(tree), entry, what: what.into(), fix: fix.into() }
}

/// Ends in an error after so many bytes: what a bomb unpacks to must not fill the disk.
struct Bounded<R> {
    inner: R,
    left: u64,
    hit: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            // One byte more tells an archive of exactly this size from a larger one.
            if self.hit || self.inner.read(&mut [0])? > 0 {
                self.hit = true;
                return Err(io::Error::other("it unpacks to more bytes than allowed"));
            }
            return Ok(0);
        }
        let read = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.left -= read as u64;
        Ok(read)
    }
}
