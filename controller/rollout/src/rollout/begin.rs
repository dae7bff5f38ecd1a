//! Before the first step: people, windows, freezes and the checklist; and what of
//! it still binds a rollout that goes forward. Never what goes back.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{Millis, Timestamp};

use super::verbs::VerbError;
use super::{Action, Rollout, TargetRun};
use crate::process::{Fit, Given, HANDOFF_ROWS, Opening, Override, PAPER_ROWS, REMIND_EVERY, Role, Row, Signed, approval_item};
use crate::record::{Record, RolloutState, Step, TargetState};

/// What the driver knows of a rollout when it is submitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// The checklist's automatic rows.
    pub rows: Vec<Row>,
    /// The openings of its windows, those that ended left out.
    pub openings: Vec<Opening>,
    /// A freeze that covers it.
    pub freeze: Option<String>,
}

impl Rollout {
    /// It was submitted and has not begun: nothing was ordered anywhere.
    #[must_use]
    pub const fn waits_to_begin(&self) -> bool {
        matches!(self.state, RolloutState::AwaitingApproval | RolloutState::Scheduled)
    }

    /// From submitted to waiting or under way.
    pub(super) fn enter(&mut self, now: Timestamp) {
        if !self.look_to_begin(now) {
            // Unreachable by construction: one of the three always follows.
            self.begin(now);
        }
    }

    /// Where it stands before the first step; true if that changed.
    pub(super) fn look_to_begin(&mut self, now: Timestamp) -> bool {
        if let Some(reason) = self.halting.clone() {
            self.cancel_rest(now);
            self.append(now, Record::State { to: RolloutState::Halted, reason });
            return true;
        }
        if let Some(why) = self.too_late(now) {
            self.cancel_rest(now);
            self.append(now, Record::State { to: RolloutState::Refused, reason: why });
            return true;
        }
        let (to, reason) = match (self.missing_people(now), self.not_yet(now)) {
            (Some(missing), _) => (RolloutState::AwaitingApproval, missing),
            (None, Some(why)) => (RolloutState::Scheduled, why),
            (None, None) => {
                self.begin(now);
                return true;
            }
        };
        let first = self.reason.is_empty();
        if self.state == to && self.reason == reason && !first {
            return false;
        }
        self.append(now, Record::State { to, reason });
        true
    }

    pub(super) fn begin(&mut self, now: Timestamp) {
        // Half of it may be journaled already.
        if self.given.began_at.is_none() && (self.asks_anything() || !self.reason.is_empty()) {
            self.append(now, Record::Began);
        }
        self.append(now, Record::State { to: RolloutState::Running, reason: "started".to_string() });
        self.append(now, Record::Step { step: Step::Preflight });
        self.tell_watches();
    }

    /// Somebody or something is asked before the first step.
    fn asks_anything(&self) -> bool {
        let process = &self.plan.process;
        !self.given.rows.is_empty() || !process.approvals.is_empty() || !process.attest.is_empty() || !process.windows.is_empty()
    }

    /// What people have not given, in one sentence; `None` = all of it.
    pub(crate) fn missing_people(&self, now: Timestamp) -> Option<String> {
        let rows = self.given.checklist(&self.plan, now);
        let open: Vec<String> =
            rows.iter().filter(|row| row.blocks() && row.verdict == crate::process::RowVerdict::Open).map(|row| row.item.clone()).collect();
        (!open.is_empty()).then(|| format!("waits for people: {}", open.join(", ")))
    }

    /// What else keeps it from beginning now.
    fn not_yet(&self, now: Timestamp) -> Option<String> {
        if let Some(why) = self.closed_now(now, true) {
            return Some(why);
        }
        let failing: Vec<String> = self
            .given
            .rows
            .iter()
            .filter(|row| row.blocks() && row.verdict == crate::process::RowVerdict::Fail)
            .map(|row| format!("{}: {}", row.item, row.evidence))
            .collect();
        (!failing.is_empty()).then(|| format!("not ready: {}", failing.join("; ")))
    }

