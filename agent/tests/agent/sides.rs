//! Two sides of a component on one host, and the switch between them: a front
//! that a command of the host moves, and services that stay as they are.

use std::path::PathBuf;

use tidegate_protocol::release::{Service, Smoke, SmokeCheck, Suite};
use tidegate_protocol::report::{Running, ServiceState};
use tidegate_protocol::side::SwitchProgress;
use tidegate_protocol::{
    Assignment, Cause, ComponentReport, Generation, Intent, Millis, Phase, Progress, ReleaseRef, Side, SidesReport, SwitchOrder, Target,
};

use crate::fake::FakeController;
use crate::host::{Agent, Service_, assignment, enrolled, release, release_with, roll_out, scratch, smoke, status, until};

use Side::{Blue, Green};

/// What moves the front: `lb FRONT SIDE`.
const LB: &str = r#"#!/bin/sh
echo "$2" >>"$1.log"
while [ -e "$1.hold-$2" ]; do sleep 0.02; done
[ ! -e "$1.refuse-$2" ] || { echo "the front refuses $2" >&2; exit 3; }
echo "$TIDEGATE_SIDE $TIDEGATE_COMPONENT $TIDEGATE_VERSION" >"$1.env"
echo "$2" >"$1.new" && mv "$1.new" "$1"
"#;

/// `verify FRONT SIDE`, a file of each release.
const VERIFY: &[u8] = br#"#!/bin/sh
[ "$(cat "$1")" = "$2" ] || { echo "the front leads to $(cat "$1")"; exit 1; }
[ ! -e "$1.sick-$2" ] || { echo "$2 is sick"; exit 1; }
"#;

struct Sides {
    controller: FakeController,
    dir: PathBuf,
    agent: Agent,
    generation: u64,
    _service: Service_,
    _scratch: tempfile::TempDir,
}

