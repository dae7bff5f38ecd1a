//! What is deleted on this host, and when: releases beyond those that are kept,
//! and files of the store that no release is made of.
//!
//! Owns that nothing goes that a host may go back to. A failure is logged and
//! changes nothing. Must not be run for one component twice at once.

use std::error::Error;
use std::sync::Arc;

use tidegate_protocol::{Component, ComponentName, ReleaseRef, Target};
use tidegate_swap::Record;

use crate::error::chain;
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::work::Scope;

/// After a release was confirmed: what is neither kept nor used goes.
pub async fn after_confirm(host: &Arc<Host>, component: &ComponentName, keep: Vec<ReleaseRef>, scope: &Scope) {
    // Something is being staged: its files are in no tree yet. Next time, then.
    let alone = host.staging.try_write();
    let (all, host, name) = (alone.is_ok(), host.clone(), component.clone());
    let done = scope.blocking(move |_| {
        trees(&host, &name, &keep);
        if all {
            files(&host, None);
            host.manifests.collect().unwrap_or_else(|error| warn(&name, &error));
        }
        Ok(())
    });
    drop(done.await);
}

/// Before a release is laid out: those that failed since the last confirmation
/// must not pile up. Blocks.
pub fn before_stage(host: &Host, component: &ComponentName) {
    match kept(host, component) {
        Ok(Some(keep)) => trees(host, component, &keep),
        Ok(None) => {}
        Err(error) => warn(component, &error),
    }
}

/// There is too little room for `wanted`: everything goes that is not needed, its
/// own files excepted. Blocks.
pub fn make_room(host: &Host, wanted: &Component) {
    before_stage(host, &wanted.name);
    if let Ok(_alone) = host.staging.try_write() {
        files(host, Some(wanted));
    }
}

/// What the ledger may lead this component to; none without a record.
fn kept(host: &Host, component: &ComponentName) -> Result<Option<Vec<ReleaseRef>>, LedgerError> {
    let Some(record) = host.ledger.read(component)? else { return Ok(None) };
    let Record { assignment, pending, swap, standing, previous, .. } = record;
    let words = assignment.into_iter().chain(pending).map(|word| word.target);
    let targets = words.chain(swap.map(|swap| swap.from)).filter_map(|target| match target {
        Target::Release(release) => Some(release),
        Target::Absent => None,
    });
    Ok(Some(targets.chain(standing).chain(previous).collect()))
}

fn trees(host: &Host, component: &ComponentName, keep: &[ReleaseRef]) {
    match host.trees.collect(component, keep) {
        Ok(0) => {}
        Ok(gone) => tracing::info!(%component, gone, "old releases removed"),
        Err(error) => warn(component, &error),
    }
}

/// Nothing may be on its way into a tree meanwhile.
fn files(host: &Host, wanted: Option<&Component>) {
    let collected = host.trees.digests().map_err(|error| chain(&error)).and_then(|mut keep| {
        keep.extend(wanted.iter().flat_map(|component| &component.files).map(|file| file.digest));
        host.store.collect(&keep).map_err(|error| error.to_string())
    });
    if let Err(error) = collected {
        tracing::warn!(error, "the store was not cleaned");
    }
}

fn warn(component: &ComponentName, error: &(dyn Error + 'static)) {
    tracing::warn!(%component, error = chain(error), "cleanup failed");
}
