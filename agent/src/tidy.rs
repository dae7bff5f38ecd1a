//! What is deleted on this host, and when: releases beyond those that are kept,
//! and files of the store that no release is made of.
//!
//! Owns that nothing goes that a host may go back to. A failure is logged and
//! changes nothing. While one side of a component has its releases, the other
//! side's cleanup is left for next time.

use std::error::Error;
use std::sync::Arc;

use tidegate_protocol::{Component, ComponentName, ReleaseRef, Target};
use tidegate_swap::{Record, SwitchRecord};

use crate::error::chain;
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::slot::Slot;
use crate::work::Scope;

/// After a release was confirmed: what is neither kept nor used goes. `keep` is
/// what its own machine keeps; the other side's and the switch's are added.
pub async fn after_confirm(host: &Arc<Host>, component: &ComponentName, mut keep: Vec<ReleaseRef>, scope: &Scope) {
    // Something is being staged: its files are in no tree yet. Next time, then.
    let alone = host.staging.try_write();
    let (all, host, name) = (alone.is_ok(), host.clone(), component.clone());
    let done = scope.blocking(move |_| {
        match kept(&host, &name) {
            Ok(more) => {
                keep.extend(more.into_iter().flatten());
                trees(&host, &name, &keep);
            }
            // What another slot may go back to is not known: nothing goes.
            Err(error) => warn(&name, &error),
        }
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

/// What the ledger may lead this component to, whichever slot of it; none without
/// a record.
fn kept(host: &Host, component: &ComponentName) -> Result<Option<Vec<ReleaseRef>>, LedgerError> {
    let mut all: Option<Vec<ReleaseRef>> = None;
    for slot in Slot::all(component) {
        let Some(record) = host.ledger.read(&slot)? else { continue };
        let Record { assignment, pending, swap, standing, previous, .. } = record;
        let words = assignment.into_iter().chain(pending).map(|word| word.target);
        let targets = words.chain(swap.map(|swap| swap.from)).filter_map(|target| match target {
            Target::Release(release) => Some(release),
            Target::Absent => None,
        });
        all.get_or_insert_default().extend(targets.chain(standing).chain(previous));
    }
    // Its tree may hold the command that switches back.
    if let Some(SwitchRecord { order, pending, .. }) = host.ledger.read_switch(component)? {
        all.get_or_insert_default().extend(order.into_iter().chain(pending).map(|order| order.release));
    }
    Ok(all)
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
