//! A controller and agents as real processes on loopback.
//!
//! Owns: directories, starting, joining, killing and restarting, and that nothing
//! of it is left, whatever the test did. What one asks of a fleet is in `ask.rs`.
//!
//! Everything lives below one directory. `TIDEGATE_KEEP=1` keeps it, with all
//! logs, and says where it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use rustix::process::Signal;

use crate::ask::Operator;
use crate::bins::{Programs, programs};
use crate::logs;
use crate::output::Output;
use crate::ports::free_port;
use crate::process::{Process, Reaper, kill_below};
use crate::wait::{Look, wait_until};

/// For a daemon to say that it is ready, and for hosts to be seen online.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// For a command that does not wait for a rollout.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
/// Agents that enrol at the same time.
const ENROL_AT_ONCE: usize = 4;

/// Labels or variables of a host.
pub type Pairs = Vec<(String, String)>;

/// One host of a fleet: an agent and what it looks after.
#[derive(Debug)]
pub struct Host {
    /// `h1`, `h2`, …
    pub name: String,
    /// Everything of its agent.
    pub dir: PathBuf,
    /// `${var.port}`.
    pub port: u16,
    /// `${var.port2}`, for a second component.
    pub port2: u16,
    /// `${var.front}`, for what passes traffic on to sides.
    pub front: u16,
    /// `${var.control}`: what the demo service looks at while it runs.
    pub control: PathBuf,
    process: Option<Process>,
}

impl Host {
    /// Where the component on `${var.port}` answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Tells the demo service on this host something, in lines of its control file.
    ///
    /// # Errors
    /// The disk says no.
    pub fn tell(&self, lines: &str) -> anyhow::Result<()> {
        // Renamed when complete, so that it is never half read.
        let half = self.control.with_extension("half");
        fs::write(&half, lines)
            .and_then(|()| fs::rename(&half, &self.control))
            .with_context(|| format!("writing {}", self.control.display()))
    }

    /// What the supervised service wrote of the component `api`, all releases.
    #[must_use]
    pub fn service_log(&self) -> String {
        fs::read_to_string(self.dir.join("state/logs/api.log")).unwrap_or_default()
    }

    /// The agent's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// The agent's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn agent(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("the agent of {} was not started", self.name))
    }
}

/// How a fleet shall be.
#[derive(Clone, Debug)]
pub struct FleetBuilder {
    hosts: usize,
    labels: fn(usize) -> Pairs,
    controller_env: Pairs,
    agent_env: Pairs,
    any_port: bool,
    start_agents: bool,
    config: String,
}

impl FleetBuilder {
    /// Labels by host number from 1; `role=api` for all, unless said otherwise.
    #[must_use]
    pub fn labels(mut self, labels: fn(usize) -> Pairs) -> Self {
        self.labels = labels;
        self
    }

    /// A variable of the controller's environment, at its first start only.
    #[must_use]
    pub fn controller_env(mut self, key: &str, value: &str) -> Self {
        self.controller_env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A variable of every agent's environment, at their first start only.
    #[must_use]
    pub fn agent_env(mut self, key: &str, value: &str) -> Self {
        self.agent_env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The controller listens on a port that the kernel chooses. Another one at
    /// each start, so such a controller cannot be restarted under its agents.
    #[must_use]
    pub fn any_port(mut self) -> Self {
        self.any_port = true;
        self
    }

    /// Sections more in controller.toml, before the first start.
    #[must_use]
    pub fn config(mut self, sections: &str) -> Self {
        self.config.push_str(sections);
        self
    }

    /// Agents join, but do not run yet.
    #[must_use]
    pub fn agents_stopped(mut self) -> Self {
        self.start_agents = false;
        self
    }

    /// Starts it; ready when the controller sees every host online.
    ///
    /// # Errors
    /// Something did not start or join; the logs are part of the message.
    pub fn start(self) -> anyhow::Result<Fleet> {
        let mut fleet = Fleet::empty(self.any_port)?;
        fleet.add_config(&self.config)?;
        fleet.start_controller_with(&self.controller_env)?;
        fleet.join(self.hosts, self.labels)?;
        if self.start_agents {
            for index in 0..self.hosts {
                fleet.start_agent_with(index, &self.agent_env)?;
            }
            fleet.wait_online(self.hosts).with_context(|| fleet.tails())?;
        }
        Ok(fleet)
    }
}

/// A running fleet. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Fleet {
    /// By number, `hosts[0]` is `h1`.
    pub hosts: Vec<Host>,
    pub(crate) operator: Operator,
    dir: PathBuf,
    programs: &'static Programs,
    controller: Option<Process>,
    reaper: Option<Reaper>,
}

impl Fleet {
    /// `hosts` hosts labelled `role=api`, running and online.
    ///
    /// # Errors
    /// See [`FleetBuilder::start`].
    pub fn start(hosts: usize) -> anyhow::Result<Self> {
        Self::builder(hosts).start()
    }

