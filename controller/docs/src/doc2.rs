//! 2: the Deployment Execution Log.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_protocol::Digest;
use tidegate_protocol::release::Proof;
use tidegate_rollout::record::TargetState;
use tidegate_rollout::status::rfc3339;

use crate::DocsError;
use crate::fold::TargetFact;
use crate::issues::Issue;
use crate::model::{Cell, Document, Mark, Sheet};
use crate::story::{Story, duration, given};
use crate::text::{clock, day, moment_utc, sha256};
use crate::timeline;

#[derive(Clone, Debug, Serialize)]
struct Data<'a> {
    date: String,
    lead: Option<&'a str>,
    timeline: &'a [timeline::Row],
    stages: Vec<StageHosts<'a>>,
    issues: &'a [Issue],
    artifacts: Vec<Artifact>,
    notified: Vec<Notified<'a>>,
}

#[derive(Clone, Debug, Serialize)]
struct StageHosts<'a> {
    wave: usize,
    name: &'a str,
    state: &'static str,
    hosts: Vec<Host<'a>>,
}

#[derive(Clone, Debug, Serialize)]
struct Host<'a> {
    host: &'a str,
    component: &'a str,
    state: &'static str,
    before: Option<String>,
    runs: Option<String>,
    swap_ordered_at: Option<String>,
    confirmed_at: Option<String>,
    cause: Option<String>,
    message: Option<&'a str>,
}

/// What of a component was shipped, and what was found on the hosts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Artifact {
    pub(crate) component: String,
    pub(crate) version: String,
    pub(crate) tree_sha256: Digest,
    pub(crate) files: usize,
    /// Hosts that change.
    pub(crate) hosts: usize,
    /// Of those, hosts on which the tree was hashed after the swap.
    pub(crate) hashed: usize,
    /// Of those, with another digest than the manifest's.
    pub(crate) tree_mismatches: usize,
    /// Hosts where what runs was hashed.
    pub(crate) running_hashed: usize,
    /// Of those, where it is no file of the release.
    pub(crate) running_mismatches: usize,
    /// What runs, by digest.
    pub(crate) running_sha256: Vec<Digest>,
}

#[derive(Clone, Debug, Serialize)]
struct Notified<'a> {
    at: String,
    event: &'a str,
    route: &'a str,
    ok: bool,
    detail: &'a str,
}

pub(crate) fn document(story: &Story<'_>) -> Result<Document, DocsError> {
    let facts = &story.facts;
    let data = Data {
        date: day(facts.origin()),
        lead: facts.plan.lead.as_deref(),
        timeline: &story.timeline,
        stages: stages(story),
        issues: &story.issues,
        artifacts: artifacts(story),
        notified: facts
            .notified
            .iter()
            .map(|((key, route), n)| Notified { at: rfc3339(n.at.0), event: key, route, ok: n.ok, detail: &n.detail })
            .collect(),
    };
    let mut sheet = Sheet::default();
    let duration = duration(facts).map_or_else(|| Cell::open("deployment-complete", "it has not ended"), Cell::new);
    sheet.pairs(alloc::vec![
        ("Release", Cell::new(format!("{}", facts.plan.release.id))),
        ("Date", Cell::new(data.date.as_str())),
        ("Lead", given(data.lead, "deployment-lead", "plan.toml: lead")),
        ("Strategy", Cell::new(facts.plan.strategy.word())),
        ("Start", Cell::new(moment_utc(facts.origin()))),
        ("End", facts.ended.map_or_else(Cell::none, |t| Cell::new(moment_utc(t)))),
        ("Duration", duration),
    ]);
    timeline_table(&mut sheet, story);
    issues_table(&mut sheet, story);
    artifacts_table(&mut sheet, &data.artifacts);
    hosts_tables(&mut sheet, story, &data.stages);
    sheet.h2("Notified");
    let mut told: Vec<_> = facts.notified.iter().collect();
    told.sort_by_key(|(_, n)| n.at);
    let rows = told.into_iter().map(|((key, route), n)| {
        let status = if n.ok { Cell::marked(Mark::Good, "taken") } else { Cell::marked(Mark::Bad, n.detail.as_str()) };
        alloc::vec![Cell::new(clock(n.at, facts.origin())), Cell::new(key.as_str()), Cell::new(route.as_str()), status]
    });
    sheet.table(&["Time", "Event", "Route", "Status"], rows.collect(), "open: notifications (nobody was told: the plan names no route)");
    story.document(2, sheet, &data)
}

