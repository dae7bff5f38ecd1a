//! Smoke tests: what a release asserts of itself, run beside the service.
//!
//! Owns: the order, attempts and deadlines, and what is said of a failure. Must
//! not: judge beyond pass and fail, nor decide what follows.

mod exec;
mod file;
pub(crate) mod http;
pub(crate) mod journal;
mod systemd;
mod tcp;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tidegate_protocol::Millis;
use tidegate_protocol::release::{Service, Smoke, SmokeCheck, Suite};
use tidegate_protocol::report::{Cause, Failure, SmokeResult, SmokeStatus, bounded};
use tidegate_swap::Mark;
use tokio::time::{Instant, sleep, timeout};

use crate::context::{Context, Installed};
use crate::error::failure;
use crate::service::{Services, since_boot};

/// Between two attempts: at first, and at most. Most services listen within a few
/// milliseconds of their start.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A service that is down when its tests have passed may be just restarting.
const DOWN: Duration = Duration::from_secs(3);
/// Without any test, a process that has lived so long has at least started: one
/// that keeps dying at once is seen alive now and then.
const STEADY: Duration = Duration::from_secs(1);

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attempt {
    /// It asserts what it should; what was seen.
    Pass(String),
    /// It does not, yet: what was seen and what was wanted.
    Fail(String),
    /// It does not, and no further attempt can change that.
    Never(String),
}

/// What every check gets.
struct Beside<'a> {
    ctx: &'a Context,
    services: &'a Services,
    installed: &'a Installed,
    /// Messages before it do not count; none for a look at a service that nobody swapped.
    since: Option<&'a Mark>,
}

impl Beside<'_> {
    fn expand(&self, text: &str) -> Result<String, Attempt> {
        self.ctx.expand_in(self.installed, text).map_err(|e| Attempt::Never(e.to_string()))
    }

    async fn attempt(&self, test: &Smoke) -> Attempt {
        let result = match &test.check {
            SmokeCheck::Http { url, status, body } => http::attempt(self, url, *status, body.as_deref()).await,
            SmokeCheck::Tcp { address } => tcp::attempt(self, address).await,
            SmokeCheck::Exec { run } => exec::attempt(self, run, Duration::from_millis(test.timeout.0)).await,
            SmokeCheck::Systemd { max_restarts } => systemd::attempt(self, *max_restarts).await,
            SmokeCheck::Journal { deny, watch } => journal::attempt(self, deny, Duration::from_millis(watch.0)).await,
            SmokeCheck::File { path, sha256 } => file::attempt(self, path, *sha256).await,
        };
        match result {
            Ok(seen) => Attempt::Pass(seen),
            Err(attempt) => attempt,
        }
    }

    /// One attempt within its time.
    async fn bounded_attempt(&self, test: &Smoke) -> Attempt {
        let mut limit = Duration::from_millis(test.timeout.0);
        if let SmokeCheck::Journal { watch, .. } = &test.check {
            limit += Duration::from_millis(watch.0).max(journal::WATCH_MIN);
        }
        match timeout(limit, self.attempt(test)).await {
            Ok(attempt) => attempt,
            Err(_) => Attempt::Fail(format!("{} → nothing within {} ms", what(self, test), test.timeout.0)),
        }
    }
}

/// What a test does, for a message about nothing having come of it.
fn what(beside: &Beside<'_>, test: &Smoke) -> String {
    let expand = |text: &str| beside.expand(text).unwrap_or_else(|_| text.to_owned());
    match &test.check {
        SmokeCheck::Http { url, .. } => format!("GET {}", expand(url)),
        SmokeCheck::Tcp { address } => format!("connect to {}", expand(address)),
        SmokeCheck::Exec { run } => run.join(" "),
        SmokeCheck::Systemd { .. } => "the unit's state".to_owned(),
        SmokeCheck::Journal { .. } => "the service's messages".to_owned(),
        SmokeCheck::File { path, .. } => format!("the digest of {}", expand(path)),
    }
}

