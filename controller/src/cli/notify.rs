//! `tidegate notify`: whether people can be told.

use clap::Subcommand;

use super::Context;
use super::exit::Exit;
use super::output::read;
use super::table::{Cell, Table, Tone};
use crate::operator::doc::RouteDoc;
use crate::operator::msg::{ErrorDoc, Request};

/// Look after notification routes
#[derive(Debug, Subcommand)]
pub(super) enum Notify {
    /// Send a test message over each route; exits 1 if one is not taken
    #[command(after_help = TEST_HELP)]
    Test {
        /// Which, as controller.toml names them; none = all
        #[arg(value_name = "ROUTE")]
        routes: Vec<String>,
    },
}

const TEST_HELP: &str = "\
Routes stand in controller.toml as [routes.NAME]. An answered test counts for the readiness row \"Communication plan
ready\" for a day.

Examples:
  tidegate notify test
  tidegate notify test team on-call --output json | jq -r '.[] | select(.ok | not) | .detail'";

pub(super) async fn run(context: &Context, verb: Notify) -> Result<Exit, ErrorDoc> {
    let Notify::Test { routes } = verb;
    let answer = context.ask(Request::NotifyTest { routes }).await?;
    context.output.document(&answer, |docs: &Vec<RouteDoc>, color| shown(docs, color))?;
    let docs: Vec<RouteDoc> = read(&answer)?;
    Ok(if docs.iter().all(|d| d.ok) { Exit::Done } else { Exit::Error })
}

/// `notify test`.
#[must_use]
pub fn shown(docs: &[RouteDoc], color: bool) -> String {
    let mut table = Table::new(["ROUTE", "VIA", "TEST", "ANSWER"]);
    for doc in docs {
        let (word, tone) = if doc.ok { ("taken", Tone::Good) } else { ("FAILED", Tone::Bad) };
        table.row([doc.route.as_str().into(), doc.via.as_str().into(), Cell::toned(word, tone), doc.detail.as_str().into()]);
    }
    if table.is_empty() { "no route; [routes.NAME] of controller.toml makes one\n".into() } else { table.render(color) }
}
