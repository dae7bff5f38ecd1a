//! Commands that wait, against a controller that follows a script: its answers,
//! its end in the middle of one, its return.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic here is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_controller::init::init;
use tidegate_controller::operator::msg::{ErrorCode, ErrorDoc, Frame, Request, Until};
use tidegate_net::{Accepted, Admission, FrameReceiver, FrameSender, Identity, accept, close};
use tidegate_protocol::limits::OPERATOR_FRAME_BYTES_MAX;
use tidegate_rollout::{DrillScope, RolloutState, Verb};

/// What the script does after its frames.
#[derive(Clone, Copy)]
enum Then {
    /// Ends the stream in good order.
    Finish,
    /// Is gone, with every connection.
    Vanish,
    /// Says nothing more.
    Hold,
}

type Script = Box<dyn FnMut(&Request) -> (Vec<Frame>, Then) + Send>;

/// A controller's identity and address, with somebody else's mind.
struct Puppet {
    dir: TempDir,
    asked: Arc<Mutex<Vec<Request>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Puppet {
    fn new(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("ctl");
        init(&at, &["127.0.0.1".into()], "127.0.0.1:0".parse().unwrap()).unwrap();
        let identity = at.join("identity");
        let identity =
            Identity::load(&identity.join("controller.crt"), &identity.join("controller.key"), &at.join("operators/admin/ca.crt")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let asked = Arc::<Mutex<Vec<Request>>>::default();
        let endpoint = runtime.block_on(async { tidegate_net::server("127.0.0.1:0".parse().unwrap(), &identity) }).unwrap();
        fs::write(at.join("listening"), endpoint.local_addr().unwrap().port().to_string()).unwrap();
        runtime.spawn(serve(endpoint, Arc::new(Mutex::new(script)), asked.clone()));
        Self { dir, asked, _runtime: runtime }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(args).current_dir(self.dir.path()).env_clear().env("HOME", self.dir.path()).stdin(Stdio::null());
        command.env("TIDEGATE_PROFILE", self.dir.path().join("ctl/operators/admin"));
        command
    }

    /// Exit code, stdout, stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        texts(&self.command(args).output().unwrap())
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

fn texts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

async fn serve(endpoint: tidegate_net::quinn::Endpoint, script: Arc<Mutex<Script>>, asked: Arc<Mutex<Vec<Request>>>) {
    let (admitted, mut connections) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move { accept(&endpoint, &Admission::default(), &admitted).await });
    while let Some(Accepted { connection, .. }) = connections.recv().await {
        let (script, asked) = (script.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((send, recv)) = connection.accept_bi().await {
                let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
                let request: Request = recv.receive(OPERATOR_FRAME_BYTES_MAX).await.unwrap().unwrap();
                asked.lock().unwrap().push(request.clone());
                let (frames, then) = (script.lock().unwrap())(&request);
                for frame in frames {
                    send.send(&frame, OPERATOR_FRAME_BYTES_MAX).await.unwrap();
                }
                match then {
                    Then::Finish => send.finish(),
                    Then::Vanish => {
                        send.finish();
                        // What was sent arrives first.
                        let _ = send.send.stopped().await;
                        connection.close(close::SHUTDOWN, b"");
                    }
                    Then::Hold => drop(tokio::spawn(async move {
                        let _ = send.send.stopped().await;
                    })),
                }
            }
        });
    }
}

fn fixed(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn status(state: RolloutState) -> Frame {
    let mut doc = fixed("status.json");
    doc["state"] = json!(state);
    let person = matches!(state, RolloutState::Paused | RolloutState::AwaitingApproval);
    doc["waiting_for"] = json!(person.then_some("person"));
    Frame::Document(doc.to_string())
}

/// The n-th fixed event, changed to another kind of record.
fn other(n: usize, kind: &str, record: Value) -> Frame {
    let mut event = fixed("events.json")[0].clone();
    (event["seq"], event["kind"], event["record"]) = (json!(100 + n), json!(kind), record);
    Frame::Event(event.to_string())
}

/// The n-th event of the fixed ones, from 1; `seq` is 100 + n.
fn event(n: usize) -> Frame {
    let mut event = fixed("events.json")[n - 1].clone();
    event["seq"] = json!(100 + n);
    Frame::Event(event.to_string())
}

const fn end(exit: u8) -> Frame {
    Frame::End { exit }
}

#[test]
fn the_end_of_a_rollout_is_the_exit_code() {
    let ends = [
        (RolloutState::Completed, 0),
        (RolloutState::RolledBack, 4),
        (RolloutState::Refused, 5),
        (RolloutState::Mixed, 6),
        (RolloutState::Halted, 8),
    ];
    for (state, code) in ends {
        let puppet = Puppet::new(Box::new(move |_| {
            (vec![status(RolloutState::Running), event(1), event(2), status(state), end(code)], Then::Finish)
        }));
        let (exit, out, err) = puppet.run(&["rollout", "watch", "shop-1"]);
        assert_eq!(exit, i32::from(code), "{state}: {err}");
        assert!(out.starts_with(&format!("rollout shop-1 of shop@2.1.0: {state}\n")), "{out}");
        assert_eq!(err.lines().count(), 2, "one line per event: {err}");
        let (exit, out, _) = puppet.run(&["rollout", "watch", "shop-1", "--output", "json"]);
        let doc: Value = serde_json::from_str(&out).expect("one document");
        assert_eq!((exit, doc["state"].as_str()), (i32::from(code), Some(state.word())));
        let (exit, out, err) = puppet.run(&["rollout", "watch", "shop-1", "--output", "ndjson"]);
        let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((exit, lines.len()), (i32::from(code), 2), "{err}");
        assert!(lines.iter().all(|l| l["schema"] == 1));
    }
}

#[test]
fn a_restarted_controller_is_found_again_and_no_event_is_seen_twice() {
    let mut call = 0;
    let puppet = Puppet::new(Box::new(move |_| {
        call += 1;
        match call {
            1 => (vec![status(RolloutState::Running), event(1), event(2)], Then::Vanish),
            2 => (vec![Frame::Error(ErrorDoc::new(ErrorCode::Detached, "the controller is stopping"))], Then::Finish),
            3 => (Vec::new(), Then::Vanish),
            _ => (vec![status(RolloutState::Running), event(3), status(RolloutState::Completed), end(0)], Then::Finish),
        }
    }));
    let (exit, out, err) = puppet.run(&["rollout", "watch", "shop-1", "--output", "ndjson"]);
    assert_eq!(exit, 0, "{err}");
    let seqs: Vec<u64> = out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [101, 102, 103]);
    let after: Vec<u64> =
        puppet.asked().iter().map(|r| if let Request::RolloutWatch { after_seq, .. } = r { *after_seq } else { panic!("{r:?}") }).collect();
    assert_eq!(after, [0, 102, 102, 102]);
    assert!(err.contains("looking for the controller"), "{err}");
}

#[test]
fn what_asking_again_cannot_mend_is_not_asked_again() {
    for (code, exit) in [(ErrorCode::NotFound, 1), (ErrorCode::Denied, 1), (ErrorCode::Refused, 5), (ErrorCode::Usage, 2)] {
        let puppet = Puppet::new(Box::new(move |_| (vec![Frame::Error(ErrorDoc::new(code, "no").fix("other"))], Then::Finish)));
        let (seen, out, err) = puppet.run(&["rollout", "watch", "shop-1"]);
        assert_eq!((seen, out.as_str(), err.as_str()), (exit, "", "error: no\n  fix: other\n"));
        assert_eq!(puppet.asked().len(), 1);
    }
}

#[test]
fn a_person_that_is_waited_for_is_exit_3_and_a_pause_is_watched() {
    let puppet = Puppet::new(Box::new(|_| (vec![status(RolloutState::AwaitingApproval)], Then::Hold)));
    assert_eq!(puppet.run(&["rollout", "watch", "shop-1"]).0, 3);
    let paused = |by: Option<&str>| {
        let Frame::Document(text) = status(RolloutState::Paused) else { unreachable!() };
        let mut doc: Value = serde_json::from_str(&text).unwrap();
        doc["paused_by"] = json!(by);
        Frame::Document(doc.to_string())
    };
    let puppet =
        Puppet::new(Box::new(move |_| (vec![paused(Some("admin")), event(1), status(RolloutState::Completed), end(0)], Then::Finish)));
    assert_eq!(puppet.run(&["rollout", "watch", "shop-1"]).0, 0);
    // It stopped by itself: nobody knows yet that somebody must act.
    let puppet = Puppet::new(Box::new(move |_| (vec![paused(None), event(1)], Then::Hold)));
    assert_eq!(puppet.run(&["rollout", "watch", "shop-1"]).0, 3);
}

#[test]
fn a_rollout_that_waits_for_a_metrics_server_is_watched_until_a_person_is_asked() {
    let blind = || {
        let Frame::Document(text) = status(RolloutState::Paused) else { unreachable!() };
        let mut doc: Value = serde_json::from_str(&text).unwrap();
        doc["waiting_for"] = Value::Null;
        Frame::Document(doc.to_string())
    };
    // The server comes back, and so does the rollout: by itself.
    let puppet = Puppet::new(Box::new(move |request| match request {
        Request::RolloutStatus { .. } => (vec![blind(), end(0)], Then::Finish),
        _ => {
            let paused = other(1, "state", json!({"kind": "state", "to": "paused", "reason": "no answer"}));
            (vec![status(RolloutState::Baking), paused, status(RolloutState::Completed), end(0)], Then::Finish)
        }
    }));
    assert_eq!(puppet.run(&["rollout", "watch", "shop-1"]).0, 0);
    // It does not for an hour: somebody is asked, without a change of state.
    let puppet = Puppet::new(Box::new(move |request| match request {
        Request::RolloutStatus { .. } => (vec![status(RolloutState::Paused), end(0)], Then::Finish),
        _ => (vec![blind(), other(1, "gate", json!({"kind": "gate", "step": "asked"}))], Then::Hold),
    }));
    assert_eq!(puppet.run(&["rollout", "watch", "shop-1"]).0, 3);
}

#[test]
fn a_drill_is_done_when_it_passed_and_tells_when_it_did_not() {
    let puppet = |passed: bool, state: RolloutState, exit: u8| {
        let start = json!({"id": "shop-1", "plan_digest": "f".repeat(64), "attached": false}).to_string();
        Puppet::new(Box::new(move |request| match request {
            Request::RolloutDrill { .. } => (vec![Frame::Document(start.clone()), end(0)], Then::Finish),
            _ => {
                let drilled = other(1, "drilled", json!({"kind": "drilled", "passed": passed, "forward_ms": 10, "back_ms": 20}));
                (vec![status(RolloutState::Running), drilled, status(state), end(exit)], Then::Finish)
            }
        }))
    };
    for (passed, state, exit, wanted) in [
        (true, RolloutState::RolledBack, 4, 0),
        (false, RolloutState::RolledBack, 4, 4),
        (false, RolloutState::Mixed, 6, 6),
        (false, RolloutState::Refused, 5, 5),
    ] {
        let puppet = puppet(passed, state, exit);
        fs::write(puppet.dir.path().join("plan.toml"), "release = \"shop@1\"\nhosts = { api = \"\" }\nstrategy = \"rolling\"\n").unwrap();
        assert_eq!(puppet.run(&["rollout", "drill", "-f", "plan.toml"]).0, wanted, "{passed} {state}");
        assert_eq!(puppet.run(&["rollout", "drill", "-f", "plan.toml", "--host", "a", "--run-id", "d"]).0, wanted);
        assert_eq!(puppet.run(&["rollout", "drill", "-f", "plan.toml", "--stage", "2", "--detach"]).0, 0);
        let scopes: Vec<DrillScope> = puppet
            .asked()
            .into_iter()
            .filter_map(|r| if let Request::RolloutDrill { scope, .. } = r { Some(scope) } else { None })
            .collect();
        assert_eq!(scopes, [DrillScope::First, DrillScope::Host("a".parse().unwrap()), DrillScope::Stage(2)]);
    }
}

#[test]
fn watching_is_done_only_if_it_is_so_now() {
    let seen = |n: u64| {
        let mut event = fixed("events.json")[1].clone();
        event["seq"] = json!(n);
        event["record"]["to"] = json!("watching");
        Frame::Event(event.to_string())
    };
    let mut asked = 0;
    let puppet = Puppet::new(Box::new(move |request| match request {
        // The first `watching` is of long ago.
        Request::RolloutStatus { .. } => {
            asked += 1;
            (vec![status(if asked == 1 { RolloutState::RollingBack } else { RolloutState::Watching }), end(0)], Then::Finish)
        }
        _ => (vec![status(RolloutState::RollingBack), seen(101), seen(102)], Then::Hold),
    }));
    let (exit, out, err) = puppet.run(&["rollout", "watch", "shop-1", "--until", "watching"]);
    assert_eq!(exit, 0, "{err}");
    assert!(out.contains("shop@2.1.0: watching"), "{out}");
    assert_eq!(puppet.asked().len(), 3);
}

#[test]
fn start_reads_the_plan_starts_and_watches() {
    let start = json!({"id": "shop-1", "plan_digest": "f".repeat(64), "attached": false}).to_string();
    let puppet = Puppet::new(Box::new(move |request| match request {
        Request::RolloutStart { .. } => (vec![Frame::Document(start.clone()), end(0)], Then::Finish),
        _ => (vec![status(RolloutState::Running), status(RolloutState::RolledBack), end(4)], Then::Finish),
    }));
    let plan = "release = \"shop@2.1.0\"\nhosts = { api = \"role=api\" }\nstrategy = \"rolling\"\n";
    fs::write(puppet.dir.path().join("plan.toml"), plan).unwrap();
    for args in [&["rollout", "start", "-f", "plan.toml"][..], &["rollout", "start", "-f", "plan.toml", "--wait", "--run-id", "shop-1"]] {
        let (exit, out, err) = puppet.run(args);
        assert_eq!(exit, 4, "{err}");
        assert!(out.contains("rolled-back"), "{out}");
    }
    let asked = puppet.asked();
    assert!(matches!(&asked[0], Request::RolloutStart { spec_text, run_id: None, confirm: None, .. } if spec_text == plan));
    assert!(matches!(&asked[2], Request::RolloutStart { run_id: Some(id), .. } if id.as_str() == "shop-1"));
    let (exit, out, err) = puppet.run(&["rollout", "start", "-f", "plan.toml", "--detach", "--output", "json"]);
    assert_eq!((exit, err.as_str()), (0, ""));
    let doc: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((doc["id"].as_str(), doc["plan_digest"].as_str().map(str::len)), (Some("shop-1"), Some(64)));
}

#[test]
fn a_start_that_is_cut_off_says_how_to_find_out() {
    let puppet = Puppet::new(Box::new(|_| (Vec::new(), Then::Vanish)));
    fs::write(puppet.dir.path().join("plan.toml"), "release = \"shop@1\"\nhosts = { api = \"\" }\nstrategy = \"rolling\"\n").unwrap();
    let (exit, _, err) = puppet.run(&["rollout", "start", "-f", "plan.toml"]);
    assert_eq!(exit, 1);
    assert!(err.contains("tidegate rollout list"), "{err}");
    let (_, _, err) = puppet.run(&["rollout", "start", "-f", "plan.toml", "--run-id", "r-1"]);
    assert!(err.contains("same --run-id"), "{err}");
    assert_eq!(puppet.asked().len(), 2, "a start is never repeated by itself");
}

#[test]
fn wait_says_reached_ended_otherwise_or_not_yet() {
    let mut answer = [(RolloutState::Paused, 0), (RolloutState::Mixed, 6), (RolloutState::Running, 7)].into_iter();
    let puppet = Puppet::new(Box::new(move |_| {
        let (state, exit) = answer.next().unwrap();
        (vec![status(state), end(exit)], Then::Finish)
    }));
    let wait = ["rollout", "wait", "shop-1", "--for", "paused,wave:2", "--timeout", "5m"];
    assert_eq!(puppet.run(&wait).0, 0);
    let (exit, out, _) = puppet.run(&wait);
    assert_eq!(exit, 6);
    assert!(out.starts_with("rollout shop-1 is mixed"), "{out}");
    let json: Vec<&str> = wait.iter().copied().chain(["--output", "json"]).collect();
    let (exit, out, err) = puppet.run(&json);
    assert_eq!((exit, err.as_str()), (7, ""));
    let doc: Value = serde_json::from_str(&out).expect("one document");
    assert_eq!(doc["error"]["code"], "detached");
    assert!(doc["error"]["fix"].as_str().unwrap().contains("tidegate rollout watch shop-1"));
    let Request::RolloutWait { until, timeout, .. } = &puppet.asked()[0] else { panic!("another request") };
    assert_eq!(until[..], [Until::State(RolloutState::Paused), Until::Wave(2)]);
    assert!(timeout.is_some_and(|t| t.0 > 290_000 && t.0 <= 300_000));
}

#[test]
fn a_controller_that_forgets_the_time_does_not_hold_wait() {
    let puppet = Puppet::new(Box::new(|_| (Vec::new(), Then::Hold)));
    let (exit, _, err) = puppet.run(&["rollout", "wait", "shop-1", "--for", "completed", "--timeout", "100ms"]);
    assert_eq!(exit, 7, "{err}");
}

#[test]
fn an_interrupt_ends_the_watching_and_not_the_rollout() {
    let puppet = Puppet::new(Box::new(|_| (vec![status(RolloutState::Running), event(1)], Then::Hold)));
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut child: Child =
            puppet.command(&["rollout", "watch", "shop-1"]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // The event is shown: it watches.
        assert!(lines.next().unwrap().unwrap().contains("started by admin"));
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        assert!(rest.join("\n").contains("tidegate rollout watch shop-1"), "{rest:?}");
    }
    assert!(puppet.asked().iter().all(|r| matches!(r, Request::RolloutWatch { .. })));
}

#[test]
fn words_are_passed_on_with_their_reason() {
    let puppet = Puppet::new(Box::new(|_| (vec![status(RolloutState::Paused), end(0)], Then::Finish)));
    let words = [
        ("pause", Verb::Pause),
        ("resume", Verb::Resume),
        ("halt", Verb::Halt),
        ("rollback", Verb::Rollback),
        ("promote", Verb::Promote),
        ("ack", Verb::Ack),
    ];
    for (word, _) in words {
        let (exit, out, err) = puppet.run(&["rollout", word, "shop-1", "--reason", "because"]);
        assert_eq!((exit, out.starts_with("rollout shop-1 is paused")), (0, true), "{err}");
    }
    for (request, (_, wanted)) in puppet.asked().iter().zip(words) {
        assert!(matches!(request, Request::RolloutVerb { verb, reason, .. } if *verb == wanted && reason == "because"), "{request:?}");
    }
    puppet.run(&["rollout", "promote", "shop-1", "--all"]);
    puppet.run(&["rollout", "declare", "shop-1", "data-corruption", "--reason", "totals"]);
    puppet.run(&["rollout", "attest", "shop-1", "--item", "no-complaints", "--note", "looked"]);
    let asked = puppet.asked();
    let [.., promote, declare, attest] = asked.as_slice() else { panic!("{asked:?}") };
    assert!(matches!(promote, Request::RolloutVerb { verb: Verb::PromoteAll, .. }));
    assert!(matches!(declare, Request::RolloutDeclare { what, reason, .. } if what == "data-corruption" && reason == "totals"));
    assert!(matches!(attest, Request::RolloutAttest { item, note, .. } if item == "no-complaints" && note == "looked"));
}
