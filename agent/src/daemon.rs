//! The running agent: puts the parts together, and takes them down.
//!
//! Owns start-up order (lock, identity, ledger, services, link) and the end on a
//! signal. Services keep running whatever becomes of this process.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tidegate_net::Identity;
use tidegate_protocol::report::AgentFacts;
use tidegate_protocol::{
    Assignment, BootId, ComponentName, HostName, JournalHead, Report, SideAssignment, SidesReport, SwitchOrder, TaskOrder, Watch,
};
use tidegate_swap::{Record, State, Step};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::Config;
use crate::context::Context;
use crate::driver::Driver;
use crate::durable;
use crate::error::{Exit, chain};
use crate::facts::Facts;
use crate::fetch::Depot;
use crate::head::Heads;
use crate::host::Host;
use crate::ledger::{Ledger, LedgerError};
use crate::link::{Inbox, Link, News};
use crate::links::Links;
use crate::manifest::Manifests;
use crate::paths::{self, Paths};
use crate::report::Reporter;
use crate::service::Services;
use crate::slot::Slot;
use crate::store::{Store, StoreError};
use crate::tree::{TreeError, Trees};
use crate::{observe, outages, tasks, vars};

/// Between two reports until a controller says otherwise.
const REPORT_EVERY_MS: u64 = 5_000;
/// Shortest time between two reports. The first change after it is told at once;
/// a rollout waits for at least four of a host's changes, one after the other.
const REPORT_GAP: Duration = Duration::from_millis(20);
/// For all supervised services to be found or started at the agent's start; those
/// that take longer come up beside everything else.
const START_WAIT: Duration = Duration::from_secs(15);
/// For the goodbye to the controller.
const GOODBYE: Duration = Duration::from_millis(300);
const LABELS_BYTES_MAX: u64 = 1024 * 1024;

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory or file of the state.
    #[error("{path} cannot be used")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent has it.
    #[error("{path} is held by another agent: two agents never share one state directory")]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// No identity.
    #[error("there is no identity in {path}; join the fleet with `tidegate-agent enroll`")]
    Identity {
        /// Where.
        path: PathBuf,
        /// Why.
        source: tidegate_net::IdentityError,
    },
    /// An identity of something else.
    #[error("the identity in {path} is not a host's; join the fleet with `tidegate-agent enroll`")]
    NotAHost {
        /// Where.
        path: PathBuf,
    },
    /// The boot id.
    #[error("the kernel does not tell this boot's id")]
    BootId,
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The release directory.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Signals, sockets.
    #[error("{what} cannot be had")]
    System {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The host name in the certificate.
///
/// # Errors
/// [`StartError::Identity`], [`StartError::NotAHost`].
pub fn host_name(paths: &Paths) -> Result<HostName, StartError> {
    let path = paths.identity();
    let identity = Identity::load(&path.join("host.crt"), &path.join("host.key"), &path.join("ca.crt"));
    let own = identity.and_then(|identity| identity.own()).map_err(|source| StartError::Identity { path: path.clone(), source })?;
    own.host().ok_or(StartError::NotAHost { path })
}

/// What operations know of this host, apart from labels.
///
/// # Errors
/// [`StartError::BootId`].
pub fn context(config: &Config, host: HostName, opt_dir: PathBuf) -> Result<Context, StartError> {
    let system = config.paths.state == Path::new(paths::SYSTEM_STATE);
    let booted = sd_notify::booted().unwrap_or(false) && rustix::process::geteuid().is_root();
    Ok(Context {
        host,
        vars: config.vars.clone(),
        labels: RwLock::new(read_labels(&config.paths)),
        policy: config.policy.clone(),
        boot_id: boot_id()?,
        state_dir: config.paths.state.clone(),
        opt_dir,
        // Agents that share a machine (`--dir`) must not share unit names.
        systemd: system && booted,
    })
}

/// This boot, as the host's first process sees it. A system container has a boot
/// id of its own mounted over the kernel's, and `ProtectKernelTunables=` of the
/// agent's unit uncovers the latter: it would miss the container's reboots.
///
/// # Errors
/// [`StartError::BootId`].
pub fn boot_id() -> Result<BootId, StartError> {
    const KERNEL: &str = "/proc/sys/kernel/random/boot_id";
    // Not every agent may look through the first process's eyes.
    let text = std::fs::read_to_string(format!("/proc/1/root{KERNEL}")).or_else(|_| std::fs::read_to_string(KERNEL));
    text.map_err(|_| StartError::BootId)?.trim().parse().map_err(|_| StartError::BootId)
}

fn read_labels(paths: &Paths) -> BTreeMap<String, String> {
    let bytes = durable::read_bounded(&paths.labels(), LABELS_BYTES_MAX).ok().flatten().unwrap_or_default();
    // The controller says them again with every welcome.
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// One agent per state directory, for as long as the file is open.
fn lock(paths: &Paths) -> Result<File, StartError> {
    let path = paths.lock();
    let state = |source| StartError::State { path: path.clone(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(state)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::Locked { path }),
        Err(errno) => Err(state(errno.into())),
    }
}

/// A number made once per installation.
fn instance(paths: &Paths) -> Result<u64, StartError> {
    let path = paths.instance();
    let state = |source| StartError::State { path: path.clone(), source };
    let known = durable::read_bounded(&path, 64).map_err(state)?;
    if let Some(known) = known.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) {
        return Ok(known);
    }
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| state(e.into()))?;
    let number = u64::from_le_bytes(bytes);
    durable::replace(&path, format!("{number:016x}\n").as_bytes(), 0o600).map_err(state)?;
    Ok(number)
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the agent from starting.
pub async fn run(config: Config) -> Result<(), Exit> {
    start(config).await.map_err(|error| Exit::error(&error))
}

async fn start(config: Config) -> Result<(), StartError> {
    let system = |what| move |source| StartError::System { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("the signal SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("the signal SIGINT"))?;
    let state = config.paths.state.clone();
    durable::make_dir(&state, 0o700).map_err(|source| StartError::State { path: state.clone(), source })?;
    let _lock = lock(&config.paths)?;
    let host_name = host_name(&config.paths)?;
    let trees = Trees::open(&config.paths.opt)?;
    let ctx = Arc::new(context(&config, host_name.clone(), trees.root().to_owned())?);
    let agent = AgentFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: ctx.boot_id.clone(),
        instance: instance(&config.paths)?,
        arch: std::env::consts::ARCH.to_owned(),
    };
    tracing::info!(host = %host_name, version = agent.version, config = %config.paths.config.display(), "agent starts");
    if config.trust.threshold == 0 {
        tracing::warn!("releases are not verified against publisher signatures (threshold = 0 in {})", config.paths.config.display());
    }
    let (connection, connected) = watch::channel(None);
    let host = Arc::new(Host {
        services: Services::new(ctx.clone()),
        ledger: Ledger::open(config.paths.ledger())?,
        store: Store::open(config.paths.store())?,
        trees,
        links: Links::new(config.paths.links(), config.policy.paths.clone()),
        manifests: Manifests::new(config.paths.manifests()),
        depot: Depot::new(connected),
        staging: tokio::sync::RwLock::new(()),
        verified: crate::host::Verified::default(),
        ctx,
    });
    let changed = Arc::new(Notify::new());
    let driver = Arc::new(Mutex::new(Driver::new(host.clone(), changed.clone())));
    recover(&host, &driver).await?;
    let (made, reports) = watch::channel(None);
    let (report_every, every) = watch::channel(REPORT_EVERY_MS);
    let (watched, watches) = watch::channel(Vec::new());
    let (ordered, orders) = watch::channel(None);
    let (asked, wanted) = watch::channel(None);
    let heads = Arc::new(Heads::open(config.paths.head()));
    let desk =
        Desk { driver: driver.clone(), host: host.clone(), paths: config.paths.clone(), watched, ordered, asked, heads: heads.clone() };
    let (sampled, samples) = watch::channel(None);
    let of_driver = driver.clone();
    let progress = Arc::new(move |slot: &Slot| held(&of_driver).progress(slot));
    let of_driver = driver.clone();
    let active = Arc::new(move |component: &ComponentName| {
        held(&of_driver).switches().iter().find(|s| s.component == *component).and_then(|s| s.active)
    });
    let (sided, sides) = watch::channel(None);
    let (task_told, task_reports) = watch::channel(None);
    let (missed, outage_reports) = watch::channel(None);
    let (kept, head) = watch::channel(None);
    let (stop, stopped) = watch::channel(tasks::Stop::No);
    let vars = Arc::new(vars::digests(&config.vars));
    let link = Link {
        controllers: config.controllers,
        identity: config.paths.identity(),
        agent,
        news: News { reports, samples, sides, tasks: task_reports, outages: outage_reports, vars, head },
        connection,
        report_every,
        inbox: Arc::new(desk),
    };
    let ready = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if let Err(error) = ready {
        tracing::warn!(%error, "systemd was not told that the agent is ready");
    }
    let book = tasks::Book::new(config.paths.tasks());
    let mut running = std::pin::pin!(tasks::run(host.clone(), book, tasks::Ends { orders, told: task_told, stop: stopped }));
    tokio::select! {
        () = link.run() => {}
        () = report(&host, &driver, &changed, Told { made, sided }, every) => {}
        () = observe::run(host.clone(), progress, watches, sampled) => {}
        () = outages::run(host.clone(), active, wanted, missed) => {}
        () = heads.keep(kept) => {}
        () = &mut running => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("agent ends; services keep running");
    let driver = std::mem::replace(&mut *held(&driver), Driver::new(host, changed));
    let _ = timeout(GOODBYE, driver.shutdown()).await;
    // What a task has begun it may end, for a while.
    stop.send_replace(tasks::Stop::Soon);
    tokio::select! {
        () = &mut running => return Ok(()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(tasks::Stop::Now);
    running.await;
    Ok(())
}

fn held(driver: &Mutex<Driver>) -> std::sync::MutexGuard<'_, Driver> {
    // A panic while it was held leaves whole values behind.
    driver.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Goes on from the ledger. Swaps under way first: their leases run, and they
/// start what is to run. Then each standing release's service, and its machine
/// as soon as that runs.
async fn recover(host: &Arc<Host>, driver: &Mutex<Driver>) -> Result<(), StartError> {
    let ledger = host.ledger.clone();
    let read = tokio::task::spawn_blocking(move || Ok::<_, LedgerError>((ledger.read_all()?, ledger.read_switches()?))).await;
    let (records, switches) = read.map_err(|e| StartError::System { what: "a thread", source: e.into() })??;
    let (moving, standing): (Vec<_>, Vec<_>) = records.into_iter().partition(|(_, record)| record.as_ref().is_ok_and(starts_itself));
    held(driver).recover(moving);
    let mut starts = JoinSet::new();
    let mut waiting = BTreeMap::new();
    for (slot, record) in standing {
        match record {
            Ok(record) => {
                let ensured = ensure_running(host.clone(), slot.clone(), record.clone());
                let name = slot.clone();
                starts.spawn(async move {
                    ensured.await;
                    name
                });
                waiting.insert(slot, record);
            }
            Err(error) => held(driver).recover(vec![(slot, Err(error))]),
        }
    }
    let up = async {
        while let Some(done) = starts.join_next().await {
            if let Some(entry) = done.ok().and_then(|name| waiting.remove_entry(&name)) {
                held(driver).recover(vec![(entry.0, Ok(entry.1))]);
            }
        }
    };
    if timeout(START_WAIT, up).await.is_err() {
        tracing::warn!("not all services came up within {} s; going on", START_WAIT.as_secs());
    }
    starts.detach_all();
    held(driver).recover(waiting.into_iter().map(|(slot, record)| (slot, Ok(record))).collect());
    // A switch under way asks for a side that runs.
    held(driver).recover_switches(switches);
    Ok(())
}

/// Whether going on with it starts what is to run. While it only drains, or takes
/// load again, the release that the link names must run, as it does at rest.
fn starts_itself(record: &Record) -> bool {
    match record.state {
        State::Swapping(step) | State::Reverting(step, _) => !matches!(step, Step::Drain | Step::Undrain),
        State::Probation => true,
        _ => false,
    }
}

/// The release to be on when nothing is under way runs.
async fn ensure_running(host: Arc<Host>, slot: Slot, record: Record) {
    let (trees, name) = (host.trees.clone(), slot.clone());
    let current = tokio::task::spawn_blocking(move || trees.read_current(&name)).await;
    let installed = match current {
        Ok(Ok(Some(installed))) => installed,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            tracing::error!(component = %slot, error = chain(&error), "what should run cannot be told");
            return;
        }
        Err(_) => return,
    };
    // Here the link has moved, and what stands has not yet.
    let ahead = matches!(record.state, State::Healthy | State::Reverting(Step::Undrain, _));
    if record.standing.as_ref() != Some(&installed.release) && !ahead {
        return;
    }
    if let Err(failure) = host.services.ensure_running(&installed).await {
        tracing::error!(component = %slot, cause = %failure.cause, error = failure.message, "the service does not run");
    }
}

/// Where reports go.
struct Told {
    made: watch::Sender<Option<Arc<Report>>>,
    /// Stays empty on a host that never had a component with sides.
    sided: watch::Sender<Option<Arc<Vec<SidesReport>>>>,
}

/// Makes a report at every change and every few seconds.
async fn report(host: &Arc<Host>, driver: &Mutex<Driver>, changed: &Notify, told: Told, mut every: watch::Receiver<u64>) {
    let mut reporter = Reporter::new(host.clone());
    let mut facts = Facts::new(host.ctx.opt_dir.clone());
    loop {
        let began = Instant::now();
        let (seen, switches) = {
            let driver = held(driver);
            (driver.seen(), driver.switches())
        };
        let own = facts.host();
        let (report, sided) = reporter.report(seen, switches, own, &mut |process| facts.service(process.pid).into()).await;
        told.made.send_replace(Some(Arc::new(report)));
        if !sided.is_empty() {
            told.sided.send_replace(Some(Arc::new(sided)));
        }
        let next = began + Duration::from_millis(*every.borrow_and_update());
        tokio::select! {
            () = changed.notified() => {}
            // A link came up, or wants another pace.
            changed = every.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
        }
        sleep_until(began + REPORT_GAP).await;
    }
}

/// Takes the controller's words.
struct Desk {
    driver: Arc<Mutex<Driver>>,
    host: Arc<Host>,
    paths: Paths,
    watched: watch::Sender<Vec<Watch>>,
    ordered: watch::Sender<Option<Vec<TaskOrder>>>,
    asked: watch::Sender<Option<Vec<ComponentName>>>,
    heads: Arc<Heads>,
}

impl Inbox for Desk {
    fn watch(&self, watches: Vec<Watch>) {
        self.watched.send_replace(watches);
    }

    fn tasks(&self, orders: Vec<TaskOrder>) {
        self.ordered.send_replace(Some(orders));
    }

    fn outages(&self, components: Vec<ComponentName>) {
        self.asked.send_replace(Some(components));
    }

    fn head(&self, head: JournalHead) {
        self.heads.offer(head);
    }

    fn assign_side(&self, order: SideAssignment) {
        let SideAssignment { side, assignment } = order;
        held(&self.driver).assign(Slot::side(assignment.component.clone(), side), assignment);
    }

    fn switch(&self, order: SwitchOrder) {
        held(&self.driver).switch(order);
    }

    fn assign(&self, assignment: Assignment) {
        held(&self.driver).assign(Slot::plain(assignment.component.clone()), assignment);
    }

    fn labels(&self, labels: BTreeMap<String, String>) {
        {
            let mut known = self.host.ctx.labels.write().unwrap_or_else(PoisonError::into_inner);
            if *known == labels {
                return;
            }
            known.clone_from(&labels);
        }
        let path = self.paths.labels();
        // For restarts without a controller; written beside everything else.
        drop(tokio::task::spawn_blocking(move || {
            let bytes = serde_json::to_vec(&labels).map_err(io::Error::other);
            if let Err(error) = bytes.and_then(|bytes| durable::replace(&path, &bytes, 0o600)) {
                tracing::warn!(%error, "the labels were not kept");
            }
        }));
    }
}
