//! 4: Monitoring Verification: before, after, alerts, log analysis, rollback
//! criteria, and downtime as it was measured.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_protocol::Timestamp;
use tidegate_rollout::condition::Ask;
use tidegate_rollout::gate::{AgentSource, Group, Judgement, Metric, MetricSource, Observed, ReportNumber, Test, Trigger, Verdict};
use tidegate_rollout::record::GateStep;
use tidegate_rollout::spec::TriggerAction;
use tidegate_rollout::status::rfc3339;

use crate::DocsError;
use crate::model::{Block, Cell, Chart, Check, Document, Line, Mark, Series, Sheet};
use crate::story::Story;
use crate::text::{clock, difference, metric_title, moment, moment_utc, number, quantity, span};

#[derive(Clone, Debug, Serialize)]
struct Data<'a> {
    observed_from: Option<String>,
    observed_to: Option<String>,
    metrics: Vec<MetricRow>,
    alerts: Vec<AlertRow<'a>>,
    triggers: Vec<TriggerRow>,
    not_armed: &'a [String],
    downtime: Vec<DowntimeRow>,
    downtime_fleet_ms: Option<u64>,
    downtime_declared_ms: Option<u64>,
    observations: Vec<Seen<'a>>,
}

/// One metric, before and after.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetricRow {
    pub(crate) metric: String,
    pub(crate) unit: &'static str,
    pub(crate) pre: Option<f64>,
    pub(crate) post: Option<f64>,
    pub(crate) delta: Option<f64>,
    pub(crate) control: Option<f64>,
    pub(crate) worst_host: Option<f64>,
    pub(crate) samples_pre: u64,
    pub(crate) samples_post: u64,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) reason: String,
    pub(crate) source: String,
}

#[derive(Clone, Debug, Serialize)]
struct AlertRow<'a> {
    at: String,
    text: &'a str,
    before_first_swap: bool,
}

#[derive(Clone, Debug, Serialize)]
struct TriggerRow {
    when: String,
    action: TriggerAction,
    state: &'static str,
    tripped: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct DowntimeRow {
    component: String,
    host: String,
    ms: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
struct Seen<'a> {
    at: String,
    values: &'a [Observed],
}

/// The five lines of the guide, and the metric of each.
pub(crate) const KEY_METRICS: [(&str, &str, &[&str]); 5] = [
    ("metric-error-rate", "Error rate", &["error_rate"]),
    ("metric-latency-p50", "Latency p50", &["latency_p50"]),
    ("metric-latency-p99", "Latency p99", &["latency_p99"]),
    ("metric-cpu", "CPU usage", &["host_cpu", "cpu", "service_cpu"]),
    ("metric-memory", "Memory", &["host_memory", "memory", "service_memory"]),
];

pub(crate) fn document(story: &Story<'_>) -> Result<Document, DocsError> {
    let facts = &story.facts;
    let (from, to) = period(story);
    let alerts: Vec<AlertRow<'_>> =
        facts.alerts.iter().map(|(at, text, before)| AlertRow { at: rfc3339(at.0), text, before_first_swap: *before }).collect();
    let declared = facts.plan.process.change.as_ref().and_then(|c| c.downtime).map(|s| s.0.0);
    let hosts =
        story.downtime.components.iter().flat_map(|c| {
            c.hosts.iter().map(|(host, ms)| DowntimeRow { component: c.component.to_string(), host: host.to_string(), ms: *ms })
        });
    let data = Data {
        observed_from: from.map(|t| rfc3339(t.0)),
        observed_to: to.map(|t| rfc3339(t.0)),
        metrics: metrics(story),
        alerts,
        triggers: facts.plan.gating.triggers.iter().enumerate().map(|(i, t)| trigger_row(story, i, t)).collect(),
        not_armed: &facts.plan.gating.not_armed,
        downtime: hosts.collect(),
        downtime_fleet_ms: story.downtime.fleet_ms,
        downtime_declared_ms: declared,
        observations: facts.observed.iter().map(|(at, values)| Seen { at: rfc3339(at.0), values }).collect(),
    };
    let mut sheet = Sheet::default();
    let period = match (from, to) {
        (Some(from), Some(to)) => Cell::new(format!("{} to {}", moment_utc(from), moment_utc(to))),
        _ => Cell::open("observation-period", "no stage observed anything"),
    };
    sheet.pairs(alloc::vec![("Observation Period", period), ("Downtime", crate::doc6::downtime_cell(story)),]);
    key_metrics(&mut sheet, story, &data.metrics);
    charts(&mut sheet, story, &data.metrics);
    alerts_table(&mut sheet, story);
    log_analysis(&mut sheet, story, &data.metrics);
    criteria(&mut sheet, story, &data.triggers);
    downtime(&mut sheet, story, declared);
    sources(&mut sheet, &data.metrics);
    story.document(4, sheet, &data)
}

/// From the first gate that opened to the end of the last.
fn period(story: &Story<'_>) -> (Option<Timestamp>, Option<Timestamp>) {
    let facts = &story.facts;
    let opened = facts.stages.iter().map(|s| s.opened).min().or_else(|| facts.observed.first().map(|(at, _)| *at));
    let open =
        |step: GateStep| matches!(step, GateStep::Opened | GateStep::Extended | GateStep::Asked | GateStep::Blind | GateStep::Sighted);
    let closed = facts.stages.iter().map(|s| if open(s.step) { facts.end() } else { s.at }).max();
    let last = closed.or_else(|| facts.observed.last().map(|(at, _)| *at));
    (opened, opened.and(last))
}

fn value_of<'a>(values: impl IntoIterator<Item = &'a Observed>, metric: &str, group: Group) -> Option<(Option<f64>, u64)> {
    values.into_iter().find(|o| o.metric == metric && o.group == group).map(|o| (o.value.map(tidegate_protocol::Number::get), o.samples))
}

