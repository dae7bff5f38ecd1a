//! Whether the journal is what was written, and a copy of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tidegate_net::FrameSender;
use tidegate_protocol::limits::OPERATOR_FRAME_BYTES_MAX;
use tidegate_protocol::{Digest, JournalHead, RolloutId};

use super::doc::{AuditDoc, SCHEMA, rfc3339};
use super::msg::{ErrorCode, ErrorDoc, Frame};
use super::server::{Ended, Operators, blocking, chain};
use crate::core::{Witness, json};
use crate::store::{ExportRow, Verified, verify_and_pick};

/// Most findings that are said one by one.
const FINDINGS_MAX: usize = 50;

/// Reads the journal's file again and compares it with what we and the hosts know.
pub(super) async fn verify(ctx: &Operators) -> Result<String, Ended> {
    // One at a time: it reads the whole file.
    let Ok(_place) = ctx.auditing.try_acquire() else {
        return Err(ErrorDoc::new(ErrorCode::Unavailable, "the journal is being verified already; wait for that one to end").into());
    };
    // First what it must hold at least, then the file.
    let head = ctx.store.head().await?;
    let witnesses = ctx.core.witnesses().await?;
    let wanted: BTreeSet<u64> = witnesses.iter().map(|w| w.head.seq).chain(head.map(|h| h.seq)).collect();
    let path = ctx.store.path().to_path_buf();
    let verified = blocking(move || verify_and_pick(&path, &wanted)).await?.map_err(|e| {
        ErrorDoc::new(ErrorCode::Internal, "the journal cannot be read").cause(chain(&e)).fix("stop the controller and restore a backup")
    })?;
    let doc = judged(&verified, head, &witnesses);
    if !doc.ok {
        tracing::error!(
            findings = doc.findings.len(),
            first = doc.findings.first().map_or("", String::as_str),
            "the journal is not what was written"
        );
    }
    Ok(json(&doc)?)
}

fn judged(verified: &Verified, head: Option<JournalHead>, witnesses: &[Witness]) -> AuditDoc {
    let mut findings: Vec<String> = verified.bad.iter().map(|bad| bad.why.clone()).collect();
    let mut first_bad = verified.bad.as_ref().map(|bad| bad.seq);
    let last = verified.records;
    if let Some(head) = head
        && verified.bad.is_none()
    {
        if last < head.seq {
            first_bad.get_or_insert(last + 1);
            findings.push(format!("the file ends at record {last}, this controller wrote {}: its end was cut off", head.seq));
        } else if verified.hashes.get(&head.seq) != Some(&head.hash) {
            findings.push(format!("record {} is another one than this controller wrote: the journal was replaced", head.seq));
        }
    }
    let mut more = 0_usize;
    for witness in witnesses {
        let Some(finding) = fits(witness, verified) else { continue };
        if findings.len() < FINDINGS_MAX {
            findings.push(format!("{}: {finding}", witness.host));
        } else {
            more += 1;
        }
    }
    if more > 0 {
        findings.push(format!("and {more} more hosts"));
    }
    AuditDoc {
        schema: SCHEMA,
        ok: findings.is_empty(),
        records: verified.records,
        head: verified.head.map(|h| h.hash),
        first_bad,
        findings,
        witnesses: witnesses.len(),
    }
}

/// What does not fit of a host's memory. What cannot be compared is behind the
/// record that is bad, which is said already.
fn fits(witness: &Witness, verified: &Verified) -> Option<String> {
    let JournalHead { seq, hash } = witness.head;
    let now = match verified.hashes.get(&seq) {
        Some(ours) if *ours == hash => None,
        Some(_) => Some(format!("it remembers another record {seq} than the file has: the journal was replaced")),
        None if verified.bad.is_some() => None,
        None => Some(format!("it remembers record {seq}, the file ends at {}: its end was cut off, or it was replaced", verified.records)),
    };
    now.or_else(|| witness.finding.clone())
}

/// The records as they are in the file, one line each; the last field is the text
/// that the hash covers, byte for byte.
pub(super) async fn export(ctx: &Operators, send: &mut FrameSender, after: u64, of: Option<RolloutId>) -> Result<(), Ended> {
    // What is written while this runs comes another time: an end is wanted.
    let upto = ctx.store.head().await?.map_or(0, |h| h.seq);
    let mut after = after;
    while after < upto {
        let page = ctx.store.export(after, of.clone()).await?;
        let Some(last) = page.last().map(|row| row.seq) else { break };
        for row in page.iter().filter(|row| row.seq <= upto) {
            send.send(&Frame::Event(line(row)?), OPERATOR_FRAME_BYTES_MAX).await?;
        }
        after = last;
    }
    Ok(send.send(&Frame::End { exit: 0 }, OPERATOR_FRAME_BYTES_MAX).await?)
}

