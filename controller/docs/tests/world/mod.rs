//! Rollouts as their records, written by hand: a canary that everything is known
//! of, and one that went back.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_docs::{Entry, Input, Paper, papers};
use tidegate_protocol::release::*;
use tidegate_protocol::report::*;
use tidegate_protocol::*;
use tidegate_rollout::gate::*;
use tidegate_rollout::plan::{FleetComponent, Surroundings};
use tidegate_rollout::process::*;
use tidegate_rollout::record::*;
use tidegate_rollout::spec::TriggerAction;
use tidegate_rollout::*;

/// 2026-11-24 21:00:00 UTC: 22:00 in Berlin.
pub const BEGIN: u64 = 1_795_554_000_000;

pub const PLAN: &str = r#"
release = "shop@2.1.0"
environment = "production"
lead = "dana@example.com"
hosts = { api = "role=api", web = "role=web" }
strategy = "canary"
dashboards = ["https://grafana.example.com/d/shop"]
attest = ["low-traffic"]
[[stage]]
name = "Canary"
percent = 20
bake = "30m"
success = ["error_rate < 0.1%", "latency_p99 within 10% of baseline", "critical_errors == 0"]
[[stage]]
name = "Full"
percent = 100
bake = "1h"
success = ["error_rate < 0.1%", "new_errors == 0", "security_warnings == 0", "alerts == 0"]
[[perf]]
name = "API latency (p99)"
metric = "latency_p99"
max = "500ms"
[metrics.error_rate]
source = "scrape"
url = "http://127.0.0.1:9100/metrics"
bad = 'http_requests_total{code=~"5.."}'
total = "http_requests_total"
component = "api"
[metrics.latency]
source = "scrape"
url = "http://127.0.0.1:9100/metrics"
histogram = "http_request_seconds"
component = "api"
[metrics.alerts]
source = "alertmanager"
url = "http://alerts.example:9093"
matchers = ['job="shop"']
[[approval]]
role = "tech-lead"
[[approval]]
role = "security"
[[approval]]
role = "operations"
[[approval]]
role = "product-owner"
optional = true
[[approval]]
role = "cab"
[[window]]
days = ["Tue", "Wed"]
start_time = "22:00"
length_minutes = 360
time_zone = "Europe/Berlin"
[[contact]]
role = "lead"
name = "Dana Weber"
phone = "+49 30 1234"
available = "always"
[[contact]]
role = "on-call"
name = "Ori Tal"
phone = "+49 30 5678"
available = "22:00-06:00"
time_zone = "Europe/Berlin"
[[contact]]
role = "escalation"
name = "Sam Ito"
phone = "+49 30 9999"
available = "always"
[[notify]]
on = ["started", "completed"]
to = "team"
via = "slack"
[[notify]]
on = ["issue", "rollback"]
to = "on-call"
via = "pagerduty"
[change]
id = "CR-1042"
type = "normal"
risk = "medium"
summary = "Shop 2.1.0: new checkout"
justification = "Customers wait for saved carts."
downtime = "0s"
rollback_time = "5m"
[[risk]]
name = "Slow migration"
likelihood = "L"
impact = "M"
mitigation = "Tested on a copy; undo is shipped"
"#;

pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub fn component(name: &str) -> ComponentName {
    name.parse().unwrap()
}

fn smoke(id: &str, name: &str, suite: Suite, check: SmokeCheck) -> Smoke {
    Smoke { id: id.into(), name: name.into(), suite, check, timeout: Millis(2_000), retry_for: Millis(30_000) }
}

fn http(path: &str) -> SmokeCheck {
    SmokeCheck::Http { url: format!("http://127.0.0.1:8080{path}"), status: 200, body: None }
}

