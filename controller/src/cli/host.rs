//! `tidegate host`: the fleet, host by host.

use clap::Subcommand;
use tidegate_protocol::HostName;
use tidegate_rollout::Selector;

use super::exit::Exit;
use super::{Context, label_change, render};
use crate::operator::doc::{ExplainDoc, HostDoc};
use crate::operator::msg::{ErrorDoc, Request};

/// Look after the fleet
#[derive(Debug, Subcommand)]
pub(super) enum Host {
    /// List hosts with what they run
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Only hosts with these labels
        #[arg(short = 'l', long, value_name = "SELECTOR")]
        selector: Option<Selector>,
    },
    /// Show one host
    Show {
        /// Which
        #[arg(value_name = "HOST")]
        host: HostName,
    },
    /// Set and remove labels
    #[command(after_help = LABEL_EXAMPLES)]
    Label {
        /// Which
        #[arg(value_name = "HOST")]
        host: HostName,
        /// KEY=VALUE sets, KEY- removes
        #[arg(value_name = "KEY=VALUE|KEY-", required = true, value_parser = label_change)]
        changes: Vec<(String, Option<String>)>,
    },
    /// Leave a host out of new rollouts
    Drain {
        /// Which
        #[arg(value_name = "HOST")]
        host: HostName,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Take a drained host in again
    Undrain {
        /// Which
        #[arg(value_name = "HOST")]
        host: HostName,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Say why a host is as it is
    Explain {
        /// Which
        #[arg(value_name = "HOST")]
        host: HostName,
    },
}

const LIST_EXAMPLES: &str = "\
Examples:
  tidegate host list -l 'role=api,zone!=b,env in (prod,stage)'
  tidegate host list --output json | jq -r '.[] | select(.state != \"online\") | .name'";

const LABEL_EXAMPLES: &str = "\
Examples:
  tidegate host label web-1 zone=b role=api
  tidegate host label web-1 canary-                 removes the label canary";

pub(super) async fn run(context: &Context, verb: Host) -> Result<Exit, ErrorDoc> {
    let output = &context.output;
    match verb {
        Host::List { selector } => {
            let selector = selector.map(|s| s.as_str().to_string()).unwrap_or_default();
            let answer = context.ask(Request::HostList { selector }).await?;
            output.document(&answer, |hosts: &Vec<HostDoc>, color| render::hosts(hosts, color))?;
        }
        Host::Explain { host } => {
            let answer = context.ask(Request::HostExplain { host }).await?;
            output.document(&answer, |doc: &ExplainDoc, color| render::explain(doc, color))?;
        }
        Host::Show { host } => one(context, Request::HostShow { host }).await?,
        Host::Label { host, changes } => one(context, Request::HostLabel { host, set: changes.into_iter().collect() }).await?,
        Host::Drain { host, reason } => one(context, Request::HostDrain { host, reason }).await?,
        Host::Undrain { host, reason } => one(context, Request::HostUndrain { host, reason }).await?,
    }
    Ok(Exit::Done)
}

async fn one(context: &Context, request: Request) -> Result<(), ErrorDoc> {
    let answer = context.ask(request).await?;
    context.output.document(&answer, |host: &HostDoc, color| render::host(host, color))
}
