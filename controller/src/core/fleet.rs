//! What holds for the fleet as a whole: freezes, and how the routes of
//! notifications answered their last test. Folded from the fleet's records.

use std::collections::BTreeMap;

use tidegate_protocol::{Millis, RolloutId, Timestamp};
use tidegate_rollout::readiness::RouteTest;
use tidegate_rollout::selector::BadSelector;
use tidegate_rollout::{Event, Plan, Selector};

use super::Answer;
use super::ask::{json, reason_of, said};
use super::state::State;
use crate::operator::doc::{FreezeDoc, rfc3339};
use crate::operator::msg::{ErrorCode, ErrorDoc};
use crate::store::{FleetRecord, NewFleet};

/// Most freezes that stand at once.
const FREEZES_MAX: usize = 64;
/// Longest name of an environment, bytes.
const ENVIRONMENT_BYTES_MAX: usize = 64;
/// Without a change, who is covered is looked at so often.
const LOOK_EVERY: Millis = Millis::from_secs(1);

/// What the fleet's records came to.
#[derive(Debug, Default)]
pub(super) struct FleetLog {
    freezes: BTreeMap<u32, Freeze>,
    /// The last test of each route.
    pub(super) tests: BTreeMap<String, RouteTest>,
    /// Who is covered was last looked at.
    looked_at: Timestamp,
    /// It may have changed since.
    pub(super) changed: bool,
}

#[derive(Debug)]
struct Freeze {
    reason: String,
    by: String,
    from: Timestamp,
    until: Option<Timestamp>,
    environment: Option<String>,
    selector: String,
    /// None if it does not read: then every host is covered.
    selects: Option<Selector>,
    removed: bool,
}

impl FleetLog {
    pub(super) fn apply(&mut self, at: Timestamp, record: &FleetRecord) {
        match record {
            FleetRecord::FreezeAdded { freeze, reason, by, from, until, environment, selector } => {
                let added = Freeze {
                    reason: reason.clone(),
                    by: by.clone(),
                    from: *from,
                    until: *until,
                    environment: environment.clone(),
                    selector: selector.clone(),
                    selects: selector.parse().ok(),
                    removed: false,
                };
                self.freezes.insert(*freeze, added);
            }
            FleetRecord::FreezeRemoved { freeze, .. } => {
                if let Some(freeze) = self.freezes.get_mut(freeze) {
                    freeze.removed = true;
                }
            }
            FleetRecord::RouteTested { route, ok, detail, .. } => {
                self.tests.insert(route.clone(), RouteTest { at, ok: *ok, detail: detail.clone() });
            }
        }
        self.changed = true;
    }

    /// Freezes that stand now.
    fn active(&self, now: Timestamp) -> impl Iterator<Item = (u32, &Freeze)> {
        self.freezes.iter().filter(move |(_, f)| f.state(now) == "active").map(|(n, f)| (*n, f))
    }
}

impl Freeze {
    fn state(&self, now: Timestamp) -> &'static str {
        match self {
            Self { removed: true, .. } => "removed",
            Self { until: Some(until), .. } if *until <= now => "over",
            Self { from, .. } if now < *from => "pending",
            _ => "active",
        }
    }

    fn text(&self, number: u32) -> String {
        let until = self.until.map_or_else(|| "until it is removed".to_owned(), |at| format!("until {}", rfc3339(at)));
        format!("freeze {number} by {} {until}: {}", self.by, self.reason)
    }

    fn doc(&self, number: u32, now: Timestamp) -> FreezeDoc {
        FreezeDoc {
            freeze: number,
            reason: self.reason.clone(),
            by: self.by.clone(),
            from: rfc3339(self.from),
            until: self.until.map(rfc3339),
            environment: self.environment.clone(),
            selector: self.selector.clone(),
            state: self.state(now).into(),
        }
    }
}

/// What somebody wants frozen.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) reason: String,
    pub(super) from: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    pub(super) environment: Option<String>,
    pub(super) selector: String,
}

impl State {
    /// Takes a record of the fleet in; it is appended with this batch.
    pub(super) fn note(&mut self, now: Timestamp, record: FleetRecord) {
        self.fleet.apply(now, &record);
        self.recheck();
        self.batch.fleet.push(NewFleet { at: now, record });
    }

