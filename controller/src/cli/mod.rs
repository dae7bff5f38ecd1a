//! `tidegate`, the operator's command line.
//!
//! Owns: arguments, files that are read before anything is asked, and how answers
//! are shown. Must not: decide anything about a rollout, or know more of the
//! controller than its requests and documents. One file per noun; [`output`] is
//! the only place that prints; [`exit`] holds the exit codes.

pub mod audit;
mod call;
pub mod checklist;
pub mod exit;
mod files;
mod follow;
pub mod freeze;
pub mod gates;
pub mod handover;
mod help;
mod host;
pub mod live;
pub mod log;
pub mod notify;
pub mod output;
mod papers;
mod release;
pub mod render;
mod rollout;
mod sign;
mod table;
mod token;
mod upload;
mod words;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use tidegate_protocol::Millis;
use tidegate_rollout::selector::label_word_ok;

use crate::operator::msg::{ErrorCode, ErrorDoc, Request};
use call::Link;
use exit::Exit;
use output::{Format, Output};

const ABOUT: &str = "Moves a fleet of hosts from one release to the next, in waves, and takes it back if any host fails.";

const EXAMPLES: &str = "\
Examples:
  tidegate token create --label role=api          a host joins with it: tidegate-agent enroll
  tidegate release pack -f release.toml -o shop.tidegate
  tidegate release import shop.tidegate
  tidegate rollout plan -f plan.toml              what would happen, host by host
  tidegate rollout start -f plan.toml             carries it out and shows how it goes
  tidegate rollout explain ID                     why it is where it is
  tidegate rollout approve ID --role security --key ~/.ssh/id_ed25519
  tidegate docs ID --out papers                   checklist, log, tests, monitoring, handoff, review";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about = ABOUT, after_help = EXAMPLES, after_long_help = exit::after(EXAMPLES), max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

const GLOBAL: &str = "Global options";

/// Options of every command.
#[derive(Clone, Debug, clap::Args)]
struct Global {
    /// The operator's identity: a directory made by `tidegate-controller init`
    ///
    /// Without it: $TIDEGATE_PROFILE, then ~/.config/tidegate/default
    #[arg(long, global = true, value_name = "DIR", help_heading = GLOBAL, env = "TIDEGATE_PROFILE", hide_env_values = true)]
    profile: Option<PathBuf>,
    /// How to print data: human, json (one document) or ndjson (one object a line)
    #[arg(long, global = true, value_name = "FORMAT", help_heading = GLOBAL, default_value = "human", hide_possible_values = true)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Let hosts join
    #[command(subcommand)]
    Token(token::Token),
    /// Look after the fleet
    #[command(subcommand)]
    Host(host::Host),
    /// Pack, import and look at releases
    #[command(subcommand)]
    Release(release::Release),
    /// Move a fleet to a release
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    /// Write the six deliverables of a rollout: Markdown, HTML, JSON, JUnit XML
    #[command(after_help = papers::HELP)]
    Docs(papers::Papers),
    /// Keep rollouts from going forward
    #[command(subcommand)]
    Freeze(freeze::Freeze),
    /// Look after notification routes
    #[command(subcommand)]
    Notify(notify::Notify),
    /// Verify and copy the journal
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Print a script that completes commands on TAB
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  tidegate completions bash > /etc/bash_completion.d/tidegate
  source <(tidegate completions bash)";

/// What every command that asks the controller needs.
#[derive(Clone, Debug)]
struct Context {
    output: Output,
    profile: PathBuf,
}

impl Context {
    /// One plain request over a connection of its own.
    async fn ask(&self, request: Request) -> Result<String, ErrorDoc> {
        let link = Link::open(self).await?;
        let answer = link.ask(self, request).await;
        link.close().await;
        Ok(answer?)
    }
}

/// The whole program: arguments in, output printed, exit code out.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&args, &error),
    };
    let output = Output::new(cli.global.output);
    match dispatch(cli, output) {
        Ok(exit) => exit,
        Err(error) => {
            output.error(&error);
            Exit::from(&error)
        }
    }
}

