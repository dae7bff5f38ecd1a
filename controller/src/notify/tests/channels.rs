//! What Slack, PagerDuty and webhooks are sent, by the published limits, and what
//! their answers mean.

use serde_json::Value;

use super::super::{config, pagerduty, send, slack, webhook};
use super::*;

/// As a Slack channel: URL in a file.
fn slack_to(dir: &Path, receiver: &Receiver) -> Notifier {
    let file = secret_file(dir, "slack", &format!("{}/services/{SLACK_SECRET}", receiver.url));
    notifier(&format!("[team]\nvia = \"slack\"\nurl_file = {file:?}\n"))
}

fn pagerduty_to(dir: &Path, receiver: &Receiver) -> Notifier {
    let file = secret_file(dir, "key", KEY);
    notifier(&format!("[pager]\nvia = \"pagerduty\"\nrouting_key_file = {file:?}\nurl = \"{}\"\n", receiver.url))
}

fn length(value: &Value) -> usize {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).chars().count()
}

fn check_slack(payload: &Value) {
    assert!((1..=40_000).contains(&length(&payload["text"])));
    let blocks = payload["blocks"].as_array().unwrap();
    assert!((1..=50).contains(&blocks.len()));
    assert_eq!(blocks[0]["type"], "header");
    assert!((1..=150).contains(&length(&blocks[0]["text"]["text"])));
    assert_eq!(blocks[1]["type"], "section");
    assert!((1..=3_000).contains(&length(&blocks[1]["text"]["text"])));
    assert!((1..=10).contains(&blocks[2]["elements"].as_array().unwrap().len()));
}

#[test]
fn slack_payloads_keep_the_limits_and_mention_nobody() {
    let payload = slack::payload(&notice("issue-1"));
    check_slack(&payload);
    assert_eq!(payload["blocks"][1]["text"]["text"].as_str().unwrap().matches("&lt;SMK-001&gt; &amp; more").count(), 1);
    let payload = slack::payload(&monster());
    check_slack(&payload);
    let text = payload["text"].as_str().unwrap();
    assert!(text.ends_with('…') && !text.contains('<') && text.len() > 2_000);
    // No half of an escape.
    assert_eq!(slack::escaped("ab&cd", 6), "ab…");
    assert_eq!(slack::escaped("ab&cd", 9), "ab&amp;c…");
    assert_eq!(slack::escaped("ab", 3), "ab");
}

