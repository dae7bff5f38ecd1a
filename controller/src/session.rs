//! One agent's connection: hello, reports up, assignments down, artifacts.
//!
//! Owns: what a peer may do to us (sizes, times, numbers) and when contact is
//! lost. Must not: decide anything; the host's name comes from its certificate.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use tidegate_net::{FrameReceiver, FrameSender, PeerIdentity, StreamError, close, quinn};
use tidegate_protocol::limits::{
    BUCKETS_MAX, COMPONENTS_MAX, CONTROL_FRAME_BYTES_MAX, FETCH_DIGESTS_MAX, MESSAGE_BYTES_MAX, METRIC_NAME_BYTES_MAX, OBSERVERS_MAX,
    OUTAGES_MAX, SMOKE_TESTS_MAX, TASKS_MAX, VARS_MAX,
};
use tidegate_protocol::message::{FetchHeader, FetchRequest, ToAgent, ToController, VERSION_PROCESS, VERSION_WATCH, VERSIONS};
use tidegate_protocol::metric::Reading;
use tidegate_protocol::{
    ComponentReport, Digest, HostName, JournalHead, Outages, Report, Samples, Side, SidesReport, TaskReport, VarDigest, Watch,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::core::{Admitted, CoreHandle, HeadCheck, Input};
use crate::depot::Depot;
use crate::failpoint;
use crate::outbox::{Goodbye, Outbox};
use crate::store::Store;

/// Between two reports without a change.
pub const REPORT_EVERY: Duration = Duration::from_secs(3);
/// Without a report for this long, contact is lost.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// From the connection to the hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Artifact streams served at once, over all hosts: each holds a few chunks.
pub const FETCHES_MAX: usize = 64;
/// Read and written at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// A peer that takes no byte for so long is cut.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// Longest name of what is probed for outages, and of a name in `[vars]`, bytes.
const PROBE_BYTES_MAX: usize = 1_024;

/// What every session shares; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    core: CoreHandle,
    depot: Arc<Depot>,
    store: Store,
    fetches: Arc<Semaphore>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no hello within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("no report for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("it said goodbye")]
    Finished,
    #[error("a report or a measurement breaks a limit: {0}")]
    Limit(&'static str),
    #[error("a hello came twice")]
    SecondHello,
    #[error("{0}")]
    Refused(String),
    #[error("a newer session took over")]
    Superseded,
    #[error("it joined anew with another key")]
    OtherKey,
    #[error("the controller is stopping")]
    Stopping,
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the connection was lost")]
    Connection(#[from] quinn::ConnectionError),
}

impl Sessions {
    /// For all agents of a controller.
    #[must_use]
    pub fn new(core: CoreHandle, depot: Arc<Depot>, store: Store) -> Self {
        Self { core, depot, store, fetches: Arc::new(Semaphore::new(FETCHES_MAX)) }
    }

    /// Serves one connection until it ends.
    pub async fn serve(&self, connection: quinn::Connection, identity: PeerIdentity) {
        let Some(host) = identity.host() else {
            connection.close(close::REFUSED, b"not a host's certificate");
            return;
        };
        let error = match self.run(&connection, &host, &identity).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        tracing::debug!(%host, %error, "session ended");
        let code = match &error {
            Ended::Stopping => close::SHUTDOWN,
            Ended::Refused(_) | Ended::OtherKey => close::REFUSED,
            Ended::Superseded => close::SUPERSEDED,
            _ => close::PROTOCOL,
        };
        connection.close(code, error.to_string().as_bytes());
    }

    async fn run(
        &self,
        connection: &quinn::Connection,
        host: &HostName,
        identity: &PeerIdentity,
    ) -> Result<std::convert::Infallible, Ended> {
        let (send, recv) = timeout(HELLO_TIMEOUT, connection.accept_bi()).await.map_err(|_| Ended::NoHello)??;
        let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
        let hello = timeout(HELLO_TIMEOUT, recv.receive::<ToController>(CONTROL_FRAME_BYTES_MAX)).await.map_err(|_| Ended::NoHello)??;
        let Some(ToController::Hello { versions, agent, report }) = hello else { return Err(Ended::NoHello) };
        let Some(version) = VERSIONS.agree(versions) else {
            let reason = format!(
                "this controller speaks versions {} to {}, the agent {} to {}; upgrade the older one",
                VERSIONS.min, VERSIONS.max, versions.min, versions.max
            );
            return Err(refuse(&mut send, reason).await);
        };
        check(&report)?;

        let outbox = Arc::new(Outbox::default());
        let (reply, answer) = oneshot::channel();
        let input = Input::Hello {
            host: host.clone(),
            spki: identity.spki_sha256,
            version,
            agent,
            report: Box::new(report),
            outbox: outbox.clone(),
            reply,
        };
        self.core.send(input).await.map_err(|_| Ended::Stopping)?;
        let Admitted { session, labels } = match answer.await.map_err(|_| Ended::Stopping)? {
            Ok(admitted) => admitted,
            Err(not) => {
                tracing::warn!(%host, reason = %not, addr = %connection.remote_address(), "an agent was not let in");
                return Err(refuse(&mut send, not.to_string()).await);
            }
        };
        let report_every_ms = u64::try_from(REPORT_EVERY.as_millis()).unwrap_or(u64::MAX);
        // One task for all three: idle agents are many, and each task costs memory.
        let ended = tokio::select! {
            ended = async {
                send.send(&ToAgent::Welcome { version, host: host.clone(), report_every_ms, labels }, CONTROL_FRAME_BYTES_MAX).await?;
                speak(&mut send, &outbox, host, version).await
            } => ended,
            ended = self.listen(&mut recv, host, session) => ended,
            ended = self.fetches(connection) => ended,
        };
        // Said even while stopping: it fails only when nobody is left to hear.
        let _ = self.core.send(Input::Gone { host: host.clone(), session }).await;
        ended
    }

    async fn listen(&self, recv: &mut FrameReceiver, host: &HostName, session: u64) -> Result<std::convert::Infallible, Ended> {
        // Of the heads it says only the first is looked up: the others it has from us.
        let mut remembered = false;
        loop {
            let frame = timeout(SILENCE_MAX, recv.receive::<ToController>(CONTROL_FRAME_BYTES_MAX)).await.map_err(|_| Ended::Silent)??;
            match frame {
                Some(ToController::Report(report)) => {
                    check(&report)?;
                    let input = Input::Report { host: host.clone(), session, report: Box::new(report) };
                    self.core.send(input).await.map_err(|_| Ended::Stopping)?;
                }
                Some(ToController::Samples(samples)) => {
                    check_samples(&samples)?;
                    let input = Input::Samples { host: host.clone(), session, samples };
                    self.core.send(input).await.map_err(|_| Ended::Stopping)?;
                }
                Some(ToController::Sides(sides)) => {
                    check_sides(&sides)?;
                    let input = Input::Sides { host: host.clone(), session, sides };
                    self.core.send(input).await.map_err(|_| Ended::Stopping)?;
                }
                Some(ToController::Tasks(tasks)) => {
                    check_tasks(&tasks)?;
                    let input = Input::Tasks { host: host.clone(), session, tasks };
                    self.core.send(input).await.map_err(|_| Ended::Stopping)?;
                }
                Some(ToController::Outages(outages)) => {
                    check_outages(&outages)?;
                    let input = Input::Outages { host: host.clone(), session, outages };
                    self.core.send(input).await.map_err(|_| Ended::Stopping)?;
                }
                Some(ToController::Vars(vars)) => {
                    check_vars(&vars)?;
                    let input = Input::Vars { host: host.clone(), session, vars };
                    self.core.send(input).await.map_err(|_| Ended::Stopping)?;
                }
                Some(ToController::Head(head)) => {
                    let check = if remembered { HeadCheck::Unknown } else { self.compare(head).await };
                    remembered = true;
                    let input = Input::Head { host: host.clone(), session, head, check };
                    self.core.send(input).await.map_err(|_| Ended::Stopping)?;
                }
                Some(ToController::Hello { .. }) => return Err(Ended::SecondHello),
                None => return Err(Ended::Finished),
            }
        }
    }

    /// Whether our journal has what a host remembers. Whether its end is missing is
    /// the core's to say.
    async fn compare(&self, head: JournalHead) -> HeadCheck {
        match self.store.hash_of(head.seq).await {
            Ok(Some(hash)) if hash == head.hash => HeadCheck::Fits,
            Ok(Some(_)) => HeadCheck::Differs,
            Ok(None) | Err(_) => HeadCheck::Unknown,
        }
    }

    /// Artifact streams; the peer's stream limit bounds how many there are.
    async fn fetches(&self, connection: &quinn::Connection) -> Result<std::convert::Infallible, Ended> {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept_bi() => {
                    let (send, recv) = accepted?;
                    let (depot, fetches) = (self.depot.clone(), self.fetches.clone());
                    running.spawn(async move {
                        if let Err(error) = fetch(send, recv, depot, fetches).await {
                            tracing::debug!(%error, "an artifact stream ended early");
                        }
                    });
                }
                Some(_) = running.join_next() => {}
            }
        }
    }
}

async fn refuse(send: &mut FrameSender, reason: String) -> Ended {
    if send.send(&ToAgent::Refused { reason: reason.clone() }, CONTROL_FRAME_BYTES_MAX).await.is_ok() {
        send.finish();
        // Until it has read why.
        let _ = timeout(Duration::from_secs(2), send.send.stopped()).await;
    }
    Ended::Refused(reason)
}

async fn speak(send: &mut FrameSender, outbox: &Outbox, host: &HostName, version: u16) -> Result<std::convert::Infallible, Ended> {
    let (mut told_old, mut told_no_tasks) = (false, false);
    loop {
        let mut words = outbox.take().await;
        let asks = !words.sides.is_empty() || !words.switches.is_empty() || words.watches.as_ref().is_some_and(|w| !w.is_empty());
        if version < VERSION_WATCH {
            if asks && !told_old {
                tracing::warn!(%host, version, "this agent can neither measure nor switch sides: upgrade it; its metrics stay without samples");
                told_old = true;
            }
            (words.sides, words.switches, words.watches) = (Vec::new(), Vec::new(), None);
        }
        if version < VERSION_PROCESS {
            if words.tasks.as_ref().is_some_and(|t| !t.is_empty()) && !told_no_tasks {
                tracing::warn!(%host, version, "this agent cannot run tasks: upgrade it; a rollout waits for its task there");
                told_no_tasks = true;
            }
            (words.tasks, words.outages, words.head) = (None, None, None);
        }
        if let Some(labels) = words.labels {
            send.send(&ToAgent::Labels(labels), CONTROL_FRAME_BYTES_MAX).await?;
        }
        for assignment in words.assignments {
            let message = ToAgent::Assign(assignment);
            send.send(&message, CONTROL_FRAME_BYTES_MAX).await?;
            if let ToAgent::Assign(assignment) = &message {
                failpoint::sent(assignment).await;
            }
        }
        for side in words.sides {
            let message = ToAgent::AssignSide(side);
            send.send(&message, CONTROL_FRAME_BYTES_MAX).await?;
            if let ToAgent::AssignSide(side) = &message {
                failpoint::sent(&side.assignment).await;
            }
        }
        for order in words.switches {
            send.send(&ToAgent::Switch(order), CONTROL_FRAME_BYTES_MAX).await?;
            failpoint::sent_switch().await;
        }
        if let Some(watches) = words.watches {
            watch(send, host, watches).await?;
        }
        if let Some(tasks) = words.tasks {
            let orders = !tasks.is_empty();
            send.send(&ToAgent::Tasks(tasks), CONTROL_FRAME_BYTES_MAX).await?;
            if orders {
                failpoint::sent_tasks().await;
            }
        }
        if let Some(components) = words.outages {
            send.send(&ToAgent::Outages(components), CONTROL_FRAME_BYTES_MAX).await?;
        }
        if let Some(head) = words.head {
            send.send(&ToAgent::Head(head), CONTROL_FRAME_BYTES_MAX).await?;
        }
        match words.goodbye {
            Some(Goodbye::Superseded) => return Err(Ended::Superseded),
            Some(Goodbye::OtherKey) => return Err(Ended::OtherKey),
            None => {}
        }
    }
}

/// A list that does not fit into a frame is not said: orders still must get
/// through, and a metric without samples never passes a gate.
async fn watch(send: &mut FrameSender, host: &HostName, watches: Vec<Watch>) -> Result<(), StreamError> {
    match send.send(&ToAgent::Watch(watches), CONTROL_FRAME_BYTES_MAX).await {
        Err(StreamError::Codec(error)) => {
            tracing::error!(%host, %error, "what is to be measured there does not fit into one frame; nothing is measured. Use fewer metrics or shorter patterns");
            send.send(&ToAgent::Watch(Vec::new()), CONTROL_FRAME_BYTES_MAX).await
        }
        said => said,
    }
}

/// What the frame's size does not bound yet.
fn check(report: &Report) -> Result<(), Ended> {
    if report.components.len() > COMPONENTS_MAX {
        return Err(Ended::Limit("too many components"));
    }
    report.components.iter().try_for_each(check_component)?;
    let mut names: Vec<_> = report.components.iter().map(|c| &c.component).collect();
    once(&mut names, "a component twice")
}

fn check_component(report: &ComponentReport) -> Result<(), Ended> {
    if report.smoke.len() > SMOKE_TESTS_MAX { Err(Ended::Limit("too many smoke tests")) } else { Ok(()) }
}

fn once<T: Ord>(keys: &mut [T], what: &'static str) -> Result<(), Ended> {
    keys.sort_unstable();
    if keys.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) { Err(Ended::Limit(what)) } else { Ok(()) }
}

