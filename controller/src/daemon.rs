//! `tidegate-controller serve`: opens the state, listens, hands connections on,
//! and stops in order.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_net::{Accepted, Admission, Ca, Identity, Peer, Role, close, quinn};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::approvers::Approvers;
use crate::clock::Clock;
use crate::config::Config;
use crate::core::{self, CoreHandle, Input, Outlets, Setup};
use crate::depot::Depot;
use crate::error::DaemonError;
use crate::notify::{self, Notifier};
use crate::operator::checks::Checker;
use crate::operator::keeper;
use crate::operator::server::Operators;
use crate::session::Sessions;
use crate::sources::{self, Sources};
use crate::store::{Loaded, Store};
use crate::tokens::Enrolment;

/// Beside `listening`, but kept over a stop.
const LAST_PORT: &str = "last-port";
/// Connections that passed the handshake and wait to be taken.
const ACCEPTED_QUEUE: usize = 64;
/// Hosts that enroll at once; more are told to come back.
const ENROLMENTS_MAX: usize = 64;
/// How long a stop waits for peers to hear of it.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a stop waits for the last commit.
const LAST_COMMIT: Duration = Duration::from_secs(10);

/// Everything a start opened.
struct Opened {
    ca: Arc<Ca>,
    identity: Identity,
    store: Store,
    loaded: Loaded,
    depot: Arc<Depot>,
    /// Held while the process lives: one controller per state directory.
    _lock: File,
}