pub fn release(version: &str) -> Release {
    let part = |name: &str, smoke: Vec<Smoke>| Component {
        name: component(name),
        files: vec![FileEntry {
            path: format!("bin/{name}").parse().unwrap(),
            digest: Digest::of(format!("{name} {version}").as_bytes()),
            size: 1,
            mode: 0o555,
        }],
        links: BTreeMap::new(),
        service: Service::Systemd(format!("shop-{name}.service")),
        proof: Proof::Executable,
        check: None,
        before: None,
        after: None,
        arch: None,
        keep: 3,
        smoke,
    };
    let text = |path: &str| FileRef { path: path.into(), digest: Digest::of(path.as_bytes()), size: 100 };
    let task = |name: &str, reversible| Task {
        name: name.into(),
        files: Vec::new(),
        run: vec!["bin/do".into()],
        undo: None,
        reversible,
        idempotent: false,
        on: "role=db".into(),
    };
    Release {
        schema: MANIFEST_SCHEMA,
        name: "shop".parse().unwrap(),
        version: version.parse().unwrap(),
        notes: Some(text("NOTES.md")),
        known_issues: Some("none".into()),
        runbook: Runbook { deploy: Some(text("deploy.md")), rollback: Some(text("rollback.md")) },
        expires: None,
        floor: None,
        tasks: vec![task("Backup database", true), task("Deploy database migrations", true)],
        components: vec![
            part(
                "api",
                vec![
                    smoke("SMK-002", "User login", Suite::Critical, http("/login")),
                    smoke("SMK-004", "API health check", Suite::Critical, http("/health")),
                    smoke("INT-001", "Payment gateway: auth test", Suite::Integration, http("/pay")),
                ],
            ),
            part("web", vec![smoke("SMK-001", "Homepage loads", Suite::Critical, http("/"))]),
        ],
    }
}

pub fn reference(version: &str) -> ReleaseRef {
    ReleaseRef { id: release(version).id(), manifest: Digest::of(version.as_bytes()) }
}

pub fn tree(name: &str, version: &str) -> Digest {
    release(version).component(&component(name)).unwrap().tree_digest()
}

pub fn plan_of(text: &str, release: &Release) -> Plan {
    let spec = Spec::parse(text, "plan.toml").unwrap();
    let old = reference("2.0.0");
    let machine = |name: &str, role: &str, runs: Option<&str>| FleetHost {
        name: host(name),
        labels: BTreeMap::from([("role".to_string(), role.to_string())]),
        drained: false,
        unusable: None,
        components: runs
            .map(|c| {
                let of = FleetComponent {
                    release: Some(old.clone()),
                    settled: true,
                    running_sha256: Some(Digest::of(format!("{c} 2.0.0").as_bytes())),
                    tree_sha256: Some(tree(c, "2.0.0")),
                    sides: None,
                };
                BTreeMap::from([(component(c), of)])
            })
            .unwrap_or_default(),
    };
    let mut fleet: Vec<FleetHost> = (1..=5).map(|n| machine(&format!("api-{n}"), "api", Some("api"))).collect();
    fleet.extend((1..=3).map(|n| machine(&format!("web-{n}"), "web", Some("web"))));
    fleet.push(machine("db-1", "db", None));
    let around = Surroundings {
        approvals: vec![],
        demanded: BTreeSet::from(["tested-in-staging".to_string(), "low-traffic".to_string()]),
        attest: vec!["low-traffic".into()],
        online: fleet.iter().map(|h| h.name.clone()).collect(),
        estimate: Estimate { forward: Millis(5_400_000), back: Millis(45_000), from: "measured by drill shop-drill-7".into() },
        ..Surroundings::default()
    };
    Plan::resolve_in(&spec, &reference("2.1.0"), release, &fleet, &around).unwrap()
}

pub fn number(value: f64) -> Number {
    Number::new(value).unwrap()
}

pub struct Journal {
    pub id: RolloutId,
    pub release: Release,
    pub plan: Plan,
    pub entries: Vec<Entry>,
    pub now: u64,
}

impl Journal {
    pub fn new() -> Self {
        Self::with(PLAN, release("2.1.0"))
    }

    pub fn with(plan: &str, release: Release) -> Self {
        let plan = plan_of(plan, &release);
        Self { id: "shop-2.1.0-1".parse().unwrap(), release, plan, entries: Vec::new(), now: BEGIN }
    }

