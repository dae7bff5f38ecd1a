//! Commands of a release on this host: no shell, no privileges, a bounded time,
//! bounded output, and nothing of them left when they end.
//!
//! Owns: which programs may run at all (a file of the tree, or a name that local
//! policy defines), as which user, and killing them whole. Must not: know what a
//! command is for.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal};
use tidegate_protocol::report::{Cause, Failure};
use tidegate_protocol::template::BadTemplate;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;

use crate::context::{Context, Installed};
use crate::error::{chain, failure};
use crate::service::{Process, ended, raw};

/// Output kept of one command, its end.
pub const OUTPUT_BYTES_MAX: usize = 8 * 1024;
/// Private writable memory of an unprivileged command, bytes.
pub const DATA_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// The search path that commands get.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the pipes may still hold is read for so long after the end.
const DRAIN: Duration = Duration::from_millis(200);

/// A command that could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// A `${…}` names nothing.
    #[error(transparent)]
    Template(#[from] BadTemplate),
    /// Neither a file of the tree nor a name of `[commands]`.
    #[error(
        "{program:?} is neither a file of the release nor a name in [commands] of agent.toml: ship it in the tree, or define the name on the host"
    )]
    NotAllowed {
        /// The first element of the argv.
        program: String,
    },
    /// A file of the tree without its execute bit.
    #[error("{program:?} of the release is not executable: set its mode to 555 before it is packed")]
    NotExecutable {
        /// The first element of the argv.
        program: String,
    },
    /// Local policy defines the name badly.
    #[error("the command {name:?} in [commands] of agent.toml must begin with an absolute path")]
    BadCommand {
        /// Which.
        name: String,
    },
    /// A plan brings an argument to a name of `[commands]`.
    #[error(
        "{word:?} is not given to {name:?}, a name in [commands] of agent.toml: arguments belong there, a plan may add only ${{side}}, ${{component}}, ${{version}} and ${{host}}, each as a word of its own"
    )]
    Brought {
        /// Which name.
        name: String,
        /// The argument, as it is written.
        word: String,
    },
    /// The user that local policy names is not there.
    #[error("the user {user:?} (run_as in agent.toml) is not in /etc/passwd: create it or name another")]
    NoUser {
        /// Which.
        user: String,
    },
    /// The log file of a command's output cannot be opened.
    #[error("cannot open {} for output", path.display())]
    Output {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// It did not start.
    #[error("cannot start {}{}", program.display(), hint(source, *unprivileged))]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Run as the user of local policy.
        unprivileged: bool,
        /// The system's word.
        source: std::io::Error,
    },
    /// Its end was not seen.
    #[error("cannot wait for {}", program.display())]
    Wait {
        /// Which.
        program: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("{} took longer than {} s and was killed{}", program.display(), after.as_secs_f32(), said(output))]
    Timeout {
        /// Which.
        program: PathBuf,
        /// The time it had.
        after: Duration,
        /// The end of what it said.
        output: String,
    },
}

fn hint(source: &std::io::Error, unprivileged: bool) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied if unprivileged => {
            " (it runs as the user of run_as in agent.toml, who must be able to enter every directory above it)"
        }
        std::io::ErrorKind::NotFound => " (or its interpreter is missing)",
        _ => "",
    }
}

fn said(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!("; it said: {output}") }
}

/// How a command ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Exit code 0.
    pub success: bool,
    /// `exit code 3` or `signal 11`, for messages.
    pub end: String,
    /// The end of what it wrote to stdout and stderr, in the order read.
    pub output: String,
    /// The end of what it wrote to stdout.
    pub stdout: String,
    /// The last line of it that says something.
    pub stdout_line: String,
    /// The same of stderr.
    pub stderr_line: String,
}

/// With what rights and where to a command speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode<'a> {
    /// Smoke tests, checks, hooks: the user of local policy, output captured,
    /// killed whole at the end.
    Confined,
    /// Commands that tell a service's state: the agent's own rights, which they
    /// need to see it.
    Manager,
    /// Commands that start or stop a service: the agent's own rights, output to
    /// this file, and processes that they leave behind live on.
    Daemonising(&'a Path),
}