fn check_sides(sides: &[SidesReport]) -> Result<(), Ended> {
    if sides.len() > COMPONENTS_MAX {
        return Err(Ended::Limit("too many components with sides"));
    }
    for of in sides {
        let mut names: Vec<Side> = of.sides.iter().map(|s| s.side).collect();
        once(&mut names, "a side twice")?;
        of.sides.iter().try_for_each(|s| check_component(&s.report))?;
    }
    let mut names: Vec<_> = sides.iter().map(|s| &s.component).collect();
    once(&mut names, "a component with sides twice")
}

fn check_tasks(tasks: &[TaskReport]) -> Result<(), Ended> {
    if tasks.len() > TASKS_MAX {
        return Err(Ended::Limit("too many tasks"));
    }
    if tasks.iter().any(|t| t.note.len() > MESSAGE_BYTES_MAX) {
        return Err(Ended::Limit("the note of a task is too long"));
    }
    let mut attempts: Vec<_> = tasks.iter().map(|t| (&t.rollout, t.index, t.what, t.attempt)).collect();
    once(&mut attempts, "an attempt of a task twice")
}

fn check_outages(outages: &[Outages]) -> Result<(), Ended> {
    if outages.len() > COMPONENTS_MAX {
        return Err(Ended::Limit("outages of too many components"));
    }
    for of in outages {
        if of.probe.len() > PROBE_BYTES_MAX {
            return Err(Ended::Limit("what is probed for outages is too long"));
        }
        if of.intervals.len() > OUTAGES_MAX {
            return Err(Ended::Limit("too many outages of one component"));
        }
        if of.intervals.iter().any(|i| i.to_unix_ms != 0 && i.to_unix_ms < i.from_unix_ms) {
            return Err(Ended::Limit("an outage ends before it begins"));
        }
    }
    let mut names: Vec<_> = outages.iter().map(|o| &o.component).collect();
    once(&mut names, "outages of a component twice")
}

