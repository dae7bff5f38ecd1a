//! Named points at which the process can be made to die, for crash tests.
//!
//! Set `TIDEGATE_CRASH_AT` to `POINT` or `POINT:N`: at that point (the N-th time
//! it is passed) the process kills itself with SIGKILL. Honoured in every build,
//! so that what is tested is what ships.
//!
//! Points of the controller, with KIND a journal record's kind (`started`,
//! `state`, `step`, `host`, `said`, `returned`, `gate`, `tripped`, …), or for orders
//! `ordered-PHASE` going forward and `ordered-back-PHASE` going back (PHASE:
//! `preflight`, `stage`, `cancel`, `swap`, `confirm`):
//! - `controller.append.before.KIND`: decided, not in the journal
//! - `controller.append.after.KIND`: in the journal, nothing sent or answered
//! - `controller.sent.after.ordered-…`, `controller.sent.after.switch`, `controller.sent.after.tasks`: given to the host's connection, and time
//!   passed for it to leave; whatever the host says to it is not heard

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tidegate_protocol::{Assignment, Intent, Phase};
use tidegate_rollout::Record;

/// The variable that is read, once.
pub const VARIABLE: &str = "TIDEGATE_CRASH_AT";

/// How long an armed `sent` point lets the bytes leave.
const LEAVE: Duration = Duration::from_millis(100);

struct Armed {
    point: String,
    left: AtomicU64,
}

impl Armed {
    fn parse(text: &str) -> Self {
        let (point, times) = match text.rsplit_once(':').and_then(|(p, n)| n.parse::<u64>().ok().map(|n| (p, n))) {
            Some((point, times)) => (point, times.max(1)),
            None => (text, 1),
        };
        Self { point: point.to_owned(), left: AtomicU64::new(times) }
    }

    fn fires(&self, point: &str) -> bool {
        self.point == point && self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| std::env::var(VARIABLE).ok().filter(|t| !t.is_empty()).map(|t| Armed::parse(&t))).as_ref()
}

fn die() {
    let _ = kill_process(getpid(), Signal::KILL);
    // SIGKILL of oneself does not return; if it were refused, this ends it alike.
    std::process::exit(137);
}

/// Dies here if told so. The name is only made when a point is armed.
pub fn hit(point: impl FnOnce() -> String) {
    if let Some(armed) = armed()
        && armed.fires(&point())
    {
        die();
    }
}

/// The point after an assignment was written to its stream.
pub async fn sent(assignment: &Assignment) {
    if let Some(armed) = armed()
        && armed.fires(&format!("controller.sent.after.{}", order_kind(assignment.intent, assignment.phase)))
    {
        tokio::time::sleep(LEAVE).await;
        die();
    }
}

/// The point after a switch order was written to its stream.
pub async fn sent_switch() {
    if let Some(armed) = armed()
        && armed.fires("controller.sent.after.switch")
    {
        tokio::time::sleep(LEAVE).await;
        die();
    }
}

/// The point after a list of tasks was written to its stream.
pub async fn sent_tasks() {
    if let Some(armed) = armed()
        && armed.fires("controller.sent.after.tasks")
    {
        tokio::time::sleep(LEAVE).await;
        die();
    }
}

/// KIND of a record.
#[must_use]
pub fn kind(record: &Record) -> String {
    match record {
        Record::Started { .. } => "started".into(),
        Record::State { .. } => "state".into(),
        Record::Step { .. } => "step".into(),
        Record::Ordered { intent, phase, .. } => order_kind(*intent, *phase),
        Record::Host { .. } => "host".into(),
        Record::Said { .. } => "said".into(),
        Record::Returned => "returned".into(),
        Record::Found { .. } => "found".into(),
        Record::Fenced { .. } => "fenced".into(),
        Record::Healed { .. } => "healed".into(),
        Record::Baseline { .. } => "baseline".into(),
        Record::Observed { .. } => "observed".into(),
        Record::Judged { .. } => "judged".into(),
        Record::Gate { .. } => "gate".into(),
        Record::Tripped { .. } => "tripped".into(),
        Record::Investigation { .. } => "investigation".into(),
        Record::Alert { .. } => "alert".into(),
        Record::Attested { .. } => "attested".into(),
        Record::Switch { .. } => "switch".into(),
        Record::Switched { .. } => "switched".into(),
        Record::Retired { .. } => "retired".into(),
        Record::Drilled { .. } => "drilled".into(),
        Record::Readiness { .. } => "readiness".into(),
        Record::Windows { .. } => "windows".into(),
        Record::Freeze { .. } => "freeze".into(),
        Record::Approved { .. } => "approved".into(),
        Record::Overridden { .. } => "overridden".into(),
        Record::Began => "began".into(),
        Record::TaskOrdered { what, .. } => format!("task-ordered-{}", what.word()),
        Record::TaskEnded { what, .. } => format!("task-ended-{}", what.word()),
        Record::Stopping { .. } => "stopping".into(),
        Record::Probed { .. } => "probed".into(),
        Record::Outage { .. } => "outage".into(),
        Record::Notified { .. } => "notified".into(),
        Record::Reminded { .. } => "reminded".into(),
        Record::Noted { .. } => "noted".into(),
        Record::Item { .. } => "item".into(),
        Record::SignedOff { .. } => "signed-off".into(),
        Record::Reviewed { .. } => "reviewed".into(),
        Record::Closed { .. } => "closed".into(),
    }
}

fn order_kind(intent: Intent, phase: Phase) -> String {
    let phase = match phase {
        Phase::Preflight => "preflight",
        Phase::Stage => "stage",
        Phase::Cancel => "cancel",
        Phase::Swap => "swap",
        Phase::Confirm => "confirm",
    };
    match intent {
        Intent::Forward => format!("ordered-{phase}"),
        Intent::Back => format!("ordered-back-{phase}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_fires_once_at_its_count() {
        let armed = Armed::parse("controller.append.after.ordered-swap:3");
        let fired: Vec<bool> = (0..5).map(|_| armed.fires("controller.append.after.ordered-swap")).collect();
        assert_eq!(fired, [false, false, true, false, false]);
        assert!(!armed.fires("controller.append.before.ordered-swap"));
        assert!(Armed::parse("x").fires("x"));
    }
}
