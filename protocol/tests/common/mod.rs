//! One example of every message, and by exhaustive matches the proof that every
//! variant has one.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;

use tidegate_protocol::message::{EnrollReply, EnrollRequest, FetchHeader, FetchRequest, ToAgent, ToController, VersionRange};
use tidegate_protocol::metric::{JournalWhat, MetricReading, Number, Observer, ProbeRead, Reading, Samples, ScrapeRead, Source, Watch};
use tidegate_protocol::release::{Smoke, SmokeCheck, Suite};
use tidegate_protocol::report::{AgentFacts, Failure, HostFacts, Running, ServiceState, SmokeResult, SmokeStatus};
use tidegate_protocol::side::{Side, SideAssignment, SideReport, SidesReport, SwitchOrder, SwitchProgress};
use tidegate_protocol::{
    Assignment, Cause, ComponentReport, Digest, Generation, Intent, JournalHead, Millis, Outage, Outages, Phase, Progress, ReleaseRef,
    Report, Target, TaskOrder, TaskReport, TaskRun, TaskState, VarDigest,
};

/// An enum whose variants must all be met by the examples.
pub trait Variants {
    /// Every variant's name.
    const ALL: &'static [&'static str];
    /// This one's.
    fn variant(&self) -> &'static str;
}

/// The match is exhaustive: a new variant does not compile until it stands here,
/// and then fails the tests until an example has it.
macro_rules! variants {
    ($($type:ident { $($variant:ident),+ $(,)? })+) => {$(
        impl Variants for $type {
            const ALL: &'static [&'static str] = &[$(stringify!($variant)),+];
            fn variant(&self) -> &'static str {
                match self {
                    $($type::$variant { .. } => stringify!($variant)),+
                }
            }
        }
    )+};
}

variants! {
    ToController { Hello, Report, Samples, Sides, Tasks, Outages, Vars, Head }
    ToAgent { Welcome, Refused, Assign, Labels, Watch, AssignSide, Switch, Tasks, Outages, Head }
    FetchHeader { File, Missing }
    EnrollReply { Granted, Refused }
    Phase { Preflight, Stage, Cancel, Swap, Confirm }
    Intent { Forward, Back }
    Target { Absent, Release }
    Progress { Checking, Checked, Staging, Staged, Cancelled, Failed, Swapping, Probation, Healthy, Confirmed, Reverting, Reverted, RevertFailed }
    Cause { Smoke, StartFailed, LeaseExpired, CrashLoop, Unreachable, Verify, Policy, Disk, Drifted, Timeout, Trigger }
    ServiceState { Absent, Running, Stopped, Drifted }
    SmokeStatus { Pass, Fail, Skipped }
    Source { Probe, Scrape, Journal, Exec, Smoke }
    ProbeRead { Errors, Latency }
    ScrapeRead { Ratio, Histogram, Counter, Gauge }
    JournalWhat { Critical, NewErrors, Security }
    Reading { Ratio, Histogram, Count, Gauge, Failed }
    Side { Blue, Green }
    SwitchProgress { None, Switching, Switched, Failed, Stuck }
    Suite { Critical, Integration }
    SmokeCheck { Http, Tcp, Exec, Systemd, Journal, File }
    TaskRun { Run, Undo }
    TaskState { Staging, Running, Done, Failed, Lost }
}

const PROGRESS: [Progress; 13] = [
    Progress::Checking,
    Progress::Checked,
    Progress::Staging,
    Progress::Staged,
    Progress::Cancelled,
    Progress::Failed,
    Progress::Swapping,
    Progress::Probation,
    Progress::Healthy,
    Progress::Confirmed,
    Progress::Reverting,
    Progress::Reverted,
    Progress::RevertFailed,
];
const CAUSES: [Cause; 11] = [
    Cause::Smoke,
    Cause::StartFailed,
    Cause::LeaseExpired,
    Cause::CrashLoop,
    Cause::Unreachable,
    Cause::Verify,
    Cause::Policy,
    Cause::Disk,
    Cause::Drifted,
    Cause::Timeout,
    Cause::Trigger,
];
const SERVICES: [ServiceState; 4] = [ServiceState::Absent, ServiceState::Running, ServiceState::Stopped, ServiceState::Drifted];
const SMOKES: [SmokeStatus; 3] = [SmokeStatus::Pass, SmokeStatus::Fail, SmokeStatus::Skipped];

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn release(id: &str) -> ReleaseRef {
    ReleaseRef { id: id.parse().unwrap(), manifest: digest(id) }
}