fn timeline_table(sheet: &mut Sheet, story: &Story<'_>) {
    let facts = &story.facts;
    sheet.h2("Execution Timeline");
    sheet.text(format!("Times are UTC, from {}.", moment_utc(facts.origin())));
    let mut rows: Vec<Vec<Cell>> = story
        .timeline
        .iter()
        .map(|r| {
            let notes = if r.notes.is_empty() { Cell::none() } else { Cell::new(r.notes.as_str()) };
            alloc::vec![
                Cell::new(clock(r.at, facts.origin())),
                Cell::new(r.step.as_str()),
                if r.status == Mark::Plain { Cell::none() } else { Cell::marked(r.status, "") },
                notes
            ]
        })
        .collect();
    let missing = |item: &str, step: &str, what: &str| {
        alloc::vec![Cell::none(), Cell::new(step), Cell::marked(Mark::Open, ""), Cell::open(item, what)]
    };
    let has = |step: &str| story.timeline.iter().any(|r| r.step.starts_with(step));
    if !has("Start deployment") {
        rows.push(missing("start-deployment", "Start deployment", "it did not begin"));
    }
    if facts.release.tasks.is_empty() {
        let mut row = missing("tasks", "Backup and migrations", "the release brings no task; a backup is made elsewhere");
        if let Some((by, note, _)) = facts.attested("tasks") {
            row = alloc::vec![
                Cell::none(),
                Cell::new("Backup and migrations"),
                Cell::marked(Mark::Good, ""),
                Cell::new(format!("{note} ({by})"))
            ];
        }
        rows.push(row);
    }
    for task in &facts.plan.process.tasks {
        if !facts.tasks.iter().any(|t| t.name == task.name && t.ended.is_some()) {
            rows.push(missing("tasks", &task.name, "it was not run to its end"));
        }
    }
    for component in &facts.plan.components {
        if !has(&format!("Deploy {}", component.name)) && !component.hosts.is_empty() {
            rows.push(missing(
                "deploy-components",
                &format!("Deploy {}", component.name),
                &format!("0/{} nodes: no host was told to swap", component.hosts.len()),
            ));
        }
    }
    for (item, step, what) in
        [("smoke-tests", "Smoke tests", "no host told a result"), ("traffic-switch", "Traffic switch", "no host serves the release")]
    {
        if !has(step) {
            rows.push(missing(item, step, what));
        }
    }
    if !facts.state.is_terminal() {
        rows.push(missing("deployment-complete", "Deployment complete", &format!("it is {}: {}", facts.state, facts.reason)));
    }
    sheet.table(&["Time", "Step", "Status", "Notes"], rows, "None");
}

pub(crate) fn resolution(story: &Story<'_>, issue: &Issue) -> Cell {
    let auto = issue.resolution.as_deref();
    match (&issue.resolved_by, auto) {
        (Some(said), Some(auto)) => Cell::marked(Mark::Good, format!("{} ({}); {auto}", said.text, said.by)),
        (Some(said), None) => Cell::marked(Mark::Good, format!("{} ({})", said.text, said.by)),
        (None, auto) if issue.needs_person => {
            let auto = auto.map_or_else(String::new, |a| format!("{a}; "));
            let how = story.command("note", &format!("--resolves {} TEXT", issue.number));
            Cell::marked(Mark::Open, format!("{auto}open: {} (issue-resolution: {how})", issue.item()))
        }
        (None, Some(auto)) => Cell::marked(Mark::Good, auto),
        (None, None) => Cell::marked(Mark::Warn, "not mended by the end"),
    }
}

