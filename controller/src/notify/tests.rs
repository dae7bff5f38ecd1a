//! Against servers on loopback that answer as they are told; the outbox against a
//! scripted channel, with the runtime's clock paused.

mod channels;
mod mail;
mod outbox;
mod routes;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const SLACK_SECRET: &str = "T0GEHEIM/B0GEHEIM/sEhRgEhEiM";
pub(super) const KEY: &str = "0123456789abcdefGEHEIM0123456789";
pub(super) const HMAC_SECRET: &str = "hmac-geheim-0123456789";

/// A notice that pages.
pub(super) fn notice(key: &str) -> Notice {
    Notice {
        rollout: "r1".parse().unwrap(),
        key: key.into(),
        topic: Topic::Issue,
        severity: Severity::Error,
        title: "shop@2.1.0 to production: host web-3 failed".into(),
        text: "Rollout r1 of shop@2.1.0 to production. Host web-3 failed: smoke: <SMK-001> & more. Next: look.".into(),
        at: Timestamp(1_800_000_000_123),
        since: Timestamp(1_800_000_000_000),
        release: "shop@2.1.0".into(),
        environment: Some("production".into()),
        raises: Some("tidegate/r1/issue".into()),
        resolves: Vec::new(),
        thread: "started".into(),
    }
}

/// The longest and worst that may come.
pub(super) fn monster() -> Notice {
    Notice {
        title: "<&ä".repeat(4_000),
        text: "&<>\u{1f600}".repeat(50_000),
        raises: Some(format!("tidegate/{}", "x".repeat(400))),
        ..notice("monster")
    }
}

/// A file in a directory of its own, for its owner only.
pub(super) fn secret_file(dir: &Path, name: &str, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    std::fs::write(&path, format!("{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

pub(super) fn notifier(toml: &str) -> Notifier {
    Notifier::new(Routes::parse(toml.parse().unwrap(), Path::new("/nowhere")).unwrap())
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) head: String,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        let all = self.head.lines().filter_map(|line| line.split_once(": "));
        all.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
    }
}

/// Answers each request with the next of its answers, the last one for ever.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Receiver {
    /// An answer: status line, header lines, blank line, body; empty = silence.
    pub(super) async fn start(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (heard, answers) = (asked.clone(), answers.iter().map(ToString::to_string).collect::<Vec<_>>());
        tokio::spawn(async move {
            let mut next = 0;
            while let Ok((mut tcp, _)) = listener.accept().await {
                let answer = answers[next.min(answers.len() - 1)].clone();
                next += 1;
                let Some(request) = read_request(&mut tcp).await else { continue };
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                if answer.is_empty() {
                    tokio::spawn(async move { while tcp.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {} });
                } else {
                    let _ = tcp.write_all(answer.as_bytes()).await;
                    let _ = tcp.shutdown().await;
                }
            }
        });
        Self { url, asked }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn read_request(tcp: &mut tokio::net::TcpStream) -> Option<Asked> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 8192]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").and_then(|n| n.parse().ok()));
            if body.len() >= length.unwrap_or(0_usize) {
                return Some(Asked { head: head.to_owned(), body: body.to_owned() });
            }
        }
        match tcp.read(&mut chunk).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return None,
        }
    }
}

/// Status and body as HTTP.
pub(super) fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// What this thread logs meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(super) fn catch(&self) -> tracing::subscriber::DefaultGuard {
        let own = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || own.clone()).with_ansi(false).finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
