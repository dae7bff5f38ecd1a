//! The operations that the machine asks for, each as one future that can be
//! dropped at any await. Every one is idempotent: after a crash it runs again.
//!
//! Must not decide what comes next: that is the machine's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, ReleaseRef, Target};
use tidegate_swap::{Op, Outcome, Restart};

use crate::context::Installed;
use crate::error::failure;
use crate::host::Host;
use crate::service::{same_service, started_since};
use crate::slot::Slot;
use crate::work::Scope;
use crate::{exec, preflight, smoke, stage, tidy};

/// Of a `check` command.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);
/// Of a `before` or `after` hook: draining a load balancer takes its time.
const HOOK_TIMEOUT: Duration = Duration::from_secs(120);

/// The operation's name for logs and failpoints.
#[must_use]
pub fn name(op: &Op) -> &'static str {
    match op {
        Op::Preflight { .. } => "preflight",
        Op::Stage { .. } => "stage",
        Op::Check { .. } => "check",
        Op::Observe { .. } => "observe",
        Op::Before { .. } => "before",
        Op::Flip { .. } => "flip",
        Op::Activate { .. } => "activate",
        Op::Smoke { .. } => "smoke",
        Op::After { .. } => "after",
        Op::Collect { .. } => "collect",
    }
}

/// Runs one operation to its end.
pub async fn perform(host: Arc<Host>, slot: Slot, op: Op, scope: Scope) -> Outcome {
    let done = match op {
        Op::Preflight { target, current, accept_drift } => {
            preflight::check(&host, &slot, preflight::Request { target, current, accept_drift }, &scope).await
        }
        Op::Stage { target } => stage::stage(&host, &slot, &target, &scope).await,
        Op::Check { target } => command(&host, &slot, &target, Command::Check, &scope).await,
        // They take load off the host and give it back; a side gets none but by the switch.
        Op::Before { .. } | Op::After { .. } if slot.side.is_some() => Ok(()),
        Op::Before { target } => command(&host, &slot, &target, Command::Before, &scope).await,
        Op::After { target } => command(&host, &slot, &target, Command::After, &scope).await,
        Op::Observe { current } => return observe(&host, &slot, current, &scope).await,
        Op::Flip { to } => flip(&host, &slot, to, &scope).await,
        Op::Activate { to, from, restart } => activate(&host, &slot, &to, &from, &restart, &scope).await,
        Op::Smoke { target, integration, since } => match installed(&host, &slot, &target, &scope).await {
            Ok(installed) => {
                let (results, failure) = smoke::run(&host.ctx, &host.services, &installed, integration, &since).await;
                return Outcome::Smoke { results, failure };
            }
            Err(failure) => return Outcome::Smoke { results: Vec::new(), failure: Some(failure) },
        },
        Op::Collect { keep } => {
            tidy::after_confirm(&host, &slot.component, keep, &scope).await;
            Ok(())
        }
    };
    done.map_or_else(Outcome::Failed, |()| Outcome::Ok)
}

/// The laid-out tree of a release.
async fn installed(host: &Arc<Host>, slot: &Slot, release: &ReleaseRef, scope: &Scope) -> Result<Installed, Failure> {
    let gone = failure(Cause::Verify, &format!("{slot} of {} is not laid out on this host any more; stage it again", release.id));
    let (trees, name, wanted) = (host.trees.clone(), slot.clone(), release.clone());
    scope.blocking(move |_| trees.locate(&name, &wanted).map_err(|e| e.failure())).await?.ok_or(gone)
}

#[derive(Clone, Copy)]
enum Command {
    Check,
    Before,
    After,
}

async fn command(host: &Arc<Host>, slot: &Slot, release: &ReleaseRef, which: Command, scope: &Scope) -> Result<(), Failure> {
    let installed = installed(host, slot, release, scope).await?;
    let (argv, what, timeout, cause) = match which {
        Command::Check => (&installed.component.check, "the check", CHECK_TIMEOUT, Cause::Verify),
        Command::Before => (&installed.component.before, "the before hook", HOOK_TIMEOUT, Cause::StartFailed),
        Command::After => (&installed.component.after, "the after hook", HOOK_TIMEOUT, Cause::StartFailed),
    };
    match argv {
        Some(argv) => exec::step(&host.ctx, &installed, what, argv, timeout, cause).await,
        None => Ok(()),
    }
}

