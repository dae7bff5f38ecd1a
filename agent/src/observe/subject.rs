//! What is measured: the installed release, its main process, and whether a swap
//! is under way. One look per second at each component, shared by its observers.
//!
//! Must not: prove or compare anything; the report does.

use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::Progress;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::context::Installed;
use crate::host::Host;
use crate::service::Process;
use crate::slot::Slot;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A manager that does not answer in this time is asked again with the next look.
const STATUS: Duration = Duration::from_secs(3);

/// How far a slot's newest generation has come; none for a slot that no machine
/// drives.
pub type ProgressOf = dyn Fn(&Slot) -> Option<Progress> + Send + Sync;

/// What observers see of a slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject {
    /// It was looked at.
    pub(super) seen: bool,
    pub(super) installed: Option<Arc<Installed>>,
    pub(super) process: Option<Process>,
    /// Starts by the manager since the last one by order.
    pub(super) restarts: u32,
    /// Mid-swap: not to be judged.
    pub(super) moving: bool,
    /// Mid-swap or not confirmed yet: which process the controller judges is open.
    pub(super) unsettled: bool,
    /// The process began by an order (a swap, or a person's restart) or before the
    /// confirmation: it does not just carry on for one that died.
    pub(super) ordered: bool,
}

impl Subject {
    /// Whether it is another process, or another release.
    fn differs(&self, other: &Self) -> bool {
        let dir = |subject: &Self| subject.installed.as_ref().map(|installed| installed.dir.clone());
        self.seen != other.seen
            || self.process != other.process
            || self.restarts != other.restarts
            || self.moving != other.moving
            || dir(self) != dir(other)
    }

    /// Says of its process whether it began by order; `known` is the look before.
    fn after(mut self, known: &Self) -> Self {
        // Between two looks a swap may have ended.
        let began = || self.unsettled || known.unsettled || self.restarts == 0;
        self.ordered = if self.process == known.process { known.ordered } else { began() };
        self
    }
}

/// Looks until nobody listens any more.
pub(super) async fn look(host: Arc<Host>, progress: Arc<ProgressOf>, slot: Slot, show: watch::Sender<Subject>) {
    let mut known = Subject::default();
    while !show.is_closed() {
        let next = Instant::now() + LOOK;
        known = look_once(&host, &*progress, &slot, known).await;
        show.send_if_modified(|shown| {
            let differs = shown.differs(&known);
            if differs {
                *shown = known.clone();
            }
            differs
        });
        sleep_until(next).await;
    }
}

async fn look_once(host: &Arc<Host>, progress: &ProgressOf, slot: &Slot, known: Subject) -> Subject {
    let progress = progress(slot);
    let moving = matches!(progress, Some(Progress::Swapping | Progress::Probation | Progress::Reverting));
    let unsettled = moving || progress == Some(Progress::Healthy);
    let (trees, own, last) = (host.trees.clone(), slot.clone(), known.installed.clone());
    let looked = tokio::task::spawn_blocking(move || {
        // A link that cannot be read is the report's to complain about.
        let dir = trees.current_dir(&own).ok().flatten()?;
        last.filter(|installed| installed.dir == dir).or_else(|| trees.read_current(&own).ok().flatten().map(Arc::new))
    });
    let installed = looked.await.ok().flatten();
    let Some(installed) = installed else { return Subject { seen: true, moving, unsettled, ..Subject::default() } };
    let (process, restarts) = match timeout(STATUS, host.services.try_status(&installed)).await {
        Ok(Ok(status)) => (status.main, status.restarts),
        // Unknown is not "another process".
        Ok(Err(_)) | Err(_) => (known.process, known.restarts),
    };
    Subject { seen: true, installed: Some(installed), process, restarts, moving, unsettled, ordered: false }.after(&known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_start_by_the_manager_of_a_confirmed_service_carries_on() {
        let me = Process::find(std::process::id()).unwrap();
        let other = Process { started_at_unix_ms: me.started_at_unix_ms + 1, ..me };
        let look =
            |process: Option<Process>, restarts, unsettled| Subject { seen: true, process, restarts, unsettled, ..Subject::default() };
        let first = look(Some(me), 0, false).after(&Subject::default());
        assert!(first.ordered);
        assert!(look(Some(me), 0, false).after(&first).ordered, "the same process");
        let gone = look(None, 0, false).after(&first);
        for before in [&first, &gone] {
            assert!(!look(Some(other), 1, false).after(before).ordered, "its manager started it again");
            assert!(look(Some(other), 0, false).after(before).ordered, "a person did");
            assert!(look(Some(other), 1, true).after(before).ordered, "in probation, or not confirmed");
        }
        let healthy = look(Some(me), 0, true).after(&first);
        let last = look(Some(other), 1, false).after(&healthy);
        assert!(last.ordered, "it may have died before the confirmation");
        assert!(look(Some(other), 1, false).after(&last).ordered);
    }
}
