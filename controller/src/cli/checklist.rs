//! The readiness checklist for people: what holds, what is missing, and the command
//! that mends it. Pure.

use tidegate_rollout::process::{ChangeType, Row, RowVerdict, Section};
use tidegate_rollout::status::{StatusDoc, rfc3339};

use super::log::Mark;
use super::table::{Table, Tone, clean, paint};
use crate::operator::doc::{ApprovalDoc, PlanDoc, ReadinessDoc};

/// Longest evidence in a line, characters.
const TEXT_CHARS_MAX: usize = 600;

/// Most openings that are listed.
const OPENINGS_MAX: usize = 3;

/// In the guide's order.
const SECTIONS: [Section; 8] = [
    Section::Prerequisites,
    Section::Artifacts,
    Section::Documentation,
    Section::Approvals,
    Section::Environment,
    Section::Window,
    Section::Change,
    Section::Fleet,
];

/// One row, wherever it comes from.
struct Line {
    section: Section,
    title: String,
    demanded: bool,
    verdict: RowVerdict,
    evidence: String,
    said: Option<String>,
}

impl From<&Row> for Line {
    fn from(row: &Row) -> Self {
        let said = row.by.as_ref().map(|by| format!("{by}{}", row.at.map_or_else(String::new, |at| format!(", {}", rfc3339(at.0)))));
        let (title, evidence) = (row.title.clone(), row.evidence.clone());
        Self { section: row.section, title, demanded: row.demanded, verdict: row.verdict, evidence, said }
    }
}

impl From<&ReadinessDoc> for Line {
    /// A row of an older controller has a name and no more.
    fn from(row: &ReadinessDoc) -> Self {
        let either = |new: &str, old: &str| if new.is_empty() { old.to_owned() } else { new.to_owned() };
        Self {
            section: row.section.unwrap_or(Section::Fleet),
            title: either(&row.title, &row.name),
            demanded: row.demanded || row.verdict.is_none(),
            verdict: row.verdict.unwrap_or(if row.ok { RowVerdict::Pass } else { RowVerdict::Fail }),
            evidence: either(&row.evidence, &row.observed),
            said: row.by.as_ref().map(|by| format!("{by}{}", row.at.as_ref().map_or_else(String::new, |at| format!(", {at}")))),
        }
    }
}

impl Line {
    const fn mark(&self) -> Mark {
        match self.verdict {
            RowVerdict::Pass => Mark::Good,
            RowVerdict::NotApplicable => Mark::NotApplicable,
            RowVerdict::Open => Mark::Open,
            RowVerdict::Fail => Mark::Bad,
        }
    }

    fn text(&self, id: Option<&str>, color: bool) -> String {
        let evidence = id.map_or_else(|| self.evidence.clone(), |id| with_id(&self.evidence, id));
        let blocks = matches!(self.verdict, RowVerdict::Fail | RowVerdict::Open);
        let optional = if blocks && !self.demanded { " (not demanded)" } else { "" };
        let said = self.said.as_ref().map_or_else(String::new, |said| format!(" ({said})"));
        let colon = if evidence.is_empty() { "" } else { ": " };
        let text = clean(&format!("{}{optional}{colon}{evidence}{said}", self.title), TEXT_CHARS_MAX);
        format!("  {} {text}\n", self.mark().text(color))
    }
}

/// By section, each row with what was seen or what to do. `id`: for its commands.
/// What nobody asks for is only named: the json has all of it.
fn sections(lines: &[Line], id: Option<&str>, color: bool) -> String {
    let mut out = String::new();
    for section in SECTIONS {
        let (idle, told): (Vec<&Line>, Vec<&Line>) =
            lines.iter().filter(|l| l.section == section).partition(|l| l.verdict == RowVerdict::NotApplicable && !l.demanded);
        if idle.is_empty() && told.is_empty() {
            continue;
        }
        out.push_str(&format!(" {}\n", section.title()));
        told.iter().for_each(|row| out.push_str(&row.text(id, color)));
        if !idle.is_empty() {
            let titles: Vec<&str> = idle.iter().map(|l| l.title.as_str()).collect();
            let text = clean(&titles.join("; "), TEXT_CHARS_MAX);
            out.push_str(&format!("  {} not demanded: {text}\n", Mark::NotApplicable.text(color)));
        }
    }
    out
}

