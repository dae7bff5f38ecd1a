//! Preflight: everything that would stop the swap later is looked for before
//! byte one. Touches nothing and fetches only the manifest.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Component, ReleaseRef, Side};

use crate::context::Installed;
use crate::error::failure;
use crate::host::Host;
use crate::slot::Slot;
use crate::tree::{self, name_drift};
use crate::work::Scope;
use crate::{facts, tidy};

/// Kept free beyond what the release takes: this, or a twentieth of it.
const HEADROOM_BYTES: u64 = 16 * 1024 * 1024;
/// Kept free beyond the release's files and directories.
const HEADROOM_INODES: u64 = 64;

/// The block of most file systems.
const BLOCK_BYTES: u64 = 4096;

/// What is asked; see [`tidegate_swap::Op::Preflight`].
#[derive(Clone, Debug)]
pub struct Request {
    /// What shall run.
    pub target: ReleaseRef,
    /// What the ledger says runs now.
    pub current: Option<ReleaseRef>,
    /// Changed files in `current` are allowed.
    pub accept_drift: bool,
}

/// Whether the target could be swapped in, and the present release come back.
///
/// # Errors
/// The first thing in the way, with its fix.
pub async fn check(host: &Arc<Host>, slot: &Slot, request: Request, scope: &Scope) -> Result<(), Failure> {
    let policy = &host.ctx.policy;
    let name = &slot.component;
    if policy.components.as_ref().is_some_and(|allowed| !allowed.iter().any(|c| c == name.as_str())) {
        return Err(failure(Cause::Policy, &format!("component {name} is not in [policy] components of agent.toml on this host")));
    }
    let component = host.manifests.component(&host.depot, &request.target, name, scope).await?;
    let title = format!("{slot} of {}", request.target.id);
    if let Some(arch) = component.arch.as_deref().filter(|arch| *arch != std::env::consts::ARCH) {
        return Err(failure(Cause::Policy, &format!("{title} is built for {arch}, this host is {}", std::env::consts::ARCH)));
    }
    let dir = host.ctx.opt_dir.join(name.as_str()).join("releases").join(request.target.id.version.as_str());
    let installed = Installed { release: request.target.clone(), component, dir, side: slot.side };
    host.services.preflight(&installed).await?;
    let (here, of) = (host.clone(), slot.clone());
    scope.blocking(move |scope| on_disk(&here, &of, &installed, &request, scope)).await?;
    memory(host, slot, scope).await
}

/// Both sides run at once: there must be room for one more of what runs.
async fn memory(host: &Arc<Host>, slot: &Slot, scope: &Scope) -> Result<(), Failure> {
    let Some(side) = slot.side else { return Ok(()) };
    let Some(other) = resident(host, Slot::side(slot.component.clone(), side.other()), scope).await? else { return Ok(()) };
    let own = resident(host, slot.clone(), scope).await?.unwrap_or_default();
    let available = scope.blocking(|_| Ok(facts::memory_available())).await?;
    // A kernel that does not tell is no reason to refuse.
    available.map_or(Ok(()), |available| room_for_two(slot, side.other(), available, own, other))
}

/// What a slot's service holds, bytes; none if it does not run.
async fn resident(host: &Arc<Host>, slot: Slot, scope: &Scope) -> Result<Option<u64>, Failure> {
    let trees = host.trees.clone();
    let tree = scope.blocking(move |_| trees.read_current(&slot).map_err(|e| e.failure())).await?;
    let Some(tree) = tree else { return Ok(None) };
    let Some(main) = host.services.status(&tree).await.main else { return Ok(None) };
    scope.blocking(move |_| Ok(facts::service_numbers(main.pid).map(|numbers| numbers.memory_bytes))).await
}

