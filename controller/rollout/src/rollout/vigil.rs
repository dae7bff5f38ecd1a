//! Health past the first pass: hosts that were confirmed and go bad while the
//! rollout lives.

use alloc::format;

use tidegate_protocol::report::{Failure, ServiceState};
use tidegate_protocol::{Cause, ComponentReport, Millis, Progress, Timestamp};

use super::Rollout;
use crate::record::{Record, RolloutState, TargetState};

/// So many starts of a confirmed service within [`LOOP_WITHIN`] are a crash loop.
const LOOP_STARTS: usize = 3;
/// Two looks at a host's clocks may differ by a little.
const CLOCK_SLACK_MS: u64 = 500;
const LOOP_WITHIN: Millis = Millis::from_secs(600);
/// A confirmed service that does not run, or is not what was assigned, for so long
/// is broken; a restart takes less.
const BROKEN_FOR: Millis = Millis::from_secs(10);

/// What is remembered of a confirmed service. Not journaled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vigil {
    main: Option<u64>,
    /// As last reported; the report that confirmed it is the first.
    pub(super) restarts: Option<u32>,
    /// When it was seen to have started again.
    starts: alloc::vec::Vec<Timestamp>,
    broken: Option<(Timestamp, &'static str)>,
    /// Rounds of smoke tests: bad ones, all.
    smoke: Option<(u64, u64)>,
    /// Bad ones in a row.
    failed_rounds: u64,
}

impl Rollout {
    /// A report of a confirmed host; true if the host is called back.
    pub(super) fn keep_vigil(&mut self, now: Timestamp, at: usize, report: &ComponentReport) -> bool {
        let watched = self.is_live() && self.state != RolloutState::RollingBack && !self.stands();
        let Some(target) = self.targets.get_mut(at).filter(|t| watched && t.state == TargetState::Confirmed) else { return false };
        if report.generation != target.generation || report.progress != Progress::Confirmed {
            return false;
        }
        let wanted = target.seen.as_ref().and_then(|s| s.running_sha256);
        let confirmed_main = target.seen.as_ref().and_then(|s| s.main_pid_started_at);
        let vigil = &mut target.live.vigil;
        let main = report.running.as_ref().map(|r| r.started_at_unix_ms);
        let before = vigil.main.or(confirmed_main);
        let again = matches!((before, main), (Some(before), Some(main)) if before.abs_diff(main) > CLOCK_SLACK_MS);
        let more = vigil.restarts.is_some_and(|before| report.restarts > before);
        if again || more {
            let times = vigil.restarts.map_or(1, |before| report.restarts.saturating_sub(before).max(1)) as usize;
            vigil.starts.extend(core::iter::repeat_n(now, times.min(LOOP_STARTS)));
        }
        vigil.main = main.or(vigil.main);
        vigil.restarts = Some(report.restarts);
        vigil.starts.retain(|start| now.since(*start) < LOOP_WITHIN);
        let starts = vigil.starts.len();
        let wrong = if report.service == ServiceState::Drifted {
            Some("files of its release were changed")
        } else if report.running.is_none() && report.service == ServiceState::Stopped {
            Some("its service does not run any more")
        } else if wanted.is_some() && report.running.as_ref().is_some_and(|r| r.sha256 != wanted) {
            Some("it runs another executable than the assigned one")
        } else {
            None
        };
        match (wrong, &vigil.broken) {
            (Some(what), None) => vigil.broken = Some((now, what)),
            (None, Some(_)) => vigil.broken = None,
            _ => {}
        }
        let broken = vigil.broken.filter(|(since, _)| now.since(*since) >= BROKEN_FOR).map(|(_, what)| what);
        let failure = if starts >= LOOP_STARTS {
            Failure {
                cause: Cause::CrashLoop,
                message: format!("was confirmed, but its service started {starts} times again within {LOOP_WITHIN}"),
            }
        } else if let Some(what) = broken {
            let cause = if what.starts_with("files") { Cause::Drifted } else { Cause::StartFailed };
            Failure { cause, message: format!("was confirmed, but {what}") }
        } else {
            return false;
        };
        if self.plan.blue_green.is_some() {
            // Its way back is a switch, of all hosts together.
            self.host(now, at, TargetState::Confirmed, Some(failure.clone()), true, None);
            let reason =
                format!("{}: {}", self.targets.get(at).map_or_else(Default::default, |t| format!("{}", t.origin.host)), failure.message);
            self.begin_back(now, reason);
            return true;
        }
        self.call_back(now, at, failure, None)
    }

    /// Smoke tests that passed once and fail now: a relapse. `bad` of `total` rounds.
    pub(super) fn relapsed(&mut self, now: Timestamp, at: usize, bad: u64, total: u64, note: Option<&str>) -> bool {
        const RELAPSE_ROUNDS: u64 = 2;
        let watched = self.is_live() && self.state != RolloutState::RollingBack && !self.stands();
        let Some(target) = self.targets.get_mut(at).filter(|t| watched && t.state == TargetState::Confirmed) else { return false };
        let vigil = &mut target.live.vigil;
        let (bad_before, total_before) = vigil.smoke.unwrap_or((bad, total));
        vigil.smoke = Some((bad, total));
        let (failed, rounds) = (bad.saturating_sub(bad_before), total.saturating_sub(total_before));
        if rounds == 0 {
            return false;
        }
        vigil.failed_rounds = if failed == rounds { vigil.failed_rounds.saturating_add(failed) } else { 0 };
        if vigil.failed_rounds < RELAPSE_ROUNDS {
            return false;
        }
        let message = format!("passed its smoke tests and was confirmed, but fails them now: {}", note.unwrap_or("no reason given"));
        let failure = Failure { cause: Cause::Smoke, message };
        if self.plan.blue_green.is_some() {
            let reason = failure.message.clone();
            self.host(now, at, TargetState::Confirmed, Some(failure), true, None);
            self.begin_back(now, reason);
            return true;
        }
        self.call_back(now, at, failure, None)
    }

    /// Times of a drill, from its records.
    pub(super) fn drill_record(&self, now: Timestamp) -> Record {
        let first = self.first_swap_at.unwrap_or(self.started_at);
        let forward = self.last_confirmed_at.map_or(Millis(0), |at| at.since(first));
        let back = self.back_began_at.map_or(Millis(0), |at| now.since(at));
        let good = self.targets.iter().all(|t| t.failure.is_none() && t.state == TargetState::Reverted && t.confirmed_as.is_some());
        Record::Drilled { passed: good && !self.targets.is_empty(), forward_ms: forward.0, back_ms: back.0 }
    }
}
