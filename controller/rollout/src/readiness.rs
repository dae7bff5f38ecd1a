//! The checklist's automatic rows: what the program checks by itself before a
//! rollout may begin.
//!
//! Owns: their fixed names, what each asks, and the sentence that says what was
//! seen or what is missing and how to mend it. Must not: look anything up; all it
//! judges is in [`Facts`].

mod estimate;
mod rows;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::Value;
use tidegate_protocol::report::HostFacts;
use tidegate_protocol::{ComponentName, Digest, HostName, Millis, Release, ReleaseId, RolloutId, Timestamp, VarDigest};

pub use self::estimate::{Pace, estimate, needs, spell, steps};
use self::rows::{LINES, Look};
use crate::plan::Plan;
use crate::process::{ATTEST_ROWS, ChangeType, ContactRole, Opening, Override, Row, RowKind, RowVerdict, Section};
use crate::spec::Spec;

/// Everything that was looked up about a plan, as plain values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What the environment says about the rows.
    pub rules: Rules,
    /// What the depot holds of the release; none = it was not looked at.
    pub depot: Option<Held>,
    /// The newest rollout of the same manifest that completed in the staging
    /// environment and was not taken back.
    pub staging: Option<Ran>,
    /// Configuration here and in staging; none = nothing to compare with.
    pub config: Option<Compared>,
    /// The newest passed drill of the same manifest.
    pub drill: Option<Drill>,
    /// What most of the targets run now, if it is another release of the same name.
    pub before: Option<Before>,
    /// How the last test of each notification route went, by route.
    pub routes: BTreeMap<String, RouteTest>,
    /// Hosts that the plan changes, that stay in service beside them, and those of
    /// its tasks.
    pub hosts: BTreeMap<HostName, HostFact>,
    /// By URL: the status that it answered, or why it did not. Missing = not tried.
    pub dashboards: BTreeMap<String, Result<u16, String>>,
    /// Openings of the plan's windows that have not ended, in order of time.
    pub openings: Vec<Opening>,
    /// Whether the hours of the contacts of a role cover the rollout up to 100 %:
    /// from when to when, or when nobody is there.
    pub cover: BTreeMap<ContactRole, Result<String, String>>,
    /// Rollouts that hold a target, one sentence each.
    pub conflicts: Vec<String>,
    /// A freeze that covers the rollout: which, by whom, why, until when.
    pub freeze: Option<String>,
    /// What persons attested so far, by item.
    pub attested: BTreeSet<String>,
    /// What was overridden, and by whom.
    pub overridden: BTreeMap<Override, String>,
}

/// What an environment says about the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Where a release runs first; none = the plan is for that place itself, or for
    /// an environment without one.
    pub staging: Option<String>,
    /// Names of `[vars]` that may differ between the two.
    pub differs: BTreeSet<String>,
    /// How old a passed drill may be.
    pub drill_max_age: Millis,
    /// How old an answered test of a route may be.
    pub route_test_max_age: Millis,
    /// Templates of standard changes, by [`template_digest`].
    pub standard_changes: BTreeSet<Digest>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            staging: None,
            differs: BTreeSet::new(),
            drill_max_age: crate::process::DRILL_MAX_AGE_DEFAULT,
            route_test_max_age: crate::process::ROUTE_TEST_MAX_AGE_DEFAULT,
            standard_changes: BTreeSet::new(),
        }
    }
}

/// What the depot holds of a release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Files of the manifest that are not there, or have another size.
    pub missing: Vec<Digest>,
    /// Notes and runbooks that are only white space.
    pub blank: BTreeSet<Digest>,
}

/// A rollout that completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Which.
    pub rollout: RolloutId,
    /// When all hosts had it.
    pub at: Timestamp,
}

/// A drill that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drill {
    /// Which.
    pub rollout: RolloutId,
    /// When it ended.
    pub at: Timestamp,
    /// First swap order to last confirmation.
    pub forward: Millis,
    /// First revert order to last host back.
    pub back: Millis,
}

/// Configuration of two environments compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Names whose values are not the same, those that may differ included.
    pub differs: BTreeSet<String>,
    /// Hosts of this environment that were compared.
    pub here: usize,
    /// Hosts of the other one.
    pub there: usize,
    /// Hosts of either that never said what their `[vars]` are.
    pub silent: BTreeSet<HostName>,
}

/// The release that runs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// Which.
    pub release: ReleaseId,
    /// Of its deployment runbook.
    pub runbook: Option<Digest>,
}

/// How a test of a notification route went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTest {
    /// When.
    pub at: Timestamp,
    /// The other side took it.
    pub ok: bool,
    /// What it said.
    pub detail: String,
}

/// A host as last heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFact {
    /// In contact.
    pub online: bool,
    /// Of the messages, as agreed on; none = not in contact.
    pub version: Option<u16>,
    /// The agent's own.
    pub agent: String,
    /// Its numbers; none = never said.
    pub machine: Option<HostFacts>,
    /// What it runs.
    pub components: BTreeMap<ComponentName, ComponentFact>,
}