/// `own` is what this side's present instance gives back when it is replaced.
fn room_for_two(slot: &Slot, running: Side, available: u64, own: u64, other: u64) -> Result<(), Failure> {
    let wanted = other.saturating_add(other / 10);
    let free = available.saturating_add(own);
    if free >= wanted {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    let text = format!(
        "{slot}: both sides run at once, and the side {running} takes {} MiB of memory; {} MiB are available on this host, {} MiB (a tenth more than \
         that side takes) are needed: free memory, or deploy {} without sides",
        mib(other),
        free / (1024 * 1024),
        mib(wanted),
        slot.component
    );
    Err(failure(Cause::Policy, &text))
}

/// What needs the disk.
fn on_disk(host: &Host, slot: &Slot, target: &Installed, request: &Request, scope: &Scope) -> Result<(), Failure> {
    host.trees.check_sides(slot).map_err(|e| e.failure())?;
    if slot.side.is_none() {
        host.links.check(&slot.component, &target.component.links).map_err(|e| e.failure())?;
    } else if let Some(link) = target.component.links.keys().next() {
        let text = format!(
            "{}: it asks for the link {link}, which cannot lead to two sides at once: drop `links` from the release",
            target.title()
        );
        return Err(failure(Cause::Policy, &text));
    }
    way_back(host, slot, request, scope)?;
    let laid_out = host.trees.locate(slot, &request.target).map_err(|e| e.failure())?.is_some();
    if laid_out || space(host, &target.component).is_ok() {
        return Ok(());
    }
    // What failed attempts left behind is no reason to refuse.
    tidy::make_room(host, &target.component);
    space(host, &target.component)
}

/// The link is what the ledger says, complete and unchanged: the way back.
fn way_back(host: &Host, slot: &Slot, request: &Request, scope: &Scope) -> Result<(), Failure> {
    let current = host.trees.read_current(slot).map_err(|e| e.failure())?;
    let path = host.trees.current_path(slot);
    match (&request.current, current) {
        (None, None) => Ok(()),
        (Some(wanted), Some(tree)) if &tree.release == wanted => {
            let drifted = tree::drift(&tree, &|| scope.go_on()).map_err(|e| e.failure())?;
            if drifted.is_empty() || request.accept_drift {
                return Ok(());
            }
            let files = name_drift(&drifted);
            let fix = "put them back, or say accept_drift = true in the plan";
            Err(failure(Cause::Drifted, &format!("files of {slot} of {} were changed on this host: {files}; {fix}", wanted.id)))
        }
        (wanted, found) => {
            let wanted = wanted.as_ref().map_or("nothing".to_owned(), |r| r.id.to_string());
            let found = found.map_or("nothing".to_owned(), |t| t.release.id.to_string());
            let text =
                format!("{} leads to {found}, but the agent's ledger says {wanted}: someone changed it; put it back", path.display());
            Err(failure(Cause::Drifted, &text))
        }
    }
}

fn space(host: &Host, component: &Component) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    let missing = component.files.iter().filter(|f| !host.store.has(&f.digest, f.size) && seen.insert(f.digest));
    let (fetch, files) = missing.fold((0u64, 0u64), |(bytes, n), f| (bytes.saturating_add(on_blocks(f.size)), n + 1));
    let dirs: BTreeSet<&str> = component.files.iter().filter_map(|f| f.path.as_str().rsplit_once('/').map(|(dir, _)| dir)).collect();
    let tree_bytes = component.files.iter().fold(0u64, |bytes, f| bytes.saturating_add(on_blocks(f.size)));
    let tree = (tree_bytes, (component.files.len() + dirs.len()) as u64);
    let state = existing(&host.ctx.state_dir);
    let opt = existing(&host.ctx.opt_dir);
    let device = |path: &Path| path.metadata().ok().map(|m| m.dev());
    if device(&state) == device(&opt) {
        return room(&opt, fetch.saturating_add(tree.0), files + tree.1);
    }
    room(&state, fetch, files)?;
    room(&opt, tree.0, tree.1)
}

/// What a file takes: thousands of small ones take far more than their bytes.
fn on_blocks(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

fn room(path: &Path, bytes: u64, inodes: u64) -> Result<(), Failure> {
    let cannot = |error: rustix::io::Errno| failure(Cause::Disk, &format!("{}: cannot ask for free space: {error}", path.display()));
    let fs = rustix::fs::statvfs(path).map_err(cannot)?;
    let wanted = bytes.saturating_add(HEADROOM_BYTES.max(bytes / 20));
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    if free < wanted {
        let text = format!("{}: {free} bytes are free, {wanted} are needed (with headroom): free space on this host", path.display());
        return Err(failure(Cause::Disk, &text));
    }
    // File systems without a fixed number of inodes say zero of zero.
    let wanted = inodes.saturating_add(HEADROOM_INODES);
    if fs.f_files > 0 && fs.f_favail < wanted {
        let text =
            format!("{}: {} inodes are free, {wanted} are needed (with headroom): remove files on this host", path.display(), fs.f_favail);
        return Err(failure(Cause::Disk, &text));
    }
    Ok(())
}

/// The nearest directory that is there already.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_needs_as_much_memory_as_the_other_and_a_tenth_more() {
        let slot: Slot = "api@green".parse().unwrap();
        const MIB: u64 = 1024 * 1024;
        assert_eq!(room_for_two(&slot, Side::Blue, 110 * MIB, 0, 100 * MIB), Ok(()));
        // What its own present instance holds comes free.
        assert_eq!(room_for_two(&slot, Side::Blue, 60 * MIB, 50 * MIB, 100 * MIB), Ok(()));
        let refused = room_for_two(&slot, Side::Blue, 109 * MIB, 0, 100 * MIB).unwrap_err();
        assert_eq!(refused.cause, Cause::Policy);
        for part in ["api@green", "side blue takes 100 MiB", "109 MiB are available", "110 MiB"] {
            assert!(refused.message.contains(part), "{}", refused.message);
        }
    }
}