/// A program and its arguments, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Absolute.
    pub path: PathBuf,
    /// Without the program itself.
    pub args: Vec<String>,
}

/// What an argv of a release means on this host. Reads no disk: the manifest
/// says which files the tree has.
///
/// # Errors
/// Not a file of the tree and not a name of local policy, or a bad template.
pub fn resolve(ctx: &Context, installed: &Installed, argv: &[String]) -> Result<Program, ExecError> {
    resolve_expanded(ctx, installed, ctx.expand_argv(installed, argv)?)
}

/// As [`resolve`], for an argv whose templates were expanded.
///
/// # Errors
/// Not a file of the tree and not a name of local policy.
pub(crate) fn resolve_expanded(ctx: &Context, installed: &Installed, argv: Vec<String>) -> Result<Program, ExecError> {
    let mut argv = argv.into_iter();
    let program = argv.next().unwrap_or_default();
    if let Some(command) = ctx.policy.commands.get(&program) {
        let mut words = command.iter().cloned();
        let path = words.next().map(PathBuf::from).filter(|path| path.is_absolute());
        let path = path.ok_or_else(|| ExecError::BadCommand { name: program.clone() })?;
        return Ok(Program { path, args: words.chain(argv).collect() });
    }
    let Some(file) = installed.component.files.iter().find(|f| f.path.as_str() == program) else {
        return Err(ExecError::NotAllowed { program });
    };
    if file.mode & 0o111 == 0 {
        return Err(ExecError::NotExecutable { program });
    }
    Ok(Program { path: installed.dir.join(&program), args: argv.collect() })
}

/// The user and group that confined commands get; none when the agent itself has
/// no privileges to give up.
///
/// # Errors
/// The user of local policy is not there.
pub fn confined_user(ctx: &Context) -> Result<Option<(u32, u32)>, ExecError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let user = ctx.policy.run_as();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    match find_user(&passwd, user) {
        Some(ids) => Ok(Some(ids)),
        // Every Linux keeps this number for nobody, also in an image without the file.
        None if user == "nobody" => Ok(Some((65_534, 65_534))),
        None => Err(ExecError::NoUser { user: user.to_owned() }),
    }
}

fn find_user(passwd: &str, user: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        if name == user || uid == user { Some((uid.parse().ok()?, gid.parse().ok()?)) } else { None }
    })
}

/// Runs a command of a release in its tree, and waits for its end. Dropping the
/// future kills it whole.
///
/// # Errors
/// [`ExecError`]; an exit code other than 0 is not one.
pub async fn run(ctx: &Context, installed: &Installed, argv: &[String], mode: Mode<'_>, timeout: Duration) -> Result<Ran, ExecError> {
    let program = resolve(ctx, installed, argv)?;
    let user = if mode == Mode::Confined { confined_user(ctx)? } else { None };
    run_program(&program, &installed.dir, mode, user, timeout, &mut |_| true).await
}

/// A check or hook as a step of the swap.
///
/// # Errors
/// It did not end with 0 in time; `what` names it, `cause` classes it.
pub async fn step(
    ctx: &Context,
    installed: &Installed,
    what: &str,
    argv: &[String],
    timeout: Duration,
    cause: Cause,
) -> Result<(), Failure> {
    let title = format!("{what} of {}", installed.title());
    match run(ctx, installed, argv, Mode::Confined, timeout).await {
        Ok(ran) if ran.success => Ok(()),
        Ok(ran) => Err(failure(cause, &format!("{title} ended with {}{}", ran.end, said(&ran.output)))),
        Err(error) => {
            let cause = match &error {
                ExecError::Timeout { .. } => Cause::Timeout,
                ExecError::Template(_) | ExecError::NotAllowed { .. } | ExecError::NoUser { .. } | ExecError::BadCommand { .. } => {
                    Cause::Policy
                }
                _ => cause,
            };
            Err(failure(cause, &format!("{title}: {}", chain(&error))))
        }
    }
}

