//! Release manifests: fetched by digest like any artifact, checked, kept.
//!
//! Must not trust one for its name: digest, form and release id are checked each
//! time one is read.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use tidegate_protocol::limits::MANIFEST_BYTES_MAX;
use tidegate_protocol::release::Task;
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Component, ComponentName, Digest, Release, ReleaseRef};

use crate::durable;
use crate::error::{failed, failure};
use crate::fetch::Depot;
use crate::work::Scope;

/// Held while a manifest is written; on blocking threads only.
static WRITING: std::sync::Mutex<()> = std::sync::Mutex::new(());
/// Manifests kept beyond a cleanup; a tree needs none, so this is only a cache.
const KEPT: usize = 16;

/// The directory of manifests.
#[derive(Clone, Debug)]
pub struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    /// In this directory, which is made when the first one is kept.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// One component of a release; its manifest is fetched if it is not here.
    ///
    /// # Errors
    /// `verify`: not what its digest or its name says, or the release has no such
    /// component; `timeout`: it does not come; `disk`.
    pub async fn component(
        &self,
        depot: &Depot,
        release: &ReleaseRef,
        component: &ComponentName,
        scope: &Scope,
    ) -> Result<Component, Failure> {
        let whole = self.release(depot, release, scope).await?;
        let missing = || failure(Cause::Verify, &format!("{} has no component {component}", title(release)));
        whole.components.into_iter().find(|c| &c.name == component).ok_or_else(missing)
    }

    /// One task of a release, by its place; its manifest is fetched if it is not here.
    ///
    /// # Errors
    /// As [`Manifests::component`].
    pub async fn task(&self, depot: &Depot, release: &ReleaseRef, index: u16, scope: &Scope) -> Result<Task, Failure> {
        let whole = self.release(depot, release, scope).await?;
        let missing = || failure(Cause::Verify, &format!("{} has no task {index} (counted from 0)", title(release)));
        whole.tasks.into_iter().nth(usize::from(index)).ok_or_else(missing)
    }

    async fn release(&self, depot: &Depot, release: &ReleaseRef, scope: &Scope) -> Result<Release, Failure> {
        let path = self.dir.join(format!("{}.json", release.manifest));
        let digest = release.manifest;
        let (read, at) = (path.clone(), path.clone());
        // One that is damaged is fetched again.
        let kept = scope.blocking(move |_| {
            Ok(durable::read_bounded(&read, MANIFEST_BYTES_MAX).ok().flatten().filter(|bytes| Digest::of(bytes) == digest))
        });
        let (bytes, fresh) = match kept.await? {
            Some(bytes) => (bytes, false),
            None => (depot.get(digest, MANIFEST_BYTES_MAX, &format!("the manifest of {}", release.id)).await?, true),
        };
        let (release, dir) = (release.clone(), self.dir.clone());
        scope
            .blocking(move |_| {
                let found = parse(&bytes, &release)?;
                if fresh {
                    // Two components of one release keep the same file at once.
                    let _one = WRITING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    let kept = durable::make_dir(&dir, 0o700).and_then(|()| durable::replace(&at, &bytes, 0o400));
                    kept.map_err(|error| {
                        failure(Cause::Disk, &format!("{}: cannot be written{}: {error}", at.display(), crate::error::disk_hint(&error)))
                    })?;
                }
                Ok(found)
            })
            .await
    }

    /// Drops the oldest beyond a few. Blocks.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn collect(&self) -> std::io::Result<()> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Ok(()) };
        let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in entries {
            let entry = entry?;
            all.push((entry.metadata()?.modified()?, entry.path()));
        }
        all.sort();
        let surplus = all.len().saturating_sub(KEPT);
        all.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

fn title(release: &ReleaseRef) -> String {
    format!("the manifest of {} ({})", release.id, release.manifest.short())
}

fn parse(bytes: &[u8], release: &ReleaseRef) -> Result<Release, Failure> {
    let bad = |why: &str| failure(Cause::Verify, &format!("{} {why}", title(release)));
    let manifest: Release = serde_json::from_slice(bytes).map_err(|error| bad(&format!("does not read: {error}")))?;
    manifest.check().map_err(|error| failed(Cause::Verify, &error))?;
    if manifest.id() != release.id {
        return Err(bad(&format!("is that of {}", manifest.id())));
    }
    Ok(manifest)
}
