//! The fleet on real hosts: a controller on the bridge's side, and the agent
//! installed on every host as an operator would install it, from `deploy/`.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tidegate_integration_tests::ask::{Operator, text};
use tidegate_integration_tests::bins::programs;
use tidegate_integration_tests::client::{Poller, get};
use tidegate_integration_tests::fleet::{READY_WITHIN, tail};
use tidegate_integration_tests::nspawn::Hosts;
use tidegate_integration_tests::process::Process;
use tidegate_integration_tests::wait::{Look, wait_until};
use tidegate_integration_tests::{Output, release};

use crate::web;

/// Where the controller listens, on the bridge.
const CONTROLLER: &str = "10.77.0.1:7443";
const AGENT_TOML: &str = "/etc/tidegate/agent.toml";
/// A user asks each host so often.
const POLL: Duration = Duration::from_millis(20);

/// All of it; ended and removed when dropped. The hosts are the caller's.
pub(crate) struct Real {
    pub(crate) hosts: Hosts,
    pub(crate) operator: Operator,
    pub(crate) dir: TempDir,
    /// Fronts and sides were set up.
    pub(crate) front: bool,
    controller: Process,
}

impl Real {
    /// Ready when every host is online.
    pub(crate) fn start(name: &str, count: usize) -> anyhow::Result<Self> {
        let programs = programs()?;
        let dir = tempfile::Builder::new().prefix("tidegate-hosts-").tempdir().context("a directory")?;
        let state = dir.path().join("controller");
        let mut init = Command::new(&programs.controller);
        init.arg("init").arg("--dir").arg(&state).args(["--name", "10.77.0.1", "--listen", CONTROLLER]);
        Output::of(init, READY_WITHIN)?.expect_code(0)?;
        let mut serve = Command::new(&programs.controller);
        serve.arg("serve").arg("--config").arg(state.join("controller.toml"));
        let controller = Process::start("the controller", serve, &dir.path().join("controller.log"))?;
        let listening = state.join("listening");
        wait_until("the controller listens", READY_WITHIN, || {
            Ok(Look::from_option(listening.exists().then_some(()), || tail(&dir.path().join("controller.log"))))
        })?;
        let operator = Operator::first(&state, dir.path())?;
        let real = Self { hosts: Hosts::attach(name, count), operator, dir, front: false, controller };
        for host in &real.hosts.names {
            real.install(host).with_context(|| format!("installing {host}"))?;
        }
        if let Err(error) = real.operator.wait_online(count) {
            eprintln!("{}", real.logs());
            return Err(error);
        }
        Ok(real)
    }

