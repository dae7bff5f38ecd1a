//! The task that keeps one supervised service: one order at a time, and between
//! orders it watches the process and restarts it with back-off.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tidegate_protocol::report::{Cause, Failure};
use tidegate_protocol::{BootId, ReleaseRef};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::Launch;
use super::kept::{Kept, SPAWN_VARIABLE, cut_log, prepare_log, state_file};
use crate::context::Context;
use crate::durable;
use crate::error::{chain, failure};
use crate::exec;
use crate::service::process::{Process, ended, raw};
use crate::slot::Slot;

/// From the polite signal to the other one.
const STOP: Duration = Duration::from_secs(10);
/// A killed process is gone after so long, or stuck in the kernel.
const KILLED: Duration = Duration::from_secs(5);
/// The first pause before a restart; it doubles up to the largest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A process that lived so long was well; the pauses begin anew.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Between two looks at the size of the log.
const LOG_LOOK: Duration = Duration::from_secs(60);

/// What a component's machine asks.
pub(super) enum Order {
    Start(Box<Launch>, oneshot::Sender<Result<(), Failure>>),
    Stop(oneshot::Sender<Result<(), Failure>>),
    Ensure(Box<Launch>, oneshot::Sender<Result<(), Failure>>),
    /// Keep the process that was found running.
    Adopt(Box<Launch>),
}

/// What anyone may look at without waiting.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) process: Option<Process>,
    pub(super) restarts: u32,
    pub(super) log_offset: u64,
    /// Found running, and nobody has asked yet to keep it running.
    pub(super) orphan: Option<ReleaseRef>,
}

pub(super) struct Keeper {
    slot: Slot,
    launcher: PathBuf,
    boot_id: BootId,
    state: PathBuf,
    log: PathBuf,
    /// What is to be kept running; none before an order and after a stop.
    wanted: Option<Launch>,
    kept: Option<Kept>,
    process: Option<Process>,
    /// Set when this agent started it: then it is ours to reap.
    child: Option<Child>,
    began: Instant,
    pause: Duration,
    restart_at: Option<Instant>,
    seen: Arc<Mutex<Snapshot>>,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
enum SpawnError {
    #[error("cannot write {}{}", path.display(), crate::error::disk_hint(source))]
    State { path: PathBuf, source: io::Error },
    #[error("cannot prepare the log {}{}", path.display(), crate::error::disk_hint(source))]
    Log { path: PathBuf, source: io::Error },
    #[error("no random number to be had: {0}")]
    Random(String),
    #[error("cannot start {} in {}", program.display(), dir.display())]
    Spawn { program: PathBuf, dir: PathBuf, source: io::Error },
    #[error("{} ended at once", program.display())]
    Ended { program: PathBuf },
}

impl Keeper {
    /// Reads the state file and finds the process again.
    pub(super) async fn recover(
        ctx: &Context,
        launcher: PathBuf,
        slot: &Slot,
        log: PathBuf,
        seen: Arc<Mutex<Snapshot>>,
    ) -> io::Result<Self> {
        let state = state_file(ctx, slot);
        let (path, boot_id) = (state.clone(), ctx.boot_id.clone());
        let recovered = move || -> io::Result<(Option<Kept>, Option<Process>)> {
            let Some(mut kept) = Kept::read(&path)?.filter(|kept| kept.boot_id == boot_id) else { return Ok((None, None)) };
            let process = kept.find();
            if let (None, Some(process)) = (kept.pid, process) {
                (kept.pid, kept.start_ticks) = (Some(process.pid), Some(process.start_ticks));
                kept.write(&path)?;
            }
            Ok((Some(kept), process))
        };
        let (kept, process) = tokio::task::spawn_blocking(recovered).await.map_err(io::Error::other)??;
        if let Some(process) = process {
            tracing::info!(component = %slot, pid = process.pid, "found the service running");
        }
        let keeper = Self {
            slot: slot.clone(),
            launcher,
            boot_id: ctx.boot_id.clone(),
            state,
            log,
            wanted: None,
            kept,
            process,
            child: None,
            began: Instant::now(),
            pause: PAUSE_MIN,
            restart_at: None,
            seen,
        };
        keeper.show();
        Ok(keeper)
    }

    /// Until nobody can give orders any more; the service then lives on.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut log_look = Instant::now() + LOG_LOOK;
        loop {
            let restart_at = self.restart_at;
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                end = end_of(self.process, &mut self.child) => self.ended(&end).await,
                () = sleep_until(log_look) => {
                    self.look_at_log().await;
                    log_look = Instant::now() + LOG_LOOK;
                }
                () = async {
                    match restart_at {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => self.restart().await,
            }
            self.show();
        }
    }

