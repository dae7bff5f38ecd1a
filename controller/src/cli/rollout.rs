//! `tidegate rollout`: plan, start, watch, and a person's word.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use tidegate_protocol::{Digest, HostName, Millis, RolloutId};
use tidegate_rollout::replay::ReplayDoc;
use tidegate_rollout::status::StatusDoc;
use tidegate_rollout::{DrillScope, RolloutState, Spec, Verb};

use super::call::Link;
use super::exit::Exit;
use super::follow::{self, Follow};
use super::handover::{self, Handover};
use super::help::{
    ACK_HELP, ATTEST_HELP, DECLARE_HELP, DRILL_HELP, EVENTS_HELP, PLAN_HELP, PROMOTE_HELP, REPLAY_HELP, START_EXAMPLES, WAIT_EXAMPLES,
    WATCH_EXAMPLES,
};
use super::log::ExecutionLog;
use super::papers;
use super::sign::{self, Sign};
use super::{Context, duration, files, gates, render};
use crate::operator::client::Part;
use crate::operator::doc::{EventDoc, ExplainDoc, PlanDoc, RolloutDoc, StartDoc};
use crate::operator::msg::{ErrorCode, ErrorDoc, Request, Until};

/// Move a fleet to a release
#[derive(Debug, Subcommand)]
pub(super) enum Rollout {
    /// Say what would happen, host by host; touches nothing
    #[command(after_help = PLAN_HELP)]
    Plan(SpecFile),
    /// Carry out a plan, and watch until it ended
    #[command(after_help = START_EXAMPLES, after_long_help = super::exit::after(START_EXAMPLES))]
    Start(Start),
    /// List rollouts, newest first
    List,
    /// Show one rollout as it is now
    Status(Id),
    /// Follow one rollout until it ended; exits as `start` would
    #[command(after_help = WATCH_EXAMPLES, after_long_help = super::exit::after(WATCH_EXAMPLES))]
    Watch {
        #[command(flatten)]
        id: Id,
        #[command(flatten)]
        until: UntilWatching,
    },
    /// Print the execution log: what happened, with its issues numbered
    #[command(after_help = EVENTS_HELP)]
    Events {
        #[command(flatten)]
        id: Id,
        /// Every record instead, one a line
        #[arg(long)]
        full: bool,
    },
    /// Wait until a rollout is in a state, or cannot come there any more
    #[command(after_help = WAIT_EXAMPLES, after_long_help = super::exit::after(WAIT_EXAMPLES))]
    Wait {
        #[command(flatten)]
        id: Id,
        /// States, or wave:N for a wave that passed
        #[arg(long = "for", value_name = "STATE[,STATE…]", required = true, value_delimiter = ',', value_parser = until)]
        states: Vec<Until>,
        /// Then exit 7
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        timeout: Option<Millis>,
    },
    /// Admit no further host; triggers stay armed
    Pause(Word),
    /// Go on after a pause
    Resume(Word),
    /// Let what was ordered end, then stop for good; hosts stay as they are
    Halt(Word),
    /// Take back what was done
    Rollback(Word),
    /// Go past the present gate: a running bake, or a verdict that is inconclusive
    #[command(after_help = PROMOTE_HELP)]
    Promote {
        #[command(flatten)]
        word: Word,
        /// Past this gate and all that follow
        #[arg(long)]
        all: bool,
    },
    /// Say that somebody looks at what is being investigated: its timer runs once more
    #[command(after_help = ACK_HELP)]
    Ack(Word),
    /// Say that something happened which no metric shows
    #[command(after_help = DECLARE_HELP)]
    Declare {
        #[command(flatten)]
        id: Id,
        /// A name that a trigger of the plan declares, or data-corruption / security-incident
        #[arg(value_name = "WHAT")]
        what: String,
        /// What was seen, for the journal
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Vouch by name for an item of the checklist, a stage of the plan or the handoff
    #[command(after_help = ATTEST_HELP)]
    Attest {
        #[command(flatten)]
        id: Id,
        /// Which, as `rollout plan`, `status` and `handoff` name it
        #[arg(long, value_name = "NAME")]
        item: String,
        /// What was looked at, for the journal
        #[arg(long, value_name = "TEXT")]
        note: String,
    },
    /// Rehearse a plan on few hosts: forward, verify, back, verify
    #[command(after_help = DRILL_HELP, after_long_help = super::exit::after(DRILL_HELP))]
    Drill(Drill),
    /// Judge a plan against what a rollout measured; touches nothing
    #[command(after_help = REPLAY_HELP)]
    Replay {
        #[command(flatten)]
        id: Id,
        #[command(flatten)]
        spec: SpecFile,
    },
    /// Say why a rollout is where it is, and what it waits for
    Explain(Id),
    #[command(flatten)]
    Sign(Sign),
    #[command(flatten)]
    Handover(Handover),
}

/// A rollout
#[derive(Debug, Args)]
pub(super) struct Id {
    /// Which, as `rollout start` printed it
    #[arg(value_name = "ID")]
    id: RolloutId,
}

#[derive(Debug, Args)]
pub(super) struct Word {
    /// Which, as `rollout start` printed it
    #[arg(value_name = "ID")]
    id: RolloutId,
    /// Why, for the journal
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct SpecFile {
    /// The plan
    #[arg(short = 'f', long = "file", value_name = "plan.toml")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct UntilWatching {
    /// Also done (exit 0) once every host is confirmed and only observed
    #[arg(long, value_name = "STATE", value_parser = ["watching"])]
    until: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Start {
    #[command(flatten)]
    spec: SpecFile,
    /// Watch until it ended (the default), or exit 3 once it waits for people; a terminal watches on without it
    #[arg(long, conflicts_with = "detach")]
    wait: bool,
    /// Print id and plan digest, and leave it to the controller
    #[arg(long, conflicts_with = "until")]
    detach: bool,
    /// Makes a repeated start harmless: the same id with the same plan attaches
    #[arg(long, value_name = "ID")]
    run_id: Option<RolloutId>,
    /// Refuse unless the plan has this digest, as `rollout plan` printed it
    #[arg(long, value_name = "DIGEST", value_parser = digest)]
    confirm: Option<Digest>,
    #[command(flatten)]
    until: UntilWatching,
}

#[derive(Debug, Args)]
pub(super) struct Drill {
    #[command(flatten)]
    spec: SpecFile,
    /// On this host of the plan
    #[arg(long, value_name = "HOST", conflicts_with = "stage")]
    host: Option<HostName>,
    /// On the hosts of the stages up to this one, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    stage: Option<u32>,
    /// Watch until it ended (this is the default)
    #[arg(long, conflicts_with = "detach")]
    wait: bool,
    /// Print id and plan digest, and leave it to the controller
    #[arg(long)]
    detach: bool,
    /// Makes a repeated start harmless: the same id with the same plan attaches
    #[arg(long, value_name = "ID")]
    run_id: Option<RolloutId>,
}

/// A file, read and checked before a controller is asked.
pub(super) struct Read {
    pub(super) text: String,
    pub(super) name: String,
}

impl Rollout {
    /// plan.toml, review.toml, a signature: of the commands that take one.
    pub(super) fn read(&self) -> Result<Option<Read>, ErrorDoc> {
        match self {
            Self::Plan(spec) | Self::Start(Start { spec, .. }) | Self::Drill(Drill { spec, .. }) | Self::Replay { spec, .. } => {
                read(&spec.file).map(Some)
            }
            Self::Sign(sign) => sign.read(),
            Self::Handover(handover) => handover.read(),
            _ => Ok(None),
        }
    }
}

fn read(file: &Path) -> Result<Read, ErrorDoc> {
    const SPEC_BYTES_MAX: u64 = 1 << 20;
    let name = file.display().to_string();
    let text = files::text(file, SPEC_BYTES_MAX, "plan.toml")?;
    Spec::parse(&text, &name).map_err(|e| {
        ErrorDoc::new(ErrorCode::Usage, e.to_string()).fix("correct it; the keys of plan.toml are in `tidegate rollout plan --help`")
    })?;
    Ok(Read { text, name })
}

pub(super) async fn run(context: &Context, verb: Rollout, spec: Option<Read>) -> Result<Exit, ErrorDoc> {
    let output = &context.output;
    let verb = match verb {
        Rollout::Sign(verb) => return sign::run(context, verb, spec).await,
        Rollout::Handover(verb) => return handover::run(context, verb, spec).await,
        verb => verb,
    };
    let spec = || spec.ok_or_else(|| ErrorDoc::new(ErrorCode::Internal, "the plan was not read"));
    match verb {
        Rollout::Sign(_) | Rollout::Handover(_) => Ok(Exit::Done),
        Rollout::Plan(_) => plan(context, spec()?).await,
        Rollout::Start(args) => start(context, spec()?, args).await,
        Rollout::List => {
            let answer = context.ask(Request::RolloutList).await?;
            output.document(&answer, |rollouts: &Vec<RolloutDoc>, color| render::rollouts(rollouts, color))?;
            Ok(Exit::Done)
        }
        Rollout::Status(Id { id }) => {
            let answer = context.ask(Request::RolloutStatus { id }).await?;
            let now = jiff::Timestamp::now();
            output.document(&answer, |doc: &StatusDoc, color| render::status_at(doc, color, Some(now)))?;
            Ok(Exit::Done)
        }
        Rollout::Drill(args) => {
            let Read { text: spec_text, name: file_name } = spec()?;
            let scope = match (args.host, args.stage) {
                (Some(host), _) => DrillScope::Host(host),
                (None, Some(stage)) => DrillScope::Stage(stage as usize),
                (None, None) => DrillScope::First,
            };
            let named = args.run_id.is_some();
            let request = Request::RolloutDrill { spec_text, file_name, run_id: args.run_id, scope };
            let patient = output.attended() && !args.wait;
            begin(context, request, Begin { named, detach: args.detach, until_watching: false, patient }).await
        }
        Rollout::Replay { id: Id { id }, .. } => {
            let Read { text: spec_text, name: file_name } = spec()?;
            let answer = context.ask(Request::RolloutReplay { id, spec_text, file_name }).await?;
            output.document(&answer, |doc: &ReplayDoc, color| gates::replay(doc, color))?;
            Ok(Exit::Done)
        }
        Rollout::Explain(Id { id }) => {
            let answer = context.ask(Request::RolloutExplain { id }).await?;
            output.document(&answer, |doc: &ExplainDoc, color| render::explain(doc, color))?;
            Ok(Exit::Done)
        }
        Rollout::Events { id: Id { id }, full } => events(context, id, full).await,
        Rollout::Watch { id: Id { id }, until } => {
            let patient = output.attended();
            follow::follow(context, Follow { id, until_watching: until.until.is_some(), patient }, None).await
        }
        Rollout::Wait { id: Id { id }, states, timeout } => follow::wait(context, &id, states, timeout).await,
        Rollout::Pause(word) => say(context, Verb::Pause, word).await,
        Rollout::Resume(word) => say(context, Verb::Resume, word).await,
        Rollout::Halt(word) => say(context, Verb::Halt, word).await,
        Rollout::Rollback(word) => say(context, Verb::Rollback, word).await,
        Rollout::Promote { word, all } => say(context, if all { Verb::PromoteAll } else { Verb::Promote }, word).await,
        Rollout::Ack(word) => say(context, Verb::Ack, word).await,
        Rollout::Declare { id: Id { id }, what, reason } => {
            spoken(context, &id, Request::RolloutDeclare { id: id.clone(), what, reason }).await
        }
        Rollout::Attest { id: Id { id }, item, note } => spoken(context, &id, Request::RolloutAttest { id: id.clone(), item, note }).await,
    }
}

async fn plan(context: &Context, spec: Read) -> Result<Exit, ErrorDoc> {
    let answer = context.ask(Request::RolloutPlan { spec_text: spec.text, file_name: spec.name }).await?;
    context.output.document(&answer, |doc: &PlanDoc, color| render::plan(doc, color))?;
    let doc: PlanDoc = super::output::read(&answer)?;
    Ok(if doc.refused_because.is_empty() { Exit::Done } else { Exit::Refused })
}

async fn start(context: &Context, spec: Read, args: Start) -> Result<Exit, ErrorDoc> {
    let named = args.run_id.is_some();
    let request = Request::RolloutStart { spec_text: spec.text, file_name: spec.name, run_id: args.run_id, confirm: args.confirm };
    let patient = context.output.attended() && !args.wait;
    begin(context, request, Begin { named, detach: args.detach, until_watching: args.until.until.is_some(), patient }).await
}

/// How something is started.
struct Begin {
    /// Asking again attaches to it.
    named: bool,
    /// Not watched.
    detach: bool,
    until_watching: bool,
    /// Watched on while people are waited for.
    patient: bool,
}

/// Starts something and watches it.
async fn begin(context: &Context, request: Request, how: Begin) -> Result<Exit, ErrorDoc> {
    let Begin { named, detach, until_watching, patient } = how;
    let link = Link::open(context).await?;
    let answer = link.ask(context, request).await.map_err(|trouble| {
        let lost = trouble.is_lost();
        let error = ErrorDoc::from(trouble);
        match (lost, named) {
            (false, _) => error,
            (true, true) => error.fix("run the same command again: with the same --run-id it attaches to what was started"),
            (true, false) => {
                error.fix("it may have started: look at `tidegate rollout list` before trying again, and use --run-id next time")
            }
        }
    })?;
    let doc: StartDoc = super::output::read(&answer)?;
    if detach {
        context.output.document(&answer, |doc: &StartDoc, _| format!("{} {}\n", doc.id, doc.plan_digest))?;
        return Ok(Exit::Done);
    }
    let how = if doc.attached { "runs already; watching it" } else { "started" };
    context.output.note(&format!("rollout {} {how} (plan {})", doc.id, doc.plan_digest.short()));
    follow::follow(context, Follow { id: doc.id, until_watching, patient }, Some(link)).await
}

async fn events(context: &Context, id: RolloutId, full: bool) -> Result<Exit, ErrorDoc> {
    use super::output::Format;
    let output = &context.output;
    match output.format {
        Format::Ndjson => {
            let link = Link::open(context).await?;
            each_event(context, &link, &id, |line| output.line(&line)).await?;
            link.close().await;
        }
        Format::Json => {
            let lines = held_events(context, &id).await?;
            output.document(&format!("[{}]", lines.join(",")), |_: &Vec<EventDoc>, _| String::new())?;
        }
        Format::Human => {
            let text = match execution_log(context, &id, full).await {
                Ok(log) => log.render(&id, output.color()),
                Err(trouble) => {
                    let events = all_events(context, id).await?;
                    if let Some(trouble) = trouble {
                        output.note(&format!("showing every record: {trouble}"));
                    }
                    render::events(&events, output.color())
                }
            };
            output.stdout(&text)?;
        }
    }
    Ok(Exit::Done)
}

/// As the deliverable has it; else why not, if it was wanted. A controller that
/// cannot write papers still tells what happened, record by record.
async fn execution_log(context: &Context, id: &RolloutId, full: bool) -> Result<ExecutionLog, Option<String>> {
    if full {
        return Err(None);
    }
    let papers = papers::all(context, id.clone()).await.map_err(|error| Some(error.message))?;
    let paper = papers.iter().find(|p| p.name.starts_with("2-") && p.name.ends_with(".json"));
    let log = paper.and_then(|p| ExecutionLog::read(&p.text));
    log.ok_or_else(|| Some("its papers have no execution log that this version reads".into()))
}

/// Every event of a rollout so far, oldest first.
pub(super) async fn all_events(context: &Context, id: RolloutId) -> Result<Vec<EventDoc>, ErrorDoc> {
    held_events(context, &id).await?.iter().map(|line| super::output::read(line)).collect()
}

async fn held_events(context: &Context, id: &RolloutId) -> Result<Vec<String>, ErrorDoc> {
    // A journal of a long rollout on a large fleet stays below this.
    const EVENTS_MAX: usize = 2_000_000;
    let link = Link::open(context).await?;
    let mut lines = Vec::new();
    each_event(context, &link, id, |line| {
        if lines.len() >= EVENTS_MAX {
            return Err(ErrorDoc::new(ErrorCode::Internal, "too many events to hold").fix("use --output ndjson"));
        }
        lines.push(line);
        Ok(())
    })
    .await?;
    link.close().await;
    Ok(lines)
}

async fn each_event(
    context: &Context,
    link: &Link,
    id: &RolloutId,
    mut take: impl FnMut(String) -> Result<(), ErrorDoc>,
) -> Result<(), ErrorDoc> {
    let mut answers = link.stream(context, &Request::RolloutEvents { id: id.clone() }).await?;
    loop {
        match answers.next().await? {
            Part::Event(line) => take(line)?,
            Part::Document(_) => {}
            Part::End(_) => return Ok(()),
        }
    }
}

async fn say(context: &Context, verb: Verb, word: Word) -> Result<Exit, ErrorDoc> {
    let id = word.id.clone();
    spoken(context, &id, Request::RolloutVerb { id: word.id, verb, reason: word.reason }).await
}

/// A person's word, and where the rollout stands then.
pub(super) async fn spoken(context: &Context, id: &RolloutId, request: Request) -> Result<Exit, ErrorDoc> {
    let answer = context.ask(request).await?;
    context.output.document(&answer, |doc: &StatusDoc, color| render::state_line(doc, color))?;
    let doc: StatusDoc = super::output::read(&answer)?;
    if !doc.state.is_terminal() {
        context.output.note(&format!("it goes on; `tidegate rollout watch {id}` follows it"));
    }
    Ok(Exit::Done)
}

fn until(text: &str) -> Result<Until, String> {
    if let Some(wave) = text.strip_prefix("wave:") {
        return wave.parse().ok().filter(|n| *n > 0).map(Until::Wave).ok_or_else(|| "write wave:N, N from 1".to_string());
    }
    text.parse().map(Until::State).map_err(|()| {
        let words: Vec<&str> = RolloutState::ALL.iter().map(|s| s.word()).collect();
        format!("no such state; states are {} and wave:N", words.join(", "))
    })
}

pub(super) fn digest(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|e: tidegate_protocol::digest::BadDigest| e.to_string())
}
