//! Observers before a small server, a log file and processes that come and go.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidegate_protocol::Millis;
use tidegate_protocol::metric::{JournalWhat, MetricReading, Number, Observer, ProbeRead, Reading, ScrapeRead, Source};
use tidegate_protocol::release::{Service, Smoke, SmokeCheck, Suite};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::*;
use crate::context::tests::{context, installed, scratch};
use crate::context::{Context, Installed};
use crate::host::tests::host;
use crate::service::{Process, Services, unix_ms};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server does with a request.
#[derive(Clone)]
enum Answer {
    Say(u16, Vec<u8>),
    Raw(&'static [u8]),
    Hang,
}

/// A server that answers as it is told.
struct Server {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(answer: Answer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let (says, count) = (answer.clone(), asked.clone());
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let answer = says.lock().unwrap().clone();
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    match answer {
                        Answer::Say(status, body) => {
                            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                            let _ = stream.write_all(head.as_bytes()).await;
                            let _ = stream.write_all(&body).await;
                        }
                        Answer::Raw(bytes) => drop(stream.write_all(bytes).await),
                        Answer::Hang => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, answer, asked, task }
    }

    fn now(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn says(&self, text: &str) {
        self.now(Answer::Say(200, text.as_bytes().to_vec()));
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A process that lives until dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn process(&self) -> Process {
        Process::find(self.0.id()).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A host with one component, and the observers of one watch.
struct Bed {
    dir: tempfile::TempDir,
    ctx: Arc<Context>,
    show: watch::Sender<Subject>,
    subject: watch::Receiver<Subject>,
    board: Arc<Board>,
    tasks: Vec<Leash>,
    every: Duration,
}

impl Bed {
    fn new() -> Self {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.vars.insert("path".to_owned(), "/x".to_owned());
        let (show, subject) = watch::channel(Subject { seen: true, ..Subject::default() });
        let board = Arc::new(Board::default());
        Self { ctx: Arc::new(ctx), dir, show, subject, board, tasks: Vec::new(), every: Duration::from_millis(100) }
    }

    fn release(&self, version: &str, change: impl FnOnce(&mut Installed)) -> Arc<Installed> {
        let service = Service::Supervised { run: vec!["bin/api".into()], env: BTreeMap::new() };
        let mut installed = installed(self.dir.path(), version, &[("bin/depth", b"#!/bin/sh\necho 42\n")], service);
        change(&mut installed);
        Arc::new(installed)
    }

    fn log(&self) -> PathBuf {
        let slot = Slot::plain("api".parse().unwrap());
        let path = self.ctx.log_file(&slot);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn append(&self, text: &str) {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(self.log());
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn runs(&self, installed: &Arc<Installed>, process: Option<Process>) {
        let installed = Some(installed.clone());
        self.show.send_replace(Subject { seen: true, installed, process, ..Subject::default() });
    }

    fn observe(&mut self, sources: Vec<(&str, Source)>) {
        let observers = sources.into_iter().map(|(metric, source)| Observer { metric: metric.to_owned(), source }).collect();
        let every = Millis(u64::try_from(self.every.as_millis()).unwrap());
        let watch = Watch { component: "api".parse().unwrap(), rollout: "r1".parse().unwrap(), side: None, every, observers };
        let wanted = works(vec![watch]).remove(0);
        let metrics = wanted.metrics.iter().map(|metric| (metric.clone(), false)).collect();
        self.board.arrange(vec![board::Wanted { slot: wanted.slot.clone(), every: wanted.every, metrics }]);
        for work in wanted.works {
            let bench = Bench::new(self.ctx.clone(), Services::observing(self.ctx.clone()), self.subject.clone(), wanted.every);
            let teller = |metric: &str| Teller::new(self.board.clone(), wanted.slot.clone(), metric.to_owned());
            self.tasks.push(Leash(tokio::spawn(work.run(bench, &teller))));
        }
    }

    /// Waits until a metric's reading is as wanted.
    async fn until(&self, metric: &str, wanted: impl Fn(&MetricReading) -> bool) -> MetricReading {
        let mut last = None;
        let looked = timeout(PATIENCE, async {
            loop {
                let samples = self.board.samples();
                last = samples.into_iter().flat_map(|s| s.readings).find(|r| r.metric == metric);
                if last.as_ref().is_some_and(&wanted) {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        let in_time = looked.await.is_ok();
        assert!(in_time, "{metric} did not come; last seen: {last:?}");
        last.unwrap()
    }

    /// Waits until a metric failed with these words.
    async fn fails(&self, metric: &str, words: &[&str]) {
        let said = |r: &MetricReading| words.iter().all(|word| r.note.as_ref().is_some_and(|note| note.contains(word)));
        self.until(metric, |r| r.reading == Reading::Failed && said(r)).await;
    }

    async fn counts(&self, metric: &str, count: u64) -> MetricReading {
        self.until(metric, |r| r.reading == Reading::Count(count)).await
    }
}

fn probe(url: &str, read: ProbeRead, per_minute: u32, timeout: u64) -> Source {
    Source::Probe { url: url.to_owned(), per_minute, timeout: Millis(timeout), read }
}

fn scrape(url: &str, read: ScrapeRead) -> Source {
    Source::Scrape { url: url.to_owned(), read }
}

fn gauge(url: &str, series: &str) -> Source {
    scrape(url, ScrapeRead::Gauge { series: series.to_owned() })
}

fn journal(what: JournalWhat, patterns: &[&str]) -> Source {
    Source::Journal { what, patterns: patterns.iter().map(|p| (*p).to_owned()).collect() }
}

fn ratio(reading: &MetricReading) -> (u64, u64) {
    if let Reading::Ratio { bad, total } = reading.reading { (bad, total) } else { (0, 0) }
}

fn latencies(reading: &MetricReading) -> Vec<u64> {
    if let Reading::Histogram { counts, .. } = &reading.reading { counts.clone() } else { Vec::new() }
}

#[tokio::test]
async fn a_probe_counts_bad_answers_refusals_and_timeouts() {
    let server = Server::start(Answer::Say(404, b"no".to_vec())).await;
    let mut bed = Bed::new();
    let url = server.url("${var.path}");
    bed.observe(vec![("errors", probe(&url, ProbeRead::Errors, 6_000, 200)), ("latency", probe(&url, ProbeRead::Latency, 6_000, 200))]);
    bed.fails("errors", &["not installed yet"]).await;
    let (one, sleeper) = (bed.release("1.0.0", |_| {}), Sleeper::start());
    bed.runs(&one, Some(sleeper.process()));
    // Status 404 is an answer.
    let good = bed.until("errors", |r| ratio(r).1 >= 20).await;
    assert_eq!((ratio(&good).0, good.note.as_deref()), (0, None));
    let asked = server.asked.load(Ordering::SeqCst) as u64;
    assert!(asked <= ratio(&good).1 + 16 + 5, "two observers share their requests: {asked} for {good:?}");

    server.now(Answer::Say(503, Vec::new()));
    let bad = bed.until("errors", |r| ratio(r).0 >= 3).await;
    assert!(bad.note.as_ref().unwrap().contains("/x → 503"), "{bad:?}");
    let fast: u64 = latencies(&bed.until("latency", |r| !latencies(r).is_empty()).await).iter().sum();
    let all = bed.until("errors", |r| ratio(r).0 >= 10).await;
    let slow = bed.until("latency", |r| !latencies(r).is_empty()).await;
    assert_eq!(latencies(&slow).iter().sum::<u64>(), fast, "bad answers have no latency: {all:?}");

    server.now(Answer::Hang);
    let late = bed.until("latency", |r| latencies(r).last().is_some_and(|n| *n >= 2)).await;
    assert!(late.note.as_ref().unwrap().contains("nothing within 200 ms") || late.note.as_ref().unwrap().contains("under way"), "{late:?}");

    // Another process: zero again, and since its start.
    server.says("ok");
    let next = Sleeper::start();
    bed.runs(&one, Some(next.process()));
    let anew = bed.until("errors", |r| ratio(r).0 == 0 && ratio(r).1 > 0).await;
    assert!(anew.since_unix_ms >= next.process().started_at_unix_ms && anew.since_unix_ms > good.since_unix_ms, "{anew:?}");
    drop(server);
    let refused = bed.until("errors", |r| ratio(r).0 >= 2).await;
    assert!(refused.note.as_ref().unwrap().contains("cannot connect"), "{refused:?}");
}

#[tokio::test]
async fn a_stuck_service_is_not_asked_by_ever_more_requests() {
    let server = Server::start(Answer::Hang).await;
    let mut bed = Bed::new();
    bed.runs(&bed.release("1.0.0", |_| {}), None);
    bed.observe(vec![("errors", probe(&server.url("/"), ProbeRead::Errors, 6_000, 60_000))]);
    let stuck = bed.until("errors", |r| ratio(r).0 >= 20).await;
    assert_eq!(ratio(&stuck).0, ratio(&stuck).1);
    assert!(stuck.note.as_ref().unwrap().contains("16 requests are under way"), "{stuck:?}");
    assert_eq!(server.asked.load(Ordering::SeqCst), 16);
}

#[tokio::test]
async fn a_scrape_says_what_is_wrong_with_it() {
    let server = Server::start(Answer::Say(200, Vec::new())).await;
    let mut bed = Bed::new();
    let (one, sleeper) = (bed.release("1.0.0", |_| {}), Sleeper::start());
    let url = server.url("/metrics");
    bed.observe(vec![
        ("depth", gauge(&url, "queue_length{queue=\"${component}\"}")),
        ("errors", scrape(&url, ScrapeRead::Ratio { bad: "r_total{code=~\"5..\"}".into(), total: "r_total".into() })),
        ("odd", gauge(&url, "sum(x)")),
        ("typo", gauge(&url, "x{y=\"${var.typo}\"}")),
        ("away", gauge("http://10.0.0.1/metrics", "x")),
        ("unknown", gauge("http://127.0.0.1:${var.none}/", "x")),
    ]);
    bed.fails("depth", &["not installed yet"]).await;
    bed.runs(&one, Some(sleeper.process()));
    server.says("queue_length{queue=\"api\"} 3\nqueue_length{queue=\"mail\"} 9\nr_total{code=\"200\"} 10\n");
    let depth = bed.until("depth", |r| r.reading == Reading::Gauge(Number::new(3.0).unwrap())).await;
    assert_eq!(depth.since_unix_ms, sleeper.process().started_at_unix_ms, "what the service counts began with it");
    bed.until("errors", |r| ratio(r) == (0, 10)).await;
    bed.fails("odd", &["sum(x)", "not a series selector"]).await;
    bed.fails("typo", &["var.typo"]).await;
    bed.fails("away", &["http://10.0.0.1/metrics", "urls in [policy]"]).await;
    bed.fails("unknown", &["var.none"]).await;

    server.says("queue_len{queue=\"api\"} 3\nr_total 1\n");
    bed.fails("depth", &[&url, "no series queue_length", "queue_len"]).await;
    server.says("queue_length{queue=\"api\"} NaN\n");
    bed.fails("depth", &[&url, "queue_length{queue=\"api\"} is NaN"]).await;
    bed.fails("errors", &["no series r_total"]).await;
    server.now(Answer::Say(404, b"gone".to_vec()));
    bed.fails("depth", &[&url, "404, 200 wanted"]).await;
    server.says("<html><body>hello</body></html>");
    bed.fails("depth", &["line 1", "<html>"]).await;
    server.now(Answer::Say(200, b"x 1\n".repeat(2_500_000)));
    bed.fails("depth", &["more than 4194304 bytes"]).await;
    server.now(Answer::Raw(b"SMTP ready\r\n\r\n"));
    bed.fails("depth", &[&url, "invalid HTTP"]).await;
    server.now(Answer::Hang);
    bed.fails("depth", &["nothing whole within 100 ms"]).await;
    server.says("queue_length{queue=\"api\"} 4\n");
    bed.until("depth", |r| r.reading == Reading::Gauge(Number::new(4.0).unwrap())).await;
    drop(server);
    bed.fails("depth", &["cannot connect"]).await;
}

#[tokio::test]
async fn what_was_scraped_of_a_process_that_has_ended_is_not_told() {
    let server = Server::start(Answer::Say(200, b"c 5\n".to_vec())).await;
    let mut bed = Bed::new();
    let one = bed.release("1.0.0", |_| {});
    let first = Sleeper::start();
    let old = first.process();
    bed.runs(&one, Some(old));
    bed.observe(vec![("c", scrape(&server.url("/"), ScrapeRead::Counter { series: "c".into() }))]);
    bed.counts("c", 5).await;
    // It ends, and another one answers in its place before anybody has seen it.
    drop(first);
    server.says("c 1\n");
    let asked = server.asked.load(Ordering::SeqCst);
    timeout(PATIENCE, async {
        while server.asked.load(Ordering::SeqCst) < asked + 4 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(bed.counts("c", 5).await.since_unix_ms, old.started_at_unix_ms);
    let next = Sleeper::start();
    bed.runs(&one, Some(next.process()));
    assert_eq!(bed.counts("c", 1).await.since_unix_ms, next.process().started_at_unix_ms);
}

#[tokio::test]
async fn messages_of_a_log_are_counted_once_over_restarts_and_anew_for_each_release() {
    let mut bed = Bed::new();
    let deny = SmokeCheck::Journal { deny: vec!["corrupt in ${host}".into()], watch: Millis(0) };
    let smoke = |check| Smoke { id: "S".into(), name: "s".into(), suite: Suite::Critical, check, timeout: Millis(9), retry_for: Millis(0) };
    let one = bed.release("1.0.0", |it| it.component.smoke.push(smoke(deny)));
    bed.append("panic: long ago\nERROR known 17\n");
    bed.observe(vec![
        ("critical", journal(JournalWhat::Critical, &["lost"])),
        ("new", journal(JournalWhat::NewErrors, &[])),
        ("security", journal(JournalWhat::Security, &[])),
        ("bad", journal(JournalWhat::Critical, &["${var.none}"])),
    ]);
    // Nothing is installed: nobody has said anything.
    bed.counts("critical", 0).await;
    // A process that is older than what is looked back to.
    let mut old = Sleeper::start().process();
    old.started_at_unix_ms -= 2 * 3_600_000;
    bed.runs(&one, Some(old));
    bed.fails("bad", &["var.none"]).await;
    bed.counts("critical", 0).await;
    bed.append("all is lo");
    bed.append("st: a\nindex corrupt in web-1\n<2>no disk\n<6>panic is no word of this release\n");
    let critical = bed.counts("critical", 3).await;
    assert_eq!(critical.note.as_deref(), Some("no disk"));
    assert!(critical.since_unix_ms > old.started_at_unix_ms);
    bed.append("ERROR known 18\nERROR 1 fresh\nERROR 2 fresh\nPermission denied for 7\n");
    assert_eq!(bed.counts("new", 2).await.note.as_deref(), Some("ERROR 1 fresh"), "{:?}", bed.board.samples());
    bed.counts("security", 1).await;

    // Cut, then written anew.
    std::fs::File::create(bed.log()).unwrap();
    bed.append("lost again\n");
    bed.counts("critical", 4).await;

    // It dies, and its keeper starts it again: whatever was counted stays counted,
    // from the same beginning, for the link may have been down all the while.
    let since = bed.counts("critical", 4).await.since_unix_ms;
    let next = Sleeper::start();
    let again = Subject { installed: Some(one.clone()), process: Some(next.process()), restarts: 1, seen: true, ..Subject::default() };
    bed.show.send_replace(again.clone());
    bed.append("ERROR 5 fresh\nERROR 5 other\nlost once more\n");
    let kept = bed.counts("critical", 5).await;
    assert_eq!((kept.since_unix_ms, kept.note.as_deref()), (since, Some("lost once more")));
    bed.counts("new", 3).await;

    // A start before the confirmation: the controller judges this one only.
    let by_order = Sleeper::start();
    bed.show.send_replace(Subject { process: Some(by_order.process()), restarts: 2, ordered: true, ..again });
    let anew = bed.counts("critical", 0).await;
    assert!(anew.since_unix_ms >= by_order.process().started_at_unix_ms && anew.since_unix_ms > since);
    bed.append("ERROR 5 fresh\n");
    bed.counts("new", 1).await;

    // Another release: what its predecessor said is not new.
    let two = bed.release("2.0.0", |_| {});
    let third = Sleeper::start();
    let swapped = Subject { seen: true, installed: Some(two), process: Some(third.process()), restarts: 2, ..Subject::default() };
    bed.show.send_replace(swapped);
    bed.until("new", |r| r.reading == Reading::Count(0) && r.since_unix_ms >= third.process().started_at_unix_ms).await;
    // It begins where the log ends when it looks: said until it is heard.
    let other = |r: &MetricReading| {
        bed.append("ERROR 6 fresh\nERROR 1 other\n");
        r.reading == Reading::Count(1) && r.note.as_deref() == Some("ERROR 1 other")
    };
    bed.until("new", other).await;
    bed.append("lost\npanic: of no release's words\n");
    bed.counts("critical", 1).await;

    // Taken away, and back with another process: zero again.
    bed.show.send_replace(Subject { seen: true, ..Subject::default() });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let fourth = Sleeper::start();
    bed.show.send_replace(Subject { seen: true, installed: Some(one), process: Some(fourth.process()), restarts: 1, ..Subject::default() });
    bed.until("critical", |r| r.reading == Reading::Count(0) && r.since_unix_ms >= fourth.process().started_at_unix_ms).await;
    // It begins where the log ends when it looks: said until it is heard.
    let heard = |r: &MetricReading| {
        bed.append("lost\n");
        matches!(r.reading, Reading::Count(1..))
    };
    bed.until("critical", heard).await;
}

#[tokio::test]
async fn a_young_process_is_heard_from_its_start() {
    let mut bed = Bed::new();
    let (one, sleeper) = (bed.release("1.0.0", |_| {}), Sleeper::start());
    // As it was started by order: everything in the log is its own.
    bed.append("FATAL: at once\n");
    bed.runs(&one, Some(sleeper.process()));
    bed.observe(vec![("critical", journal(JournalWhat::Critical, &[]))]);
    let heard = bed.counts("critical", 1).await;
    assert_eq!(heard.since_unix_ms, sleeper.process().started_at_unix_ms);
}

#[tokio::test]
async fn components_without_messages_say_so() {
    let mut bed = Bed::new();
    let argv = || vec!["bin/api".to_owned()];
    let command = Service::Command { start: argv(), stop: argv(), status: argv() };
    let one = bed.release("1.0.0", |it| it.component.service = command);
    bed.runs(&one, None);
    bed.observe(vec![("critical", journal(JournalWhat::Critical, &[]))]);
    bed.fails("critical", &["the output of commands is not kept"]).await;
}

#[tokio::test]
async fn smoke_tests_are_repeated_while_no_swap_is_under_way() {
    let server = Server::start(Answer::Say(200, b"ok".to_vec())).await;
    let mut bed = Bed::new();
    let (url, port) = (server.url("/"), server.port);
    let test =
        |id: &str, suite, check| Smoke { id: id.into(), name: id.into(), suite, check, timeout: Millis(500), retry_for: Millis(60_000) };
    let http = SmokeCheck::Http { url, status: 200, body: None };
    let nowhere = || SmokeCheck::Tcp { address: "127.0.0.1:1".into() };
    let tests = vec![
        test("JOURNAL", Suite::Critical, SmokeCheck::Journal { deny: vec!["x".into()], watch: Millis(60_000) }),
        test("LATER", Suite::Integration, nowhere()),
        test("TCP", Suite::Critical, SmokeCheck::Tcp { address: format!("127.0.0.1:{port}") }),
        test("HTTP", Suite::Critical, http),
    ];
    let one = bed.release("1.0.0", |it| it.component.smoke = tests);
    bed.observe(vec![("smoke", Source::Smoke)]);
    bed.fails("smoke", &["not installed yet"]).await;
    let sleeper = Sleeper::start();
    let moving = Subject { seen: true, installed: Some(one.clone()), process: Some(sleeper.process()), moving: true, ..Subject::default() };
    bed.show.send_replace(moving.clone());
    let bad = |r: &MetricReading| ratio(r).0 > 0;
    bed.show.send_replace(Subject { moving: false, ..moving.clone() });
    let good = bed.until("smoke", |r| ratio(r).1 == 1).await;
    assert_eq!((ratio(&good), good.note.as_deref()), ((0, 1), None));
    server.now(Answer::Say(500, Vec::new()));
    // A swap that ends is followed by a round at once.
    bed.show.send_replace(moving.clone());
    for _ in 0..100 {
        // The observer's turn: one thread runs all of this.
        tokio::task::yield_now().await;
    }
    bed.show.send_replace(Subject { moving: false, ..moving });
    let failed = bed.until("smoke", bad).await;
    assert!(failed.note.as_ref().unwrap().contains("HTTP \"HTTP\": GET") && failed.note.as_ref().unwrap().contains("500"), "{failed:?}");

    let none = bed.release("3.0.0", |_| {});
    bed.show.send_replace(Subject { seen: true, ..Subject::default() });
    bed.fails("smoke", &["not installed yet"]).await;
    bed.runs(&none, None);
    bed.fails("smoke", &["no critical smoke test"]).await;
}

#[tokio::test]
async fn a_command_tells_a_number() {
    let mut bed = Bed::new();
    bed.every = Duration::from_secs(5);
    let one = bed.release("1.0.0", |_| {});
    bed.runs(&one, None);
    let exec = |program: &str| Source::Exec { run: vec![program.to_owned(), "${side}".to_owned()] };
    bed.observe(vec![("depth", Source::Exec { run: vec!["bin/depth".into()] }), ("side", exec("bin/depth")), ("away", exec("/bin/echo"))]);
    bed.until("depth", |r| r.reading == Reading::Gauge(Number::new(42.0).unwrap())).await;
    bed.fails("side", &["side"]).await;
}

#[tokio::test]
async fn watches_are_desired_state() {
    let dir = scratch();
    let (order, watches) = watch::channel(Vec::new());
    let (sampled, mut samples) = watch::channel(None);
    let running = tokio::spawn(run(host(context(dir.path())), Arc::new(|_: &Slot| None), watches, sampled));
    let watched = |component: &str, sources: &[(&str, Source)], every: u64| Watch {
        component: component.parse().unwrap(),
        rollout: "r1".parse().unwrap(),
        side: None,
        every: Millis(every),
        observers: sources.iter().map(|(m, source)| Observer { metric: (*m).to_owned(), source: source.clone() }).collect(),
    };
    let critical = || ("critical", journal(JournalWhat::Critical, &[]));
    let began = unix_ms();
    order.send_replace(vec![watched("api", &[critical(), ("smoke", Source::Smoke)], 300_000), watched("web", &[critical()], 300_000)]);
    let seen = |want: &'static [(&'static str, usize)]| {
        move |s: &Option<Arc<Vec<Samples>>>| {
            s.as_ref().is_some_and(|s| s.iter().map(|s| (s.component.as_str(), s.readings.len())).collect::<Vec<_>>() == want)
        }
    };
    // At once: everything has a first word, long before its time.
    let first = timeout(PATIENCE, samples.wait_for(seen(&[("api", 2), ("web", 1)]))).await.unwrap().unwrap().clone().unwrap();
    assert!(unix_ms() - began < 5_000);
    let api = |samples: &[Samples], at: usize| samples[0].readings[at].clone();
    assert_eq!(api(&first, 0).reading, Reading::Count(0));
    assert_eq!((api(&first, 1).reading, api(&first, 1).note.as_deref()), (Reading::Failed, Some("not installed yet")));

    // What is equal goes on, with its beginning; what is missing ends; what is new begins.
    let now = unix_ms();
    while unix_ms() == now {
        tokio::task::yield_now().await;
    }
    order.send_replace(vec![watched(
        "api",
        &[critical(), ("new", journal(JournalWhat::NewErrors, &[])), ("smoke", Source::Smoke)],
        300_000,
    )]);
    let second = timeout(PATIENCE, samples.wait_for(seen(&[("api", 3)]))).await.unwrap().unwrap().clone().unwrap();
    let since = |samples: &[Samples], metric: &str| samples[0].readings.iter().find(|r| r.metric == metric).unwrap().since_unix_ms;
    assert_eq!(since(&second, "smoke"), since(&first, "smoke"), "equal: it goes on");
    assert!(since(&second, "critical") > since(&first, "critical"), "the reader of messages has one more to tell, and began anew");
    order.send_replace(Vec::new());
    timeout(PATIENCE, samples.wait_for(Option::is_none)).await.unwrap().unwrap();
    running.abort();
}
