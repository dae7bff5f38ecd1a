//! What people add to a rollout until it is closed: notes, outstanding items, the
//! handoff's signatures, the review.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use tidegate_protocol::RolloutId;
use tidegate_rollout::process::SignRole;
use tidegate_rollout::record::Review;
use tidegate_rollout::status::StatusDoc;

use super::exit::Exit;
use super::output::{Format, read};
use super::rollout::Read;
use super::sign::{self, Expected, How};
use super::table::{Table, Tone, clean, paint};
use super::{Context, checklist, files, rollout, words};
use crate::operator::doc::{EventDoc, HandoffDoc, PaperDoc};
use crate::operator::msg::{ErrorCode, ErrorDoc, Purpose, Request};

/// From the execution log to the closed rollout
#[derive(Debug, Subcommand)]
pub(super) enum Handover {
    /// Add a remark to the execution log, or say how one of its issues was resolved
    #[command(after_help = NOTE_HELP)]
    Note {
        /// Which, as `rollout start` printed it
        #[arg(value_name = "ID")]
        id: RolloutId,
        /// What is to be known
        #[arg(value_name = "TEXT", value_parser = words::said)]
        text: String,
        /// It says how this issue was resolved; `rollout events` numbers them
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        resolves: Option<u32>,
    },
    /// Add, change and list outstanding items of the handoff
    #[command(after_help = ITEM_HELP, arg_required_else_help = false)]
    Item(Items),
    /// Show what is handed over and what is still open; with --role, sign it
    #[command(after_help = HANDOFF_HELP, group = sign::how_group().requires("role"))]
    Handoff {
        /// Which, as `rollout start` printed it
        #[arg(value_name = "ID")]
        id: RolloutId,
        /// Sign it as lead (of the deployment) or ops-lead
        #[arg(long, value_name = "ROLE", requires = "how", value_parser = words::sign_role())]
        role: Option<SignRole>,
        #[command(flatten)]
        how: How,
    },
    /// Add what only people know of a deployment, from review.toml
    #[command(after_help = REVIEW_HELP)]
    Review(ReviewArgs),
    /// Close a rollout that is handed over, signed and reviewed; refused (exit 5) while anything is open
    #[command(after_help = CLOSE_HELP)]
    Close {
        /// Which, as `rollout start` printed it
        #[arg(value_name = "ID")]
        id: RolloutId,
    },
}

/// Outstanding items of a rollout
#[derive(Debug, Args)]
pub(super) struct Items {
    /// Which, as `rollout start` printed it
    #[arg(value_name = "ID")]
    id: RolloutId,
    #[command(subcommand)]
    verb: Item,
}

/// Outstanding items of a rollout
#[derive(Debug, Subcommand)]
pub(super) enum Item {
    /// Add an outstanding item
    #[command(after_help = ITEM_ADD_HELP)]
    Add {
        /// What is to be done
        #[arg(value_name = "WHAT", value_parser = words::said)]
        what: String,
        /// By whom
        #[arg(long, value_name = "NAME", value_parser = words::said)]
        owner: String,
        /// Until when, as people say it
        #[arg(long, value_name = "WHEN", value_parser = words::said)]
        eta: Option<String>,
        /// How it stands: open, done, or in other words
        #[arg(long, value_name = "STATUS", value_parser = words::said)]
        status: Option<String>,
    },
    /// Change an outstanding item
    #[command(after_help = ITEM_SET_HELP, group = clap::ArgGroup::new("change").required(true).multiple(true).args(["what", "owner", "eta", "status"]))]
    Set {
        /// Its number
        #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        item: u32,
        /// How it stands: open, done, or in other words
        #[arg(long, value_name = "STATUS", value_parser = words::said)]
        status: Option<String>,
        /// By whom
        #[arg(long, value_name = "NAME", value_parser = words::said)]
        owner: Option<String>,
        /// Until when, as people say it
        #[arg(long, value_name = "WHEN", value_parser = words::said)]
        eta: Option<String>,
        /// What is to be done
        #[arg(long, value_name = "WHAT", value_parser = words::said)]
        what: Option<String>,
    },
    /// List the outstanding items
    List,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("review").required(true).args(["file", "template"]))]
pub(super) struct ReviewArgs {
    /// Which, as `rollout start` printed it
    #[arg(value_name = "ID")]
    id: RolloutId,
    /// The review; - reads stdin
    #[arg(short = 'f', long = "file", value_name = "review.toml")]
    file: Option<PathBuf>,
    /// Print a review.toml to fill in, with what is known already
    #[arg(long)]
    template: bool,
    /// Where the template goes; a file that is there is kept
    #[arg(short = 'o', long = "out", value_name = "FILE", requires = "template")]
    out: Option<PathBuf>,
}

