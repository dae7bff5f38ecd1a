//! One host below a directory, with the real agent binary, and releases for it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tidegate_protocol::release::{FileEntry, MANIFEST_SCHEMA, Proof, Runbook, Service, Smoke, SmokeCheck, Suite, Task};
use tidegate_protocol::{Assignment, Component, ComponentReport, Generation, Intent, Millis, Phase, Progress, Release, ReleaseRef, Target};

use crate::fake::FakeController;

pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_tidegate-agent");

/// A directory that services of other users may enter.
pub(crate) fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn enroll(controller: &FakeController, dir: &Path, token: &str) -> Output {
    let address = controller.addr.to_string();
    let mut command = Command::new(AGENT);
    command.args(["enroll", "--controller", &address, "--token", token, "--name", "web-1", "--var", "port=8081", "--dir"]).arg(dir);
    command.output().unwrap()
}

/// The fake controller lives on this runtime, so nothing may block it.
pub(crate) async fn enrolled(controller: &FakeController, dir: &Path) {
    let token = controller.token().to_string();
    let output = blocking_enroll(controller, dir, &token).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) async fn blocking_enroll(controller: &FakeController, dir: &Path, token: &str) -> Output {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| enroll(controller, dir, token));
        tokio::task::block_in_place(|| running.join().unwrap())
    })
}

/// The daemon; killed with the test.
pub(crate) struct Agent(pub(crate) Child);

impl Agent {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    pub(crate) fn start_with(dir: &Path, env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(AGENT);
        command.arg("run").arg("--config").arg(dir.join("agent.toml")).envs(env.iter().copied()).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        tokio::task::block_in_place(|| self.0.wait().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends the service that a test leaves behind.
pub(crate) struct Service_(pub(crate) PathBuf);

impl Drop for Service_ {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let ours = String::from_utf8_lossy(&line).contains(self.0.to_str().unwrap());
            let pid = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(rustix::process::Pid::from_raw);
            if let (true, Some(pid)) = (ours, pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

pub(crate) const SERVICE: &[u8] = b"#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 1000 & wait; done\n";

/// A release whose smoke test ends with `exit`, put into the depot.
pub(crate) fn release(controller: &FakeController, version: &str, exit: u8) -> (ReleaseRef, Component) {
    release_with(controller, version, &smoke(version, exit), &[], |_| {})
}

/// A script that differs in every release and ends with `exit`.
pub(crate) fn smoke(version: &str, exit: u8) -> String {
    format!("#!/bin/sh\n# {version}\nexit {exit}\n")
}

/// A release with this smoke test, more files, and changes of one's own.
pub(crate) fn release_with(
    controller: &FakeController,
    version: &str,
    smoke: &str,
    more: &[(&str, &[u8])],
    change: impl FnOnce(&mut Component),
) -> (ReleaseRef, Component) {
    let files = [("bin/api", SERVICE), ("bin/smoke", smoke.as_bytes())];
    let entry = |(path, bytes): &(&str, &[u8])| FileEntry {
        path: path.parse().unwrap(),
        digest: controller.store(bytes),
        size: bytes.len() as u64,
        mode: 0o555,
    };
    let mut component = Component {
        name: "api".parse().unwrap(),
        files: files.iter().chain(more).map(entry).collect(),
        links: BTreeMap::new(),
        service: Service::Supervised { run: vec!["bin/api".into(), "${var.port}".into()], env: BTreeMap::new() },
        proof: Proof::Executable,
        check: None,
        before: None,
        after: None,
        arch: None,
        keep: 3,
        smoke: vec![Smoke {
            id: "SMK-001".into(),
            name: "it says so".into(),
            suite: Suite::Critical,
            check: SmokeCheck::Exec { run: vec!["bin/smoke".into()] },
            timeout: Millis::from_secs(5),
            retry_for: Millis(0),
        }],
    };
    change(&mut component);
    (publish(controller, version, &component, Vec::new()), component)
}

/// A manifest in the depot.
pub(crate) fn publish(controller: &FakeController, version: &str, component: &Component, tasks: Vec<Task>) -> ReleaseRef {
    let manifest = Release {
        schema: MANIFEST_SCHEMA,
        name: "shop".parse().unwrap(),
        version: version.parse().unwrap(),
        notes: None,
        known_issues: None,
        runbook: Runbook::default(),
        expires: None,
        floor: None,
        tasks,
        components: vec![component.clone()],
    };
    let digest = controller.store(&serde_json::to_vec(&manifest).unwrap());
    ReleaseRef { id: format!("shop@{version}").parse().unwrap(), manifest: digest }
}

pub(crate) fn assignment(n: u64, target: Target, phase: Phase) -> Assignment {
    Assignment {
        generation: Generation::new(1, n),
        component: "api".parse().unwrap(),
        rollout: "r1".parse().unwrap(),
        intent: Intent::Forward,
        target,
        phase,
        healthy_deadline: Millis::from_secs(60),
        confirm_within: Millis::from_secs(60),
        accept_drift: false,
        integration: false,
        reversible: true,
    }
}

/// Through all phases, waiting for each.
pub(crate) async fn roll_out(controller: &FakeController, n: u64, release: &ReleaseRef) -> ComponentReport {
    let order = |phase| assignment(n, Target::Release(release.clone()), phase);
    let at = |progress| move |c: &ComponentReport| c.generation.n == n && c.progress == progress;
    controller.assign(&order(Phase::Preflight));
    controller.until("checked", at(Progress::Checked)).await;
    controller.assign(&order(Phase::Stage));
    controller.until("staged", at(Progress::Staged)).await;
    controller.assign(&order(Phase::Swap));
    let healthy = controller.until("healthy", at(Progress::Healthy)).await;
    assert!(healthy.lease_left_ms.is_some());
    controller.assign(&order(Phase::Confirm));
    let shown = |c: &ComponentReport| c.running.as_ref().is_some_and(|r| r.sha256.is_some());
    controller.until("confirmed", |c| at(Progress::Confirmed)(c) && shown(c)).await
}

pub(crate) fn status(dir: &Path) -> serde_json::Value {
    let mut command = Command::new(AGENT);
    let output = command.args(["status", "--output", "json", "--config"]).arg(dir.join("agent.toml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until something that no report shows is so.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !tokio::task::block_in_place(&mut done) {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
