//! 5: the Operations Handoff, signed by two people.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_protocol::{Digest, TaskRun, TaskState};
use tidegate_rollout::process::{HANDOFF_ROWS, RowVerdict, SignRole, handoff_payload};
use tidegate_rollout::record::{Record, RolloutState, TargetState};
use tidegate_rollout::status::rfc3339;

use crate::DocsError;
use crate::handoff::{Content, content};
use crate::model::{Block, Cell, Check, Document, Mark, Sheet, Signature};
use crate::open::{SignState, sign_item, sign_state};
use crate::story::{Story, given};
use crate::text::{day, moment, sha256};

#[derive(Clone, Debug, Serialize)]
struct Data {
    handoff_date: Option<String>,
    to: Option<String>,
    /// What the digest covers.
    content: Content,
    handoff_sha256: Digest,
    roll_back: String,
    sign_offs: Vec<SignOff>,
    open: Vec<Item>,
}

#[derive(Clone, Debug, Serialize)]
struct SignOff {
    role: &'static str,
    state: &'static str,
    principal: String,
    key: String,
    at: String,
    document_sha256: Digest,
    payload: String,
    signature: String,
}

#[derive(Clone, Debug, Serialize)]
struct Item {
    item: String,
    what: String,
}

/// As the guide writes them.
const fn title(role: SignRole) -> &'static str {
    match role {
        SignRole::Lead => "Deployment Lead",
        SignRole::OpsLead => "Ops Lead",
    }
}

const fn state_word(state: SignState) -> &'static str {
    match state {
        SignState::Missing => "missing",
        SignState::Void => "void",
        SignState::SameKey => "same-key",
        SignState::Good => "signed",
    }
}

pub(crate) fn document(story: &Story<'_>) -> Result<Document, DocsError> {
    let facts = &story.facts;
    let signed_at = facts.sign_offs.values().map(|s| s.at).max();
    let to = facts.sign_offs.get(&SignRole::OpsLead).map(|s| s.signed.principal.clone());
    let to = facts.attested("handoff-to").map(|(_, note, _)| note.to_string()).or(to);
    let missing = crate::open::of(story);
    let data = Data {
        handoff_date: signed_at.map(|t| rfc3339(t.0)),
        to,
        content: content(facts, &story.issues),
        handoff_sha256: story.handoff,
        roll_back: roll_back(story),
        sign_offs: facts
            .sign_offs
            .iter()
            .map(|(role, s)| SignOff {
                role: role.word(),
                state: state_word(sign_state(story, *role)),
                principal: s.signed.principal.clone(),
                key: s.signed.key.clone(),
                at: rfc3339(s.at.0),
                document_sha256: s.document,
                payload: handoff_payload(facts.input.id, *role, s.document),
                signature: s.signed.signature.clone(),
            })
            .collect(),
        open: missing.iter().map(|o| Item { item: o.item.clone(), what: o.what.clone() }).collect(),
    };
    let mut sheet = Sheet::default();
    sheet.pairs(alloc::vec![
        ("Release", Cell::new(facts.plan.release.id.to_string())),
        ("Handoff Date", signed_at.map_or_else(|| Cell::open("handoff-date", "nobody signed yet"), |t| Cell::new(day(t)))),
        ("From", given(facts.plan.lead.as_deref(), "handoff-from", "plan.toml: lead")),
        ("To", given(data.to.as_deref(), "handoff-to", "the operations lead's signature names them")),
        ("Handoff digest", Cell::code(sha256(&story.handoff))),
    ]);
    documentation(&mut sheet, story);
    readiness(&mut sheet, story);
    hosts(&mut sheet, &data.content);
    sheet.h2("How to Roll Back");
    sheet.text(data.roll_back.as_str());
    if can_go_back(story) {
        sheet.code("From any operator's machine", &story.command("rollback", "--reason TEXT"));
    }
    outstanding(&mut sheet, story, &data.content);
    sign_offs(&mut sheet, story, &data.sign_offs);
    sheet.h2("Open before this rollout can be closed");
    let open = crate::open::checks(&missing);
    if open.is_empty() {
        let closed = facts.given.closed.as_ref().map_or_else(
            || format!("Nothing: {}", story.command("close", "").trim_end()),
            |(at, by)| format!("Nothing: closed by {by}, {} UTC.", moment(*at)),
        );
        sheet.text(closed);
    }
    sheet.checks(open);
    appendix(&mut sheet, &data.sign_offs);
    story.document(5, sheet, &data)
}

