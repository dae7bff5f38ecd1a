//! What people add around the end of a rollout, and the documents made of it all:
//! notes, items, handoff, review, close, the six deliverables.
//!
//! Owns: what is read before a paper is accepted, and the order of papers: one at a
//! time, for each is numbered and judged by those before it. Must not: know what a
//! document says (that is `tidegate-docs`), or when a paper fits (the machine does).

use std::time::Duration;

use jiff::civil::Date;
use tidegate_docs::{DocsError, Entry, Input, Open};
use tidegate_net::FrameSender;
use tidegate_protocol::limits::OPERATOR_FRAME_BYTES_MAX;
use tidegate_protocol::{Release, RolloutId};
use tidegate_rollout::process::{SignRole, handoff_payload};
use tidegate_rollout::record::Review;
use tidegate_rollout::{Plan, Record};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::doc::{HandoffDoc, OpenDoc, PaperDoc, SCHEMA, SignedDoc, rfc3339};
use super::msg::{ErrorCode, ErrorDoc, Frame, Purpose};
use super::server::{Ended, Operators, blocking};
use super::sign::{Asked, look, verified};
use crate::approvers::Duty;
use crate::core::{Looked, Paperwork, json, said};

/// Most records of one rollout that documents are made from.
const RECORDS_MAX: usize = 500_000;
/// Most items of one rollout.
const ITEMS_MAX: u32 = 500;
/// Largest review.toml, bytes.
const REVIEW_BYTES_MAX: usize = 256 * 1024;
/// Longest line of a review, bytes, and most lines of one list.
const LINE_BYTES_MAX: usize = 2_000;
const LINES_MAX: usize = 200;
/// How long a paper waits for those before it.
const DESK_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that documents are made from, read from the store.
struct File {
    id: RolloutId,
    entries: Vec<Entry>,
    release: Release,
}

impl File {
    fn input(&self) -> Input<'_> {
        Input { id: &self.id, entries: &self.entries, release: &self.release }
    }
}

/// One paper at a time.
async fn desk(ctx: &Operators) -> Result<OwnedSemaphorePermit, Ended> {
    match timeout(DESK_TIMEOUT, ctx.desk.clone().acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(ErrorDoc::new(ErrorCode::Unavailable, "many papers are written at once; try again").into()),
    }
}

async fn read(ctx: &Operators, id: &RolloutId, looked: &Looked) -> Result<File, Ended> {
    let (mut after, mut entries) = (looked.first_seq.saturating_sub(1), Vec::new());
    while after < looked.last_seq {
        let page = ctx.store.events(id.clone(), after).await?;
        let Some(last) = page.last().map(|row| row.seq) else { break };
        entries.extend(page.into_iter().map(|row| Entry { seq: row.seq, at: row.at, hash: row.hash, record: row.record }));
        if entries.len() > RECORDS_MAX {
            return Err(ErrorDoc::new(ErrorCode::Refused, format!("the journal of {id} has more than {RECORDS_MAX} records"))
                .fix("`tidegate audit export` has them all")
                .into());
        }
        after = last;
    }
    let (depot, digest) = (ctx.depot.clone(), looked.plan.release.manifest);
    let (release, _) = blocking(move || depot.manifest(digest)).await??;
    Ok(File { id: id.clone(), entries, release })
}

fn no_paper(error: &DocsError) -> ErrorDoc {
    ErrorDoc::new(ErrorCode::Internal, "the documents cannot be made").cause(error.to_string())
}

/// Work on a file that is as long as its journal.
async fn with<T: Send + 'static>(
    file: File,
    work: impl FnOnce(&Input<'_>) -> Result<T, DocsError> + Send + 'static,
) -> Result<(File, T), Ended> {
    blocking(move || work(&file.input()).map(|made| (file, made)).map_err(|e| no_paper(&e))).await?.map_err(Ended::Told)
}