const NOTE_HELP: &str = "\
Every issue of the execution log wants a resolution before the rollout is closed.

Examples:
  tidegate rollout note shop-1 \"support was told at 22:10\"
  tidegate rollout events shop-1                                      # numbers the issues
  tidegate rollout note shop-1 --resolves 2 \"web-7 had a full disk; cleaned up\"";

const ITEM_HELP: &str = "\
Examples:
  tidegate rollout item shop-1 add \"raise the connection limit\" --owner dana --eta 2026-12-01
  tidegate rollout item shop-1 set 1 --status done
  tidegate rollout item shop-1 list --output json | jq -r '.[] | select(.status != \"done\") | .what'";

const ITEM_ADD_HELP: &str = "\
Examples:
  tidegate rollout item shop-1 add \"raise the connection limit\" --owner dana --eta 2026-12-01
  N=$(tidegate rollout item shop-1 add \"update the runbook\" --owner ravi --output json | jq .item)";

const ITEM_SET_HELP: &str = "\
Examples:
  tidegate rollout item shop-1 set 1 --status done
  tidegate rollout item shop-1 set 2 --owner ravi --eta 2026-12-08";

const HANDOFF_HELP: &str = "\
Showing it exits 0, whatever is open. Two signatures by different keys are wanted, of the deployment lead and of the
operations lead; they cover the handoff as it is then, so a later change needs new ones.

Examples:
  tidegate rollout handoff shop-1
  tidegate rollout handoff shop-1 --role lead --key ~/.ssh/id_ed25519
  tidegate rollout handoff shop-1 --role ops-lead --print-payload > payload          # then, where the key is:
  ssh-keygen -Y sign -n tidegate-approval -f ~/.ssh/id_ed25519 payload               # writes payload.sig
  tidegate rollout handoff shop-1 --role ops-lead --signature payload.sig
  tidegate rollout handoff shop-1 --output json | jq -r '.open[].item'";

const REVIEW_HELP: &str = "\
review.toml:
  date = \"2026-11-24\"
  participants = [\"Dana\", \"Ravi\"]
  went_well = [\"the canary showed the slow query\"]
  could_improve = [\"the runbook's step 4 is out of date\"]
  [[action]]
  action = \"rewrite step 4\"
  owner = \"Ravi\"
  due = \"2026-12-01\"
How long it took, downtime, issues and rollbacks are measured, not typed. The last review counts.

Examples:
  tidegate rollout review shop-1 --template -o review.toml
  tidegate rollout review shop-1 -f review.toml";

const CLOSE_HELP: &str = "\
Examples:
  tidegate rollout handoff shop-1              what is still open, each with its command
  tidegate rollout close shop-1";

/// Largest review.toml, bytes.
const REVIEW_BYTES_MAX: u64 = 256 * 1024;

impl Handover {
    /// Files, before the controller is asked.
    pub(super) fn read(&self) -> Result<Option<Read>, ErrorDoc> {
        match self {
            Self::Handoff { how, .. } => how.read(),
            Self::Review(ReviewArgs { file: Some(file), .. }) => {
                let name = file.display().to_string();
                let text = files::text(file, REVIEW_BYTES_MAX, "review.toml")?;
                toml::from_str::<Review>(&text).map_err(|e| {
                    ErrorDoc::new(ErrorCode::Usage, format!("{name}: {}", e.to_string().trim_end()))
                        .fix("correct it; the keys of review.toml are in `tidegate rollout review --help`")
                })?;
                Ok(Some(Read { text, name }))
            }
            Self::Review(ReviewArgs { out: Some(out), .. }) if out.exists() => {
                Err(ErrorDoc::new(ErrorCode::Usage, format!("{} is there already", out.display()))
                    .fix("name another file with -o, or move it"))
            }
            _ => Ok(None),
        }
    }
}

pub(super) async fn run(context: &Context, verb: Handover, given: Option<Read>) -> Result<Exit, ErrorDoc> {
    match verb {
        Handover::Note { id, text, resolves } => {
            rollout::spoken(context, &id, Request::RolloutNote { id: id.clone(), text, resolves }).await
        }
        Handover::Item(Items { id, verb }) => item(context, id, verb).await,
        Handover::Handoff { id, role, how } => handoff(context, id, role, how, given).await,
        Handover::Review(args) => review(context, args, given).await,
        Handover::Close { id } => close(context, id).await,
    }
}

/// An outstanding item, as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemDoc {
    /// From 1.
    pub item: u32,
    /// What is to be done.
    pub what: String,
    /// By whom.
    pub owner: String,
    /// `open`, `done`, or as people say it.
    pub status: String,
    /// Until when.
    pub eta: String,
    /// Who said so last.
    pub by: String,
}

/// Each item as it was said last, by number.
fn folded(events: &[EventDoc]) -> Vec<ItemDoc> {
    let mut items = std::collections::BTreeMap::new();
    for event in events.iter().filter(|e| e.kind == "item") {
        if let Ok(item) = serde_json::from_value::<ItemDoc>(event.record.clone()) {
            items.insert(item.item, item);
        }
    }
    items.into_values().collect()
}

async fn item(context: &Context, id: RolloutId, verb: Item) -> Result<Exit, ErrorDoc> {
    let changed = match verb {
        Item::List => None,
        Item::Add { what, owner, eta, status } => {
            let request = Request::RolloutItem { id: id.clone(), item: None, what: Some(what.clone()), owner: Some(owner), status, eta };
            context.ask(request).await?;
            Some((None, Some(what)))
        }
        Item::Set { item, status, owner, eta, what } => {
            context.ask(Request::RolloutItem { id: id.clone(), item: Some(item), what, owner, status, eta }).await?;
            Some((Some(item), None))
        }
    };
    let items = folded(&rollout::all_events(context, id).await?);
    let output = &context.output;
    let Some((number, what)) = changed else {
        output.value(&items, |items, color| render_items(items, color))?;
        return Ok(Exit::Done);
    };
    let found = items.iter().rev().find(|i| number.is_none_or(|n| n == i.item) && what.as_ref().is_none_or(|w| *w == i.what));
    let found = found.ok_or_else(|| ErrorDoc::new(ErrorCode::Internal, "the item was taken, but is not in the journal yet"))?;
    output.value(found, |item, _| format!("item {}\n", item_line(item)))?;
    Ok(Exit::Done)
}

fn item_line(item: &ItemDoc) -> String {
    let eta = if item.eta.is_empty() { String::new() } else { format!(", until {}", item.eta) };
    clean(&format!("{}: {} ({}, {}{eta})", item.item, item.what, item.owner, item.status), 600)
}

fn render_items(items: &[ItemDoc], color: bool) -> String {
    let mut table = Table::new(["ITEM", "WHAT", "OWNER", "STATUS", "ETA"]);
    for item in items {
        table.row([
            item.item.to_string().into(),
            item.what.as_str().into(),
            item.owner.as_str().into(),
            item.status.as_str().into(),
            item.eta.as_str().into(),
        ]);
    }
    if table.is_empty() { "no outstanding item\n".into() } else { table.render(color) }
}

async fn handoff(context: &Context, id: RolloutId, role: Option<SignRole>, how: How, given: Option<Read>) -> Result<Exit, ErrorDoc> {
    let output = &context.output;
    let Some(role) = role else {
        let answer = context.ask(Request::RolloutHandoff { id }).await?;
        output.document(&answer, |doc: &HandoffDoc, color| shown(doc, color))?;
        return Ok(Exit::Done);
    };
    let purpose = Purpose::Handoff(role);
    let mut expected = Expected::default();
    // Nobody signs what was not shown.
    if how.key.is_some() {
        let doc: HandoffDoc = read(&context.ask(Request::RolloutHandoff { id: id.clone() }).await?)?;
        shown(&doc, false).lines().for_each(|line| output.note(line));
        expected.handoff = Some(doc.document);
    }
    let Some(signature) = sign::signature(context, &id, &purpose, how, given, &expected).await? else { return Ok(Exit::Done) };
    let answer = context.ask(Request::RolloutSign { id, purpose, signature }).await?;
    output.document(&answer, |doc: &HandoffDoc, color| shown(doc, color))?;
    Ok(Exit::Done)
}

/// `rollout handoff`.
#[must_use]
pub fn shown(doc: &HandoffDoc, color: bool) -> String {
    let mut out = format!("handoff of {} (sha256:{})\n", doc.id, doc.document.short());
    out.push_str(&format!("  its text: tidegate docs {} --out DIR\n", doc.id));
    if doc.open.is_empty() {
        out.push_str(&format!("\n{}\n", paint("nothing is open", Tone::Good, color)));
    } else {
        out.push_str(&format!("\n{}\n{}", paint("still open", Tone::Busy, color), open_lines(doc)));
    }
    let mut table = Table::new(["SIGNED AS", "BY", "KEY", "AT", "COVERS"]);
    for signed in &doc.signed {
        table.row([
            signed.role.as_str().into(),
            signed.principal.as_str().into(),
            signed.key.as_str().into(),
            signed.at.as_str().into(),
            if signed.current { "the handoff as it is" } else { "an older handoff: sign again" }.into(),
        ]);
    }
    if table.is_empty() {
        out.push_str("\nnobody signed it\n");
    } else {
        out.push_str(&format!("\n{}", table.render(color)));
    }
    out
}

/// One line an item, with the rollout's name in its command.
fn open_lines(doc: &HandoffDoc) -> String {
    let line = |o: &crate::operator::doc::OpenDoc| {
        format!("  {}: {}\n", clean(&o.item, 80), clean(&checklist::with_id(&o.what, doc.id.as_str()), 600))
    };
    doc.open.iter().map(line).collect()
}

async fn review(context: &Context, args: ReviewArgs, given: Option<Read>) -> Result<Exit, ErrorDoc> {
    let (output, id) = (&context.output, args.id);
    if let Some(Read { text, name }) = given {
        return rollout::spoken(context, &id, Request::RolloutReview { id: id.clone(), review_text: Some(text), file_name: name }).await;
    }
    let answer = context.ask(Request::RolloutReview { id: id.clone(), review_text: None, file_name: String::new() }).await?;
    let Some(out) = args.out else {
        // A template is a file: its text as it is, line by line.
        output.document(&answer, |doc: &PaperDoc, _| doc.text.lines().map(|line| clean(line, 4_000) + "\n").collect())?;
        return Ok(Exit::Done);
    };
    let doc: PaperDoc = read(&answer)?;
    files::create(&out, doc.text.as_bytes())?;
    output.note(&format!("wrote {}; fill it in, then: tidegate rollout review {id} -f {}", out.display(), out.display()));
    if output.format != Format::Human {
        output.document(&answer, |_: &PaperDoc, _| String::new())?;
    }
    Ok(Exit::Done)
}

async fn close(context: &Context, id: RolloutId) -> Result<Exit, ErrorDoc> {
    let answer = match context.ask(Request::RolloutClose { id: id.clone() }).await {
        Ok(answer) => answer,
        // The refusal names every item, each with what to do.
        Err(error) if error.code == ErrorCode::Refused => {
            let doc = context.ask(Request::RolloutHandoff { id: id.clone() }).await.and_then(|json| read::<HandoffDoc>(&json));
            return Err(match doc {
                Ok(doc) if !doc.open.is_empty() => error.cause(format!("still open:\n{}", open_lines(&doc).trim_end())),
                _ => error,
            });
        }
        Err(error) => return Err(error),
    };
    context.output.document(&answer, |doc: &StatusDoc, _| {
        format!("rollout {} is closed; its papers: tidegate docs {} --out DIR\n", doc.id, doc.id)
    })?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::doc::{OpenDoc, SignedDoc};
    use tidegate_protocol::Digest;

    fn event(seq: u64, record: serde_json::Value) -> EventDoc {
        let kind = record.get("kind").and_then(|k| k.as_str()).unwrap_or_default().to_owned();
        let (at, message) = (String::new(), String::new());
        EventDoc { schema: 1, seq, at, rollout: "shop-1".parse().unwrap(), kind, host: None, component: None, message, record }
    }

    #[test]
    fn an_item_is_what_was_said_of_it_last() {
        let item = |n: u32, status: &str| serde_json::json!({"kind": "item", "item": n, "what": format!("w{n}"), "owner": "dana", "status": status, "eta": "", "by": "x"});
        let items = folded(&[
            event(1, item(2, "open")),
            event(2, item(1, "open")),
            event(3, serde_json::json!({"kind": "began"})),
            event(4, item(2, "done")),
        ]);
        let seen: Vec<(u32, &str)> = items.iter().map(|i| (i.item, i.status.as_str())).collect();
        assert_eq!(seen, [(1, "open"), (2, "done")]);
        assert_eq!(
            render_items(&items, false),
            "ITEM  WHAT  OWNER  STATUS  ETA\n1     w1    dana   open    -\n2     w2    dana   done    -\n"
        );
        assert_eq!(render_items(&[], false), "no outstanding item\n");
    }

    #[test]
    fn a_handoff_shows_what_is_open_with_its_command_and_who_signed() {
        let signed = |role: &str, current| SignedDoc {
            role: role.into(),
            principal: "dana@example.com".into(),
            key: "SHA256:x".into(),
            at: "2026-11-24T09:00:00.000Z".into(),
            current,
        };
        let open = OpenDoc {
            item: "on-call-briefed".into(),
            what: "attest it: tidegate rollout attest ID --item on-call-briefed --note TEXT".into(),
        };
        let mut doc = HandoffDoc {
            schema: 1,
            id: "shop-1".parse().unwrap(),
            document: Digest::of(b"x"),
            open: vec![open],
            signed: vec![signed("lead", false)],
        };
        let text = shown(&doc, false);
        assert!(text.contains("on-call-briefed: attest it: tidegate rollout attest shop-1 --item on-call-briefed"), "{text}");
        assert!(text.contains("an older handoff: sign again"), "{text}");
        doc.open.clear();
        doc.signed.clear();
        let text = shown(&doc, false);
        assert!(text.contains("\nnothing is open\n") && text.contains("\nnobody signed it\n"), "{text}");
    }
}