/// The last values of each metric, against the sealed ones.
pub(crate) fn metrics(story: &Story<'_>) -> Vec<MetricRow> {
    let facts = &story.facts;
    let last = |metric: &str, group| {
        facts.observed.iter().rev().find_map(|(_, values)| value_of(*values, metric, group).filter(|(v, _)| v.is_some()))
    };
    let row = |(name, metric): (&String, &Metric)| {
        let (pre, samples_pre) = value_of(&facts.baseline, name, Group::Baseline).unwrap_or_default();
        let (post, samples_post) = last(name, Group::Changed).unwrap_or_default();
        let judged = judgement(story, name);
        MetricRow {
            metric: name.clone(),
            unit: metric.kind.unit(),
            pre,
            post,
            delta: pre.zip(post).map(|(pre, post)| post - pre),
            control: last(name, Group::Control).and_then(|(v, _)| v),
            worst_host: last(name, Group::Worst).and_then(|(v, _)| v),
            samples_pre,
            samples_post,
            verdict: judged.map(|j| j.verdict),
            reason: judged.map_or_else(String::new, |j| j.reason.clone()),
            source: source(&metric.source),
        }
    };
    facts.plan.gating.metrics.iter().map(row).collect()
}

/// The last verdict on a metric: the worst of those of its last stage.
fn judgement<'a>(story: &'a Story<'_>, metric: &str) -> Option<&'a Judgement> {
    let of = |perf: bool| {
        let mut judged = story.facts.judged.values().rev();
        judged.find_map(move |j| {
            j.judgements.iter().filter(|j| j.metric == metric && j.perf == perf).max_by_key(|j| (!j.advisory, j.verdict))
        })
    };
    // What a gate asks comes before what a performance row expects.
    of(false).or_else(|| of(true))
}

/// Where a metric comes from, with the query as it was resolved.
fn source(source: &MetricSource) -> String {
    match source {
        MetricSource::Agent { observer, what, component } => {
            let of = component.as_ref().map_or_else(String::new, |c| format!(" of {c}"));
            let what = match what {
                AgentSource::ProbeErrors { url, per_minute, .. } | AgentSource::ProbeLatency { url, per_minute, .. } => {
                    format!("probe {url}, {per_minute} a minute")
                }
                AgentSource::ScrapeRatio { url, bad, total } => format!("scrape {url}: {bad} of {total}"),
                AgentSource::ScrapeHistogram { url, name } => format!("scrape {url}: {name}"),
                AgentSource::ScrapeCounter { url, series } | AgentSource::ScrapeGauge { url, series } => format!("scrape {url}: {series}"),
                AgentSource::JournalCritical { .. } => "the service's messages at crit or worse".to_string(),
                AgentSource::JournalNewErrors => "error messages of the service that were not there before".to_string(),
                AgentSource::JournalSecurity { .. } => "security patterns in the service's messages".to_string(),
                AgentSource::Exec { run } => format!("exec {}", run.join(" ")),
                AgentSource::Smoke => "critical smoke tests, again".to_string(),
            };
            format!("{what}{of} ({observer})")
        }
        MetricSource::Report(number) => match number {
            ReportNumber::ServiceCpu => "agents' reports: the service, percent of one core",
            ReportNumber::ServiceMemory => "agents' reports: the service, percent of the machine's memory",
            ReportNumber::HostCpu => "agents' reports: the machine, percent of all cores",
            ReportNumber::HostMemory => "agents' reports: the machine, percent of its memory",
            ReportNumber::Restarts => "agents' reports: starts of the service after the first",
        }
        .to_string(),
        MetricSource::Prometheus { url, query, .. } => format!("Prometheus {url}: {query}"),
        MetricSource::Alertmanager { url, matchers } => format!("Alertmanager {url}: {}", matchers.join(", ")),
    }
}