    /// A deadline for the beginning passed.
    fn too_late(&self, now: Timestamp) -> Option<String> {
        let process = &self.plan.process;
        if let Some(by) = process.start_by.filter(|by| now >= *by) {
            return Some(format!("it had not begun by start_by ({})", crate::status::rfc3339(by.0)));
        }
        if process.approval_valid > Millis(0) && now.since(self.started_at) >= process.approval_valid {
            return Some(format!("it had not begun {} after it was submitted", process.approval_valid));
        }
        let own = self.own_opening()?;
        let passed = now >= own.closes && self.binds(Override::Window);
        passed.then(|| format!("its window ended without it having begun ({}): {}", own.text, self.reason))
    }

    /// The opening in which a scheduled rollout must begin. Waiting for people
    /// outlasts a window: once they have spoken the next one counts, and the one that
    /// is open then only if there was room in it.
    fn own_opening(&self) -> Option<&Opening> {
        let since = (self.state == RolloutState::Scheduled && !self.reason.is_empty()).then_some(self.scheduled_since)??;
        let counts = |o: &&Opening| o.opens > since || (o.closes > since && (o.overrun || o.closes.since(since) >= self.needed(o, true)));
        self.given.openings.iter().filter(counts).min_by_key(|o| o.opens)
    }

    /// Past the end of an opening that lets it, a rollout that began in it goes on.
    fn overruns(&self, opening: &Opening) -> bool {
        opening.overrun && self.given.began_at.is_some_and(|began| opening.opens <= began && began < opening.closes)
    }

    /// A window or a freeze binds this rollout at all.
    fn binds(&self, what: Override) -> bool {
        // The word alone opens nothing: somebody must have signed for it.
        let emergency = crate::readiness::is_emergency(&self.plan) && !self.given.approvals.is_empty();
        !emergency && !self.given.overridden.contains_key(&what)
    }

    /// Why nothing may go forward now, by window or freeze. `whole`: everything is
    /// still to come.
    pub(crate) fn closed_now(&self, now: Timestamp, whole: bool) -> Option<String> {
        let process = &self.plan.process;
        if let Some(freeze) = self.given.freeze.as_ref().filter(|_| self.binds(Override::Freeze)) {
            return Some(format!("a freeze stands: {freeze}"));
        }
        if process.windows.is_empty() || !self.binds(Override::Window) {
            return None;
        }
        let next = || {
            let coming = self.given.openings.iter().filter(|o| o.opens > now).min_by_key(|o| o.opens);
            coming.map_or_else(String::new, |o| format!("; it opens next {}", o.text))
        };
        if !whole && self.given.openings.iter().any(|o| self.overruns(o)) {
            return None;
        }
        let Some(open) = self.given.open(now) else { return Some(format!("the window is closed{}", next())) };
        let needed = self.needed(open, whole);
        (open.closes.since(now) < needed && !open.overrun).then(|| {
            // No number that moves: each new reason is a record.
            let (open, needed, next) = (&open.text, secs(needed), next());
            format!("the window that is open ({open}) leaves too little time: {needed} are needed, the way back included{next}")
        })
    }

    /// The time that must be left of an opening; the way back always fits.
    fn needed(&self, opening: &Opening, whole: bool) -> Millis {
        let estimate = &self.plan.process.estimate;
        let stage = self.stage().map_or(Millis(0), |(_, stage)| if stage.watch { Millis(0) } else { stage.bake });
        match (opening.fit, whole) {
            (Fit::All, true) => Millis(estimate.forward.0.saturating_add(estimate.back.0)),
            (Fit::Stage, _) if whole || self.stage_begins() => Millis(stage.0.saturating_add(estimate.back.0)),
            _ => estimate.back,
        }
    }