    /// A fleet to be.
    #[must_use]
    pub fn builder(hosts: usize) -> FleetBuilder {
        FleetBuilder {
            hosts,
            labels: |_| pairs(&[("role", "api")]),
            controller_env: Vec::new(),
            agent_env: Vec::new(),
            any_port: false,
            start_agents: true,
            config: String::new(),
        }
    }

    /// The directories and the controller's files; nothing runs but the reaper.
    fn empty(any_port: bool) -> anyhow::Result<Self> {
        let programs = programs()?;
        let dir = tempfile::Builder::new().prefix("tidegate-fleet-").tempdir().context("a directory for the fleet")?.keep();
        // Run by root, agents start services as another user, who must get there.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).context("the mode of the fleet's directory")?;
        let reaper = Reaper::start(&programs.reaper, &dir)?;
        let operator = Operator::first(&dir.join("controller"), &dir.join("work"))?;
        let fleet = Self { hosts: Vec::new(), operator, dir, programs, controller: None, reaper: Some(reaper) };
        for (name, mode) in [("work", 0o755), ("scratch", 0o777)] {
            let path = fleet.dir.join(name);
            fs::create_dir(&path)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
                .with_context(|| format!("making {}", path.display()))?;
        }
        let port = if any_port { 0 } else { free_port()? };
        let mut init = Command::new(&programs.controller);
        init.arg("init").arg("--dir").arg(fleet.controller_dir()).args(["--name", "127.0.0.1", "--listen", &format!("127.0.0.1:{port}")]);
        Output::of(init, COMMAND_WITHIN)?.expect_code(0)?;
        Ok(fleet)
    }

    /// Everything of this fleet.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory that every user may write to.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// The controller's directory.
    #[must_use]
    pub fn controller_dir(&self) -> PathBuf {
        self.dir.join("controller")
    }

    /// Puts sections at the end of controller.toml; the controller reads it at its start.
    ///
    /// # Errors
    /// The disk says no.
    pub fn add_config(&self, sections: &str) -> anyhow::Result<()> {
        let file = self.controller_dir().join("controller.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        fs::write(&file, format!("{text}\n{sections}")).with_context(|| format!("writing {}", file.display()))
    }

    /// The controller's log.
    #[must_use]
    pub fn controller_log(&self) -> PathBuf {
        self.dir.join("controller.log")
    }

    /// The host called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn host(&mut self, name: &str) -> anyhow::Result<&mut Host> {
        self.hosts.iter_mut().find(|host| host.name == name).with_context(|| format!("there is no host {name}"))
    }

    /// Starts the controller again.
    ///
    /// # Errors
    /// It does not get ready; its log is part of the message.
    pub fn start_controller(&mut self) -> anyhow::Result<()> {
        self.start_controller_with(&[])
    }

    /// Starts the controller with variables added to its environment.
    ///
    /// # Errors
    /// It does not get ready; its log is part of the message.
    pub fn start_controller_with(&mut self, env: &[(String, String)]) -> anyhow::Result<()> {
        ensure!(self.controller.is_none(), "the controller runs already");
        let listening = self.controller_dir().join("listening");
        // The last start's file must not be taken for this one's.
        match fs::remove_file(&listening) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("removing the file `listening`"),
            _ => {}
        }
        let mut command = Command::new(&self.programs.controller);
        command.arg("serve").arg("--config").arg(self.controller_dir().join("controller.toml"));
        command.current_dir(&self.dir).envs(env.iter().cloned());
        let log = self.controller_log();
        let mut process = Process::start("the controller", command, &log)?;
        wait_until("the controller listens", READY_WITHIN, || {
            if let Some(status) = process.ended()? {
                bail!("it ended with {status}; its log:\n{}", tail(&log));
            }
            let port = fs::read_to_string(&listening).ok().and_then(|text| text.trim().parse::<u16>().ok());
            Ok(Look::from_option(port, || "no port yet".to_owned()))
        })?;
        self.controller = Some(process);
        Ok(())
    }

    /// The port that the controller listens on.
    ///
    /// # Errors
    /// It does not say.
    pub fn port(&self) -> anyhow::Result<u16> {
        let path = self.controller_dir().join("listening");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{text:?} in {}", path.display()))
    }

    /// The controller's process.
    ///
    /// # Errors
    /// It was not started.
    pub fn controller(&mut self) -> anyhow::Result<&mut Process> {
        self.controller.as_mut().context("the controller was not started")
    }

