//! 1: the Pre-Deployment Checklist, with window and change request, signed.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use tidegate_rollout::process::{
    ChangeSpec, ContactRole, ContactSpec, NotifySpec, Opening, RiskSpec, Role, Row, RowVerdict, Section, Topic, Via, approval_payload,
    override_payload,
};
use tidegate_rollout::status::rfc3339;

use crate::DocsError;
use crate::model::{Cell, Document, Mark, Sheet};
use crate::story::{Story, check_of, given};
use crate::text::{millis, moment_utc, sha256};

/// `data` of the JSON.
#[derive(Clone, Debug, Serialize)]
struct Data<'a> {
    lead: Option<&'a str>,
    target_date: String,
    started_by: &'a str,
    checklist: Vec<Row>,
    openings: &'a [Opening],
    start_by: Option<String>,
    estimate_forward_ms: u64,
    estimate_back_ms: u64,
    estimate_from: &'a str,
    contacts: &'a [ContactSpec],
    notify: &'a [NotifySpec],
    change: Option<&'a ChangeSpec>,
    risks: &'a [RiskSpec],
    components: Vec<&'a str>,
    approvals: Vec<Signed>,
    overrides: Vec<Signed>,
}

/// An approval or an override with all that verifies it.
#[derive(Clone, Debug, Serialize)]
struct Signed {
    role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    overrides: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    principal: String,
    key: String,
    at: String,
    payload: String,
    signature: String,
}

pub(crate) fn document(story: &Story<'_>) -> Result<Document, DocsError> {
    let facts = &story.facts;
    let (plan, process) = (facts.plan, &facts.plan.process);
    let rows = facts.given.checklist(plan, facts.began.unwrap_or(facts.last));
    let opening = used_opening(story);
    let target = match opening {
        Some(opening) => opening.text.clone(),
        None => moment_utc(facts.origin()),
    };
    let signed = |role, what: Option<(&'static str, &str)>, by: &tidegate_rollout::process::Signed, at, payload| Signed {
        role,
        overrides: what.map(|w| w.0),
        reason: what.map(|w| w.1.to_string()),
        principal: by.principal.clone(),
        key: by.key.clone(),
        at: rfc3339(at),
        payload,
        signature: by.signature.clone(),
    };
    let id = facts.input.id;
    let approvals = facts.given.approvals.iter().map(|(role, a)| signed(*role, None, &a.signed, a.at.0, approval_payload(id, plan, *role)));
    let overrides = facts.overrides.iter().map(|o| {
        let payload = override_payload(id, plan, o.what, o.role, &o.reason);
        signed(o.role, Some((o.what.word(), &o.reason)), &o.signed, o.at.0, payload)
    });
    let data = Data {
        lead: plan.lead.as_deref(),
        target_date: target,
        started_by: facts.by,
        checklist: rows,
        openings: &facts.given.openings,
        start_by: process.start_by.map(|t| rfc3339(t.0)),
        estimate_forward_ms: process.estimate.forward.0,
        estimate_back_ms: process.estimate.back.0,
        estimate_from: &process.estimate.from,
        contacts: &process.contacts,
        notify: &process.notify,
        change: process.change.as_ref(),
        risks: &process.risks,
        components: plan.components.iter().map(|c| c.name.as_str()).collect(),
        approvals: approvals.collect(),
        overrides: overrides.collect(),
    };
    let mut sheet = Sheet::default();
    sheet.pairs(alloc::vec![
        ("Release", Cell::new(format!("{}", plan.release.id))),
        ("Target Date", Cell::new(data.target_date.as_str())),
        ("Deployment Lead", given(data.lead, "deployment-lead", "plan.toml: lead")),
        ("Environment", given(plan.environment.as_deref(), "environment", "plan.toml: environment")),
        ("Manifest", Cell::code(sha256(&plan.release.manifest))),
        ("Plan", Cell::code(sha256(&facts.plan_digest))),
        ("Started by", Cell::new(facts.by)),
    ]);
    for section in
        [Section::Prerequisites, Section::Artifacts, Section::Documentation, Section::Approvals, Section::Environment, Section::Fleet]
    {
        checklist(&mut sheet, section, &data.checklist);
    }
    window(&mut sheet, story, &data);
    change(&mut sheet, story, &data);
    signatures(&mut sheet, &data);
    story.document(1, sheet, &data)
}