    /// Nobody of the next wave was ordered to swap.
    fn stage_begins(&self) -> bool {
        let staged = |t: &&TargetRun| t.state == TargetState::Staged;
        let Some(next) = self.targets.iter().filter(staged).map(|t| t.wave).min() else { return false };
        !self.targets.iter().any(|t| t.wave == next && t.swap_ordered)
    }

    /// Going forward: closed meanwhile. Hosts in flight run on; a person goes on.
    pub(super) fn pause_if_closed(&mut self, now: Timestamp) -> bool {
        let Some(why) = self.closed_now(now, false) else { return false };
        self.append(now, Record::State { to: RolloutState::Paused, reason: why });
        true
    }

    /// Something is left that only goes forward while windows and freezes allow, and
    /// they do not: what a person can do.
    pub(super) fn held_by_window(&self, now: Timestamp) -> Option<String> {
        let waits = self.gate.is_none() && (self.step == Step::Tasks || self.more_to_come());
        let why = waits.then(|| self.closed_now(now, false))??;
        let what = if why.starts_with("a freeze") { Override::Freeze } else { Override::Window };
        Some(format!("{why}; `tidegate rollout override ID --what {}` goes on by name", what.word()))
    }

    pub(super) fn readiness(&mut self, now: Timestamp, rows: &[Row]) {
        if self.waits_to_begin() && self.given.rows != rows {
            // Numbers move all the time; journaled is what they come to.
            let verdicts = |rows: &[Row]| -> Vec<_> { rows.iter().map(|r| (r.item.clone(), r.verdict, r.demanded)).collect() };
            if verdicts(&self.given.rows) != verdicts(rows) {
                self.append(now, Record::Readiness { rows: rows.to_vec() });
            }
        }
    }

    pub(super) fn told_windows(&mut self, now: Timestamp, openings: &[Opening]) {
        if !self.is_live() {
            return;
        }
        // The one that it began in, or must begin in, still counts once it is over.
        let own = self.own_opening();
        let kept = |o: &&Opening| !openings.contains(o) && (self.overruns(o) || own == Some(o));
        let mut told: Vec<Opening> = self.given.openings.iter().filter(kept).chain(openings).cloned().collect();
        told.sort_by_key(|o| o.opens);
        if self.given.openings != told {
            self.append(now, Record::Windows { openings: told });
        }
    }

    pub(super) fn frozen(&mut self, now: Timestamp, reason: Option<&str>) {
        if self.is_live() && self.given.freeze.as_deref() != reason {
            self.append(now, Record::Freeze { reason: reason.map(ToString::to_string) });
        }
    }

    pub(super) fn approved(&mut self, now: Timestamp, role: Role, signed: &Signed) -> Result<(), VerbError> {
        if !self.waits_to_begin() {
            return Err(self.refused_word("approve", "approvals are given before it begins".to_string()));
        }
        // A second one that the risk asks for may be anybody's.
        let second = self.given.second_approver(&self.plan, now).is_some_and(|row| row.blocks());
        if !second && !self.plan.process.approvals.iter().any(|a| a.role == role) {
            let wanted: Vec<&str> = self.plan.process.approvals.iter().map(|a| a.role.word()).collect();
            let wanted = if wanted.is_empty() { "none".to_string() } else { wanted.join(", ") };
            return Err(self.refused_word("approve", format!("no approval of {role} is asked for; wanted: {wanted}")));
        }
        self.append(now, Record::Approved { role, signed: signed.clone() });
        Ok(())
    }

    pub(super) fn overridden_by(
        &mut self,
        now: Timestamp,
        what: Override,
        role: Role,
        signed: &Signed,
        reason: &str,
    ) -> Result<(), VerbError> {
        if !self.is_live() {
            return Err(self.refused_word("override", "it has ended".to_string()));
        }
        if !what.roles().contains(&role) {
            let wanted: Vec<&str> = what.roles().iter().map(|r| r.word()).collect();
            return Err(self.refused_word("override", format!("{role} may not override a {}: {} may", what.word(), wanted.join(" or "))));
        }
        self.append(now, Record::Overridden { what, role, signed: signed.clone(), reason: reason.to_string() });
        Ok(())
    }