    /// SIGKILL to the controller.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_controller(&mut self) -> anyhow::Result<()> {
        self.controller.take().context("the controller was not started")?.kill()
    }

    /// Waits until the controller died by itself, at a crash point.
    ///
    /// # Errors
    /// It lives on.
    pub fn wait_controller_dead(&mut self, within: Duration) -> anyhow::Result<()> {
        self.controller()?.wait_end(within)?;
        self.controller = None;
        Ok(())
    }

    /// Ends the controller as an operator would.
    ///
    /// # Errors
    /// It does not end, or not with 0.
    pub fn stop_controller(&mut self) -> anyhow::Result<()> {
        let status = self.controller.take().context("the controller was not started")?.terminate()?;
        ensure!(status.success(), "the controller ended with {status} after SIGTERM; its log:\n{}", tail(&self.controller_log()));
        Ok(())
    }

    /// Makes `count` hosts and lets them join.
    fn join(&mut self, count: usize, labels: fn(usize) -> Pairs) -> anyhow::Result<()> {
        let mut tokens: BTreeMap<Pairs, (String, usize)> = BTreeMap::new();
        for number in 1..=count {
            tokens.entry(labels(number)).or_default().1 += 1;
        }
        for (labels, (token, uses)) in &mut tokens {
            *token = self.token(labels, *uses)?;
        }
        let mut waiting = Vec::new();
        for number in 1..=count {
            let name = format!("h{number}");
            let dir = self.dir.join(&name);
            let control = self.scratch().join(format!("{name}.control"));
            let host = Host { name, dir, port: free_port()?, port2: free_port()?, front: free_port()?, control, process: None };
            let token = tokens.get(&labels(number)).map(|(token, _)| token.clone()).unwrap_or_default();
            waiting.push((self.enroll_command(&host, &token)?, host.name.clone()));
            self.hosts.push(host);
        }
        for batch in waiting.chunks_mut(ENROL_AT_ONCE) {
            let commands = batch.iter_mut().map(|(command, name)| (std::mem::replace(command, Command::new("true")), name.clone()));
            let threads: Vec<_> = commands.map(|(command, name)| (thread::spawn(|| Output::of(command, COMMAND_WITHIN)), name)).collect();
            for (thread, name) in threads {
                let output = thread.join().map_err(|_| anyhow!("the thread that enrols {name} panicked"))?;
                output.and_then(|output| output.expect_code(0)).with_context(|| format!("{name} joins"))?;
            }
        }
        Ok(())
    }

    /// A token for `uses` hosts with `labels`.
    ///
    /// # Errors
    /// The controller says no.
    pub fn token(&self, labels: &[(String, String)], uses: usize) -> anyhow::Result<String> {
        let mut args = vec!["token".to_owned(), "create".to_owned(), "--uses".to_owned(), uses.to_string()];
        for (key, value) in labels {
            args.extend(["--label".to_owned(), format!("{key}={value}")]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let created = self.json(&args)?;
        Ok(created.get("token").and_then(|token| token.as_str()).context("no token in what token create printed")?.to_owned())
    }

    /// `tidegate-agent enroll` for `host`.
    ///
    /// # Errors
    /// The controller's port is not known.
    pub fn enroll_command(&self, host: &Host, token: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.programs.agent);
        command.arg("enroll").arg("--dir").arg(&host.dir).args([
            "--controller",
            &format!("127.0.0.1:{}", self.port()?),
            "--token",
            token,
            "--name",
            &host.name,
        ]);
        let (scratch, control) = (self.scratch().display().to_string(), host.control.display().to_string());
        let (port, port2, front) = (host.port.to_string(), host.port2.to_string(), host.front.to_string());
        let vars = [
            ("port", &port),
            ("port2", &port2),
            // Of a component with sides.
            ("port_blue", &port),
            ("port_green", &port2),
            ("front", &front),
            ("scratch", &scratch),
            ("control", &control),
        ];
        for (name, value) in vars {
            command.arg("--var").arg(format!("{name}={value}"));
        }
        command.current_dir(&self.dir);
        Ok(command)
    }

    /// Starts the agent of `hosts[index]` again.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_agent(&mut self, index: usize) -> anyhow::Result<()> {
        self.start_agent_with(index, &[])
    }

    /// Starts an agent with variables added to its environment.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_agent_with(&mut self, index: usize, env: &[(String, String)]) -> anyhow::Result<()> {
        let host = self.hosts.get_mut(index).context("no such host")?;
        ensure!(host.process.is_none(), "the agent of {} runs already", host.name);
        let mut command = Command::new(&self.programs.agent);
        command.arg("run").arg("--config").arg(host.dir.join("agent.toml")).current_dir(&host.dir).envs(env.iter().cloned());
        host.process = Some(Process::start(&format!("the agent of {}", host.name), command, &host.log())?);
        Ok(())
    }

    /// SIGKILL to the agent alone: what it looks after runs on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_agent(&mut self, index: usize) -> anyhow::Result<()> {
        self.take_agent(index)?.kill()
    }

    /// Puts lines at the end of an agent's agent.toml; it must not run.
    ///
    /// # Errors
    /// The disk says no.
    pub fn add_policy(&mut self, index: usize, lines: &str) -> anyhow::Result<()> {
        let host = self.hosts.get(index).context("no such host")?;
        ensure!(host.process.is_none(), "the agent of {} runs", host.name);
        let file = host.dir.join("agent.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        fs::write(&file, format!("{text}\n{lines}")).with_context(|| format!("writing {}", file.display()))
    }

    /// Tells the demo service on every host the same.
    ///
    /// # Errors
    /// The disk says no.
    pub fn tell_all(&self, lines: &str) -> anyhow::Result<()> {
        self.hosts.iter().try_for_each(|host| host.tell(lines))
    }

    /// Ends an agent as an operator would.
    ///
    /// # Errors
    /// It does not end, or not with 0.
    pub fn stop_agent(&mut self, index: usize) -> anyhow::Result<()> {
        let status = self.take_agent(index)?.terminate()?;
        ensure!(status.success(), "the agent ended with {status} after SIGTERM");
        Ok(())
    }

    /// Waits until an agent died by itself, at a crash point.
    ///
    /// # Errors
    /// It lives on.
    pub fn wait_agent_dead(&mut self, index: usize, within: Duration) -> anyhow::Result<()> {
        self.hosts.get_mut(index).context("no such host")?.agent()?.wait_end(within)?;
        self.take_agent(index)?;
        Ok(())
    }

    /// Freezes an agent, as a machine that hangs: SIGSTOP.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze_agent(&mut self, index: usize) -> anyhow::Result<()> {
        self.hosts.get_mut(index).context("no such host")?.agent()?.signal(Signal::STOP)
    }

    /// Undoes [`Fleet::freeze_agent`].
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw_agent(&mut self, index: usize) -> anyhow::Result<()> {
        self.hosts.get_mut(index).context("no such host")?.agent()?.signal(Signal::CONT)
    }

    fn take_agent(&mut self, index: usize) -> anyhow::Result<Process> {
        let host = self.hosts.get_mut(index).context("no such host")?;
        host.process.take().with_context(|| format!("the agent of {} was not started", host.name))
    }

    /// Kills everything that an agent looks after, and the agent: a machine that
    /// lost its power.
    ///
    /// # Errors
    /// Something survives.
    pub fn power_off(&mut self, index: usize) -> anyhow::Result<()> {
        let host = self.hosts.get_mut(index).context("no such host")?;
        if let Some(mut agent) = host.process.take() {
            agent.kill()?;
        }
        let dir = host.dir.clone();
        kill_below(&dir, &[])
    }

    /// Fails on unexpected WARN and ERROR lines in the daemons' logs.
    ///
    /// # Errors
    /// The lines.
    pub fn gate_logs(&self, expected: &[&str]) -> anyhow::Result<()> {
        let controller = self.controller_log();
        let agents: Vec<PathBuf> = self.hosts.iter().map(Host::log).filter(|log| log.exists()).collect();
        logs::gate(std::iter::once(controller.as_path()).chain(agents.iter().map(PathBuf::as_path)), expected)
    }

    /// The ends of all logs, for a person who wonders why a test failed.
    #[must_use]
    pub fn tails(&self) -> String {
        let mut text = format!("--- controller\n{}", tail(&self.controller_log()));
        for host in &self.hosts {
            let _ = write!(text, "\n--- agent of {}\n{}", host.name, tail(&host.log()));
        }
        text
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let keep = std::env::var_os("TIDEGATE_KEEP").is_some();
        if thread::panicking() || keep {
            eprintln!("fleet in {}\n{}", self.dir.display(), self.tails());
        }
        // The daemons first: an agent would start again what is killed under it.
        self.controller = None;
        for host in &mut self.hosts {
            host.process = None;
        }
        if let Some(reaper) = self.reaper.take() {
            let pid = reaper.pid();
            let cleaned = kill_below(&self.dir, &[pid]).and_then(|()| reaper.finish(keep));
            if let Err(error) = cleaned {
                eprintln!("cleaning up {}: {error:#}", self.dir.display());
            }
        }
    }
}

/// Owned pairs.
#[must_use]
pub fn pairs(pairs: &[(&str, &str)]) -> Pairs {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The last lines of a log.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n")
}
