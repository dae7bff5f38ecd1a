//! One example of every message, and by exhaustive matches the proof that every
//! variant has one.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;

use tidegate_protocol::message::{EnrollReply, EnrollRequest, FetchHeader, FetchRequest, ToAgent, ToController, VersionRange};
use tidegate_protocol::report::{AgentFacts, Failure, HostFacts, Running, ServiceState, SmokeResult, SmokeStatus};
use tidegate_protocol::{
    Assignment, Cause, ComponentReport, Digest, Generation, Intent, Millis, Phase, Progress, ReleaseRef, Report, Target,
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
    ToController { Hello, Report, Samples, Sides }
    ToAgent { Welcome, Refused, Assign, Labels, Watch, AssignSide, Switch }
    FetchHeader { File, Missing }
    EnrollReply { Granted, Refused }
    Phase { Preflight, Stage, Cancel, Swap, Confirm }
    Intent { Forward, Back }
    Target { Absent, Release }
    Progress { Checking, Checked, Staging, Staged, Cancelled, Failed, Swapping, Probation, Healthy, Confirmed, Reverting, Reverted, RevertFailed }
    Cause { Smoke, StartFailed, LeaseExpired, CrashLoop, Unreachable, Verify, Policy, Disk, Drifted, Timeout, Trigger }
    ServiceState { Absent, Running, Stopped, Drifted }
    SmokeStatus { Pass, Fail, Skipped }
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
    ];
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