fn key_metrics(sheet: &mut Sheet, story: &Story<'_>, metrics: &[MetricRow]) {
    sheet.h2("Key Metrics");
    let mut missing = Vec::new();
    if story.facts.baseline.iter().all(|o| o.value.is_none()) {
        missing.push(story.line("key-metrics-pre", "Pre-Deploy values", None, "no baseline was sealed before the first swap"));
    }
    if metrics.iter().all(|m| m.post.is_none()) {
        missing.push(story.line("key-metrics-post", "Post-Deploy values", None, "nothing was observed after the first swap"));
    }
    let mut rows = Vec::new();
    for (item, title, names) in KEY_METRICS {
        let found = names.iter().find_map(|n| metrics.iter().find(|m| m.metric == *n && (m.post.is_some() || m.pre.is_some())));
        match found {
            Some(metric) => rows.push(metric_row(title, metric)),
            None => {
                let gone = || Cell::new("-");
                rows.push(alloc::vec![Cell::new(title), gone(), gone(), gone(), Cell::open(item, "not measured"), gone(), gone()]);
            }
        }
    }
    let shown = |m: &&MetricRow| {
        let key = KEY_METRICS.iter().find_map(|(_, _, names)| {
            names.iter().find(|n| metrics.iter().any(|m| m.metric == **n && m.post.is_some())).filter(|n| **n == m.metric)
        });
        key.is_none() && (m.pre.is_some() || m.post.is_some())
    };
    rows.extend(metrics.iter().filter(shown).map(|m| metric_row(&metric_title(&m.metric), m)));
    sheet.table(&["Metric", "Pre-Deploy", "Post-Deploy", "Delta", "Status", "Control", "Samples"], rows, "None");
    if !missing.is_empty() {
        sheet.checks(missing);
    }
}

fn metric_row(title: &str, m: &MetricRow) -> Vec<Cell> {
    let value = |v: Option<f64>| v.map_or_else(Cell::none, |v| Cell::new(quantity(v, m.unit)));
    let status = match (m.verdict, m.post) {
        (Some(Verdict::Pass), _) => Cell::marked(Mark::Good, "OK"),
        (Some(Verdict::Fail), _) => Cell::marked(Mark::Bad, m.reason.as_str()),
        (Some(Verdict::Inconclusive), _) => Cell::marked(Mark::Warn, m.reason.as_str()),
        (Some(Verdict::Error), _) => Cell::marked(Mark::Warn, m.reason.as_str()),
        (None, Some(_)) => Cell::marked(Mark::NotApplicable, "shown, not judged"),
        (None, None) => Cell::marked(Mark::Open, "not measured after"),
    };
    alloc::vec![
        Cell::new(title),
        value(m.pre),
        value(m.post),
        m.delta.map_or_else(Cell::none, |d| Cell::new(difference(d, m.unit))),
        status,
        value(m.control),
        Cell::new(format!("{} / {}", m.samples_pre, m.samples_post)),
    ]
}