/// A remark, or how an issue was resolved.
pub(super) async fn note(ctx: &Operators, by: &str, id: RolloutId, text: String, resolves: Option<u32>) -> Result<String, Ended> {
    let text = said(text, "the note")?;
    let _desk = desk(ctx).await?;
    let looked = look(ctx, &id).await?;
    if let Some(number) = resolves {
        let (_, issues) = with(read(ctx, &id, &looked).await?, tidegate_docs::issues).await?;
        if !issues.iter().any(|i| i.number == number) {
            return Err(ErrorDoc::new(ErrorCode::NotFound, format!("the execution log of {id} has no issue {number}"))
                .cause(format!("it has {}", issues.len()))
                .fix(format!("`tidegate rollout events {id}` numbers them"))
                .into());
        }
    }
    let record = Record::Noted { by: by.to_owned(), text, resolves };
    Ok(ctx.core.paper(id, looked.first_seq, Paperwork::Paper(Box::new(record))).await??)
}

/// What is said of an item; none = as before.
#[derive(Debug)]
pub(super) struct ItemChange {
    pub(super) item: Option<u32>,
    pub(super) what: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) status: Option<String>,
    pub(super) eta: Option<String>,
}

/// An outstanding item, new or changed.
pub(super) async fn item(ctx: &Operators, by: &str, id: RolloutId, change: ItemChange) -> Result<String, Ended> {
    let desk = desk(ctx).await?;
    let looked = look(ctx, &id).await?;
    let file = read(ctx, &id, &looked).await?;
    let record = changed(&file.entries, change, by, &id)?;
    ctx.core.paper(id.clone(), looked.first_seq, Paperwork::Paper(Box::new(record))).await??;
    drop(desk);
    handoff(ctx, id).await
}

fn changed(entries: &[Entry], change: ItemChange, by: &str, id: &RolloutId) -> Result<Record, ErrorDoc> {
    let items = || {
        entries.iter().filter_map(|e| match &e.record {
            Record::Item { item, what, owner, status, eta, .. } => Some((*item, what, owner, status, eta)),
            _ => None,
        })
    };
    let text = |given: Option<String>, before: Option<&String>, what: &str| match (given, before) {
        (Some(given), _) => said(given, what),
        (None, Some(before)) => Ok(before.clone()),
        (None, None) => {
            Err(ErrorDoc::new(ErrorCode::Usage, format!("{what} is missing")).fix("a new item says what is to be done, and by whom"))
        }
    };
    let or = |given: Option<String>, before: Option<&String>, default: &str| match given {
        Some(given) => said(given, "an item's text"),
        None => Ok(before.map_or_else(|| default.to_owned(), Clone::clone)),
    };
    let number = match change.item {
        Some(number) => number,
        None => items().map(|(n, ..)| n).max().unwrap_or(0).saturating_add(1),
    };
    if number > ITEMS_MAX {
        return Err(ErrorDoc::new(ErrorCode::Refused, format!("{id} has {ITEMS_MAX} items, more are not kept")));
    }
    let before = items().rfind(|(n, ..)| Some(*n) == change.item);
    if change.item.is_some() && before.is_none() {
        return Err(ErrorDoc::new(ErrorCode::NotFound, format!("{id} has no item {number}"))
            .fix(format!("`tidegate rollout item {id} list` shows them")));
    }
    Ok(Record::Item {
        item: number,
        what: text(change.what, before.map(|(_, what, ..)| what), "what is to be done")?,
        owner: text(change.owner, before.map(|(_, _, owner, ..)| owner), "--owner")?,
        status: or(change.status, before.map(|(_, _, _, status, _)| status), "open")?,
        eta: or(change.eta, before.map(|(.., eta)| eta), "")?,
        by: by.to_owned(),
    })
}

/// What is handed over and what is open.
pub(super) async fn handoff(ctx: &Operators, id: RolloutId) -> Result<String, Ended> {
    let looked = look(ctx, &id).await?;
    let (file, (document, open)) =
        with(read(ctx, &id, &looked).await?, |input| Ok((tidegate_docs::handoff_digest(input)?, tidegate_docs::open_items(input)))).await?;
    let signed = file.entries.iter().filter_map(|e| match &e.record {
        Record::SignedOff { role, signed, document: covers } => Some(SignedDoc {
            role: role.word().into(),
            principal: signed.principal.clone(),
            key: signed.key.clone(),
            at: rfc3339(e.at),
            current: *covers == document,
        }),
        _ => None,
    });
    Ok(json(&HandoffDoc { schema: SCHEMA, signed: signed.collect(), open: open.into_iter().map(open_doc).collect(), document, id })?)
}