/// Part of `rollout plan`.
#[must_use]
pub fn of_plan(rows: &[ReadinessDoc], color: bool) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let lines: Vec<Line> = rows.iter().map(Line::from).collect();
    let count = |verdict: RowVerdict| lines.iter().filter(|l| l.demanded && l.verdict == verdict).count();
    let (failed, open) = (count(RowVerdict::Fail), count(RowVerdict::Open));
    let verdict = match (failed, open) {
        (0, 0) => paint("complete", Tone::Good, color),
        (0, open) => paint(&format!("{open} row(s) wait for a person"), Tone::Busy, color),
        (failed, 0) => paint(&format!("{failed} row(s) do not hold"), Tone::Bad, color),
        (failed, open) => paint(&format!("{failed} row(s) do not hold, {open} wait for a person"), Tone::Bad, color),
    };
    format!("\nreadiness: {verdict}\n{}", sections(&lines, None, color))
}

/// What of the process the plan freezes: approvals, time, change request, tasks.
#[must_use]
pub fn process(doc: &PlanDoc, color: bool) -> String {
    let process = &doc.plan.process;
    let mut out = String::new();
    if !doc.approvals.is_empty() {
        let word = |a: &ApprovalDoc| format!("{}{}", a.role, if a.optional { " (optional)" } else { "" });
        let all: Vec<String> = doc.approvals.iter().map(word).collect();
        let text = format!("{}, each good for {}", all.join(", "), spell(process.approval_valid.0));
        out.push_str(&format!("  approvals   {}\n", clean(&text, TEXT_CHARS_MAX)));
    }
    if let Some(change) = &process.change {
        let text = format!("{} ({}, {} risk): {}", change.id, change.kind, change.risk, change.summary);
        out.push_str(&format!("  change      {}\n", clean(&text, TEXT_CHARS_MAX)));
        if let (ChangeType::Standard, Some(template)) = (change.kind, doc.template_digest) {
            out.push_str(&format!("  template    {template} (standard_changes of controller.toml approves it)\n"));
        }
    }
    if let Some(estimate) = doc.estimate.as_ref().filter(|e| e.forward_ms > 0 || e.back_ms > 0) {
        let from = if estimate.from.is_empty() { String::new() } else { format!(" ({})", clean(&estimate.from, 200)) };
        out.push_str(&format!("  takes       {} forward, {} back{from}\n", spell(estimate.forward_ms), spell(estimate.back_ms)));
    }
    for (i, opening) in doc.openings.iter().take(OPENINGS_MAX).enumerate() {
        let head = if i == 0 { "windows" } else { "" };
        out.push_str(&format!("  {head:<11} {}\n", clean(&opening.text, TEXT_CHARS_MAX)));
    }
    if doc.openings.is_empty() && !process.windows.is_empty() {
        out.push_str("  windows     none opens any more\n");
    }
    if !out.is_empty() {
        out.insert_str(0, "\nprocess\n");
    }
    let mut table = Table::new(["TASK", "ON", "UNDO"]);
    for task in &process.tasks {
        let undo = match (task.reversible, task.undo) {
            (false, _) => "no: past it a machine takes nothing back",
            (true, true) => "yes",
            (true, false) => "nothing to undo",
        };
        table.row([task.name.as_str().into(), task.host.as_str().into(), undo.into()]);
    }
    if !table.is_empty() {
        out.push_str(&format!("\ntasks\n{}", table.render(color)));
    }
    out
}

/// `4 h 10 min`: whole units, the two largest.
fn spell(ms: u64) -> String {
    let s = ms.div_ceil(1_000);
    match s {
        0..60 => format!("{s} s"),
        60..3_600 if s.is_multiple_of(60) => format!("{} min", s / 60),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        172_800.. if s % 86_400 < 3_600 => format!("{} d", s / 86_400),
        172_800.. => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
        _ if s % 3_600 < 60 => format!("{} h", s / 3_600),
        _ => format!("{} h {} min", s / 3_600, s / 60 % 60),
    }
}

/// Part of `rollout status`: what a rollout that has not begun waits for, and its tasks.
#[must_use]
pub fn of_status(doc: &StatusDoc, color: bool) -> String {
    let mut out = String::new();
    if let Some(window) = &doc.window {
        out.push_str(&format!("  window   {}\n", clean(&window.text, TEXT_CHARS_MAX)));
    }
    if let Some(freeze) = &doc.freeze {
        out.push_str(&format!("  freeze   {}\n", paint(&clean(freeze, TEXT_CHARS_MAX), Tone::Bad, color)));
    }
    if !doc.missing.is_empty() {
        let lines: Vec<Line> = doc.missing.iter().map(Line::from).collect();
        out.push_str(&format!("\nmissing before it begins\n{}", sections(&lines, Some(doc.id.as_str()), color)));
    }
    out
}