fn issues_table(sheet: &mut Sheet, story: &Story<'_>) {
    let facts = &story.facts;
    sheet.h2("Issues Encountered");
    let rows = story.issues.iter().map(|issue| {
        alloc::vec![
            Cell::new(issue.number.to_string()),
            Cell::new(clock(issue.at, facts.origin())),
            Cell::new(issue.text.as_str()),
            resolution(story, issue),
        ]
    });
    sheet.table(&["No.", "Time", "Issue", "Resolution"], rows.collect(), "None");
}

/// Per component of the plan.
pub(crate) fn artifacts(story: &Story<'_>) -> Vec<Artifact> {
    let facts = &story.facts;
    let of = |component: &tidegate_rollout::plan::ComponentPlan| {
        let manifest = facts.component(&component.name);
        let seen = || facts.changed(&component.name).filter_map(|t| t.proof.as_ref());
        let trees = || seen().filter_map(|s| s.tree_sha256);
        let runs = || seen().filter_map(|s| s.running_sha256);
        let known = |digest: &Digest| manifest.is_some_and(|m| m.proof == Proof::None || m.files.iter().any(|f| f.digest == *digest));
        let mut running_sha256: Vec<Digest> = runs().collect();
        running_sha256.sort_unstable();
        running_sha256.dedup();
        running_sha256.truncate(8);
        Artifact {
            component: component.name.to_string(),
            version: facts.release.version.to_string(),
            tree_sha256: component.tree_sha256,
            files: manifest.map_or(0, |m| m.files.len()),
            hosts: component.hosts.len(),
            hashed: trees().count(),
            tree_mismatches: trees().filter(|t| *t != component.tree_sha256).count(),
            running_hashed: runs().count(),
            running_mismatches: runs().filter(|d| !known(d)).count(),
            running_sha256,
        }
    };
    facts.plan.components.iter().map(of).collect()
}

fn artifacts_table(sheet: &mut Sheet, artifacts: &[Artifact]) {
    sheet.h2("Artifacts Deployed");
    let rows = artifacts.iter().map(|a| {
        let disk = match (a.hashed, a.tree_mismatches) {
            (0, _) => Cell::open("artifact-checksums", "no host hashed it on disk"),
            (n, 0) => Cell::marked(if n == a.hosts { Mark::Good } else { Mark::Warn }, format!("{n}/{} hosts, 0 mismatches", a.hosts)),
            (n, bad) => Cell::marked(Mark::Bad, format!("{n}/{} hosts, {bad} mismatches", a.hosts)),
        };
        let runs = match (a.running_hashed, a.running_mismatches) {
            (0, _) => Cell::marked(Mark::NotApplicable, "not hashed"),
            (n, 0) => Cell::marked(
                Mark::Good,
                format!("{n} hosts, 0 mismatches: {}", a.running_sha256.iter().map(Digest::short).collect::<Vec<_>>().join(", ")),
            ),
            (n, bad) => Cell::marked(Mark::Bad, format!("{n} hosts, {bad} mismatches")),
        };
        alloc::vec![Cell::new(a.component.as_str()), Cell::new(a.version.as_str()), Cell::code(sha256(&a.tree_sha256)), disk, runs]
    });
    sheet.table(&["Component", "Version", "Checksum", "On disk, hashed", "Running, hashed"], rows.collect(), "None");
}

