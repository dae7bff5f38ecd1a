//! The daemon as a process, over real QUIC: joining, a scripted agent that is led
//! through a rollout, a cloned machine, a killed controller.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic here is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidegate_controller::operator::client::{Client, ClientError, Part, Profile};
use tidegate_controller::operator::doc::{
    AuditDoc, HandoffDoc, HostDoc, HostState, ImportDoc, MissingDoc, PaperDoc, PayloadDoc, PlanDoc, StartDoc, TokenDoc, UploadDoc,
};
use tidegate_controller::operator::msg::{Blob, EXIT_PERSON, ErrorCode, Purpose, Request, Until};
use tidegate_net::{Caller, FrameReceiver, FrameSender, Identity, Token, make_csr, quinn};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::message::{EnrollReply, EnrollRequest, FetchHeader, FetchRequest, ToAgent, ToController, VERSIONS, VersionRange};
use tidegate_protocol::metric::{MetricReading, Reading};
use tidegate_protocol::report::{AgentFacts, HostFacts, Progress, Running, ServiceState};
use tidegate_protocol::{
    Assignment, ComponentReport, Digest, Intent, JournalHead, Millis, Phase, Release, Report, RolloutId, Samples, Target,
};
use tidegate_rollout::process::{Role, SignRole};
use tidegate_rollout::replay::{ReplayDoc, ReplayOutcome};
use tidegate_rollout::status::StatusDoc;
use tidegate_rollout::{DrillScope, RolloutState, TargetState};
use tokio::time::timeout;

const BYTES: &[u8] = b"#!/bin/sh\nexec sleep 1000\n";
const PATIENCE: Duration = Duration::from_secs(30);

struct Controller {
    dir: PathBuf,
    child: Child,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Controller {
    async fn start(dir: &Path, crash_at: Option<&str>) -> Self {
        let _ = std::fs::remove_file(dir.join("listening"));
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-controller"));
        command.args(["serve", "--config"]).arg(dir.join("controller.toml")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(point) = crash_at {
            command.env("TIDEGATE_CRASH_AT", point);
        }
        let this = Self { dir: dir.into(), child: command.spawn().unwrap() };
        eventually("the controller listens", || async { dir.join("listening").exists().then_some(()) }).await;
        this
    }

    async fn operator(&self) -> Client {
        Client::connect(&Profile::load(&self.dir.join("operators/admin")).unwrap()).await.unwrap()
    }

    fn addr(&self) -> String {
        format!("127.0.0.1:{}", std::fs::read_to_string(self.dir.join("listening")).unwrap().trim())
    }

    fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }
}

/// Asks again until it is so; never longer than [`PATIENCE`].
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asked = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn init(parent: &Path) -> PathBuf {
    let dir = parent.join("ctl");
    tidegate_controller::init::init(&dir, &["127.0.0.1".to_owned()], "127.0.0.1:0".parse().unwrap()).unwrap();
    dir
}

async fn document<T: serde::de::DeserializeOwned>(client: &Client, request: Request) -> T {
    serde_json::from_str(&client.document(&request).await.unwrap()).unwrap()
}

async fn refusal(client: &Client, request: Request) -> tidegate_controller::operator::msg::ErrorDoc {
    match client.document(&request).await {
        Err(ClientError::Refused(error)) => error,
        other => panic!("{request:?}: {other:?}"),
    }
}

fn manifest(version: &str) -> (Vec<u8>, Release) {
    let text = format!(
        r#"{{"schema":1,"name":"shop","version":"{version}","notes":null,"known_issues":null,"runbook":{{"deploy":null,"rollback":null}},
        "expires":null,"floor":null,"tasks":[],"components":[{{"name":"api","files":[{{"path":"bin/api","digest":"{}","size":{},"mode":365}}],
        "links":{{}},"service":{{"supervised":{{"run":["bin/api"]}}}},"proof":"executable","check":null,"before":null,"after":null,
        "arch":null,"keep":3,"smoke":[]}}]}}"#,
        Digest::of(BYTES),
        BYTES.len()
    );
    let release = serde_json::from_str(&text).unwrap();
    (text.into_bytes(), release)
}

async fn upload(client: &Client, files: &[(Digest, &[u8])]) -> Result<UploadDoc, ClientError> {
    let blobs = files.iter().map(|(digest, bytes)| Blob { digest: *digest, size: bytes.len() as u64 }).collect();
    let mut frames = client.begin(&Request::ReleaseUpload { files: blobs }).await?;
    for (_, bytes) in files {
        frames.body().write_all(bytes).await.unwrap();
    }
    frames.finish();
    Ok(serde_json::from_str(&frames.document().await?).unwrap())
}

async fn import(client: &Client, version: &str) -> ImportDoc {
    upload(client, &[(Digest::of(BYTES), BYTES)]).await.unwrap();
    document(client, Request::ReleaseImport { manifest: manifest(version).0 }).await
}

async fn token(client: &Client, name: &str) -> Token {
    let labels = BTreeMap::from([("role".to_owned(), "api".to_owned())]);
    let request = Request::TokenCreate { host: Some(name.parse().unwrap()), labels, ttl: Millis::from_secs(60), uses: 1 };
    document::<TokenDoc>(client, request).await.token.parse().unwrap()
}