#[tokio::test]
async fn pagerduty_events_keep_the_limits() {
    let dir = tempfile::tempdir().unwrap();
    let read = secret::SecretAt::File(secret_file(dir.path(), "k", KEY).into()).read().await.unwrap();
    for notice in [notice("issue-1"), monster(), Notice { resolves: vec!["a".into(), "b".into()], ..monster() }] {
        for (door, event) in pagerduty::events(&notice, &read) {
            assert!(event.to_string().len() <= 512 * 1024, "{} bytes", event.to_string().len());
            assert_eq!(length(&event["routing_key"]), 32);
            if door == pagerduty::Door::Event {
                assert!((1..=255).contains(&length(&event["dedup_key"])));
            }
            if event["event_action"] == "resolve" {
                continue;
            }
            let payload = &event["payload"];
            assert!((1..=1_024).contains(&length(&payload["summary"])));
            assert!((1..=255).contains(&length(&payload["source"])));
            assert!(payload["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
            if door == pagerduty::Door::Event {
                assert!(["critical", "error", "warning", "info"].contains(&payload["severity"].as_str().unwrap()));
            }
        }
    }
    let kinds = |notice: &Notice| -> Vec<String> {
        let word = |(door, event): &(pagerduty::Door, Value)| event["event_action"].as_str().map_or(format!("{door:?}"), str::to_owned);
        pagerduty::events(notice, &read).iter().map(word).collect()
    };
    assert_eq!(kinds(&notice("issue-1")), ["trigger"]);
    let back = Notice { topic: Topic::Rollback, raises: None, resolves: vec!["a".into(), "b".into()], ..notice("rolled-back-1") };
    assert_eq!(kinds(&back), ["resolve", "resolve", "Change"]);
    assert_eq!(kinds(&Notice { topic: Topic::Started, raises: None, ..notice("started") }), ["Change"]);
    assert_eq!(kinds(&Notice { topic: Topic::Paused, raises: None, resolves: vec!["a".into()], ..notice("x-over") }), ["resolve"]);
}

#[tokio::test]
async fn slack_takes_it_over_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(&[&answer("200 OK", "ok")]).await;
    assert_eq!(slack_to(dir.path(), &receiver).send("team", &notice("issue-1")).await, Sent::Taken);
    let asked = receiver.asked();
    assert!(asked[0].head.starts_with(&format!("POST /services/{SLACK_SECRET} HTTP/1.1")), "{}", asked[0].head);
    assert_eq!(asked[0].header("content-type").unwrap(), "application/json");
    check_slack(&asked[0].json());
}

#[tokio::test]
async fn answers_mean_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let busy = |status: &str, after: &str| format!("HTTP/1.1 {status}\r\nretry-after: {after}\r\ncontent-length: 0\r\n\r\n");
    let says = [
        answer("400 Bad Request", "invalid_payload"),
        answer("403 Forbidden", "action_prohibited"),
        answer("404 Not Found", "no_service"),
        answer("410 Gone", "channel_is_archived"),
        "HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/T0GEHEIM\r\ncontent-length: 0\r\n\r\n".to_owned(),
        busy("429 Too Many Requests", "7"),
        busy("429 Too Many Requests", "999999"),
        busy("429 Too Many Requests", "Wed, 21 Oct 2026 07:28:00 GMT"),
        answer("500 Internal Server Error", "rollup_error"),
        busy("503 Service Unavailable", "3"),
        "garbage".to_owned(),
    ];
    let receiver = Receiver::start(&says.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let team = slack_to(dir.path(), &receiver);
    for wanted in ["HTTP 400: invalid_payload", "HTTP 403: action_prohibited", "HTTP 404: no_service", "HTTP 410: channel_is_archived"] {
        assert_eq!(team.send("team", &notice("n")).await, Sent::Dead(wanted.into()));
    }
    let Sent::Dead(why) = team.send("team", &notice("n")).await else { panic!("a redirect was followed") };
    assert!(why.contains("HTTP 302") && !why.contains("GEHEIM"), "{why}");
    for secs in [7, 900, 30] {
        let sent = team.send("team", &notice("n")).await;
        assert_eq!(sent, Sent::Later { why: "HTTP 429".into(), after: Some(Duration::from_secs(secs)) });
    }
    assert_eq!(team.send("team", &notice("n")).await, Sent::Later { why: "HTTP 500: rollup_error".into(), after: None });
    assert_eq!(team.send("team", &notice("n")).await, Sent::Later { why: "HTTP 503".into(), after: Some(Duration::from_secs(3)) });
    assert!(matches!(team.send("team", &notice("n")).await, Sent::Later { after: None, .. }));
    assert_eq!(receiver.asked().len(), says.len());
}

#[tokio::test]
async fn nobody_there_and_no_answer_are_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let team = slack_to(dir.path(), &Receiver { url, asked: Arc::default() });
    let Sent::Later { why, after: None } = team.send("team", &notice("n")).await else { panic!("a refused connection") };
    assert!(why.contains("cannot connect"), "{why}");
    let receiver = Receiver::start(&[""]).await;
    let team = Notifier { patience: Duration::from_millis(300), ..slack_to(dir.path(), &receiver) };
    assert_eq!(team.send("team", &notice("n")).await, Sent::Later { why: "no answer within 300 ms".into(), after: None });
}