fn stages<'a>(story: &'a Story<'_>) -> Vec<StageHosts<'a>> {
    let facts = &story.facts;
    let host = |t: &'a TargetFact| Host {
        host: t.host.as_str(),
        component: t.component.as_str(),
        state: t.state.word(),
        before: t.origin.as_ref().and_then(|o| o.previous.as_ref()).map(|r| r.id.to_string()),
        runs: runs(t),
        swap_ordered_at: t.swap_at.map(|t| rfc3339(t.0)),
        confirmed_at: t.confirmed_at.map(|t| rfc3339(t.0)),
        cause: t.failure.as_ref().map(|f| f.cause.to_string()),
        message: t.failure.as_ref().map(|f| f.message.as_str()),
    };
    let states: BTreeMap<usize, _> = facts.status.waves.iter().map(|w| (w.index, w.state)).collect();
    let mut by_wave: BTreeMap<usize, Vec<&TargetFact>> = BTreeMap::new();
    for target in facts.targets.iter().filter(|t| t.origin.is_some()) {
        by_wave.entry(target.wave.unwrap_or_default()).or_default().push(target);
    }
    let of_wave = |wave: &'a tidegate_rollout::plan::Wave| {
        let state = states.get(&wave.index).map_or("pending", |s| s.word());
        let hosts = by_wave.get(&wave.index).into_iter().flatten().map(|t| host(t)).collect();
        StageHosts { wave: wave.index, name: &wave.name, state, hosts }
    };
    facts.plan.waves.iter().map(of_wave).collect()
}

/// What a target runs, as last seen.
pub(crate) fn runs(target: &TargetFact) -> Option<String> {
    let seen = target.seen.as_ref().map(|s| s.release.as_ref());
    let release = seen.unwrap_or_else(|| target.origin.as_ref().and_then(|o| o.previous.as_ref()));
    release.map(|r| r.id.to_string())
}

fn hosts_tables(sheet: &mut Sheet, story: &Story<'_>, stages: &[StageHosts<'_>]) {
    /// More lines than this help nobody on paper; the JSON has all.
    const ROWS_MAX: usize = 500;
    sheet.h2("Hosts per Stage");
    let mut rows = Vec::new();
    let time = |t: &Option<String>| t.as_deref().and_then(|t| t.get(11..19)).map_or_else(Cell::none, Cell::new);
    for stage in stages {
        for host in &stage.hosts {
            let mark = match host.state {
                "confirmed" => Mark::Good,
                "reverted" | "skipped" => Mark::Warn,
                "pending" | "staging" | "staged" => Mark::NotApplicable,
                "failed" | "revert-failed" | "unreachable" => Mark::Bad,
                _ => Mark::Open,
            };
            let why = host.message.map_or_else(Cell::none, |m| Cell::new(format!("{}: {m}", host.cause.as_deref().unwrap_or_default())));
            rows.push(alloc::vec![
                Cell::new(stage.name),
                Cell::new(host.host),
                Cell::new(host.component),
                Cell::marked(mark, host.state),
                Cell::new(host.before.as_deref().unwrap_or("nothing")),
                Cell::new(host.runs.as_deref().unwrap_or("nothing")),
                time(&host.swap_ordered_at),
                time(&host.confirmed_at),
                why,
            ]);
        }
    }
    let left = rows.len().saturating_sub(ROWS_MAX);
    rows.truncate(ROWS_MAX);
    sheet.table(&["Stage", "Host", "Component", "State", "Before", "Runs", "Swap", "Kept", "Cause"], rows, "No host changes");
    if left > 0 {
        sheet.text(format!("{left} more in the JSON of this document."));
    }
    let still = |state: TargetState| {
        story.facts.targets.iter().filter(move |t| t.origin.is_none() && t.state == state).map(|t| format!("{} ({})", t.host, t.component))
    };
    let unchanged: Vec<String> = still(TargetState::Confirmed).collect();
    if !unchanged.is_empty() {
        sheet.text(format!("Ran this release already: {}.", unchanged.join(", ")));
    }
    let skipped: Vec<String> = still(TargetState::Skipped).collect();
    if !skipped.is_empty() {
        sheet.text(format!("Left out, drained: {}.", skipped.join(", ")));
    }
}
