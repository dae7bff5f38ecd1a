//! The command line of `tidegate-agent`.
//!
//! Owns: what the words mean, where output goes (data to stdout, logs and
//! progress to stderr) and the exit codes (0 done, 1 error, 2 usage).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tidegate_net::Token;

use crate::config::{Config, split_address};
use crate::error::{Exit, chain};
use crate::{daemon, enroll, launch, logs, paths, status};

/// Threads for blocking work: two writers of artifacts, and hashing beside them.
const BLOCKING_THREADS: usize = 8;
/// An idle agent keeps one thread.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Tidegate's agent: one per host.
#[derive(Debug, Parser)]
#[command(name = "tidegate-agent", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Joins a fleet: makes a key on this host and gets a certificate for it.
    Enroll {
        /// Keep everything (agent.toml, identity, state, releases) below this directory.
        #[arg(long)]
        dir: Option<PathBuf>,
        /// The controller to join.
        #[arg(long, value_name = "HOST:PORT", value_parser = address)]
        controller: String,
        /// As `tidegate token create` printed it.
        #[arg(long, env = "TIDEGATE_TOKEN", hide_env_values = true)]
        token: Token,
        /// This host's name in the fleet; default: the machine's name.
        #[arg(long)]
        name: Option<String>,
        /// For `${var.K}` in releases; may be given several times.
        #[arg(long = "var", value_name = "K=V", value_parser = pair)]
        vars: Vec<(String, String)>,
        /// Replace an identity that is there.
        #[arg(long)]
        force: bool,
        /// How to print what came of it.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Runs the agent; SIGTERM ends it and leaves services running.
    Run {
        /// Local policy of this host.
        #[arg(long, value_name = "FILE", default_value = paths::SYSTEM_CONFIG)]
        config: PathBuf,
        /// Only read the configuration, and say whether it is good.
        #[arg(long)]
        check_config: bool,
    },
    /// Tells what runs on this host; needs neither controller nor daemon.
    Status {
        /// Local policy of this host.
        #[arg(long, value_name = "FILE", default_value = paths::SYSTEM_CONFIG)]
        config: PathBuf,
        /// How to print it.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Becomes a supervised service; used by the agent itself.
    #[command(hide = true)]
    Launch(launch::Args),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Human,
    /// One document.
    Json,
    /// One document a line.
    Ndjson,
}

fn address(text: &str) -> Result<String, String> {
    split_address(text).map(|_| text.to_owned()).ok_or_else(|| "HOST:PORT is wanted, for example ctl1.example:7443".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is wanted")?;
    let good = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-');
    if good {
        Ok((name.to_owned(), value.to_owned()))
    } else {
        Err("a name of letters, digits, '-' and '_' is wanted before the '='".to_owned())
    }
}

/// Runs the program; returns its exit code. The command line's own mistakes end
/// the process with code 2.
#[must_use]
pub fn main() -> u8 {
    let cli = Cli::parse();
    let json = match &cli.command {
        Command::Enroll { output, .. } | Command::Status { output, .. } => *output != Output::Human,
        Command::Run { .. } | Command::Launch(_) => false,
    };
    match perform(cli.command) {
        Ok(code) => code,
        Err(exit) => {
            if json {
                let code = if exit.code() == 2 { "usage" } else { "error" };
                let error = serde_json::json!({ "code": code, "message": exit.to_string(), "cause": null, "fix": null });
                let _ = writeln!(std::io::stdout(), "{}", serde_json::json!({ "schema": 1, "error": error }));
            }
            let _ = writeln!(std::io::stderr(), "tidegate-agent: {exit}");
            exit.code()
        }
    }
}

fn perform(command: Command) -> Result<u8, Exit> {
    // Releases are read by services of other users, whatever the caller's mask;
    // what is private is made so by its mode.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    match command {
        Command::Launch(args) => Ok(launch::run(&args)),
        Command::Enroll { dir, controller, token, name, vars, force, output } => {
            let vars: BTreeMap<String, String> = vars.into_iter().collect();
            let request = enroll::Request { dir, controller, token, name, vars, force };
            let enrolled = runtime()?.block_on(enroll::enroll(request))?;
            let (host, config) = (enrolled.host, enrolled.paths.config);
            print(&match output {
                Output::Human => format!("enrolled as {host}; start it with: tidegate-agent run --config {}\n", config.display()),
                Output::Json | Output::Ndjson => format!("{}\n", serde_json::json!({ "schema": 1, "host": host, "config": config })),
            })
        }
        Command::Run { config, check_config } => {
            let config = load(&config)?;
            if check_config {
                return print(&format!("{}: good\n", config.paths.config.display()));
            }
            logs::begin();
            let runtime = runtime()?;
            let ended = runtime.block_on(daemon::run(config));
            // Blocking threads that still hash are not waited for: the next start goes on.
            runtime.shutdown_background();
            ended.map(|()| 0)
        }
        Command::Status { config, output } => {
            let config = load(&config)?;
            let status = runtime()?.block_on(status::look(&config)).map_err(|e| Exit::error(&e))?;
            let text = match output {
                Output::Human => Ok(status::human(&status)),
                Output::Json => serde_json::to_string_pretty(&status).map(|t| t + "\n"),
                Output::Ndjson => serde_json::to_string(&status).map(|t| t + "\n"),
            };
            print(&text.map_err(|e| Exit::error(&e))?)
        }
    }
}

fn load(config: &Path) -> Result<Config, Exit> {
    Config::load(config).map_err(|error| Exit::Usage(chain(&error)))
}

fn print(text: &str) -> Result<u8, Exit> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Exit::error(&e))?;
    Ok(0)
}

fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(BLOCKING_THREADS).thread_keep_alive(KEEP_ALIVE);
    builder.build().map_err(|e| Exit::error(&e))
}