async fn observe(host: &Arc<Host>, slot: &Slot, current: Option<ReleaseRef>, scope: &Scope) -> Outcome {
    // Nothing runs, so nothing is unhealthy.
    let Some(current) = current else { return Outcome::Observed { healthy: true } };
    let healthy = match installed(host, slot, &current, scope).await {
        Ok(installed) => smoke::observe(&host.ctx, &host.services, &installed).await,
        Err(_) => false,
    };
    Outcome::Observed { healthy }
}

async fn flip(host: &Arc<Host>, slot: &Slot, to: Target, scope: &Scope) -> Result<(), Failure> {
    let (host, slot) = (host.clone(), slot.clone());
    scope
        .blocking(move |_| {
            let current = host.trees.current_path(&slot);
            let flip = || host.trees.flip(&slot, &to).map_err(|e| e.failure());
            let links = |wanted| host.links.converge(&slot.component, wanted, &current).map_err(|e| e.failure());
            match to.release() {
                // No link outside can follow two sides: preflight refuses them.
                _ if slot.side.is_some() => flip(),
                // Links point at something complete from their first instant to their last.
                Some(release) => {
                    flip()?;
                    let tree = host.trees.locate(&slot, release).map_err(|e| e.failure())?;
                    links(&tree.map(|t| t.component.links).unwrap_or_default())
                }
                None => {
                    links(&BTreeMap::new())?;
                    flip()
                }
            }
        })
        .await
}

async fn activate(host: &Arc<Host>, slot: &Slot, to: &Target, from: &Target, restart: &Restart, scope: &Scope) -> Result<(), Failure> {
    // A flip that the ledger lost in a crash may have been undone since: what is
    // started is always what the link names.
    let (trees, name) = (host.trees.clone(), slot.clone());
    let current = scope.blocking(move |_| trees.read_current(&name).map_err(|e| e.failure())).await?.map(|tree| tree.release);
    if current.as_ref() != to.release() {
        let name = |release: Option<&ReleaseRef>| release.map_or_else(|| "nothing".to_owned(), |r| r.id.to_string());
        let message =
            format!("{} of {} is {}, not {}: nothing was started", slot.link(), slot.component, name(current.as_ref()), name(to.release()));
        return Err(failure(Cause::StartFailed, &message));
    }
    let old = match from.release() {
        Some(release) if Some(release) != to.release() => match installed(host, slot, release, scope).await {
            Ok(old) => Some(old),
            Err(failure) => {
                tracing::warn!(component = %slot, release = %release.id, error = failure.message, "what ran before cannot be asked how to stop it");
                None
            }
        },
        _ => None,
    };
    let Some(release) = to.release() else {
        return match old {
            Some(old) => host.services.stop(&old).await,
            None => Ok(()),
        };
    };
    let new = installed(host, slot, release, scope).await?;
    if let Some(old) = old.filter(|old| !same_service(&old.component, &new.component)) {
        host.services.stop(&old).await?;
    }
    if !stays(host, &new, restart).await {
        host.services.start(&new).await?;
    }
    let running = host.services.prove(&new).await?;
    tracing::info!(component = %slot, release = %new.release.id, pid = running.pid, "runs");
    Ok(())
}

/// Whether what runs already is right and young enough.
async fn stays(host: &Arc<Host>, new: &Installed, restart: &Restart) -> bool {
    let Restart::UnlessProven(mark) = restart else { return false };
    if host.services.status(new).await.main.is_none() {
        return false;
    }
    let Ok(running) = host.services.prove(new).await else { return false };
    mark.as_ref().is_none_or(|mark| mark.boot_id == host.ctx.boot_id && started_since(running.start_ticks, mark.at))
}