fn open_doc(open: Open) -> OpenDoc {
    OpenDoc { item: open.item, what: open.what }
}

/// The text that a sign-off covers.
pub(super) async fn handoff_text(ctx: &Operators, id: &RolloutId, looked: &Looked, purpose: &Purpose) -> Result<String, Ended> {
    let (_, document) = with(read(ctx, id, looked).await?, tidegate_docs::handoff_digest).await?;
    Ok(handoff_payload(id, sign_role(purpose)?, document))
}

fn sign_role(purpose: &Purpose) -> Result<SignRole, ErrorDoc> {
    match purpose {
        Purpose::Handoff(role) => Ok(*role),
        _ => Err(ErrorDoc::new(ErrorCode::Internal, "an approval took the way of a sign-off")),
    }
}

/// Takes a sign-off in, if it counts.
pub(super) async fn sign_off(ctx: &Operators, by: &str, id: RolloutId, purpose: &Purpose, signature: String) -> Result<String, Ended> {
    let role = sign_role(purpose)?;
    let desk = desk(ctx).await?;
    let looked = look(ctx, &id).await?;
    let (file, document) = with(read(ctx, &id, &looked).await?, tidegate_docs::handoff_digest).await?;
    let asked = Asked {
        duty: Duty::Sign(role),
        payload: handoff_payload(&id, role, document),
        not: Vec::new(),
        // The plan names who leads this deployment.
        also: looked.plan.lead.clone().filter(|_| role == SignRole::Lead),
    };
    let signed = verified(ctx, by, asked, signature).await?;
    if let Some(other) = other_signature(&file.entries, role, &signed.key) {
        return Err(ErrorDoc::new(ErrorCode::Refused, format!("the key {} signed as {} already", signed.key, other.word()))
            .cause("the handoff goes from one person to another: two keys are wanted")
            .fix(format!("somebody else signs as {}", role.word()))
            .into());
    }
    let record = Record::SignedOff { role, signed, document };
    ctx.core.paper(id.clone(), looked.first_seq, Paperwork::Paper(Box::new(record))).await??;
    drop(desk);
    handoff(ctx, id).await
}

/// The other role's newest signature, if it is by this key.
fn other_signature(entries: &[Entry], role: SignRole, key: &str) -> Option<SignRole> {
    let newest = entries.iter().rev().find_map(|e| match &e.record {
        Record::SignedOff { role: other, signed, .. } if *other != role => Some((*other, &signed.key)),
        _ => None,
    });
    newest.filter(|(_, theirs)| *theirs == key).map(|(other, _)| other)
}

/// The review; without a text a template for it.
pub(super) async fn review(ctx: &Operators, by: &str, id: RolloutId, text: Option<String>, file_name: &str) -> Result<String, Ended> {
    let Some(text) = text else {
        let looked = look(ctx, &id).await?;
        let (file, issues) = with(read(ctx, &id, &looked).await?, tidegate_docs::issues).await?;
        let text =
            template(&looked.plan, &id, rfc3339(ctx.clock.now()).get(..10).unwrap_or_default(), &issues, &people(&file.entries, &looked));
        return Ok(json(&PaperDoc { name: "review.toml".into(), text })?);
    };
    let review = parse(&text, file_name)?;
    let _desk = desk(ctx).await?;
    let looked = look(ctx, &id).await?;
    let record = Record::Reviewed { review, by: by.to_owned() };
    Ok(ctx.core.paper(id, looked.first_seq, Paperwork::Paper(Box::new(record))).await??)
}

