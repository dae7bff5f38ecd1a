//! The link to the controller: connect, hello, then reports up and assignments
//! down until it breaks, and again.
//!
//! Owns: which controller is tried when, and what of a session reaches the rest
//! of the agent. Must not: hold anything up. While there is no link everything
//! local goes on; what is sent is always the newest report, never a queue.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_net::quinn::{Connection, Endpoint};
use tidegate_net::{Caller, FrameReceiver, FrameSender, Identity, NetError, StreamError, client, client_config, close, connect, explain};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::message::{ToAgent, ToController, VERSION_PROCESS, VERSION_WATCH, VERSIONS};
use tidegate_protocol::report::AgentFacts;
use tidegate_protocol::{
    Assignment, ComponentName, JournalHead, Outages, Report, Samples, SideAssignment, SidesReport, SwitchOrder, TaskOrder, TaskReport,
    VarDigest, Watch,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::error::chain;
use crate::failpoint;

/// First and longest pause between two tries; doubled in between, each shortened
/// by a random part so that a fleet does not come back in one instant.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// A session that stood so long was well; one that ends at once after its welcome
/// is tried as patiently as one that never came about.
const STOOD: Duration = Duration::from_secs(2);
/// From the end of the control stream to that of the connection.
const LAST_WORD: Duration = Duration::from_millis(500);
/// From hello to welcome.
const WELCOME: Duration = Duration::from_secs(10);
/// What a controller may ask for between two reports.
const REPORT_EVERY_MS: std::ops::RangeInclusive<u64> = 100..=60_000;

/// What the rest of the agent is told.
pub trait Inbox: Send + Sync {
    /// Desired state of one component. Must not block.
    fn assign(&self, assignment: Assignment);
    /// The host's labels, whole. Must not block.
    fn labels(&self, labels: BTreeMap<String, String>);
    /// What shall be measured, whole. Must not block.
    fn watch(&self, watches: Vec<Watch>);
    /// Desired state of one side of a component. Must not block.
    fn assign_side(&self, order: SideAssignment);
    /// Desired state of the switch of a component. Must not block.
    fn switch(&self, order: SwitchOrder);
    /// Tasks of this host, whole. Must not block.
    fn tasks(&self, orders: Vec<TaskOrder>);
    /// Components whose outages shall be observed, whole. Must not block.
    fn outages(&self, components: Vec<ComponentName>);
    /// The head of the controller's journal. Must not block.
    fn head(&self, head: JournalHead);
}

/// Why a session ended or did not come about.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot read the identity")]
    Identity(#[source] tidegate_net::IdentityError),
    #[error("{0}")]
    Task(String),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("the control stream broke")]
    Stream(#[from] StreamError),
    #[error("the controller refused this agent: {0}")]
    Refused(String),
    #[error("the controller sent no welcome within {} s", WELCOME.as_secs())]
    NoWelcome,
    #[error("the controller's first message is not a welcome")]
    Unexpected,
    #[error("the controller speaks version {0}, this agent {min} to {max}", min = VERSIONS.min, max = VERSIONS.max)]
    Version(u16),
    #[error("the controller ended the control stream")]
    Ended,
}

impl SessionError {
    /// Trying again at once is useless.
    fn patient(&self) -> bool {
        match self {
            Self::Net(NetError::Closed { code, .. }) => {
                // Superseded: someone else holds this identity, and taking turns helps nobody.
                [close::REFUSED, close::REVOKED, close::CONFLICT, close::SUPERSEDED].iter().any(|c| c.into_inner() == *code)
            }
            Self::Refused(_) | Self::Version(_) => true,
            _ => false,
        }
    }
}

/// The agent's side of the link.
pub struct Link {
    /// `HOST:PORT`, in the order to try.
    pub controllers: Vec<String>,
    /// Holds `host.crt`, `host.key`, `ca.crt`; read at every try.
    pub identity: PathBuf,
    /// For the hello.
    pub agent: AgentFacts,
    /// What there is to tell.
    pub news: News,
    /// Set to the connection while a session stands.
    pub connection: watch::Sender<Option<Connection>>,
    /// Between two reports without a change, milliseconds.
    pub report_every: watch::Sender<u64>,
    /// What a controller says.
    pub inbox: Arc<dyn Inbox>,
}

impl Link {
    /// Keeps the link until dropped.
    pub async fn run(mut self) {
        let mut endpoint = None;
        let mut said = String::new();
        let mut backoff = BACKOFF.0;
        let controllers = std::mem::take(&mut self.controllers);
        for controller in controllers.iter().cycle() {
            let mut welcomed = false;
            let began = Instant::now();
            let ended = self.session(&mut endpoint, controller, &mut welcomed).await;
            self.connection.send_replace(None);
            let error = match ended {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if matches!(error, SessionError::Net(NetError::Dial { .. })) {
                // A socket that broke does not heal; the next try makes another.
                endpoint = None;
            }
            if welcomed {
                said.clear();
            }
            if welcomed && began.elapsed() >= STOOD {
                backoff = BACKOFF.0;
            }
            if error.patient() {
                backoff = BACKOFF.1;
            }
            let text = chain(&error);
            // Said once, not every few seconds for as long as a controller is away.
            if text == said {
                tracing::debug!(%controller, error = text, "no link to the controller");
            } else if welcomed {
                tracing::info!(%controller, reason = text, "the link to the controller ended; everything local goes on");
            } else {
                tracing::warn!(%controller, error = text, "no link to the controller; trying on");
                said = text;
            }
            tokio::time::sleep(jittered(backoff)).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
        // agent.toml names at least one controller; without one there is nothing to do.
        std::future::pending().await
    }

    async fn session(
        &mut self,
        endpoint: &mut Option<Endpoint>,
        controller: &str,
        welcomed: &mut bool,
    ) -> Result<std::convert::Infallible, SessionError> {
        let dir = self.identity.clone();
        let load = move || Identity::load(&dir.join("host.crt"), &dir.join("host.key"), &dir.join("ca.crt"));
        let identity = tokio::task::spawn_blocking(load).await.map_err(|e| SessionError::Task(e.to_string()))?;
        let identity = identity.map_err(SessionError::Identity)?;
        // Without a socket (too many open files, no network yet) it is tried again, like everything else.
        let endpoint = match endpoint {
            Some(endpoint) => endpoint,
            None => endpoint.insert(client(None)?),
        };
        let connection = connect(endpoint, client_config(Caller::Known(&identity))?, controller).await?;
        let guard = CloseOnDrop(connection.clone());
        let ended = self.talk(&connection, controller, welcomed).await;
        if matches!(ended, SessionError::Stream(_) | SessionError::Ended) {
            // A controller that ends a stream and then the connection says why with the latter.
            let _ = timeout(LAST_WORD, connection.closed()).await;
        }
        // Asked before our own close, which would take its place.
        let reason = connection.close_reason();
        drop(guard);
        // The close code says more than a broken stream.
        Err(match (ended, reason) {
            (SessionError::Stream(_) | SessionError::Ended, Some(reason)) => {
                let told = explain(connection.remote_address(), &reason);
                if matches!(reason, tidegate_net::quinn::ConnectionError::LocallyClosed) { SessionError::Ended } else { told.into() }
            }
            (ended, _) => ended,
        })
    }

    async fn talk(&mut self, connection: &Connection, controller: &str, welcomed: &mut bool) -> SessionError {
        match self.greet(connection, controller).await {
            Ok((sender, receiver, version)) => {
                *welcomed = true;
                self.connection.send_replace(Some(connection.clone()));
                let news = self.news.clone();
                tokio::select! {
                    error = read(receiver, &*self.inbox) => error,
                    error = write(sender, news, version) => error,
                }
            }
            Err(error) => error,
        }
    }

    async fn greet(&mut self, connection: &Connection, controller: &str) -> Result<(FrameSender, FrameReceiver, u16), SessionError> {
        let opened = connection.open_bi().await.map_err(|error| explain(connection.remote_address(), &error))?;
        let (mut sender, mut receiver) = (FrameSender::new(opened.0), FrameReceiver::new(opened.1));
        let first = self.news.reports.wait_for(Option::is_some).await.map_err(|_| SessionError::Ended)?.clone();
        let report = first.as_deref().ok_or(SessionError::Ended)?.clone();
        let hello = ToController::Hello { versions: VERSIONS, agent: self.agent.clone(), report };
        sender.send(&hello, CONTROL_FRAME_BYTES_MAX).await?;
        let answer =
            timeout(WELCOME, receiver.receive::<ToAgent>(CONTROL_FRAME_BYTES_MAX)).await.map_err(|_| SessionError::NoWelcome)??;
        match answer {
            Some(ToAgent::Welcome { version, host, report_every_ms, labels }) => {
                if !(VERSIONS.min..=VERSIONS.max).contains(&version) {
                    return Err(SessionError::Version(version));
                }
                tracing::info!(%controller, %host, version, "linked to the controller");
                self.report_every.send_replace(report_every_ms.clamp(*REPORT_EVERY_MS.start(), *REPORT_EVERY_MS.end()));
                self.inbox.labels(labels);
                Ok((sender, receiver, version))
            }
            Some(ToAgent::Refused { reason }) => Err(SessionError::Refused(tidegate_protocol::report::bounded(&reason))),
            Some(_) => Err(SessionError::Unexpected),
            None => Err(SessionError::Ended),
        }
    }
}

async fn read(mut receiver: FrameReceiver, inbox: &dyn Inbox) -> SessionError {
    loop {
        match receiver.receive::<ToAgent>(CONTROL_FRAME_BYTES_MAX).await {
            Ok(Some(ToAgent::Assign(assignment))) => {
                let (generation, phase) = (assignment.generation, assignment.phase);
                tracing::info!(component = %assignment.component, %generation, ?phase, rollout = %assignment.rollout, "assigned");
                inbox.assign(assignment);
            }
            Ok(Some(ToAgent::Labels(labels))) => inbox.labels(labels),
            Ok(Some(ToAgent::Watch(watches))) => inbox.watch(watches),
            Ok(Some(ToAgent::AssignSide(order))) => {
                let assignment = &order.assignment;
                let (generation, phase) = (assignment.generation, assignment.phase);
                tracing::info!(component = %assignment.component, side = %order.side, %generation, ?phase, rollout = %assignment.rollout, "assigned");
                inbox.assign_side(order);
            }
            Ok(Some(ToAgent::Switch(order))) => {
                tracing::info!(component = %order.component, to = %order.to, generation = %order.generation, rollout = %order.rollout, "told to switch");
                inbox.switch(order);
            }
            Ok(Some(ToAgent::Tasks(orders))) => inbox.tasks(orders),
            Ok(Some(ToAgent::Outages(components))) => inbox.outages(components),
            Ok(Some(ToAgent::Head(head))) => inbox.head(head),
            Ok(Some(ToAgent::Refused { reason })) => return SessionError::Refused(tidegate_protocol::report::bounded(&reason)),
            Ok(Some(ToAgent::Welcome { .. })) => return SessionError::Unexpected,
            Ok(None) => return SessionError::Ended,
            Err(error) => return error.into(),
        }
    }
}

/// What there is to tell, newest only.
#[derive(Clone)]
pub struct News {
    /// The newest report.
    pub reports: watch::Receiver<Option<Arc<Report>>>,
    /// The newest samples of all watches.
    pub samples: watch::Receiver<Option<Arc<Vec<Samples>>>>,
    /// The newest word on components with sides; none on a host without any.
    pub sides: watch::Receiver<Option<Arc<Vec<SidesReport>>>>,
    /// What is known of tasks; none while the records are read.
    pub tasks: watch::Receiver<Option<Arc<Vec<TaskReport>>>>,
    /// Times without service; none until a controller asks.
    pub outages: watch::Receiver<Option<Arc<Vec<Outages>>>>,
    /// The host's `[vars]`.
    pub vars: Arc<Vec<VarDigest>>,
    /// The highest head that is durable.
    pub head: watch::Receiver<Option<JournalHead>>,
}

/// Sends the newest of each kind whenever there is a newer one; whoever makes them
/// bounds how often.
async fn write(mut sender: FrameSender, mut news: News, version: u16) -> SessionError {
    news.reports.mark_changed();
    news.sides.mark_changed();
    news.samples.mark_changed();
    news.tasks.mark_changed();
    news.outages.mark_changed();
    news.head.mark_changed();
    let more = version >= VERSION_WATCH;
    let process = version >= VERSION_PROCESS;
    if process && let Err(error) = sender.send(&ToController::Vars(news.vars.to_vec()), CONTROL_FRAME_BYTES_MAX).await {
        return error.into();
    }
    loop {
        // A closed channel: the agent ends, and whoever ends it closes the connection.
        let message = tokio::select! {
            biased;
            changed = news.reports.changed() => match changed {
                Ok(()) => news.reports.borrow_and_update().as_deref().cloned().map(ToController::Report),
                Err(_) => return std::future::pending().await,
            },
            changed = news.sides.changed(), if more => match changed {
                Ok(()) => news.sides.borrow_and_update().as_deref().cloned().map(ToController::Sides),
                Err(_) => return std::future::pending().await,
            },
            changed = news.samples.changed(), if more => match changed {
                Ok(()) => news.samples.borrow_and_update().as_deref().cloned().map(ToController::Samples),
                Err(_) => return std::future::pending().await,
            },
            changed = news.head.changed(), if process => match changed {
                Ok(()) => news.head.borrow_and_update().map(ToController::Head),
                Err(_) => return std::future::pending().await,
            },
            changed = news.tasks.changed(), if process => match changed {
                Ok(()) => news.tasks.borrow_and_update().as_deref().cloned().map(ToController::Tasks),
                Err(_) => return std::future::pending().await,
            },
            changed = news.outages.changed(), if process => match changed {
                Ok(()) => news.outages.borrow_and_update().as_deref().cloned().map(ToController::Outages),
                Err(_) => return std::future::pending().await,
            },
        };
        let Some(message) = message else { continue };
        if matches!(message, ToController::Report(_)) {
            failpoint::hit(|| "agent.report.before".into());
            // Said again beside each report, so that one who waits knows that nothing came up.
            news.outages.mark_changed();
        }
        if let Err(error) = sender.send(&message, CONTROL_FRAME_BYTES_MAX).await {
            return error.into();
        }
    }
}

struct CloseOnDrop(Connection);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(close::SHUTDOWN, b"");
    }
}

/// Between half of it and all of it.
fn jittered(backoff: Duration) -> Duration {
    let mut random = [0; 4];
    // Without random bytes there is no jitter, and that is all.
    let _ = getrandom::fill(&mut random);
    let half = backoff / 2;
    half + half.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
}
