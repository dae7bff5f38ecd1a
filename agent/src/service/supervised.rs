//! Services that the agent keeps itself, on hosts without systemd.
//!
//! Each is a child in its own session, known by (boot id, pid, start ticks) in a
//! small state file, so that it lives through the agent's restarts and is found
//! again. One task per slot (see [`keeper`]) starts, watches and restarts
//! it. Must not: use the host's systemd, or end a service because the agent ends.

mod keeper;
mod kept;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_protocol::ReleaseRef;
use tidegate_protocol::release::Service;
use tidegate_protocol::report::{Cause, Failure};
use tokio::sync::{mpsc, oneshot};

use self::keeper::{Keeper, Order, Snapshot};
use super::Status;
use crate::context::{Context, Installed};
use crate::error::{chain, failure};
use crate::exec::{self, Program};
use crate::slot::Slot;

/// Orders that may wait for one slot: its machine gives one at a time.
const ORDERS_MAX: usize = 8;

/// All supervised services of one agent.
pub(super) struct Supervisor {
    ctx: Arc<Context>,
    /// None: only looks, as a second process beside the agent must.
    launcher: Option<PathBuf>,
    /// The lock is held while a slot's past is read, so that two callers never
    /// make two keepers of it.
    keepers: tokio::sync::Mutex<BTreeMap<Slot, Handle>>,
}

/// The way to one slot's keeper.
#[derive(Clone)]
struct Handle {
    orders: mpsc::Sender<Order>,
    seen: Arc<Mutex<Snapshot>>,
}

/// A start, worked out: templates replaced, program found, user known.
#[derive(Clone, Debug)]
struct Launch {
    title: String,
    release: ReleaseRef,
    program: Program,
    env: BTreeMap<String, String>,
    dir: PathBuf,
    user: Option<(u32, u32)>,
}

impl Launch {
    fn of(ctx: &Context, installed: &Installed) -> Result<Self, Failure> {
        let title = installed.title();
        let Service::Supervised { run, env } = &installed.component.service else {
            return Err(failure(Cause::StartFailed, &format!("{title} is not a supervised service")));
        };
        let denied = |e: &dyn std::error::Error| failure(Cause::Policy, &format!("service.supervised of {title}: {e}"));
        let program = exec::resolve(ctx, installed, run).map_err(|e| denied(&e))?;
        let expand = |(name, value): (&String, &String)| Ok((name.clone(), ctx.expand_in(installed, value).map_err(|e| denied(&e))?));
        let env = env.iter().map(expand).collect::<Result<_, Failure>>()?;
        let user = exec::confined_user(ctx).map_err(|e| denied(&e))?;
        Ok(Self { title, release: installed.release.clone(), program, env, dir: installed.dir.clone(), user })
    }
}

impl Supervisor {
    pub(super) fn new(ctx: Arc<Context>, launcher: Option<PathBuf>) -> Self {
        Self { ctx, launcher, keepers: tokio::sync::Mutex::default() }
    }

    /// Stops what runs and starts anew; returns once the new process is there.
    pub(super) async fn start(&self, installed: &Installed) -> Result<(), Failure> {
        let launch = Launch::of(&self.ctx, installed)?;
        self.order(installed, |done| Order::Start(Box::new(launch), done)).await
    }

    /// Stops it, all of its session, and forgets it.
    pub(super) async fn stop(&self, installed: &Installed) -> Result<(), Failure> {
        self.order(installed, Order::Stop).await
    }

    /// Starts it unless it runs (or is about to be restarted).
    pub(super) async fn ensure_running(&self, installed: &Installed) -> Result<(), Failure> {
        let launch = Launch::of(&self.ctx, installed)?;
        self.order(installed, |done| Order::Ensure(Box::new(launch), done)).await
    }

    /// Never waits for a stop or start under way.
    pub(super) async fn status(&self, installed: &Installed) -> Result<Status, Failure> {
        if self.launcher.is_none() {
            return self.look(installed).await.map(|(status, _)| status);
        }
        let handle = self.handle(installed).await?;
        let seen = handle.seen();
        let main = seen.process.filter(super::Process::alive);
        // Found again after an agent's restart: from here on it is kept running,
        // by whoever asks for it first.
        if seen.orphan.as_ref() == Some(&installed.release) && main.is_some() {
            let launch = Launch::of(&self.ctx, installed)?;
            // A full queue means that orders are on their way, which say more.
            drop(handle.orders.try_send(Order::Adopt(Box::new(launch))));
        }
        Ok(Status { active: main.is_some(), main, restarts: seen.restarts })
    }

    /// The length of the log when the service was last started by order.
    pub(super) async fn log_offset(&self, installed: &Installed) -> Result<u64, Failure> {
        if self.launcher.is_none() {
            return self.look(installed).await.map(|(_, log_offset)| log_offset);
        }
        Ok(self.handle(installed).await?.seen().log_offset)
    }

    /// What the state file says, changing nothing.
    async fn look(&self, installed: &Installed) -> Result<(Status, u64), Failure> {
        let (path, boot_id) = (kept::state_file(&self.ctx, &installed.slot()), self.ctx.boot_id.clone());
        let look = move || -> std::io::Result<(Status, u64)> {
            let Some(kept) = kept::Kept::read(&path)?.filter(|kept| kept.boot_id == boot_id) else { return Ok((Status::default(), 0)) };
            let main = kept.find();
            Ok((Status { active: main.is_some(), main, restarts: kept.restarts }, kept.log_offset))
        };
        let looked = tokio::task::spawn_blocking(look).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        looked.map_err(|e| unreadable(&installed.slot(), &e))
    }

    async fn order(&self, installed: &Installed, order: impl FnOnce(oneshot::Sender<Result<(), Failure>>) -> Order) -> Result<(), Failure> {
        let gone = || failure(Cause::StartFailed, &format!("{}: the task that keeps it has ended", installed.title()));
        let (done, answer) = oneshot::channel();
        self.handle(installed).await?.orders.send(order(done)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    async fn handle(&self, installed: &Installed) -> Result<Handle, Failure> {
        let slot = installed.slot();
        let mut keepers = self.keepers.lock().await;
        if let Some(handle) = keepers.get(&slot) {
            return Ok(handle.clone());
        }
        let Some(launcher) = self.launcher.clone() else {
            return Err(failure(Cause::StartFailed, &format!("{slot}: only the running agent starts and stops services")));
        };
        let seen = Arc::default();
        let log = self.ctx.log_file(&slot);
        let keeper = Keeper::recover(&self.ctx, launcher, &slot, log, Arc::clone(&seen)).await;
        let keeper = keeper.map_err(|e| unreadable(&slot, &e))?;
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        tokio::spawn(keeper.run(queue));
        let handle = Handle { orders, seen };
        keepers.insert(slot, handle.clone());
        Ok(handle)
    }
}

fn unreadable(slot: &Slot, error: &std::io::Error) -> Failure {
    failure(Cause::Disk, &format!("cannot read what is known of the service {slot}: {}", chain(error)))
}

impl Handle {
    fn seen(&self) -> Snapshot {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The last lines of a service's log behind an offset, as one line.
pub(super) async fn log_tail(path: &Path, from: u64) -> String {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || exec::tail_of_file(&path, from)).await.unwrap_or_default()
}
