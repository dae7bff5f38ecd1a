//! Staging: everything of a release that is missing, fetched, verified and laid
//! out as a tree. The service is untouched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Component, ReleaseRef};

use crate::fetch::Want;
use crate::host::Host;
use crate::slot::Slot;
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
    let found = Arc::new(found);
    let (store, lacking) = (host.store.clone(), found.clone());
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
    lay_out(host, slot, release, found, scope).await
}

async fn lay_out(host: &Arc<Host>, slot: &Slot, release: &ReleaseRef, component: Arc<Component>, scope: &Scope) -> Result<(), Failure> {
    let (host, side, release) = (host.clone(), slot.side, release.clone());
    scope
        .blocking(move |scope| {
            let tree = host.trees.lay_out(&host.store, &release, &component, side, &|| scope.go_on()).map_err(|e| e.failure())?;
            // Every byte was read back just now.
            host.verified.remember(&tree.dir, tree::fingerprint(&tree));
            scope.counters.staged.store(component.bytes(), Ordering::Relaxed);
            Ok(())
        })
        .await
}