fn check_vars(vars: &[VarDigest]) -> Result<(), Ended> {
    if vars.len() > VARS_MAX {
        return Err(Ended::Limit("too many names in [vars]"));
    }
    if vars.iter().any(|v| v.name.len() > PROBE_BYTES_MAX) {
        return Err(Ended::Limit("a name in [vars] is too long"));
    }
    let mut names: Vec<_> = vars.iter().map(|v| v.name.as_str()).collect();
    once(&mut names, "a name in [vars] twice")
}

fn check_samples(samples: &[Samples]) -> Result<(), Ended> {
    // One per watch; a component with sides may have one for each.
    if samples.len() > COMPONENTS_MAX * Side::ALL.len() {
        return Err(Ended::Limit("too many samples"));
    }
    for of in samples {
        if of.readings.len() > OBSERVERS_MAX {
            return Err(Ended::Limit("too many readings of one component"));
        }
        for reading in &of.readings {
            if reading.metric.len() > METRIC_NAME_BYTES_MAX {
                return Err(Ended::Limit("the name of a metric is too long"));
            }
            if reading.note.as_ref().is_some_and(|n| n.len() > MESSAGE_BYTES_MAX) {
                return Err(Ended::Limit("the note of a reading is too long"));
            }
            if let Reading::Histogram { bounds_us, counts } = &reading.reading {
                if counts.len() > BUCKETS_MAX {
                    return Err(Ended::Limit("a histogram has too many buckets"));
                }
                if counts.len() != bounds_us.len() + 1 {
                    return Err(Ended::Limit("a histogram's counts do not fit its bounds"));
                }
                if !bounds_us.is_sorted_by(|a, b| a < b) {
                    return Err(Ended::Limit("a histogram's bounds do not rise"));
                }
            }
        }
    }
    // Each of them is judged: a copy costs the core a look over the fleet.
    let mut watched: Vec<_> = samples.iter().map(|s| (&s.component, s.side)).collect();
    once(&mut watched, "samples of a component twice")
}

