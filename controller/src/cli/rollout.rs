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
use super::{Context, duration, gates, render};
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
    /// Print what happened, oldest first
    Events(Id),
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
    /// Vouch by name for an item that a stage of the plan asks for
    #[command(after_help = ATTEST_HELP)]
    Attest {
        #[command(flatten)]
        id: Id,
        /// Which, as the stage's `attest` names it
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
    /// Watch until it ended (this is the default)
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

const DRILL_HELP: &str = "\
Without --host or --stage: the first host of each component. Bakes and gates are left out, triggers are armed. The
journal keeps how long both ways took. Exits 0 when the release went forward, was verified, went back and was verified
again; 4 when it did not pass and every host runs what it ran before.

Examples:
  tidegate rollout drill -f plan.toml
  tidegate rollout drill -f plan.toml --host web-1
  tidegate rollout drill -f plan.toml --stage 1 --output ndjson | jq 'select(.kind == \"drilled\").record'";

const REPLAY_HELP: &str = "\
Takes the values that the rollout's journal holds and says what the gates and triggers of this plan.toml would have made
of them: a way to tune limits before they count. Only what was measured then can be judged.

Examples:
  tidegate rollout replay shop-1 -f stricter.toml";

const PROMOTE_HELP: &str = "\
A gate that says fail, or whose source cannot be read, is not passed by a word: roll back, or mend the source.
The journal keeps who said it and why; the wave is shown as overridden. Triggers stay armed.
With blue-green and switch_mode = \"manual\", this is the word that moves the traffic.

Examples:
  tidegate rollout promote shop-1 --reason \"low traffic at night, looked at the logs\"
  tidegate rollout promote shop-1 --all --reason \"hotfix, CR-1042\"";

const ACK_HELP: &str = "\
A trigger with action \"investigate\" pauses the rollout and rolls it back when its time is over. `ack` starts that
time anew, once. Then decide: `resume` goes on, `rollback` goes back.

Examples:
  tidegate rollout ack shop-1 --reason \"I look at the latency\"";

const DECLARE_HELP: &str = "\
What follows is written in the plan: [[rollback]] when = \"declared NAME\" with an action. data-corruption and
security-incident need no trigger: both are emergencies when the plan does not say otherwise, and all hosts go back
at once.

Examples:
  tidegate rollout declare shop-1 data-corruption --reason \"orders have negative totals\"
  tidegate rollout declare shop-1 security-incident --reason \"token in the access log\"";

const ATTEST_HELP: &str = "\
Examples:
  tidegate rollout attest shop-1 --item no-customer-complaints --note \"ticket queue of the last hour is empty\"";

const PLAN_HELP: &str = "\
plan.toml:
  release = \"shop@2.1.0\"
  environment = \"production\"                     # optional: hosts with another label env are left out
  hosts = { api = \"role=api\" }                   # a selector per component
  strategy = \"rolling\"                           # or big-bang, canary, blue-green
  batch = \"10%\"                                  # rolling: hosts at a time; big-bang: max_hosts = 10
  success = [\"error_rate < 0.1%\", \"latency_p99 within 10% of baseline\", \"no_degradation\"]
  bake = \"10m\"                                   # observation before the criteria decide
  on_unreachable = \"fail\"                        # or wait, skip
  [limits]                                       # all optional
  max_parallel = \"25%\"
  max_failed_hosts = 0                           # beyond it everything is rolled back
  min_healthy = \"66%\"
  healthy_deadline = \"5m\"
  confirm_within = \"120s\"
  rollback_parallel = \"50%\"
  [[stage]]                                      # canary; omitted = 5% 30m, 25% 1h, 75% 2h, 100% watched 24h
  name = \"Canary\"
  percent = 5
  bake = \"30m\"
  success = [\"error_rate < 0.1%\", \"critical_errors == 0\"]
  [[rollback]]                                   # triggers; omitted = the built-in ones that have a source
  when = \"error_rate > 1%\"                      # or: declared data-corruption
  action = \"rollback\"                           # or investigate (after = \"15m\"), emergency
  [metrics.error_rate]                           # sources: probe, scrape, prometheus, alertmanager, host, journal, exec
  source = \"prometheus\"
  url = \"https://prom.example\"                  # beyond loopback: [sources.\"https://…\"] of controller.toml
  query = 'sum(rate(errors{host=~\"$hosts\"}[2m])) / sum(rate(requests{host=~\"$hosts\"}[2m]))'
  unit = \"ratio\"
  [[perf]]                                       # Expected / Actual in status
  metric = \"latency_p99\"
  max = \"500ms\"

Exits 5 if `start` would refuse the plan now, and says why.

Examples:
  tidegate rollout plan -f plan.toml
  tidegate rollout start -f plan.toml --confirm $(tidegate rollout plan -f plan.toml --output json | jq -r .plan_digest)";

const START_EXAMPLES: &str = "\
Progress goes to stderr, how it ended to stdout. Ctrl-C ends the watching (exit 7), never the rollout.

Examples:
  tidegate rollout start -f plan.toml
  tidegate rollout start -f plan.toml --run-id build-1042 --output json > result.json
  ID=$(tidegate rollout start -f plan.toml --detach --output json | jq -r .id)";

const WATCH_EXAMPLES: &str = "\
Examples:
  tidegate rollout watch shop-1
  tidegate rollout watch shop-1 --output ndjson | jq -r 'select(.host) | [.host, .message] | @tsv'";

const WAIT_EXAMPLES: &str = "\
States: awaiting-approval scheduled running paused baking watching rolling-back
        completed rolled-back mixed halted refused

Examples:
  tidegate rollout wait shop-1 --for completed --timeout 30m
  tidegate rollout wait shop-1 --for wave:2,rolled-back";

/// What `start` needs, read and checked before a controller is asked.
pub(super) struct Read {
    text: String,
    name: String,
}

impl Rollout {
    /// plan.toml of the commands that take one.
    pub(super) fn read(&self) -> Result<Option<Read>, ErrorDoc> {
        match self {
            Self::Plan(spec) | Self::Start(Start { spec, .. }) | Self::Drill(Drill { spec, .. }) | Self::Replay { spec, .. } => {
                read(&spec.file).map(Some)
            }
            _ => Ok(None),
        }
    }
}

fn read(file: &Path) -> Result<Read, ErrorDoc> {
    const SPEC_BYTES_MAX: u64 = 1 << 20;
    let name = file.display().to_string();
    let cannot = |e: std::io::Error| {
        ErrorDoc::new(ErrorCode::Usage, format!("read {name}")).cause(e.to_string()).fix("check that the path is right and readable")
    };
    if std::fs::metadata(file).map_err(cannot)?.len() > SPEC_BYTES_MAX {
        return Err(ErrorDoc::new(ErrorCode::Usage, format!("{name}: over 1 MiB: this is not a plan.toml")));
    }
    let text = std::fs::read_to_string(file).map_err(cannot)?;
    Spec::parse(&text, &name).map_err(|e| {
        ErrorDoc::new(ErrorCode::Usage, e.to_string()).fix("correct it; the keys of plan.toml are in `tidegate rollout plan --help`")
    })?;
    Ok(Read { text, name })
}

pub(super) async fn run(context: &Context, verb: Rollout, spec: Option<Read>) -> Result<Exit, ErrorDoc> {
    let output = &context.output;
    let spec = || spec.ok_or_else(|| ErrorDoc::new(ErrorCode::Internal, "the plan was not read"));
    match verb {
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
            begin(context, request, named, args.detach, false).await
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
        Rollout::Events(Id { id }) => events(context, id).await,
        Rollout::Watch { id: Id { id }, until } => {
            follow::follow(context, Follow { id, until_watching: until.until.is_some() }, None).await
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
    begin(context, request, named, args.detach, args.until.until.is_some()).await
}

/// Starts something and watches it. `named`: asking again attaches to it.
async fn begin(context: &Context, request: Request, named: bool, detach: bool, until_watching: bool) -> Result<Exit, ErrorDoc> {
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
    follow::follow(context, Follow { id: doc.id, until_watching }, Some(link)).await
}

async fn events(context: &Context, id: RolloutId) -> Result<Exit, ErrorDoc> {
    use super::output::Format;
    // A journal of a long rollout on a large fleet stays below this.
    const EVENTS_MAX: usize = 2_000_000;
    let link = Link::open(context).await?;
    let mut answers = link.stream(context, &Request::RolloutEvents { id }).await?;
    let mut lines = Vec::new();
    loop {
        match answers.next().await? {
            Part::Event(line) if context.output.format == Format::Ndjson => context.output.line(&line)?,
            Part::Event(line) if lines.len() < EVENTS_MAX => lines.push(line),
            Part::Event(_) => return Err(ErrorDoc::new(ErrorCode::Internal, "too many events to hold").fix("use --output ndjson")),
            Part::Document(_) => {}
            Part::End(_) => break,
        }
    }
    if context.output.format != Format::Ndjson {
        let array = format!("[{}]", lines.join(","));
        context.output.document(&array, |events: &Vec<EventDoc>, color| render::events(events, color))?;
    }
    Ok(Exit::Done)
}

async fn say(context: &Context, verb: Verb, word: Word) -> Result<Exit, ErrorDoc> {
    let id = word.id.clone();
    spoken(context, &id, Request::RolloutVerb { id: word.id, verb, reason: word.reason }).await
}

/// A person's word, and where the rollout stands then.
async fn spoken(context: &Context, id: &RolloutId, request: Request) -> Result<Exit, ErrorDoc> {
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

fn digest(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|e: tidegate_protocol::digest::BadDigest| e.to_string())
}
