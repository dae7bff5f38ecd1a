//! What a command said and how it ended.

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Exit code and both streams of a command that ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Logs and progress.
    pub stderr: String,
}

impl Output {
    /// Runs `command` to its end.
    ///
    /// # Errors
    /// It does not start, or does not end within `timeout` (then it is killed).
    pub fn of(mut command: Command, timeout: Duration) -> anyhow::Result<Self> {
        let line = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {line}"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("its pid")?;
        let (send, receive) = mpsc::channel();
        thread::spawn(move || send.send(child.wait_with_output()));
        let output = match receive.recv_timeout(timeout) {
            Ok(output) => output.with_context(|| format!("running {line}"))?,
            Err(_) => {
                let _ = kill_process(pid, Signal::KILL);
                let said = receive.recv_timeout(Duration::from_secs(5)).ok().and_then(Result::ok);
                let text = |bytes: fn(&std::process::Output) -> &Vec<u8>| {
                    said.as_ref().map(|said| String::from_utf8_lossy(bytes(said)).into_owned()).unwrap_or_default()
                };
                bail!("{line} did not end within {timeout:?}; stdout: {}\nstderr: {}", text(|o| &o.stdout), text(|o| &o.stderr));
            }
        };
        Ok(Self {
            command: line,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// This output, if it ended with `code`.
    ///
    /// # Errors
    /// Another code; the message holds everything that was said.
    pub fn expect_code(self, code: i32) -> anyhow::Result<Self> {
        ensure!(self.code == code, "exit code {} where {code} is due: {self}", self.code);
        Ok(self)
    }

    /// stdout as one JSON document.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("stdout is not one JSON document: {self}"))
    }

    /// stdout as one JSON document per line.
    ///
    /// # Errors
    /// A line is none.
    pub fn ndjson(&self) -> anyhow::Result<Vec<Value>> {
        let parse = |line| serde_json::from_str(line).with_context(|| format!("{line:?} is not JSON: {self}"));
        self.stdout.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
    }

    /// Everything that it said, for "the error names the thing".
    #[must_use]
    pub fn said(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// Checks that something it said contains `needle`.
    ///
    /// # Errors
    /// It did not say so.
    pub fn expect_said(&self, needle: &str) -> anyhow::Result<&Self> {
        ensure!(self.said().contains(needle), "{needle:?} is not in what it said: {self}");
        Ok(self)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "$ {}\n(exit code {})\n--- stdout\n{}\n--- stderr\n{}", self.command, self.code, self.stdout, self.stderr)
    }
}
