//! Releases and reports as a fleet of the tests says them.

use std::collections::BTreeMap;

use tidegate_protocol::release::{FileEntry, MANIFEST_SCHEMA, Proof, Runbook, Service};
use tidegate_protocol::report::{Running, ServiceState};
use tidegate_protocol::*;

pub fn manifest(version: &str, components: &[&str]) -> (ReleaseRef, Release) {
    let component = |name: &&str| Component {
        name: name.parse().unwrap(),
        files: vec![FileEntry { path: "bin/x".parse().unwrap(), digest: Digest::of(version.as_bytes()), size: 1, mode: 0o555 }],
        links: BTreeMap::new(),
        service: Service::Supervised { run: vec!["bin/x".into(), "${side}".into()], env: BTreeMap::new() },
        proof: Proof::Executable,
        check: None,
        before: None,
        after: None,
        arch: None,
        keep: 3,
        smoke: Vec::new(),
    };
    let release = Release {
        schema: MANIFEST_SCHEMA,
        name: "shop".parse().unwrap(),
        version: version.parse().unwrap(),
        notes: None,
        known_issues: None,
        runbook: Runbook::default(),
        expires: None,
        floor: None,
        tasks: Vec::new(),
        components: components.iter().map(component).collect(),
    };
    (ReleaseRef { id: release.id(), manifest: Digest::of(version.as_bytes()) }, release)
}

pub fn running(bytes: &[u8]) -> Running {
    running_since(bytes, 1)
}

pub fn running_since(bytes: &[u8], started_at_unix_ms: u64) -> Running {
    Running { pid: 1, started_at_unix_ms, start_ticks: 1, sha256: Some(Digest::of(bytes)) }
}

pub fn started(report: ComponentReport, bytes: &[u8], now: Timestamp) -> ComponentReport {
    ComponentReport { running: Some(running_since(bytes, now.0)), ..report }
}

pub fn report(component: &ComponentName, release: &ReleaseRef) -> ComponentReport {
    ComponentReport {
        component: component.clone(),
        generation: Generation::new(1, 6),
        progress: Progress::Confirmed,
        failure: None,
        current: Some(release.clone()),
        previous: None,
        service: ServiceState::Running,
        running: Some(running(b"1")),
        tree_sha256: Some(Digest::of(b"t1")),
        was_unhealthy: false,
        smoke: Vec::new(),
        staged_bytes: 0,
        fetched_bytes: 0,
        cpu_permille: 0,
        memory_bytes: 0,
        restarts: 0,
        lease_left_ms: None,
    }
}

pub fn absent(component: &ComponentName) -> ComponentReport {
    let somewhere = ReleaseRef { id: manifest("0", &[]).0.id, manifest: Digest::of(b"0") };
    ComponentReport {
        generation: Generation::ZERO,
        current: None,
        service: ServiceState::Absent,
        running: None,
        tree_sha256: None,
        ..report(component, &somewhere)
    }
}
