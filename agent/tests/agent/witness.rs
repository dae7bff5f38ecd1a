//! What a real agent witnesses: times without service, the head of the
//! controller's journal, what its configuration says.

use std::time::{SystemTime, UNIX_EPOCH};

use tidegate_protocol::release::{Smoke, SmokeCheck, Suite};
use tidegate_protocol::{Digest, JournalHead, Millis, Outages};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::fake::{FakeController, Witness};
use crate::host::{Agent, Service_, enrolled, release, release_with, roll_out, scratch, smoke, status, until};

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Something that answers on a port, until it is stopped; `silent` takes connections
/// and says nothing.
struct Answers(JoinHandle<()>);

impl Answers {
    async fn on(port: u16, silent: bool) -> (u16, Self) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                if silent {
                    held.push(stream);
                    continue;
                }
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
            }
        };
        (port, Self(tokio::spawn(serve)))
    }

    async fn stop(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

fn check(id: &str, check: SmokeCheck) -> Smoke {
    Smoke { id: id.into(), name: id.into(), suite: Suite::Critical, check, timeout: Millis::from_secs(5), retry_for: Millis::from_secs(5) }
}

fn one(witness: &Witness) -> Option<&Outages> {
    witness.outages.as_ref()?.iter().find(|one| one.component.as_str() == "api")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_stops_and_starts_has_an_outage() {
    let controller = FakeController::start();
    let (port, answers) = Answers::on(0, false).await;
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let began = now();
    let agent = Agent::start(&dir);

    // Nothing there yet: nothing is called, and nothing counts.
    controller.outages(&["api", "other"]);
    let both = controller.until_witness("both", |w| w.outages.as_ref().is_some_and(|o| o.len() == 2)).await;
    assert!(both.outages.unwrap().iter().all(|one| one.probe.is_empty() && one.since_unix_ms >= began && one.intervals.is_empty()));

    let url = format!("http://127.0.0.1:{port}/");
    let http = |url: &str| SmokeCheck::Http { url: url.to_owned(), status: 200, body: None };
    let tests = |component: &mut tidegate_protocol::Component| {
        // The first critical one by HTTP, before one by TCP, wherever they stand.
        let integration = Smoke { suite: Suite::Integration, ..check("SMK-002", http("http://127.0.0.1:1/")) };
        let tcp = check("SMK-003", SmokeCheck::Tcp { address: format!("127.0.0.1:{port}") });
        component.smoke.extend([integration, tcp, check("SMK-004", http(&url))]);
    };
    let (release_one, _) = release_with(&controller, "1.0.0", &smoke("1.0.0", 0), &[], tests);
    roll_out(&controller, 1, &release_one).await;
    let called = controller.until_witness("what is called", |w| one(w).is_some_and(|one| !one.probe.is_empty())).await;
    assert_eq!(one(&called).unwrap().probe, url);
    assert_eq!(one(&called).unwrap().intervals, []);

    // It is said with each report.
    let said = controller.until_witness("again", |w| w.outage_messages > called.outage_messages + 2).await;
    assert!(said.reports > called.reports);

    let stopped = now();
    answers.stop().await;
    let open = controller.until_witness("an outage", |w| one(w).is_some_and(|one| one.intervals.len() == 1)).await;
    let begun = one(&open).unwrap().intervals[0];
    assert_eq!(begun.to_unix_ms, 0);
    // A probe that was under way may have been cut off.
    assert!(begun.from_unix_ms + 2_500 > stopped && begun.from_unix_ms <= now(), "{begun:?}, stopped at {stopped}");
    let (_, answers) = Answers::on(port, false).await;
    let started = now();
    let over = controller.until_witness("its end", |w| one(w).is_some_and(|one| one.intervals[0].to_unix_ms > 0)).await;
    let over = one(&over).unwrap().intervals[0];
    assert_eq!(over.from_unix_ms, begun.from_unix_ms);
    assert!(over.to_unix_ms + 2_500 > started && over.to_unix_ms <= now(), "{over:?}, started at {started}");

    // One that takes connections and says nothing is out as well.
    answers.stop().await;
    let (_, silent) = Answers::on(port, true).await;
    controller.until_witness("silence", |w| one(w).is_some_and(|one| one.intervals.len() == 2 && one.intervals[1].to_unix_ms == 0)).await;
    silent.stop().await;
    let (_, answers) = Answers::on(port, false).await;
    controller.until_witness("both over", |w| one(w).is_some_and(|one| one.intervals.len() == 2 && one.intervals[1].to_unix_ms > 0)).await;

    // A new agent begins anew. What is there already is expected to answer.
    drop(agent);
    answers.stop().await;
    let (again, before) = (now(), controller.session());
    let _agent = Agent::start(&dir);
    let anew = |w: &Witness| w.session > before && one(w).is_some_and(|one| one.intervals.len() == 1);
    let fresh = controller.until_witness("a new one", anew).await;
    assert!(one(&fresh).unwrap().since_unix_ms >= again);

    // What is not in the list ends.
    controller.outages(&["other"]);
    let left = controller.until_witness("one left", |w| w.outages.as_ref().is_some_and(|o| o.len() == 1)).await;
    assert_eq!(left.outages.unwrap()[0].component.as_str(), "other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_highest_head_is_kept_and_the_configuration_told() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    enrolled(&controller, &dir).await;
    let agent = Agent::start(&dir);
    let head = |seq, text: &str| JournalHead { seq, hash: Digest::of(text.as_bytes()) };
    let first = controller.until_witness("vars", |w| w.vars.is_some() && w.reports > 0).await;
    assert_eq!(first.vars.unwrap().iter().map(|v| (v.name.as_str(), v.digest)).collect::<Vec<_>>(), [("port", Digest::of(b"port=8081"))]);
    assert_eq!(first.head, None);

    controller.head(head(5, "five"));
    controller.until_witness("5", |w| w.head == Some(head(5, "five"))).await;
    // Neither a lower one nor another one in its place; 6 shows that they were heard.
    controller.head(head(4, "four"));
    controller.head(head(5, "another five"));
    until("durable", || dir.join("state/head.json").exists()).await;
    let told = tokio::task::block_in_place(|| status(&dir));
    assert_eq!(told["head"], serde_json::to_value(head(5, "five")).unwrap());
    controller.head(head(6, "six"));
    controller.until_witness("6", |w| w.head == Some(head(6, "six"))).await;

    let before = controller.session();
    drop(agent);
    let _agent = Agent::start(&dir);
    let kept = controller.until_witness("6 again", |w| w.session > before && w.head.is_some()).await;
    assert_eq!(kept.head, Some(head(6, "six")));
    controller.head(head(6, "another six"));
    controller.head(head(1, "a new journal"));
    controller.head(head(7, "seven"));
    controller.until_witness("7", |w| w.head == Some(head(7, "seven"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_of_version_2_hears_nothing_of_it() {
    let controller = FakeController::speaking(2);
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let _agent = Agent::start(&dir);
    let (first, _) = release(&controller, "1.0.0", 0);
    roll_out(&controller, 1, &first).await;
    let said = controller.until_witness("a few reports", |w| w.reports > 3).await;
    assert!(said.tasks.is_none() && said.outages.is_none() && said.vars.is_none() && said.head.is_none(), "{said:?}");
}