fn labels() -> BTreeMap<String, String> {
    [("role", "api"), ("zone", "a")].map(|(k, v)| (k.into(), v.into())).into()
}

/// Every value of the enums inside a report, and both sides of every `Option`.
fn components() -> Vec<ComponentReport> {
    PROGRESS
        .iter()
        .enumerate()
        .map(|(i, progress)| {
            let n = u64::try_from(i).unwrap();
            let small = u32::try_from(i).unwrap();
            let full = i % 2 == 0;
            ComponentReport {
                component: format!("api-{i}").parse().unwrap(),
                generation: Generation::new(small % 3, n * 100),
                progress: *progress,
                failure: CAUSES.get(i).map(|cause| Failure { cause: *cause, message: format!("why {cause}") }),
                current: full.then(|| release("shop@2.1.0")),
                previous: (!full).then(|| release("shop@2.0.9")),
                service: SERVICES[i % SERVICES.len()],
                running: full.then(|| Running {
                    pid: 4_000 + small,
                    started_at_unix_ms: 1_700_000_000_000,
                    start_ticks: 123_456_789,
                    sha256: (i % 4 == 0).then(|| digest("bin/api")),
                }),
                tree_sha256: full.then(|| digest("tree")),
                was_unhealthy: i == 11,
                smoke: SMOKES
                    .iter()
                    .take(i % 4)
                    .map(|status| SmokeResult { id: "SMK-001".into(), status: *status, duration_ms: 12 * n, message: "200 Welcome".into() })
                    .collect(),
                staged_bytes: n << 20,
                fetched_bytes: n << 10,
                cpu_permille: small,
                memory_bytes: n << 30,
                restarts: small,
                lease_left_ms: full.then_some(120_000),
            }
        })
        .collect()
}

fn report() -> Report {
    Report {
        sequence: 7,
        host: HostFacts {
            cpu_permille: 250,
            memory_bytes: 1 << 30,
            memory_total_bytes: 1 << 34,
            disk_free_bytes: 1 << 40,
            inodes_free: 1_000_000,
        },
        components: components(),
    }
}

fn assignment(phase: Phase, intent: Intent, target: Target) -> Assignment {
    let forward = intent == Intent::Forward;
    Assignment {
        generation: Generation::new(1, 42),
        component: "api".parse().unwrap(),
        rollout: "r-20261123-1".parse().unwrap(),
        intent,
        target,
        phase,
        healthy_deadline: Millis::from_secs(300),
        confirm_within: Millis::from_secs(120),
        accept_drift: !forward,
        integration: forward,
        reversible: forward,
    }
}

fn text(text: &str) -> String {
    text.to_owned()
}

/// Every source, with every read of it.
fn sources() -> Vec<Source> {
    let probe =
        |read| Source::Probe { url: text("http://127.0.0.1:${var.port}/healthz"), per_minute: 600, timeout: Millis::from_secs(2), read };
    let scrape = |read| Source::Scrape { url: text("http://127.0.0.1:9100/metrics"), read };
    let journal = |what, patterns: &[&str]| Source::Journal { what, patterns: patterns.iter().map(|p| text(p)).collect() };
    let bad = text("http_requests_total{code=~\"5..\"}");
    vec![
        probe(ProbeRead::Errors),
        probe(ProbeRead::Latency),
        scrape(ScrapeRead::Ratio { bad, total: text("http_requests_total") }),
        scrape(ScrapeRead::Histogram { name: text("http_request_duration_seconds") }),
        scrape(ScrapeRead::Counter { series: text("jobs_failed_total") }),
        scrape(ScrapeRead::Gauge { series: text("queue_length{queue!=\"mail\"}") }),
        journal(JournalWhat::Critical, &["panic", "FATAL"]),
        journal(JournalWhat::NewErrors, &[]),
        journal(JournalWhat::Security, &["token replayed"]),
        Source::Exec { run: vec![text("bin/depth"), text("${side}")] },
        Source::Smoke,
    ]
}

