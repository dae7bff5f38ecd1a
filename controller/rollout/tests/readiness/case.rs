//! A plan to production of which every row holds, and what each row rests on.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_protocol::release::{FileEntry, FileRef, MANIFEST_SCHEMA, Proof, Runbook, Service};
use tidegate_protocol::report::HostFacts;
use tidegate_protocol::*;
use tidegate_rollout::plan::{FleetComponent, FleetHost};
use tidegate_rollout::process::*;
use tidegate_rollout::readiness::*;
use tidegate_rollout::{Plan, Spec, Surroundings};

pub(crate) const NOW: Timestamp = Timestamp(1_764_100_000_000);
pub(crate) const DAY: Millis = Millis::from_secs(86_400);
pub(crate) const HOUR: Millis = Millis::from_secs(3_600);

pub(crate) const PLAN: &str = r#"
release = "shop@2"
environment = "production"
lead = "lead@example.com"
hosts = { api = "" }
strategy = "canary"
dashboards = ["https://grafana.example/d/shop"]
[metrics.error_rate]
source = "scrape"
url = "http://127.0.0.1:9100/metrics"
bad = 'http_requests_total{code=~"5.."}'
total = "http_requests_total"
[metrics.latency]
source = "scrape"
url = "http://127.0.0.1:9100/metrics"
histogram = "http_request_duration_seconds"
[[window]]
days = ["Tue"]
start_time = "22:00"
length_minutes = 360
time_zone = "Europe/Berlin"
[[contact]]
role = "lead"
name = "Ada"
phone = "1"
available = "always"
[[contact]]
role = "on-call"
name = "Kim"
phone = "2"
available = "always"
[[contact]]
role = "escalation"
name = "Max"
phone = "3"
available = "always"
[[notify]]
on = ["started", "completed"]
to = "team"
via = "slack"
[[notify]]
on = ["issue"]
to = "on-call"
via = "pagerduty"
[change]
id = "CR-1"
type = "normal"
risk = "medium"
summary = "Shop 2"
justification = "customers wait for it"
downtime = "0s"
rollback_time = "5m"
[[risk]]
name = "slow queries"
likelihood = "L"
impact = "M"
"#;

/// What a checklist is made of.
pub(crate) struct Case {
    pub(crate) plan: Plan,
    pub(crate) manifest: Release,
    pub(crate) facts: Facts,
    pub(crate) given: Given,
}

pub(crate) fn host(n: usize) -> HostName {
    format!("h{n}").parse().unwrap()
}

pub(crate) fn api() -> ComponentName {
    "api".parse().unwrap()
}

fn file(path: &str) -> FileRef {
    FileRef { path: path.into(), digest: Digest::of(path.as_bytes()), size: 10 }
}

pub(crate) fn manifest() -> Release {
    Release {
        schema: MANIFEST_SCHEMA,
        name: "shop".parse().unwrap(),
        version: "2".parse().unwrap(),
        notes: Some(file("NOTES.md")),
        known_issues: None,
        runbook: Runbook { deploy: Some(file("deploy.md")), rollback: Some(file("rollback.md")) },
        expires: None,
        floor: None,
        tasks: Vec::new(),
        components: vec![Component {
            name: api(),
            files: vec![FileEntry { path: "bin/x".parse().unwrap(), digest: Digest::of(b"x"), size: 1_000, mode: 0o555 }],
            links: BTreeMap::new(),
            service: Service::Supervised { run: vec!["bin/x".into()], env: BTreeMap::new() },
            proof: Proof::Executable,
            check: Some(vec!["bin/x".into(), "--check".into()]),
            before: None,
            after: None,
            arch: None,
            keep: 3,
            smoke: Vec::new(),
        }],
    }
}

pub(crate) fn release(version: &str) -> ReleaseRef {
    ReleaseRef { id: format!("shop@{version}").parse().unwrap(), manifest: Digest::of(version.as_bytes()) }
}

