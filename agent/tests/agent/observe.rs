//! What a real agent measures beside a real service, over a real link.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tidegate_protocol::metric::{JournalWhat, MetricReading, Observer, ProbeRead, Reading, ScrapeRead, Source};
use tidegate_protocol::{ComponentReport, Millis, Watch};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fake::FakeController;
use crate::host::{Agent, Service_, enrolled, release, roll_out, scratch};

/// Answers every request with these metrics.
async fn metrics(text: &'static str) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

fn watch(port: u16, every: Millis) -> Watch {
    let url = format!("http://127.0.0.1:{port}/${{component}}");
    let probe = |read| Source::Probe { url: url.clone(), per_minute: 1_200, timeout: Millis(1_000), read };
    let sources = [
        ("errors", probe(ProbeRead::Errors)),
        ("latency", probe(ProbeRead::Latency)),
        ("requests", Source::Scrape { url: url.clone(), read: ScrapeRead::Counter { series: "r_total{code=\"200\"}".into() } }),
        ("critical", Source::Journal { what: JournalWhat::Critical, patterns: Vec::new() }),
        ("smoke", Source::Smoke),
    ];
    let observers = sources.into_iter().map(|(metric, source)| Observer { metric: metric.to_owned(), source }).collect();
    Watch { component: "api".parse().unwrap(), rollout: "r1".parse().unwrap(), side: None, every, observers }
}

fn log(dir: &Path, text: &str) {
    let path = dir.join("state/logs/api.log");
    let file = std::fs::OpenOptions::new().append(true).open(&path);
    file.unwrap_or_else(|e| panic!("{}: {e}", path.display())).write_all(text.as_bytes()).unwrap();
}

fn started(report: &ComponentReport) -> u64 {
    report.running.as_ref().unwrap().started_at_unix_ms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_watched_is_told_through_swaps_and_restarts_of_the_agent() {
    let controller = FakeController::start();
    let port = metrics("# TYPE r_total counter\nr_total{code=\"200\"} 7\n").await;
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let agent = Agent::start(&dir);

    // Before anything is installed every source says so, long before its time.
    controller.watch(vec![watch(port, Millis::from_secs(300))]);
    let failed = |r: &MetricReading| r.reading == Reading::Failed && r.note.as_deref() == Some("not installed yet");
    for metric in ["errors", "latency", "requests", "smoke"] {
        controller.until_reading(metric, failed).await;
    }

    let (one, _) = release(&controller, "1.0.0", 0);
    let confirmed = roll_out(&controller, 1, &one).await;
    let every = Millis(200);
    controller.watch(vec![watch(port, every)]);
    let since = started(&confirmed);
    let of = |since: u64| move |r: &MetricReading| r.since_unix_ms >= since && r.reading != Reading::Failed;
    let requests = controller.until_reading("requests", |r| r.reading == Reading::Count(7)).await;
    assert_eq!(requests.since_unix_ms, since, "as the report says it");
    controller.until_reading("errors", |r| matches!(r.reading, Reading::Ratio { bad: 0, total } if total > 3)).await;
    controller.until_reading("latency", of(since)).await;
    controller.until_reading("smoke", |r| matches!(r.reading, Reading::Ratio { bad: 0, total: 1 })).await;
    controller.until_reading("critical", |r| r.reading == Reading::Count(0)).await;

    // A critical message does not wait for the next samples.
    controller.watch(vec![watch(port, Millis::from_secs(300))]);
    controller.until_reading("critical", |r| r.reading == Reading::Count(0)).await;
    log(&dir, "thread 'main' panicked at src/main.rs:1\n");
    let said = Instant::now();
    let critical = controller.until_reading("critical", |r| r.reading == Reading::Count(1)).await;
    assert!(said.elapsed() < Duration::from_secs(3), "{:?}", said.elapsed());
    assert_eq!(critical.note.as_deref(), Some("thread 'main' panicked at src/main.rs:1"));
    assert_eq!(critical.since_unix_ms, since);

    // An agent that dies misses nothing: the service has gone on.
    drop(agent);
    log(&dir, "panic: while nobody looked\n");
    let _agent = Agent::start(&dir);
    controller.watch(vec![watch(port, every)]);
    let critical = controller.until_reading("critical", |r| r.reading == Reading::Count(2)).await;
    assert_eq!(critical.since_unix_ms, since, "one process has one start, whoever looks");
    let again = controller.until_reading("requests", |r| r.reading == Reading::Count(7)).await;
    assert_eq!(again.since_unix_ms, since);

    // The next release: everything from zero, since its process's start or later.
    let (two, _) = release(&controller, "2.0.0", 0);
    let confirmed = roll_out(&controller, 2, &two).await;
    let next = started(&confirmed);
    assert!(next > since);
    for metric in ["errors", "latency", "requests", "critical", "smoke"] {
        controller.until_reading(metric, of(next)).await;
    }
    let critical = controller.until_reading("critical", of(next)).await;
    assert_eq!(critical.reading, Reading::Count(0), "{critical:?}");
    log(&dir, "FATAL: it is over\n");
    controller.until_reading("critical", |r| r.reading == Reading::Count(1) && r.since_unix_ms >= next).await;
}