impl Sides {
    async fn start() -> Self {
        let controller = FakeController::start();
        let scratch = scratch();
        let dir = scratch.path().join("web-1");
        enrolled(&controller, &dir).await;
        let lb = dir.join("lb");
        std::fs::write(&lb, LB).unwrap();
        let config = dir.join("agent.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let front = dir.join("front");
        let vars = format!("[vars]\nport_blue = \"18081\"\nport_green = \"18082\"\nfront = \"{}\"\n", front.display());
        let text =
            text.replacen("[vars]\n", &vars, 1) + &format!("[commands]\nlb = [\"/bin/sh\", \"{}\", \"${{var.front}}\"]\n", lb.display());
        std::fs::write(&config, text).unwrap();
        let agent = Agent::start(&dir);
        Self { controller, agent, generation: 0, _service: Service_(dir.clone()), dir, _scratch: scratch }
    }

    /// Blue runs 1.0.0 and serves, green runs 2.0.0.
    async fn ready() -> (Self, ReleaseRef, ReleaseRef) {
        let mut sides = Self::start().await;
        let (one, two) = (sides.release("1.0.0"), sides.release("2.0.0"));
        sides.prepare(Blue, &one).await;
        let order = sides.order(Blue, &one);
        sides.switched(&order).await;
        sides.prepare(Green, &two).await;
        (sides, one, two)
    }

    fn release(&self, version: &str) -> ReleaseRef {
        release_with(&self.controller, version, &smoke(version, 0), &[("bin/verify", VERIFY)], |component| {
            component.keep = 1;
            let run = vec!["bin/api".into(), "${side}".into(), "${var.port}".into()];
            component.service = Service::Supervised { run, env: Default::default() };
        })
        .0
    }

    fn next(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Through all phases of the side's own swap.
    async fn prepare(&mut self, side: Side, release: &ReleaseRef) -> ComponentReport {
        let n = self.next();
        for (phase, progress) in [
            (Phase::Preflight, Progress::Checked),
            (Phase::Stage, Progress::Staged),
            (Phase::Swap, Progress::Healthy),
            (Phase::Confirm, Progress::Confirmed),
        ] {
            self.controller.assign_side(side, &assignment(n, Target::Release(release.clone()), phase));
            self.side(side, |c| c.generation.n == n && c.progress == progress).await;
        }
        self.side(side, |c| c.generation.n == n && c.running.as_ref().is_some_and(|r| r.sha256.is_some())).await
    }

    async fn side(&self, side: Side, wanted: impl Fn(&ComponentReport) -> bool) -> ComponentReport {
        let report = |one: &SidesReport| one.sides.iter().find(|s| s.side == side).map(|s| s.report.clone());
        let found =
            self.controller.until_sides(&format!("what is wanted of {side}"), |one| report(one).as_ref().is_some_and(&wanted)).await;
        report(&found).unwrap()
    }

    fn order(&mut self, to: Side, release: &ReleaseRef) -> SwitchOrder {
        let verify = Smoke {
            id: "SWITCH".into(),
            name: "the front leads there".into(),
            suite: Suite::Critical,
            check: SmokeCheck::Exec { run: ["bin/verify", "${var.front}", "${side}"].map(str::to_owned).to_vec() },
            timeout: Millis::from_secs(5),
            retry_for: Millis(0),
        };
        SwitchOrder {
            generation: Generation::new(1, self.next()),
            component: "api".parse().unwrap(),
            rollout: "r1".parse().unwrap(),
            to,
            release: release.clone(),
            run: vec!["lb".into()],
            verify: Some(verify),
        }
    }

    /// Orders it and waits for its end.
    async fn switch(&self, order: &SwitchOrder) -> SidesReport {
        self.controller.switch(order);
        self.ended(order).await
    }

    async fn ended(&self, order: &SwitchOrder) -> SidesReport {
        let ended = |one: &SidesReport| one.generation == order.generation && one.progress != SwitchProgress::Switching;
        self.controller.until_sides("the end of the switch", ended).await
    }

    async fn switched(&self, order: &SwitchOrder) -> SidesReport {
        let report = self.switch(order).await;
        assert_eq!((report.progress, report.active), (SwitchProgress::Switched, Some(order.to)), "{report:#?}");
        assert_eq!(self.front(), order.to.word());
        report
    }

    fn front(&self) -> String {
        std::fs::read_to_string(self.dir.join("front")).unwrap().trim().to_owned()
    }

    fn log(&self) -> Vec<String> {
        std::fs::read_to_string(self.dir.join("front.log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// `refuse`, `hold` or `sick`.
    fn trouble(&self, what: &str, side: Side, there: bool) {
        let path = self.dir.join(format!("front.{what}-{side}"));
        if there { std::fs::write(path, "").unwrap() } else { std::fs::remove_file(path).unwrap() }
    }

    fn link(&self, name: &str) -> Option<PathBuf> {
        std::fs::read_link(self.dir.join("opt/api").join(name)).ok()
    }

    /// The agent is killed first: two never share a state directory.
    fn restart_with(&mut self, env: &[(&str, &str)]) {
        self.agent.signal(rustix::process::Signal::KILL);
        self.agent.wait();
        self.agent = Agent::start_with(&self.dir, env);
    }
}

fn process(running: &Running) -> (u32, u64) {
    (running.pid, running.start_ticks)
}

fn words(pid: u32) -> Vec<String> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    line.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sides_run_beside_each_other_and_traffic_follows_the_switch_only() {
    let mut sides = Sides::start().await;
    let (one, two) = (sides.release("1.0.0"), sides.release("2.0.0"));
    let blue = sides.prepare(Blue, &one).await.running.unwrap();
    assert!(sides.controller.last().components.is_empty(), "nothing serves before the first switch");
    assert!(sides.log().is_empty());
    let order = sides.order(Blue, &one);
    sides.switched(&order).await;
    let serves = |n: u64, release: ReleaseRef| move |c: &ComponentReport| c.generation.n == n && c.current.as_ref() == Some(&release);
    sides.controller.until("blue in the host's report", serves(2, one.clone())).await;

    // Preparing green touches neither blue nor the traffic.
    let green = sides.prepare(Green, &two).await.running.unwrap();
    let still = sides.controller.until("blue in the host's report", serves(3, one.clone())).await;
    assert_eq!(still.running.as_ref().map(process), Some(process(&blue)));
    assert_eq!((sides.front(), sides.log().len()), ("blue".to_owned(), 1));
    for (running, side, port, version) in [(&blue, "blue", "18081", "1.0.0"), (&green, "green", "18082", "2.0.0")] {
        let words = words(running.pid);
        assert_eq!(words[words.len() - 2..], [side, port]);
        assert!(sides.link(side).unwrap().to_str().unwrap().starts_with(&format!("releases/{version}-")));
    }
    assert_eq!(sides.link("current"), None);
    let mut ledger: Vec<String> =
        std::fs::read_dir(sides.dir.join("state/ledger")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    ledger.sort();
    assert_eq!(ledger, ["api@blue.json", "api@green.json", "api@switch.json"]);

    // There and back: no process is another one afterwards.
    let order = sides.order(Green, &two);
    sides.switched(&order).await;
    assert_eq!(std::fs::read_to_string(sides.dir.join("front.env")).unwrap(), "green api 2.0.0\n");
    let shown = sides.controller.until("green in the host's report", serves(4, two.clone())).await;
    assert_eq!((shown.progress, shown.running.as_ref().map(process)), (Progress::Confirmed, Some(process(&green))));

    // A restarted agent finds both and runs no command.
    let commands = sides.log().len();
    sides.restart_with(&[]);
    let same = |running: Running| move |c: &ComponentReport| c.running.as_ref().is_some_and(|r| process(r) == process(&running));
    sides.side(Blue, same(blue.clone())).await;
    sides.side(Green, same(green.clone())).await;
    assert_eq!(sides.log().len(), commands);
    let told = tokio::task::block_in_place(|| status(&sides.dir));
    let row = |at: usize| {
        (told["components"][at]["side"].clone(), told["components"][at]["active"].clone(), told["components"][at]["release"].clone())
    };
    assert_eq!(row(0), ("blue".into(), false.into(), "shop@1.0.0".into()));
    assert_eq!(row(1), ("green".into(), true.into(), "shop@2.0.0".into()));
    let switch = &told["switches"][0];
    assert_eq!((&switch["component"], &switch["active"], &switch["progress"]), (&"api".into(), &"green".into(), &"switched".into()));

    // Its command may come from the release that is left.
    let order = SwitchOrder { release: two.clone(), ..sides.order(Blue, &two) };
    sides.switched(&order).await;
    assert_eq!(std::fs::read_to_string(sides.dir.join("front.env")).unwrap(), "blue api 1.0.0\n");
    sides.side(Blue, same(blue.clone())).await;
    sides.side(Green, same(green.clone())).await;

    // An old or repeated order does nothing.
    let (commands, old) = (sides.log().len(), SwitchOrder { generation: Generation::new(1, 4), ..sides.order(Green, &two) });
    sides.controller.switch(&old);
    sides.controller.switch(&order);

    // Green goes: stopped and unlinked, and nothing else.
    let n = sides.next();
    let gone = Assignment { intent: Intent::Back, ..assignment(n, Target::Absent, Phase::Swap) };
    sides.controller.assign_side(Green, &gone);
    sides.side(Green, |c| c.generation.n == n && c.progress == Progress::Reverted && c.service == ServiceState::Absent).await;
    assert_eq!(tidegate_agent::service::Process::find(green.pid), None);
    assert_eq!((sides.link("green"), sides.front(), sides.log().len()), (None, "blue".to_owned(), commands));
    sides.side(Blue, same(blue)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_that_fails_puts_traffic_back_and_says_why() {
    let (mut sides, one, two) = Sides::ready().await;
    // The command says no.
    sides.trouble("refuse", Green, true);
    let order = sides.order(Green, &two);
    let report = sides.switch(&order).await;
    assert_eq!((report.progress, report.active, sides.front()), (SwitchProgress::Failed, Some(Blue), "blue".to_owned()));
    let failure = report.failure.unwrap();
    assert_eq!(failure.cause, Cause::StartFailed);
    assert!(failure.message.contains("exit code 3") && failure.message.contains("the front refuses green"), "{}", failure.message);
    sides.trouble("refuse", Green, false);
    assert_eq!(sides.log(), ["blue", "green", "blue"]);

    // What it leads to is sick.
    sides.trouble("sick", Green, true);
    let order = sides.order(Green, &two);
    let report = sides.switch(&order).await;
    assert_eq!((report.progress, report.active, sides.front()), (SwitchProgress::Failed, Some(Blue), "blue".to_owned()));
    let failure = report.failure.unwrap();
    assert_eq!(failure.cause, Cause::Smoke);
    assert!(failure.message.contains("SWITCH") && failure.message.contains("green is sick"), "{}", failure.message);

    // And so is the way back.
    sides.trouble("refuse", Blue, true);
    let order = sides.order(Green, &two);
    let report = sides.switch(&order).await;
    assert_eq!((report.progress, report.active), (SwitchProgress::Stuck, Some(Blue)));
    let text = report.failure.unwrap().message;
    assert!(text.contains("green is sick") && text.contains("the front refuses blue"), "{text}");
    sides.trouble("refuse", Blue, false);
    sides.trouble("sick", Green, false);
    let order = sides.order(Blue, &one);
    sides.switched(&order).await;

    // A name that nobody gave, and a file of the release, which is confined.
    let bad = SwitchOrder { run: vec!["lb-switch".into()], ..sides.order(Green, &two) };
    let report = sides.switch(&bad).await;
    let failure = report.failure.unwrap();
    assert_eq!((report.progress, failure.cause), (SwitchProgress::Failed, Cause::Policy));
    assert!(failure.message.contains("lb-switch") && failure.message.contains("[commands]"), "{}", failure.message);
    let (commands, front) = (sides.log().len(), sides.front());
    let own = SwitchOrder { run: vec!["bin/verify".into(), "${var.front}".into()], verify: None, ..sides.order(Green, &two) };
    let report = sides.switch(&own).await;
    let failure = report.failure.unwrap();
    assert_eq!((report.progress, failure.cause), (SwitchProgress::Failed, Cause::StartFailed));
    assert!(failure.message.contains("the front leads to blue"), "{}", failure.message);
    assert_eq!((sides.log().len(), sides.front()), (commands, front));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_confirmed_side_that_runs_gets_traffic() {
    let mut sides = Sides::start().await;
    let (one, two) = (sides.release("1.0.0"), sides.release("2.0.0"));
    let blue = sides.prepare(Blue, &one).await;
    let order = sides.order(Blue, &one);
    sides.switched(&order).await;
    let refused = async |sides: &mut Sides, because: &str| {
        let order = sides.order(Green, &two);
        let report = sides.switch(&order).await;
        let failure = report.failure.unwrap();
        assert_eq!((report.progress, report.active, failure.cause), (SwitchProgress::Failed, Some(Blue), Cause::Policy));
        assert!(failure.message.contains(because), "{}", failure.message);
        assert_eq!(sides.log().len(), 1);
    };
    refused(&mut sides, "nothing is installed on that side").await;
    let n = sides.next();
    sides.controller.assign_side(Green, &assignment(n, Target::Release(two.clone()), Phase::Swap));
    sides.side(Green, |c| c.progress == Progress::Healthy).await;
    refused(&mut sides, "was not confirmed").await;
    sides.controller.assign_side(Green, &assignment(n, Target::Release(two.clone()), Phase::Confirm));
    sides.side(Green, |c| c.progress == Progress::Confirmed).await;
    let order = sides.order(Green, &two);
    sides.switched(&order).await;
    assert_eq!(sides.side(Blue, |_| true).await.running.as_ref().map(process), blue.running.as_ref().map(process));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_order_waits_for_the_command_and_wins() {
    let (mut sides, one, two) = Sides::ready().await;
    sides.trouble("hold", Green, true);
    let there = sides.order(Green, &two);
    sides.controller.switch(&there);
    until("the command", || sides.log().last().map(String::as_str) == Some("green")).await;
    let back = sides.order(Blue, &one);
    sides.controller.switch(&back);
    sides.controller.until_sides("the newer one", |one| one.generation == back.generation).await;
    sides.trouble("hold", Green, false);
    let report = sides.ended(&back).await;
    assert_eq!((report.progress, report.active, sides.front()), (SwitchProgress::Switched, Some(Blue), "blue".to_owned()));
    assert_eq!(sides.log(), ["blue", "green", "blue"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_instant_of_a_switch_is_gone_on_from() {
    let (mut sides, one, two) = Sides::ready().await;
    let mut processes = Vec::new();
    for side in Side::ALL {
        processes.push((side, process(&sides.side(side, |c| c.running.is_some()).await.running.unwrap())));
    }
    let mut to = Green;
    for (point, fails) in [
        ("agent.switch.persist.before.checking", false),
        ("agent.switch.persist.after.checking", false),
        ("agent.switch.op.after.check", false),
        ("agent.switch.persist.after.switching", false),
        ("agent.switch.op.before.command", false),
        ("agent.switch.op.after.command", false),
        ("agent.switch.persist.after.verifying", false),
        ("agent.switch.op.after.verify", false),
        ("agent.switch.persist.before.switched", false),
        ("agent.switch.persist.after.switched", false),
        ("agent.switch.op.after.verify", true),
        ("agent.switch.persist.after.undoing", true),
        ("agent.switch.op.after.undo-command", true),
        ("agent.switch.op.after.undo-verify", true),
        ("agent.switch.persist.after.failed", true),
    ] {
        sides.restart_with(&[("TIDEGATE_CRASH_AT", point)]);
        let order = sides.order(to, if to == Green { &two } else { &one });
        if fails {
            sides.trouble("sick", to, true);
        }
        sides.controller.switch(&order);
        let ended = sides.agent.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9), "{point}");
        sides.agent = Agent::start(&sides.dir);
        let report = sides.ended(&order).await;
        let (progress, serves) = if fails { (SwitchProgress::Failed, to.other()) } else { (SwitchProgress::Switched, to) };
        assert_eq!((report.progress, report.active, sides.front()), (progress, Some(serves), serves.to_string()), "{point}");
        if fails {
            sides.trouble("sick", to, false);
        }
        to = serves.other();
    }
    // The services never noticed.
    for (side, was) in processes {
        sides.side(side, |c| c.running.as_ref().is_some_and(|r| process(r) == was)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_a_side_is_prepared_is_gone_on_from() {
    let mut sides = Sides::start().await;
    let one = sides.release("1.0.0");
    let blue = sides.prepare(Blue, &one).await.running.unwrap();
    for (version, point) in
        [("2.0.0", "agent.op.after.flip"), ("3.0.0", "agent.op.after.activate"), ("4.0.0", "agent.persist.before.healthy")]
    {
        let release = sides.release(version);
        sides.restart_with(&[("TIDEGATE_CRASH_AT", point)]);
        let n = sides.next();
        sides.controller.assign_side(Green, &assignment(n, Target::Release(release.clone()), Phase::Swap));
        let ended = sides.agent.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9), "{point}");
        sides.agent = Agent::start(&sides.dir);
        sides.side(Green, |c| c.generation.n == n && c.progress == Progress::Healthy).await;
        sides.controller.assign_side(Green, &assignment(n, Target::Release(release.clone()), Phase::Confirm));
        let green =
            sides.side(Green, |c| c.generation.n == n && c.progress == Progress::Confirmed && c.service == ServiceState::Running).await;
        assert_eq!(green.current, Some(release), "{point}");
    }
    sides.side(Blue, |c| c.running.as_ref().is_some_and(|r| process(r) == process(&blue))).await;
    // The other side's release is not collected, however few the component wants kept.
    let left = |version: &str| {
        let names = std::fs::read_dir(sides.dir.join("opt/api/releases")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&format!("{version}-")) && !name.ends_with(".json")).count()
    };
    assert_eq!((left("1.0.0"), left("3.0.0"), left("4.0.0")), (1, 1, 1));
    until("the collection of what no side needs", || left("2.0.0") == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_never_runs_with_and_without_sides() {
    let mut sides = Sides::start().await;
    let (one, _) = release(&sides.controller, "1.0.0", 0);
    let n = sides.next();
    let plain = roll_out(&sides.controller, n, &one).await;
    let two = sides.release("2.0.0");
    let n = sides.next();
    sides.controller.assign_side(Green, &assignment(n, Target::Release(two.clone()), Phase::Preflight));
    let refused = sides.side(Green, |c| c.generation.n == n && c.progress == Progress::Failed).await.failure.unwrap();
    assert_eq!(refused.cause, Cause::Policy);
    assert!(refused.message.contains("runs without sides") && refused.message.contains("current"), "{}", refused.message);
    let still = sides.controller.until("still as it was", |c| c.generation.n == 1 && c.running.is_some()).await;
    assert_eq!(still.running.as_ref().map(process), plain.running.as_ref().map(process));

    // Back to nothing, and it may have sides.
    let n = sides.next();
    sides.controller.assign(&Assignment { intent: Intent::Back, ..assignment(n, Target::Absent, Phase::Swap) });
    sides.controller.until("gone", |c| c.generation.n == n && c.service == ServiceState::Absent).await;
    sides.prepare(Green, &two).await;
    let order = sides.order(Green, &two);
    sides.switched(&order).await;
    let n = sides.next();
    sides.controller.assign(&assignment(n, Target::Release(one), Phase::Preflight));
    let refused = sides.controller.until("refused", |c| c.generation.n == n && c.progress == Progress::Failed).await.failure.unwrap();
    assert_eq!(refused.cause, Cause::Policy);
    assert!(refused.message.contains("runs with sides") && refused.message.contains("green"), "{}", refused.message);
    assert_eq!(sides.front(), "green");
}
