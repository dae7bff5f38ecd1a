//! The same job by Tidegate and by Ansible: copy 10 MiB to 20 hosts, verify it,
//! swap it in atomically, restart a small service, test it over HTTP.
//!
//! Both start warm: agents are connected, sshd runs, and Ansible's control
//! connections stand from a run before. Both restart the same program and ask it
//! for its greeting. Ansible gets every setting that makes it fast.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::rollout::{self, Shots};
use super::sshd::{Sshd, address};
use super::stats::{Sample, digits};
use super::{Settings, cost, row};
use crate::bins::programs;
use crate::client::get;
use crate::output::Output;
use crate::ports::free_port;
use crate::process::Reaper;
use crate::release::{noise, write};
use tidegate_protocol::Digest;

const HOSTS: usize = 20;
const BYTES: usize = 10 * 1024 * 1024;
/// From PyPI; the newest of a version that still runs on Python 3.11.
const ANSIBLE: &str = "ansible-core>=2.19,<2.20";
const INSTALL_WITHIN: Duration = Duration::from_secs(600);
const PLAY_WITHIN: Duration = Duration::from_secs(600);

pub(super) fn run(settings: Settings) -> anyhow::Result<()> {
    let venv = venv()?;
    let site = Site::start(&venv)?;
    let mut fleet = rollout::fleet(HOSTS)?;
    // Warm: connections, caches of Python, the first service on every host.
    site.play("0.1.0", 1024)?;
    let (mut shots, mut wall, mut total) = (Shots::default(), Sample::default(), Sample::default());
    let mut phases = Vec::new();
    for number in 1..=settings.runs {
        let version = format!("1.0.{number}");
        fleet.import(&rollout::release(&version, BYTES))?;
        shots.push(rollout::shoot(&mut fleet, &version)?);
        phases = rollout::phases(&fleet)?;
        let (seconds, cpu) = site.play(&version, BYTES)?;
        wall.push(seconds);
        total.push(cpu);
    }
    row("Tidegate: wall time", &shots.wall.show("s"));
    row("Tidegate: controller, agents, services, CLI", &shots.total.show("CPU-s"));
    row("Ansible: wall time", &wall.show("s"));
    row("Ansible: client, ssh, sshd, modules, services", &total.show("CPU-s"));
    let parts = wall.median() / shots.wall.median();
    row("Tidegate / Ansible, wall time", &format!("1/{}", digits(parts)));
    row("Tidegate / Ansible, CPU seconds", &format!("1/{}", digits(total.median() / shots.total.median())));
    row("last run, s after its start", &rollout::show(&phases));
    Ok(())
}

/// A virtual environment with Ansible in the target directory; made once.
fn venv() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("where this program is")?;
    let target = program.ancestors().nth(2).context("the target directory")?;
    let dir = target.join("bench-venv");
    let play = dir.join("bin/ansible-playbook");
    if !play.is_file() {
        eprintln!("installing {ANSIBLE} in {} \u{2026}", dir.display());
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(&dir);
        Output::of(venv, INSTALL_WITHIN)?.expect_code(0)?;
        let mut pip = Command::new(dir.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", ANSIBLE]);
        Output::of(pip, INSTALL_WITHIN)?.expect_code(0)?;
    }
    let mut version = Command::new(&play);
    version.arg("--version");
    let said = Output::of(version, PLAY_WITHIN)?.expect_code(0)?.stdout;
    row("against", said.lines().next().unwrap_or_default());
    Ok(dir)
}

/// Twenty hosts behind one sshd, and what is deployed to them.
struct Site {
    dir: PathBuf,
    venv: PathBuf,
    ports: Vec<u16>,
    sshd: Option<Sshd>,
    reaper: Option<Reaper>,
}