/// Runs the tests in order until one fails; the rest are then skipped. Dropping
/// the future kills what runs.
///
/// The failure names the first test that failed; without one, the service's own
/// end (`start-failed`) is still told.
pub async fn run(
    ctx: &Context,
    services: &Services,
    installed: &Installed,
    integration: bool,
    since: &Mark,
) -> (Vec<SmokeResult>, Option<Failure>) {
    let beside = Beside { ctx, services, installed, since: Some(since) };
    let mut results = Vec::new();
    let mut first = None;
    for test in installed.component.smoke.iter().filter(|test| integration || test.suite == Suite::Critical) {
        if first.is_some() {
            let (status, message) = (SmokeStatus::Skipped, "another test failed first".to_owned());
            results.push(SmokeResult { id: test.id.clone(), status, duration_ms: 0, message });
            continue;
        }
        let began = Instant::now();
        let verdict = until_passed(&beside, test, began).await;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (status, message) = match verdict {
            Ok(seen) => (SmokeStatus::Pass, seen),
            Err(seen) => {
                first = Some(failure(Cause::Smoke, &format!("{} {:?}: {seen}", test.id, test.name)));
                (SmokeStatus::Fail, seen)
            }
        };
        results.push(SmokeResult { id: test.id.clone(), status, duration_ms, message: bounded(&message) });
    }
    if first.is_none() {
        let age = if results.is_empty() { STEADY } else { Duration::ZERO };
        first = still_runs(services, installed, age).await.err();
    }
    (results, first)
}

/// One test that stands apart from the release's own: attempts until it passes
/// or its time is over. What was seen, either way.
///
/// # Errors
/// It does not assert what it should.
pub async fn one(ctx: &Context, services: &Services, installed: &Installed, test: &Smoke, since: &Mark) -> Result<String, String> {
    let beside = Beside { ctx, services, installed, since: Some(since) };
    until_passed(&beside, test, Instant::now()).await
}

/// The present health of a service: active, and each critical test passes at
/// once. Tests of messages are left out: there is no instant to count from.
pub async fn observe(ctx: &Context, services: &Services, installed: &Installed) -> bool {
    if !services.status(installed).await.active {
        return false;
    }
    let beside = Beside { ctx, services, installed, since: None };
    for test in &installed.component.smoke {
        let asked = test.suite == Suite::Critical && !matches!(test.check, SmokeCheck::Journal { .. });
        if asked && !matches!(beside.bounded_attempt(test).await, Attempt::Pass(_)) {
            return false;
        }
    }
    true
}

/// One attempt at each critical test that looks at the present: those of messages
/// and of restarts count from a swap, and are left out. The number that passed.
///
/// # Errors
/// The first that did not, by its id.
pub(crate) async fn again(ctx: &Context, services: &Services, installed: &Installed) -> Result<usize, String> {
    let beside = Beside { ctx, services, installed, since: None };
    let mut passed = 0;
    for test in &installed.component.smoke {
        let since = matches!(test.check, SmokeCheck::Journal { .. } | SmokeCheck::Systemd { .. });
        if since || test.suite != Suite::Critical {
            continue;
        }
        match beside.bounded_attempt(test).await {
            Attempt::Pass(_) => passed += 1,
            Attempt::Fail(seen) | Attempt::Never(seen) => return Err(format!("{} {:?}: {seen}", test.id, test.name)),
        }
    }
    Ok(passed)
}

/// What tells at any time whether a component answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    test: Smoke,
    /// `http://127.0.0.1:8080/`, `tcp://127.0.0.1:5432`.
    pub(crate) what: String,
}