fn watches() -> Vec<Watch> {
    let watch = |component: &str, side, observers| Watch {
        component: component.parse().unwrap(),
        rollout: "r-20261123-1".parse().unwrap(),
        side,
        every: Millis::from_secs(5),
        observers,
    };
    let observers = sources().into_iter().enumerate().map(|(i, source)| Observer { metric: format!("metric_{i}"), source }).collect();
    vec![watch("api", None, observers), watch("web", Some(Side::Blue), Vec::new()), watch("web", Some(Side::Green), Vec::new())]
}

fn samples() -> Vec<Samples> {
    let readings = [
        (Reading::Ratio { bad: 3, total: 70_000 }, Some(text("GET http://127.0.0.1:8080/ → 503"))),
        (Reading::Histogram { bounds_us: vec![250, 500, 1_000, 60_000_000], counts: vec![0, 12, 300, 7, 1] }, None),
        (Reading::Count(1), Some(text("FATAL: no disk"))),
        // Not zero, which has two spellings that are equal.
        (Reading::Gauge(Number::new(-0.125).unwrap()), None),
        (Reading::Failed, Some(text("not installed yet"))),
    ];
    let readings = readings.into_iter().enumerate().map(|(i, (reading, note))| MetricReading {
        metric: format!("metric_{i}"),
        since_unix_ms: 1_700_000_000_000,
        reading,
        note,
    });
    let empty = |side| Samples { component: "web".parse().unwrap(), side: Some(side), readings: Vec::new() };
    vec![Samples { component: "api".parse().unwrap(), side: None, readings: readings.collect() }, empty(Side::Blue), empty(Side::Green)]
}

/// Every progress of a switch, and both sides of every `Option`.
fn sides() -> Vec<SidesReport> {
    let side = |side| SideReport { side, report: components().swap_remove(usize::from(side == Side::Green)) };
    let of = |progress, active: Option<Side>, failure: Option<&str>, sides: Vec<SideReport>| SidesReport {
        component: "web".parse().unwrap(),
        active,
        generation: Generation::new(1, 44),
        progress,
        failure: failure.map(|message| Failure { cause: Cause::Smoke, message: text(message) }),
        sides,
    };
    vec![
        of(SwitchProgress::None, None, None, Vec::new()),
        of(SwitchProgress::Switching, Some(Side::Blue), None, vec![side(Side::Blue)]),
        of(SwitchProgress::Switched, Some(Side::Green), None, vec![side(Side::Blue), side(Side::Green)]),
        of(SwitchProgress::Failed, Some(Side::Blue), Some("GET / → 502, 200 wanted"), Vec::new()),
        of(SwitchProgress::Stuck, Some(Side::Blue), Some("lb-switch → exit code 3"), Vec::new()),
    ]
}