impl Site {
    fn start(venv: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tidegate-fleet-ansible-").tempdir().context("a directory for Ansible's hosts")?.keep();
        // Whatever becomes of this process, nothing of it is left.
        let reaper = Reaper::start(&programs()?.reaper, &dir)?;
        let mut site = Self { dir, venv: venv.to_owned(), ports: Vec::new(), sshd: None, reaper: Some(reaper) };
        let sshd = Sshd::start(&site.path("ssh"), HOSTS)?;
        sshd.check()?;
        site.ports = (0..HOSTS).map(|_| free_port()).collect::<anyhow::Result<Vec<u16>>>()?;
        site.write(&sshd)?;
        site.sshd = Some(sshd);
        Ok(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, sshd: &Sshd) -> anyhow::Result<()> {
        let mut inventory = "[fleet]\n".to_owned();
        for (number, port) in self.ports.iter().enumerate() {
            let home = self.path(&format!("hosts/{number}"));
            fs::create_dir_all(&home).context("a host's directory")?;
            let _ = writeln!(inventory, "{} service_port={port} home={}", address(number)?, home.display());
        }
        let _ = write!(
            inventory,
            "[fleet:vars]\nansible_port={}\nansible_ssh_private_key_file={}\nansible_python_interpreter={}\n",
            sshd.port,
            sshd.key().display(),
            python()?.display()
        );
        write(&self.path("inventory"), inventory.as_bytes(), 0o644)?;
        write(&self.path("play.yml"), PLAY.as_bytes(), 0o644)?;
        let ssh = "-o ControlMaster=auto -o ControlPersist=600s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
                   -o PreferredAuthentications=publickey";
        let config = format!(
            "[defaults]\nforks = {HOSTS}\ngathering = explicit\nhost_key_checking = False\ninventory = {inventory}\nlocal_tmp = {tmp}\n\
             [ssh_connection]\npipelining = True\nssh_args = {ssh}\ncontrol_path_dir = {control}\n",
            inventory = self.path("inventory").display(),
            tmp = self.path("tmp").display(),
            control = self.path("cp").display(),
        );
        write(&self.path("ansible.cfg"), config.as_bytes(), 0o644)
    }

    /// One run of the playbook; wall seconds and CPU seconds of everything.
    fn play(&self, version: &str, bytes: usize) -> anyhow::Result<(f64, f64)> {
        let payload = noise(bytes, version);
        let source = self.path("payload");
        write(&source, &payload, 0o644)?;
        write(&self.path("service.conf"), format!("version = {version}\n").as_bytes(), 0o644)?;
        let mut command = Command::new(self.venv.join("bin/ansible-playbook"));
        command.arg(self.path("play.yml")).current_dir(&self.dir).env("ANSIBLE_CONFIG", self.path("ansible.cfg"));
        command.env("ANSIBLE_HOME", self.path("ansible-home")).env("LC_ALL", "C.UTF-8");
        for (key, value) in [
            ("version", version.to_owned()),
            ("payload", source.display().to_string()),
            ("conf", self.path("service.conf").display().to_string()),
            ("sha256", Digest::of(&payload).to_string()),
            ("service", programs()?.demo_service.display().to_string()),
        ] {
            command.arg("-e").arg(format!("{key}={value}"));
        }
        let before = cost::cpu_below()?;
        let began = Instant::now();
        let output = Output::of(command, PLAY_WITHIN)?;
        let wall = began.elapsed().as_secs_f64();
        let cpu = cost::cpu_below()? - before;
        ensure!(output.code == 0, "ansible-playbook ended with {}:\n{}\n{}", output.code, output.stdout, output.stderr);
        for (number, port) in self.ports.iter().enumerate() {
            let answer = get(([127, 0, 0, 1], *port).into(), "/", Duration::from_secs(2))?;
            ensure!(answer.body.contains(&format!("Welcome to shop {version}")), "host {number} answers {:?}", answer.body);
        }
        Ok((wall, cpu))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.sshd = None;
        // Services name this directory on their command lines, control connections work in it.
        let reaper = self.reaper.take();
        if let Err(error) = reaper.map_or(Ok(()), |reaper| reaper.finish(false)) {
            eprintln!("ending what Ansible started: {error:#}");
        }
    }
}

fn python() -> anyhow::Result<PathBuf> {
    let found = ["/usr/bin/python3", "/usr/local/bin/python3"].into_iter().map(PathBuf::from).find(|path| path.is_file());
    found.context("there is no python3 for Ansible's hosts")
}

/// As few tasks as the job has steps, each the cheapest that does it: no facts,
/// no handlers, no module where a command costs less.
const PLAY: &str = r#"- hosts: fleet
  gather_facts: false
  tasks:
    - name: directories
      file:
        path: "{{ home }}/releases/{{ version }}"
        state: directory
    - name: the artifact
      copy:
        src: "{{ payload }}"
        dest: "{{ home }}/releases/{{ version }}/payload"
        mode: "0644"
    - name: its configuration
      copy:
        src: "{{ conf }}"
        dest: "{{ home }}/releases/{{ version }}/service.conf"
        mode: "0644"
    - name: verify
      shell: echo "{{ sha256 }}  {{ home }}/releases/{{ version }}/payload" | sha256sum --check --quiet
    - name: swap
      shell: ln -sfn releases/{{ version }} {{ home }}/next && mv -T {{ home }}/next {{ home }}/current
    - name: restart
      shell: >-
        if [ -f {{ home }}/pid ]; then old=$(cat {{ home }}/pid); kill $old; while [ -e /proc/$old/exe ]; do sleep 0.01; done; fi;
        setsid {{ service }} --port {{ service_port }} --config {{ home }}/current/service.conf </dev/null >{{ home }}/log 2>&1 &
        echo $! > {{ home }}/pid
    - name: smoke test
      shell: >-
        for i in $(seq 100); do
        curl --silent --fail --max-time 1 http://127.0.0.1:{{ service_port }}/ | grep -q "Welcome to shop {{ version }}" && exit 0;
        sleep 0.02; done; exit 1
"#;