fn charts(sheet: &mut Sheet, story: &Story<'_>, metrics: &[MetricRow]) {
    let facts = &story.facts;
    let mut charts = Vec::new();
    for metric in metrics {
        let points = |group| -> Vec<(u64, f64)> {
            let at =
                |(at, values): &(Timestamp, &[Observed])| value_of(*values, &metric.metric, group).and_then(|(v, _)| v).map(|v| (at.0, v));
            thinned(facts.observed.iter().filter_map(at).collect())
        };
        let changed = points(Group::Changed);
        // What never was anything but zero is told by its table.
        let flat = changed.iter().all(|(_, v)| *v == 0.0);
        let (Some(first), Some(last), false) = (changed.first(), changed.last(), flat) else { continue };
        let (from, to) = (first.0, last.0.max(first.0 + 1));
        let mut series = Vec::new();
        if let Some(pre) = metric.pre {
            series.push(Series { line: Line::Baseline, points: alloc::vec![(from, pre)] });
        }
        let control = points(Group::Control);
        if !control.is_empty() {
            series.push(Series { line: Line::Control, points: control });
        }
        series.push(Series { line: Line::Changed, points: changed });
        if let Some(limit) = judgement(story, &metric.metric).and_then(|j| j.limit) {
            series.push(Series { line: Line::Limit, points: alloc::vec![(from, limit.get())] });
        }
        charts.push(Chart {
            title: metric_title(&metric.metric).into(),
            unit: metric.unit.into(),
            from_unix_ms: from,
            to_unix_ms: to,
            series,
        });
    }
    if !charts.is_empty() {
        sheet.h3("Course");
        sheet.blocks.extend(charts.into_iter().map(Block::Chart));
    }
}

/// Enough for any paper; the CSV has all.
fn thinned(points: Vec<(u64, f64)>) -> Vec<(u64, f64)> {
    const POINTS_MAX: usize = 400;
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.last().copied();
    let mut out: Vec<(u64, f64)> = points.into_iter().step_by(step).collect();
    if out.last() != last.as_ref() {
        out.extend(last);
    }
    out
}

fn alerts_table(sheet: &mut Sheet, story: &Story<'_>) {
    let facts = &story.facts;
    sheet.h2("Alerts Triggered");
    let source = facts.plan.gating.metrics.values().any(|m| matches!(m.source, MetricSource::Alertmanager { .. }));
    if !source && facts.alerts.is_empty() {
        let missing = "the plan has no source \"alertmanager\": nobody looked";
        sheet.checks(alloc::vec![story.line("alerts", "No alert fired", None, missing)]);
        return;
    }
    let resolution = |before: bool| {
        if before { Cell::marked(Mark::NotApplicable, "fired before the first swap") } else { Cell::marked(Mark::Warn, outcome_of(story)) }
    };
    let rows = facts
        .alerts
        .iter()
        .map(|(at, text, before)| alloc::vec![Cell::new(text.as_str()), Cell::new(clock(*at, facts.origin())), resolution(*before)]);
    sheet.table(&["Alert", "Time", "Resolution"], rows.collect(), "None");
}

fn outcome_of(story: &Story<'_>) -> String {
    let noted = story.facts.notes.last().map_or_else(String::new, |(_, by, text)| format!("; {text} ({by})"));
    format!("the rollout is {}{noted}", story.facts.state)
}

/// A box that a metric ticks: as judged, or where nothing judged it by its value.
fn log_line(story: &Story<'_>, metrics: &[MetricRow], item: &str, title: &str, names: &[&str], missing: &str) -> Check {
    let of: Vec<&MetricRow> = metrics.iter().filter(|m| names.contains(&m.metric.as_str()) && m.post.is_some()).collect();
    let unsure = of.iter().any(|m| m.verdict == Some(Verdict::Error));
    let seen = (!of.is_empty() && !unsure).then(|| {
        let bad = |m: &&MetricRow| match m.verdict {
            Some(verdict) => verdict == Verdict::Fail,
            // Counts are about what should not be there at all.
            None => m.unit.is_empty() && m.post.is_some_and(|v| v > 0.0),
        };
        let odd = |m: &&MetricRow| m.verdict == Some(Verdict::Inconclusive) || strays(m);
        let words = |m: &&MetricRow| {
            let compared = m.pre.or(m.control).map_or_else(String::new, |p| format!(", compared with {}", quantity(p, m.unit)));
            format!("{}: {}{compared}", metric_title(&m.metric), m.post.map_or_else(String::new, |v| quantity(v, m.unit)))
        };
        let mark = if of.iter().any(bad) {
            Mark::Bad
        } else if of.iter().any(odd) {
            Mark::Warn
        } else {
            Mark::Good
        };
        (mark, of.iter().map(words).collect::<Vec<_>>().join("; "))
    });
    story.line(item, title, seen, missing)
}

/// Traffic that nobody judged: normal within 30 % of the control group or of before.
fn strays(m: &MetricRow) -> bool {
    let reference = m.control.or(m.pre).filter(|r| *r > 0.0);
    m.unit == "/s" && m.verdict.is_none() && m.post.zip(reference).is_some_and(|(post, r)| (post - r).abs() > r * 0.3)
}