    /// The steps of deploy/README.md.
    fn install(&self, host: &str) -> anyhow::Result<()> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        self.hosts.push(host, &agent()?, "/usr/bin/tidegate-agent", "755")?;
        for (from, to) in [
            ("sysusers.d/tidegate.conf", "/usr/lib/sysusers.d/tidegate.conf"),
            ("tmpfiles.d/tidegate.conf", "/usr/lib/tmpfiles.d/tidegate.conf"),
            ("systemd/tidegate-agent.service", "/etc/systemd/system/tidegate-agent.service"),
            ("examples/shop-nginx.service", "/etc/systemd/system/shop-nginx.service"),
        ] {
            self.hosts.push(host, &deploy.join(from), to, "644")?;
        }
        self.hosts.ok(host, &["systemd-sysusers"])?;
        self.hosts.ok(host, &["systemd-tmpfiles", "--create", "tidegate.conf"])?;
        let token = self.operator.json(&["token", "create", "--host", host, "--label", "role=web"])?;
        self.hosts
            .ok(host, &["tidegate-agent", "enroll", "--controller", CONTROLLER, "--token", text(&token, "/token")?, "--name", host])?;
        self.hosts.push(host, &self.agent_toml(|example| example)?, AGENT_TOML, "644")?;
        self.hosts.ok(host, &["systemctl", "daemon-reload"])?;
        self.hosts.ok(host, &["systemctl", "enable", "--now", "--quiet", "tidegate-agent"])?;
        // It comes back after a power cut like any other service of the host.
        self.hosts.ok(host, &["systemctl", "enable", "--quiet", "shop-nginx"])?;
        Ok(())
    }

    /// The shipped example for this controller, edited; written to a file.
    fn agent_toml(&self, edit: impl Fn(String) -> String) -> anyhow::Result<PathBuf> {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/agent.toml");
        let text = fs::read_to_string(example).context("reading the example")?;
        let text = text.replace("ctl1.example:7443", CONTROLLER).replace("\"web\"]", "\"web\", \"cart\", \"mail\"]");
        ensure!(text.contains(CONTROLLER) && text.contains("\"mail\""), "the example has another form");
        let text = edit(text);
        let file = self.dir.path().join("agent.toml");
        release::write(&file, text.as_bytes(), 0o644)?;
        Ok(file)
    }

    /// Gives every host the shipped agent.toml, edited, and restarts its agent.
    pub(crate) fn configure(&self, edit: impl Fn(String) -> String) -> anyhow::Result<()> {
        let file = self.agent_toml(edit)?;
        for host in &self.hosts.names {
            self.hosts.push(host, &file, AGENT_TOML, "644")?;
            self.hosts.ok(host, &["systemctl", "restart", "tidegate-agent"])?;
        }
        self.operator.wait_online(self.hosts.names.len())
    }

    /// As [`Real::configure`], upon what the last one wrote.
    pub(crate) fn configure_again(&self, edit: impl Fn(String) -> String) -> anyhow::Result<()> {
        let before = fs::read_to_string(self.dir.path().join("agent.toml")).context("the last agent.toml")?;
        self.configure(|_| edit(before.clone()))
    }

    /// (name, address of the released nginx) of every host.
    pub(crate) fn targets(&self) -> Vec<(String, SocketAddr)> {
        let at = |(index, name): (usize, &String)| (name.clone(), SocketAddr::from((Hosts::address(index), web::PORT)));
        self.hosts.names.iter().enumerate().map(at).collect()
    }

    /// A client of every host.
    pub(crate) fn poll(&self) -> Poller {
        Poller::start(&self.targets(), POLL)
    }

    /// Checks that every host, asked over the bridge, serves `version`.
    pub(crate) fn expect_version(&self, version: &str) -> anyhow::Result<()> {
        for (name, address) in self.targets() {
            let answer = get(address, "/", Duration::from_secs(2)).with_context(|| name.clone())?;
            ensure!(
                answer.status == 200 && answer.body.trim() == format!("Welcome to web {version}"),
                "{name} answers {answer:?} where {version} is due"
            );
        }
        Ok(())
    }

    /// A property of a unit.
    pub(crate) fn property(&self, host: &str, unit: &str, property: &str) -> anyhow::Result<String> {
        self.hosts.ok(host, &["systemctl", "show", "--value", "--property", property, unit])
    }

    /// Logs of the controller and of every host.
    pub(crate) fn logs(&self) -> String {
        let mut text = format!("--- controller (pid {})\n{}", self.controller.pid(), tail(self.controller.log()));
        for host in &self.hosts.names {
            let journal = self.hosts.run(
                host,
                &["journalctl", "--no-pager", "-n", "40", "-u", "tidegate-agent", "-u", "shop-*", "-u", "tidegate-*", "-u", "nginx"],
            );
            let _ = write!(text, "\n--- {host}\n{}", journal.map(|output| output.said()).unwrap_or_default());
        }
        text
    }
}

/// The agent without debug information: three hosts get a copy.
pub(crate) fn agent() -> anyhow::Result<PathBuf> {
    Ok(tidegate_integration_tests::bins::slim(&programs()?.agent))
}