    async fn obey(&mut self, order: Order) {
        // Nobody may wait for the answer any more: the order was cancelled, and
        // the one that follows finds a settled state.
        match order {
            Order::Start(launch, done) => {
                let result = self.start(*launch).await;
                self.show();
                drop(done.send(result));
            }
            Order::Stop(done) => {
                let result = self.stop().await;
                self.show();
                drop(done.send(result));
            }
            Order::Ensure(launch, done) => {
                let result = self.ensure(*launch).await;
                self.show();
                drop(done.send(result));
            }
            Order::Adopt(launch) => self.adopt(*launch),
        }
    }

    async fn start(&mut self, launch: Launch) -> Result<(), Failure> {
        self.halt().await?;
        self.pause = PAUSE_MIN;
        let offset = self.prepare_log().await;
        let started = match offset {
            Ok(offset) => self.spawn(&launch, 0, offset).await,
            Err(error) => Err(error),
        };
        let title = launch.title.clone();
        // Wanted from here on even if this start failed: what ran before is
        // stopped, and the next try may do better.
        self.wanted = Some(launch);
        let Err(error) = started else { return Ok(()) };
        let cause = match error {
            SpawnError::State { .. } | SpawnError::Log { .. } => Cause::Disk,
            SpawnError::Random(_) | SpawnError::Spawn { .. } | SpawnError::Ended { .. } => Cause::StartFailed,
        };
        self.later();
        Err(failure(cause, &format!("{title}: {}{}", chain(&error), self.last_words().await)))
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        self.halt().await?;
        self.kept = None;
        let path = self.state.clone();
        let forgotten = match tokio::fs::try_exists(&path).await {
            Ok(false) => Ok(()),
            Ok(true) => blocking(move || durable::remove(&path)).await,
            Err(error) => Err(error),
        };
        forgotten.map_err(|e| failure(Cause::Disk, &format!("cannot remove {}: {e}", self.state.display())))
    }

    async fn ensure(&mut self, launch: Launch) -> Result<(), Failure> {
        let runs = self.process.is_some_and(|process| process.alive());
        let same = self.kept.as_ref().is_some_and(|kept| kept.release == launch.release);
        if runs && same {
            self.adopt(launch);
            return Ok(());
        }
        if self.restart_at.is_some() && same {
            return Ok(());
        }
        self.start(launch).await
    }

    fn adopt(&mut self, launch: Launch) {
        if self.wanted.is_none() && self.kept.as_ref().is_some_and(|kept| kept.release == launch.release) {
            self.wanted = Some(launch);
        }
    }

    /// Nothing of the service runs afterwards, and nothing will be restarted.
    async fn halt(&mut self) -> Result<(), Failure> {
        self.wanted = None;
        self.restart_at = None;
        if let Some(process) = self.process {
            let all = |signal: Signal| {
                if let Some(group) = raw(process.pid).filter(|_| process.alive()) {
                    let _ = rustix::process::kill_process_group(group, signal);
                }
                process.signal(signal);
            };
            all(Signal::TERM);
            if timeout(STOP, end_of(self.process, &mut self.child)).await.is_err() {
                all(Signal::KILL);
                if timeout(KILLED, end_of(self.process, &mut self.child)).await.is_err() {
                    return Err(failure(
                        Cause::StartFailed,
                        &format!("{}: process {} does not end, not even by force: look at it with `ps`", self.slot, process.pid),
                    ));
                }
            }
        }
        self.process = None;
        self.child = None;
        let left = self.clear().await;
        match left.first() {
            None => Ok(()),
            Some(process) => Err(failure(
                Cause::StartFailed,
                &format!("{}: process {} of the old service does not end: look at it with `ps`", self.slot, process.pid),
            )),
        }
    }

    async fn clear(&self) -> Vec<Process> {
        let Some(kept) = self.kept.clone() else { return Vec::new() };
        blocking(move || Ok(kept.clear())).await.unwrap_or_default()
    }

    async fn ended(&mut self, end: &str) {
        let pid = self.process.map(|process| process.pid);
        self.process = None;
        self.child = None;
        if self.wanted.is_none() {
            tracing::info!(component = %self.slot, pid, end, "the service has ended");
            return;
        }
        tracing::warn!(component = %self.slot, pid, end, "the service has ended by itself and will be restarted");
        if self.began.elapsed() >= WELL_AFTER {
            self.pause = PAUSE_MIN;
        }
        self.later();
    }

    fn later(&mut self) {
        self.restart_at = Some(Instant::now() + self.pause);
        self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
    }

