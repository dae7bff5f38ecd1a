//! Releases: uploaded file by file, imported as a whole, never changed.

use tidegate_net::FrameReceiver;
use tidegate_protocol::limits::MANIFEST_BYTES_MAX;
use tidegate_protocol::{Digest, Release, ReleaseId, ReleaseRef};
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};

use super::doc::{ImportDoc, ReleaseDoc, ReleaseShowDoc, UploadDoc, rfc3339};
use super::msg::{Blob, ErrorCode, ErrorDoc, UPLOAD_FILES_MAX};
use super::server::{Ended, Operators, blocking, chain, too_many};
use crate::core::json;
use crate::depot::{Depot, DepotError};
use crate::store::ReleaseRow;

/// An upload that stands still this long is cut.
const UPLOAD_STALL: Duration = Duration::from_secs(60);
/// Most bytes taken from the stream at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Takes in the bytes of files that follow a request.
pub(super) async fn upload(ctx: &Operators, recv: &mut FrameReceiver, files: Vec<Blob>) -> Result<String, Ended> {
    if files.len() > UPLOAD_FILES_MAX {
        return Err(too_many("files in one upload", files.len(), UPLOAD_FILES_MAX));
    }
    let announced = files.iter().fold(0_u64, |sum, f| sum.saturating_add(f.size));
    // One chunk waits while one is hashed and written.
    let (chunks, received) = mpsc::channel(1);
    let depot = ctx.depot.clone();
    let writer = tokio::task::spawn_blocking(move || write(&depot, &files, received));
    let mut arrived = 0_u64;
    while arrived < announced {
        let left = usize::try_from(announced - arrived).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let chunk = timeout(UPLOAD_STALL, recv.recv.read_chunk(left, true))
            .await
            .map_err(|_| refused("the upload stood still").fix("try again; what arrived whole is kept"))?
            .map_err(|e| refused("the upload broke off").cause(e.to_string()))?;
        let Some(chunk) = chunk else { break };
        arrived += chunk.bytes.len() as u64;
        if chunks.send(chunk.bytes).await.is_err() {
            // The writer said no; it tells why.
            break;
        }
    }
    drop(chunks);
    match writer.await {
        Ok(Ok(done)) => Ok(json(&done)?),
        Ok(Err(error @ (DepotError::OtherBytes { .. } | DepotError::OtherSize { .. } | DepotError::TooLarge { .. }))) => {
            Err(refused("a file was refused").cause(error.to_string()).fix("pack the release again").into())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(ErrorDoc::new(ErrorCode::Internal, "the upload's task ended early").cause(error.to_string()).into()),
    }
}

/// On a blocking thread: cuts the stream of chunks into the announced files.
fn write<B: AsRef<[u8]>>(depot: &Depot, files: &[Blob], mut chunks: mpsc::Receiver<B>) -> Result<UploadDoc, DepotError> {
    let mut done = UploadDoc { new_files: 0, new_bytes: 0 };
    let (mut chunk, mut offset): (Option<B>, usize) = (None, 0);
    for file in files {
        let present = depot.size(file.digest) == Some(file.size);
        let mut incoming = if present { None } else { Some(depot.receive(file.digest, file.size)?) };
        let mut left = file.size;
        while left > 0 {
            let rest = match &chunk {
                Some(chunk) if offset < chunk.as_ref().len() => chunk.as_ref().split_at(offset).1,
                _ => {
                    chunk = chunks.blocking_recv();
                    offset = 0;
                    if chunk.is_none() {
                        return Err(DepotError::OtherSize { digest: file.digest, wanted: file.size, found: file.size - left });
                    }
                    continue;
                }
            };
            let take = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if let Some(incoming) = &mut incoming {
                incoming.write(rest.split_at(take).0)?;
            }
            offset += take;
            left -= take as u64;
        }
        if let Some(incoming) = incoming {
            incoming.finish()?;
            done.new_files += 1;
            done.new_bytes += file.size;
        }
    }
    depot.sync()?;
    Ok(done)
}

/// Makes a release out of files that are there.
pub(super) async fn import(ctx: &Operators, manifest: Vec<u8>, by: &str) -> Result<String, Ended> {
    if manifest.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(refused(format!("the manifest has {} bytes, at most {MANIFEST_BYTES_MAX} are taken", manifest.len())).into());
    }
    let release: Release = serde_json::from_slice(&manifest)
        .map_err(|e| refused("the manifest does not read").cause(e.to_string()).fix("pack the release with this version of tidegate"))?;
    release.check().map_err(|e| refused("the release does not hold together").cause(e.to_string()))?;
    let reference = ReleaseRef { id: release.id(), manifest: Digest::of(&manifest) };
    // Imported before, it is gone through all the same: that mends a damaged depot.
    let known = ctx.store.release(reference.id.clone()).await?;
    if let Some(known) = &known {
        same(known, &reference)?;
    }
    let (depot, artifacts) = (ctx.depot.clone(), release.artifacts());
    let missing = blocking(move || depot.missing(&artifacts)).await?;
    if let Some(first) = missing.first() {
        return Err(refused(format!("{} file(s) of {} are not here, or have another size", missing.len(), reference.id))
            .cause(format!("the first is {first}"))
            .fix("import the bundle again")
            .into());
    }
    let depot = ctx.depot.clone();
    let new_bytes = if known.is_some() { 0 } else { manifest.len() as u64 };
    blocking(move || depot.put(&manifest)).await??;
    let row = ReleaseRow { release: reference.clone(), imported_at: ctx.clock.now(), imported_by: by.into() };
    let stands = ctx.store.add_release(row).await?;
    same(&stands, &reference)?;
    ctx.depot.serve(reference.manifest, &release);
    tracing::info!(release = %reference.id, digest = %reference.manifest, by, "release imported");
    Ok(json(&imported(&release, &reference, new_bytes))?)
}