fn log_analysis(sheet: &mut Sheet, story: &Story<'_>, metrics: &[MetricRow]) {
    sheet.h2("Log Analysis");
    sheet.checks(alloc::vec![
        log_line(
            story,
            metrics,
            "no-unexpected-errors",
            "No unexpected errors",
            &["critical_errors", "new_errors"],
            "no critical_errors or new_errors was measured"
        ),
        log_line(
            story,
            metrics,
            "no-security-warnings",
            "No security warnings",
            &["security_warnings"],
            "no security_warnings was measured"
        ),
        log_line(story, metrics, "normal-traffic", "Normal traffic patterns", &["request_rate"], "no request_rate was measured"),
    ]);
}

/// The five lines of the guide's table 3.3: item, as written there, and which
/// triggers are it.
pub(crate) const CRITERIA: [(&str, &str); 5] = [
    ("rollback-error-rate", "Error rate"),
    ("rollback-latency-p50", "P50 latency"),
    ("rollback-critical-error", "Critical error"),
    ("rollback-data-corruption", "Data corruption"),
    ("rollback-security-incident", "Security incident"),
];

fn line_of(trigger: &Trigger) -> Option<&'static str> {
    match &trigger.when.ask {
        Ask::Compare { metric, .. } | Ask::Within { metric, .. } => match metric.as_str() {
            "error_rate" => Some("rollback-error-rate"),
            "latency_p50" | "latency" => Some("rollback-latency-p50"),
            "critical_errors" => Some("rollback-critical-error"),
            _ => None,
        },
        Ask::Declared(name) if name == "data-corruption" => Some("rollback-data-corruption"),
        Ask::Declared(name) if name == "security-incident" => Some("rollback-security-incident"),
        _ => None,
    }
}

fn trigger_row(story: &Story<'_>, index: usize, trigger: &Trigger) -> TriggerRow {
    let trips: Vec<String> =
        story.facts.trips.iter().filter(|t| t.trigger == Some(index)).map(|t| format!("{} {}", moment(t.at), t.reason)).collect();
    let state = match (trips.is_empty(), story.facts.first_swap) {
        (false, _) => "tripped",
        (true, None) if trigger.declared.is_none() => "off",
        (true, _) => "armed",
    };
    TriggerRow { when: trigger.when.to_string(), action: trigger.action, state, tripped: trips }
}

fn criteria(sheet: &mut Sheet, story: &Story<'_>, triggers: &[TriggerRow]) {
    let facts = &story.facts;
    sheet.h2("Rollback Criteria");
    let mut rows = Vec::new();
    let action = |trigger: &Trigger| match trigger.action {
        TriggerAction::Rollback => "Immediate rollback".to_string(),
        TriggerAction::Investigate => format!("Investigate, then rollback after {}", trigger.after),
        TriggerAction::Emergency => "Emergency rollback".to_string(),
    };
    let status = |row: &TriggerRow| match row.state {
        "tripped" => Cell::marked(Mark::Bad, format!("tripped: {}", row.tripped.join("; "))),
        "off" => Cell::marked(Mark::NotApplicable, "off: no host was swapped"),
        _ => Cell::marked(Mark::Good, "armed, did not trip"),
    };
    let threshold = |trigger: &Trigger| match (&trigger.declared, trigger.tests.first().map(|t| t.test)) {
        (Some(_), _) => "Any".to_string(),
        (None, Some(Test::Limit { limit, .. })) if limit.get() == 0.0 => format!("Any ({})", trigger.when),
        (None, _) => trigger.when.to_string(),
    };
    let mut used = Vec::new();
    for (item, title) in CRITERIA {
        let mut any = false;
        for (index, trigger) in facts.plan.gating.triggers.iter().enumerate().filter(|(_, t)| line_of(t) == Some(item)) {
            let Some(row) = triggers.get(index) else { continue };
            used.push(index);
            any = true;
            rows.push(alloc::vec![Cell::new(title), Cell::new(threshold(trigger)), Cell::new(action(trigger)), status(row)]);
        }
        // What a person declares works even where the plan does not name it.
        let declared = matches!(item, "rollback-data-corruption" | "rollback-security-incident");
        let name = item.trim_start_matches("rollback-");
        let trips: Vec<&str> =
            facts.trips.iter().filter(|t| t.trigger.is_none() && t.reason.starts_with(name)).map(|t| t.reason.as_str()).collect();
        if !any && declared && !trips.is_empty() {
            let cell = Cell::marked(Mark::Bad, format!("tripped: {}", trips.join("; ")));
            rows.push(alloc::vec![Cell::new(title), Cell::new("Any"), Cell::new("Emergency rollback"), cell]);
        } else if !any {
            let why = facts.plan.gating.not_armed.iter().find(|n| {
                n.contains(name)
                    || (item == "rollback-error-rate" && n.contains("error_rate"))
                    || (item == "rollback-latency-p50" && n.contains("latency"))
                    || (item == "rollback-critical-error" && n.contains("critical_errors"))
            });
            let what = why.map_or("not armed: the plan names no such trigger", String::as_str);
            rows.push(alloc::vec![Cell::new(title), Cell::none(), Cell::none(), Cell::open(item, what)]);
        }
    }
    for (index, trigger) in facts.plan.gating.triggers.iter().enumerate().filter(|(i, _)| !used.contains(i)) {
        if let Some(row) = triggers.get(index) {
            rows.push(alloc::vec![
                Cell::new(trigger.when.to_string()),
                Cell::new(threshold(trigger)),
                Cell::new(action(trigger)),
                status(row)
            ]);
        }
    }
    sheet.table(&["Trigger", "Threshold", "Action", "Status"], rows, "None");
}