/// The first critical test by HTTP that local policy allows, else the first by TCP.
pub(crate) fn call(ctx: &Context, installed: &Installed) -> Option<Call> {
    let tests = || installed.component.smoke.iter().filter(|test| test.suite == Suite::Critical && allowed(ctx, installed, test).is_ok());
    let test = tests()
        .find(|test| matches!(test.check, SmokeCheck::Http { .. }))
        .or_else(|| tests().find(|test| matches!(test.check, SmokeCheck::Tcp { .. })))?;
    let what = match &test.check {
        SmokeCheck::Http { url, .. } => ctx.expand_in(installed, url).ok()?,
        SmokeCheck::Tcp { address } => format!("tcp://{}", ctx.expand_in(installed, address).ok()?),
        _ => return None,
    };
    Some(Call { test: test.clone(), what })
}

/// Whether one attempt at it passes, within its own time and at most this.
pub(crate) async fn answers(ctx: &Context, services: &Services, installed: &Installed, call: &Call, most: Duration) -> bool {
    let beside = Beside { ctx, services, installed, since: None };
    matches!(timeout(most, beside.bounded_attempt(&call.test)).await, Ok(Attempt::Pass(_)))
}

/// Attempts until one passes or the time for attempts is over.
async fn until_passed(beside: &Beside<'_>, test: &Smoke, began: Instant) -> Result<String, String> {
    let deadline = began + Duration::from_millis(test.retry_for.0);
    let mut pause = PAUSE_MIN;
    let mut attempts = 0_u32;
    loop {
        attempts = attempts.saturating_add(1);
        let seen = match beside.bounded_attempt(test).await {
            Attempt::Pass(seen) => return Ok(seen),
            Attempt::Never(seen) => return Err(seen),
            Attempt::Fail(seen) => seen,
        };
        if Instant::now() + pause > deadline {
            let times = if attempts == 1 { String::new() } else { format!(" ({attempts} attempts in {})", test.retry_for) };
            return Err(format!("{seen}{times}"));
        }
        sleep(pause).await;
        pause = pause.saturating_mul(2).min(PAUSE_MAX);
    }
}

/// It is active, and its main process (if it has one) is so old.
async fn still_runs(services: &Services, installed: &Installed, age: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + DOWN;
    loop {
        let status = services.status(installed).await;
        let born_by = since_boot() - Millis(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        if status.active && (age.is_zero() || status.main.is_none_or(|main| !main.started_since(born_by))) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let words = services.last_words(installed).await;
            let title = installed.title();
            return Err(failure(
                Cause::StartFailed,
                &format!("{title}: no smoke test failed, but the service does not keep running{words}"),
            ));
        }
        sleep(DOWN / 30).await;
    }
}

/// Whether local policy lets a test do what it wants; asked in preflight and
/// again before each attempt.
///
/// # Errors
/// What is wrong and how to allow it.
pub(crate) fn allowed(ctx: &Context, installed: &Installed, test: &Smoke) -> Result<(), String> {
    let expand = |text: &str| ctx.expand_in(installed, text).map_err(|e| e.to_string());
    match &test.check {
        SmokeCheck::Http { url, .. } => http::allowed(ctx, &expand(url)?).map(drop),
        SmokeCheck::Tcp { address } => tcp::allowed(ctx, &expand(address)?).map(drop),
        SmokeCheck::Journal { .. } if matches!(installed.component.service, Service::Command { .. }) => {
            Err("`journal` needs a service of systemd or of the agent: the output of commands is not kept".to_owned())
        }
        _ => Ok(()),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Connects to the first address that answers; `localhost` needs no resolver.
async fn connect(host: &str, port: u16) -> std::io::Result<tokio::net::TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.eq_ignore_ascii_case("localhost") {
        let both: [SocketAddr; 2] = [([127, 0, 0, 1], port).into(), ([0, 0, 0, 0, 0, 0, 0, 1_u16], port).into()];
        return tokio::net::TcpStream::connect(both.as_slice()).await;
    }
    tokio::net::TcpStream::connect((host, port)).await
}
