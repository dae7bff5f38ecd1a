//! A small HTTP service that releases of tests and of the demo consist of.
//!
//! Owns: answering `/`, `/version`, `/health` and `/metrics` on loopback, and
//! misbehaving when its configuration or its control file (`--control`) says so.
//! Only requests for `/` are counted in the metrics, and only they fail or are
//! slow. Must not know anything of Tidegate: it stands for other people's software.
//!
//! The configuration is `../etc/service.conf` beside the program's real path, so
//! that two releases can share an executable; lines of `key = value`:
//!
//! - `version`: what the greeting says
//! - `behaviour`: `good`, `bad` (500 on `/`), `refuse` (exits at start),
//!   `slow-start`, `crash`, `hang` (accepts, never answers), `panic` (says so on
//!   stderr and goes on)
//! - `seconds`: how long `slow-start` waits, and when `crash` happens
//! - `only_port`: the behaviour holds on that port, elsewhere all is good
//! - `error_rate`, `latency_ms`: as in the control file, see `control.rs`

mod control;
mod metrics;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::control::{Knobs, Settings};
use crate::metrics::Metrics;

/// Connections served at once; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Good,
    Bad,
    Refuse,
    SlowStart,
    Crash,
    Hang,
    Panic,
}

impl Behaviour {
    fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(match text {
            "good" => Self::Good,
            "bad" => Self::Bad,
            "refuse" => Self::Refuse,
            "slow-start" => Self::SlowStart,
            "crash" => Self::Crash,
            "hang" => Self::Hang,
            "panic" => Self::Panic,
            _ => bail!("behaviour {text:?} is none of good, bad, refuse, slow-start, crash, hang, panic"),
        })
    }
}

struct Config {
    version: String,
    behaviour: Behaviour,
    after: Duration,
    only_port: Option<u16>,
    settings: Settings,
}

impl Config {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut config = Self {
            version: "0".to_owned(),
            behaviour: Behaviour::Good,
            after: Duration::ZERO,
            only_port: None,
            settings: Settings::default(),
        };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((key, value)) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
                bail!("{line:?} is not key = value");
            };
            match key {
                "version" => value.clone_into(&mut config.version),
                "behaviour" => config.behaviour = Behaviour::parse(value)?,
                "seconds" => config.after = Duration::try_from_secs_f64(value.parse().context("seconds")?).context("seconds")?,
                "only_port" => config.only_port = Some(value.parse().context("only_port")?),
                _ if config.settings.set(key, value)? => {}
                _ => bail!("unknown key {key:?}"),
            }
        }
        Ok(config)
    }
}

struct Args {
    port: u16,
    config: PathBuf,
    control: Option<PathBuf>,
    check: bool,
}

fn args() -> anyhow::Result<Args> {
    // Through the kernel's link: argv[0] may name `current`, which can move on.
    let program = std::env::current_exe().context("where this program is")?;
    let default = program.parent().and_then(|bin| bin.parent()).context("no directory above the program's")?.join("etc/service.conf");
    let mut parsed = Args { port: 0, config: default, control: None, check: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--port" => parsed.port = words.next().context("--port needs a number")?.parse().context("--port")?,
            "--config" => parsed.config = words.next().context("--config needs a path")?.into(),
            "--control" => parsed.control = Some(words.next().context("--control needs a path")?.into()),
            "--check-config" => parsed.check = true,
            _ => bail!("unknown argument {word:?}; known are --port N, --config FILE, --control FILE and --check-config"),
        }
    }
    Ok(parsed)
}

struct Service {
    version: String,
    behaviour: Behaviour,
    knobs: Knobs,
    metrics: Metrics,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if self.behaviour == Behaviour::Hang {
            std::future::pending::<()>().await;
        }
        let (status, body) = match request.uri().path() {
            "/" => self.greet().await,
            "/version" => (StatusCode::OK, format!("{}\n", self.version)),
            "/health" => (StatusCode::OK, "ok\n".to_owned()),
            "/metrics" => (StatusCode::OK, self.metrics.page()),
            path => (StatusCode::NOT_FOUND, format!("no {path} here\n")),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response
    }

    async fn greet(&self) -> (StatusCode, String) {
        let began = Instant::now();
        let (fails, latency) = self.knobs.next();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let bad = fails || self.behaviour == Behaviour::Bad;
        self.metrics.count(bad, began.elapsed());
        if bad {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("shop {} is out of order\n", self.version))
        } else {
            (StatusCode::OK, format!("Welcome to shop {}\n", self.version))
        }
    }
}

async fn serve(port: u16, service: Arc<Service>) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    println!("shop {} listens on {}", service.version, listener.local_addr()?);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A client that left, or no free descriptor: neither ends the service.
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            // A client that breaks off mid-request is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            drop(permit);
        });
    }
}

fn run() -> anyhow::Result<()> {
    let args = args()?;
    let text = std::fs::read_to_string(&args.config).with_context(|| format!("reading {}", args.config.display()))?;
    let config = Config::parse(&text).with_context(|| format!("in {}", args.config.display()))?;
    if args.check {
        println!("{} is fine", args.config.display());
        return Ok(());
    }
    let behaviour = match config.only_port {
        Some(port) if port != args.port => Behaviour::Good,
        _ => config.behaviour,
    };
    if behaviour == Behaviour::Refuse {
        bail!("shop {} refuses to start", config.version);
    }
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let knobs = Knobs::new(config.settings);
    let version = config.version.clone();
    let service = Arc::new(Service { version: config.version, behaviour, knobs: knobs.clone(), metrics: Metrics::new(started) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if behaviour == Behaviour::SlowStart {
            tokio::time::sleep(config.after).await;
        }
        if behaviour == Behaviour::Panic {
            eprintln!("panic: shop {} lost its nerve", service.version);
        }
        if let Some(file) = args.control {
            tokio::spawn(control::follow(file, version, config.settings, knobs));
        }
        let crash = async {
            if behaviour == Behaviour::Crash {
                tokio::time::sleep(config.after).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            served = serve(args.port, service) => served,
            () = crash => bail!("crashed on purpose"),
        }
    })
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo-service: {error:#}");
            ExitCode::from(3)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_read_and_typos_refused() {
        let slow = Config::parse("error_rate = 2\nlatency_ms = 50").unwrap();
        assert_eq!(slow.settings, Settings { errors_ppm: 20_000, latency: Duration::from_millis(50) });
        let config = Config::parse("# shop\nversion = 2.0.0\nbehaviour = crash\nseconds = 1.5\nonly_port = 8081\n").unwrap();
        assert_eq!((config.version.as_str(), config.behaviour), ("2.0.0", Behaviour::Crash));
        assert_eq!((config.after, config.only_port), (Duration::from_millis(1500), Some(8081)));
        assert!(Config::parse("behavior = bad").is_err());
        assert!(Config::parse("behaviour = badly").is_err());
    }
}