#[tokio::test]
async fn pagerduty_gets_every_event_of_a_notice_at_its_door() {
    let dir = tempfile::tempdir().unwrap();
    let taken = answer("202 Accepted", r#"{"status":"success"}"#);
    let receiver = Receiver::start(&[&taken]).await;
    let pager = pagerduty_to(dir.path(), &receiver);
    let back = Notice { topic: Topic::Rollback, raises: None, resolves: vec!["tidegate/r1/issue".into()], ..notice("rolled-back-1") };
    assert_eq!(pager.send("pager", &back).await, Sent::Taken);
    let doors: Vec<String> = receiver.asked().iter().filter_map(|a| a.head.split(' ').nth(1).map(str::to_owned)).collect();
    assert_eq!(doors, ["/v2/enqueue", "/v2/change/enqueue"]);
    assert_eq!(receiver.asked()[0].json()["dedup_key"], "tidegate/r1/issue");
    // A key that is none is not even sent.
    let short = secret_file(dir.path(), "short", "geheim");
    let pager = notifier(&format!("[pager]\nvia = \"pagerduty\"\nrouting_key_file = {short:?}\nurl = \"{}\"\n", receiver.url));
    let Sent::Dead(why) = pager.send("pager", &back).await else { panic!("taken") };
    assert!(why.contains("32 letters") && !why.contains("geheim"), "{why}");
    assert_eq!(receiver.asked().len(), 2);
}

#[tokio::test]
async fn a_webhook_is_signed_and_tells_a_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(&[&answer("200 OK", "")]).await;
    let file = secret_file(dir.path(), "hmac", HMAC_SECRET);
    let hook = notifier(&format!("[hook]\nvia = \"webhook\"\nurl = \"{}/in?a=b\"\nsecret_file = {file:?}\n", receiver.url));
    assert_eq!(hook.send("hook", &notice("issue-1")).await, Sent::Taken);
    assert_eq!(hook.send("hook", &notice("issue-1")).await, Sent::Taken);
    let asked = receiver.asked();
    assert!(asked[0].head.starts_with("POST /in?a=b HTTP/1.1"));
    assert_eq!(asked[0].header("idempotency-key").unwrap(), "r1/1800000000000/issue-1");
    assert_eq!(asked[0].header("idempotency-key"), asked[1].header("idempotency-key"));
    let signature = asked[0].header("tidegate-signature").unwrap();
    let (at, hex) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    assert!(unix_now().as_secs().abs_diff(at.parse().unwrap()) < 60);
    let tag: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, HMAC_SECRET.as_bytes());
    ring::hmac::verify(&key, format!("{at}.{}", asked[0].body).as_bytes(), &tag).unwrap();
    assert!(ring::hmac::verify(&key, format!("{at}.{} ", asked[0].body).as_bytes(), &tag).is_err());
    let json = asked[0].json();
    assert_eq!((json["schema"].as_u64(), json["topic"].as_str(), json["rollout"].as_str()), (Some(1), Some("issue"), Some("r1")));
    assert_eq!(json["at"], "2027-01-15T08:00:00.123Z");
    // An id that was refused and is used again is another one.
    assert_ne!(webhook::identity(&notice("a")), webhook::identity(&Notice { since: Timestamp(1), ..notice("a") }));
}

#[tokio::test]
async fn https_needs_a_certificate_that_somebody_vouches_for() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap().self_signed(&key).unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let server = server.with_no_client_auth().with_single_cert(vec![cert.der().clone()], private.into()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let _ = tls.read(&mut [0; 8192]).await;
            let _ = tls.write_all(answer("200 OK", "ok").as_bytes()).await;
            let _ = tls.shutdown().await;
        }
    });
    let file = secret_file(dir.path(), "slack", &format!("https://localhost:{port}/services/{SLACK_SECRET}"));
    let toml =
        format!("[team]\nvia = \"slack\"\nurl_file = {file:?}\nca_file = {ca:?}\n[stranger]\nvia = \"slack\"\nurl_file = {file:?}\n");
    let both = notifier(&toml);
    assert_eq!(both.send("team", &notice("n")).await, Sent::Taken);
    let sent = both.send("stranger", &notice("n")).await;
    assert!(matches!(&sent, Sent::Later { .. } | Sent::Dead(_)) && !format!("{sent:?}").contains("GEHEIM"), "{sent:?}");
}

