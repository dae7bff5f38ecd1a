//! `tidegate audit`: whether the journal is what was written, and a copy of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tidegate_protocol::{Digest, RolloutId};

use super::call::{Answers, Link};
use super::exit::Exit;
use super::output::{Format, Output, read};
use super::table::{Tone, clean, paint};
use super::{Context, files, render};
use crate::operator::client::Part;
use crate::operator::doc::{AuditDoc, SCHEMA};
use crate::operator::msg::{ErrorCode, ErrorDoc, Request};

/// Verify and copy the journal
#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Verify the journal's hash chain, and compare it with what hosts remember of it; exits 1 with findings
    #[command(after_help = VERIFY_HELP)]
    Verify {
        /// This file instead: needs no controller, and asks no host
        #[arg(long, value_name = "FILE")]
        journal: Option<PathBuf>,
    },
    /// Print the journal's records, oldest first, as NDJSON
    #[command(after_help = EXPORT_HELP)]
    Export {
        /// Only records of this rollout
        #[arg(long, value_name = "ID")]
        rollout: Option<RolloutId>,
        /// Only records after this one
        #[arg(long, value_name = "SEQ", default_value_t = 0, hide_default_value = true)]
        after: u64,
        /// Where they go; the file appears whole or not at all
        #[arg(short = 'o', long = "out", value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

const VERIFY_HELP: &str = "\
Every record carries a hash over itself and all before it, so an edited, removed or moved record breaks the chain. A
chain that was cut off at its end, or written anew from the beginning, is found by the heads that hosts remember; the
offline form has no hosts to ask.

Examples:
  tidegate audit verify
  tidegate audit verify --journal backup/journal.sqlite
  tidegate audit verify --output json | jq .first_bad";

const EXPORT_HELP: &str = "\
Examples:
  tidegate audit export -o journal.ndjson
  tidegate audit export --rollout shop-1 | jq -r '[.seq, .at, .kind] | @tsv'
  tidegate audit export --after 10412 >> journal.ndjson          only what is new";

/// The offline form; none if a controller is to be asked.
pub(super) fn offline(output: &Output, verb: &Audit) -> Option<Result<Exit, ErrorDoc>> {
    match verb {
        Audit::Verify { journal: Some(file) } => Some(verify_file(file).and_then(|doc| verdict(output, &doc, file))),
        _ => None,
    }
}

fn verify_file(file: &Path) -> Result<AuditDoc, ErrorDoc> {
    let usage = |cause: String| {
        ErrorDoc::new(ErrorCode::Usage, format!("{} does not read as a journal", file.display()))
            .cause(cause)
            .fix("name the controller's journal.sqlite, or a copy of it")
    };
    // SQLite's own words for a file that is not there are of no help.
    std::fs::File::open(file).map_err(|e| usage(e.to_string()))?;
    let verified = crate::store::verify_file(file).map_err(|e| {
        let source = std::error::Error::source(&e).map(|s| format!(": {s}"));
        usage(format!("{e}{}", source.unwrap_or_default()))
    })?;
    let findings: Vec<String> = verified.bad.iter().map(|bad| bad.why.clone()).collect();
    Ok(AuditDoc {
        schema: SCHEMA,
        ok: findings.is_empty(),
        records: verified.records,
        head: verified.head.map(|head| head.hash),
        first_bad: verified.bad.map(|bad| bad.seq),
        findings,
        witnesses: 0,
    })
}

fn verdict(output: &Output, doc: &AuditDoc, file: &Path) -> Result<Exit, ErrorDoc> {
    output.value(doc, |doc, color| format!("{}: {}", clean(&file.display().to_string(), 400), shown(doc, color)))?;
    Ok(exit(doc))
}

const fn exit(doc: &AuditDoc) -> Exit {
    if doc.ok { Exit::Done } else { Exit::Error }
}

pub(super) async fn run(context: &Context, verb: Audit) -> Result<Exit, ErrorDoc> {
    match verb {
        Audit::Verify { .. } => {
            let answer = context.ask(Request::AuditVerify).await?;
            context.output.document(&answer, |doc: &AuditDoc, color| shown(doc, color))?;
            Ok(exit(&read(&answer)?))
        }
        Audit::Export { rollout, after, out } => {
            let link = Link::open(context).await?;
            let mut answers = link.stream(context, &Request::AuditExport { after_seq: after, rollout }).await?;
            match out {
                Some(out) => to_file(context, &mut answers, &out).await?,
                None => to_stdout(&context.output, &mut answers).await?,
            }
            link.close().await;
            Ok(Exit::Done)
        }
    }
}

/// `audit verify`.
#[must_use]
pub fn shown(doc: &AuditDoc, color: bool) -> String {
    let word = if doc.ok {
        paint("the journal is what was written", Tone::Good, color)
    } else {
        paint("the journal is NOT what was written", Tone::Bad, color)
    };
    let mut out = format!("{word}\n  records    {}\n", doc.records);
    if let Some(head) = doc.head {
        out.push_str(&format!("  head       {head}\n"));
    }
    let hosts = if doc.witnesses == 0 { "none was asked".into() } else { format!("{} remember its head", doc.witnesses) };
    out.push_str(&format!("  hosts      {hosts}\n"));
    if let Some(seq) = doc.first_bad {
        out.push_str(&format!("  first bad  {seq}\n"));
    }
    doc.findings.iter().for_each(|finding| out.push_str(&format!("  - {}\n", clean(finding, 600))));
    out
}

/// As it comes: a journal is larger than memory.
async fn to_stdout(output: &Output, answers: &mut Answers<'_>) -> Result<(), ErrorDoc> {
    let list = output.format == Format::Json;
    let mut first = true;
    loop {
        match answers.next().await? {
            Part::Event(line) if !list => output.line(&line)?,
            Part::Event(line) => output.stdout(&format!("{}{line}", if first { "[" } else { ",\n" }))?,
            Part::Document(_) => continue,
            Part::End(_) => break,
        }
        first = false;
    }
    if list { output.stdout(if first { "[]\n" } else { "]\n" }) } else { Ok(()) }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ExportDoc {
    schema: u32,
    file: String,
    records: u64,
    bytes: u64,
    sha256: Digest,
}

async fn to_file(context: &Context, answers: &mut Answers<'_>, out: &Path) -> Result<(), ErrorDoc> {
    let failed = |e: std::io::Error| files::cannot_write(out, &e);
    let mut file = std::io::BufWriter::new(files::beside(out)?);
    let (mut records, mut bytes, mut hash) = (0_u64, 0_u64, Sha256::new());
    loop {
        match answers.next().await? {
            Part::Event(mut line) => {
                line.push('\n');
                file.write_all(line.as_bytes()).map_err(failed)?;
                hash.update(line.as_bytes());
                (records, bytes) = (records + 1, bytes.saturating_add(line.len() as u64));
            }
            Part::Document(_) => {}
            Part::End(_) => break,
        }
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(out).map_err(|e| failed(e.error))?;
    let doc = ExportDoc { schema: SCHEMA, file: out.display().to_string(), records, bytes, sha256: Digest(hash.finalize().into()) };
    context.output.value(&doc, |doc, _| format!("wrote {}: {} record(s), {}\n", doc.file, doc.records, render::bytes(doc.bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_shown_one_by_one_and_exit_1() {
        let mut doc =
            AuditDoc { schema: 1, ok: true, records: 41, head: Some(Digest::of(b"x")), first_bad: None, findings: vec![], witnesses: 3 };
        assert_eq!(exit(&doc), Exit::Done);
        let text = shown(&doc, false);
        assert!(text.starts_with("the journal is what was written\n  records    41\n") && text.contains("3 remember its head"), "{text}");
        (doc.ok, doc.first_bad, doc.witnesses) = (false, Some(42), 0);
        doc.findings = vec!["record 42 was changed".into(), "web-1 remembers another head".into()];
        assert_eq!(exit(&doc), Exit::Error);
        let text = shown(&doc, false);
        assert!(text.contains("is NOT what was written"), "{text}");
        assert!(
            text.ends_with("  hosts      none was asked\n  first bad  42\n  - record 42 was changed\n  - web-1 remembers another head\n"),
            "{text}"
        );
    }
}