/// Runs a program of the host with the agent's rights. `sink` gets stdout as it
/// comes and returns false to end it early.
///
/// # Errors
/// [`ExecError`]
pub(crate) async fn run_program(
    program: &Program,
    cwd: &Path,
    mode: Mode<'_>,
    user: Option<(u32, u32)>,
    timeout: Duration,
    sink: &mut (dyn FnMut(&[u8]) -> bool + Send),
) -> Result<Ran, ExecError> {
    run_program_with(program, Terms { cwd, env: &[], mode, user, timeout, begun: None }, sink).await
}

/// How a program runs.
pub(crate) struct Terms<'a> {
    /// Where.
    pub(crate) cwd: &'a Path,
    /// In its otherwise clean environment.
    pub(crate) env: &'a [(&'a str, String)],
    /// With what rights.
    pub(crate) mode: Mode<'a>,
    /// As whom; none for the agent's own user.
    pub(crate) user: Option<(u32, u32)>,
    /// It is killed whole after this.
    pub(crate) timeout: Duration,
    /// Told its pid, which is its process group's number, once it runs. Must not block.
    pub(crate) begun: Option<&'a (dyn Fn(u32) + Send + Sync)>,
}

/// As [`run_program`], on these terms.
///
/// # Errors
/// [`ExecError`]
pub(crate) async fn run_program_with(
    program: &Program,
    terms: Terms<'_>,
    sink: &mut (dyn FnMut(&[u8]) -> bool + Send),
) -> Result<Ran, ExecError> {
    let Terms { cwd, env, mode, user, timeout, begun } = terms;
    let mut command = tokio::process::Command::new(&program.path);
    command.args(&program.args).current_dir(cwd).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8");
    command.envs(env.iter().map(|(name, value)| (*name, value.as_str())));
    command.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
    if let Some((uid, gid)) = user {
        // The supplementary groups go with it: std drops them when it sets a user as root.
        command.uid(uid).gid(gid);
    }
    let log = match mode {
        Mode::Daemonising(path) => {
            let open = |path: &Path| {
                let file = std::fs::File::create(path)?;
                Ok((file.try_clone()?, file))
            };
            let (out, err) = open(path).map_err(|source| ExecError::Output { path: path.to_owned(), source })?;
            command.stdout(out).stderr(err);
            Some(path)
        }
        Mode::Confined | Mode::Manager => {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
    };
    let spawn = |source| ExecError::Spawn { program: program.path.clone(), unprivileged: user.is_some(), source };
    let mut child = command.spawn().map_err(spawn)?;
    let mut group = Group { leader: child.id(), armed: true };
    if mode == Mode::Confined {
        group.limit_memory();
    }
    if let (Some(begun), Some(pid)) = (begun, group.leader) {
        begun(pid);
    }
    let mut seen = Seen { all: Tail::default(), stdout: Tail::default(), stderr: Tail::default(), sink };
    let end = tokio::time::timeout(timeout, watch(&mut child, &mut seen)).await;
    let late = end.is_err();
    let ended = match end {
        // What daemonising commands leave behind is the service.
        Ok(ended) if log.is_some() => {
            group.armed = false;
            ended
        }
        Ok(ended) => {
            group.kill();
            let drained = tokio::time::timeout(DRAIN, drain(&mut child, &mut seen)).await;
            drop(drained);
            ended
        }
        Err(_) => {
            group.kill();
            Ok(())
        }
    };
    let status = match ended {
        Ok(()) => {
            tokio::time::timeout(DRAIN.saturating_mul(50), child.wait()).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        }
        Err(error) => Err(error),
    };
    group.armed = false;
    let output = match log {
        Some(path) => {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || tail_of_file(&path, 0)).await.unwrap_or_default()
        }
        None => seen.all.text(),
    };
    if late {
        return Err(ExecError::Timeout { program: program.path.clone(), after: timeout, output });
    }
    let status = status.map_err(|source| ExecError::Wait { program: program.path.clone(), source })?;
    Ok(Ran {
        success: status.success(),
        end: describe(status),
        output,
        stdout: seen.stdout.text(),
        stdout_line: seen.stdout.line(),
        stderr_line: seen.stderr.line(),
    })
}

