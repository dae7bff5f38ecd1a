//! Whole rounds of a host that go another way than the plainest: hooks, a service
//! of commands, another kind of service, many files, many releases, and an agent
//! that is killed or held at a bad instant.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tidegate_agent::service::Process;
use tidegate_protocol::release::Service;
use tidegate_protocol::report::ServiceState;
use tidegate_protocol::{Cause, Component, ComponentReport, Millis, Phase, Progress, ReleaseRef, Target};

use crate::fake::FakeController;
use crate::host::{Agent, Service_, assignment, enrolled, release, release_with, roll_out, scratch, smoke, status, until};

fn at(n: u64, progress: Progress) -> impl Fn(&ComponentReport) -> bool {
    move |c| c.generation.n == n && c.progress == progress
}

fn process(report: &ComponentReport) -> Option<(u32, u64)> {
    report.running.as_ref().map(|r| (r.pid, r.start_ticks))
}

fn kill(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A file that commands of every user may write to.
fn open_file(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    path
}

/// Hooks that note their name, release and what `current` led to, and end so.
fn hooks(c: &mut Component) {
    c.check = Some(vec!["bin/hook".into(), "check".into()]);
    c.before = Some(vec!["bin/hook".into(), "before".into()]);
    c.after = Some(vec!["bin/hook".into(), "after".into()]);
}

fn hook(log: &Path, dir: &Path, version: &str, fails: &str) -> String {
    let (log, current) = (log.display(), dir.join("opt/api/current"));
    format!(
        "#!/bin/sh\nto=$(readlink {}); echo \"{version} $1 ${{to#releases/}}\" >> {log}\n[ \"$1\" = \"{fails}\" ] && exit 1\nexit 0\n",
        current.display()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_and_hooks_run_in_order_and_are_undone() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let log = open_file(scratch.path(), "hooks");
    let _agent = Agent::start(&dir);
    let with = |version: &str, exit: u8, fails: &str| {
        let hook = hook(&log, &dir, version, fails);
        release_with(&controller, version, &smoke(version, exit), &[("bin/hook", hook.as_bytes())], hooks).0
    };
    let said = || {
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, "").unwrap();
        // Without the digest: `VERSION HOOK LINK`.
        text.lines().map(|l| l.split('-').next().unwrap().trim().to_owned()).collect::<Vec<_>>()
    };
    roll_out(&controller, 1, &with("1", 0, "")).await;
    assert_eq!(said(), ["1 check", "1 before", "1 after 1"]);
    let one = roll_out(&controller, 2, &with("2", 0, "")).await;
    assert_eq!(said(), ["2 check 1", "2 before 1", "2 after 2"]);

    // A check or a drain that fails leaves the service alone; the drain is undone.
    controller.assign(&assignment(3, Target::Release(with("3", 0, "check")), Phase::Swap));
    let failed = controller.until("failed", at(3, Progress::Failed)).await;
    assert!(failed.failure.as_ref().unwrap().message.contains("check"), "{failed:?}");
    assert_eq!((said(), process(&failed)), (vec!["3 check 2".to_owned()], process(&one)));
    controller.assign(&assignment(4, Target::Release(with("4", 0, "before")), Phase::Swap));
    let failed = controller.until("failed", at(4, Progress::Failed)).await;
    assert!(failed.failure.as_ref().unwrap().message.contains("before"), "{failed:?}");
    assert_eq!(process(&failed), process(&one));
    assert_eq!(said(), ["4 check 2", "4 before 2", "4 after 2"]);

    // After a failed smoke test, and after a failed `after`, the old release takes load again.
    controller.assign(&assignment(5, Target::Release(with("5", 1, "")), Phase::Swap));
    let back = controller.until("reverted", at(5, Progress::Reverted)).await;
    assert_eq!(back.current, one.current);
    assert_eq!(said(), ["5 check 2", "5 before 2", "5 after 2"]);
    controller.assign(&assignment(6, Target::Release(with("6", 0, "after")), Phase::Swap));
    let failed = controller.until("revert-failed", at(6, Progress::RevertFailed)).await;
    assert_eq!(failed.current, one.current);
    assert_eq!(said(), ["6 check 2", "6 before 2", "6 after 6", "6 after 2"]);
}

/// Starts and stops itself by commands; the pid file is beside the releases.
fn commands(c: &mut Component) {
    let word = |word: &str| vec!["bin/ctl".to_owned(), word.to_owned()];
    c.service = Service::Command { start: word("start"), stop: word("stop"), status: word("status") };
}

fn ctl(dir: &Path) -> String {
    let pid = dir.join("api.pid");
    let pid = pid.display();
    format!(
        "#!/bin/sh\ncase $1 in\nstart) setsid \"$(pwd)/bin/api\" </dev/null >/dev/null 2>&1 & echo $! > {pid} ;;\n\
         stop) kill $(cat {pid}); while kill -0 $(cat {pid}) 2>/dev/null && ! grep -q ') Z' /proc/$(cat {pid})/stat; do sleep 0.05; done; rm {pid} ;;\n\
         status) [ -f {pid} ] && cat {pid} ;;\nesac\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_commands_goes_forward_back_and_away_and_its_kind_may_change() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let mut agent = Agent::start(&dir);
    let ctl = ctl(&dir);
    let with = |version: &str, exit| release_with(&controller, version, &smoke(version, exit), &[("bin/ctl", ctl.as_bytes())], commands);
    let (one, component) = with("1", 0);
    let first = roll_out(&controller, 1, &one).await;
    assert_eq!(first.running.as_ref().unwrap().sha256, Some(component.files[0].digest));

    let second = roll_out(&controller, 2, &with("2", 0).0).await;
    assert_ne!(process(&first), process(&second));
    assert_eq!(Process::find(first.running.as_ref().unwrap().pid), None);

    controller.assign(&assignment(3, Target::Release(with("3", 1).0), Phase::Swap));
    controller.until("reverted", at(3, Progress::Reverted)).await;
    let back = controller.until("back", |c| c.current == second.current && process(c) != process(&second) && c.running.is_some()).await;

    // The agent's restart does not touch it.
    agent.signal(Signal::KILL);
    agent.wait();
    let _agent = Agent::start(&dir);
    controller.until("the same process", |c| c.progress == Progress::Reverted && process(c) == process(&back)).await;

    // Another kind of service: the old one is stopped first; a failure brings the old kind back.
    controller.assign(&assignment(4, Target::Release(release(&controller, "4", 1).0), Phase::Swap));
    controller.until("reverted", at(4, Progress::Reverted)).await;
    let back = controller.until("back", |c| c.current == second.current && c.running.as_ref().is_some_and(|r| r.sha256.is_some())).await;
    assert!(dir.join("api.pid").exists());
    let supervised = roll_out(&controller, 5, &release(&controller, "5", 0).0).await;
    assert_eq!(Process::find(process(&back).unwrap().0), None, "the service of commands still runs");
    assert!(!dir.join("api.pid").exists());
    let again = roll_out(&controller, 6, &with("6", 0).0).await;
    assert_eq!(Process::find(process(&supervised).unwrap().0), None, "the supervised service still runs");

    let mut absent = assignment(7, Target::Absent, Phase::Swap);
    absent.intent = tidegate_protocol::Intent::Back;
    controller.assign(&absent);
    controller.until("gone", |c| at(7, Progress::Reverted)(c) && c.service == ServiceState::Absent).await;
    assert_eq!(Process::find(process(&again).unwrap().0), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_files_are_laid_out_once_and_a_changed_one_is_found() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let _agent = Agent::start(&dir);
    let texts: Vec<(String, String)> = (0..600).map(|n| (format!("share/{}/f{n}", n % 50), format!("text {n}\n"))).collect();
    let files: Vec<(&str, &[u8])> = texts.iter().map(|(p, t)| (p.as_str(), t.as_bytes())).collect();
    let (one, component) = release_with(&controller, "1", &smoke("1", 0), &files, |_| {});
    let first = roll_out(&controller, 1, &one).await;
    assert_eq!(first.tree_sha256, Some(component.tree_digest()));
    assert_eq!(first.fetched_bytes, component.bytes());
    // One file of all differs in the next: nothing else is sent.
    let changed: Vec<(&str, &[u8])> = files.iter().map(|(p, t)| (*p, if *p == "share/0/f0" { &b"other"[..] } else { *t })).collect();
    let (two, component) = release_with(&controller, "2", &smoke("1", 0), &changed, |_| {});
    let second = roll_out(&controller, 2, &two).await;
    assert_eq!((second.tree_sha256, second.fetched_bytes), (Some(component.tree_digest()), 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_releases_go_but_never_what_a_host_may_go_back_to() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let _agent = Agent::start(&dir);
    let trees = || -> BTreeSet<String> {
        let names = std::fs::read_dir(dir.join("opt/api/releases")).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap()).filter(|n| !n.ends_with(".json"));
        names.map(|n| n.split('-').next().unwrap().to_owned()).collect()
    };
    let stored = || std::fs::read_dir(dir.join("state/store")).unwrap().count();
    let named = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    let mut n = 0;
    let mut next = || {
        n += 1;
        n
    };
    for version in ["1", "2", "3", "4"] {
        roll_out(&controller, next(), &release(&controller, version, 0).0).await;
    }
    until("releases 2 to 4", || trees() == named(&["2", "3", "4"])).await;
    // The service's program and one smoke test a release.
    until("their files", || stored() == 4).await;

    // Failed releases do not pile up either, and push nothing out that was validated.
    for version in ["5", "6", "7", "8"] {
        let n = next();
        controller.assign(&assignment(n, Target::Release(release(&controller, version, 1).0), Phase::Swap));
        controller.until("reverted", at(n, Progress::Reverted)).await;
    }
    let previous = status(&dir)["components"][0]["previous"].clone();
    assert_eq!(previous, "shop@3");
    until("few trees", || trees().len() <= 4 && trees().is_superset(&named(&["3", "4"]))).await;
    roll_out(&controller, next(), &release(&controller, "9", 0).0).await;
    until("three trees", || trees().len() == 3 && trees().is_superset(&named(&["4", "9"])) && stored() == 4).await;
    let current = std::fs::read_link(dir.join("opt/api/current")).unwrap();
    assert!(current.to_str().unwrap().starts_with("releases/9-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_dies_while_the_agent_is_dead_comes_back_whatever_was_under_way() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let log = open_file(scratch.path(), "hooks");
    let mut agent = Agent::start(&dir);
    let (one, _) = release(&controller, "1", 0);
    let first = roll_out(&controller, 1, &one).await;
    agent.signal(Signal::KILL);
    agent.wait();
    kill(process(&first).unwrap().0, Signal::KILL);
    let mut agent = Agent::start_with(&dir, &[("TIDEGATE_CRASH_AT", "agent.op.before.before")]);
    let runs = |c: &ComponentReport| c.current.as_ref() == Some(&one) && c.service == ServiceState::Running;
    let second = controller.until("it runs again", |c| runs(c) && c.running.is_some() && process(c) != process(&first)).await;

    // In a drain: the old release is still the one to run, whatever comes of the hook.
    let hook = hook(&log, &dir, "2", "before");
    let (two, _) = release_with(&controller, "2", &smoke("2", 0), &[("bin/hook", hook.as_bytes())], hooks);
    controller.assign(&assignment(2, Target::Release(two), Phase::Swap));
    agent.wait();
    kill(process(&second).unwrap().0, Signal::KILL);
    let _agent = Agent::start(&dir);
    controller.until("failed", at(2, Progress::Failed)).await;
    controller.until("it runs again", |c| runs(c) && c.running.is_some() && process(c) != process(&second)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_held_past_its_lease_reverts_and_a_late_confirm_changes_nothing() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let agent = Agent::start(&dir);
    let (one, _) = release(&controller, "1", 0);
    roll_out(&controller, 1, &one).await;
    let (two, _) = release(&controller, "2", 0);
    let mut order = assignment(2, Target::Release(two), Phase::Swap);
    order.confirm_within = Millis::from_secs(2);
    controller.assign(&order);
    let healthy = controller.until("healthy", at(2, Progress::Healthy)).await;
    agent.signal(Signal::STOP);
    // In time for the controller, but read by the agent only after its lease.
    order.phase = Phase::Confirm;
    controller.assign(&order);
    let left = Duration::from_millis(healthy.lease_left_ms.unwrap() + 500);
    tokio::time::sleep(left).await;
    agent.signal(Signal::CONT);
    let reverted = controller.until("reverted", at(2, Progress::Reverted)).await;
    assert_eq!(reverted.failure.unwrap().cause, Cause::LeaseExpired);
    assert_eq!(reverted.current, Some(one));
    let told = tokio::task::block_in_place(|| status(&dir));
    assert_eq!(told["components"][0]["history"][1]["progress"], "reverted");
}

/// A revert in memory (the disk refused the ledger) that a crash made the ledger
/// forget: what `current` leads to counts, and the new release never starts again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_that_the_ledger_lost_is_made_again() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let mut agent = Agent::start_with(&dir, &[("TIDEGATE_CRASH_AT", "agent.op.before.smoke:2")]);
    let (one, _) = release(&controller, "1", 0);
    roll_out(&controller, 1, &one).await;
    let old = std::fs::read_link(dir.join("opt/api/current")).unwrap();
    let (two, _): (ReleaseRef, _) = release(&controller, "2", 0);
    controller.assign(&assignment(2, Target::Release(two), Phase::Swap));
    agent.wait();
    let current = dir.join("opt/api/current");
    assert_ne!(std::fs::read_link(&current).unwrap(), old);
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink(&old, &current).unwrap();
    let _agent = Agent::start(&dir);
    let reverted = controller.until("reverted", at(2, Progress::Reverted)).await;
    assert_eq!(reverted.current.as_ref(), Some(&one));
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", process(&reverted).unwrap().0)).unwrap();
    assert!(line.contains(old.to_str().unwrap()), "{line:?} runs, {old:?} stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_install_that_fails_leaves_nothing_and_restores_what_its_link_replaced() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let bin = scratch.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("api"), "mine").unwrap();
    let config = dir.join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap() + &format!("\n[policy]\npaths = [{:?}]\n", bin);
    std::fs::write(&config, text).unwrap();
    let _agent = Agent::start(&dir);
    let link = bin.join("api").to_str().unwrap().to_owned();
    let linked = |c: &mut Component| drop(c.links.insert(link.clone(), "bin/api".parse().unwrap()));
    let (one, _) = release_with(&controller, "1", &smoke("1", 1), &[], linked);
    controller.assign(&assignment(1, Target::Release(one), Phase::Swap));
    let reverted = controller.until("reverted", |c| at(1, Progress::Reverted)(c) && c.service == ServiceState::Absent).await;
    assert_eq!((reverted.current, reverted.failure.unwrap().cause), (None, Cause::Smoke));
    assert_eq!(std::fs::read(bin.join("api")).unwrap(), b"mine");
    assert!(std::fs::symlink_metadata(dir.join("opt/api/current")).is_err());

    let (two, _) = release_with(&controller, "2", &smoke("2", 0), &[], linked);
    roll_out(&controller, 2, &two).await;
    assert_eq!(std::fs::read(bin.join("api")).unwrap(), crate::host::SERVICE);
    // A release without the link gives the place back.
    roll_out(&controller, 3, &release(&controller, "3", 0).0).await;
    assert_eq!(std::fs::read(bin.join("api")).unwrap(), b"mine");
}
