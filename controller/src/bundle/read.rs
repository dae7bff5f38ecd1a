//! Reads a bundle back, strictly: only what the manifest lists, every byte checked.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use tidegate_protocol::digest::Hasher;
use tidegate_protocol::{Digest, Release, limits};

use super::error::BundleError;
use super::{Progress, format};

/// A bundle whose every digest was verified.
#[derive(Debug)]
pub struct Bundle {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub release: Release,
    /// The manifest's bytes, as packed.
    pub manifest: Vec<u8>,
    /// sha256 of them.
    pub digest: Digest,
    /// Sorted by digest.
    pub files: Vec<BundleFile>,
}

/// One file in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleFile {
    /// sha256.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Where its bytes begin in the bundle.
    pub offset: u64,
}

impl Bundle {
    /// Opens a bundle and verifies all of it.
    ///
    /// # Errors
    /// [`BundleError::Damaged`] names the first entry that is not as it should be.
    pub fn open(path: &Path, progress: Progress<'_>) -> Result<Self, BundleError> {
        let file = File::open(path).map_err(|source| BundleError::Read { path: path.to_path_buf(), source })?;
        let mut reader = Reader { path, from: BufReader::with_capacity(256 * 1024, file), at: 0 };
        let (manifest, digest) = reader.manifest()?;
        let release: Release = serde_json::from_slice(&manifest)
            .map_err(|e| reader.damaged(format!("{}: not a manifest of this version of Tidegate: {e}", format::MANIFEST)))?;
        release.check().map_err(|source| BundleError::Manifest { file: path.to_path_buf(), source })?;
        let artifacts = release.artifacts();
        let total = artifacts.values().fold(0_u64, |sum, size| sum.saturating_add(*size));
        let (mut files, mut done) = (Vec::with_capacity(artifacts.len()), 0_u64);
        progress(done, total);
        for (digest, size) in artifacts {
            if size > limits::ARTIFACT_BYTES_MAX {
                return Err(reader.damaged(format!("{}: {size} bytes are more than a file may have", format::member(&digest))));
            }
            let name = format::member(&digest);
            reader.header(&name, size)?;
            let offset = reader.at;
            let seen = reader.hash(&name, size)?;
            if seen != digest {
                return Err(reader.damaged(format!("{name}: its bytes have the digest {seen}: they were changed")));
            }
            reader.padding(&name, size)?;
            files.push(BundleFile { digest, size, offset });
            done = done.saturating_add(size);
            progress(done, total);
        }
        reader.end()?;
        Ok(Self { path: path.to_path_buf(), release, manifest, digest, files })
    }
}

struct Reader<'a> {
    path: &'a Path,
    from: BufReader<File>,
    at: u64,
}

impl Reader<'_> {
    fn damaged(&self, what: String) -> BundleError {
        BundleError::Damaged { bundle: self.path.to_path_buf(), what }
    }

    fn exact(&mut self, what: &str, into: &mut [u8]) -> Result<(), BundleError> {
        self.from.read_exact(into).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged(format!("the file ends in {what}: it was cut off")),
            _ => BundleError::Read { path: self.path.to_path_buf(), source: e },
        })?;
        self.at += into.len() as u64;
        Ok(())
    }

    fn block(&mut self, what: &str) -> Result<[u8; format::BLOCK], BundleError> {
        let mut block = [0; format::BLOCK];
        self.exact(what, &mut block)?;
        Ok(block)
    }

    fn manifest(&mut self) -> Result<(Vec<u8>, Digest), BundleError> {
        let name = format::MANIFEST;
        let (first, second) = (self.block(name)?, self.block(name)?);
        let header = self.block(name)?;
        let size = match format::describe(&header) {
            (seen, Some(size)) if seen == name && size <= limits::MANIFEST_BYTES_MAX && header == format::header(name, size) => size,
            _ => {
                return Err(self.damaged(format!(
                    "{name}: not the first entry, or its header was changed: this is not a bundle of `tidegate release pack`"
                )));
            }
        };
        // Bounded above.
        let mut manifest = vec![0; usize::try_from(size).unwrap_or(0)];
        self.exact(name, &mut manifest)?;
        self.padding(name, size)?;
        let digest = Digest::of(&manifest);
        if format::preamble(&digest) != [first, second].as_flattened() {
            return Err(self.damaged(format!("{name}: it does not have the digest that was noted when it was packed: it was changed")));
        }
        Ok((manifest, digest))
    }

    fn header(&mut self, name: &str, size: u64) -> Result<(), BundleError> {
        let header = self.block(name)?;
        if header == format::header(name, size) {
            return Ok(());
        }
        let what = match format::describe(&header) {
            (seen, _) if header == [0; format::BLOCK] || seen.is_empty() => format!("{name} is missing"),
            (seen, _) if seen != name => format!("{seen:?} stands where {name} belongs: an entry is missing or one too many"),
            (_, Some(seen)) if seen != size => format!("{name}: {seen} bytes, the manifest says {size}"),
            _ => format!("{name}: its header was changed"),
        };
        Err(self.damaged(what))
    }

    fn hash(&mut self, name: &str, size: u64) -> Result<Digest, BundleError> {
        let (mut hasher, mut left, mut buffer) = (Hasher::new(), size, vec![0; 128 * 1024]);
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let Some(chunk) = buffer.get_mut(..take) else { break };
            self.exact(name, chunk)?;
            hasher.update(chunk);
            left -= take as u64;
        }
        Ok(hasher.finish())
    }

    fn padding(&mut self, name: &str, size: u64) -> Result<(), BundleError> {
        let mut rest = vec![0; format::padding(size)];
        self.exact(name, &mut rest)?;
        if rest.iter().any(|b| *b != 0) {
            return Err(self.damaged(format!("{name}: bytes after its end")));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), BundleError> {
        let mut end = format::END;
        let (first, second) = end.split_at_mut(format::BLOCK);
        self.exact("the end mark", first)?;
        if first.iter().any(|b| *b != 0) {
            let mut header = [0; format::BLOCK];
            header.copy_from_slice(first);
            let (name, _) = format::describe(&header);
            return Err(self.damaged(format!("{name:?} is not in the manifest")));
        }
        self.exact("the end mark", second)?;
        let whole = second.iter().all(|b| *b == 0);
        let length = self.from.get_ref().metadata().map_err(|source| BundleError::Read { path: self.path.to_path_buf(), source })?.len();
        let position = self.from.stream_position().map_err(|source| BundleError::Read { path: self.path.to_path_buf(), source })?;
        if whole && length == position { Ok(()) } else { Err(self.damaged("bytes after the end mark".into())) }
    }
}