/// The opening that it went through, else the next one.
fn used_opening<'a>(story: &'a Story<'_>) -> Option<&'a Opening> {
    let at = story.facts.origin();
    let openings = &story.facts.given.openings;
    openings.iter().find(|o| o.opens <= at && at < o.closes).or_else(|| openings.iter().min_by_key(|o| o.opens))
}

fn checklist(sheet: &mut Sheet, section: Section, rows: &[Row]) {
    let rows: Vec<&Row> = rows.iter().filter(|r| r.section == section).collect();
    if rows.is_empty() && section == Section::Fleet {
        return;
    }
    sheet.h2(section.title());
    if rows.is_empty() {
        sheet.text("Nothing was checked here: neither the plan nor the environment asks for it.");
    }
    sheet.checks(rows.into_iter().map(check_of).collect());
}

fn window(sheet: &mut Sheet, story: &Story<'_>, data: &Data<'_>) {
    let plan = story.facts.plan;
    let process = &plan.process;
    sheet.h2("Deployment Window");
    let opening = used_opening(story);
    let zones: Vec<&str> = process.windows.iter().map(|w| w.time_zone.as_deref().unwrap_or("UTC")).collect();
    let always = || Cell::marked(Mark::NotApplicable, "no window: it may go forward at any time");
    sheet.pairs(alloc::vec![
        ("Scheduled Start", opening.map_or_else(always, |o| Cell::new(moment_utc(o.opens)))),
        ("Scheduled End", opening.map_or_else(always, |o| Cell::new(moment_utc(o.closes)))),
        ("Timezone", zones.first().map_or_else(|| Cell::new("UTC"), |z| Cell::new(*z))),
        ("Window", opening.map_or_else(Cell::none, |o| Cell::new(o.text.as_str()))),
        ("Start by", process.start_by.map_or_else(Cell::none, |t| Cell::new(moment_utc(t)))),
        (
            "Expected length",
            if process.estimate.from.is_empty() {
                Cell::new("not estimated")
            } else {
                let (forward, back) = (millis(process.estimate.forward), millis(process.estimate.back));
                Cell::new(format!("{forward} forward, {back} back ({})", process.estimate.from))
            }
        ),
    ]);
    sheet.h3("Window Selection Criteria");
    let rows: Vec<&Row> = data.checklist.iter().filter(|r| r.section == Section::Window).collect();
    if rows.is_empty() {
        sheet.text("Nothing was checked here: neither the plan nor the environment asks for it.");
    }
    sheet.checks(rows.into_iter().map(check_of).collect());
    sheet.h3("Contacts");
    let contacts = process.contacts.iter().map(|c| {
        let hours = match (c.available.to_string(), c.time_zone.as_deref()) {
            (hours, Some(zone)) if hours != "always" => format!("{hours} {zone}"),
            (hours, _) => hours,
        };
        alloc::vec![Cell::new(role(c.role)), Cell::new(c.name.as_str()), Cell::new(c.phone.as_str()), Cell::new(hours)]
    });
    sheet.table(&["Role", "Name", "Phone", "Available"], contacts.collect(), "None named in the plan");
    sheet.h3("Communication");
    let mut lines = Vec::new();
    for notify in &process.notify {
        for topic in &notify.on {
            lines.push(alloc::vec![Cell::new(event(*topic)), Cell::new(notify.to.as_str()), Cell::new(channel(notify.via))]);
        }
    }
    sheet.table(&["Event", "Notify", "Channel"], lines, "Nobody is told: the plan names no route");
}

