//! Light agents: what a controller sees of an agent that has nothing to do, many
//! in one process. Real certificates, real connections, a hello and reports; no
//! files and no services.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tidegate_net::quinn::{Endpoint, VarInt};
use tidegate_net::{Caller, FrameReceiver, FrameSender, Identity, Token, client, client_config, connect, make_csr};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::message::{EnrollReply, EnrollRequest, ToAgent, ToController, VERSIONS};
use tidegate_protocol::report::{AgentFacts, HostFacts, Progress, Running, ServiceState};
use tidegate_protocol::{ComponentReport, Digest, Generation, Report};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Between two reports, as the controller asks of real agents.
const REPORT_EVERY: Duration = Duration::from_secs(3);
/// Agents that join at the same time.
const JOINING: usize = 16;

/// Agents that live until this is dropped.
#[derive(Debug)]
pub(super) struct Light {
    wanted: Option<mpsc::UnboundedSender<usize>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Debug, Default)]
struct Counts {
    welcomed: AtomicUsize,
    reports: AtomicU64,
}

impl Light {
    /// None yet; they will join the controller at `address` with `token`.
    pub(super) fn start(address: String, token: &str) -> anyhow::Result<Self> {
        let token: Token = token.parse().context("the token")?;
        let counts = Arc::new(Counts::default());
        let (wanted, asked) = mpsc::unbounded_channel();
        let shared = Arc::clone(&counts);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
            runtime.block_on(all(address, token, shared, asked))
        });
        Ok(Self { wanted: Some(wanted), counts, thread: Some(thread) })
    }

    /// So many shall there be.
    ///
    /// # Errors
    /// One could not join or was cut; the error is that one's.
    pub(super) fn grow_to(&mut self, count: usize) -> anyhow::Result<()> {
        let told = self.wanted.as_ref().is_some_and(|wanted| wanted.send(count).is_ok());
        if told { Ok(()) } else { self.failed() }
    }

    /// How many are in, and how many reports all of them have sent.
    ///
    /// # Errors
    /// As [`Light::grow_to`].
    pub(super) fn counts(&mut self) -> anyhow::Result<(usize, u64)> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            self.failed()?;
        }
        Ok((self.counts.welcomed.load(Ordering::Relaxed), self.counts.reports.load(Ordering::Relaxed)))
    }

    fn failed(&mut self) -> anyhow::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => Err(error.context("a light agent")),
            Some(Err(_)) => bail!("the thread of the light agents panicked"),
            Some(Ok(Ok(()))) | None => bail!("the light agents have ended"),
        }
    }
}

