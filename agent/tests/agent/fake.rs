//! A controller for tests: real TLS, real QUIC, real frames; it assigns what the
//! test says and remembers what the agent reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_net::{Accepted, Admission, Ca, FrameReceiver, FrameSender, Identity, Peer, Token, accept, server};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::message::{EnrollReply, EnrollRequest, FetchHeader, FetchRequest, ToAgent, ToController, VERSION_PROCESS};
use tidegate_protocol::metric::MetricReading;
use tidegate_protocol::{
    Assignment, ComponentName, ComponentReport, Digest, JournalHead, Outages, Report, Samples, Side, SideAssignment, SidesReport,
    SwitchOrder, TaskOrder, TaskReport, VarDigest, Watch,
};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::timeout;

/// Longer than anything here takes, shorter than a person waits.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Depot = Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>;

pub(crate) struct FakeController {
    pub(crate) addr: SocketAddr,
    pub(crate) depot: Depot,
    ca: Arc<Ca>,
    secrets: Arc<Mutex<Vec<String>>>,
    reports: watch::Receiver<Option<Report>>,
    sides: watch::Receiver<Vec<SidesReport>>,
    samples: watch::Receiver<Vec<Samples>>,
    witness: watch::Receiver<Witness>,
    standing: Arc<Mutex<BTreeMap<String, ToAgent>>>,
    orders: broadcast::Sender<ToAgent>,
    endpoint: tidegate_net::quinn::Endpoint,
    sessions: watch::Sender<usize>,
    endings: watch::Sender<usize>,
    superseding: Arc<std::sync::atomic::AtomicBool>,
}

/// What was said in this session from version 3 on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness {
    /// Which session, from 1.
    pub(crate) session: usize,
    pub(crate) tasks: Option<Vec<TaskReport>>,
    pub(crate) outages: Option<Vec<Outages>>,
    pub(crate) vars: Option<Vec<VarDigest>>,
    pub(crate) head: Option<JournalHead>,
    /// Messages of outages.
    pub(crate) outage_messages: usize,
    /// Reports.
    pub(crate) reports: usize,
}

impl FakeController {
    pub(crate) fn start() -> Self {
        Self::speaking(VERSION_PROCESS)
    }

