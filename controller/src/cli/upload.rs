//! Bringing a bundle's files to the depot: only those that it lacks, several
//! streams at once.

use std::io::SeekFrom;
use std::sync::Arc;

use indicatif::ProgressBar;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::task::JoinSet;

use super::Context;
use super::call::Link;
use super::live::byte_bar;
use super::output::read;
use crate::bundle::{Bundle, BundleFile};
use crate::operator::doc::{ImportDoc, MissingDoc, UploadDoc};
use crate::operator::msg::{Blob, ErrorCode, ErrorDoc, MISSING_DIGESTS_MAX, Request, UPLOAD_FILES_MAX};

/// Streams in flight.
const STREAMS_MAX: usize = 4;
/// Small files share a stream up to here.
const BATCH_BYTES: u64 = 32 << 20;
const CHUNK_BYTES: usize = 256 * 1024;

/// Uploads what is missing, then imports. The answer's document, with
/// `new_bytes` counted over all streams.
pub(super) async fn import(context: &Context, bundle: Bundle) -> Result<String, ErrorDoc> {
    let link = Arc::new(Link::open(context).await?);
    let mut missing = Vec::new();
    for files in bundle.files.chunks(MISSING_DIGESTS_MAX) {
        let answer = link.ask(context, Request::ReleaseMissing { digests: files.iter().map(|f| f.digest).collect() }).await?;
        let doc: MissingDoc = read(&answer)?;
        let lacks: std::collections::BTreeSet<_> = doc.missing.into_iter().collect();
        missing.extend(files.iter().filter(|f| lacks.contains(&f.digest)).copied());
    }
    let bar = byte_bar(&context.output, "uploading");
    bar.set_length(missing.iter().map(|f| f.size).sum());
    let uploaded = upload(context, &link, &bundle, batches(missing), &bar).await;
    bar.finish_and_clear();
    let new_bytes = uploaded?;
    let answer = link.ask(context, Request::ReleaseImport { manifest: bundle.manifest }).await?;
    let mut doc: ImportDoc = read(&answer)?;
    doc.new_bytes = new_bytes;
    if let Some(link) = Arc::into_inner(link) {
        link.close().await;
    }
    serde_json::to_string(&doc).map_err(|e| ErrorDoc::new(ErrorCode::Internal, "write JSON").cause(e.to_string()))
}

/// Files that travel on one stream each.
fn batches(files: Vec<BundleFile>) -> Vec<Vec<BundleFile>> {
    let mut out: Vec<Vec<BundleFile>> = Vec::new();
    let mut bytes = 0_u64;
    for file in files {
        match out.last_mut() {
            Some(batch) if batch.len() < UPLOAD_FILES_MAX && bytes.saturating_add(file.size) <= BATCH_BYTES => {
                bytes += file.size;
                batch.push(file);
            }
            _ => {
                bytes = file.size;
                out.push(vec![file]);
            }
        }
    }
    out
}

async fn upload(
    context: &Context,
    link: &Arc<Link>,
    bundle: &Bundle,
    batches: Vec<Vec<BundleFile>>,
    bar: &ProgressBar,
) -> Result<u64, ErrorDoc> {
    let mut running = JoinSet::new();
    let mut waiting = batches.into_iter();
    let mut new_bytes = 0;
    loop {
        while running.len() < STREAMS_MAX {
            let Some(batch) = waiting.next() else { break };
            let (context, link, path, bar) = (context.clone(), Arc::clone(link), bundle.path.clone(), bar.clone());
            running.spawn(async move { one(&context, &link, &path, batch, &bar).await });
        }
        let Some(done) = running.join_next().await else { return Ok(new_bytes) };
        // Dropping the set ends the other streams; what arrived whole is kept.
        new_bytes += done.map_err(|e| ErrorDoc::new(ErrorCode::Internal, "an upload's task ended early").cause(e.to_string()))??;
    }
}

async fn one(context: &Context, link: &Link, path: &std::path::Path, batch: Vec<BundleFile>, bar: &ProgressBar) -> Result<u64, ErrorDoc> {
    let unread = |e: std::io::Error| {
        ErrorDoc::new(ErrorCode::Internal, format!("read {}", path.display()))
            .cause(e.to_string())
            .fix("import again: what arrived is kept")
    };
    let mut file = File::open(path).await.map_err(unread)?;
    let request = Request::ReleaseUpload { files: batch.iter().map(|f| Blob { digest: f.digest, size: f.size }).collect() };
    let mut answers = link.begin(context, &request).await?;
    let mut buffer = vec![0; CHUNK_BYTES];
    'files: for part in batch {
        file.seek(SeekFrom::Start(part.offset)).await.map_err(unread)?;
        let mut left = part.size;
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let Some(chunk) = buffer.get_mut(..take) else { break };
            file.read_exact(chunk).await.map_err(unread)?;
            if answers.frames.body().write_all(chunk).await.is_err() {
                // The controller stopped listening; its answer says why.
                break 'files;
            }
            left -= take as u64;
            bar.inc(take as u64);
        }
    }
    answers.frames.finish();
    let doc: UploadDoc = read(&answers.document().await?)?;
    Ok(doc.new_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::Digest;

    #[test]
    fn small_files_share_a_stream_and_large_ones_do_not() {
        let file = |size| BundleFile { digest: Digest::of(b""), size, offset: 0 };
        let sizes = |files: Vec<BundleFile>| batches(files).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![file(1), file(BATCH_BYTES - 1), file(1), file(BATCH_BYTES * 3), file(1)]), [2, 1, 1, 1]);
        assert_eq!(sizes(vec![file(0); UPLOAD_FILES_MAX + 1]), [UPLOAD_FILES_MAX, 1]);
        assert_eq!(sizes(Vec::new()), [0; 0]);
    }
}