async fn enroll(addr: &str, token: &Token, name: &str) -> Result<Identity, String> {
    let endpoint = tidegate_net::client(None).unwrap();
    let config = tidegate_net::client_config(Caller::Enrolling { ca_pin: token.ca_pin }).unwrap();
    let connection = tidegate_net::connect(&endpoint, config, addr).await.unwrap();
    let (send, recv) = connection.open_bi().await.unwrap();
    let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
    let (csr, key) = make_csr().unwrap();
    let request = EnrollRequest { secret: token.secret.clone(), name: name.parse().unwrap(), csr, agent_version: "0".into() };
    send.send(&request, CONTROL_FRAME_BYTES_MAX).await.unwrap();
    match recv.receive(CONTROL_FRAME_BYTES_MAX).await.unwrap().unwrap() {
        EnrollReply::Granted { certificate, ca, .. } => Ok(Identity::from_parts(certificate.into(), &key, ca.into()).unwrap()),
        EnrollReply::Refused { reason } => Err(reason),
    }
}

/// An agent that says what it is told to say.
struct Agent {
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
    send: FrameSender,
    recv: FrameReceiver,
    sequence: u64,
    said: Vec<ComponentReport>,
}

impl Agent {
    async fn connect(addr: &str, identity: &Identity, boot: &str, said: Vec<ComponentReport>) -> Self {
        Self::speaking(VERSIONS, addr, identity, boot, said).await
    }

    async fn speaking(versions: VersionRange, addr: &str, identity: &Identity, boot: &str, said: Vec<ComponentReport>) -> Self {
        let endpoint = tidegate_net::client(None).unwrap();
        let config = tidegate_net::client_config(Caller::Known(identity)).unwrap();
        let connection = tidegate_net::connect(&endpoint, config, addr).await.unwrap();
        let (send, recv) = connection.open_bi().await.unwrap();
        let agent = AgentFacts { version: "0".into(), boot_id: boot.parse().unwrap(), instance: 7, arch: "x86_64".into() };
        let mut this =
            Self { connection, _endpoint: endpoint, send: FrameSender::new(send), recv: FrameReceiver::new(recv), sequence: 0, said };
        let hello = ToController::Hello { versions, agent, report: this.report() };
        this.send.send(&hello, CONTROL_FRAME_BYTES_MAX).await.unwrap();
        match this.hear().await {
            ToAgent::Welcome { host, labels, .. } => {
                assert_eq!(host.as_str(), "a");
                assert_eq!(labels.get("role").map(String::as_str), Some("api"));
            }
            other => panic!("{other:?}"),
        }
        this
    }

    fn report(&mut self) -> Report {
        self.sequence += 1;
        Report { sequence: self.sequence, host: HostFacts { memory_bytes: 5, ..HostFacts::default() }, components: self.said.clone() }
    }

    async fn say(&mut self) {
        let report = ToController::Report(self.report());
        self.send.send(&report, CONTROL_FRAME_BYTES_MAX).await.unwrap();
    }