/// Why an artifact stream ended early.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("a fetch of {0} digests is over the limit of {FETCH_DIGESTS_MAX}")]
    TooMany(usize),
    #[error("the peer took no byte for {} s", WRITE_STALL.as_secs())]
    Stalled,
    #[error("no request came")]
    NoRequest,
    #[error("a file of the depot became shorter while it was read")]
    Shrunk,
    #[error(transparent)]
    Depot(#[from] crate::depot::DepotError),
    #[error("a file of the depot could not be read")]
    Read(#[source] std::io::Error),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the stream ended")]
    Write(#[from] quinn::WriteError),
}

/// What the reading thread hands to the stream.
enum Piece {
    Header(FetchHeader),
    Bytes(Vec<u8>),
    Failed(FetchError),
}

async fn fetch(send: quinn::SendStream, recv: quinn::RecvStream, depot: Arc<Depot>, fetches: Arc<Semaphore>) -> Result<(), FetchError> {
    let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
    let request =
        timeout(HELLO_TIMEOUT, recv.receive::<FetchRequest>(CONTROL_FRAME_BYTES_MAX)).await.map_err(|_| FetchError::NoRequest)??;
    let Some(request) = request else { return Err(FetchError::NoRequest) };
    if request.digests.len() > FETCH_DIGESTS_MAX {
        return Err(FetchError::TooMany(request.digests.len()));
    }
    let Ok(_place) = fetches.acquire_owned().await else { return Ok(()) };
    // One chunk waits while one is read and one is written.
    let (pieces, mut ready) = mpsc::channel(1);
    let reader = tokio::task::spawn_blocking(move || read(&depot, &request.digests, &pieces));
    while let Some(piece) = ready.recv().await {
        match piece {
            Piece::Header(header) => send.send(&header, CONTROL_FRAME_BYTES_MAX).await?,
            Piece::Bytes(bytes) => timeout(WRITE_STALL, send.send.write_chunk(bytes.into())).await.map_err(|_| FetchError::Stalled)??,
            Piece::Failed(error) => {
                tracing::error!(%error, "the depot cannot serve a file");
                return Err(error);
            }
        }
    }
    // It ended by itself: the channel is empty and closed.
    let _ = reader.await;
    send.finish();
    Ok(())
}

/// Runs on a blocking thread; ends when the stream does.
fn read(depot: &Depot, digests: &[Digest], pieces: &mpsc::Sender<Piece>) {
    for digest in digests {
        let result = read_one(depot, *digest, pieces);
        match result {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                let _ = pieces.blocking_send(Piece::Failed(error));
                return;
            }
        }
    }
}

/// `false` when nobody listens any more.
fn read_one(depot: &Depot, digest: Digest, pieces: &mpsc::Sender<Piece>) -> Result<bool, FetchError> {
    let Some((mut file, size)) = depot.open_served(digest)? else {
        return Ok(pieces.blocking_send(Piece::Header(FetchHeader::Missing)).is_ok());
    };
    if pieces.blocking_send(Piece::Header(FetchHeader::File { size })).is_err() {
        return Ok(false);
    }
    let mut left = size;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let mut chunk = vec![0; len];
        file.read_exact(&mut chunk)
            .map_err(|e| if e.kind() == std::io::ErrorKind::UnexpectedEof { FetchError::Shrunk } else { FetchError::Read(e) })?;
        left -= len as u64;
        if pieces.blocking_send(Piece::Bytes(chunk)).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::Generation;
    use tidegate_protocol::metric::MetricReading;
    use tidegate_protocol::side::SwitchProgress;

    fn samples(reading: MetricReading) -> Samples {
        Samples { component: "api".parse().unwrap(), side: None, readings: vec![reading] }
    }

    fn reading(reading: Reading) -> MetricReading {
        MetricReading { metric: "m".into(), since_unix_ms: 1, reading, note: None }
    }

    fn histogram(bounds: &[u64], counts: usize) -> Vec<Samples> {
        vec![samples(reading(Reading::Histogram { bounds_us: bounds.to_vec(), counts: vec![1; counts] }))]
    }

    fn sides(names: &[&str]) -> Vec<SidesReport> {
        let one = |name: &&str| SidesReport {
            component: name.parse().unwrap(),
            active: None,
            generation: Generation::ZERO,
            progress: SwitchProgress::None,
            failure: None,
            sides: vec![],
        };
        names.iter().map(one).collect()
    }

    #[test]
    fn measurements_keep_within_their_limits() {
        let fine = samples(reading(Reading::Count(1)));
        let long = "x".repeat(METRIC_NAME_BYTES_MAX + 1);
        let many: Vec<u64> = (0..BUCKETS_MAX as u64).collect();
        let cases: [(Vec<Samples>, Option<&str>); 10] = [
            (vec![fine.clone()], None),
            (histogram(&[1, 2, 5], 4), None),
            (histogram(&[], 1), None),
            (histogram(&[1, 2], 2), Some("fit")),
            (histogram(&[], 0), Some("fit")),
            (histogram(&[1, 1], 3), Some("rise")),
            (histogram(&many, BUCKETS_MAX + 1), Some("buckets")),
            (vec![Samples { readings: vec![reading(Reading::Failed); OBSERVERS_MAX + 1], ..fine.clone() }], Some("readings")),
            (vec![samples(MetricReading { metric: long, ..reading(Reading::Failed) })], Some("name")),
            (vec![fine; COMPONENTS_MAX * 2 + 1], Some("samples")),
        ];
        for (samples, wanted) in cases {
            match (check_samples(&samples), wanted) {
                (Ok(()), None) => {}
                (Err(Ended::Limit(found)), Some(wanted)) => assert!(found.contains(wanted), "{found}"),
                (result, wanted) => panic!("{result:?} instead of {wanted:?}"),
            }
        }
        let note = Some("x".repeat(MESSAGE_BYTES_MAX + 1));
        assert!(check_samples(&[samples(MetricReading { note, ..reading(Reading::Failed) })]).is_err());
    }

    #[test]
    fn a_component_has_its_sides_once() {
        check_sides(&sides(&["api", "web"])).unwrap();
        assert!(check_sides(&sides(&["api", "web", "api"])).is_err());
    }
}