/// What a host runs of a component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComponentFact {
    /// A release is there, complete.
    pub installed: bool,
    /// Its files were changed.
    pub drifted: bool,
}

/// All automatic rows, in the order of the guide. Those that nobody demands and
/// that do not hold are not applicable, and say what they would have wanted.
#[must_use]
pub fn rows(plan: &Plan, manifest: &Release, facts: &Facts, now: Timestamp) -> Vec<Row> {
    let look = Look { plan, manifest, facts, now };
    let emergency = is_emergency(plan);
    let row = |line: &rows::Line| {
        let demanded = look.demanded(line);
        let (mut verdict, mut evidence) = (line.look)(&look);
        let missing = matches!(verdict, RowVerdict::Fail | RowVerdict::Open);
        if emergency && line.waived {
            verdict = RowVerdict::NotApplicable;
            evidence = format!("an emergency change goes without it ({evidence})");
        } else if let Some(by) = overridable(line.item).and_then(|what| facts.overridden.get(&what)).filter(|_| missing) {
            verdict = RowVerdict::NotApplicable;
            evidence = format!("overridden by {by} ({evidence})");
        } else if missing && !demanded && line.section != Section::Fleet {
            verdict = RowVerdict::NotApplicable;
            evidence = format!("not demanded here ({evidence})");
        }
        Row {
            item: line.item.to_string(),
            section: line.section,
            title: line.title.to_string(),
            kind: RowKind::Automatic,
            demanded,
            verdict,
            evidence,
            by: None,
            at: None,
        }
    };
    LINES.iter().map(row).collect()
}

/// Every automatic row: item, section, title.
pub fn automatic() -> impl Iterator<Item = (&'static str, Section, &'static str)> {
    LINES.iter().map(|line| (line.item, line.section, line.title))
}

/// Every item of the checklist that an environment may demand by name: automatic
/// rows, then those that a person attests.
pub fn items() -> impl Iterator<Item = &'static str> {
    LINES.iter().map(|line| line.item).chain(ATTEST_ROWS.iter().map(|(item, ..)| *item))
}

/// What keeps the rollout from beginning, one line each, by item.
#[must_use]
pub fn refusals(rows: &[Row]) -> Vec<String> {
    rows.iter().filter(|row| row.blocks()).map(|row| format!("{}: {}: {}", row.item, row.title, row.evidence)).collect()
}

/// What a person with the right role may go past, by name and signature, where
/// this row fails.
#[must_use]
pub fn overridable(item: &str) -> Option<Override> {
    match item {
        "window" | "rollback-time" => Some(Override::Window),
        "no-freeze" => Some(Override::Freeze),
        _ => None,
    }
}

/// What a standard change was approved as, once and for all: sha256 of the plan as
/// written, without the release's version, the change's id and summary, and
/// `start_by`.
#[must_use]
pub fn template_digest(spec: &Spec) -> Digest {
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    if let Value::Object(keys) = &mut value {
        keys.insert("release".to_string(), Value::String(spec.release.name.to_string()));
        keys.remove("start_by");
        if let Some(Value::Object(change)) = keys.get_mut("change") {
            change.remove("id");
            change.remove("summary");
        }
    }
    Digest::of(value.to_string().as_bytes())
}

/// Names of `[vars]` whose values are not the same on both sides, over all hosts of
/// each.
#[must_use]
pub fn compare<'a>(here: impl IntoIterator<Item = &'a [VarDigest]>, there: impl IntoIterator<Item = &'a [VarDigest]>) -> BTreeSet<String> {
    type Values<'a> = BTreeMap<&'a str, BTreeSet<Option<Digest>>>;
    fn values<'a>(hosts: Vec<&'a [VarDigest]>, names: &BTreeSet<&'a str>) -> Values<'a> {
        let mut all = Values::new();
        for name in names {
            // A host without the name has another configuration than one with it.
            let of = |host: &&[VarDigest]| host.iter().find(|v| v.name == **name).map(|v| v.digest);
            all.insert(name, hosts.iter().map(of).collect());
        }
        all
    }
    let (here, there): (Vec<_>, Vec<_>) = (here.into_iter().collect(), there.into_iter().collect());
    let names: BTreeSet<&str> = here.iter().chain(&there).flat_map(|host| host.iter().map(|v| v.name.as_str())).collect();
    let (here, there) = (values(here, &names), values(there, &names));
    names.into_iter().filter(|name| here.get(name) != there.get(name)).map(ToString::to_string).collect()
}

/// An emergency change that somebody signs for: it crosses windows and freezes.
/// Without any approval to give, the word alone waives nothing.
#[must_use]
pub fn is_emergency(plan: &Plan) -> bool {
    let kind = plan.process.change.as_ref().map(|c| c.kind);
    kind == Some(ChangeType::Emergency) && !plan.process.approvals.is_empty()
}
