//! Services that a component's own commands start, stop and tell about.
//!
//! They run with the agent's own rights, for a service manager needs them: they
//! come from the signed release or are names that the host itself defines.

use std::time::Duration;

use tidegate_protocol::report::{Cause, Failure};

use super::{Process, Status};
use crate::context::{Context, Installed};
use crate::durable::make_dir;
use crate::error::{chain, failure};
use crate::exec::{self, Mode, Ran};

/// A service manager may wait for a slow service.
const CHANGE: Duration = Duration::from_secs(90);
/// Telling how it stands is quick.
const TELL: Duration = Duration::from_secs(10);

/// Stops it if it runs, and starts it.
pub(super) async fn restart(ctx: &Context, installed: &Installed, runs: bool, start: &[String], stop: &[String]) -> Result<(), Failure> {
    if runs {
        self::stop(ctx, installed, stop).await?;
    }
    change(ctx, installed, "start", start).await
}

pub(super) async fn stop(ctx: &Context, installed: &Installed, stop: &[String]) -> Result<(), Failure> {
    change(ctx, installed, "stop", stop).await
}

/// Exit 0 and the main PID on stdout; any other exit says that it does not run.
pub(super) async fn status(ctx: &Context, installed: &Installed, status: &[String]) -> Result<Status, Failure> {
    let ran = run(ctx, installed, "status", status, Mode::Manager, TELL).await?;
    if !ran.success {
        return Ok(Status::default());
    }
    let main = ran.stdout.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty());
    let Some(pid) = main.and_then(|word| word.parse().ok()) else {
        return Err(failure(
            Cause::StartFailed,
            &format!("service.command.status of {}: exit code 0 without the main PID on stdout", installed.title()),
        ));
    };
    // A stale PID file is a service that does not run.
    let main = Process::find(pid);
    Ok(Status { active: main.is_some(), main, restarts: 0 })
}

async fn change(ctx: &Context, installed: &Installed, what: &str, argv: &[String]) -> Result<(), Failure> {
    let log = ctx.state_dir.join("logs").join(format!("{}.{what}.log", installed.slot()));
    if let Some(dir) = log.parent() {
        make_dir(dir, 0o750).map_err(|e| failure(Cause::Disk, &format!("cannot make {}: {e}", dir.display())))?;
    }
    let ran = run(ctx, installed, what, argv, Mode::Daemonising(&log), CHANGE).await?;
    if ran.success {
        return Ok(());
    }
    let said = if ran.output.is_empty() { String::new() } else { format!("; it said: {}", ran.output) };
    Err(failure(Cause::StartFailed, &format!("service.command.{what} of {}: {}{said}", installed.title(), ran.end)))
}

async fn run(ctx: &Context, installed: &Installed, what: &str, argv: &[String], mode: Mode<'_>, timeout: Duration) -> Result<Ran, Failure> {
    exec::run(ctx, installed, argv, mode, timeout)
        .await
        .map_err(|e| failure(Cause::StartFailed, &format!("service.command.{what} of {}: {}", installed.title(), chain(&e))))
}
