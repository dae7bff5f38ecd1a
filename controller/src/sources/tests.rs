//! Against a server that answers as it is told, over real sockets.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_protocol::Millis;
use tidegate_rollout::gate::Group;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a path is answered with.
#[derive(Clone, Debug)]
enum Answer {
    /// Status line and headers, then the body.
    Say(&'static str, String),
    /// Nothing, ever.
    Silence,
    /// More than anybody wants to read.
    Flood,
    /// The connection ends.
    HangUp,
}

/// Heads and bodies of what was asked.
type Asked = Arc<Mutex<Vec<String>>>;

#[derive(Debug)]
struct Server {
    url: String,
    asked: Asked,
    /// Connections at once, and the most there were.
    open: Arc<(AtomicUsize, AtomicUsize)>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let (asked, open) = (Asked::default(), Arc::new((AtomicUsize::new(0), AtomicUsize::new(0))));
        let (heard, count, answer) = (asked.clone(), open.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (heard, count, answer, tls) = (heard.clone(), count.clone(), answer.clone(), tls.clone());
                tokio::spawn(async move {
                    let now = count.0.fetch_add(1, Ordering::SeqCst) + 1;
                    count.1.fetch_max(now, Ordering::SeqCst);
                    match tls {
                        None => serve(tcp, &*answer, &heard).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(tcp).await {
                                serve(stream, &*answer, &heard).await;
                            }
                        }
                    }
                    count.0.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { url, asked, open }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn prometheus(&self, query: &str, samples: Option<&str>) -> FetchFrom {
        FetchFrom::Prometheus { url: self.url.clone(), query: query.into(), samples: samples.map(Into::into) }
    }
}

/// One request, head and body, answered by what stands in it.
async fn serve<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut stream: S,
    answer: &(dyn Fn(&str) -> Answer + Send + Sync),
    heard: &Asked,
) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 8192]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").and_then(|n| n.parse().ok()));
            body.len() >= length.unwrap_or(0_usize)
        });
        if whole {
            break;
        }
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&bytes).into_owned();
    let what = answer(&request);
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    match what {
        Answer::Say(head, body) => {
            let text = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        Answer::Silence => {
            // Until the other side gives up.
            while stream.read(&mut chunk).await.is_ok_and(|n| n > 0) {}
        }
        Answer::Flood => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await;
            while stream.write_all(&[b' '; 65_536]).await.is_ok() {}
        }
        Answer::HangUp => {}
    }
}

fn vector(values: &[&str]) -> String {
    let each: Vec<String> = values.iter().map(|v| format!(r#"{{"metric":{{}},"value":[1.5,"{v}"]}}"#)).collect();
    format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{}]}}}}"#, each.join(","))
}

