//! What a rollout is judged by, as people read it: stages and triggers of a plan,
//! verdicts, the performance baseline, a replay. Pure: text in, text out.

use jiff::Timestamp;
use tidegate_rollout::gate::{Gating, Judgement, Verdict};
use tidegate_rollout::replay::{ReplayDoc, ReplayOutcome};
use tidegate_rollout::spec::TriggerAction;
use tidegate_rollout::status::{GateDoc, ObservationDoc, StatusDoc};

use super::table::{Cell, Table, Tone, clean, paint};

/// Longest sentence of others in a line, characters.
const TEXT_CHARS_MAX: usize = 600;
/// Longest reason in a table, characters.
const REASON_CHARS_MAX: usize = 160;

fn verdict_tone(word: &str) -> Tone {
    match word {
        "pass" => Tone::Good,
        "fail" => Tone::Bad,
        _ => Tone::Busy,
    }
}

const fn action(action: TriggerAction) -> &'static str {
    match action {
        TriggerAction::Rollback => "rollback",
        TriggerAction::Investigate => "investigate",
        TriggerAction::Emergency => "emergency",
    }
}

/// `0.125%`, `430 ms`; `-` for nothing.
fn value(value: Option<f64>, unit: &str) -> String {
    let Some(value) = value else { return "-".into() };
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match unit {
        "%" | "/s" => format!("{text}{unit}"),
        "" => text.to_owned(),
        unit => format!("{text} {}", clean(unit, 8)),
    }
}

/// `1 h 5 min`, `40 s`.
fn seconds(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3_600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3_600, s / 60 % 60),
    }
}

/// `Canary (after wave 1), 12 min 3 s left, extended once`.
#[must_use]
pub fn observation(doc: &ObservationDoc, now: Option<Timestamp>) -> String {
    let left = match &doc.until {
        None => ", its clock stands".to_owned(),
        Some(until) => match (until.parse::<Timestamp>(), now) {
            (Ok(until), Some(now)) => format!(", {} left", seconds(until.duration_since(now).as_secs())),
            _ => format!(", until {}", clean(until, 40)),
        },
    };
    let extended = if doc.extended { ", extended once" } else { "" };
    format!("{} (after wave {}){left}{extended}", clean(&doc.stage, 80), doc.wave)
}

/// What is observed now, verdicts, triggers and the performance baseline.
#[must_use]
pub fn status(doc: &StatusDoc, color: bool) -> String {
    let mut out = String::new();
    let mut table = Table::new(["STAGE", "CRITERION", "VERDICT", "OBSERVED", "LIMIT", "SAMPLES", "REASON"]);
    for gate in doc.gates.iter().filter(|g| !g.perf) {
        table.row([
            gate.stage.as_str().into(),
            criterion(&gate.name, gate.advisory).into(),
            Cell::toned(&gate.verdict, verdict_tone(&gate.verdict)),
            seen(gate).into(),
            value(gate.limit, &gate.unit).into(),
            gate.samples.to_string().into(),
            clean(&gate.reason, REASON_CHARS_MAX).into(),
        ]);
    }
    section(&mut out, "gates", &table, color);
    let mut table = Table::new(["PERFORMANCE", "EXPECTED", "ACTUAL", "SAMPLES", "VERDICT"]);
    for gate in doc.gates.iter().filter(|g| g.perf) {
        table.row([
            gate.name.as_str().into(),
            value(gate.limit, &gate.unit).into(),
            seen(gate).into(),
            gate.samples.to_string().into(),
            Cell::toned(&gate.verdict, verdict_tone(&gate.verdict)),
        ]);
    }
    section(&mut out, "performance baseline", &table, color);
    let mut table = Table::new(["TRIGGER", "ACTION", "STATE"]);
    for trigger in &doc.triggers {
        let tone = if trigger.state == "investigating" { Tone::Bad } else { Tone::Plain };
        table.row([trigger.when.as_str().into(), action(trigger.action).into(), Cell::toned(&trigger.state, tone)]);
    }
    section(&mut out, "triggers", &table, color);
    list(&mut out, "not armed", &doc.not_armed);
    list(&mut out, "alerts since the first swap", &doc.alerts);
    list(&mut out, "alerts that fired before it", &doc.alerts_before);
    out
}

fn seen(gate: &GateDoc) -> String {
    let on = gate.host.as_ref().map_or_else(String::new, |host| format!(" on {host}"));
    format!("{}{on}", value(gate.observed, &gate.unit))
}

