//! A component's or task's `tree`: a directory or an archive, as plain files.

use std::fs;
use std::path::Path;

use tidegate_protocol::limits;

use super::error::BundleError;
use super::resolve::{self, TreeFile};
use super::walk;

/// What an archive or a directory may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Files, links and directories.
    pub(super) entries: usize,
    /// Unpacked, headers included. For archives only.
    pub(super) bytes: u64,
}

impl Bounds {
    /// Small archives may unpack to 256 MiB, larger ones to 200 times their size:
    /// real trees stay far below, decompression bombs far above.
    pub(super) fn of_archive(size: u64) -> Self {
        Self { entries: limits::FILES_MAX * 2, bytes: size.saturating_mul(200).clamp(256 << 20, limits::ARTIFACT_BYTES_MAX) }
    }
}

/// Reads a tree. Files of archives are unpacked into `spool`.
pub(super) fn read(path: &Path, spool: &Path, bounds: Option<Bounds>) -> Result<Vec<TreeFile>, BundleError> {
    let tree = |what: &str, fix: &str| BundleError::Tree { tree: path.to_path_buf(), what: what.into(), fix: fix.into() };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(tree("the tree does not exist", "build it first, or correct `tree`; it is relative to release.toml"));
        }
        Err(source) => return Err(BundleError::Read { path: path.to_path_buf(), source }),
    };
    let nodes = if meta.is_dir() {
        walk::directory(path, bounds.unwrap_or(Bounds { entries: limits::FILES_MAX * 2, bytes: u64::MAX }))?
    } else if meta.is_file() && is_archive(path) {
        walk::archive(path, spool, bounds.unwrap_or_else(|| Bounds::of_archive(meta.len())))?
    } else {
        return Err(tree("is neither a directory nor a tar archive", "`tree` is a directory, .tar, .tar.gz, .tgz or .tar.zst"));
    };
    let files = resolve::files(path, &nodes)?;
    if files.is_empty() {
        return Err(tree("the tree holds no file", "build it first, or correct `tree`"));
    }
    Ok(files)
}

fn is_archive(path: &Path) -> bool {
    let name = path.to_string_lossy();
    [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(path: &Path, files: &[(&str, usize)]) {
        let out = zstd::stream::write::Encoder::new(fs::File::create(path).unwrap(), 1).unwrap().auto_finish();
        let mut tar = tar::Builder::new(out);
        for (name, size) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(*size as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &vec![0; *size][..]).unwrap();
        }
        tar.finish().unwrap();
    }

    #[test]
    fn a_bomb_is_cut_off_at_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("spool");
        fs::create_dir(&spool).unwrap();
        let path = dir.path().join("t.tar.zst");
        archive(&path, &[("a", 100_000), ("b", 100_000)]);
        let small = Bounds { entries: 10, bytes: 150_000 };
        let err = read(&path, &spool, Some(small)).unwrap_err();
        assert!(err.to_string().contains("more bytes than allowed"), "{err}");
        let unpacked: u64 = fs::read_dir(&spool).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(unpacked <= 150_000, "{unpacked}");

        let many: Vec<(String, usize)> = (0..20).map(|n| (format!("f{n}"), 1)).collect();
        archive(&path, &many.iter().map(|(n, s)| (n.as_str(), *s)).collect::<Vec<_>>());
        fs::remove_dir_all(&spool).unwrap();
        fs::create_dir(&spool).unwrap();
        let err = read(&path, &spool, Some(Bounds { entries: 10, bytes: 1 << 20 })).unwrap_err();
        assert!(err.to_string().contains("more than 10 entries"), "{err}");
    }

    #[test]
    fn the_default_bound_lies_far_below_a_bomb() {
        assert_eq!(Bounds::of_archive(1).bytes, 256 << 20);
        assert_eq!(Bounds::of_archive(100 << 20).bytes, 20_000 << 20);
        assert_eq!(Bounds::of_archive(u64::MAX).bytes, limits::ARTIFACT_BYTES_MAX);
    }
}