/// Answers by the query's first word.
fn prometheus(request: &str) -> Answer {
    let ok = |values: &[&str]| Answer::Say("200 OK", vector(values));
    let has = |word: &str| request.contains(&format!("query={word}"));
    if has("good") {
        ok(&["0.25"])
    } else if has("count") {
        ok(&["41.6"])
    } else if has("none") {
        ok(&["0"])
    } else if has("less") {
        ok(&["-1"])
    } else if has("empty") {
        ok(&[])
    } else if has("nan") {
        ok(&["NaN"])
    } else if has("many") {
        ok(&["1", "2", "3"])
    } else if has("large") {
        ok(&["1"; 3_000])
    } else if has("wrong") {
        Answer::Say("400 Bad Request", r#"{"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": 1:5"}"#.into())
    } else if has("down") {
        Answer::Say("503 Service Unavailable", "upstream is\naway".into())
    } else if has("moved") {
        Answer::Say("302 Found\r\nlocation: http://elsewhere.example/", String::new())
    } else if has("slow") {
        Answer::Silence
    } else if has("huge") {
        Answer::Flood
    } else if has("gone") {
        Answer::HangUp
    } else {
        Answer::Say("200 OK", "<html>hello</html>".into())
    }
}

fn sources() -> Sources {
    Sources::new([])
}

#[tokio::test]
async fn a_query_gives_one_number_or_one_sentence_with_its_cause() {
    let server = Server::start(prometheus, None).await;
    let sources = sources();
    let value = |value, samples| Ok(Fetched::Value { value, samples });
    for (query, samples, wanted) in [
        ("good", None, value(0.25, None)),
        ("good", Some("count"), value(0.25, Some(42))),
        // No traffic: nothing to divide by, and no sample.
        ("nan", Some("none"), value(0.0, Some(0))),
    ] {
        assert_eq!(sources.fetch(&server.prometheus(query, samples), PATIENCE).await, wanted, "{query}");
    }
    for (query, samples, wanted) in [
        ("empty", None, "empty result"),
        ("nan", None, "NaN"),
        ("nan", Some("count"), "NaN"),
        ("good", Some("empty"), "`empty` gives no series"),
        ("good", Some("less"), "never fewer than none"),
        ("many", None, "gives 3 series, aggregate them: sum(...)"),
        ("large", None, "gives 3000 series"),
        ("wrong", None, "HTTP 400: bad_data: invalid parameter"),
        ("down", None, "HTTP 503: upstream is away"),
        ("moved", None, "redirect (HTTP 302) to \"http://elsewhere.example/\""),
        ("huge", None, "over 4194304 bytes"),
        ("gone", None, "no answer in HTTP came"),
        ("garbage", None, "is the URL right?"),
    ] {
        let error = sources.fetch(&server.prometheus(query, samples), PATIENCE).await.unwrap_err();
        let named = samples.filter(|s| wanted.contains(s) || *s == "less").unwrap_or(query);
        for part in [server.url.as_str(), &format!("`{named}`"), wanted] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
    let error = sources.fetch(&server.prometheus("slow", None), Duration::from_millis(50)).await.unwrap_err();
    assert!(error.contains("`slow` was not answered within 50 ms"), "{error}");
}

#[tokio::test]
async fn who_does_not_listen_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    drop(listener);
    let from = FetchFrom::Prometheus { url: url.clone(), query: "up".into(), samples: None };
    let error = sources().fetch(&from, PATIENCE).await.unwrap_err();
    assert!(error.contains(&url) && error.contains("cannot connect") && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn beyond_loopback_only_what_the_configuration_names_is_called() {
    let from = FetchFrom::Alertmanager { url: "http://192.0.2.1:9093".into(), matchers: vec![] };
    let error = sources().fetch(&from, PATIENCE).await.unwrap_err();
    assert!(error.contains("[sources.\"http://192.0.2.1:9093\"]"), "{error}");
}

#[tokio::test]
async fn long_queries_are_posted_and_alertmanager_is_asked_for_what_fires() {
    let answer = |request: &str| {
        if request.contains("/api/v2/alerts") {
            Answer::Say("200 OK", r#"[{"fingerprint":"f","labels":{"alertname":"Down"}}]"#.into())
        } else {
            Answer::Say("200 OK", vector(&["1"]))
        }
    };
    let server = Server::start(answer, None).await;
    let long = format!("sum(up{{host=~\"{}\"}})", "web-1|".repeat(2_000));
    assert!(sources().fetch(&server.prometheus(&long, None), PATIENCE).await.is_ok());
    let from = FetchFrom::Alertmanager { url: format!("{}/am/", server.url), matchers: vec!["job=\"shop\"".into(), "a=\"b\"".into()] };
    let alerts = sources().fetch(&from, PATIENCE).await.unwrap();
    assert_eq!(alerts, Fetched::Alerts(BTreeMap::from([("f".into(), "Down".into())])));
    let asked = server.asked();
    assert!(asked[0].starts_with("POST /api/v1/query HTTP/1.1") && asked[0].contains("x-www-form-urlencoded"), "{}", &asked[0][..200]);
    let wanted = "GET /am/api/v2/alerts?active=true&silenced=false&inhibited=false&filter=job%3D%22shop%22&filter=a%3D%22b%22 HTTP/1.1";
    assert!(asked[1].starts_with(wanted), "{}", asked[1]);
}

#[tokio::test]
async fn https_needs_the_named_ca_and_the_secret_goes_only_there() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let server = Server::start(prometheus, Some(TlsAcceptor::from(Arc::new(config)))).await;
    let dir = tempfile::tempdir().unwrap();
    let (ca, token) = (dir.path().join("ca.pem"), dir.path().join("token"));
    std::fs::write(&ca, made.cert.pem()).unwrap();
    std::fs::write(&token, "geheim\n").unwrap();
    let access = |auth| Access { auth, ca_file: Some(ca.clone()) };
    let place: Base = server.url.parse().unwrap();

    let with = |auth| Sources::new([(place.clone(), access(auth))]);
    let from = server.prometheus("good", None);
    assert!(with(Some(Auth::Token(token.clone()))).fetch(&from, PATIENCE).await.is_ok());
    let basic = Auth::Basic { user: "me".into(), password_file: token.clone() };
    assert!(with(Some(basic)).fetch(&from, PATIENCE).await.is_ok());
    assert!(with(None).fetch(&from, PATIENCE).await.is_ok());
    let said: Vec<Option<String>> =
        server.asked().iter().map(|r| r.lines().find_map(|l| l.strip_prefix("authorization: ")).map(str::to_owned)).collect();
    assert_eq!(said, [Some("Bearer geheim".to_owned()), Some("Basic bWU6Z2VoZWlt".to_owned()), None]);

    // The system's roots do not know that certificate.
    let error = sources().fetch(&from, PATIENCE).await.unwrap_err();
    assert!(error.contains("TLS handshake failed") || error.contains("no root certificate"), "{error}");
    let error = with(Some(Auth::Token(dir.path().join("none")))).fetch(&from, PATIENCE).await.unwrap_err();
    assert!(error.contains("none") && error.contains("cannot read"), "{error}");
    std::fs::write(&token, "\n").unwrap();
    let error = with(Some(Auth::Token(token))).fetch(&from, PATIENCE).await.unwrap_err();
    assert!(error.contains("it is empty") && !error.contains("geheim"), "{error}");
}

fn wanted(server: &Server, metric: &str, query: &str) -> Wanted {
    let fetch = Fetch { metric: metric.into(), group: Group::Changed, from: server.prometheus(query, None), every: Millis(200) };
    Wanted { rollout: "r".parse().unwrap(), fetch }
}

/// The next result for that metric.
async fn next(inputs: &mut tokio::sync::mpsc::Receiver<Input>, metric: &str) -> Result<Fetched, String> {
    let found = async {
        loop {
            match inputs.recv().await.expect("the task ended") {
                Input::Fetched { metric: of, result, group: Group::Changed, .. } if of == metric => return result,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("nothing came of {metric}"))
}

#[tokio::test]
async fn what_is_wanted_is_fetched_again_and_again_until_it_is_not() {
    let server = Server::start(prometheus, None).await;
    let (core, mut inputs) = CoreHandle::new();
    let (list, wants) = watch::channel(Vec::new());
    let task = tokio::spawn(run(sources(), core, wants));
    // One that never answers holds nobody else up.
    list.send_replace(vec![wanted(&server, "stuck", "slow"), wanted(&server, "fine", "good")]);
    for _ in 0..3 {
        assert_eq!(next(&mut inputs, "fine").await, Ok(Fetched::Value { value: 0.25, samples: None }));
    }
    assert!(next(&mut inputs, "stuck").await.unwrap_err().contains("not answered within 1000 ms"));

    // Another question under the same name: only its answer counts from here on.
    list.send_replace(vec![wanted(&server, "fine", "many")]);
    let changed = async {
        while next(&mut inputs, "fine").await.is_ok() {}
        next(&mut inputs, "fine").await
    };
    assert!(changed.await.unwrap_err().contains("3 series"));

    // The core ended.
    drop(list);
    timeout(PATIENCE, task).await.expect("the task goes on").unwrap();
}

#[tokio::test]
async fn a_fetch_that_ends_early_is_tried_again() {
    let (core, mut inputs) = CoreHandle::new();
    let fetch = Fetch {
        metric: "m".into(),
        group: Group::Changed,
        from: FetchFrom::Alertmanager { url: "http://127.0.0.1:1".into(), matchers: vec![] },
        every: Millis(200),
    };
    let (list, wants) = watch::channel(vec![Wanted { rollout: "r".parse().unwrap(), fetch }]);
    list.send_modify(|_| {});
    let tries = Arc::new(AtomicUsize::new(0));
    let fetcher = move |_| {
        let tries = tries.clone();
        async move {
            assert!(tries.fetch_add(1, Ordering::SeqCst) > 0, "the first one falls over");
            Ok(Fetched::Value { value: 1.0, samples: None })
        }
    };
    let _task = tokio::spawn(keep(fetcher, core, wants));
    let error = next(&mut inputs, "m").await.unwrap_err();
    assert!(error.contains("ended early") && error.contains("the first one falls over"), "{error}");
    assert_eq!(next(&mut inputs, "m").await, Ok(Fetched::Value { value: 1.0, samples: None }));
}

#[tokio::test]
async fn no_more_requests_fly_than_are_allowed() {
    let server = Server::start(|_| Answer::Silence, None).await;
    let (core, mut inputs) = CoreHandle::new();
    let (list, wants) = watch::channel(Vec::new());
    let _task = tokio::spawn(run(sources(), core, wants));
    let many: Vec<Wanted> = (0..IN_FLIGHT_MAX * 2).map(|n| wanted(&server, &format!("m{n}"), "slow")).collect();
    list.send_replace(many);
    // Every one is asked in the end, and fails at its own deadline.
    let mut missing: std::collections::BTreeSet<String> = (0..IN_FLIGHT_MAX * 2).map(|n| format!("m{n}")).collect();
    let all = async {
        while !missing.is_empty() {
            if let Some(Input::Fetched { metric, .. }) = inputs.recv().await {
                missing.remove(&metric);
            }
        }
    };
    timeout(PATIENCE, all).await.expect("some were never asked");
    assert!(server.open.1.load(Ordering::SeqCst) <= IN_FLIGHT_MAX + 1, "{:?}", server.open);
}

#[tokio::test]
async fn equal_fetches_keep_their_timers() {
    let server = Server::start(prometheus, None).await;
    let a = wanted(&server, "a", "good");
    let mut jobs = replaced(Vec::new(), vec![a.clone(), wanted(&server, "b", "good")]);
    let later = Instant::now() + Duration::from_secs(3_600);
    for job in &mut jobs {
        (job.due, job.asked_at) = (later, Some(Instant::now()));
    }
    let jobs = replaced(jobs, vec![wanted(&server, "b", "count"), a]);
    let kept: Vec<_> = jobs.iter().map(|j| (j.wanted.fetch.metric.as_str(), j.due == later)).collect();
    assert_eq!(kept, [("b", false), ("a", true)]);
    // A new question waits a moment after the one before it under the same name.
    assert!(jobs[0].due > Instant::now() && jobs[0].due <= Instant::now() + CHANGED_AGAIN);
}

#[tokio::test]
async fn a_page_answers_as_a_person_would_see_it() {
    let answer = |request: &str| match request.lines().next().unwrap_or_default() {
        "GET /d/shop?orgId=1&from=a%20b HTTP/1.1" | "GET / HTTP/1.1" => Answer::Say("200 OK", "<html>".into()),
        "GET /login HTTP/1.1" => Answer::Say("302 Found\r\nlocation: /elsewhere", String::new()),
        "GET /slow HTTP/1.1" => Answer::Silence,
        _ => Answer::Say("404 Not Found", String::new()),
    };
    let server = Server::start(answer, None).await;
    for (page, wanted) in [("/d/shop?orgId=1&from=a%20b#panel", 200), ("", 200), ("/", 200), ("/login", 302), ("/gone", 404)] {
        assert_eq!(sources().answers(&format!("{}{page}", server.url), PATIENCE).await, Ok(wanted), "{page}");
    }
    assert_eq!(server.asked().len(), 5, "a redirect is not followed");
    let silent = sources().answers(&format!("{}/slow", server.url), Duration::from_millis(50)).await.unwrap_err();
    assert!(silent.contains("50 ms"), "{silent}");
    let elsewhere = sources().answers("http://grafana.example/d/shop", PATIENCE).await.unwrap_err();
    assert!(elsewhere.contains("controller.toml") && elsewhere.contains("[sources."), "{elsewhere}");
}
