//! Programs of other people that the fleet stands beside: Prometheus, its node
//! exporter, Alertmanager, nginx. Real ones, from Debian's packages.
//!
//! Owns: finding and starting them on loopback with a configuration of the
//! fleet's own. Everything of them lies below the fleet's directory, so the
//! fleet's reaper ends them too.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::client::get;
use crate::fleet::Fleet;
use crate::output::Output;
use crate::ports::free_port;
use crate::process::Process;
use crate::wait::{Look, wait_until};

const READY_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Where `program` is, or none, said on stderr: the test that asks has nothing to
/// show then. With `TIDEGATE_TOOLS=required` it is an error: what checks every
/// change must not pass because a package is missing.
///
/// # Errors
/// It is missing, and required.
pub fn find(program: &str, package: &str) -> anyhow::Result<Option<PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons are where a user's search path does not lead.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    if let Some(found) = dirs.map(|dir| dir.join(program)).find(|file| file.is_file()) {
        return Ok(Some(found));
    }
    if required() {
        bail!("there is no {program}: apt-get install {package}");
    }
    eprintln!("SKIPPED, nothing was tested: there is no {program} (apt-get install {package})");
    Ok(None)
}

/// A Python that has `module`, or none, said on stderr; as [`find`].
///
/// # Errors
/// It is missing, and required.
pub fn python(module: &str, package: &str) -> anyhow::Result<Option<PathBuf>> {
    // Debian's packages are there for Debian's Python only, whatever else stands first in the search path.
    for candidate in ["/usr/bin/python3", "python3"] {
        let mut command = Command::new(candidate);
        command.args(["-c", &format!("import {module}")]);
        if Output::of(command, Duration::from_secs(30)).is_ok_and(|output| output.code == 0) {
            return Ok(Some(candidate.into()));
        }
    }
    if required() {
        bail!("no python3 has the module {module}: apt-get install {package}");
    }
    eprintln!("SKIPPED, nothing was tested: no python3 has the module {module} (apt-get install {package}, or pip install {module})");
    Ok(None)
}