    pub fn input(&self) -> Input<'_> {
        Input { id: &self.id, entries: &self.entries, release: &self.release }
    }

    pub fn papers(&self) -> Vec<Paper> {
        papers(&self.input()).unwrap()
    }

    pub fn paper(&self, name: &str) -> String {
        self.papers().into_iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no paper {name}")).text
    }

    pub fn say(&mut self, record: Record) {
        let seq = self.entries.len() as u64 + 1;
        let before = self.entries.last().map_or_else(|| Digest::of(b""), |e| e.hash);
        let hash = Digest::of(format!("{before}{}{}", self.now, serde_json::to_string(&record).unwrap()).as_bytes());
        self.entries.push(Entry { seq, at: Timestamp(self.now), hash, record });
    }

    pub fn after(&mut self, ms: u64) {
        self.now += ms;
    }

    pub fn state(&mut self, to: RolloutState, reason: &str) {
        self.say(Record::State { to, reason: reason.into() });
    }

    /// Checklist, signatures, window: up to the begin.
    pub fn prepared(&mut self) {
        self.now = BEGIN - 7_200_000;
        let generation = Generation::default();
        let from = self.plan.targets().map(|(h, c)| Origin {
            host: h.clone(),
            component: c.clone(),
            generation,
            previous: Some(reference("2.0.0")),
            running_sha256: Some(Digest::of(format!("{c} 2.0.0").as_bytes())),
            tree_sha256: Some(tree(c.as_str(), "2.0.0")),
        });
        let from = from.collect();
        self.say(Record::Started { plan: Box::new(self.plan.clone()), by: "dana@example.com".into(), from });
        self.state(RolloutState::AwaitingApproval, "waits for signatures");
        let row = |item: &str, section, title: &str, evidence: &str| Row {
            item: item.into(),
            section,
            title: title.into(),
            kind: RowKind::Automatic,
            demanded: true,
            verdict: RowVerdict::Pass,
            evidence: evidence.into(),
            by: None,
            at: None,
        };
        let rows = vec![
            row("tested-in-staging", Section::Prerequisites, "Release candidate tested in staging", "completed there as shop-staging-9"),
            row("rollback-tested", Section::Prerequisites, "Rollback procedure tested", "drill shop-drill-7, 2 days ago: back in 45 s"),
            row(
                "artifacts-verified",
                Section::Artifacts,
                "Deployment artifacts built and verified",
                "2 components, signed by release@example.com",
            ),
            row("checksums-recorded", Section::Artifacts, "Artifact checksums recorded", "2 files, sha256"),
            row("release-notes", Section::Documentation, "Release notes complete", "NOTES.md"),
            row("dashboards-ready", Section::Environment, "Monitoring dashboards ready", "https://grafana.example.com/d/shop answers 200"),
            row("no-conflicts", Section::Window, "No conflicting deployments", "no other rollout holds these hosts"),
            row("rollback-time", Section::Window, "Rollback time accounted for", "1h 30m forward and 45 s back fit into 6 h"),
        ];
        self.say(Record::Readiness { rows });
        let opening = Opening {
            opens: Timestamp(BEGIN),
            closes: Timestamp(BEGIN + 6 * 3_600_000),
            text: "Tue 2026-11-24 22:00 to Wed 04:00 Europe/Berlin (21:00 to 03:00 UTC)".into(),
            fit: Fit::All,
            overrun: false,
        };
        self.say(Record::Windows { openings: vec![opening] });
        self.after(60_000);
        self.say(Record::Attested { item: "low-traffic".into(), by: "ori@example.com".into(), note: "traffic report of last week".into() });
        for (n, role) in [Role::TechLead, Role::Security, Role::Operations, Role::Cab].into_iter().enumerate() {
            self.after(300_000);
            let signed = signed(&format!("{role}@example.com"), n);
            self.say(Record::Approved { role, signed });
        }
        let waived = Record::Attested {
            item: "approval-product-owner".into(),
            by: "dana@example.com".into(),
            note: "n/a: no change that customers see".into(),
        };
        self.say(waived);
        self.state(RolloutState::Scheduled, "waits for its window, Tue 22:00 Europe/Berlin");
        self.now = BEGIN;
        self.say(Record::Began);
        self.state(RolloutState::Running, "checklist complete, window open");
        self.say(Record::Step { step: Step::Preflight });
        for (h, c) in self.targets() {
            let probe = if c == component("api") { "http://127.0.0.1:8080/health" } else { "http://127.0.0.1:80/" };
            self.say(Record::Probed { host: h, component: c, probe: probe.into() });
        }
        self.say(Record::Notified { key: "started".into(), route: "team".into(), ok: true, detail: String::new() });
        self.after(2_000);
        self.say(Record::Step { step: Step::Staging });
        self.after(8_000);
        for (h, c) in self.targets() {
            self.host(&h, &c, TargetState::Staged, None, None);
        }
        self.say(Record::Step { step: Step::Baseline });
        self.after(300_000);
        let of = |metric: &str, value: f64| Observed {
            metric: metric.into(),
            group: Group::Baseline,
            value: Some(number(value)),
            samples: 9_000,
        };
        let values = vec![
            of("error_rate", 0.05),
            of("latency_p50", 80.0),
            of("latency_p99", 300.0),
            of("request_rate", 120.0),
            of("host_cpu", 45.0),
            of("host_memory", 60.0),
        ];
        self.say(Record::Baseline { values });
        self.say(Record::Step { step: Step::Tasks });
        for (index, (name, note, took)) in
            [("Backup database", "backup_20261124", 61_400), ("Deploy database migrations", "3 migrations", 4_200)].into_iter().enumerate()
        {
            let (index, what, name) = (index as u16, TaskRun::Run, name.to_string());
            self.say(Record::TaskOrdered { index, name: name.clone(), what, attempt: 1, host: host("db-1") });
            self.after(took);
            let note = note.into();
            self.say(Record::TaskEnded { index, name, what, attempt: 1, state: TaskState::Done, note, duration_ms: took });
        }
        self.say(Record::Step { step: Step::Swapping });
    }

    pub fn targets(&self) -> Vec<(HostName, ComponentName)> {
        self.plan.targets().map(|(h, c)| (h.clone(), c.clone())).collect()
    }

    pub fn order(&mut self, host: &HostName, component: &ComponentName, intent: Intent, phase: Phase) {
        let to = if intent == Intent::Back { "2.0.0" } else { "2.1.0" };
        self.say(Record::Ordered {
            host: host.clone(),
            component: component.clone(),
            generation: Generation::default(),
            intent,
            target: Target::Release(reference(to)),
            phase,
            integration: false,
        });
    }

    pub fn host(&mut self, host: &HostName, component: &ComponentName, to: TargetState, failure: Option<Failure>, seen: Option<Seen>) {
        let counted = failure.is_some();
        self.say(Record::Host {
            host: host.clone(),
            component: component.clone(),
            generation: Generation::default(),
            to,
            failure,
            counted,
            seen,
        });
    }

    pub fn seen(component: &ComponentName, version: &str, smoke: Vec<SmokeResult>) -> Seen {
        Seen {
            release: Some(reference(version)),
            running_sha256: Some(Digest::of(format!("{component} {version}").as_bytes())),
            tree_sha256: Some(tree(component.as_str(), version)),
            main_pid_started_at: Some(BEGIN),
            was_unhealthy: false,
            smoke,
        }
    }

    pub fn results(&self, component: &ComponentName, integration: bool, fails: Option<&str>) -> Vec<SmokeResult> {
        let tests = self.release.component(component).unwrap().smoke.iter();
        let tests = tests.filter(|s| integration || s.suite == Suite::Critical);
        let mut failed = false;
        tests
            .map(|s| {
                let status = match (failed, fails == Some(s.id.as_str())) {
                    (true, _) => SmokeStatus::Skipped,
                    (_, true) => SmokeStatus::Fail,
                    _ => SmokeStatus::Pass,
                };
                failed |= status == SmokeStatus::Fail;
                let message = if status == SmokeStatus::Fail { "GET /login answered 500, wanted 200" } else { "200" };
                SmokeResult { id: s.id.clone(), status, duration_ms: 35, message: message.into() }
            })
            .collect()
    }

    /// All hosts of a wave swap well, one after the other.
    pub fn wave(&mut self, at: usize) {
        let wave = self.plan.waves[at].clone();
        for (n, host) in wave.hosts.iter().enumerate() {
            self.order(host, &wave.component, Intent::Forward, Phase::Swap);
            self.after(1_500);
            self.host(host, &wave.component, TargetState::Probation, None, None);
            self.after(2_500);
            let seen = Self::seen(&wave.component, "2.1.0", self.results(&wave.component, n == 0, None));
            self.host(host, &wave.component, TargetState::Healthy, None, Some(seen.clone()));
            self.order(host, &wave.component, Intent::Forward, Phase::Confirm);
            self.after(200);
            self.host(host, &wave.component, TargetState::Confirmed, None, Some(seen));
        }
    }

    pub fn observe(&mut self, wave: usize, minutes: u64, shift: f64) {
        for minute in 0..minutes {
            self.after(60_000);
            let swing = ((minute * 7 % 5) as f64 - 2.0) / 10.0;
            let mut values = Vec::new();
            for (metric, base, by) in [
                ("error_rate", 0.05, 0.02),
                ("latency_p50", 82.0, 6.0),
                ("latency_p99", 310.0, 20.0),
                ("request_rate", 121.0, 10.0),
                ("host_cpu", 47.0, 3.0),
                ("host_memory", 61.0, 0.5),
            ] {
                let value = base + swing * by + shift * by;
                let changed =
                    Observed { metric: metric.into(), group: Group::Changed, value: Some(number(value)), samples: 900 * (minute + 1) };
                let control = Observed { group: Group::Control, value: Some(number(base - swing * by / 2.0)), ..changed.clone() };
                values.extend([changed, control]);
            }
            for metric in ["critical_errors", "new_errors", "security_warnings", "alerts"] {
                values.push(Observed { metric: metric.into(), group: Group::Changed, value: Some(number(0.0)), samples: 0 });
            }
            self.say(Record::Observed { wave, values });
        }
    }

    pub fn gate(&mut self, stage: usize, step: GateStep, reason: &str) {
        let wave = self.plan.gating.stages[stage].after_wave;
        self.say(Record::Gate { stage, wave, step, reason: reason.into() });
    }

    pub fn judge(&mut self, stage: usize, verdict: Verdict) {
        let spec = self.plan.gating.stages[stage].clone();
        let judgements = spec
            .criteria
            .iter()
            .map(|c| {
                let (observed, limit, unit) = match c.metric.as_str() {
                    "error_rate" => (if verdict == Verdict::Fail { 2.4 } else { 0.06 }, 0.1, "%"),
                    "latency_p99" if c.perf => (320.0, 500.0, "ms"),
                    "latency_p99" => (320.0, 330.0, "ms"),
                    _ => (0.0, 0.0, ""),
                };
                let bad = verdict == Verdict::Fail && c.metric == "error_rate";
                Judgement {
                    name: c.name.clone(),
                    metric: c.metric.clone(),
                    verdict: if bad { Verdict::Fail } else { Verdict::Pass },
                    observed: Some(number(observed)),
                    limit: Some(number(limit)),
                    unit: unit.into(),
                    samples: 27_000,
                    reason: format!("{observed}{unit} of 27000 samples, limit {limit}{unit}"),
                    host: None,
                    advisory: false,
                    perf: c.perf,
                }
            })
            .collect();
        let wave = spec.after_wave;
        self.say(Record::Judged { stage, wave, verdict, judgements });
    }

    pub fn waves_of_stage(&self, stage: usize) -> Vec<usize> {
        let before = stage.checked_sub(1).map_or(0, |s| self.plan.gating.stages[s].after_wave);
        (before..self.plan.gating.stages[stage].after_wave).collect()
    }

    pub fn stage(&mut self, stage: usize, minutes: u64) {
        for wave in self.waves_of_stage(stage) {
            self.wave(wave);
        }
        self.gate(stage, GateStep::Opened, "every host of the stage is kept");
        self.state(RolloutState::Baking, "observed");
        let wave = self.plan.gating.stages[stage].after_wave;
        self.observe(wave, minutes, 0.5);
        self.judge(stage, Verdict::Pass);
        self.gate(stage, GateStep::Passed, "every criterion holds");
        self.state(RolloutState::Running, "every criterion holds");
    }

    /// Attestations, an item, a review; then two signatures over the handoff.
    pub fn handed_over(&mut self) {
        self.after(3_600_000);
        for (item, _) in HANDOFF_ROWS {
            self.say(Record::Attested { item: (*item).into(), by: "ori@example.com".into(), note: "done in the handover call".into() });
        }
        self.say(Record::Item {
            item: 1,
            what: "Raise the connection limit".into(),
            owner: "dana".into(),
            status: "open".into(),
            eta: "2026-12-01".into(),
            by: "dana@example.com".into(),
        });
        let review = Review {
            date: "2026-11-25".into(),
            participants: vec!["Dana Weber".into(), "Ori Tal".into()],
            went_well: vec!["Nobody noticed".into()],
            could_improve: vec!["The canary took long".into()],
            action: vec![ReviewAction { action: "Shorten the bake".into(), owner: "dana".into(), due: "2026-12-05".into() }],
        };
        self.say(Record::Reviewed { review, by: "dana@example.com".into() });
        self.sign(SignRole::Lead, 11);
        self.sign(SignRole::OpsLead, 12);
    }

    pub fn sign(&mut self, role: SignRole, key: usize) {
        let document = tidegate_docs::handoff_digest(&self.input()).unwrap();
        self.after(60_000);
        self.say(Record::SignedOff { role, signed: signed(&format!("{}@example.com", role.word()), key), document });
    }

    pub fn closed(&mut self) {
        self.say(Record::Closed { by: "ori@example.com".into() });
    }

    /// Removes records.
    pub fn without(&mut self, what: impl Fn(&Record) -> bool) {
        self.entries.retain(|e| !what(&e.record));
    }

    /// Changes records.
    pub fn change(&mut self, change: impl Fn(&mut Record)) {
        self.entries.iter_mut().for_each(|e| change(&mut e.record));
    }
}