pub(crate) fn fleet() -> Vec<FleetHost> {
    let component = FleetComponent { release: Some(release("1")), settled: true, ..FleetComponent::default() };
    let one = |n| FleetHost {
        name: host(n),
        labels: BTreeMap::new(),
        drained: false,
        unusable: None,
        components: BTreeMap::from([(api(), component.clone())]),
    };
    (1..=4).map(one).collect()
}

/// Everything that an environment can demand.
pub(crate) fn everything() -> Surroundings {
    Surroundings {
        approvals: vec![Role::TechLead, Role::Security, Role::Operations, Role::ProductOwner],
        demanded: items().map(str::to_owned).collect(),
        attest: ATTEST_ROWS.iter().map(|(item, ..)| (*item).to_owned()).collect(),
        estimate: Estimate { forward: HOUR, back: Millis::from_secs(600), from: "measured by drill d1".into() },
        ..Surroundings::default()
    }
}

pub(crate) fn resolve(text: &str, around: &Surroundings) -> Plan {
    let spec = Spec::parse(text, "plan.toml").unwrap_or_else(|e| panic!("{e}"));
    Plan::resolve_in(&spec, &release("2"), &manifest(), &fleet(), around).unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) fn opening(length: Millis) -> Opening {
    Opening { opens: NOW - HOUR, closes: NOW + length, text: "Tue 22:00".into(), fit: Fit::All, overrun: false }
}

fn facts() -> Facts {
    let machine = HostFacts { cpu_permille: 300, memory_bytes: 1, memory_total_bytes: 2, disk_free_bytes: 1 << 30, inodes_free: 1 };
    let runs = ComponentFact { installed: true, drifted: false };
    let host_fact = HostFact {
        online: true,
        version: Some(VERSION_NOW),
        agent: "0.1.0".into(),
        machine: Some(machine),
        components: BTreeMap::from([(api(), runs)]),
    };
    let tested = RouteTest { at: NOW - HOUR, ok: true, detail: "ok".into() };
    let there = |role: &ContactRole| (*role, Ok("there from a to b".to_owned()));
    Facts {
        rules: Rules { staging: Some("staging".into()), differs: BTreeSet::from(["host_id".into()]), ..Rules::default() },
        depot: Some(Held::default()),
        staging: Some(Ran { rollout: "s1".parse().unwrap(), at: NOW - DAY }),
        config: Some(Compared { differs: BTreeSet::from(["host_id".into()]), here: 4, there: 2, silent: BTreeSet::new() }),
        drill: Some(Drill { rollout: "d1".parse().unwrap(), at: NOW - DAY, forward: HOUR, back: Millis::from_secs(200) }),
        before: Some(Before { release: "shop@1".parse().unwrap(), runbook: Some(Digest::of(b"old")) }),
        routes: ["team", "on-call"].map(|route| (route.to_owned(), tested.clone())).into(),
        hosts: (1..=4).map(|n| (host(n), host_fact.clone())).collect(),
        dashboards: [("https://grafana.example/d/shop".to_owned(), Ok(200))].into(),
        openings: vec![opening(DAY)],
        cover: ContactRole::ALL.iter().map(there).collect(),
        ..Facts::default()
    }
}

const VERSION_NOW: u16 = message::VERSIONS.max;

fn signed(who: &str) -> Signed {
    Signed { principal: who.into(), key: format!("SHA256:{who}"), signature: "…".into(), brought_by: who.into() }
}

impl Case {
    /// Every row holds.
    pub(crate) fn complete() -> Self {
        let plan = resolve(PLAN, &everything());
        let approve = |spec: &ApprovalSpec| (spec.role, Approval { signed: signed(spec.role.word()), at: NOW - HOUR });
        let attest = |item: &String| (item.clone(), Attestation { by: "ada".into(), note: "seen".into(), at: NOW - HOUR });
        let given = Given {
            approvals: plan.process.approvals.iter().map(approve).collect(),
            attested: plan.process.attest.iter().map(attest).collect(),
            ..Given::default()
        };
        Self { plan, manifest: manifest(), facts: facts(), given }
    }