/// The tasks of a rollout, part of `rollout status`.
#[must_use]
pub fn tasks(doc: &StatusDoc, color: bool) -> String {
    let mut table = Table::new(["TASK", "ON", "STATE", "NOTE"]);
    for task in &doc.tasks {
        let tone = match task.state.as_str() {
            "done" | "undone" => Tone::Good,
            "failed" | "lost" | "undo-failed" => Tone::Bad,
            "pending" => Tone::Plain,
            _ => Tone::Busy,
        };
        let state = super::table::Cell::toned(&task.state, tone);
        table.row([task.name.as_str().into(), task.host.as_str().into(), state, task.note.as_deref().unwrap_or_default().into()]);
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.render(color)) }
}

/// One line for each thing that a person has to give, with its command.
#[must_use]
pub fn missing(doc: &StatusDoc) -> Vec<String> {
    let one = |row: &Row| clean(&format!("{}: {}", row.title, with_id(&row.evidence, doc.id.as_str())), TEXT_CHARS_MAX);
    doc.missing.iter().map(one).collect()
}

/// Commands in sentences of the controller say ID where this rollout's belongs.
#[must_use]
pub fn with_id(text: &str, id: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut before = ["", ""];
    for word in text.split(' ') {
        let rest = word.strip_prefix("ID").filter(|rest| rest.chars().all(|c| matches!(c, ',' | '.' | ';' | ':' | ')' | '`')));
        let of_command = before[0].trim_start_matches(['`', '(']) == "rollout" || before[1].trim_start_matches(['`', '(']) == "docs";
        out.push(rest.filter(|_| of_command).map_or_else(|| word.to_owned(), |rest| format!("{id}{rest}")));
        before = [before[1], word];
    }
    out.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_rollout() {
        for (text, wanted) in [
            (
                "tidegate rollout approve ID --role security, or rollout attest ID --item x",
                "tidegate rollout approve r-1 --role security, or rollout attest r-1 --item x",
            ),
            ("see `tidegate rollout handoff ID`.", "see `tidegate rollout handoff r-1`."),
            ("tidegate docs ID --out DIR", "tidegate docs r-1 --out DIR"),
            ("the ID of a card", "the ID of a card"),
            ("ID", "ID"),
        ] {
            assert_eq!(with_id(text, "r-1"), wanted);
        }
    }

    #[test]
    fn durations_are_spelled_with_two_units() {
        for (ms, wanted) in [
            (0, "0 s"),
            (1, "1 s"),
            (90_000, "1 min 30 s"),
            (120_000, "2 min"),
            (15_000_000, "4 h 10 min"),
            (7_210_000, "2 h"),
            (604_800_000, "7 d"),
            (180_000_000, "2 d 2 h"),
        ] {
            assert_eq!(spell(ms), wanted, "{ms}");
        }
    }

    #[test]
    fn rows_stand_in_their_sections_with_marks_that_read_without_colour() {
        let row = |section, title: &str, demanded, verdict| Row {
            item: "x".into(),
            section,
            title: title.into(),
            kind: tidegate_rollout::process::RowKind::Automatic,
            demanded,
            verdict,
            evidence: "tidegate rollout approve ID --role security".into(),
            by: None,
            at: None,
        };
        let rows = [
            row(Section::Fleet, "hosts", true, RowVerdict::Fail),
            row(Section::Approvals, "Security", true, RowVerdict::Open),
            row(Section::Approvals, "Product", false, RowVerdict::NotApplicable),
            row(Section::Artifacts, "Built", true, RowVerdict::Pass),
            row(Section::Artifacts, "Tagged", false, RowVerdict::Fail),
        ];
        let lines: Vec<Line> = rows.iter().map(Line::from).collect();
        let text = sections(&lines, Some("r-1"), false);
        let heads: Vec<&str> = text.lines().filter(|l| !l.starts_with("  ")).collect();
        assert_eq!(heads, [" Artifacts", " Approvals", " Fleet"]);
        assert!(text.contains("\n  open Security: tidegate rollout approve r-1 --role security\n"), "{text}");
        assert!(text.contains("\n  FAIL Tagged (not demanded): "), "{text}");
        assert!(text.contains("\n  n/a  not demanded: Product\n") && text.contains("\n  ok   Built: "), "{text}");
        assert!(text.is_ascii(), "{text}");
        assert!(sections(&lines, None, true).contains("✗\x1b[0m hosts"));
    }
}
