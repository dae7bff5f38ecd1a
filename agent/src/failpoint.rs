//! Named points at which the process can be made to die, for crash tests.
//!
//! Set `TIDEGATE_CRASH_AT` to `POINT` or `POINT:N`: at that point (the N-th time
//! it is passed) the process kills itself with SIGKILL, as a power cut of one
//! process would. Honoured in every build, so that what is tested is what ships;
//! without the variable a point costs one comparison with nothing.
//!
//! Points of the agent (states, steps and operations in kebab-case):
//! - `agent.persist.before.STATE`, `agent.persist.after.STATE`: around the write
//!   of a ledger record in that state, such as `staging`, `swapping-flip`,
//!   `probation`, `reverting-activate`; "after" is durable, but not yet acted on.
//! - `agent.op.before.OP`, `agent.op.after.OP`: around an operation, such as
//!   `stage`, `flip`, `smoke`; "after" is done, but not yet said to the machine.
//! - `agent.switch.persist.before.STATE`, `agent.switch.persist.after.STATE`: the
//!   same for the record of a switch, such as `checking`, `switching`, `verifying`,
//!   `undoing`, `switched`.
//! - `agent.switch.op.before.OP`, `agent.switch.op.after.OP`: around `check`,
//!   `command`, `verify`, `undo-command`, `undo-verify`.
//! - `agent.task.persist.before.STATE`, `agent.task.persist.after.STATE`: around the
//!   write of a task's record in that state, `running`, `done` or `failed`.
//! - `agent.report.before`: before a report is sent.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// The variable that is read, once.
pub const VARIABLE: &str = "TIDEGATE_CRASH_AT";

struct Armed {
    point: String,
    left: AtomicU64,
}

fn parse(text: &str) -> Armed {
    let (point, times) = match text.rsplit_once(':').and_then(|(p, n)| n.parse().ok().map(|n: u64| (p, n))) {
        Some((point, times)) => (point, times.max(1)),
        None => (text, 1),
    };
    Armed { point: point.to_owned(), left: AtomicU64::new(times) }
}

impl Armed {
    /// Whether this passing is the one.
    fn fires(&self, point: &str) -> bool {
        self.point == point && self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| std::env::var(VARIABLE).ok().filter(|t| !t.is_empty()).map(|t| parse(&t))).as_ref()
}

/// Dies here if told so. The name is only made when a point is armed.
pub fn hit(point: impl FnOnce() -> String) {
    if let Some(armed) = armed()
        && armed.fires(&point())
    {
        let _ = kill_process(getpid(), Signal::KILL);
        // SIGKILL of oneself does not return; if it were refused, this ends it alike.
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_once_at_the_nth_passing_of_its_own_point() {
        let armed = parse("agent.op.before.flip:2");
        assert!(!armed.fires("agent.op.before.stage"));
        assert!(!armed.fires("agent.op.before.flip"));
        assert!(armed.fires("agent.op.before.flip"));
        assert!(!armed.fires("agent.op.before.flip"));
        assert!(parse("agent.report.before").fires("agent.report.before"));
    }
}
