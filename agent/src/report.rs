//! Observed state, for the controller: what the machines say, and what is seen on
//! the host beside it.
//!
//! Owns when something is looked at again: proofs and tree comparisons cost, so
//! they are repeated only when the process or a file changed. Must not report an
//! order as an observation.

mod sides;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::codec;
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::report::{ComponentReport, HostFacts, Progress, Running, ServiceState};
use tidegate_protocol::{Digest, Report, SidesReport, Target};
use tidegate_swap::{Record, State};
use tokio::time::{Instant, timeout};

use crate::context::Installed;
use crate::driver::Seen;
use crate::host::Host;
use crate::service::{Process, Status, since_boot};
use crate::slot::Slot;
use crate::switch::SwitchSeen;
use crate::tree;

/// A process that does not show what it executes within this time is reported
/// without a digest, and asked again in the next report.
const PROOF: Duration = Duration::from_millis(500);
/// A service manager that does not answer must not silence the host: it is then
/// shown as it can be seen, without a main process.
const STATUS: Duration = Duration::from_secs(3);
/// Trees with more files are looked over less often.
const MANY_FILES: usize = 256;
/// How much less often.
const MANY_FILES_EVERY: Duration = Duration::from_secs(30);

/// Makes reports; keeps what was seen last.
pub struct Reporter {
    host: Arc<Host>,
    sequence: u64,
    known: BTreeMap<Slot, Known>,
}

/// What was found out about one slot.
#[derive(Default)]
struct Known {
    tree: Option<KnownTree>,
    running: Option<(Process, Running)>,
}

#[derive(Clone)]
struct KnownTree {
    installed: Arc<Installed>,
    fingerprint: Digest,
    intact: bool,
    looked: Instant,
}

/// CPU and memory of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Thousandths of one core.
    pub cpu_permille: u32,
    /// Resident, bytes.
    pub memory_bytes: u64,
}

impl From<(u32, u64)> for Load {
    fn from((cpu_permille, memory_bytes): (u32, u64)) -> Self {
        Self { cpu_permille, memory_bytes }
    }
}

impl Reporter {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(host: Arc<Host>) -> Self {
        Self { host, sequence: 0, known: BTreeMap::new() }
    }

    /// The host as it stands now, and beside it its components with sides. `load`
    /// says what a process uses.
    pub async fn report(
        &mut self,
        seen: Vec<Seen>,
        switches: Vec<SwitchSeen>,
        facts: HostFacts,
        load: &mut (dyn FnMut(Process) -> Load + Send),
    ) -> (Report, Vec<SidesReport>) {
        self.sequence += 1;
        self.known.retain(|slot, _| seen.iter().any(|s| &s.slot == slot));
        let mut slots = Vec::with_capacity(seen.len());
        for one in seen {
            slots.push((one.slot.clone(), self.slot(one, load).await));
        }
        let (components, sided) = sides::assemble(slots, switches);
        let mut report = Report { sequence: self.sequence, host: facts, components };
        fit(&mut report);
        (report, sided)
    }

    async fn slot(&mut self, seen: Seen, load: &mut (dyn FnMut(Process) -> Load + Send)) -> ComponentReport {
        let Seen { slot, snapshot, staged_bytes, fetched_bytes } = seen;
        let known = self.known.entry(slot.clone()).or_default();
        look_at_tree(&self.host, &slot, known).await;
        let tree = known.tree.clone();
        let mut main = None;
        let mut restarts = 0;
        let service = match &tree {
            None => {
                known.running = None;
                ServiceState::Absent
            }
            Some(tree) => {
                let asked = timeout(STATUS, self.host.services.status(&tree.installed)).await;
                let status = asked.unwrap_or_else(|_| {
                    tracing::warn!(component = %slot, "the service manager does not answer within {} s", STATUS.as_secs());
                    Status::default()
                });
                (main, restarts) = (status.main, status.restarts);
                look_at_process(&self.host, &tree.installed, main, known).await;
                match (tree.intact, status.active) {
                    (false, _) => ServiceState::Drifted,
                    (true, true) => ServiceState::Running,
                    (true, false) => ServiceState::Stopped,
                }
            }
        };
        let load = main.map(load).unwrap_or_default();
        let record = snapshot.record.as_ref();
        let swap = record.and_then(|r| r.swap.as_ref());
        ComponentReport {
            generation: snapshot.generation,
            progress: snapshot.progress,
            failure: snapshot.failure,
            current: tree.as_ref().map(|t| t.installed.release.clone()),
            previous: record.and_then(previous),
            service,
            running: known.running.as_ref().map(|(_, running)| running.clone()),
            tree_sha256: tree.as_ref().filter(|t| t.intact).map(|t| t.installed.component.tree_digest()),
            was_unhealthy: record.is_some_and(|r| matches!(r.state, State::Reverted { was_unhealthy: true, .. })),
            smoke: swap.map(|s| s.smoke.clone()).unwrap_or_default(),
            staged_bytes,
            fetched_bytes,
            cpu_permille: load.cpu_permille,
            memory_bytes: load.memory_bytes,
            restarts,
            lease_left_ms: record.and_then(|r| lease_left_ms(&self.host, r)),
            component: slot.component,
        }
    }
}