/// `tidegate` as clap knows it: for its help and its completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Help and version are answers; everything else is an error with its own form.
fn usage(args: &[OsString], error: &clap::Error) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return Exit::Done;
    }
    // The line did not parse, but what it says about the output counts.
    let value = |arg: &OsString| arg.to_str().and_then(|a| Format::from_str(a, true).ok());
    let glued = |arg: &OsString| arg.to_str().and_then(|a| a.strip_prefix("--output=")).map(OsString::from);
    let apart = args.windows(2).find_map(|pair| pair.first().filter(|a| *a == "--output").and_then(|_| pair.get(1)).cloned());
    let format = apart.or_else(|| args.iter().find_map(glued)).and_then(|a| value(&a)).unwrap_or_default();
    if format == Format::Human {
        let _ = error.print();
    } else {
        let text = error.render().to_string();
        let mut rest = text.lines().map(str::trim).filter(|l| !l.is_empty()).peekable();
        let mut message = rest.next().unwrap_or_default().trim_start_matches("error: ").to_string();
        // "the following … were not provided:" names the thing on the next lines.
        if message.ends_with(':') {
            while let Some(thing) = rest.next_if(|line| !line.starts_with("Usage:")) {
                message = format!("{message} {thing}");
            }
        }
        let rest: Vec<&str> = rest.collect();
        Output::new(format).error(&ErrorDoc::new(ErrorCode::Usage, message).fix(rest.join("; ")));
    }
    Exit::Usage
}

fn dispatch(cli: Cli, output: Output) -> Result<Exit, ErrorDoc> {
    // What needs no controller, or files that must read first, comes first.
    let noun = match cli.noun {
        Noun::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "tidegate", &mut script);
            output.stdout(&String::from_utf8_lossy(&script))?;
            return Ok(Exit::Done);
        }
        Noun::Release(release::Release::Pack { file, out }) => return release::pack(&output, &file, &out),
        Noun::Audit(verb) => match audit::offline(&output, &verb) {
            Some(verified) => return verified,
            None => Noun::Audit(verb),
        },
        noun => noun,
    };
    let bundle = match &noun {
        Noun::Release(release::Release::Import { bundle }) => Some(release::open(&output, bundle)?),
        _ => None,
    };
    let spec = match &noun {
        Noun::Rollout(rollout) => rollout.read()?,
        _ => None,
    };
    let context = Context { output, profile: profile(cli.global.profile)? };
    block_on(async {
        match noun {
            Noun::Token(verb) => token::run(&context, verb).await,
            Noun::Host(verb) => host::run(&context, verb).await,
            Noun::Rollout(verb) => rollout::run(&context, verb, spec).await,
            Noun::Release(verb) => release::run(&context, verb, bundle).await,
            Noun::Docs(args) => papers::run(&context, args).await,
            Noun::Freeze(verb) => freeze::run(&context, verb).await,
            Noun::Notify(verb) => notify::run(&context, verb).await,
            Noun::Audit(verb) => audit::run(&context, verb).await,
            Noun::Completions { .. } => Ok(Exit::Done),
        }
    })
}

/// One thread is enough for one person's questions.
fn block_on<T>(future: impl Future<Output = Result<T, ErrorDoc>>) -> Result<T, ErrorDoc> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| ErrorDoc::new(ErrorCode::Internal, "start the runtime").cause(e.to_string()))?;
    runtime.block_on(future)
}

fn profile(given: Option<PathBuf>) -> Result<PathBuf, ErrorDoc> {
    if let Some(dir) = given.filter(|d| !d.as_os_str().is_empty()) {
        return Ok(dir);
    }
    let home = std::env::var_os("HOME").filter(|h| !h.is_empty());
    let home = home.ok_or_else(|| {
        ErrorDoc::new(ErrorCode::Usage, "no profile: $HOME is not set").fix("give it with --profile DIR or $TIDEGATE_PROFILE")
    })?;
    Ok(PathBuf::from(home).join(".config/tidegate/default"))
}

/// `30s`, for clap.
fn duration(text: &str) -> Result<Millis, String> {
    text.parse().map_err(|e: tidegate_protocol::time::BadDuration| e.to_string())
}

/// `KEY=VALUE`, for clap.
fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if label_word_ok(key, false) && label_word_ok(value, true) => Ok((key.into(), value.into())),
        _ => Err("write KEY=VALUE: letters, digits, '-', '_', '.' and '/', each starting and ending with a letter or digit".into()),
    }
}

/// `KEY=VALUE` or `KEY-`, for clap.
fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    match text.strip_suffix('-') {
        Some(key) if !text.contains('=') && label_word_ok(key, false) => Ok((key.into(), None)),
        _ => label(text).map(|(key, value)| (key, Some(value))),
    }
}
