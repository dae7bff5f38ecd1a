//! `rollout events` for people: the execution log of the deliverables on a terminal.
//!
//! Owns: marks, and how the log is laid out. Must not: tell a story of its own: the
//! rows, the issues and their numbers are those of the signed document, so that
//! `rollout note --resolves N` means the same issue everywhere. Every record, one by
//! one, is in the other formats and in `--full`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_protocol::RolloutId;

use super::table::{Cell, Table, Tone, clean, paint};

/// How a step went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// It holds.
    Good,
    /// It does not.
    Bad,
    /// Somebody should look.
    Warn,
    /// Not given, or not over yet.
    Open,
    /// It does not apply.
    NotApplicable,
    /// Nothing to say; also what a newer controller says.
    #[default]
    #[serde(other)]
    Plain,
}

impl Mark {
    /// A sign on a terminal with colours; else a word that reads anywhere.
    pub(super) fn cell(self, color: bool) -> Cell {
        let (sign, word, tone) = self.texts();
        Cell::toned(if color { sign } else { word }, tone)
    }

    /// The same in a line of text, padded.
    pub(super) fn text(self, color: bool) -> String {
        let (sign, word, tone) = self.texts();
        if color { paint(sign, tone, color) } else { format!("{word:<4}") }
    }

    const fn texts(self) -> (&'static str, &'static str, Tone) {
        match self {
            Self::Good => ("✓", "ok", Tone::Good),
            Self::Bad => ("✗", "FAIL", Tone::Bad),
            Self::Warn => ("!", "!", Tone::Busy),
            Self::Open => ("○", "open", Tone::Busy),
            Self::NotApplicable => ("–", "n/a", Tone::Plain),
            Self::Plain => (" ", " ", Tone::Plain),
        }
    }
}

/// A row of the log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Row {
    /// RFC 3339, UTC.
    pub at: String,
    /// What was done.
    pub step: String,
    /// How it went.
    #[serde(default)]
    pub status: Mark,
    /// What is to be known of it.
    #[serde(default)]
    pub notes: String,
}

/// An issue of the execution log, as the deliverable's JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Issue {
    /// From 1; `rollout note ID --resolves N` names it.
    pub number: u32,
    /// RFC 3339, UTC.
    pub at: String,
    /// One sentence.
    pub text: String,
    /// What became of it, as far as records say so by themselves.
    #[serde(default)]
    pub resolution: Option<String>,
    /// What a person said of it.
    #[serde(default)]
    pub resolved_by: Option<Resolved>,
    /// It takes a person's word before the rollout can be closed.
    #[serde(default)]
    pub needs_person: bool,
}

/// A person's resolution.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Resolved {
    /// Who.
    pub by: String,
    /// What they did.
    pub text: String,
}

impl Issue {
    const fn is_open(&self) -> bool {
        self.needs_person && self.resolved_by.is_none()
    }

    fn outcome(&self) -> Cell {
        let person = self.resolved_by.as_ref().map(|r| format!("{} ({})", r.text, r.by));
        let all: Vec<String> = self.resolution.iter().cloned().chain(person).collect();
        match (self.is_open(), all.is_empty()) {
            (true, true) => Cell::toned("open", Tone::Busy),
            (true, false) => Cell::toned(&format!("open; {}", all.join("; ")), Tone::Busy),
            (false, _) => all.join("; ").into(),
        }
    }
}

/// The execution log, as the deliverable's JSON has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecutionLog {
    /// In order of time.
    pub timeline: Vec<Row>,
    /// In order of their numbers.
    pub issues: Vec<Issue>,
}

impl ExecutionLog {
    /// From the JSON of the deployment execution log; none if it is no such thing.
    #[must_use]
    pub fn read(paper: &str) -> Option<Self> {
        fn part<T: DeserializeOwned>(paper: &mut Value, name: &str) -> Option<Vec<T>> {
            let found = match paper.pointer_mut(&format!("/data/{name}")) {
                Some(found) => found.take(),
                None => paper.get_mut(name)?.take(),
            };
            serde_json::from_value(found).ok()
        }
        let mut paper: Value = serde_json::from_str(paper).ok()?;
        Some(Self { timeline: part(&mut paper, "timeline")?, issues: part(&mut paper, "issues")? })
    }

