//! Checks outside of the core for rollouts that wait to begin: files of the depot,
//! runbooks, dashboards. They are looked at again while people and windows are
//! waited for, and anew after a restart.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::checks::Checker;
use super::server::{Ended, blocking};
use crate::core::{CoreHandle, Input, ToCheck};
use crate::depot::Depot;

/// Between two looks without a change.
const EVERY: Duration = Duration::from_secs(60);
/// Rollouts looked at in one round; the others come with the next change.
const ROUND_MAX: usize = 64;

/// Runs until the core ends.
pub(crate) async fn run(checker: Checker, depot: Arc<Depot>, core: CoreHandle, mut wants: watch::Receiver<Vec<ToCheck>>) {
    loop {
        let list = wants.borrow_and_update().clone();
        for wanted in list.iter().take(ROUND_MAX) {
            match look(&checker, &depot, wanted).await {
                Ok(input) => {
                    if core.send(input).await.is_err() {
                        return;
                    }
                }
                // What was found before stays; it is tried again.
                Err(Ended::Told(error)) => tracing::warn!(rollout = %wanted.rollout, %error, "the checklist could not be looked at"),
                Err(Ended::Stream(error)) => tracing::warn!(rollout = %wanted.rollout, %error, "the checklist could not be looked at"),
            }
        }
        let changed = if list.is_empty() { wants.changed().await } else { timeout(EVERY, wants.changed()).await.unwrap_or(Ok(())) };
        if changed.is_err() {
            return;
        }
    }
}

async fn look(checker: &Checker, depot: &Arc<Depot>, wanted: &ToCheck) -> Result<Input, Ended> {
    let (depot, digest) = (depot.clone(), wanted.manifest);
    let (manifest, _) = blocking(move || depot.manifest(digest)).await??;
    let checks = checker.check(&manifest, &wanted.dashboards, true).await?;
    Ok(Input::Checked { rollout: wanted.rollout.clone(), manifest: Box::new(manifest), checks: Box::new(checks) })
}