/// A release is immutable: its id names one manifest for ever.
fn same(known: &ReleaseRow, wanted: &ReleaseRef) -> Result<(), ErrorDoc> {
    if known.release.manifest == wanted.manifest {
        return Ok(());
    }
    Err(refused(format!("release {} was imported before, with other content", wanted.id))
        .cause(format!("its manifest is {}, this one is {}", known.release.manifest, wanted.manifest))
        .fix("releases never change: give this one another version"))
}

fn imported(release: &Release, reference: &ReleaseRef, new_bytes: u64) -> ImportDoc {
    let artifacts = release.artifacts();
    ImportDoc {
        release: reference.id.clone(),
        digest: reference.manifest,
        files: artifacts.len() as u64,
        bytes: artifacts.values().fold(0, |sum, size| sum.saturating_add(*size)),
        new_bytes,
    }
}

/// All releases.
pub(super) async fn list(ctx: &Operators) -> Result<String, Ended> {
    let rows = ctx.store.releases().await?;
    let depot = ctx.depot.clone();
    let docs = blocking(move || {
        rows.iter().map(|row| depot.manifest(row.release.manifest).map(|(m, _)| summary(row, &m))).collect::<Result<Vec<_>, _>>()
    })
    .await??;
    Ok(json(&docs)?)
}

/// One release with its manifest.
pub(super) async fn show(ctx: &Operators, id: ReleaseId) -> Result<String, Ended> {
    let Some(row) = ctx.store.release(id.clone()).await? else {
        return Err(ErrorDoc::new(ErrorCode::NotFound, format!("no release {id}"))
            .fix("`tidegate release list` shows all releases")
            .into());
    };
    let (depot, digest) = (ctx.depot.clone(), row.release.manifest);
    let (release, bytes) = blocking(move || depot.manifest(digest)).await??;
    let manifest = serde_json::from_slice(&bytes)
        .map_err(|e| ErrorDoc::new(ErrorCode::Internal, "a stored manifest does not read").cause(chain(&e)))?;
    Ok(json(&ReleaseShowDoc { summary: summary(&row, &release), manifest })?)
}

fn summary(row: &ReleaseRow, release: &Release) -> ReleaseDoc {
    let artifacts = release.artifacts();
    ReleaseDoc {
        release: row.release.id.clone(),
        digest: row.release.manifest,
        components: release.components.iter().map(|c| c.name.to_string()).collect(),
        files: artifacts.len() as u64,
        bytes: artifacts.values().fold(0, |sum, size| sum.saturating_add(*size)),
        imported_at: rfc3339(row.imported_at),
    }
}

fn refused(message: impl Into<String>) -> ErrorDoc {
    ErrorDoc::new(ErrorCode::Refused, message)
}
