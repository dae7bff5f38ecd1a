//! `tidegate freeze`: times at which nothing goes forward.

use clap::Subcommand;
use tidegate_protocol::{Millis, Timestamp};
use tidegate_rollout::Selector;

use super::exit::Exit;
use super::table::{Cell, Table, Tone, clean};
use super::{Context, duration, words};
use crate::operator::doc::FreezeDoc;
use crate::operator::msg::{ErrorCode, ErrorDoc, Request};

/// Keep rollouts from going forward
#[derive(Debug, Subcommand)]
pub(super) enum Freeze {
    /// Let no rollout start or go forward meanwhile; going back is never frozen
    #[command(after_help = ADD_HELP)]
    Add {
        /// Why; everybody who is held up by it reads this
        #[arg(long, value_name = "TEXT", value_parser = words::said)]
        reason: String,
        /// From then, with its zone: 2026-12-24T18:00+01:00, or …T18:00[Europe/Berlin]; without it, from now
        #[arg(long, value_name = "TIME", value_parser = words::time)]
        from: Option<Timestamp>,
        /// Until then; without --until and --for, until it is removed
        #[arg(long, value_name = "TIME", value_parser = words::time, conflicts_with = "span")]
        until: Option<Timestamp>,
        /// For so long
        #[arg(long = "for", id = "span", value_name = "DURATION", value_parser = duration)]
        span: Option<Millis>,
        /// Only rollouts whose plan names this environment
        #[arg(long, value_name = "NAME", value_parser = words::said)]
        environment: Option<String>,
        /// Only rollouts that touch a host with these labels
        #[arg(short = 'l', long, value_name = "SELECTOR")]
        selector: Option<Selector>,
    },
    /// List freezes that stand or will
    List {
        /// Also those that are over or were removed
        #[arg(long)]
        all: bool,
    },
    /// End a freeze; what waited for it begins, what it paused waits for `rollout resume`
    #[command(after_help = REMOVE_HELP)]
    Remove {
        /// Its number, as `freeze list` shows it
        #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        freeze: u32,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", value_parser = words::said)]
        reason: String,
    },
}

const ADD_HELP: &str = "\
A host that is in flight is finished, then the rollout pauses. A named person goes past a freeze for one rollout with
`tidegate rollout override ID --what freeze`.

Examples:
  tidegate freeze add --reason \"year end\" --from 2026-12-20T00:00[Europe/Berlin] --until 2027-01-02T00:00[Europe/Berlin]
  tidegate freeze add --reason \"INC-77 is open\" --environment production
  tidegate freeze add --reason \"network work\" --for 2h -l zone=b";

const REMOVE_HELP: &str = "\
Examples:
  tidegate freeze list
  tidegate freeze remove 3 --reason \"INC-77 is closed\"";

pub(super) async fn run(context: &Context, verb: Freeze) -> Result<Exit, ErrorDoc> {
    let output = &context.output;
    match verb {
        Freeze::Add { reason, from, until, span, environment, selector } => {
            let until = end(from, until, span, jiff::Timestamp::now().as_millisecond())?;
            let selector = selector.map(|s| s.as_str().to_string()).unwrap_or_default();
            let answer = context.ask(Request::FreezeAdd { reason, from, until, environment, selector }).await?;
            output.document(&answer, |doc: &FreezeDoc, _| said("added", doc))?;
        }
        Freeze::List { all } => {
            let answer = context.ask(Request::FreezeList { all }).await?;
            output.document(&answer, |docs: &Vec<FreezeDoc>, color| list(docs, color))?;
        }
        Freeze::Remove { freeze, reason } => {
            let answer = context.ask(Request::FreezeRemove { freeze, reason }).await?;
            output.document(&answer, |doc: &FreezeDoc, _| said("removed", doc))?;
        }
    }
    Ok(Exit::Done)
}

/// When it ends; a freeze that ends before it begins is a slip.
fn end(from: Option<Timestamp>, until: Option<Timestamp>, span: Option<Millis>, now_ms: i64) -> Result<Option<Timestamp>, ErrorDoc> {
    let now = Timestamp(u64::try_from(now_ms).unwrap_or_default());
    let begin = from.unwrap_or(now);
    let until = until.or(span.map(|span| begin + span));
    match until {
        Some(until) if until <= begin => Err(ErrorDoc::new(ErrorCode::Usage, "the freeze would end before it begins")
            .fix("give --until a time after --from (or after now), or --for a duration")),
        Some(until) if until <= now => {
            Err(ErrorDoc::new(ErrorCode::Usage, "the freeze would be over already").fix("give --until a time to come"))
        }
        until => Ok(until),
    }
}

fn said(what: &str, doc: &FreezeDoc) -> String {
    clean(&format!("freeze {} {what}: {} ({})", doc.freeze, span(doc), doc.reason), 600) + "\n"
}

fn span(doc: &FreezeDoc) -> String {
    let until = doc.until.as_ref().map_or_else(|| "until it is removed".into(), |until| format!("until {until}"));
    format!("from {} {until}", doc.from)
}

/// `freeze list`.
#[must_use]
pub fn list(docs: &[FreezeDoc], color: bool) -> String {
    let mut table = Table::new(["FREEZE", "STATE", "FROM", "UNTIL", "ENVIRONMENT", "HOSTS", "BY", "REASON"]);
    for doc in docs {
        let tone = if doc.state == "active" { Tone::Bad } else { Tone::Plain };
        table.row([
            doc.freeze.to_string().into(),
            Cell::toned(&doc.state, tone),
            doc.from.as_str().into(),
            doc.until.as_deref().unwrap_or("it is removed").into(),
            doc.environment.as_deref().unwrap_or("all").into(),
            if doc.selector.is_empty() { "all".into() } else { doc.selector.as_str().into() },
            doc.by.as_str().into(),
            doc.reason.as_str().into(),
        ]);
    }
    if table.is_empty() { "no freeze\n".into() } else { table.render(color) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_ends_after_it_begins() {
        let at = |ms: u64| Some(Timestamp(ms));
        assert_eq!(end(None, None, None, 100).unwrap(), None);
        assert_eq!(end(None, None, Some(Millis(50)), 100).unwrap(), at(150));
        assert_eq!(end(at(500), None, Some(Millis(50)), 100).unwrap(), at(550));
        assert_eq!(end(at(500), at(600), None, 100).unwrap(), at(600));
        for (from, until, span) in
            [(at(500), at(500), None), (None, at(99), None), (at(10), at(50), None), (at(500), None, Some(Millis(0)))]
        {
            assert_eq!(end(from, until, span, 100).unwrap_err().code.exit(), 2);
        }
    }
}
