//! Who is told: the plan's `[[notify]]`, or the guide's three lines, against the
//! routes of controller.toml; and who takes over for a route that is out of order.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{RolloutId, Timestamp};

use super::words::{Words, clean, cut};
use super::{Draft, GIVE_UP_AFTER, ISSUE, Notice, Severity};
use crate::plan::Plan;
use crate::process::{NotifySpec, Topic, Via};

/// Longest excerpt of what a route answered, characters.
const DETAIL_CHARS_MAX: usize = 300;

/// The route that a `[[notify]]` means: the one named `to`, else the one named as
/// its kind.
///
/// # Errors
/// There is none, or it is of another kind; says what to write.
pub fn route_of<'a>(spec: &'a NotifySpec, routes: &BTreeMap<String, Via>) -> Result<&'a str, String> {
    let kind = spec.via.word();
    for name in [spec.to.as_str(), kind] {
        match routes.get(name) {
            Some(via) if *via == spec.via => return Ok(name),
            Some(via) => {
                return Err(format!(
                    "route {name:?} of controller.toml is of kind {}, the plan wants {kind}: write via = \"{}\", or name another route",
                    via.word(),
                    via.word()
                ));
            }
            None => {}
        }
    }
    Err(format!("controller.toml has no route {:?}: add [routes.{}] with via = \"{kind}\", or name another one", spec.to, spec.to))
}

/// The guide's own lines, those whose route exists: for a plan that names none.
#[must_use]
pub fn default_specs(routes: &BTreeMap<String, Via>) -> Vec<NotifySpec> {
    let spec = |on: &[Topic], to: &str, via| NotifySpec { on: on.to_vec(), to: to.to_string(), via };
    let all = [
        spec(&[Topic::Started], "team", Via::Slack),
        spec(&[Topic::Completed], "stakeholders", Via::Email),
        spec(&[Topic::Issue, Topic::Paused, Topic::Rollback], "on-call", Via::Pagerduty),
    ];
    all.into_iter().filter(|spec| route_of(spec, routes).is_ok()).collect()
}

#[derive(Clone, Debug)]
pub(super) struct Routing {
    id: RolloutId,
    /// Kind of each.
    routes: BTreeMap<String, Via>,
    /// What goes where, in the plan's order.
    lines: Vec<(Vec<Topic>, String)>,
    /// Once each.
    order: Vec<String>,
    out_of_order: BTreeSet<String>,
    told: BTreeSet<(String, String)>,
    /// With whether it is only for machines.
    owed: BTreeMap<(String, String), (Notice, bool)>,
    /// First key by route.
    threads: BTreeMap<String, String>,
}

impl Routing {
    pub(super) fn new(id: &RolloutId, plan: &Plan, routes: &BTreeMap<String, Via>) -> Self {
        let own = &plan.process.notify;
        let defaults = if own.is_empty() { default_specs(routes) } else { Vec::new() };
        // A route that went away after the plan was checked is left out.
        let named =
            own.iter().chain(&defaults).filter_map(|spec| route_of(spec, routes).ok().map(|route| (spec.on.clone(), route.to_string())));
        let lines: Vec<(Vec<Topic>, String)> = named.collect();
        let mut order: Vec<String> = Vec::new();
        for (_, route) in &lines {
            if !order.contains(route) {
                order.push(route.clone());
            }
        }
        Self {
            id: id.clone(),
            routes: routes.clone(),
            lines,
            order,
            out_of_order: BTreeSet::new(),
            told: BTreeSet::new(),
            owed: BTreeMap::new(),
            threads: BTreeMap::new(),
        }
    }

    pub(super) fn pending(&self, now: Timestamp) -> Vec<(Notice, String)> {
        let mut all: Vec<(Notice, String)> = self
            .owed
            .iter()
            .filter(|(_, (notice, _))| now.since(notice.at) < GIVE_UP_AFTER)
            .map(|((_, route), (notice, _))| (notice.clone(), route.clone()))
            .collect();
        all.sort_by_key(|(notice, _)| notice.at);
        all
    }

