//! Processes that a fleet starts: each with its log file, none left behind.
//!
//! Owns: starting with output to a file, SIGKILL and SIGTERM with a bound, and
//! finding every process that lives below a directory, whoever started it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{Look, wait_until};

/// How long a process may take to end after it was told to.
const END_WITHIN: Duration = Duration::from_secs(20);

/// A running program; SIGKILLed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`, in a process group of
    /// its own, so that a Ctrl-C in the terminal reaches only the harness.
    ///
    /// # Errors
    /// The log file or the program does not open.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let out = open_log(log)?;
        let err = out.try_clone().context("the log file, twice")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name} ({})", command.get_program().to_string_lossy()))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// The system call fails.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("asking after {}", self.name))
    }

    /// SIGKILL to this process alone, and waits for its end.
    ///
    /// # Errors
    /// The system call fails.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).with_context(|| format!("killing {}", self.name))?;
        Ok(())
    }

    /// A signal to this process alone.
    ///
    /// # Errors
    /// The system call fails.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("its pid")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_end(END_WITHIN)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait_end(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let name = self.name.clone();
        wait_until(&format!("{name} ends"), within, || Ok(Look::from_option(self.ended()?, || "it runs".to_owned())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn open_log(log: &Path) -> anyhow::Result<File> {
    OpenOptions::new().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))
}

/// Every live process whose executable, working directory or an argument lies
/// below `dir`, besides this one and those in `except`. A zombie has none of
/// them, so it is not counted.
#[must_use]
pub fn below(dir: &Path, except: &[u32]) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != std::process::id() && !except.contains(&pid)))
        .filter(|pid| lives_below(*pid, dir))
        .filter_map(Pid::from_raw)
        .collect()
}

fn lives_below(pid: i32, dir: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let linked = |name: &str| fs::read_link(proc.join(name)).is_ok_and(|to| to.starts_with(dir));
    linked("exe") || linked("cwd") || names(&proc.join("cmdline"), dir)
}

fn names(cmdline: &Path, dir: &Path) -> bool {
    let Ok(bytes) = fs::read(cmdline) else { return false };
    bytes.split(|byte| *byte == 0).any(|word| std::str::from_utf8(word).is_ok_and(|word| Path::new(word).starts_with(dir)))
}

/// SIGKILLs everything [`below`] `dir` until nothing is left.
///
/// # Errors
/// Something survives.
pub fn kill_below(dir: &Path, except: &[u32]) -> anyhow::Result<()> {
    wait_until(&format!("nothing runs below {}", dir.display()), END_WITHIN, || {
        let left = below(dir, except);
        for pid in &left {
            // It may have ended in between.
            let _ = kill_process(*pid, Signal::KILL);
        }
        Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(format!("{left:?}")) })
    })
}

/// A process that outlives this one, even if this one is SIGKILLed, just long
/// enough to kill what lives below a directory and to remove it.
#[derive(Debug)]
pub struct Reaper {
    child: Child,
}

impl Reaper {
    /// Starts `program` (the `fleet-reaper` of this package) for `dir`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(program: &Path, dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).current_dir("/").process_group(0);
        Ok(Self { child: command.spawn().with_context(|| format!("starting {}", program.display()))? })
    }

    /// Its process id, which names the directory on its command line.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to clean up now, and waits for that. With `keep` the directory
    /// stays, for a person to look at.
    ///
    /// # Errors
    /// Something survived.
    pub fn finish(mut self, keep: bool) -> anyhow::Result<()> {
        if let (true, Some(stdin)) = (keep, self.child.stdin.as_mut()) {
            let _ = stdin.write_all(b"keep\n");
        }
        drop(self.child.stdin.take());
        let status = self.child.wait().context("waiting for the reaper")?;
        if !status.success() {
            bail!("the reaper ended with {status}");
        }
        Ok(())
    }
}

/// What the program `fleet-reaper` does: waits until stdin ends.
///
/// # Errors
/// Something survives, or the directory stays.
pub fn reap(dir: &Path) -> anyhow::Result<()> {
    let mut told = String::new();
    // However the pipe ends, whoever held it is gone or wants this done.
    let _ = std::io::stdin().take(64).read_to_string(&mut told);
    kill_below(dir, &[])?;
    if told.trim() != "keep" {
        writable(dir);
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

/// Release trees are read-only, directories too: nobody but root could remove them.
fn writable(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            writable(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_below_a_directory_is_found_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("600").current_dir(dir.path());
        let mut process = Process::start("sleep", sleep, &dir.path().join("log")).unwrap();
        assert_eq!(below(dir.path(), &[]).len(), 1);
        assert_eq!(below(dir.path(), &[process.pid()]).len(), 0);
        kill_below(dir.path(), &[]).unwrap();
        assert!(!process.wait_end(END_WITHIN).unwrap().success());
    }
}