fn file(story: &Story<'_>, item: &str, title: &str, of: Option<&tidegate_protocol::release::FileRef>, missing: &str) -> Check {
    story.line(item, title, of.map(|f| (Mark::Good, format!("{} {}", f.path, sha256(&f.digest)))), missing)
}

fn documentation(sheet: &mut Sheet, story: &Story<'_>) {
    let (release, process) = (story.facts.release, &story.facts.plan.process);
    sheet.h2("Documentation Provided");
    let known = release.known_issues.as_deref().filter(|k| !k.trim().is_empty());
    let dashboards = (!process.dashboards.is_empty()).then(|| (Mark::Good, process.dashboards.join(" ")));
    let contacts = process.contacts.iter().map(|c| format!("{}: {} ({}, {})", c.role, c.name, c.phone, c.available));
    let contacts: Vec<String> = contacts.collect();
    let escalates = process.contacts.iter().any(|c| c.role == tidegate_rollout::process::ContactRole::Escalation);
    let contacts = escalates.then(|| (Mark::Good, contacts.join("; ")));
    sheet.checks(alloc::vec![
        file(story, "release-notes", "Release notes", release.notes.as_ref(), "the release brings none (release.toml: notes)"),
        story.line(
            "known-issues",
            "Known issues",
            known.map(|k| (Mark::Good, k.to_string())),
            "the release does not say (release.toml: known_issues, \"none\" is a statement)"
        ),
        story.line("dashboard-links", "Monitoring dashboard links", dashboards, "neither plan nor environment names a dashboard"),
        file(
            story,
            "runbook-updates",
            "Runbook updates",
            release.runbook.deploy.as_ref(),
            "the release brings no runbook (release.toml: runbook.deploy)"
        ),
        story.line("escalation-contacts", "Escalation contacts", contacts, "the plan names no contact with role \"escalation\""),
    ]);
}

fn readiness(sheet: &mut Sheet, story: &Story<'_>) {
    sheet.h2("Operational Readiness");
    let mut rows: Vec<Check> = HANDOFF_ROWS.iter().map(|(item, title)| story.line(item, title, None, "a person says so")).collect();
    let runbook = story.facts.release.runbook.rollback.as_ref().map(|f| format!("{} {}", f.path, sha256(&f.digest)));
    let drilled = story.facts.given.rows.iter().find(|r| r.item == "rollback-tested" && r.verdict == RowVerdict::Pass);
    let drilled = drilled.map(|r| format!("tested: {}", r.evidence));
    let parts: Vec<String> = runbook.into_iter().chain(drilled).collect();
    let seen = (!parts.is_empty()).then(|| (Mark::Good, parts.join("; ")));
    rows.push(story.line(
        "rollback-documented",
        "Rollback procedure documented",
        seen,
        "no rollback runbook in the release and no drill that passed",
    ));
    sheet.checks(rows);
}

fn hosts(sheet: &mut Sheet, content: &Content) {
    const ROWS_MAX: usize = 500;
    sheet.h2("What Runs Now");
    let row = |r: &crate::handoff::Runs| {
        let mark = match r.state {
            "confirmed" | "reverted" => Mark::Good,
            "revert-failed" | "unreachable" | "failed" => Mark::Bad,
            _ => Mark::Warn,
        };
        let tree = r.tree_sha256.as_ref().map_or_else(Cell::none, |d| Cell::code(d.short()));
        alloc::vec![
            Cell::new(r.host.as_str()),
            Cell::new(r.component.as_str()),
            Cell::new(r.release.as_deref().unwrap_or("nothing")),
            tree,
            Cell::marked(mark, r.state),
        ]
    };
    sheet.table(&["Host", "Component", "Release", "Tree", "State"], content.runs.iter().take(ROWS_MAX).map(row).collect(), "No host");
    if content.runs.len() > ROWS_MAX {
        sheet.text(format!("{} more in the JSON of this document.", content.runs.len() - ROWS_MAX));
    }
}

fn retired(story: &Story<'_>) -> bool {
    story.facts.input.entries.iter().any(|e| matches!(e.record, Record::Retired { .. }))
}

fn can_go_back(story: &Story<'_>) -> bool {
    !matches!(story.facts.state, RolloutState::RolledBack | RolloutState::Refused) && !retired(story)
}