/// `exit code 3` or `signal 11`.
pub(crate) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Reads until the command itself has ended, or its output is not wanted any
/// more. Not until its pipes close: a grandchild may hold them for ever. The
/// command is not reaped yet, so that its process group keeps its number.
async fn watch(child: &mut Child, seen: &mut Seen<'_>) -> std::io::Result<()> {
    let pid = child.id();
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let result = {
        let ended = async {
            match pid.and_then(Process::find) {
                Some(process) => ended(process).await,
                None => Ok(()),
            }
        };
        tokio::pin!(ended);
        loop {
            let (mut a, mut b) = ([0; 4096], [0; 4096]);
            tokio::select! {
                end = &mut ended => break end,
                n = read(&mut out, &mut a) => if !seen.take(a.get(..n).unwrap_or_default(), true) { break Ok(()) },
                n = read(&mut err, &mut b) => { seen.take(b.get(..n).unwrap_or_default(), false); },
            }
        }
    };
    child.stdout = out;
    child.stderr = err;
    result
}

async fn drain(child: &mut Child, seen: &mut Seen<'_>) {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    while out.is_some() || err.is_some() {
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        tokio::select! {
            n = read(&mut out, &mut a) => { seen.take(a.get(..n).unwrap_or_default(), true); },
            n = read(&mut err, &mut b) => { seen.take(b.get(..n).unwrap_or_default(), false); },
        }
    }
}

/// Bytes read; the pipe is gone after its end, and then this never returns.
async fn read(pipe: &mut Option<impl AsyncRead + Unpin>, into: &mut [u8]) -> usize {
    let Some(open) = pipe else { return std::future::pending().await };
    let n = open.read(into).await.unwrap_or_default();
    if n == 0 {
        *pipe = None;
    }
    n
}

/// What a command said, as much as is kept.
struct Seen<'a> {
    all: Tail,
    stdout: Tail,
    stderr: Tail,
    sink: &'a mut (dyn FnMut(&[u8]) -> bool + Send),
}

impl Seen<'_> {
    fn take(&mut self, bytes: &[u8], stdout: bool) -> bool {
        self.all.push(bytes);
        if !stdout {
            self.stderr.push(bytes);
            return true;
        }
        self.stdout.push(bytes);
        bytes.is_empty() || (self.sink)(bytes)
    }
}

/// The end of a text of any length.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        // Cut rarely: at twice the bound.
        if self.0.len() > 2 * OUTPUT_BYTES_MAX {
            self.0.drain(..self.0.len() - OUTPUT_BYTES_MAX);
        }
    }

    fn text(&self) -> String {
        let from = self.0.len().saturating_sub(OUTPUT_BYTES_MAX);
        last_text(self.0.get(from..).unwrap_or_default())
    }

    /// The last line that says something.
    fn line(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
    }
}

/// The last few lines of it, as one line for a message.
fn last_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(6);
    lines.get(from..).unwrap_or_default().join(" | ")
}

/// The last lines of a file behind an offset, as one line; empty when it cannot
/// be read. Blocks.
pub(crate) fn tail_of_file(path: &Path, from: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(OUTPUT_BYTES_MAX as u64).max(from);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(OUTPUT_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    last_text(&read().unwrap_or_default())
}

/// The process group of a command: killed when this is dropped, so that a
/// cancelled operation leaves nothing running.
struct Group {
    leader: Option<u32>,
    armed: bool,
}

impl Group {
    fn kill(&self) {
        if let Some(pid) = self.leader.and_then(raw) {
            // None left is fine.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }

    /// Best effort: the command may have ended already.
    fn limit_memory(&self) {
        let limit = Some(DATA_BYTES_MAX);
        if let Some(pid) = self.leader.and_then(raw) {
            let _ = rustix::process::prlimit(Some(pid), Resource::Data, Rlimit { current: limit, maximum: limit });
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.armed {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests;
