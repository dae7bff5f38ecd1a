//! Staging: everything of a release that is missing, fetched, verified and laid
//! out as a tree. The service is untouched. The same for the files of a task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Component, ReleaseRef};

use crate::context::Installed;
use crate::fetch::Want;
use crate::host::Host;
use crate::slot::Slot;
use crate::tree::Trees;
use crate::work::Scope;
use crate::{tidy, tree};

/// Makes sure that the release's tree is there, complete and as its manifest
/// says. Files that the store has are not fetched again; a tree that stands is
/// only compared, and repaired where it was changed.
///
/// # Errors
/// `verify`, `disk`, `timeout`; what is there stays as it was.
pub async fn stage(host: &Arc<Host>, slot: &Slot, release: &ReleaseRef, scope: &Scope) -> Result<(), Failure> {
    scope.counters.staged.store(0, Ordering::Relaxed);
    scope.counters.fetched.store(0, Ordering::Relaxed);
    let _guard = host.staging.read().await;
    let (here, name, wanted) = (host.clone(), slot.clone(), release.clone());
    // A tree knows what it is made of: going back needs no controller.
    let standing = scope
        .blocking(move |_| {
            let standing = here.trees.locate(&name, &wanted).map_err(|e| e.failure())?;
            if standing.is_none() {
                tidy::before_stage(&here, &name.component);
            }
            Ok(standing)
        })
        .await?;
    let found = match &standing {
        Some(tree) => tree.component.clone(),
        None => host.manifests.component(&host.depot, release, &slot.component, scope).await?,
    };
    lay_out(host, &host.trees, slot, release, Arc::new(found), standing, scope).await.map(drop)
}

/// As [`stage`], for a task of a release: its tree stands below `trees`, as that of
/// `task`, a component made up for it.
///
/// # Errors
/// As [`stage`].
pub async fn stage_task(
    host: &Arc<Host>,
    trees: &Trees,
    release: &ReleaseRef,
    task: Component,
    scope: &Scope,
) -> Result<Installed, Failure> {
    let _guard = host.staging.read().await;
    let slot = Slot::plain(task.name.clone());
    let (here, name, wanted) = (trees.clone(), slot.clone(), release.clone());
    let standing = scope.blocking(move |_| here.locate(&name, &wanted).map_err(|e| e.failure())).await?;
    lay_out(host, trees, &slot, release, Arc::new(task), standing, scope).await
}

/// Fetches what the store lacks of it, and makes its tree whole. The caller holds
/// the staging lock.
async fn lay_out(
    host: &Arc<Host>,
    trees: &Trees,
    slot: &Slot,
    release: &ReleaseRef,
    component: Arc<Component>,
    standing: Option<Installed>,
    scope: &Scope,
) -> Result<Installed, Failure> {
    let (store, lacking) = (host.store.clone(), component.clone());
    let wants = scope
        .blocking(move |scope| {
            let needed: Vec<_> = match &standing {
                Some(tree) => tree::drift(tree, &|| scope.go_on()).map_err(|e| e.failure())?.into_iter().map(|d| d.file).collect(),
                None => lacking.files.clone(),
            };
            let (mut wants, mut there) = (BTreeMap::new(), lacking.bytes());
            for file in needed {
                if !store.has(&file.digest, file.size) {
                    there = there.saturating_sub(file.size);
                    wants.entry(file.digest).or_insert_with(|| Want { digest: file.digest, size: file.size, name: file.path.to_string() });
                }
            }
            scope.counters.staged.store(there, Ordering::Relaxed);
            Ok(wants.into_values().collect::<Vec<_>>())
        })
        .await?;
    host.depot.fetch(&host.store, wants, scope).await?;
    let (host, trees, side, release) = (host.clone(), trees.clone(), slot.side, release.clone());
    scope
        .blocking(move |scope| {
            let tree = trees.lay_out(&host.store, &release, &component, side, &|| scope.go_on()).map_err(|e| e.failure())?;
            // Every byte was read back just now.
            host.verified.remember(&tree.dir, tree::fingerprint(&tree));
            scope.counters.staged.store(component.bytes(), Ordering::Relaxed);
            Ok(tree)
        })
        .await
}