impl Drop for Light {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Fleet {
    endpoint: Endpoint,
    address: String,
    token: Token,
    counts: Arc<Counts>,
}

/// Until nobody asks any more, or one fails.
async fn all(address: String, token: Token, counts: Arc<Counts>, mut asked: mpsc::UnboundedReceiver<usize>) -> anyhow::Result<()> {
    let fleet = Arc::new(Fleet { endpoint: client(None)?, address, token, counts });
    let joining = Arc::new(Semaphore::new(JOINING));
    let mut agents = JoinSet::new();
    let mut there = 0;
    loop {
        tokio::select! {
            wanted = asked.recv() => {
                let Some(wanted) = wanted else { break };
                for number in there..wanted {
                    agents.spawn(live(Arc::clone(&fleet), number, Arc::clone(&joining)));
                }
                there = there.max(wanted);
            }
            Some(ended) = agents.join_next() => match ended.context("an agent's task")? {
                Ok(never) => match never {},
                Err(error) => return Err(error),
            },
        }
    }
    drop(agents);
    fleet.endpoint.close(VarInt::from_u32(0), b"done");
    let _ = tokio::time::timeout(Duration::from_secs(2), fleet.endpoint.wait_idle()).await;
    Ok(())
}

/// Joins, says hello, and reports for ever.
async fn live(fleet: Arc<Fleet>, number: usize, joining: Arc<Semaphore>) -> anyhow::Result<std::convert::Infallible> {
    let place = joining.acquire_owned().await.context("a place to join")?;
    let identity = enroll(&fleet, &format!("light-{number}")).await?;
    let connection = connect(&fleet.endpoint, client_config(Caller::Known(&identity))?, &fleet.address).await?;
    let (send, recv) = connection.open_bi().await.context("the control stream")?;
    let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
    let mut report = report(number)?;
    let agent = AgentFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: "6d4e1c2a-0000-4000-8000-000000000000".parse().context("a boot id")?,
        instance: number as u64,
        arch: std::env::consts::ARCH.to_owned(),
    };
    send.send(&ToController::Hello { versions: VERSIONS, agent, report: report.clone() }, CONTROL_FRAME_BYTES_MAX).await?;
    match recv.receive::<ToAgent>(CONTROL_FRAME_BYTES_MAX).await? {
        Some(ToAgent::Welcome { .. }) => {}
        other => bail!("light-{number} was not welcomed: {other:?}"),
    }
    fleet.counts.welcomed.fetch_add(1, Ordering::Relaxed);
    drop(place);
    // Spread over the interval, as a fleet's own starts spread it.
    let spread = REPORT_EVERY.mul_f64(f64::from(u32::try_from(number % 100)?) / 100.0);
    tokio::time::sleep(spread).await;
    let mut every = tokio::time::interval(REPORT_EVERY);
    loop {
        every.tick().await;
        report.sequence += 1;
        send.send(&ToController::Report(report.clone()), CONTROL_FRAME_BYTES_MAX).await?;
        fleet.counts.reports.fetch_add(1, Ordering::Relaxed);
    }
}

async fn enroll(fleet: &Fleet, name: &str) -> anyhow::Result<Identity> {
    let (csr, key) = make_csr().context("a key")?;
    let config = client_config(Caller::Enrolling { ca_pin: fleet.token.ca_pin })?;
    let connection = connect(&fleet.endpoint, config, &fleet.address).await?;
    let (send, recv) = connection.open_bi().await.context("the enrolment's stream")?;
    let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
    let request = EnrollRequest {
        secret: fleet.token.secret.clone(),
        name: name.parse().map_err(|e| anyhow!("{name}: {e}"))?,
        csr,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    send.send(&request, CONTROL_FRAME_BYTES_MAX).await?;
    let reply = recv.receive::<EnrollReply>(CONTROL_FRAME_BYTES_MAX).await?;
    connection.close(VarInt::from_u32(0), b"done");
    match reply {
        Some(EnrollReply::Granted { certificate, ca, .. }) => Ok(Identity::from_parts(certificate.into(), &key, ca.into())?),
        other => bail!("{name} did not join: {other:?}"),
    }
}

/// A host with one component that runs.
fn report(number: usize) -> anyhow::Result<Report> {
    let release = tidegate_protocol::ReleaseRef { id: "shop@1.0.0".parse().context("a release")?, manifest: Digest::of(b"manifest") };
    let component = ComponentReport {
        component: "api".parse().context("a component")?,
        generation: Generation::ZERO,
        progress: Progress::Confirmed,
        failure: None,
        current: Some(release.clone()),
        previous: Some(release),
        service: ServiceState::Running,
        running: Some(Running { pid: u32::try_from(number)?, started_at_unix_ms: 1, start_ticks: 1, sha256: Some(Digest::of(b"program")) }),
        tree_sha256: Some(Digest::of(b"tree")),
        was_unhealthy: false,
        smoke: Vec::new(),
        staged_bytes: 0,
        fetched_bytes: 0,
        cpu_permille: 10,
        memory_bytes: 1 << 24,
        restarts: 0,
        lease_left_ms: None,
    };
    let host =
        HostFacts { cpu_permille: 10, memory_bytes: 1 << 30, memory_total_bytes: 1 << 32, disk_free_bytes: 1 << 34, inodes_free: 1 << 20 };
    Ok(Report { sequence: 1, host, components: vec![component] })
}