    /// The whole checklist.
    pub(crate) fn checklist(&mut self) -> Vec<Row> {
        self.facts.attested = self.given.attested.keys().cloned().collect();
        self.given.rows = rows(&self.plan, &self.manifest, &self.facts, NOW);
        self.given.checklist(&self.plan, NOW)
    }

    pub(crate) fn row(&mut self, item: &str) -> Row {
        self.checklist().into_iter().find(|row| row.item == item).unwrap_or_else(|| panic!("no row {item}"))
    }

    /// The evidence of one row is taken away; of any other item there is none.
    pub(crate) fn without(mut self, item: &str) -> Self {
        let (facts, plan, manifest) = (&mut self.facts, &mut self.plan, &mut self.manifest);
        let first = facts.hosts.get_mut(&host(1)).unwrap();
        let change = plan.process.change.as_mut().unwrap();
        match item {
            "tested-in-staging" => facts.staging = None,
            "staging-mirrors-production" => _ = facts.config.as_mut().unwrap().differs.insert("port".into()),
            "rollback-tested" => facts.drill.as_mut().unwrap().at = NOW - Millis(15 * DAY.0),
            "artifacts-verified" => facts.depot.as_mut().unwrap().missing.push(Digest::of(b"x")),
            "checksums-recorded" => manifest.components[0].files.clear(),
            "configuration-prepared" => manifest.components[0].check = None,
            "release-notes" => manifest.notes = None,
            "deployment-runbook" => facts.before.as_mut().unwrap().runbook = manifest.runbook.deploy.as_ref().map(|f| f.digest),
            "rollback-runbook" => manifest.runbook.rollback = None,
            "communication-plan" => _ = facts.routes.remove("team"),
            "capacity" => first.machine.as_mut().unwrap().disk_free_bytes = 2_999,
            "dashboards" => _ = facts.dashboards.insert("https://grafana.example/d/shop".into(), Ok(404)),
            "on-call-identified" => _ = facts.cover.insert(ContactRole::OnCall, Err("nobody at 03:00".into())),
            "window" => facts.openings.clear(),
            "support-available" => _ = facts.cover.insert(ContactRole::Escalation, Err("nobody at 03:00".into())),
            "no-conflicts" => facts.conflicts.push("rollout r1 (running) holds api on h1".into()),
            "rollback-time" => facts.openings = vec![opening(HOUR)],
            "no-freeze" => facts.freeze = Some("freeze 1 by ada until it is removed: holidays".into()),
            "change-request" => plan.process.change = None,
            "risk-assessment" => plan.process.risks.clear(),
            "downtime-declared" => change.downtime = None,
            "change-template" => (change.kind, plan.process.template) = (ChangeType::Standard, Some(Digest::of(b"unknown"))),
            "second-approver" => {
                change.risk = Level::High;
                self.given.approvals.values_mut().for_each(|a| a.signed.key = "SHA256:one".into());
            }
            "hosts-in-contact" => first.online = false,
            "agents-able" => first.version = Some(1),
            "rollback-target" => first.components.get_mut(&api()).unwrap().drifted = true,
            "trigger-sources" => plan.gating.triggers.retain(|t| t.declared.is_none()),
            _ => match Role::ALL.iter().find(|role| approval_item(**role) == item) {
                Some(role) => assert!(self.given.approvals.remove(role).is_some(), "{item} is no row of the case"),
                // Attested by somebody.
                None => assert!(self.given.attested.remove(item).is_some(), "{item} is no item of the checklist"),
            },
        }
        // That the runbook holds is asked for where it did not change.
        if item == "deployment-runbook" {
            self.given.attested.remove("runbook-still-valid");
            self.plan.process.attest.retain(|item| item != "runbook-still-valid");
        }
        self
    }
}