fn required() -> bool {
    std::env::var_os("TIDEGATE_TOOLS").is_some_and(|word| word == "required")
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A daemon that answers over HTTP; can be killed and started again on its port.
#[derive(Debug)]
pub struct Tool {
    /// Where it answers.
    pub port: u16,
    /// Everything of it.
    pub dir: PathBuf,
    program: PathBuf,
    args: Vec<String>,
    /// The path that answers 200 once it is ready.
    ready: &'static str,
    process: Option<Process>,
}

impl Tool {
    fn new(fleet: &Fleet, name: &str, program: PathBuf, ready: &'static str) -> anyhow::Result<Self> {
        let dir = fleet.dir().join(name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { port: free_port()?, dir, program, args: Vec::new(), ready, process: None })
    }

    /// A Prometheus server that scrapes the demo service on every host four times
    /// a second, as `host="h1"` and so on.
    ///
    /// # Errors
    /// It does not start.
    pub fn prometheus(fleet: &Fleet, program: PathBuf) -> anyhow::Result<Self> {
        let mut tool = Self::new(fleet, "prometheus", program, "/-/ready")?;
        let mut config =
            "global:\n  scrape_interval: 250ms\n  scrape_timeout: 200ms\nscrape_configs:\n- job_name: shop\n  static_configs:\n".to_owned();
        for host in &fleet.hosts {
            let _ = write!(config, "  - targets: ['127.0.0.1:{}']\n    labels:\n      host: {}\n", host.port, host.name);
        }
        let file = tool.write("prometheus.yml", &config)?;
        tool.args = vec![
            format!("--config.file={file}"),
            format!("--storage.tsdb.path={}", tool.dir.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{}", tool.port),
            "--query.lookback-delta=2s".to_owned(),
        ];
        tool.start()?;
        Ok(tool)
    }

    /// Prometheus' node exporter.
    ///
    /// # Errors
    /// It does not start.
    pub fn node_exporter(fleet: &Fleet, program: PathBuf) -> anyhow::Result<Self> {
        let mut tool = Self::new(fleet, "node-exporter", program, "/metrics")?;
        tool.args = vec![format!("--web.listen-address=127.0.0.1:{}", tool.port)];
        tool.start()?;
        Ok(tool)
    }

    /// An Alertmanager without peers that tells nobody.
    ///
    /// # Errors
    /// It does not start.
    pub fn alertmanager(fleet: &Fleet, program: PathBuf) -> anyhow::Result<Self> {
        let mut tool = Self::new(fleet, "alertmanager", program, "/-/ready")?;
        let file = tool.write("alertmanager.yml", "route:\n  receiver: nobody\nreceivers:\n- name: nobody\n")?;
        tool.args = vec![
            format!("--config.file={file}"),
            format!("--storage.path={}", tool.dir.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{}", tool.port),
            "--cluster.listen-address=".to_owned(),
        ];
        tool.start()?;
        Ok(tool)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let file = self.dir.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        Ok(file.display().to_string())
    }

    /// Starts it (again), and waits until it answers.
    ///
    /// # Errors
    /// It does not; the end of its log is part of the message.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = self.dir.join("log");
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.dir);
        let name = self.program.display().to_string();
        let mut process = Process::start(&name, command, &log)?;
        let (address, ready) = (loopback(self.port), self.ready);
        wait_until(&format!("{name} answers"), READY_WITHIN, || {
            if let Some(status) = process.ended()? {
                bail!("it ended with {status}; its log:\n{}", crate::fleet::tail(&log));
            }
            Ok(match get(address, ready, ANSWER_WITHIN) {
                Ok(answer) if answer.status == 200 => Look::Done(()),
                Ok(answer) => Look::NotYet(format!("it answers {}", answer.status)),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("it does not run")?.kill()
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The answer to an instant query of PromQL: the number of series in it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn series(&self, query: &str) -> anyhow::Result<usize> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = get(loopback(self.port), &format!("/api/v1/query?query={encoded}"), ANSWER_WITHIN)?;
        let body: Value = serde_json::from_str(&answer.body).with_context(|| format!("{query} was answered with {answer:?}"))?;
        Ok(body.pointer("/data/result").and_then(Value::as_array).with_context(|| format!("no result in {body}"))?.len())
    }

    /// Waits until a query of PromQL brings `count` series.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_series(&self, query: &str, count: usize) -> anyhow::Result<()> {
        wait_until(&format!("{query} brings {count} series"), READY_WITHIN, || {
            let series = self.series(query)?;
            Ok(if series == count { Look::Done(()) } else { Look::NotYet(format!("it brings {series}")) })
        })
    }

    /// Makes an alert fire in Alertmanager, and waits until it is listed.
    ///
    /// # Errors
    /// It is not taken.
    pub fn alert(&self, name: &str, job: &str) -> anyhow::Result<()> {
        let body = format!(r#"[{{"labels":{{"alertname":"{name}","job":"{job}"}},"annotations":{{"summary":"{name} of a test"}}}}]"#);
        let mut stream = TcpStream::connect_timeout(&loopback(self.port), ANSWER_WITHIN).context("connecting to alertmanager")?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).context("a read timeout")?;
        let head = format!(
            "POST /api/v2/alerts HTTP/1.0\r\nHost: alertmanager\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).context("telling alertmanager")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("alertmanager's answer")?;
        ensure!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "alertmanager says {answer}");
        wait_until(&format!("{name} fires"), READY_WITHIN, || {
            let listed = get(loopback(self.port), "/api/v2/alerts", ANSWER_WITHIN)?;
            Ok(if listed.body.contains(name) { Look::Done(()) } else { Look::NotYet(listed.body) })
        })
    }
}

/// A real nginx in front of the two sides of one host, and the script that moves
/// its traffic: what a host's people would have set up.
#[derive(Debug)]
pub struct Front {
    /// Where users come in.
    pub address: SocketAddr,
    /// What `[commands]` of the host may name.
    pub script: PathBuf,
    process: Process,
}

impl Front {
    /// Starts it on `${var.front}` of `hosts[index]`, with traffic to the blue side.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(fleet: &Fleet, index: usize, nginx: &Path) -> anyhow::Result<Self> {
        let host = fleet.hosts.get(index).context("no such host")?;
        let dir = fleet.dir().join(format!("front-{}", host.name));
        fs::create_dir_all(dir.join("tmp")).with_context(|| format!("making {}", dir.display()))?;
        // Its workers run as nobody when this is root, and buffer below it.
        for path in [&dir, &dir.join("tmp")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).with_context(|| format!("the mode of {}", path.display()))?;
        }
        let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .fold(String::new(), |text, what| text + &format!("  {what}_temp_path tmp/{what};\n"));
        let config = format!(
            "daemon off;\npid nginx.pid;\nworker_processes 1;\nerror_log error.log warn;\nevents {{ worker_connections 256; }}\nhttp {{\n{temps}  access_log off;\n  \
             include upstream.conf;\n  server {{\n    listen 127.0.0.1:{};\n    location / {{\n      proxy_pass http://shop;\n      proxy_http_version 1.1;\n      \
             proxy_set_header Connection \"\";\n      proxy_next_upstream off;\n    }}\n  }}\n}}\n",
            host.front
        );
        let upstream = |port: u16| format!("upstream shop {{ server 127.0.0.1:{port} max_fails=0; }}\n");
        fs::write(dir.join("nginx.conf"), config).context("nginx.conf")?;
        fs::write(dir.join("upstream.conf"), upstream(host.port)).context("upstream.conf")?;
        let script = dir.join("lb-switch");
        let text = format!(
            "#!/bin/sh\nset -eu\ncd {dir}\necho \"$(date +%s.%N) $*\" >>switches.log\ncase \"$1\" in\n  blue) port={} ;;\n  green) port={} ;;\n  *) echo \"no side $1\" >&2; exit 2 ;;\nesac\n\
             echo \"upstream shop {{ server 127.0.0.1:$port max_fails=0; }}\" >upstream.new\nmv upstream.new upstream.conf\nexec {nginx} -p {dir} -c nginx.conf -s reload\n",
            host.port,
            host.port2,
            dir = dir.display(),
            nginx = nginx.display(),
        );
        crate::release::write(&script, text.as_bytes(), 0o755)?;
        let mut command = Command::new(nginx);
        command.arg("-p").arg(&dir).args(["-c", "nginx.conf", "-e", "error.log"]).current_dir(&dir);
        let process = Process::start(&format!("nginx of {}", host.name), command, &dir.join("log"))?;
        let address = loopback(host.front);
        wait_until("nginx listens", READY_WITHIN, || {
            Ok(match TcpStream::connect_timeout(&address, ANSWER_WITHIN) {
                Ok(_) => Look::Done(()),
                Err(error) => Look::NotYet(format!("{error}; {}", crate::fleet::tail(&dir.join("log")))),
            })
        })?;
        Ok(Self { address, script, process })
    }

    /// The script by hand, as an operator would run it.
    ///
    /// # Errors
    /// It fails.
    pub fn switch(&self, side: &str) -> anyhow::Result<()> {
        let mut command = Command::new(&self.script);
        command.arg(side);
        Output::of(command, ANSWER_WITHIN)?.expect_code(0)?;
        Ok(())
    }

    /// Its master process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}
