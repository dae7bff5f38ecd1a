//! Downtime, measured: seconds in which probes got no good answer.
//!
//! Of one host: its outages added up. Of a component: the time during which *no*
//! probed host of it answered. Counted from the first swap to the end; what is not
//! probed is not known, and never counts as up.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use tidegate_protocol::{ComponentName, HostName};

use crate::fold::Facts;

/// Unix milliseconds, disjoint, in order of time.
type Spans = Vec<(u64, u64)>;

/// What was measured of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ComponentDowntime {
    pub(crate) component: ComponentName,
    /// Host and milliseconds; none where it is not probed.
    pub(crate) hosts: Vec<(HostName, Option<u64>)>,
    /// No probed host answered, milliseconds; none where no host is probed.
    pub(crate) all_ms: Option<u64>,
}

/// What was measured of the rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Downtime {
    pub(crate) components: Vec<ComponentDowntime>,
    /// Some component was down on all of its hosts, milliseconds; none where some
    /// component is not probed at all.
    pub(crate) fleet_ms: Option<u64>,
    /// The longest of one host.
    pub(crate) worst_ms: Option<u64>,
}

/// From the records.
pub(crate) fn measure(facts: &Facts<'_>) -> Downtime {
    let (from, to) = (facts.first_swap.map(|t| t.0), facts.end().0);
    let mut down: Spans = Vec::new();
    let mut components = Vec::new();
    for component in &facts.plan.components {
        let mut hosts: BTreeMap<HostName, Option<u64>> = component.hosts.iter().map(|h| (h.clone(), None)).collect();
        let mut all: Option<Spans> = None;
        let probed = facts.probed.iter().filter(|((c, _), probe)| *c == component.name && !probe.is_empty());
        for ((_, host), _) in probed {
            let known = facts.outages.get(&(component.name.clone(), host.clone()));
            let spans = known.map_or_else(Vec::new, |k| clip(k.iter().map(|(a, b)| (*a, b.unwrap_or(to))), from, to));
            hosts.insert(host.clone(), Some(total(&spans)));
            all = Some(match all {
                None => spans,
                Some(all) => both(&all, &spans),
            });
        }
        let all_ms = all.as_ref().map(|spans| total(spans));
        down.extend(all.unwrap_or_default());
        components.push(ComponentDowntime { component: component.name.clone(), hosts: hosts.into_iter().collect(), all_ms });
    }
    let measured = !components.is_empty() && components.iter().all(|c| c.all_ms.is_some());
    let worst_ms = components.iter().flat_map(|c| &c.hosts).filter_map(|(_, ms)| *ms).max();
    Downtime { fleet_ms: measured.then(|| total(&merged(down))), worst_ms, components }
}

/// Within the rollout; nothing before its first swap is its doing.
fn clip(spans: impl Iterator<Item = (u64, u64)>, from: Option<u64>, to: u64) -> Spans {
    let Some(from) = from else { return Vec::new() };
    merged(spans.map(|(a, b)| (a.max(from), b.min(to))).filter(|(a, b)| a < b).collect())
}

fn merged(mut spans: Spans) -> Spans {
    spans.sort_unstable();
    let mut out: Spans = Vec::new();
    for (from, to) in spans {
        match out.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => out.push((from, to)),
        }
    }
    out
}

fn both(left: &[(u64, u64)], right: &[(u64, u64)]) -> Spans {
    let mut out = Vec::new();
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    while let (Some((a, b)), Some((c, d))) = (left.peek(), right.peek()) {
        let (from, to) = (*a.max(c), *b.min(d));
        if from < to {
            out.push((from, to));
        }
        if b < d {
            left.next();
        } else {
            right.next();
        }
    }
    out
}

fn total(spans: &[(u64, u64)]) -> u64 {
    spans.iter().map(|(a, b)| b.saturating_sub(*a)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn the_fleet_is_down_only_while_nobody_answers() {
        assert_eq!(both(&[(0, 10), (20, 30)], &[(5, 25)]), vec![(5, 10), (20, 25)]);
        assert_eq!(both(&[(0, 10)], &[]), vec![]);
        assert_eq!(merged(vec![(5, 9), (0, 6), (20, 21)]), vec![(0, 9), (20, 21)]);
        assert_eq!(clip([(0, 10), (90, 200)].into_iter(), Some(5), 100), vec![(5, 10), (90, 100)]);
        assert_eq!(clip([(0, 10)].into_iter(), None, 100), vec![]);
        assert_eq!(total(&[(5, 10), (90, 100)]), 15);
    }
}
