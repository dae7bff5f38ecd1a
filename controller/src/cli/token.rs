//! `tidegate token`: how hosts come in.

use clap::Subcommand;
use tidegate_protocol::{HostName, Millis};

use super::exit::Exit;
use super::{Context, duration, label};
use crate::operator::doc::TokenDoc;
use crate::operator::msg::{ErrorDoc, Request};

/// Let hosts join
#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token that a host enrolls with; it is shown once
    #[command(after_help = CREATE_EXAMPLES)]
    Create {
        /// Only a host of this name may use it
        #[arg(long, value_name = "NAME")]
        host: Option<HostName>,
        /// The host gets this label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Good for so long
        #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration)]
        ttl: Millis,
        /// Good for so many hosts
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
    },
}

const CREATE_EXAMPLES: &str = "\
Examples:
  tidegate token create --host web-1 --label role=api --label env=prod
  TOKEN=$(tidegate token create --uses 20 --ttl 1h --label role=api)
  tidegate-agent enroll --controller ctl:7443 --token \"$TOKEN\"        # on the host";

pub(super) async fn run(context: &Context, verb: Token) -> Result<Exit, ErrorDoc> {
    let Token::Create { host, labels, ttl, uses } = verb;
    let request = Request::TokenCreate { host, labels: labels.into_iter().collect(), ttl, uses };
    let answer = context.ask(request).await?;
    // Only the token on stdout: TOKEN=$(tidegate token create).
    context.output.document(&answer, |doc: &TokenDoc, _| format!("{}\n", super::table::clean(&doc.token, 4_000)))?;
    if context.output.format == super::output::Format::Human {
        let doc: TokenDoc = super::output::read(&answer)?;
        context.output.note(&format!("good until {}, for {uses} host(s); it is not shown again", doc.expires_at));
    }
    Ok(Exit::Done)
}
