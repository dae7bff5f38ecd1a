//! From the entries of a tree to plain files: links are resolved on names alone,
//! never by the file system, so that none can lead out of the tree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tidegate_protocol::release::FileEntry;
use tidegate_protocol::{Digest, RelPath};

use super::error::BundleError;

/// Longest chain of links.
const LINKS_MAX: usize = 40;

/// An entry of a tree, by its name.
#[derive(Debug)]
pub(super) enum Node {
    Dir,
    File(Content),
    /// A symbolic link and what it says.
    Link(String),
}

/// A plain file: what it holds, and where its bytes lie until they are packed.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) bytes_at: PathBuf,
}

/// A file of a tree and where its bytes lie.
#[derive(Debug)]
pub(super) struct TreeFile {
    pub(super) entry: FileEntry,
    pub(super) bytes_at: PathBuf,
}

/// Every file, links to files replaced by copies, sorted by path.
pub(super) fn files(tree: &Path, nodes: &BTreeMap<String, Node>) -> Result<Vec<TreeFile>, BundleError> {
    let mut out = Vec::new();
    for (name, node) in nodes {
        let content = match node {
            Node::Dir => continue,
            Node::File(content) => content,
            Node::Link(target) => follow(nodes, name, target).map_err(|what| BundleError::Entry {
                tree: tree.to_path_buf(),
                entry: name.clone(),
                what: format!("is a link to {target:?}, {what}"),
                fix:
                    "a release ships plain files: link to a regular file of the same tree by a relative path, or replace the link by a copy"
                        .into(),
            })?,
        };
        let path: RelPath = name.parse().map_err(|_| BundleError::Entry {
            tree: tree.to_path_buf(),
            entry: name.clone(),
            what: "is not a name that can be shipped".into(),
            fix: "rename it: no control characters, no backslash, at most 255 bytes a part and 1024 in all".into(),
        })?;
        out.push(TreeFile {
            entry: FileEntry { path, digest: content.digest, size: content.size, mode: content.mode },
            bytes_at: content.bytes_at.clone(),
        });
    }
    out.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
    Ok(out)
}

/// Walks a link through the names of the tree, as a kernel would whose root is
/// the tree and that refuses to climb above it.
fn follow<'a>(nodes: &'a BTreeMap<String, Node>, name: &str, target: &str) -> Result<&'a Content, &'static str> {
    let mut at: Vec<String> = name.split('/').map(String::from).collect();
    at.pop();
    // What is still to walk, next part last.
    let mut todo: Vec<String> = parts(target)?;
    let mut links = 1;
    while let Some(part) = todo.pop() {
        if part == ".." {
            if at.pop().is_none() {
                return Err("which leads out of the tree");
            }
            continue;
        }
        at.push(part);
        match nodes.get(&at.join("/")) {
            None => return Err("which does not exist in the tree"),
            Some(Node::Dir) => {}
            Some(Node::File(content)) if todo.is_empty() => return Ok(content),
            Some(Node::File(_)) => return Err("which goes through a file"),
            Some(Node::Link(next)) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err("a chain of too many links");
                }
                at.pop();
                todo.extend(parts(next)?);
            }
        }
    }
    Err("which is a directory")
}

/// The parts of a link's text in reverse.
fn parts(target: &str) -> Result<Vec<String>, &'static str> {
    if target.starts_with('/') {
        return Err("an absolute path out of the tree");
    }
    Ok(target.split('/').rev().filter(|p| !p.is_empty() && *p != ".").map(String::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(links: &[(&str, &str)]) -> BTreeMap<String, Node> {
        let content = Content { digest: Digest::of(b"x"), size: 1, mode: 0o444, bytes_at: PathBuf::new() };
        let mut nodes: BTreeMap<String, Node> =
            [("lib".into(), Node::Dir), ("lib/v1".into(), Node::Dir), ("lib/v1/a.so".into(), Node::File(content))].into();
        nodes.extend(links.iter().map(|(n, t)| ((*n).to_string(), Node::Link((*t).to_string()))));
        nodes
    }

    #[test]
    fn links_inside_become_copies() {
        let nodes = tree(&[("a.so", "lib/v1/a.so"), ("lib/now", "v1"), ("lib/b.so", "./now/../v1//a.so"), ("c.so", "lib/now/a.so")]);
        let err = files(Path::new("t"), &nodes).unwrap_err().to_string();
        assert!(err.contains("lib/now") && err.contains("directory"), "{err}");
        for (name, target) in [("a.so", "lib/v1/a.so"), ("lib/b.so", "./now/../v1//a.so"), ("c.so", "lib/now/a.so")] {
            assert_eq!(follow(&nodes, name, target).unwrap().size, 1, "{name}");
        }
    }

    #[test]
    fn every_other_link_is_refused_by_name() {
        let cases = [
            ("/etc/passwd", "absolute"),
            ("../../etc/passwd", "out of the tree"),
            ("lib/../../x", "out of the tree"),
            ("nowhere", "does not exist"),
            ("lib/v1/a.so/x", "through a file"),
            ("lib", "directory"),
            ("", "directory"),
            ("self", "too many"),
        ];
        for (target, wanted) in cases {
            let err = files(Path::new("t"), &tree(&[("self", target)])).unwrap_err();
            assert!(err.to_string().contains("\"self\"") && err.to_string().contains(wanted), "{target}: {err}");
            assert!(err.fix().contains("plain files"));
        }
    }
}
