//! The services of this host: started, stopped, watched and proven.
//!
//! Owns: one face before three managers (the host's systemd, a component's own
//! commands, the agent itself), and the check that a start really made a new
//! process. Must not: know a generation, a lease or a ledger.

mod command;
mod preflight;
mod process;
mod proof;
mod supervised;
mod systemd;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::release::Service;
use tidegate_protocol::report::{Cause, Failure, Running};
use tidegate_protocol::{Component, Timestamp};
use tokio::time::Instant;

pub use process::{Process, since_boot, started_since};
pub(crate) use process::{Stat, carries, ended, pids, raw, unix_ms};
pub(crate) use proof::read_digest;

use crate::context::{Context, Installed};
use crate::error::failure;

/// A new main process must be there so soon after its manager said "started".
const SETTLE: Duration = Duration::from_secs(3);
/// Between two looks at a service that is about to change.
const LOOK: Duration = Duration::from_millis(20);

/// How a service stands, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The manager says that it runs.
    pub active: bool,
    /// Its main process.
    pub main: Option<Process>,
    /// Starts by the manager itself since the last start that was ordered.
    pub restarts: u32,
}

/// All services of one agent. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    ctx: Arc<Context>,
    supervised: Arc<supervised::Supervisor>,
    systemd: Arc<systemd::Systemd>,
    digests: Arc<proof::Digests>,
    launcher: Arc<PathBuf>,
}

impl Services {
    /// Touches nothing; supervised services that still run are found when asked
    /// for. The launcher is this program itself.
    #[must_use]
    pub fn new(ctx: Arc<Context>) -> Self {
        // The link, not what it points at: it stays right when the agent's own
        // file is replaced by a newer one.
        Self::with_launcher(ctx, PathBuf::from("/proc/self/exe"))
    }

    /// As [`Services::new`], with another program that knows `launch`.
    #[must_use]
    pub fn with_launcher(ctx: Arc<Context>, launcher: PathBuf) -> Self {
        Self::made(ctx, Some(launcher))
    }

    /// For a process beside the agent: it only looks. Supervised services are
    /// then neither started, stopped nor kept.
    #[must_use]
    pub fn observing(ctx: Arc<Context>) -> Self {
        Self::made(ctx, None)
    }

    fn made(ctx: Arc<Context>, launcher: Option<PathBuf>) -> Self {
        Self {
            supervised: Arc::new(supervised::Supervisor::new(Arc::clone(&ctx), launcher.clone())),
            launcher: Arc::new(launcher.unwrap_or_default()),
            systemd: Arc::default(),
            digests: Arc::default(),
            ctx,
        }
    }

    /// Whether `installed` can be run here at all. Its tree need not be laid out:
    /// the manifest is asked.
    ///
    /// # Errors
    /// Policy says no, a template names nothing, a program is not a file of the
    /// tree, or the unit is not there.
    pub async fn preflight(&self, installed: &Installed) -> Result<(), Failure> {
        preflight::check(&self.ctx, installed)?;
        if let Service::Systemd(unit) = &installed.component.service {
            self.systemd.preflight(&self.unit(installed, unit)?).await?;
        }
        Ok(())
    }

    /// Starts the service on `installed`, or restarts it if it runs, and makes
    /// sure that its main process is a new one.
    ///
    /// # Errors
    /// `start-failed`: the manager said no, or said yes while the process that
    /// ran before still does.
    pub async fn start(&self, installed: &Installed) -> Result<(), Failure> {
        let before = self.try_status(installed).await?.main;
        let at = since_boot();
        match &installed.component.service {
            Service::Systemd(unit) => self.systemd.restart(&self.unit(installed, unit)?).await?,
            Service::Command { start, stop, .. } => command::restart(&self.ctx, installed, before.is_some(), start, stop).await?,
            Service::Supervised { run, env } if self.ctx.systemd => {
                self.systemd.start_transient(&systemd::Transient::of(&self.ctx, installed, run, env)?).await?;
            }
            Service::Supervised { .. } => self.supervised.start(installed).await?,
        }
        self.await_new_main(installed, before, at).await
    }

    /// Stops the service: politely, then by force. One that does not run is
    /// stopped already.
    ///
    /// # Errors
    /// `start-failed`: it still runs.
    pub async fn stop(&self, installed: &Installed) -> Result<(), Failure> {
        match &installed.component.service {
            Service::Systemd(unit) => self.systemd.stop(&self.unit(installed, unit)?).await,
            Service::Command { stop, .. } => {
                if !self.try_status(installed).await?.active {
                    return Ok(());
                }
                command::stop(&self.ctx, installed, stop).await?;
                self.await_stopped(installed).await
            }
            Service::Supervised { .. } if self.ctx.systemd => self.systemd.stop(&systemd::transient_unit(&installed.slot())).await,
            Service::Supervised { .. } => self.supervised.stop(installed).await,
        }
    }