    /// `rollout events`.
    #[must_use]
    pub fn render(&self, id: &RolloutId, color: bool) -> String {
        let Some(first) = self.timeline.first() else { return "nothing happened yet\n".into() };
        let first_day = day(&first.at);
        let when = |at: &str| if day(at) == first_day { time(at).to_owned() } else { format!("{} {}", day(at), time(at)) };
        let mut out = format!("{id}, {} (times in UTC)\n\n", clean(first_day, 10));
        // An issue stands at the row of its moment, each at one row.
        let mut unplaced: Vec<&Issue> = self.issues.iter().collect();
        let mut table = Table::new(["TIME", "STEP", "STATUS", "NOTES"]);
        for row in &self.timeline {
            let odd = !matches!(row.status, Mark::Good | Mark::NotApplicable);
            let issue = unplaced.iter().position(|i| odd && i.at == row.at).map(|at| unplaced.remove(at));
            let number = issue.map_or_else(String::new, |issue| format!("[issue {}] ", issue.number));
            table.row([when(&row.at).into(), row.step.as_str().into(), row.status.cell(color), format!("{number}{}", row.notes).into()]);
        }
        out.push_str(&table.render(color));
        if self.issues.is_empty() {
            out.push_str("\nno issue was encountered\n");
            return out;
        }
        let mut table = Table::new(["ISSUE", "TIME", "WHAT", "RESOLUTION"]);
        for issue in &self.issues {
            table.row([issue.number.to_string().into(), when(&issue.at).into(), issue.text.as_str().into(), issue.outcome()]);
        }
        out.push_str(&format!("\n{}", table.render(color)));
        if self.issues.iter().any(Issue::is_open) {
            out.push_str(&format!("\nsay how an open one was resolved: tidegate rollout note {id} --resolves N TEXT\n"));
        }
        out
    }
}

fn day(at: &str) -> &str {
    at.split_once('T').map_or("", |(day, _)| day)
}

fn time(at: &str) -> &str {
    at.split_once('T').and_then(|(_, time)| time.get(..8)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper(data: &str) -> String {
        format!(r#"{{"schema":1,"rollout":"shop-1",{data}}}"#)
    }

    #[test]
    fn the_log_reads_from_the_deliverable_wherever_its_data_stands() {
        let data = r#""timeline":[{"at":"2026-11-23T02:10:01.000Z","step":"Start","status":"good","notes":"","new":1},
                      {"at":"2026-11-23T02:10:02.000Z","step":"New","status":"of-a-newer-controller"}],"issues":[]"#;
        let flat = ExecutionLog::read(&paper(data)).unwrap();
        assert_eq!(flat, ExecutionLog::read(&paper(&format!(r#""data":{{{data}}}"#))).unwrap());
        assert_eq!(flat.timeline.iter().map(|r| r.status).collect::<Vec<_>>(), [Mark::Good, Mark::Plain]);
        for none in ["", "{}", "[]", &paper(r#""timeline":[]"#), &paper(r#""timeline":[],"issues":[{"number":"x"}]"#)] {
            assert_eq!(ExecutionLog::read(none), None, "{none}");
        }
    }

    #[test]
    fn issues_are_numbered_where_they_happened_and_open_ones_say_what_to_do() {
        let data = r#""timeline":[
            {"at":"2026-11-23T23:59:01.000Z","step":"Start deployment","status":"good","notes":"shop@2.1.0 to 3 hosts"},
            {"at":"2026-11-23T23:59:05.120Z","step":"Deploy api","status":"bad","notes":"2/3 nodes, 1 failed"},
            {"at":"2026-11-24T00:01:00.000Z","step":"Roll back","status":"warn","notes":"2/2 nodes back"}],
          "issues":[
            {"number":1,"at":"2026-11-23T23:59:05.120Z","text":"web-2 (api) failed: smoke","resolution":"reverted by itself","needs_person":true},
            {"number":2,"at":"2026-11-24T00:01:00.000Z","text":"a\u001b[2Jb","resolved_by":{"by":"dana","text":"cleaned up"},"needs_person":true}]"#;
        let id = "shop-1".parse().unwrap();
        let log = ExecutionLog::read(&paper(data)).unwrap();
        let wanted = "\
shop-1, 2026-11-23 (times in UTC)

TIME                 STEP              STATUS  NOTES
23:59:01             Start deployment  ok      shop@2.1.0 to 3 hosts
23:59:05             Deploy api        FAIL    [issue 1] 2/3 nodes, 1 failed
2026-11-24 00:01:00  Roll back         !       [issue 2] 2/2 nodes back

ISSUE  TIME                 WHAT                       RESOLUTION
1      23:59:05             web-2 (api) failed: smoke  open; reverted by itself
2      2026-11-24 00:01:00  a [2Jb                     cleaned up (dana)

say how an open one was resolved: tidegate rollout note shop-1 --resolves N TEXT
";
        assert_eq!(log.render(&id, false), wanted);
        assert!(log.render(&id, true).contains("\x1b[31m✗\x1b[0m"));
        assert_eq!(ExecutionLog::default().render(&id, false), "nothing happened yet\n");
    }
}
