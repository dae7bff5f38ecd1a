//! Where notifications go in tests: Slack, PagerDuty and a webhook on loopback,
//! as strict as the real ones, and dashboards that answer.
//!
//! Owns: taking requests, judging them by the published limits (`limits.rs`),
//! answering by script, and remembering everything. What a real service would
//! refuse is answered with 400 *and* remembered, so that a test finds it.
//!
//! Paths decide what it is: `/slack/…`, `/v2/enqueue`, `/v2/change/enqueue`,
//! `/webhook/…`; everything else is a page that answers 200.

mod limits;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

pub use self::limits::Kind;
use crate::wait::{Look, hold, wait_until};

/// Largest request that is read: twice what the strictest real service takes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Connections served at once.
const CONNECTIONS_MAX: usize = 64;
/// The secret of webhooks, as routes of tests have it.
pub const WEBHOOK_SECRET: &str = "webhook-secret-0123456789-never-in-a-log";

/// What a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// As the real service does when all is well: 200, or 202 from PagerDuty.
    Fine,
    /// This status, with the body that belongs to it.
    Status(u16),
    /// 429 with `Retry-After`, seconds.
    RetryAfter(u16),
    /// Nothing, until the other side gives up.
    Hang,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Received {
    /// When it was complete.
    pub at: SystemTime,
    /// The same, for distances.
    pub instant: Instant,
    /// `POST`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// As it came.
    pub body: Vec<u8>,
    /// As JSON; null if it is none.
    pub json: Value,
    /// The status that it was answered with; 0 of one that hangs.
    pub answered: u16,
    /// What a real service would not have taken.
    pub problem: Option<String>,
}

impl Received {
    /// It was taken.
    #[must_use]
    pub fn taken(&self) -> bool {
        (200..300).contains(&self.answered)
    }

    /// The body, for looking for words.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

#[derive(Debug, Default)]
struct State {
    received: Vec<Received>,
    /// By the beginning of the path: answered one after the other, then `fixed`.
    scripts: BTreeMap<String, VecDeque<Say>>,
    fixed: BTreeMap<String, Say>,
}

impl State {
    fn say(&mut self, path: &str) -> Say {
        let scripted =
            self.scripts.iter_mut().filter(|(prefix, _)| path.starts_with(prefix.as_str())).find_map(|(_, says)| says.pop_front());
        let fixed = || self.fixed.iter().find(|(prefix, _)| path.starts_with(prefix.as_str())).map(|(_, say)| *say);
        scripted.or_else(fixed).unwrap_or(Say::Fine)
    }
}

/// A running receiver; ends when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Listens on a port of loopback.
    ///
    /// # Errors
    /// No port, no thread.
    pub fn start() -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, crate::ports::free_port()?)).context("a port for the receiver")?;
        listener.set_nonblocking(true).context("the receiver's socket")?;
        let address = listener.local_addr().context("the receiver's address")?;
        let state: Arc<Mutex<State>> = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the receiver's runtime")?;
        let shared = Arc::clone(&state);
        let serve = move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new().name("receiver".to_owned()).spawn(serve).context("the receiver's thread")?;
        Ok(Self { address, state, stop: Some(stop), thread: Some(thread) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT` and a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The next requests whose path begins so are answered so, in order.
    pub fn next(&self, path: &str, says: &[Say]) {
        self.state().scripts.entry(path.to_owned()).or_default().extend(says);
    }

    /// From now on requests whose path begins so are answered so.
    pub fn always(&self, path: &str, say: Say) {
        self.state().fixed.insert(path.to_owned(), say);
    }

    /// Everything so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.state().received.clone()
    }

    /// What came so far to paths that begin so.
    #[must_use]
    pub fn at(&self, path: &str) -> Vec<Received> {
        self.state().received.iter().filter(|r| r.path.starts_with(path)).cloned().collect()
    }

    /// What came to paths that begin so and was taken.
    #[must_use]
    pub fn taken(&self, path: &str) -> Vec<Received> {
        self.at(path).into_iter().filter(Received::taken).collect()
    }

    /// Waits for something at a path that `is` picks.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait(&self, what: &str, path: &str, within: Duration, is: impl Fn(&Received) -> bool) -> anyhow::Result<Received> {
        wait_until(&format!("{what} at {path}"), within, || {
            let found = self.at(path).into_iter().find(|r| is(r));
            Ok(Look::from_option(found, || self.story()))
        })
    }

    /// Nothing more comes to a path for a while than `count`.
    ///
    /// # Errors
    /// More comes.
    pub fn quiet(&self, path: &str, count: usize, length: Duration) -> anyhow::Result<()> {
        hold(length, || {
            let now = self.at(path).len();
            ensure!(now <= count, "{now} requests at {path} where {count} are due:\n{}", self.story());
            Ok(())
        })
    }

    /// Nothing came that a real service would have refused.
    ///
    /// # Errors
    /// What did.
    pub fn expect_valid(&self) -> anyhow::Result<()> {
        let bad: Vec<String> =
            self.received().into_iter().filter_map(|r| Some(format!("{}: {}\n  {}", r.path, r.problem.as_deref()?, r.text()))).collect();
        ensure!(bad.is_empty(), "the real services would refuse:\n{}", bad.join("\n"));
        Ok(())
    }

    /// For messages.
    #[must_use]
    pub fn story(&self) -> String {
        let line = |r: &Received| format!("{} {} -> {}: {}", r.method, r.path, r.answered, r.text().chars().take(400).collect::<String>());
        self.received().iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, state: Arc<Mutex<State>>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        // An error of one connection is that connection's.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&state)));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path_and_query().map_or_else(|| request.uri().to_string(), ToString::to_string);
    let method = request.method().to_string();
    let lower = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let headers: BTreeMap<String, String> = request.headers().iter().map(lower).collect();
    let (body, whole) = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => (body.to_bytes().to_vec(), true),
        Err(_) => (Vec::new(), false),
    };
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let kind = Kind::of(&path);
    let problem = if whole { kind.problem(&method, &headers, &body, &json) } else { Some("it broke off, or is too large".to_owned()) };
    let say = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let say = match (state.say(&path), &problem) {
            (Say::Fine, Some(_)) => Say::Status(400),
            (say, _) => say,
        };
        let answered = match say {
            Say::Fine => kind.fine(),
            Say::Status(status) => status,
            Say::RetryAfter(_) => 429,
            Say::Hang => 0,
        };
        let (at, instant) = (SystemTime::now(), Instant::now());
        state.received.push(Received { at, instant, method, path, headers, body, json, answered, problem });
        say
    };
    let (status, retry_after) = match say {
        Say::Fine => (kind.fine(), None),
        Say::Status(status) => (status, None),
        Say::RetryAfter(seconds) => (429, Some(seconds)),
        Say::Hang => std::future::pending().await,
    };
    let mut response = Response::new(Full::new(Bytes::from(kind.body(status))));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    Ok(response)
}