fn change(sheet: &mut Sheet, story: &Story<'_>, data: &Data<'_>) {
    let rows: Vec<&Row> = data.checklist.iter().filter(|r| r.section == Section::Change).collect();
    let Some(change) = data.change else {
        sheet.h2("Change Request");
        if rows.is_empty() {
            sheet.text("None: neither the plan nor the environment asks for one.");
        }
        sheet.checks(rows.into_iter().map(check_of).collect());
        return;
    };
    sheet.h2(&format!("Change Request: {}", change.id));
    sheet.pairs(alloc::vec![
        ("Summary", Cell::new(change.summary.as_str())),
        ("Type", Cell::new(capital(change.kind.word()))),
        ("Risk Level", Cell::new(capital(change.risk.word()))),
    ]);
    sheet.checks(rows.into_iter().map(check_of).collect());
    sheet.h3("Business Justification");
    sheet.text(change.justification.as_deref().unwrap_or("None was given."));
    sheet.h3("Technical Details");
    let plan = story.facts.plan;
    let parts = plan.components.iter().map(|c| format!("{} ({})", c.name, crate::text::count(c.hosts.len(), "host")));
    sheet.pairs(alloc::vec![
        ("Components affected", Cell::new(parts.collect::<Vec<_>>().join(", "))),
        (
            "Downtime required",
            match change.downtime {
                None => Cell::new("not declared"),
                Some(span) if span.0.0 == 0 => Cell::new("No"),
                Some(span) => Cell::new(format!("Yes, {}", millis(span.0))),
            }
        ),
        ("Rollback time", change.rollback_time.map_or_else(|| Cell::new("not declared"), |s| Cell::new(millis(s.0)))),
    ]);
    sheet.h3("Risk Assessment");
    let risks = data.risks.iter().map(|r| {
        let mitigation = r.mitigation.as_deref().map_or_else(Cell::none, Cell::new);
        alloc::vec![Cell::new(r.name.as_str()), Cell::new(r.likelihood.word()), Cell::new(r.impact.word()), mitigation]
    });
    sheet.table(&["Risk", "Likelihood", "Impact", "Mitigation"], risks.collect(), "None named in the plan");
    sheet.h3("Change Request Approvals");
    let cab = data.checklist.iter().find(|r| r.item == "approval-cab");
    let row = cab.map(|row| {
        let status = match row.verdict {
            RowVerdict::Pass => Cell::marked(Mark::Good, "Approved"),
            RowVerdict::NotApplicable => Cell::marked(Mark::NotApplicable, row.evidence.as_str()),
            RowVerdict::Fail | RowVerdict::Open => Cell::open("approval-cab", &row.evidence),
        };
        let at = row.at.map_or_else(Cell::none, |t| Cell::new(moment_utc(t)));
        alloc::vec![row.by.as_deref().map_or_else(Cell::none, Cell::new), Cell::new("CAB"), status, at]
    });
    sheet.table(&["Approver", "Role", "Status", "Date"], row.into_iter().collect(), "The change advisory board is not asked");
}

fn signatures(sheet: &mut Sheet, data: &Data<'_>) {
    sheet.h2("Signatures");
    let row = |s: &Signed| {
        let what = s
            .overrides
            .map_or_else(|| "approval".to_string(), |w| format!("override of the {w}: {}", s.reason.as_deref().unwrap_or_default()));
        alloc::vec![
            Cell::new(s.role.word()),
            Cell::new(s.principal.as_str()),
            Cell::new(what),
            Cell::code(s.key.as_str()),
            Cell::new(s.at.get(..19).map_or_else(String::new, |t| t.replace('T', " "))),
        ]
    };
    let rows = data.approvals.iter().chain(&data.overrides).map(row).collect();
    sheet.table(&["Role", "Principal", "What", "Key", "Time (UTC)"], rows, "Nobody signed");
    if data.approvals.is_empty() && data.overrides.is_empty() {
        return;
    }
    sheet.h2("Appendix: signatures to verify");
    sheet.text(
        "Save payload and signature under the names in the command; the approvers' list is the controller's `approvers` file. Stock OpenSSH \
         checks them.",
    );
    for signed in data.approvals.iter().chain(&data.overrides) {
        let name = signed.overrides.map_or_else(|| signed.role.word().to_string(), |w| format!("override-{w}-{}", signed.role));
        sheet.h3(&format!("{name}: {}", signed.principal));
        sheet.code(&format!("{name}.txt (every line ends with a line feed)"), &signed.payload);
        sheet.code(&format!("{name}.sig"), &signed.signature);
        let principal: String = signed.principal.chars().filter(|c| c.is_ascii_alphanumeric() || "@._+-".contains(*c)).collect();
        let command = format!("ssh-keygen -Y verify -f approvers -I '{principal}' -n tidegate-approval -s {name}.sig < {name}.txt");
        sheet.code("To verify", &command);
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

const fn role(role: ContactRole) -> &'static str {
    match role {
        ContactRole::Lead => "Deployment Lead",
        ContactRole::OnCall => "On-Call Engineer",
        ContactRole::Escalation => "Escalation",
    }
}

const fn event(topic: Topic) -> &'static str {
    match topic {
        Topic::Started => "Start deployment",
        Topic::Stage => "Stage passed",
        Topic::Completed => "Deployment complete",
        Topic::Issue => "Issues encountered",
        Topic::Paused => "Waits for a person",
        Topic::Rollback => "Rollback",
    }
}

const fn channel(via: Via) -> &'static str {
    match via {
        Via::Slack => "Slack",
        Via::Email => "Email",
        Via::Pagerduty => "PagerDuty",
        Via::Webhook => "Webhook",
    }
}