/// Without a verification, and with each kind of it.
fn switches() -> Vec<SwitchOrder> {
    let checks = [
        SmokeCheck::Http { url: text("http://127.0.0.1/"), status: 200, body: Some(text("Welcome")) },
        SmokeCheck::Tcp { address: text("127.0.0.1:80") },
        SmokeCheck::Exec { run: vec![text("bin/verify"), text("${side}")] },
        SmokeCheck::Systemd { max_restarts: 1 },
        SmokeCheck::Journal { deny: vec![text("FATAL")], watch: Millis::from_secs(3) },
        SmokeCheck::File { path: text("etc/active"), sha256: digest("active") },
    ];
    let smokes = checks.into_iter().enumerate().map(|(i, check)| Smoke {
        id: format!("SW-{i}"),
        name: text("The front shows it"),
        suite: if i == 0 { Suite::Critical } else { Suite::Integration },
        check,
        timeout: Millis::from_secs(2),
        retry_for: Millis::from_secs(10),
    });
    let order = |(i, verify): (usize, Option<Smoke>)| SwitchOrder {
        generation: Generation::new(1, 44),
        component: "web".parse().unwrap(),
        rollout: "r-20261123-1".parse().unwrap(),
        to: Side::ALL[i % 2],
        release: release("shop@2.1.0"),
        run: vec![text("lb-switch"), text("${side}")],
        verify,
    };
    std::iter::once(None).chain(smokes.map(Some)).enumerate().map(order).collect()
}

/// A backup that ran, and a migration that is taken back.
fn task_orders() -> Vec<TaskOrder> {
    let order = |index, what, attempt, minutes: u64| TaskOrder {
        rollout: "r-20261123-1".parse().unwrap(),
        index,
        release: release("shop@2.1.0"),
        what,
        attempt,
        deadline: Millis::from_secs(minutes * 60),
    };
    vec![order(0, TaskRun::Run, 1, 30), order(300, TaskRun::Undo, 2, 5)]
}

/// Every state, and both commands.
fn task_reports() -> Vec<TaskReport> {
    let states = [
        (TaskState::Staging, "", 0, 0),
        (TaskState::Running, "", 1_700_000_000_000, 0),
        (TaskState::Done, "backup-20261123.tar.zst, 4711 rows", 1_700_000_000_000, 61_250),
        (TaskState::Failed, "no space left on device; exit code 3", 1_700_000_000_000, 12),
        (TaskState::Lost, "the agent went down while it ran", 1_700_000_000_000, 0),
    ];
    let report = |(i, (state, note, started_at_unix_ms, duration_ms)): (u16, (TaskState, &str, u64, u64))| TaskReport {
        rollout: "r-20261123-1".parse().unwrap(),
        index: i,
        what: if i % 2 == 0 { TaskRun::Run } else { TaskRun::Undo },
        attempt: u32::from(i) + 1,
        state,
        note: text(note),
        started_at_unix_ms,
        duration_ms,
    };
    (0..).zip(states).map(report).collect()
}

/// One that goes on, one that is over, and a component that nothing is known of.
fn outages() -> Vec<Outages> {
    let over = Outage { from_unix_ms: 1_700_000_000_500, to_unix_ms: 1_700_000_002_000 };
    let on = Outage { from_unix_ms: 1_700_000_010_000, to_unix_ms: 0 };
    let of = |component: &str, probe: &str, intervals| Outages {
        component: component.parse().unwrap(),
        probe: text(probe),
        since_unix_ms: 1_700_000_000_000,
        intervals,
    };
    vec![of("api", "http://127.0.0.1:8080/", vec![over, on]), of("db", "tcp://127.0.0.1:5432", Vec::new()), of("batch", "", Vec::new())]
}

fn head() -> JournalHead {
    JournalHead { seq: 4_711, hash: digest("record 4711") }
}

/// `(file name, message)`.
pub type Examples<T> = Vec<(String, T)>;

pub fn to_controller() -> Examples<ToController> {
    let agent = AgentFacts {
        version: "0.1.0".into(),
        boot_id: "3f2a8c1e-0000-4000-8000-000000000001".parse().unwrap(),
        instance: u64::MAX,
        arch: "x86_64".into(),
    };
    vec![
        ("to-controller.hello".into(), ToController::Hello { versions: VersionRange { min: 1, max: 1 }, agent, report: report() }),
        ("to-controller.report".into(), ToController::Report(report())),
        ("to-controller.samples".into(), ToController::Samples(samples())),
        ("to-controller.sides".into(), ToController::Sides(sides())),
        ("to-controller.tasks".into(), ToController::Tasks(task_reports())),
        ("to-controller.outages".into(), ToController::Outages(outages())),
        (
            "to-controller.vars".into(),
            ToController::Vars(
                ["port=8081", "workers=4"].map(|pair| VarDigest { name: pair.split('=').take(1).collect(), digest: digest(pair) }).into(),
            ),
        ),
        ("to-controller.head".into(), ToController::Head(head())),
    ]
}