fn downtime(sheet: &mut Sheet, story: &Story<'_>, declared: Option<u64>) {
    sheet.h2("Downtime");
    sheet.text("Measured by the agents beside the service: time without a good answer, from the first swap to the end. A component is down while no probed host of it answers.");
    let declared = declared.map_or_else(|| Cell::new("not declared"), |ms| Cell::new(span(ms)));
    let mut rows = Vec::new();
    for component in &story.downtime.components {
        let probed = component.hosts.iter().filter(|(_, ms)| ms.is_some()).count();
        let worst = component.hosts.iter().filter_map(|(host, ms)| ms.map(|ms| (ms, host))).max_by_key(|(ms, _)| *ms);
        let sum: u64 = component.hosts.iter().filter_map(|(_, ms)| *ms).sum();
        let measured =
            component.all_ms.map_or_else(|| Cell::open("downtime", "not measured: nothing can be probed"), |ms| Cell::new(span(ms)));
        rows.push(alloc::vec![
            Cell::new(component.component.as_str()),
            measured,
            worst.map_or_else(Cell::none, |(ms, host)| if ms == 0 {
                Cell::new("0 s")
            } else {
                Cell::new(format!("{} ({host})", span(ms)))
            }),
            if probed == 0 { Cell::none() } else { Cell::new(span(sum)) },
            Cell::new(format!("{probed}/{}", component.hosts.len())),
        ]);
    }
    sheet.table(&["Component", "Fleet downtime", "Longest of one host", "All hosts together", "Probed"], rows, "No component changes");
    sheet.pairs(alloc::vec![("Declared", declared), ("Measured", crate::doc6::downtime_cell(story))]);
    let mut hosts = Vec::new();
    for component in &story.downtime.components {
        for (host, ms) in component.hosts.iter().filter(|(_, ms)| ms.is_none_or(|ms| ms > 0)) {
            let value = ms.map_or_else(|| Cell::marked(Mark::Open, "not measured"), |ms| Cell::new(span(ms)));
            hosts.push(alloc::vec![Cell::new(host.as_str()), Cell::new(component.component.as_str()), value]);
        }
    }
    if !hosts.is_empty() {
        sheet.h3("Downtime per Host");
        hosts.truncate(500);
        sheet.table(&["Host", "Component", "Downtime"], hosts, "None");
    }
}

fn sources(sheet: &mut Sheet, metrics: &[MetricRow]) {
    sheet.h2("Sources");
    let rows = metrics.iter().map(|m| {
        let worst = m.worst_host.map_or_else(Cell::none, |v| Cell::new(format!("{}{}", number(v), m.unit)));
        alloc::vec![
            Cell::new(m.metric.as_str()),
            Cell::new(m.source.as_str()),
            worst,
            if m.reason.is_empty() { Cell::none() } else { Cell::new(m.reason.as_str()) }
        ]
    });
    sheet.table(&["Metric", "Read from", "Worst host", "Last verdict"], rows.collect(), "No metric was measured");
}