    /// One that agrees on this version at most.
    pub(crate) fn speaking(version: u16) -> Self {
        let ca = Arc::new(Ca::create("test").unwrap());
        let (cert, key) = ca.issue_controller(&["127.0.0.1".into()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("c.crt", &cert), ("c.key", &key), ("ca.crt", &ca.cert_pem())] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let identity = Identity::load(&dir.path().join("c.crt"), &dir.path().join("c.key"), &dir.path().join("ca.crt")).unwrap();
        let endpoint = server("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
        let addr = endpoint.local_addr().unwrap();
        let (report, reports) = watch::channel(None);
        let (sided, sides) = watch::channel(Vec::new());
        let (sampled, samples) = watch::channel(Vec::new());
        let (witnessed, witness) = watch::channel(Witness::default());
        let (orders, _) = broadcast::channel(64);
        let this = Self {
            addr,
            depot: Depot::default(),
            ca,
            secrets: Arc::default(),
            reports,
            sides,
            samples,
            witness,
            standing: Arc::default(),
            orders,
            endpoint: endpoint.clone(),
            sessions: watch::channel(0).0,
            endings: watch::channel(0).0,
            superseding: Arc::default(),
        };
        let (sessions, endings, superseding) = (this.sessions.clone(), this.endings.clone(), this.superseding.clone());
        let (out, mut accepted) = mpsc::channel(4);
        tokio::spawn(async move { accept(&endpoint, &Admission::default(), &out).await });
        let (ca, secrets, depot) = (this.ca.clone(), this.secrets.clone(), this.depot.clone());
        let (standing, orders) = (this.standing.clone(), this.orders.clone());
        let told =
            Told { report: Arc::new(report), sided: Arc::new(sided), sampled: Arc::new(sampled), witnessed: Arc::new(witnessed), version };
        tokio::spawn(async move {
            while let Some(Accepted { connection, peer }) = accepted.recv().await {
                match peer {
                    Peer::Enrolling => drop(tokio::spawn(enroll(connection, ca.clone(), secrets.clone()))),
                    Peer::Known(peer) => {
                        let host = peer.host().unwrap();
                        let (send, recv) = connection.accept_bi().await.unwrap();
                        let (standing, orders) = (standing.lock().unwrap().values().cloned().collect(), orders.subscribe());
                        let depot = depot.clone();
                        sessions.send_modify(|n| *n += 1);
                        let endings = endings.clone();
                        let superseded = superseding.load(std::sync::atomic::Ordering::SeqCst).then(|| connection.clone());
                        tokio::spawn(async move {
                            while let Ok((send, recv)) = connection.accept_bi().await {
                                tokio::spawn(fetch(FrameSender::new(send), FrameReceiver::new(recv), depot.clone()));
                            }
                        });
                        let control = control(FrameSender::new(send), FrameReceiver::new(recv), host, standing, orders, told.clone());
                        tokio::spawn(async move {
                            let Some(connection) = superseded else {
                                control.await;
                                return endings.send_modify(|n| *n += 1);
                            };
                            // As the controller does: the stream ends, then the connection.
                            let _ = timeout(Duration::from_millis(300), control).await;
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            connection.close(tidegate_net::close::SUPERSEDED, b"a newer session of this host took over");
                        });
                    }
                }
            }
        });
        this
    }

    /// Closes every connection and takes no new one.
    pub(crate) fn vanish(&self) {
        self.endpoint.close(tidegate_net::close::SHUTDOWN, b"");
    }

    /// Every session is ended soon after its welcome: a newer one took over.
    pub(crate) fn supersede_all(&self) {
        self.superseding.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    /// Waits until so many sessions were begun.
    pub(crate) async fn sessions(&self, count: usize) {
        let mut begun = self.sessions.subscribe();
        timeout(PATIENCE, begun.wait_for(|n| *n >= count)).await.unwrap().unwrap();
    }

    /// How many sessions have ended.
    pub(crate) fn endings(&self) -> usize {
        *self.endings.borrow()
    }

    /// Waits until so many have.
    pub(crate) async fn ended(&self, count: usize) {
        let mut ended = self.endings.subscribe();
        timeout(PATIENCE, ended.wait_for(|n| *n >= count)).await.unwrap().unwrap();
    }

    pub(crate) fn token(&self) -> Token {
        let token = Token::generate(self.ca.pin()).unwrap();
        self.secrets.lock().unwrap().push(token.secret.clone());
        token
    }

    pub(crate) fn store(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.depot.lock().unwrap().insert(digest, bytes.to_vec());
        digest
    }

    /// Says it now, and again at every reconnect.
    pub(crate) fn assign(&self, assignment: &Assignment) {
        self.say(assignment.component.to_string(), ToAgent::Assign(assignment.clone()));
    }

    /// The same for one side.
    pub(crate) fn assign_side(&self, side: Side, assignment: &Assignment) {
        let order = SideAssignment { side, assignment: assignment.clone() };
        self.say(format!("{}@{side}", assignment.component), ToAgent::AssignSide(order));
    }

    /// The same for a switch; after everything else at a reconnect.
    pub(crate) fn switch(&self, order: &SwitchOrder) {
        self.say(format!("~{}", order.component), ToAgent::Switch(order.clone()));
    }

    /// The same for what shall be measured, whole.
    pub(crate) fn watch(&self, watches: Vec<Watch>) {
        self.say("~~watch".to_owned(), ToAgent::Watch(watches));
    }

    /// Waits until a metric of the host is as wanted.
    pub(crate) async fn until_reading(&self, metric: &str, wanted: impl Fn(&MetricReading) -> bool) -> MetricReading {
        let mut samples = self.samples.clone();
        let found = |samples: &Vec<Samples>| samples.iter().flat_map(|s| &s.readings).find(|r| r.metric == metric && wanted(r)).cloned();
        match timeout(PATIENCE, samples.wait_for(|samples| found(samples).is_some())).await {
            Ok(samples) => found(&samples.unwrap()).unwrap(),
            Err(_) => panic!("{metric} did not come; last seen: {:#?}", self.samples.borrow()),
        }
    }

    /// The same for tasks, whole.
    pub(crate) fn tasks(&self, orders: &[TaskOrder]) {
        self.say("~~tasks".to_owned(), ToAgent::Tasks(orders.to_vec()));
    }

    /// The same for components whose outages are observed, whole.
    pub(crate) fn outages(&self, components: &[&str]) {
        let components: Vec<ComponentName> = components.iter().map(|name| name.parse().unwrap()).collect();
        self.say("~~outages".to_owned(), ToAgent::Outages(components));
    }

    /// Says the head, once.
    pub(crate) fn head(&self, head: JournalHead) {
        let _ = self.orders.send(ToAgent::Head(head));
    }

    /// Waits until what was said in the present session is as wanted.
    pub(crate) async fn until_witness(&self, what: &str, wanted: impl Fn(&Witness) -> bool) -> Witness {
        let mut witness = self.witness.clone();
        match timeout(PATIENCE, witness.wait_for(|witness| wanted(witness))).await {
            Ok(witness) => witness.unwrap().clone(),
            Err(_) => panic!("{what} did not come; last seen: {:#?}", self.witness.borrow()),
        }
    }

    /// Which session stands, or stood last.
    pub(crate) fn session(&self) -> usize {
        self.witness.borrow().session
    }

    /// Waits until a task is reported as wanted.
    pub(crate) async fn until_task(&self, what: &str, wanted: impl Fn(&TaskReport) -> bool) -> TaskReport {
        let of = |witness: &Witness| witness.tasks.iter().flatten().find(|task| wanted(task)).cloned();
        of(&self.until_witness(what, |witness| of(witness).is_some()).await).unwrap()
    }

    fn say(&self, about: String, order: ToAgent) {
        self.standing.lock().unwrap().insert(about, order.clone());
        let _ = self.orders.send(order);
    }

    /// Waits until what is said of components with sides is as wanted.
    pub(crate) async fn until_sides(&self, what: &str, wanted: impl Fn(&SidesReport) -> bool) -> SidesReport {
        let mut sides = self.sides.clone();
        match timeout(PATIENCE, sides.wait_for(|sides| sides.iter().any(&wanted))).await {
            Ok(sides) => sides.unwrap().iter().find(|one| wanted(one)).unwrap().clone(),
            Err(_) => panic!("{what} did not come; last seen: {:#?}", self.sides.borrow()),
        }
    }

    /// The host's last report.
    pub(crate) fn last(&self) -> Report {
        self.reports.borrow().clone().unwrap()
    }

    /// Waits until the component's report is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&ComponentReport) -> bool) -> ComponentReport {
        let mut reports = self.reports.clone();
        let found = |r: &Option<Report>| r.as_ref().is_some_and(|r| r.components.iter().any(&wanted));
        match timeout(PATIENCE, reports.wait_for(found)).await {
            Ok(report) => report.unwrap().as_ref().unwrap().components.iter().find(|c| wanted(c)).unwrap().clone(),
            Err(_) => panic!("{what} did not come; last seen: {:#?}", self.reports.borrow().as_ref().map(|r| &r.components)),
        }
    }
}

async fn enroll(connection: tidegate_net::quinn::Connection, ca: Arc<Ca>, secrets: Arc<Mutex<Vec<String>>>) {
    let (send, recv) = connection.accept_bi().await.unwrap();
    let (mut sender, mut receiver) = (FrameSender::new(send), FrameReceiver::new(recv));
    let request: EnrollRequest = receiver.receive(CONTROL_FRAME_BYTES_MAX).await.unwrap().unwrap();
    let known = {
        let mut secrets = secrets.lock().unwrap();
        let before = secrets.len();
        secrets.retain(|s| *s != request.secret);
        secrets.len() < before
    };
    let reply = if known {
        let certificate = ca.sign_host_csr(&request.csr, &request.name, Duration::from_secs(3600)).unwrap();
        EnrollReply::Granted { host: request.name, certificate: certificate.to_vec(), ca: ca.cert().to_vec() }
    } else {
        EnrollReply::Refused { reason: "the token was used before; create a new one".into() }
    };
    sender.send(&reply, CONTROL_FRAME_BYTES_MAX).await.unwrap();
    sender.finish();
    connection.closed().await;
}

#[derive(Clone)]
struct Told {
    report: Arc<watch::Sender<Option<Report>>>,
    sided: Arc<watch::Sender<Vec<SidesReport>>>,
    sampled: Arc<watch::Sender<Vec<Samples>>>,
    witnessed: Arc<watch::Sender<Witness>>,
    version: u16,
}

async fn control(
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    host: tidegate_protocol::HostName,
    standing: Vec<ToAgent>,
    mut orders: broadcast::Receiver<ToAgent>,
    told: Told,
) {
    let Ok(Some(ToController::Hello { report, .. })) = receiver.receive(CONTROL_FRAME_BYTES_MAX).await else { return };
    told.report.send_replace(Some(report));
    told.witnessed.send_modify(|witness| *witness = Witness { session: witness.session + 1, ..Witness::default() });
    let labels = BTreeMap::from([("role".to_owned(), "api".to_owned())]);
    let welcome = ToAgent::Welcome { version: told.version, host, report_every_ms: 200, labels };
    sender.send(&welcome, CONTROL_FRAME_BYTES_MAX).await.unwrap();
    for order in standing {
        sender.send(&order, CONTROL_FRAME_BYTES_MAX).await.unwrap();
    }
    let up = async {
        while let Ok(Some(message)) = receiver.receive(CONTROL_FRAME_BYTES_MAX).await {
            match message {
                ToController::Report(report) => {
                    told.report.send_replace(Some(report));
                    told.witnessed.send_modify(|witness| witness.reports += 1);
                }
                ToController::Sides(sides) => drop(told.sided.send_replace(sides)),
                ToController::Samples(samples) => drop(told.sampled.send_replace(samples)),
                ToController::Tasks(tasks) => told.witnessed.send_modify(|witness| witness.tasks = Some(tasks)),
                ToController::Outages(outages) => told.witnessed.send_modify(|witness| {
                    witness.outages = Some(outages);
                    witness.outage_messages += 1;
                }),
                ToController::Vars(vars) => told.witnessed.send_modify(|witness| witness.vars = Some(vars)),
                ToController::Head(head) => told.witnessed.send_modify(|witness| witness.head = Some(head)),
                ToController::Hello { .. } => {}
            }
        }
    };
    let down = async {
        while let Ok(order) = orders.recv().await {
            if sender.send(&order, CONTROL_FRAME_BYTES_MAX).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = up => {}, () = down => {} }
}

async fn fetch(mut sender: FrameSender, mut receiver: FrameReceiver, depot: Depot) {
    let Ok(Some(FetchRequest { digests })) = receiver.receive(CONTROL_FRAME_BYTES_MAX).await else { return };
    for digest in digests {
        let found = depot.lock().unwrap().get(&digest).cloned();
        let Some(bytes) = found else {
            let _ = sender.send(&FetchHeader::Missing, CONTROL_FRAME_BYTES_MAX).await;
            continue;
        };
        if sender.send(&FetchHeader::File { size: bytes.len() as u64 }, CONTROL_FRAME_BYTES_MAX).await.is_err()
            || sender.send.write_all(&bytes).await.is_err()
        {
            return;
        }
    }
    sender.finish();
}