fn roll_back(story: &Story<'_>) -> String {
    let facts = &story.facts;
    let past: Vec<&str> = facts
        .plan
        .process
        .tasks
        .iter()
        .filter(|t| !t.reversible)
        .filter(|t| {
            facts
                .tasks
                .iter()
                .any(|f| f.name == t.name && f.what == TaskRun::Run && f.ended.as_ref().is_some_and(|e| e.state == TaskState::Done))
        })
        .map(|t| t.name.as_str())
        .collect();
    let past = if past.is_empty() { String::new() } else { format!(" Not taken back by it: {} (a point of no return).", past.join(", ")) };
    let stuck: Vec<String> = facts
        .targets
        .iter()
        .filter(|t| matches!(t.state, TargetState::RevertFailed | TargetState::Unreachable))
        .map(|t| format!("{} ({})", t.host, t.component))
        .collect();
    let stuck = if stuck.is_empty() { String::new() } else { format!(" These need a person: {}.", stuck.join(", ")) };
    let way = match (facts.state, retired(story)) {
        (RolloutState::RolledBack, _) => "Nothing to take back: every changed host runs what it ran before.".to_string(),
        (RolloutState::Refused, _) => "Nothing to take back: no service was touched.".to_string(),
        (_, true) => "The old sides are stopped: start a rollout of the release that shall run (tidegate rollout start -f plan.toml).".to_string(),
        _ => "Until a newer rollout of these components starts, one command takes every changed host back to what it ran before; gates, windows and freezes do not hold it up.".to_string(),
    };
    format!("{way}{past}{stuck}")
}

fn outstanding(sheet: &mut Sheet, story: &Story<'_>, content: &Content) {
    sheet.h2("Outstanding Items");
    let how = story.command("item", "set N --owner NAME --eta DATE");
    let named = |text: &str| if text.trim().is_empty() { Cell::open("outstanding-owner", &how) } else { Cell::new(text) };
    let row = |o: &crate::handoff::Outstanding| {
        let carried = o.carried;
        let mark = if o.status == "done" { Mark::Good } else { Mark::Open };
        // An issue has no owner: it is resolved, or made an item that has one.
        let (owner, eta) = if carried { (Cell::none(), Cell::none()) } else { (named(&o.owner), named(&o.eta)) };
        alloc::vec![Cell::new(o.what.as_str()), owner, Cell::marked(mark, o.status.as_str()), eta]
    };
    sheet.table(&["Item", "Owner", "Status", "ETA"], content.outstanding.iter().map(row).collect(), "None");
}

fn sign_offs(sheet: &mut Sheet, story: &Story<'_>, given: &[SignOff]) {
    sheet.h2("Sign-off");
    let row = |role: SignRole| {
        let state = sign_state(story, role);
        let signed = given.iter().find(|s| s.role == role.word());
        let how = story.command("handoff", &format!("--role {} --key SSH_KEY", role.word()));
        let (mark, note) = match state {
            SignState::Good => (Mark::Good, String::new()),
            SignState::Missing => (Mark::Open, format!("open: {} ({how})", sign_item(role))),
            SignState::Void => (Mark::Warn, format!("void: it covers an older handoff; open: {} ({how})", sign_item(role))),
            SignState::SameKey => (Mark::Warn, format!("void: by the same key as the other; open: {} ({how})", sign_item(role))),
        };
        Signature {
            role: title(role).into(),
            name: signed.map_or_else(String::new, |s| s.principal.clone()).into(),
            key: signed.map_or_else(String::new, |s| s.key.clone()).into(),
            at: story.facts.sign_offs.get(&role).map_or_else(String::new, |s| moment(s.at)).into(),
            mark,
            note: note.into(),
        }
    };
    sheet.blocks.push(Block::Signatures { rows: alloc::vec![row(SignRole::Lead), row(SignRole::OpsLead)] });
}

fn appendix(sheet: &mut Sheet, given: &[SignOff]) {
    if given.is_empty() {
        return;
    }
    sheet.h2("Appendix: signatures to verify");
    for sign in given {
        let name = format!("handoff-{}", sign.role);
        sheet.h3(&format!("{name}: {} ({})", sign.principal, sign.state));
        sheet.code(&format!("{name}.txt (every line ends with a line feed)"), &sign.payload);
        sheet.code(&format!("{name}.sig"), &sign.signature);
        let principal: String = sign.principal.chars().filter(|c| c.is_ascii_alphanumeric() || "@._+-".contains(*c)).collect();
        sheet.code(
            "To verify",
            &format!("ssh-keygen -Y verify -f approvers -I '{principal}' -n tidegate-approval -s {name}.sig < {name}.txt"),
        );
    }
}