    pub(super) fn freeze_add(&mut self, now: Timestamp, by: &str, wanted: Wanted) -> Answer {
        let usage = |message: String| ErrorDoc::new(ErrorCode::Usage, message);
        let reason = said(wanted.reason, "--reason")?;
        let from = wanted.from.unwrap_or(now);
        if wanted.until.is_some_and(|until| until <= from.max(now)) {
            return Err(usage("--until is over before the freeze begins".into()).fix("give a time that is to come, or leave it out"));
        }
        wanted.selector.parse::<Selector>().map_err(|e: BadSelector| usage(e.to_string()))?;
        let environment = wanted.environment.map(reason_of).transpose()?;
        if environment.as_ref().is_some_and(|e| e.is_empty() || e.len() > ENVIRONMENT_BYTES_MAX) {
            return Err(usage(format!("--environment has 1 to {ENVIRONMENT_BYTES_MAX} bytes")));
        }
        let standing = self.fleet.freezes.values().filter(|f| matches!(f.state(now), "active" | "pending")).count();
        if standing >= FREEZES_MAX {
            return Err(ErrorDoc::new(ErrorCode::Refused, format!("{standing} freezes stand already, at most {FREEZES_MAX} are kept"))
                .fix("`tidegate freeze list` shows them, `tidegate freeze remove N` removes one"));
        }
        let freeze = self.fleet.freezes.last_key_value().map_or(0, |(n, _)| *n).saturating_add(1);
        tracing::info!(freeze, by, reason, "a freeze was added");
        let selector = wanted.selector;
        let until = wanted.until;
        self.note(now, FleetRecord::FreezeAdded { freeze, reason, by: by.to_owned(), from, until, environment, selector });
        self.freeze_doc(freeze, now)
    }

    pub(super) fn freeze_list(&self, now: Timestamp, all: bool) -> Answer {
        let shown = |f: &&Freeze| all || matches!(f.state(now), "active" | "pending");
        let list: Vec<FreezeDoc> = self.fleet.freezes.iter().filter(|(_, f)| shown(f)).map(|(n, f)| f.doc(*n, now)).collect();
        json(&list)
    }

    pub(super) fn freeze_remove(&mut self, now: Timestamp, by: &str, freeze: u32, reason: String) -> Answer {
        let reason = said(reason, "--reason")?;
        let Some(known) = self.fleet.freezes.get(&freeze) else {
            return Err(ErrorDoc::new(ErrorCode::NotFound, format!("no freeze {freeze}")).fix("`tidegate freeze list` shows them"));
        };
        let state = known.state(now);
        if matches!(state, "removed" | "over") {
            return Err(ErrorDoc::new(ErrorCode::Conflict, format!("freeze {freeze} is {state} already")));
        }
        tracing::info!(freeze, by, reason, "a freeze was removed");
        self.note(now, FleetRecord::FreezeRemoved { freeze, by: by.to_owned(), reason });
        self.freeze_doc(freeze, now)
    }

    fn freeze_doc(&self, freeze: u32, now: Timestamp) -> Answer {
        let known = self.fleet.freezes.get(&freeze);
        json(&known.ok_or_else(|| ErrorDoc::new(ErrorCode::NotFound, format!("no freeze {freeze}")))?.doc(freeze, now))
    }

    /// The first freeze that covers the plan now, in words.
    pub(super) fn frozen(&self, plan: &Plan, now: Timestamp) -> Option<String> {
        let covers = |freeze: &Freeze| {
            let there = freeze.environment.as_ref().is_none_or(|e| plan.environment.as_ref() == Some(e));
            there && (freeze.selector.is_empty() || self.touches(plan, freeze.selects.as_ref()))
        };
        self.fleet.active(now).find(|(_, f)| covers(f)).map(|(n, f)| f.text(n))
    }

    fn touches(&self, plan: &Plan, selector: Option<&Selector>) -> bool {
        let Some(selector) = selector else { return true };
        let tasks = plan.process.tasks.iter().map(|t| &t.host);
        let mut hosts = plan.targets().map(|(host, _)| host).chain(tasks);
        // A host that is not known any more may be the one that is meant.
        hosts.any(|host| self.registry.get(host).is_none_or(|h| selector.matches(&h.labels)))
    }

    /// Tells every live rollout whose freeze changed.
    pub(super) fn look_at_freezes(&mut self, now: Timestamp) {
        if !self.fleet.changed && now.since(self.fleet.looked_at) < LOOK_EVERY {
            return;
        }
        self.fleet.changed = false;
        self.fleet.looked_at = now;
        let none = self.fleet.active(now).next().is_none();
        let changed: Vec<(RolloutId, Option<String>)> = self
            .alive()
            .filter(|(_, e)| !(none && e.frozen.is_none()))
            .map(|(id, e)| (id.clone(), self.frozen(e.rollout.plan(), now), e.frozen.clone()))
            .filter(|(_, is, was)| is != was)
            .map(|(id, is, _)| (id, is))
            .collect();
        for (id, frozen) in changed {
            if let Some(entry) = self.rollouts.get_mut(&id) {
                entry.frozen.clone_from(&frozen);
            }
            self.tell(now, &id, Event::Frozen(frozen.as_deref()));
        }
    }
}