pub fn to_agent() -> Examples<ToAgent> {
    let mut all = vec![
        (
            "to-agent.welcome".to_string(),
            ToAgent::Welcome { version: 1, host: "web-1.example".parse().unwrap(), report_every_ms: 5_000, labels: labels() },
        ),
        ("to-agent.refused".into(), ToAgent::Refused { reason: "web-1 is revoked; enroll it again".into() }),
        ("to-agent.labels".into(), ToAgent::Labels(labels())),
        ("to-agent.watch".into(), ToAgent::Watch(watches())),
        ("to-agent.watch.none".into(), ToAgent::Watch(Vec::new())),
        ("to-agent.tasks".into(), ToAgent::Tasks(task_orders())),
        ("to-agent.tasks.none".into(), ToAgent::Tasks(Vec::new())),
        ("to-agent.outages".into(), ToAgent::Outages(vec!["api".parse().unwrap(), "batch".parse().unwrap()])),
        ("to-agent.outages.none".into(), ToAgent::Outages(Vec::new())),
        ("to-agent.head".into(), ToAgent::Head(head())),
    ];
    for (side, phase) in [(Side::Blue, Phase::Stage), (Side::Green, Phase::Swap)] {
        let assignment = assignment(phase, Intent::Forward, Target::Release(release("shop@2.1.0")));
        all.push((format!("to-agent.assign-side.{side}"), ToAgent::AssignSide(SideAssignment { side, assignment })));
    }
    for order in switches() {
        let verify = order.verify.as_ref().map_or("none".into(), |smoke| smoke.check.variant().to_lowercase());
        all.push((format!("to-agent.switch.{verify}"), ToAgent::Switch(order)));
    }
    for phase in [Phase::Preflight, Phase::Stage, Phase::Cancel, Phase::Swap, Phase::Confirm] {
        for intent in [Intent::Forward, Intent::Back] {
            for target in [Target::Release(release("shop@2.1.0")), Target::Absent] {
                let name = format!("to-agent.assign.{}.{}.{}", phase.variant(), intent.variant(), target.variant()).to_lowercase();
                all.push((name, ToAgent::Assign(assignment(phase, intent, target))));
            }
        }
    }
    all
}

pub fn fetch_request() -> Examples<FetchRequest> {
    vec![
        ("fetch-request".into(), FetchRequest { digests: vec![digest("a"), digest("b")] }),
        ("fetch-request.empty".into(), FetchRequest { digests: Vec::new() }),
    ]
}

pub fn fetch_header() -> Examples<FetchHeader> {
    vec![("fetch-header.file".into(), FetchHeader::File { size: 20 << 20 }), ("fetch-header.missing".into(), FetchHeader::Missing)]
}

pub fn enroll_request() -> Examples<EnrollRequest> {
    let request = EnrollRequest {
        secret: "00112233445566778899aabbccddeeff".into(),
        name: "web-1".parse().unwrap(),
        csr: vec![0x30, 0x82, 0, 1, 0xff],
        agent_version: "0.1.0".into(),
    };
    vec![("enroll-request".into(), request)]
}

pub fn enroll_reply() -> Examples<EnrollReply> {
    let granted = EnrollReply::Granted { host: "web-1".parse().unwrap(), certificate: vec![0x30, 1, 2], ca: vec![0x30, 3] };
    vec![
        ("enroll-reply.granted".into(), granted),
        ("enroll-reply.refused".into(), EnrollReply::Refused { reason: "the token was used already; make a new one".into() }),
    ]
}
