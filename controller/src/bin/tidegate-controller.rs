//! The controller's daemon: arguments, logs, exit codes. All else is the library's.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate_controller::config::Config;
use tidegate_controller::error::DaemonError;
use tidegate_controller::{daemon, init};
use tracing_subscriber::EnvFilter;

/// Sequences rollouts over a fleet, gates them on evidence, takes them back.
#[derive(Debug, Parser)]
#[command(name = "tidegate-controller", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the CA, the controller's identity, controller.toml and the first operator's profile
    Init {
        /// Where; must not exist, or be empty
        #[arg(long)]
        dir: PathBuf,
        /// What agents and operators dial: DNS names or IP addresses, separated by commas
        #[arg(long, value_name = "HOST[,IP…]", value_delimiter = ',', required = true)]
        name: Vec<String>,
        /// Where the controller listens; port 0 takes a free one, which then stands in DIR/listening
        #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:7443")]
        listen: SocketAddr,
    },
    /// Runs the controller until SIGTERM
    Serve {
        /// As `init` made it
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Reads the configuration, CA and identity, and ends
        #[arg(long)]
        check_config: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("TIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info,quinn=warn,rustls=warn"));
    let terminal = std::io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).with_target(false);
    // journald stamps each line itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init()
    } else {
        log.init()
    }

    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", error.chain());
            ExitCode::from(error.exit())
        }
    }
}

fn run(command: Command) -> Result<(), DaemonError> {
    match command {
        Command::Init { dir, name, listen } => {
            init::init(&dir, &name, listen)?;
            let dir = dir.display();
            println!("made {dir}");
            println!("start it:    tidegate-controller serve --config {dir}/controller.toml");
            println!("operate it:  export TIDEGATE_PROFILE={dir}/operators/admin");
            Ok(())
        }
        Command::Serve { config, check_config } => {
            let config = Config::load(&config)?;
            if check_config { daemon::check(&config) } else { daemon::serve(&config) }
        }
    }
}