fn line(row: &ExportRow) -> Result<String, ErrorDoc> {
    let record: Value = serde_json::from_str(&row.body)
        .map_err(|e| ErrorDoc::new(ErrorCode::Internal, format!("record {} does not read", row.seq)).cause(e.to_string()))?;
    let fields: BTreeMap<&str, Value> = BTreeMap::from([
        ("schema", SCHEMA.into()),
        ("seq", row.seq.into()),
        ("at", rfc3339(row.at).into()),
        ("at_unix_ms", row.at.0.into()),
        ("rollout", row.rollout.clone().into()),
        ("kind", record.get("kind").cloned().unwrap_or_default()),
        ("hash", hex(row.hash).into()),
    ]);
    let mut line = json(&fields)?;
    // A record may be as large as the fleet: it is not made anew.
    line.pop();
    line.push_str(",\"record\":");
    line.push_str(&row.body);
    line.push('}');
    Ok(line)
}

fn hex(hash: Digest) -> String {
    hash.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::BadRecord;

    fn head(seq: u64, text: &str) -> JournalHead {
        JournalHead { seq, hash: Digest::of(text.as_bytes()) }
    }

    fn read(records: u64, known: &[(u64, &str)]) -> Verified {
        let hashes = known.iter().map(|(seq, text)| (*seq, Digest::of(text.as_bytes()))).collect();
        Verified { records, head: Some(head(records, "end")), bad: None, hashes }
    }

    fn witness(host: &str, seq: u64, text: &str) -> Witness {
        Witness { host: host.parse().unwrap(), head: head(seq, text), finding: None }
    }

    #[test]
    fn a_file_and_memories_that_fit_are_fine() {
        let doc = judged(&read(9, &[(9, "nine"), (4, "four")]), Some(head(9, "nine")), &[witness("a", 4, "four")]);
        assert_eq!((doc.ok, doc.records, doc.witnesses, doc.findings.len()), (true, 9, 1, 0));
        // What was appended meanwhile is no finding.
        assert!(judged(&read(12, &[(9, "nine")]), Some(head(9, "nine")), &[]).ok);
    }

    #[test]
    fn an_end_that_is_gone_is_found_by_us_and_by_hosts() {
        let doc = judged(&read(7, &[]), Some(head(9, "nine")), &[witness("a", 8, "eight")]);
        assert_eq!((doc.ok, doc.first_bad), (false, Some(8)));
        assert_eq!(doc.findings.len(), 2);
        assert!(doc.findings[0].contains("cut off") && doc.findings[1].starts_with("a: it remembers record 8"), "{:?}", doc.findings);
        // A controller that was started on the shorter file knows no better: the host does.
        let doc = judged(&read(7, &[(7, "seven")]), Some(head(7, "seven")), &[witness("a", 8, "eight")]);
        assert!(!doc.ok && doc.findings.len() == 1, "{:?}", doc.findings);
    }

    #[test]
    fn a_journal_that_was_replaced_is_found() {
        let doc = judged(&read(9, &[(9, "other"), (4, "other")]), Some(head(9, "nine")), &[witness("a", 4, "four")]);
        assert_eq!(doc.findings.len(), 2, "{:?}", doc.findings);
    }

    #[test]
    fn a_broken_chain_names_its_first_record_and_nothing_behind_it() {
        let bad = Some(BadRecord { seq: 3, why: "record 3 is missing".into() });
        let doc = judged(&Verified { bad, ..read(2, &[]) }, Some(head(9, "nine")), &[witness("a", 8, "eight")]);
        assert_eq!((doc.first_bad, doc.findings), (Some(3), vec!["record 3 is missing".to_owned()]));
    }

    #[test]
    fn what_did_not_fit_once_stays_a_finding() {
        let finding = Some("it remembers record 30".to_owned());
        let doc = judged(&read(9, &[(9, "nine")]), Some(head(9, "nine")), &[Witness { finding, ..witness("a", 9, "nine") }]);
        assert_eq!(doc.findings, ["a: it remembers record 30"]);
    }

    #[test]
    fn an_exported_record_is_the_bytes_that_were_hashed() {
        let body = r#"{"kind":"noted","by":"dana","text":"a \"b\"","resolves":null}"#.to_owned();
        let row = ExportRow { seq: 3, at: tidegate_protocol::Timestamp(5), rollout: None, hash: Digest::of(b"h"), body: body.clone() };
        let line = line(&row).unwrap();
        assert!(line.ends_with(&format!(",\"record\":{body}}}")), "{line}");
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["seq"].as_u64(), value["rollout"].is_null(), value["kind"].as_str()), (Some(3), true, Some("noted")));
    }
}