pub fn signed(principal: &str, key: usize) -> Signed {
    Signed {
        principal: principal.into(),
        key: format!("SHA256:key{key}Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXy4zA7bC"),
        signature: format!(
            "-----BEGIN SSH SIGNATURE-----\nU1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAg{key}\n-----END SSH SIGNATURE-----\n"
        ),
        brought_by: principal.into(),
    }
}

/// A canary that everything is known of, handed over and closed.
pub fn complete() -> Journal {
    complete_of(Journal::new())
}

/// The same, of another plan or release.
pub fn complete_of(mut j: Journal) -> Journal {
    j.prepared();
    j.stage(0, 30);
    j.stage(1, 60);
    j.state(RolloutState::Completed, "every host runs shop@2.1.0");
    j.say(Record::Notified { key: "completed".into(), route: "team".into(), ok: true, detail: String::new() });
    j.handed_over();
    j.closed();
    j
}

/// One host fails its smoke test in the second stage, then its gate fails: back.
pub fn rolled_back() -> Journal {
    let mut j = Journal::new();
    j.prepared();
    j.stage(0, 30);
    let (bad, api) = (host("api-4"), component("api"));
    for wave in j.waves_of_stage(1) {
        if j.plan.waves[wave].component == api {
            let others: Vec<HostName> = j.plan.waves[wave].hosts.iter().filter(|h| **h != bad).take(2).cloned().collect();
            for h in others {
                j.order(&h, &api, Intent::Forward, Phase::Swap);
                j.after(4_000);
                let seen = Journal::seen(&api, "2.1.0", j.results(&api, false, None));
                j.host(&h, &api, TargetState::Healthy, None, Some(seen.clone()));
                j.host(&h, &api, TargetState::Confirmed, None, Some(seen));
            }
        }
    }
    j.order(&bad, &api, Intent::Forward, Phase::Swap);
    let down = j.now + 500;
    j.after(30_000);
    let failure = || Some(Failure { cause: Cause::Smoke, message: "SMK-002 User login: GET /login answered 500, wanted 200".into() });
    j.host(&bad, &api, TargetState::Reverting, failure(), None);
    j.after(3_000);
    let seen = Seen { smoke: j.results(&api, false, Some("SMK-002")), ..Journal::seen(&api, "2.0.0", Vec::new()) };
    j.host(&bad, &api, TargetState::Reverted, failure(), Some(seen));
    j.say(Record::Outage { host: bad.clone(), component: api.clone(), from_unix_ms: down, to_unix_ms: None });
    j.say(Record::Outage { host: bad, component: api.clone(), from_unix_ms: down, to_unix_ms: Some(j.now) });
    j.say(Record::Tripped {
        trigger: Some(0),
        when: "error_rate > 1%".into(),
        action: TriggerAction::Rollback,
        observed: Some(number(2.4)),
        limit: Some(number(1.0)),
        samples: 4_100,
        host: None,
        reason: "2.4% of 4100 requests, limit 1%".into(),
        after_ms: 310,
    });
    j.state(RolloutState::RollingBack, "trigger error_rate > 1%: 2.4% of 4100 requests");
    j.say(Record::Notified { key: "rollback".into(), route: "on-call".into(), ok: false, detail: "500 from events.pagerduty.com".into() });
    let confirmed: Vec<(HostName, ComponentName)> = j
        .entries
        .iter()
        .filter_map(|e| match &e.record {
            Record::Host { host, component, to: TargetState::Confirmed, .. } => Some((host.clone(), component.clone())),
            _ => None,
        })
        .collect();
    for (h, c) in confirmed.into_iter().rev() {
        j.order(&h, &c, Intent::Back, Phase::Swap);
        j.after(4_000);
        let seen = Journal::seen(&c, "2.0.0", j.results(&c, false, None));
        j.host(&h, &c, TargetState::Reverted, None, Some(seen));
    }
    j.state(RolloutState::RolledBack, "trigger error_rate > 1%: 2.4% of 4100 requests");
    j
}