    pub(super) fn deliver(&mut self, words: &Words, at: Timestamp, draft: &Draft) -> Vec<(Notice, String)> {
        let thing = |what: &&str| format!("tidegate/{}/{what}", self.id);
        let notice = Notice {
            rollout: self.id.clone(),
            key: draft.key.clone(),
            topic: draft.topics.first().copied().unwrap_or(Topic::Issue),
            severity: draft.severity,
            title: words.title(&draft.headline),
            text: draft.text.clone(),
            at,
            since: words.since,
            release: words.release.clone(),
            environment: words.environment.clone(),
            raises: draft.raises.as_ref().map(thing),
            resolves: draft.resolves.iter().map(thing).collect(),
            thread: String::new(),
        };
        let wanted: Vec<String> = self.order.iter().filter(|route| self.wants(route, &draft.topics)).cloned().collect();
        let mut out = Vec::new();
        for route in &wanted {
            if !self.out_of_order.contains(route) {
                self.give(&notice, route, draft.quiet, &mut out);
            }
        }
        // After those that get it anyway.
        for route in wanted {
            if self.out_of_order.contains(&route) {
                self.give_instead(&notice, &route, draft.quiet, &mut out);
            }
        }
        out
    }

    fn wants(&self, route: &str, topics: &[Topic]) -> bool {
        self.lines.iter().any(|(on, to)| to == route && on.iter().any(|topic| topics.contains(topic)))
    }

    fn give(&mut self, notice: &Notice, route: &str, quiet: bool, out: &mut Vec<(Notice, String)>) {
        let machine = matches!(self.routes.get(route), Some(Via::Pagerduty | Via::Webhook));
        let key = (notice.key.clone(), route.to_string());
        if (quiet && !machine) || !self.told.insert(key.clone()) {
            return;
        }
        let thread = self.threads.entry(route.to_string()).or_insert_with(|| notice.key.clone()).clone();
        let notice = Notice { thread, ..notice.clone() };
        self.owed.insert(key, (notice.clone(), quiet));
        out.push((notice, route.to_string()));
    }

    fn give_instead(&mut self, notice: &Notice, route: &str, quiet: bool, out: &mut Vec<(Notice, String)>) {
        let Some(next) = self.next_after(route) else { return };
        let text = format!("(Route {route} is out of order, so this comes here.) {}", notice.text);
        self.give(&Notice { text, ..notice.clone() }, &next, quiet, out);
    }

    /// The plan's next route that is in order.
    fn next_after(&self, route: &str) -> Option<String> {
        let at = self.order.iter().position(|r| r == route)?;
        let (before, after) = self.order.split_at(at);
        after.iter().skip(1).chain(before).find(|r| !self.out_of_order.contains(*r)).cloned()
    }

    /// What became of one. A failure is told on the next route, once for each
    /// route; what it could not tell comes with it, or after it.
    pub(super) fn notified(
        &mut self,
        words: &Words,
        at: Timestamp,
        key: &str,
        route: &str,
        ok: bool,
        detail: &str,
    ) -> Vec<(Notice, String)> {
        let mut out = Vec::new();
        let Some((notice, quiet)) = self.owed.remove(&(key.to_string(), route.to_string())) else { return out };
        if ok {
            return out;
        }
        if !self.out_of_order.insert(route.to_string()) {
            self.give_instead(&notice, route, quiet, &mut out);
            return out;
        }
        let Some(next) = self.next_after(route) else { return out };
        let via = self.routes.get(route).map_or("?", |via| via.word());
        let detail = cut(&clean(detail), DETAIL_CHARS_MAX);
        let happened = format!(
            "Route {route} ({via}) could not be told: {}. From here on its notices come here. What it was not told: {}. {}",
            detail.trim_end_matches('.'),
            notice.title,
            notice.text
        );
        let told = Notice {
            key: format!("route-{route}"),
            topic: Topic::Issue,
            severity: notice.severity.max(Severity::Warning),
            title: words.title(&format!("route {route} cannot be told")),
            text: words.text(&happened, format!("mend the route, then `tidegate notify test {route}`")),
            at,
            raises: Some(notice.raises.unwrap_or_else(|| format!("tidegate/{}/{ISSUE}", self.id))),
            ..notice
        };
        self.give(&told, &next, false, &mut out);
        out
    }
}