/// What it would go back to: during a swap where it came from, else the release
/// before the standing one.
fn previous(record: &Record) -> Option<tidegate_protocol::ReleaseRef> {
    let swapping = matches!(record.state, State::Swapping(_) | State::Probation | State::Healthy);
    match &record.swap {
        Some(swap) if swapping => match &swap.from {
            Target::Release(release) => Some(release.clone()),
            Target::Absent => None,
        },
        _ => record.previous.clone(),
    }
}

/// Until the host reverts by itself.
#[must_use]
pub fn lease_left(record: &Record, boot_id: &tidegate_protocol::BootId) -> Option<u64> {
    let waits = matches!(record.state.progress(), Progress::Swapping | Progress::Probation | Progress::Healthy);
    let lease = record.swap.as_ref()?.lease.as_ref()?;
    (waits && &lease.boot_id == boot_id).then(|| lease.deadline.since(since_boot()).0)
}

fn lease_left_ms(host: &Host, record: &Record) -> Option<u64> {
    lease_left(record, &host.ctx.boot_id)
}

/// What the slot's link leads to, and whether its files are as the manifest says.
async fn look_at_tree(host: &Arc<Host>, slot: &Slot, known: &mut Known) {
    let (host, name, last) = (host.clone(), slot.clone(), known.tree.take());
    let looked = tokio::task::spawn_blocking(move || {
        let current = match host.trees.current_dir(&name) {
            Ok(current) => current?,
            Err(error) => {
                tracing::warn!(component = %name, error = crate::error::chain(&error), "current cannot be read");
                return None;
            }
        };
        let same = last.filter(|last| last.installed.dir == current);
        if let Some(last) = &same
            && last.installed.component.files.len() > MANY_FILES
            && last.looked.elapsed() < MANY_FILES_EVERY
        {
            return same;
        }
        let installed = match same.as_ref().map(|last| last.installed.clone()) {
            Some(installed) => installed,
            None => match host.trees.read_current(&name) {
                Ok(current) => Arc::new(current?),
                Err(error) => {
                    tracing::warn!(component = %name, error = crate::error::chain(&error), "current cannot be read");
                    return None;
                }
            },
        };
        let fingerprint = tree::fingerprint(&installed);
        let looked = Instant::now();
        if let Some(last) = same.filter(|last| last.fingerprint == fingerprint) {
            return Some(KnownTree { looked, ..last });
        }
        if host.verified.holds(&installed.dir, &fingerprint) {
            return Some(KnownTree { installed, fingerprint, intact: true, looked });
        }
        let drifted = tree::drift(&installed, &|| true).unwrap_or_default();
        if drifted.is_empty() {
            host.verified.remember(&installed.dir, fingerprint);
        } else {
            tracing::warn!(component = %name, release = %installed.release.id, files = tree::name_drift(&drifted), "files were changed on this host");
        }
        Some(KnownTree { installed, fingerprint, intact: drifted.is_empty(), looked })
    });
    known.tree = looked.await.unwrap_or_default();
}

/// Proves what the main process executes, once per process.
async fn look_at_process(host: &Host, installed: &Installed, main: Option<Process>, known: &mut Known) {
    let Some(main) = main else {
        known.running = None;
        return;
    };
    let same = |p: &Process| (p.pid, p.start_ticks) == (main.pid, main.start_ticks);
    if known.running.as_ref().is_some_and(|(process, running)| same(process) && running.sha256.is_some()) {
        return;
    }
    let unproven = Running { pid: main.pid, started_at_unix_ms: main.started_at_unix_ms, start_ticks: main.start_ticks, sha256: None };
    let proven = timeout(PROOF, host.services.prove(installed)).await;
    let running = proven.ok().and_then(Result::ok).filter(|r| (r.pid, r.start_ticks) == (main.pid, main.start_ticks));
    known.running = Some((main, running.unwrap_or(unproven)));
}

/// Makes a report fit its frame: what people read goes before what decides.
fn fit(report: &mut Report) {
    // A hello carries a little more than the report.
    let fits = |report: &Report| codec::encode(report, CONTROL_FRAME_BYTES_MAX - 1024).is_ok();
    if fits(report) {
        return;
    }
    let smoke = |report: &mut Report, cut: fn(&mut Vec<tidegate_protocol::report::SmokeResult>)| {
        report.components.iter_mut().for_each(|c| cut(&mut c.smoke))
    };
    smoke(report, |results| results.iter_mut().for_each(|r| r.message = r.message.chars().take(40).collect()));
    if !fits(report) {
        smoke(report, Vec::clear);
    }
}