    async fn restart(&mut self) {
        self.restart_at = None;
        let Some(launch) = self.wanted.clone() else { return };
        let left = self.clear().await;
        let (restarts, offset) = self.kept.as_ref().map_or((0, 0), |kept| (kept.restarts, kept.log_offset));
        let started = match self.prepare_log().await {
            // A log put aside begins anew; else messages since the order count.
            Ok(length) if left.is_empty() => self.spawn(&launch, restarts.saturating_add(1), offset.min(length)).await,
            Ok(_) => Err(SpawnError::Ended { program: launch.program.path.clone() }),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            tracing::warn!(component = %self.slot, error = chain(&error), "cannot restart the service; trying again later");
            self.later();
        }
    }

    async fn look_at_log(&mut self) {
        let path = self.log.clone();
        if self.process.is_none() || !matches!(blocking(move || cut_log(&path)).await, Ok(true)) {
            return;
        }
        tracing::warn!(component = %self.slot, log = %self.log.display(), "the log was too large and has been cut");
        if let Some(kept) = &mut self.kept {
            kept.log_offset = 0;
        }
    }

    async fn prepare_log(&self) -> Result<u64, SpawnError> {
        let path = self.log.clone();
        blocking(move || prepare_log(&path)).await.map_err(|source| SpawnError::Log { path: self.log.clone(), source })
    }

    /// Intent, start, record: an agent that dies in between finds the process by
    /// the token in its environment, so no second copy is ever started.
    async fn spawn(&mut self, launch: &Launch, restarts: u32, log_offset: u64) -> Result<(), SpawnError> {
        let spawn = token().map_err(|e| SpawnError::Random(e.to_string()))?;
        let (boot_id, release) = (self.boot_id.clone(), launch.release.clone());
        let kept = Kept { boot_id, spawn: spawn.clone(), pid: None, start_ticks: None, restarts, release, log_offset };
        self.record(&kept).await?;
        self.kept = Some(kept.clone());

        let mut command = tokio::process::Command::new(&self.launcher);
        command.arg("launch").arg("--log").arg(&self.log);
        if let Some((uid, gid)) = launch.user {
            command.arg("--uid").arg(uid.to_string()).arg("--gid").arg(gid.to_string());
        }
        command.arg("--").arg(&launch.program.path).args(&launch.program.args);
        command.current_dir(&launch.dir).env_clear().env("PATH", exec::PATH).env("LANG", "C.UTF-8");
        command.envs(&launch.env).env(SPAWN_VARIABLE, &spawn);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let spawned = command.spawn();
        let child =
            spawned.map_err(|source| SpawnError::Spawn { program: launch.program.path.clone(), dir: launch.dir.clone(), source })?;
        self.began = Instant::now();
        let process = child.id().and_then(Process::find);
        self.child = Some(child);
        self.process = process;
        let Some(process) = process else {
            self.child = None;
            return Err(SpawnError::Ended { program: launch.program.path.clone() });
        };
        let kept = Kept { pid: Some(process.pid), start_ticks: Some(process.start_ticks), ..kept };
        self.kept = Some(kept.clone());
        tracing::info!(component = %self.slot, release = %launch.release.id, pid = process.pid, restarts, "started the service");
        // It runs; if only this record is lost, the token still finds it.
        if let Err(error) = self.record(&kept).await {
            tracing::warn!(component = %self.slot, error = chain(&error), "the service runs, but its record was not written");
        }
        Ok(())
    }

    async fn record(&self, kept: &Kept) -> Result<(), SpawnError> {
        let (kept, path) = (kept.clone(), self.state.clone());
        blocking(move || kept.write(&path)).await.map_err(|source| SpawnError::State { path: self.state.clone(), source })
    }

    async fn last_words(&self) -> String {
        let words = super::log_tail(&self.log, self.kept.as_ref().map_or(0, |kept| kept.log_offset)).await;
        if words.is_empty() { words } else { format!("; it last said: {words}") }
    }

    fn show(&self) {
        let kept = self.kept.as_ref();
        let orphan = if self.wanted.is_none() && self.process.is_some() { kept.map(|kept| kept.release.clone()) } else { None };
        let snapshot = Snapshot {
            process: self.process,
            restarts: kept.map_or(0, |kept| kept.restarts),
            log_offset: kept.map_or(0, |kept| kept.log_offset),
            orphan,
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}

/// The end of the process, in words; never, if there is none. Safe to drop.
async fn end_of(process: Option<Process>, child: &mut Option<Child>) -> String {
    if let Some(child) = child {
        return match child.wait().await {
            Ok(status) => exec::describe(status),
            Err(error) => format!("an unknown status ({error})"),
        };
    }
    let Some(process) = process else { return std::future::pending().await };
    if ended(process).await.is_err() {
        // The runtime cannot watch it: look now and then.
        while process.alive() {
            tokio::time::sleep(PAUSE_MIN).await;
        }
    }
    "an unknown status".to_owned()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// 128 random bits, hex.
fn token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
