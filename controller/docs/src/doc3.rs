//! 3: Smoke Test Results.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_protocol::release::{Smoke, SmokeCheck, Suite};
use tidegate_protocol::report::{SmokeResult, SmokeStatus};
use tidegate_rollout::gate::{Judgement, Verdict};
use tidegate_rollout::status::rfc3339;

use crate::DocsError;
use crate::fold::TargetFact;
use crate::model::{Cell, Document, Mark, Sheet};
use crate::story::{Story, given};
use crate::text::{moment_utc, quantity, span};
use crate::timeline::{SmokeTotals, smoke_totals};

/// Who ran the tests: on every host its agent.
pub(crate) const RUN_BY: &str = "Automated (tidegate-agent)";

#[derive(Clone, Debug, Serialize)]
struct Data<'a> {
    environment: Option<&'a str>,
    date: Option<String>,
    run_by: &'static str,
    totals: SmokeTotals,
    tests: Vec<Test>,
    hosts: Vec<HostResults<'a>>,
    performance: Vec<&'a Judgement>,
}

/// One test over all hosts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Test {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) component: String,
    pub(crate) suite: Suite,
    /// What it asserts.
    pub(crate) asserts: String,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// Hosts that swapped and told no result of it.
    pub(crate) not_told: usize,
    pub(crate) slowest_ms: u64,
}

#[derive(Clone, Debug, Serialize)]
struct HostResults<'a> {
    host: &'a str,
    component: &'a str,
    /// Of the release of the plan.
    results: &'a [SmokeResult],
    /// Of what ran before, once the host was back on it.
    after_revert: &'a [SmokeResult],
}

pub(crate) fn document(story: &Story<'_>) -> Result<Document, DocsError> {
    let facts = &story.facts;
    let date = facts.targets.iter().filter_map(|t| t.smoke_at).max();
    let tests = tests(story);
    let told = |t: &&TargetFact| !t.smoke.is_empty() || !t.smoke_back.is_empty();
    let data = Data {
        environment: facts.plan.environment.as_deref(),
        date: date.map(|t| rfc3339(t.0)),
        run_by: RUN_BY,
        totals: smoke_totals(facts),
        hosts: facts
            .targets
            .iter()
            .filter(told)
            .map(|t| HostResults { host: t.host.as_str(), component: t.component.as_str(), results: &t.smoke, after_revert: &t.smoke_back })
            .collect(),
        performance: facts.perf.values().collect(),
        tests,
    };
    let mut sheet = Sheet::default();
    let totals = data.totals;
    let result = match (totals.total(), totals.failed) {
        (0, _) => Cell::open("smoke-critical", "no host told a result"),
        (n, 0) => Cell::marked(Mark::Good, format!("{} of {n} passed, {} not run", totals.passed, totals.skipped)),
        (n, failed) => Cell::marked(Mark::Bad, format!("{failed} of {n} failed, {} passed, {} not run", totals.passed, totals.skipped)),
    };
    sheet.pairs(alloc::vec![
        ("Environment", given(data.environment, "environment", "plan.toml: environment")),
        ("Date", date.map_or_else(|| Cell::open("smoke-date", "no test ran"), |t| Cell::new(moment_utc(t)))),
        ("Run By", Cell::new(RUN_BY)),
        ("Result", result),
    ]);
    sheet.h2("Critical Path Tests");
    suite(&mut sheet, story, &data.tests, Suite::Critical);
    sheet.h2("External Integrations");
    suite(&mut sheet, story, &data.tests, Suite::Integration);
    performance(&mut sheet, story);
    failures(&mut sheet, story);
    story.document(3, sheet, &data)
}

/// Every test of the release's components that the plan has, in their order.
fn tests(story: &Story<'_>) -> Vec<Test> {
    let facts = &story.facts;
    let mut tests = Vec::new();
    for planned in &facts.plan.components {
        let Some(component) = facts.component(&planned.name) else { continue };
        for smoke in &component.smoke {
            let mut test = Test {
                id: smoke.id.clone(),
                name: smoke.name.clone(),
                component: planned.name.to_string(),
                suite: smoke.suite,
                asserts: asserts(smoke),
                passed: 0,
                failed: 0,
                skipped: 0,
                not_told: 0,
                slowest_ms: 0,
            };
            for target in facts.changed(&planned.name).filter(|t| t.swap_at.is_some()) {
                match target.smoke.iter().find(|r| r.id == smoke.id) {
                    Some(result) => {
                        test.slowest_ms = test.slowest_ms.max(result.duration_ms);
                        match result.status {
                            SmokeStatus::Pass => test.passed += 1,
                            SmokeStatus::Fail => test.failed += 1,
                            SmokeStatus::Skipped => test.skipped += 1,
                        }
                    }
                    // The integration suite runs on one host of each wave.
                    None if smoke.suite == Suite::Critical => test.not_told += 1,
                    None => {}
                }
            }
            tests.push(test);
        }
    }
    tests
}

/// What a test asserts, in a few words.
pub(crate) fn asserts(smoke: &Smoke) -> String {
    match &smoke.check {
        SmokeCheck::Http { url, status, body: None } => format!("GET {url} answers {status}"),
        SmokeCheck::Http { url, status, body: Some(body) } => format!("GET {url} answers {status} with {body:?}"),
        SmokeCheck::Tcp { address } => format!("{address} accepts a connection"),
        SmokeCheck::Exec { run } => format!("{} exits 0", run.join(" ")),
        SmokeCheck::Systemd { max_restarts } => format!("the unit is active, restarted at most {max_restarts} times"),
        SmokeCheck::Journal { deny, watch } => format!("none of {} in its messages for {watch}", deny.join(", ")),
        SmokeCheck::File { path, .. } => format!("{path} has its digest"),
    }
}