/// Checks what `serve` would use, without listening or changing anything.
///
/// # Errors
/// As [`serve`].
pub fn check(config: &Config) -> Result<(), DaemonError> {
    Ca::load(&config.ca_dir())?;
    load_identity(config)?;
    Ok(())
}

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`]: what could not be opened, or the journal could not be appended to.
pub fn serve(config: &Config) -> Result<(), DaemonError> {
    // One I/O thread and one beside it: the core never waits for a peer.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(DaemonError::Runtime)?;
    let opened = open(config)?;
    let closed = opened.store.ended();
    let result = runtime.block_on(run(config, opened));
    // Blocking reads of the depot end with their streams; do not wait for slow disks.
    runtime.shutdown_timeout(Duration::from_secs(1));
    // No task holds the store any more: its log is folded into the one file.
    let _ = closed.map(|closed| closed.recv_timeout(LAST_COMMIT));
    result
}

fn load_identity(config: &Config) -> Result<Identity, DaemonError> {
    let dir = config.identity_dir();
    Ok(Identity::load(&dir.join("controller.crt"), &dir.join("controller.key"), &config.ca_dir().join("ca.crt"))?)
}

fn open(config: &Config) -> Result<Opened, DaemonError> {
    let lock = lock(&config.state)?;
    let ca = Arc::new(Ca::load(&config.ca_dir())?);
    let identity = load_identity(config)?;
    let (store, loaded) = Store::open(&config.state.join("journal.sqlite"))?;
    let depot_dir = config.state.join("depot");
    let state = |what, path: &Path| {
        let path = path.to_path_buf();
        move |e: crate::depot::DepotError| DaemonError::State { what, path, source: io::Error::other(e) }
    };
    let depot = Depot::open(&depot_dir).map_err(state("be used as the depot", &depot_dir))?;
    for row in &loaded.releases {
        match depot.manifest(row.release.manifest) {
            Ok((release, _)) => depot.serve(row.release.manifest, &release),
            // One damaged release must not stop the fleet; what needs it is refused by name.
            Err(error) => tracing::error!(release = %row.release.id, %error, "a release cannot be served; import it again"),
        }
    }
    Ok(Opened { ca, identity, store, loaded, depot: Arc::new(depot), _lock: lock })
}

fn lock(state: &Path) -> Result<File, DaemonError> {
    let path = state.join("lock");
    let failed = |source| DaemonError::State {
        what: "be opened; does `state` in controller.toml name the directory that init made?",
        path: path.clone(),
        source,
    };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DaemonError::Locked { path }),
        Err(error) => Err(failed(error.into())),
    }
}

async fn run(config: &Config, opened: Opened) -> Result<(), DaemonError> {
    let Opened { ca, identity, store, loaded, depot, _lock } = opened;
    if config.threshold == 0 {
        tracing::warn!("trust.threshold is 0: releases are not checked for signatures, every operator's import is trusted");
    }
    let clock = Clock::starting_after(loaded.last_at);
    let live = loaded.rollouts.len();
    tracing::info!(hosts = loaded.hosts.len(), rollouts = live, records = loaded.last_seq, "state is read");

    let endpoint = listen(config, &identity)?;
    let (core_handle, inputs) = CoreHandle::new();
    let (wanted, wants) = watch::channel(Vec::new());
    let (to_check, waiting) = watch::channel(Vec::new());
    let notifier = Notifier::new(config.routes.clone());
    let (notices, outcomes) = notify::Outbox::start(&notifier, clock);
    tokio::spawn(report(outcomes, core_handle.clone()));
    let outlets = Outlets { wanted, to_check, notices: Some(notices) };
    let setup = Setup { environments: config.environments.clone(), routes: notifier.known() };
    let mut core_task = tokio::spawn(core::run(store.clone(), loaded, clock, inputs, setup, outlets));
    let sources = Sources::new(config.sources.clone());
    // Ends with the core.
    tokio::spawn(sources::run(sources.clone(), core_handle.clone(), wants));
    let checker = Checker::new(depot.clone(), store.clone(), sources.clone());
    tokio::spawn(keeper::run(checker, depot.clone(), core_handle.clone(), waiting));

    let sessions = Sessions::new(core_handle.clone(), depot.clone(), store.clone());
    if let Some(Err(error)) = config.approvers.as_ref().map(Approvers::check) {
        // It is read anew for each signature: until it is mended nothing can be approved.
        tracing::warn!(%error, "the file of those who approve cannot be used");
    }
    let operators = Operators::new(core_handle.clone(), store.clone(), depot, sources, clock, ca.pin())
        .with_approvers(config.approvers.clone())
        .with_notifier(notifier)
        .within(config.environments.clone());
    let enrolment = Enrolment { ca, store, core: core_handle.clone(), clock };

    let (accepted, mut newcomers) = mpsc::channel(ACCEPTED_QUEUE);
    let accepting = {
        let endpoint = endpoint.clone();
        tokio::spawn(async move { tidegate_net::accept(&endpoint, &Admission::default(), &accepted).await })
    };

    let stop = |what| move |source| DaemonError::State { what, path: config.state.clone(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(stop("be served: no signal handler"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(stop("be served: no signal handler"))?;
    announce(config, &endpoint).await?;

    let mut enrolling = JoinSet::new();
    let mut connected = JoinSet::new();
    let result = loop {
        tokio::select! {
            Some(Accepted { connection, peer }) = newcomers.recv() => match peer {
                Peer::Enrolling if enrolling.len() >= ENROLMENTS_MAX => connection.close(close::SHUTDOWN, b"too many hosts enroll at once; try again"),
                Peer::Enrolling => {
                    let enrolment = enrolment.clone();
                    enrolling.spawn(async move { enrolment.serve(connection).await });
                }
                Peer::Known(identity) if identity.role == Role::Host => {
                    let sessions = sessions.clone();
                    connected.spawn(async move { sessions.serve(connection, identity).await });
                }
                Peer::Known(identity) => {
                    let operators = operators.clone();
                    connected.spawn(async move { operators.serve(connection, identity).await });
                }
            },
            Some(_) = enrolling.join_next() => {}
            Some(_) = connected.join_next() => {}
            ended = &mut core_task => break core_ended(ended),
            _ = terminate.recv() => { tracing::info!("SIGTERM: stopping"); break Ok(()) }
            _ = interrupt.recv() => { tracing::info!("SIGINT: stopping"); break Ok(()) }
        }
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    accepting.abort();
    let result = if result.is_ok() {
        // What is decided is in the journal already; what hosts said last is written now.
        let _ = core_handle.send(Input::Stop).await;
        timeout(LAST_COMMIT, &mut core_task).await.map_or(Ok(()), core_ended)
    } else {
        result
    };
    endpoint.close(close::SHUTDOWN, b"the controller is stopping");
    let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
    // What listens there is gone; a stale port would only mislead.
    let _ = std::fs::remove_file(config.state.join("listening"));
    result
}

/// What became of notifications, until the core or the outbox ends.
async fn report(mut outcomes: mpsc::Receiver<notify::Outcome>, core: CoreHandle) {
    while let Some(outcome) = outcomes.recv().await {
        if core.send(Input::Notified(outcome)).await.is_err() {
            return;
        }
    }
}

fn core_ended(ended: Result<Result<(), crate::store::StoreError>, tokio::task::JoinError>) -> Result<(), DaemonError> {
    match ended {
        Ok(done) => done.map_err(DaemonError::Append),
        // A defect: nothing may go on without it, and the journal is whole.
        Err(error) => Err(DaemonError::Runtime(io::Error::other(error))),
    }
}

/// With port 0 the port of the last time is taken again if it is free: hosts and
/// operators remember it, and a restart must not lose the fleet.
fn listen(config: &Config, identity: &Identity) -> Result<quinn::Endpoint, DaemonError> {
    if config.listen.port() == 0 {
        let last = std::fs::read_to_string(config.state.join(LAST_PORT)).ok().and_then(|text| text.trim().parse().ok());
        if let Some(port) = last.filter(|port| *port != 0) {
            match tidegate_net::server(SocketAddr::new(config.listen.ip(), port), identity) {
                Ok(endpoint) => return Ok(endpoint),
                Err(error) => tracing::warn!(port, %error, "the port of the last time is taken; another one is used"),
            }
        }
    }
    Ok(tidegate_net::server(config.listen, identity)?)
}

/// Says where we listen: `<state>/listening`, the log, systemd.
async fn announce(config: &Config, endpoint: &quinn::Endpoint) -> Result<(), DaemonError> {
    let path = config.state.join("listening");
    let failed = |source| DaemonError::State { what: "be written", path: path.clone(), source };
    let addr = endpoint.local_addr().map_err(failed)?;
    let to = path.clone();
    let text = format!("{}\n", addr.port());
    let last = config.state.join(LAST_PORT);
    tokio::task::spawn_blocking(move || {
        tidegate_net::write_secret(&last, text.as_bytes()).and_then(|()| tidegate_net::write_secret(&to, text.as_bytes()))
    })
    .await
    .map_err(|e| failed(io::Error::other(e)))?
    .map_err(|e| failed(io::Error::other(e)))?;
    tracing::info!(%addr, version = env!("CARGO_PKG_VERSION"), "listening");
    // Without systemd this does nothing.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    Ok(())
}