    /// The next word; reports go on meanwhile, as an agent's do.
    async fn hear(&mut self) -> ToAgent {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match timeout(Duration::from_secs(1), self.recv.receive::<ToAgent>(CONTROL_FRAME_BYTES_MAX)).await {
                Ok(heard) => return heard.unwrap().expect("the controller ended the stream"),
                Err(_) if tokio::time::Instant::now() < deadline => self.say().await,
                Err(_) => panic!("nothing was said"),
            }
        }
    }

    async fn assignment(&mut self) -> Assignment {
        loop {
            match self.hear().await {
                ToAgent::Assign(assignment) => return assignment,
                // Said after every welcome, and whenever it changes.
                ToAgent::Watch(_) | ToAgent::Tasks(_) | ToAgent::Outages(_) | ToAgent::Head(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The newest head, once it is at least that one.
    async fn head(&mut self, seq: u64) -> JournalHead {
        loop {
            if let ToAgent::Head(head) = self.hear().await
                && head.seq >= seq
            {
                return head;
            }
        }
    }

    /// Does as it was told and says so.
    async fn obey(&mut self, assignment: &Assignment) {
        let before = self.said.iter().find(|c| c.component == assignment.component).cloned();
        let progress = match (assignment.intent, assignment.phase) {
            (Intent::Back, _) => Progress::Reverted,
            (_, Phase::Preflight) => Progress::Checked,
            (_, Phase::Stage) => Progress::Staged,
            (_, Phase::Cancel) => Progress::Cancelled,
            (_, Phase::Swap) => Progress::Healthy,
            (_, Phase::Confirm) => Progress::Confirmed,
        };
        let flipped = assignment.intent == Intent::Back || assignment.phase >= Phase::Swap;
        let current = if flipped { assignment.target.release().cloned() } else { before.and_then(|b| b.current) };
        let tree = manifest("1").1.components[0].tree_digest();
        self.said = vec![ComponentReport {
            component: assignment.component.clone(),
            generation: assignment.generation,
            progress,
            failure: None,
            previous: None,
            service: if current.is_some() { ServiceState::Running } else { ServiceState::Absent },
            running: current.is_some().then(|| Running {
                pid: 1,
                started_at_unix_ms: 1,
                start_ticks: assignment.generation.n,
                sha256: Some(Digest::of(BYTES)),
            }),
            tree_sha256: current.is_some().then_some(tree),
            current,
            was_unhealthy: false,
            smoke: vec![],
            staged_bytes: 0,
            fetched_bytes: 0,
            cpu_permille: 0,
            memory_bytes: 0,
            restarts: 0,
            lease_left_ms: None,
        }];
        self.say().await;
    }

    async fn fetch(&self, digests: Vec<Digest>) -> Vec<Option<Vec<u8>>> {
        let (send, recv) = self.connection.open_bi().await.unwrap();
        let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
        let count = digests.len();
        send.send(&FetchRequest { digests }, CONTROL_FRAME_BYTES_MAX).await.unwrap();
        let mut out = Vec::new();
        for _ in 0..count {
            out.push(match recv.receive(CONTROL_FRAME_BYTES_MAX).await.unwrap().unwrap() {
                FetchHeader::Missing => None,
                FetchHeader::File { size } => {
                    let mut bytes = vec![0; usize::try_from(size).unwrap()];
                    recv.recv.read_exact(&mut bytes).await.unwrap();
                    Some(bytes)
                }
            });
        }
        out
    }
}

fn plan(version: &str) -> (String, String) {
    (format!("release = \"shop@{version}\"\nhosts = {{ api = \"role=api\" }}\nstrategy = \"rolling\"\n"), "plan.toml".into())
}

fn start(version: &str, run_id: Option<&str>) -> Request {
    let (spec_text, file_name) = plan(version);
    Request::RolloutStart { spec_text, file_name, run_id: run_id.map(|r| r.parse().unwrap()), confirm: None }
}

async fn status(client: &Client, id: &RolloutId) -> StatusDoc {
    document(client, Request::RolloutStatus { id: id.clone() }).await
}

async fn host_a(client: &Client) -> HostDoc {
    document(client, Request::HostShow { host: "a".parse().unwrap() }).await
}

#[tokio::test]
async fn a_host_joins_and_is_led_through_a_rollout_and_back() {
    let parent = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(&init(parent.path()), None).await;
    let client = controller.operator().await;

    let secret = token(&client, "a").await;
    let identity = enroll(&controller.addr(), &secret, "a").await.unwrap();
    let again = enroll(&controller.addr(), &secret, "a").await.unwrap_err();
    assert!(again.contains("already used"), "{again}");
    assert_eq!(host_a(&client).await.state, HostState::Offline);

    // A plan whose release is not there is refused before anything else.
    let refused = refusal(&client, start("1", None)).await;
    assert_eq!(refused.code.exit(), 5, "{refused:?}");
    let imported = import(&client, "1").await;
    assert_eq!((imported.files, imported.bytes), (1, BYTES.len() as u64));
    let missing: MissingDoc = document(&client, Request::ReleaseMissing { digests: vec![Digest::of(BYTES), Digest::of(b"x")] }).await;
    assert_eq!(missing.missing, [Digest::of(b"x")]);

    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", vec![]).await;
    let online = host_a(&client).await;
    assert_eq!((online.state, online.memory_bytes), (HostState::Online, Some(5)));
    let reference = imported.digest;
    let fetched = agent.fetch(vec![reference, Digest::of(b"x"), Digest::of(BYTES)]).await;
    assert_eq!(fetched, [Some(manifest("1").0), None, Some(BYTES.to_vec())]);

    let started: StartDoc = document(&client, start("1", Some("run"))).await;
    let mut watching = client.ask(&Request::RolloutWatch { id: started.id.clone(), after_seq: 0, stop_at_person: true }).await.unwrap();
    for phase in [Phase::Preflight, Phase::Stage, Phase::Swap, Phase::Confirm] {
        let assignment = agent.assignment().await;
        assert_eq!((assignment.phase, assignment.intent), (phase, Intent::Forward));
        assert_eq!(assignment.target.release().map(|r| r.manifest), Some(reference));
        agent.obey(&assignment).await;
    }
    let wait = Request::RolloutWait {
        id: started.id.clone(),
        until: vec![Until::State(RolloutState::Completed)],
        timeout: Some(Millis::from_secs(30)),
    };
    let waited: StatusDoc = document(&client, wait).await;
    assert_eq!(waited.state, RolloutState::Completed);
    assert_eq!(waited.hosts[0].state, TargetState::Confirmed);

    let (mut events, mut documents) = (Vec::new(), 0);
    loop {
        match watching.next().await.unwrap() {
            Part::Event(line) => events.push(serde_json::from_str::<serde_json::Value>(&line).unwrap()),
            Part::Document(_) => documents += 1,
            Part::End(exit) => break assert_eq!((exit, documents), (0, 2)),
        }
    }
    assert_eq!(events[0]["kind"], "started");
    let seqs: Vec<u64> = events.iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");

    // Back: the component was not there before.
    let back = Request::RolloutVerb { id: started.id.clone(), verb: tidegate_rollout::Verb::Rollback, reason: "not liked".into() };
    client.document(&back).await.unwrap();
    let assignment = agent.assignment().await;
    assert_eq!((assignment.intent, assignment.target.clone()), (Intent::Back, Target::Absent));
    agent.obey(&assignment).await;
    let wait = Request::RolloutWait { id: started.id.clone(), until: vec![], timeout: Some(Millis::from_secs(30)) };
    let mut frames = client.ask(&wait).await.unwrap();
    assert!(matches!(frames.next().await.unwrap(), Part::Document(_)));
    assert_eq!(frames.next().await.unwrap(), Part::End(4));

    // SIGTERM ends it cleanly; the next start knows all of it.
    client.close().await;
    assert!(controller.terminate().success());
    assert!(!controller.dir.join("journal.sqlite-wal").exists(), "a copy of the one file must be whole");
    let controller = Controller::start(&controller.dir.clone(), None).await;
    let client = controller.operator().await;
    assert_eq!(status(&client, &started.id).await.state, RolloutState::RolledBack);
    let log = std::fs::read_to_string(controller.dir.join("log")).unwrap();
    let bad: Vec<&str> =
        log.lines().filter(|l| (l.contains("WARN") || l.contains("ERROR")) && !l.contains("trust.threshold is 0")).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[tokio::test]
async fn a_cloned_machine_gets_no_work() {
    let parent = tempfile::tempdir().unwrap();
    let controller = Controller::start(&init(parent.path()), None).await;
    let client = controller.operator().await;
    let identity = enroll(&controller.addr(), &token(&client, "a").await, "a").await.unwrap();
    import(&client, "1").await;

    let mut first = Agent::connect(&controller.addr(), &identity, "boot-1", vec![]).await;
    let second = Agent::connect(&controller.addr(), &identity, "boot-2", vec![]).await;
    assert_eq!(host_a(&client).await.state, HostState::Conflict);
    let refused = refusal(&client, start("1", None)).await;
    assert!(refused.code == ErrorCode::Refused && refused.message.contains("two machines"), "{refused:?}");

    second.connection.close(tidegate_net::close::SHUTDOWN, b"");
    eventually("the conflict ends", || async { (host_a(&client).await.state == HostState::Online).then_some(()) }).await;
    document::<StartDoc>(&client, start("1", None)).await;
    assert_eq!(first.assignment().await.phase, Phase::Preflight);
}

/// A host that measures, without any command on it.
const WATCHED: &str =
    "bake = \"60s\"\nsuccess = [\"error_rate < 1%\"]\n[metrics.error_rate]\nsource = \"probe\"\nurl = \"http://127.0.0.1:1/\"\n";

#[tokio::test]
async fn an_agent_is_asked_to_measure_at_its_hello_and_an_older_one_never_is() {
    let parent = tempfile::tempdir().unwrap();
    let dir = init(parent.path());
    let controller = Controller::start(&dir, None).await;
    let client = controller.operator().await;
    let identity = enroll(&controller.addr(), &token(&client, "a").await, "a").await.unwrap();
    import(&client, "1").await;

    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", vec![]).await;
    assert_eq!(agent.hear().await, ToAgent::Watch(vec![]));
    let (spec_text, file_name) = plan("1");
    let start = Request::RolloutStart { spec_text: spec_text.clone() + WATCHED, file_name: file_name.clone(), run_id: None, confirm: None };
    let started: StartDoc = document(&client, start).await;
    let asked = loop {
        match agent.hear().await {
            ToAgent::Watch(watches) if !watches.is_empty() => break watches,
            ToAgent::Watch(_) | ToAgent::Assign(_) | ToAgent::Tasks(_) | ToAgent::Outages(_) | ToAgent::Head(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(asked[0].rollout, started.id);

    // The same host with an agent of before: orders as ever, and nothing that it does not know.
    let old = VersionRange { min: 1, max: 1 };
    let mut agent = Agent::speaking(old, &controller.addr(), &identity, "boot", vec![]).await;
    assert!(matches!(agent.hear().await, ToAgent::Assign(_)));
    let request = Request::RolloutPlan { spec_text: spec_text + WATCHED, file_name };
    let doc: PlanDoc = document(&client, request).await;
    let row = doc.readiness.iter().find(|r| r.name.contains("agent")).unwrap();
    assert!(!row.ok && row.observed.contains("a (0)"), "{row:?}");
    let why = "the agent on a (0) is too old to measure error_rate";
    assert!(doc.refused_because.iter().any(|said| said.contains(why)), "{:?}", doc.refused_because);
    eventually("it is said once", || async {
        let log = std::fs::read_to_string(dir.join("log")).unwrap();
        (log.matches("can neither measure nor switch sides").count() == 1).then_some(())
    })
    .await;

    // Who breaks a limit is cut off.
    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", vec![]).await;
    let reading = MetricReading {
        metric: "error_rate".into(),
        since_unix_ms: 1,
        reading: Reading::Histogram { bounds_us: vec![2, 1], counts: vec![0, 0, 0] },
        note: None,
    };
    let samples = Samples { component: "api".parse().unwrap(), side: None, readings: vec![reading] };
    agent.send.send(&ToController::Samples(vec![samples]), CONTROL_FRAME_BYTES_MAX).await.unwrap();
    // The reason is said once; under load it may be lost, the end is not.
    match timeout(PATIENCE, agent.connection.closed()).await.unwrap() {
        quinn::ConnectionError::ApplicationClosed(closed) => assert!(closed.to_string().contains("do not rise"), "{closed}"),
        quinn::ConnectionError::Reset => {}
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_plan_is_tried_drilled_and_judged_against_a_journal() {
    let parent = tempfile::tempdir().unwrap();
    let controller = Controller::start(&init(parent.path()), None).await;
    let client = controller.operator().await;
    let identity = enroll(&controller.addr(), &token(&client, "a").await, "a").await.unwrap();
    import(&client, "1").await;
    import(&client, "2").await;
    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", vec![]).await;
    let ended = |id: RolloutId| Request::RolloutWait { id, until: vec![], timeout: Some(Millis::from_secs(30)) };

    // A metrics server that nobody runs: said by name before anything is touched.
    let (spec_text, file_name) = plan("1");
    let asks = "success = [\"error_rate < 1%\"]\nbake = \"10s\"\n[metrics.error_rate]\nsource = \"prometheus\"\nurl = \"http://127.0.0.1:1\"\nquery = \"up\"\nunit = \"percent\"\n";
    let request = Request::RolloutPlan { spec_text: format!("{spec_text}{asks}"), file_name: file_name.clone() };
    let doc: PlanDoc = document(&client, request).await;
    let row = doc.readiness.iter().find(|r| r.name == "metric error_rate can be read").unwrap();
    assert!(!row.ok && row.observed.contains("http://127.0.0.1:1: the query `up`") && row.observed.contains("cannot connect"), "{row:?}");
    assert!(doc.refused_because.iter().any(|why| why.contains("cannot connect")), "{:?}", doc.refused_because);

    let first: StartDoc = document(&client, start("1", None)).await;
    for _ in 0..4 {
        let assignment = agent.assignment().await;
        agent.obey(&assignment).await;
    }
    assert_eq!(document::<StatusDoc>(&client, ended(first.id.clone())).await.state, RolloutState::Completed);

    // Forward, verified, back, verified.
    let (spec_text, file_name) = plan("2");
    let drill =
        Request::RolloutDrill { spec_text: spec_text.clone(), file_name: file_name.clone(), run_id: None, scope: DrillScope::First };
    let drilled: StartDoc = document(&client, drill).await;
    for phase in [Phase::Preflight, Phase::Stage, Phase::Swap, Phase::Confirm] {
        let assignment = agent.assignment().await;
        assert_eq!((assignment.phase, assignment.intent), (phase, Intent::Forward));
        agent.obey(&assignment).await;
    }
    let back = agent.assignment().await;
    assert_eq!(back.intent, Intent::Back);
    agent.obey(&back).await;
    let status: StatusDoc = document(&client, ended(drilled.id.clone())).await;
    assert!(status.drill && status.state == RolloutState::RolledBack, "{status:?}");
    let mut events = client.ask(&Request::RolloutEvents { id: drilled.id.clone() }).await.unwrap();
    let mut passed = None;
    while let Part::Event(line) = events.next().await.unwrap() {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        passed = (event["kind"] == "drilled").then(|| event["record"]["passed"].as_bool().unwrap()).or(passed);
    }
    assert_eq!(passed, Some(true));
    // Under its id a rollout is another thing.
    let taken = refusal(&client, start("2", Some(drilled.id.as_str()))).await;
    assert!(taken.cause.unwrap().contains("drills"));

    // Nothing was measured then: that is what the answer says.
    let request = Request::RolloutReplay { id: first.id, spec_text: format!("{spec_text}{WATCHED}"), file_name: file_name.clone() };
    let replayed: ReplayDoc = document(&client, request).await;
    assert_eq!((replayed.recorded, replayed.outcome), (RolloutState::Completed, ReplayOutcome::Unknown), "{replayed:?}");
    let request = Request::RolloutReplay { id: "none".parse().unwrap(), spec_text, file_name };
    assert_eq!(refusal(&client, request).await.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_killed_controller_says_the_same_order_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = init(parent.path());
    let mut controller = Controller::start(&dir, Some("controller.sent.after.ordered-swap")).await;
    let client = controller.operator().await;
    let identity = enroll(&controller.addr(), &token(&client, "a").await, "a").await.unwrap();
    import(&client, "1").await;
    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", vec![]).await;
    let started: StartDoc = document(&client, start("1", None)).await;
    for _ in [Phase::Preflight, Phase::Stage] {
        let assignment = agent.assignment().await;
        agent.obey(&assignment).await;
    }
    let before = agent.assignment().await;
    assert_eq!(before.phase, Phase::Swap);
    assert!(!controller.child.wait().unwrap().success(), "it should have died at its crash point");

    let controller = Controller::start(&dir, None).await;
    let client = controller.operator().await;
    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", agent.said.clone()).await;
    let after = agent.assignment().await;
    assert_eq!(after, before, "the same generation, or a host would swap twice");
    agent.obey(&after).await;
    let confirm = agent.assignment().await;
    assert_eq!(confirm.phase, Phase::Confirm);
    agent.obey(&confirm).await;
    eventually("the rollout completes", || async { (status(&client, &started.id).await.state == RolloutState::Completed).then_some(()) })
        .await;
}

#[tokio::test]
async fn bad_bytes_and_bad_words_change_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = init(parent.path());
    let controller = Controller::start(&dir, None).await;
    let client = controller.operator().await;

    for wrong in [&b"flipped"[..], b"flippeD", b"short"] {
        let error = upload(&client, &[(Digest::of(b"flipped!"), wrong)]).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused(ref e) if e.code == ErrorCode::Refused), "{error:?}");
    }
    // Its file is not here.
    assert_eq!(refusal(&client, Request::ReleaseImport { manifest: manifest("1").0 }).await.code, ErrorCode::Refused);
    let first = import(&client, "1").await;
    assert!(first.new_bytes > 0);
    let again: ImportDoc = document(&client, Request::ReleaseImport { manifest: manifest("1").0 }).await;
    assert_eq!((again.new_bytes, again.digest), (0, first.digest));
    // The same id with other content.
    let other = String::from_utf8(manifest("1").0).unwrap().replace("\"keep\":3", "\"keep\":4").into_bytes();
    let refused = refusal(&client, Request::ReleaseImport { manifest: other }).await;
    assert!(refused.fix.unwrap().contains("another version"));

    let (_, file_name) = plan("1");
    let typo = Request::RolloutPlan { spec_text: "relese = \"x\"".into(), file_name };
    let error = refusal(&client, typo).await;
    assert!(error.code == ErrorCode::Usage && error.message.starts_with("plan.toml: "), "{error:?}");
    let nobody = refusal(&client, start("1", None)).await;
    assert_eq!((nobody.code, nobody.code.exit()), (ErrorCode::Refused, 5), "{nobody:?}");

    // A second controller on the same state does not start.
    let second = Command::new(env!("CARGO_BIN_EXE_tidegate-controller"))
        .args(["serve", "--config"])
        .arg(dir.join("controller.toml"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another tidegate-controller runs"));
}

#[tokio::test]
async fn what_cannot_be_journaled_is_not_said() {
    let parent = tempfile::tempdir().unwrap();
    let dir = init(parent.path());
    let mut controller = Controller::start(&dir, None).await;
    let client = controller.operator().await;
    let identity = enroll(&controller.addr(), &token(&client, "a").await, "a").await.unwrap();
    import(&client, "1").await;
    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", vec![]).await;

    let journal = rusqlite::Connection::open(dir.join("journal.sqlite")).unwrap();
    let refuse = "CREATE TRIGGER full BEFORE INSERT ON journal BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END";
    journal.execute_batch(refuse).unwrap();
    // It stops: that arrives as a word or as the end of the connection, never as a start.
    match client.document(&start("1", Some("r"))).await {
        Ok(document) => panic!("{document}"),
        Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}"),
        Err(_) => {}
    }
    assert_eq!(controller.child.wait().unwrap().code(), Some(1));
    let log = std::fs::read_to_string(dir.join("log")).unwrap();
    assert!(log.contains("could not be appended to") && log.contains("disk is full"), "{log}");
    let heard = loop {
        match agent.recv.receive::<ToAgent>(CONTROL_FRAME_BYTES_MAX).await {
            // Of its hello.
            Ok(Some(ToAgent::Watch(watches))) if watches.is_empty() => {}
            Ok(Some(ToAgent::Tasks(tasks))) if tasks.is_empty() => {}
            Ok(Some(ToAgent::Outages(components))) if components.is_empty() => {}
            heard => break heard,
        }
    };
    assert!(!matches!(heard, Ok(Some(_))), "{heard:?}");

    // With room again it starts as if nothing had been asked.
    journal.execute_batch("DROP TRIGGER full").unwrap();
    drop(journal);
    let mut controller = Controller::start(&dir, None).await;
    let client = controller.operator().await;
    let started: StartDoc = document(&client, start("1", Some("r"))).await;
    assert!(!started.attached);
    client.close().await;
    controller.terminate();

    // Somebody rewrites history: the next start says so and does not go on.
    let journal = rusqlite::Connection::open(dir.join("journal.sqlite")).unwrap();
    journal.execute_batch("UPDATE journal SET at_unix_ms = at_unix_ms + 1 WHERE seq = 2").unwrap();
    drop(journal);
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate-controller"))
        .args(["serve", "--config"])
        .arg(dir.join("controller.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("chain is broken at record 2"), "{said}");
}

#[tokio::test]
async fn hosts_are_no_operators_and_viewers_only_look() {
    let parent = tempfile::tempdir().unwrap();
    let dir = init(parent.path());
    let controller = Controller::start(&dir, None).await;
    let client = controller.operator().await;
    let identity = enroll(&controller.addr(), &token(&client, "a").await, "a").await.unwrap();

    // A host that speaks the operators' language is cut off as a bad agent.
    let as_host = Client::connect(&Profile { controller: controller.addr(), identity }).await.unwrap();
    let answer = as_host.document(&Request::HostList { selector: String::new() }).await;
    assert!(!matches!(answer, Ok(_) | Err(ClientError::Refused(_))), "{answer:?}");

    let ca = tidegate_net::Ca::load(&dir.join("ca")).unwrap();
    let (certificate, key) = ca.issue_operator("guest", &["viewer".to_owned()]).unwrap();
    let profile = parent.path().join("guest");
    std::fs::create_dir(&profile).unwrap();
    for (name, text) in [("operator.crt", certificate), ("operator.key", key), ("ca.crt", ca.cert_pem())] {
        std::fs::write(profile.join(name), text).unwrap();
    }
    std::fs::write(profile.join("profile.toml"), format!("controller = \"{}\"\n", controller.addr())).unwrap();
    let guest = Client::connect(&Profile::load(&profile).unwrap()).await.unwrap();
    assert_eq!(document::<Vec<HostDoc>>(&guest, Request::HostList { selector: "role=api".into() }).await.len(), 1);
    // A plan of theirs makes the controller call nobody.
    import(&client, "1").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (spec_text, file_name) = plan("1");
    let asks = format!(
        "success = [\"error_rate < 1%\"]\nbake = \"10s\"\n[metrics.error_rate]\nsource = \"prometheus\"\nurl = \"http://{}\"\nquery = \"up\"\nunit = \"percent\"\n",
        listener.local_addr().unwrap()
    );
    let doc: PlanDoc = document(&guest, Request::RolloutPlan { spec_text: spec_text + &asks, file_name }).await;
    let row = doc.readiness.iter().find(|r| r.name == "metrics servers").unwrap();
    assert!(row.ok && row.observed.contains("role operator: error_rate"), "{row:?}");
    assert_eq!(doc.refused_because, [""; 0]);
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let denied = refusal(&guest, Request::HostDrain { host: "a".parse().unwrap(), reason: String::new() }).await;
    assert_eq!(denied.code, ErrorCode::Denied);
    assert_eq!(host_a(&client).await.state, HostState::Offline, "nothing changed");
}

/// A key of `name` in `dir`, and its line for the file of signers.
fn key(dir: &Path, name: &str) -> String {
    let done = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(dir.join(name)).status();
    assert!(done.expect("ssh-keygen; install openssh-client").success());
    format!("{name} {}", std::fs::read_to_string(dir.join(name).with_extension("pub")).unwrap())
}

/// A signature of `name` over what that purpose wants of `of`, given for `id`.
async fn signed(client: &Client, dir: &Path, name: &str, purpose: &Purpose, of: &RolloutId, id: &RolloutId) -> Request {
    let payload: PayloadDoc = document(client, Request::Payload { id: of.clone(), purpose: purpose.clone() }).await;
    let signature = tidegate_net::ssh::sign(&dir.join(name), &payload.namespace, payload.payload.as_bytes()).unwrap();
    Request::RolloutSign { id: id.clone(), purpose: purpose.clone(), signature }
}

/// All parts of an answer.
async fn parts(client: &Client, request: Request) -> Vec<String> {
    let (mut frames, mut all) = (client.ask(&request).await.unwrap(), Vec::new());
    loop {
        match frames.next().await.unwrap() {
            Part::Document(text) | Part::Event(text) => all.push(text),
            Part::End(_) => return all,
        }
    }
}

#[tokio::test]
async fn people_sign_papers_are_kept_and_hosts_witness_the_journal() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, keys) = (init(parent.path()), parent.path());
    let signers: String = ["lee", "admin", "ops"].map(|name| key(keys, name)).concat();
    std::fs::write(dir.join("signers"), signers).unwrap();
    let config = dir.join("controller.toml");
    let roles = "roles = { lee = \"security\", admin = [\"security\", \"lead\"], ops = \"ops-lead\" }";
    let text = std::fs::read_to_string(&config).unwrap();
    let more = format!("\n[environments.production]\napprovals = [\"security\"]\n[approvers]\nallowed_signers = \"signers\"\n{roles}\n");
    std::fs::write(&config, text + &more).unwrap();
    let mut controller = Controller::start(&dir, None).await;
    let client = controller.operator().await;
    let identity = enroll(&controller.addr(), &token(&client, "a").await, "a").await.unwrap();
    import(&client, "1").await;
    import(&client, "2").await;
    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", vec![]).await;
    let production = |version: &str, run: &str| {
        let (spec_text, file_name) = plan(version);
        let spec_text = format!("{spec_text}environment = \"production\"\n");
        Request::RolloutStart { spec_text, file_name, run_id: Some(run.parse().unwrap()), confirm: None }
    };

    // Somebody is waited for, and nothing is ordered.
    let one: StartDoc = document(&client, production("1", "one")).await;
    assert_eq!(status(&client, &one.id).await.state, RolloutState::AwaitingApproval);
    let mut watching = client.ask(&Request::RolloutWatch { id: one.id.clone(), after_seq: 0, stop_at_person: true }).await.unwrap();
    let exit = loop {
        if let Part::End(exit) = watching.next().await.unwrap() {
            break exit;
        }
    };
    assert_eq!(exit, EXIT_PERSON);

    // Whoever started it does not approve it, and a signature is for one rollout only.
    let approve = Purpose::Approve(Role::Security);
    let own = refusal(&client, signed(&client, keys, "admin", &approve, &one.id, &one.id).await).await;
    assert!(own.code == ErrorCode::Refused && own.message.contains("must not approve"), "{own:?}");
    let other = Request::Payload { id: one.id.clone(), purpose: Purpose::Approve(Role::Cab) };
    assert_eq!(refusal(&client, other).await.code, ErrorCode::Conflict, "nobody asked for that");
    let for_one = signed(&client, keys, "lee", &approve, &one.id, &one.id).await;
    let _: StatusDoc = document(&client, for_one.clone()).await;
    for _ in 0..4 {
        let assignment = agent.assignment().await;
        agent.obey(&assignment).await;
    }
    let wait = Request::RolloutWait { id: one.id.clone(), until: vec![], timeout: Some(Millis::from_secs(30)) };
    assert_eq!(document::<StatusDoc>(&client, wait).await.state, RolloutState::Completed);
    let two: StartDoc = document(&client, production("2", "two")).await;
    let Request::RolloutSign { signature, .. } = for_one else { unreachable!() };
    let again = refusal(&client, Request::RolloutSign { id: two.id.clone(), purpose: approve, signature }).await;
    assert!(again.cause.as_deref().is_some_and(|c| c.contains("does not fit the message")), "{again:?}");
    assert_eq!(status(&client, &two.id).await.state, RolloutState::AwaitingApproval);

    // Papers of the one that ended.
    let note = Request::RolloutNote { id: one.id.clone(), text: "support was told".into(), resolves: None };
    let _: StatusDoc = document(&client, note).await;
    let item = |item, what: Option<&str>, status: Option<&str>| Request::RolloutItem {
        id: one.id.clone(),
        item,
        what: what.map(str::to_owned),
        owner: what.map(|_| "ravi".to_owned()),
        status: status.map(str::to_owned),
        eta: None,
    };
    let first: HandoffDoc = document(&client, item(None, Some("raise the limit"), None)).await;
    assert!(!first.open.is_empty());
    assert_eq!(refusal(&client, item(Some(7), None, Some("done"))).await.code, ErrorCode::NotFound);
    let lead = Purpose::Handoff(SignRole::Lead);
    let handed: HandoffDoc = document(&client, signed(&client, keys, "admin", &lead, &one.id, &one.id).await).await;
    assert!(handed.signed.len() == 1 && handed.signed[0].current, "{:?}", handed.signed);
    // A change of what is handed over asks for a new signature.
    let changed: HandoffDoc = document(&client, item(Some(1), None, Some("done"))).await;
    assert!(changed.document != handed.document && !changed.signed[0].current, "{:?}", changed.signed);
    let wrong = refusal(&client, signed(&client, keys, "lee", &Purpose::Handoff(SignRole::OpsLead), &one.id, &one.id).await).await;
    assert!(wrong.message.contains("ops-lead"), "{wrong:?}");
    let open = refusal(&client, Request::RolloutClose { id: one.id.clone() }).await;
    assert!(open.code == ErrorCode::Refused && open.cause.is_some(), "{open:?}");
    let papers = parts(&client, Request::RolloutDocs { id: one.id.clone() }).await;
    let names: Vec<String> = papers.iter().map(|p| serde_json::from_str::<PaperDoc>(p).unwrap().name).collect();
    assert!(names.len() >= 6, "{names:?}");
    assert_eq!(parts(&client, Request::RolloutDocs { id: one.id.clone() }).await, papers, "the same journal makes the same bytes");
    let template: PaperDoc =
        document(&client, Request::RolloutReview { id: one.id.clone(), review_text: None, file_name: String::new() }).await;
    let review = Request::RolloutReview { id: one.id.clone(), review_text: Some(template.text), file_name: "review.toml".into() };
    let _: StatusDoc = document(&client, review).await;

    // The chain holds, and the host remembers its head.
    let exported = parts(&client, Request::AuditExport { after_seq: 0, rollout: None }).await;
    let head = agent.head(exported.len() as u64).await;
    agent.send.send(&ToController::Head(head), CONTROL_FRAME_BYTES_MAX).await.unwrap();
    let audit = eventually("the host is a witness", || async {
        Some(document::<AuditDoc>(&client, Request::AuditVerify).await).filter(|a| a.witnesses == 1)
    })
    .await;
    assert!(audit.ok && audit.records >= exported.len() as u64, "{audit:?}");
    let last: serde_json::Value = serde_json::from_str(exported.last().unwrap()).unwrap();
    assert_eq!(last["seq"].as_u64(), Some(exported.len() as u64));
    let only = parts(&client, Request::AuditExport { after_seq: 0, rollout: Some(one.id.clone()) }).await;
    assert!(only.len() < exported.len() && only.iter().all(|line| line.contains("\"rollout\":\"one\"")));

    // Its end is cut off while nobody looks: the controller starts, the host knows better.
    assert!(controller.terminate().success());
    let journal = dir.join("journal.sqlite");
    let removed =
        rusqlite::Connection::open(&journal).unwrap().execute(&format!("DELETE FROM journal WHERE seq >= {}", head.seq), []).unwrap();
    assert!(removed >= 1);
    assert_eq!(tidegate_controller::store::verify_file(&journal).unwrap().bad, None);
    let controller = Controller::start(&dir, None).await;
    let client = controller.operator().await;
    let mut agent = Agent::connect(&controller.addr(), &identity, "boot", agent.said.clone()).await;
    agent.send.send(&ToController::Head(head), CONTROL_FRAME_BYTES_MAX).await.unwrap();
    let audit = eventually("the host tells", || async {
        Some(document::<AuditDoc>(&client, Request::AuditVerify).await).filter(|a| a.witnesses == 1)
    })
    .await;
    assert!(!audit.ok && audit.findings.iter().any(|f| f.starts_with("a: it remembers")), "{audit:?}");
    let log = std::fs::read_to_string(dir.join("log")).unwrap();
    assert!(log.contains("memory of the journal does not fit"), "{log}");
}