fn status(test: &Test) -> Cell {
    let ran = test.passed + test.failed;
    let hosts = test.passed + test.failed + test.skipped + test.not_told;
    if test.failed > 0 {
        Cell::marked(Mark::Bad, format!("Fail on {} of {hosts}", test.failed))
    } else if hosts == 0 || ran == 0 {
        Cell::marked(Mark::Open, "not run")
    } else if ran < hosts {
        Cell::marked(Mark::Warn, format!("Pass on {ran} of {hosts}, else not run"))
    } else {
        Cell::marked(Mark::Good, format!("Pass ({ran}/{hosts})"))
    }
}

fn suite(sheet: &mut Sheet, story: &Story<'_>, tests: &[Test], suite: Suite) {
    let of: Vec<&Test> = tests.iter().filter(|t| t.suite == suite).collect();
    let critical = suite == Suite::Critical;
    let (item, title) = if critical { ("smoke-critical", "Critical Path Tests") } else { ("smoke-integration", "External Integrations") };
    let ran = of.iter().any(|t| t.passed + t.failed > 0);
    let rows = of.iter().map(|t| {
        let took = if t.slowest_ms == 0 { Cell::none() } else { Cell::new(span(t.slowest_ms)) };
        if critical {
            let what = format!("{}: {}", t.name, t.asserts);
            alloc::vec![Cell::new(t.id.as_str()), Cell::new(what), status(t), Cell::new(t.component.as_str()), took]
        } else {
            // `Payment gateway: auth test` is an integration and its test.
            let (name, test) = t.name.split_once(':').map_or((t.name.as_str(), t.asserts.as_str()), |(a, b)| (a.trim(), b.trim()));
            alloc::vec![Cell::new(name), Cell::new(format!("{test} ({})", t.id)), status(t), Cell::new(t.component.as_str()), took]
        }
    });
    let columns: &[&str] = if critical {
        &["Test", "Description", "Status", "Component", "Slowest"]
    } else {
        &["Integration", "Test", "Status", "Component", "Slowest"]
    };
    let rows: Vec<Vec<Cell>> = rows.collect();
    if !of.is_empty() {
        sheet.table(columns, rows, "None");
    }
    if !ran {
        let missing = if of.is_empty() { "the release has no such test" } else { "no host told a result" };
        sheet.checks(alloc::vec![story.line(item, title, None, missing)]);
    }
}

fn performance(sheet: &mut Sheet, story: &Story<'_>) {
    let facts = &story.facts;
    sheet.h2("Performance Baseline");
    if facts.perf.is_empty() {
        let missing = "the plan has no [[perf]] row, or none was judged";
        sheet.checks(alloc::vec![story.line("performance-baseline", "Performance Baseline", None, missing)]);
        return;
    }
    let rows = facts.perf.values().map(|j| {
        let value = |v: Option<tidegate_protocol::Number>, sign: &str| {
            v.map_or_else(Cell::none, |v| Cell::new(format!("{sign}{}", quantity(v.get(), &j.unit))))
        };
        let status = match j.verdict {
            Verdict::Pass => Cell::marked(Mark::Good, "OK"),
            Verdict::Inconclusive => Cell::marked(Mark::Warn, j.reason.as_str()),
            Verdict::Error => Cell::marked(Mark::Open, j.reason.as_str()),
            Verdict::Fail => Cell::marked(Mark::Bad, j.reason.as_str()),
        };
        alloc::vec![Cell::new(j.name.as_str()), value(j.limit, "≤ "), value(j.observed, ""), status, Cell::new(j.samples.to_string())]
    });
    sheet.table(&["Metric", "Expected", "Actual", "Status", "Samples"], rows.collect(), "None");
}

fn failures(sheet: &mut Sheet, story: &Story<'_>) {
    let facts = &story.facts;
    sheet.h2("Failures per Host");
    let mut rows = Vec::new();
    let failed = |r: &&SmokeResult| r.status == SmokeStatus::Fail;
    for target in &facts.targets {
        let mut add = |results: &[SmokeResult], of: &str| {
            for result in results.iter().filter(failed) {
                rows.push(alloc::vec![
                    Cell::new(target.host.as_str()),
                    Cell::new(target.component.as_str()),
                    Cell::new(of),
                    Cell::new(result.id.as_str()),
                    Cell::marked(Mark::Bad, result.message.as_str()),
                    Cell::new(span(result.duration_ms)),
                ]);
            }
        };
        add(&target.smoke, "new");
        let before = target.origin.as_ref().and_then(|o| o.previous.as_ref()).map_or_else(|| "before".to_string(), |r| r.id.to_string());
        add(&target.smoke_back, &before);
        // It failed, and told no result: what it said is all there is.
        if let Some(failure) =
            target.failure.as_ref().filter(|f| f.cause == tidegate_protocol::Cause::Smoke && !target.smoke.iter().any(|r| failed(&r)))
        {
            rows.push(alloc::vec![
                Cell::new(target.host.as_str()),
                Cell::new(target.component.as_str()),
                Cell::new("new"),
                Cell::none(),
                Cell::marked(Mark::Bad, failure.message.as_str()),
                Cell::none(),
            ]);
        }
    }
    sheet.table(&["Host", "Component", "Release", "Test", "Message", "Took"], rows, "None");
}
