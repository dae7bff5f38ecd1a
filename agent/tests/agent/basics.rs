//! From nothing to confirmed, through a failed smoke test and back, and what is
//! refused.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use tidegate_protocol::report::ServiceState;
use tidegate_protocol::{Cause, ComponentReport, Intent, Millis, Phase, Progress, Target};

use crate::fake::FakeController;
use crate::host::{AGENT, Agent, Service_, assignment, blocking_enroll, enrolled, release, roll_out, scratch, status};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_nothing_to_confirmed_and_back_from_a_failed_smoke_test() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let mut agent = Agent::start(&dir);

    let (one, component) = release(&controller, "1.0.0", 0);
    let confirmed = roll_out(&controller, 1, &one).await;
    assert_eq!(confirmed.current.as_ref(), Some(&one));
    assert_eq!(confirmed.previous, None);
    assert_eq!(confirmed.service, ServiceState::Running);
    assert_eq!(confirmed.tree_sha256, Some(component.tree_digest()));
    let running = confirmed.running.unwrap();
    assert_eq!(running.sha256, Some(component.files[0].digest));
    assert_eq!(confirmed.smoke[0].id, "SMK-001");
    assert_eq!(confirmed.fetched_bytes, component.bytes());
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", running.pid)).unwrap();
    assert!(line.trim_end_matches('\0').ends_with("8081"), "{line:?}");

    // A release whose smoke test fails comes back by itself, at once.
    let (two, _) = release(&controller, "2.0.0", 1);
    controller.assign(&assignment(2, Target::Release(two), Phase::Swap));
    let reverted = controller.until("reverted", |c| c.generation.n == 2 && c.progress == Progress::Reverted).await;
    let failure = reverted.failure.unwrap();
    assert_eq!(failure.cause, Cause::Smoke);
    assert!(failure.message.contains("SMK-001"), "{}", failure.message);
    let back = |c: &ComponentReport| c.current.as_ref() == Some(&one) && c.running.as_ref().is_some_and(|r| r.sha256.is_some());
    let back = controller.until("back on 1.0.0", back).await;
    assert_eq!(back.tree_sha256, Some(component.tree_digest()));
    assert_eq!(back.service, ServiceState::Running);
    // The executable, shared by both releases, was not sent again.
    assert!(back.fetched_bytes < component.bytes(), "{} bytes", back.fetched_bytes);
    let now = back.running.unwrap();
    assert_ne!((now.pid, now.start_ticks), (running.pid, running.start_ticks));

    // SIGTERM leaves the service running; status works without the daemon.
    let asked = Instant::now();
    agent.signal(rustix::process::Signal::TERM);
    assert!(agent.wait().success());
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert!(tidegate_agent::service::Process::find(now.pid).is_some());
    let told = status(&dir);
    let api = &told["components"][0];
    assert_eq!(told["schema"], 1);
    assert_eq!(api["release"], "shop@1.0.0");
    assert_eq!(api["progress"], "reverted");
    assert_eq!(api["state"], "running");
    assert_eq!(api["running"]["pid"], now.pid);
    assert_eq!(api["history"].as_array().unwrap().len(), 2);
    assert_eq!(api["history"][1]["swaps"], 1);

    // A restarted agent finds the service, and touches nothing.
    let _agent = Agent::start(&dir);
    let same = |c: &ComponentReport| c.running.as_ref().is_some_and(|r| (r.pid, r.start_ticks) == (now.pid, now.start_ticks));
    controller.until("the same process", |c| c.progress == Progress::Reverted && same(c)).await;

    // Back to nothing: stopped and gone.
    let mut absent = assignment(3, Target::Absent, Phase::Swap);
    absent.intent = Intent::Back;
    controller.assign(&absent);
    let gone = controller.until("absent", |c| c.generation.n == 3 && c.progress == Progress::Reverted).await;
    assert_eq!((gone.current, gone.failure), (None, None));
    controller.until("shown absent", |c| c.service == ServiceState::Absent && c.running.is_none()).await;
    // A zombie that nobody reaps does not run.
    assert_eq!(tidegate_agent::service::Process::find(now.pid), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_refused_before_the_swap_and_named() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let _agent = Agent::start(&dir);
    let (one, _) = release(&controller, "1.0.0", 0);
    let confirmed = roll_out(&controller, 1, &one).await;
    let before = confirmed.running.unwrap();

    for (n, version, spoil) in [
        (2, "2.0.0", (|bytes: &mut Vec<u8>| bytes[3] ^= 1) as fn(&mut Vec<u8>)),
        (3, "3.0.0", |bytes| bytes.truncate(bytes.len() - 1)),
        (4, "4.0.0", |bytes| bytes.push(b'x')),
    ] {
        let (bad, component) = release(&controller, version, 0);
        let digest = component.files[1].digest;
        spoil(controller.depot.lock().unwrap().get_mut(&digest).unwrap());
        controller.assign(&assignment(n, Target::Release(bad), Phase::Stage));
        let failed = controller.until("failed", |c| c.generation.n == n && c.progress == Progress::Failed).await;
        let failure = failed.failure.unwrap();
        assert_eq!(failure.cause, Cause::Verify, "{}", failure.message);
        assert!(failure.message.contains("bin/smoke") && failure.message.contains(&digest.to_string()), "{}", failure.message);
        assert_eq!(failed.current.as_ref(), Some(&one));
        assert_eq!(failed.running.as_ref().map(|r| (r.pid, r.start_ticks)), Some((before.pid, before.start_ticks)));
        assert!(!dir.join("state/store").join(digest.to_string()).exists());
    }

    // A changed file of the present release is named in preflight.
    let current = std::fs::canonicalize(dir.join("opt/api/current")).unwrap();
    std::fs::set_permissions(current.join("bin/smoke"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (five, _) = release(&controller, "5.0.0", 0);
    controller.assign(&assignment(5, Target::Release(five), Phase::Preflight));
    let drifted = controller.until("drifted", |c| c.generation.n == 5 && c.progress == Progress::Failed).await;
    let failure = drifted.failure.unwrap();
    assert_eq!(failure.cause, Cause::Drifted);
    assert!(failure.message.contains("bin/smoke (mode 755)"), "{}", failure.message);
    controller.until("shown drifted", |c| c.service == ServiceState::Drifted && c.tree_sha256.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_instant_of_a_swap_is_gone_on_from() {
    for point in [
        "agent.persist.after.staging",
        "agent.persist.before.swapping-flip",
        "agent.op.before.flip",
        "agent.op.after.flip",
        "agent.op.after.activate",
        "agent.persist.before.healthy",
        "agent.persist.before.confirmed",
        "agent.persist.after.confirmed",
    ] {
        let controller = FakeController::start();
        let scratch = scratch();
        let dir = scratch.path().join("web-1");
        let _service = Service_(dir.clone());
        enrolled(&controller, &dir).await;
        let mut agent = Agent::start_with(&dir, &[("TIDEGATE_CRASH_AT", point)]);
        let (one, _) = release(&controller, "1.0.0", 0);
        controller.assign(&assignment(1, Target::Release(one.clone()), Phase::Swap));
        if point.ends_with("confirmed") {
            controller.until("healthy", |c| c.progress == Progress::Healthy).await;
            controller.assign(&assignment(1, Target::Release(one.clone()), Phase::Confirm));
        }
        let status_ = agent.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status_), Some(9), "{point}");
        let _agent = Agent::start(&dir);
        controller.until("healthy or confirmed", |c| matches!(c.progress, Progress::Healthy | Progress::Confirmed)).await;
        controller.assign(&assignment(1, Target::Release(one.clone()), Phase::Confirm));
        let confirmed = controller.until("confirmed", |c| c.progress == Progress::Confirmed && c.service == ServiceState::Running).await;
        assert_eq!(confirmed.current, Some(one), "{point}");
        let told = status(&dir);
        assert_eq!(told["components"][0]["history"].as_array().unwrap().len(), 1, "{point}");
        assert_eq!(told["components"][0]["history"][0]["swaps"], 1, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_confirmation_and_without_a_controller_the_host_comes_back() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let _agent = Agent::start(&dir);
    let (one, _) = release(&controller, "1.0.0", 0);
    roll_out(&controller, 1, &one).await;
    let (two, _) = release(&controller, "2.0.0", 0);
    let mut order = assignment(2, Target::Release(two), Phase::Swap);
    order.confirm_within = Millis::from_secs(2);
    controller.assign(&order);
    controller.until("healthy", |c| c.generation.n == 2 && c.progress == Progress::Healthy).await;
    controller.vanish();
    let deadline = Instant::now() + Duration::from_secs(12);
    let told = loop {
        let told = tokio::task::block_in_place(|| status(&dir));
        if told["components"][0]["progress"] == "reverted" {
            break told;
        }
        assert!(Instant::now() < deadline, "{told:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let api = &told["components"][0];
    assert_eq!((&api["release"], &api["state"]), (&"shop@1.0.0".into(), &"running".into()));
    assert_eq!(api["failure"]["cause"], "lease-expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_ledger_stops_its_component_and_touches_nothing() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let mut agent = Agent::start(&dir);
    let (one, _) = release(&controller, "1.0.0", 0);
    let before = roll_out(&controller, 1, &one).await.running.unwrap();
    agent.signal(rustix::process::Signal::TERM);
    assert!(agent.wait().success());
    let ledger = dir.join("state/ledger/api.json");
    let whole = std::fs::read(&ledger).unwrap();
    std::fs::write(&ledger, &whole[..whole.len() / 2]).unwrap();
    let _agent = Agent::start(&dir);
    let (two, _) = release(&controller, "2.0.0", 0);
    controller.assign(&assignment(2, Target::Release(two), Phase::Swap));
    let failed = controller.until("failed", |c| c.generation.n == 2 && c.progress == Progress::Failed).await;
    let failure = failed.failure.unwrap();
    assert_eq!(failure.cause, Cause::Disk);
    assert!(failure.message.contains("api.json") && failure.message.contains("damaged"), "{}", failure.message);
    assert_eq!(failed.current, Some(one));
    assert_eq!(failed.running.map(|r| (r.pid, r.start_ticks)), Some((before.pid, before.start_ticks)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_good_once_and_a_refusal_writes_nothing() {
    let controller = FakeController::start();
    let scratch = scratch();
    let token = controller.token().to_string();
    let first = scratch.path().join("first");
    assert!(blocking_enroll(&controller, &first, &token).await.status.success());
    assert_eq!(std::fs::metadata(first.join("state/identity/host.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let second = scratch.path().join("second");
    let output = blocking_enroll(&controller, &second, &token).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&token[..10]) && said.contains("used before"), "{said}");
    assert!(!said.contains(&token), "the secret is not printed");
    assert!(!second.exists());

    // An identity that works is not replaced by accident, and the token stays good.
    let fresh = controller.token().to_string();
    let again = blocking_enroll(&controller, &first, &fresh).await;
    assert_eq!(again.status.code(), Some(1));
    let third = scratch.path().join("third");
    assert!(blocking_enroll(&controller, &third, &fresh).await.status.success());
}

#[test]
fn usage_and_configuration_mistakes_are_exit_2_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    let check = || Command::new(AGENT).args(["run", "--check-config", "--config"]).arg(&config).output().unwrap();
    let missing = check();
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("agent.toml"));
    std::fs::write(&config, "controllers = [\"c:1\"]\ntrsut = 1\n[trust]\nthreshold = 0\n").unwrap();
    let typo = check();
    let said = String::from_utf8_lossy(&typo.stderr).into_owned();
    assert_eq!(typo.status.code(), Some(2), "{said}");
    assert!(said.contains("agent.toml") && said.contains("line 2") && said.contains("trsut"), "{said}");
    std::fs::write(&config, "controllers = [\"c:1\"]\n[trust]\nthreshold = 0\n").unwrap();
    assert!(check().status.success());
    let usage = Command::new(AGENT).arg("enroll").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    let token = Command::new(AGENT).args(["enroll", "--controller", "c:1", "--token", "x"]).output().unwrap();
    assert_eq!(token.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_never_share_a_state_directory() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    enrolled(&controller, &dir).await;
    let _first = Agent::start(&dir);
    let lock = dir.join("state/lock");
    let deadline = Instant::now() + Duration::from_secs(20);
    // Held once the file is there and cannot be locked by us.
    while !std::fs::File::open(&lock)
        .is_ok_and(|file| rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err())
    {
        assert!(Instant::now() < deadline, "the first agent does not lock its state");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let output = Command::new(AGENT).arg("run").arg("--config").arg(dir.join("agent.toml")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another agent"));
}

/// Two copies of one host take each other's place at the controller; that must
/// not become a race.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_place_was_taken_comes_back_slowly() {
    let controller = FakeController::start();
    controller.supersede_all();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    enrolled(&controller, &dir).await;
    let _agent = Agent::start(&dir);
    controller.sessions(1).await;
    let began = Instant::now();
    controller.sessions(2).await;
    assert!(began.elapsed() > Duration::from_secs(5), "came back after {:?}", began.elapsed());
}