fn parse(text: &str, file_name: &str) -> Result<Review, ErrorDoc> {
    let file: String = file_name.chars().filter(|c| !c.is_control()).take(256).collect();
    let file = if file.is_empty() { "review.toml".to_owned() } else { file };
    let usage = |message: String| ErrorDoc::new(ErrorCode::Usage, format!("{file}: {message}"));
    if text.len() > REVIEW_BYTES_MAX {
        return Err(usage(format!("{} bytes, at most {REVIEW_BYTES_MAX} are taken", text.len())));
    }
    let review: Review = toml::from_str(text).map_err(|e| usage(e.to_string().trim_end().to_owned()))?;
    if review.date.parse::<Date>().is_err() || review.date.len() != "2026-11-24".len() {
        return Err(usage(format!("date: {:?} is not a day: write for example \"2026-11-24\"", review.date)));
    }
    if review.participants.iter().all(|p| p.trim().is_empty()) {
        return Err(usage("participants: nobody took part; name at least one".into()));
    }
    for (key, lines) in [("participants", &review.participants), ("went_well", &review.went_well), ("could_improve", &review.could_improve)]
    {
        if lines.len() > LINES_MAX {
            return Err(usage(format!("{key}: {} lines, at most {LINES_MAX} are taken", lines.len())));
        }
    }
    if review.action.len() > LINES_MAX {
        return Err(usage(format!("action: {} entries, at most {LINES_MAX} are taken", review.action.len())));
    }
    for (at, action) in review.action.iter().enumerate() {
        if [&action.action, &action.owner, &action.due].into_iter().any(|t| t.trim().is_empty()) {
            return Err(usage(format!("action {}: it wants action, owner and due", at + 1)));
        }
    }
    let lists = [&review.participants, &review.went_well, &review.could_improve].into_iter().flatten();
    let actions = review.action.iter().flat_map(|a| [&a.action, &a.owner, &a.due]);
    for line in lists.chain(actions) {
        if line.len() > LINE_BYTES_MAX {
            return Err(usage(format!("a line of {} bytes, at most {LINE_BYTES_MAX} are taken", line.len())));
        }
    }
    Ok(review)
}