#[tokio::test]
async fn no_secret_is_ever_shown() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::default();
    let _guard = log.catch();
    // Servers that say back what they were given, also where it is cut off.
    let echo = |what: &str| answer("404 Not Found", &format!("no: {what} {} {what}", "x".repeat(290 - what.len())));
    let receiver = Receiver::start(&[&echo(&format!("/services/{SLACK_SECRET}"))]).await;
    let pager = Receiver::start(&[&echo(KEY)]).await;
    let slack = secret_file(dir.path(), "slack", &format!("{}/services/{SLACK_SECRET}", receiver.url));
    let wrong = secret_file(dir.path(), "wrong", &format!("http://hooks.example/{SLACK_SECRET}"));
    let none = secret_file(dir.path(), "none", &format!("not a url {SLACK_SECRET}"));
    let (key, hmac) = (secret_file(dir.path(), "key", KEY), secret_file(dir.path(), "hmac", HMAC_SECRET));
    let toml = format!(
        "[a]\nvia = \"slack\"\nurl_file = {slack:?}\n[b]\nvia = \"slack\"\nurl_file = {wrong:?}\n[c]\nvia = \"slack\"\nurl_file = {none:?}\n\
         [d]\nvia = \"pagerduty\"\nrouting_key_file = {key:?}\nurl = \"{}\"\n\
         [e]\nvia = \"webhook\"\nurl_file = {slack:?}\nsecret_file = {hmac:?}\n",
        pager.url
    );
    let all = notifier(&toml);
    let mut seen = format!("{all:?}");
    let (outbox, mut outcomes) = Outbox::start(&all, crate::clock::Clock::starting_after(Timestamp(0)));
    for route in ["a", "b", "c", "d", "e"] {
        outbox.submit(vec![(notice("n"), route.into())]);
    }
    for _ in 0..5 {
        let outcome = timeout(PATIENCE, outcomes.recv()).await.unwrap().unwrap();
        assert!(outcome.result.is_err(), "{outcome:?}");
        seen += &format!("{outcome:?}");
    }
    seen += &format!("{:?} {outbox:?}", all.test(&[]).await);
    let log = log.text();
    assert!(log.contains("out of order"), "nothing was logged: {log}");
    assert!(seen.contains("HTTP 404"), "{seen}");
    for secret in ["GEHEIM", "gEhEiM", &SLACK_SECRET[..6], &KEY[..6], HMAC_SECRET] {
        assert!(!seen.contains(secret) && !log.contains(secret), "{secret} in {seen}\n{log}");
    }
    let read = secret::SecretAt::File(key.into()).read().await.unwrap();
    assert_eq!(format!("{read:?}"), "Secret(…)");
}

#[tokio::test]
async fn a_test_asks_each_route_once_and_wakes_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (Receiver::start(&[&answer("202 Accepted", "")]).await, Receiver::start(&[&answer("410 Gone", "archived")]).await);
    let key = secret_file(dir.path(), "key", KEY);
    let slack = secret_file(dir.path(), "slack", &format!("{}/services/x", bad.url));
    let both = notifier(&format!(
        "[pager]\nvia = \"pagerduty\"\nrouting_key_file = {key:?}\nurl = \"{}\"\n[team]\nvia = \"slack\"\nurl_file = {slack:?}\n",
        good.url
    ));
    let result = |route: &str, via, ok, detail: &str| RouteResult { route: route.into(), via, ok, detail: detail.into() };
    let pager = result("pager", Some(Via::Pagerduty), true, "taken");
    assert_eq!(both.test(&[]).await, [pager.clone(), result("team", Some(Via::Slack), false, "HTTP 410: archived")]);
    assert!(good.asked()[0].head.starts_with("POST /v2/change/enqueue"));
    let named = both.test(&["nobody".into(), "pager".into(), "pager".into()]).await;
    assert_eq!(named[0], result("nobody", None, false, "controller.toml has no route \"nobody\"; it has pager, team"));
    assert_eq!(named[1..], [pager]);
    assert_eq!(good.asked().len(), 2);
}

#[test]
fn targets_are_https_or_this_machine() {
    for (text, why) in [("http://example.com/", "write https"), ("ftp://x", "neither"), ("https://u:geheim@x/", "secrets"), ("", "")] {
        let error = config::Target::parse(text).unwrap_err();
        assert!(error.contains(why) && !error.contains("geheim"), "{error}");
    }
    let target = config::Target::parse("https://example.com/a/?token=x").unwrap();
    assert_eq!((target.base.to_string().as_str(), target.path.as_str()), ("https://example.com/a", "/a?token=x"));
    let reply = |status: u16| crate::sources::Reply { status: status.try_into().unwrap(), body: Vec::new(), retry_after: None };
    assert_eq!(send::judge(&reply(204), str::to_owned), Sent::Taken);
    assert_eq!(send::judge(&reply(401), str::to_owned), Sent::Dead("HTTP 401".into()));
    assert_eq!(send::judge(&reply(429), str::to_owned), Sent::Later { why: "HTTP 429".into(), after: Some(Duration::from_secs(30)) });
}