    /// An item of the checklist or of the handoff; `None`: not one of those.
    pub(super) fn attest_process(&self, item: &str) -> Option<Result<(), VerbError>> {
        let process = &self.plan.process;
        let optional = process.approvals.iter().any(|a| a.optional && approval_item(a.role) == item);
        let before = optional || item == "runbook-still-valid" || process.attest.iter().any(|a| a == item);
        if before && self.waits_to_begin() {
            return Some(Ok(()));
        }
        if HANDOFF_ROWS.iter().any(|(known, _)| *known == item) || PAPER_ROWS.contains(&item) {
            let begun = !self.waits_to_begin() && self.state != RolloutState::Refused && self.given.closed.is_none();
            let hint = "the handoff is prepared once it has begun, and before it is closed".to_string();
            return Some(if begun { Ok(()) } else { Err(self.refused_word("attest", hint)) });
        }
        // A stage may ask for an item of the same name.
        let of_stage = self.plan.gating.stages.iter().any(|s| s.attest.iter().any(|i| i == item));
        (before && !of_stage).then(|| Err(self.refused_word("attest", format!("{item} is attested before it begins"))))
    }

    /// A person who is waited for is told again every hour.
    pub(super) fn remind(&mut self, now: Timestamp) {
        let since = self.reminded_at.map_or(self.state_since, |at| at.max(self.state_since));
        if crate::status::waits_for_person(self) && now.since(since) >= REMIND_EVERY {
            let reason = self.reason.clone();
            self.append(now, Record::Reminded { reason });
        }
    }

    /// Verbs that do not fit a rollout that has not begun.
    pub(super) fn waiting_hint(&self, now: Timestamp) -> String {
        match self.missing_people(now) {
            Some(missing) => format!("it {missing}; halt ends it"),
            None => format!("nothing was ordered yet: {}; halt ends it", self.reason),
        }
    }

    /// Papers: what people add, while and after it runs.
    pub(super) fn paper(&mut self, now: Timestamp, record: Record) -> Result<(), VerbError> {
        let ended = !self.is_live() || self.state == RolloutState::Watching;
        let (word, fits) = match &record {
            Record::Noted { .. } => ("note", true),
            Record::Item { .. } => ("item", true),
            Record::SignedOff { .. } => ("handoff", ended),
            Record::Reviewed { .. } => ("review", ended),
            Record::Closed { .. } => ("close", !self.is_live()),
            _ => return Err(self.refused_word("paper", "this is no paper".to_string())),
        };
        if let Some((at, by)) = &self.given.closed {
            let hint = format!("it was closed by {by} at {}", crate::status::rfc3339(at.0));
            return Err(self.refused_word(word, hint));
        }
        if !fits {
            return Err(self.refused_word(word, "it has not ended: `tidegate rollout wait` waits for that".to_string()));
        }
        self.append(now, record);
        Ok(())
    }

    /// Begins or ends the observation of outages, and tells hosts their tasks.
    pub(super) fn tell_process(&mut self) {
        let hosts: Vec<_> = self.contact.keys().cloned().collect();
        self.actions.extend(hosts.into_iter().map(Action::Outages));
        let hosts: Vec<_> = self.plan.process.tasks.iter().map(|t| t.host.clone()).collect();
        self.actions.extend(hosts.into_iter().map(Action::Tasks));
    }

    /// For the driver: what of the process is given.
    #[must_use]
    pub const fn given(&self) -> &Given {
        &self.given
    }
}

fn secs(time: Millis) -> Millis {
    Millis(time.0 / 1_000 * 1_000)
}