/// Those whom the journal names.
fn people(entries: &[Entry], looked: &Looked) -> Vec<String> {
    let mut names: Vec<String> = looked.plan.lead.iter().cloned().collect();
    let signed = entries.iter().filter_map(|e| match &e.record {
        Record::Approved { signed, .. } | Record::SignedOff { signed, .. } => Some(&signed.principal),
        _ => None,
    });
    for name in signed {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn template(plan: &Plan, id: &RolloutId, today: &str, issues: &[tidegate_docs::Issue], people: &[String]) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let people: Vec<String> = people.iter().map(|p| quoted(p)).collect();
    let mut out = format!(
        "# Review of rollout {id}: {}.\n# What was measured (times, downtime, issues, rollbacks) is in the documents already.\n",
        plan.release.id
    );
    for issue in issues {
        let text: String = issue.text.as_str().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        out.push_str(&format!("# issue {}: {text}\n", issue.number));
    }
    out.push_str(&format!("date = {}\nparticipants = [{}]\nwent_well = [\n]\ncould_improve = [\n]\n", quoted(today), people.join(", ")));
    out.push_str("# [[action]]\n# action = \"what follows\"\n# owner = \"by whom\"\n# due = \"2026-12-01\"\n");
    out
}

/// Handed over, reviewed, nothing open.
pub(super) async fn close(ctx: &Operators, by: &str, id: RolloutId) -> Result<String, Ended> {
    let _desk = desk(ctx).await?;
    let looked = look(ctx, &id).await?;
    let (_, open) = with(read(ctx, &id, &looked).await?, |input| Ok(tidegate_docs::open_items(input))).await?;
    if !open.is_empty() {
        let all: Vec<String> = open.iter().map(|o| format!("{}: {}", o.item, o.what)).collect();
        return Err(ErrorDoc::new(ErrorCode::Refused, format!("rollout {id} cannot be closed: {} item(s) are open", open.len()))
            .cause(all.join("; "))
            .fix(format!("`tidegate rollout handoff {id}` shows them, each with its command"))
            .into());
    }
    let record = Record::Closed { by: by.to_owned() };
    Ok(ctx.core.paper(id, looked.first_seq, Paperwork::Paper(Box::new(record))).await??)
}

/// All deliverables, one frame each.
pub(super) async fn documents(ctx: &Operators, send: &mut FrameSender, id: RolloutId) -> Result<(), Ended> {
    let looked = look(ctx, &id).await?;
    let (_, papers) = with(read(ctx, &id, &looked).await?, tidegate_docs::papers).await?;
    for paper in papers {
        let doc = json(&PaperDoc { name: paper.name, text: paper.text })?;
        send.send(&Frame::Document(doc), OPERATOR_FRAME_BYTES_MAX).await?;
    }
    Ok(send.send(&Frame::End { exit: 0 }, OPERATOR_FRAME_BYTES_MAX).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::{Digest, Timestamp};
    use tidegate_rollout::process::Signed;

    fn entry(seq: u64, record: Record) -> Entry {
        Entry { seq, at: Timestamp(seq), hash: Digest::of(b"x"), record }
    }

    fn change(item: Option<u32>) -> ItemChange {
        ItemChange { item, what: None, owner: None, status: None, eta: None }
    }

    #[test]
    fn items_are_numbered_and_keep_what_is_not_said_anew() {
        let id: RolloutId = "r".parse().unwrap();
        let first = ItemChange { what: Some("clean up".into()), owner: Some("ravi".into()), ..change(None) };
        let first = changed(&[], first, "dana", &id).unwrap();
        assert!(matches!(&first, Record::Item { item: 1, status, eta, .. } if status == "open" && eta.is_empty()), "{first:?}");
        let entries = [entry(1, first)];
        let done = changed(&entries, ItemChange { status: Some("done".into()), ..change(Some(1)) }, "lee", &id).unwrap();
        let Record::Item { item: 1, what, owner, status, by, .. } = &done else { panic!("{done:?}") };
        assert_eq!((what.as_str(), owner.as_str(), status.as_str(), by.as_str()), ("clean up", "ravi", "done", "lee"));
        assert_eq!(changed(&entries, change(Some(2)), "lee", &id).unwrap_err().code, ErrorCode::NotFound);
        // A new one says who does it.
        assert_eq!(
            changed(&entries, ItemChange { what: Some("x".into()), ..change(None) }, "lee", &id).unwrap_err().code,
            ErrorCode::Usage
        );
    }

    #[test]
    fn one_key_signs_for_one_of_the_two() {
        let signed = |key: &str| Signed { principal: "p".into(), key: key.into(), signature: String::new(), brought_by: "b".into() };
        let off = |role, key: &str| Record::SignedOff { role, signed: signed(key), document: Digest::of(b"d") };
        let entries = [entry(1, off(SignRole::Lead, "k1")), entry(2, off(SignRole::Lead, "k2"))];
        assert_eq!(other_signature(&entries, SignRole::OpsLead, "k2"), Some(SignRole::Lead));
        // The lead signed anew with another key.
        assert_eq!(other_signature(&entries, SignRole::OpsLead, "k1"), None);
        assert_eq!(other_signature(&entries, SignRole::Lead, "k2"), None);
    }

    #[test]
    fn a_review_says_when_and_who() {
        let good = "date = \"2026-11-24\"\nparticipants = [\"Dana\"]\n[[action]]\naction = \"a\"\nowner = \"o\"\ndue = \"2026-12-01\"\n";
        assert_eq!(parse(good, "review.toml").unwrap().action.len(), 1);
        for (text, wanted) in [
            ("date = \"yesterday\"\nparticipants = [\"Dana\"]\n", "is not a day"),
            ("date = \"2026-11-24\"\nparticipants = []\n", "nobody took part"),
            ("date = \"2026-11-24\"\nparticipants = [\"D\"]\n[[action]]\naction = \"a\"\nowner = \"\"\ndue = \"x\"\n", "action 1"),
            ("date = \"2026-11-24\"\nparticipant = [\"D\"]\n", "participant"),
        ] {
            let error = parse(text, "r.toml").unwrap_err();
            assert!(error.message.starts_with("r.toml: ") && error.message.contains(wanted), "{error:?}");
        }
    }
}
