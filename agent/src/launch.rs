//! `tidegate-agent launch`: becomes a supervised service.
//!
//! The agent starts itself with this hidden subcommand; it leaves the agent's
//! session, points its output at the log file, gives up privileges and executes
//! the service, so the service's pid is known from the start and the agent's end
//! does not touch it. Must not: do anything else, nor return when all goes well.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;

/// The exit code when the service could not be executed.
pub const NOT_LAUNCHED: u8 = 127;

/// `launch --log FILE [--uid N --gid N] -- PROGRAM [ARGUMENT…]`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Appended to; made if it is not there.
    #[arg(long)]
    log: PathBuf,
    /// The user to become.
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    /// The group to become.
    #[arg(long, requires = "uid")]
    gid: Option<u32>,
    /// What to execute.
    #[arg(last = true, required = true)]
    argv: Vec<OsString>,
}

/// Executes the service in place of this process. Environment and directory are
/// passed on as they are. Returns only on failure, with the exit code, after the
/// reason was written to the log.
#[must_use]
pub fn run(args: &Args) -> u8 {
    // Refused only for the leader of a process group, which is apart already.
    if let Err(error) = rustix::process::setsid() {
        say(io::stderr(), &format!("cannot begin a session: {error}"));
    }
    let log = match OpenOptions::new().append(true).create(true).mode(0o640).open(&args.log) {
        Ok(log) => log,
        Err(error) => {
            say(io::stderr(), &format!("cannot open {}: {error}", args.log.display()));
            return NOT_LAUNCHED;
        }
    };
    let error = match outputs(&log) {
        Ok((out, err)) => execute(args, out, err),
        Err(error) => error,
    };
    let program = args.argv.first().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    say(log, &format!("cannot execute {program}: {error}"));
    NOT_LAUNCHED
}

fn outputs(log: &File) -> io::Result<(File, File)> {
    Ok((log.try_clone()?, log.try_clone()?))
}

fn execute(args: &Args, out: File, err: File) -> io::Error {
    let Some((program, rest)) = args.argv.split_first() else { return io::ErrorKind::InvalidInput.into() };
    let mut command = std::process::Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(out).stderr(err);
    if let (Some(uid), Some(gid)) = (args.uid, args.gid) {
        // As root this also drops the supplementary groups.
        command.uid(uid).gid(gid);
    }
    command.exec()
}

/// There is nobody else to tell when this fails too.
fn say(mut to: impl Write, message: &str) {
    drop(writeln!(to, "tidegate-agent launch: {message}"));
}
