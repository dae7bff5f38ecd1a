//! One attempt at one task: its files, its record, its process, its end.
//!
//! Owns the order that makes it run once: `running` is durable before the process
//! begins, the end is durable before it is told, and nothing of the process is left
//! when its end is told. Must not: decide whether an attempt is due.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_protocol::id::BadName;
use tidegate_protocol::release::{MANIFEST_SCHEMA, Proof, Runbook, Service, Task};
use tidegate_protocol::report::{Failure, bounded};
use tidegate_protocol::{Cause, Component, Release, TaskOrder, TaskRun, TaskState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Stop;
use super::group::{self, TOKEN_VARIABLE};
use super::record::{Book, Record, Spawn};
use crate::context::{Context, Installed};
use crate::error::{chain, failure};
use crate::exec::{self, ExecError, Mode, Program, Ran, Terms};
use crate::failpoint;
use crate::host::Host;
use crate::service::{Process, since_boot, unix_ms};
use crate::stage;
use crate::tree::Trees;
use crate::work::{Scope, scope};

/// For a task to end by itself when the agent is stopped. With the end of the agent
/// itself it must stay below `TimeoutStopSec=` of its unit.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// Between two tries to record an end.
const RETRY: Duration = Duration::from_secs(1);

/// What an attempt works with.
pub(super) struct Job {
    pub(super) host: Arc<Host>,
    pub(super) book: Book,
    pub(super) trees: Trees,
    pub(super) order: TaskOrder,
    pub(super) serial: u64,
    /// False once nobody wants it any more; then it does not begin.
    pub(super) wanted: watch::Receiver<bool>,
    pub(super) stop: watch::Receiver<Stop>,
    /// Durable records, as they come about.
    pub(super) news: mpsc::Sender<Record>,
}

/// A task of which everything is there.
struct Ready {
    name: String,
    tree: Installed,
    program: Program,
    user: Option<(u32, u32)>,
}

/// The component that a task's tree is laid out as.
pub(super) fn component_of(index: u16) -> String {
    format!("task-{index}")
}

impl Job {
    pub(super) async fn run(mut self) {
        let ready = match self.prepare().await {
            Some(Ok(ready)) => ready,
            Some(Err(why)) => return self.could_not_begin(&why.message).await,
            None => return,
        };
        // Since its files came the list may have changed, or the agent been told to end.
        if !*self.wanted.borrow() || *self.stop.borrow() > Stop::No {
            return;
        }
        self.perform(&ready).await;
    }

    /// Everything before the process; none if it was called back.
    async fn prepare(&mut self) -> Option<Result<Ready, Failure>> {
        let (scope, leash) = scope(Arc::default());
        let ready = tokio::select! {
            biased;
            () = unwanted(&mut self.wanted) => None,
            () = reached(&mut self.stop, Stop::Soon) => None,
            ready = ready(&self.host, &self.trees, &self.order, scope) => Some(ready),
        };
        leash.end().await;
        ready
    }

    async fn could_not_begin(&mut self, why: &str) {
        tracing::warn!(rollout = %self.order.rollout, index = self.order.index, what = self.order.what.word(), error = why, "a task cannot begin");
        let record = Record::new(&self.order, self.serial, TaskState::Failed, bounded(why));
        // Nothing ran: if this is not kept, at worst it is tried again after a restart.
        if let Err(error) = self.write(&record).await {
            tracing::error!(error, "that a task could not begin was not recorded");
        }
        self.tell(record).await;
    }

    async fn perform(&mut self, ready: &Ready) {
        let token = match group::token() {
            Ok(token) => token,
            Err(error) => return self.could_not_begin(&format!("no random number to be had: {error}")).await,
        };
        let mut record = Record::new(&self.order, self.serial, TaskState::Running, String::new());
        record.started_at_unix_ms = unix_ms();
        record.spawn = Some(Spawn { boot_id: self.host.ctx.boot_id.clone(), token: token.clone(), pid: None, start_ticks: None });
        if let Err(error) = self.write(&record).await {
            return self.could_not_begin(&error).await;
        }
        self.tell(record.clone()).await;
        let began = since_boot();
        let (state, note) = self.process(ready, &mut record, &token).await;
        if state != TaskState::Done
            && let Some(spawn) = record.spawn.clone()
        {
            clear(spawn, &self.host).await;
        }
        record.duration_ms = since_boot().since(began).0;
        (record.state, record.note, record.spawn) = (state, bounded(&note), None);
        let rollout = &self.order.rollout;
        let (name, what) = (&ready.name, self.order.what.word());
        if state == TaskState::Done {
            tracing::info!(%rollout, task = name, what, note = record.note, "a task is done");
        } else {
            tracing::warn!(%rollout, task = name, what, note = record.note, "a task failed");
        }
        self.end(record).await;
    }

    /// Runs it; the record learns whose leader its process group has.
    async fn process(&self, ready: &Ready, record: &mut Record, token: &str) -> (TaskState, String) {
        let Ready { name, tree, program, user } = ready;
        let env = [
            ("TIDEGATE_ROLLOUT", self.order.rollout.to_string()),
            ("TIDEGATE_TASK", name.clone()),
            ("TIDEGATE_RELEASE", tree.release.id.to_string()),
            ("HOME", tree.dir.display().to_string()),
            (TOKEN_VARIABLE, token.to_owned()),
        ];
        let (sender, pid) = oneshot::channel();
        let sender = Mutex::new(Some(sender));
        let take = || sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        let begun = |pid: u32| {
            if let Some(sender) = take() {
                // It is listened to below.
                let _ = sender.send(pid);
            }
        };
        let limit = Duration::from_millis(self.order.deadline.0);
        tracing::info!(rollout = %self.order.rollout, task = name, what = self.order.what.word(), attempt = self.order.attempt, program = %program.path.display(), "a task runs");
        let run = async {
            let terms = Terms { cwd: &tree.dir, env: &env, mode: Mode::Confined, user: *user, timeout: limit, begun: Some(&begun) };
            let (mut stop, mut sink) = (self.stop.clone(), |_: &[u8]| true);
            let ended = tokio::select! {
                ended = exec::run_program_with(program, terms, &mut sink) => Some(ended),
                () = async {
                    reached(&mut stop, Stop::Soon).await;
                    tracing::info!(task = name, "the agent is stopped while a task runs; it has {} s to end", STOP_GRACE.as_secs());
                    // Whether that was said, or the time is over.
                    let _ = timeout(STOP_GRACE, reached(&mut stop, Stop::Now)).await;
                } => None,
            };
            // One that did not even begin has no pid to tell.
            drop(take());
            ended
        };
        let learn = async {
            let Ok(pid) = pid.await else { return };
            if let Some(spawn) = record.spawn.as_mut() {
                (spawn.pid, spawn.start_ticks) = (Some(pid), Process::find(pid).map(|process| process.start_ticks));
            }
            if let Err(error) = self.write(record).await {
                // Its token still leads to it.
                tracing::warn!(error, "the process of a task was not recorded");
            }
        };
        // Both to their end: what is written last must be the task's end.
        let (ended, ()) = tokio::join!(run, learn);
        match ended {
            Some(ended) => outcome(&self.order, ended),
            None => (TaskState::Failed, "the agent was stopped, and the task killed with it".to_owned()),
        }
    }

    /// The end is durable before it is told: while it cannot be written, the task
    /// is shown as running, which is what a restart would find.
    async fn end(&mut self, record: Record) {
        let mut said = false;
        while let Err(error) = self.write(&record).await {
            if !said {
                tracing::error!(error, "the end of a task cannot be recorded; trying on");
                said = true;
            }
            if timeout(RETRY, reached(&mut self.stop, Stop::Soon)).await.is_ok() {
                return;
            }
        }
        self.tell(record).await;
    }

    async fn write(&self, record: &Record) -> Result<(), String> {
        let state = word(record.state);
        failpoint::hit(|| format!("agent.task.persist.before.{state}"));
        let (book, record) = (self.book.clone(), record.clone());
        let written = tokio::task::spawn_blocking(move || book.write(&record)).await;
        failpoint::hit(|| format!("agent.task.persist.after.{state}"));
        match written {
            Ok(written) => written.map_err(|error| chain(&error)),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn tell(&self, record: Record) {
        // Nobody listens only when the agent ends.
        drop(self.news.send(record).await);
    }
}

/// A state for logs and failpoints.
pub(super) const fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Staging => "staging",
        TaskState::Running => "running",
        TaskState::Done => "done",
        TaskState::Failed => "failed",
        TaskState::Lost => "lost",
    }
}

/// Until it is so far; for ever if it never can be any more.
async fn reached(stop: &mut watch::Receiver<Stop>, far: Stop) {
    if stop.wait_for(|now| *now >= far).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn unwanted(wanted: &mut watch::Receiver<bool>) {
    if wanted.wait_for(|wanted| !wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Also what left its process group.
async fn clear(spawn: Spawn, host: &Host) {
    let boot_id = host.ctx.boot_id.clone();
    let left = tokio::task::spawn_blocking(move || group::clear(&spawn, &boot_id)).await.unwrap_or_default();
    if !left.is_empty() {
        tracing::error!(pids = ?left.iter().map(|process| process.pid).collect::<Vec<_>>(), "processes of a task cannot be killed");
    }
}

fn outcome(order: &TaskOrder, ended: Result<Ran, ExecError>) -> (TaskState, String) {
    match ended {
        Ok(ran) if ran.success => (TaskState::Done, ran.stdout_line),
        Ok(ran) => {
            let line = if ran.stderr_line.is_empty() { ran.stdout_line } else { ran.stderr_line };
            let said = if line.is_empty() { String::new() } else { format!("; it said: {line}") };
            (TaskState::Failed, format!("ended with {}{said}", ran.end))
        }
        Err(ExecError::Timeout { output, .. }) => {
            let said = if output.is_empty() { String::new() } else { format!("; it said: {output}") };
            (TaskState::Failed, format!("killed at its deadline of {}{said}", order.deadline))
        }
        Err(error) => (TaskState::Failed, chain(&error)),
    }
}

async fn ready(host: &Arc<Host>, trees: &Trees, order: &TaskOrder, scope: Scope) -> Result<Ready, Failure> {
    let task = host.manifests.task(&host.depot, &order.release, order.index, &scope).await?;
    let title = format!("{} {:?} of {}", order.what.word(), task.name, order.release.id);
    let argv = match order.what {
        TaskRun::Run => Some(&task.run),
        TaskRun::Undo => task.undo.as_ref(),
    };
    let argv = argv.ok_or_else(|| failure(Cause::Policy, &format!("{title}: the release brings no undo for it")))?;
    let component = as_component(order.index, &task, argv).map_err(|why| failure(Cause::Verify, &format!("{title}: {why}")))?;
    let about = Installed { release: order.release.clone(), component, dir: PathBuf::new(), side: None };
    let refused = |error: &ExecError| failure(Cause::Policy, &format!("{title}: {}", chain(error)));
    // Before anything is fetched: local policy may say no.
    program(&host.ctx, &about, argv).map_err(|error| refused(&error))?;
    let user = exec::confined_user(&host.ctx).map_err(|error| refused(&error))?;
    let tree = stage::stage_task(host, trees, &order.release, about.component, &scope).await?;
    let program = program(&host.ctx, &tree, argv).map_err(|error| refused(&error))?;
    Ok(Ready { name: task.name, tree, program, user })
}

/// The tree of a task belongs to no component: `${component}` and `${side}` name nothing.
fn program(ctx: &Context, task: &Installed, argv: &[String]) -> Result<Program, ExecError> {
    let expand = |text: &String| ctx.expand_about(None, &task.release.id.version, None, text);
    exec::resolve_expanded(ctx, task, argv.iter().map(expand).collect::<Result<_, _>>()?)
}

/// Trees are made and compared as those of components; so is a task's, and its files
/// are held to the same rules.
fn as_component(index: u16, task: &Task, argv: &[String]) -> Result<Component, String> {
    let component = Component {
        name: component_of(index).parse().map_err(|error: BadName| error.to_string())?,
        files: task.files.clone(),
        links: BTreeMap::new(),
        service: Service::Supervised { run: argv.to_vec(), env: BTreeMap::new() },
        proof: Proof::None,
        check: None,
        before: None,
        after: None,
        arch: None,
        keep: 1,
        smoke: Vec::new(),
    };
    let whole = Release {
        schema: MANIFEST_SCHEMA,
        name: "task".parse().map_err(|error: BadName| error.to_string())?,
        version: "0".parse().map_err(|error: BadName| error.to_string())?,
        notes: None,
        known_issues: None,
        runbook: Runbook::default(),
        expires: None,
        floor: None,
        tasks: Vec::new(),
        components: vec![component.clone()],
    };
    whole.check().map_err(|error| error.to_string())?;
    Ok(component)
}