    /// How the service stands; a manager that cannot be asked counts as inactive
    /// (and is logged).
    pub async fn status(&self, installed: &Installed) -> Status {
        match self.try_status(installed).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(component = %installed.slot(), error = error.message, "cannot ask the service manager");
                Status::default()
            }
        }
    }

    /// As [`Services::status`], and says so when the manager cannot be asked.
    ///
    /// # Errors
    /// The manager does not answer, or its command cannot be run.
    pub async fn try_status(&self, installed: &Installed) -> Result<Status, Failure> {
        match &installed.component.service {
            Service::Systemd(unit) => self.systemd.status(&self.unit(installed, unit)?).await,
            Service::Command { status, .. } => command::status(&self.ctx, installed, status).await,
            Service::Supervised { .. } if self.ctx.systemd => self.systemd.status(&systemd::transient_unit(&installed.slot())).await,
            Service::Supervised { .. } => self.supervised.status(installed).await,
        }
    }

    /// At the agent's start: a supervised service of the standing release that
    /// does not run is started; others have a manager of their own.
    ///
    /// # Errors
    /// As [`Services::start`].
    pub async fn ensure_running(&self, installed: &Installed) -> Result<(), Failure> {
        let Service::Supervised { .. } = &installed.component.service else { return Ok(()) };
        if !self.ctx.systemd {
            return self.supervised.ensure_running(installed).await;
        }
        if self.try_status(installed).await?.active { Ok(()) } else { self.start(installed).await }
    }

    /// Proves that the main process executes (or interprets) a file of
    /// `installed`, waiting a few seconds for it to get there.
    ///
    /// # Errors
    /// `start-failed`, with what runs instead.
    pub async fn prove(&self, installed: &Installed) -> Result<Running, Failure> {
        proof::prove(self, installed).await
    }

    /// Where the journal of this service's messages is.
    pub(crate) async fn messages(&self, installed: &Installed) -> Result<Messages, Failure> {
        match &installed.component.service {
            Service::Systemd(unit) => Ok(Messages::Unit(self.unit(installed, unit)?)),
            Service::Supervised { .. } if self.ctx.systemd => Ok(Messages::Unit(systemd::transient_unit(&installed.slot()))),
            Service::Supervised { .. } => {
                Ok(Messages::File { path: self.ctx.log_file(&installed.slot()), from: self.supervised.log_offset(installed).await? })
            }
            Service::Command { .. } => Err(failure(
                Cause::Smoke,
                &format!(
                    "{}: a `journal` smoke test needs a service of systemd or of the agent; commands have no log that can be read",
                    installed.title()
                ),
            )),
        }
    }

    /// The unit's name, expanded.
    fn unit(&self, installed: &Installed, unit: &str) -> Result<String, Failure> {
        self.ctx.expand_in(installed, unit).map_err(|e| failure(Cause::Policy, &format!("{}: {e}", installed.title())))
    }

    /// A manager's word is not enough: the main process must be another one than
    /// before and must have started at or after `at`.
    async fn await_new_main(&self, installed: &Installed, before: Option<Process>, at: Timestamp) -> Result<(), Failure> {
        let same = |main: &Process| before.is_some_and(|b| (b.pid, b.start_ticks) == (main.pid, main.start_ticks));
        let deadline = Instant::now() + SETTLE;
        loop {
            let status = self.try_status(installed).await?;
            if status.main.is_some_and(|main| !same(&main) && main.started_since(at)) {
                return Ok(());
            }
            if Instant::now() < deadline {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let title = installed.title();
            let message = match status.main {
                Some(main) if same(&main) || !main.started_since(at) => format!(
                    "{title}: the service manager says that it has (re)started the service, but process {}, which ran before, still is its main process",
                    main.pid
                ),
                Some(main) => format!("{title}: process {} is the main process, but not a new one", main.pid),
                None => format!("{title}: the service has no main process after its start{}", self.last_words(installed).await),
            };
            return Err(failure(Cause::StartFailed, &message));
        }
    }

    async fn await_stopped(&self, installed: &Installed) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE;
        while self.try_status(installed).await?.active {
            if Instant::now() >= deadline {
                return Err(failure(
                    Cause::StartFailed,
                    &format!("{}: its `stop` command has ended, but its `status` command says that it still runs", installed.title()),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// What the service said last, for a message; empty if nothing is known.
    pub(crate) async fn last_words(&self, installed: &Installed) -> String {
        let words = match self.messages(installed).await {
            Ok(Messages::File { path, from }) => supervised::log_tail(&path, from).await,
            Ok(Messages::Unit(unit)) => systemd::log_tail(&self.ctx, &unit).await,
            Err(_) => String::new(),
        };
        if words.is_empty() { words } else { format!("; it last said: {words}") }
    }
}

/// Where a service's own messages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Messages {
    /// In the host's journal, under this unit.
    Unit(String),
    /// In a file, from this offset on.
    File {
        /// Appended to by the service.
        path: PathBuf,
        /// Its length when the service was last started by order.
        from: u64,
    },
}

/// Whether both run as the same service, so that starting one takes the place of
/// the other; else the one that ran must be stopped first.
#[must_use]
pub fn same_service(a: &Component, b: &Component) -> bool {
    match (&a.service, &b.service) {
        (Service::Systemd(a), Service::Systemd(b)) => a == b,
        (Service::Command { .. }, Service::Command { .. }) => a.service == b.service,
        (Service::Supervised { .. }, Service::Supervised { .. }) => a.name == b.name,
        _ => false,
    }
}