fn criterion(name: &str, advisory: bool) -> String {
    if advisory { format!("{name} (advisory)") } else { name.to_owned() }
}

fn section(out: &mut String, head: &str, table: &Table, color: bool) {
    if !table.is_empty() {
        out.push_str(&format!("\n{head}\n{}", table.render(color)));
    }
}

fn list(out: &mut String, head: &str, lines: &[String]) {
    if !lines.is_empty() {
        out.push_str(&format!("\n{head}\n"));
        lines.iter().for_each(|line| out.push_str(&format!("  {}\n", clean(line, TEXT_CHARS_MAX))));
    }
}

/// What a plan will be judged by.
#[must_use]
pub fn plan(gating: &Gating, color: bool) -> String {
    let mut out = String::new();
    let mut table = Table::new(["STAGE", "AFTER WAVE", "BAKE", "CRITERION", "MIN SAMPLES"]);
    for stage in &gating.stages {
        let bake = match (stage.standing, stage.watch) {
            (true, _) => "before each host".to_owned(),
            (false, true) => format!("{} (watch)", stage.bake),
            (false, false) => stage.bake.to_string(),
        };
        let attested = stage.attest.iter().map(|item| (format!("attested: {item}"), String::new()));
        let judged = stage.criteria.iter().map(|c| (criterion(&c.name, c.advisory), c.min_samples.to_string()));
        let mut rows: Vec<(String, String)> = judged.chain(attested).collect();
        if rows.is_empty() {
            rows.push(("no criterion".into(), String::new()));
        }
        for (at, (name, samples)) in rows.into_iter().enumerate() {
            // The stage is named once, the rest of its rows are below it.
            let head = |text: &str| if at == 0 { text.to_owned() } else { " ".to_owned() };
            table.row([
                head(&stage.name).into(),
                head(&stage.after_wave.to_string()).into(),
                head(&bake).into(),
                name.into(),
                if samples == "0" { "-".into() } else { samples.into() },
            ]);
        }
    }
    section(&mut out, "stages", &table, color);
    let mut table = Table::new(["TRIGGER", "ACTION", "AFTER"]);
    for trigger in &gating.triggers {
        let after = if trigger.action == TriggerAction::Investigate { trigger.after.to_string() } else { "at once".into() };
        table.row([trigger.when.to_string().into(), action(trigger.action).into(), after.into()]);
    }
    section(&mut out, "triggers", &table, color);
    list(&mut out, "not armed", &gating.not_armed);
    if gating.analysis.needs_baseline {
        out.push_str(&format!("\nvalues are sealed for {} before the first swap\n", gating.analysis.baseline));
    }
    out
}

/// `rollout replay`.
#[must_use]
pub fn replay(doc: &ReplayDoc, color: bool) -> String {
    let (word, tone) = match doc.outcome {
        ReplayOutcome::Passes => ("would have passed", Tone::Good),
        ReplayOutcome::Asks => ("would have asked a person", Tone::Busy),
        ReplayOutcome::RollsBack => ("would have rolled back", Tone::Bad),
        ReplayOutcome::Investigates => ("would have been investigated", Tone::Busy),
        ReplayOutcome::Unknown => ("cannot be told", Tone::Busy),
    };
    let at = doc.at.as_ref().map_or_else(String::new, |at| format!(" at {}", clean(at, 40)));
    let mut out = format!("with this plan it {}{at}: {}\n", paint(word, tone, color), clean(&doc.reason, TEXT_CHARS_MAX));
    out.push_str(&format!("  the rollout itself is {}\n", doc.recorded));
    let mut table = Table::new(["TIME", "WAVE", "OF", "VERDICT", "WHY"]);
    for step in &doc.steps {
        table.row([
            step.at.as_str().into(),
            step.wave.to_string().into(),
            step.of.as_str().into(),
            Cell::toned(step.verdict.word(), verdict_tone(step.verdict.word())),
            why(&step.judgements, step.verdict).into(),
        ]);
    }
    section(&mut out, "looks", &table, color);
    list(&mut out, "not measured then", &doc.unknown);
    out
}

/// Those that made the verdict.
fn why(judgements: &[Judgement], verdict: Verdict) -> String {
    let decisive = judgements.iter().filter(|j| !j.advisory && (j.verdict == verdict || verdict == Verdict::Pass));
    let said: Vec<String> = decisive.map(|j| format!("{}: {}", j.name, j.reason)).collect();
    clean(&said.join("; "), REASON_CHARS_MAX)
}
